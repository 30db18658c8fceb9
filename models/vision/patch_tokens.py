"""Tokens of image patches, for images of any size."""

import tensorflow as tf
import tf_keras


class PatchTokens(tf_keras.layers.Layer):
  """Turns patches into tokens with positions; a class token comes first.

  For another grid of patches than that of the training, the table of positions
  is interpolated bilinearly, as Model Garden does for `pos_embed_shape`.
  """

  def __init__(
    self,
    positions: tf_keras.layers.Layer,
    class_token: tf_keras.layers.Layer | None,
  ):
    """Shares the variables of Model Garden's layers.

    Args:
      positions: The `AddPositionEmbs`, with the table of positions.
      class_token: The `TokenLayer`, or None.
    """
    super().__init__()
    self.positions = positions
    self.class_token = class_token

  def call(self, patches: tf.Tensor) -> tf.Tensor:
    """Computes `[batch, tokens, features]`.

    Args:
      patches: Embedded patches, `[batch, rows, columns, features]`.
    """
    rows, columns = tf.unstack(tf.shape(patches)[1:3])
    tokens = tf.reshape(patches, [-1, rows * columns, patches.shape[-1]])
    table = self.positions.pos_embedding
    first = 0
    if self.class_token is not None:
      tokens = self.class_token(tokens)
      first = 1  # Row 0 of the table is for the class token.
    grid = self.positions.posemb_target_shape  # Of the training.
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
