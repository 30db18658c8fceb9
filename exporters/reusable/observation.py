"""Observes all that an export must have in common with the model it is of.

The same function observes the live model and its export. Run as a program, this
module observes an export in a process that has imported no more than a consumer
does, and compares:

  python observation.py EXPORT_DIR WORK_DIR

WORK_DIR has what was seen of the live model, at the latest when standard input
ends; the results are written there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

Arrays = dict[str, np.ndarray]

_ONLY = "the tensor"  # The name where there is one, without a structure.

# How much may differ, relative to the largest value of the array, and to the
# largest of all the arrays that were observed together. Both sides compute in
# float32, whose precision is 6e-8, but in different order: one op by op, the
# other in an optimized graph.
TOLERANCES = {
  "variables": (0.0, 0.0),
  "regularization losses": (1e-6, 0.0),
  "outputs": (1e-5, 0.0),
  # These have gone through all layers twice; some are nothing but noise, such
  # as the gradient of a bias before a softmax.
  "gradients": (1e-3, 1e-5),
  "updates": (1e-4, 1e-5),
  "effect": (0.0, 0.0),  # There is one, or not.
}


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of the model.

  Attributes:
    name: For the report.
    example: Index of the input.
    arguments: What it is called with, beside the input.
    without: If not None: only whether anything is different with these
      arguments is observed, not what.
  """

  name: str
  example: int
  arguments: Mapping[str, Any]
  without: Mapping[str, Any] | None = None


def observe(
  model: Any,
  call: Callable[..., Any],
  calls: Iterable[Call],
  examples: Sequence[Any],
) -> Iterator[tuple[str, str, Arrays]]:
  """Observes a model. Its variables keep their values.

  Args:
    model: What has `variables`, `trainable_variables` and
      `regularization_losses`.
    call: The model as a function.
    calls: The calls to make.
    examples: Inputs.

  Yields:
    A kind of observation, a key of `TOLERANCES`; what was observed; and arrays
    by name.
  """
  trainable = list(model.trainable_variables)
  yield "variables", "values", _numbered(model.variables, model.variables)
  yield "variables", "trainable", _numbered(trainable, trainable)
  yield (
    "regularization losses",
    "values",
    {str(i): f().numpy() for i, f in enumerate(model.regularization_losses)},
  )
  for made in calls:
    example = examples[made.example]
    if made.without is not None:
      same = is_same(model, call, example, made.arguments, made.without)
      yield "effect", made.name, {"there is one": np.array(not same)}
      continue
    training = made.arguments.get("training")
    # A tape costs seconds, also where no gradient is asked for.
    with tf.GradientTape() if training else contextlib.nullcontext() as tape:
      outputs, updates = _run(model, call, example, made.arguments)
      scalar = _scalar(outputs)
    yield "outputs", made.name, {k: y.numpy() for k, y in outputs.items()}
    if training:
      gradients = _numbered(trainable, tape.gradient(scalar, trainable))
      yield (
        "gradients",
        made.name,
        {name: array for name, array in gradients.items() if array is not None},
      )
      yield "updates", made.name, updates


def is_same(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  arguments: Mapping[str, Any],
  other_arguments: Mapping[str, Any],
) -> bool:
  """Tells whether two calls have the same outputs and updates."""
  first, second = (
    [y for x in _run(model, call, example, a) for y in x.values()]
    for a in (arguments, other_arguments)
  )
  return all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


def _run(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  arguments: Mapping[str, Any],
) -> tuple[dict[str, tf.Tensor], Arrays]:
  """Calls a model; returns its outputs, and variables that move by calls.

  The variables keep the values that they had before.
  """
  trained = {v.ref() for v in model.trainable_variables}
  moving = [v for v in model.variables if v.ref() not in trained]
  before = [v.numpy() for v in moving]
  outputs = _named(call(example, **arguments))
  updates = _numbered(moving, moving)
  for variable, value in zip(moving, before, strict=True):
    variable.assign(value)
  return outputs, updates


def _numbered(
  variables: Sequence[tf.Variable], values: Iterable[Any]
) -> dict[str, np.ndarray | None]:
  """Names values by the order and the names of variables."""
  return {
    f"{i} {variable.name}": None
    if value is None
    else tf.convert_to_tensor(value).numpy()
    for i, (variable, value) in enumerate(zip(variables, values, strict=True))
  }


def _named(structure: Any, path: str = "") -> dict[str, tf.Tensor]:
  """Flattens outputs or inputs; a name is the path to a Tensor."""
  if isinstance(structure, Mapping):
    items = sorted(structure.items())
  elif isinstance(structure, (list, tuple)):
    items = enumerate(structure)
  else:
    return {path.removeprefix("/") or _ONLY: structure}
  return {
    name: tensor
    for key, value in items
    for name, tensor in _named(value, f"{path}/{key}").items()
  }


