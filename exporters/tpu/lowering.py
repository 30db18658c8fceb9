"""Lowers the fine-tuning step of an export to HLO, the input of XLA."""

import base64
from collections.abc import Iterator, Mapping
import os
import re
from typing import Any

import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from exporters.conformance import subject as subject_lib
from exporters.reusable import errors

_CLASSES = 10  # Outputs of the head.
# TensorFlow lowers for the CPU, which lacks this op. TPUs have it.
_FALSE_ALARM = "ResizeNearestNeighborGrad"


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Lowers steps inside a sandbox.

  The first request is that of `copying.started`; the answer is the program of
  `lower_trifle`. Further requests are the sizes that `lower` takes. Each answer
  has the program, encoded in base64, and the `shapes` of its inputs.
  """
  request = next(requests)
  subject = subject_lib.requested(request)
  subject_lib.load_into(subject, request["trust"])
  if subject.model is None:
    raise errors.ExportError(f"{subject.directory}: {subject.unloaded}.")
  if subject.takes_strings:
    raise errors.ExportError(
      f"{subject.directory} takes strings (kind: {subject.kind.name}), which"
      " TPUs do not support. Run it on the host: call it in Dataset.map."
    )
  yield {"program": base64.b64encode(lower_trifle()).decode()}
  for sizes in requests:
    specs = tf.nest.flatten(inputs(subject, *sizes))
    yield {
      "program": base64.b64encode(lower(subject, *sizes)).decode(),
      "shapes": [spec.shape.as_list() for spec in specs],
    }


def inputs(
  subject: subject_lib.Subject,
  batch_size: int,
  image_size: int,
  seq_length: int,
) -> Any:
  """Returns the export's input TensorSpecs with static shapes.

  Args:
    subject: The loaded export.
    batch_size: Examples per core and step.
    image_size: Height and width of images, if the export leaves them free.
    seq_length: Sequence length, if the export leaves it free.
  """

  def fixed(spec: tf.TensorSpec) -> tf.TensorSpec:
    sizes = [seq_length] * spec.shape.rank
    if spec.shape.rank >= 4:  # Images, or sequences of images.
      sizes[-3:-1] = [image_size, image_size]
    shape = [
      n if d is None else d for n, d in zip(sizes, spec.shape, strict=True)
    ]
    return tf.TensorSpec([batch_size, *shape[1:]], spec.dtype)

  return tf.nest.map_structure(fixed, subject.spec)


def lower(subject: subject_lib.Subject, batch_size: int, *sizes: int) -> bytes:
  """Lowers a train step: the export in training mode, a new head, Adam.

  Args:
    subject: The loaded export.
    batch_size: Examples per core and step.
    *sizes: The other sizes that `inputs` takes.

  Returns:
    A serialized HloModuleProto.

  Raises:
    ExportError: TPUs cannot run the step. The message names the op.
  """
  if not subject.traces:
    raise errors.ExportError(
      f"{subject.directory} cannot be called, so there is nothing to train."
      " Run //exporters:check on it for details."
    )
  spec = inputs(subject, batch_size, *sizes)
  for trace in subject.traces:
    _check_ops(trace)
  labels = tf.TensorSpec([batch_size], tf.int32)
  try:
    step = _train_step(subject, spec, batch_size)
    return step.experimental_get_compiler_ir(labels, *tf.nest.flatten(spec))(
      stage="hlo_serialized"
    )
  except errors.ExportError:
    raise
  except Exception as e:  # A stranger's program may raise anything.
    raise errors.ExportError(_user_message(str(e))) from e


def _train_step(
  subject: subject_lib.Subject, spec: Any, batch_size: int
) -> Any:
  """Makes the tf.function that takes labels and flattened inputs of `spec`."""
  layer = hub.KerasLayer(subject.model, trainable=True)
  head = tf_keras.layers.Dense(_CLASSES)
  loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

  def features(batch: Any) -> tf.Tensor:
    outputs = layer(batch, training=True)
    if isinstance(outputs, Mapping):
      outputs = outputs.get("default", next(iter(outputs.values())))
    elif isinstance(outputs, (list, tuple)):  # A cell: output, states.
      outputs = outputs[0]
    if outputs.shape.rank == 3 and outputs.shape[1] is None:
      # TensorFlow does not infer the shape of a loop's results, but XLA does.
      outputs = tf.ensure_shape(outputs[:, -1], [batch_size, None])
    return tf.reshape(outputs, [batch_size, -1])

  # Trace it without running it: batches may be large.
  shape = tf.function(features).get_concrete_function(spec).output_shapes
  if not shape.is_fully_defined():
    raise errors.ExportError(
      f"The export returns the shape {shape}, but TPUs need static shapes. Make"
      " output shapes depend on input shapes alone."
    )
  head.build(shape)
  variables = layer.trainable_variables + head.trainable_variables
  optimizer = tf_keras.optimizers.Adam()
  optimizer.build(variables)

  # `experimental_get_compiler_ir` takes no nested specs.
  @tf.function(jit_compile=True, autograph=False)
  def step(labels: tf.Tensor, *flat: tf.Tensor) -> tf.Tensor:
    batch = tf.nest.pack_sequence_as(spec, flat)
    with tf.GradientTape() as tape:
      loss = loss_of(labels, head(features(batch))) + sum(layer.losses)
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return loss

  return step


def _check_ops(trace: Any) -> None:
  """Raises an ExportError for tables and strings, which run on hosts only.

  The compiler's own messages about them are obscure.
  """
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
          " TPUs do not support. Move it from the model to the host, into"
          " Dataset.map."
        )


def _described(node: str) -> str:
  """Returns the name of a node and of its layer."""
  layer = os.path.dirname(node)
  return node + (f", of layer {layer}" if layer else "")


def _user_message(message: str) -> str:
  """Rewrites an error message of TensorFlow's lowering for users."""
  if _FALSE_ALARM in message:
    return (
      "This machine cannot tell whether the step compiles: without a TPU,"
      f" lowering lacks {_FALSE_ALARM}, the gradient of nearest-neighbor"
      " resizing. TPUs have this op."
    )
  ops = re.findall(r"(\w+) \(No registered '\w+' OpKernel", message)
  nodes = re.findall(r"\{\{node ([^}]+)\}\}", message)
  if ops:
    where = f" ({_described(nodes[0])})" if nodes else ""
    return (
      f"TPUs have no op {', '.join(dict.fromkeys(ops))}{where}. Use other ops,"
      " or move it from the model to the host, into Dataset.map."
    )
  first = next(filter(None, map(str.strip, message.splitlines())), "")
  where = f" The op is {_described(nodes[0])}." if nodes else ""
  return (
    f"The step cannot be compiled for a TPU:{where} XLA says: {first}"
    " TPUs need static shapes, and loops must have a bound."
  )


def lower_trifle() -> bytes:
  """Lowers a single multiplication, which every compiler accepts."""
  spec = tf.TensorSpec([8, 8], tf.float32)
  return tf.function(
    lambda x: x @ x, jit_compile=True
  ).experimental_get_compiler_ir(spec)(stage="hlo_serialized")
