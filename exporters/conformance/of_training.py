"""Rules on calls in training mode: R3, R5 to R7, and R16."""

from collections.abc import Mapping, Sequence
import functools
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import gradients as gradients_lib
from exporters.conformance import subject as subject_lib
from exporters.conformance import twin as twin_lib
from exporters.reusable import comparison
from exporters.reusable import graphs
from exporters.reusable import observation

Subject = subject_lib.Subject

_MOMENTUM = "batch_norm_momentum"
# Ops with straight-through gradients, which differ from the derivative, and the
# state of spectral normalization, through which Keras stops gradients.
_ROUNDED = re.compile("ArgM(ax|in)|FakeQuant.*|Rint|Round|Sign")
_SPECTRAL = re.compile("(sn_u|vector_u|weight_u)[:_]")
# Names of moving averages of batch normalization in programs without a library.
_STATISTIC = re.compile("(mean|var|std|average|avg)[^/]*$")
_ASSIGNS = re.compile("Assign.*VariableOp|ResourceScatter.*")
# Ops that draw random numbers from a state saved in the SavedModel.
_OF_STATE = re.compile("RngReadAndSkip|Stateful(Random|Standard|Trunc|Unif).*")
# A layer with a regularizer, in the metadata of Keras.
_REGULARIZER = re.compile(rb'_regularizer\\?": \{')
_REPEATS = 8  # Calls with random numbers, to compare their means.
_ROWS = 16  # Examples for batch statistics.
_JITTER = 0.05
_ELEMENTS = 250_000  # Most elements of examples to differentiate.
_LARGE_MODEL = 2**29  # Bytes of files.


def has_modes(subject: Subject) -> findings.Finding:
  """If training and inference differ, `training` selects one; default False.

  Training moves every moving average.
  """
  if "training" not in subject.parameters:
    if averages := _averages(subject):
      return findings.failed(
        f"It has batch normalization ({averages[0].name}) and no"
        " argument `training`: its moving averages never move.",
        "Save a __call__ with `training=False` in its signature, traced with"
        " False and with True.",
      )
    return findings.not_applicable(
      "no `training`, and nothing is seen that would need it"
    )
  default = subject.parameters["training"]
  if default is not False:
    return findings.failed(
      f"The default of `training` is {default!r}.",
      "Make False its default.",
    )
  if finding := _different_structures(subject):
    return finding
  if standing := _standing(subject):
    return findings.failed(
      "Moving averages with which inference computes do not move in a call"
      f" with training=True: {findings.some(standing)}.",
      "Pass `training` on to the layers when tracing, and update every moving"
      " average there.",
    )
  # A rate may be 0 by default, so that only other values have an effect.
  if any(
    subject.differ({**values, "training": True}, {**values, "training": False})
    for values in ({}, subject.changed)
  ):
    return findings.passed(
      "`training` is named, False by default, and has effect"
    )
  return findings.passed(
    "`training` is False by default and changes nothing: the model has no"
    " batch normalization, and no modes that show. Dropout that was left out"
    " of both modes would not show"
  )


def _different_structures(subject: Subject) -> findings.Finding | None:
  first, *others = [
    trace.structured_outputs
    for trace in subject.traces
    if trace.structured_input_signature[0][0] == subject.spec
  ]
  for structure in others:
    try:
      tf.nest.assert_same_structure(first, structure)
      is_same = [y.dtype for y in _specs(first)] == [
        y.dtype for y in _specs(structure)
      ]
    except (TypeError, ValueError):
      is_same = False
    if not is_same:
      return findings.failed(
        f"One mode returns {first}, another {structure}.",
        "Return the same structure in both.",
      )
  return None


def _specs(structure: Any) -> list[tf.TypeSpec]:
  flat = tf.nest.flatten(structure)
  return [spec for spec in flat if isinstance(spec, tf.TypeSpec)]


def _averages(subject: Subject) -> list[tf.Variable]:
  """Returns the moving averages of all layers that are not frozen.

  A layer is frozen if its scale and offset are not in `trainable_variables`.
  """
  listed = {v.ref() for v in subject.trainable_variables}
  trained: dict[str, list[bool]] = {}
  for v in subject.variables:
    if re.search(r"/(gamma|beta|scale|offset):", v.name):
      trained.setdefault(os.path.dirname(v.name), []).append(v.ref() in listed)
  return [
    v
    for v in subject.batch_norms
    if any(trained.get(os.path.dirname(v.name), [True]))
  ]


