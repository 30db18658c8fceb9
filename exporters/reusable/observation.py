"""Observes all that an export must have in common with the model it is of.

The same functions observe the live model and its export. Run as a program, this
module observes an export in a process that has imported no more than a consumer
does, while the process that has the live model observes that. It reads lines
from standard input: the directory of the export, the file to write the results
to, and then, as they are made, the files that `write` has written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import itertools
import json
import mmap
import os
import pathlib
import pickle
import signal
import sys
import tempfile
from typing import Any, NamedTuple

if __name__ == "__main__":
  # Not to be imported, as in `imports`, which is not among what consumers have.
  sys.modules.update(dict.fromkeys(sys.argv[2:]))

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
_BLOCK = 2**18  # Values that are compared at a time; more need fresh memory.


class Comparison(NamedTuple):
  """One kind of comparison of a model and its export.

  What is not a float may not differ at all.

  Attributes:
    description: What must be the same.
    of_array: How much may differ, relative to the largest value of the array.
    of_all: The same, relative to the largest of all arrays that were observed
      together.
    why: Why that much.
  """

  description: str
  of_array: float
  of_all: float
  why: str


# In the order in which they are made.
COMPARISONS = {
  "interface": Comparison(
    "The export, and each sub-object, can be called, and has its variables,"
    " trainable variables and regularization losses.",
    0.0,
    0.0,
    "It is there, or not.",
  ),
  "variables": Comparison(
    "Names, order, shapes and values of all variables.",
    0.0,
    0.0,
    "Saving copies bits.",
  ),
  "trainable variables": Comparison(
    "Which of the variables are trained, and in which order.",
    0.0,
    0.0,
    "They are the same, or not.",
  ),
  "regularization losses": Comparison(
    "Each regularization loss.",
    1e-6,
    0.0,
    "A sum over one weight, in float32, whose precision is 6e-8.",
  ),
  "outputs": Comparison(
    "Outputs in inference, in training without randomness, and with other"
    " hyperparameters, at several sizes of the input.",
    1e-5,
    0.0,
    "Both sides compute in float32, one op by op, the other in a graph, and"
    " sums over many values may be in different order.",
  ),
  "gradients": Comparison(
    "The gradient of a scalar of the outputs for every trainable variable.",
    1e-3,
    1e-5,
    "They have gone through all layers twice; some are nothing but noise, such"
    " as the gradient of a bias before a softmax.",
  ),
  "updates": Comparison(
    "What a call does to variables that are not trained, such as moving"
    " averages.",
    1e-4,
    1e-5,
    "Differences of large sums over a batch.",
  ),
  "hyperparameters": Comparison(
    "Each hyperparameter changes something.", 0.0, 0.0, "It does, or not."
  ),
  "hub.KerasLayer": Comparison(
    "A hub.KerasLayer with trainable=True and other arguments: outputs in"
    " training, regularization losses, trainable weights.",
    1e-5,
    0.0,
    "It calls the same function.",
  ),
  "serving_default": Comparison(
    "The signature serving_default, and a call of the export itself.",
    1e-5,
    0.0,
    "It calls the same function; the graph around it is another.",
  ),
  "saved again": Comparison(
    "The signature of the export that was loaded, saved again and loaded from"
    " there, with the first out of the way.",
    1e-5,
    0.0,
    "It is the same graph.",
  ),
}


class Call(NamedTuple):
  """A call of the model, or of a sub-object of it.

  Attributes:
    name: For the report.
    example: The input.
    arguments: What it is called with, beside the input.
    gradients: Whether the gradients of trainable variables are observed.
    updates: Whether it is observed what the call does to other variables.
    without: If not None: only whether anything is different with these
      arguments is observed, not what.
    keras: Whether a hub.KerasLayer of the export is called like this, too.
  """

  name: str
  example: Any
  arguments: Mapping[str, Any]
  gradients: bool = False
  updates: bool = False
  without: Mapping[str, Any] | None = None
  keras: bool = False


class Run(NamedTuple):
  """What came out of one call.

  Attributes:
    outputs: The Tensors, by their paths.
    updates: What the variables that are not trained were after it.
  """

  outputs: Mapping[str, tf.Tensor]
  updates: Arrays


class Observation(NamedTuple):
  """Something that was seen of a model.

  Attributes:
    part: Name of the sub-object, "" for the model itself.
    kind: A key of `COMPARISONS`.
    call: Name of the call, "" where there is none.
    arrays: What was seen, by name.
  """

  part: str
  kind: str
  call: str
  arrays: Arrays

  @property
  def place(self) -> str:
    """All but the arrays, for the report."""
    return ", ".join(filter(None, self[:3]))


class Result(NamedTuple):
  """What came out of a comparison.

  Attributes:
    place: What was compared.
    kind: A key of `COMPARISONS`.
    largest: The largest difference, relative to what is expected as
      `COMPARISONS` has it.
    problems: What is wrong, in words.
  """

  place: str
  kind: str
  largest: float
  problems: Sequence[str]


def observe_state(part: str, model: Any) -> Iterator[Observation]:
  """Observes what a model is, without calling it.

  Args:
    part: Name of the sub-object, "" for the model itself.
    model: What has `variables`, `trainable_variables` and
      `regularization_losses`.

  Yields:
    What was seen.
  """
  trainable = list(model.trainable_variables)
  # In place of the values, which would be in memory twice.
  digests = _numbered(model.variables, map(_digest, model.variables))
  yield Observation(part, "variables", "", digests)
  position = {v.ref(): i for i, v in enumerate(model.variables)}
  positions = _numbered(
    trainable, [position.get(v.ref(), -1) for v in trainable]
  )
  yield Observation(part, "trainable variables", "", positions)
  losses = [_array(f()) for f in model.regularization_losses]
  yield Observation(
    part, "regularization losses", "", {str(i): x for i, x in enumerate(losses)}
  )


def observe_calls(
  part: str,
  model: Any,
  call: Callable[..., Any],
  calls: Iterable[Call],
  known: Mapping[str, Run] | None = None,
) -> Iterator[Observation]:
  """Observes what a model does. Its variables keep their values.

  Args:
    part: Name of the sub-object, "" for the model itself.
    model: What has `variables` and `trainable_variables`.
    call: The model as a function.
    calls: The calls to make.
    known: What came out of those that have been made before, by their names.

  Yields:
    What was seen.
  """
  trainable = list(model.trainable_variables)
  for made in calls:
    if made.without is not None:
      same = is_same(
        *(
          run(model, call, made.example, arguments)
          for arguments in (made.arguments, made.without)
        )
      )
      yield Observation(
        part, "hyperparameters", made.name, {"effect": np.array(not same)}
      )
      continue
    # A tape costs seconds, also where no gradient is asked for.
    with (
      tf.GradientTape() if made.gradients else contextlib.nullcontext()
    ) as tape:
      outputs, updates = (known or {}).get(made.name) or run(
        model, call, made.example, made.arguments
      )
      scalar = _scalar(outputs) if made.gradients else None
    arrays = {name: _array(y) for name, y in outputs.items()}
    yield Observation(part, "outputs", made.name, arrays)
    if made.gradients:
      gradients = _numbered(trainable, tape.gradient(scalar, trainable))
      yield Observation(part, "gradients", made.name, gradients)
    if made.updates:
      yield Observation(part, "updates", made.name, updates)


def is_same(a: Run, b: Run) -> bool:
  """Tells whether two calls had the same outputs and updates.

  It allows what `COMPARISONS` allows for outputs: devices may add in any order.
  """
  seen = [
    {name: _array(y) for name, y in made.outputs.items()}
    | {f"{name} after": x for name, x in made.updates.items()}
    for made in (a, b)
  ]
  return not compare("outputs", *seen)[1]


def run(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  arguments: Mapping[str, Any],
) -> Run:
  """Calls a model. Its variables keep their values.

  Args:
    model: What has `variables` and `trainable_variables`.
    call: The model as a function.
    example: The input.
    arguments: What it is called with, beside the input.
  """
  trained = {v.ref() for v in model.trainable_variables}
  moving = [v for v in model.variables if v.ref() not in trained]
  before = [tf.identity(v) for v in moving]
  outputs = _named(call(example, **arguments))
  updates = _numbered(moving, moving)
  for variable, value in zip(moving, before, strict=True):
    variable.assign(value)
  return Run(outputs, updates)


def _numbered(
  variables: Sequence[tf.Variable], values: Iterable[Any]
) -> Arrays:
  """Names values by the order and the names of variables; drops None."""
  return {
    f"{i} {variable.name}": _array(tf.convert_to_tensor(value))
    for i, (variable, value) in enumerate(zip(variables, values, strict=True))
    if value is not None
  }


def _array(tensor: tf.Tensor) -> np.ndarray:
  """Returns the memory of a Tensor, which is not copied."""
  # By itself NumPy would cut zeros off strings.
  return np.asarray(tensor, object if tensor.dtype == tf.string else None)


def _digest(variable: tf.Variable) -> np.ndarray:
  """Hashes a variable: type, shape and value."""
  array = _array(variable.read_value())
  digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
  digest.update(array)
  return np.frombuffer(digest.digest(), np.uint8)


def changed(default: float) -> float:
  """Returns another value for a hyperparameter, of the same type."""
  if isinstance(default, int):
    return default // 2 or 2
  return default / 2 or 0.5


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
    `largest` and `problems` of a `Result`.
  """
  problems = [f"{name} is missing" for name in expected if name not in actual]
  problems += [f"{name} is new" for name in actual if name not in expected]
  common = [name for name in expected if name in actual]
  _, of_array, of_all, _ = COMPARISONS[kind]
  largest_of_all = max((_largest(expected[name]) for name in common), default=0)
  worst = 0.0
  for name in common:
    old, new = expected[name], actual[name]
    if old.shape != new.shape or old.dtype != new.dtype:
      problems.append(
        f"{name} is {new.dtype}{list(new.shape)}, and was"
        f" {old.dtype}{list(old.shape)}"
      )
    elif old.dtype.kind != "f":
      if not np.array_equal(old, new):
        problems.append(f"{name} differs")
    else:
      largest = _largest(old)
      difference = _difference(old, new)
      allowed = of_array * largest + of_all * largest_of_all
      if difference:
        worst = max(
          worst,
          difference / (allowed / of_array if allowed else largest or 1.0),
        )
      # Not `>`, which is false for NaN.
      if not difference <= allowed:
        problems.append(
          f"{name} differs by {difference:.2g}; its largest value is"
          f" {largest:.2g}"
        )
  return worst, problems


