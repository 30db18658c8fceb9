"""Rules on variables and their gradients: R5 and R6."""

from collections.abc import Mapping, Sequence
import contextlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import choices
from exporters.conformance import findings
from exporters.conformance import gradients as gradients_lib
from exporters.conformance import of_inference
from exporters.conformance import subject as subject_lib
from exporters.conformance import vocabulary
from exporters.reusable import graphs
from exporters.reusable import observation

Subject = subject_lib.Subject

# Ops with straight-through gradients, which differ from the derivative.
_ROUNDED = re.compile("ArgM(ax|in)|FakeQuant.*|Rint|Round|Sign")
# Common ops without a derivative. They explain a wrong gradient only if outputs
# do not change.
_STEPS = re.compile("Ceil|Floor|(Not)?Equal|(Greater|Less)(Equal)?|TopK.*")
# The state of spectral normalization, through which Keras stops gradients.
_SPECTRAL = re.compile("(sn_u|vector_u|weight_u)[:_]")
# An op without a gradient, in an error message of TensorFlow.
_NO_GRADIENT = re.compile(r"(?:op type: |no entry for: )(\w+)")
# A layer with a regularizer, in the metadata of Keras.
_REGULARIZER = re.compile(rb'_regularizer\\?": \{')
_RATE = 0.1  # Rate of dropout that lets most gradients pass.
_INPUT = "the_input"
# Kinds whose tables have a column for each dimension of the vectors.
_EMBEDDINGS = ("text embedding", "word embedding")
_SCALE = 2.0**10  # Scales gradients, because those of a loss may be as large.
_PIXEL = 255.0  # The largest value of a pixel.
_TIMES = 9  # Repetitions of examples in a larger batch.
_LARGE = 100.0  # Size of noise relative to the weights.
_LONG = 64  # Steps or pixels. Some variables matter only for distant ones.
_REPEATS = 8  # Calls of random training, because each drops other units.
_ELEMENTS = 250_000  # Most elements of examples to differentiate.
# Factors of variables, tried until a loss has gradients: it may be constant in
# a range of values.
_FACTORS = (1.0, 100.0, -1.0, 0.01)


def unlisted(model: Any) -> list[str]:
  """Names the variables that a call uses but `variables` lacks.

  The integer states of random layers may be missing.
  """
  listed = {v.ref() for v in subject_lib.variables_of(model)}
  used = [
    v
    for trace in subject_lib.traces_of(model)
    for v in trace.variables
    if v.trainable or v.dtype.is_floating
  ]
  return list(dict.fromkeys(v.name for v in used if v.ref() not in listed))


def lists_variables(subject: Subject) -> findings.Finding:
  """`variables` lists all variables once, finite ones; gradients are right."""
  listed = {v.ref() for v in subject.variables}
  missing = unlisted(subject.model)
  if not missing and not listed:
    return findings.not_applicable("it has no variables")
  return (
    _badly_listed(subject, listed, missing)
    or _not_finite(subject)
    or _gradients(subject)
  )


def _badly_listed(
  subject: Subject, listed: set[Any], missing: Sequence[str]
) -> findings.Finding | None:
  trainable = subject.trainable_variables
  save = "Save lists of variables as attributes of the root."
  if missing:
    return findings.failed(
      f"A call uses {findings.some(missing)}, which `variables` lacks"
      + ("." if listed else ": consumers silently train and save nothing."),
      f"{save} The lists of a tf.Module are properties, which are not saved.",
    )
  used = [v for trace in subject.traces for v in trace.variables]
  is_frozen = "keras_metadata.pb" in subject.files  # Keras makes the lists.
  if not trainable and not is_frozen and any(v.trainable for v in used):
    return findings.failed(
      "`trainable_variables` is empty: consumers silently train nothing.",
      save,
    )
  if left := _left_out(subject):
    return findings.failed(
      f"Trainable, but not in `trainable_variables`: {findings.some(left)}."
      " Consumers silently do not train it.",
      "List it, or create it with trainable=False.",
    )
  if others := [
    v.name for v in trainable if not (v.dtype.is_floating or v.dtype.is_complex)
  ]:
    return findings.failed(
      "In `trainable_variables`, but of no float dtype:"
      f" {findings.some(others)}.",
      "List exactly the trainable variables.",
    )
  outside = [v.name for v in trainable if v.ref() not in listed]
  frozen = [v.name for v in trainable if not v.trainable]
  if outside or frozen:
    return findings.failed(
      f"{findings.some(outside or frozen)} in `trainable_variables` is"
      + (" not in `variables`." if outside else " not trainable."),
      "List exactly the trainable variables.",
    )
  for name in ("variables", "trainable_variables"):
    seen: set[Any] = set()
    twice = [
      v.name
      for v in subject_lib.variables_of(subject.model, name)
      if v.ref() in seen or seen.add(v.ref())
    ]
    if twice:
      return findings.failed(
        f"{findings.some(twice)} is in `{name}` twice: optimizers refuse it, or"
        " train it twice.",
        "List each variable once.",
      )
  return None


