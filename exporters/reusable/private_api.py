"""The parts of TensorFlow outside its public API that this project imports.

Each comment says what they are for, and what happens in a TensorFlow without
them. `private_api_test` fails if one of them is gone.
"""

from collections.abc import Iterator
import contextlib
import pathlib

import tensorflow as tf

# The messages in a SavedModel and in a checkpoint. Their format is stable, but
# not where Python finds them. Without them nothing can be exported or checked.
from tensorflow.core.framework import function_pb2 as function_pb2
from tensorflow.core.framework import graph_pb2 as graph_pb2
from tensorflow.core.framework import node_def_pb2 as node_def_pb2
from tensorflow.core.framework import types_pb2 as types_pb2
from tensorflow.core.protobuf import meta_graph_pb2 as meta_graph_pb2
from tensorflow.core.protobuf import saved_model_pb2 as saved_model_pb2

# What public functions tell of a checkpoint is the shortest path to each value.
# A value may have several: a layer is an attribute, and one of its model's
# layers. Without this message nothing can be restored.
from tensorflow.core.protobuf import (
  trackable_object_graph_pb2 as trackable_object_graph_pb2,
)

try:
  from tensorflow.python.saved_model import save_context
except ImportError:
  save_context = None
try:
  from tensorflow.python.saved_model import fingerprinting_utils
except ImportError:
  fingerprinting_utils = None


def as_in_a_save() -> contextlib.AbstractContextManager[None]:
  """Makes TensorFlow trace functions in the form that its save takes.

  Without `save_context` a save traces all functions once more, which takes
  longer and more memory.
  """
  if save_context is None:
    return contextlib.nullcontext()
  return save_context.save_context(tf.saved_model.SaveOptions())


@contextlib.contextmanager
def tensors_equal_by_identity() -> Iterator[None]:
  """Compares Tensors by identity, in the whole process.

  TensorFlow searches long lists of Tensors while it saves, and its elementwise
  `==` is slow there. If the switch is gone, saving takes longer.
  """
  if not hasattr(tf.compat.v1, "disable_tensor_equality"):
    yield
    return
  tf.compat.v1.disable_tensor_equality()
  try:
    yield
  finally:
    tf.compat.v1.enable_tensor_equality()


def forget_seed() -> None:
  """Leaves the seed of this process out of the graph that is being traced.

  With it, all consumers, and all replicas of one, would drop the same units.
  `saving_test` fails if TensorFlow takes the seed from elsewhere.
  """
  tf.compat.v1.get_default_graph().seed = None


def write_fingerprint(export_dir: str) -> None:
  """Rewrites the fingerprint of a SavedModel that was changed.

  If TensorFlow's writer is gone, the fingerprint, which would be wrong, is
  deleted.
  """
  if fingerprinting_utils is None:
    pathlib.Path(export_dir, "fingerprint.pb").unlink(missing_ok=True)
  else:
    fingerprinting_utils.write_fingerprint(export_dir)
