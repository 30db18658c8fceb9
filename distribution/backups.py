"""Keeps the state of a training, and says which training it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import hashlib
import json
import os
from typing import Any

from etils import epy

from distribution import errors
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

# The file that says which training the state in a directory belongs to.
_RECORD = "training.json"

_DONE = "epochs done"  # In the record.

_FINGERPRINTED_BYTES = 2**28


def callbacks(
  directory: str | None,
  training: Mapping[str, Any],
  strategy: tf.distribute.Strategy,
  epochs: int,
) -> list[tf_keras.callbacks.Callback]:
  """Makes callbacks that keep the state of a training until it ends.

  Training resumes from the state that is there.

  Args:
    directory: Where to keep the state after each epoch; None keeps nothing.
    training: As in `claim`.
    strategy: The strategy that the model is trained with. Of several workers
      only the chief writes.
    epochs: How long to train, which may change when the training resumes.

  Raises:
    ValueError: The directory has the state of another training, or of more
      epochs.
  """
  if not directory:
    return []
  is_chief = strategies.is_chief(strategy)
  done = claim(directory, training, is_chief).get(_DONE, 0)
  if done > epochs:
    raise ValueError(
      f"{directory} has the state after {done} epochs, more than {epochs}."
      " Train for more epochs, or use another directory."
    )
  backup = tf_keras.callbacks.BackupAndRestore(directory)
  restore = backup.on_train_begin

  def restore_or_explain(logs: Any = None) -> None:
    about = f"Cannot read the state in {directory}. Use another directory. "
    with errors.of_input(about=about):
      restore(logs)

  backup.on_train_begin = restore_or_explain
  callbacks = [backup]
  if is_chief:
    callbacks.append(
      tf_keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: _write(
          directory, {**_flat(training), _DONE: epoch + 1}
        ),
        on_train_end=lambda _: tf.io.gfile.remove(_record(directory)),
      )
    )
  return callbacks


def claim(
  directory: str, training: Mapping[str, Any], is_chief: bool = True
) -> dict[str, Any]:
  """Records which training a directory belongs to, or compares the record.

  Args:
    directory: The directory, which need not exist.
    training: What the result of the training depends on, as far as it must stay
      the same: options, which may be nested, and fingerprints of data and
      weights. JSON values.
    is_chief: Whether to write the record if the directory has no state.

  Returns:
    The record that is there.

  Raises:
    ValueError: The directory has the state of another training.
  """
  files = tf.io.gfile
  # Written by checkpoint managers; that of Keras has a subdirectory.
  states = [os.path.join(directory, d, "checkpoint") for d in ("", "chief")]
  if not any(map(files.exists, states)):
    if is_chief:
      _write(directory, _flat(training))
    return {}
  if not files.exists(_record(directory)):
    raise ValueError(
      f"{directory} has the state of a training, but no {_RECORD} that says of"
      " which one. Use another directory."
    )
  try:
    with files.GFile(_record(directory)) as f:
      there = dict(json.loads(f.read()))
    there[_DONE] = int(there.get(_DONE, 0))
  except (OverflowError, RecursionError, TypeError, ValueError) as e:
    raise ValueError(
      f"{_record(directory)} does not say which training is there:"
      f" {errors.one_line(e)}. Use another directory."
    ) from e
  here = json.loads(json.dumps(_flat(training)))
  if different := [
    f"{key} is {there.get(key)} there and {here.get(key)} here"
    for key in {**there, **here}
    if there.get(key) != here.get(key) and key != _DONE
  ]:
    raise ValueError(
      f"{directory} has the state of another training: {'; '.join(different)}."
      " Resume with the same, or use another directory."
    )
  return there


def _record(directory: str) -> str:
  return os.path.join(directory, _RECORD)


def _write(directory: str, record: Mapping[str, Any]) -> None:
  tf.io.gfile.makedirs(directory)
  path = _record(directory)
  with tf.io.gfile.GFile(f"{path}.new", "w") as f:
    f.write(json.dumps(record, indent=2) + "\n")
  tf.io.gfile.rename(f"{path}.new", path, overwrite=True)


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens nested options, whose names become paths with dots."""
  flat = {}
  for name, value in options.items():
    is_nested = isinstance(value, Mapping)
    path = f"{prefix}{name}"
    flat |= _flat(value, f"{path}.") if is_nested else {path: value}
  return flat


def fingerprint(examples: tf.data.Dataset) -> str:
  """Hashes a dataset: its number of examples, and the first 256 MiB of them."""
  digest = hashlib.sha256(f"{examples.element_spec}".encode())
  digest.update(f"{int(examples.cardinality())}".encode())
  seen = 0
  for batch in examples.batch(256):
    for tensor in tf.nest.flatten(batch):
      data = tf.io.serialize_tensor(tensor).numpy()
      digest.update(data)
      seen += len(data)
    if seen > _FINGERPRINTED_BYTES:
      break
  return digest.hexdigest()[:16]


def fingerprint_of_files(paths: Iterable[str]) -> str:
  """Hashes the contents of those files that exist."""
  digest = hashlib.sha256()
  for path in paths:
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path, "rb") as f:
        digest.update(f.read())
  return digest.hexdigest()[:16]