def _left_out(subject: Subject) -> list[str]:
  """Names the unlisted trainable variables that have a gradient."""
  # Keras does not record which variables belong to frozen layers.
  if "keras_metadata.pb" in subject.files:
    return []
  used = {v.ref(): v for trace in subject.traces for v in trace.variables}
  for v in subject.trainable_variables:
    used.pop(v.ref(), None)
  # A layer without any listed variable is frozen, not forgotten.
  scopes = {"", *map(_scope, subject.trainable_variables)}
  left = [v for v in used.values() if v.trainable and _scope(v) in scopes]
  if not left:
    return []
  made = _gradient(subject, subject.example(4), subject.training, left)
  # Variables without an effect on the outputs have no gradient, or zero.
  return [
    v.name
    for v, g in zip(left, made, strict=True)
    if g is not None and np.any(g)
  ]


def _scope(variable: tf.Variable) -> str:
  return variable.name.rpartition("/")[0]


def _not_finite(subject: Subject) -> findings.Finding | None:
  for v in subject.variables:
    value = v.numpy() if v.dtype.is_floating else 0.0
    # Variables that no call assigns may hold infinity as a mask.
    if np.isnan(value).any() or (
      np.isinf(value).any() and (v.trainable or _moves_from_zero(subject, v))
    ):
      return findings.failed(
        f"{v.name} is not finite.",
        "Export weights of a training that went well.",
      )
  return None


def _moves_from_zero(subject: Subject, variable: tf.Variable) -> bool:
  """Returns whether a training call changes a variable.

  The variable starts at zero, because an infinite one would not change.
  """
  with subject.unchanged():
    variable.assign(tf.zeros_like(variable))
    subject.model(subject.example(), **subject.training)
    return bool(tf.math.count_nonzero(variable))


def _gradients(subject: Subject) -> findings.Finding:
  """Checks the gradient of each trainable variable."""
  variables = subject.trainable_variables
  said = (
    f"{len(subject.variables)} variables, {len(variables)} trainable, all"
    " with the gradients of the outputs"
  )
  if not variables:
    return findings.passed(said)
  # Batch normalization of 2 values yields only 1 and -1, so take 4.
  inputs = subject.example(4)
  if not subject_lib.floats(subject.model(inputs)):
    return findings.failed(
      "No output has a float dtype, so no variable gets a gradient.",
      "Return logits or scores too.",
    )
  finding = _plainly_wrong(subject, inputs)
  if finding and finding.verdict == findings.FAIL:
    return finding
  exact = subject.twin or subject
  is_single = any(v.dtype != tf.float64 for v in exact.trainable_variables)
  note = ", compared in single precision" * is_single
  arguments = exact.steady
  if arguments is None:
    arguments = {"training": False} if subject.training else {}
    note += ". Training is always random: its gradients were not compared"
  elif exact is subject.twin:  # The twin draws the same in each call.
    noisy = {**arguments, **exact.noisy(_RATE)}
    arguments = arguments if exact.varies(noisy) else noisy
  count = _rows(inputs)
  inputs = exact.example(count)
  if subject.kind.name not in of_inference.PICTURES:
    inputs = _of_both_signs(exact, inputs, count, arguments)
  if subject.training and _is_moved(exact, inputs, arguments):
    arguments = {"training": False}
    note += (
      ". Training uses what it assigns: gradients of inference were compared"
    )
  try:
    wrong = _wrong(exact, inputs, arguments, subject.is_half)
  except gradients_lib.InexactError:
    why = "rounding errors change the outputs by more than a twentieth"
    if not is_single:  # No useful model multiplies errors by so much.
      return findings.not_decidable(f"whether gradients are right: {why}")
    wrong, note = None, f". Gradients were not compared with differences: {why}"
  if wrong and wrong[0].startswith(_INPUT) and _stops_gradients(subject):
    wrong = _wrong(exact, inputs, arguments, subject.is_half, of_inputs=False)
    note += ". It stops gradients: those of the input were not compared"
  if wrong and _is_approximate(subject, *wrong[1:]):
    return findings.not_decidable(
      "whether gradients are right: the gradients of ops that round or choose,"
      " and of spectral normalization, are approximations by design"
    )
  if wrong:
    name, claimed, measured = wrong
    of = "the input" if name.startswith(_INPUT) else name
    return findings.failed(
      f"The gradient of {of} is wrong: along a random direction it is"
      f" {claimed:.3g}, and the outputs change by {measured:.3g}.",
      "Remove or mend the custom gradient.",
    )
  return finding or findings.passed(said + note)


