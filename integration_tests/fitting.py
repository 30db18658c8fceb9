"""Loads exports as layers; trains, tests and saves with any strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import inspect
import os
import tempfile
from typing import Any
import uuid

from etils import epy

from data import batches
from distribution import errors
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras

# Pairs of inputs and labels: a tf.data.Dataset of examples, whose number and
# shapes are known for training; or inputs, an array or a dict of arrays, and
# labels, int `[n, …]`.
Data = Any


def load(saved_model_dir: str) -> Any:
  """Loads a SavedModel that can be called.

  Raises:
    InputError: There is none, or it is damaged or cannot be called.
  """
  about = f"Cannot load {saved_model_dir}: "
  with errors.of_input(about=about):  # TensorFlow raises anything.
    export = hub.load(
      saved_model_dir,
      options=tf.saved_model.LoadOptions(
        experimental_io_device=strategies.io_device(
          tf.distribute.get_strategy()
        )
      ),
    )
  if not callable(export):
    raise errors.InputError(
      f"{saved_model_dir} is no reusable SavedModel: it cannot be called. Take"
      " one that an exporter has made."
    )
  return export


def load_layer(
  saved_model_dir: str,
  *,
  name: str,
  retrain: bool,
  regularization_loss_multiplier: float = 1.0,
  **hyperparameters: float | str,
) -> hub.KerasLayer:
  """Loads an export as a layer.

  Args:
    saved_model_dir: The export.
    name: Name of the layer.
    retrain: Also train its weights.
    regularization_loss_multiplier: Factor of its regularization losses.
    **hyperparameters: Arguments of the export, such as `dropout_rate`, that
      replace its defaults.

  Raises:
    ValueError: The export does not take a hyperparameter.
  """
  export = load(saved_model_dir)
  if hyperparameters:
    parameters = inspect.signature(export.__call__).parameters.values()
    known = [p.name for p in parameters if isinstance(p.default, (float, str))]
    for unknown in hyperparameters.keys() - set(known):
      raise errors.InputError(
        f"{saved_model_dir} has no hyperparameter {unknown}, but"
        f" {', '.join(known) or 'none'}. Omit --{unknown}."
      )
  if not hasattr(export, "regularization_losses"):
    raise errors.InputError(
      f"{saved_model_dir} is no reusable SavedModel: it has no"
      " regularization_losses. Take one that an exporter has made."
    )
  losses = export.regularization_losses
  if regularization_loss_multiplier != 1.0:
    export.regularization_losses = [
      _scaled(loss, regularization_loss_multiplier) for loss in losses
    ]
  layer = hub.KerasLayer(
    export, trainable=retrain, arguments=hyperparameters, name=name
  )
  export.regularization_losses = losses  # What is saved keeps its own.
  return layer


def _scaled(
  loss: Callable[[], tf.Tensor], factor: float
) -> Callable[[], tf.Tensor]:
  return tf.function(lambda: factor * loss(), input_signature=[])


def logits(features: tf.Tensor, num_classes: int) -> tf.Tensor:
  """Returns the logits of a new dense layer on features, in float32."""
  head = tf_keras.layers.Dense(num_classes, dtype="float32", name="logits")
  return head(features)


def classifier(
  inputs: Any, logits: tf.Tensor, optimizer: tf_keras.optimizers.Optimizer
) -> tf_keras.Model:
  """Returns a model from inputs to logits, compiled to train with labels."""
  return compiled(tf_keras.Model(inputs, logits), optimizer)


def compiled(
  model: tf_keras.Model, optimizer: tf_keras.optimizers.Optimizer
) -> tf_keras.Model:
  """Compiles a model that returns logits, to train with labels."""
  model.compile(
    optimizer=optimizer,
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=["accuracy"],
  )
  return model


def examples(data: Data) -> tf.data.Dataset:
  """Returns data as examples."""
  if isinstance(data, tf.data.Dataset):
    return data
  return tf.data.Dataset.from_tensor_slices(data)


def fit(
  model: tf_keras.Model,
  train: Data,
  test: Data,
  *,
  batch_size: int,
  **options: Any,
) -> float:
  """Trains and tests a model with the strategy that it was built with.

  Args:
    model: Compiled, with one weighted metric, such as the accuracy.
    train: Training data.
    test: Test data.
    batch_size: Number of examples in a step, as `train_model` takes it.
    **options: Other arguments of `train_model`.

  Returns:
    The metric on the test data.
  """
  train_model(model, train, batch_size=batch_size, **options)
  return strategies.evaluate(model, batches.testing(examples(test), batch_size))


def train_model(
  model: tf_keras.Model,
  train: Data,
  *,
  batch_size: int,
  epochs: int,
  callbacks: Sequence[tf_keras.callbacks.Callback] = (),
  verbose: int | str = "auto",
) -> None:
  """Trains a model with the strategy that it was built with.

  Args:
    model: Compiled.
    train: Training data.
    batch_size: Number of examples in a step, on all devices together; a
      multiple of the number of replicas.
    epochs: Number of passes over the training data.
    callbacks: Callbacks of Keras.
    verbose: Argument of Keras.
  """
  strategy, train = model.distribute_strategy, examples(train)
  # Workers that share each batch need the same order, others different ones.
  seed = None if strategies.is_asynchronous(strategy) else 0
  train_batches = batches.for_each_worker(
    batches.training(train, batch_size, seed)
  )
  with batches.timed(train_batches, strategy) as timed:
    model.fit(
      timed,
      epochs=epochs,
      steps_per_epoch=-(-len(train) // batch_size),
      callbacks=list(callbacks),
      verbose=verbose,
    )


@contextlib.contextmanager
def published(output_dir: str, is_chief: bool) -> Iterator[str | None]:
  """Gives the chief a directory to write, and renames it at the end.

  If the work raises, nothing is left. In a bucket the renaming takes a request
  for each file; on a local disk it is one step.

  Args:
    output_dir: The new name: a directory that is empty or missing.
    is_chief: Whether this process is the chief; others get None.
  """
  if not is_chief:
    yield None
    return
  parent, name = os.path.split(output_dir.rstrip("/"))
  unfinished = os.path.join(parent, f".{name}.unfinished-{uuid.uuid4().hex}")
  try:
    with errors.writing(output_dir):
      yield unfinished
    tf.io.gfile.rename(unfinished, output_dir, overwrite=True)
  finally:
    if tf.io.gfile.exists(unfinished):
      tf.io.gfile.rmtree(unfinished)
  print(f"Saved the fine-tuned model to {output_dir}")


def save(
  model: tf_keras.Model, output_dir: str, strategy: tf.distribute.Strategy
) -> None:
  """Saves a model. Of several workers only the chief does."""
  # All workers save: the chief reads replicated variables together with them.
  with (
    published(output_dir, strategies.is_chief(strategy)) as directory,
    tempfile.TemporaryDirectory() as scratch_dir,
  ):
    model.save(
      directory or scratch_dir,
      save_format="tf",
      include_optimizer=False,
      options=tf.saved_model.SaveOptions(
        experimental_io_device=strategies.io_device(strategy)
      ),
    )
