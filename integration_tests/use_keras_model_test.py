"""Fine-tunes complete Keras models in a process without the models' code.

The flags name exports of feature vectors: one has Keras' own layers, the other
has layers of Model Garden.
"""

import contextlib
import io
import os
import re
import shutil
import sys

from absl import flags
from absl import logging
from absl.testing import flagsaver
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tf_keras

from data import images as image_data
from distribution import errors
from integration_tests import use_keras_model

_NAMES = ("mnist_cnn", "resnet")
_PRETRAINED = {
  name: flags.DEFINE_string(
    name, None, "Complete Keras model, trained on digits 0 to 4."
  )
  for name in _NAMES
}
_UNTRAINED = {
  name: flags.DEFINE_string(
    f"{name}_untrained", None, "The reusable export with initial weights."
  )
  for name in _NAMES
}
_PRODUCER = ("models", "exporters", "official")


def setUpModule():
  if found := set(_PRODUCER) & set(sys.modules):
    raise AssertionError(f"The producer's code is imported: {found}.")
  sys.modules.update(dict.fromkeys(_PRODUCER))  # An import fails from here on.
  logging.set_verbosity(logging.ERROR)  # Keras warns at every save.
  use_keras_model.define_flags()


def _averages(model):
  return [v for v in model.variables if "moving" in v.name]


class UseKerasModelTest(tf.test.TestCase, parameterized.TestCase):
  def run_program(self, saved_model_dir, **values):
    """Runs the program; returns the model and its accuracy."""
    arguments = {k: str(v) for k, v in values.items()}
    output = io.StringIO()
    with (
      flagsaver.as_parsed(saved_model_dir=saved_model_dir, **arguments),
      contextlib.redirect_stdout(output),
    ):
      tf_keras.utils.set_random_seed(1)
      model = use_keras_model.fine_tune()
    print(output.getvalue())
    (accuracy,) = re.findall(
      r"Test accuracy: (\d\.\d+) on 179 images", output.getvalue()
    )
    return model, float(accuracy)

  @parameterized.parameters(
    ("mnist_cnn", 3, 1e-4, True), ("resnet", 21, 5e-5, False)
  )
  def test_fine_tunes_and_saves(self, name, num_losses, factor, has_dropout):
    export_dir = os.path.join(self.get_temp_dir(), name)
    output_dir = os.path.join(self.get_temp_dir(), f"{name}_again")
    shutil.copytree(
      _PRETRAINED[name].value, export_dir, copy_function=shutil.copyfile
    )
    os.chmod(export_dir, 0o755)
    before = use_keras_model.load(export_dir)
    losses = sorted(float(loss) for loss in before.losses)
    self.assertLen(losses, num_losses)
    squares = sorted(
      factor * np.sum(np.square(v.numpy()))
      for v in before.trainable_variables
      if "kernel" in v.name
    )
    self.assertAllClose(losses, squares, rtol=1e-5)
    model, accuracy = self.run_program(
      export_dir,
      frozen_epochs=1,
      epochs=3,
      patience=0,
      output_saved_model_dir=output_dir,
    )
    self.assertGreater(accuracy, 0.8)
    self.assertLen(model.losses, num_losses)
    weights = {v.name: v.numpy() for v in model.variables}
    for variable in before.variables:
      self.assertNotAllEqual(variable, weights[variable.name], variable.name)
    _, (images, _) = image_data.arrays("digits_5_9", model.input_shape[1:])
    images = images[:64]
    averages = [v.numpy() for v in _averages(model)]
    first, second = (model(images, training=True) for _ in range(2))
    self.assertEqual(not np.allclose(first, second), has_dropout)
    for variable, value in zip(_averages(model), averages, strict=True):
      self.assertNotAllEqual(variable, value)
      variable.assign(value)  # Back to the saved value.
    shutil.rmtree(export_dir)
    again = use_keras_model.load(output_dir)
    self.assertAllClose(again(images), model(images), rtol=0, atol=1e-5)
    self.assertLen(again.losses, num_losses)
    self.assertLen(again.trainable_variables, len(model.trainable_variables))

  @parameterized.parameters("mnist_cnn", "resnet")
  def test_pretrained_weights_beat_untrained_ones(self, name):
    """Both are fine-tuned on the same 100 images, from the same seed."""
    tf_keras.utils.set_random_seed(0)
    model = use_keras_model.build_model(
      _PRETRAINED[name].value, 5, retrain=True
    )
    (images, labels), test = image_data.arrays(
      "digits_5_9", model.input_shape[1:]
    )
    chosen = np.random.default_rng(0).choice(len(labels), 100, replace=False)
    model.optimizer.build(model.trainable_variables)
    start = [v.numpy() for v in model.variables]
    optimizer = [v.numpy() for v in model.optimizer.variables]
    untrained = {
      v.name: v.numpy()
      for v in tf.saved_model.load(_UNTRAINED[name].value).variables
    }
    accuracies = []
    for weights in {}, untrained:
      for variable, value in zip(model.variables, start, strict=True):
        variable.assign(weights.get(variable.name, value))
      for variable, value in zip(
        model.optimizer.variables, optimizer, strict=True
      ):
        variable.assign(value)
      model.fit(
        images[chosen], labels[chosen], batch_size=32, epochs=5, verbose=0
      )
      accuracies.append(model.evaluate(*test, verbose=0)[1])
    print(name, accuracies)
    self.assertGreater(accuracies[0], accuracies[1] + 0.1)

  def test_a_frozen_export_keeps_its_weights(self):
    model, _ = self.run_program(
      _PRETRAINED["resnet"].value, retrain=False, epochs=1
    )
    export = use_keras_model.load(_PRETRAINED["resnet"].value)
    weights = {v.name: v.numpy() for v in model.variables}
    for variable in export.variables:
      self.assertAllEqual(variable, weights[variable.name], variable.name)

  def test_another_export_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "not a complete Keras mod"):
      self.run_program(_UNTRAINED["mnist_cnn"].value)


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
