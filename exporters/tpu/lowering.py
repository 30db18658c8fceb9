"""Lowers a consumer's fine-tuning step of an export, as XLA compiles it."""

from collections.abc import Mapping
import os
import re
from typing import Any

import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from exporters.conformance import subject as subject_lib
from exporters.reusable import errors

_CLASSES = 10  # Of the head that is trained on top.
# TensorFlow lowers here as for a CPU, and lacks it there; for TPUs it has it.
_FALSE_ALARM = "ResizeNearestNeighborGrad"


def inputs(
  subject: subject_lib.Subject,
  *,
  batch_size: int,
  image_size: int,
  seq_length: int,
) -> Any:
  """Returns what a step takes: the export's TensorSpecs, in known shapes.

  Args:
    subject: The export, loaded.
    batch_size: Examples of one core in a step.
    image_size: Height and width, where they are free.
    seq_length: Length of sequences, where it is free.

  Raises:
    ExportError: TPUs cannot take them.
  """
  return tf.nest.map_structure(
    lambda s: _fixed(s, batch_size, image_size, seq_length), subject.spec
  )


def lower(subject: subject_lib.Subject, **sizes: int) -> bytes:
  """Lowers a whole train step: the export in training mode, a head, Adam.

  Args:
    subject: The export, loaded.
    **sizes: As for `inputs`.

  Returns:
    A serialized HloModuleProto.

  Raises:
    ExportError: TPUs cannot run the step: the op, its place, and what to do.
  """
  if not subject.traces:
    raise errors.ExportError(
      f"{subject.directory} cannot be called, so there is nothing to train."
      " //exporters:check tells more."
    )
  spec = inputs(subject, **sizes)
  batch_size = sizes["batch_size"]
  for trace in subject.traces:
    _refuse_what_runs_on_hosts(trace)
  layer = hub.KerasLayer(subject.model, trainable=True)
  head = tf_keras.layers.Dense(_CLASSES)
  loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

  def features(batch: Any) -> tf.Tensor:
    outputs = layer(batch, training=True)
    if isinstance(outputs, Mapping):
      outputs = outputs.get("default", next(iter(outputs.values())))
    return tf.reshape(outputs, [batch_size, -1])

  # Traced, not run: batches may be large.
  shape = tf.function(features).get_concrete_function(spec).output_shapes
  if not shape.is_fully_defined():
    raise errors.ExportError(
      f"The export returns {shape}, and TPUs need shapes that are known before"
      " a step begins. Let them depend on the shape of the input alone."
    )
  head.build(shape)
  variables = layer.trainable_variables + head.trainable_variables
  optimizer = tf_keras.optimizers.Adam()
  optimizer.build(variables)

  # Flat, as what lowers takes specs only so.
  def step(labels: tf.Tensor, *flat: tf.Tensor) -> tf.Tensor:
    batch = tf.nest.pack_sequence_as(spec, flat)
    with tf.GradientTape() as tape:
      loss = loss_of(labels, head(features(batch))) + sum(layer.losses)
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return loss

  try:
    return tf.function(
      step, jit_compile=True, autograph=False
    ).experimental_get_compiler_ir(
      tf.TensorSpec([batch_size], tf.int32), *tf.nest.flatten(spec)
    )(stage="hlo_serialized")
  except (tf.errors.OpError, ValueError, TypeError) as e:
    raise errors.ExportError(_reworded(str(e))) from e


def _fixed(
  spec: tf.TensorSpec, batch_size: int, image_size: int, seq_length: int
) -> tf.TensorSpec:
  """Fixes what is free in a shape: TPUs need to know it."""
  if spec.dtype == tf.string:
    raise errors.ExportError(
      "The export takes strings, which TPUs do not have. It belongs on the"
      " host: call it in Dataset.map."
    )
  size = image_size if spec.shape.rank == 4 else seq_length
  return tf.TensorSpec(
    [batch_size, *(size if d is None else d for d in spec.shape[1:])],
    spec.dtype,
  )


def _refuse_what_runs_on_hosts(trace: Any) -> None:
  """Finds tables and strings, of which the compiler speaks obscurely."""
  graph = trace.graph.as_graph_def()
  places = [("the model", graph.node)]
  places += [(f.signature.name, f.node_def) for f in graph.library.function]
  for place, nodes in places:
    for node in nodes:
      is_table = "LookupTable" in node.op or "HashTable" in node.op
      is_string = any(
        a.type == tf.string.as_datatype_enum for a in node.attr.values()
      )
      if is_table or (is_string and node.op not in ("Const", "Assert")):
        what = "looks up a table" if is_table else "computes with strings"
        raise errors.ExportError(
          f"Op {node.op} ({_described(node.name)}, in {place}) {what}, which"
          " TPUs cannot. Take it out of the model and do it on the host, in"
          " Dataset.map."
        )


def _described(node: str) -> str:
  """Names a node, and the layer that its name begins with."""
  layer = os.path.dirname(node)
  return node + (f", of layer {layer}" if layer else "")


def _reworded(message: str) -> str:
  """Says in a user's words what TensorFlow's lowering does not take."""
  if _FALSE_ALARM in message:
    return (
      "Whether the step compiles cannot be told: lowering without a TPU lacks"
      f" {_FALSE_ALARM}, the gradient of nearest-neighbour resizing, which TPUs"
      " do have."
    )
  ops = re.findall(r"(\w+) \(No registered '\w+' OpKernel", message)
  nodes = re.findall(r"\{\{node ([^}]+)\}\}", message)
  if ops:
    where = f" ({_described(nodes[0])})" if nodes else ""
    return (
      f"TPUs have no op {', '.join(dict.fromkeys(ops))}{where}. Take it out of"
      " the model and do it on the host, in Dataset.map, or use other ops."
    )
  first = next(filter(None, map(str.strip, message.splitlines())), "")
  where = f" The op is {_described(nodes[0])}." if nodes else ""
  return (
    f"The step cannot be compiled for a TPU:{where} XLA says: {first}"
    " Shapes must be known before a step begins, and loops must have a bound."
  )


def lower_trifle() -> bytes:
  """Lowers a program that every compiler takes: one multiplication."""
  spec = tf.TensorSpec([8, 8], tf.float32)
  return tf.function(
    lambda x: x @ x, jit_compile=True
  ).experimental_get_compiler_ir(spec)(stage="hlo_serialized")
