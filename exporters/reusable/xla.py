"""Lets an export train under XLA without a compilation at every step.

A function of a SavedModel is one node in its consumer's graph, and the gradient
of it is another. XLA decides for a node as a whole whether its inputs must be
known when it compiles. If the gradient takes a single constant out of the
function, such as the paddings of a Pad or the axes of a Transpose, then all
inputs of the function must be known: the batch and the weights become a part of
the program, and the next batch means the next compilation.

The cure is for layers to have a gradient that calls the layer again, on its
inputs, and differentiates that call: it makes its constants by itself. What is
computed twice and not used, XLA and TensorFlow's graph optimizer drop.
"""

from collections.abc import Callable
import contextlib
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls

# Layers whose gradient takes a constant out of the function.
_LAYERS = (
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
  # Where padding is causal.
  tf_keras.layers.Conv1D,
  # Where a dimension beside the batch is free.
  tf_keras.layers.Dense,
  tf_keras.layers.GlobalAveragePooling1D,
  tf_keras.layers.GlobalAveragePooling2D,
  tf_keras.layers.GlobalAveragePooling3D,
)
# By name: importing them takes a second, and most models have none.
_NAMES = frozenset(
  ["official.nlp.modeling.layers.position_embedding.PositionEmbedding"]
)


def _needs_cure(layer: Any) -> bool:
  return isinstance(layer, _LAYERS) or any(
    f"{c.__module__}.{c.__qualname__}" in _NAMES for c in type(layer).__mro__
  )


def cured(model: Any) -> contextlib.AbstractContextManager[None]:
  """Gives layers of a model gradients that make their own constants.

  Outputs and gradients stay what they are, and the model is as before at the
  end.

  Args:
    model: A Keras model or a module; what else it is has no layers to cure.
  """
  return layer_calls.replaced(model, _needs_cure, _with_own_gradient)


def _with_own_gradient(layer: Any) -> Callable[..., Any]:
  """Wraps a layer's `call` into a function with a gradient of its own."""
  original = layer.call
  activation = getattr(layer, "activation", None)

  def call(inputs: Any, **kwargs: Any) -> Any:
    def compute(flat_inputs: Any) -> tf.Tensor:
      # The activation needs no cure, but its gradient would need all that goes
      # before it, computed again.
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
