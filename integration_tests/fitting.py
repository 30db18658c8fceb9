"""Loads exports as layers; trains, evaluates and saves under any strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import inspect
import math
import os
import sys
import tempfile
from typing import Any
import uuid

from etils import epy

from data import batches
from distribution import backups
from distribution import errors
from distribution import publishing
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras

# A small data set is passed several times in an epoch. Otherwise weights and
# moving averages would hardly change between two validations.
_LEAST_STEPS = 10

# Inputs and labels: either a tf.data.Dataset of pairs, whose number and shapes
# must be known for training, or a pair of inputs, an array or a dict of arrays,
# and labels, int `[n, …]`.
Data = Any


@dataclasses.dataclass(frozen=True)
class Parts:
  """Training, validation and test data, and the weights of the classes."""

  train: Data
  test: Data | None
  validation: Data | None = None
  class_weights: Sequence[float] | None = None


def load(saved_model_dir: str) -> Any:
  """Loads a SavedModel that can be called.

  Raises:
    InputError: There is no SavedModel, or it is damaged or not callable.
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
    retrain: Whether to train its weights.
    regularization_loss_multiplier: Factor of its regularization losses.
    **hyperparameters: Values for arguments of the export, such as
      `dropout_rate`.

  Raises:
    InputError: The export cannot be loaded, is not reusable, or does not take a
      hyperparameter.
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
  export.regularization_losses = losses  # A save must not scale them.
  return layer


def _scaled(
  loss: Callable[[], tf.Tensor], factor: float
) -> Callable[[], tf.Tensor]:
  return tf.function(lambda: factor * loss(), input_signature=[])


def logits(features: tf.Tensor, num_classes: int) -> tf.Tensor:
  """Applies a new dense layer to features; returns float32 logits."""
  head = tf_keras.layers.Dense(num_classes, dtype="float32", name="logits")
  return head(features)


def classifier(
  inputs: Any, logits: tf.Tensor, optimizer: tf_keras.optimizers.Optimizer
) -> tf_keras.Model:
  """Makes and compiles a model from inputs to logits."""
  return compiled(tf_keras.Model(inputs, logits), optimizer)


def compiled(
  model: tf_keras.Model,
  optimizer: tf_keras.optimizers.Optimizer,
  *,
  jit_compile: bool | None = None,
) -> tf_keras.Model:
  """Compiles a model that returns logits for integer labels."""
  model.compile(
    optimizer=optimizer,
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=[tf_keras.metrics.SparseCategoricalAccuracy("accuracy")],
    jit_compile=jit_compile,
  )
  # The first step is traced twice if it creates variables: those of the
  # optimizer, or those of a metric that `compile` gets by name.
  optimizer.build(model.trainable_variables)
  return model


def examples(data: Data) -> tf.data.Dataset:
  """Returns data as a tf.data.Dataset of examples."""
  if isinstance(data, tf.data.Dataset):
    return data
  return tf.data.Dataset.from_tensor_slices(data)


def evaluate(model: tf_keras.Model, test: Data, *, batch_size: int) -> float:
  """Evaluates a model under the strategy that it was built with.

  Args:
    model: A model compiled with one weighted metric, such as the accuracy.
    test: Test data.
    batch_size: Number of examples in a step, as in `fit`.

  Returns:
    The metric.
  """
  return strategies.evaluate(model, batches.testing(examples(test), batch_size))