def _difference(old: np.ndarray, new: np.ndarray) -> float:
  """Returns the largest difference of two arrays; NaN if one has a NaN."""
  old, new = old.ravel(), new.ravel()
  blocks = [slice(i, i + _BLOCK) for i in range(0, old.size, _BLOCK)]
  # The difference of two infinite values would be NaN.
  return float(
    np.max(
      [
        np.max(np.abs(new[block] - old[block]))
        for block in blocks
        if not np.array_equal(old[block], new[block])
      ],
      initial=0.0,
    )
  )


def _largest(array: np.ndarray) -> float:
  if array.dtype.kind != "f" or not array.size:
    return 0.0
  return max(float(array.max()), -float(array.min()))


def check(
  export_dir: str,
  model: Any,
  plan: Mapping[str, Sequence[Call]],
  seen: Iterator[Observation],
  save_again: bool,
) -> list[Result]:
  """Observes an export, and compares with what was seen of the live model.

  Args:
    export_dir: The directory of the export.
    model: What was loaded from it.
    plan: For the name of each sub-object the calls of it; the model itself has
      the name "" and is the first.
    seen: What `observe_state` and `observe_calls` have seen of the live model,
      and then of each of its sub-objects, in the order of `plan`.
    save_again: Whether to save what was loaded, and to look whether that stands
      without the export.
  """
  results = []

  def report(
    place: str, kind: str, largest: float, problems: list[str]
  ) -> None:
    results.append(Result(place, kind, largest, problems))
    print(
      f"  {'✗' if problems else '✓'} {place}"
      + (f": largest difference {largest:.1g}" if largest else ""),
      flush=True,
    )

  first_outputs = None
  for part, calls in plan.items():
    observed = getattr(model, part, None) if part else model
    place = Observation(part, "interface", "", {}).place
    lacking = [name for name in _INTERFACE if not hasattr(observed, name)]
    report(place, "interface", 0.0, [f"{name} is missing" for name in lacking])
    if lacking:
      continue
    for new in itertools.chain(
      observe_state(part, observed),
      observe_calls(part, observed, observed, calls),
    ):
      old = next(o for o in seen if o.place == new.place)
      largest, problems = compare(new.kind, old.arrays, new.arrays)
      if new.kind == "hyperparameters":
        problems = [] if all(new.arrays.values()) else ["it changes nothing"]
      report(new.place, new.kind, largest, problems)
      if first_outputs is None and new.kind == "outputs":
        first_outputs = new.arrays
    for made in calls:
      if made.keras:
        kind = "hub.KerasLayer"
        place = Observation(part, kind, made.name, {}).place
        report(place, kind, *compare(kind, *_in_keras(observed, made)))

  # What has no counterpart in the live model.
  example = plan[""][0].example
  if "serving_default" not in model.signatures:
    problem = "there is no signature of this name"
    report("serving_default", "serving_default", 0.0, [problem])
  elif first_outputs is not None:
    served = _served(model, example)
    if list(first_outputs) == [_ONLY] and len(served) == 1:
      first_outputs = dict(zip(served, first_outputs.values(), strict=True))
    report(
      "serving_default",
      "serving_default",
      *compare(
        "serving_default",
        {k: y for k, y in first_outputs.items() if k in served},
        served,
      ),
    )
    if save_again:
      try:
        of_again = _saved_again(export_dir, model, example)
      except tf.errors.OpError as e:
        compared = 0.0, [f"it does not work: {' '.join(e.message.split())}"]
      else:
        compared = compare("saved again", served, of_again)
      report("saved again", "saved again", *compared)
  return results


