"""Finds suspicious ops of a SavedModel without loading it.

A SavedModel is a program: loading it runs its initializers. An op is suspicious
if it is not in `allowed_ops.txt`, or if it reads or writes files other than the
assets and checkpoints of the SavedModel.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
import pathlib

from exporters.reusable import graphs
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import node_def_pb2

Nodes = Sequence[node_def_pb2.NodeDef]

MAIN_GRAPH = "the main graph"

ALLOWED = frozenset(
  op
  for line in (
    pathlib.Path(os.path.dirname(__file__), "allowed_ops.txt")
    .read_text()
    .splitlines()
  )
  if not line.startswith("#")
  for op in line.split()
)
# Further ops of tf.train.Saver's functions, which TensorFlow adds to every
# SavedModel. They take the path of a checkpoint.
_OF_SAVERS = frozenset(
  ["MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"]
)
_TABLES_OF_FILES = frozenset(
  ["InitializeTableFromTextFile", "InitializeTableFromTextFileV2"]
)


def functions(graph: graph_pb2.GraphDef) -> dict[str, Nodes]:
  """Returns the nodes of every function, and of the main graph, by name."""
  return {
    MAIN_GRAPH: graph.node,
    **{f.signature.name: f.node_def for f in graph.library.function},
  }


def suspicious(graph: meta_graph_pb2.MetaGraphDef) -> list[str]:
  """Finds ops that models do not need.

  Args:
    graph: The graph of a SavedModel.

  Returns:
    A line for each op: its name, its function, and what is wrong with it.
  """
  by_name = functions(graph.graph_def)
  of_savers = _of_savers_alone(graph, by_name)
  found = []
  for function, nodes in by_name.items():
    for node in nodes:
      if node.op in ALLOWED or node.op in by_name:
        if node.op in _TABLES_OF_FILES and not _is_asset(
          graph, by_name, function, node.input[1]
        ):
          problem = "fills a table from a file that is not an asset"
        else:
          continue
      elif node.op in _OF_SAVERS:
        place = _place(node.name) if function == MAIN_GRAPH else function
        if place in of_savers:
          continue
        problem = "reads or writes files and does not belong to the saver"
      else:
        problem = "is not an op that models need"
      found.append(f"{node.op} ({node.name}) in {function} {problem}")
  return found


def _of_savers_alone(
  graph: meta_graph_pb2.MetaGraphDef, by_name: Mapping[str, Nodes]
) -> set[str]:
  """Returns the functions and places in the main graph of savers alone."""
  others = [
    _place(tensor.name)
    for signature in graph.signature_def.values()
    for tensor in signature.outputs.values()
  ]
  for key, collection in graph.collection_def.items():
    if key in ("saved_model_main_op", "legacy_init_op", "init_op"):
      others += map(_place, collection.node_list.value)
  for node in graph.object_graph_def.nodes:
    others += node.function.concrete_functions
    others.append(node.bare_concrete_function.concrete_function_name)
  saver = graph.saver_def
  savers = map(_place, [saver.save_tensor_name, saver.restore_op_name])
  return _reached(by_name, savers) - _reached(by_name, others)


def _reached(by_name: Mapping[str, Nodes], places: Iterable[str]) -> set[str]:
  """Returns the functions and places in the main graph that these need."""
  main = {_place(node.name): node for node in by_name[MAIN_GRAPH]}
  reached: set[str] = set()
  waiting = list(places)
  while waiting:
    place = waiting.pop()
    if place in reached:
      continue
    reached.add(place)
    if place in main:
      waiting += [*graphs.called(main[place]), *map(_place, main[place].input)]
    for node in by_name.get(place, ()):
      waiting += graphs.called(node)
  return reached


def _place(tensor: str) -> str:
  """Returns the place of a Tensor's node in the main graph."""
  return f"{_node_name(tensor)} in {MAIN_GRAPH}"


def _node_name(tensor: str) -> str:
  return tensor.removeprefix("^").split(":")[0]


def _is_asset(
  graph: meta_graph_pb2.MetaGraphDef,
  by_name: Mapping[str, Nodes],
  function: str,
  tensor: str,
) -> bool:
  """Tells whether a Tensor in a function is the path of an asset."""
  file = _node_name(tensor)
  if function == MAIN_GRAPH:
    return file in {
      _node_name(asset.tensor_info.name) for asset in graph.asset_file_def
    }
  objects = graph.object_graph_def
  concrete = objects.concrete_functions.get(function)
  definition = graphs.functions(graph.graph_def)[function]
  arguments = [argument.name for argument in definition.signature.input_arg]
  if file not in arguments:
    return False
  if concrete is None:  # As in a model that was loaded and saved again.
    calls = [
      (caller, node)
      for caller, nodes in by_name.items()
      for node in nodes
      if function in graphs.called(node)
    ]
    return bool(calls) and all(
      node.op in ("PartitionedCall", "StatefulPartitionedCall")
      and _is_asset(graph, by_name, caller, node.input[arguments.index(file)])
      for caller, node in calls
    )
  # The last arguments of a function are its captures.
  index = arguments.index(file) - len(arguments)
  bound = concrete.bound_inputs
  return -len(bound) <= index and (
    objects.nodes[bound[index]].WhichOneof("kind") == "asset"
  )
