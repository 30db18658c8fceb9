"""Checks gradients against finite differences."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distribution import sandbox

_EXCESS = 5  # Directions in which a gradient is wrong, less those it is right.
_GROUPS = 64  # Maximum number of groups of variables to move.


class _Precision(NamedTuple):
  """Steps and tolerances for finite differences in one precision.

  Attributes:
    largest: The largest step, relative to the variables.
    rounding: The step that moves values by one rounding error.
    tolerance: Tolerance relative to the derivative.
    of_all: Tolerance relative to the largest derivative, for rounding errors.
  """

  largest: float
  rounding: float
  tolerance: float
  of_all: float


_SINGLE = _Precision(1e-2, 3e-7, 0.15, 1e-5)
_HALF = _Precision(0.1, 2.0**-8, 0.35, 0.5)


@contextlib.contextmanager
def moved(variables: Sequence[tf.Variable], share: float) -> Iterator[None]:
  """Adds noise to variables, and restores them on exit.

  With noise, no gradient vanishes because a variable was initialized to zero.

  Args:
    variables: The variables.
    share: The standard deviation relative to the values; zeros count as 1.
  """
  before = [v.numpy() for v in variables]
  try:
    for v, value, noise in zip(variables, before, _noise(before), strict=True):
      v.assign(value + share * noise)
    yield
  finally:
    for v, value in zip(variables, before, strict=True):
      v.assign(value)


def _noise(values: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
  """Draws noise of the size of the values, deterministic for a seed."""
  rng = np.random.default_rng(seed)
  return [
    np.asarray(rng.standard_normal(x.shape) * _size(x), x.dtype) for x in values
  ]


def _size(values: np.ndarray) -> float:
  """Returns the magnitude of a variable's values; 1 if all are zero."""
  return np.sqrt(np.mean(np.square(values, dtype=np.float64))) or 1.0


@functools.cache
def _weights(shape: tuple[int, ...], seed: int) -> tf.Tensor:
  return tf.constant(np.random.default_rng(seed).standard_normal(shape))


def weighted(outputs: Sequence[tf.Tensor]) -> tf.Tensor:
  """Computes a weighted sum of outputs in float64; weights differ by value."""
  return tf.add_n(
    [
      tf.reduce_sum(tf.cast(y, tf.float64) * _weights(tuple(y.shape), i))
      for i, y in enumerate(outputs)
    ]
  )


def wrong(
  value: Callable[[], Any],
  variables: Sequence[tf.Variable],
  gradients: Sequence[np.ndarray],
  is_half: bool = False,
) -> tuple[str, float, float] | None:
  """Finds a gradient that differs from finite differences.

  Each difference moves one variable, or a few, along a random direction. Moving
  all variables by a rounding error estimates the error of the differences.

  Args:
    value: Returns the function's value at the current variables, in float64.
    variables: The variables.
    gradients: The gradient to check for each variable.
    is_half: Whether half precision is used in part of the function.

  Returns:
    The variable's name, and the claimed and the measured derivative along the
    direction. None if all gradients are right.
  """
  parts = np.array_split(range(len(variables)), min(len(variables), _GROUPS))
  precision = _HALF if is_half else _SINGLE
  error = _rounding(value, variables, precision.rounding)
  of_all = precision.of_all * max(
    np.linalg.norm(g) * _size(v.numpy())
    for v, g in zip(variables, gradients, strict=True)
  )
  for index, part in enumerate(parts):
    group = [variables[i] for i in part]
    before = [v.numpy() for v in group]
    # A wrong gradient is wrong in most directions; kinks are in few.
    excess = 0
    for seed in itertools.count(index, len(parts)):
      noise, claimed, spread = _direction(
        before, [gradients[i] for i in part], seed
      )
      at = functools.partial(_at, value, group, before, noise)
      try:
        allowed = 0.05 * spread + of_all
        measured = _otherwise(at, claimed, allowed, error, precision)
      finally:
        at(0.0)
      excess += -1 if measured is None else 1
      if excess < 0:
        break
      if excess == _EXCESS:
        return group[0].name, claimed, measured
  return None


def _otherwise(
  at: Callable[[float], float],
  claimed: float,
  allowed: float,
  error: float,
  precision: _Precision,
) -> float | None:
  """Measures a derivative; returns it if it differs from the claimed one.

  Steps should be small, but large enough to exceed rounding errors. Differences
  at several steps that disagree prove nothing, because the function has kinks.
  """
  before, size, step = None, abs(claimed), 2.0 * precision.largest
  for _ in range(4):
    step = np.clip(error / (0.03 * size + 1e-30), 1e-6, step / 2)
    measured = (at(step) - at(-step)) / (2 * step)
    size = max(abs(measured), abs(claimed))
    tolerance = precision.tolerance * size + allowed + error / step
    if abs(measured - claimed) <= tolerance:
      return None
    if before is not None and abs(measured - before) < 0.2 * size:
      return measured
    before = measured
  return None


def _direction(
  values: Sequence[np.ndarray], gradients: Sequence[np.ndarray], seed: int
) -> tuple[list[np.ndarray], float, float]:
  """Draws a direction to which each variable's gradient contributes.

  Along a direction where large terms cancel, errors of the differences would
  exceed the derivative.

  Returns:
    The direction, the derivative along it, and its standard deviation over
    directions.
  """
  best = None
  for attempt in range(8):
    noise = _noise(values, 8 * seed + attempt)
    terms = [
      np.float64(g).ravel() * np.float64(x).ravel()
      for g, x in zip(gradients, noise, strict=True)
    ]
    spreads = np.array([np.linalg.norm(x) for x in terms])
    # Move variables with large gradients less, so that none dominates.
    goal = max(min(spreads[spreads > 0], default=0), 0.01 * max(spreads))
    shares = goal / np.maximum(spreads, goal or 1.0)
    shares[spreads == 0] = 1.0
    noise = [
      np.asarray(share * x, x.dtype)
      for x, share in zip(noise, shares, strict=True)
    ]
    derivative = np.dot(shares, list(map(np.sum, terms)))
    spread = np.linalg.norm(shares * spreads)
    if best is None or abs(derivative) * best[2] > abs(best[1]) * spread:
      best = noise, derivative, spread
    if abs(derivative) >= spread:
      break
  return best


def _rounding(
  value: Callable[[], Any], variables: Sequence[tf.Variable], noise: float
) -> float:
  """Estimates a function's rounding error by its deviation from a line."""
  steps = np.array([-3, -2, -1, 1, 2, 3])
  before = [v.numpy() for v in variables]
  at = functools.partial(_at, value, variables, before, _noise(before))
  try:
    values = [at(step * noise) for step in steps]
  finally:
    at(0.0)
  rest = values - np.polyval(np.polyfit(steps, values, 1), steps)
  return 1e-7 * np.max(np.abs(values)) + 3 * np.max(np.abs(rest))


def _at(
  value: Callable[[], Any],
  variables: Sequence[tf.Variable],
  before: Sequence[np.ndarray],
  noise: Sequence[np.ndarray],
  step: float,
) -> float:
  """Moves the variables a step from `before`; returns the function's value."""
  for v, old, x in zip(variables, before, noise, strict=True):
    v.assign(old + np.asarray(step * x, x.dtype))
  sandbox.renew()
  return float(value()) if step else 0.0