def _in_keras(model: Any, made: Call) -> tuple[Arrays, Arrays]:
  """Returns what is seen of a loaded model, and of a hub.KerasLayer of it."""
  arguments = dict(made.arguments)
  training = {k: arguments.pop(k) for k in ["training"] if k in arguments}
  layer = hub.KerasLayer(model, trainable=True, arguments=arguments)
  position = {v.ref(): i for i, v in enumerate(model.variables)}

  def see(
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
    weights: Sequence[tf.Variable],
    losses: Iterable[tf.Tensor],
  ) -> Arrays:
    outputs, _ = run(model, call, made.example, arguments)
    tensors = {
      **outputs,
      **{f"regularization loss {i}": x for i, x in enumerate(losses)},
    }
    return {
      **{name: _array(x) for name, x in tensors.items()},
      **_numbered(weights, [position.get(v.ref(), -1) for v in weights]),
    }

  return (
    see(
      model,
      made.arguments,
      model.trainable_variables,
      [f() for f in model.regularization_losses],
    ),
    see(layer, training, layer.trainable_weights, layer.losses),
  )


def _saved_again(export_dir: str, model: Any, example: Any) -> Arrays:
  """Returns what a copy of an export serves where the export is away."""
  with tempfile.TemporaryDirectory() as again:
    tf.saved_model.save(model, again, model.signatures)
    # Beside it, and so the same directory, which others may have locked.
    moved = f"{export_dir}.moved"
    os.rename(export_dir, moved)
    try:
      return _served(tf.saved_model.load(again), example)
    finally:
      os.rename(moved, export_dir)


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
    if "Op type not registered" not in str(e):
      raise
    import tensorflow_text  # noqa: F401

    return hub.load(export_dir)


