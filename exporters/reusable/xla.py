"""Replaces gradients that cost the train step of an export's consumer much.

In its consumer's graph a function of a SavedModel is one node, and the gradient
of the function is another. XLA decides for a node as a whole which inputs must
be known at compilation. If the gradient takes a single constant out of the
function, such as the paddings of a Pad or the axes of a Transpose, then all
inputs of the function must be known: the batch and the weights become part of
the program, and each batch needs a compilation.

`with_own_gradient` gives a layer a gradient that calls the layer once more, on
the same inputs, and differentiates that call, which makes its own constants.
XLA and TensorFlow's graph optimizer drop what is computed twice and not used.

`with_closed_gradient` saves ops. TensorFlow derives the gradient of layer
normalization op by op. With a free length, as in exports, each mean spreads its
gradient by an op of its own, over a shape that each step computes.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls

# From this epsilon on, cuDNN's smallest, Keras computes layer normalization by
# the op for batch normalization, whose gradient is in closed form.
_FUSED_EPSILON = 1.001e-5


def with_own_gradient(layer: Any) -> Callable[..., Any]:
  """Wraps the `call` of a layer into a function with a gradient of its own.

  Outputs and gradients stay the same.

  Args:
    layer: A Keras layer whose `call` takes one input, of any structure, and
      returns one Tensor.
  """
  original = layer.call
  # Of an RNN it is a property, and belongs to the cell.
  activation = vars(layer).get("activation")

  def call(inputs: Any, **kwargs: Any) -> Any:
    def compute(flat_inputs: Any) -> tf.Tensor:
      # Applied outside: its gradient would compute the layer once more.
      if activation:
        layer.activation = None
      try:
        return original(tf.nest.pack_sequence_as(inputs, flat_inputs), **kwargs)
      finally:
        if activation:
          layer.activation = activation

    @tf.custom_gradient
    def forward(*flat_inputs: tf.Tensor) -> Any:
      def gradient(upstream: tf.Tensor, variables: Any = ()) -> Any:
        with tf.GradientTape() as tape:
          tape.watch([x for x in flat_inputs if x.dtype.is_floating])
          again = compute(flat_inputs)
        of_inputs, of_variables = tape.gradient(
          again, (list(flat_inputs), list(variables)), upstream
        )
        if not variables:
          return of_inputs
        return of_inputs, [tf.convert_to_tensor(g) for g in of_variables]

      return compute(flat_inputs), gradient

    outputs = forward(*tf.nest.flatten(inputs))
    return activation(outputs) if activation else outputs

  return call


def with_closed_gradient(
  layer: tf_keras.layers.LayerNormalization,
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Makes a `call` of layer normalization with a gradient in closed form.

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


CLOSED_GRADIENTS: layer_calls.Replacements = {
  layer_calls.class_name(
    tf_keras.layers.LayerNormalization
  ): with_closed_gradient
}

# Keras layers whose gradient takes a constant out of the function.
REPLACEMENTS: layer_calls.Replacements = {
  layer_calls.class_name(layer_type): with_own_gradient
  for layer_type in (
    # Always.
    tf_keras.layers.Concatenate,
    tf_keras.layers.Dot,
    tf_keras.layers.GlobalMaxPooling1D,
    tf_keras.layers.GlobalMaxPooling2D,
    tf_keras.layers.GlobalMaxPooling3D,
    tf_keras.layers.Permute,
    tf_keras.layers.RepeatVector,
    tf_keras.layers.UpSampling1D,
    tf_keras.layers.UpSampling3D,
    tf_keras.layers.ZeroPadding1D,
    tf_keras.layers.ZeroPadding2D,
    tf_keras.layers.ZeroPadding3D,
    # If the padding is causal.
    tf_keras.layers.Conv1D,
    tf_keras.layers.SeparableConv1D,
    # If a dimension other than the batch is free.
    tf_keras.layers.Dense,
    tf_keras.layers.GlobalAveragePooling1D,
    tf_keras.layers.GlobalAveragePooling2D,
    tf_keras.layers.GlobalAveragePooling3D,
  )
}
