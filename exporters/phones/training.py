"""A model that is trained on the device: a signature with a new head."""

from collections.abc import Callable, Mapping
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.reusable.private_api import saved_model_pb2

_STEPS = 10  # Of the training that is compared.
_LEARNING_RATE = 1e-3
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7  # Of Adam.

# Ops whose gradient LiteRT lacks, and functions that replace the gradient.
_OWN_GRADIENTS = {"Relu": "ReluForLiteRt", "StridedSlice": "SliceForLiteRt"}
_LACKING = ("ReluGrad", "StridedSliceGrad")
_GRADIENT = "_gradient_op_type"  # The attribute that names a gradient.


def module(
  model: Any,
  call: Callable[..., dict[str, tf.Tensor]],
  specs: Mapping[str, tf.TensorSpec],
  *,
  classes: int,
  trains_all: bool,
) -> tuple[tf.Module, dict[str, Any]]:
  """Adds a new head to a signature, and signatures that train it by Adam.

  The model runs in inference mode: without dropout, and with fixed moving
  averages.

  Args:
    model: The object that owns the variables of `call`.
    call: The signature. The head takes its output `default`, or else its only
      or first one of rank 2.
    specs: Its inputs. Their first dimension is the batch size of `train`.
    classes: Number of classes.
    trains_all: Whether all trainable variables of the model are trained too.

  Returns:
    What `tf.saved_model.save` takes: a module, and the signatures. `train`
    takes the inputs, `labels`, int32 `[batch]`, and `learning_rate`; it returns
    the `loss`. `infer` takes one example and returns `logits`. `save` returns
    the trained variables, and `restore` takes them.
  """
  root = tf.Module()
  root.model = model
  features = _features_of(call.structured_outputs)
  width = call.structured_outputs[features].shape[-1]
  root.kernel = tf.Variable(tf.zeros([width, classes]), name="head/kernel")
  root.bias = tf.Variable(tf.zeros([classes]), name="head/bias")
  trained = [root.kernel, root.bias]
  if trains_all:
    used = {v.ref() for v in call.variables}
    trained += [v for v in model.trainable_variables if v.ref() in used]
  root.trained = trained

  def logits_of(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    outputs = call(**inputs)[features]
    if not trains_all:
      outputs = tf.stop_gradient(outputs)
    return tf.reshape(outputs, [-1, width]) @ root.kernel + root.bias

  one = {k: tf.TensorSpec([1, *v.shape[1:]], v.dtype) for k, v in specs.items()}
  return root, {
    "train": _train(root, logits_of, specs),
    "infer": _traced(lambda **inputs: {"logits": logits_of(inputs)}, **one),
    **_saving(trained),
  }


def _traced(function: Callable[..., Any], **specs: tf.TensorSpec) -> Any:
  return tf.function(function).get_concrete_function(**specs)


def _train(
  root: tf.Module,
  logits_of: Callable[..., tf.Tensor],
  specs: Mapping[str, tf.TensorSpec],
) -> Any:
  """Returns the signature `train`; adds the state of Adam to the module."""
  classes = root.bias.shape[0]
  root.step = tf.Variable(0.0)
  root.means, root.squares = (
    [tf.Variable(tf.zeros(v.shape)) for v in root.trained] for _ in range(2)
  )
  root.state = [*root.trained, root.step, *root.means, *root.squares]

  def train(
    labels: tf.Tensor, learning_rate: tf.Tensor, **inputs: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    with tf.GradientTape() as tape:
      likelihoods = tf.nn.log_softmax(logits_of(inputs))
      chosen = tf.one_hot(labels, classes) * likelihoods
      loss = -tf.reduce_mean(tf.reduce_sum(chosen, -1))
    gradients = tape.gradient(loss, root.trained)
    step = root.step.assign_add(1.0)
    rate = learning_rate * (
      tf.sqrt(1.0 - tf.exp(step * np.log(_BETA_2, dtype=np.float32)))
      / (1.0 - tf.exp(step * np.log(_BETA_1, dtype=np.float32)))
    )
    for v, m, s, g in zip(
      root.trained, root.means, root.squares, gradients, strict=True
    ):
      if g is not None:
        g = tf.convert_to_tensor(g)
        mean = m.assign(_BETA_1 * m + (1.0 - _BETA_1) * g)
        square = s.assign(_BETA_2 * s + (1.0 - _BETA_2) * g * g)
        v.assign_sub(rate * mean / (tf.sqrt(square) + _EPSILON))
    return {"loss": loss}

  return _traced(
    train,
    labels=tf.TensorSpec([next(iter(specs.values())).shape[0]], tf.int32),
    learning_rate=tf.TensorSpec([], tf.float32),
    **specs,
  )


def _saving(trained: list[tf.Variable]) -> dict[str, Any]:
  """Returns the signatures `save` and `restore`."""
  named = dict(zip(_names(trained), trained, strict=True))

  def restore(**values: tf.Tensor) -> dict[str, tf.Tensor]:
    for name, variable in named.items():
      variable.assign(values[name])
    return {"restored": tf.constant(len(named))}

  specs = {k: tf.TensorSpec(v.shape, v.dtype) for k, v in named.items()}
  return {
    "save": _traced(lambda: {k: v.read_value() for k, v in named.items()}),
    "restore": _traced(restore, **specs),
  }


def _features_of(outputs: Mapping[str, tf.TensorSpec]) -> str:
  """Returns the name of the output that a head takes."""
  usual = [n for n in ("default", "pooled_output") if n in outputs]
  flat = [n for n, x in outputs.items() if x.shape.rank == 2]
  return (usual or flat or list(outputs))[0]


def _names(variables: list[tf.Variable]) -> list[str]:
  """Returns the names that variables have in `save` and `restore`."""
  names: list[str] = []
  for variable in variables:
    name = re.sub(r"\W", "_", variable.name.partition(":")[0])
    names.append(f"{name}_{len(names)}" if name in names else name)
  return names


def write_examples(
  path: str,
  root: tf.Module,
  signatures: Mapping[str, Any],
  inputs: Mapping[str, tf.Tensor],
  classes: int,
) -> None:
  """Trains some steps in TensorFlow, writes the results, restores variables.

  Args:
    path: The file to write.
    root: What `module` returns.
    signatures: What `module` returns.
    inputs: A batch of examples.
    classes: Number of classes.
  """
  before = [v.numpy() for v in root.state]
  count = len(next(iter(inputs.values())))
  labels = np.random.default_rng(0).integers(0, classes, count, np.int32)
  batch = {
    **inputs,
    "labels": tf.constant(labels),
    "learning_rate": tf.constant(_LEARNING_RATE),
  }
  losses = [signatures["train"](**batch)["loss"] for _ in range(_STEPS)]
  logits = signatures["infer"](**{k: v[:1] for k, v in inputs.items()})
  for variable, value in zip(root.state, before, strict=True):
    variable.assign(value)
  np.savez(
    path,
    losses=np.stack(losses),
    logits=logits["logits"],
    **{f"in.{k}": v for k, v in batch.items()},
  )


@tf.RegisterGradient(_OWN_GRADIENTS["Relu"])
def _relu_gradient(op: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
  return gradient * tf.sign(op.outputs[0])


@tf.RegisterGradient(_OWN_GRADIENTS["StridedSlice"])
def _slice_gradient(op: tf.Operation, gradient: tf.Tensor) -> tuple:
  """Pads the gradient with zeros. The slice must have no steps."""
  x, begin, end, strides = op.inputs
  steps = tf.get_static_value(strides)
  masks = {
    name: op.get_attr(f"{name}_mask")
    for name in ("begin", "end", "shrink_axis", "ellipsis", "new_axis")
  }
  if steps is None or {*steps} != {1} or masks["ellipsis"] or masks["new_axis"]:
    names = ("shape", "begin", "end", "strides", "dy")
    tensors = (tf.shape(x), begin, end, strides, gradient)
    named = {f"{name}_mask": mask for name, mask in masks.items()}
    named |= zip(names, tensors, strict=True)
    return tf.raw_ops.StridedSliceGrad(**named), None, None, None

  paddings = [[0, 0] for _ in x.shape]
  for axis in range(len(steps)):
    has = {name: mask >> axis & 1 for name, mask in masks.items()}
    size = tf.shape(x)[axis]
    first, last = (
      tf.where(bound[axis] < 0, bound[axis] + size, bound[axis])
      for bound in (begin, end)
    )
    first = 0 if has["begin"] else first
    if has["shrink_axis"]:
      gradient, last = tf.expand_dims(gradient, axis), first + 1
    if not has["end"] or has["shrink_axis"]:
      paddings[axis][1] = size - tf.minimum(last, size)
    paddings[axis][0] = first
  return tf.pad(gradient, paddings), None, None, None


def copy_with_gradients(source: str, target: str) -> None:
  """Copies a SavedModel with gradients whose ops LiteRT has.

  Custom gradients with an op that LiteRT lacks are dropped, so the caller must
  compare training steps with those of the original.
  """
  for folder, _, names in os.walk(source):  # The sandbox forbids copytree.
    new = os.path.join(target, os.path.relpath(folder, source))
    os.makedirs(new)
    for name in names:
      shutil.copyfile(os.path.join(folder, name), os.path.join(new, name))
  path = pathlib.Path(target, "saved_model.pb")
  saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  for graph in saved.meta_graphs:
    library = graph.graph_def.library
    lacking = {
      function.signature.name
      for function in library.function
      if any(node.op in _LACKING for node in function.node_def)
    }
    custom = {
      gradient.registered_op_type.encode()
      for gradient in library.registered_gradients
      if gradient.gradient_func in lacking
    }
    for node in (n for f in library.function for n in f.node_def):
      if node.attr[_GRADIENT].s in custom or not node.attr[_GRADIENT].s:
        del node.attr[_GRADIENT]
      if node.op in _OWN_GRADIENTS and _GRADIENT not in node.attr:
        node.attr[_GRADIENT].s = _OWN_GRADIENTS[node.op].encode()
  path.write_bytes(saved.SerializeToString())
