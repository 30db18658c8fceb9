"""Loads exports as layers; trains, tests and saves with any strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import inspect
import tempfile
from typing import Any

from etils import epy

from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras


def load_layer(
  saved_model_dir: str,
  *,
  name: str,
  retrain: bool,
  regularization_loss_multiplier: float = 1.0,
  hyperparameters: Mapping[str, float],
) -> hub.KerasLayer:
  """Loads an export as a layer.

  Args:
    saved_model_dir: The export.
    name: Name of the layer.
    retrain: Also train its weights.
    regularization_loss_multiplier: Factor of its regularization losses.
    hyperparameters: Arguments of the export that replace its defaults.

  Raises:
    ValueError: The export does not take a hyperparameter.
  """
  export = hub.load(
    saved_model_dir,
    options=tf.saved_model.LoadOptions(
      experimental_io_device=strategies.io_device(tf.distribute.get_strategy())
    ),
  )
  if hyperparameters:
    parameters = inspect.signature(export.__call__).parameters.values()
    known = [p.name for p in parameters if isinstance(p.default, float)]
    for unknown in hyperparameters.keys() - set(known):
      raise ValueError(
        f"{saved_model_dir} has no hyperparameter {unknown}, but"
        f" {', '.join(known) or 'none'}. Omit --{unknown}."
      )
  if regularization_loss_multiplier != 1.0:
    export.regularization_losses = [
      _scaled(loss, regularization_loss_multiplier)
      for loss in export.regularization_losses
    ]
  return hub.KerasLayer(
    export, trainable=retrain, arguments=dict(hyperparameters), name=name
  )


def _scaled(
  loss: Callable[[], tf.Tensor], factor: float
) -> Callable[[], tf.Tensor]:
  return tf.function(lambda: factor * loss(), input_signature=[])


def logits(features: tf.Tensor, num_classes: int) -> tf.Tensor:
  """Returns the logits of a new dense layer on features, in float32."""
  return tf_keras.layers.Dense(num_classes, dtype="float32", name="logits")(
    features
  )


def compiled(
  model: tf_keras.Model, optimizer: tf_keras.optimizers.Optimizer
) -> tf_keras.Model:
  """Compiles a model of logits for training with labels; returns it."""
  model.compile(
    optimizer=optimizer,
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=["accuracy"],
  )
  return model


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
  """Raises a ValueError if replicas cannot share a batch evenly."""
  replicas = strategy.num_replicas_in_sync
  if batch_size % replicas:
    raise ValueError(
      f"--batch_size={batch_size} is not a multiple of the {replicas} replicas"
      " that share a batch."
    )


def training_batches(
  data: tuple[Any, Any], batch_size: int, seed: int | None = 0
) -> tf.data.Dataset:
  """Returns an endless dataset of shuffled batches of the same size.

  Args:
    data: Inputs, an array or a dict of arrays, and labels, int `[n, …]`.
    batch_size: Number of examples in a batch.
    seed: Seed of the shuffling. Workers that share each batch need the same.
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
  """Returns batches of the same size with weights: 0 for padding, else 1.

  Args:
    data: As for `training_batches`.
    batch_size: Number of examples in a batch.
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
  """Shards each batch, rather than input files, between workers."""
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
    train: Training data: inputs, an array or a dict of arrays, and labels.
    test: Test data, likewise.
    batch_size: Number of examples in a step, on all devices together; a
      multiple of the number of replicas.
    epochs: Number of passes over the training data.
    backup_dir: Directory for the state of the training after each epoch, until
      the training ends. Training resumes from the state that is there.
    verbose: Argument of Keras.

  Returns:
    The accuracy on the test data, in [0, 1].
  """
  asynchronous = strategies.is_asynchronous(model.distribute_strategy)
  model.fit(
    # Asynchronous workers need batches that differ from each other's.
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
  """Saves a model. Of several workers only the chief does.

  Args:
    model: The model.
    output_dir: Directory for the SavedModel.
    strategy: The strategy that the model was built with.
  """
  is_chief = strategies.is_chief(strategy)
  with contextlib.ExitStack() as stack:
    if not is_chief:
      # The chief reads replicated variables together with all workers.
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
