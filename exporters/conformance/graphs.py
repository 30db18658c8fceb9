"""Follows Tensors through the graphs of functions, and through their calls."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses

from exporters.reusable.private_api import function_pb2
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import node_def_pb2

Function = function_pb2.FunctionDef
Node = node_def_pb2.NodeDef

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def functions(graph: graph_pb2.GraphDef) -> dict[str, Function]:
  """Returns the functions of a graph, by name."""
  return {f.signature.name: f for f in graph.library.function}


def callee(node: Node, by_name: Mapping[str, Function]) -> Function | None:
  """Returns the function that a node calls; None if it is no call."""
  if node.op not in _CALLS:
    return None
  return by_name.get(node.attr["f"].func.name)


def operands(node: Node) -> list[str]:
  """Returns the Tensors that a node takes, without control dependencies."""
  return [x for x in node.input if not x.startswith("^")]


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A function, or the graph itself, and the call that leads into it."""

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
  """Yields the nodes that a Tensor comes from.

  Args:
    graph: Where it is.
    tensor: Its name.
    through: Ops that the search goes through to all that they take; it goes
      through calls anyway.

  Yields:
    Each node, also those gone through; and the function that it is in, empty
    for the graph itself.
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
