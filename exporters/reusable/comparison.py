"""Compares observations of a live model with observations of its export.

`COMPARISONS` names the kinds of comparison and their tolerances.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]
# The largest values in the columns and in the rows of a matrix.
_Largest = tuple[np.ndarray, np.ndarray]
ONLY = "the tensor"  # The name of an output that is a single Tensor.
INPUT = "the input"  # How the names of gradients for inputs begin.
XLA = "compilation under XLA"
EMPTY = "empty batch"
SEEDED = "one seed"
SAMPLED = "distribution"
# Relative precision of the dtypes that are coarser than the tolerances.
_PRECISION = {"bfloat16": 2**-7, "float16": 2**-10}
# The tolerances of outputs in double precision are multiplied by `_FINER`, the
# ratio of the precisions. Larger rounding errors raise them again, because a
# model may compute in single precision.
_DOUBLE, _FINER = (np.float64, np.complex128), 2.0**-29
# If rounding errors of other slices reach a slice, its tolerance is relative to
# at most this share of the array's largest value.
_OTHER_SLICES = 0.1
_TIMES, _MOST, _UNSEEN = 4, 100, 0.01  # See `compare` and `Comparison`.
_CONSTANTS = (bool, int, float, complex, np.ndarray, np.generic)
_TINY = np.finfo(np.float64).tiny
_BLOCK = 2**18  # Values in a block; larger blocks need fresh memory.


class Comparison(NamedTuple):
  """One kind of comparison between a model and its export.

  Values that are not floats must be equal.

  Attributes:
    description: What must be the same.
    why: The reason for the tolerance.
    of_array: Tolerance relative to the largest value of a slice. A slice is a
      column, the values at one index of the last axis; or a row, the values at
      one index of all other axes. An array with one axis is one column.
    of_all: Tolerance relative to the largest value of all arrays of the same
      observation. Gradients for inputs have another scale, so they have a
      largest value of their own. The tolerance is added to that of `of_array`,
      up to `_TIMES` the change of the array by rounding errors. The share
      `_UNSEEN` of it is always added.
  """

  description: str
  why: str
  of_array: float = 0.0
  of_all: float = 0.0


# In the order of the checks.
COMPARISONS = {
  "interface": Comparison(
    "The export and each sub-object can be called and have variables, trainable"
    " variables and regularization losses.",
    "An attribute exists or does not.",
  ),
  "variables": Comparison(
    "Names, order, shapes and values of all variables. Calls change none that"
    " is trainable.",
    "Saving copies bits.",
  ),
  "trainable variables": Comparison(
    "Which variables are trainable, and their order; which ones gradient tapes"
    " watch.",
    "Exact comparison.",
  ),
  "regularization losses": Comparison(
    "The sum of the regularization losses, and its gradient for every trainable"
    " variable, with other weights too.",
    "Both sum in the same order in float32, whose precision is 6e-8.",
    1e-6,
  ),
  "outputs": Comparison(
    "Outputs in inference, in training without randomness, with changed"
    " hyperparameters and with other weights, for inputs of several sizes and"
    " lists of each length; batches of 1, 2 and 36 (300 of small models) in"
    " inference, of 8 (36) in training; unknown dimensions of 1 or 2, and twice"
    " those of an example.",
    "The live model computes op by op and the export in a graph, which may sum"
    " float32 values in another order.",
    1e-5,
  ),
  "gradients": Comparison(
    "The gradient of a scalar of the outputs for every trainable variable and"
    " every floating-point input: of the last example (of each length of a"
    " list), with other weights of a batch of 8 (36 of small models), and with"
    " changed hyperparameters. Where training has rates, that batch is"
    " differentiated with noise. An element counts up to 1, one that is not"
    " finite not at all.",
    "Rounding errors accumulate over the forward and the backward pass; some"
    " gradients, such as that of a bias before a softmax, are zero up to"
    " rounding.",
    1e-3,
    1e-5,
  ),
  "updates": Comparison(
    "Values of the non-trainable variables, such as moving averages, after a"
    " call, also from other values.",
    "Moving averages take differences of large sums over a batch.",
    1e-4,
    1e-5,
  ),
  "hyperparameters": Comparison(
    "Each hyperparameter changes an output or an update.",
    "An effect exists or does not.",
  ),
  "randomness": Comparison(
    "Where training is random: two calls differ, and move the same variables."
    " No op of the export has a seed of its own, which all replicas would"
    " share.",
    "They differ or do not.",
  ),
  SEEDED: Comparison(
    "Where training is random: with the same seeds in all random ops, two calls"
    " are equal, and the model and its export draw as often. Outputs, gradients"
    " and updates with these seeds are compared, too, with the defaults, and"
    " with other rates, other weights and a larger batch; if nothing else makes"
    " training repeat, also with other hyperparameters.",
    "They are equal or not.",
  ),
  SAMPLED: Comparison(
    "Where random ops are in a loop or a branch: means and standard deviations"
    " of outputs, gradients and updates over at least 256 calls. There are"
    " enough calls to find outputs with standard deviations x 1.1 or means"
    " shifted by one. 256 calls have other weights and a larger batch.",
    "Rank sum tests. Equal models fail one in a million times at most."
    " Differences of the means within the tolerance do not count.",
    1e-3,
    1e-5,
  ),
  "hub.KerasLayer": Comparison(
    "A hub.KerasLayer with trainable=True and changed arguments: outputs in"
    " training, regularization losses, trainable weights.",
    "It calls the same function.",
    1e-5,
  ),
  "other forms": Comparison(
    "The other forms of the input that the export takes, such as lists and"
    " other dtypes, in inference, and in training with fixed seeds.",
    "Each calls the same function. Gradients are compared where that is not"
    " seen in its graph.",
    1e-5,
  ),
  EMPTY: Comparison(
    "A batch of 0 rows in training, as a replica gets if the last batch is"
    " small: The outputs are empty, and no variable changes. Allowed are"
    " changes that every batch makes, as to temperatures and averages of"
    " weights, sums over rows, and what another batch undoes.",
    "Exact comparison; allowed changes agree within a thousandth.",
  ),
  XLA: Comparison(
    "XLA can compile a train step, and compiles it once: no gradient has a"
    " branch or takes a compile-time constant from the model. Strings and a"
    " loop of unlimited length, which XLA cannot compile, are noted only.",
    "Found in the graph of the train step; nothing is compiled.",
  ),
  "signatures": Comparison(
    "Each signature returns what a call of the export, or of its sub-object,"
    " returns.",
    "It calls the same function in another graph.",
    1e-5,
  ),
  "saved again": Comparison(
    "The signature of the loaded export, saved again and loaded while the first"
    " export is moved away.",
    "It is the same graph.",
    1e-5,
  ),
}


def named(structure: Any, path: str = "") -> dict[str, Any]:
  """Flattens outputs or inputs into Tensors by path; keeps None."""
  if isinstance(structure, Mapping):
    items = {
      f"{path}/{str(key).replace('/', '//')}": structure[key]
      for key in sorted(structure)
    }
  elif isinstance(structure, (list, tuple)):
    items = {f"{path}/[{i}]": value for i, value in enumerate(structure)}
  elif isinstance(structure, (tf.RaggedTensor, tf.SparseTensor)):
    items = {f"{path}/{x}": getattr(structure, x) for x in _parts(structure)}
  else:
    if isinstance(structure, _CONSTANTS):  # A graph returns Tensors instead.
      structure = tf.convert_to_tensor(structure)
    return {path.removeprefix("/") or ONLY: structure}
  return {
    name: tensor
    for inner, value in items.items()
    for name, tensor in named(value, inner).items()
  }


def _parts(tensor: tf.RaggedTensor | tf.SparseTensor) -> Sequence[str]:
  if isinstance(tensor, tf.RaggedTensor):
    return "flat_values", "nested_row_splits"
  return "indices", "values", "dense_shape"


def compare(
  kind: str,
  expected: Arrays,
  actual: Arrays,
  perturbed: Sequence[Arrays] | None = None,
  most: float = _MOST,
) -> tuple[float, list[str]]:
  """Compares observations of two models.

  Args:
    kind: A key of `COMPARISONS`.
    expected: The observation of the first model.
    actual: The observation of the second model.
    perturbed: Observations of the second model with weights and inputs changed
      by rounding errors. A slice may differ by `_TIMES` its change in them, up
      to the tolerance for a slice whose largest value is `_OTHER_SLICES` of the
      array's, or in gradients `most` times the array's. With None, rounding
      errors are assumed to reach all columns, and rows are not compared.
    most: See `perturbed`.

  Returns:
    The largest difference, relative to the same values as the tolerance, and
    descriptions of what is wrong.
  """
  problems = [f"{name} is missing" for name in expected if name not in actual]
  problems += [
    f"{name} is new"
    for name, array in actual.items()
    # A graph returns zeros where an eager tape returns no gradient, such as for
    # variables in the other branch of a `tf.cond`.
    if name not in expected and (kind != "gradients" or array.any())
  ]
  common = [name for name in expected if name in actual]
  of_all = COMPARISONS[kind].of_all
  sizes_of = {name: _sizes(expected[name]) for name in common}
  largest = _largest_of_all(sizes_of)
  most = most if kind == "gradients" else _OTHER_SLICES
  worst = 0.0
  for name in common:
    old, new = expected[name], actual[name]
    if old.shape != new.shape or old.dtype != new.dtype:
      problems.append(
        f"{name} is {new.dtype}{list(new.shape)}, and was"
        f" {old.dtype}{list(old.shape)}"
      )
    elif not is_inexact(old):
      if not np.array_equal(old, new):
        problems.append(f"{name} differs")
    elif len(differences := _differences(old, new)):
      noise = _noise(new, [x[name] for x in perturbed or () if name in x])
      # Perturbations are too small to show rounding errors in coarser dtypes.
      is_seen = perturbed is not None and old.dtype.name not in _PRECISION
      judged = slice(None if is_seen else as_rows(old).shape[1])
      differences, sizes, noise = (
        x[judged] for x in (differences, sizes_of[name], noise)
      )
      of_array = _of_array(kind, old)
      of_others = of_all * largest[name.startswith(INPUT)]
      allowed = _allowed(of_array * sizes, of_others, noise, most, is_seen)
      if is_seen and kind == "outputs" and old.dtype in _DOUBLE:
        fine = np.fmax(_FINER * of_array * sizes, _TIMES * noise)
        allowed = np.minimum(allowed, fine)
      # Scaled so that `of_array` is the limit, or relative to the values if
      # there is no tolerance.
      scale = allowed / of_array if of_array else sizes
      relative = differences / np.maximum(scale, _TINY)
      i = int(np.argmax(relative))  # The first NaN, if there is one.
      worst = max(worst, float(relative[i]))
      # Not `>`, which is false for NaN.
      if not differences[i] <= allowed[i]:
        place = f" in {_slice(old.shape, i)}" if old.size > 1 else ""
        problem = (
          f"{name} differs by {differences[i]:.2g}{place}; its largest value"
          f"{' there' if place else ''} is {sizes[i]:.2g}"
        )
        if noise[i] > of_array * sizes[i]:
          problem += f"; rounding errors alone change it by {noise[i]:.2g}"
        problems.append(problem)
  return worst, problems


def unseen(gradients: Arrays) -> set[str]:
  """Returns the names of the gradients that `compare` cannot judge.

  These are gradients that are zero, and gradients for inputs that are no larger
  than the tolerance that other gradients always add.
  """
  names = {name for name, x in gradients.items() if not x.any()}
  if any(name.startswith(INPUT) for name in gradients):
    sizes_of = {name: _sizes(x) for name, x in gradients.items()}
    least = _UNSEEN * COMPARISONS["gradients"].of_all
    least *= _largest_of_all(sizes_of)[True]
    names |= {
      name
      for name, sizes in sizes_of.items()
      if name.startswith(INPUT) and sizes.max(initial=0.0) <= least
    }
  return names


def _largest_of_all(sizes_of: Arrays) -> dict[bool, float]:
  """Returns the largest values, by whether a gradient is for an input."""
  largest = {False: 0.0, True: 0.0}
  for name, sizes in sizes_of.items():
    is_input = name.startswith(INPUT)
    largest[is_input] = max(largest[is_input], sizes.max(initial=0.0))
  # All gradients for inputs may be nothing but rounding errors.
  largest[True] = max(largest[True], 0.1 * largest[False])
  return largest


def _allowed(
  tolerance: np.ndarray,
  of_others: float,
  noise: np.ndarray,
  most: float,
  is_seen: bool,
) -> np.ndarray:
  """Returns by how much each slice of an array may differ.

  Args:
    tolerance: `of_array` times the largest value of each slice.
    of_others: `of_all` times the largest value of all arrays.
    noise: How much perturbations change each slice.
    most: The limit of what rounding errors allow, as a multiple of the largest
      `tolerance`.
    is_seen: Whether perturbations show all rounding errors.
  """
  largest = tolerance.max()
  reached = np.fmin(_TIMES * noise, most * largest)
  if is_seen:
    seen = max(_TIMES * noise.max(), _UNSEEN * of_others)
    of_others = min(of_others, seen)
  else:
    reached = np.maximum(reached, _OTHER_SLICES * largest)
  return np.maximum(tolerance, reached) + of_others


def _noise(new: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
  """Returns how much rounding errors change each slice; ignores NaN."""
  changes = [_differences(new, x) for x in others if x.shape == new.shape]
  nothing = np.zeros(sum(as_rows(new).shape))
  return np.fmax.reduce([nothing, *filter(len, changes)])


def _of_array(kind: str, array: np.ndarray) -> float:
  """Returns the `of_array` of a kind, raised for the dtypes of `_PRECISION`."""
  of_array = COMPARISONS[kind].of_array
  errors = 16 if kind == "gradients" else 2  # Each layer adds errors.
  precision = _PRECISION.get(array.dtype.name, 0.0)
  return of_array and max(of_array, errors * precision)


def is_inexact(array: np.ndarray) -> bool:
  """Tells whether an array has values that may differ by rounding."""
  return array.dtype.kind in "fc" or array.dtype.name in _PRECISION


def as_rows(array: np.ndarray) -> np.ndarray:
  """Views an array as a matrix with the rows that `Comparison` defines."""
  if array.ndim < 2:
    return array.reshape(-1, 1)
  return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def blocks(rows: np.ndarray) -> Iterator[slice]:
  """Yields slices of rows, each a block that is compared at a time."""
  count = max(1, _BLOCK // max(1, rows.shape[1]))
  yield from (slice(i, i + count) for i in range(0, len(rows), count))


def _differences(old: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Returns the largest difference in each slice; [] for equal arrays.

  NaN equals NaN. The difference between NaN and a number is NaN.
  """
  old, new = as_rows(old), as_rows(new)

  def largest(block: slice) -> _Largest:
    x, y = old[block], new[block]
    # The difference of two infinite values would be NaN.
    return _largest(
      y - x, lambda apart: np.where((x == y) | (x != x) & (y != y), 0, apart)
    )

  with np.errstate(all="ignore"):
    found = [
      (block, largest(block))
      for block in blocks(old)
      if not np.array_equal(old[block], new[block])
    ]
  return _by_slice(old, found) if found else np.array([])


