"""What the programs that fine-tune exports of images share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import os
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epy

from integration_tests import datasets
from integration_tests import strategies

# Read by TensorFlow when it is imported. tensorflow-hub is Keras 2.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras


def layer(
  saved_model_dir: str,
  *,
  retrain: bool,
  arguments: Mapping[str, float | None],
  regularization_loss_multiplier: float = 1.0,
) -> hub.KerasLayer:
  """Loads an export as a layer.

  Args:
    saved_model_dir: The export.
    retrain: Train its weights too.
    arguments: Values of its hyperparameters; None: their defaults.
    regularization_loss_multiplier: Factor of its regularization losses.
  """
  export = hub.load(saved_model_dir)
  export.regularization_losses = [
    _scaled(loss, regularization_loss_multiplier)
    for loss in export.regularization_losses
  ]
  return hub.KerasLayer(
    export,
    trainable=retrain,
    arguments={k: v for k, v in arguments.items() if v is not None},
    name="feature_extractor",
  )


def _scaled(
  loss: Callable[[], tf.Tensor], factor: float
) -> Callable[[], tf.Tensor]:
  return tf.function(lambda: factor * loss(), input_signature=[])


def compiled(model: tf_keras.Model, learning_rate: float) -> tf_keras.Model:
  """Compiles a model of logits for training with Adam."""
  model.compile(
    optimizer=tf_keras.optimizers.Adam(learning_rate),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  return model


def define_flags() -> None:
  """Defines the flags that all these programs have."""
  flags.DEFINE_string(
    "saved_model_dir", None, "The export to fine-tune.", required=True
  )
  flags.DEFINE_enum(
    "dataset",
    "digits_5_9",
    datasets.NAMES,
    "Images to fine-tune on. Digits come with scikit-learn; the others are"
    " downloaded.",
  )
  flags.DEFINE_bool(
    "retrain",
    False,
    "Train the weights of the export too. Without it only what is new on its"
    " features is trained.",
  )
  flags.DEFINE_float(
    "batch_norm_momentum",
    None,
    "With --retrain: the momentum, instead of the export's default.",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_float(
    "regularization_loss_multiplier",
    1.0,
    "With --retrain: factor of the regularization losses of the export.",
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    "epochs", 5, "How often to go through the images.", lower_bound=1
  )
  flags.DEFINE_integer(
    "batch_size",
    32,
    "Images in a step, on all devices together.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "learning_rate", 1e-3, "Learning rate of Adam.", lower_bound=0.0
  )
  flags.DEFINE_enum(
    "strategy", "default", strategies.NAMES, "How to distribute the training."
  )
  flags.DEFINE_string(
    "output_saved_model_dir", None, "Where to save the fine-tuned model."
  )


def run(
  load: Callable[[], tuple[datasets.Arrays, datasets.Arrays]],
  build: Callable[[str, int], tf_keras.Model],
  only_with_retrain: tuple[str, ...] = (),
) -> None:
  """Parses the flags, and fine-tunes as they say.

  Args:
    load: Returns what to train on, and what to test on.
    build: Makes a compiled model of an export and the number of classes.
    only_with_retrain: Flags that apply only with --retrain, beside those of
      this module.
  """

  def main(arguments: list[str]) -> None:
    values = flags.FLAGS
    if len(arguments) > 1:
      sys.exit(f"ERROR: {arguments[1]} is not a flag. Flags start with --.")
    for name in (
      "batch_norm_momentum",
      "regularization_loss_multiplier",
      *only_with_retrain,
    ):
      if values[name].present and not values.retrain:
        sys.exit(f"ERROR: --{name} applies only with --retrain.")
    logging.set_verbosity(logging.ERROR)  # Keras warns at every save.
    output_dir = _path(values.output_saved_model_dir)
    try:
      if output_dir:
        # Now, not after the training.
        tf.io.gfile.makedirs(output_dir)
        if tf.io.gfile.listdir(output_dir):
          sys.exit(
            f"ERROR: {output_dir} is not empty. Choose another directory."
          )
      train, test = load()
      with strategies.get(values.strategy).scope():
        model = build(_path(values.saved_model_dir), int(train[1].max()) + 1)
    except (
      AttributeError,  # Another kind of model than the program is for,
      KeyError,
      TypeError,
      ValueError,
      OSError,  # none at all, no network,
      tf.errors.OpError,  # or no place for the output.
    ) as e:
      sys.exit(f"ERROR: {' '.join(str(e).split())}")
    model.fit(*train, batch_size=values.batch_size, epochs=values.epochs)
    _, accuracy = model.evaluate(*test, verbose=0)
    print(f"Test accuracy: {accuracy:.4f} on {len(test[1]):,} images held out")
    if output_dir:
      model.save(output_dir, save_format="tf")
      print(f"Saved the fine-tuned model to {output_dir}")

  app.run(main)


def _path(value: str | None) -> str | None:
  """Makes a path start from the user's directory under `bazel run` too."""
  if value is None or "://" in value:
    return value
  return os.path.join(os.environ.get("BUILD_WORKING_DIRECTORY", ""), value)