def _standing(subject: Subject) -> list[str]:
  """Names the moving averages that a training call does not update.

  Those of other names are variables with which inference alone computes.
  """
  averages = {v.ref() for v in _averages(subject)}
  named = {v.ref() for v in subject.batch_norms}
  with (
    gradients_lib.moved(subject.trainable_variables, _JITTER),
    subject.unchanged(),
  ):
    before = [v.numpy() for v in subject.resting]
    subject.model(subject.example(), training=True)
    still = [
      v
      for v, value in zip(subject.resting, before, strict=True)
      # Infinite averages stay where they are, and R5 names them.
      if v.dtype.is_floating
      and np.array_equal(v, value)
      and np.isfinite(value).all()
    ]
  standing = [v.name for v in still if v.ref() in averages]
  others = [
    v.name
    for v in still
    if v.ref() not in named and v.shape.rank and _STATISTIC.search(v.name)
  ]
  if not others:
    return standing
  exact = subject if subject.steady is not None else _twin(subject)
  if not exact:
    return standing
  modes = (exact.steady, {**exact.steady, "training": False})
  training, inference = (_used(exact, others, mode) for mode in modes)
  return [*standing, *(n for n in inference if n not in training)]


def _used(
  subject: Subject, names: Sequence[str], arguments: Mapping[str, Any]
) -> list[str]:
  """Returns the names of the variables that change the outputs of a call."""
  used, inputs = [], subject.example(4)
  with subject.unchanged():
    usual = _floats(subject.model(inputs, **arguments))
    for v in [v for v in subject.resting if v.name in names]:
      with gradients_lib.moved([v], 1.0):
        again = _floats(subject.model(inputs, **arguments))
      if not all(map(np.allclose, usual, again)):
        used.append(v.name)
  return used


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
      + ("." if listed else ": consumers train and save nothing, in silence."),
      f"{save} The lists of a tf.Module are properties, which are not saved.",
    )
  if not trainable and any(
    v.trainable for trace in subject.traces for v in trace.variables
  ):
    return findings.failed(
      "`trainable_variables` is empty: consumers train nothing, in silence.",
      save,
    )
  if left := _left_out(subject):
    return findings.failed(
      f"{findings.some(left)} is trainable and not in `trainable_variables`:"
      " consumers leave it as it is, in silence.",
      "List it, or create it with trainable=False.",
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
  left = [v for v in used.values() if v.trainable]
  if not left:
    return []
  made = _gradient(subject, subject.example(4), subject.training, left)
  # Variables without an effect on the outputs have no gradient, or zero.
  return [
    v.name
    for v, g in zip(left, made, strict=True)
    if g is not None and np.any(g)
  ]


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
  """Returns whether a training call assigns a variable; infinity hides it."""
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
  with gradients_lib.moved(variables, _JITTER), subject.unchanged():
    finding = _badly_made(subject, inputs) or _lost_in_inference(subject)
  if finding:
    return finding
  exact = _twin(subject) or subject
  if any(v.dtype != tf.float64 for v in exact.trainable_variables):
    said += ", compared in single precision"
  arguments = exact.steady
  if arguments is None:
    arguments = {"training": False} if subject.training else {}
    said += ". Training is always random: its gradients were not compared"
  inputs = exact.example(_rows(inputs))
  if subject.training and _is_assigned(exact, inputs, arguments):
    arguments = {"training": False}
    said += ". Training assigns some: gradients of inference were compared"
  wrong = _wrong(exact, inputs, arguments, subject.is_half)
  if wrong and (
    any(map(_ROUNDED.fullmatch, subject.op_counts))
    or any(_SPECTRAL.search(v.name) for v in subject.resting)
  ):
    return findings.not_decidable(
      "whether gradients are right: it has ops that round or choose, or"
      " spectral normalization, whose gradients are made up"
    )
  if wrong:
    name, claimed, measured = wrong
    return findings.failed(
      f"The gradient of {name} is wrong: along a random direction it is"
      f" {claimed:.3g}, and the outputs change by {measured:.3g}.",
      "Remove or mend the custom gradient.",
    )
  return findings.passed(said)


def _is_assigned(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any]
) -> bool:
  """Returns whether a call assigns trainable variables, such as a projection.

  Its gradients are those of the new values, which hide the old ones.
  """
  variables = subject.trainable_variables
  with gradients_lib.moved(variables, _JITTER), subject.unchanged():
    before = [v.numpy() for v in variables]
    subject.model(inputs, **arguments)
    return not all(map(np.array_equal, variables, before))


