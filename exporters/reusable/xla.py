"""Keeps the train step of an export from being compiled at every step.

In its consumer's graph a function of a SavedModel is one node, and the gradient
of the function is another. XLA decides for a node as a whole which inputs must
be known at compilation. If the gradient takes a single constant out of the
function, such as the paddings of a Pad or the axes of a Transpose, then all
inputs of the function must be known: the batch and the weights become part of
the program, and each batch needs a compilation.

`with_own_gradient` gives a layer a gradient that calls the layer once more, on
the same inputs, and differentiates that call, which makes its own constants.
XLA and TensorFlow's graph optimizer drop what is computed twice and not used.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls


def with_own_gradient(layer: Any) -> Callable[..., Any]:
  """Wraps the `call` of a layer into a function with a gradient of its own.

  Outputs and gradients stay the same.

  Args:
    layer: A Keras layer whose `call` takes one input, of any structure, and
      returns one Tensor.
  """
  original = layer.call
  activation = getattr(layer, "activation", None)

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


# Keras layers whose gradient takes a constant out of the function.
REPLACEMENTS: layer_calls.Replacements = {
  layer_calls.class_name(layer_type): with_own_gradient
  for layer_type in (
    # Always.
    tf_keras.layers.Concatenate,
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
