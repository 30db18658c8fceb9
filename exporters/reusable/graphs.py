"""Traces Tensors back through graphs, functions and function calls."""

from collections.abc import Collection, Iterator, Mapping
import re
from typing import Any, NamedTuple

from exporters.reusable import private_api
from exporters.reusable.private_api import function_pb2
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import node_def_pb2

Function = function_pb2.FunctionDef
Node = node_def_pb2.NodeDef

CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
# Ops whose results depend on their inputs alone. A read that follows a write
# has the write as a control input.
PURE = frozenset(
  [
    *("AddV2", "BiasAdd", "BroadcastTo", "Cast", "ConcatV2", "Const"),
    *("ExpandDims", "Fill", "FloorMod", "Greater", "GreaterEqual", "Identity"),
    *("MatMul", "Mean", "Mul", "NoOp", "Pack", "ReadVariableOp", "Reshape"),
    *("Shape", "StridedSlice", "Sub"),
  ]
)
# Random ops with two attributes for seeds.
SEEDED = re.compile(
  r"Random(?!\w*(Dataset|Queue|Generator))|Multinomial|SampleDistorted"
  r"|(Parameterized)?TruncatedNormal|\w*CandidateSampler"
)
SEEDS = ("seed", "seed2")
GRADIENT = "_gradient_op_type"  # The attribute that names a custom gradient.
# Random ops that draw from a tf.random.Generator, whose state is a variable.
GENERATED = re.compile(r"Rng|Stateful\w*(Binomial|Int|Normal|Uniform)")
RANDOM = re.compile(
  rf"{SEEDED.pattern}|{GENERATED.pattern}|Fractional(Avg|Max)Pool$"
)


def functions(graph: graph_pb2.GraphDef) -> dict[str, Function]:
  """Returns the functions in a graph's library, by name."""
  return {f.signature.name: f for f in graph.library.function}


def all_nodes(graph: graph_pb2.GraphDef) -> Iterator[Node]:
  """Yields the nodes of a graph and of all functions in it."""
  yield from graph.node
  for function in graph.library.function:
    yield from function.node_def


def callee(node: Node, by_name: Mapping[str, Function]) -> Function | None:
  """Returns the function that a call node calls; None for other nodes."""
  if node.op not in CALLS:
    return None
  return by_name.get(node.attr["f"].func.name)


def called(node: Node) -> Iterator[str]:
  """Yields the names of functions that a node calls, by op or attribute."""
  yield node.op
  for attribute in node.attr.values():
    if attribute.HasField("func"):
      yield attribute.func.name
    for function in attribute.list.func:
      yield function.name


def node_of(tensor: str) -> str:
  """Returns the name of the node of a Tensor or of a control input."""
  return tensor.removeprefix("^").partition(":")[0]


def with_node(tensor: str, node: str) -> str:
  """Returns the name of a Tensor or of a control input, with another node."""
  # An output may have the name of the node.
  return tensor.replace(node_of(tensor), node, 1)


def gradient(node: Node) -> str:
  """Returns the type of a node's custom gradient, or ""."""
  return node.attr[GRADIENT].s.decode() if GRADIENT in node.attr else ""


def colocated(node: Node) -> list[str]:
  """Returns the names of the nodes that a node is colocated with."""
  places = node.attr["_class"].list.s if "_class" in node.attr else ()
  return [place.decode().removeprefix("loc:@") for place in places]


def outputs(node: Node) -> Iterator[tuple[str, int]]:
  """Yields the names of a node's Tensors in a function, and their dtypes.

  Nothing is yielded for an op that this TensorFlow does not know.
  """
  if (op := private_api.op_def(node.op)) is None:
    return
  # Looking up a key of a protobuf map would add it.
  values = {attr.name: attr.default_value for attr in op.attr}
  values.update(node.attr.items())
  for output in op.output_arg:
    if output.type_list_attr:
      dtypes = list(values[output.type_list_attr].list.type)
    else:
      count = values[output.number_attr].i if output.number_attr else 1
      dtypes = [output.type or values[output.type_attr].type] * count
    for i, dtype in enumerate(dtypes):
      yield f"{node.name}:{output.name}:{i}", dtype


def remove_objects(objects: Any, gone: Collection[int]) -> None:
  """Removes objects of a SavedModel by their numbers; renumbers the others.

  Args:
    objects: The message of the objects, `object_graph_def`. Changed in place.
    gone: The numbers of the objects to remove.
  """
  kept = (i for i in range(len(objects.nodes)) if i not in gone)
  new = {old: i for i, old in enumerate(kept)}
  for i in sorted(gone, reverse=True):
    del objects.nodes[i]
  for node in objects.nodes:
    for child in (*node.children, *node.dependencies):
      child.node_id = new[child.node_id]
    for slot in node.slot_variables:
      slot.original_variable_node_id = new[slot.original_variable_node_id]
      slot.slot_variable_node_id = new[slot.slot_variable_node_id]
    for saveable in node.saveable_objects.values():
      saveable.save_function = new[saveable.save_function]
      saveable.restore_function = new[saveable.restore_function]
  for function in objects.concrete_functions.values():
    function.bound_inputs[:] = [new[i] for i in function.bound_inputs]


def operands(node: Node) -> list[str]:
  """Returns the names of a node's data inputs, without control inputs."""
  return [x for x in node.input if not x.startswith("^")]


class _Frame(NamedTuple):
  """One call of a function, or the graph itself."""

  calls: tuple[str, ...]
  name: str
  nodes: Mapping[str, Node]
  operands: Mapping[str, str]  # Operands of the call, by argument.
  caller: "_Frame | None"


def origins(
  graph: graph_pb2.GraphDef,
  tensor: str,
  through: Collection[str] = ("Identity",),
) -> Iterator[tuple[Node, str]]:
  """Yields the nodes that produce a Tensor.

  Args:
    graph: The graph that has the Tensor at its top level.
    tensor: The name of the Tensor.
    through: Ops whose inputs are searched, too. Function calls are always
      searched.

  Yields:
    Each node, including those of `through`, and the name of its function, ""
    for the top level of the graph.
  """
  by_name = functions(graph)
  top = _Frame((), "", {n.name: n for n in graph.node}, {}, None)
  waiting = [(top, tensor)]
  seen = set()
  while waiting:
    frame, tensor = waiting.pop()
    if (frame.calls, tensor) in seen:
      continue
    seen.add((frame.calls, tensor))
    # `name:index` or `name` in a graph, `name:result:index` in a function.
    name, _, output = tensor.partition(":")
    if name in frame.operands:
      waiting.append((frame.caller, frame.operands[name]))
    elif node := frame.nodes.get(name):
      if function := callee(node, by_name):
        signature = function.signature
        arguments = [arg.name for arg in signature.input_arg]
        inner = _Frame(
          (*frame.calls, name),
          signature.name,
          {n.name: n for n in function.node_def},
          dict(zip(arguments, operands(node), strict=True)),
          frame,
        )
        result = signature.output_arg[int(output.split(":")[-1] or 0)].name
        waiting.append((inner, function.ret[result]))
      else:
        yield node, frame.name
        if node.op in through:
          waiting += [(frame, x) for x in operands(node)]
