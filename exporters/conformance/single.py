"""Loads a SavedModel in single precision, to check its gradients."""

import itertools
from typing import Any

from google.protobuf import message
import numpy as np
import tensorflow as tf

from exporters.reusable import observation
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import saved_model_pb2

# In memory, as the sandbox is read-only. A removed name cannot be reused.
_DIRECTORIES = map("ram://single_{}".format, itertools.count())
_FLOAT = tf.float32.as_datatype_enum
_HALF = (tf.bfloat16.as_datatype_enum, tf.float16.as_datatype_enum)


def load(
  directory: str, files: list[str], graph: meta_graph_pb2.MetaGraphDef
) -> Any:
  """Loads a SavedModel with float32 in place of bfloat16 and float16.

  Args:
    directory: Its directory.
    files: The paths of its files.
    graph: Its only MetaGraph.
  """
  model = saved_model_pb2.SavedModel(
    saved_model_schema_version=1, meta_graphs=[graph]
  )
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
