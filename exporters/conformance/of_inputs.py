"""The rule on the effect of inputs: R17."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import gradients
from exporters.conformance import of_inference
from exporters.conformance import subject as subject_lib

Subject = subject_lib.Subject
_Arguments = Mapping[str, Any]
_Arrays = Mapping[str, np.ndarray]

_ROWS = 8  # Examples in the batch whose inputs are changed.
_CALLS = 50  # Calls in random training whose outputs are compared.
_ERRORS = 6.0  # Standard errors by which means must differ.
_LONG = 64  # Positions of a long input, one half of which is changed.
_MOST_COLUMNS = 16  # Most columns of an input to change one by one.
_LONGEST = 4096  # Most positions of a long input.
_UNUSED = "input_type_ids"  # Encoders without token types take and ignore it.


def have_effect(subject: Subject) -> findings.Finding:
  """Each input, each of its columns and the end of a long one have an effect.

  An input with an effect in inference has one in training, too.
  """
  unused, untrained = _unused(subject)
  if unused:
    return findings.failed(
      f"{findings.some(unused)} has no effect on a call.",
      "Compute with it, or remove it from the inputs.",
    )
  if untrained:
    return findings.failed(
      f"{findings.some(untrained)} has an effect in inference, and none in"
      " training.",
      "Compute with it in both modes.",
    )
  for length in _lengths(subject):
    mode = ""
    with contextlib.suppress(*of_inference.REFUSALS):  # It may refuse some.
      mode = _ignores_end(subject, length)
    if mode:
      return findings.failed(
        f"The last {length // 2} of {length} positions have no effect on a"
        f" call in {mode}.",
        "Use all positions, or trace with their number in the shape.",
      )
  return findings.passed("no input without effect was found")


def _unused(subject: Subject) -> tuple[list[str], list[str]]:
  """Names the inputs that change neither outputs nor updates.

  The columns of a single input are tried instead of the input. An input with an
  effect in training only, such as labels, is not named.

  Returns:
    The inputs without effect in any mode, and those with an effect in inference
    but none in training.
  """
  names, changed = _names(subject.spec), _changed
  if len(names) == 1:
    names, changed = _columns(subject.spec), _changed_column
  if not names or (exact := subject.repeatable) is None:
    return [], []
  modes = [exact.steady]
  if exact.training:
    modes.append({"training": False})
  inputs = exact.example(_ROWS)
  unused, untrained = [], []
  # The weights of an untrained layer may be 0.
  with gradients.moved(exact.trainable_variables):
    try:
      usual = [_observed(exact, inputs, mode) for mode in modes]
    except of_inference.REFUSALS:  # Training may refuse what inference takes.
      return [], []
    for i, name in enumerate(names):
      others = [*changed(exact, inputs, i)]
      effects = (
        any(_has_effect(exact, x, mode, expected) for x in others)
        for mode, expected in zip(modes, usual, strict=True)
      )
      # Skip inputs that cannot be changed, or have an effect in the first mode.
      if not others or next(effects):
        continue
      if not any(effects):
        unused.extend([name] * (name != _UNUSED))
      # The fixed noise of the twin may drop an input.
      elif exact is subject or not _changes_noise(subject, changed, i):
        untrained.append(name)
  return unused, untrained


def _changes_noise(
  subject: Subject, changed: Callable[..., Iterator[Any]], index: int
) -> bool:
  """Tells whether an input changes mean or size of random training outputs."""
  inputs = subject.example(_ROWS)
  usual, *others = (
    np.array([_flat(subject, x) for _ in range(_CALLS)])
    for x in (inputs, *changed(subject, inputs, index))
  )
  for x in others:
    error = np.sqrt((np.var(usual, 0) + np.var(x, 0)) / _CALLS)
    size = np.std(usual, 0).mean(), np.std(x, 0).mean()
    if max(size) > 2 * min(size) or np.any(
      np.abs(np.mean(usual, 0) - np.mean(x, 0)) > _ERRORS * error
    ):
      return True
  return False


def _flat(subject: Subject, inputs: Any) -> np.ndarray:
  """Returns all float outputs of a training call as one vector."""
  with subject.unchanged():
    outputs = subject_lib.floats(subject.model(inputs, **subject.training))
  return np.concatenate([np.float64(y).ravel() for y in outputs])


def _names(spec: Any) -> list[str]:
  """Returns the names of inputs, in the order of `tf.nest.flatten`."""
  leaves = tf.nest.flatten(spec)
  if isinstance(spec, Mapping) and len(spec) == len(leaves):
    return sorted(spec)
  return [getattr(x, "name", None) or str(x) for x in leaves]


def _changed(subject: Subject, inputs: Any, index: int) -> Iterator[Any]:
  """Yields the inputs with other values for the input at `index`."""
  before = tf.nest.flatten(inputs)
  others = of_inference.other_inputs(subject, inputs)
  for other in (*others, *of_inference.with_segments(inputs)):
    x, y = before[index], tf.nest.flatten(other)[index]
    if x.dtype == tf.bool:
      y = tf.logical_not(x)
    # Strings stay the same, because other words may be unknown too.
    if x.dtype != tf.string and not _is_same(*map(of_inference.arrays, (x, y))):
      flat = [*before[:index], y, *before[index + 1 :]]
      yield tf.nest.pack_sequence_as(inputs, flat)


def _columns(spec: Any) -> list[str]:
  """Returns names for the columns, or colors, of a single input of floats."""
  if (
    not isinstance(spec, tf.TensorSpec)
    or not spec.dtype.is_floating
    or (spec.shape.rank or 0) < 2
    or not 2 <= (spec.shape[-1] or 0) <= _MOST_COLUMNS
  ):
    return []
  return [f"column {i} (from 0 on)" for i in range(spec.shape[-1])]


def _changed_column(
  subject: Subject, inputs: tf.Tensor, index: int
) -> Iterator[tf.Tensor]:
  """Yields the input with other values in one column."""
  is_changed = np.arange(inputs.shape[-1]) == index
  near = subject_lib.near(inputs, subject.offsets)
  for x in (*_changed(subject, inputs, 0), *near):
    yield tf.where(is_changed, x, inputs)


def _has_effect(
  subject: Subject, inputs: Any, mode: _Arguments, usual: _Arrays
) -> bool:
  """Tells whether changed inputs change outputs or updates, or are refused.

  Args:
    subject: The SavedModel.
    inputs: The changed inputs.
    mode: The arguments of the call.
    usual: The outputs and updates of the call with the unchanged inputs.
  """
  try:
    return not _is_same(usual, _observed(subject, inputs, mode))
  except of_inference.REFUSALS:
    return True


def _observed(subject: Subject, inputs: Any, arguments: _Arguments) -> _Arrays:
  """Returns the outputs and the updates of a call."""
  with subject.unchanged():
    outputs = of_inference.arrays(subject.model(inputs, **arguments))
    updates = {f"{i} of updates": v for i, v in enumerate(subject.resting)}
    # The value of a string variable may be bytes.
    return outputs | {k: np.asarray(v.numpy()) for k, v in updates.items()}


def _is_same(first: _Arrays, second: _Arrays) -> bool:
  return first.keys() == second.keys() and all(
    np.array_equal(x, second[name], equal_nan=x.dtype.kind == "f")
    for name, x in first.items()
  )


def _lengths(subject: Subject) -> list[int]:
  """Returns lengths to try: long ones, and twice those to which a call cuts.

  Tries only a single input of a `plain` model. One of several inputs may be the
  lengths of another, and sounds, texts and images of these lengths are short.
  """
  if subject.kind.name != "plain" or not of_inference.is_sequence(subject.spec):
    return []
  lengths = {_LONG, 4 * _LONG}
  for trace in subject.traces:
    for op in trace.graph.get_operations():
      is_cut = op.type == "StridedSlice" and (op.inputs[0].shape.rank or 0) > 1
      if is_cut and op.inputs[0].shape[1] is None:
        _, end, *_ = *np.ravel(tf.get_static_value(op.inputs[2])), 0
        if end and _LONG < 2 * end <= _LONGEST:
          lengths.add(2 * int(end))
  return sorted(lengths)


def _ignores_end(subject: Subject, length: int) -> str:
  """Names a mode in which the second half of a long input has no effect.

  Random training is not tried, because it may crop its inputs.
  """
  x = subject.example(2, (length,))
  first, second = x, tf.reverse(-x, [1])
  if x.dtype.is_integer:
    first, second = (0 * x + f(x) for f in (tf.reduce_min, tf.reduce_max))
  is_end = np.arange(length) >= length // 2
  is_end = np.expand_dims(is_end, [0, *range(2, x.ndim)])
  modes = {"inference": {"training": False} if subject.training else {}}
  if subject.training and subject.steady is not None:
    modes["training"] = subject.steady
  with gradients.moved(subject.trainable_variables):
    for name, mode in modes.items():
      of_start, of_end = (
        any(
          _has_effect(
            subject,
            tf.where(is_changed, new, old),
            mode,
            _observed(subject, old, mode),
          )
          # One of the ids may mark the end of the positions to use.
          for old, new in ((x, second), (first, second), (second, first))
        )
        for is_changed in (~is_end, is_end)
      )
      if of_start and not of_end:
        return name
  return ""
