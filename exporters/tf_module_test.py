"""Runs the exporter as a program, and uses the exports."""

import json
import os
import pathlib
import subprocess

from absl.testing import absltest
import jsonschema
import tensorflow as tf
import tensorflow_hub as hub

from models.density import real_nvp
from tools import nightly

_PERCENTILES = ("p50", "p90", "p99")
_EXPORTER = pathlib.Path("exporters/tf_module").absolute()


def _run(*arguments, **kwargs):
  return subprocess.run(
    [_EXPORTER, *arguments], capture_output=True, text=True, **kwargs
  )


class TfModuleTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.export_dir = os.path.join(self.get_temp_dir(), "export")

  def test_product(self):
    result = _run(
      *("--module=product", "--measure_latency"),
      f"--export_dir={self.export_dir}",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("✓ gradients, inference (1,)", result.stdout)
    layer = hub.KerasLayer(self.export_dir)
    self.assertAllEqual(layer([10.0, 20.0]), [20.0, 40.0])
    self.assertEmpty(layer.trainable_weights)
    layer = hub.KerasLayer(self.export_dir, trainable=True)
    self.assertAllEqual(layer([10.0, 20.0]), [20.0, 40.0])
    self.assertAllEqual(layer.trainable_weights, [2.0])
    self.assertAllClose(layer.losses, [0.004], rtol=1e-6)
    card = pathlib.Path(self.export_dir, "assets.extra/README.md").read_text()
    self.assertIn("\n| trainable | 1 |\n| regularized variables | 1 |", card)
    report, described = (
      json.loads(pathlib.Path(self.export_dir, path).read_text())
      for path in ("assets.extra/verification.json", "assets.extra/model.json")
    )
    schema = json.loads(pathlib.Path("docs/model.schema.json").read_text())
    jsonschema.validate(described, schema)
    self.assertEqual(report["latency"], described["latency"])
    self.assertNotIn("measure_latency", report["flags"])
    self.assertGreaterEqual(report["latency"]["machine"]["cores"], 1)
    batches = report["latency"]["batches"]
    self.assertEqual(
      [b["inputs"] for b in batches], [["float32 [1]"], ["float32 [32]"]]
    )
    for batch in batches:
      self.assertBetween(batch["calls"], 10, 100)
      for side in ("live", "export"):
        times = batch[side]
        self.assertGreater(times["p50"], 0)
        self.assertLessEqual(times["p50"], times["p90"])
        self.assertLessEqual(times["p90"], times["p99"])
        row = " | ".join(f"{times[k]:.3f}" for k in ("mean", *_PERCENTILES))
        self.assertIn(f" | {side} | {row} |\n", card)

  @nightly.only
  def test_real_nvp_from_a_checkpoint(self):
    flow = real_nvp.RealNVP(3, num_couplings=2, units=4, l2_strength=0.1)
    for seed, variable in enumerate(flow.variables):
      noise = tf.random.stateless_uniform(variable.shape, [seed, 0])
      variable.assign(variable + 0.2 * noise)
    path = tf.train.Checkpoint(module=flow).write(
      os.path.join(self.get_temp_dir(), "checkpoint")
    )
    arguments = (
      "--module=real_nvp",
      f"--checkpoint_path={path}",
      *("--num_features=3", "--num_couplings=2", "--l2_strength=0.1"),
    )
    result = _run(*arguments, "--units=4", f"--export_dir={self.export_dir}")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("✓ hyperparameters, dropout_rate 0.5", result.stdout)
    self.assertIn("✓ sample, hyperparameters, seed 2", result.stdout)
    self.assertIn("✓ inverse, compilation under XLA", result.stdout)
    export = hub.load(self.export_dir)
    vectors = tf.random.stateless_normal([5, 3], [1, 2])
    outputs = export(vectors)
    self.assertAllClose(outputs, flow(vectors), atol=1e-5)
    self.assertAllClose(export.inverse(outputs["latents"]), vectors, atol=1e-5)
    self.assertAllClose(
      [loss() for loss in export.regularization_losses],
      [0.1 * sum(tf.reduce_sum(v**2) for v in _kernels(flow))],
    )
    self.assertAllClose(
      export.sample([1.0, 0.5, 0.0], seed=7),
      flow.sample(tf.constant([1.0, 0.5, 0.0]), 7),
      atol=1e-5,
    )
    names = {v.name for v in export.variables}
    trained = {v.name for v in export.trainable_variables}
    self.assertEqual(names - trained, {"real_nvp/mean:0", "real_nvp/stddev:0"})

  def test_help_is_answered_at_once(self):
    # Python prints all imports to standard error.
    result = _run("--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    self.assertIn("models.density.training", result.stderr)
    self.assertNotIn("tensorflow", result.stderr)
    self.assertIn("copy this file", result.stdout)


def _kernels(flow):
  return [v for v in flow.trainable_variables if "kernel" in v.name]


if __name__ == "__main__":
  absltest.main()
