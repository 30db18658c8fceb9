"""Rules on calls in training mode: R3, R7 and R16."""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import itertools
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import choices
from exporters.conformance import findings
from exporters.conformance import gradients as gradients_lib
from exporters.conformance import noise
from exporters.conformance import of_inference
from exporters.conformance import op_audit
from exporters.conformance import subject as subject_lib
from exporters.reusable import graphs

Subject = subject_lib.Subject

_MOMENTUM = "batch_norm_momentum"
# Names of moving averages of batch normalization in programs without a library.
_STATISTIC = re.compile("(mean|var|std|average|avg)[^/]*$")
# Names of exponential moving averages of weights.
_OF_WEIGHTS = re.compile("(^|[_/.])(ema|ExponentialMovingAverage)([_:]|$)")
_ASSIGNS = re.compile("Assign.*VariableOp|ResourceScatter.*")
# Names or values of arguments that may select training.
_MODE = re.compile("train|infer|eval|determin")
# Ops that draw random numbers from a state saved in the SavedModel.
_OF_STATE = re.compile("RngReadAndSkip|Stateful(Random|Standard|Trunc|Unif).*")
_TINY_RATE = 0.001  # Too small for its noise to show, in any number of layers.
_REPEATS = 8  # Number of calls that draw random numbers.
# Values to try for arguments: of numbers by type, of strings by name.
_OTHERS = {int: (3, 2), float: (0.5, 0.25), "combiner": ("sum", "mean")}
_HELD = 0.25  # A momentum that no model has by default.
_ROWS = 16  # Examples for batch statistics.
_MANY = 40  # Examples of a large batch.


