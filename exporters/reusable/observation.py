"""Observes everything that an export must have in common with its live model.

The same functions observe the live model and the export.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import hashlib
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

from exporters.reusable import comparison
from exporters.reusable import private_api
from exporters.reusable import randomness

Arrays = comparison.Arrays

# Replacements of zeros in other weights: powers of two, exact in every dtype.
_NO_ZEROS = (2.0**-7, 2.0**-8, 2.0**-9, 2.0**-10)

# Equal calls after which a model counts as deterministic. They are many because
# a random choice between two values often repeats.
_RARELY = 64

# The suffix in the names of calls with other weights.
OTHER_WEIGHTS = ", other weights"

# Attributes of an export, or of a sub-object, that consumers use.
INTERFACE = (
  "__call__",
  "variables",
  "trainable_variables",
  "regularization_losses",
)


class Call(NamedTuple):
  """A call of the model or of a sub-object.

  Attributes:
    name: The name in the report.
    example: The input.
    arguments: The other arguments of the call.
    gradients: Whether to observe the gradients of trainable variables and of
      floating-point inputs.
    updates: Whether to observe the non-trainable variables after the call.
    without: If not None, check only whether the outputs or updates of the
      export differ from those of a call with these arguments.
    keras: Whether to call a hub.KerasLayer of the export too.
    compilation: Whether to examine the train step of this call for XLA.
    empty: Whether to call the export with an empty batch too.
    forms: Whether to call the export with all other forms of the input too.
    random: Whether to observe only what `_randomness` returns, because two
      calls of the model differ.
    seeded: Whether the random ops of the live model and the export get the same
      seeds.
    sampled: The number of calls in a `randomness.sample`; 0 for a single call.
    reweighted: Whether the weights are changed for the call.
  """

  name: str
  example: Any
  arguments: Mapping[str, Any]
  gradients: bool = False
  updates: bool = False
  without: Mapping[str, Any] | None = None
  keras: bool = False
  compilation: bool = False
  empty: bool = False
  forms: bool = False
  random: bool = False
  seeded: bool = False
  sampled: int = 0
  reweighted: bool = False


class Observation(NamedTuple):
  """One observation of a model.

  Attributes:
    part: Name of the sub-object, "" for the model itself.
    kind: A key of `comparison.COMPARISONS`.
    call: Name of the call, "" for an observation without a call.
    arrays: The observed arrays by name.
  """

  part: str
  kind: str
  call: str
  arrays: Arrays

  @property
  def place(self) -> str:
    """Part, kind and call, for the report."""
    return ", ".join(filter(None, self[:3]))


def observe_state(part: str, model: Any) -> Iterator[Observation]:
  """Observes variables and losses of a model without calling it.

  Args:
    part: Name of the sub-object, "" for the model itself.
    model: An object with `variables`, `trainable_variables` and
      `regularization_losses`.
  """
  # Hashes: copies of the values would double the memory.
  digests = by_variable(model.variables, map(_digest, model.variables))
  yield Observation(part, "variables", "", digests)
  positions = positions_in(model, model.trainable_variables)
  flags = by_variable(model.variables, [v.trainable for v in model.variables])
  watched = {f"{name}, watched by tapes": flag for name, flag in flags.items()}
  yield Observation(part, "trainable variables", "", positions | watched)
  yield Observation(part, "regularization losses", "", _losses(model))


def _losses(model: Any) -> Arrays:
  """Returns the sum of the regularization losses, and its gradients."""
  if not model.regularization_losses:
    return {}
  with tf.GradientTape() as tape:
    loss = summed(model.regularization_losses)
  trained = list(model.trainable_variables)
  gradients = by_variable(trained, tape.gradient(loss, trained))
  named = {f"gradient for {k}": g for k, g in gradients.items()}
  return {**named, "the sum": as_array(loss)}


def summed(losses: Iterable[Callable[[], tf.Tensor]]) -> tf.Tensor:
  """Returns the sum of losses, in the dtype of the first."""
  first, *others = (loss() for loss in losses)
  return tf.add_n([first, *(tf.cast(x, first.dtype) for x in others)])


def regularized(losses: Iterable[Callable[[], tf.Tensor]]) -> set[Any]:
  """Returns references to the trainable variables that losses depend on."""
  with tf.GradientTape() as tape:
    for loss in losses:
      loss()
  return {v.ref() for v in tape.watched_variables()}


def observe_calls(
  part: str,
  model: Any,
  call: Callable[..., Any],
  calls: Iterable[Call],
  steps: Callable[..., Callable[..., Any]],
  moves: bool = True,
) -> Iterator[Observation]:
  """Observes calls of a model, and restores its variables.

  Args:
    part: Name of the sub-object, "" for the model itself.
    model: An object with `variables` and `trainable_variables`.
    call: The model as a function.
    calls: The calls to make. Calls with `without` are skipped.
    steps: Takes names of arguments, and returns a `train_step` of the model.
    moves: Whether calls with other weights start from moving averages that a
      call without seeds has updated, and whether the regularization losses are
      observed with other weights too.
  """
  repeats = True  # Whether to try that calls with the same seeds are equal.
  for is_reweighted, alike in itertools.groupby(calls, lambda c: c.reweighted):
    if not is_reweighted:
      for made in alike:
        yield from _observe_call(part, model, call, made, steps, repeats)
        repeats = repeats and not made.seeded
      continue
    *others, last = alike
    moved, seen = {}, []
    if last.updates and moves and not (last.seeded or last.sampled):
      _, moved = run(model, call, last.example, last.arguments)
    with reweighted(model, moved):
      for made in (*others, last):
        seen += _observe_call(part, model, call, made, steps)
        # Their gradients are as large as the weights: last, and only once.
        if made is last and moves and not made.seeded:
          kind = "regularization losses"
          seen.append(Observation(part, kind, made.name, _losses(model)))
    yield from seen


def _observe_call(
  part: str,
  model: Any,
  call: Callable[..., Any],
  made: Call,
  steps: Callable[..., Callable[..., Any]],
  repeats: bool = False,
) -> Iterator[Observation]:
  """Observes a call; see `observe_calls`."""
  if made.without is not None:
    return
  if made.random:
    arrays = _randomness(model, call, made.example, made.arguments)
    yield Observation(part, "randomness", made.name, arrays)
    return
  function = steps(*made.arguments) if made.gradients else call
  if made.sampled:
    # Only in graphs does Keras draw new dropout masks for recurrent layers at
    # each step.
    function = tf.function(_without_seed(function))
    runs = (
      _flat(model, made, *run(model, function, made.example, made.arguments))
      for _ in itertools.count()
    )
    arrays = randomness.sample(runs, made.sampled)
    yield Observation(part, comparison.SAMPLED, made.name, arrays)
    return
  if made.seeded:
    first = call if repeats else None
    arrays, (result, updates) = _seeded(model, first, function, made)
    yield Observation(part, comparison.SEEDED, made.name, arrays)
  else:
    result, updates = run(model, function, made.example, made.arguments)
  outputs, gradients = result if made.gradients else (result, ())
  yield Observation(part, "outputs", made.name, named_arrays(outputs))
  if made.gradients:
    # Not assigned to a name, so as to be freed before the next gradients.
    yield Observation(
      part, "gradients", made.name, gradient_arrays(model, gradients)
    )
  if made.updates:
    yield Observation(part, "updates", made.name, updates)


def _without_seed(function: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function so that its traces do not use the seed of this process.

  With the seed, the bodies of two equal loops would draw the same numbers.
  """

  def call(*args: Any, **kwargs: Any) -> Any:
    private_api.forget_seed()
    return function(*args, **kwargs)

  return call


