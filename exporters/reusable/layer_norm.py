"""Gives layer normalization the gradient that one would write by hand.

TensorFlow derives it op by op. Where a length is free, as in what is exported,
each mean then spreads its gradient by an op of its own, over a shape that is
computed at each trace: a training step has more ops than that of the live
model, which sees the lengths. The closed form has fewer than either.
"""

from collections.abc import Callable
import contextlib
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls

# From here on Keras has it computed by an op for batch normalization, which has
# a gradient of its own (`LayerNormalization`, of cuDNN's least epsilon).
_FUSED_EPSILON = 1.001e-5


def with_closed_gradients(
  model: Any,
) -> contextlib.AbstractContextManager[None]:
  """Gives a model's layer normalizations gradients in closed form.

  Outputs and gradients stay what they are, and the model is as before at the
  end.

  Args:
    model: A Keras model or a module; what else it is has no such layers.
  """
  return layer_calls.replaced(model, _is_of_many_ops, _with_closed_gradient)


def _is_of_many_ops(layer: Any) -> bool:
  return (
    isinstance(layer, tf_keras.layers.LayerNormalization)
    and layer.epsilon < _FUSED_EPSILON
    and layer.scale
    and layer.center
  )


def _with_closed_gradient(
  layer: tf_keras.layers.LayerNormalization,
) -> Callable[[tf.Tensor], tf.Tensor]:
  original = layer.call

  @tf.custom_gradient
  def normalize(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
    # As Keras does.
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
