"""Tells whether a consumer's train step compiles anew at every step under XLA.

XLA decides for a call of a function as a whole whether its inputs must be known
when it compiles. If the gradient takes a single constant out of the function,
all of its inputs must be: the batch and the weights become constants of the
program, and the next batch means the next compilation.

Run as a program, this module writes one line of JSON: it may take long, or kill
its process, in XLA.

  python xla_trap.py SAVED_MODEL_DIR EXAMPLE.npz
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import inspect
import json
import re
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import graphs
from exporters.reusable import observation
from exporters.reusable.private_api import graph_pb2

# Operands that XLA must know when it compiles, by op: what TensorFlow's kernels
# for XLA register as CompileTimeConstantInput. -1 is the last operand.
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
# Their results are known as soon as the shape of their operand is.
_OF_SHAPES = frozenset(["Rank", "Shape", "ShapeN", "Size"])


def lowered(model: Any, example: Any) -> tuple[list[str], list[str]]:
  """Lowers a train step of a consumer, with a batch, as XLA compiles it.

  Args:
    model: What was loaded.
    example: A batch.

  Returns:
    What became a constant of the program instead of a parameter: inputs and
    variables; and the ops that are to blame. Both are empty where the step
    compiles once.
  """
  step = _train_step(model)
  named = example if isinstance(example, Mapping) else {"": example}
  arguments = [
    (name, x) for name, part in named.items() for x in tf.nest.flatten(part)
  ]
  traced = tf.function(step).get_concrete_function(example)
  hlo = tf.function(step, jit_compile=True).experimental_get_compiler_ir(
    example
  )(stage="hlo")
  entry = hlo[hlo.index("\nENTRY ") :]
  parameters = re.findall(r"= \w+\[([\d,]*)\]\S* parameter\(", entry)
  # Counted: one must not pass for another of the same shape.
  missing = collections.Counter(
    _shape(x) for x in (*(x for _, x in arguments), *traced.variables)
  ) - collections.Counter(parameters)
  constants = set(re.findall(r"= \w+\[([\d,]*)\]\S* constant\(", hlo))
  blamed = sorted(set(_blamed(traced.graph.as_graph_def())))
  baked = [
    " ".join(filter(None, ["the input", name, f"[{_shape(x)}]"]))
    for name, x in arguments
    if missing[_shape(x)]
  ]
  baked += [
    f"the variable {v.name}"
    for v in traced.variables
    if missing[_shape(v)]
    # A variable is a parameter too where it is updated. Constants of its shape
    # may be others by chance, scalars and vectors above all.
    or (blamed and v.shape.rank > 1 and _shape(v) in constants)
  ]
  return (baked, blamed) if baked else ([], [])


def _shape(array: Any) -> str:
  return ",".join(map(str, array.shape))


def _train_step(model: Any) -> Any:
  """Makes a step of gradient descent as a consumer would write it."""
  variables = list(model.trainable_variables)
  losses = list(getattr(model, "regularization_losses", ()))
  takes_training = "training" in inspect.signature(model.__call__).parameters

  def step(inputs: Any) -> tf.Tensor:
    with tf.GradientTape() as tape:
      outputs = model(inputs, **({"training": True} if takes_training else {}))
      loss = tf.add_n(
        [
          tf.reduce_mean(output**2)
          for output in tf.nest.flatten(outputs)
          if output.dtype.is_floating
        ]
        + [loss() for loss in losses]
      )
    gradients = tape.gradient(loss, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
      # Of embeddings it is sparse, and Keras' optimizers leave it so.
      if isinstance(gradient, tf.IndexedSlices):
        variable.scatter_sub(gradient)
      elif gradient is not None:
        variable.assign_sub(gradient)
    return loss

  return step


class _Constants:
  """Finds the Tensors that XLA must know when it compiles a graph."""

  def __init__(self, by_name: Mapping[str, graphs.Function]):
    self._by_name = by_name
    self._of_functions: dict[str, set[int]] = {}

  def find(
    self, nodes: Sequence[graphs.Node], through_calls: bool = True
  ) -> Iterator[str]:
    """Yields Tensors that must be known.

    So must what they are computed from; constants and shapes are. A call is
    gone through where all its inputs are to be found too.
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
    """Returns the indices of the arguments that must be known."""
    name = function.signature.name
    if name not in self._of_functions:
      index = {a.name: i for i, a in enumerate(function.signature.input_arg)}
      self._of_functions[name] = {
        index[tensor]
        for tensor in self.find(function.node_def)
        if tensor in index
      }
    return self._of_functions[name]


def _blamed(graph: graph_pb2.GraphDef) -> Iterator[str]:
  """Names the ops whose gradient takes a constant out of a called function."""
  by_name = graphs.functions(graph)
  nodes = {node.name: node for node in graph.node}
  for tensor in _Constants(by_name).find(graph.node, through_calls=False):
    node = nodes.get(tensor.split(":")[0])
    if node is None or not graphs.callee(node, by_name):
      continue
    *_, (made, place) = graphs.origins(graph, tensor)
    if made.op == "Const":
      # It is there for another op.
      users = [
        n
        for n in by_name[place].node_def
        if made.name in [x.split(":")[0] for x in n.input]
        and n.op != "Identity"
      ]
      made = (users or [made])[0]
    yield f"{made.op} ({made.name} in {place})"


def main(saved_model_dir: str, example_file: str) -> None:
  """Prints what `lowered` finds, as JSON."""
  with np.load(example_file) as arrays:
    example = {name: tf.constant(arrays[name]) for name in arrays.files}
  if list(example) == ["only"]:
    example = example["only"]
  model = observation.load(saved_model_dir)
  print(json.dumps(lowered(model, example)))


if __name__ == "__main__":
  main(*sys.argv[1:])
