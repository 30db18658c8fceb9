r"""Fine-tunes an exported MNIST CNN feature extractor on other images.

  bazel run //integration_tests:use_mnist_cnn -- \
    --saved_model_dir=DIR --dataset=digits_5_9 --retrain

It uses nothing of the code that made the export.
"""

from __future__ import annotations

from absl import flags
from etils import epy

from integration_tests import command_line
from integration_tests import datasets
from integration_tests import fine_tuning

with epy.lazy_imports():
  import tf_keras


def build_model(
  saved_model_dir: str,
  num_classes: int,
  *,
  retrain: bool,
  dropout_rate: float | None = None,
  batch_norm_momentum: float | None = None,
  regularization_loss_multiplier: float = 1.0,
  learning_rate: float = 1e-3,
) -> tf_keras.Model:
  """Puts a new classifier on an export, and compiles both for training.

  Args:
    saved_model_dir: The export.
    num_classes: Number of classes.
    retrain: Train the weights of the export too.
    dropout_rate: Rate of the export's dropout; None: its default.
    batch_norm_momentum: Momentum of its batch normalization; None: its default.
    regularization_loss_multiplier: Factor of its regularization losses.
    learning_rate: Of Adam.

  Returns:
    A model from images, float32 `[batch, 28, 28, 1]` in [0, 1], to logits,
    float32 `[batch, num_classes]`.
  """
  layer = fine_tuning.layer(
    saved_model_dir,
    retrain=retrain,
    arguments={
      "dropout_rate": dropout_rate,
      "batch_norm_momentum": batch_norm_momentum,
    },
    regularization_loss_multiplier=regularization_loss_multiplier,
  )
  return fine_tuning.compiled(
    tf_keras.Sequential(
      [
        tf_keras.layers.InputLayer((28, 28, 1)),
        layer,
        # In float32, as the loss, whatever the precision of the rest.
        tf_keras.layers.Dense(num_classes, dtype="float32", name="logits"),
      ]
    ),
    learning_rate,
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_float(
    "dropout_rate",
    None,
    "With --retrain: the rate, instead of the export's default.",
    lower_bound=0.0,
    upper_bound=0.99,
  )
  fine_tuning.define_flags(only_with_retrain=["dropout_rate"])
  flags.adopt_module_key_flags(fine_tuning)


def _build(saved_model_dir: str, num_classes: int) -> tf_keras.Model:
  values = flags.FLAGS
  return build_model(
    saved_model_dir,
    num_classes,
    retrain=values.retrain,
    dropout_rate=values.dropout_rate,
    batch_norm_momentum=values.batch_norm_momentum,
    regularization_loss_multiplier=values.regularization_loss_multiplier,
    learning_rate=values.learning_rate,
  )


def main() -> None:
  """Fine-tunes as the flags say."""
  fine_tuning.fine_tune(lambda: datasets.load(flags.FLAGS.dataset), _build)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
