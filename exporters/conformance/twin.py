"""Loads the twin of a SavedModel, to check its gradients exactly.

The twin draws the same numbers in each call. It computes in double precision
unless that needs too much memory or an op lacks it.
"""

from collections.abc import Iterable, Iterator, Mapping
import functools
import itertools
import os
from typing import Any
import zlib

from google.protobuf import message
import numpy as np
import tensorflow as tf

from exporters.reusable import graphs
from exporters.reusable import observation
from exporters.reusable import private_api
from exporters.reusable.private_api import function_pb2
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import node_def_pb2
from exporters.reusable.private_api import saved_model_pb2

_Attributes = Mapping[str, Any]  # The AttrValues of a node, by name.

# In memory, because the sandbox is read-only. A removed name cannot be reused.
_DIRECTORIES = map("ram://twin_{}".format, itertools.count())
_VARIABLES = "variables/variables"
_COMPILED = "_XlaMustCompile"
_SHAPES = "_output_shapes"
_FLOATS = (tf.float32, tf.bfloat16, tf.float16)
# Stateful random ops, and the ops that draw the same for the same seed.
_STATELESS = {
  "RandomStandardNormal": "StatelessRandomNormal",
  "RandomUniform": "StatelessRandomUniform",
  "RandomUniformInt": "StatelessRandomUniformInt",
  "TruncatedNormal": "StatelessTruncatedNormal",
}


def load(
  directory: str, files: Iterable[str], dtype: tf.DType
) -> tuple[meta_graph_pb2.MetaGraphDef, Any]:
  """Loads a SavedModel with another float dtype, and with fixed noise.

  Random ops that are not in `_STATELESS` still draw other numbers in each call.

  Args:
    directory: Its directory.
    files: The paths of its files.
    dtype: The dtype that replaces float32, bfloat16 and float16. With float64,
      complex128 also replaces complex64.

  Returns:
    The changed MetaGraph, and the loaded object.
  """
  with open(os.path.join(directory, "saved_model.pb"), "rb") as f:
    model = saved_model_pb2.SavedModel.FromString(f.read())
  graph = model.meta_graphs[0]
  _fix_noise(graph.graph_def)
  _set_defaults(graph.graph_def)
  types = {x.as_datatype_enum: dtype.as_datatype_enum for x in _FLOATS}
  if dtype == tf.float64:
    types[tf.complex64.as_datatype_enum] = tf.complex128.as_datatype_enum
  _convert(graph, types)
  if dtype == tf.float64:
    _run_without_xla(graph.graph_def.library)
    _replace_single(graph.graph_def.library)
  path = next(_DIRECTORIES)
  try:
    for file in files:
      if file.startswith("assets/"):
        target = f"{path}/{file}"
        tf.io.gfile.makedirs(target.rpartition("/")[0])
        tf.io.gfile.copy(f"{directory}/{file}", target)
    if f"{_VARIABLES}.index" in files:
      tf.io.gfile.makedirs(f"{path}/variables")
      _convert_variables(directory, path, types)
    with tf.io.gfile.GFile(f"{path}/saved_model.pb", "wb") as f:
      f.write(model.SerializeToString())
    return graph, observation.load(path)
  finally:
    tf.io.gfile.rmtree(path)


def _convert_variables(
  source: str, target: str, types: Mapping[int, int]
) -> None:
  """Copies the values of variables, and casts those of a type in `types`."""
  reader = tf.train.load_checkpoint(f"{source}/{_VARIABLES}")
  dtypes = reader.get_variable_to_dtype_map()
  values = [
    tf.cast(reader.get_tensor(name), types[dtype.as_datatype_enum])
    if dtype.as_datatype_enum in types
    else reader.get_tensor(name)
    for name, dtype in dtypes.items()
  ]
  tf.raw_ops.SaveV2(
    prefix=f"{target}/{_VARIABLES}",
    tensor_names=list(dtypes),
    shape_and_slices=[""] * len(dtypes),
    tensors=values,
  )


def _fix_noise(graph: graph_pb2.GraphDef) -> None:
  """Replaces stateful random ops by stateless ones, seeded by their names.

  A custom gradient that draws without a seed gets other numbers than the
  forward pass.
  """
  gradients = {x.gradient_func for x in graph.library.registered_gradients}
  bodies = {f.signature.name: f.node_def for f in graph.library.function}
  for function, nodes in {"": graph.node, **bodies}.items():
    for node in [n for n in nodes if n.op in _STATELESS]:
      is_seeded = any(node.attr[name].i for name in ("seed", "seed2"))
      is_anew = function in gradients and not is_seeded
      name = f"{function}/{node.name}" if is_anew else node.name
      seed = nodes.add(name=f"{node.name}/twin_seed", op="Const")
      value = [zlib.crc32(name.encode()) >> 1, 1]
      seed.attr["dtype"].type = tf.int32.as_datatype_enum
      seed.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.int32))
      node.op = _STATELESS[node.op]
      output = "" if nodes is graph.node else ":output:0"
      node.input.insert(1, f"{seed.name}{output}")
      node.attr["Tseed"].type = tf.int32.as_datatype_enum
      if "Tout" in node.attr:  # RandomUniformInt has this attribute.
        node.attr["dtype"].CopyFrom(node.attr["Tout"])
      for name in {"seed", "seed2", "Tout"} & {*node.attr}:
        del node.attr[name]