def write(path: pathlib.Path, value: Any) -> None:
  """Writes what `_read` reads: plain containers, arrays and Tensors.

  The memory of arrays is in a file of its own, for the other process to map.
  """
  buffers: list[pickle.PickleBuffer] = []
  pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
  memory = [buffer.raw() for buffer in buffers]
  with open(f"{path}.memory", "wb") as f:
    for m in memory:
      f.write(m)
  path.write_bytes(pickle.dumps((pickled, [m.nbytes for m in memory])))


def _read(path: str) -> Any:
  with open(path, "rb") as f:
    pickled, sizes = pickle.load(f)
  memory = memoryview(b"")
  if any(sizes):
    with open(f"{path}.memory", "rb") as f:
      memory = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
  ends = list(itertools.accumulate(sizes))
  parts = [
    memory[end - size : end] for size, end in zip(sizes, ends, strict=True)
  ]
  return pickle.loads(pickled, buffers=parts)


def _lines() -> Iterator[str]:
  for line in sys.stdin:
    yield line.rstrip("\n")
  sys.exit(1)  # The other process has ended before, and says why.


def main(level: str) -> None:
  """Checks an export, as the lines of standard input say."""
  # The other process tells of an interruption.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  # To optimize graphs that run once or twice takes longer than to run them.
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
  lines = _lines()
  export_dir = next(lines)
  results_path = next(lines)
  model = load(export_dir)
  if "tensorflow_text" in sys.modules:
    print("  - tensorflow_text is needed: the export has ops of it", flush=True)
  (plan,) = _read(next(lines))
  results = check(
    export_dir,
    model,
    {part: [Call(*c) for c in calls] for part, calls in plan.items()},
    (Observation(*_read(line)) for line in lines),
    save_again=level == "full",
  )
  pathlib.Path(results_path).write_text(json.dumps(results))


if __name__ == "__main__":
  main(sys.argv[1])
  # To tear down what TensorFlow holds takes seconds.
  sys.stdout.flush()
  os._exit(0)
