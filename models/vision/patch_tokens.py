"""Tokens of image patches, for images of any size."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras


class PatchTokens(tf_keras.layers.Layer):
  """Turns patches into tokens with positions, preceded by learned tokens.

  If the grid of patches is not that of training, the table of positions is
  interpolated bilinearly, as Model Garden does for `pos_embed_shape`.
  """

  def __init__(
    self,
    positions: tf_keras.layers.Layer,
    first_tokens: Sequence[tf_keras.layers.Layer],
    name: str | None = None,
  ):
    """Shares the variables of Model Garden's layers.

    Args:
      positions: The `AddPositionEmbs`, with the table of positions.
      first_tokens: Built `TokenLayer`s, one for each token that precedes the
        patches.
      name: Name of the layer.
    """
    super().__init__(name=name)
    self.positions = positions
    self.first_tokens = list(first_tokens)

  def call(self, patches: tf.Tensor) -> tf.Tensor:
    """Computes `[batch, tokens, features]`.

    Args:
      patches: Embedded patches, `[batch, rows, columns, features]`.
    """
    rows, columns = tf.unstack(tf.shape(patches)[1:3])
    tokens = tf.reshape(patches, [-1, rows * columns, patches.shape[-1]])
    table = self.positions.pos_embedding
    # The first rows of the table are for these tokens.
    first = len(self.first_tokens)
    if first:
      values = tf.concat([layer.cls for layer in self.first_tokens], axis=1)
      values = tf.cast(values, tokens.dtype) + tf.zeros_like(tokens[:, :1])
      tokens = tf.concat([values, tokens], axis=1)
    grid = self.positions.posemb_target_shape  # The grid of training.
    if table.shape[1] - first != grid[0] * grid[1]:
      grid = self.positions.posemb_origin_shape
    of_patches = tf.image.resize(
      tf.reshape(table[:, first:], [1, *grid, table.shape[-1]]), [rows, columns]
    )
    of_patches = tf.reshape(of_patches, [1, rows * columns, table.shape[-1]])
    table = tf.concat(
      [table[:, :first], tf.cast(of_patches, table.dtype)], axis=1
    )
    return tokens + tf.cast(table, tokens.dtype)


class FirstTokens(tf_keras.layers.Layer):
  """Joins the features of the first tokens, `[batch, count * features]`."""

  def __init__(self, count: int):
    """Sets the number of tokens to join."""
    super().__init__()
    self.count = count

  def call(self, tokens: tf.Tensor) -> tf.Tensor:
    """Joins the features of the first of `[batch, tokens, features]`."""
    return tf.concat(tf.unstack(tokens[:, : self.count], self.count, 1), -1)