def _set_defaults(graph: graph_pb2.GraphDef) -> None:
  """Sets the attributes that nodes lack because they have the default."""
  for function in graph.library.function:
    for node in function.node_def:
      for name, value in private_api.default_attributes(node.op).items():
        if name not in node.attr:
          node.attr[name].CopyFrom(value)


def _convert(proto: message.Message, types: Mapping[int, int]) -> None:
  """Replaces types in a message and all nested messages."""
  if proto.DESCRIPTOR.name == "TensorProto":
    if proto.dtype in types:
      dtype = tf.as_dtype(types[proto.dtype]).as_numpy_dtype
      values = np.asarray(tf.make_ndarray(proto), dtype)
      proto.CopyFrom(tf.make_tensor_proto(values))
    return
  for field, value in proto.ListFields():
    is_list = not isinstance(value, (int, message.Message))
    if field.enum_type and field.enum_type.name == "DataType":
      if not is_list:
        setattr(proto, field.name, types.get(value, value))
      else:
        value[:] = [types.get(x, x) for x in value]
    elif field.message_type:
      held = value if is_list else [value]
      for each in held.values() if hasattr(held, "values") else held:
        if isinstance(each, message.Message):
          _convert(each, types)


def _run_without_xla(library: function_pb2.FunctionDefLibrary) -> None:
  """Lets TensorFlow run functions for XLA, unless an op exists only in XLA.

  XLA's convolutions in double precision take 70 times as long on CPUs.
  """
  nodes = [node for f in library.function for node in f.node_def]
  if not any(node.op.startswith("Xla") for node in nodes):
    for compiled in (*library.function, *nodes):
      compiled.attr.pop(_COMPILED, None)


def _replace_single(library: function_pb2.FunctionDefLibrary) -> None:
  """Replaces ops that lack double precision by calls of functions."""
  made = {}
  for function in [*library.function]:
    renamed = {}
    for node in function.node_def:
      if node.op not in _IN_DOUBLE:
        continue
      compute, outputs, dtypes = _IN_DOUBLE[node.op]
      specs = [tf.TensorSpec(None, dtype) for dtype in dtypes]
      if node.op == "Conv2D":
        specs = _inputs(function, node)
        if not _is_grouped(node.attr, *specs):
          continue
      key = node.op, str(specs), str(sorted(node.attr.items()))
      if key not in made:
        computed = tf.function(
          functools.partial(compute, dict(node.attr)), autograph=False
        )
        made[key] = computed.get_concrete_function(*specs)
        library.function.add().CopyFrom(made[key].function_def)
      node.op = "PartitionedCall"
      node.attr.clear()
      node.attr["f"].func.name = made[key].function_def.signature.name
      for name, tensors in (
        ("Tin", made[key].inputs),
        ("Tout", made[key].outputs),
      ):
        types = [x.dtype.as_datatype_enum for x in tensors]
        node.attr[name].list.type.extend(types)
      for i, output in enumerate(outputs):
        renamed[f"{node.name}:{output}:0"] = f"{node.name}:output:{i}"
    for node in function.node_def:
      node.input[:] = [renamed.get(x, x) for x in node.input]
    for name, value in function.ret.items():
      function.ret[name] = renamed.get(value, value)


def _inputs(
  function: function_pb2.FunctionDef, node: node_def_pb2.NodeDef
) -> list[tf.TensorSpec]:
  """Returns the specs of a node's inputs, as far as shapes are recorded."""
  names = [arg.name for arg in function.signature.input_arg]
  recorded = {name: function.arg_attr[i].attr for i, name in enumerate(names)}
  recorded |= {other.name: other.attr for other in function.node_def}
  specs = []
  for tensor in graphs.operands(node):
    name = graphs.node_of(tensor)
    attributes = recorded[name]
    shapes = attributes[_SHAPES].list.shape if _SHAPES in attributes else ()
    is_known = shapes and (name in names or tensor.endswith(":0"))
    shape = tf.TensorShape(shapes[0] if is_known else None)
    specs.append(tf.TensorSpec(shape, tf.float64))
  return specs


def _is_grouped(
  attributes: _Attributes, images: tf.TensorSpec, kernel: tf.TensorSpec
) -> bool:
  """Returns whether a Conv2D is known to have groups, and channels last."""
  return (
    attributes["T"].type == tf.float64.as_datatype_enum
    and attributes["data_format"].s == b"NHWC"
    and images.shape.rank == kernel.shape.rank == 4
    and None not in (images.shape[3], *kernel.shape)
    and images.shape[3] != kernel.shape[2]
  )