def _sizes(array: np.ndarray) -> np.ndarray:
  """Returns the largest finite absolute value in each slice.

  Slices without a finite value, and slices of exact values, have 0.
  """
  rows = as_rows(array)
  found = [
    (block, _largest(rows[block], lambda x: np.where(np.isfinite(x), x, 0)))
    for block in blocks(rows)
    if is_inexact(array)
  ]
  return _by_slice(rows, found)


def _by_slice(
  rows: np.ndarray, largest: Iterable[tuple[slice, _Largest]]
) -> np.ndarray:
  """Joins the largest values of blocks, first of columns and then of rows."""
  of_columns, of_rows = np.zeros(rows.shape[1]), np.zeros(len(rows))
  for block, found in largest:
    of_columns = np.maximum(of_columns, found[0])
    of_rows[block] = found[1]
  return np.concatenate([of_columns, of_rows])


def _slice(shape: Sequence[int], i: int) -> str:
  """Formats slice number `i`, in the order of `_by_slice`, as an index."""
  others, columns = shape[:-1], shape[-1]
  if not others:
    others, columns = shape, 1
  index = [":"] * len(shape)
  if i >= columns:
    index[: len(others)] = np.unravel_index(i - columns, others)
  elif columns > 1:
    index[-1] = i
  return f"[{', '.join(map(str, index))}]"


def _largest(
  block: np.ndarray, finite: Callable[[np.ndarray], np.ndarray]
) -> _Largest:
  """Returns the largest absolute values in columns and rows of a block.

  NaN counts as the largest value. A block with a value that is not finite is
  first replaced by what `finite` returns.
  """
  columns = _magnitudes(block, 0)
  if not np.isfinite(columns).all():
    block = finite(block)
    columns = _magnitudes(block, 0)
  return columns, _magnitudes(block, 1)


def _magnitudes(rows: np.ndarray, axis: int) -> np.ndarray:
  """Returns the largest absolute values along an axis; NaN is the largest."""
  if not rows.size:
    return np.zeros(rows.shape[1 - axis])
  if rows.dtype.kind == "f":  # Faster than `abs`, which needs memory.
    largest = np.maximum(np.max(rows, axis), -np.min(rows, axis))
  else:  # Complex numbers have no order.
    largest = np.max(np.abs(rows), axis)
  return largest.astype(np.float64)
