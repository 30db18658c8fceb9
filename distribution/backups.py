"""Saves the state of a training run, with a record of which run it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import fcntl
import functools
import hashlib
import json
import os
import re
import tempfile
from typing import Any

from etils import epy

from distribution import errors
from distribution import programs
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

# The file that records which training run a directory belongs to.
_RECORD = "training.json"
_LOGS = "logs of the epochs"  # Key in the record. No other value changes.

_STATE = "epoch-"  # Prefix of the files of a `Backup`.
_OF_KERAS = "chief"  # The directory of Keras' checkpoints.

_FINGERPRINTED_BYTES = 2**28

# Locks that this process holds, by device and inode of the directory.
_locked: dict[tuple[int, int], int] = {}


def callbacks(
  directory: str | None,
  training: Mapping[str, Any],
  strategy: tf.distribute.Strategy,
  epochs: int,
  logs: list[dict[str, float]] | None = None,
) -> list[tf_keras.callbacks.Callback]:
  """Makes callbacks that save the state after each epoch.

  If the directory already has a state, training resumes from it. The state is
  removed only when the program succeeds, so a program that is killed after
  training does not train again.

  Args:
    directory: Where to save the state; None saves nothing.
    training: As in `claim`.
    strategy: The strategy that the model is trained with. If it has several
      workers, only the chief writes.
    epochs: Number of epochs, which may change when the run resumes.
    logs: JSON values of each epoch, which are saved before the state. On return
      the list has the values of the finished epochs. A callback before the
      returned ones must append the values of later epochs.

  Raises:
    ValueError: The directory has the state of another run, or of more epochs.
  """
  if not directory:
    return []
  is_chief = strategies.is_chief(strategy)
  there = claim(directory, training, is_chief)
  # Keras numbers checkpoints by finished epochs.
  newest = tf.train.latest_checkpoint(os.path.join(directory, _OF_KERAS))
  done = int(newest.rpartition("-")[2]) if newest else 0
  logs = [] if logs is None else logs
  # A killed process may have logged an epoch that Keras has not saved.
  logs[:] = logs_of(there)[:done]
  if done > epochs:
    raise ValueError(
      f"{directory} has the state after {done} epochs, more than {epochs}."
      " Train for more epochs, or use another directory."
    )
  backup = tf_keras.callbacks.BackupAndRestore(
    directory, delete_checkpoint=False
  )
  restore = backup.on_train_begin

  def restore_or_explain(logs: Any = None) -> None:
    about = f"Cannot read the state in {directory}. Use another directory. "
    with errors.of_input(about=about):
      restore(logs)

  backup.on_train_begin = restore_or_explain
  backup.is_done = done == epochs
  if not is_chief:
    return [backup]
  record = tf_keras.callbacks.LambdaCallback(
    on_epoch_end=lambda *_: keep_logs(directory, training, logs),
    on_train_end=lambda _: programs.at_success(
      functools.partial(_remove, directory)
    ),
  )
  return [record, backup]


def restored(
  model: tf_keras.Model, callbacks: Sequence[tf_keras.callbacks.Callback]
) -> bool:
  """Restores the model of a training run that has no epochs left.

  `fit` cannot do this, because it fails for a model that no step has built.

  Returns:
    Whether the run had no epochs left.
  """
  if not any(getattr(each, "is_done", False) for each in callbacks):
    return False
  run = tf_keras.callbacks.CallbackList(callbacks, model=model)
  run.on_train_begin()
  run.on_train_end()
  return True


class Backup:
  """The state of a training run after its last and its best epoch.

  Attributes:
    logs: The `logs` that `save` received for each finished epoch, JSON values.
  """

  def __init__(
    self,
    directory: str | None,
    training: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
  ):
    """Finds the state in a directory.

    Args:
      directory: The directory; None saves nothing.
      training: As in `claim`.
      strategy: As in `callbacks`.

    Raises:
      ValueError: The directory has the state of another run.
    """
    self._directory, self._training = directory, training
    self._strategy, self._is_chief = strategy, strategies.is_chief(strategy)
    record = claim(directory, training, self._is_chief) if directory else {}
    self.logs = logs_of(record)

  def save(
    self,
    state: Mapping[str, Any],
    logs: Sequence[Mapping[str, float]],
    best: int,
  ) -> None:
    """Saves the state after the last epoch, and keeps the state of the best.

    Args:
      state: Lists of variables, or an optimizer, under any names.
      logs: JSON values of each epoch.
      best: Index of an earlier epoch whose state to keep too.
    """
    if not self._directory:
      return
    options = tf.train.CheckpointOptions(
      experimental_io_device=strategies.io_device(self._strategy)
    )
    # All workers must save, because they read replicated variables together.
    with tempfile.TemporaryDirectory() as scratch_dir:
      directory = self._directory if self._is_chief else scratch_dir
      path = _path(directory, len(logs))
      tf.train.Checkpoint(**state).write(path, options)
    if not self._is_chief:
      return
    keep_logs(self._directory, self._training, logs)
    kept = tuple(f"{_path('', n)}." for n in (best + 1, len(logs)))
    self._remove(lambda name: not name.startswith(kept))

  def restore(self, state: Mapping[str, Any], epoch: int) -> None:
    """Restores the state, or a part of it, after an epoch, counted from 1."""
    about = f"Cannot read the state in {self._directory}. Is it in use? "
    with errors.of_input(tf.errors.OpError, about=about):
      status = tf.train.Checkpoint(**state).read(_path(self._directory, epoch))
    status.assert_existing_objects_matched().expect_partial()

  def remove(self) -> None:
    """Removes the state after the training run has ended."""
    if self._directory and self._is_chief:
      # First: without logs in the record, leftover files are not a state.
      _write(self._directory, _flat(self._training))
      self._remove(lambda name: True)
      tf.io.gfile.remove(_record(self._directory))

  def _remove(self, is_chosen: Callable[[str], bool]) -> None:
    for name in tf.io.gfile.listdir(self._directory):
      if name.startswith(_STATE) and is_chosen(name):
        tf.io.gfile.remove(os.path.join(self._directory, name))


def _remove(directory: str) -> None:
  """Removes the checkpoints of Keras, and the record."""
  files = tf.io.gfile
  state = os.path.join(directory, _OF_KERAS)
  # First: without this file, leftover files are not a state.
  files.remove(os.path.join(state, "checkpoint"))
  files.rmtree(state)
  files.remove(_record(directory))


def remove_unfinished(directory: str) -> None:
  """Removes the unfinished checkpoint of a killed process."""
  files = tf.io.gfile
  for name in files.listdir(directory):
    path = os.path.join(directory, name)
    if re.fullmatch(r"checkpoint\.tmp[0-9a-f]{32}", name):
      files.remove(path)
    elif re.fullmatch(r".+-\d+_temp/?", name) and all(
      re.fullmatch(r"part-.*\.(index|data-.*)", part)
      for part in files.listdir(path)
    ):
      files.rmtree(path)


def _path(directory: str, epoch: int) -> str:
  return os.path.join(directory, f"{_STATE}{epoch}")


def claim(
  directory: str, training: Mapping[str, Any], is_chief: bool = True
) -> dict[str, Any]:
  """Records which training run a directory belongs to, or compares the record.

  A local directory is locked until the process ends.

  Args:
    directory: The directory, which need not exist.
    training: JSON values that must be the same when the run resumes: options,
      which may be nested, and fingerprints of data and weights.
    is_chief: Whether to write the record if the directory has no state.

  Returns:
    The record in the directory.

  Raises:
    ValueError: The directory has the state of another run, or another program
      uses it.
  """
  files = tf.io.gfile
  if is_chief:
    files.makedirs(directory)
    _lock(directory)
  folders = [directory, os.path.join(directory, _OF_KERAS)]
  for folder in filter(files.exists, folders if is_chief else ()):
    remove_unfinished(folder)
  # Written by checkpoint managers.
  states = [os.path.join(folder, "checkpoint") for folder in folders]
  names = files.listdir(directory) if files.exists(directory) else []
  if not any(map(files.exists, states)) and not any(
    name.startswith(_STATE) for name in names
  ):
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
    there[_LOGS] = list(there.get(_LOGS, []))
  except (RecursionError, TypeError, ValueError) as e:
    raise ValueError(
      f"{_record(directory)} does not say which training is there:"
      f" {errors.one_line(e)}. Use another directory."
    ) from e
  here = json.loads(json.dumps(_flat(training)))
  if different := [
    f"{key} is {there.get(key)} there and {here.get(key)} here"
    for key in {**there, **here}
    if there.get(key) != here.get(key) and key != _LOGS
  ]:
    raise ValueError(
      f"{directory} has the state of another training: {'; '.join(different)}."
      " Resume with the same, or use another directory."
    )
  return there


def _lock(directory: str) -> None:
  """Locks a local directory until the process ends."""
  try:  # Not a file in it: replacing the file would drop the lock.
    lock = os.open(directory, os.O_RDONLY)
  except OSError:  # The directory is not local, such as gs://.
    return
  status = os.fstat(lock)
  key = status.st_dev, status.st_ino
  try:
    if key not in _locked:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      _locked[key] = lock
  except BlockingIOError as e:
    raise ValueError(
      f"Another program trains with the state in {directory}. Wait for its end,"
      " or use another directory."
    ) from e
  except OSError:  # The file system has no locks.
    pass
  finally:
    if _locked.get(key) != lock:
      os.close(lock)


def logs_of(record: Mapping[str, Any]) -> list[dict[str, float]]:
  """Returns the logs of the epochs in a record that `claim` returned."""
  return record.get(_LOGS, [])


def keep_logs(
  directory: str,
  training: Mapping[str, Any],
  logs: Sequence[Mapping[str, float]],
) -> None:
  """Adds JSON values of each epoch to the record of a training."""
  _write(directory, {**_flat(training), _LOGS: logs})


def _record(directory: str) -> str:
  return os.path.join(directory, _RECORD)


def _write(directory: str, record: Mapping[str, Any]) -> None:
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
  """Hashes the size of a dataset and the first 256 MiB of its examples."""
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
  """Hashes the contents of the files that exist."""
  digest = hashlib.sha256()
  for path in paths:
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path, "rb") as f:
        digest.update(f.read())
  return digest.hexdigest()[:16]
