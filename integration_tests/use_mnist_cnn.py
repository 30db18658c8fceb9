r"""Fine-tunes an exported MNIST CNN feature extractor on other images.

  bazel run //integration_tests:use_mnist_cnn -- \
    --saved_model_dir=DIR --dataset=digits_5_9 --retrain

It uses nothing of the code that made the export.
"""

from __future__ import annotations

from collections.abc import Callable

from absl import flags
from etils import epy

from integration_tests import command_line
from integration_tests import datasets
from integration_tests import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
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
  export = hub.load(saved_model_dir)
  export.regularization_losses = [
    _scaled(loss, regularization_loss_multiplier)
    for loss in export.regularization_losses
  ]
  arguments = {
    "dropout_rate": dropout_rate,
    "batch_norm_momentum": batch_norm_momentum,
  }
  model = tf_keras.Sequential(
    [
      tf_keras.layers.InputLayer((28, 28, 1)),
      hub.KerasLayer(
        export,
        trainable=retrain,
        arguments={k: v for k, v in arguments.items() if v is not None},
        name="feature_extractor",
      ),
      tf_keras.layers.Dense(num_classes, name="logits"),
    ]
  )
  model.compile(
    optimizer=tf_keras.optimizers.Adam(learning_rate),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  return model


def _scaled(
  loss: Callable[[], tf.Tensor], factor: float
) -> Callable[[], tf.Tensor]:
  return tf.function(lambda: factor * loss(), input_signature=[])


def define_flags() -> None:
  """Defines the flags of this program."""
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
    "Train the weights of the export too. Without it only a new classifier on"
    " its features is trained.",
  )
  flags.DEFINE_float(
    "dropout_rate",
    None,
    "With --retrain: the rate, instead of the export's default.",
    lower_bound=0.0,
    upper_bound=0.99,
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
  command_line.define_flags(
    only_with_retrain=[
      "dropout_rate",
      "batch_norm_momentum",
      "regularization_loss_multiplier",
    ]
  )


def main() -> None:
  """Fine-tunes as the flags say."""
  values = flags.FLAGS
  with command_line.input_errors():
    output_dir = command_line.make_output_dir()
    train, test = datasets.load(values.dataset)
    with strategies.get(values.strategy).scope():
      model = build_model(
        command_line.path(values.saved_model_dir),
        num_classes=max(train[1]) + 1,
        retrain=values.retrain,
        dropout_rate=values.dropout_rate,
        batch_norm_momentum=values.batch_norm_momentum,
        regularization_loss_multiplier=values.regularization_loss_multiplier,
        learning_rate=values.learning_rate,
      )
  model.fit(*train, batch_size=values.batch_size, epochs=values.epochs)
  _, accuracy = model.evaluate(*test, verbose=0)
  print(f"Test accuracy: {accuracy:.4f} on {len(test[1]):,} images held out")
  if output_dir:
    model.save(output_dir, save_format="tf")
    print(f"Saved the fine-tuned model to {output_dir}")


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