@contextlib.contextmanager
def reweighted(model: Any, moved: Arrays) -> Iterator[None]:
  """Changes the weights of a model, and undoes that exactly on exit.

  Other weights show which values of weights an export has as constants.

  Non-trainable variables start from `moved`, their values after a call. Half of
  these values are doubled and half are halved. Values that can only grow, such
  as maxima, then lie above and below the values that a call computes.
  """
  moving = moving_variables(model)
  before = [tf.identity(v) for v in moving]
  are_moving = {v.ref() for v in moving}
  changed = []
  try:
    for v, value in zip(moving, moved.values(), strict=False):
      v.assign(value)
    for v in model.variables:
      shares = (2.0, 0.5) if v.ref() in are_moving else (0.5, 1.0)
      new, undo = _other(as_array(v.read_value()), *shares)
      v.assign(new)
      changed.append((v, undo))
    yield
  finally:
    for v, undo in reversed(changed):
      v.assign(undo(as_array(v.read_value())))
    for v, value in zip(moving, before, strict=True):
      v.assign(value)


@np.errstate(invalid="ignore", over="ignore")
def _other(
  old: np.ndarray, share: float, rest: float
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """Returns other weights, and a function that undoes the change exactly.

  Floats are multiplied by `share` and `rest` in turn, because a common factor
  has no effect on some models. If the values have both signs, every value
  multiplied by `share` also changes its sign, because some models depend only
  on signs. Zeros become one of `_NO_ZEROS`.

  Values of other dtypes are reversed instead, because integers may have to stay
  in a range. So are floats that would lose their last bit, such as very small
  ones.
  """
  if not comparison.is_inexact(old) or not old.size or np.iscomplexobj(old):
    return _flipped(old)
  if old.min() < 0 < old.max():  # Variances keep their sign.
    share = -share
  new = np.empty_like(old)
  for x, y, factors in _with_factors(old, new, share, rest):
    np.multiply(x, factors, out=y)
    if not (y / factors == x).all():
      return _flipped(old)
  zero = None
  negative = np.array([], int)  # Zeros, which a pruned weight may have.
  if not old.all():
    negative = np.flatnonzero((old == 0) & np.signbit(old))
    free = [x for x in _NO_ZEROS if not (new == x).any()]
    if not free:
      return _flipped(old)
    zero = np.array(free[0], new.dtype)
    new[old == 0] = zero

  def undo(new: np.ndarray) -> np.ndarray:
    old = np.empty_like(new)
    for x, y, factors in _with_factors(new, old, share, rest):
      np.divide(x, factors, out=y)
    if zero is not None:
      old[new == zero] = 0
      old.reshape(-1)[negative] = -0.0
    return old

  return new, undo


def _flipped(
  old: np.ndarray,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """Reverses the order of values that are not sorted; see `_other`."""
  flat = old.ravel()
  is_sorted = (flat[1:] >= flat[:-1]).all()  # Such as ends of ragged rows.
  flip = np.asarray if is_sorted else np.flip
  return flip(old), flip


def _with_factors(
  old: np.ndarray, new: np.ndarray, share: float, rest: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields blocks of two arrays, with factors that alternate along each axis.

  The arrays are split into blocks because temporary arrays as large as the
  weights would cost more than the arithmetic.
  """
  odd = [(np.arange(size) % 2).astype(bool) for size in old.shape]
  columns = odd.pop() if len(odd) > 1 else np.array([False])
  of_rows = functools.reduce(np.logical_xor.outer, odd, np.array(False)).ravel()
  # The factors of even rows and of odd rows.
  pair = np.where(
    [columns, ~columns], np.array(rest, old.dtype), np.array(share, old.dtype)
  )
  old, new = map(comparison.as_rows, (old, new))
  for block in comparison.blocks(old):
    yield old[block], new[block], pair[of_rows[block].astype(int)]


def train_step(
  model: Any,
  call: Callable[..., Any],
  losses: Iterable[Callable[[], tf.Tensor]] = (),
  of_inputs: bool = False,
) -> Callable[..., Any]:
  """Makes a function that returns outputs of a model and their gradients.

  Args:
    model: An object with `trainable_variables`.
    call: The model as a function.
    losses: Functions that return losses to differentiate too.
    of_inputs: Whether to differentiate with respect to the input too.

  Returns:
    A function with the arguments of `call`. It returns the outputs, and the
    gradients of a scalar computed from the outputs and losses. The gradients
    are a list for all trainable variables and a dict for floating-point inputs,
    which is empty without `of_inputs`. `gradient_arrays` takes both.
  """

  def step(example: Any, **arguments: Any) -> tuple[Any, list[Any]]:
    inputs = float_inputs(example) if of_inputs else {}
    # Only train steps use a tape because it costs seconds, even without
    # gradients.
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      outputs = call(example, **arguments)
      scalar = tf.add_n([_scalar(outputs), *(loss() for loss in losses)])
    variables = list(model.trainable_variables)
    try:
      return outputs, tape.gradient(scalar, [variables, inputs])
    except LookupError:  # An op has no gradient.
      if variables:
        raise
      return outputs, [[], {}]

  return step


def float_inputs(example: Any) -> dict[str, tf.Tensor]:
  """Returns the Tensors of an input that have gradients, by path."""
  named = comparison.named(example).items()
  return {name: x for name, x in named if x.dtype.is_floating}


def gradient_arrays(model: Any, gradients: Sequence[Any]) -> Arrays:
  """Names the gradients that a `train_step` returned; drops None."""
  of_variables, of_inputs = gradients
  return by_variable(model.trainable_variables, of_variables) | {
    f"{comparison.INPUT} {name}".removesuffix(f" {comparison.ONLY}"): as_array(
      tf.convert_to_tensor(gradient)
    )
    for name, gradient in of_inputs.items()
    if gradient is not None
  }


def differ(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  *arguments: Mapping[str, Any],
) -> bool:
  """Tells whether calls with these arguments differ in outputs or updates.

  Variables that the model does not list are neither observed nor restored.
  """
  runs = (run(model, call, example, a) for a in arguments)
  first = next(runs)
  return any(results_differ(first, other) for other in runs)


def results_differ(*runs: tuple[Any, Arrays]) -> bool:
  """Tells whether two results of `run` differ."""
  seen = [named_arrays({"outputs": y}) | updates for y, updates in runs]
  return bool(comparison.compare("outputs", *seen)[1])


def _randomness(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  arguments: Mapping[str, Any],
) -> Arrays:
  """Observes whether equal calls differ, and which updates need `arguments`."""
  _, still = run(model, call, example, {})
  _, moved = run(model, call, example, arguments)
  calls = [arguments] * _RARELY
  differs = differ(model, call, example, *calls)
  return {"the randomness of calls": np.array(differs)} | {
    f"{name} moves": np.array(not np.array_equal(still[name], value))
    for name, value in moved.items()
  }


def _flat(model: Any, made: Call, result: Any, updates: Arrays) -> Arrays:
  """Returns all arrays that are observed of a call, by name."""
  outputs, gradients = result if made.gradients else (result, None)
  seen = {f"{k} of the outputs": y for k, y in named_arrays(outputs).items()}
  if made.gradients:
    for name, gradient in gradient_arrays(model, gradients).items():
      seen[f"gradient of {name}"] = gradient
  return seen | (updates if made.updates else {})


def _seeded(
  model: Any,
  first: Callable[..., Any] | None,
  step: Callable[..., Any],
  made: Call,
) -> tuple[Arrays, tuple[Any, Arrays]]:
  """Runs `step` with numbered seeds; observes whether `first` agrees with it.

  Args:
    model: The model.
    first: The model as a function, or None to skip this comparison.
    step: The model as a function, or its train step.
    made: The call to make.

  Returns:
    The number of draws and the comparison with `first`, and the result of
    `run` for `step`.
  """

  def seeded(function: Callable[..., Any]) -> tuple[tuple[Any, Arrays], int]:
    with private_api.numbered_seeds() as given:
      return run(model, function, made.example, made.arguments), given()

  if first is None:
    again, count = seeded(step)
    return {"draws": np.array(count)}, again
  before, count = seeded(first)
  again, _ = seeded(step)
  result, moved = again
  other = (result[0] if made.gradients else result), moved
  repeats = not results_differ(before, other)
  return {"draws": np.array(count), "repeats": np.array(repeats)}, again


def draws(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  arguments: Mapping[str, Any],
) -> int:
  """Counts the random ops that an eager call runs."""
  with private_api.numbered_seeds() as given:
    run(model, call, example, arguments)
    return given()


@contextlib.contextmanager
def restored(model: Any) -> Iterator[list[tf.Variable]]:
  """Yields the moving (non-trainable) variables; restores them on exit."""
  moving = moving_variables(model)
  before = [tf.identity(v) for v in moving]
  try:
    yield moving
  finally:
    for variable, value in zip(moving, before, strict=True):
      variable.assign(value)


def run(
  model: Any,
  call: Callable[..., Any],
  example: Any,
  arguments: Mapping[str, Any],
) -> tuple[Any, Arrays]:
  """Calls a model; returns the outputs and the updated moving variables.

  Restores the moving variables.
  """
  with restored(model) as moving:
    outputs = call(example, **arguments)
    return outputs, by_variable(moving, moving)


def moving_variables(model: Any) -> list[tf.Variable]:
  """Returns the variables of a model that are not trainable."""
  trained = {v.ref() for v in getattr(model, "trainable_variables", ())}
  variables = getattr(model, "variables", ())
  return [v for v in variables if v.ref() not in trained]


def by_variable(
  variables: Sequence[tf.Variable], values: Iterable[Any]
) -> Arrays:
  """Returns values by index and name of their variables; drops None."""
  return {
    f"{i} {variable.name}": as_array(tf.convert_to_tensor(value))
    for i, (variable, value) in enumerate(zip(variables, values, strict=True))
    if value is not None
  }


def positions_in(model: Any, variables: Sequence[tf.Variable]) -> Arrays:
  """Returns the positions of variables in a model's list; -1 for others."""
  position = {v.ref(): i for i, v in enumerate(model.variables)}
  return by_variable(variables, [position.get(v.ref(), -1) for v in variables])


def named_arrays(structure: Any) -> Arrays:
  """Returns the Tensors of a structure as arrays, by path."""
  return {
    name: as_array(tensor)
    for name, tensor in comparison.named(structure).items()
  }


def as_array(tensor: tf.Tensor | None) -> np.ndarray:
  """Views a Tensor as an array, without a copy."""
  if tensor is None:
    return np.array("None")
  # NumPy cannot convert a scalar bfloat16 Tensor, and NumPy's strings lose
  # trailing zero bytes.
  values = tensor if tensor.shape.rank else tensor.numpy()
  return np.asarray(values, object if tensor.dtype == tf.string else None)


def _digest(variable: tf.Variable) -> np.ndarray:
  """Hashes dtype, shape and value of a variable."""
  array = as_array(variable.read_value())
  digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
  # The bytes of an array of objects are addresses, not the strings.
  is_text = array.dtype == object
  digest.update(repr(array.tolist()).encode() if is_text else array)
  return np.frombuffer(digest.digest(), np.uint8)


def checksum(variable: tf.Variable) -> int:
  """Sums the bits of a variable, which takes a tenth of the time of a hash."""
  flat = as_array(variable.read_value()).reshape(-1).view(np.uint8)
  whole = len(flat) - len(flat) % 8
  words = flat[:whole].view(np.uint64)
  return int(np.add.reduce(words)) + int(np.add.reduce(flat[whole:]))


def weights_sha256(parts: Iterable[Any]) -> str:
  """Hashes the variables of a model's parts as `verification` does."""
  weights = hashlib.sha256()
  for variable in itertools.chain(*(part.variables for part in parts)):
    weights.update(_digest(variable))
  return weights.hexdigest()


def _scalar(outputs: Any) -> tf.Tensor:
  """Returns a weighted sum of outputs, so that no symmetry hides an error.

  Large values, such as the -1e9 of a mask, are scaled to a magnitude of 1, and
  values that are not finite become 0. They would hide other gradients.
  """
  return tf.add_n(
    [
      tf.constant(0.0),
      *(
        tf.reduce_sum(
          tf.reshape(_of_one_scale(tf.cast(output, tf.float32)), [-1])
          * tf.cos(tf.range(tf.cast(tf.size(output), tf.float32)))
        )
        for output in map(_real, comparison.named(outputs).values())
        if output is not None and output.dtype.is_floating
      ),
    ]
  )


def _of_one_scale(output: tf.Tensor) -> tf.Tensor:
  output = tf.where(tf.math.is_finite(output), output, 0.0)
  return output / tf.stop_gradient(tf.maximum(tf.abs(output), 1.0))


def _real(output: Any) -> Any:
  is_complex = output is not None and output.dtype.is_complex
  return tf.math.real(output) + tf.math.imag(output) if is_complex else output


def rows(example: Any) -> int | None:
  """Returns the batch size of an example; None for a scalar."""
  shape = tf.nest.flatten(example)[0].shape
  return shape[0] if shape.rank else None


def load(export_dir: str) -> Any:
  """Loads an export; imports tensorflow-text if the export has its ops."""
  try:
    return hub.load(export_dir)
  except (RuntimeError, OSError, tf.errors.NotFoundError) as e:
    if "Op type not registered" not in str(e):
      raise
    import tensorflow_text  # noqa: F401

    return hub.load(export_dir)
