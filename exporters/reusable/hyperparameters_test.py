import tensorflow as tf
import tf_keras

from exporters.reusable import errors
from exporters.reusable import hyperparameters


def _dropouts(*rates):
  return tf_keras.Sequential(
    [tf_keras.layers.Dropout(rate) for rate in rates], name="dropouts"
  )


def _dropout_rate(model, **kwargs):
  return hyperparameters.of_layers(
    model.submodules,
    tf_keras.layers.Dropout,
    "rate",
    name="dropout_rate",
    description="",
    off=0.0,
    **kwargs,
  )


class HyperparametersTest(tf.test.TestCase):
  def test_of_layers_leaves_out_what_is_off(self):
    model = _dropouts(0.3, 0.0, 0.3)
    hyperparameter = _dropout_rate(model)
    self.assertEqual(hyperparameter.default, 0.3)
    self.assertCountEqual(
      hyperparameter.layers, [model.layers[0], model.layers[2]]
    )

  def test_of_layers_wants_one_value(self):
    with self.assertRaisesRegex(errors.ExportError, r"are \[0.1, 0.2\]"):
      _dropout_rate(_dropouts(0.1, 0.2))
    with self.assertRaisesRegex(errors.ExportError, "there are none"):
      _dropout_rate(_dropouts(0.0))

  def test_layers_in_proportion(self):
    model = _dropouts(0.2, 0.0, 0.4)
    hyperparameter = _dropout_rate(model, proportional=True)
    self.assertEqual(hyperparameter.default, 0.4)
    values = {"dropout_rate": tf.constant(0.1)}
    with hyperparameters.bound([hyperparameter], values):
      self.assertAllClose(
        [layer.rate for layer in model.layers], [0.05, 0.0, 0.1]
      )

  def test_zero_counts_where_it_does_not_turn_off(self):
    model = tf_keras.Sequential(
      [tf_keras.layers.BatchNormalization(momentum=0.0)]
    )
    hyperparameter = hyperparameters.of_layers(
      model.submodules,
      tf_keras.layers.BatchNormalization,
      "momentum",
      name="batch_norm_momentum",
      description="",
    )
    self.assertEqual(hyperparameter.default, 0.0)
    self.assertLen(hyperparameter.layers, 1)

  def test_bound_gives_back_also_after_an_error(self):
    model = _dropouts(0.3, 0.3)
    direct = hyperparameters.Hyperparameter("scale", 2.0, "")
    both = [_dropout_rate(model), direct]
    values = {"dropout_rate": tf.constant(0.9), "scale": tf.constant(5.0)}
    with self.assertRaisesRegex(ValueError, "broken"):
      with hyperparameters.bound(both, values) as arguments:
        self.assertAllClose([layer.rate for layer in model.layers], [0.9, 0.9])
        self.assertEqual(list(arguments), ["scale"])
        raise ValueError("broken")
    self.assertEqual([layer.rate for layer in model.layers], [0.3, 0.3])
    self.assertIsInstance(model.layers[0].rate, float)

  def test_bound_in_the_dtype_of_the_layer(self):
    layer = tf_keras.layers.Dropout(0.5, dtype="mixed_bfloat16")
    rate = hyperparameters.Hyperparameter("rate", 0.5, "", [layer], "rate")

    @tf.function
    def call(inputs, value):
      with hyperparameters.bound([rate], {"rate": value}):
        return layer(inputs, training=True)

    outputs = call(tf.ones([10000]), tf.constant(0.25))
    self.assertEqual(outputs.dtype, tf.bfloat16)
    self.assertAllClose(
      tf.reduce_mean(tf.cast(outputs == 0, "float32")), 0.25, 0.1
    )


if __name__ == "__main__":
  tf.test.main()
