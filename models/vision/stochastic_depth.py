"""Stochastic depth (Huang et al., arXiv:1603.09382) that XLA can compile.

Model Garden's layer tests whether its rate is 0. In an export the rate is a
Tensor, so the test becomes a `tf.cond`. The gradient of a `tf.cond` that was
traced outside of XLA has ops that XLA does not support.
"""

from __future__ import annotations

from collections.abc import Callable

from etils import epy

with epy.lazy_imports():
  from official.vision.modeling.layers import nn_layers
  import tensorflow as tf


def without_branch(
  layer: nn_layers.StochasticDepth,
) -> Callable[..., tf.Tensor]:
  """Makes a `call` for Model Garden's layer that has no branch on the rate.

  Args:
    layer: The layer. Its rate, `_drop_rate`, is None, a number or a float
      Tensor, in [0, 1).

  Returns:
    A function from a Tensor `[batch, ...]`, and `training`, to a Tensor of the
    same shape and dtype. In training, each example becomes 0 with the
    probability `rate`, and is divided by 1 - rate otherwise.
  """

  def call(inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    rate = layer._drop_rate
    if not training or rate is None:
      return inputs
    keep = tf.cast(1.0 - rate, inputs.dtype)
    shape = [tf.shape(inputs)[0]] + [1] * (inputs.shape.rank - 1)
    # Uniform in [0, 1), so that a rate of 0 keeps all examples as they are.
    random = tf.random.uniform(shape, dtype=inputs.dtype)
    return inputs / keep * tf.floor(keep + random)

  return call
