"""Traces Tensors back through graphs, functions and function calls."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses

from exporters.reusable.private_api import function_pb2
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import node_def_pb2

Function = function_pb2.FunctionDef
Node = node_def_pb2.NodeDef

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def functions(graph: graph_pb2.GraphDef) -> dict[str, Function]:
  """Returns the functions in a graph's library, by name."""
  return {f.signature.name: f for f in graph.library.function}


def callee(node: Node, by_name: Mapping[str, Function]) -> Function | None:
  """Returns the function that a call node calls; None for other nodes."""
  if node.op not in _CALLS:
    return None
  return by_name.get(node.attr["f"].func.name)


def called(node: Node) -> Iterator[str]:
  """Yields the names of the functions that a node calls; its op may be one."""
  yield node.op
  for attribute in node.attr.values():
    if attribute.HasField("func"):
      yield attribute.func.name
    for function in attribute.list.func:
      yield function.name


def operands(node: Node) -> list[str]:
  """Returns the names of a node's data inputs, without control inputs."""
  return [x for x in node.input if not x.startswith("^")]


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A function, or the graph itself, with the call that enters it."""

  nodes: Mapping[str, Node]
  arguments: Sequence[str] = ()
  name: str = ""
  caller: "_Frame | None" = None
  call: Node | None = None


def origins(
  graph: graph_pb2.GraphDef,
  tensor: str,
  through: Collection[str] = ("Identity",),
) -> Iterator[tuple[Node, str]]:
  """Yields the nodes that produce a Tensor.

  Args:
    graph: The graph that has the Tensor at its top level.
    tensor: The name of the Tensor.
    through: Ops whose inputs are searched too. Calls of functions are always
      searched.

  Yields:
    Each node, those of `through` included, and the name of its function, empty
    for the top level of the graph.
  """
  by_name = functions(graph)
  waiting = [(_Frame({n.name: n for n in graph.node}), tensor)]
  seen = set()
  while waiting:
    frame, tensor = waiting.pop()
    # In a graph `name:index` or `name`, in a function `name:result:index`.
    name, _, output = tensor.partition(":")
    output = output.split(":")[-1] or "0"
    if (id(frame), tensor) in seen:
      continue
    seen.add((id(frame), tensor))
    if name in frame.arguments and frame.caller:
      given = operands(frame.call)[frame.arguments.index(name)]
      waiting.append((frame.caller, given))
      continue
    node = frame.nodes.get(name)
    if node is None:
      continue
    function = callee(node, by_name)
    if function:
      result = function.signature.output_arg[int(output)].name
      inner = _Frame(
        {n.name: n for n in function.node_def},
        [a.name for a in function.signature.input_arg],
        function.signature.name,
        frame,
        node,
      )
      waiting.append((inner, function.ret[result]))
      continue
    yield node, frame.name
    if node.op in through:
      waiting += [(frame, x) for x in operands(node)]
