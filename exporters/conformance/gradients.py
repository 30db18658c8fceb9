"""Checks gradients against finite differences."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distribution import sandbox

# A gradient is wrong if it is wrong in so many more directions than right.
_EXCESS = 5
# Most values that are moved at once. A single variable may have more.
_LARGEST_GROUP = 2**24
# Most rounding error of a value that differences can measure, relative to it.
_MOST_ERROR = 0.05


class InexactError(Exception):
  """Rounding errors change a function too much to measure its derivatives."""


class _Precision(NamedTuple):
  """Steps and tolerances for finite differences in one precision.

  Attributes:
    groups: The least number of groups of variables. Each is moved by itself.
    excess: A gradient is right if it is right in so many more directions than
      wrong.
    largest: The largest step, relative to the variables.
    rounding: The step that moves values by one rounding error.
    tolerance: Tolerance relative to the derivative.
    of_spread: Tolerance relative to the derivative's standard deviation over
      directions.
    of_all: Tolerance relative to the largest derivative, for rounding errors.
    least: The least share of a step that a variable moves.
  """

  groups: int
  excess: int
  largest: float
  rounding: float
  tolerance: float
  of_spread: float
  of_all: float
  least: float


_DOUBLE = _Precision(1, 2, 1e-5, 1e-15, 1e-5, 1e-5, 1e-12, 1e-3)
# Constants of half precision may differ between a function and its gradient.
_OF_HALF = _DOUBLE._replace(tolerance=0.02, of_spread=0.02)
_SINGLE = _Precision(64, 1, 1e-2, 3e-7, 0.15, 0.05, 1e-5, 1e-2)
_HALF = _Precision(64, 1, 0.1, 2.0**-8, 0.35, 0.05, 0.5, 1e-2)


@contextlib.contextmanager
def moved(
  variables: Sequence[tf.Variable], share: float = 0.05, *, upward: bool = False
) -> Iterator[None]:
  """Adds noise to variables, and restores them on exit.

  With noise, no gradient vanishes because a variable was initialized to zero.

  Args:
    variables: The variables. String variables stay unchanged.
    share: The standard deviation, relative to the magnitude of a variable. The
      magnitude of a variable of zeros counts as 1.
    upward: Whether values only increase, because variances must not become
      negative.
  """
  variables = [v for v in variables if v.dtype != tf.string]
  before = [v.numpy() for v in variables]
  try:
    for v, value, noise in zip(variables, before, _noise(before), strict=True):
      v.assign(value + share * (np.abs(noise) if upward else noise))
    yield
  finally:
    for v, value in zip(variables, before, strict=True):
      v.assign(value)


def _noise(values: Sequence[np.ndarray], seed: int = 0) -> Iterator[np.ndarray]:
  """Draws noise of the size of the values, deterministic for a seed."""
  rng = np.random.default_rng(seed)
  for x in values:
    noise = rng.standard_normal(x.shape)
    if np.iscomplexobj(x):
      noise = noise + 1j * rng.standard_normal(x.shape)
    yield np.asarray(noise * _size(x), x.dtype)


def _size(values: np.ndarray) -> float:
  """Returns the root mean square of values; 1 if it is 0 or there are none."""
  if not values.size:
    return 1.0
  real = np.abs(values) if np.iscomplexobj(values) else values
  return np.sqrt(np.mean(np.square(real, dtype=np.float64))) or 1.0


@functools.cache
def _weights(shape: tuple[int, ...], seed: int) -> tf.Tensor:
  return tf.constant(np.random.default_rng(seed).standard_normal(shape))


def weighted(outputs: Sequence[tf.Tensor]) -> tf.Tensor:
  """Computes a sum of outputs in float64, each value with its own weight."""
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

  Each difference moves a group of variables along a random direction. Moving
  all variables by a rounding error estimates the error of the differences. In
  double precision all variables move at once: differences are so exact that
  even one wrong column of one variable shows.

  Args:
    value: Returns the function's value at the current variables, in float64.
    variables: The variables.
    gradients: The gradient to check for each variable.
    is_half: Whether part of the function is computed in half precision. For a
      twin: whether part of the original function is.

  Returns:
    The variable's name, and the claimed and the measured derivative along the
    direction. None if all gradients are right.

  Raises:
    InexactError: In single or double precision, rounding errors change the
      value by a twentieth, as in very deep models with initial weights.
  """
  precision = _HALF if is_half else _SINGLE
  if all(v.dtype == tf.float64 for v in variables):
    precision = _OF_HALF if is_half else _DOUBLE
  error, size = _rounding(value, variables, precision)
  if error > _MOST_ERROR * size and precision is not _HALF:
    raise InexactError("rounding errors change it by more than a twentieth")
  of_all = precision.of_all * max(
    np.linalg.norm(g) * _size(v.numpy())
    for v, g in zip(variables, gradients, strict=True)
  )

  def search(
    part: Sequence[int], groups: int
  ) -> tuple[str, float, float] | None:
    size = sum(gradients[i].size for i in part)
    groups = max(groups, size // _LARGEST_GROUP)
    for group in np.array_split(part, min(len(part), groups)):
      found = _wrong_along(
        value,
        [variables[i] for i in group],
        [gradients[i] for i in group],
        functools.partial(_otherwise, error, of_all, precision),
        precision,
      )
      if found:
        of_half = search(group, 2) if len(group) > 1 else None
        return of_half or (variables[group[0]].name, *found)
    return None

  return search(range(len(variables)), precision.groups)


def _wrong_along(
  value: Callable[[], Any],
  variables: Sequence[tf.Variable],
  gradients: Sequence[np.ndarray],
  otherwise: Callable[..., float | None],
  precision: _Precision,
) -> tuple[float, float] | None:
  """Finds a direction in which the gradients of a group are wrong.

  Args:
    value: As in `wrong`.
    variables: A group of variables, which move together.
    gradients: The gradient to check for each of them.
    otherwise: `_otherwise` with its first arguments.
    precision: The precision.

  Returns:
    The claimed and the measured derivative along the direction. None if the
    gradients are right.
  """
  before = [v.numpy() for v in variables]
  # A wrong gradient is wrong in most directions; kinks disturb only a few.
  excess = 0
  for seed in itertools.count():
    noise, claimed, spread = _direction(before, gradients, seed, precision)
    at = functools.partial(_at, value, variables, before, noise)
    try:
      measured = otherwise(at, claimed, spread)
    finally:
      at(0.0)
    excess += -1 if measured is None else 1
    if excess == -precision.excess:
      return None
    if excess == _EXCESS:
      return claimed, measured


def _otherwise(
  error: float,
  of_all: float,
  precision: _Precision,
  at: Callable[[float], float],
  claimed: float,
  spread: float,
) -> float | None:
  """Measures a derivative; returns it if it differs from the claimed one.

  Steps should be small, but large enough to exceed rounding errors. If the
  differences at several steps disagree, the function has kinks, and they prove
  nothing.

  Args:
    error: The rounding error of a value.
    of_all: The tolerance for rounding errors.
    precision: The precision.
    at: Returns the value after a step along a direction.
    claimed: The derivative along it, by the gradient.
    spread: The derivative's standard deviation over directions.
  """
  before, size, step = None, abs(claimed), 2.0 * precision.largest
  allowed = precision.of_spread * spread + of_all
  for _ in range(4):
    goal = error / (0.2 * (precision.tolerance * size + allowed) + 1e-30)
    step = np.clip(goal, 1e-6 * precision.largest, step / 2)
    measured = (at(step) - at(-step)) / (2 * step)
    size = max(abs(measured), abs(claimed))
    tolerance = precision.tolerance * size + allowed + error / step
    off = abs(measured - claimed)
    if off <= tolerance:
      return None
    if before is not None and abs(measured - before) < min(
      0.2 * size, 0.5 * off
    ):
      # Dense kinks, such as those of 100 layers, explain differences at large
      # steps. Measure again with the least step that exceeds rounding errors.
      least = max(5 * error / off, 1e-6 * precision.largest)
      if least < step / 4:
        closer = (at(least) - at(-least)) / (2 * least)
        if abs(closer - claimed) < 0.5 * off:
          return None
      return measured
    before = measured
  return None


def _direction(
  values: Sequence[np.ndarray],
  gradients: Sequence[np.ndarray],
  seed: int,
  precision: _Precision,
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
    sandbox.renew()  # Noise for a gigabyte takes seconds.
    noise = [*_noise(values, 8 * seed + attempt)]
    sums, spreads = np.transpose(
      [_moments(g, x) for g, x in zip(gradients, noise, strict=True)]
    )
    # Move variables with large gradients less, so that none dominates.
    least = precision.least * max(spreads)
    goal = max(min(spreads[spreads > 0], default=0), least)
    shares = goal / np.maximum(spreads, goal or 1.0)
    shares[spreads == 0] = 1.0
    for i, share in enumerate(shares):  # One by one, to save memory.
      noise[i] = np.asarray(share * noise[i], noise[i].dtype)
    derivative = np.dot(shares, sums)
    spread = np.linalg.norm(shares * spreads)
    if best is None or abs(derivative) * best[2] > abs(best[1]) * spread:
      best = noise, derivative, spread
    if abs(derivative) >= 20 * precision.of_spread * spread:
      break
  return best


def _moments(
  gradient: np.ndarray, direction: np.ndarray
) -> tuple[float, float]:
  """Returns the sum of gradient times direction, and the norm of its terms."""
  if np.iscomplexobj(gradient):
    terms = np.real(np.conj(gradient) * np.complex128(direction))
  else:
    terms = np.float64(gradient) * np.float64(direction)
  return np.sum(terms), np.linalg.norm(terms)


def _rounding(
  value: Callable[[], Any],
  variables: Sequence[tf.Variable],
  precision: _Precision,
) -> tuple[float, float]:
  """Estimates a function's rounding error by its deviation from a line.

  Returns:
    The rounding error, and the magnitude of the function's value. Values after
    large steps count too, because terms may cancel in the others.
  """
  noise = precision.rounding
  steps = np.array([-3, -2, -1, 1, 2, 3])
  before = [v.numpy() for v in variables]
  at = functools.partial(_at, value, variables, before, [*_noise(before)])
  errors, sizes = [], []
  # A function that adds a large number is flat for very small steps.
  for size in (noise, *[1000 * noise] * (noise < 1e-12)):
    try:
      values = [at(step * size) for step in steps]
      sizes += [abs(at(step * precision.largest)) for step in (-1, 1)]
    finally:
      at(0.0)
    rest = values - np.polyval(np.polyfit(steps, values, 1), steps)
    largest = np.max(np.abs(values))
    sizes.append(largest)
    least = min(noise, 3e-7) / 3 * largest
    errors.append(least + 3 * np.max(np.abs(rest)))
  return max(errors), max(sizes)


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
