"""Compares random models: with their seeds fixed, or by their distributions.

Ops in a straight line get the seeds (1, 1), (1, 2), … in the order in which a
call runs them, on both sides. Each op then draws the same numbers. Where ops
are in a loop or in a branch, two samples of calls are compared.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import itertools
import math
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from exporters.reusable import comparison
from exporters.reusable import graphs
from exporters.reusable import private_api
from exporters.reusable.private_api import graph_pb2

PILOT_CALLS = 128
_LEAST_CALLS, _MOST_CALLS = 256, 2**14
_FALSE_ALARM = 1e-6  # Of equal models, in all tests together.
_BOUND = 1.1  # What `calls_to_compare` tells apart,
_SIGMAS = 9.0  # by so many standard errors, of which five make an alarm.
_MOST_VALUES = 2**20  # Of an array, in a sample.
_SAVED_MODEL = "saved_model.pb"


def draws(graph: graph_pb2.GraphDef) -> int:
  """Counts the random ops that a call of a graph runs.

  Returns:
    -1 if `_write_seeds` cannot number them: a random op is in a loop or a
    branch, or has no seeds, or a function with own gradients, of which there
    can be no copy, is called after other random ops.
  """
  by_name = graphs.functions(graph)

  @functools.cache
  def has_gradient(name: str) -> bool:
    return any(
      "_gradient_op_type" in node.attr
      or any(has_gradient(x) for x in graphs.called(node) if x in by_name)
      for node in by_name[name].node_def
    )

  @functools.cache
  def count(name: str) -> int:
    total = 0
    for node in by_name[name].node_def if name else graph.node:
      names = [name for name in graphs.called(node) if name in by_name]
      drawn = [count(name) for name in names]
      if graphs.RANDOM.match(node.op):
        drawn = [1 if graphs.SEEDED.match(node.op) else -1]
      elif any(drawn):
        is_call = node.op in graphs.CALLS or node.op in by_name
        if not is_call or (total and any(map(has_gradient, names))):
          return -1
      if -1 in drawn:
        return -1
      total += sum(drawn)
    return total

  return count("")


def seeds(export_dir: str) -> int:
  """Counts the ops of an export that draw the same wherever it is loaded."""
  _, library = _read(export_dir)
  return sum(
    any(node.attr[name].i for name in graphs.SEEDS)
    for function in library.function
    for node in function.node_def
    if graphs.SEEDED.match(node.op)
  )


def _read(export_dir: str) -> tuple[Any, Any]:
  """Returns a SavedModel's message, and the functions in it."""
  saved_model = private_api.saved_model_pb2.SavedModel.FromString(
    pathlib.Path(export_dir, _SAVED_MODEL).read_bytes()
  )
  return saved_model, saved_model.meta_graphs[0].graph_def.library


@contextlib.contextmanager
def with_seeds(
  export_dir: str, load: Callable[[str], Any]
) -> Iterator[Callable[[], Any]]:
  """Makes a function that loads an export with seeds in its random ops."""
  with tempfile.TemporaryDirectory() as directory:

    @functools.cache
    def load_it() -> Any:
      for path in pathlib.Path(export_dir).iterdir():
        if path.name != _SAVED_MODEL:
          os.symlink(path.absolute(), os.path.join(directory, path.name))
      saved_model, library = _read(export_dir)
      _write_seeds(library)
      pathlib.Path(directory, _SAVED_MODEL).write_bytes(
        saved_model.SerializeToString()
      )
      return load(directory)

    yield load_it


def _write_seeds(library: Any) -> None:
  """Numbers the random ops that a call of each function runs, from 1 on.

  A function that is called after other random ops gets a copy, with the next
  numbers. Others stay: TensorFlow finds the Tensors that gradient functions
  capture by the name of the function.
  """
  functions = list(library.function)
  by_name = {f.signature.name: f for f in functions}

  @functools.cache
  def is_random(name: str) -> bool:
    return any(
      graphs.SEEDED.match(node.op)
      or any(is_random(x) for x in graphs.called(node) if x in by_name)
      for node in by_name[name].node_def
    )

  @functools.cache
  def last_number(name: str) -> int:
    return number(by_name[name], 0)

  def number(function: graphs.Function, count: int) -> int:
    for node in function.node_def:
      callee = graphs.callee(node, by_name)
      if graphs.SEEDED.match(node.op):
        count += 1
        for name, seed in zip(graphs.SEEDS, (1, count), strict=True):
          node.attr[name].i = seed
      elif callee and is_random(callee.signature.name):
        last = last_number(callee.signature.name)
        if count:
          copy = library.function.add()
          copy.CopyFrom(callee)
          copy.signature.name += f"_{len(library.function)}"
          node.attr["f"].func.name = copy.signature.name
          by_name[copy.signature.name] = copy
          last = number(copy, count)
        count = last
    return count

  for function in functions:
    last_number(function.signature.name)


