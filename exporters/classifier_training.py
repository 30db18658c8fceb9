"""Trains the image classifiers whose pieces are exported, as flags say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import os

from absl import flags
from etils import epy

from distribution import strategies
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import publishing
from models.vision import datasets
from models.vision import training

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras


def define_flags() -> None:
  """Defines --train_on and the flags that apply only with it."""
  flags.DEFINE_string(
    "train_on",
    None,
    "Instead of --checkpoint_path: train a classifier on this data set, and"
    f" export of it what else would be of a checkpoint. One of"
    f" {', '.join(datasets.NAMES)}, or {datasets.PREFIX}NAME for NAME in"
    " tensorflow-datasets. digits and digits_0_4 (the first five classes) come"
    " with scikit-learn; the others are downloaded.",
  )
  flags.DEFINE_string(
    "checkpoint_dir",
    None,
    "With --train_on: keep the checkpoint of the trained classifier in this"
    " directory, which must not exist, or be empty; --overwrite replaces one"
    " that has a checkpoint in it.",
  )
  flags.DEFINE_string(
    "backup_dir",
    None,
    "With --train_on: where to keep the state of the training after each epoch"
    " until its end. The same command goes on from there after an interruption."
    " All machines must see it.",
  )
  flags.DEFINE_integer(
    "epochs",
    training.Config.epochs,
    "With --train_on: how often to go through the training images; 0 exports"
    " the initial weights.",
    lower_bound=0,
  )
  flags.DEFINE_integer(
    "batch_size",
    training.Config.batch_size,
    "With --train_on: images in a step, on all devices together.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "learning_rate",
    training.Config.learning_rate,
    "With --train_on: learning rate of Adam at the start.",
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    "seed",
    training.Config.seed,
    "With --train_on: seed of the initial weights, the order of the images and"
    " dropout.",
  )
  strategies.define_flags("With --train_on: ")
  flags.adopt_module_key_flags(strategies)
  flags.register_validator(
    "train_on",
    lambda name: name is None or datasets.is_name(name),
    f"It must be one of {', '.join(datasets.NAMES)}, or"
    f" {datasets.PREFIX}NAME for NAME in tensorflow-datasets.",
  )
  command_line.forbid_without(
    "train_on",
    [
      "checkpoint_dir",
      "backup_dir",
      "epochs",
      "batch_size",
      "learning_rate",
      "seed",
      *strategies.FLAGS,
    ],
  )


def config() -> training.Config:
  """Returns what the flags say of the training."""
  values = flags.FLAGS
  return training.Config(
    epochs=values.epochs,
    batch_size=values.batch_size,
    learning_rate=values.learning_rate,
    seed=values.seed,
  )


def train(
  build: Callable[[int], tuple[tf.train.Checkpoint, tf_keras.Model]],
  name: str,
  image_shape: Sequence[int],
  training_config: training.Config,
  *,
  distribution: strategies.Config = strategies.DEFAULT,
  checkpoint_dir: str | None = None,
  backup_dir: str | None = None,
  overwrite: bool = False,
) -> tuple[tf.train.Checkpoint, dict[str, str]]:
  """Trains a classifier.

  Args:
    build: Makes a classifier of so many classes: returns what its checkpoint
      saves, and the model to train, from images in [0, 1], float32, to logits.
    name: Name of the data set, as `datasets.load` knows it.
    image_shape: Height, width and channels of the images.
    training_config: How to train.
    distribution: How to distribute it, and in which precision. Of the processes
      of a cluster only the chief gets beyond this function; the others end.
    checkpoint_dir: Where to keep the checkpoint.
    backup_dir: Where to keep the state of the training until it is over, as
      `training.train` takes it.
    overwrite: Replace `checkpoint_dir` where it exists.

  Returns:
    What `build` returned first, trained; it is of no strategy, and computes in
    float32. And what the model card tells of the training.

  Raises:
    ExportError: `checkpoint_dir` is in the way, or the data or what is asked
      of `distribution` cannot be had.
  """
  strategy = command_line.strategy(distribution)
  with contextlib.ExitStack() as stack:
    if checkpoint_dir:
      directory = stack.enter_context(
        publishing.publish(checkpoint_dir, "checkpoint", overwrite=overwrite)
      )
    try:
      dataset = datasets.load(name, image_shape)
    except (ConnectionError, ValueError) as e:
      raise errors.ExportError(f"{e}") from e
    tf_keras.utils.set_random_seed(training_config.seed)
    with strategies.precision(distribution.mixed_precision):
      with strategy.scope():
        root, model = build(len(dataset.classes))
      print(
        f"Training on {len(dataset.train):,} images of {dataset.description}"
      )
      with strategies.cluster_errors():
        accuracy = training.train(
          model, dataset, training_config, backup_dir=backup_dir
        )
    held_out = f"{len(dataset.test):,} images held out"
    print(f"Test accuracy: {accuracy:.4f} on {held_out}")
    if distribution != strategies.DEFAULT:
      weights = model.get_weights()  # For which all workers are needed.
      command_line.end_unless_chief(strategy)
      root, model = build(len(dataset.classes))
      model.set_weights(weights)
    if checkpoint_dir:
      root.save(os.path.join(directory, "checkpoint"))
  classes = {"classes": ", ".join(dataset.classes)}
  if not training_config.epochs:
    return root, {"source": "not trained", **classes}
  return root, {
    "trained on": dataset.description,
    **classes,
    "test accuracy of the classifier": f"{accuracy:.4f} on {held_out}",
    "training": f"{training_config.epochs} epochs of Adam, batches of"
    f" {training_config.batch_size}, learning rate"
    f" {training_config.learning_rate:g} falling to 0, seed"
    f" {training_config.seed}, in {distribution.mixed_precision}",
  }
