"""Runs the exporter as a program, and checks the exports."""

import json
import os
import pathlib
import subprocess

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

from exporters import check
from exporters import text_rnn as text_rnn_exporter
from exporters.conformance import copying
from exporters.reusable import exporting
from exporters.reusable import observation
from models.nlp import text_rnn
from tools import nightly

_EXPORTER = pathlib.Path("exporters/text_rnn").absolute()
_LAYERS = 2 if nightly.IS_ON else 1
_SIZES = ["--units=16", "--embedding_size=8", f"--num_layers={_LAYERS}"]


def _run(*arguments, **env):
  return subprocess.run(
    [_EXPORTER, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, **env},
  )


class TextRnnTest(absltest.TestCase):
  def test_help_is_answered_at_once(self):
    # Python prints all imports to standard error.
    result = _run("--help", PYTHONPROFILEIMPORTTIME="1")
    self.assertIn("models.nlp.text_rnn", result.stderr)
    self.assertNotIn("tensorflow", result.stderr)
    for flag in ("--export_type", "--cell", "--units", "--train_on"):
      self.assertIn(flag, result.stdout)

  def test_trains_verifies_and_restores(self):
    directory = pathlib.Path(self.create_tempdir().full_path)
    text = directory / "text.txt"
    text.write_text("\n\n".join(f"Line {i}: 漢字." for i in range(100)))
    result = _run(
      "--train_on=text.txt",
      "--epochs=1",
      "--steps_per_epoch=5",
      "--export_type=all",
      "--export_dir=both",
      "--checkpoint_dir=kept",
      "--tensorboard_dir=events",
      *_SIZES,
      BUILD_WORKING_DIRECTORY=str(directory),
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("Perplexity per byte of held-out text: ", result.stdout)
    for part in ("compilation under XLA", "step, gradients", "generate, out"):
      self.assertIn(f"✓ {part}", result.stdout)
    record = directory / "both/language_model/assets.extra/training.json"
    (metrics,) = json.loads(record.read_text())["epochs"]
    (events,) = (directory / "events").iterdir()
    written = {
      value.tag: tf.make_ndarray(value.tensor)
      for event in tf.compat.v1.train.summary_iterator(str(events))
      for value in event.summary.value
    }
    self.assertIn("loss", metrics)
    for name, value in metrics.items():
      self.assertAlmostEqual(written[f"epoch_{name}"], value, places=4)
    model = hub.load(str(directory / "both" / "language_model"))
    self.assertLen(model.trainable_variables, 3 + 3 * _LAYERS)
    regularized = observation.regularized(model.regularization_losses)
    self.assertLen(regularized, 1 + 2 * _LAYERS)
    self.assertEqual(model.state_sizes().numpy().tolist(), [16, 16] * _LAYERS)
    card = (
      directory / "both/language_model/assets.extra/README.md"
    ).read_text()
    for line in (
      "| `ids` | int32 | `[None, None]` | 0 at the boundaries",
      "| `logits` | float32 | `[None, None, 257]` |",
      "| `dropout_rate` | 0.1 |",
      "| trained on | text.txt (0.00179 MB) |",
      "| cell | lstm |",
    ):
      self.assertIn(f"\n{line}", card)
    self.assertNotIn(str(directory), card)

    if nightly.IS_ON:
      status = check.check(
        saved_model_dir=str(directory / "both/language_model"),
        options=copying.Options(seconds=36_000),
        strict=True,
      )
      self.assertEqual(status, 0)

    text_rnn_exporter.export(
      text_rnn_exporter.Weights(checkpoint_path=str(directory / "kept")),
      text_rnn.Architecture(units=16, embedding_size=8, num_layers=_LAYERS),
      exporting.Options(export_dir=str(directory / "cell"), verification="off"),
      export_type="cell",
    )
    cells = [hub.load(str(directory / d)) for d in ("both/cell", "cell")]
    states = [
      tf.random.stateless_normal([3, 16], [i, 0]) for i in range(2 * _LAYERS)
    ]
    inputs = [tf.ones([3, 8]), *states]
    for first, second in zip(*(cell(inputs) for cell in cells), strict=True):
      self.assertEqual(first.shape, [3, 16])
      np.testing.assert_array_equal(first, second)


if __name__ == "__main__":
  absltest.main()
