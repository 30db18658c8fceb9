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
import pickle
import re
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

Arrays = dict[str, np.ndarray]

_ONLY = "the tensor"  # The name where there is one, without a structure.
_INTERFACE = (
  "__call__",
  "variables",
  "trainable_variables",
  "regularization_losses",
)

# How much may differ, relative to the largest value of the array, and to the
# largest of all the arrays that were observed together. Both sides compute in
# float32, whose precision is 6e-8, but in different order: one op by op, the
# other in an optimized graph. What is not a float may not differ.
TOLERANCES = {
  "interface": (0.0, 0.0),  # It is there, or not.
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
  """A call of the model, or of a sub-object of it.

  Attributes:
    name: For the report.
    example: The input.
    arguments: What it is called with, beside the input.
    gradients: Whether the gradients of trainable variables are observed.
    updates: Whether it is observed what the call does to other variables.
    without: If not None: only whether anything is different with these
      arguments is observed, not what.
  """

  name: str
  example: Any
  arguments: Mapping[str, Any]
  gradients: bool = False
  updates: bool = False
  without: Mapping[str, Any] | None = None


def observe(
  model: Any, call: Callable[..., Any], calls: Iterable[Call]
) -> Iterator[tuple[str, str, Arrays]]:
  """Observes a model. Its variables keep their values.

  Args:
    model: What has `variables`, `trainable_variables` and
      `regularization_losses`.
    call: The model as a function.
    calls: The calls to make.

  Yields:
    A kind of observation, a key of `TOLERANCES`; what was observed; and arrays
    by name.
  """
  trainable = list(model.trainable_variables)
  yield "variables", "values", _numbered(model.variables, model.variables)
  position = {v.ref(): i for i, v in enumerate(model.variables)}
  yield (
    "variables",
    "trainable",
    _numbered(trainable, [position.get(v.ref(), -1) for v in trainable]),
  )
  yield (
    "regularization losses",
    "values",
    {str(i): _array(f()) for i, f in enumerate(model.regularization_losses)},
  )
  for made in calls:
    if made.without is not None:
      same = is_same(model, call, made.example, made.arguments, made.without)
      yield "effect", made.name, {"there is one": np.array(not same)}
      continue
    # A tape costs seconds, also where no gradient is asked for.
    with (
      tf.GradientTape() if made.gradients else contextlib.nullcontext()
    ) as tape:
      outputs, updates = _run(model, call, made.example, made.arguments)
      scalar = _scalar(outputs) if made.gradients else None
    yield "outputs", made.name, {k: _array(y) for k, y in outputs.items()}
    if made.gradients:
      gradients = _numbered(trainable, tape.gradient(scalar, trainable))
      yield (
        "gradients",
        made.name,
        {name: array for name, array in gradients.items() if array is not None},
      )
    if made.updates:
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
    else _array(tf.convert_to_tensor(value))
    for i, (variable, value) in enumerate(zip(variables, values, strict=True))
  }


def _array(tensor: tf.Tensor) -> np.ndarray:
  # By itself NumPy would cut zeros off strings.
  return np.asarray(
    tensor.numpy(), object if tensor.dtype == tf.string else None
  )


def _named(structure: Any, path: str = "") -> dict[str, tf.Tensor]:
  """Flattens outputs or inputs; a name is the path to a Tensor."""
  if isinstance(structure, Mapping):
    items = sorted(structure.items())
  elif isinstance(structure, (list, tuple)):
    items = enumerate(structure)
  elif isinstance(structure, tf.RaggedTensor):
    items = [
      ("flat_values", structure.flat_values),
      ("nested_row_splits", structure.nested_row_splits),
    ]
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
    if old.dtype.kind != "f":
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
        if old.dtype.kind == "f"
        else f"{name} differs"
      )
  return worst, problems


def _largest(array: np.ndarray) -> float:
  if array.dtype.kind != "f" or not array.size:
    return 0.0
  return max(float(array.max()), -float(array.min()))


