"""Uses exports in Keras 3: replicas, precision, BERT, and accuracies."""

import os

os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Bazel sets it for all tests.

from absl import flags
from absl.testing import parameterized
import keras
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # noqa: F401  Registers the ops of the preprocessor.
import tf_keras

from data import images as image_data
from data import texts
from integration_tests.keras3 import fine_tuning
from integration_tests.keras3 import reusable_layer
from integration_tests.keras3 import use_mnist_cnn_keras3
from integration_tests.keras3 import use_text_embedding_keras3

_MNIST_CNN = flags.DEFINE_string(
  "mnist_cnn", None, "A feature vector of images, trained on digits 0 to 4."
)
_TEXT_EMBEDDING = flags.DEFINE_string(
  "text_embedding", None, "A text embedding, trained on python_docs."
)
_BERT = flags.DEFINE_string("bert", None, "An encoder and its preprocessor.")
_SEEDS = range(5)


def setUpModule():
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
  )


def _old_accuracy(export, seed, data, shape, dtype, num_classes, rate):
  """Fine-tunes with hub.KerasLayer as the programs do in Keras 3."""
  tf_keras.utils.set_random_seed(seed)
  model = tf_keras.Sequential([tf_keras.Input(shape, dtype=dtype)])
  model.add(hub.KerasLayer(export, trainable=True))
  if dtype == tf.string:
    model.add(tf_keras.layers.BatchNormalization(momentum=0.9))
  model.add(tf_keras.layers.Dense(num_classes))
  loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(tf_keras.optimizers.Adam(rate), loss, ["accuracy"])
  train, test = data
  model.fit(*train, batch_size=32, epochs=3, verbose=0)
  return model.evaluate(*test, verbose=0)[1]


class MoreOfKeras3Test(parameterized.TestCase, tf.test.TestCase):
  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(1)

  def assert_trained(self, layer, num_trainable, num_averages=0):
    before = {v.name: v for v in tf.saved_model.load(layer.filepath).variables}
    old = [
      before[v.name].numpy() for v in tf.nest.flatten(layer.model.variables)
    ]
    moved = [
      not np.array_equal(v.numpy(), value)
      for v, value in zip(layer.model_weights, old, strict=True)
    ]
    self.assertLen(layer.trainable_weights, num_trainable)
    self.assertEqual(sum(moved), num_trainable + num_averages)

  @parameterized.parameters("float32", "mixed_float16", "mixed_bfloat16")
  def test_on_two_replicas(self, policy):
    data = image_data.arrays("digits_5_9", (28, 28, 1))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    keras.config.set_dtype_policy(policy)
    self.addCleanup(keras.config.set_dtype_policy, "float32")
    with strategy.scope():
      model = use_mnist_cnn_keras3.build(_MNIST_CNN.value)
      accuracy = fine_tuning.fine_tune(
        model, *data, epochs=3, learning_rate=1e-3
      )
    layer = model.get_layer("export")
    first, second = layer.trainable_weights[0].value.values
    self.assertAllEqual(first, second)
    self.assert_trained(layer, 8, 4)
    self.assertGreater(accuracy, 0.85)
    self.assertLen(model.losses, 1)

  @parameterized.parameters("mixed_float16", "mixed_bfloat16")
  def test_in_mixed_precision(self, policy):
    keras.config.set_dtype_policy(policy)
    self.addCleanup(keras.config.set_dtype_policy, "float32")
    path = os.path.join(self.get_temp_dir(), f"{policy}.keras")
    model, accuracy = use_mnist_cnn_keras3.main(
      _MNIST_CNN.value, output_file=path
    )
    self.assert_trained(model.get_layer("export"), 8, 4)
    self.assertGreater(accuracy, 0.85)
    x = np.random.default_rng(0).random([3, 28, 28, 1], np.float32)
    self.assertAllEqual(keras.models.load_model(path)(x), model(x))

  def test_bert(self):
    preprocessor = tf.saved_model.load(f"{_BERT.value}/preprocessor")
    dataset = texts.python_docs()
    data = [
      (
        preprocessor(tf.constant(strings.to_pylist()), seq_length=32),
        labels,
      )
      for strings, labels in (dataset.train, dataset.test)
    ]
    layer = reusable_layer.ReusableLayer(
      f"{_BERT.value}/encoder", {"dropout_rate": 0.2}
    )
    inputs = {name: keras.Input([32], dtype="int32") for name in data[0][0]}
    pooled = layer(inputs)["pooled_output"]
    model = keras.Model(
      inputs, keras.layers.Dense(len(dataset.classes))(pooled)
    )
    path = os.path.join(self.get_temp_dir(), "bert.keras")
    accuracy = fine_tuning.fine_tune(
      model, *data, epochs=3, learning_rate=1e-3, output_file=path
    )
    self.assertGreater(accuracy, 0.3)  # The largest class has 24 %.
    self.assert_trained(layer, 39)
    self.assertAllEqual(
      keras.models.load_model(path)(data[1][0]), model(data[1][0])
    )
    mlm = reusable_layer.ReusableLayer(f"{_BERT.value}/encoder", part="mlm")
    masked = {**data[1][0], "masked_lm_positions": tf.ones([401, 2], tf.int32)}
    self.assertEqual(mlm(masked)["mlm_logits"].shape[:2], [401, 2])

  def test_fine_tunes_texts(self):
    model, accuracy = use_text_embedding_keras3.main(
      _TEXT_EMBEDDING.value, epochs=1
    )
    self.assertGreater(accuracy, 0.5)  # 0.611 to 0.671 with five seeds.
    (weight,) = model.get_layer("export").trainable_weights
    (before,) = tf.saved_model.load(_TEXT_EMBEDDING.value).variables
    self.assertGreater(np.any(before != weight.numpy(), axis=1).mean(), 0.3)

  def test_accuracy_is_that_of_hub_keras_layer(self):
    dataset = texts.python_docs()
    of_texts = [
      (tf.constant(strings.to_pylist()), labels)
      for strings, labels in (dataset.train, dataset.test)
    ]
    of_images = image_data.arrays("digits_5_9", (28, 28, 1))
    for program, export, margin, *others in (
      (
        use_mnist_cnn_keras3,
        *(_MNIST_CNN.value, 0.04, of_images),
        *([28, 28, 1], tf.float32, 5, 1e-3),
      ),
      (
        use_text_embedding_keras3,
        *(_TEXT_EMBEDDING.value, 0.05, of_texts),
        *([], tf.string, len(dataset.classes), 1e-2),
      ),
    ):
      new, old = [], []
      for seed in _SEEDS:
        keras.utils.set_random_seed(seed)
        new.append(program.main(export)[1])
        old.append(_old_accuracy(export, seed, *others))
      print(export, np.round(new, 4), np.round(old, 4))
      self.assertAllClose(np.mean(new), np.mean(old), atol=margin)


if __name__ == "__main__":
  tf.test.main()
