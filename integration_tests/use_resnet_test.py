"""Fine-tunes the exports of `//exporters:resnet` as a stranger would."""

import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys

from absl import flags
import numpy as np
import tensorflow as tf
import tf_keras

from distribution import strategies
from integration_tests import datasets
from integration_tests import use_resnet

_PRETRAINED = flags.DEFINE_string(
  "pretrained", None, "The export trained on digits 0 to 4."
)
_UNTRAINED = flags.DEFINE_string(
  "untrained", None, "The same with its initial weights."
)
_PROGRAM = pathlib.Path("integration_tests/use_resnet").absolute()


def setUpModule():
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
  )


def _layer(model):
  return model.get_layer("feature_extractor")


def _moved(model, before):
  """Tells for each weight of the export, by name, whether it has moved."""
  weights = zip(_layer(model).weights, before, strict=True)
  return [(w.name, not np.array_equal(w, old)) for w, old in weights]


def _fine_tuned_accuracy(export, train, test, seed=0):
  """Retrains an export on a few images, drawn with the seed."""
  tf_keras.utils.set_random_seed(seed)
  images, labels = train
  chosen = np.random.default_rng(seed).choice(len(labels), 100, replace=False)
  model = use_resnet.build_classifier(
    export,
    5,
    retrain=True,
    # In 20 steps also the averages of the untrained export must get near.
    batch_norm_momentum=0.5,
    learning_rate=3e-4,
  )
  model.fit(images[chosen], labels[chosen], batch_size=32, epochs=5, verbose=0)
  return model.evaluate(*test, verbose=0)[1]


class UseResNetTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.train, cls.test = datasets.load("digits_5_9", (32, 32, 3))

  def test_pretrained_weights_beat_untrained_ones(self):
    """Fine-tuned on 100 images: the same ones, from the same seed."""
    accuracies = {
      export.name: _fine_tuned_accuracy(export.value, self.train, self.test)
      for export in (_UNTRAINED, _PRETRAINED)
    }
    print(accuracies)
    # With 20 seeds, the smallest difference was 0.078 and the mean 0.217.
    self.assertGreater(accuracies["pretrained"], accuracies["untrained"] + 0.03)

  def test_a_frozen_export_stays_as_it_is(self):
    tf_keras.utils.set_random_seed(0)
    model = use_resnet.build_classifier(
      _PRETRAINED.value,
      5,
      retrain=False,
      augmentation=True,
      learning_rate=1e-2,
    )
    before = _layer(model).get_weights()
    model.fit(*self.train, batch_size=32, epochs=2, verbose=0)
    # Also the moving averages stay.
    self.assertLen(before, 105)
    self.assertNotIn(True, dict(_moved(model, before)).values())
    self.assertEqual(sum(model.losses), 0.0)
    # And so only the augmentation makes a difference in training.
    images = self.train[0][:8]
    self.assertNotAllClose(model(images, training=True), model(images))

  def test_regularization_losses(self):
    losses = [
      use_resnet.build_classifier(
        _PRETRAINED.value, 5, retrain=True, regularization_loss_multiplier=m
      ).losses
      for m in (1.0, 10.0)
    ]
    kernels = [
      v
      for v in tf.saved_model.load(_PRETRAINED.value).variables
      if "kernel" in v.name
    ]
    self.assertLen(kernels, 21)
    expected = [5e-5 * tf.reduce_sum(k**2) for k in kernels]
    self.assertAllClose(sorted(losses[0]), sorted(expected), rtol=1e-6)
    self.assertAllClose(losses[1], np.multiply(losses[0], 10), rtol=1e-6)

  def test_batch_norm_momentum(self):
    model = tf.saved_model.load(_PRETRAINED.value)
    averages = [v for v in model.variables if "moving" in v.name]
    self.assertLen(averages, 42)
    start = [v.numpy() for v in averages]

    def step(**arguments):
      for variable, value in zip(averages, start, strict=True):
        variable.assign(value)
      model(self.train[0][:64], **arguments)
      return [v.numpy() for v in averages]

    self.assertAllEqual(step(batch_norm_momentum=0.0)[0], start[0])
    # With momentum 0 the averages are what the batch has.
    batch = step(training=True, batch_norm_momentum=0.0)
    for momentum in (0.25, 0.9):
      expected = [
        momentum * old + (1 - momentum) * of_batch
        for old, of_batch in zip(start, batch, strict=True)
      ]
      actual = step(training=True, batch_norm_momentum=momentum)
      self.assertAllClose(actual, expected, rtol=1e-4, atol=1e-5)

    # The program hands it on.
    classifier = use_resnet.build_classifier(
      _PRETRAINED.value, 5, retrain=True, batch_norm_momentum=1.0
    )
    before = _layer(classifier).get_weights()
    classifier(self.train[0][:64], training=True)
    self.assertNotIn(True, dict(_moved(classifier, before)).values())

  def test_the_fine_tuned_model_needs_no_export(self):
    """Retrained on two devices, with augmentation, at another size."""
    export_dir = os.path.join(self.get_temp_dir(), "export")
    shutil.copytree(
      _PRETRAINED.value, export_dir, copy_function=shutil.copyfile
    )
    for directory in (export_dir, *pathlib.Path(export_dir).glob("*/")):
      os.chmod(directory, 0o755)
    train, test = datasets.load("digits_5_9", (48, 48, 3))
    tf_keras.utils.set_random_seed(1)
    with strategies.get(strategies.Config("mirrored")).scope():
      model = use_resnet.build_classifier(
        export_dir,
        5,
        retrain=True,
        image_size=48,
        augmentation=True,
        batch_norm_momentum=0.8,
      )
    before = _layer(model).get_weights()
    model.fit(*train, batch_size=32, epochs=4, verbose=0)
    _, accuracy = model.evaluate(*test, verbose=0)
    self.assertGreater(accuracy, 0.8)
    stood = [name for name, moved in _moved(model, before) if not moved]
    self.assertEmpty(stood)
    # Replicas have the same kernels, and moving averages of their own. The mean
    # of these is what the strategy reads,
    kernel, *_ = _layer(model).trainable_variables
    self.assertLen(kernel.values, 2)
    self.assertAllEqual(*kernel.values)
    averages = {v.name: v for v in model.variables if "moving" in v.name}
    self.assertLen(averages, 42)
    means = {}
    for name, variable in averages.items():
      replicas = [v.numpy() for v in variable.values]
      self.assertNotAllClose(*replicas)
      means[name] = np.mean(replicas, axis=0)
      self.assertAllClose(variable.read_value(), means[name])
    output_dir = os.path.join(self.get_temp_dir(), "fine_tuned")
    model.save(output_dir, save_format="tf")
    shutil.rmtree(export_dir)
    loaded = tf.saved_model.load(output_dir)
    # and what is saved.
    saved = {v.name: v for v in loaded.variables if v.name in means}
    self.assertAllClose(saved, means)
    # Predictions of the replicas would differ: all get the mean.
    for variable in averages.values():
      variable.assign(means[variable.name])
    expected = model.predict(test[0], verbose=0)
    serve = loaded.signatures["serving_default"]
    (served,) = serve(images=tf.constant(test[0])).values()
    largest = np.abs(expected).max()
    self.assertAllClose(served, expected, rtol=0, atol=1e-5 * largest)

  def test_segmentation_with_endpoints(self):
    train, test = map(
      use_resnet.with_masks, datasets.load("digits_5_9", (32, 32, 3))
    )
    tf_keras.utils.set_random_seed(1)
    model = use_resnet.build_segmenter(
      _PRETRAINED.value, 6, retrain=True, image_size=32
    )
    model.fit(*train, batch_size=32, epochs=5, verbose=0)
    images, masks = test
    predicted = np.argmax(model.predict(images, verbose=0), axis=-1)
    of_ink = np.mean(predicted[masks > 0] == masks[masks > 0])
    of_background = np.mean(predicted[masks == 0] == 0)
    print(f"ink {of_ink:.3f}, background {of_background:.3f}")
    self.assertGreater(of_ink, 0.5)  # One of five classes by chance.
    self.assertGreater(of_background, 0.8)

  def test_the_documented_example_runs(self):
    card = pathlib.Path(_PRETRAINED.value, "assets.extra", "README.md")
    (example,) = re.findall("```python\n(.*?)```", card.read_text(), re.DOTALL)
    self.assertIn('"path/to/resnet"', example)
    images, labels = self.train
    names = {"images": images, "labels": labels, "num_classes": 5}
    exec(example.replace("path/to/resnet", _PRETRAINED.value), names)
    _, accuracy = names["model"].evaluate(*self.test, verbose=0)
    self.assertGreater(accuracy, 0.8)

  def test_readme_tells_the_hyperparameters(self):
    parameters = inspect.signature(
      tf.saved_model.load(_PRETRAINED.value).__call__
    ).parameters
    self.assertEqual(parameters["batch_norm_momentum"].default, 0.9)
    (row,) = re.findall(
      "\n.*//exporters:resnet`.*", pathlib.Path("README.md").read_text()
    )
    self.assertIn("`batch_norm_momentum` 0.9", row)

  def test_program(self):
    for arguments, status, message in (
      (
        ["--task=segmentation", "--epochs=1", "--strategy=one_device"],
        0,
        r"Test accuracy: 0\.\d+ on 179",
      ),
      (["--batch_norm_momentum=0.5"], 1, "applies only with --retrain"),
      (["--image_size=8"], 1, "not integer >= 32"),
      (["--saved_model_dir=/nowhere"], 1, "ERROR: /nowhere does not exist"),
    ):
      result = subprocess.run(
        [_PROGRAM, f"--saved_model_dir={_PRETRAINED.value}", *arguments],
        capture_output=True,
        text=True,
      )
      self.assertEqual(result.returncode, status, result.stderr)
      self.assertRegex(result.stdout + result.stderr, message)
      self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
