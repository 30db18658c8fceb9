"""Rules on calls in inference mode: R4, R8, R11, R12 and R15."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import itertools
import math
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import embeddings
from exporters.conformance import findings
from exporters.conformance import gradients
from exporters.conformance import subject as subject_lib
from exporters.conformance import vocabulary
from exporters.reusable import comparison

Subject = subject_lib.Subject
# Errors that a call raises for inputs that do not fit.
REFUSALS = (tf.errors.OpError, ValueError)


# Names that Keras and TensorFlow generate.
NO_NAME = re.compile(r"(args?|inputs?|outputs?|keras_tensor)(_?\d+)*")
# Keras 3 advances the seed of a recurrent layer's dropout in inference too.
_KERAS_SEED = re.compile("seed_generator_state")
# The error for an index that is beyond the rows of a smaller batch.
_OUT_OF_ROWS = re.compile(r"indices\S* = \d+ is not in \[0, \d\)")
_UNSERVED = re.compile("Anonymous.*HashTable.*")
# Kinds of models that take texts, and bytes that are not UTF-8.
_OF_TEXTS = (
  "preprocessor",
  "text classifier",
  "text embedding",
  "word embedding",
)
_BYTES = b"caf\xe9 \xff"
_HALF = (tf.bfloat16, tf.float16)
_ROWS = 8  # Examples in the batch that is compared with single examples.
_MANY = 100  # Examples of a large batch.
_LONG = 8  # Factor by which a long sequence is longer than the example.
_LONGEST = 512  # Steps of the longest sequence that is tried.
_ELEMENTS = 500_000  # Most elements of an input to try in larger batches.
_MOST_COLUMNS = 2**16  # Most columns of a sparse output to make dense.
_SUMS = 997  # Sums that replace the columns of a larger sparse output.
# Kinds that take pixels.
PICTURES = ("image", "grey image", "video")
_REPEATS = 16  # Calls of a model that has random ops.
OF_HALF = 0.25  # Relative tolerance for outputs computed in half precision.
_TOLERANCE = 1e-4  # The batch size changes the rounding of float32 sums.


def has_traces(subject: Subject) -> findings.Finding:
  """A trace exists for every combination of arguments."""
  tensors = {name: tf.constant(v) for name, v in subject.changed.items()}
  values = [{}, subject.changed, tensors] if tensors else [{}]
  modes = [{"training": False}, {"training": True}]
  calls = [
    (form, mode, {**flags, **value})
    for form in subject.forms
    for flags in _flags(subject, form)
    for mode in (modes if subject.training else [{}])
    for value in values
  ]
  with subject.unchanged():
    for form, mode, value in calls:
      try:
        subject.model(subject.example(form=form), **mode, **value)
      except subject_lib.NoInputError:
        if form == subject.spec:
          raise
        return findings.failed(
          f"A call with {form} fails.", "Remove the trace, or mend it."
        )
      except Exception as e:
        return findings.failed(
          f"A call with {mode | value or 'the input alone'} fails:"
          f" {subject_lib.cause(e)}",
          "Trace __call__ for every combination of its arguments.",
        )
  return findings.passed(f"{len(calls)} combinations of arguments were called")


def _flags(subject: Subject, form: Any) -> list[dict[str, Any]]:
  """Returns the sets of Python arguments with which a form was traced.

  Leaves out `training`, hyperparameters, and defaults, which a call need not
  pass.
  """
  found = {}
  for trace in subject.traces:
    if subject.form_of(trace) == form:
      flags = {
        name: value
        for name, value in subject.arguments_of(trace).items()
        if name not in ("training", *subject.hyperparameters)
        and not isinstance(value, tf.TypeSpec)
        and repr(value) != repr(subject.parameters.get(name))
      }
      found[repr(sorted(flags.items()))] = flags
  return [*found.values()]


def batch_is_free(subject: Subject) -> findings.Finding:
  """Batches of any size work, 0 too; outputs are finite and have as many rows.

  Constant dimensions are known. Texts need not be UTF-8.
  """
  specs = tf.nest.flatten(subject.spec)
  for x in specs:
    # A list of numbers beside examples may be a seed.
    is_list = len(specs) > 1 and x.shape.rank == 1 and not x.dtype.is_floating
    if x.shape.rank and x.shape[0] is not None and not is_list:
      return findings.failed(
        f"The batch size is fixed: the input has the shape {x.shape}.",
        "Trace with None as the first dimension.",
      )
  if subject.kind.name in _OF_TEXTS and (problem := _strict(subject)):
    return findings.failed(
      f"A text that is not UTF-8 fails its whole batch: {problem}",
      'Decode with errors="replace".',
    )
  zeros = "empty" if subject.takes_strings else "all 0"
  if name := _endless_for_zeros(subject):
    return findings.failed(
      f"For inputs that are {zeros} an output ({name}) is NaN or infinite.",
      "Do not divide by a number that can be 0, such as the number of words or"
      " pixels.",
    )
  for length in (1, _LONGEST):
    if name := _endless_for(subject, length):
      return findings.failed(
        f"For a length of {length} an output ({name}) is NaN or infinite.",
        "Do not divide by the length minus 1 or by the number of differences."
        if length == 1
        else "Avoid sums and products that overflow; use means.",
      )
  if name := _overflowing(subject):
    return findings.failed(
      f"For inputs ten times as large an output ({name}) is NaN.",
      "Subtract the largest value before exp, as tf.nn.softmax does.",
    )
  if _is_endless_below(subject):
    return findings.failed(
      "The gradient with respect to an input whose steps are equal is not"
      " finite. Layers below would receive it.",
      "Do not take the root of a difference that can be 0.",
    )
  if name := _unknown_dim(subject):
    return findings.failed(
      f"The last dimension of {name} is constant, but unknown in the trace, so"
      " Dense refuses it in a functional Keras model.",
      "Set it with tf.ensure_shape.",
    )
  if not subject.is_batched:
    return findings.passed("the first dimension is free")
  with subject.unchanged():  # Other rules report calls that change variables.
    finding = _of_batches(subject)
  return finding or findings.passed("batches of 0, 1, 2 and 5 were called")


def _of_batches(subject: Subject) -> findings.Finding | None:
  """Finds a batch size for which a call fails or returns wrong outputs.

  Wrong outputs have another number of rows than the batch, or are NaN or
  infinite. A training call with 0 or 1 examples must not make variables NaN or
  infinite, either.
  """
  rows: dict[str, list[int]] = {}
  inputs = subject.example(5)
  for size in (2, 5, 1, 0, *[_MANY] * is_small(subject)):
    indices = (i % 5 for i in range(size))
    try:
      outputs = _outputs(subject, subject_lib.rows(inputs, *indices))
    except Exception as e:
      said = subject_lib.cause(e)
      if _OUT_OF_ROWS.search(said) and len(tf.nest.flatten(inputs)) > 1:
        return findings.not_decidable(
          "integers may be row indices, such as those of a graph's nodes:"
          f" {said}"
        )
      return findings.failed(
        f"A batch of {size} fails: {said}",
        "Compute shapes from tf.shape, and do not divide by the number of"
        " rows.",
      )
    for name, y in outputs.items():
      rows.setdefault(name, []).append(len(y) if y.ndim else -1)
      if _is_endless(y):
        return findings.failed(
          f"In a batch of {size} an output ({name}) is NaN or infinite.",
          "Do not divide by a number that can be 0.",
        )
  for name, found in rows.items():
    if found[0] != 2 and 5 * found[0] == 2 * found[1]:
      return findings.failed(
        f"A batch of 2 has {found[0]} rows of {name}.",
        "Return one row per example, and put the parts of an example on"
        " another axis.",
      )
    if found[:2] == [2, 5] and found[2:4] != [1, 0]:
      return findings.failed(
        f"Batches of 1 and 0 have {found[2:]} rows of {name}.",
        "Return one row per example.",
      )
  for size in (0, 1):
    if spoiled := _spoiled(subject, subject_lib.rows(inputs, *range(size))):
      return findings.failed(
        f"A batch of {size} in training makes {findings.some(spoiled)} NaN or"
        " infinite.",
        "Update moving averages only if the batch has examples, and do not"
        " divide by the number of examples minus 1.",
      )
  return None


def _strict(subject: Subject) -> str:
  """Returns the error of a call with bytes that are not UTF-8, if any."""
  texts = subject.example(2)
  try:
    subject.model(tf.concat([texts[:1], tf.fill(texts[1:].shape, _BYTES)], 0))
  except Exception as e:
    return subject_lib.cause(e)
  return ""


def _endless_for_zeros(subject: Subject) -> str:
  """Names an output that is not finite for inputs of zeros, such as padding.

  Floats are set to 0 alone, and then together with integers. If the model takes
  strings, these are made empty instead of the integers.
  """
  inputs = subject_lib.scaled(subject.example(2), 0.0)
  others = _padded(inputs, np.ones(2), 0)
  if subject.takes_strings:
    others = tf.nest.map_structure(
      lambda x: tf.zeros_like(x) if x.dtype == tf.string else x,
      inputs,
      expand_composites=True,
    )
  modes = [{}, *[subject.training] * bool(subject.training)]
  with subject.unchanged():
    for zeros, mode in itertools.product((inputs, others), modes):
      with contextlib.suppress(*REFUSALS):  # 0 may be an invalid id.
        for name, y in arrays(subject.model(zeros, **mode)).items():
          if _is_endless(y):
            return f"{name}, in training" if mode else name
  return ""


def _endless_for(subject: Subject, length: int) -> str:
  """Names an output that is not finite for sequences, or videos, of a length.

  Images and sounds are not tried, because convolutions may leave nothing of
  small ones.
  """
  specs = tf.nest.flatten(subject.spec)
  is_video = subject.kind.name == "video" and specs[0].shape[1] is None
  is_certain = all(
    isinstance(x, tf.TensorSpec) and None not in x.shape.as_list()[2:]
    for x in specs
    if x.shape.rank is not None
  )
  if not is_video and not (is_certain and any(map(is_sequence, specs))):
    return ""
  usual = subject.example(2)
  sizes = _free_sizes(tf.nest.flatten(usual)[0], specs[0])
  if _size(usual) * length > _ELEMENTS * max(sizes[:1], default=1):
    return ""
  with contextlib.suppress(*REFUSALS):  # The model may refuse this length.
    inputs = subject.example(2, (length, *sizes[1:]))
    for name, y in _outputs(subject, inputs).items():
      if _is_endless(y):
        return name
  return ""


def _overflowing(subject: Subject) -> str:
  """Names an output that is NaN for floats ten times as large as examples.

  Standardized inputs may be so large. If the output is NaN for floats twice as
  large already, such floats are outside of the model's domain.
  """
  dtypes = [x.dtype for x in tf.nest.flatten(subject.spec)]
  has_floats = any(dtype.is_floating for dtype in dtypes)
  if subject.kind.name in PICTURES or not has_floats:
    return ""
  with contextlib.suppress(*REFUSALS):
    usual, large = (
      _outputs(subject, subject_lib.scaled(subject.example(2), factor))
      for factor in (2.0, 10.0)
    )
    for name, y in large.items():
      if (
        y.dtype.kind == "f" and np.isnan(y).any() > np.isnan(usual[name]).any()
      ):
        return name
  return ""


def _is_endless_below(subject: Subject) -> bool:
  """Tells whether equal steps have finite outputs, but no finite gradient."""
  x = subject.example(2) if is_sequence(subject.spec) else tf.constant(0)
  if not x.dtype.is_floating:
    return False
  x = tf.repeat(x[:, :1], x.shape[1], 1)
  with contextlib.suppress(LookupError, *REFUSALS), tf.GradientTape() as tape:
    tape.watch(x)
    total = gradients.weighted(subject_lib.floats(subject.model(x)))
    made = tape.gradient(total, x)
    if made is not None and np.isfinite(total):
      return not np.isfinite(tf.convert_to_tensor(made)).all()
  return False


def _unknown_dim(subject: Subject) -> str:
  """Names a float output whose constant last dimension the trace lacks."""
  trace = next(
    trace for trace in subject.traces if subject.form_of(trace) == subject.spec
  )
  unknown = [
    name
    for name, y in comparison.named(trace.structured_outputs).items()
    if isinstance(y, tf.TensorSpec)
    and y.dtype.is_floating
    and (y.shape.rank is None or (y.shape.rank > 1 and y.shape[-1] is None))
  ]
  if not unknown or subject.takes_strings:
    return ""
  tried = [subject.example(2), subject.example(5), *of_other_size(subject)]
  specs = tf.nest.flatten(subject.spec)
  is_fixed = all(
    isinstance(x, tf.TensorSpec) and x.shape.rank and None not in x.shape[1:]
    for x in specs
  )
  if not is_fixed and len(tried) < 3:
    return ""
  try:
    found = [_outputs(subject, inputs) for inputs in tried]
  except REFUSALS:  # The model may refuse other sizes.
    return ""
  for name in unknown:
    shapes = [y[name].shape for y in found]
    if min(map(len, shapes)) > 1 and len({x[-1] for x in shapes}) == 1:
      return name
  return ""


def _spoiled(subject: Subject, inputs: Any) -> list[str]:
  """Names the variables that a training call makes NaN or infinite."""
  before = {v.ref() for v in subject.resting if _is_endless(v.numpy())}
  with subject.unchanged():
    # Some ops take no empty batch on CPUs.
    with contextlib.suppress(*REFUSALS):
      subject.model(inputs, **subject.training)
    return [
      v.name
      for v in subject.resting
      if _is_endless(v.numpy()) and v.ref() not in before
    ]


def _is_endless(output: np.ndarray) -> bool:
  """Tells whether a value has NaN or +inf; -inf may be a masked logit."""
  output = np.asarray(output)  # A string variable may be bytes.
  return output.dtype.kind == "f" and bool(
    np.any(np.isnan(output) | np.isposinf(output))
  )


def depends_on_input_alone(subject: Subject) -> findings.Finding:
  """Inference depends on each input, not on chance, its batch or other calls.

  It changes no variable.
  """
  inputs = subject.example(_ROWS)
  with subject.unchanged():
    # A call may also change variables that are marked as trainable.
    used = {v.ref(): v for trace in subject.traces for v in trace.variables}
    before = {key: v.numpy() for key, v in used.items()}
    first = _outputs(subject, inputs)
    repeats = _REPEATS if subject.is_random(training=False) else 1
    again = [_outputs(subject, inputs) for _ in range(repeats)]
    changed = [
      v.name
      for key, v in used.items()
      if not _is_same(v.numpy(), before[key]) and not _KERAS_SEED.search(v.name)
    ]
  pairs = [(first, y) for y in again]
  if subject.is_random(training=False):
    # Noise may depend on the input.
    pairs += zip(*(_others(subject, inputs) for _ in range(2)), strict=False)
  if problem := next(filter(None, itertools.starmap(_difference, pairs)), ""):
    return findings.failed(
      f"Two calls return different outputs: {problem}.",
      "Apply dropout and noise with training=True only.",
    )
  mode = {"training": False, **subject.changed}
  if subject.training and subject.differ(mode, mode):
    return findings.failed(
      f"Two calls in inference differ with {subject.changed}.",
      "Apply dropout and noise with training=True only.",
    )
  if finding := _of_other_form(subject, inputs):
    return finding
  if changed:
    return findings.failed(
      f"A call in inference changes {findings.some(changed)}.",
      "Update variables with training=True only.",
    )
  problem = _mixed_exactly(subject, inputs) if subject.is_batched else ""
  if problem and not _is_of_steps(subject, inputs, first):
    return findings.failed(
      f"An input has different outputs in a batch than alone: {problem}.",
      "Compute each output from its own input. Use the moving averages of"
      " batch normalization.",
    )
  if problem := embeddings.confused(subject):
    return findings.failed(
      f"An id has the outputs of a different id: {problem}.",
      "Do not clip ids or cast them to smaller integers.",
    )
  return _ignores_input(subject, inputs, first) or findings.passed(
    "the same twice, alone and in a batch"
  )


def _ignores_input(
  subject: Subject, inputs: Any, outputs: Mapping[str, np.ndarray]
) -> findings.Finding | None:
  """Finds outputs that are the same for all inputs."""
  if not _depends_on_input(subject, inputs, outputs):
    dtypes = {x.dtype for x in tf.nest.flatten(inputs)}
    if not any(dtype.is_floating for dtype in dtypes):
      return findings.not_decidable(
        "the outputs are the same for all inputs tried, but the vocabulary is"
        " unknown"
      )
    return findings.failed(
      "The outputs are the same for all inputs.", "Export the model itself."
    )
  return None


def _of_other_form(subject: Subject, inputs: Any) -> findings.Finding | None:
  """Finds a form of the input that makes outputs random, or changes them.

  Inputs of the form `subject.spec` are converted to each other form that can
  represent them exactly, and the outputs for both are compared.
  """
  inputs = rounded(inputs)
  for form in [x for x in subject.forms if x != subject.spec]:
    other = subject.example(form=form)
    if problem := _difference(*(_outputs(subject, other) for _ in range(2))):
      return findings.failed(
        f"Two calls with {form} return different outputs: {problem}.",
        "Trace inference with training=False for all forms of the input.",
      )
    same = cast(inputs, form, exactly=True)
    if same is None:
      continue
    problem = ""
    # Add noise to the weights, in case a form has them as constants.
    with gradients.moved(subject.trainable_variables):
      for usual in (inputs, *with_segments(inputs)):
        with contextlib.suppress(*REFUSALS):
          problem = problem or _difference(
            _outputs(subject, usual),
            _outputs(subject, cast(usual, form)),
            tolerance=OF_HALF if is_half(form) else _TOLERANCE,
          )
    if problem:
      return findings.failed(
        f"A call with {form} has different outputs: {problem}.",
        "Convert the input, and call the same function.",
      )
  return None


def with_segments(inputs: Any) -> Iterator[Any]:
  """Yields encoder inputs with a second segment, which few encoders refuse.

  Yields nothing for inputs without `input_type_ids`.
  """
  if isinstance(inputs, Mapping) and "input_type_ids" in inputs:
    types = inputs["input_type_ids"]
    length = types.shape[-1]
    second = tf.cast(tf.range(length) >= length // 2, types.dtype)
    yield {**inputs, "input_type_ids": tf.zeros_like(types) + second}


def rounded(inputs: Any) -> Any:
  """Rounds floats to values that bfloat16 can represent."""
  return tf.nest.map_structure(
    lambda x: (
      tf.cast(tf.cast(x, tf.bfloat16), x.dtype) if x.dtype.is_floating else x
    ),
    inputs,
    expand_composites=True,
  )


def is_half(form: Any) -> bool:
  """Tells whether a form of the input has bfloat16 or float16."""
  return any(getattr(x, "dtype", None) in _HALF for x in tf.nest.flatten(form))


def cast(inputs: Any, form: Any, *, exactly: bool = False) -> Any:
  """Converts inputs to another form; None if they do not fit it.

  With `exactly`, also returns None if the conversion changes a value.
  """
  names = [str(getattr(x, "name", "")) for x in tf.nest.flatten(form)]
  is_mapping = isinstance(inputs, Mapping) and isinstance(form, Sequence)
  if is_mapping and sorted(names) == sorted(inputs):
    inputs = tf.nest.pack_sequence_as(form, [inputs[n] for n in names])
  try:
    made = tf.nest.map_structure(
      lambda x, spec: tf.cast(tf.ensure_shape(x, spec.shape), spec.dtype),
      inputs,
      form,
    )
    back = tf.nest.map_structure(
      lambda x, y: bool(tf.reduce_all(tf.cast(y, x.dtype) == x)), inputs, made
    )
  except (TypeError, *REFUSALS):  # Another structure or shape.
    return None
  return made if not exactly or all(tf.nest.flatten(back)) else None


def _mixed_exactly(subject: Subject, inputs: Any) -> str:
  """Describes the problem that `_mixed` finds, unless it is a rounding error.

  In very deep models with initial weights, rounding errors alone may decide
  which of two classes is returned.
  """
  problem = _mixed(subject, inputs)
  if not problem:
    return ""
  if (exact := subject.twin) and exact.is_double:
    with contextlib.suppress(*REFUSALS):  # A kernel may lack float64.
      return _mixed(exact, exact.example(_ROWS))
  called = functools.partial(
    _of_examples(subject, inputs), indices=range(_ROWS)
  )
  usual = called(inputs)
  near = [subject_lib.nudged(inputs, units) for units in range(1, 5)]
  is_chance = any(_difference(usual, called(x), tolerance=0.1) for x in near)
  return "" if is_chance else problem


def _mixed(subject: Subject, inputs: Any) -> str:
  """Describes how outputs depend on other examples; empty if they do not."""
  others = [*range(1, _ROWS)]
  called = _of_examples(subject, inputs)

  def row(x: Any, indices: Sequence[int], place: int) -> dict[str, np.ndarray]:
    return {k: y[place : place + 1] for k, y in called(x, indices).items()}

  alone = row(inputs, [0], 0)
  batches = [[0, *others], [2, 0]]
  if _size(inputs) <= _ELEMENTS:
    batches.append([*others * 5, 0])
  each = {}
  for indices in batches:
    made = called(inputs, indices)
    first = indices.index(0)
    beside = {name: y[first : first + 1] for name, y in made.items()}
    # The first batch has the examples in their order.
    each = each or {k: y for k, y in made.items() if y.dtype.kind in "fc"}
    expected = {name: y[indices] for name, y in each.items()}
    if problem := _difference(alone, beside) or _difference(expected, made):
      return problem
  is_odd = np.arange(_ROWS) % 2
  usual = called(inputs, range(_ROWS))
  # Kernels treat NaN differently by place and batch size, so keep both.
  backward = [2, 1, *range(_ROWS - 1, 1, -1)]
  for changed, mates in (
    (subject_lib.scaled_rows(inputs, np.where(is_odd, 255, 1)), [1]),
    (subject_lib.scaled_rows(inputs, np.where(is_odd, np.nan, 1)), backward),
    (_padded(inputs, is_odd, 2), [1]),
  ):
    with contextlib.suppress(*REFUSALS):  # The model may refuse some.
      beside = [row(changed, range(_ROWS), place) for place in (0, 1)]
      alone = row(changed, [0], 0)
      other = row(changed, mates, mates.index(1))
      if problem := (
        _difference(alone, beside[0]) or _difference(other, beside[1], usual)
      ):
        return problem
  return ""


def _is_of_steps(
  subject: Subject, inputs: Any, outputs: Mapping[str, np.ndarray]
) -> bool:
  """Tells whether the first dimension counts steps, or rows of pixels.

  The order of steps and rows matters, unlike that of examples. The second
  dimension then counts the examples, or the columns of a picture.
  """
  spec = subject.spec
  if (
    subject.kind.name != "plain"
    or not isinstance(inputs, tf.Tensor)
    or not spec.dtype.is_floating
    or spec.shape.rank < 3
    or spec.shape[1] is not None
  ):
    return False
  size = inputs.shape[:2]
  flipped = _outputs(subject, tf.reverse(inputs, [0]))
  if any(y.shape[:2] != size for y in (outputs | flipped).values()):
    return False
  if not _difference({k: y[::-1] for k, y in flipped.items()}, outputs):
    return False
  column = _outputs(subject, inputs[:, :1])
  return spec.shape[2:] in ([1], [3]) or not _difference(
    column, {name: y[:, :1] for name, y in outputs.items()}
  )


def is_small(subject: Subject) -> bool:
  """Tells whether inputs are so small that large batches are fast."""
  return _size(subject.example(5)) <= _ELEMENTS // 100


def _size(inputs: Any) -> int:
  return int(sum(map(tf.size, tf.nest.flatten(inputs, expand_composites=True))))


def _padded(inputs: Any, rows: np.ndarray, start: int) -> Any:
  """Sets the numbers of marked rows to 0, from position `start` on."""

  def padded(x: Any) -> Any:
    is_number = isinstance(x, tf.Tensor) and (
      x.dtype.is_integer or x.dtype.is_floating
    )
    if not is_number or x.shape[:1] != rows.shape:  # x may be a sound.
      return x
    is_kept = np.expand_dims(rows == 0, [*range(1, x.ndim)])
    if x.ndim > 1:
      positions = np.expand_dims(np.arange(x.shape[1]), [0, *range(2, x.ndim)])
      is_kept = is_kept | (positions < start)
    return x * tf.cast(is_kept, x.dtype)

  return tf.nest.map_structure(padded, inputs)


def _is_same(first: np.ndarray | bytes, second: np.ndarray | bytes) -> bool:
  is_float = np.asarray(first).dtype.kind == "f"
  return np.array_equal(first, second, equal_nan=is_float)


def _depends_on_input(
  subject: Subject, inputs: Any, outputs: Mapping[str, np.ndarray]
) -> bool:
  if any(_differs(outputs, x) for x in _others(subject, inputs)):
    return True
  # Softmax outputs of an untrained model may be equal up to rounding.
  with gradients.moved(subject.trainable_variables):
    outputs = _outputs(subject, inputs)
    if any(_differs(outputs, x) for x in _others(subject, inputs)):
      return True
    for near in subject_lib.near(inputs, subject.offsets):
      with contextlib.suppress(*REFUSALS):
        if _differs(outputs, _outputs(subject, near)):
          return True
    # Gradients show effects too small for the precision of the outputs.
    floats = _floats(tf.nest.flatten(inputs))
    with tf.GradientTape() as tape:
      tape.watch(floats)
      made = subject_lib.floats(subject.model(inputs))
      total = gradients.weighted(made) if made else None
    if not floats or not made:
      return False
    return any(
      g is not None and np.any(g) for g in tape.gradient(total, floats)
    )


def _floats(values: Iterable[Any]) -> list[tf.Tensor]:
  return [x for x in values if isinstance(x, tf.Tensor) and x.dtype.is_floating]


def _outputs(subject: Subject, inputs: Any) -> dict[str, np.ndarray]:
  return arrays(subject.model(inputs))


def arrays(outputs: Any) -> dict[str, np.ndarray]:
  """Returns the outputs of a call as arrays by name; pads ragged outputs."""

  def dense(x: Any) -> Any:
    if isinstance(x, tf.RaggedTensor):
      return x.to_tensor()
    return _dense(x) if isinstance(x, tf.SparseTensor) else x

  named = comparison.named(tf.nest.map_structure(dense, outputs))
  tensors = {k: y for k, y in named.items() if tf.is_tensor(y)}
  return {
    k: np.asarray(tf.cast(y, tf.float32) if y.dtype in _HALF else y)
    for k, y in tensors.items()
  }


def _dense(x: tf.SparseTensor) -> tf.Tensor:
  """Makes a sparse output dense; adds up columns if there are too many."""
  rows, *columns = map(int, x.dense_shape)
  is_number = x.dtype.is_floating or x.dtype.is_integer
  if math.prod(columns) <= _MOST_COLUMNS or not is_number:
    return tf.sparse.to_dense(x)
  count = _SUMS if rows <= _ELEMENTS else 1
  row, column = tf.unstack(tf.sparse.reshape(x, [rows, -1]).indices, axis=1)
  places = tf.stack([row, column % count], 1)
  return tf.scatter_nd(places, x.values, [rows, count])


def _of_examples(
  subject: Subject, inputs: Any
) -> Callable[[Any, Sequence[int]], dict[str, np.ndarray]]:
  """Returns a function that calls the model with the examples at some indices.

  It returns the outputs that have a row for each example. An output without,
  such as a table, may have as many rows by chance, so two batch sizes are
  compared. Outputs for all pairs of examples are reduced to the pairs of an
  example with itself.
  """
  one, two = (
    {k: y.shape for k, y in _outputs(subject, x).items()}
    for x in (subject_lib.rows(inputs, *range(n)) for n in (1, 2))
  )
  names = [k for k in one if (one[k][:1], two[k][:1]) == ((1,), (2,))]
  pairs = [k for k in names if (one[k][:2], two[k][:2]) == ((1, 1), (2, 2))]

  def called(x: Any, indices: Sequence[int]) -> dict[str, np.ndarray]:
    made = _outputs(subject, subject_lib.rows(x, *indices))
    each = np.arange(len(indices))
    return {
      k: made[k][each, each] if k in pairs else made[k]
      for k in names
      if len(made[k]) == len(indices)
    }

  return called


def _others(subject: Subject, inputs: Any) -> Iterator[dict[str, np.ndarray]]:
  """Yields the outputs for other inputs; pixels stay in [0, 1]."""
  count = 1 if subject.kind.name in PICTURES else None
  others = itertools.islice(other_inputs(subject, inputs), count)
  for other in itertools.chain(others, [_at_times(inputs)]):
    # The model may refuse some of these, such as ids beyond its tables.
    with contextlib.suppress(*REFUSALS):
      yield _outputs(subject, other)


def _at_times(inputs: Any) -> Any:
  """Sets integers to seconds since 1970, hours apart.

  Smaller integers may all be times in the same hour.
  """

  def at_times(x: Any) -> Any:
    if not isinstance(x, tf.Tensor) or not x.dtype.is_integer:
      return x
    times = 10**9 + 10_000 * tf.reshape(tf.range(tf.size(x)), x.shape)
    return tf.cast(times, x.dtype)

  return tf.nest.map_structure(at_times, inputs)


def other_inputs(subject: Subject, inputs: Any) -> Iterator[Any]:
  """Yields inputs of other scales and signs, and with other ids or strings."""
  # Integers may be keys of a table, or quantities.
  numbers = vocabulary.numbers(subject.graph.graph_def.node) or [0]
  for scale, of_ids in (
    (1, np.asarray),
    (255, lambda x: np.sort(x)[-1:]),
    (-1000, lambda x: np.sort(x)[:1]),
    (2, lambda x: x if x.dtype == object else numbers),
  ):

    def other(x: Any, scale: int = scale, of_ids: Any = of_ids) -> Any:
      if isinstance(x, tf.RaggedTensor):
        return x.with_flat_values(other(x.flat_values))
      if isinstance(x, tf.SparseTensor):
        return x.with_values(other(x.values))
      y = tf.reverse(tf.reshape(x, [-1]), [0])
      if y.dtype.is_floating:
        y *= tf.cast(scale, y.dtype)
      elif y.dtype.is_integer or y.dtype == tf.string:
        ids = np.resize(of_ids(np.asarray(y)), y.shape)
        y = tf.constant(ids.astype(y.dtype.as_numpy_dtype), y.dtype)
      return tf.reshape(y, x.shape)

    yield tf.nest.map_structure(other, inputs)


def _difference(
  first: Mapping[str, np.ndarray],
  second: Mapping[str, np.ndarray],
  usual: Mapping[str, np.ndarray] | None = None,
  tolerance: float = _TOLERANCE,
) -> str:
  """Describes how outputs differ; empty if they are equal.

  Only the common shape is compared, because padding depends on the longest
  example of a batch.

  Args:
    first: The outputs of one call.
    second: The outputs of the other call.
    usual: Outputs whose largest values also count for the tolerance, because
      saturated outputs are small and therefore inexact.
    tolerance: The allowed difference, relative to an output's largest value.
  """
  for name in first.keys() & second.keys():
    x, y = first[name], second[name]
    if x.ndim != y.ndim:
      return f"{name} has the shapes {x.shape} and {y.shape}"
    common = tuple(map(slice, np.minimum(x.shape, y.shape)))
    x, y = x[common], y[common]
    if x.dtype.kind not in "fc":
      if not np.array_equal(x, y):
        return f"{name} differs"
      continue
    unlike = (x != y) & ~(np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
      difference = np.max(np.abs(x - y), initial=0.0, where=unlike)
    largest = max(
      np.max(np.abs(values[name]), initial=0.0, where=np.isfinite(values[name]))
      for values in (first, usual or first)
    )
    if not difference <= tolerance * largest:
      return f"{name} differs by {difference:.2g}"
  return ""


def _is_alike(first: np.ndarray, second: np.ndarray) -> bool:
  is_same_form = (first.shape, first.dtype) == (second.shape, second.dtype)
  return is_same_form and not _difference({"": first}, {"": second})


def _differs(
  first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> bool:
  return any(not np.array_equal(x, second[k]) for k, x in first.items())


def is_served(subject: Subject) -> findings.Finding:
  """`serving_default` names inputs and outputs, and returns what calls do."""
  if subject.serving is None:
    return findings.failed(
      "There is no signature serving_default; there are:"
      f" {', '.join(subject.signatures) or 'none'}.",
      'Save with signatures={"serving_default": …}.',
    )
  if tables := [op for op in subject.op_counts if _UNSERVED.fullmatch(op)]:
    return findings.failed(
      f"{tables[0]} makes a new table in each session: TensorFlow Serving fails"
      " with “Table not initialized”.",
      "Make the table without experimental_is_anonymous.",
    )
  names = [*subject.serving.inputs, *subject.serving.outputs]
  unnamed = [name for name in names if NO_NAME.fullmatch(name)]
  if unnamed:
    return findings.failed(
      f"serving_default has the generated names {findings.some(unnamed)}.",
      "Name inputs in their TensorSpecs and outputs in a dict.",
    )
  if subject.model is None or not subject.traces:
    return findings.passed(f"serving_default with {', '.join(names)}")
  for name in subject.signatures:
    # Add noise to the weights, in case the signature has them as constants.
    averages = [v for v in subject.resting if v.dtype.is_floating]
    with (
      gradients.moved(subject.trainable_variables),
      gradients.moved(averages, upward=True),
    ):
      problem = _served_otherwise(subject, name)
    if problem:
      return findings.failed(
        f"The signature {name} does not compute what a call does: {problem}.",
        "Make it a call of the same object in inference.",
      )
  # Outputs that a call does not return cannot be compared with its outputs.
  more = len(subject.serving.outputs) - len(
    tf.nest.flatten(subject.output_spec)
  )
  weights = subject.trainable_variables
  if more > 0 and (found := subject.constants_of(weights, least_rank=2)):
    return findings.failed(
      f"serving_default returns {more} more than a call, and holds the value"
      f" of {findings.some(found)} as a constant, so fine-tuning does not"
      " reach these outputs.",
      "Compute it with the variables.",
    )
  return findings.passed(f"serving_default with {', '.join(names)}")


def _served_otherwise(subject: Subject, name: str) -> str:
  """Describes how a signature differs from a call; empty if it does not.

  A signature with the name of a sub-object is compared with a call of the
  sub-object. Any other signature is compared with a call of the model, but only
  if its inputs and outputs have the dtypes and shapes of `serving_default`.
  """
  signature = subject.model.signatures[name]
  usual = subject.model.signatures["serving_default"]
  is_usual = name == "serving_default"
  if is_usual or not hasattr(subject.model, name):
    called = subject
    if not is_usual and _forms(signature) != _forms(usual):
      return ""
  else:
    called = subject.part(name)
    if not called.traces:
      return ""
  taken = _in_order(signature.structured_input_signature[1], called.spec)
  example = called.example(_ROWS + 1)
  if 10 * _size(example) <= _ELEMENTS:
    example = called.example(4 * _ROWS + 1)
  for inputs in (
    example,
    *with_segments(example),
    *other_inputs(called, called.example(2)),
    *of_other_size(called),
  ):
    named = inputs
    if not isinstance(inputs, Mapping) or set(inputs) != set(taken):
      leaves = tf.nest.flatten(inputs)
      count = len(tf.nest.flatten(inputs, expand_composites=True))
      if is_usual and len(taken) != count:
        return f"it takes {len(taken)} inputs, and a call {count}"
      if len(leaves) != len(taken):
        return ""
      named = dict(zip(taken, leaves, strict=True))
    try:
      served = arrays(signature(**named))
    except Exception as e:
      if inputs is example and called is subject:
        return f"it does not take the same: {subject_lib.cause(e)}"
      continue
    expected = _outputs(called, inputs)
    if not expected.keys() & served.keys():
      if len(expected) != len(served):
        return f"its outputs ({', '.join(served)}) are not those of a call"
      # The outputs of a list are in the order of their names. Keras renames the
      # outputs of a dict by layers, so match these by value.
      names = sorted(served)
      if isinstance(called.output_spec, Mapping):
        names = [
          next((k for k in names if _is_alike(y, served[k])), name)
          for name, y in zip(names, expected.values(), strict=True)
        ]
      expected = dict(zip(names, expected.values(), strict=True))
    for key in expected.keys() & served.keys():
      shapes = expected[key].shape, served[key].shape
      if shapes[0] != shapes[1]:
        return f"{key} has the shapes {shapes[0]} and {shapes[1]}"
      dtypes = expected[key].dtype, served[key].dtype
      if dtypes[0] != dtypes[1]:
        return f"{key} has the dtypes {dtypes[0]} and {dtypes[1]}"
    if problem := _difference(expected, served):
      return problem
  return ""


def _free_sizes(x: tf.Tensor, spec: tf.TensorSpec) -> list[int]:
  """Returns the sizes of the unknown dimensions, without the batch size."""
  pairs = zip(x.shape[1:], spec.shape[1:], strict=True)
  return [size for size, known in pairs if known is None]


def is_sequence(spec: Any) -> bool:
  """Tells whether an input has a free number of ids, vectors or frames."""
  if not isinstance(spec, tf.TensorSpec) or (spec.shape.rank or 0) < 2:
    return False
  dtype = spec.dtype
  is_known = dtype.is_integer or (dtype.is_floating and spec.shape.rank > 2)
  return is_known and spec.shape[1] is None and None not in spec.shape[2:]


def of_other_size(
  subject: Subject, count: int = 2, factor: float = 1.5
) -> Iterator[Any]:
  """Yields batches of inputs of other sizes, if sizes are free."""
  example = subject.example(2)
  for x, spec in zip(
    tf.nest.flatten(example), tf.nest.flatten(subject.spec), strict=True
  ):
    if not isinstance(x, tf.Tensor) or not spec.shape.rank:
      return
    free = _free_sizes(x, spec)
    factors = (factor, *[_LONG] * is_sequence(subject.spec)) if free else ()
    for each in factors:
      sizes = tuple(int(size * each) for size in free)
      other = subject.example(count, sizes)
      with contextlib.suppress(*REFUSALS):
        subject.model(other)  # The size may be too large.
        yield other
    if free:
      return


def _in_order(taken: Mapping[str, Any], spec: Any) -> list[str]:
  """Returns the names of a signature's inputs in the order of a call's list.

  Takes the names in the call's spec. If these do not fit, sorts the signature's
  names, with a_2 before a_10.
  """
  leaves = tf.nest.flatten(spec)
  names = [getattr(leaf, "name", None) for leaf in leaves]
  fits = set(names) == set(taken) and all(
    taken[name].dtype == leaf.dtype
    and taken[name].shape.is_compatible_with(leaf.shape)
    for name, leaf in zip(names, leaves, strict=True)
  )
  return names if fits else sorted(taken, key=_natural)


def _natural(name: str) -> list[int | str]:
  """Returns a key by which numbers in names sort as numbers."""
  parts = re.split(r"(\d+)", name)
  return [int(x) if i % 2 else x for i, x in enumerate(parts)]


def _forms(signature: Any) -> list[list[tuple[str, Any]]]:
  return [
    [(x.dtype.name, tuple(x.shape)) for x in tf.nest.flatten(specs)]
    for specs in (
      signature.structured_input_signature,
      signature.structured_outputs,
    )
  ]


def returns_logits(subject: Subject) -> findings.Finding:
  """The outputs are logits, not probabilities."""
  if subject.probabilities:
    return findings.failed(
      f"It returns probabilities (by {subject.probabilities}), not logits.",
      "Remove the last activation; losses apply it with from_logits=True.",
    )
  return findings.passed("the outputs are not probabilities")
