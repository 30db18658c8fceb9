"""Saves and restores the weights of a model, for further training."""

from __future__ import annotations

from collections.abc import Sequence
import os
import tempfile

from etils import epy

from data import classes
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

_CLASS_NAMES = "class_names.txt"


def restore(
  model: tf_keras.Model, directory: str | None, class_names: Sequence[str]
) -> tf.train.Checkpoint:
  """Restores the weights that `save` has written, if there are any.

  Args:
    model: The model. The state of its optimizer is not restored.
    directory: The directory, which is created. None restores nothing.
    class_names: Names of the classes of the model, if it has any.

  Returns:
    A checkpoint of the model without its optimizer, for `save`.

  Raises:
    ValueError: The weights are those of another model or of other classes.
  """
  weights = tf.train.Checkpoint(
    model=tf_keras.Model(model.inputs, model.outputs)
  )
  if not directory:
    return weights
  tf.io.gfile.makedirs(directory)
  latest = tf.train.latest_checkpoint(directory)
  if not latest:
    return weights
  if class_names:
    names = classes.read_names(os.path.join(directory, _CLASS_NAMES))
    if names != list(class_names):
      raise ValueError(
        f"{directory} has the weights for other classes:"
        f" {', '.join(names[:5])}. Use another directory."
      )
  try:
    weights.restore(latest).assert_existing_objects_matched()
  except (AssertionError, ValueError) as e:
    raise ValueError(
      f"{directory} has the weights of another model. Use another directory:"
      f" {e}"
    ) from e
  print(f"Starting from the weights in {directory}")
  return weights


def save(
  weights: tf.train.Checkpoint,
  directory: str | None,
  class_names: Sequence[str],
  strategy: tf.distribute.Strategy,
) -> None:
  """Replaces the weights in a directory. Only the chief writes."""
  if not directory:
    return
  if is_chief := strategies.is_chief(strategy):
    path = os.path.join(directory, _CLASS_NAMES)
    classes.write_names(f"{path}.new", class_names)
    tf.io.gfile.rename(f"{path}.new", path, overwrite=True)
  options = tf.train.CheckpointOptions(
    experimental_io_device=strategies.io_device(strategy)
  )
  # All workers call save, because reading replicated variables is collective.
  with tempfile.TemporaryDirectory() as scratch_dir:
    tf.train.CheckpointManager(
      weights, directory if is_chief else scratch_dir, max_to_keep=1
    ).save(options=options)