def sample(runs: Iterable[comparison.Arrays], calls: int) -> comparison.Arrays:
  """Stacks observations of calls: `[calls, values]` of each array."""
  most = _MOST_VALUES // calls
  seen = [
    {k: _values(x, most) for k, x in run.items() if x.dtype.kind not in "OSU"}
    for run in itertools.islice(runs, calls)
  ]
  return {
    name: np.stack([run[name] for run in seen])
    for name, values in seen[0].items()
    if all(name in run and run[name].shape == values.shape for run in seen)
  }


def _values(array: np.ndarray, most: int) -> np.ndarray:
  """Returns some values of an array, as float64."""
  flat = array.reshape(-1)[:: max(1, -(-array.size // most))]
  if flat.dtype.kind == "c":
    return np.concatenate([flat.real, flat.imag]).astype(np.float64)
  return flat.astype(np.float64)


def calls_to_compare(pilot: comparison.Arrays) -> int:
  """Returns how many calls tell standard deviations x 1.1 from equal ones.

  Args:
    pilot: A `sample` of outputs.
  """
  counts = [_LEAST_CALLS]
  for x in pilot.values():
    if np.isfinite(x).all() and np.any(x.std(0)):
      squares = _squares(x, x.mean(0), x.std(0))
      above = _share_above(squares, _BOUND**2 * squares)
      above -= (1 - above) / (len(x) - 1)  # Without pairs of a call and itself.
      counts.append(int((_SIGMAS / max(above - 0.5, 1e-9)) ** 2 / 6))
  return min(max(counts), _MOST_CALLS)


def _squares(
  x: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> np.ndarray:
  """Averages, for each call, the squared deviations of values that vary."""
  varies = deviation > 0
  apart = (x - mean)[:, varies] / deviation[varies]
  return np.sum(apart**2, axis=1) / max(1, varies.sum())


def compare(
  expected: comparison.Arrays, actual: comparison.Arrays
) -> list[str]:
  """Compares samples of calls of two models; returns problems.

  Each test is a rank sum of one number for each call. If the distributions are
  equal, all orders of these numbers are equally likely, whatever the
  distributions are. One test for each array takes its squared deviations from
  the mean of both samples. In two further tests the first halves choose a
  direction, in which means or squared deviations differ most, and the second
  halves are projected on it.

  Args:
    expected: What `sample` returns for the live model.
    actual: The same for the export.
  """
  problems = [
    f"{name} is missing, or has another size"
    for name, x in expected.items()
    if name not in actual or actual[name].shape != x.shape
  ]
  if problems or not expected:
    return problems
  both = {k: np.concatenate([x, actual[k]]) for k, x in expected.items()}
  if not all(np.isfinite(x).all() for x in both.values()):
    return ["values of some calls are not finite"]
  how = comparison.COMPARISONS[comparison.SAMPLED]
  sizes = {name: np.abs(x).max(initial=0.0) for name, x in both.items()}
  small = {
    name: how.of_array * size + how.of_all * max(sizes.values())
    for name, size in sizes.items()
  }
  # Two numbers for each test and call, those of the export last.
  tests = []
  for name, x in both.items():
    deviation = np.where(x.std(0) > small[name], x.std(0), 0.0)
    squares = _squares(x, x.mean(0), deviation)
    tests.append((f"standard deviations of {name}", squares))
  x = np.concatenate([*both.values()], axis=1)
  least = np.repeat([*small.values()], [y.shape[1] for y in both.values()])
  tests += _of_directions(x, least + np.finfo(float).tiny)
  count = len(x) // 2
  return [
    f"the {words} over {count} calls differ"
    for words, numbers in tests
    if _apart(*np.split(numbers, 2), _FALSE_ALARM / len(tests))
  ]


def _of_directions(
  x: np.ndarray, small: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields means and squared deviations in the directions that differ most."""
  old, new = np.split(x, 2)
  half = len(old) // 2
  first, second = (
    [y[rows] for y in (old, new)] for rows in (slice(half), slice(half, None))
  )
  center = np.concatenate(first).mean(0)
  deviation = np.concatenate(first).std(0)
  scale = deviation + small
  means = np.subtract(*(y.mean(0) for y in first))
  variances = np.subtract(*(y.var(0) for y in first)) / scale**2
  later = (np.concatenate(second) - center) / scale
  yield "means", later @ np.where(np.abs(means) > small, means / scale, 0.0)
  yield (
    "variances",
    later**2 @ np.where(deviation > small, variances, 0.0),
  )


def _apart(old: np.ndarray, new: np.ndarray, false_alarm: float) -> bool:
  """Tells whether numbers are from different distributions, by rank sum.

  The normal approximation is safe: beyond five standard deviations a rank sum
  of 64 numbers and more has smaller tails.
  """
  sigmas = (_share_above(old, new) - 0.5) * math.sqrt(6 * len(old) - 3)
  return math.erfc(abs(sigmas) / math.sqrt(2)) < false_alarm


def _share_above(old: np.ndarray, new: np.ndarray) -> float:
  """Returns the share of pairs in which `new` is larger; ties count half."""
  ordered = np.sort(old)
  below = [np.searchsorted(ordered, new, side) for side in ("left", "right")]
  return np.mean(below) / len(old)
