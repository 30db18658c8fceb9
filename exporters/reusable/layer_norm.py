"""Gives layer normalization a gradient in closed form.

TensorFlow derives the gradient op by op. With a free length, as in exports,
each mean spreads its gradient by an op of its own, over a shape that each step
computes. A train step then has more ops than that of the live model, whose
lengths are static. The closed form has fewer than either.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls

# From this epsilon on, cuDNN's smallest, Keras computes layer normalization by
# the op for batch normalization, whose gradient is in closed form.
_FUSED_EPSILON = 1.001e-5


def with_closed_gradient(
  layer: tf_keras.layers.LayerNormalization,
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Makes a `call` of the layer with a gradient in closed form.

  Outputs and gradients stay the same. The layer's own `call` is used where
  Keras has another form: for other dtypes than float32, for axes other than the
  last, and without scale or center.
  """
  original = layer.call
  if layer.epsilon >= _FUSED_EPSILON or not (layer.scale and layer.center):
    return original

  @tf.custom_gradient
  def normalize(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
    # As in Keras.
    mean, variance = tf.nn.moments(inputs, -1, keepdims=True)
    outputs = tf.nn.batch_normalization(
      inputs, mean, variance, beta, gamma, layer.epsilon
    )

    # The backward pass of batch normalization (Ioffe and Szegedy, 2015, section
    # 3), over the last axis in place of the batch.
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
      inverse = tf.math.rsqrt(variance + layer.epsilon)
      normalized = (inputs - mean) * inverse
      of_gamma = upstream * normalized
      of_normalized = upstream * gamma
      of_inputs = inverse * (
        of_normalized
        - tf.reduce_mean(of_normalized, -1, keepdims=True)
        - normalized * tf.reduce_mean(of_gamma * gamma, -1, keepdims=True)
      )
      examples = list(range(inputs.shape.rank - 1))
      return (
        of_inputs,
        tf.reduce_sum(of_gamma, examples),
        tf.reduce_sum(upstream, examples),
      )

    return outputs, gradient

  def call(inputs: tf.Tensor) -> tf.Tensor:
    is_plain = isinstance(inputs, tf.Tensor) and inputs.dtype == tf.float32
    if not is_plain or list(layer.axis) != [inputs.shape.rank - 1]:
      return original(inputs)
    return normalize(
      inputs,
      tf.convert_to_tensor(layer.gamma),
      tf.convert_to_tensor(layer.beta),
    )

  return call


REPLACEMENTS: layer_calls.Replacements = {
  layer_calls.class_name(
    tf_keras.layers.LayerNormalization
  ): with_closed_gradient
}