def _rows(inputs: Any) -> int:
  """Returns how many examples to differentiate, fewer of large ones."""
  flat = tf.nest.flatten(inputs, expand_composites=True)
  return min(4, max(1, 4 * _ELEMENTS // (sum(map(tf.size, flat)) + 1)))


def _twin(subject: Subject) -> Subject | None:
  """Loads the twin of a model; None if it cannot be called, or is random.

  In double precision the weights of large models need too much memory.
  """
  names = [v.name for v in subject.trainable_variables]
  is_inexact = subject.is_half or subject.steady is None
  is_large = sum(subject.files.values()) > _LARGE_MODEL
  for dtype in [tf.float64] * (not is_large) + [tf.float32] * is_inexact:
    try:
      graph, root = twin_lib.load(subject.directory, subject.files, dtype)
      model = getattr(root, subject.attribute) if subject.attribute else root
      twin = subject_lib.Subject(subject.directory, graph, [], model)
      twin.example()
      if subject.steady is not None:
        twin.steady = subject.steady
      is_same = names == [v.name for v in twin.trainable_variables]
      if is_same and not twin.is_half and twin.steady is not None:
        return twin
    except Exception:  # Some ops have no kernel or another shape in this dtype.
      continue
  return None


def _wrong(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any], is_half: bool
) -> tuple[str, float, float] | None:
  """Compares gradients with finite differences, as `gradients.wrong` does."""

  def value() -> tf.Tensor:
    return gradients_lib.weighted(_floats(subject.model(inputs, **arguments)))

  def value_of_a_call() -> tf.Tensor:
    with subject.unchanged():
      return value()

  variables = subject.trainable_variables
  with gradients_lib.moved(variables, _JITTER), subject.unchanged():
    made = _gradient(subject, inputs, arguments)
    with subject.unchanged():
      # In most models, updates do not change the outputs of training.
      is_still = value() == value()
    return gradients_lib.wrong(
      value if is_still else value_of_a_call, variables, made, is_half
    )


def _lost_in_inference(subject: Subject) -> findings.Finding | None:
  """Finds trainable variables whose values are constants in inference."""
  if not subject.training:
    return None
  used = _gradient(subject, subject.example(1), {"training": False})
  # A few may serve training only, such as the variance of a sampler.
  if 2 * sum(g is None for g in used) <= len(used):
    return None
  return findings.failed(
    "Most of `trainable_variables` change nothing in inference: fine-tuning is"
    " lost there.",
    "Trace both modes with the same variables.",
  )


def _badly_made(subject: Subject, inputs: Any) -> findings.Finding | None:
  """Finds gradients that are missing, not finite, or always zero.

  Of random training several calls count, as each drops other units.
  """
  arguments, repeats = subject.steady, 1
  if arguments is None:
    arguments, repeats = subject.training, _REPEATS
  calls = [_gradient(subject, inputs, arguments) for _ in range(repeats)]
  if not all(g is not None and np.any(g) for g in calls[0]):
    # Some variables get a gradient only from inputs of another scale.
    calls.append(_gradient(subject, _large(subject), arguments))
  by_name = {
    v.name: gradients
    for v, *gradients in zip(subject.trainable_variables, *calls, strict=True)
  }
  dead = [n for n, gs in by_name.items() if gs[-1] is None]
  if dead:
    return findings.failed(
      f"{findings.some(dead)} in `trainable_variables` gets no gradient from"
      " any output.",
      "Remove the stop_gradient from the model, or the variables from the"
      " list.",
    )
  sizes = {
    n: [0.0 if g is None else np.linalg.norm(g) for g in gs]
    for n, gs in by_name.items()
  }
  if bad := [n for n, x in sizes.items() if not np.isfinite(x).all()]:
    return findings.failed(
      f"The gradient of {findings.some(bad)} is not finite.",
      "Divide by no number that may be 0, and take no root of 0.",
    )
  if zero := [n for n, x in sizes.items() if not any(x)]:
    return findings.failed(
      f"The gradient of {findings.some(zero)} in `trainable_variables` is zero"
      " for all inputs tried.",
      "Remove it from the list, or let the outputs depend on it.",
    )
  return None


def _large(subject: Subject) -> Any:
  """Makes a batch whose floats have the range of pixels, 0 to 255."""

  def scaled(x: Any) -> Any:
    if isinstance(x, tf.Tensor) and x.dtype.is_floating:
      return x * tf.cast(255, x.dtype)
    return x

  return tf.nest.map_structure(scaled, subject.example(5))


def _floats(outputs: Any) -> list[tf.Tensor]:
  named = comparison.named(outputs)
  return [y for y in named.values() if tf.is_tensor(y) and y.dtype.is_floating]


def _gradient(
  subject: Subject,
  inputs: Any,
  arguments: Mapping[str, Any],
  variables: Sequence[tf.Variable] | None = None,
) -> list[np.ndarray | None]:
  """Returns gradients of the outputs, by default for trainable variables."""
  with subject.unchanged(), tf.GradientTape() as tape:
    outputs = subject.model(inputs, **arguments)
    scalar = gradients_lib.weighted(_floats(outputs))
  made = tape.gradient(scalar, variables or subject.trainable_variables)
  return [None if g is None else tf.convert_to_tensor(g).numpy() for g in made]


def has_losses(subject: Subject) -> findings.Finding:
  """`regularization_losses` return finite scalars, of trainable variables."""
  losses = list(getattr(subject.model, "regularization_losses", ()))
  if not losses and not subject.variables:
    return findings.not_applicable("it has no variables")
  metadata = "keras_metadata.pb"
  if (
    not losses
    and metadata in subject.files
    and _REGULARIZER.search(subject.content(metadata))
  ):
    return findings.not_decidable(
      "hub.KerasLayer gets none; tf_keras.models.load_model also gets those of"
      " layers inside layers, if there are any",
    )
  if not losses:
    claim = ""
    if "regularization losses" in subject.claims:
      claim = "; its own verification claims that the live model has none"
    return findings.passed(
      "none. Those that its training had, if any, are lost and do not show"
      + claim
    )
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
          "Take no root of 0, and divide by no number that may be 0.",
        )
  with gradients_lib.moved(subject.trainable_variables, _JITTER):
    finding = _badly_lost(subject.trainable_variables, losses)
  count = len(observation.regularized(losses))
  return finding or findings.passed(f"with gradients for {count} variables")


