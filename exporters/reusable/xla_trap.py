"""Finds ops that XLA recompiles in every train step, or cannot compile.

The ops are found in the trace of a consumer's train step; nothing is compiled.
`xla` explains the recompilation, and has replacements for the gradients.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import functools

import tensorflow as tf

from exporters.reusable import graphs
from exporters.reusable.private_api import graph_pb2

# Indices of operands that XLA needs at compile time. TensorFlow's XLA kernels
# register them with CompileTimeConstantInput. -1 is the last operand.
_CONSTANT_OPERANDS = {
  op: operands
  for operands, ops in (
    (
      (0,),
      "Concat ConcatOffset Conv2DBackpropInput Conv3DBackpropInputV2"
      " DepthwiseConv2dNativeBackpropInput Empty Fill RandomStandardNormal"
      " RandomUniform RandomUniformInt Split StatelessRandomNormalV2"
      " StatelessRandomUniformV2 TensorListReserve TruncatedNormal",
    ),
    (
      (1,),
      "All Any ArgMax ArgMin BroadcastTo ConjugateTranspose"
      " Conv2DBackpropFilter Conv3DBackpropFilterV2 Cumprod Cumsum"
      " DepthwiseConv2dNativeBackpropFilter EuclideanNorm ExpandDims IRFFT"
      " IRFFT2D MatrixDiagPartV2 MatrixDiagPartV3 Max Mean Min MirrorPad"
      " MirrorPadGrad OneHot Pad PadV2 Prod RFFT RFFT2D Reshape ResizeBilinear"
      " ResizeNearestNeighbor ResizeNearestNeighborGrad Reverse ReverseV2 Sum"
      " Tile TopKV2 Transpose",
    ),
    (
      (2,),
      "GatherV2 Roll ScatterNd UnsortedSegmentMax UnsortedSegmentMin"
      " UnsortedSegmentProd UnsortedSegmentSum",
    ),
    ((-1,), "ConcatV2"),
    ((0, 1), "BroadcastArgs BroadcastGradientArgs"),
    ((1, 2), "BatchToSpaceND Slice SpaceToBatchND SplitV"),
    ((0, 1, 2), "LinSpace Range"),
    ((1, 2, 3), "StridedSlice"),
    ((0, 1, 2, 3), "StridedSliceGrad"),
  )
  for op in ops.split()
}
# Ops whose result XLA infers from the static shape of their operand. XLA calls
# them metadata ops.
_OF_SHAPES = frozenset(
  [
    *("Rank", "Shape", "ShapeN", "Size", "VariableShape"),
    *("TensorListElementShape", "TensorListLength"),
  ]
)
# If a tf.cond is differentiated outside of XLA, its branches store intermediate
# values for the gradient with these ops, for which XLA has no kernel.
_OPTIONALS = frozenset(["OptionalFromValue", "OptionalNone"])


def constants(trace: tf.types.experimental.ConcreteFunction) -> list[str]:
  """Returns the reasons why XLA recompiles every train step.

  Args:
    trace: The trace of a train step that calls a loaded model.

  Returns:
    A text for each op whose gradient takes a compile-time constant from the
    model, and for each argument of the step that XLA needs at compile time for
    another reason. Empty if the step compiles once.
  """
  graph = trace.graph.as_graph_def()
  by_name = graphs.functions(graph)
  variables = {id(v.handle): v.name for v in trace.variables}
  captured = zip(
    trace.captured_inputs, trace.graph.internal_captures, strict=True
  )
  names = {inner.op.name: variables.get(id(x)) for x, inner in captured}

  @functools.cache
  def needed_arguments(name: str) -> list[int]:
    function = by_name[name]
    needed = set(_needed(function.node_def, needed_operands, _OF_SHAPES))
    arguments = function.signature.input_arg
    return [i for i, arg in enumerate(arguments) if arg.name in needed]

  def needed_operands(node: graphs.Node) -> Sequence[int]:
    if function := graphs.callee(node, by_name):
      return needed_arguments(function.signature.name)
    return _CONSTANT_OPERANDS.get(node.op, ())

  nodes = {node.name: node for node in graph.node}
  found = set()
  needed = set()
  # The search ends at calls: their operands are not constants of the step.
  ends = _OF_SHAPES | graphs.CALLS
  for tensor in _needed(graph.node, needed_operands, ends):
    node = nodes.get(_node_name(tensor))
    if node is None:
      continue
    if graphs.callee(node, by_name):
      op, place = _blamed(graph, by_name, tensor)
      if place:
        cause = f"the gradient of {op.op} ({op.name} in {place})"
        found.add(f"{cause} takes a compile-time constant from the model")
      else:  # A function in the model takes it from another function.
        needed.add(op.name)
    elif node.op == "Placeholder":
      needed.add(node.name)
  return sorted(
    found.union(
      f"XLA needs the value of {names.get(name) or name} at compile time"
      for name in needed
    )
  )


def branches(graph: graph_pb2.GraphDef) -> list[str]:
  """Names the conditionals whose gradient XLA cannot compile.

  Args:
    graph: The graph of a train step that calls a loaded model.

  Returns:
    Op, name and function of each conditional.
  """
  by_name = graphs.functions(graph)
  return sorted(
    f"{node.op} ({node.name} in {place})"
    for place, function in by_name.items()
    for node in function.node_def
    if node.op in ("If", "StatelessIf", "Case", "StatelessCase")
    and any(
      inner.op in _OPTIONALS
      for name in graphs.called(node)
      if name in by_name
      for inner in by_name[name].node_def
    )
  )


def loops(graph: graph_pb2.GraphDef) -> list[str]:
  """Names the loops whose gradient XLA cannot compile.

  If a loop is differentiated outside of XLA, it stores intermediate values in
  lists. XLA needs a limit of their size: the loop's `maximum_iterations`.

  Args:
    graph: The graph of a train step that calls a loaded model.

  Returns:
    Op, name and function of each loop.
  """
  found = []
  for place, function in graphs.functions(graph).items():
    nodes = {node.name: node for node in function.node_def}
    unlimited = {
      name
      for name, node in nodes.items()
      if node.op == "EmptyTensorList"
      and (size := nodes.get(_node_name(node.input[1])))
      and size.op == "Const"
      and tf.make_ndarray(size.attr["value"].tensor) < 0
    }
    found += [
      f"{node.op} ({name} in {place})"
      for name, node in nodes.items()
      if node.op in ("While", "StatelessWhile")
      and not unlimited.isdisjoint(map(_node_name, node.input))
    ]
  return sorted(found)


def _node_name(tensor: str) -> str:
  return tensor.split(":")[0]


def _blamed(
  graph: graph_pb2.GraphDef,
  by_name: Mapping[str, graphs.Function],
  tensor: str,
) -> tuple[graphs.Node, str]:
  """Finds the op in the model that causes a constant output of a call.

  Returns:
    The op and the name of its function; "" for an argument of the step.
  """
  *_, (made, place) = graphs.origins(graph, tensor)
  if place and made.op == "Const":
    users = [
      n
      for n in by_name[place].node_def
      if made.name in map(_node_name, n.input) and n.op != "Identity"
    ]
    made = (users or [made])[0]
  return made, place


def _needed(
  nodes: Sequence[graphs.Node],
  needed_operands: Callable[[graphs.Node], Sequence[int]],
  ends: Collection[str],
) -> Iterator[str]:
  """Yields Tensors that XLA needs at compile time, directly or indirectly.

  Args:
    nodes: The nodes of a function, or of the graph.
    needed_operands: Returns the indices of a node's compile-time constants.
    ends: Ops whose operands are not needed even if their result is.
  """
  by_name = {node.name: node for node in nodes}
  waiting = []
  for node in nodes:
    operands = graphs.operands(node)
    indices = needed_operands(node)
    waiting += [operands[i] for i in indices if i < len(operands)]
  seen = set()
  while waiting:
    tensor = waiting.pop()
    if tensor not in seen:
      seen.add(tensor)
      yield tensor
      node = by_name.get(_node_name(tensor))
      if node is not None and node.op not in ends:
        waiting += graphs.operands(node)
