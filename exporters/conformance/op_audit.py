"""Finds suspicious ops in a SavedModel without loading it.

A SavedModel is a program: loading it runs its initializers. An op is suspicious
if it is not in `allowed_ops`, if it reads or writes files other than the assets
and checkpoints of the SavedModel, or if it has too many inputs. All MetaGraphs,
functions and gradients are examined, even if nothing calls them.
"""

from collections.abc import Collection, Iterator, Sequence
import itertools
import os
import re
from typing import NamedTuple

import tensorflow as tf

from exporters.reusable import allowed_ops
from exporters.reusable import graphs
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import node_def_pb2

Node = node_def_pb2.NodeDef

# Further ops of tf.train.Saver's functions, which TensorFlow adds to every
# SavedModel, and the positions of their inputs that are paths of checkpoints.
_OF_SAVERS = {
  "MergeV2Checkpoints": (0, 1),
  "RestoreV2": (0,),
  "SaveV2": (0,),
  "ShardedFilename": (0,),
}
# The suffixes that a saver adds to its path.
_SUFFIX = re.compile(rb"|model|\.part|_temp(_[0-9a-f]{32})?/part")
_TABLES_OF_FILES = frozenset(
  ["InitializeTableFromTextFile", "InitializeTableFromTextFileV2"]
)
# Attributes that are paths of files; "" means no file.
_FILE_ATTRIBUTES = ("descriptor_source", "vocab_file")
# Python code of a Lambda layer in keras_metadata.pb, or escapes that hide it.
_PYTHON_CODE = re.compile(rb'"__lambda__"|_type"\s*:\s*"lambda"|\\u00[0-7]')

# A function and a node in it; the main graph has the name "".
_Place = tuple[str, str]

# TensorFlow needs minutes to call an op with a million inputs.
_MOST_INPUTS = 2**16


def nodes(graph: graph_pb2.GraphDef) -> Iterator[tuple[str, Node]]:
  """Yields all nodes, with the names of their functions or "" (main graph)."""
  for node in graph.node:
    yield "", node
  for function in graph.library.function:
    for node in function.node_def:
      yield function.signature.name, node


def suspicious(
  meta_graphs: Sequence[meta_graph_pb2.MetaGraphDef], files: Collection[str]
) -> list[str]:
  """Finds the suspicious ops and assets of a SavedModel.

  Args:
    meta_graphs: The MetaGraphs of the SavedModel.
    files: The paths of its files.

  Returns:
    A line for each op or asset: its name, its place, and what is wrong with it.
  """
  found = []
  for graph in meta_graphs:
    found += _of_assets(graph, files)
    found += _of_functions(graph.graph_def)
    found += _of_nodes(graph)
  return found


def runs_python(keras_metadata: bytes) -> bool:
  """Returns whether loading the model with Keras runs its Python code."""
  return bool(_PYTHON_CODE.search(keras_metadata))


def _of_assets(
  graph: meta_graph_pb2.MetaGraphDef, files: Collection[str]
) -> Iterator[str]:
  for asset in graph.asset_file_def:
    path = f"assets/{asset.filename}"
    if os.path.normpath(path) != path or path not in files:
      yield f"The asset {asset.filename!r} is not a file in assets/"


def _of_functions(graph: graph_pb2.GraphDef) -> Iterator[str]:
  """Finds functions that replace an op or another function."""
  seen = set()
  for function in graph.library.function:
    name = function.signature.name
    if name in seen:
      yield f"The function {name} is defined twice"
    if not name or _is_op(name):
      yield f"The function {name} has the name of an op"
    seen.add(name)


def _is_op(name: str) -> bool:
  return (
    name in allowed_ops.NAMES or name in _OF_SAVERS or hasattr(tf.raw_ops, name)
  )