def _is_approximate(subject: Subject, claimed: float, measured: float) -> bool:
  """Tells whether the model has ops whose gradients are approximations."""
  return (
    any(map(_ROUNDED.fullmatch, subject.op_counts))
    or any(_SPECTRAL.search(v.name) for v in subject.resting)
    or (
      abs(measured) < 1e-6 * abs(claimed)
      and any(map(_STEPS.fullmatch, subject.op_counts))
    )
  )


def _plainly_wrong(subject: Subject, inputs: Any) -> findings.Finding | None:
  """Judges gradients without finite differences."""
  try:
    with gradients_lib.moved(subject.trainable_variables), subject.unchanged():
      finding = _badly_made(subject, inputs)
    if finding and finding.verdict == findings.FAIL:
      return finding
    return (
      _lost_in_inference(subject)
      or _unlearned(subject, inputs)
      or _lost_in_form(subject)
      or finding
    )
  except LookupError as e:
    op = _NO_GRADIENT.search(str(e))
    return findings.failed(
      f"{op[1] if op else 'An op'} has no gradient, so the model cannot be"
      " fine-tuned.",
      "Replace this op, or remove it from the model.",
    )


def _unlearned(subject: Subject, inputs: Any) -> findings.Finding | None:
  """Finds a variable whose gradient ignores examples of a larger batch.

  If repeated examples have the same outputs, gradients must be larger by the
  number of repetitions.
  """
  flat = tf.nest.flatten(inputs, expand_composites=True)
  size = _TIMES * sum(tf.size(x).numpy() for x in flat)
  if (
    not subject.is_batched
    or subject.is_half
    or size > _ELEMENTS
    or not (
      _stops_gradients(subject)
      or any("CustomGradient" in graphs.gradient(x) for x in subject.nodes)
    )
  ):
    return None
  variables = subject.trainable_variables
  mode = subject.steady
  if mode is None:
    mode = {"training": False} if subject.training else {}
  with gradients_lib.moved(variables):
    try:
      few, of_few = _of_repeated(subject, inputs, mode, 1)
      many, of_many = _of_repeated(subject, inputs, mode, _TIMES)
    except tf.errors.OpError:  # The model may refuse some batches.
      return None
  for x, y in zip(few, many, strict=True):
    expected = np.concatenate([np.atleast_1d(x)] * _TIMES)
    if expected.shape != y.shape or not np.allclose(
      expected, y, 1e-3, 1e-4 * np.max(np.abs(y), initial=0.0)
    ):
      return None
  norms = [_TIMES * np.linalg.norm(g) for g in of_few]
  for v, norm, one, other in zip(
    variables, norms, of_few, of_many, strict=True
  ):
    off = np.linalg.norm(_TIMES * one - other)
    # Gradients that normalization makes zero are rounding errors.
    if off > 0.05 * norm and off > 1e-3 * max(norms):
      return findings.failed(
        f"In a batch of {4 * _TIMES} the gradient of {v.name} is not the sum"
        " over its examples, so training ignores some of them.",
        "Remove the stop_gradient or custom gradient, or make it independent"
        " of the batch.",
      )
  return None