def _scalar(outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
  """Sums outputs with weights, so that no symmetry of them hides an error."""
  return tf.add_n(
    [
      tf.reduce_sum(
        tf.reshape(tf.cast(output, tf.float32), [-1])
        * tf.cos(tf.range(tf.cast(tf.size(output), tf.float32)))
      )
      for output in outputs.values()
      if output.dtype.is_floating
    ]
  )


def compare(
  kind: str, expected: Arrays, actual: Arrays
) -> tuple[float, list[str]]:
  """Compares what was observed of two models.

  Returns:
    The largest difference, relative to what is expected as `TOLERANCES` has it;
    and what is wrong, in words.
  """
  problems = [f"{name} is missing" for name in expected if name not in actual]
  problems += [f"{name} is new" for name in actual if name not in expected]
  common = [name for name in expected if name in actual]
  of_array, of_all = TOLERANCES[kind]
  largest_of_all = max((_largest(expected[name]) for name in common), default=0)
  worst = 0.0
  for name in common:
    old, new = expected[name], actual[name]
    if old.shape != new.shape or old.dtype != new.dtype:
      problems.append(
        f"{name} is {new.dtype}{list(new.shape)}, and was"
        f" {old.dtype}{list(old.shape)}"
      )
      continue
    if old.dtype.kind not in "fiu":
      difference, largest = float(not np.array_equal(old, new)), 1.0
    else:
      difference = 0.0 if np.array_equal(old, new) else _largest(new - old)
      largest = _largest(old)
    allowed = of_array * largest + of_all * largest_of_all
    if difference:
      worst = max(
        worst, difference / (allowed / of_array if allowed else largest or 1.0)
      )
    # Not `>`, which is false for NaN.
    if not difference <= allowed:
      problems.append(
        f"{name} differs by {difference:.2g}; its largest value is"
        f" {largest:.2g}"
      )
  return worst, problems


def _largest(array: np.ndarray) -> float:
  if array.dtype.kind not in "fiu" or not array.size:
    return 0.0
  return max(float(array.max()), -float(array.min()))


def write(
  work_dir: pathlib.Path,
  observations: Iterable[tuple[str, str, Arrays]],
  calls: Iterable[Call],
  examples: Sequence[Any],
  save_again: bool,
) -> None:
  """Writes what `check` reads.

  Args:
    work_dir: Where to write.
    observations: What `observe` has seen of the live model.
    calls: The calls in which it was observed.
    examples: The inputs.
    save_again: Whether to check that the export can be loaded and saved again,
      and then stands without the first.
  """
  meta = []
  for i, (kind, what, arrays) in enumerate(observations):
    meta.append([kind, what, list(arrays)])
    np.savez(work_dir / f"{i}.npz", *arrays.values())
  structures = []
  for i, example in enumerate(examples):
    flat = {name: np.array(x) for name, x in _named(example).items()}
    structures.append([isinstance(example, Mapping), list(flat)])
    np.savez(work_dir / f"example{i}.npz", *flat.values())
  (work_dir / "plan.json").write_text(
    json.dumps(
      {
        "observations": meta,
        "calls": [dataclasses.asdict(c) for c in calls],
        "examples": structures,
        "save_again": save_again,
      }
    )
  )


def _arrays(path: pathlib.Path) -> list[np.ndarray]:
  with np.load(path) as arrays:
    return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def check(
  export_dir: str, model: Any, work_dir: str | os.PathLike[str]
) -> None:
  """Observes an export, and compares with what `write` has written.

  Args:
    export_dir: The directory of the export.
    model: What was loaded from it.
    work_dir: Where `write` has written.
  """
  work = pathlib.Path(work_dir)
  plan = json.loads((work / "plan.json").read_text())
  calls = [Call(**c) for c in plan["calls"]]
  examples = []
  for i, (is_mapping, names) in enumerate(plan["examples"]):
    tensors = [tf.constant(x) for x in _arrays(work / f"example{i}.npz")]
    if is_mapping:
      examples.append(dict(zip(names, tensors, strict=True)))
    else:
      examples.append(tensors[0] if names == [_ONLY] else tensors)

  results = []

  def report(kind: str, what: str, worst: float, problems: list[str]) -> None:
    results.append([kind, what, worst, problems])
    print(
      f"  {'✗' if problems else '✓'} {kind}, {what}"
      + (f": largest difference {worst:.1g}" if worst else ""),
      flush=True,
    )

  for i, (kind, what, arrays) in enumerate(
    observe(model, model, calls, examples)
  ):
    expected_kind, expected_what, names = plan["observations"][i]
    assert (kind, what) == (expected_kind, expected_what)
    expected = dict(zip(names, _arrays(work / f"{i}.npz"), strict=True))
    worst, problems = compare(kind, expected, arrays)
    if kind == "effect":
      problems = [] if all(arrays.values()) else ["it changes nothing"]
    report(kind, what, worst, problems)

  # Of itself: what has no counterpart in the live model.
  outputs = {
    name: output.numpy() for name, output in _named(model(examples[0])).items()
  }
  served = _served(model, examples[0])
  if list(outputs) == [_ONLY] and len(served) == 1:
    outputs = dict(zip(served, outputs.values(), strict=True))
  outputs = {name: outputs.get(name, np.array([])) for name in served}
  report("outputs", "serving_default", *compare("outputs", outputs, served))
  if plan["save_again"]:
    again = str(work / "again")
    tf.saved_model.save(model, again, model.signatures)
    # Beside it, and so the same directory, which others may have locked.
    moved = f"{export_dir}.moved"
    os.rename(export_dir, moved)
    try:
      of_again = _served(tf.saved_model.load(again), examples[0])
    finally:
      os.rename(moved, export_dir)
    report(
      "outputs",
      "saved again, without the first",
      *compare("outputs", served, of_again),
    )
  (work / "results.json").write_text(json.dumps(results))


def _served(model: Any, example: Any) -> Arrays:
  """Calls `serving_default`, whose inputs have the names of the example."""
  signature = model.signatures["serving_default"]
  names = list(signature.structured_input_signature[1])
  inputs = (
    example
    if isinstance(example, Mapping)
    else dict(zip(names, tf.nest.flatten(example), strict=True))
  )
  return {name: y.numpy() for name, y in signature(**inputs).items()}


def main(export_dir: str, work_dir: str) -> None:
  """Loads an export while the other process is writing; checks it then."""
  model = hub.load(export_dir)
  sys.stdin.read()
  check(export_dir, model, work_dir)


if __name__ == "__main__":
  main(*sys.argv[1:])
