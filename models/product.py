"""A product: the smallest module that can be trained."""

from collections.abc import Callable

import tensorflow as tf


class Product(tf.Module):
  """Multiplies numbers by a variable."""

  def __init__(self, factor: float):
    """Creates the variable `v` with the value `factor`."""
    super().__init__()
    self.v = tf.Variable(factor, name="v")

  def __call__(self, numbers: tf.Tensor) -> tf.Tensor:
    """Returns `v` times each number, float32 `[batch]`."""
    return numbers * self.v

  @property
  def regularization_losses(self) -> list[Callable[[], tf.Tensor]]:
    """Functions without arguments that return the losses, float32 `[]`."""
    return [lambda: 0.001 * self.v**2]
