"""Runs the exporter as a user does, and looks at what it writes."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest
import numpy as np
import tensorflow as tf

from models.vision import mnist_cnn

_EXPORTER = pathlib.Path("exporters/mnist_cnn").absolute()

# What a consumer sees, in a process without our code and Model Garden's.
_CONSUMER = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
export = hub.load(sys.argv[1])
images = np.load(sys.argv[2])
np.savez(
    sys.argv[3],
    inference=export(images),
    losses=[loss() for loss in export.regularization_losses],
    training=export(images, training=True, dropout_rate=0.0),
    means=[v for v in export.variables if "moving_mean" in v.name][0],
)
assert not {"models", "exporters", "official"} & set(sys.modules)
"""


def _run(*arguments, **kwargs):
  return subprocess.run(
    [_EXPORTER, *arguments], capture_output=True, text=True, **kwargs
  )


def _hashes(directory):
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob("*")
    if path.is_file()
  }


class MnistCnnTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    tf.random.set_seed(0)
    cls.classifier = mnist_cnn.classifier(mnist_cnn.feature_extractor(), 7)
    for variable in cls.classifier.variables:
      variable.assign(
        variable + tf.random.uniform(variable.shape, 0.0, 0.1)
      )

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.export_dir = self.directory / "export"
    self.checkpoint = self.directory / "checkpoint"
    tf.train.Checkpoint(model=self.classifier).write(str(self.checkpoint))

  def assert_error(self, result, message):
    self.assertEqual(result.returncode, 1, result)
    self.assertRegex(result.stderr, message)
    self.assertNotIn("Traceback", result.stderr)
    self.assertEqual(result.stdout, "")

  def test_help_and_wrong_flags_are_answered_at_once(self):
    usage = _run("--help").stdout
    for flag in ("--export_dir", "--checkpoint_path", "--train_on", "--epochs"):
      self.assertIn(flag, usage)
    self.assertIn("bazel run //exporters:mnist_cnn", usage)
    # TensorFlow alone would print more than this one error, and take seconds.
    for arguments, message in (
      (["--train_on=digits"], "export_dir must have a value"),
      ([f"--export_dir={self.export_dir}"], "checkpoint_path.*train_on"),
      (["--nonsense"], "Unknown command line flag 'nonsense'"),
      (
        ["--export_dir=x", "--checkpoint_path=y", "--epochs=3"],
        "--epochs applies only with --train_on",
      ),
      (["--export_dir=x", "--train_on=cifar"], "digits"),
      (["--export_dir=x", "--train_on=digits", "y"], "ERROR: y is not a flag"),
    ):
      self.assert_error(_run(*arguments), message)

  def test_training_exports_and_keeps_the_checkpoint(self):
    # A relative path is one of the directory that the user is in.
    result = _run(
      "--train_on=digits_0_4",
      "--epochs=2",
      "--export_dir=export",
      "--checkpoint_dir=kept",
      env={**os.environ, "BUILD_WORKING_DIRECTORY": str(self.directory)},
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    accuracy = float(result.stdout.split("Test accuracy: ")[1].split()[0])
    self.assertGreater(accuracy, 0.9)
    again = _run(
      f"--checkpoint_path={self.directory / 'kept'}",
      f"--export_dir={self.directory / 'again'}",
    )
    self.assertEqual(again.returncode, 0, again.stderr)
    data = "variables/variables.data-00000-of-00001"
    self.assertEqual(
      _hashes(self.directory / "export")[data],
      _hashes(self.directory / "again")[data],
    )

  def test_export_equals_the_model_in_a_process_without_our_code(self):
    result = _run(
      f"--checkpoint_path={self.checkpoint}",
      f"--export_dir={self.export_dir}",
      "--l2_strength=0.01",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    images = np.random.default_rng(0).random((9, 28, 28, 1), np.float32)
    np.save(self.directory / "images.npy", images)
    outputs = self.directory / "outputs.npz"
    subprocess.run(
      [
        sys.executable,
        "-c",
        _CONSUMER,
        self.export_dir,
        self.directory / "images.npy",
        outputs,
      ],
      check=True,
      cwd=self.directory,
      env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    actual = np.load(outputs)

    extractor = mnist_cnn.feature_extractor(l2_strength=0.01, dropout_rate=0.0)
    extractor.set_weights(self.classifier.feature_extractor.get_weights())
    np.testing.assert_allclose(
      actual["losses"], [float(loss) for loss in extractor.losses], rtol=1e-6
    )
    np.testing.assert_allclose(
      actual["inference"], extractor(images), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
      actual["training"],
      extractor(images, training=True),
      rtol=1e-5,
      atol=1e-5,
    )
    np.testing.assert_allclose(
      actual["means"],
      extractor.get_layer("batch_norm1").moving_mean,
      rtol=1e-5,
      atol=1e-6,
    )

  def test_two_exports_have_the_same_bytes(self):
    hashes = []
    for name in ("first", "second"):
      result = _run(
        f"--checkpoint_path={self.checkpoint}",
        f"--export_dir={self.directory / name}",
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      hashes.append(_hashes(self.directory / name))
      # Beside other numbers it holds a random one.
      self.assertIn("fingerprint.pb", hashes[-1])
      del hashes[-1]["fingerprint.pb"]
    self.assertEqual(*hashes)
    for path in (self.directory / "first").rglob("*"):
      if path.is_file():
        self.assertNotIn(str(self.directory).encode(), path.read_bytes())

  def test_bad_input(self):
    occupied = self.directory / "occupied"
    occupied.mkdir()
    (occupied / "file").write_text("precious")
    for arguments, message in (
      (
        [f"--export_dir={occupied}", "--train_on=digits"],
        "^ERROR: .*occupied exists and is not empty",
      ),
      (
        [f"--export_dir={self.export_dir}", "--checkpoint_path=/nowhere"],
        "^ERROR: There is no checkpoint /nowhere",
      ),
    ):
      # The log of TensorFlow's C++ libraries is not ours to judge.
      result = _run(
        *arguments, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
      )
      self.assert_error(result, message)
    self.assertEqual((occupied / "file").read_text(), "precious")
    self.assertFalse(self.export_dir.exists())

  def test_killed_while_it_saves(self):
    for victim in ("variables", "saved_model.pb"):
      process = subprocess.Popen(
        [
          _EXPORTER,
          f"--checkpoint_path={self.checkpoint}",
          f"--export_dir={self.export_dir}",
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
      )
      while not list(self.directory.glob(f".export.unfinished-*/{victim}")):
        self.assertIsNone(process.poll(), f"{victim} was not seen.")
        time.sleep(0.0002)
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      self.assertFalse(self.export_dir.exists())
      self.assertLen(list(self.directory.glob(".export.unfinished-*")), 1)
    result = _run(
      f"--checkpoint_path={self.checkpoint}", f"--export_dir={self.export_dir}"
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    tf.saved_model.load(str(self.export_dir))
    self.assertEmpty(list(self.directory.glob(".export.unfinished-*")))


if __name__ == "__main__":
  absltest.main()
