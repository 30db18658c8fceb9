"""Trains image classifiers."""

from __future__ import annotations

import dataclasses
import sys

from etils import epy

from models.vision import datasets

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

_SHUFFLED_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Config:
  """How to train.

  Attributes:
    epochs: How often to go through the training images; 0 trains nothing.
    batch_size: Images in a step, on all devices together.
    learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
    seed: Of the initial weights, the order of the images and dropout. The same
      seed on the same machine gives the same weights.
  """

  epochs: int = 12
  batch_size: int = 32
  learning_rate: float = 1e-3
  seed: int = 0


def train(
  model: tf_keras.Model, dataset: datasets.Dataset, config: Config
) -> float:
  """Trains a classifier, with a progress bar.

  The images are shifted, turned and zoomed a little at random: features of
  few classes then serve other classes better.

  Args:
    model: From images to logits, `[batch, classes]`, built in the scope of the
      strategy to train with.
    dataset: What to train on.
    config: How to train.

  Returns:
    The accuracy on the images held out, in [0, 1].
  """
  size = int(dataset.train.cardinality())
  image, _ = dataset.train.element_spec
  image_bytes = image.shape.num_elements() * image.dtype.size
  batches = (
    dataset.train.shuffle(
      min(size, max(1, _SHUFFLED_BYTES // image_bytes)), config.seed
    )
    .batch(config.batch_size)
    .prefetch(tf.data.AUTOTUNE)
  )
  with model.distribute_strategy.scope():
    trained = tf_keras.Sequential(
      [
        tf_keras.layers.RandomTranslation(0.12, 0.12, fill_mode="constant"),
        tf_keras.layers.RandomRotation(0.06, fill_mode="constant"),
        tf_keras.layers.RandomZoom(0.15, 0.15, fill_mode="constant"),
        model,
      ]
    )
    trained.compile(
      optimizer=tf_keras.optimizers.Adam(
        tf_keras.optimizers.schedules.CosineDecay(
          config.learning_rate,
          max(-(-size // config.batch_size) * config.epochs, 1),
        )
      ),
      loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      metrics=["accuracy"],
    )
  if config.epochs:
    trained.fit(
      batches,
      epochs=config.epochs,
      # A bar on a terminal; in a log a line for each epoch.
      verbose=1 if sys.stdout.isatty() else 2,
    )
  _, accuracy = trained.evaluate(
    dataset.test.batch(config.batch_size), verbose=0
  )
  return accuracy
