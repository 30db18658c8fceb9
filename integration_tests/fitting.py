"""How all consumers train, test and save: with any strategy, and all alike."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

from etils import epy

from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
  """Raises a ValueError for batches that replicas cannot share evenly."""
  replicas = strategy.num_replicas_in_sync
  if batch_size % replicas:
    raise ValueError(
      f"--batch_size={batch_size} is not a multiple of the {replicas} replicas"
      " that share a batch."
    )


def training_batches(
  data: tuple[Any, Any], batch_size: int, seed: int | None = 0
) -> tf.data.Dataset:
  """Returns shuffled batches without end, all of the same size.

  Args:
    data: Inputs, an array or a dict of them, and labels, int `[n, …]`.
    batch_size: Examples in a batch.
    seed: Of the order. Workers that share each batch need the same one.
  """
  size = len(data[1])
  return _sharded_by_example(
    tf.data.Dataset.from_tensor_slices(data)
    .shuffle(size, seed)
    .repeat()
    .batch(batch_size, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def test_batches(data: tuple[Any, Any], batch_size: int) -> tf.data.Dataset:
  """Returns batches of the same size with weights, 0 for what fills the last.

  Args:
    data: As for `training_batches`.
    batch_size: Examples in a batch.
  """
  _, labels = data
  weights = tf.ones(labels.shape)
  dataset = tf.data.Dataset.from_tensor_slices((*data, weights))
  filling = dataset.repeat().take(-len(labels) % batch_size)
  filling = filling.map(lambda x, y, weight: (x, y, 0.0 * weight))
  return _sharded_by_example(
    dataset.concatenate(filling).batch(batch_size, drop_remainder=True)
  )


def _sharded_by_example(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Has each worker take its share of every batch, as there are no files."""
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA
  )
  return dataset.with_options(options)


def fit(
  model: tf_keras.Model,
  train: tuple[Any, Any],
  test: tuple[Any, Any],
  *,
  batch_size: int,
  epochs: int,
  backup_dir: str | None = None,
  verbose: int | str = "auto",
) -> float:
  """Trains and tests a model with the strategy that it was built with.

  Args:
    model: Compiled, with the accuracy among its `weighted_metrics`.
    train: What to train on: inputs, an array or a dict of them, and labels.
    test: What to test on.
    batch_size: Examples in a step, on all devices together; a multiple of the
      number of replicas.
    epochs: How often to go through the examples.
    backup_dir: Where to keep the state of the training after each epoch until
      it is over. It goes on from the state that is there.
    verbose: As Keras takes it.

  Returns:
    The accuracy on the test data, in [0, 1].
  """
  asynchronous = strategies.is_asynchronous(model.distribute_strategy)
  model.fit(
    # Workers that take batches of their own need different ones.
    training_batches(train, batch_size, None if asynchronous else 0),
    epochs=epochs,
    steps_per_epoch=-(-len(train[1]) // batch_size),
    callbacks=(
      [tf_keras.callbacks.BackupAndRestore(backup_dir)] if backup_dir else []
    ),
    verbose=verbose,
  )
  return strategies.evaluate(model, test_batches(test, batch_size))


def save(
  model: tf_keras.Model, output_dir: str, strategy: tf.distribute.Strategy
) -> None:
  """Saves a model; where there are several workers, the chief does.

  Args:
    model: What to save.
    output_dir: Where.
    strategy: The one that it was built with.
  """
  is_chief = strategies.is_chief(strategy)
  with contextlib.ExitStack() as stack:
    if not is_chief:
      # The chief cannot read what replicas have in common without the others.
      output_dir = stack.enter_context(tempfile.TemporaryDirectory())
    model.save(
      output_dir,
      save_format="tf",
      options=tf.saved_model.SaveOptions(
        experimental_io_device=strategies.io_device(strategy)
      ),
    )
  if is_chief:
    print(f"Saved the fine-tuned model to {output_dir}")