def _grouped_conv(
  attributes: _Attributes, images: tf.Tensor, kernel: tf.Tensor
) -> tf.Tensor:
  """Computes Conv2D with groups, which has no gradient on CPUs."""
  height, width, depth, _ = kernel.shape
  groups = images.shape[3] // depth
  options = {
    name: [*attributes[name].list.i]
    for name in ("strides", "dilations", "explicit_paddings")
  } | {"padding": attributes["padding"].s.decode()}
  if depth == 1 and {*options["dilations"]} == {1}:
    kernel = tf.reshape(kernel, [height, width, groups, -1])
    return tf.raw_ops.DepthwiseConv2dNative(
      input=images, filter=kernel, **options
    )
  return tf.concat(
    [
      tf.raw_ops.Conv2D(input=x, filter=k, **options)
      for x, k in zip(
        tf.split(images, groups, 3), tf.split(kernel, groups, 3), strict=True
      )
    ],
    3,
  )


def _batch_norm(
  attributes: _Attributes,
  x: tf.Tensor,
  scale: tf.Tensor,
  offset: tf.Tensor,
  mean: tf.Tensor,
  variance: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Computes FusedBatchNormV3, but returns the batch's variance uncorrected.

  The op multiplies that variance by n / (n - 1), for moving averages only.
  """
  size, shape = tf.size(scale), tf.shape(x)
  is_first = attributes["data_format"].s.startswith(b"NC")
  rows = tf.reshape(x, [shape[0], size, -1] if is_first else [-1, size, 1])
  if attributes["is_training"].b:
    mean = tf.reduce_mean(rows, [0, 2])
    variance = tf.reduce_mean(tf.square(rows), [0, 2]) - tf.square(mean)
  factor = scale * tf.math.rsqrt(variance + attributes["epsilon"].f)
  y = rows * factor[:, None] + (offset - mean * factor)[:, None]
  return tf.reshape(y, shape), mean, variance


def _max_pool_3d(attributes: _Attributes, x: tf.Tensor) -> tf.Tensor:
  """Computes MaxPool3D with channels last; pools frames after rows, columns."""
  _, *sizes, _ = attributes["ksize"].list.i
  _, *strides, _ = attributes["strides"].list.i
  padding = attributes["padding"].s.decode()
  n, frames, rows, columns, channels = tf.unstack(tf.shape(x), 5)
  x = tf.reshape(x, [n * frames, rows, columns, channels])
  x = tf.nn.max_pool2d(x, sizes[1:], strides[1:], padding)
  _, rows, columns, _ = tf.unstack(tf.shape(x), 4)
  x = tf.reshape(x, [n, frames, rows * columns, channels])
  x = tf.nn.max_pool2d(x, [sizes[0], 1], [strides[0], 1], padding)
  return tf.reshape(x, [n, -1, rows, columns, channels])


def _resize(
  attributes: _Attributes, images: tf.Tensor, size: tf.Tensor
) -> tf.Tensor:
  """Computes ResizeBilinear."""
  weights = _interpolation(attributes, tf.shape(images)[1:3], size)
  return tf.einsum("yh,xw,bhwc->byxc", *weights, images)


def _resize_grad(
  attributes: _Attributes, grads: tf.Tensor, images: tf.Tensor
) -> tf.Tensor:
  """Computes ResizeBilinearGrad."""
  sizes = (tf.shape(x)[1:3] for x in (images, grads))
  weights = _interpolation(attributes, *sizes)
  return tf.einsum("yh,xw,byxc->bhwc", *weights, grads)


def _interpolation(
  attributes: _Attributes, old: tf.Tensor, new: tf.Tensor
) -> Iterator[tf.Tensor]:
  """Yields the matrices by which ResizeBilinear multiplies rows and columns."""
  for i in range(2):
    weights = tf.raw_ops.ResizeBilinear(
      images=tf.eye(old[i])[None, :, None],
      size=[new[i], 1],
      align_corners=attributes["align_corners"].b,
      half_pixel_centers=attributes["half_pixel_centers"].b,
    )
    yield tf.cast(weights[0, :, 0], tf.float64)


# The functions that replace ops, the names of their outputs, and input dtypes.
_IN_DOUBLE = {
  "Conv2D": (_grouped_conv, ("output",), [tf.float64] * 2),
  "FusedBatchNormV3": (
    _batch_norm,
    ("y", "batch_mean", "batch_variance"),
    [tf.float64] * 5,
  ),
  "MaxPool3D": (_max_pool_3d, ("output",), [tf.float64]),
  "ResizeBilinear": (_resize, ("resized_images",), [tf.float64, tf.int32]),
  "ResizeBilinearGrad": (_resize_grad, ("output",), [tf.float64] * 2),
}
