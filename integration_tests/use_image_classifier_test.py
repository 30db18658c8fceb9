"""Fine-tunes the exports of one architecture, with `image_fine_tuning`.

The flags name the exports, and say what holds for the architecture.
"""

import contextlib
import inspect
import io
import os
import pathlib
import re
import shutil
import sys

from absl import flags
from absl.testing import flagsaver
import numpy as np
import tensorflow as tf
import tf_keras

from data import images as image_data
from integration_tests import image_fine_tuning
from tools import nightly

_PRETRAINED = flags.DEFINE_string(
  "pretrained", None, "Export of a feature vector trained on digits 0 to 4."
)
_UNTRAINED = flags.DEFINE_string(
  "untrained", None, "The same export with initial weights."
)
_NUM_WEIGHTS = flags.DEFINE_integer(
  "num_weights",
  None,
  "Number of weights, moving averages included; default: not checked.",
)
_HYPERPARAMETERS = flags.DEFINE_list(
  "hyperparameters", [], "All of them: NAME=DEFAULT; default: not checked."
)
_NUM_REGULARIZED = flags.DEFINE_integer(
  "num_regularized",
  None,
  "Number of regularized weights; default: not checked.",
)
_L2_FACTOR = flags.DEFINE_float(
  "l2_factor", None, "Factor of the L2 loss; default: whatever it is."
)
_REGULARIZED = flags.DEFINE_string(
  "regularized",
  r"(?<!depthwise_)kernel",
  "Regular expression of regularized weights' names.",
)
_REPLICAS = flags.DEFINE_integer(
  "replicas", 1, "Number of replicas that the program trains: 1 or 2."
)
_SEGMENTATION = flags.DEFINE_bool(
  "segmentation", False, "Also train segmentation on the endpoints."
)
_MIN_ACCURACY = flags.DEFINE_float(
  "min_accuracy",
  0.6,
  "Minimum accuracy when retrained on all images for two epochs. By chance it"
  " is 0.2; the smallest architectures reach 0.75 to 0.95, by run and machine.",
)
_MIN_ACCURACY_GAIN = flags.DEFINE_float(
  "min_accuracy_gain",
  -0.05,
  "Of pretrained over untrained, on 100 images. Where both are good, the seed"
  " decides which is better, but not which has the lower loss.",
)
_MAX_LOSS_RATIO = flags.DEFINE_float(
  "max_loss_ratio", 0.95, "Of pretrained to untrained, on 100 images."
)
_FEW_IMAGES_LEARNING_RATE = flags.DEFINE_float(
  "few_images_learning_rate", 3e-4, "Learning rate on 100 images."
)
_FEW_IMAGES_MOMENTUM = flags.DEFINE_float(
  "few_images_momentum",
  0.5,
  "Momentum on 100 images. With 0.5 also the moving averages of the untrained"
  " export get near in 20 steps.",
)
_MIN_DIFFERING_AVERAGES = flags.DEFINE_float(
  "min_differing_averages",
  0.5,
  "Minimum share of moving averages that differ between two replicas.",
)
_MIN_INK_ACCURACY = flags.DEFINE_float(
  "min_ink_accuracy", 0.35, "Minimum accuracy of pixels of five classes."
)


def setUpModule():
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
  )
  image_fine_tuning.define_flags()


def _run_program(**values):
  """Runs the program with flags; returns the model and standard output."""
  values = {"frozen_epochs": 0, "patience": 0, **values}
  arguments = {name: str(value) for name, value in values.items()}
  output = io.StringIO()
  with flagsaver.as_parsed(**arguments), contextlib.redirect_stdout(output):
    tf_keras.utils.set_random_seed(1)
    model = image_fine_tuning.fine_tune()
  print(output.getvalue())
  return model, output.getvalue()


def _layer(model):
  return model.get_layer("feature_extractor")


class UseImageClassifierTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.export = tf.saved_model.load(_PRETRAINED.value)
    cls.weights = [v.numpy() for v in cls.export.variables]
    parameters = inspect.signature(cls.export.__call__).parameters.values()
    cls.hyperparameters = {
      p.name: p.default for p in parameters if isinstance(p.default, float)
    }
    cls.rates = [n for n in cls.hyperparameters if n.endswith("_rate")]
    cls.has_momentum = "batch_norm_momentum" in cls.hyperparameters
    # The model for `test_pretrained_weights_beat_untrained_ones`.
    momentum = {"batch_norm_momentum": _FEW_IMAGES_MOMENTUM.value}
    cls.model = image_fine_tuning.build_model(
      _PRETRAINED.value,
      5,
      retrain=True,
      learning_rate=_FEW_IMAGES_LEARNING_RATE.value,
      **(momentum if cls.has_momentum else {}),
    )
    cls.train, cls.test = image_data.arrays(
      "digits_5_9", cls.model.input_shape[1:]
    )

  def tearDown(self):
    for variable, value in zip(
      self.export.variables, self.weights, strict=True
    ):
      variable.assign(value)
    super().tearDown()

  def averages(self, model):
    return [v for v in model.variables if "moving" in v.name]

  def moved(self, model):
    """Returns whether each weight of the export has changed, by name."""
    weights = {v.name: v for v in _layer(model).variables}
    return {
      v.name: not np.array_equal(weights[v.name].numpy(), value)
      for v, value in zip(self.export.variables, self.weights, strict=True)
    }

  def test_size(self):
    if _NUM_WEIGHTS.value is not None:
      self.assertLen(self.weights, _NUM_WEIGHTS.value)
    if _HYPERPARAMETERS.value:
      self.assertEqual(
        {f"{k}={v:g}" for k, v in self.hyperparameters.items()},
        set(_HYPERPARAMETERS.value),
      )

  def test_regularization_loss(self):
    """All regularized weights have the same factor; other weights have none."""
    weights = _layer(self.model).trainable_variables
    with tf.GradientTape() as tape:
      loss = tf.add_n([tf.constant(0.0), *self.model.losses])
    gradients = {
      v.name: (v, gradient)
      for v, gradient in zip(weights, tape.gradient(loss, weights), strict=True)
      if gradient is not None
    }
    if _NUM_REGULARIZED.value is not None:
      self.assertLen(gradients, _NUM_REGULARIZED.value)
    if gradients:
      self.assertCountEqual(
        gradients,
        [v.name for v in weights if re.search(_REGULARIZED.value, v.name)],
      )
      square = sum(np.sum(np.square(v)) for v, _ in gradients.values())
      factor = _L2_FACTOR.value or loss / square
      self.assertAllClose(loss, factor * square, rtol=1e-5)
      for v, gradient in gradients.values():
        self.assertAllClose(gradient, 2 * factor * v, rtol=1e-4)

  def test_pretrained_weights_beat_untrained_ones(self):
    """Both are fine-tuned on the same 100 images, from the same seed."""
    model, (images, labels) = self.model, self.train
    chosen = np.random.default_rng(0).choice(len(labels), 100, replace=False)
    head = model.get_layer("logits").get_weights()
    untrained = tf.saved_model.load(_UNTRAINED.value).variables
    losses, accuracies = {}, {}
    # Only once, because TensorFlow then instantiates all functions anew.
    tf_keras.utils.set_random_seed(0)
    for name, weights in ("pretrained", self.weights), ("untrained", untrained):
      values = {
        v.name: value
        for v, value in zip(self.export.variables, weights, strict=True)
      }
      for v in _layer(model).variables:
        v.assign(values[v.name])
      model.get_layer("logits").set_weights(head)
      for v in model.optimizer.variables:
        if "learning_rate" not in v.name:
          v.assign(tf.zeros_like(v))
      model.fit(
        images[chosen], labels[chosen], batch_size=32, epochs=5, verbose=0
      )
      losses[name], accuracies[name] = model.evaluate(*self.test, verbose=0)
    print(losses, accuracies)
    self.assertGreater(
      accuracies["pretrained"],
      accuracies["untrained"] + _MIN_ACCURACY_GAIN.value,
    )
    self.assertLess(
      losses["pretrained"], losses["untrained"] * _MAX_LOSS_RATIO.value
    )

  def test_a_frozen_export_keeps_its_weights(self):
    model = image_fine_tuning.build_model(
      _PRETRAINED.value, 5, retrain=False, augmentation=True
    )
    images, labels = (array[:96] for array in self.train)
    head = model.get_layer("logits").get_weights()
    model.fit(images, labels, batch_size=32, verbose=0)
    # The weights include the moving averages.
    self.assertNotIn(True, self.moved(model).values())
    self.assertNotAllClose(model.get_layer("logits").get_weights()[0], head[0])
    self.assertEqual(sum(model.losses), 0.0)
    # Only the augmentation makes training differ from inference.
    self.assertNotAllClose(model(images, training=True), model(images))

  def call(self, **arguments):
    outputs = self.export(self.train[0][:64], **arguments)
    return outputs["feature_vector"] if isinstance(outputs, dict) else outputs

  def test_batch_norm_momentum(self):
    if not self.has_momentum:
      self.skipTest("The export has no batch normalization.")
    averages = self.averages(self.export)
    start = [v.numpy() for v in averages]

    def step(**arguments):
      for variable, value in zip(averages, start, strict=True):
        variable.assign(value)
      # Without dropout every step computes the same.
      self.call(**dict.fromkeys(self.rates, 0.0), **arguments)
      return [v.numpy() for v in averages]

    for new, old in zip(step(batch_norm_momentum=0.0), start, strict=True):
      self.assertAllEqual(new, old)
    # With momentum 0 the averages are those of the batch.
    batch = step(training=True, batch_norm_momentum=0.0)
    default = self.hyperparameters["batch_norm_momentum"]
    for arguments, momentum in (
      ({"batch_norm_momentum": 0.25}, 0.25),
      ({"batch_norm_momentum": 1.0}, 1.0),
      ({}, default),
    ):
      expected = [
        momentum * old + (1 - momentum) * of_batch
        for old, of_batch in zip(start, batch, strict=True)
      ]
      actual = step(training=True, **arguments)
      self.assertAllClose(actual, expected, rtol=1e-4, atol=1e-5)

  def test_rates(self):
    off = dict.fromkeys(self.rates, 0.0)
    if self.has_momentum:
      off["batch_norm_momentum"] = 1.0
    inference = self.call()
    without = self.call(training=True, **off)
    for name in self.rates:
      with self.subTest(name):
        self.assertAllEqual(self.call(**{name: 0.9}), inference)
        first, second = (
          self.call(training=True, **{**off, name: 0.5}) for _ in range(2)
        )
        self.assertNotAllClose(first, second)
        self.assertNotAllClose(first, without)
    self.assertAllClose(self.call(training=True, **off), without, rtol=1e-4)

  def test_the_program(self):
    export_dir = os.path.join(self.get_temp_dir(), "export")
    output_dir = os.path.join(self.get_temp_dir(), "output")
    shutil.copytree(
      _PRETRAINED.value, export_dir, copy_function=shutil.copyfile
    )
    for directory in (export_dir, *pathlib.Path(export_dir).glob("*/")):
      os.chmod(directory, 0o755)
    arguments = {"batch_norm_momentum": 0.8} if self.has_momentum else {}
    if None in self.export.signatures["serving_default"].inputs[0].shape[1:]:
      arguments["image_size"] = 40
    model, output = _run_program(
      saved_model_dir=export_dir,
      output_saved_model_dir=output_dir,
      strategy="mirrored" if _REPLICAS.value == 2 else "one_device",
      retrain=True,
      epochs=2,
      **arguments,
    )
    (accuracy,) = re.findall(r"Test accuracy: (0\.\d+) on 179 images", output)
    self.assertGreater(float(accuracy), _MIN_ACCURACY.value)
    self.assertNotIn(False, self.moved(model).values())
    if _REPLICAS.value == 2:
      self.assert_replicas(model)
    shutil.rmtree(export_dir)
    loaded = tf.saved_model.load(output_dir)
    averages = {v.name: v for v in self.averages(model)}
    saved = {v.name: v for v in loaded.variables if v.name in averages}
    means = {name: v.read_value() for name, v in averages.items()}
    self.assertAllClose(saved, means)
    # Replicas with their own averages would differ, so all get the mean.
    for name, variable in averages.items():
      variable.assign(means[name])
    _, (images, _) = image_data.arrays("digits_5_9", model.input_shape[1:])
    expected = model(images)
    served = loaded.signatures["images"](images=tf.constant(images))["logits"]
    largest = np.abs(expected).max()
    self.assertAllClose(served, expected, rtol=0, atol=1e-5 * largest)

  def assert_replicas(self, model):
    """Replicas have equal trained weights, but their own moving averages."""
    for variable in _layer(model).trainable_variables:
      self.assertLen(variable.values, 2)
      self.assertAllEqual(*variable.values)
    differ = []
    for variable in self.averages(model):
      replicas = [v.numpy() for v in variable.values]
      differ.append(not np.allclose(*replicas, rtol=1e-6, atol=1e-6))
      self.assertAllClose(variable.read_value(), np.mean(replicas, axis=0))
    self.assertLen(differ, len(self.averages(self.export)))
    self.assertGreaterEqual(
      sum(differ), _MIN_DIFFERING_AVERAGES.value * len(differ)
    )

  @nightly.only
  def test_segmentation(self):
    if not _SEGMENTATION.value:
      self.skipTest("Other architectures prove it.")
    model, output = _run_program(
      saved_model_dir=_PRETRAINED.value,
      task="segmentation",
      strategy="one_device",
      retrain=True,
      epochs=2,
    )
    self.assertRegex(output, r"Test accuracy: 0\.\d+ on 179 images")
    images, masks = image_fine_tuning.with_masks(*self.test)
    predicted = np.argmax(model(images), axis=-1)
    of_ink = np.mean(predicted[masks > 0] == masks[masks > 0])
    of_background = np.mean(predicted[masks == 0] == 0)
    print(f"ink {of_ink:.3f}, background {of_background:.3f}")
    self.assertGreater(of_ink, _MIN_INK_ACCURACY.value)
    self.assertGreater(of_background, 0.8)


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
