r"""Exports the feature extractor of an MNIST CNN.

It trains the CNN first, or restores a checkpoint:

  bazel run //exporters:mnist_cnn -- --train_on=digits --export_dir=DIR
  bazel run //exporters:mnist_cnn -- \
    --checkpoint_path=CHECKPOINT --export_dir=DIR
  bazel run //exporters:mnist_cnn -- \
    --train_on=digits --saved_model_format=keras --export_dir=DIR
"""

from __future__ import annotations

from absl import flags
from etils import epy

from exporters import classifier_training
from exporters.reusable import command_line
from exporters.reusable import exporting
from models.vision import mnist_cnn

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving

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
  weights: classifier_training.Weights,
  options: exporting.Options,
  *,
  l2_strength: float = mnist_cnn.L2_STRENGTH,
) -> None:
  """Exports the feature extractor of an MNIST CNN.

  Args:
    weights: A checkpoint of a classifier, `tf.train.Checkpoint(model=
      models.vision.mnist_cnn.classifier(…))`; or how to train one.
    options: Where to export and how to verify.
    l2_strength: Factor of the L2 regularization of every kernel.

  Raises:
    ExportError: A directory is taken, the data is missing, the checkpoint does
      not match, or the export differs from the model.
  """
  with exporting.exporting(options, apart=weights.directories) as export_piece:

    def build(num_classes: int) -> tuple[tf.train.Checkpoint, tf_keras.Model]:
      extractor = mnist_cnn.feature_extractor(l2_strength=l2_strength)
      exporting.check_profiles(options, extractor)
      classifier = mnist_cnn.classifier(extractor, num_classes)
      return tf.train.Checkpoint(model=classifier), classifier

    if weights.train_on:
      trained, provenance = classifier_training.train(
        build,
        mnist_cnn.IMAGE_SHAPE,
        weights,
        about={"l2_strength": l2_strength},
        overwrite=options.overwrite,
      )
      extractor = trained.model.feature_extractor
    else:
      extractor = mnist_cnn.feature_extractor(l2_strength=l2_strength)
      exporting.check_profiles(options, extractor)
      model = tf.train.Checkpoint(feature_extractor=extractor)
      checkpoints.restore(
        weights.checkpoint_path,
        [tf.train.Checkpoint(model=model)],
        left_out=["model/logits", "model/optimizer"],
        weights=weights.weights,
      )
      provenance = {"source": weights.description}
      if names := weights.class_names():
        provenance["classes"] = names
    provenance["L2 regularization of the kernels"] = f"{l2_strength:g}"
    record = exporting.record(options, weights.checkpoint_path)
    export_piece("", _piece(extractor), _card(provenance), record)


def _piece(extractor: tf_keras.Model) -> exporting.Piece:
  """Describes the SavedModel to export."""
  images = tf.TensorSpec([None, *mnist_cnn.IMAGE_SHAPE], tf.float32, "images")
  return exporting.Piece(
    source=saving.source(
      extractor, images, hyperparameters=hyperparameters.of_model(extractor)
    ),
    examples=[
      tf.random.stateless_uniform([n, *mnist_cnn.IMAGE_SHAPE], [n, 0])
      for n in (3, 1)
    ],
    also_takes=saving.of_mixed_precision(images),
    output_name="feature_vector",
  )


def _card(provenance: dict[str, str]) -> model_card.Card:
  return model_card.Card(
    name="MNIST CNN feature extractor",
    description="A small convolutional network that turns grey images of"
    " single characters, 28 by 28 pixels as in MNIST, into feature vectors. It"
    " has two convolutions with batch normalization and pooling, dropout and a"
    " dense layer.",
    meanings={
      "images": "grey values, 0 for the background, 1 for ink",
      "feature_vector": "features of each image, 0 or more",
    },
    ranges={"images": (0, 1)},
    sizes={"images": {"training": mnist_cnn.IMAGE_SHAPE[:-1]}},
    example=_EXAMPLE,
    provenance=provenance,
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags()
  command_line.define_saved_model_format()
  classifier_training.define_flags()
  flags.DEFINE_float(
    "l2_strength",
    mnist_cnn.L2_STRENGTH,
    "Factor of the L2 regularization of every kernel, in training and in the"
    " regularization losses of the export.",
    lower_bound=0.0,
  )


def main() -> None:
  """Exports the model that the flags describe."""
  export(
    classifier_training.weights(),
    command_line.options(),
    l2_strength=flags.FLAGS.l2_strength,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
