r"""Exports the feature extractor of an MNIST CNN.

Trains it first,

  bazel run //exporters:mnist_cnn -- --train_on=digits --export_dir=DIR

or takes the weights of a checkpoint:

  bazel run //exporters:mnist_cnn -- \
    --checkpoint_path=CHECKPOINT --export_dir=DIR
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags
from etils import epy

from distribution import strategies
from exporters import classifier_training
from exporters.reusable import command_line
from exporters.reusable import publishing
from models.vision import mnist_cnn
from models.vision import training

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from exporters.reusable import verification as verification_lib

_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow_hub as hub
import tf_keras

# Yours: images, float32 [n, 28, 28, 1] in [0, 1]; labels, int [n], from 0 on;
# num_classes.
model = tf_keras.Sequential([
    hub.KerasLayer(
        "path/to/mnist_cnn",
        trainable=True,
        arguments={"dropout_rate": 0.4, "batch_norm_momentum": 0.9},
    ),
    tf_keras.layers.Dense(num_classes),
])
model.compile(
    optimizer="adam",
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(images, labels, epochs=10)
"""


def export(
  *,
  export_dir: str,
  checkpoint_path: str | None = None,
  weights: str | None = None,
  train_on: str | None = None,
  training_config: training.Config | None = None,
  distribution: strategies.Config = strategies.DEFAULT,
  checkpoint_dir: str | None = None,
  backup_dir: str | None = None,
  l2_strength: float = mnist_cnn.L2_STRENGTH,
  overwrite: bool = False,
  verification: str = "full",
  keep_failed: str | None = None,
  flag_values: Mapping[str, Any] | None = None,
) -> None:
  """Exports the feature extractor of an MNIST CNN.

  Args:
    export_dir: The directory that the SavedModel appears at.
    checkpoint_path: A checkpoint of a classifier, `tf.train.Checkpoint(model=
      models.vision.mnist_cnn.classifier(…))`: the prefix of its files or a
      directory. Either this or `train_on`.
    weights: `raw`, or `average` for the moving averages, where the checkpoint
      has both.
    train_on: Name of the data set to train on, in `models.vision.datasets`.
    training_config: How to train, with `train_on`.
    distribution: How to distribute the training, and in which precision.
    checkpoint_dir: Where to keep the trained classifier's checkpoint.
    backup_dir: Where to keep the state of the training until it is over; it
      goes on from the state that is there.
    l2_strength: Factor of the L2 regularization of every kernel.
    overwrite: Replace `export_dir` and `checkpoint_dir` where they exist.
    verification: `full`, `fast` or `off`.
    keep_failed: Where to keep an export that the verification has rejected.
    flag_values: For the report of the verification.

  Raises:
    ExportError: A directory is in the way, the data cannot be had, the
      checkpoint does not match, or the export differs from the model.
    ValueError: There are both or neither of `checkpoint_path` and `train_on`.
  """
  if bool(checkpoint_path) == bool(train_on):
    raise ValueError("Exactly one of checkpoint_path and train_on is needed.")
  publishing.check_apart(export_dir, checkpoint_dir, keep_failed=keep_failed)
  with publishing.publish(
    export_dir, "saved_model.pb", overwrite=overwrite
  ) as directory:
    process = verification_lib.start(verification)
    record: dict[str, Any] = {"flags": flag_values}
    if train_on:

      def build(
        num_classes: int,
      ) -> tuple[tf.train.Checkpoint, tf_keras.Model]:
        classifier = mnist_cnn.classifier(
          mnist_cnn.feature_extractor(l2_strength=l2_strength), num_classes
        )
        return tf.train.Checkpoint(model=classifier), classifier

      trained, provenance = classifier_training.train(
        build,
        train_on,
        mnist_cnn.IMAGE_SHAPE,
        training_config or training.Config(),
        distribution=distribution,
        checkpoint_dir=checkpoint_dir,
        backup_dir=backup_dir,
        overwrite=overwrite,
      )
      extractor = trained.model.feature_extractor
    else:
      extractor = mnist_cnn.feature_extractor(l2_strength=l2_strength)
      checkpoints.restore(
        checkpoint_path,
        [
          tf.train.Checkpoint(
            model=tf.train.Checkpoint(feature_extractor=extractor)
          )
        ],
        left_out=["model/logits", "model/optimizer"],
        weights=weights,
      )
      provenance = {
        "source": "a checkpoint of the classifier"
        + (", averaged over its training" if weights == "average" else "")
      }
      record["checkpoint_sha256"] = checkpoints.sha256(checkpoint_path)
    provenance["L2 regularization of the kernels"] = f"{l2_strength:g}"
    source = _save(extractor, directory, provenance)
    verification_lib.verify(
      directory,
      source,
      [_example(batch_size) for batch_size in (3, 1)],
      verification,
      process=process,
      record=record,
      keep_failed=keep_failed,
    )
  print(f"Exported the feature extractor to {export_dir}")


def _example(batch_size: int) -> tf.Tensor:
  return tf.random.stateless_uniform(
    [batch_size, *mnist_cnn.IMAGE_SHAPE], [batch_size, 0]
  )


def _save(
  extractor: tf_keras.Model, directory: str, provenance: dict[str, str]
) -> saving.Source:
  """Writes the SavedModel and its card; returns what they were made of."""
  tunable = hyperparameters.of_model(extractor)
  images = tf.TensorSpec([None, *mnist_cnn.IMAGE_SHAPE], tf.float32, "images")
  source = saving.source(extractor, images, hyperparameters=tunable)
  root = saving.reusable(source, also_takes=saving.of_mixed_precision(images))
  signature = saving.signature(root, images, "feature_vector")
  saving.save(root, directory, signatures={"serving_default": signature})
  model_card.write(
    directory,
    root,
    signature,
    name="MNIST CNN feature extractor",
    description="A small convolutional network that turns grey images of"
    " single characters, 28 by 28 pixels as in MNIST, into feature vectors: two"
    " convolutions with batch normalization and pooling, dropout and a dense"
    " layer.",
    meanings={
      "images": "grey values from 0 (background) to 1 (ink)",
      "feature_vector": "features of each image, 0 or more",
    },
    hyperparameters=tunable,
    example=_EXAMPLE,
    provenance=provenance,
  )
  return source


def define_flags() -> None:
  """Defines the flags of this program."""
  classifier_training.define_flags()
  flags.adopt_module_key_flags(classifier_training)
  command_line.define_flags()
  flags.adopt_module_key_flags(command_line)
  flags.DEFINE_float(
    "l2_strength",
    mnist_cnn.L2_STRENGTH,
    "Factor of the L2 regularization of every kernel, in training and in the"
    " regularization losses of the export.",
    lower_bound=0.0,
  )


def main() -> None:
  """Exports what the flags say."""
  values = flags.FLAGS
  export(
    export_dir=command_line.path(values.export_dir),
    checkpoint_path=command_line.path(values.checkpoint_path),
    weights=values.weights,
    train_on=values.train_on,
    training_config=classifier_training.config(),
    distribution=strategies.from_flags(),
    checkpoint_dir=command_line.path(values.checkpoint_dir),
    backup_dir=command_line.path(values.backup_dir),
    l2_strength=values.l2_strength,
    overwrite=values.overwrite,
    verification=values.verification,
    keep_failed=command_line.path(values.keep_failed),
    flag_values=command_line.record(),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