def _of_repeated(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any], times: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns outputs for repeated examples, and gradients of a weighted sum.

  The sum has the same weights for each repetition.
  """
  variables = subject.trainable_variables
  inputs = subject_lib.rows(inputs, *[*range(4)] * times)
  with subject.unchanged(), tf.GradientTape() as tape:
    outputs = subject_lib.floats(subject.model(inputs, **arguments))
  weights = []
  for i, y in enumerate(outputs):
    drawn = np.random.default_rng(i).standard_normal(tf.size(y) // times)
    drawn = np.resize(drawn, y.shape)  # Repeats the weights.
    weights.append(tf.constant(drawn, y.dtype))
  made = tape.gradient(outputs, variables, weights)
  return [np.asarray(y) for y in outputs], [
    np.zeros_like(v.numpy()) if g is None else tf.convert_to_tensor(g).numpy()
    for v, g in zip(variables, made, strict=True)
  ]


def _stops_gradients(subject: Subject) -> bool:
  """Returns whether a gradient is stopped, other than by tf.nn.moments."""
  return any(
    node.op == "StopGradient" and "moments/" not in node.name
    for node in subject.nodes
  )


def _is_moved(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any]
) -> bool:
  """Returns whether outputs of training depend on variables that it assigns.

  Training may assign trainable variables, for example to project them, or
  states such as averages of weights. No gradient passes an assignment.
  """
  variables = subject.trainable_variables
  with gradients_lib.moved(variables), subject.unchanged():
    before = [v.numpy() for v in variables]
    first, second = (
      subject_lib.floats(subject.model(inputs, **arguments)) for _ in range(2)
    )
    is_still = all(map(np.allclose, first, second))
    return not (is_still and all(map(np.array_equal, variables, before)))


def _of_both_signs(
  subject: Subject, inputs: Any, count: int, arguments: Mapping[str, Any]
) -> Any:
  """Makes floats of every other example negative, if outputs stay finite."""
  with contextlib.suppress(*of_inference.REFUSALS), subject.unchanged():
    signs = (-1.0) ** np.arange(count)
    signed = subject_lib.scaled_rows(inputs, signs)
    outputs = subject_lib.floats(subject.model(signed, **arguments))
    if all(np.isfinite(y).all() for y in outputs):
      return signed
  return inputs


def _rows(inputs: Any) -> int:
  """Returns how many examples to differentiate: fewer if they are large."""
  flat = tf.nest.flatten(inputs, expand_composites=True)
  return min(4, max(1, 4 * _ELEMENTS // (sum(map(tf.size, flat)) + 1)))


def _wrong(
  subject: Subject,
  inputs: Any,
  arguments: Mapping[str, Any],
  is_half: bool,
  *,
  of_inputs: bool = True,
) -> tuple[str, float, float] | None:
  """Compares gradients with finite differences, as `gradients.wrong` does.

  Covers trainable variables and, in double precision, inputs that gradients
  reach.

  Raises:
    InexactError: As `gradients.wrong` does.
  """
  variables = subject.trainable_variables
  is_double = all(v.dtype == tf.float64 for v in variables)
  flat = [
    tf.Variable(x, name=_INPUT)
    if isinstance(x, tf.Tensor) and x.dtype.is_floating and is_double
    else x
    for x in tf.nest.flatten(inputs)
  ]

  def value() -> tf.Tensor:
    given = [
      tf.convert_to_tensor(x) if isinstance(x, tf.Variable) else x for x in flat
    ]
    outputs = subject.model(
      tf.nest.pack_sequence_as(inputs, given), **arguments
    )
    scalar = gradients_lib.weighted(subject_lib.floats(outputs))
    return scalar * _SCALE if is_double else scalar

  def value_of_a_call() -> tf.Tensor:
    with subject.unchanged():
      return value()

  def gradient(*sources: tf.Variable) -> list[np.ndarray | None]:
    with subject.unchanged(), tf.GradientTape() as tape:
      scalar = value()
    made = tape.gradient(scalar, sources)
    return [*map(_array, made)]

  with gradients_lib.moved(variables), subject.unchanged():
    with subject.unchanged():
      # In most models, updates do not change the outputs of training.
      is_still = value() == value()
    held = [x for x in flat if isinstance(x, tf.Variable)]
    held = held if of_inputs and is_still else []
    try:
      made = gradient(*variables, *held)
    except LookupError:  # An op has no gradient for its input.
      held, made = [], gradient(*variables)
    compared = [
      (v, g)
      for v, g in zip([*variables, *held], made, strict=True)
      if g is not None
    ]
    return gradients_lib.wrong(
      value if is_still else value_of_a_call,
      *map(list, zip(*compared, strict=True)),
      is_half,
    )


def _lost_in_inference(subject: Subject) -> findings.Finding | None:
  """Finds trainable variables whose values are constants in inference."""
  if not subject.training:
    return None
  used = _gradient(subject, subject.example(1), {"training": False})
  unused = [
    v
    for v, g in zip(subject.trainable_variables, used, strict=True)
    if g is None
  ]
  # Training alone may use a few, such as the variance of a sampler.
  if 2 * len(unused) > len(used):
    return findings.failed(
      "Most of `trainable_variables` have no effect in inference, so"
      " fine-tuning does not reach it.",
      "Trace both modes with the same variables.",
    )
  if names := subject.constants_of(unused, least_rank=2):
    return findings.failed(
      f"Inference holds the value of {findings.some(names)} as a constant, so"
      " fine-tuning does not reach it.",
      "Trace both modes with the same variables.",
    )
  return None


def _lost_in_form(subject: Subject) -> findings.Finding | None:
  """Finds variables that get no gradient from another form of the input."""
  arguments = subject.steady
  if arguments is None:
    arguments = {"training": False} if subject.training else {}
  for form in subject.forms:
    inputs = subject.example(1, form=form)
    usual = of_inference.cast(inputs, subject.spec)
    if form == subject.spec or usual is None:
      continue
    variables = subject.trainable_variables
    expected, made = (_gradient(subject, x, arguments) for x in (usual, inputs))
    if lost := [
      v.name
      for v, x, g in zip(variables, expected, made, strict=True)
      if x is not None and g is None
    ]:
      return findings.failed(
        f"With {form} there is no gradient for {findings.some(lost)}; with"
        f" {subject.spec} there is one.",
        "Convert the input, and call the same function.",
      )
  return None


def _badly_made(subject: Subject, inputs: Any) -> findings.Finding | None:
  """Finds gradients that are missing, not finite, or always zero.

  Judges random training by several calls, because each drops other units.
  """
  arguments, repeats = subject.steady, 1
  if arguments is None:
    arguments, repeats = subject.training, _REPEATS
  # A variable without values gets no gradient.
  variables = [v for v in subject.trainable_variables if tf.size(v) > 0]
  if not variables:
    return None

  def gradient(inputs: Any, arguments: Mapping[str, Any]) -> list[Any]:
    made = _gradient(subject, inputs, arguments, variables)
    return [g if g is None else _reduced(subject, g) for g in made]

  calls = [gradient(inputs, arguments) for _ in range(repeats)]
  if not all(
    g is not None and np.any(g) and not _unused(subject, [g]) for g in calls[0]
  ):
    # Some variables get a gradient only from inputs as large as pixels. Others,
    # such as the embedding of a mask, get one only with noise.
    large = subject_lib.scaled(subject.example(5), _PIXEL)
    noisy = {**subject.training, **subject.changed, **subject.noisy(0.5)}
    calls += [gradient(inputs, noisy) for _ in range(_REPEATS)]
    calls.append(gradient(large, arguments))
  made = [  # Not a dict, because names may repeat.
    (v.name, gradients) for v, *gradients in zip(variables, *calls, strict=True)
  ]
  dead = [n for n, gs in made if gs[-1] is None]
  if dead:
    return findings.failed(
      "No output has a gradient for these variables in `trainable_variables`:"
      f" {findings.some(dead)}.",
      "Remove the stop_gradient from the model, or the variables from the"
      " list.",
    )
  sizes = [
    (n, [0.0 if g is None else np.linalg.norm(g) for g in gs]) for n, gs in made
  ]
  if bad := [n for n, x in sizes if not np.isfinite(x).all()]:
    return findings.failed(
      f"The gradient of {findings.some(bad)} is not finite.",
      "Do not divide by a number that can be 0, and do not take the root of 0.",
    )
  if name := _endless_for_zeros(subject, inputs, arguments):
    return findings.failed(
      f"The gradient of {name} is not finite for an input that is all 0, such"
      " as padding.",
      "Do not divide by a number that can be 0, and do not take the root of 0,"
      " even where tf.where drops the result.",
    )
  zero = [v for v, (_, x) in zip(variables, sizes, strict=True) if not any(x)]
  if zero and (finding := _zero(subject, zero, arguments)):
    return finding
  for name, gradients in made:
    if columns := _unused(subject, [g for g in gradients if g is not None]):
      return findings.failed(
        f"The gradient of the columns {columns[0]} to {columns[-1]} of {name}"
        " is zero for all inputs tried.",
        "Remove them, or let the outputs depend on them.",
      )
  return None


def _zero(
  subject: Subject,
  variables: Sequence[tf.Variable],
  arguments: Mapping[str, Any],
) -> findings.Finding | None:
  """Judges variables whose gradient was zero for all inputs tried.

  Tries more inputs, because a model may choose variables by values of the
  input. Tries other weights too, because some variables matter only for values
  out of a range.
  """
  inputs = subject.example(5)
  words = [b"", *vocabulary.texts(subject.nodes)]

  def compared(x: Any) -> Any:
    is_text = isinstance(x, tf.Tensor) and x.dtype == tf.string
    return tf.constant(np.resize(words, x.shape)) if is_text else x

  zero = {v.ref() for v in variables}
  others = [v for v in subject.trainable_variables if v.ref() not in zero]
  for tried in (
    inputs,
    subject_lib.scaled(inputs, -_PIXEL),
    subject_lib.scaled_rows(inputs, np.resize([1.0, np.nan], 5)),
    tf.nest.map_structure(compared, subject.example(len(words))),
    subject.example(2, (_LONG,)),
    *subject_lib.near(inputs, subject.offsets),
  ):
    if not variables:
      return None
    with (
      contextlib.suppress(tf.errors.OpError),  # The model may refuse inputs.
      gradients_lib.moved(others, _LARGE if tried is inputs else 0.0),
    ):
      made = _gradient(subject, tried, arguments, variables)
      variables = [
        v
        for v, g in zip(variables, made, strict=True)
        if g is None or not np.any(np.nan_to_num(g, posinf=0, neginf=0))
      ]
  variables = [v for v in variables if not choices.is_shared(subject, v)]
  zero = [v.name for v in choices.without(subject, variables)]
  if zero:
    return findings.failed(
      "The gradient is zero for all inputs tried, for these variables in"
      f" `trainable_variables`: {findings.some(zero)}.",
      "Remove it from the list, or let the outputs depend on it.",
    )
  if variables:
    names = findings.some([v.name for v in variables])
    return findings.not_decidable(
      f"whether {names} gets a gradient: it is zero for all inputs tried, but"
      " the model chooses variables by its input"
    )
  return None


def _reduced(subject: Subject, gradient: np.ndarray) -> np.ndarray:
  """Reduces a gradient to its largest magnitude, to save memory.

  Keeps the gradients of embedding tables, most of whose rows are not looked up.
  """
  is_table = subject.kind.name in _EMBEDDINGS and gradient.ndim == 2
  if is_table and np.any(gradient, 1).mean() <= 0.5:
    return gradient
  return np.max(np.abs(gradient), initial=0.0)


def _unused(subject: Subject, gradients: Sequence[np.ndarray]) -> range:
  """Returns neighboring columns of a table whose gradients are zero.

  Returns no columns if they are few: scattered ones may belong to units that
  are off for the inputs tried.

  Args:
    subject: The SavedModel.
    gradients: The gradients of one variable, as `_reduced` returns them.
  """
  if (
    not all(g.ndim for g in gradients) or np.any(gradients, (0, 2)).mean() > 0.5
  ):
    return range(0)
  ends = np.flatnonzero(np.pad(np.any(gradients, (0, 1)), 1, constant_values=1))
  widths = np.diff(ends) - 1
  start, width = ends[widths.argmax()], widths.max()
  is_much = width >= max(8, gradients[0].shape[1] / 4)
  return range(start, start + width * is_much)


def _endless_for_zeros(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any]
) -> str:
  """Names a variable whose gradient for zeros is not finite, unlike outputs."""
  # If all examples are equal, normalization in training multiplies gradients
  # until they overflow. So in training, only the first example is 0.
  mode = {"training": False} if subject.training else {}
  calls = [(subject_lib.scaled(inputs, 0.0), {**arguments, **mode})]
  if subject.training and subject.is_batched:
    is_kept = np.arange(4) > 0
    calls.append((subject_lib.scaled_rows(inputs, is_kept), arguments))
  for zeros, mode in calls:
    made = _gradient(subject, zeros, mode)
    for v, g in zip(subject.trainable_variables, made, strict=True):
      if g is not None and not np.isfinite(g).all():
        with subject.unchanged():
          outputs = subject_lib.floats(subject.model(zeros, **mode))
        # R8 reports outputs that are not finite, such as logarithms.
        are_finite = all(np.isfinite(y).all() for y in outputs)
        return v.name if are_finite else ""
  return ""


def _gradient(
  subject: Subject,
  inputs: Any,
  arguments: Mapping[str, Any],
  variables: Sequence[tf.Variable] | None = None,
) -> list[np.ndarray | None]:
  """Returns gradients of the outputs, by default for trainable variables."""
  with subject.unchanged(), tf.GradientTape() as tape:
    outputs = subject.model(inputs, **arguments)
    scalar = gradients_lib.weighted(subject_lib.floats(outputs))
  made = tape.gradient(scalar, variables or subject.trainable_variables)
  return [*map(_array, made)]


def _array(gradient: tf.Tensor | tf.IndexedSlices | None) -> np.ndarray | None:
  """Returns a gradient's array, which shares its memory if it is no scalar."""
  if gradient is None:
    return None
  tensor = tf.convert_to_tensor(gradient)
  # NumPy cannot share scalars of bfloat16.
  return np.asarray(tensor) if tensor.shape.rank else tensor.numpy()