def _of_nodes(graph: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
  paths = _Paths(graph)
  of_savers = _of_savers_alone(graph, paths)
  for function, node in nodes(graph.graph_def):
    problem = None
    if node.op in _OF_SAVERS:
      place = (function, "") if function else ("", node.name)
      if place not in of_savers:
        problem = "reads or writes files and does not belong to the saver"
      elif not all(
        i < len(node.input) and paths.is_checkpoint(function, node.input[i])
        for i in _OF_SAVERS[node.op]
      ):
        problem = "reads or writes files other than the checkpoint's"
    elif node.op not in allowed_ops.NAMES and node.op not in paths.functions:
      problem = "is not an op that models need"
    elif node.op in _TABLES_OF_FILES and not (
      len(node.input) > 1 and paths.is_asset(function, node.input[1])
    ):
      problem = "fills a table from a file that is not an asset"
    if unknown := {*graphs.called(node)} - {node.op, "", *paths.functions}:
      problem = f"calls {min(unknown)}, which is no function of the SavedModel"
    for name, attribute in node.attr.items():
      if name in _FILE_ATTRIBUTES and attribute.s not in (b"", b"local://"):
        problem = "reads a file that is named in an attribute"
      if name == "_gradient_op_type":
        gradient = attribute.s.decode(errors="replace")
        if gradient not in allowed_ops.NAMES and _is_op(gradient):
          problem = f"has the gradient of {gradient}"
    if len(node.input) > _MOST_INPUTS:
      problem = f"has {len(node.input):,} inputs; models need fewer"
    if problem:
      place = function or "the main graph"
      yield f"{node.op} ({node.name}) in {place} {problem}"


class _Call(NamedTuple):
  """A node that calls a function, and the function that contains the node."""

  caller: str
  op: str
  operands: Sequence[str]  # Listed once: there may be thousands of arguments.


class _Paths:
  """Traces file paths, which are inputs of ops, back to their origins."""

  def __init__(self, graph: meta_graph_pb2.MetaGraphDef):
    definition = graph.graph_def
    self._objects = graph.object_graph_def
    self.functions = graphs.functions(definition)
    self.nodes: dict[_Place, Node] = {}
    self.calls: dict[str, list[_Call]] = {}
    for function, node in nodes(definition):
      self.nodes[function, node.name] = node
      for name in set(graphs.called(node)) & self.functions.keys():
        call = _Call(function, node.op, graphs.operands(node))
        self.calls.setdefault(name, []).append(call)
    self._arguments = {
      name: {arg.name: i for i, arg in enumerate(f.signature.input_arg)}
      for name, f in self.functions.items()
    }
    self._assets = {
      graphs.node_of(asset.tensor_info.name) for asset in graph.asset_file_def
    }
    self._checkpoint = graphs.node_of(graph.saver_def.filename_tensor_name)
    self._users: dict[str, list[Node]] = {}
    for node in definition.node:
      for name in set(map(graphs.node_of, node.input)):
        self._users.setdefault(name, []).append(node)
    self._known: dict[tuple[bool, str, str], bool] = {}

  def is_asset(self, function: str, tensor: str) -> bool:
    """Returns whether a Tensor in a function is the path of an asset."""
    return self._is_path(True, function, graphs.node_of(tensor))

  def is_checkpoint(self, function: str, tensor: str) -> bool:
    """Returns whether a Tensor is the path of a saver, or a path beside it."""
    return self._is_path(False, function, graphs.node_of(tensor))

  def _is_path(self, asset: bool, function: str, name: str) -> bool:
    """Returns whether all origins of a Tensor are good, without recursion.

    Good origins are assets if `asset`, and otherwise paths of the saver.
    """
    waiting, seen, good = [(function, name)], set(), True
    while waiting and good:
      place = waiting.pop()
      if place in seen:
        continue
      if (asset, *place) in self._known:
        good = self._known[asset, *place]
        continue
      seen.add(place)
      sources = self._sources(asset, *place)
      good = sources is not None
      waiting += sources or []
    # Cache the result for all places seen. If one is bad, the SavedModel is
    # suspicious, whatever the result for the others is.
    self._known.update({(asset, *place): good for place in seen})
    return good

  def _sources(
    self, asset: bool, function: str, name: str
  ) -> list[_Place] | None:
    """Returns the places a path is made from; None if it may be any path."""
    index = self._arguments.get(function, {}).get(name)
    if index is not None:
      return self._of_argument(asset, function, index)
    if not function and name in self._assets:
      return [] if asset else None
    node = self.nodes.get((function, name))
    if node is None:
      return None
    if asset:
      is_read = not function and node.op == "ReadVariableOp"
      return self._of_variable(node) if is_read else None
    if not function and name == self._checkpoint:
      return [(function, graphs.node_of(x)) for x in graphs.operands(node)]
    if node.op == "Const":
      values = node.attr["value"].tensor.string_val
      return [] if values and all(map(_SUFFIX.fullmatch, values)) else None
    first, last = {
      "Identity": (0, 1),
      "Pack": (0, None),
      "PlaceholderWithDefault": (0, 1),
      "Select": (1, None),
      "SelectV2": (1, None),
      "ShardedFilename": (0, 1),
      "StringJoin": (0, None),
    }.get(node.op, (0, 0))
    inputs = graphs.operands(node)[first:last]
    return [(function, graphs.node_of(x)) for x in inputs] or None

  def _of_variable(self, read: Node) -> list[_Place] | None:
    """Returns the sources of a variable in the main graph: its assignments.

    Model Garden keeps the paths of assets in variables. Returns None if another
    op uses the variable, or if nothing is assigned.
    """
    handle = graphs.node_of(read.input[0]) if read.input else ""
    sources = []
    for node in self._users.get(handle, []):
      if node.op == "AssignVariableOp":
        sources.append(("", graphs.node_of(node.input[-1])))
      elif node.op not in ("ReadVariableOp", "VarIsInitializedOp"):
        return None
    return sources or None

  def _of_argument(
    self, asset: bool, function: str, index: int
  ) -> list[_Place] | None:
    """Returns the sources of a function's argument in all of its callers."""
    calls = self.calls.get(function, [])
    concrete = self._objects.concrete_functions
    if function in concrete:
      # The last arguments of a function are its captures.
      bound = concrete[function].bound_inputs
      capture = index - len(self._arguments[function])
      if not asset or not -len(bound) <= capture < 0:
        return None
      captured = bound[capture]
      if not 0 <= captured < len(self._objects.nodes) or (
        self._objects.nodes[captured].WhichOneof("kind") != "asset"
      ):
        return None
    elif not calls:
      return None
    sources = []
    for caller, op, operands in calls:
      if op not in (*graphs.CALLS, function) or index >= len(operands):
        return None
      sources.append((caller, graphs.node_of(operands[index])))
    return sources


def _of_savers_alone(
  graph: meta_graph_pb2.MetaGraphDef, paths: _Paths
) -> set[_Place]:
  """Returns the functions and main-graph nodes that only savers use."""
  objects, library = graph.object_graph_def, graph.graph_def.library
  tensors = [
    tensor.name
    for signature in graph.signature_def.values()
    for tensor in signature.outputs.values()
  ]
  for collection in graph.collection_def.values():
    tensors += collection.node_list.value
  functions = [*objects.concrete_functions]
  for node in objects.nodes:
    functions += node.function.concrete_functions
    functions.append(node.bare_concrete_function.concrete_function_name)
  functions += [g.gradient_func for g in library.gradient]
  functions += [g.gradient_func for g in library.registered_gradients]
  saver = graph.saver_def
  savers = [saver.save_tensor_name, saver.restore_op_name]
  return _reached(paths, savers, []) - _reached(paths, tensors, functions)


def _reached(
  paths: _Paths, tensors: Sequence[str], functions: Sequence[str]
) -> set[_Place]:
  """Returns the functions and main-graph nodes that the arguments depend on."""
  inside: dict[str, list[Node]] = {}
  for (function, _), node in paths.nodes.items():
    if function:
      inside.setdefault(function, []).append(node)
  reached: set[_Place] = set()
  waiting = [("", graphs.node_of(t)) for t in tensors]
  waiting += [(f, "") for f in functions]
  while waiting:
    place = waiting.pop()
    if place in reached:
      continue
    reached.add(place)
    function, _ = place
    if function:
      needing = inside.get(function, [])
    else:
      needing = [paths.nodes[place]] if place in paths.nodes else []
      waiting += [("", graphs.node_of(x)) for n in needing for x in n.input]
    called = itertools.chain.from_iterable(map(graphs.called, needing))
    waiting += [(f, "") for f in called if f in paths.functions]
  return reached
