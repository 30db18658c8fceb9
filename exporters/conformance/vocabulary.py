"""Finds the words of a model in its assets, tables and constants."""

from collections.abc import Iterable, Iterator
import itertools
import os
import re

import numpy as np
import tensorflow as tf

from exporters.conformance import op_audit

_VARIABLES = "variables/variables"
_CHECKPOINT = b"_CHECKPOINTABLE_OBJECT_GRAPH"
_MOST = 64  # Words from each file, table or constant.
_LONGEST = 64  # Bytes of a string with which texts are compared.
_SOURCES = 4  # The files, tables and constants with the most words.


def words(
  directory: str, files: Iterable[str], nodes: Iterable[op_audit.Node]
) -> list[str]:
  """Returns words of a SavedModel, alternating between its vocabularies.

  Args:
    directory: Its directory.
    files: The paths of its files.
    nodes: The nodes of its graph.
  """
  found = {}  # Several tables and constants may have the same words.
  for lines in entries(directory, files, nodes):
    # A count may follow the word on its line.
    firsts = (entry.split()[:1] for entry in dict.fromkeys(lines))
    known = [x for first in firsts for x in first if re.match(r"\w", x)]
    if known:
      found[tuple(known[:: len(known) // _MOST + 1])] = len(known)
  largest = sorted(found, key=lambda words: -found[words])[:_SOURCES]
  count = max(map(len, largest), default=0)
  turns = zip(
    *(itertools.islice(itertools.cycle(x), count) for x in largest), strict=True
  )
  return list(itertools.chain.from_iterable(turns))


def of_assets(directory: str, files: Iterable[str]) -> Iterator[list[str]]:
  """Yields the lines of each asset."""
  for file in files:
    if file.startswith("assets/"):
      with open(os.path.join(directory, file), errors="replace") as f:
        yield f.read(2**24).splitlines()


def numbers(nodes: Iterable[op_audit.Node]) -> list[int]:
  """Returns the integers in constant vectors, which may be keys of tables.

  They alternate between the vectors, because some vectors may be the values of
  tables.
  """
  tensors = [
    node.attr["value"].tensor
    for node in nodes
    if node.op == "Const" and node.attr["dtype"].type == tf.int64
  ]
  vectors = (
    tf.make_ndarray(tensor)[:_MOST].tolist()
    for tensor in tensors
    if len(tensor.tensor_shape.dim) == 1
  )
  turns = itertools.zip_longest(*vectors)
  return [x for turn in turns for x in turn if x is not None]


def texts(nodes: Iterable[op_audit.Node]) -> list[bytes]:
  """Returns single strings in constants, with which texts may be compared."""
  tensors = [
    node.attr["value"].tensor
    for node in nodes
    if node.op == "Const" and node.attr["dtype"].type == tf.string
  ]
  found = [x for t in tensors if len(t.string_val) == 1 for x in t.string_val]
  words = (x for x in dict.fromkeys(found) if len(x) <= _LONGEST)
  return [*itertools.islice(words, _MOST)]


def entries(
  directory: str, files: Iterable[str], nodes: Iterable[op_audit.Node]
) -> Iterator[list[str]]:
  """Yields the strings of each text file, table, variable and constant."""
  yield from of_assets(directory, files)
  if f"{_VARIABLES}.index" in files:
    checkpoint = tf.train.load_checkpoint(os.path.join(directory, _VARIABLES))
    for name, dtype in checkpoint.get_variable_to_dtype_map().items():
      if dtype == tf.string and not name.startswith("_"):
        yield _texts(checkpoint.get_tensor(name))
  for node in nodes:
    values = node.attr["value"].tensor.string_val
    # The names of the variables in the checkpoint are constants too.
    if node.op == "Const" and len(values) > 1 and _CHECKPOINT not in values:
      yield _texts([*values])


def _texts(values: Iterable[bytes]) -> list[str]:
  flat = np.ravel(np.asarray(values, object))
  return [value.decode(errors="replace") for value in flat]