def has_losses(subject: Subject) -> findings.Finding:
  """`regularization_losses` return finite scalars, of trainable variables."""
  losses = list(getattr(subject.model, "regularization_losses", ()))
  if not losses:
    return _without_losses(subject)
  for i, loss in enumerate(losses):
    try:
      value, again = loss(), loss()
    except Exception as e:
      return findings.failed(
        f"Regularization loss {i} cannot be called without arguments:"
        f" {subject_lib.cause(e)}",
        "Save tf.functions that take no argument.",
      )
    if not (
      tf.is_tensor(value) and value.shape == [] and value.dtype.is_floating
    ):
      return findings.failed(
        f"Regularization loss {i} returns {findings.described(value)}, which"
        " is no float scalar.",
        "Return a float scalar.",
      )
    if not np.isfinite(value) or value != again:
      return findings.failed(
        f"Regularization loss {i} returns {float(value)}, and then"
        f" {float(again)}.",
        "Compute it from trainable variables alone.",
      )
    with tf.GradientTape() as tape:
      value = loss()
    for g in tape.gradient(value, subject.trainable_variables):
      if g is not None and not np.isfinite(tf.convert_to_tensor(g)).all():
        return findings.failed(
          f"The gradient of regularization loss {i} is not finite.",
          "Do not take the root of 0, and do not divide by a number that can"
          " be 0.",
        )
    if moving := _moving(subject, loss):
      return findings.failed(
        f"Regularization loss {i} depends on {findings.some(moving)}, which"
        " training updates without gradients.",
        "Compute it from trainable variables alone.",
      )
  with gradients_lib.moved(subject.trainable_variables):
    finding = _badly_lost(subject.trainable_variables, losses)
  count = len(observation.regularized(losses))
  return finding or findings.passed(f"with gradients for {count} variables")


