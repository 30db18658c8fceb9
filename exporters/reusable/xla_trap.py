"""Finds ops of a model that keep a consumer's train step from compiling once.

The ops are found in the traced train step itself: nothing is compiled.

A function that was loaded from a SavedModel is one node of the train step's
graph, and its gradient is another. XLA analyzes each node as a whole: if the
gradient takes one output of the function as a compile-time constant, such as
the paddings of a Pad, then all inputs of the function must be compile-time
constants. The batch and the variables become constants of the program, and
every new batch and every update of the variables need another compilation.
"""

from collections.abc import Iterator, Mapping, Sequence

from exporters.reusable import graphs
from exporters.reusable.private_api import graph_pb2

# Operands that XLA needs at compile time, by op: what TensorFlow's XLA kernels
# register as CompileTimeConstantInput. -1 is the last operand.
_CONSTANT_OPERANDS = {
  "All": (1,),
  "Any": (1,),
  "ArgMax": (1,),
  "ArgMin": (1,),
  "BatchToSpaceND": (1, 2),
  "BroadcastArgs": (0, 1),
  "BroadcastGradientArgs": (0, 1),
  "BroadcastTo": (1,),
  "Concat": (0,),
  "ConcatOffset": (0,),
  "ConcatV2": (-1,),
  "ConjugateTranspose": (1,),
  "Conv2DBackpropFilter": (1,),
  "Conv2DBackpropInput": (0,),
  "Conv3DBackpropFilterV2": (1,),
  "Conv3DBackpropInputV2": (0,),
  "Cumprod": (1,),
  "Cumsum": (1,),
  "DepthwiseConv2dNativeBackpropFilter": (1,),
  "DepthwiseConv2dNativeBackpropInput": (0,),
  "Empty": (0,),
  "EuclideanNorm": (1,),
  "ExpandDims": (1,),
  "Fill": (0,),
  "GatherV2": (2,),
  "IRFFT": (1,),
  "IRFFT2D": (1,),
  "LinSpace": (0, 1, 2),
  "MatrixDiagPartV2": (1,),
  "MatrixDiagPartV3": (1,),
  "Max": (1,),
  "Mean": (1,),
  "Min": (1,),
  "MirrorPad": (1,),
  "MirrorPadGrad": (1,),
  "OneHot": (1,),
  "Pad": (1,),
  "PadV2": (1,),
  "Prod": (1,),
  "RFFT": (1,),
  "RFFT2D": (1,),
  "RandomStandardNormal": (0,),
  "RandomUniform": (0,),
  "RandomUniformInt": (0,),
  "Range": (0, 1, 2),
  "Reshape": (1,),
  "ResizeBilinear": (1,),
  "ResizeNearestNeighbor": (1,),
  "ResizeNearestNeighborGrad": (1,),
  "Reverse": (1,),
  "ReverseV2": (1,),
  "Roll": (2,),
  "ScatterNd": (2,),
  "Slice": (1, 2),
  "SpaceToBatchND": (1, 2),
  "Split": (0,),
  "SplitV": (1, 2),
  "StatelessRandomNormalV2": (0,),
  "StatelessRandomUniformV2": (0,),
  "StridedSlice": (1, 2, 3),
  "StridedSliceGrad": (0, 1, 2, 3),
  "Sum": (1,),
  "TensorListReserve": (0,),
  "Tile": (1,),
  "TopKV2": (1,),
  "Transpose": (1,),
  "TruncatedNormal": (0,),
  "UnsortedSegmentMax": (2,),
  "UnsortedSegmentMin": (2,),
  "UnsortedSegmentProd": (2,),
  "UnsortedSegmentSum": (2,),
}
# Ops whose result XLA knows from the static shape of their operand.
_OF_SHAPES = frozenset(["Rank", "Shape", "ShapeN", "Size"])
# Branches of a tf.cond that is differentiated outside of XLA keep intermediate
# values for the gradient with these ops, for which XLA has no kernel.
_OPTIONALS = frozenset(["OptionalFromValue", "OptionalNone"])


def constants(graph: graph_pb2.GraphDef) -> list[str]:
  """Says why XLA compiles every train step anew.

  Args:
    graph: The graph of a train step that calls a loaded model.

  Returns:
    A clause for each op whose gradient takes a compile-time constant out of the
    model, and for each argument of the step that XLA needs at compile time for
    another reason. Empty if the step compiles once.
  """
  by_name = graphs.functions(graph)
  nodes = {node.name: node for node in graph.node}
  found = set()
  for tensor in _Constants(by_name).find(graph.node, through_calls=False):
    node = nodes.get(tensor.split(":")[0])
    if node is None:
      continue
    if graphs.callee(node, by_name):
      op = _blamed(graph, by_name, tensor)
      found.add(f"the gradient of {op} takes a constant out of the model")
    elif node.op == "Placeholder":
      found.add(f"XLA needs the value of {node.name} at compile time")
  return sorted(found)


def branches(graph: graph_pb2.GraphDef) -> list[str]:
  """Names the conditionals whose gradient XLA cannot compile.

  Args:
    graph: The graph of a train step that calls a loaded model.

  Returns:
    Op, name and function of each tf.cond or tf.switch_case.
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


def _blamed(
  graph: graph_pb2.GraphDef,
  by_name: Mapping[str, graphs.Function],
  tensor: str,
) -> str:
  """Names the op that an output of a call, taken as a constant, is for."""
  *_, (made, place) = graphs.origins(graph, tensor)
  if made.op == "Const":
    users = [
      n
      for n in by_name[place].node_def
      if made.name in [x.split(":")[0] for x in n.input] and n.op != "Identity"
    ]
    made = (users or [made])[0]
  return f"{made.op} ({made.name} in {place})"


class _Constants:
  """Finds the Tensors of a graph that XLA needs at compile time."""

  def __init__(self, by_name: Mapping[str, graphs.Function]):
    self._by_name = by_name
    self._of_functions: dict[str, set[int]] = {}

  def find(
    self, nodes: Sequence[graphs.Node], through_calls: bool = True
  ) -> Iterator[str]:
    """Yields each compile-time constant and what it is computed from.

    The search ends at ops of `_OF_SHAPES`.

    Args:
      nodes: The nodes of a function, or of the graph.
      through_calls: Whether the operands of a call whose output is a
        compile-time constant are constants too.
    """
    nodes_by_name = {node.name: node for node in nodes}
    waiting = []
    for node in nodes:
      operands = graphs.operands(node)
      indices = _CONSTANT_OPERANDS.get(node.op, ())
      if function := graphs.callee(node, self._by_name):
        indices = self._arguments(function)
      waiting += [operands[i] for i in indices if i < len(operands)]
    seen = set()
    while waiting:
      tensor = waiting.pop()
      if tensor in seen:
        continue
      seen.add(tensor)
      yield tensor
      node = nodes_by_name.get(tensor.split(":")[0])
      if (
        node is not None
        and node.op not in _OF_SHAPES
        and (through_calls or not graphs.callee(node, self._by_name))
      ):
        waiting += graphs.operands(node)

  def _arguments(self, function: graphs.Function) -> set[int]:
    """Returns the indices of the arguments that are compile-time constants."""
    name = function.signature.name
    if name not in self._of_functions:
      index = {a.name: i for i, a in enumerate(function.signature.input_arg)}
      self._of_functions[name] = {
        index[tensor]
        for tensor in self.find(function.node_def)
        if tensor in index
      }
    return self._of_functions[name]
