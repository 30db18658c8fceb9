"""Uses exports in Keras 3, in a process without TF_USE_LEGACY_KERAS."""

import json
import os
import pathlib

os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Bazel sets it for all tests.

from absl import flags
import keras
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from data import images as image_data
from integration_tests.keras3 import reusable_layer
from integration_tests.keras3 import use_mnist_cnn_keras3

_MNIST_CNN = flags.DEFINE_string(
  "mnist_cnn", None, "A feature vector of images, trained on digits 0 to 4."
)
_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class _Calling(keras.layers.Layer):
  """A layer of Keras 3 that calls a model, written the natural way."""

  def __init__(self, model):
    super().__init__()
    self.model = model

  def call(self, inputs, training=False):
    return self.model(inputs, training=training)


def _classifier(layer, optimizer=None, **kwargs):
  model = keras.Sequential([keras.Input([28, 28, 1]), layer])
  model.add(keras.layers.Dense(5))
  model.compile(optimizer or keras.optimizers.SGD(0.1), _LOSS, **kwargs)
  return model


class Keras3Test(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    (images, labels), cls.test = image_data.arrays("digits_5_9", (28, 28, 1))
    cls.train = images[:64], labels[:64]
    cls.export = tf.saved_model.load(_MNIST_CNN.value)
    cls.before = {  # By their names in Keras 3.
      v.name.replace("/", "_").removesuffix(":0"): v.numpy()
      for v in cls.export.variables
    }

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(1)

  def path(self, name):
    return os.path.join(self.get_temp_dir(), name)

  def moved(self, weights):
    """Returns the numbers of trainable weights and averages that moved."""
    counts = {"trainable": 0, "averages": 0}
    for weight in weights:
      name = "averages" if "moving" in weight.name else "trainable"
      before = self.before[weight.name.replace("/", "_").removesuffix(":0")]
      counts[name] += not np.array_equal(weight.numpy(), before)
    return counts

  def assert_saves_and_reloads(self, model, **kwargs):
    path = self.path("saved.keras")
    model.save(path)
    loaded = keras.models.load_model(path, **kwargs)
    images, _ = self.train
    self.assertAllEqual(loaded(images), model(images))
    return loaded

  def test_fine_tunes_images(self):
    path = self.path("images.keras")
    model, accuracy = use_mnist_cnn_keras3.main(
      _MNIST_CNN.value, output_file=path
    )
    self.assertGreater(accuracy, 0.85)  # 0.944 to 0.983 with five seeds.
    layer = model.get_layer("export")
    self.assertLen(layer.trainable_weights, 8)
    self.assertLen(layer.non_trainable_weights, 4)
    self.assertEqual(self.moved(layer.weights), {"trainable": 8, "averages": 4})
    (loss,) = layer.saved_model.regularization_losses
    self.assertAllClose(model.losses, [loss()], rtol=1e-6)
    loaded = keras.models.load_model(path)
    self.assertAllEqual(loaded(self.test[0]), model(self.test[0]))
    # Others can fine-tune the result again.
    signatures = layer.saved_model.signatures
    tf.saved_model.save(layer.saved_model, self.path("again"), signatures)
    again = hub.KerasLayer(self.path("again"))
    self.assertAllEqual(again(self.test[0]), layer(self.test[0]))

  def test_trains_like_hub_keras_layer(self):
    arguments = {"dropout_rate": 0.0, "batch_norm_momentum": 0.5}
    layer = reusable_layer.ReusableLayer(_MNIST_CNN.value, arguments)
    adam = keras.optimizers.Adam(1e-3)
    model = _classifier(layer, adam, jit_compile=True)  # Under XLA.
    self.assertTrue(model.jit_compile)
    old = hub.KerasLayer(_MNIST_CNN.value, True, arguments)
    old_model = tf_keras.Sequential([old, tf_keras.layers.Dense(5)])
    old_model(self.train[0][:1])
    old_model.layers[1].set_weights(model.layers[1].get_weights())
    old_model.compile(
      tf_keras.optimizers.Adam(1e-3),
      tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = [
      m.fit(*self.train, epochs=3, shuffle=False, verbose=0).history["loss"]
      for m in (model, old_model)
    ]
    # The difference is 5e-4 with XLA, and below 1e-4 without. If regularization
    # losses were missing, it would be 1e-2.
    self.assertAllClose(*losses, rtol=5e-3)
    # Adam moves even weights whose gradients are rounding errors.
    for new, expected in zip(layer.weights, old.weights, strict=True):
      difference = np.mean(np.abs(new.numpy() - expected.numpy()))
      moved = np.mean(np.abs(new.numpy() - self.before[new.name]))
      self.assertLess(difference, 0.2 * moved, new.name)

  def test_arguments_and_modes(self):
    steady = {"dropout_rate": 0.0, "batch_norm_momentum": 1.0}
    layer = reusable_layer.ReusableLayer(_MNIST_CNN.value, steady)
    images, _ = self.train
    first, second = (layer(images, training=True) for _ in range(2))
    self.assertAllEqual(first, second)
    self.assertNotAllClose(first, layer(images))
    self.assertEqual(self.moved(layer.weights)["averages"], 0)
    loaded = self.assert_saves_and_reloads(_classifier(layer))
    self.assertEqual(loaded.layers[0].arguments, steady)
    frozen = reusable_layer.ReusableLayer(_MNIST_CNN.value, trainable=False)
    model = _classifier(frozen)
    model.fit(*self.train, verbose=0)
    self.assertEqual(
      self.moved(frozen.weights), {"trainable": 0, "averages": 0}
    )
    self.assertEmpty(model.losses)
    frozen.trainable = True
    self.assertLen(model.trainable_weights, 10)
    self.assertLen(model.losses, 1)

  def test_freezing_profiles_train_their_variables(self):
    path = pathlib.Path(_MNIST_CNN.value, "assets.extra/model.json")
    described = json.loads(path.read_text())
    averages = [
      v["name"] for v in described["variables"] if "/moving_" in v["name"]
    ]
    self.assertLen(described["profiles"], 2)
    for profile in described["profiles"]:
      layer = reusable_layer.ReusableLayer(
        _MNIST_CNN.value, part=profile["name"]
      )
      model = _classifier(layer, keras.optimizers.Adam())
      model.fit(*self.train, verbose=0)
      moved = [
        v.name.removesuffix(":0")
        for v, before in zip(
          layer.saved_model.variables, self.before.values(), strict=True
        )
        if np.any(v != before)
      ]
      self.assertCountEqual(moved, profile["trainable_variables"] + averages)

  def test_tfsm_layer(self):
    layer = keras.layers.TFSMLayer(
      _MNIST_CNN.value, call_training_endpoint="train"
    )
    images, _ = self.train
    self.assertAllClose(layer(images), self.export(images))
    self.assertNotAllClose(layer(images, training=True), self.export(images))
    model = _classifier(layer)
    self.assertLen(layer.trainable_weights, 8)
    model.fit(*self.train, verbose=0)
    self.assertEqual(self.moved(layer.weights), {"trainable": 8, "averages": 4})
    self.assertEmpty(model.losses)
    self.assert_saves_and_reloads(model, safe_mode=False)

  def test_keras_cannot_train_tfsm_layer_with_adam(self):
    # If this test fails, a newer Keras can: correct the card and the page.
    keras_model = keras.Sequential([keras.Input([28, 28, 1])])
    keras_model.add(keras.layers.Flatten())
    keras_model.add(keras.layers.Dense(3))
    keras_model.export(self.path("keras_export"), verbose=False)
    for path in _MNIST_CNN.value, self.path("keras_export"):
      model = _classifier(keras.layers.TFSMLayer(path), "adam")
      with self.assertRaisesRegex(ValueError, "kernel:0_momentum' is not a"):
        model.fit(*self.train, verbose=0)

  def test_other_layers_freeze_in_silence(self):
    old = hub.KerasLayer(_MNIST_CNN.value, trainable=True)
    loaded = tf.saved_model.load(_MNIST_CNN.value)
    for layer, variables in (
      (keras.layers.Lambda(old), old.weights),
      (_Calling(old), old.weights),
      (_Calling(loaded), loaded.variables),
    ):
      model = _classifier(layer)
      self.assertLen(model.trainable_weights, 2)  # Only the new head's.
      model.fit(*self.train, verbose=0)
      self.assertEqual(self.moved(variables)["trainable"], 0)

  def test_card_has_the_layer(self):
    card = pathlib.Path(_MNIST_CNN.value, "assets.extra/README.md").read_text()
    source = pathlib.Path(reusable_layer.__file__).read_text()
    self.assertIn(f"\n```python\n{source}```\n", card)


if __name__ == "__main__":
  tf.test.main()
