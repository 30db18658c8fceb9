"""Compares random models with fixed seeds, or by their distributions.

Without loops and branches, the random ops of both models get the seeds (1, 1),
(1, 2), … in the order in which a call runs them, so both models draw the same
numbers. With random ops in a loop or branch, samples of calls are compared.
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
LEAST_CALLS, _MOST_CALLS = 256, 2**14
_FALSE_ALARM = 1e-6  # Probability that equal models fail a test.
_BOUND = 1.1  # Ratio of standard deviations that must be detected.
_SIGMAS = 9.0  # Standard errors that it must differ by; five fail a test.
_MOST_VALUES = 2**20  # Values of one array in a sample.
_MOST_CORRELATED = 256  # Values whose correlations are compared.
_SIGNIFICANT = 4.0  # Standard errors that a difference of correlations exceeds.
_TIED = 0.01  # Standard deviations within which numbers count as equal.
_SAVED_MODEL = "saved_model.pb"


def draws(graph: graph_pb2.GraphDef) -> int:
  """Counts the random ops that a call of a graph runs.

  Returns:
    The count, or -1 if `_write_seeds` cannot number the ops. Then a random op
    has no seeds or is in a loop or branch.
  """
  by_name = graphs.functions(graph)

  @functools.cache
  def count(name: str) -> int:
    total = 0
    for node in by_name[name].node_def if name else graph.node:
      names = [name for name in graphs.called(node) if name in by_name]
      drawn = [count(name) for name in names]
      if graphs.RANDOM.match(node.op):
        drawn = [1 if graphs.SEEDED.match(node.op) else -1]
      elif any(drawn) and not (node.op in graphs.CALLS or node.op in by_name):
        return -1
      if -1 in drawn:
        return -1
      total += sum(drawn)
    return total

  return count("")


def seeds(export_dir: str) -> int:
  """Counts the random ops of an export that have fixed seeds."""
  graph = _read(export_dir).meta_graphs[0].graph_def
  return sum(
    any(node.attr[name].i for name in graphs.SEEDS)
    for function in graph.library.function
    for node in function.node_def
    if graphs.SEEDED.match(node.op)
  )


def _read(export_dir: str) -> private_api.saved_model_pb2.SavedModel:
  return private_api.saved_model_pb2.SavedModel.FromString(
    pathlib.Path(export_dir, _SAVED_MODEL).read_bytes()
  )


@contextlib.contextmanager
def with_seeds(
  export_dir: str, load: Callable[[str], Any]
) -> Iterator[Callable[[], Any]]:
  """Yields a function that loads an export with numbered seeds."""
  with tempfile.TemporaryDirectory() as directory:

    @functools.cache
    def load_it() -> Any:
      for path in pathlib.Path(export_dir).iterdir():
        if path.name != _SAVED_MODEL:
          os.symlink(path.absolute(), os.path.join(directory, path.name))
      saved_model = _read(export_dir)
      _write_seeds(saved_model.meta_graphs[0])
      pathlib.Path(directory, _SAVED_MODEL).write_bytes(
        saved_model.SerializeToString()
      )
      return load(directory)

    yield load_it


def _write_seeds(meta_graph: private_api.meta_graph_pb2.MetaGraphDef) -> None:
  """Numbers the seeds of random ops in the order in which a call runs them.

  The numbers of each function start at 1. A function that is called after other
  random ops is copied, and the copy gets the next numbers. Other functions keep
  their names, by which TensorFlow finds the Tensors that gradient functions
  capture.
  """
  library = meta_graph.graph_def.library
  functions = list(library.function)
  by_name = graphs.functions(meta_graph.graph_def)

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
          copy = _copy(callee.signature.name, meta_graph)
          node.attr["f"].func.name = copy.signature.name
          by_name[copy.signature.name] = copy
          last = number(copy, count)
        count = last
    return count

  for function in functions:
    last_number(function.signature.name)


def _copy(
  name: str, meta_graph: private_api.meta_graph_pb2.MetaGraphDef
) -> graphs.Function:
  """Adds a copy of a function, with copies of its custom gradients."""
  library = meta_graph.graph_def.library
  objects = meta_graph.object_graph_def
  by_name = graphs.functions(meta_graph.graph_def)
  copy = library.function.add()
  copy.CopyFrom(by_name[name])
  copy.signature.name += f"_{len(library.function)}"
  types = {g.registered_op_type: g for g in library.registered_gradients}
  for i, node in enumerate(copy.node_def):
    if registered := types.get(graphs.gradient(node)):
      old, new = registered.gradient_func, f"{copy.signature.name}_{i}"
      node.attr[graphs.GRADIENT].s = new.encode()
      library.registered_gradients.add(
        gradient_func=new, registered_op_type=new
      )
      gradient = library.function.add()
      gradient.CopyFrom(by_name[old])
      gradient.signature.name = new
      function = objects.concrete_functions[new]
      function.CopyFrom(objects.concrete_functions[old])
      for j, place in enumerate(function.bound_inputs):
        if objects.nodes[place].HasField("captured_tensor"):
          function.bound_inputs[j] = len(objects.nodes)
          objects.nodes.add().CopyFrom(objects.nodes[place])
          tensor = objects.nodes[-1].captured_tensor
          tensor.concrete_function = copy.signature.name
  return copy


def sample(runs: Iterable[comparison.Arrays], calls: int) -> comparison.Arrays:
  """Stacks observations of calls into an array `[calls, values]` per name."""
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
  """Returns up to `most` evenly spaced values of an array, as float64."""
  flat = array.reshape(-1)[:: max(1, -(-array.size // most))]
  if flat.dtype.kind == "c":
    return np.concatenate([flat.real, flat.imag]).astype(np.float64)
  return flat.astype(np.float64)


def calls_to_compare(pilot: comparison.Arrays) -> int:
  """Returns how many calls detect standard deviations that differ by 10%.

  Args:
    pilot: A `sample` of outputs.
  """
  counts = [LEAST_CALLS]
  for x in pilot.values():
    if np.isfinite(x).all() and np.any(x.std(0)):
      squares = _squares(x, x.mean(0), x.std(0))
      above = _share_above(squares, _BOUND**2 * squares)
      above -= (1 - above) / (
        len(x) - 1
      )  # Without pairs of a call with itself.
      counts.append(int((_SIGMAS / max(above - 0.5, 1e-9)) ** 2 / 6))
  return min(max(counts), _MOST_CALLS)


def _squares(
  x: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> np.ndarray:
  """Returns the mean squared z-score of each call, over values that vary."""
  varies = deviation > 0
  apart = (x - mean)[:, varies] / deviation[varies]
  return np.sum(apart**2, axis=1) / max(1, varies.sum())


def compare(
  expected: comparison.Arrays, actual: comparison.Arrays
) -> list[str]:
  """Compares samples of calls of two models; returns problems.

  Each test is a rank sum test of one number per call. If both distributions are
  equal, all orders of these numbers are equally likely, whatever the
  distributions are. One test per array compares squared deviations from the
  mean of both samples. Three further tests choose the direction in which means,
  squared deviations or correlations of the first halves of the samples differ
  most, and compare the second halves projected on it.

  Args:
    expected: The `sample` of the live model.
    actual: The `sample` of the export.
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
  # For each test one number per call: first of the model, then of the export.
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
  """Yields samples projected on the directions in which they differ most."""
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
  # A mask that all rows share differs from separate masks in correlations, but
  # not in means and variances.
  varies = np.flatnonzero(deviation > small)
  varies = varies[:: max(1, -(-len(varies) // _MOST_CORRELATED))]
  old, new = (((y - center) / scale)[:, varies] for y in first)
  apart = (old.T @ old - new.T @ new) / half
  np.fill_diagonal(apart, 0.0)
  apart[np.abs(apart) < _SIGNIFICANT * math.sqrt(2 / half)] = 0.0
  yield "correlations", np.sum(later[:, varies] @ apart * later[:, varies], 1)


def _apart(old: np.ndarray, new: np.ndarray, false_alarm: float) -> bool:
  """Tells by rank sum whether two samples have different distributions.

  The normal approximation is conservative: beyond five standard deviations, the
  rank sum of 64 or more numbers has smaller tails.
  """
  # Numbers that differ only by rounding errors count as equal.
  tied = _TIED * np.concatenate([old, new]).std()
  sigmas = (_share_above(old, new, tied) - 0.5) * math.sqrt(6 * len(old) - 3)
  return math.erfc(abs(sigmas) / math.sqrt(2)) < false_alarm


def _share_above(old: np.ndarray, new: np.ndarray, tied: float = 0.0) -> float:
  """Returns the share of pairs in which `new` is larger.

  Pairs that differ by `tied` at most count half.
  """
  ordered = np.sort(old)
  below = [
    np.searchsorted(ordered, new - tied, "left"),
    np.searchsorted(ordered, new + tied, "right"),
  ]
  return np.mean(below) / len(old)