def _badly_lost(
  variables: Sequence[tf.Variable], losses: Sequence[Any]
) -> findings.Finding | None:
  """Finds losses that are listed twice or have a wrong gradient."""
  found: dict[Any, int] = {}
  for i, loss in enumerate(losses):
    with tf.GradientTape() as tape:
      value = loss()
    made = tape.gradient(value, variables)
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
  with gradients_lib.moved(others, _JITTER):
    if float(loss()) != value:
      return "has no gradient for some of the variables that it depends on"
  if linear := _linear(reached, loss, gradients):
    return f"is linear in {linear[0]}, so it falls without end"
  wrong = gradients_lib.wrong(loss, reached, gradients)
  if wrong:
    name, claimed, measured = wrong
    return (
      f"has a wrong gradient for {name}: along a random direction it is"
      f" {claimed:.3g}, and the loss changes by {measured:.3g}"
    )
  return ""


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


def can_be_tuned(subject: Subject) -> findings.Finding:
  """Hyperparameters are scalar arguments with defaults, and have an effect.

  Training differs from inference by noise and batch normalization alone.
  """
  tunable, steady = subject.hyperparameters, subject.steady
  if not tunable:
    if steady is not None and (finding := _settled(subject, steady)):
      return finding
    fixed = ["batch normalization"] * bool(subject.batch_norms)
    if subject.is_random():
      fixed.append("dropout or other noise")
    if fixed:
      return findings.failed(
        f"Nothing can be adjusted: {' and '.join(fixed)} is fixed in the"
        " graph.",
        "Make rates and momentum scalar Tensor arguments with defaults.",
      )
    return findings.not_applicable("there is nothing to tune")
  without = [n for n, v in tunable.items() if v is subject_lib.NO_DEFAULT]
  if without:
    return findings.failed(
      f"{findings.some(without)} has no default.", "Give a Python number."
    )
  if steady is None:
    return findings.failed(
      f"Training is random with {', '.join(tunable)} at 0 too: they do not"
      " reach all layers with dropout or other noise.",
      "Make all rates arguments.",
    )
  if finding := _without_effect(subject, steady) or _unlike(subject, steady):
    return finding
  strings = [name for name, v in tunable.items() if isinstance(v, str)]
  return findings.passed(
    f"{', '.join(tunable)} can be set"
    + (f"; not tried: {', '.join(strings)}" if strings else ", with effect")
  )