def steps_per_epoch(train: Data, batch_size: int) -> int:
  """Returns the number of steps per epoch: one pass, at least ten steps."""
  return max(-(-len(examples(train)) // batch_size), _LEAST_STEPS)


def fit(
  model: tf_keras.Model,
  train: Data,
  *,
  batch_size: int,
  epochs: int,
  frozen_epochs: int = 0,
  frozen_learning_rate: float = 1e-2,
  validation: Data | None = None,
  patience: int = 10,
  class_weights: Sequence[float] | None = None,
  backup: backups.Backup | None = None,
  verbose: int | None = None,
) -> dict[str, list[float]]:
  """Trains a model under the strategy that it was built with.

  With `frozen_epochs`, Adam first trains the new head, if there is one. The
  export then runs in inference mode: without dropout, and with fixed moving
  averages. Afterwards the model's own optimizer trains all weights.

  With `validation`, each of the two phases ends when the cross-entropy of the
  validation data has not decreased for `patience` epochs. The model then gets
  the weights of the best epoch.

  Args:
    model: A compiled model. `frozen_epochs` needs one from `compiled`.
    train: Training data.
    batch_size: Number of examples in a step, on all devices together; a
      multiple of the number of replicas.
    epochs: Maximum number of epochs, of `steps_per_epoch` steps, that train all
      weights.
    frozen_epochs: Maximum number of epochs that first train the head alone.
    frozen_learning_rate: Learning rate of Adam in the frozen epochs.
    validation: Validation data. None disables early stopping.
    patience: Number of epochs without improvement that end a phase.
    class_weights: Weight of each class in loss and metrics. None means 1.
    backup: Keeps the state after each epoch, and resumes from it.
    verbose: As in `tf_keras.Model.fit`. Default: a bar on a terminal, and a
      line for each epoch in a log.

  Returns:
    The metrics of all epochs, under the names that Keras gives them.
  """
  strategy, train = model.distribute_strategy, examples(train)
  if validation is not None:
    validation = _validation(examples(validation), batch_size, class_weights)
  progress = _Progress(model, backup, patience if validation is not None else 0)
  optimizer, steps = model.optimizer, steps_per_epoch(train, batch_size)
  exports = _exports(model) if frozen_epochs else []
  for phase, most in enumerate((frozen_epochs if exports else 0, epochs)):
    if not most or not progress.begin(phase, most):
      continue
    if exports:
      _begin_phase(
        model, exports, optimizer if phase else None, frozen_learning_rate
      )
    progress.resume()
    if not progress.is_over():
      done = len(progress.logs)
      with batches.timed(
        _training(train, batch_size, strategy, class_weights, done * steps),
        strategy,
      ) as timed:
        model.fit(
          timed,
          initial_epoch=done,
          epochs=progress.end,
          steps_per_epoch=steps,
          validation_data=validation,
          callbacks=[progress.callback()],
          verbose=2 - sys.stdout.isatty() if verbose is None else verbose,
        )
    progress.restore_best()
  return progress.finish()


def _exports(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
  """Returns the trainable exports under a new head; [] without a new head."""
  layers = [layer for layer in model.layers if layer.trainable_weights]
  exports = [
    x for x in layers if isinstance(x, (hub.KerasLayer, tf_keras.Model))
  ]
  return exports if len(exports) < len(layers) else []


def _begin_phase(
  model: tf_keras.Model,
  exports: Sequence[tf_keras.layers.Layer],
  optimizer: tf_keras.optimizers.Optimizer | None,
  frozen_learning_rate: float,
) -> None:
  """Makes a model train all weights with this optimizer, or the head alone."""
  print("Training all weights" if optimizer else "Training the new head alone")
  for layer in exports:
    layer.trainable = bool(optimizer)
  with model.distribute_strategy.scope():
    compiled(
      model,
      optimizer or tf_keras.optimizers.Adam(frozen_learning_rate),
      jit_compile=model.jit_compile,
    )


def _training(
  data: tf.data.Dataset,
  batch_size: int,
  strategy: tf.distribute.Strategy,
  class_weights: Sequence[float] | None,
  step: int,
) -> tf.data.Dataset:
  """Returns training batches, from a step on."""
  # Workers that share batches need the same order, others different ones.
  seed = None if strategies.is_asynchronous(strategy) else 0
  shuffled = batches.for_each_worker(
    batches.training(data, batch_size, seed, step)
  )
  if class_weights is None:
    return shuffled
  return _weighted(shuffled, class_weights)


def _weighted(
  dataset: tf.data.Dataset,
  class_weights: Sequence[float] | None,
  factor: float = 1.0,
) -> tf.data.Dataset:
  """Multiplies the weights of examples by the weights of their classes."""

  def weigh(
    inputs: Any, labels: tf.Tensor, weights: tf.Tensor | float = 1.0
  ) -> tuple[Any, ...]:
    if class_weights is not None:
      weights *= tf.gather(tf.constant(class_weights, tf.float32), labels)
    return inputs, labels, weights * factor

  return dataset.map(weigh)


def _validation(
  data: tf.data.Dataset, batch_size: int, class_weights: Sequence[float] | None
) -> tf.data.Dataset:
  """Returns batches, weighted so that padding does not lower the mean loss."""
  filled = -(-len(data) // batch_size) * batch_size
  return _weighted(
    batches.testing(data, batch_size), class_weights, filled / len(data)
  )


class _Progress:
  """Progress of a training: the metrics of its epochs, and the best weights.

  Attributes:
    logs: For each epoch, its metrics, its phase and the loss to minimize.
    end: Maximum number of epochs at the end of the phase, with earlier phases.
  """

  def __init__(
    self, model: tf_keras.Model, backup: backups.Backup | None, patience: int
  ):
    """Reads the backup, if any. With patience 0 the last epoch is the best."""
    backup = backup or backups.Backup(None, {}, model.distribute_strategy)
    self._model, self._backup, self._patience = model, backup, patience
    # The order of `model.variables` depends on which of them are trainable.
    self._weights = {"weights": list(model.variables)}
    self._best_weights = None
    self.logs = backup.logs
    if self.logs and patience:
      backup.restore(self._weights, self._best() + 1)
      self._keep_weights()

  def begin(self, phase: int, most: int) -> bool:
    """Begins a phase of at most `most` epochs; returns False if it is over."""
    self._phase = phase
    self._start = sum(log["_phase"] < phase for log in self.logs)
    self.end = self._start + most
    if most < sum(log["_phase"] == phase for log in self.logs):
      raise errors.InputError(
        f"The directory of the backup has the state of more than {most} epochs"
        " of this phase. Train for more, or use another directory."
      )
    return not self.logs or self.logs[-1]["_phase"] <= phase

  def resume(self) -> None:
    """Restores an interrupted phase, including the state of the optimizer."""
    model, strategy = self._model, self._model.distribute_strategy
    optimizer = model.optimizer
    with strategy.scope():
      optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def regularization() -> tf.Tensor:
      return strategy.run(lambda: tf.add_n([0.0, *model.losses]))

    self._regularization = regularization
    self._state = {**self._weights, "optimizer": optimizer}
    if self._start < len(self.logs):
      self._backup.restore(self._state, len(self.logs))

  def is_over(self) -> bool:
    """Returns whether the phase has ended."""
    done = len(self.logs)
    if not self._patience or done == self._start:
      return done == self.end
    # At first the moving averages lag behind the changing weights, so results
    # are worse than with the head alone.
    waited = done - 1 - self._best(self._start)
    return done == self.end or waited >= self._patience

  def callback(self) -> tf_keras.callbacks.Callback:
    """Returns a callback that records epochs, and ends the phase."""
    return tf_keras.callbacks.LambdaCallback(on_epoch_end=self._end_epoch)

  def _end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
    logs = {name: float(value) for name, value in logs.items()}
    if not all(map(math.isfinite, logs.values())):
      raise errors.InputError(
        f"The training diverges: the loss of epoch {epoch + 1} is"
        f" {logs['loss']}. Lower --learning_rate."
      )
    self.logs.append({**logs, "_phase": self._phase})
    if self._patience:
      # Exports have regularization losses only while they train.
      strategy = self._model.distribute_strategy
      added, *_ = strategy.experimental_local_results(self._regularization())
      self.logs[-1]["_loss"] = logs["val_loss"] - float(added)
      if self._best() == epoch:
        self._keep_weights()
    self._backup.save(self._state, self.logs, self._best())
    self._model.stop_training = self.is_over()

  def restore_best(self) -> None:
    """Restores the weights of the best epoch so far."""
    if self._patience:
      pairs = zip(self._weights["weights"], self._best_weights, strict=True)
      tf_keras.backend.batch_set_value(list(pairs))

  def finish(self) -> dict[str, list[float]]:
    """Removes the backup; returns the metrics of all epochs, by name."""
    if self._patience:
      best = self._best()
      print(
        f"Restored the weights of epoch {best + 1} of {len(self.logs)}: its"
        " cross-entropy of the validation data, val_loss without regularization"
        f" losses, is the lowest, {self.logs[best]['_loss']:.4f}"
      )
    self._backup.remove()
    names = [name for name in self.logs[0] if not name.startswith("_")]
    return {name: [log[name] for log in self.logs] for name in names}

  def _best(self, start: int = 0) -> int:
    """Returns the index of the best epoch, among those from `start` on."""
    if not self._patience:
      return len(self.logs) - 1
    losses = [log["_loss"] for log in self.logs[start:]]
    return start + losses.index(min(losses))

  def _keep_weights(self) -> None:
    self._best_weights = tf_keras.backend.batch_get_value(
      self._weights["weights"]
    )


@contextlib.contextmanager
def published(output_dir: str, is_chief: bool) -> Iterator[str | None]:
  """Gives the chief a temporary directory; renames it to `output_dir` on exit.

  If the body raises, the directory is removed. Renaming is atomic on a local
  disk. In a bucket it takes a request for each file.

  Args:
    output_dir: The final path: an empty or missing directory.
    is_chief: Whether this process is the chief. Others get None.
  """
  if not is_chief:
    yield None
    return
  if "://" not in output_dir:
    with publishing.publish(output_dir) as unfinished:
      yield unfinished
  else:
    parent, name = os.path.split(output_dir.rstrip("/"))
    unfinished = os.path.join(parent, f".{name}.unfinished-{uuid.uuid4().hex}")
    try:
      yield unfinished
      tf.io.gfile.rename(unfinished, output_dir, overwrite=True)
    finally:
      if tf.io.gfile.exists(unfinished):
        tf.io.gfile.rmtree(unfinished)
  print(f"Saved the fine-tuned model to {output_dir}")


def save(
  model: tf_keras.Model, output_dir: str, strategy: tf.distribute.Strategy
) -> None:
  """Saves a model. If there are several workers, only the chief writes."""
  # All workers call save, because reading replicated variables is collective.
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