def write(
  work_dir: pathlib.Path,
  observations: Iterable[tuple[str, str, Arrays]],
  plan: Mapping[str, Sequence[Call]],
  save_again: bool,
) -> None:
  """Writes what `check` reads.

  Args:
    work_dir: Where to write.
    observations: What `observe` has seen of the live model, and then of its
      sub-objects.
    plan: The calls in which they were observed, by the names of sub-objects;
      the model itself has the name "" and is the first.
    save_again: Whether to check that the export can be loaded and saved again,
      and then stands without the first.
  """
  seen = []
  for i, (kind, what, arrays) in enumerate(observations):
    seen.append([kind, what, list(arrays)])
    with open(work_dir / str(i), "wb") as f:
      for array in arrays.values():
        np.save(f, array)
  plan = {name: [vars(c) for c in calls] for name, calls in plan.items()}
  with open(work_dir / "plan", "wb") as f:
    pickle.dump((plan, seen, save_again), f)


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
  with open(work / "plan", "rb") as f:
    plan, seen, save_again = pickle.load(f)
  plan = {name: [Call(**c) for c in calls] for name, calls in plan.items()}
  results = []

  def report(kind: str, what: str, worst: float, problems: list[str]) -> None:
    results.append([kind, what, worst, problems])
    print(
      f"  {'✗' if problems else '✓'} {kind}, {what}"
      + (f": largest difference {worst:.1g}" if worst else ""),
      flush=True,
    )

  expected = {}
  for i, (kind, what, names) in enumerate(seen):
    expected[kind, what] = work / str(i), names
  for part, calls in plan.items():
    observed = getattr(model, part, None) if part else model
    lacking = [name for name in _INTERFACE if not hasattr(observed, name)]
    report(
      "interface",
      part or "the model",
      0.0,
      [f"{name} is missing" for name in lacking],
    )
    if lacking:
      continue
    for kind, what, arrays in of_part(part, observe(observed, observed, calls)):
      path, names = expected[kind, what]
      with open(path, "rb") as f:
        old = {name: np.load(f, allow_pickle=True) for name in names}
      worst, problems = compare(kind, old, arrays)
      if kind == "effect":
        problems = [] if all(arrays.values()) else ["it changes nothing"]
      report(kind, what, worst, problems)

  # Of itself: what has no counterpart in the live model.
  example = plan[""][0].example
  if "serving_default" not in model.signatures:
    report("outputs", "serving_default", 0.0, ["there is no such signature"])
  elif "__call__" in dir(model):
    outputs = {name: _array(y) for name, y in _named(model(example)).items()}
    served = _served(model, example)
    if list(outputs) == [_ONLY] and len(served) == 1:
      outputs = dict(zip(served, outputs.values(), strict=True))
    outputs = {name: outputs.get(name, np.array([])) for name in served}
    report("outputs", "serving_default", *compare("outputs", outputs, served))
    if save_again:
      again = str(work / "again")
      tf.saved_model.save(model, again, model.signatures)
      # Beside it, and so the same directory, which others may have locked.
      moved = f"{export_dir}.moved"
      os.rename(export_dir, moved)
      try:
        of_again = _served(tf.saved_model.load(again), example)
      finally:
        os.rename(moved, export_dir)
      report(
        "outputs",
        "saved again, without the first",
        *compare("outputs", served, of_again),
      )
  (work / "results.json").write_text(json.dumps(results))


def of_part(
  part: str, observations: Iterable[tuple[str, str, Arrays]]
) -> Iterator[tuple[str, str, Arrays]]:
  """Adds the name of a sub-object, "" for none, to what was observed of it."""
  for kind, what, arrays in observations:
    yield kind, f"{part}: {what}" if part else what, arrays


def _served(model: Any, example: Any) -> Arrays:
  """Calls `serving_default`, whose inputs have the names of the example."""
  signature = model.signatures["serving_default"]
  names = list(signature.structured_input_signature[1])
  inputs = (
    example
    if isinstance(example, Mapping)
    else dict(zip(names, tf.nest.flatten(example), strict=True))
  )
  return {name: _array(y) for name, y in signature(**inputs).items()}


def load(export_dir: str) -> Any:
  """Loads an export; imports tensorflow-text where it has ops of it."""
  try:
    return hub.load(export_dir)
  except (RuntimeError, OSError, tf.errors.NotFoundError) as e:
    found = re.search("Op type not registered '[^']*'", str(e))
    if not found:
      raise
    print(f"  - tensorflow_text is needed: {found[0]}", flush=True)
    import tensorflow_text  # noqa: F401, PLC0415

    return hub.load(export_dir)


def main(export_dir: str, work_dir: str) -> None:
  """Loads an export while the other process is writing; checks it then."""
  model = load(export_dir)
  sys.stdin.read()
  check(export_dir, model, work_dir)


if __name__ == "__main__":
  main(*sys.argv[1:])
