"""Compares random models: with their seeds fixed, or by their distributions.

Ops in a straight line get the seeds (1, 1), (1, 2), … in the order in which a
call runs them, on both sides. Each op then draws the same numbers. Where ops
are in a loop or in a branch, two samples of calls are compared.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from exporters.reusable import comparison
from exporters.reusable import graphs
from exporters.reusable import private_api
from exporters.reusable.private_api import graph_pb2

CALLS = 256  # In a sample. The first half chooses what the second half tests.
# Of each of two tests, so that fewer than 1 in 1,000,000 equal models fail.
_FALSE_ALARM = 5e-7
_MOST_VALUES = 4096  # Of an array, in a sample.
_SAVED_MODEL = "saved_model.pb"


def draws(graph: graph_pb2.GraphDef) -> int:
  """Counts the random ops that a call of a graph runs.

  Returns:
    -1 if one is in a loop or a branch, or has no seeds.
  """
  by_name = graphs.functions(graph)

  @functools.cache
  def count(name: str) -> int:
    nodes = by_name[name].node_def if name else graph.node
    counts = [_of_node(node, by_name, count) for node in nodes]
    return -1 if -1 in counts else sum(counts)

  return count("")


def _of_node(
  node: graphs.Node,
  by_name: dict[str, graphs.Function],
  count: Callable[[str], int],
) -> int:
  if graphs.RANDOM.match(node.op):
    return 1 if graphs.SEEDED.match(node.op) else -1
  inner = [count(name) for name in graphs.called(node) if name in by_name]
  if node.op in graphs.CALLS or node.op in by_name:
    return -1 if -1 in inner else sum(inner)
  return -1 if any(inner) else 0


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


def sample(runs: Iterable[comparison.Arrays]) -> comparison.Arrays:
  """Stacks observations of calls: `[calls, values]` of each array."""
  seen = [
    {k: _values(x) for k, x in run.items() if x.dtype.kind not in "OSU"}
    for run in runs
  ]
  return {
    name: np.stack([run[name] for run in seen])
    for name, values in seen[0].items()
    if all(name in run and run[name].shape == values.shape for run in seen)
  }


def _values(array: np.ndarray) -> np.ndarray:
  """Returns some values of an array, as float64."""
  flat = array.reshape(-1)[:: max(1, array.size // _MOST_VALUES)]
  if flat.dtype.kind == "c":
    return np.concatenate([flat.real, flat.imag]).astype(np.float64)
  return flat.astype(np.float64)


def compare(
  expected: comparison.Arrays, actual: comparison.Arrays
) -> list[str]:
  """Compares samples of calls of two models; returns problems.

  The first half of both samples chooses a direction, in which the means or the
  squared deviations of the two differ most. In the second half the calls are
  projected on it. If the distributions are equal, all orders of these numbers
  are equally likely, whatever the distributions are: the rank sum has a known
  distribution, whose tail bounds false alarms.

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
  how = comparison.COMPARISONS[comparison.SAMPLED]
  half = CALLS // 2
  sizes = [np.abs(x).max(initial=0.0) for x in expected.values()]
  small = np.concatenate(
    [
      np.full(x.shape[1], how.of_array * size + how.of_all * max(sizes))
      for x, size in zip(expected.values(), sizes, strict=True)
    ]
  )
  old, new = (
    np.concatenate([x[name] for name in expected], axis=1)
    for x in (expected, actual)
  )
  if not (np.isfinite(old).all() and np.isfinite(new).all()):
    return ["values of some calls are not finite"]
  first = np.concatenate([old[:half], new[:half]])
  center, scale = first.mean(0), first.std(0) + small + np.finfo(float).tiny
  means = [x[:half].mean(0) for x in (old, new)]
  variances = [((x[:half] - center) / scale).var(0) for x in (old, new)]
  of_means = np.where(
    np.abs(means[1] - means[0]) > small, (means[1] - means[0]) / scale, 0.0
  )
  varies = first.std(0) > small
  of_variances = np.where(varies, variances[1] - variances[0], 0.0)
  later = [(x[half:] - center) / scale for x in (old, new)]
  for words, direction, values in (
    ("means", of_means, later),
    ("variances", of_variances, [x**2 for x in later]),
  ):
    if np.any(direction) and _apart(*(x @ direction for x in values)):
      problems.append(f"the {words} over {CALLS} calls differ")
  return problems


def _apart(old: np.ndarray, new: np.ndarray) -> bool:
  """Tells whether numbers are from different distributions, by rank sum."""
  less = np.sum(old[:, None] < new) + 0.5 * np.sum(old[:, None] == new)
  extreme = min(less, old.size * new.size - less)
  # The number of pairs in the wrong order, over all orders of both samples.
  counts = _orders(old.size, new.size)
  share = counts[: int(extreme) + 1].sum() / counts.sum()
  return 2 * share < _FALSE_ALARM


@functools.cache
def _orders(n: int, m: int) -> np.ndarray:
  """Counts the orders of n and m numbers by their number of inversions.

  They are the coefficients of a Gaussian binomial coefficient.
  """
  counts = np.zeros(n * m + 1)
  counts[0] = 1.0
  for i in range(1, n + 1):
    # Times 1 - q^(m+i), then divided by 1 - q^i.
    counts[m + i :] -= counts[: max(0, len(counts) - m - i)].copy()
    for start in range(i):
      counts[start::i] = np.cumsum(counts[start::i])
  return counts
