"""Runs the exporter as a program, and checks the exports."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tf_keras

from exporters import classifier_training
from exporters import mnist_cnn as mnist_cnn_exporter
from exporters.reusable import exporting
from models.vision import mnist_cnn
from tools import nightly

_EXPORTER = pathlib.Path("exporters/mnist_cnn").absolute()

# A consumer's program. Its process imports neither our code nor Model Garden.
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
    losses=sum(loss() for loss in export.regularization_losses),
    training=export(images, training=True, dropout_rate=0.0),
    moving_mean=[v for v in export.variables if "moving_mean" in v.name][0],
)
assert not {"models", "exporters", "official"} & set(sys.modules)
"""


# The same for a complete Keras model. It sets the dropout rate in the layer.
_KERAS_CONSUMER = """
import sys
import numpy as np
import tf_keras
export = tf_keras.models.load_model(sys.argv[1])
assert export.optimizer is None
images = np.load(sys.argv[2])
inference = export(images)
assert not np.allclose(export(images, training=True), inference)
export = tf_keras.models.load_model(sys.argv[1])
export.get_layer("dropout").rate = 0.0
np.savez(
    sys.argv[3],
    inference=inference,
    losses=sum(export.losses),
    training=export(images, training=True),
    moving_mean=export.get_layer("batch_norm1").moving_mean,
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
    """Kills exporters while they save, then runs two to completion."""
    super().setUpClass()
    cls.classifier = mnist_cnn.classifier(mnist_cnn.feature_extractor(), 7)
    for seed, variable in enumerate(cls.classifier.variables):
      noise = tf.random.stateless_uniform(variable.shape, [seed, 0])
      variable.assign(variable + 0.1 * noise)
    cls.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )
    cls.checkpoint = cls.directory / "checkpoint"
    tf.train.Checkpoint(model=cls.classifier).write(str(cls.checkpoint))
    cls.export_dir = cls.directory / "export"
    cls.left_by_kills = [
      cls.kill_when_it_writes(path)
      for path in ["variables"] * nightly.IS_ON + ["saved_model.pb"]
    ]
    cls.second_export_dir = cls.directory / "second"
    for export_dir in cls.export_dir, cls.second_export_dir:
      cls.export(export_dir)

  @classmethod
  def arguments(cls, export_dir):
    return [
      _EXPORTER,
      f"--checkpoint_path={cls.checkpoint}",
      f"--export_dir={export_dir}",
      "--l2_strength=0.01",
      "--verification=fast",
    ]

  @classmethod
  def export(cls, export_dir):
    subprocess.run(cls.arguments(export_dir), check=True)

  @classmethod
  def kill_when_it_writes(cls, path):
    """Kills an exporter as soon as it writes `path` in the export.

    Returns:
      Whether the export exists, and the number of unfinished directories.
    """
    process = subprocess.Popen(
      [*cls.arguments(cls.export_dir), "--verification=off"],
      start_new_session=True,
    )
    while not list(cls.directory.glob(f".export.unfinished/export/{path}")):
      if process.poll() is not None:
        raise AssertionError(f"The export ended, and {path} was not seen.")
      time.sleep(0.0002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return (
      cls.export_dir.exists(),
      len(list(cls.directory.glob(".export.unfinished"))),
    )

  def assert_error(self, result, message):
    self.assertEqual(result.returncode, 1, result)
    self.assertRegex(result.stderr, message)
    self.assertNotIn("Traceback", result.stderr)
    self.assertEqual(result.stdout, "")

  def test_help_is_answered_at_once(self):
    # Python prints all imports to standard error.
    result = _run("--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    self.assertIn("models.vision.mnist_cnn", result.stderr)
    self.assertNotIn("tensorflow", result.stderr)
    for flag in (
      "--export_dir",
      "--checkpoint_path",
      "--train_on",
      "--epochs",
      "--saved_model_format",
    ):
      self.assertIn(flag, result.stdout)
    self.assertIn("bazel run //exporters:mnist_cnn", result.stdout)

  def test_killed_while_it_saves(self):
    # Each kill leaves no export and one unfinished directory, because the next
    # run removes that of an earlier kill.
    self.assertEqual(set(self.left_by_kills), {(False, 1)})
    self.assertEmpty(list(self.directory.glob(".*.unfinished")))
    tf.saved_model.load(str(self.export_dir))

  def test_two_exports_have_the_same_bytes(self):
    first = _hashes(self.export_dir)
    second = _hashes(self.second_export_dir)
    self.assertEqual(first, second)
    self.assertIn("assets.extra/README.md", first)
    self.assertIn("assets.extra/verification.json", first)
    for path in self.export_dir.rglob("*"):
      if path.is_file():
        self.assertNotIn(str(self.directory).encode(), path.read_bytes())

  def test_report_of_the_verification(self):
    report = json.loads(
      (self.export_dir / "assets.extra" / "verification.json").read_text()
    )
    self.assertEqual(
      report["flags"],
      {
        "batch_size": 32,
        "checkpoint_path": "checkpoint",
        "class_names_file": None,
        "epochs": 12,
        "freezing_profiles": [],
        "held_out": None,
        "l2_strength": 0.01,
        "learning_rate": 0.001,
        "mixed_precision": "float32",
        "num_gpus": None,
        "saved_model_format": "reusable",
        "seed": 0,
        "strategy": "default",
        "tpu": None,
        "train_on": None,
        "verification": "fast",
        "warmup_batch_sizes": ["1"],
        "warmup_lengths": [],
        "weights": None,
      },
    )
    contents = [
      (self.directory / f"checkpoint.{name}").read_bytes()
      for name in ("index", "data-00000-of-00001")
    ]
    self.assertEqual(
      report["checkpoint_sha256"],
      hashlib.sha256(b"".join(contents)).hexdigest(),
    )
    weights = hashlib.sha256()
    for variable in self.classifier.feature_extractor.variables:
      value = variable.numpy()
      described = f"{value.dtype}{value.shape}".encode()
      weights.update(hashlib.sha256(described + value.tobytes()).digest())
    self.assertEqual(report["weights_sha256"], weights.hexdigest())
    self.assertEqual(
      report["singleprint"],
      tf.saved_model.experimental.read_fingerprint(
        str(self.export_dir)
      ).singleprint(),
    )
    self.assertIn("tf-models-official", report["versions"])

  def test_card(self):
    card = (self.export_dir / "assets.extra" / "README.md").read_text()
    for line in (
      "| `images` | float32 | `[None, 28, 28, 1]` | grey values",
      "| `feature_vector` | float32 | `[None, 128]` | features",
      "| `dropout_rate` | 0.4 | Share of the features",
      "| `batch_norm_momentum` | 0.9 | Share of the old value",
      "| parameters | 420,640 |",
      "| trainable | 420,448 |",
      "| regularized variables | 3 |",
      "| L2 regularization of the kernels | 0.01 |",
    ):
      self.assertIn(f"\n{line}", card)

  def test_export_equals_the_model_in_a_process_without_our_code(self):
    self.assert_equals_the_model(self.export_dir, _CONSUMER)

  @nightly.only
  def test_keras_format(self):
    export_dir = self.directory / "keras"
    result = _run(
      f"--checkpoint_path={self.checkpoint}",
      f"--export_dir={export_dir}",
      "--l2_strength=0.01",
      "--saved_model_format=keras",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    for line in (
      "✓ gradients, inference (3, 28, 28, 1)",
      "✓ randomness, training (3, 28, 28, 1)",
      "✓ compilation under XLA, training (3, 28, 28, 1)",
      "✓ saved again",
      "A complete Keras model has no hyperparameters",
    ):
      self.assertIn(line, result.stdout)
    self.assert_equals_the_model(export_dir, _KERAS_CONSUMER)
    example, layer = re.findall(
      r"```python\n(.*?)```",
      (export_dir / "assets.extra" / "README.md").read_text(),
      re.DOTALL,
    )
    self.assertIn("class ReusableLayer", layer)
    self.assertNotIn("hub", example)
    self.assertIn('tf_keras.models.load_model("path/to/mnist_cnn"),', example)
    signature = tf.saved_model.load(str(export_dir)).signatures
    self.assertEqual(
      list(signature["serving_default"].structured_outputs), ["feature_vector"]
    )
    for path in export_dir.rglob("*"):
      if path.is_file():
        self.assertNotIn(str(self.directory).encode(), path.read_bytes())

  def assert_equals_the_model(self, export_dir, consumer):
    images = np.random.default_rng(0).random((9, 28, 28, 1), np.float32)
    np.save(self.directory / "images.npy", images)
    subprocess.run(
      [
        sys.executable,
        "-c",
        consumer,
        export_dir,
        "images.npy",
        "outputs.npz",
      ],
      check=True,
      cwd=self.directory,
      env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    actual = np.load(self.directory / "outputs.npz")
    extractor = mnist_cnn.feature_extractor(l2_strength=0.01, dropout_rate=0.0)
    extractor.set_weights(self.classifier.feature_extractor.get_weights())
    expected = {
      "inference": extractor(images),
      "losses": sum(extractor.losses),
      "training": extractor(images, training=True),
      "moving_mean": extractor.get_layer("batch_norm1").moving_mean,
    }
    self.assertCountEqual(actual, expected)
    for name, value in expected.items():
      np.testing.assert_allclose(
        actual[name], value, rtol=1e-5, atol=1e-5, err_msg=name
      )

  def test_training_exports_and_keeps_the_checkpoint(self):
    # Relative paths start at the user's working directory.
    result = _run(
      "--train_on=digits_0_4",
      "--epochs=2",
      "--export_dir=trained",
      "--checkpoint_dir=kept",
      env={**os.environ, "BUILD_WORKING_DIRECTORY": str(self.directory)},
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("✓ gradients, training (1, 28, 28, 1)", result.stdout)
    self.assertIn("✓ hyperparameters, dropout_rate 0.5", result.stdout)
    accuracy = float(result.stdout.split("Test accuracy: ")[1].split()[0])
    self.assertGreater(accuracy, 0.5)
    record = self.directory / "trained/assets.extra/training.json"
    first, last = json.loads(record.read_text())["epochs"]
    self.assertLess(last["loss"], first["loss"])
    # An export of a checkpoint has no record of training.
    self.assertFalse((self.export_dir / "assets.extra/training.json").exists())
    mnist_cnn_exporter.export(
      classifier_training.Weights(checkpoint_path=str(self.directory / "kept")),
      exporting.Options(
        export_dir=str(self.directory / "again"), verification="off"
      ),
    )
    data = "variables/variables.data-00000-of-00001"
    self.assertEqual(
      _hashes(self.directory / "trained")[data],
      _hashes(self.directory / "again")[data],
    )

  @nightly.only
  def test_moving_averages(self):
    # Moving averages are slots, as in Model Garden's optimizer.
    optimizer = tf_keras.optimizers.legacy.SGD()
    for variable in self.classifier.feature_extractor.trainable_variables:
      optimizer.add_slot(variable, "average").assign(variable / 2)
    model = tf.train.Checkpoint(
      feature_extractor=self.classifier.feature_extractor,
      logits=self.classifier.logits,
      optimizer=optimizer,
    )
    path = self.directory / "with_averages"
    tf.train.Checkpoint(model=model).write(str(path))
    export_dir = self.directory / "averages"
    arguments = (
      f"--checkpoint_path={path}",
      f"--export_dir={export_dir}",
      "--verification=off",
    )
    self.assert_error(_run(*arguments), "say which to export, --weights=raw or")
    result = _run(*arguments, "--weights=average")
    self.assertEqual(result.returncode, 0, result.stderr)
    export = tf.saved_model.load(str(export_dir))
    for actual, raw in zip(
      export.trainable_variables,
      self.classifier.feature_extractor.trainable_variables,
      strict=True,
    ):
      np.testing.assert_array_equal(actual, raw / 2)
    card = (export_dir / "assets.extra" / "README.md").read_text()
    self.assertIn("averaged over its training", card)


if __name__ == "__main__":
  absltest.main()
