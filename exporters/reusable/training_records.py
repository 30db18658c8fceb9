"""Records the metrics of a training, for the export and for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import pathlib

from etils import epy

from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

# The path in an export.
FILE = "assets.extra/training.json"

# The metrics of each epoch of this process's training, the oldest first.
epochs: list[dict[str, float]] = []


def recorder(
  tensorboard_dir: str | None,
) -> Callable[[int, Mapping[str, float]], None]:
  """Makes an `on_epoch_end` that records the metrics of each epoch.

  Args:
    tensorboard_dir: The directory for TensorBoard, or None.
  """
  writer = (
    tf.summary.create_file_writer(tensorboard_dir)
    if tensorboard_dir
    else tf.summary.create_noop_writer()
  )

  def record(epoch: int, metrics: Mapping[str, float]) -> None:
    del epochs[epoch:]  # Drops an epoch that is trained again.
    # Few digits, because the last bits of float32 are noise.
    epochs.append({k: float(f"{v:.6g}") for k, v in sorted(metrics.items())})
    with writer.as_default(step=epoch):
      for name, value in metrics.items():
        tf.summary.scalar(f"epoch_{name}", value)
      writer.flush()

  return record


def callbacks(
  tensorboard_dir: str | None, strategy: tf.distribute.Strategy
) -> list[tf_keras.callbacks.Callback]:
  """Makes the Keras callback that records each epoch, on the chief only."""
  if not strategies.is_chief(strategy):
    return []
  record = recorder(tensorboard_dir)
  return [tf_keras.callbacks.LambdaCallback(on_epoch_end=record)]


def write(export_dir: str) -> None:
  """Writes the record into an export, if there was a training."""
  if epochs:
    text = json.dumps({"epochs": epochs}, indent=2)
    pathlib.Path(export_dir, FILE).write_text(f"{text}\n")
