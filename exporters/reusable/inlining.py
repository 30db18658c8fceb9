"""Inlines the functions of a SavedModel that only its graph and signatures use.

Loading in Python imports every function, but not the graph, which is for
TensorFlow Serving. The functions that save and restore have the most ops in a
small model, and take all variables.
"""

import collections
from collections.abc import Iterator, Mapping, MutableSequence
import itertools

from exporters.reusable import graphs
from exporters.reusable.private_api import meta_graph_pb2

# A function with other attributes may have to stay a function.
_ATTRIBUTES = frozenset(["_construction_context", "_input_shapes"])


def inline(meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
  """Inlines functions that no Python object has and that are called once.

  The call is in the graph or in a function of a signature.
  """
  graph = meta_graph.graph_def
  by_name = graphs.functions(graph)
  calls = collections.Counter(
    name for node in graphs.all_nodes(graph) for name in graphs.called(node)
  )
  objects = meta_graph.object_graph_def
  known = set(objects.concrete_functions)
  known |= {node.captured_tensor.concrete_function for node in objects.nodes}
  private = {
    name: function
    for name, function in by_name.items()
    if calls[name] == 1
    and name not in known
    and _ATTRIBUTES.issuperset(function.attr)
  }
  inlined = []
  for node in list(graph.node):
    signature = graphs.callee(node, by_name)
    if signature and signature.signature.name not in private:
      inlined += _inline_into_function(signature, private)
    elif (function := _inlinable(node, private)) and len(
      function.signature.output_arg
    ) == 1:
      results = _add_body(graph.node, node, function)
      node.op, node.input[:] = "Identity", [*results, *node.input]
      # `node:output:index` in a function is `node:index` in a graph.
      in_graph = {
        name: f"{n.name}:{i}".removesuffix(":0")
        for n in graph.node[-len(function.node_def) :]
        for i, (name, _) in enumerate(graphs.outputs(n))
      }
      for other in graph.node:
        other.input[:] = [in_graph.get(x, x) for x in other.input]
      node.attr["T"].type = function.signature.output_arg[0].type
      inlined.append(function)
  for function in inlined:
    graph.library.function.remove(function)


def _inlinable(
  node: graphs.Node, private: Mapping[str, graphs.Function]
) -> graphs.Function | None:
  waits = any(name.startswith("^") for name in node.input)
  return None if waits else graphs.callee(node, private)


def _inline_into_function(
  caller: graphs.Function, private: Mapping[str, graphs.Function]
) -> Iterator[graphs.Function]:
  """Inlines private functions into another; yields them."""
  for node in list(caller.node_def):
    if function := _inlinable(node, private):
      results = _add_body(caller.node_def, node, function)
      node.op = "NoOp"
      instead = {f"{node.name}:output:{i}": x for i, x in enumerate(results)}
      for other in caller.node_def:
        other.input[:] = [instead.get(x, x) for x in other.input]
      for key, name in list(caller.ret.items()):
        caller.ret[key] = instead.get(name, name)
      for key, name in sorted(caller.control_ret.items()):
        if name == node.name:  # Slimming would drop a wait for a NoOp.
          del caller.control_ret[key]
          ends = [end.removeprefix("^") for end in node.input]
          caller.control_ret.update(zip(ends, ends, strict=True))
      yield function


def _add_body(
  nodes: MutableSequence[graphs.Node],
  call: graphs.Node,
  function: graphs.Function,
) -> list[str]:
  """Adds the nodes of a function beside its call; returns its results.

  The call becomes a node without attributes that waits for the function's end.
  """
  arguments = [arg.name for arg in function.signature.input_arg]
  operands = dict(zip(arguments, call.input, strict=True))
  taken = {node.name for node in nodes}
  free = (name for i in itertools.count() if (name := f"n{i}") not in taken)
  short = {node.name: next(free) for node in function.node_def}

  def renamed(name: str) -> str:
    node = graphs.node_of(name)
    return operands.get(name) or graphs.with_node(name, short[node])

  for node in function.node_def:
    added = nodes.add()
    added.CopyFrom(node)
    added.name = renamed(node.name)
    added.device = node.device or call.device
    added.input[:] = map(renamed, node.input)
    added.attr.pop("_class", None)  # Colocation is a hint.
  call.input[:] = [
    f"^{renamed(name)}" for name in sorted(function.control_ret.values())
  ]
  call.attr.clear()
  return [renamed(function.ret[x.name]) for x in function.signature.output_arg]