def has_modes(subject: Subject) -> findings.Finding:
  """If training and inference differ, `training` selects one; default False.

  Training moves every moving average, and inference depends on them.
  """
  if "training" not in subject.parameters:
    return _without_modes(subject)
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
      "Moving averages that inference uses do not move in a call with"
      f" training=True: {findings.some(standing)}.",
      "Pass `training` on to the layers when tracing, and update every moving"
      " average there.",
    )
  if stale := _stale(subject):
    return findings.failed(
      f"Inference does not depend on {findings.some(stale)}, which training"
      " moves. It always normalizes with the averages at export time.",
      "Trace inference with the variables, not with their values.",
    )
  if moved := _moved_by_gradients(subject):
    return findings.failed(
      f"A train step moves {findings.some(moved)} further than a call does: its"
      " gradient moves them too.",
      "Recompute without updates in the backward pass.",
    )
  for untrained, what in _other_forms(subject):
    return findings.failed(
      f"Unlike training with {subject.spec}, training with {untrained} does"
      f" not {what}.",
      "Convert the input, and call the same function.",
    )
  if form := _trained_otherwise(subject):
    return findings.failed(
      f"Training with {form} has other outputs or updates than training with"
      f" {subject.spec}.",
      "Convert the input, and call the same function.",
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


def _without_modes(subject: Subject) -> findings.Finding:
  """Judges a model without the argument `training`."""
  if named := _other_mode(subject):
    return findings.failed(
      f"The mode is an argument `{named}`, which hub.KerasLayer and Keras"
      " do not set.",
      "Name it `training`.",
    )
  if averages := _averages(subject):
    return findings.failed(
      f"It has batch normalization ({averages[0].name}) and no"
      " argument `training`: its moving averages never move.",
      "Save a __call__ with `training=False` in its signature, traced with"
      " False and with True.",
    )
  return findings.not_applicable(
    "there is no `training`, and nothing in the graph seems to need it"
  )


def _other_mode(subject: Subject) -> str:
  """Names an argument that selects training; empty if there is none."""
  for name, default in subject.parameters.items():
    if isinstance(default, bool) and "train" in name:
      return name
    if isinstance(default, tf.TypeSpec) or name in subject.hyperparameters:
      continue
    values = [subject.arguments_of(x).get(name) for x in subject.traces]
    if not _MODE.search(f"{name} {default} {values}".lower()):
      continue
    usual, other = (
      [
        _trains(trace)
        for trace, value in zip(subject.traces, values, strict=True)
        if (value == default) == is_default
      ]
      for is_default in (True, False)
    )
    if any(other) and not any(usual):
      return name
  return ""


def _other_forms(subject: Subject) -> Iterator[tuple[Any, str]]:
  """Yields forms of the input, and what training with them fails to do."""
  done: dict[str, set[str]] = {repr(form): set() for form in subject.forms}
  for trace in subject.traces:
    if subject.arguments_of(trace)["training"]:
      done[repr(subject.form_of(trace))] |= _trains(trace)
  for form in subject.forms:
    lacking = done[repr(subject.spec)] - done[repr(form)]
    if lacking and of_inference.cast(subject.example(), form) is not None:
      yield form, min(lacking)


def _trained_otherwise(subject: Subject) -> Any:
  """Returns a form of the input with which training differs; None if none."""
  inputs = of_inference.rounded(subject.example(_ROWS))
  for form in [x for x in subject.forms if x != subject.spec]:
    tolerance = of_inference.OF_HALF if of_inference.is_half(form) else 1e-2
    same = of_inference.cast(inputs, form, exactly=True)
    if same is None or subject.steady is None:
      continue
    made = []
    with (
      gradients_lib.moved(subject.trainable_variables),
      contextlib.suppress(*of_inference.REFUSALS),  # R4 reports these.
    ):
      for x in (inputs, same):
        with subject.unchanged():
          outputs = subject.model(x, **subject.steady)
          moved = [v.numpy() for v in subject.resting if v.dtype.is_floating]
        made.append([*map(np.float64, subject_lib.floats(outputs)), *moved])
      for x, y in zip(*made, strict=True):
        is_same = np.array_equal(x, y, equal_nan=True)
        if not (is_same or _is_close(x, y, tolerance)):
          return form
  return None


def _trains(trace: Any) -> set[str]:
  """Returns the signs of training that a trace has: noise, moved variables."""
  ops = {node.op for _, node in op_audit.nodes(trace.graph.as_graph_def())}
  done = {
    "draw random numbers": subject_lib.RANDOM.match,
    "move variables": _ASSIGNS.fullmatch,
  }
  return {what for what, is_it in done.items() if any(map(is_it, ops))}


def _different_structures(subject: Subject) -> findings.Finding | None:
  first, *others = [
    trace.structured_outputs
    for trace in subject.traces
    if subject.form_of(trace) == subject.spec
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


def _still(subject: Subject) -> list[tf.Variable]:
  """Returns finite float variables that some training calls do not move."""
  arguments, repeats = subject.steady, 1
  if arguments is None:  # A random call may skip a layer.
    arguments, repeats = subject.training, _REPEATS
  # Infinite averages never change, and R5 reports them.
  floats = [
    v
    for v in subject.resting
    if v.dtype.is_floating and np.isfinite(v.numpy()).all()
  ]
  still = set()
  # The second batch differs, because an average may equal the statistic of the
  # first one. Large batches may take another path.
  large = [(_MANY,)] * of_inference.is_small(subject)
  for sizes in ((2, _ROWS), *large):
    with (
      gradients_lib.moved(subject.trainable_variables),
      subject.unchanged(),
    ):
      for size in sizes:
        before = [v.numpy() for v in floats]
        for _ in range(repeats):
          subject.model(subject.example(size), **arguments)
        pairs = zip(floats, before, strict=True)
        still |= {v.ref() for v, x in pairs if np.array_equal(v, x)}
  # Values of the input may decide which variables a call uses.
  return choices.without(subject, [v for v in floats if v.ref() in still])


def _standing(subject: Subject) -> list[str]:
  """Names moving averages that inference uses, and training does not move.

  Leaves out averages that training uses too, because they are frozen.
  Variables without a name of batch normalization count if their names or values
  show that they are averages of weights. They also count if they have the name
  of a statistic, in a layer where another variable moves.
  """
  still = _still(subject)
  refs = {v.ref() for v in still}
  moving = {_layer(v) for v in subject.resting if v.ref() not in refs}
  averages = {v.ref() for v in _averages(subject)}
  named = {v.ref() for v in subject.batch_norms}
  copies = {v.ref() for v in _copies(still, subject.trainable_variables)}
  names = [
    v.name
    for v in still
    if v.ref() in averages
    or (
      v.ref() not in named
      and v.shape.rank
      and (
        _OF_WEIGHTS.search(v.name)
        or v.ref() in copies
        or ("/" in v.name and _STATISTIC.search(v.name) and _layer(v) in moving)
      )
    )
  ]
  exact = subject.repeatable
  if not names or not exact:
    return []
  unused = _unused(
    exact, [v for v in exact.resting if v.name in names], exact.steady
  )
  in_inference = _unused(exact, unused, {**exact.steady, "training": False})
  refs = {v.ref() for v in in_inference}
  return [v.name for v in unused if v.ref() not in refs]


def _copies(
  variables: Sequence[tf.Variable], weights: Sequence[tf.Variable]
) -> Iterator[tf.Variable]:
  """Yields variables of at least two dimensions that equal a weight."""
  by_shape = collections.defaultdict(list)
  for w in weights:
    # Weights of one value, such as zeros, may be equal by chance.
    if w.shape.rank > 1 and tf.size(w) and np.ptp(w):
      by_shape[tuple(w.shape)].append(w)
  for v in variables:
    if alike := by_shape.get(tuple(v.shape)):
      value = v.numpy()
      if any(np.array_equal(value, w) for w in alike):
        yield v


def _stale(subject: Subject) -> list[str]:
  """Names moving averages of batch normalization that inference ignores.

  If at most half are unused, they may belong to layers that exist in training
  only. Then an average counts only if its value is a constant of the graph.
  """
  averages = [v for v in _averages(subject) if v.dtype.is_floating]
  unused = _unused(subject, averages, {"training": False})
  if 2 * len(unused) > len(averages):
    return [v.name for v in unused]
  return subject.constants_of(unused, least_rank=1)


def _unused(
  subject: Subject,
  variables: Sequence[tf.Variable],
  arguments: Mapping[str, Any],
) -> list[tf.Variable]:
  """Returns variables that a call does not use.

  A variable without a gradient is unused. Returns no variables if moving those
  without a gradient changes the outputs.
  """
  inputs = subject.example(4)
  if not variables:
    return []
  with (
    subject.unchanged(),
    tf.GradientTape(watch_accessed_variables=False) as tape,
  ):
    tape.watch(variables)
    usual = subject_lib.floats(subject.model(inputs, **arguments))
    scalar = gradients_lib.weighted(usual) if usual else tf.constant(0.0)
  try:
    made = tape.gradient(scalar, variables)
  except LookupError:  # An op has no gradient.
    made = [None] * len(variables)
  unused = [v for v, g in zip(variables, made, strict=True) if g is None]
  # Signals may vanish in deep models, so only large steps may have an effect.
  for share in (0.05, 1.0):
    with subject.unchanged(), gradients_lib.moved(unused, share):
      again = subject_lib.floats(subject.model(inputs, **arguments))
    if not all(map(np.array_equal, usual, again)):
      return []
  return unused


def _moved_by_gradients(subject: Subject) -> list[str]:
  """Names the variables that a train step moves otherwise than a call does.

  Leaves out variables that move only as far as by rounding errors of the input,
  which are large in very deep models.
  """
  exact = subject.repeatable
  if exact is None or not exact.training or not exact.resting:
    return []
  inputs = exact.example(4)

  def called(inputs: Any) -> list[np.ndarray]:
    with exact.unchanged():
      exact.model(inputs, **exact.steady)
      return [v.numpy() for v in exact.resting]

  usual = called(inputs)
  try:
    with exact.unchanged():
      _differentiate(exact, inputs)
      stepped = [v.numpy() for v in exact.resting]
  except LookupError:  # An op has no gradient.
    return []
  moved = [
    (v.name, *left)
    for v, *left in zip(exact.resting, usual, stepped, strict=True)
    if v.dtype.is_floating and not np.allclose(*left, 1e-3, equal_nan=True)
  ]
  if not moved:
    return []
  near = called(subject_lib.nudged(inputs))
  by_rounding = max(
    _distance(*left)
    for v, *left in zip(exact.resting, usual, near, strict=True)
    if v.dtype.is_floating
  )
  return [n for n, *left in moved if not _distance(*left) < 4 * by_rounding]


def _distance(first: np.ndarray, second: np.ndarray) -> float:
  """Returns the norm of a difference, relative to that of the first array.

  The difference of a tiny array is nearly absolute: the array may be zero up to
  rounding.
  """
  first, second = np.float64(first), np.float64(second)
  return np.linalg.norm(second - first) / (np.linalg.norm(first) + 1e-3)


def _differentiate(subject: Subject, inputs: Any) -> None:
  """Calls the model in training, and computes its gradients."""
  with tf.GradientTape() as tape:
    outputs = subject_lib.floats(subject.model(inputs, **subject.steady))
    scalar = gradients_lib.weighted(outputs) if outputs else tf.constant(0.0)
  tape.gradient(scalar, subject.trainable_variables)


def can_be_tuned(subject: Subject) -> findings.Finding:
  """Judges R7 for the model or for a sub-object."""
  tunable, steady = subject.hyperparameters, subject.steady
  if not tunable:
    if steady is not None and (finding := _settled(subject, steady)):
      return finding
    fixed = ["batch normalization"] * bool(subject.batch_norms)
    # If inference has noise too, and calls repeat, an input seeds the noise.
    repeats = steady is not None and subject.is_random(training=False)
    if subject.is_random() and not repeats:
      fixed.append("dropout or other noise")
    if fixed:
      return findings.failed(
        f"Nothing can be adjusted. The graph fixes {' and '.join(fixed)}.",
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
  finding = (
    _without_effect(subject, steady)
    or _unlike(subject, steady)
    or _noise_elsewhere(subject, steady)
  )
  if finding:
    return finding
  strings = [
    name
    for name, v in tunable.items()
    if isinstance(v, str) and name not in _OTHERS
  ]
  return findings.passed(
    f"{', '.join(tunable)} can be set"
    + (f"; not tried: {', '.join(strings)}" if strings else ", with effect")
  )


def _without_effect(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds arguments without an effect, and wrong default values."""
  for name, default in subject.hyperparameters.items():
    given = {name: tf.constant(default)}
    rest = {k: v for k, v in steady.items() if k != name}
    if subject.varies(rest):  # Training is random by default.
      # The twin's seeds depend on names of ops, which traces may not share.
      unlike = _draws_differ(subject.twin, rest, name, default) and all(
        _noise_differs(subject, rest, {**rest, **given}, repeats)
        for repeats in (10 * _REPEATS, 50 * _REPEATS)
      )
    else:
      unlike = subject.differ(rest, {**rest, **given})
    if unlike:
      return findings.failed(
        f"{name} has the default {default}, but a call without it has"
        " different outputs.",
        "Make the default that of the trace.",
      )
    values = _OTHERS.get(name if type(default) is str else type(default), ())
    if values and not any(
      subject.differ(steady, {**steady, name: value}) for value in values
    ):
      return findings.failed(
        f"{name} changes nothing.",
        "Bind it to the layers that use it, or remove it.",
      )
  if not subject.training:
    return None
  if _MOMENTUM in subject.hyperparameters:
    return _badly_followed(subject, steady)
  averages = {v.ref() for v in _averages(subject)}
  still = _still(subject) if averages else ()
  if frozen := [v.name for v in still if v.ref() in averages]:
    return findings.failed(
      f"Training normalizes with {findings.some(frozen)}, and moves none of"
      " them.",
      "Pass `training` on to the layers when tracing, unless they are frozen"
      " on purpose.",
    )
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
  slow, fast, *slowest = (
    _updates(subject, {**steady, _MOMENTUM: m}, averages, _ROWS)
    for m in (0.9, 0.5, 0.99, 0.999)
  )
  of_batches = _of_batches(subject, averages, steady)
  deaf, inverse = [], []
  for v, x, y, *others in zip(averages, slow, fast, *slowest, strict=True):
    old = v.numpy()
    if v.ref() not in named and v.ref() not in of_batches:
      continue  # A constant, or an average of weights.
    if np.array_equal(x, y) or np.array_equal(*others):
      deaf.append(v)
    elif np.linalg.norm(x - old) > (
      1.25 * np.linalg.norm(y - old) + 1e-4 * np.linalg.norm(old)
    ):
      inverse.append(v.name)
  if deaf := [v.name for v in choices.without(subject, deaf)]:
    return findings.failed(
      f"{_MOMENTUM} does not reach {findings.some(deaf)}.",
      "Bind it to every batch normalization layer.",
    )
  if inverse:
    return findings.failed(
      f"Moving averages ({findings.some(inverse)}) move further with"
      f" {_MOMENTUM}=0.9 than with 0.5.",
      "Compute momentum * average + (1 - momentum) * statistic.",
    )
  return None


def _noise_elsewhere(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds noise that does not grow with its rate, or is otherwise wrong."""
  for name in subject.rates:
    rates = _TINY_RATE, 0.1, 0.4
    for repeats in (12, 50):  # More calls if a few find a problem.
      tiny, small, large = (
        _noise(subject, {**steady, name: subject.noisy(rate)[name]}, repeats)
        for rate in rates
      )
      if tiny < 0.25 * large and small < 0.8 * large:
        break
    stays, shrinks = tiny > 0.5 * large, small > 1.25 * large
    if large and (stays or shrinks):
      less, more = (
        subject.noisy(rate)[name]
        for rate in (_TINY_RATE if stays else 0.1, 0.4)
      )
      return findings.failed(
        f"Training is no less noisy with {name}={less} than with {more}.",
        "Drop with this rate, in all layers with dropout or other noise.",
      )
  if _is_quiet(subject, {**steady, **subject.noisy(0.5)}):
    return findings.failed(
      "Among equal examples in a batch, some get noise and others none.",
      "Draw random numbers for all examples.",
    )
  if problem := noise.problem(subject):
    return findings.failed(
      f"{problem}.",
      "Drop values of each example at this rate, and divide those that are"
      " kept by 1 - rate. Add noise whose mean is 0.",
    )
  return None


def _is_quiet(subject: Subject, arguments: Mapping[str, Any]) -> bool:
  """Tells whether only some of equal examples in a batch get noise."""
  if not subject.rates or not subject.is_batched:
    return False
  inputs = subject_lib.rows(subject.example(), 0, 1, 1, 0)
  with subject.unchanged():
    calls = [
      subject_lib.floats(subject.model(inputs, **arguments))
      for _ in range(2 * _REPEATS)
    ]
  for y in zip(*calls, strict=True):
    if y[0].shape[:1] == (4,):
      spread = np.ptp(np.float64(y), 0).reshape(4, -1)
      noisy = np.any(spread > 1e-5 * np.abs(y).max(initial=0.0), 1)
      if not np.array_equal(noisy, noisy[::-1]):
        return True
  return False


def _unlike(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds training that differs from inference even without noise."""
  if not subject.training:
    return None
  # Move the weights, in case one mode has constants computed from them.
  with gradients_lib.moved(subject.trainable_variables):
    is_frozen = _is_frozen(subject, steady)
  if is_frozen:
    return findings.failed(
      f"With {', '.join(subject.hyperparameters)} at 0 training still computes"
      " something else than inference.",
      "Compute the same in both modes, except for noise and batch"
      " normalization.",
    )
  return _settled(subject, steady)


def _settled(
  subject: Subject, steady: Mapping[str, Any]
) -> findings.Finding | None:
  """Finds training that differs from inference with statistics of its batch.

  Training calls that start from different moving averages reveal these
  statistics. If they do not, this function finds nothing: a layer may be called
  twice, or normalize parts of a batch.
  """
  if not subject.training or not subject.is_batched:
    return None
  exact = subject.twin or subject  # Some ops lack double precision.
  if exact.is_half:
    return None
  momentum = {_MOMENTUM: _HELD} if _MOMENTUM in subject.hyperparameters else {}
  arguments = {**steady, **momentum}
  # Take another size, because training may resize inputs to the usual one.
  others = of_inference.of_other_size(exact, _ROWS, 0.75)
  batch = next(itertools.chain(others, [exact.example(_ROWS)]))
  averages = _moved_once(exact, batch, arguments)
  if averages is None or any(v.dtype.size < 4 for v in averages):
    return None
  is_double = all(v.dtype == tf.float64 for v in averages)
  # Move the weights, in case one mode has constants computed from them.
  with exact.unchanged(), gradients_lib.moved(exact.trainable_variables):
    found = _statistics(exact, averages, batch, arguments)
    if found is None:
      return None
    training, statistics, shares = found
    if is_double and momentum:
      finding = _unlike_momentum(exact, averages, shares, arguments)
      if finding:
        return finding
    for v, value in zip(averages, statistics, strict=True):
      v.assign(value)
    arguments["training"] = False
    inference = subject_lib.floats(exact.model(batch, **arguments))
  tolerances = itertools.repeat(1e-2 if is_double else 5e-2)
  if all(map(_is_close, training, inference, tolerances)):
    return None
  return findings.failed(
    "With the statistics of a batch as moving averages, inference does not"
    " compute what training does.",
    "Compute the same in both modes, except for noise and batch normalization.",
  )


def _unlike_momentum(
  subject: Subject,
  averages: Sequence[tf.Variable],
  shares: Sequence[float],
  arguments: Mapping[str, Any],
) -> findings.Finding | None:
  """Finds moving averages that do not move by a share of 1 - momentum.

  A layer may have a larger momentum than the argument. Its mean and variance
  must then move by equal shares, in proportion to 1 - momentum.
  """
  of_layers: dict[tuple[str, str], list[float]] = {}
  for v, share in zip(averages, shares, strict=True):
    of_layers.setdefault(_layer(v), []).append(share)
  unlike = {
    v.ref(): share
    for v, share in zip(averages, shares, strict=True)
    if not np.isclose(share, 1 - _HELD)
  }
  others = [v for v in averages if v.ref() in unlike]
  if not others:
    return None
  of_batches = _of_batches(subject, others, arguments)
  others = [v for v in others if v.ref() in of_batches]
  ratio = (1 - 2 * _HELD) / (1 - _HELD)
  once, less = (
    _updates(subject, {**arguments, _MOMENTUM: m}, others, _ROWS)
    for m in (_HELD, 2 * _HELD)
  )
  for v, x, y in zip(others, once, less, strict=True):
    share, layer = unlike[v.ref()], _layer(v)
    pair = of_layers[layer] if layer[0] else []
    if (
      share > 1 - _HELD
      or (len(pair) == 2 and not np.isclose(*pair))
      or not np.allclose(y - v, ratio * (x - v), rtol=1e-3)
    ):
      return findings.failed(
        f"With {_MOMENTUM}={_HELD} {v.name} keeps a share of {1 - share:.3g}.",
        "Compute momentum * average + (1 - momentum) * statistic.",
      )
  return None


def _layer(average: tf.Variable) -> tuple[str, str]:
  """Returns a key for the layer of a moving average; "", … if unknown."""
  return os.path.dirname(average.name), str(average.shape)


def _of_batches(
  subject: Subject,
  averages: Sequence[tf.Variable],
  arguments: Mapping[str, Any],
) -> set[Any]:
  """Returns references of the averages whose update depends on the batch.

  The updates of averages of weights do not.
  """
  first, second = (
    _updates(subject, arguments, averages, size) for size in (_ROWS, 4)
  )
  return {
    v.ref()
    for v, x, y in zip(averages, first, second, strict=True)
    if not np.array_equal(x, y)
  }


def _moved_once(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any]
) -> list[tf.Variable] | None:
  """Returns the float variables that a call moves, each once.

  Returns None if the call moves no variable, or if a trace has more updates
  than the call moves variables.
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
    if subject.form_of(trace) == subject.spec
  ]
  if not moved or max(counts) > len(moved):
    return None
  return [v for v in moved if v.dtype.is_floating]


def _assignments(graph: Any) -> int:
  """Counts the updates of variables in a call; those in loops count twice."""
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
) -> tuple[list[Any], list[np.ndarray], list[float]] | None:
  """Computes the statistics of a batch from updates of moving averages.

  Args:
    subject: A twin in double precision, if there is one.
    averages: The moving averages.
    batch: Inputs of `_ROWS` examples.
    arguments: The arguments of a training call.

  Returns:
    The outputs of training that starts from these statistics, the statistic
    for each average, and the share by which a call moves each average. None if
    an update is not `momentum * average + (1 - momentum) * statistic`, or if
    outputs depend on the order of the batch.
  """

  def trained(
    inputs: Any, values: Sequence[np.ndarray]
  ) -> tuple[list[Any], list[np.ndarray]]:
    for v, value in zip(averages, values, strict=True):
      v.assign(value)
    outputs = subject_lib.floats(subject.model(inputs, **arguments))
    return outputs, [v.numpy() for v in averages]

  def is_equal(x: np.ndarray, y: np.ndarray | float) -> bool:
    tolerance = 1e-5 if x.dtype == np.float64 else 1e-3
    return np.allclose(x, y, tolerance, tolerance * np.abs(x).max(initial=0.0))

  zeros = [np.zeros(v.shape, v.dtype.as_numpy_dtype) for v in averages]
  outputs, of_zero = trained(batch, zeros)
  _, of_one = trained(batch, [x + 1.0 for x in zeros])
  order = [*range(0, _ROWS, 2), *range(1, _ROWS, 2)] * 2
  of_both, of_doubled = trained(subject_lib.rows(batch, *order), zeros)
  alone = [tf.gather(y, order) if y.shape.rank else y for y in outputs]
  shares = [1.0 - (y - x) for x, y in zip(of_zero, of_one, strict=True)]
  means = [np.mean(x) for x in shares]
  if not (
    all(map(_is_close, alone, of_both))
    # A value that a call replaces, such as a queue of examples, is no average.
    and all(share > 1e-5 and abs(share - 1) > 1e-5 for share in means)
    and all(map(is_equal, shares, means))
  ):
    return None
  statistics = [x / share for x, share in zip(of_zero, shares, strict=True)]
  outputs, still = trained(batch, statistics)
  # Some averages divide by a share that grows with the number of calls.
  if not all(map(is_equal, statistics, still)):
    return None
  of_doubled = [x / share for x, share in zip(of_doubled, shares, strict=True)]
  # The variance of n values may have been multiplied by n / (n - 1).
  corrected = [
    np.divide(
      x * y, 2 * x - y, out=np.array(x), where=~np.isclose(x, y) & (2 * x > y)
    )
    for x, y in zip(statistics, of_doubled, strict=True)
  ]
  return outputs, corrected, means


def _is_close(first: Any, second: Any, tolerance: float = 1e-2) -> bool:
  """Returns whether arrays of the same shape differ by little."""
  x, y = np.float64(first), np.float64(second)
  return x.shape == y.shape and np.abs(x - y).max(initial=0.0) <= (
    tolerance * np.abs(x).max(initial=0.0)
  )


def _draws_differ(
  twin: Subject | None, arguments: Mapping[str, Any], name: str, default: Any
) -> bool:
  """Returns whether passing the default changes a call with fixed noise.

  Also returns True if there is no twin in double precision.
  """
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
  """Tells whether the noise of outputs differs by more than a quarter."""
  first, second = (_noise(subject, x, repeats) for x in (one, other))
  return not 0.8 < (first + 1e-9) / (second + 1e-9) < 1.25


def _noise(
  subject: Subject, arguments: Mapping[str, Any], repeats: int
) -> float:
  """Returns the mean standard deviation of the outputs over several calls."""
  with subject.unchanged():
    calls = [
      np.concatenate(
        [
          np.ravel(tf.cast(y, tf.float64))
          for y in subject_lib.floats(
            subject.model(subject.example(), **arguments)
          )
        ]
      )
      for _ in range(repeats)
    ]
  return float(np.std(calls, axis=0).mean())


def _updates(
  subject: Subject,
  arguments: Mapping[str, Any],
  averages: Sequence[tf.Variable],
  batch_size: int,
) -> list[np.ndarray]:
  with (
    gradients_lib.moved(subject.trainable_variables),
    subject.unchanged(),
  ):
    subject.model(subject.example(batch_size), **arguments)
    return [v.numpy() for v in averages]


def ignores_mode(part: Subject, whole: Subject) -> bool:
  """Tells whether a sub-object ignores `training`, which changes the model.

  Compares the outputs of the model that the sub-object returns too.
  """
  if not (part.training and whole.training) or any(
    part.differ({**values, "training": True}, {**values, "training": False})
    for values in ({}, part.changed)
  ):
    return False
  inputs = taken = part.example()
  if isinstance(inputs, Mapping) and isinstance(whole.spec, Mapping):
    taken = {k: x for k, x in inputs.items() if k in whole.spec}
  try:
    returned = subject_lib.floats(part.model(inputs))
    usual = subject_lib.floats(whole.model(taken))
    with whole.unchanged():
      arguments = {**whole.training, **whole.changed}
      trained = subject_lib.floats(whole.model(taken, **arguments))
  except of_inference.REFUSALS:  # The two take different inputs.
    return False
  return any(
    not _is_close(x, y) and any(_is_close(x, z) for z in returned)
    for x, y in zip(usual, trained, strict=False)  # R3 reports other lengths.
  )


def is_random(subject: Subject) -> findings.Finding:
  """Random numbers in training differ by call, example and load."""
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
  if counters := _counters(subject):
    return findings.failed(
      f"Training draws by {findings.some(counters)}, which each call moves: it"
      " draws the same after each load.",
      "Draw with ops that have no seed, such as tf.random.uniform.",
    )
  if not any(map(subject.varies, train)):
    if _draws_once(subject):
      return findings.failed(
        "Training differs from inference, but two calls in training are equal."
        " Random numbers were drawn once, when the model was traced, or"
        " training computes something else.",
        "Draw random numbers with ops, not in Python, and trace both modes of"
        " the same model.",
      )
    return findings.not_applicable("training is not random")
  if _is_shared(subject):
    return findings.failed(
      "Dropout drops the same values in all examples of a batch.",
      "Draw a mask with one row for each example.",
    )
  for node in subject.nodes:
    seed = node.attr["seed2"].i or node.attr["seed"].i
    if subject_lib.RANDOM.match(node.op) and seed:
      return findings.failed(
        f"{node.name} has the seed {seed}: it draws the same after each load.",
        "Export without seeds of layers and without tf.random.set_seed.",
      )
  return findings.passed("two calls differ, and no op has a seed")


def _counters(subject: Subject) -> list[str]:
  """Names integer variables that calls move and that seed noise in training."""
  integers = [v for v in subject.resting if v.dtype.is_integer]
  if not integers or not subject.is_random():
    return []
  inputs, arguments = subject.example(), {**subject.training, **subject.changed}

  def called() -> list[np.ndarray]:
    outputs = subject_lib.floats(subject.model(inputs, **arguments))
    return [y.numpy() for y in outputs]

  before = [v.numpy() for v in integers]
  with subject.unchanged():
    first, second = called(), called()
    moved = [
      v.name
      for v, value in zip(integers, before, strict=True)
      if not np.array_equal(v, value)
    ]
  if not moved or all(map(_is_close, first, second)):
    return []
  for _ in range(_REPEATS):
    with subject.unchanged():
      if not all(map(np.array_equal, first, called())):
        return []
  return moved


def _is_shared(subject: Subject) -> bool:
  """Returns whether dropout drops the same values in all examples of a batch.

  Other noise, such as stochastic depth, may be the same for a whole batch.
  """
  rates = subject.rates
  if not (rates and subject.is_batched and all("dropout" in n for n in rates)):
    return False
  # Two examples, each twice: batch normalization turns equal ones into zeros.
  pairs = subject_lib.rows(subject.example(), 0, 1, 0, 1)
  for _ in range(_REPEATS):
    with subject.unchanged():
      outputs = subject.model(pairs, **{**subject.training, **subject.changed})
    for y in map(np.float64, subject_lib.floats(outputs)):
      if y.shape[:1] == (4,) and not np.allclose(
        y[:2], y[2:], 1e-4, 1e-4 * np.max(np.abs(y))
      ):
        return False
  return True


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
  inputs = [subject.example(), *of_inference.of_other_size(subject)]
  if subject.kind.name not in of_inference.PICTURES:
    inputs.append(subject_lib.scaled(inputs[0], -3.0))
  if of_inference.is_small(subject):
    inputs.append(subject.example(_MANY))
  for x in inputs:
    with contextlib.suppress(*of_inference.REFUSALS):
      if _computes_otherwise(subject, x, arguments):
        return True
  return False


def _computes_otherwise(
  subject: Subject, inputs: Any, arguments: Mapping[str, Any]
) -> bool:
  """Returns what `_is_frozen` returns, for one input."""
  with subject.unchanged():
    before = [v.numpy() for v in subject.resting]
    inference, training = (
      subject_lib.floats(subject.model(inputs, **{**arguments, **mode}))
      for mode in ({"training": False}, {})
    )
    # Updated variables, such as moving averages, also explain a difference.
    if not all(map(np.array_equal, subject.resting, before)):
      return False
  # Rounding errors add up over the layers of two graphs.
  return any(
    x.shape != y.shape
    or np.abs(x - y).max(initial=0.0) > 1e-3 * np.abs(x).max(initial=0.0)
    for x, y in (
      (np.float64(x), np.float64(y))
      for x, y in zip(inference, training, strict=True)
    )
  )