def _without_losses(subject: Subject) -> findings.Finding:
  """Judges a model that lists no regularization losses."""
  if not subject.variables:
    return findings.not_applicable("it has no variables")
  metadata = "keras_metadata.pb"
  if metadata in subject.files and _REGULARIZER.search(
    subject.content(metadata)
  ):
    return findings.not_decidable(
      "hub.KerasLayer gets none; tf_keras.models.load_model also gets those of"
      " layers inside layers, if there are any",
    )
  claim = ""
  if "regularization losses" in subject.claims:
    claim = "; its own verification claims that the live model has none"
  return findings.passed(
    "none. If the model was trained with any, they are lost" + claim
  )


def _moving(subject: Subject, loss: Any) -> list[str]:
  """Names the variables of a loss that a training call changes."""
  used = {
    v.ref(): v
    for trace in getattr(loss, "concrete_functions", ())
    for v in trace.variables
    if not v.trainable
  }
  if not (used and subject.traces):
    return []
  before = {key: v.numpy() for key, v in used.items()}
  with subject.unchanged():
    subject.model(subject.example(), **subject.training)
    return [
      v.name for key, v in used.items() if not np.array_equal(v, before[key])
    ]


def _badly_lost(
  variables: Sequence[tf.Variable], losses: Sequence[Any]
) -> findings.Finding | None:
  """Finds losses that are listed twice or have a wrong gradient.

  Skips constant losses, which Keras also lists for frozen layers, and losses of
  weight 0.
  """
  found: dict[Any, int] = {}
  before = [v.numpy() for v in variables]
  trained = {v.ref() for v in variables}
  for i, loss in enumerate(losses):
    traces = getattr(loss, "concrete_functions", ())
    used = {v.ref() for trace in traces for v in trace.variables}
    if used and not used & trained:
      continue
    values = []
    for factor in _FACTORS:
      for v, old in zip(variables, before, strict=True):
        v.assign(np.asarray(factor * old, old.dtype))
      with tf.GradientTape() as tape:
        value = loss()
      made = tape.gradient(value, variables)
      values.append(float(value))
      if all(g is None or np.any(tf.convert_to_tensor(g)) for g in made):
        break
    else:
      if not any(values):  # The weight of the loss is 0.
        continue
    if problem := _of_loss(variables, loss, made):
      return findings.failed(
        f"Regularization loss {i} {problem}.",
        "Compute it from trainable variables alone.",
      )
    key = (float(value), tuple(g is None for g in made))
    if key in found:
      return findings.failed(
        f"Regularization losses {found[key]} and {i} are the same: it is added"
        " twice.",
        "List each loss once.",
      )
    found[key] = i
  return None


