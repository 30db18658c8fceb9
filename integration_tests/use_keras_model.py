r"""Fine-tunes a complete Keras model of images with a new head.

An exporter wrote it with --saved_model_format=keras. Its code is not needed:

  bazel run //integration_tests:use_keras_model -- \
    --saved_model_dir=DIR --dataset=digits_5_9
  bazel run //integration_tests:use_keras_model -- \
    --saved_model_dir=DIR --dataset=PICTURES --report=FILE.html
  bazel run //integration_tests:use_keras_model -- \
    --saved_model_dir=DIR --dataset=digits_5_9 --noretrain
"""

from __future__ import annotations

import types
from typing import Any

from etils import epy

from data import images as image_data
from distribution import errors
from distribution import strategies
from integration_tests import command_line
from integration_tests import fitting
from integration_tests import image_fine_tuning
from integration_tests import report

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras


def build_model(
  saved_model_dir: str,
  num_classes: int,
  *,
  retrain: bool,
  learning_rate: float = 1e-3,
) -> tf_keras.Model:
  """Builds and compiles a new head on a complete Keras model.

  Args:
    saved_model_dir: The model. It returns features or logits, `[batch, n]`, or
      a dict with `feature_vector`.
    num_classes: Number of classes of images.
    retrain: Whether to also train the weights of the model.
    learning_rate: Learning rate of Adam.

  Returns:
    A model from images, float32 `[batch, height, width, channels]` in [0, 1],
    or videos, with the number of frames before the height, to logits, float32
    `[batch, num_classes]`.

  Raises:
    ValueError: The export is no Keras model of images.
  """
  export = load(saved_model_dir)
  if not isinstance(export, tf_keras.Model) or len(export.inputs) != 1:
    raise ValueError(
      f"{saved_model_dir} is not a complete Keras model of images. Export it"
      " with --saved_model_format=keras."
    )
  export.trainable = retrain
  # A layer that Keras cannot build from its config updates its averages in each
  # call in training mode, even if it is frozen. So a frozen model has no such
  # calls.
  call, same_layers = export.call, tf_keras.Model(export.input, export.output)

  def call_if_trained(
    self: tf_keras.Model,
    inputs: tf.Tensor,
    training: bool | None = None,
    mask: None = None,
  ) -> Any:
    if self.trainable:
      return call(inputs, training=training)
    # Layers inherit the mode of the outer call, which differs here.
    return same_layers(inputs, training=False)

  export.call = types.MethodType(call_if_trained, export)
  _, *frames, height, width, channels = export.inputs[0].shape
  shape = [*(n or 8 for n in frames), height or 32, width or 32, channels]
  images = tf_keras.Input(shape, name="images")
  outputs = export(images)
  if isinstance(outputs, dict):
    outputs = outputs["feature_vector"]
  return fitting.classifier(
    images,
    fitting.logits(outputs, num_classes),
    tf_keras.optimizers.Adam(learning_rate),
  )


def load(saved_model_dir: str) -> Any:
  """Loads a Keras model without its optimizer."""
  options = tf.saved_model.LoadOptions(
    experimental_io_device=strategies.io_device(tf.distribute.get_strategy())
  )
  about = f"Cannot load {saved_model_dir}: "
  with errors.of_input(about=about):  # Keras raises many types of exceptions.
    return tf_keras.models.load_model(
      saved_model_dir, compile=False, options=options
    )


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(
    "images", learning_rate=1e-2, retraining=(), classifies=True
  )
  image_data.define_flags("dataset", "digits_5_9", "Images to fine-tune on.")
  report.define_flags()


def fine_tune() -> tf_keras.Model:
  """Fine-tunes according to the flags; returns the model."""
  return image_fine_tuning.fine_tune_on_dataset(build_model)


if __name__ == "__main__":
  define_flags()
  command_line.run(fine_tune)
