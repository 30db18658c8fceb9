"""RevNet: reversible residual networks, Gomez et al. (arXiv:1707.04585)."""

from __future__ import annotations

from collections.abc import Callable
import itertools
from typing import Any

from etils import epy

from models.vision import image_classification

with epy.lazy_imports():
  from official.vision.modeling.layers import nn_blocks
  import tensorflow as tf


def with_derived_gradient(
  layer: nn_blocks.ReversibleLayer,
) -> Callable[..., tf.Tensor]:
  """Makes a `call` for Model Garden's layer whose gradient TensorFlow derives.

  The layer's custom gradient recomputes activations to save memory. It stores
  Tensors of a trace as attributes, so the layer cannot be saved. The layer also
  fails on feature maps of odd height or width.

  Args:
    layer: The layer.

  Returns:
    A function that replaces the layer's `call`. It takes a Tensor
    `[batch, height, width, channels]`, and `training`.
  """

  def shortcut(x: tf.Tensor, channels: int) -> tf.Tensor:
    x = tf.nn.avg_pool(x, layer._f.strides, layer._f.strides, "SAME")
    missing = channels - x.shape[-1]
    if not missing:
      return x
    padding = tf.zeros([*tf.unstack(tf.shape(x)[:3]), missing // 2], x.dtype)
    return _concat(padding, x, padding)

  def call(inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    half = inputs.shape[-1] // 2
    x1, x2 = inputs[..., :half], inputs[..., half:]
    f = layer._f(x2, training=training)
    y1 = f + shortcut(x1, f.shape[-1])
    g = layer._g(y1, training=training)
    return _concat(y1, g + shortcut(x2, g.shape[-1]))

  return call


def _concat(*parts: tf.Tensor) -> tf.Tensor:
  """Concatenates channels, with a gradient that XLA compiles once."""
  ends = list(itertools.accumulate(part.shape[-1] for part in parts))

  @tf.custom_gradient
  def concat(*parts: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    return tf.concat(parts, -1), lambda upstream: [
      upstream[..., start:end] for start, end in itertools.pairwise([0, *ends])
    ]

  return concat(*parts)


ARCHITECTURE = image_classification.Architecture(
  name="revnet",
  backbone="revnet",
  variants=("model_id", "REVNET_SPECS"),
  title="RevNet-{model_id}",
  description="A reversible residual network (arXiv:1707.04585)",
  experiment="revnet_imagenet",
  small={"backbone": {"revnet": {"model_id": 38}}},
  layer_calls={
    "official.vision.modeling.layers.nn_blocks.ReversibleLayer": (
      with_derived_gradient
    )
  },
)
