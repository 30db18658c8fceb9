from absl.testing import parameterized
import numpy as np
from official.nlp.modeling import layers as nlp_layers
from official.vision.modeling.layers import nn_layers
import tensorflow as tf
import tf_keras

from exporters.reusable import hyperparameters

layers = tf_keras.layers


class Rate(layers.Dropout):
  """A user's dropout layer, which does not read its rate."""

  def call(self, inputs, training=None):
    return inputs


def _frozen(layer):
  layer.trainable = False
  return layer


def _transformer(dropout, attention_dropout):
  block = nlp_layers.TransformerEncoderBlock(
    2,
    8,
    "relu",
    output_dropout=dropout,
    attention_dropout=attention_dropout,
  )
  block(tf.ones([1, 3, 4]))
  return block


def _found(*modules):
  model = tf_keras.Sequential(modules)
  return {h.name: h for h in hyperparameters.of_model(model)}


def _values(hyperparameter, value):
  """Returns the values that layers read if the argument is `value`."""
  values = {hyperparameter.name: tf.constant(value)}
  with hyperparameters.bound([hyperparameter], values):
    return [
      float(getattr(layer, hyperparameter.attribute))
      for layer in hyperparameter.layers
    ]


class HyperparametersTest(parameterized.TestCase, tf.test.TestCase):
  @parameterized.named_parameters(
    ("nothing", lambda: [layers.Dense(1), layers.Dropout(0.0)], {}),
    (
      "dropout",
      lambda: [layers.Dropout(0.2), layers.SpatialDropout1D(0.4), Rate(0.9)],
      {"dropout_rate": (0.4, [0.05, 0.1])},
    ),
    (
      "transformer",
      lambda: [_transformer(0.1, 0.2)],
      {
        "dropout_rate": (0.1, [0.1]),
        "attention_dropout_rate": (0.2, [0.1, 0.1]),
      },
    ),
    (
      "attention_and_the_rest_alike",
      lambda: [_transformer(0.1, 0.1)],
      {
        "dropout_rate": (0.1, [0.1]),
        "attention_dropout_rate": (0.1, [0.1, 0.1]),
      },
    ),
    (
      "stochastic_depth",
      lambda: [
        nn_layers.StochasticDepth(0.1),
        nn_layers.StochasticDepth(0.2),
        nn_layers.StochasticDepth(None),
        nn_layers.StochasticDepth(0.0),
      ],
      {"stochastic_depth_rate": (0.2, [0.05, 0.1])},
    ),
    (
      "dropout_of_examples",
      lambda: [
        layers.Dropout(0.2, noise_shape=(None, 1, 1, 1)),
        layers.Dropout(0.4, noise_shape=(None, 1, 3)),
      ],
      {"dropout_rate": (0.4, [0.1]), "stochastic_depth_rate": (0.2, [0.1])},
    ),
    (
      "momentum",
      lambda: [
        layers.BatchNormalization(momentum=0.9),
        layers.BatchNormalization(momentum=0.99, synchronized=True),
        layers.experimental.SyncBatchNormalization(momentum=1.0),
        _frozen(layers.BatchNormalization(momentum=0.5)),
      ],
      {"batch_norm_momentum": (0.9, [0.1, 0.91, 1.0])},
    ),
    (
      "momentum_0",
      lambda: [layers.BatchNormalization(momentum=0.0)],
      {"batch_norm_momentum": (0.0, [0.1])},
    ),
  )
  def test_finds(self, build, expected):
    found = _found(*build())
    self.assertEqual(list(found), list(expected))
    for name, (default, of_layers) in expected.items():
      hyperparameter = found[name]
      self.assertEqual(hyperparameter.default, default)
      self.assertAllClose(_values(hyperparameter, 0.1), of_layers)
      is_momentum = name == "batch_norm_momentum"
      most = "maximum" if is_momentum else "exclusiveMaximum"
      self.assertEqual(hyperparameter.limits, {"minimum": 0, most: 1})
      self.assertEqual(hyperparameter.off, None if is_momentum else 0.0)
      # All values in the valid range are valid for all layers.
      for value in (0.0, 1.0):
        for x in _values(hyperparameter, value):
          self.assertBetween(x, 0.0, 1.0)

  def test_layers_keep_their_own_values_at_the_default(self):
    (rate,) = _found(layers.Dropout(0.1), layers.Dropout(0.3)).values()
    self.assertAllClose(_values(rate, 0.3), [0.1, 0.3], rtol=1e-7)
    self.assertIn("lower ones change in proportion", rate.description)

  def test_rounds_what_float_arithmetic_left_of_a_rate(self):
    rate = 0.1 * 3 - 0.2  # 0.10000000000000003
    layer = layers.Dropout(rate)
    (found,) = _found(layer, layers.Dropout(0.7 * rate)).values()
    self.assertEqual(f"{found.default}", "0.1")
    self.assertEqual(
      found.of_layer(rate, "the argument itself"), "the argument itself"
    )
    self.assertAllClose(_values(found, 0.1), [0.1, 0.07], rtol=1e-7)
    # More digits stay if they make another float32.
    (found,) = _found(layers.Dropout(0.1234567)).values()
    self.assertEqual(np.float32(found.default), np.float32(0.1234567))

  @parameterized.parameters(
    (0.5, [0.25, 0.875]),
    (0.0, [0.5], {"maximum": 1}),
    (1.5, [0.75, 6.5]),
    (2.0, [1.0], {"exclusiveMaximum": 8.5}),
    (2.0, [1.0, 8.5]),
    (4, [18], {"minimum": 3}),
    (1, [0, 6]),
    ("a", ["b", "c"]),
  )
  def test_other_values(self, default, others, limits=()):
    h = hyperparameters.Hyperparameter(
      "h", default, "", choices="bac", limits=dict(limits)
    )
    self.assertEqual(h.others(), others)

  def test_other_momentum(self):
    h = hyperparameters.Hyperparameter("momentum", 0.5, "")
    self.assertEqual(h.others(), [0.25, 0.995])

  def test_literals(self):
    self.assertEqual(
      [*map(hyperparameters.literal, (0.50, "a"))], ["0.5", '"a"']
    )

  def test_nothing_in_a_function(self):
    self.assertEqual(hyperparameters.of_model(lambda x: x), [])

  def test_bound_restores_also_after_an_error(self):
    model = tf_keras.Sequential([layers.Dropout(0.3), layers.Dropout(0.3)])
    direct = hyperparameters.Hyperparameter("scale", 2.0, "")
    both = [*hyperparameters.of_model(model), direct]
    values = {"dropout_rate": tf.constant(0.9), "scale": tf.constant(5.0)}
    with self.assertRaisesRegex(ValueError, "broken"):
      with hyperparameters.bound(both, values) as arguments:
        self.assertAllClose([layer.rate for layer in model.layers], [0.9, 0.9])
        self.assertEqual(list(arguments), ["scale"])
        raise ValueError("broken")
    self.assertEqual([layer.rate for layer in model.layers], [0.3, 0.3])
    self.assertIsInstance(model.layers[0].rate, float)

  def test_bound_in_the_dtype_of_the_layer(self):
    layer = layers.Dropout(0.5, dtype="mixed_bfloat16")
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