def _of_loss(
  variables: Sequence[tf.Variable], loss: Any, made: Sequence[Any]
) -> str:
  """Describes an error in a loss's gradient; empty if there is none."""
  reached = [v for v, g in zip(variables, made, strict=True) if g is not None]
  if not reached:
    return "has no gradient: it depends on no trainable variable"
  gradients = [tf.convert_to_tensor(g).numpy() for g in made if g is not None]
  for v, gradient in zip(reached, gradients, strict=True):
    if not np.any(gradient):
      return f"has a gradient of zero for {v.name}"
  value = float(loss())
  others = [v for v, g in zip(variables, made, strict=True) if g is None]
  with gradients_lib.moved(others):
    if float(loss()) != value:
      return "has no gradient for some of the variables that it depends on"
  if _falls(reached, loss):
    return "decreases without bound as the variables grow"
  if linear := _linear(reached, loss, gradients):
    return f"is linear in {linear[0]}, so it has no minimum"
  wrong = gradients_lib.wrong(loss, reached, gradients)
  if wrong:
    name, claimed, measured = wrong
    return (
      f"has a wrong gradient for {name}: along a random direction it is"
      f" {claimed:.3g}, and the loss changes by {measured:.3g}"
    )
  return ""


def _falls(variables: Sequence[tf.Variable], loss: Any) -> bool:
  """Returns whether a loss falls ever faster as all variables grow."""
  before = [v.numpy() for v in variables]
  values = []
  for factor in (100.0, 10.0, 1.0):
    for v, value in zip(variables, before, strict=True):
      v.assign(np.asarray(factor * value, value.dtype))
    values.append(float(loss()))
  return values[0] - values[1] < min(0.0, 5 * (values[1] - values[2]))


def _linear(
  variables: Sequence[tf.Variable], loss: Any, gradients: Sequence[np.ndarray]
) -> list[str]:
  """Returns the variables whose gradient is the same at other values.

  A loss is linear in such a variable, for example if it has a stale constant.
  """
  before = [v.numpy() for v in variables]
  linear = dict(enumerate(gradients))
  for factor in (-1.0, 2.0, 1.0):
    for v, value in zip(variables, before, strict=True):
      v.assign(np.asarray(factor * value, value.dtype))
    with tf.GradientTape() as tape:
      value = loss()
    made = tape.gradient(value, variables)
    linear = {
      i: gradient
      for i, gradient in linear.items()
      if np.allclose(tf.convert_to_tensor(made[i]), gradient, rtol=1e-3)
    }
  return [variables[i].name for i in linear]
