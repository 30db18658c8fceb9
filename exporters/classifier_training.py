"""Trains image classifiers, and defines the flags of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import Any

from absl import flags
from etils import epy

from data import classes
from data import images
from distribution import backups
from distribution import publishing
from distribution import strategies
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import training_records
from models.vision import training

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

# --help lists the flags as those of the program that defines them.
flags.disclaim_key_flags()


# Help texts of the flags for fields of Weights.
_DIRECTORY_FLAGS = {
  "checkpoint_dir": "directory for the checkpoint of the trained classifier. It"
  " must not exist, or be empty; --overwrite replaces one with a checkpoint.",
  "backup_dir": "directory for the state of the training after each epoch,"
  " removed once the export has appeared. After an interruption the same"
  " command resumes from it. All machines need access to it.",
  "tensorboard_dir": command_line.TENSORBOARD,
}
# Help texts and limits of the flags for fields of training.Config.
_TRAINING_FLAGS = {
  "epochs": ("number of epochs; 0 exports the initial weights.", 0),
  "batch_size": (
    "global batch size: images per step, on all devices together.",
    1,
  ),
  "learning_rate": ("initial learning rate of Adam.", 0.0),
  "seed": ("seed of the initial weights, the order of images, dropout.", 0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """The source of a classifier's weights: a checkpoint, or training.

  The fields are the values of the flags of the same names, except for:

  Attributes:
    training: Hyperparameters of the training.
    distribution: The strategy and the precision of the training.
  """

  checkpoint_path: str | None = None
  weights: str | None = None
  class_names_file: str | None = None
  train_on: str | None = None
  held_out: float | None = None
  training: training.Config = dataclasses.field(default_factory=training.Config)
  distribution: strategies.Config = strategies.DEFAULT
  checkpoint_dir: str | None = None
  backup_dir: str | None = None
  tensorboard_dir: str | None = None

  @property
  def directories(self) -> list[str | None]:
    """The directories the training writes to; None for unused ones."""
    return [self.checkpoint_dir, self.backup_dir, self.tensorboard_dir]

  @property
  def description(self) -> str:
    """Describes weights from a checkpoint, for the model card."""
    average = ", averaged over its training"
    is_average = self.weights == "average"
    return "a checkpoint" + (average if is_average else "")

  def class_names(self, count: int | None = None) -> str:
    """Returns the names in `class_names_file`, if any, for the model card."""
    if not self.class_names_file:
      return ""
    with errors.of_input(ValueError):
      names = classes.read_names(self.class_names_file)
    if count and len(names) != count:
      raise errors.ExportError(
        f"{self.class_names_file} names {len(names)} classes, but the"
        f" classifier has {count}."
      )
    return ", ".join(names)


def define_flags() -> None:
  """Defines --train_on and the flags that apply only with it."""
  images.define_flags(
    "train_on",
    None,
    "Instead of --checkpoint_path: train a classifier on this data set and"
    " export it.",
  )
  command_line.define(Weights, _DIRECTORY_FLAGS, only_with="train_on")
  command_line.define(training.Config, _TRAINING_FLAGS, only_with="train_on")
  strategies.define_flags("With --train_on: ")
  flags.adopt_module_key_flags(strategies)
  command_line.forbid_without("train_on", ["held_out", *strategies.FLAGS])
  command_line.require_weights()


def weights() -> Weights:
  """Returns the source of the weights that the flags select."""
  return command_line.from_flags(
    Weights,
    training=command_line.from_flags(training.Config),
    distribution=strategies.from_flags(),
  )


# Builds a classifier for a number of classes. Returns the checkpoint object to
# save, and the model to train. The model maps images, float32 in [0, 1], to
# logits.
Build = Callable[[int], tuple["tf.train.Checkpoint", "tf_keras.Model"]]


def train(
  build: Build,
  image_shape: Sequence[int],
  how: Weights,
  *,
  about: Mapping[str, Any],
  overwrite: bool = False,
) -> tuple[tf.train.Checkpoint, dict[str, str]]:
  """Trains a classifier.

  Args:
    build: Builds the classifier.
    image_shape: Height, width and channels of the images.
    how: How to train. In a cluster only the chief returns; the other processes
      exit.
    about: Further options. Training resumes only if they are unchanged.
    overwrite: Whether to replace an existing `checkpoint_dir`.

  Returns:
    The checkpoint object that `build` returns, trained, in float32 and outside
    of any strategy; and rows about the training for the model card.

  Raises:
    ExportError: `checkpoint_dir` is taken, the state in `backup_dir` belongs to
      another run, or the data set or the devices are missing.
  """
  strategy = command_line.strategy(how.distribution)
  with contextlib.ExitStack() as stack:
    if how.checkpoint_dir:
      directory = stack.enter_context(
        publishing.publish(
          how.checkpoint_dir, publishing.CHECKPOINT, overwrite=overwrite
        )
      )
    with errors.of_input(ConnectionError, ValueError):
      dataset = images.load(how.train_on, how.held_out, how.class_names_file)
      dataset = images.resized(
        dataset, image_shape, is_remote=bool(strategies.io_device(strategy))
      )
      callbacks = _callbacks(how, dataset, about, strategy)
    print(f"Training on {dataset}")
    tf_keras.utils.set_random_seed(how.training.seed)
    with strategies.precision(how.distribution.mixed_precision):
      with strategy.scope():
        root, model = build(len(dataset.classes))
      with strategies.cluster_errors():
        accuracy = training.train(model, dataset, how.training, callbacks)
    held_out = f"{accuracy:.4f} on {dataset.num_held_out:,} images held out"
    print(f"Test accuracy: {held_out}")
    if how.distribution != strategies.DEFAULT:
      values = model.get_weights()  # All workers must take part.
      command_line.end_unless_chief(strategy)
      root, model = build(len(dataset.classes))
      model.set_weights(values)
    if how.checkpoint_dir:
      root.save(os.path.join(directory, "checkpoint"))
  return root, _provenance(dataset, how, held_out)


def _callbacks(
  how: Weights,
  dataset: classes.Dataset,
  about: Mapping[str, Any],
  strategy: tf.distribute.Strategy,
) -> list[tf_keras.callbacks.Callback]:
  """Makes the callbacks that record training and save its state."""
  recording = training_records.callbacks(how.tensorboard_dir, strategy)
  if not how.backup_dir:
    return recording
  config = dataclasses.asdict(how.training)
  del config["epochs"]  # The number of epochs may grow.
  run = {
    "train_on": how.train_on,
    "data": backups.fingerprint(dataset.train),
    **config,
    "mixed_precision": how.distribution.mixed_precision,
    **about,
  }
  return recording + backups.callbacks(
    how.backup_dir,
    run,
    strategy,
    how.training.epochs,
    training_records.epochs,
  )


def _provenance(
  dataset: classes.Dataset, how: Weights, held_out: str
) -> dict[str, str]:
  """Returns rows about the training for the model card."""
  named = {"classes": ", ".join(dataset.classes)}
  config = how.training
  if not config.epochs:
    return {"source": "not trained", **named}
  return {
    "trained on": dataset.description,
    **named,
    "test accuracy of the classifier": held_out,
    "training": f"{config.epochs} epochs of Adam, batches of"
    f" {config.batch_size}, learning rate {config.learning_rate:g} falling to"
    f" 0, seed {config.seed}, in {how.distribution.mixed_precision}",
  }
