"""Loads the twin of a SavedModel, to check its gradients exactly.

The twin computes in single precision and draws the same numbers in each call.
"""

from collections.abc import Iterable
import itertools
import os
from typing import Any
import zlib

from google.protobuf import message
import numpy as np
import tensorflow as tf

from exporters.reusable import observation
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import saved_model_pb2

# In memory, as the sandbox is read-only. A removed name cannot be reused.
_DIRECTORIES = map("ram://twin_{}".format, itertools.count())
_FLOAT = tf.float32.as_datatype_enum
_HALF = (tf.bfloat16.as_datatype_enum, tf.float16.as_datatype_enum)
# Stateful random ops, and the ops that draw the same for the same seed.
_STATELESS = {
  "RandomStandardNormal": "StatelessRandomNormal",
  "RandomUniform": "StatelessRandomUniform",
  "RandomUniformInt": "StatelessRandomUniformInt",
  "TruncatedNormal": "StatelessTruncatedNormal",
}


def load(directory: str, files: Iterable[str]) -> Any:
  """Loads a SavedModel with float32 for half precision, and with fixed noise.

  Random ops that are not in `_STATELESS` still draw other numbers in each call.

  Args:
    directory: Its directory.
    files: The paths of its files.
  """
  with open(os.path.join(directory, "saved_model.pb"), "rb") as f:
    model = saved_model_pb2.SavedModel.FromString(f.read())
  _fix_noise(model.meta_graphs[0].graph_def)
  _convert(model)
  path = next(_DIRECTORIES)
  try:
    for file in files:
      if file.startswith(("assets/", "variables/")):
        target = f"{path}/{file}"
        tf.io.gfile.makedirs(target.rpartition("/")[0])
        tf.io.gfile.copy(f"{directory}/{file}", target)
    with tf.io.gfile.GFile(f"{path}/saved_model.pb", "wb") as f:
      f.write(model.SerializeToString())
    return observation.load(path)
  finally:
    tf.io.gfile.rmtree(path)


def _fix_noise(graph: graph_pb2.GraphDef) -> None:
  """Replaces stateful random ops, each with a seed of its own."""
  for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
    for node in [n for n in nodes if n.op in _STATELESS]:
      seed = nodes.add(name=f"{node.name}/twin_seed", op="Const")
      value = [zlib.crc32(node.name.encode()) >> 1, 1]
      seed.attr["dtype"].type = tf.int32.as_datatype_enum
      seed.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.int32))
      node.op = _STATELESS[node.op]
      output = "" if nodes is graph.node else ":output:0"
      node.input.insert(1, f"{seed.name}{output}")
      node.attr["Tseed"].type = tf.int32.as_datatype_enum
      if "Tout" in node.attr:  # Of RandomUniformInt.
        node.attr["dtype"].CopyFrom(node.attr["Tout"])
      for name in {"seed", "seed2", "Tout"} & {*node.attr}:
        del node.attr[name]


def _convert(proto: message.Message) -> None:
  """Replaces half-precision types in a message and all nested messages."""
  if proto.DESCRIPTOR.name == "TensorProto":
    if proto.dtype in _HALF:
      values = np.float32(tf.make_ndarray(proto))
      proto.CopyFrom(tf.make_tensor_proto(values))
    return
  for field, value in proto.ListFields():
    is_list = not isinstance(value, (int, message.Message))
    if field.enum_type and field.enum_type.name == "DataType":
      if not is_list:
        setattr(proto, field.name, _FLOAT if value in _HALF else value)
      else:
        value[:] = [_FLOAT if x in _HALF else x for x in value]
    elif field.message_type:
      held = value if is_list else [value]
      for each in held.values() if hasattr(held, "values") else held:
        if isinstance(each, message.Message):
          _convert(each)
