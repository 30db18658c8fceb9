"""Tokens of image patches, for images of any size."""

import tensorflow as tf
import tf_keras


class PatchTokens(tf_keras.layers.Layer):
  """Turns patches into tokens with positions; a class token comes first.

  Where the grid of patches is not that of the training, the table of positions
  is interpolated bilinearly, as Model Garden does it for `pos_embed_shape`.

  Attributes:
    positions: Model Garden's layer with the table of positions.
    class_token: Model Garden's layer that puts a class token first, or None.
  """

  def __init__(
    self,
    positions: tf_keras.layers.Layer,
    class_token: tf_keras.layers.Layer | None,
  ):
    super().__init__()
    self.positions = positions
    self.class_token = class_token

  def call(self, patches: tf.Tensor) -> tf.Tensor:
    """Computes `[batch, tokens, features]`.

    Args:
      patches: Embedded patches, `[batch, rows, columns, features]`.
    """
    _, rows, columns, features = tf.unstack(tf.shape(patches))
    tokens = tf.reshape(patches, [-1, rows * columns, patches.shape[-1]])
    table = self.positions.pos_embedding
    first = 0
    if self.class_token is not None:
      tokens = self.class_token(tokens)
      first = 1
    grid = self.positions.posemb_target_shape
    if table.shape[1] - first != grid[0] * grid[1]:
      grid = self.positions.posemb_origin_shape
    resized = tf.image.resize(
      tf.reshape(table[0, first:], [*grid, -1]), [rows, columns]
    )
    resized = tf.reshape(resized, [rows * columns, features])
    table = tf.concat([table[0, :first], tf.cast(resized, table.dtype)], 0)
    return tokens + tf.cast(table, tokens.dtype)
