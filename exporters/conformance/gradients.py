"""Compares gradients with finite differences."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import itertools
from typing import Any

import numpy as np
import tensorflow as tf

_GROUPS = 64  # More variables than that are moved together.
_STEPS = (1e-2, 1e-3, 1e-4)  # Relative to the variables.
_NOISE = 3e-7  # A step that moves float32 values by a rounding error.


@contextlib.contextmanager
def moved(variables: Sequence[tf.Variable], share: float) -> Iterator[None]:
  """Adds noise to variables, and restores them on exit.

  At such a point no gradient vanishes because a variable starts at zero.

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
  """Draws noise as large as the values, the same for the same seed."""
  rng = np.random.default_rng(seed)
  sizes = [np.sqrt(np.mean(np.square(x, dtype=np.float64))) for x in values]
  return [
    np.asarray(rng.standard_normal(x.shape) * (size or 1.0), x.dtype)
    for x, size in zip(values, sizes, strict=True)
  ]


@functools.cache
def _weights(shape: tuple[int, ...], seed: int) -> tf.Tensor:
  return tf.constant(np.random.default_rng(seed).standard_normal(shape))


def weighted(outputs: Sequence[tf.Tensor]) -> tf.Tensor:
  """Sums outputs in float64, each value with a weight of its own."""
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
) -> tuple[str, float, float] | None:
  """Finds a gradient that differs from finite differences.

  A difference is one along a random direction of one variable, or of a few.
  Its error is estimated by moving all variables by a rounding error.

  Args:
    value: Returns the function's value at the present variables, in float64.
    variables: The variables.
    gradients: The claimed gradient for each.

  Returns:
    The variable's name, the claimed derivative along the direction and the
    measured one. None if all gradients are right.
  """
  parts = np.array_split(range(len(variables)), min(len(variables), _GROUPS))
  error = 0.0
  for seed, part in enumerate(parts):
    group = [variables[i] for i in part]
    before = [v.numpy() for v in group]
    noise = _noise(before, seed)
    terms = [
      np.float64(gradients[i]).ravel() * np.float64(x).ravel()
      for i, x in zip(part, noise, strict=True)
    ]
    claimed = sum(x.sum() for x in terms)
    spread = np.sqrt(sum(np.square(x).sum() for x in terms))

    at = functools.partial(_at, value, group, before, noise)
    try:
      found = []
      for step in _STEPS:
        measured = (at(step) - at(-step)) / (2 * step)
        found.append(measured)
        allowed = 0.15 * max(abs(measured), abs(claimed)) + 0.05 * spread
        off = abs(measured - claimed) - allowed
        if off <= 0:
          break
        at(0.0)
        error = error or _rounding(value, variables)
        # A small step decides nothing where rounding errors are as large.
        decided = error / step < 0.3 * max(abs(measured), abs(claimed))
        if off <= error / step and (decided or step == _STEPS[0]):
          break
      else:
        # Differences that do not agree with each other prove nothing.
        for x, y in itertools.pairwise(found):
          if abs(x - y) < 0.2 * max(abs(x), abs(y)):
            return group[0].name, claimed, y
    finally:
      at(0.0)
  return None


def _rounding(
  value: Callable[[], Any], variables: Sequence[tf.Variable]
) -> float:
  """Estimates the rounding error of a function's values."""
  values = []
  for share in (-2, -1, 1, 2):
    with moved(variables, share * _NOISE):
      values.append(float(value()))
  return 1e-9 * max(map(abs, values)) + 2 * np.ptp(values)


def _at(
  value: Callable[[], Any],
  variables: Sequence[tf.Variable],
  before: Sequence[np.ndarray],
  noise: Sequence[np.ndarray],
  step: float,
) -> float:
  """Returns a function's value a step away, where the variables then are."""
  for v, old, x in zip(variables, before, noise, strict=True):
    v.assign(old + np.asarray(step * x, x.dtype))
  return float(value()) if step else 0.0
