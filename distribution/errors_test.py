import contextlib
import errno
import io
import os
import resource
import subprocess
import sys
from unittest import mock

from absl import app
from absl.testing import absltest
from absl.testing import flagsaver
import tensorflow as tf
import tf_keras

from distribution import errors

errors.define_flags()


def _of_keras():
  layer = tf_keras.layers.Lambda(lambda x: x @ tf.zeros([3, 3]))
  layer(tf_keras.Input([2]))


class ErrorsTest(absltest.TestCase):
  def test_text(self):
    missing = FileNotFoundError(errno.ENOENT, "No such file", "x.txt")
    for error, expected in (
      (ValueError("two\n  lines"), "two lines"),
      (RuntimeError(""), "RuntimeError"),
      (IndexError("out of range"), "IndexError: out of range"),
      (KeyError("name"), "KeyError: 'name'"),
      (missing, "No such file: x.txt"),
      (tf.errors.DataLossError(None, None, "no data"), "no data"),
      (ValueError("x" * 9999), f"{'x' * 800}…"),
      (ValueError("x" * 2**21), f"{'x' * 800}…"),  # Once took hours.
      (ValueError("a\0\x1b[2J"), r"a\x00\x1b[2J"),
      (
        tf.errors.UnknownError(
          None,
          None,
          "{{node x}} InputError: it\nTraceback (most recent call la",
        ),
        "it",
      ),
    ):
      self.assertEqual(errors.one_line(error), expected)
      with self.assertRaises(errors.InputError) as raised:
        with errors.of_input():
          raise error
      self.assertEqual(str(raised.exception), expected)
    with self.assertRaisesRegex(errors.InputError, "^x.txt: No such file$"):
      with errors.of_input(OSError, about="x.txt: "):
        raise missing
    with self.assertRaisesRegex(errors.InputError, "^In a layer: .*equal.*$"):
      with errors.of_input(about="In a layer: "):
        _of_keras()
    with self.assertRaises(errors.InputError) as raised:
      with errors.of_input():
        _of_keras()
    self.assertNotIn("Call arguments", str(raised.exception))

  def test_text_of_saved_models(self):
    module = tf.Module()
    spec = tf.TensorSpec([None, 28], tf.float32, "images")
    module.call = tf.function(lambda x, training: x, input_signature=None)
    module.call.get_concrete_function(spec, False)
    path = self.create_tempdir().full_path
    tf.saved_model.save(module, path)
    loaded = tf.saved_model.load(path)
    with self.assertRaisesRegex(
      errors.InputError,
      r"^The SavedModel takes TensorSpec\(shape=\(None, 28\), .*'images'\), not"
      r" <tf.Tensor .*shape=\(2, 3\) .*>$",
    ):
      with errors.of_input():
        loaded.call(tf.zeros([2, 3]), False)
    with self.assertRaisesRegex(
      errors.InputError, r"'images'\) and False, not <tf.Tensor .*> and True$"
    ):
      with errors.of_input():
        loaded.call(tf.zeros([2, 28]), True)
    other = tf.errors.NotFoundError(
      None,
      None,
      "Op type not registered 'Strange' in binary running on vm. Make sure …",
    )
    self.assertStartsWith(
      errors.one_line(other), "The SavedModel has the op Strange, which this"
    )

  def test_other_types_and_input_errors_pass(self):
    with self.assertRaises(IndexError):
      with errors.of_input(ValueError):
        raise IndexError
    with self.assertRaisesRegex(errors.InputError, "^inner$"):
      with errors.of_input(about="outer: "):
        raise errors.InputError("inner")

  def test_what_is_the_fault_of_input_or_machine_is_one_line(self):
    full = OSError(errno.ENOSPC, "No space left on device", "/x")
    no_memory = "ERROR: Memory is full, or limited too low (ulimit -v): "
    for error, expected in (
      (errors.InputError("wrong"), "ERROR: wrong"),
      (full, "ERROR: No space left on device: /x"),
      (
        tf.errors.ResourceExhaustedError(None, None, "no memory"),
        "ERROR: no memory",
      ),
      (MemoryError(), f"{no_memory}MemoryError"),
      (OSError(errno.ENOMEM, "Cannot allocate memory"), f"{no_memory}Cannot"),
      (RuntimeError("can't start new thread"), f"{no_memory}can't start new"),
      (BrokenPipeError(errno.EPIPE, "Broken pipe"), "ERROR: Broken pipe"),
      (OSError(errno.EMFILE, "Too many open files"), "ERROR: Too many open"),
      (RuntimeError("No space left on device"), "ERROR: No space left on dev"),
    ):
      for debug in (False, True):
        stderr = io.StringIO()
        with (
          self.subTest(expected, debug=debug),
          flagsaver.flagsaver(debug=debug),
          contextlib.redirect_stderr(stderr),
          mock.patch.object(os, "_exit", sys.exit),
          self.assertRaises(SystemExit) as raised,
          errors.reported(),
        ):
          raise error
        *_, line = (stderr.getvalue() + str(raised.exception.code)).split("ERR")
        self.assertStartsWith(f"ERR{line}", expected)
        self.assertEqual("Traceback" in stderr.getvalue(), debug)

  def test_a_full_disk_is_reported_with_the_path_that_the_user_knows(self):
    parent = self.create_tempdir().full_path
    checkpoint = tf.train.Checkpoint(v=tf.Variable(tf.zeros([9999])))
    for name, known in (
      (".my export.unfinished/my export/variables", "my export"),
      ("backup", "backup/ckpt-1"),
    ):
      soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (999, hard))
      try:
        with self.assertRaises(SystemExit) as raised, errors.reported():
          checkpoint.write(f"{parent}/{name}/ckpt-1")
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      self.assertEqual(
        raised.exception.code,
        f"ERROR: Cannot write {parent}/{known}: File too large",
      )

  def test_a_bug_keeps_its_traceback(self):
    result = subprocess.run(
      [sys.executable, __file__, "bug"],
      env={"PYTHONPATH": ":".join(sys.path)},
      capture_output=True,
      text=True,
    )
    self.assertEqual(result.returncode, 1)
    self.assertIn("Traceback", result.stderr)
    *_, error, note = result.stderr.strip().splitlines()
    self.assertEqual(error, "KeyError: 'ours'")
    self.assertStartsWith(note, "This is a bug in the program, not in your inp")


def _bug(_):
  with errors.reported():
    raise KeyError("ours")


if __name__ == "__main__":
  if sys.argv[1:] == ["bug"]:
    app.run(_bug)
  absltest.main()