def _without_effect(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds arguments without an effect, and wrong default values."""
  twin = functools.cache(lambda: _twin(subject))
  for name, default in subject.hyperparameters.items():
    given = {name: tf.constant(default)}
    rest = {k: v for k, v in steady.items() if k != name}
    if subject.varies(rest):  # Random by default.
      # Traces may name their ops differently, and the twin draws by name.
      unlike = _draws_differ(twin(), rest, name, default) and all(
        _noise_differs(subject, rest, {**rest, **given}, repeats)
        for repeats in (10 * _REPEATS, 50 * _REPEATS)
      )
    else:
      unlike = subject.differ(rest, {**rest, **given})
    if unlike:
      return findings.failed(
        f"{name} has the default {default}, and a call without it does not"
        " compute the same.",
        "Make the default that of the trace.",
      )
    if not isinstance(default, str) and not any(
      subject.differ(steady, {**steady, name: value})
      for value in ((3, 2) if isinstance(default, int) else (0.5, 0.25))
    ):
      return findings.failed(
        f"{name} changes nothing.",
        "Bind it to the layers that use it, or remove it.",
      )
  if _MOMENTUM in subject.hyperparameters and subject.training:
    return _badly_followed(subject, steady)
  return None


def _badly_followed(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds moving averages that ignore the momentum, or invert it."""
  named = {v.ref() for v in subject.batch_norms}
  averages = subject.batch_norms + [
    v
    for v in subject.resting
    if v.ref() not in named
    and v.dtype.is_floating
    and _STATISTIC.search(v.name)
  ]
  slow, fast = (
    _updates(subject, {**steady, _MOMENTUM: m}, averages) for m in (0.9, 0.5)
  )
  deaf, inverse = [], []
  for v, x, y in zip(averages, slow, fast, strict=True):
    old = v.numpy()
    if v.ref() not in named and np.array_equal(x, old):
      continue  # A constant.
    if np.array_equal(x, y):
      deaf.append(v.name)
    elif np.linalg.norm(x - old) > (
      1.25 * np.linalg.norm(y - old) + 1e-4 * np.linalg.norm(old)
    ):
      inverse.append(v.name)
  if deaf:
    return findings.failed(
      f"{_MOMENTUM} does not reach {findings.some(deaf)}.",
      "Bind it to all layers of batch normalization.",
    )
  if inverse:
    return findings.failed(
      f"Moving averages ({findings.some(inverse)}) move further with"
      f" {_MOMENTUM}=0.9 than with 0.5.",
      "Compute momentum * average + (1 - momentum) * statistic.",
    )
  return None


def _unlike(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds training that differs from inference even without noise."""
  if not subject.training:
    return None
  if _is_frozen(subject, steady):
    return findings.failed(
      f"With {', '.join(subject.hyperparameters)} at 0 training still computes"
      " something else than inference.",
      "Compute the same in both modes, but for noise and batch normalization.",
    )
  return _settled(subject, steady)


def _settled(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds training that is not inference with the statistics of its batch.

  Calls that start from different moving averages reveal these statistics.
  Nothing is found where they do not, because a layer is called twice or
  normalizes parts of a batch.
  """
  exact = _twin(subject) if subject.training and subject.is_batched else None
  if exact is None:
    return None
  momentum = {_MOMENTUM: 0.5} if _MOMENTUM in subject.hyperparameters else {}
  arguments, batch = {**steady, **momentum}, exact.example(_ROWS)
  averages = _moved_once(exact, batch, arguments)
  if averages is None or any(v.dtype != tf.float64 for v in averages):
    return None
  with exact.unchanged():
    found = _statistics(exact, averages, batch, arguments)
    if found is None:
      return None
    training, statistics = found
    for v, value in zip(averages, statistics, strict=True):
      v.assign(value)
    arguments["training"] = False
    inference = _floats(exact.model(batch, **arguments))
  if all(map(_is_close, training, inference)):
    return None
  return findings.failed(
    "With the statistics of a batch as moving averages, inference does not"
    " compute what training does.",
    "Compute the same in both modes, but for noise and batch normalization.",
  )


def _moved_once(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any]
) -> list[tf.Variable] | None:
  """Returns the floats that a call moves; None if it moves one twice, or none.

  Then not all of its updates are of a variable of their own.
  """
  with subject.unchanged():
    before = [v.numpy() for v in subject.resting]
    subject.model(inputs, **arguments)
    moved = [
      v
      for v, value in zip(subject.resting, before, strict=True)
      if not np.array_equal(v, value)
    ]
  counts = [
    _assignments(trace.graph.as_graph_def())
    for trace in subject.traces
    if trace.structured_input_signature[0][0] == subject.spec
  ]
  if not moved or max(counts) > len(moved):
    return None
  return [v for v in moved if v.dtype.is_floating]


def _assignments(graph: Any) -> int:
  """Counts the updates of variables in a call; those of a loop count twice."""
  by_name = graphs.functions(graph)

  @functools.cache
  def of_function(name: str) -> int:
    nodes = by_name[name].node_def if name in by_name else ()
    return sum(map(of_node, nodes))

  def of_node(node: Any) -> int:
    inner = sum(map(of_function, graphs.called(node)))
    if _ASSIGNS.fullmatch(node.op):
      return 1
    return 2 * inner if "While" in node.op else inner

  return sum(map(of_node, graph.node))


def _statistics(
  subject: Subject,
  averages: Sequence[tf.Variable],
  batch: Any,
  arguments: Mapping[str, Any],
) -> tuple[list[Any], list[np.ndarray]] | None:
  """Computes the statistics of a batch from updates of moving averages.

  Args:
    subject: A twin in double precision.
    averages: The moving averages.
    batch: Inputs of `_ROWS` examples.
    arguments: The arguments of a training call.

  Returns:
    The outputs of training with these averages, and the statistic for each of
    them. None if an update is not `momentum * average + (1 - momentum) *
    statistic`, or if outputs depend on the order of the batch.
  """

  def trained(
    inputs: Any, values: Sequence[np.ndarray]
  ) -> tuple[list[Any], list[np.ndarray]]:
    for v, value in zip(averages, values, strict=True):
      v.assign(value)
    outputs = _floats(subject.model(inputs, **arguments))
    return outputs, [v.numpy() for v in averages]

  zeros = [np.zeros(v.shape) for v in averages]
  outputs, of_zero = trained(batch, zeros)
  _, of_one = trained(batch, [x + 1.0 for x in zeros])
  order = [*range(0, _ROWS, 2), *range(1, _ROWS, 2)] * 2
  of_both, of_doubled = trained(subject_lib.rows(batch, *order), zeros)
  alone = [tf.gather(y, order) if y.shape.rank else y for y in outputs]
  shares = [1.0 - (y - x) for x, y in zip(of_zero, of_one, strict=True)]
  means = [np.mean(x) for x in shares]
  if not (
    all(map(_is_close, alone, of_both))
    and all(share > 1e-5 for share in means)
    and all(map(np.allclose, shares, means))
  ):
    return None
  statistics = [x / share for x, share in zip(of_zero, shares, strict=True)]
  outputs, still = trained(batch, statistics)
  # Others divide by a share that grows with the number of calls.
  if not all(map(np.allclose, statistics, still)):
    return None
  of_doubled = [x / share for x, share in zip(of_doubled, shares, strict=True)]
  # The variance of n values may have been multiplied by n / (n - 1).
  return outputs, [
    np.divide(x * y, 2 * x - y, out=x, where=~np.isclose(x, y) & (2 * x > y))
    for x, y in zip(statistics, of_doubled, strict=True)
  ]


def _is_close(first: Any, second: Any) -> bool:
  """Returns whether arrays of the same shape differ by little."""
  x, y = np.float64(first), np.float64(second)
  return x.shape == y.shape and np.abs(x - y).max(initial=0.0) <= (
    1e-2 * np.abs(x).max(initial=0.0)
  )


def _draws_differ(
  twin: Subject | None, arguments: Mapping[str, Any], name: str, default: Any
) -> bool:
  """Returns whether giving a default changes a call with fixed noise."""
  if twin is None or not any(v.dtype == tf.float64 for v in twin.variables):
    return True
  given = tf.constant(default, tf.float64 if type(default) is float else None)
  return twin.differ(arguments, {**arguments, name: given})


def _noise_differs(
  subject: Subject,
  one: Mapping[str, Any],
  other: Mapping[str, Any],
  repeats: int,
) -> bool:
  """Tells whether outputs vary more by a quarter with some arguments."""
  first, second = (_noise(subject, x, repeats) for x in (one, other))
  return not 0.8 < (first + 1e-9) / (second + 1e-9) < 1.25


def _noise(
  subject: Subject, arguments: Mapping[str, Any], repeats: int
) -> float:
  """Returns how much the outputs vary between calls."""
  with subject.unchanged():
    calls = [
      np.concatenate(
        [
          np.ravel(tf.cast(y, tf.float64))
          for y in _floats(subject.model(subject.example(), **arguments))
        ]
      )
      for _ in range(repeats)
    ]
  return float(np.std(calls, axis=0).mean())


def _updates(
  subject: Subject,
  arguments: Mapping[str, Any],
  averages: Sequence[tf.Variable],
) -> list[np.ndarray]:
  with (
    gradients_lib.moved(subject.trainable_variables, _JITTER),
    subject.unchanged(),
  ):
    subject.model(subject.example(), **arguments)
    return [v.numpy() for v in averages]


def is_random(subject: Subject) -> findings.Finding:
  """What is random in training differs by call, and after each load."""
  if not subject.training:
    return findings.not_applicable("it has no argument `training`")
  for node in subject.nodes:
    if _OF_STATE.fullmatch(node.op):
      return findings.failed(
        f"{node.name} draws from a state in a variable, which is the same after"
        " each load.",
        "Draw with ops that have no seed, such as tf.random.uniform.",
      )
  train = [subject.training, {**subject.training, **subject.changed}]
  if not any(map(subject.varies, train)):
    if _draws_once(subject):
      return findings.failed(
        "Training differs from inference, and two calls do not differ: what is"
        " random was drawn once, when it was traced.",
        "Draw random numbers with ops, not in Python.",
      )
    return findings.not_applicable("training is not random")
  for node in subject.nodes:
    if subject_lib.RANDOM.match(node.op) and (
      node.attr["seed"].i or node.attr["seed2"].i
    ):
      return findings.failed(
        f"{node.name} has the seed {node.attr['seed2'].i}: it draws the same"
        " after each load.",
        "Export without seeds of layers and without tf.random.set_seed.",
      )
  return findings.passed("two calls differ, and no op has a seed")


def _draws_once(subject: Subject) -> bool:
  """Returns whether repeatable training looks like a fixed dropout mask."""
  rates = [
    name
    for name, default in subject.hyperparameters.items()
    if isinstance(default, float) and "rate" in name
  ]
  return any(
    subject.differ(*({**subject.training, name: x} for x in (0.0, 0.5)))
    for name in rates
  ) or (_is_frozen(subject, subject.training) and not _standing(subject))


def _is_frozen(subject: Subject, arguments: Mapping[str, Any]) -> bool:
  """Returns whether training differs from inference and moves no variable."""
  with subject.unchanged():
    before = [v.numpy() for v in subject.resting]
    inference, training = (
      _floats(subject.model(subject.example(), **{**arguments, **mode}))
      for mode in ({"training": False}, {})
    )
    # Updated variables, such as moving averages, also explain a difference.
    if not all(map(np.array_equal, subject.resting, before)):
      return False
  # Rounding errors add up over the layers of two graphs.
  return any(
    np.abs(x - y).max(initial=0.0) > 1e-3 * np.abs(x).max(initial=0.0)
    for x, y in (
      (np.float64(x), np.float64(y))
      for x, y in zip(inference, training, strict=True)
    )
  )
