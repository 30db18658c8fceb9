"""Compares the closed form with the gradients that TensorFlow derives."""

import collections

from absl.testing import parameterized
import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls
from exporters.reusable import xla

layers = tf_keras.layers


def _model(shape, **kwargs):
  tf_keras.utils.set_random_seed(0)
  norm = layers.LayerNormalization(
    gamma_initializer="uniform",
    beta_initializer="uniform",
    **{"epsilon": 1e-6, **kwargs},
  )
  return tf_keras.Sequential([layers.Input(shape), norm])


def _loss_and_gradients(model, inputs):
  with tf.GradientTape() as tape:
    tape.watch(inputs)
    loss = tf.reduce_sum(model(inputs) ** 3)
  return loss, tape.gradient(loss, [inputs, *model.trainable_variables])


def _ops(model, rank):
  """Counts the ops of a training step with dynamic lengths."""
  spec = tf.TensorSpec([None] * (rank - 1) + [4])
  graph = (
    tf.function(lambda x: _loss_and_gradients(model, x))
    .get_concrete_function(spec)
    .graph
  )
  return collections.Counter(op.type for op in graph.get_operations())


class LayerNormTest(parameterized.TestCase, tf.test.TestCase):
  @parameterized.parameters([[5, 4]], [[5, 3, 4]], [[5, 3, 2, 4]])
  def test_same_in_fewer_ops(self, shape):
    rank = len(shape)
    model = _model([None] * (rank - 2) + [4])
    inputs = 3 + tf.random.stateless_normal(shape, [0, 1])
    expected = _loss_and_gradients(model, inputs)
    derived = _ops(model, rank)
    with layer_calls.replaced(model, xla.CLOSED_GRADIENTS):
      actual = _loss_and_gradients(model, inputs)
      closed = _ops(model, rank)
    self.assertAllEqual(actual[0], expected[0])
    for a, e in zip(actual[1], expected[1], strict=True):
      self.assertAllClose(a, e, rtol=1e-4, atol=1e-5)
    self.assertEqual(derived["BroadcastTo"] - closed["BroadcastTo"], 2)
    self.assertLess(closed.total(), derived.total())
    self.assertEqual(_ops(model, rank), derived)  # As before.

  @parameterized.parameters(
    {"axis": [1, 2]},
    {"axis": 1},
    {"epsilon": 1e-3},
    {"scale": False},
    {"center": False},
    {"dtype": "mixed_bfloat16"},
  )
  def test_leaves_what_it_does_not_know(self, **kwargs):
    model = _model([3, 4], **kwargs)
    inputs = tf.random.stateless_normal([5, 3, 4], [0, 1])
    loss, gradients = _loss_and_gradients(model, inputs)
    with layer_calls.replaced(model, xla.CLOSED_GRADIENTS):
      again, gradients_again = _loss_and_gradients(model, inputs)
    self.assertAllEqual(again, loss)
    for a, e in zip(gradients_again, gradients, strict=True):
      self.assertAllEqual(a, e)


if __name__ == "__main__":
  tf.test.main()
