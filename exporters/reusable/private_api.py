"""The parts of TensorFlow outside its public API that this project imports.

Each comment gives the purpose of an import, and what happens in a TensorFlow
without it. `private_api_test` fails if one is gone. `docs/versions.md` lists
the imports, and the private names that other modules use.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import pathlib
from typing import Any
from unittest import mock

import tensorflow as tf

# Protobuf messages in SavedModels and checkpoints. Their format is stable, but
# not their Python modules. Without them nothing can be exported or checked.
from tensorflow.core.framework import function_pb2 as function_pb2
from tensorflow.core.framework import graph_pb2 as graph_pb2
from tensorflow.core.framework import node_def_pb2 as node_def_pb2
from tensorflow.core.framework import types_pb2 as types_pb2
from tensorflow.core.protobuf import fingerprint_pb2
from tensorflow.core.protobuf import meta_graph_pb2 as meta_graph_pb2
from tensorflow.core.protobuf import saved_model_pb2 as saved_model_pb2

# Public functions return only the shortest path to each value in a checkpoint.
# A value may have several: a layer is an attribute of the model, and one of its
# `layers`. Without this message nothing can be restored.
from tensorflow.core.protobuf import (
  trackable_object_graph_pb2 as trackable_object_graph_pb2,
)

# The operands, results and attributes of ops. Without them nothing can be
# exported or checked.
from tensorflow.python.framework import op_def_registry

try:
  from tensorflow.python.saved_model import save_context
except ImportError:
  save_context = None
try:
  from tensorflow.python.saved_model import fingerprinting_utils
except ImportError:
  fingerprinting_utils = None
try:
  from tensorflow.python.framework import random_seed
except ImportError:
  random_seed = None
try:
  from tensorflow.python.framework import convert_to_constants
except ImportError:
  convert_to_constants = None


def as_in_a_save() -> contextlib.AbstractContextManager[None]:
  """Makes TensorFlow trace functions in the form that its save takes.

  Without `save_context`, saving traces all functions again, which needs more
  time and memory.
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


@contextlib.contextmanager
def empty_batches_change_nothing(batch_norm: type[Any]) -> Iterator[None]:
  """Makes batch normalization keep its moving averages on an empty batch.

  The last batch may leave a replica without examples. Keras handles that only
  in layers that are traced under a strategy, but the consumers of an export
  choose theirs later. If Keras lacks the method, verification refuses exports
  with batch normalization.

  Args:
    batch_norm: Keras' class of batch normalization.
  """
  name = "_support_zero_size_input"
  methods = [(c, vars(c)[name]) for c in batch_norm.__mro__ if name in vars(c)]
  for cls, _ in methods:
    setattr(cls, name, lambda layer: True)
  try:
    yield
  finally:
    for cls, method in methods:
      setattr(cls, name, method)


def forget_seed() -> None:
  """Keeps the seed of this process out of the graph that is being traced.

  With the seed, dropout would be the same for all consumers and all replicas.
  `saving_test` fails if TensorFlow takes the seed from elsewhere.
  """
  tf.compat.v1.get_default_graph().seed = None


@contextlib.contextmanager
def numbered_seeds() -> Iterator[Callable[[], int]]:
  """Gives random ops the seeds (1, 1), (1, 2), … in the order of their calls.

  The seeds of layers are replaced too. If TensorFlow lacks `random_seed`, no
  seed is replaced, and verification compares distributions.

  Yields:
    A function that returns the number of seeds given.
  """
  given = 0

  def next_seeds(op_seed: int | None) -> tuple[int, int]:
    del op_seed
    nonlocal given
    given += 1
    return 1, given

  tf.random.set_seed(1)  # Restarts the random numbers of ops.
  patch = (
    mock.patch.object(random_seed, "get_seed", next_seeds)
    if hasattr(random_seed, "get_seed")
    else contextlib.nullcontext()
  )
  with patch:
    yield lambda: given


def inlined(function: Any) -> graph_pb2.GraphDef:
  """Returns the graph of a concrete function with all calls inlined.

  If TensorFlow cannot inline them, or lacks `convert_to_constants`, the graph
  is returned unchanged.
  """
  name = "_run_inline_graph_optimization"
  try:
    return getattr(convert_to_constants, name)(function, False, False)
  except (AttributeError, tf.errors.OpError):
    return function.graph.as_graph_def()


def op_def(op: str) -> Any | None:
  """Returns the definition of an op, if it is known."""
  return op_def_registry.get(op)


def is_stateful(op: str) -> bool:
  """Tells whether an op has a state or an effect; True if that is unknown."""
  definition = op_def(op)
  return definition is None or definition.is_stateful


def default_attributes(op: str) -> dict[str, Any]:
  """Returns the attributes that nodes may omit; {} if they are unknown."""
  definition = op_def(op)
  return {
    attr.name: attr.default_value
    for attr in (definition.attr if definition else ())
    if attr.HasField("default_value")
  }


def write_fingerprint(export_dir: str) -> None:
  """Rewrites the fingerprint of a SavedModel that was changed.

  TensorFlow draws its uuid at random. Here the uuid follows from the other
  fields, so that equal models have equal bytes.

  If TensorFlow lacks the writer, the fingerprint is deleted, as it would be
  wrong.
  """
  if fingerprinting_utils is None:
    pathlib.Path(export_dir, "fingerprint.pb").unlink(missing_ok=True)
  else:
    fingerprinting_utils.write_fingerprint(export_dir)
    path = pathlib.Path(export_dir, "fingerprint.pb")
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    fingerprint.uuid = ""
    others = fingerprint.SerializeToString(deterministic=True)
    digest = hashlib.sha256(others).digest()
    fingerprint.uuid = str(int.from_bytes(digest[:16], "big"))
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))


def keras_paths(model: Any) -> dict[str, tf.Variable]:
  """Returns the variables of a model by their paths in Keras' own format.

  Keras numbers a layer's `_trainable_weights`, then its
  `_non_trainable_weights`. Without `saving_lib`, files of this format are
  refused. The import is local because not all programs need Keras.
  """
  try:
    from tf_keras.src.saving import saving_lib
  except ImportError as e:
    raise NotImplementedError("This Keras has no names of weights.") from e
  layers: dict[str, Any] = {}

  class Store:
    def make(self, path: str) -> dict[str, Any]:
      return layers.setdefault(path, {})

  def save(layer: Any, store: dict[str, Any]) -> None:
    own = layer._trainable_weights + layer._non_trainable_weights
    store.update(enumerate(own))

  base = next(c for c in type(model).__mro__ if "save_own_variables" in vars(c))
  original = base.save_own_variables
  base.save_own_variables = save
  try:
    saving_lib._save_state(model, Store(), None, "", set())
  finally:
    base.save_own_variables = original
  return {
    f"{path}/vars/{i}": variable
    for path, values in layers.items()
    for i, variable in values.items()
  }
