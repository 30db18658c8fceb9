"""Compares observations of a live model with observations of its export.

`COMPARISONS` names the kinds of comparison and their tolerances.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]
ONLY = "the tensor"  # The name of an output that is a single Tensor.
INPUT = "the input"  # How the names of gradients for inputs begin.
XLA = "compilation under XLA"
EMPTY = "empty batch"
SEEDED = "one seed"
SAMPLED = "distribution"
# Relative precision of the dtypes that are coarser than the tolerances.
_PRECISION = {"bfloat16": 2**-7, "float16": 2**-10}
# The tolerance of a column is relative to at most this share of the array's
# largest value, if rounding errors of other columns reach it.
_OTHER_COLUMNS = 0.1
_TIMES, _MOST = 4, 100  # See `compare`.
_TINY = np.finfo(np.float64).tiny
_BLOCK = 2**18  # Values compared at a time; larger blocks need fresh memory.


class Comparison(NamedTuple):
  """One kind of comparison between a model and its export.

  Values that are not floats must be equal.

  Attributes:
    description: What must be the same.
    why: The reason for the tolerance.
    of_array: Tolerance relative to the largest value of a column. Columns are
      indexed by the last axis; an array with one axis is one column.
    of_all: Tolerance relative to the largest value of all arrays of the same
      observation but gradients for inputs, which have another scale. It is
      added to `of_array`.
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
    "Names, order, shapes and values of all variables.", "Saving copies bits."
  ),
  "trainable variables": Comparison(
    "Which variables are trainable, and their order; which ones gradient tapes"
    " watch.",
    "Exact comparison.",
  ),
  "regularization losses": Comparison(
    "The sum of the regularization losses, and its gradient for every trainable"
    " variable.",
    "Both sum in the same order in float32, whose precision is 6e-8.",
    1e-6,
  ),
  "outputs": Comparison(
    "Outputs in inference, in training without randomness, with changed"
    " hyperparameters and with all weights halved, for inputs of several sizes"
    " and batches of 1 and 2.",
    "The live model computes op by op and the export in a graph, which may sum"
    " float32 values in another order.",
    1e-5,
  ),
  "gradients": Comparison(
    "The gradient of a scalar of the outputs for every trainable variable and"
    " every floating-point input.",
    "Rounding errors accumulate over the forward and the backward pass; some"
    " gradients, such as that of a bias before a softmax, are zero up to"
    " rounding.",
    1e-3,
    1e-5,
  ),
  "updates": Comparison(
    "Values of the non-trainable variables, such as moving averages, after a"
    " call.",
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
    " and updates with these seeds are compared, too, with the defaults and"
    " with other rates.",
    "They are equal or not.",
  ),
  SAMPLED: Comparison(
    "Where random ops are in a loop or a branch: means and standard deviations"
    " of outputs, gradients and updates over at least 256 calls. There are"
    " enough calls to find outputs with standard deviations x 1.1 or means"
    " shifted by one.",
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
    " small: The outputs are empty, and no variable changes.",
    "Exact comparison.",
  ),
  XLA: Comparison(
    "XLA can compile a train step, and compiles it once: no gradient has a"
    " branch or takes a compile-time constant out of the model. Strings and a"
    " loop of unlimited length, which XLA cannot compile, are noted only.",
    "Found in the graph of the train step; nothing is compiled.",
  ),
  "serving_default": Comparison(
    "The signature serving_default returns what a call of the export returns.",
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
    perturbed: What the second model does with weights and inputs changed by
      rounding errors. An array of gradients that changes is allowed to differ
      by `_TIMES` as much, and by `most` times its tolerance at most. So is a
      column of another kind, up to the tolerance of `_OTHER_COLUMNS`. None
      assumes that rounding errors of other columns reach it.
    most: See `perturbed`.

  Returns:
    The largest difference, relative to the same values as the tolerance, and
    descriptions of what is wrong.
  """
  problems = [f"{name} is missing" for name in expected if name not in actual]
  problems += [f"{name} is new" for name in actual if name not in expected]
  common = [name for name in expected if name in actual]
  of_all = COMPARISONS[kind].of_all
  columns_of = {name: _columns(expected[name]) for name in common}
  largest_of_all = max(
    (
      columns.max(initial=0.0)
      for name, columns in columns_of.items()
      if not name.startswith(INPUT)
    ),
    default=0,
  )
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
      of_array = _of_array(kind, old)
      columns = columns_of[name]
      noise = [x[name] for x in perturbed or () if name in x]
      is_assumed = perturbed is None or kind == "gradients"
      reached = _reached(new, columns, of_array, None if is_assumed else noise)
      sizes = np.maximum(columns, reached)
      tolerance = of_array * sizes + of_all * largest_of_all
      shares = (_share(new, x, sizes) for x in noise if kind == "gradients")
      rounding = max(shares, default=0)
      share = max(of_array, min(_TIMES * rounding, most * of_array))
      allowed = tolerance + (share - of_array) * sizes
      # Relative to the tolerance or, if there is none, to the values.
      scale = tolerance / of_array if of_array else sizes
      relative = differences / np.maximum(scale, _TINY)
      i = int(np.argmax(relative))  # The first NaN, if there is one.
      worst = max(worst, float(relative[i]))
      # Not `>`, which is false for NaN.
      if not differences[i] <= allowed[i]:
        column = f" in column {i}" if len(differences) > 1 else ""
        problems.append(
          f"{name} differs by {differences[i]:.2g}{column}; its largest value"
          f"{' there' if column else ''} is {columns[i]:.2g}"
          + (
            f"; rounding errors alone change it by {rounding:.2g} of that"
            if rounding > of_array
            else ""
          )
        )
  return worst, problems


def _reached(
  new: np.ndarray,
  columns: np.ndarray,
  of_array: float,
  noise: Sequence[np.ndarray] | None,
) -> np.ndarray:
  """Returns the sizes at least at which columns are compared, by rounding."""
  most = _OTHER_COLUMNS * columns.max()
  if noise is None:
    return most
  changes = [_differences(new, x) for x in noise if x.shape == new.shape]
  seen = np.max([0 * columns, *filter(len, changes)], axis=0)
  return np.fmin(most, _TIMES / of_array * seen)


def _share(old: np.ndarray, new: np.ndarray, sizes: np.ndarray) -> float:
  """Returns the largest finite difference, as a share of `sizes`."""
  if old.shape != new.shape:
    return 0.0
  differences = _differences(old, new)
  if not len(differences):
    return 0.0
  return float(np.nan_to_num(differences / np.maximum(sizes, _TINY)).max())


def _of_array(kind: str, array: np.ndarray) -> float:
  """Returns the tolerance of an array: at least two rounding errors."""
  of_array = COMPARISONS[kind].of_array
  errors = 16 if kind == "gradients" else 2  # Each layer adds some.
  precision = _PRECISION.get(array.dtype.name, 0.0)
  return of_array and max(of_array, errors * precision)


def is_inexact(array: np.ndarray) -> bool:
  """Tells whether an array has values that may differ by rounding."""
  return array.dtype.kind in "fc" or array.dtype.name in _PRECISION


def _by_column(array: np.ndarray) -> np.ndarray:
  """Views an array as a matrix with the columns that `Comparison` defines."""
  if array.ndim < 2:
    return array.reshape(-1, 1)
  return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _blocks(array: np.ndarray) -> Iterator[slice]:
  rows = max(1, _BLOCK // max(1, array.shape[1]))
  return (slice(i, i + rows) for i in range(0, len(array), rows))


def _differences(old: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Returns the largest difference in each column; [] for equal arrays.

  NaN equals NaN. The difference between NaN and a number is NaN.
  """
  old, new = _by_column(old), _by_column(new)
  with np.errstate(all="ignore"):
    largest = [
      _apart(old[block], new[block]).astype(np.float64)
      for block in _blocks(old)
      if not np.array_equal(old[block], new[block])
    ]
  return np.max(largest, axis=0) if largest else np.array([])


def _apart(old: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Returns the largest difference in each column of a block."""
  apart = new - old
  largest = _magnitudes(apart)
  if np.isfinite(largest).all():
    return largest
  # The difference of two infinite values would be NaN.
  same = (old == new) | (np.isnan(old) & np.isnan(new))
  return np.max(np.abs(np.where(same, 0, apart)), axis=0)


def _columns(array: np.ndarray) -> np.ndarray:
  """Returns the largest finite absolute value in each column.

  Columns without a value, or of exact values, have 0.
  """
  rows = _by_column(array)
  if not is_inexact(array) or not array.size:
    return np.zeros(rows.shape[1])
  largest = []
  for block in map(rows.__getitem__, _blocks(rows)):
    found = _magnitudes(block)
    if not np.isfinite(found).all():
      found = np.max(np.where(np.isfinite(block), np.abs(block), 0), axis=0)
    largest.append(found)
  return np.max(largest, axis=0).astype(np.float64)


def _magnitudes(rows: np.ndarray) -> np.ndarray:
  """Returns the largest absolute value in each column; NaN if there is one."""
  if rows.dtype.kind != "f":  # Complex numbers have no order.
    return np.max(np.abs(rows), axis=0)
  # Faster than `abs`, which needs memory.
  return np.maximum(np.max(rows, axis=0), -np.min(rows, axis=0))
