import fcntl
import json
import os
import pathlib
from unittest import mock

import tensorflow as tf
import tf_keras

from distribution import backups
from distribution import errors
from distribution import programs


def _model():
  model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=[1])])
  model.compile("sgd", "mse")
  return model


class BackupsTest(tf.test.TestCase):
  def claim(self, directory, state="chief/checkpoint", **training):
    """Claims a directory, and leaves the state of a training there."""
    backups.claim(directory, training)
    path = os.path.join(directory, state)
    tf.io.gfile.makedirs(os.path.dirname(path))
    tf.io.write_file(path, "")

  def test_another_training_is_refused(self):
    first = {"rate": 1e-3, "data": "a", "task": {"model": {"depth": 5}}}
    for state in ("checkpoint", "chief/checkpoint"):
      for name, change, message in (
        ("same", {}, None),
        ("rate", {"rate": 0.1}, "training: rate is 0.001 there and 0.1 here. "),
        (
          "data",
          {"data": "b", "rate": 1},
          "rate is .*; data is a there and b ",
        ),
        ("nested", {"task": {"model": {"depth": 6}}}, "task.model.depth is 5 "),
        ("new", {"seed": 1}, "seed is None there and 1 here"),
      ):
        with self.subTest(name, state=state):
          directory = f"{self.get_temp_dir()}/[{name}] {state[:5]}*"
          self.claim(directory, state, **first)
          if message is None:
            self.claim(directory, state, **{**first, **change})
            continue
          with self.assertRaisesRegex(ValueError, message):
            self.claim(directory, state, **{**first, **change})

  def test_one_program_at_a_time(self):
    directory = self.create_tempdir("used").full_path
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # Like another process.
    with self.assertRaisesRegex(ValueError, "Another program trains with"):
      backups.claim(directory, {"rate": 1})
    self.assertEmpty(os.listdir(directory))
    backups.claim(directory, {"rate": 1}, is_chief=False)
    fcntl.flock(lock, fcntl.LOCK_UN)
    for rate in (1, 2):
      backups.claim(directory, {"rate": rate})
      with self.assertRaises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

  def test_a_record_without_state_is_replaced(self):
    directory = os.path.join(self.get_temp_dir(), "early")
    backups.claim(directory, {"rate": 1})
    backups.claim(directory, {"rate": 2}, is_chief=False)
    self.claim(directory, rate=3)
    with open(os.path.join(directory, "training.json")) as f:
      self.assertEqual(json.load(f), {"rate": 3})

  def test_a_state_without_record_is_refused(self):
    directory = os.path.join(self.get_temp_dir(), "old")
    self.claim(directory)
    os.remove(os.path.join(directory, "training.json"))
    with self.assertRaisesRegex(ValueError, "no training.json that says of"):
      self.claim(directory)

  def test_callbacks(self):
    directory = os.path.join(self.get_temp_dir(), "kept")
    strategy = tf.distribute.get_strategy()
    self.assertEmpty(backups.callbacks(None, {}, strategy, 2))
    x = tf.ones([4, 1])
    stop = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: 1 / 0)
    logs = []
    record = tf_keras.callbacks.LambdaCallback(
      on_epoch_end=lambda epoch, _: logs.append({"epoch": epoch})
    )
    kept = backups.callbacks(directory, {"rate": 1}, strategy, 2, logs)
    with self.assertRaises(ZeroDivisionError):
      _model().fit(x, x, epochs=2, callbacks=[record, *kept, stop], verbose=0)
    logs.clear()
    with self.assertRaisesRegex(ValueError, "rate is 1 there and 2 here"):
      backups.callbacks(directory, {"rate": 2}, strategy, 2)
    with self.assertRaisesRegex(ValueError, "after 1 epochs, more than 0"):
      backups.callbacks(directory, {"rate": 1}, strategy, 0)
    kept = backups.callbacks(directory, {"rate": 1}, strategy, 2, logs)
    self.assertEqual(logs, [{"epoch": 0}])
    (data,) = pathlib.Path(directory, "chief").glob("*.data-*")
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with self.assertRaisesRegex(errors.InputError, "Cannot read the state in "):
      _model().fit(x, x, epochs=2, callbacks=kept, verbose=0)
    data.write_bytes(content)
    # The program is killed after it logs an epoch, before it saves the state.
    with self.assertRaises(ZeroDivisionError):
      fit = [record, kept[0], stop, kept[1]]
      _model().fit(x, x, epochs=2, callbacks=fit, verbose=0)
    self.assertLen(logs, 2)
    kept = backups.callbacks(directory, {"rate": 1}, strategy, 2, logs)
    self.assertEqual(logs, [{"epoch": 0}])
    self.assertFalse(backups.restored(_model(), kept))
    trained = _model()
    history = trained.fit(x, x, epochs=2, callbacks=kept, verbose=0)
    self.assertEqual(history.epoch, [1])
    # The program is killed before it succeeds: the next run trains no more.
    programs._at_success.clear()
    kept = backups.callbacks(directory, {"rate": 1}, strategy, 2)
    model = _model()
    self.assertTrue(backups.restored(model, kept))
    self.assertAllEqual(model.weights[0], trained.weights[0])
    programs.succeed()
    self.assertEmpty(os.listdir(directory))

  def test_a_removal_that_was_killed_leaves_no_state(self):
    directory = pathlib.Path(self.get_temp_dir(), "removed")
    strategy = tf.distribute.get_strategy()
    x = tf.ones([4, 1])
    for name in "remove", "rmtree":
      kept = backups.callbacks(str(directory), {"rate": 1}, strategy, 1)
      with (
        mock.patch.object(tf.io.gfile, name, side_effect=ZeroDivisionError),
        self.assertRaises(ZeroDivisionError),
      ):
        _model().fit(x, x, epochs=1, callbacks=kept, verbose=0)
        programs.succeed()
      state = directory / "chief" / "checkpoint"
      self.assertEqual(state.exists(), name == "remove")
    # A later training starts anew, and removes the leftovers.
    kept = backups.callbacks(str(directory), {"rate": 2}, strategy, 1)
    _model().fit(x, x, epochs=1, callbacks=kept, verbose=0)
    programs.succeed()
    self.assertEmpty(list(directory.iterdir()))

  def test_what_a_killed_process_was_writing_is_removed(self):
    directory = pathlib.Path(self.get_temp_dir(), "unfinished")
    strategy = tf.distribute.get_strategy()
    state = {"x": tf.Variable(1.0)}
    backup = backups.Backup(str(directory), {}, strategy)
    backup.save(state, [{}], 0)
    part = "part-00000-of-00001"
    (directory / "epoch-2_temp").mkdir()
    (directory / "epoch-2_temp" / f"{part}.data-00000-of-00001").touch()
    (directory / f"checkpoint.tmp{'0f' * 16}").touch()
    theirs = ["a-1_temp", "checkpoint.tmp", "notes.txt"]
    (directory / theirs[0]).mkdir()
    for name in f"{theirs[0]}/{part}", f"{theirs[0]}/mine", *theirs[1:]:
      (directory / name).touch()
    backup = backups.Backup(str(directory), {}, strategy)
    backup.save(state, [{}, {}], 1)
    with (
      mock.patch.object(backup, "_remove", side_effect=ZeroDivisionError),
      self.assertRaises(ZeroDivisionError),
    ):
      backup.remove()
    self.assertTrue((directory / "epoch-2.index").exists())
    backup = backups.Backup(str(directory), {}, strategy)
    self.assertEmpty(backup.logs)
    backup.remove()
    self.assertCountEqual([p.name for p in directory.iterdir()], theirs)

  def test_fingerprints(self):
    def dataset(*values):
      return tf.data.Dataset.from_tensor_slices(({"x": list(values)}, [0, 1]))

    fingerprint = backups.fingerprint(dataset("a", "b"))
    self.assertEqual(fingerprint, backups.fingerprint(dataset("a", "b")))
    for other in (dataset("b", "a"), dataset("a", "c"), dataset(1, 2)):
      self.assertNotEqual(fingerprint, backups.fingerprint(other))
    path = os.path.join(self.get_temp_dir(), "file")
    nothing = backups.fingerprint_of_files([path])
    tf.io.write_file(path, "x")
    self.assertNotEqual(nothing, backups.fingerprint_of_files([path]))


if __name__ == "__main__":
  tf.test.main()
