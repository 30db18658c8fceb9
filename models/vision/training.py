"""Trains image classifiers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import sys

from etils import epy

from data import batches
from data import classes
from distribution import backups
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras


@dataclasses.dataclass(frozen=True)
class Config:
  """The hyperparameters of training.

  Attributes:
    epochs: Number of epochs; 0 keeps the initial weights.
    batch_size: Global batch size: images per step, on all devices together.
    learning_rate: Initial learning rate of Adam, which falls to 0 along a
      cosine.
    seed: Seed of the initial weights, the order of images, and dropout. On one
      machine it determines the trained weights.
  """

  epochs: int = 12
  batch_size: int = 32
  learning_rate: float = 1e-3
  seed: int = 0


def train(
  model: tf_keras.Model,
  dataset: classes.Dataset,
  config: Config,
  callbacks: Sequence[tf_keras.callbacks.Callback] = (),
) -> float:
  """Trains a classifier, with a progress bar.

  Images, unlike videos, are shifted, rotated and zoomed a little at random.
  This makes features that are trained on few classes better for other classes.

  Args:
    model: A model from images to logits, `[batch, classes]`, built in the scope
      of its strategy.
    dataset: The data set.
    config: The hyperparameters of training.
    callbacks: Callbacks of Keras. If they resume a run, the order of images
      differs from that of a run without interruption.

  Returns:
    The accuracy on held-out images, in [0, 1].
  """
  strategy = model.distribute_strategy
  steps = -(-len(dataset.train) // config.batch_size)
  image_shape = dataset.train.element_spec[0].shape
  is_image = image_shape.rank == 3
  on_host = is_image and isinstance(strategy, tf.distribute.TPUStrategy)
  with strategy.scope():
    trained = tf_keras.Sequential(
      [
        *([augmentation(image_shape)] if is_image and not on_host else []),
        model,
        # Compute the loss in float32, whatever the precision of the model.
        tf_keras.layers.Activation("linear", dtype="float32"),
      ]
    )
    learning_rate = tf_keras.optimizers.schedules.CosineDecay(
      config.learning_rate, max(steps * config.epochs, 1)
    )
    trained.compile(
      optimizer=tf_keras.optimizers.Adam(learning_rate),
      loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      weighted_metrics=[tf_keras.metrics.SparseCategoricalAccuracy("accuracy")],
    )
    # Variables that the first step creates would cause a second trace.
    trained.optimizer.build(model.trainable_variables)
  if config.epochs and not backups.restored(trained, callbacks):
    seed = config.seed
    if strategies.is_asynchronous(strategy):
      # Workers draw their own batches, which a seed would make equal.
      seed = None
      tf.random.set_seed(None)
    train_batches = batches.training(dataset.train, config.batch_size, seed)
    if on_host:
      train_batches = augmented_on_host(train_batches)
    train_batches = batches.for_each_worker(train_batches)
    with batches.timed(train_batches, strategy) as timed:
      trained.fit(
        timed,
        epochs=config.epochs,
        steps_per_epoch=steps,
        callbacks=list(callbacks),
        # A progress bar on a terminal, otherwise one line per epoch.
        verbose=1 if sys.stdout.isatty() else 2,
      )
  return strategies.evaluate(
    trained, batches.testing(dataset.test, config.batch_size)
  )


def augmentation(image_shape: Sequence[int]) -> tf_keras.Sequential:
  """Returns layers that shift, rotate and zoom images a little in training."""
  # Lower precision is too coarse for positions in an image.
  options = {"fill_mode": "constant", "dtype": "float32"}
  layers = tf_keras.Sequential(
    [
      tf_keras.layers.RandomTranslation(0.12, 0.12, **options),
      tf_keras.layers.RandomRotation(0.06, **options),
      tf_keras.layers.RandomZoom(0.15, 0.15, **options),
    ]
  )
  layers.build([None, *image_shape])
  return layers


def augmented_on_host(examples: tf.data.Dataset) -> tf.data.Dataset:
  """Augments images in the input pipeline, because TPUs cannot rotate them.

  Args:
    examples: Batches of images and labels.
  """
  layers = augmentation(examples.element_spec[0].shape[1:])
  # Map sequentially, so that random numbers are the same in each run.
  return examples.map(lambda x, y: (layers(x, training=True), y))
