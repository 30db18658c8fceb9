"""Runs a program on an accelerator, and checks the model that it saves.

Meanwhile this process does not use the accelerator, because a TPU serves only
one process.
"""

import os
import re
import subprocess
import sys

from absl import flags
from absl.testing import absltest

_MIN_ACCURACY = flags.DEFINE_float("min_accuracy", None, "Metric to exceed.")


class AcceleratorTest(absltest.TestCase):
  def test_program(self):
    output_dir = os.path.join(self.create_tempdir(), "output")
    result = subprocess.run(
      # Files in Bazel's sandbox are links.
      [*_COMMAND, "--follow_links", f"--output_saved_model_dir={output_dir}"],
      capture_output=True,
      text=True,
    )
    print(result.stdout)
    self.assertEqual(result.returncode, 0, result.stderr)
    (metric,) = re.findall(r"Test \w+: (\S+)", result.stdout)
    self.assertGreater(float(metric), _MIN_ACCURACY.value)

    # Imported here, because the accelerator is free now.
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  Registers ops of the models.

    (export_dir,) = (
      argument.removeprefix("--saved_model_dir=")
      for argument in _COMMAND
      if argument.startswith("--saved_model_dir=")
    )
    export, output = map(tf.saved_model.load, (export_dir, output_dir))
    trained = {v.name: v.numpy() for v in output.variables}
    self.assertNotEmpty(export.trainable_variables)
    for variable in export.trainable_variables:
      self.assertEqual(trained[variable.name].dtype, "float32")
      self.assertTrue((trained[variable.name] != variable.numpy()).any())


if __name__ == "__main__":
  # The program and its arguments follow `--`.
  index = sys.argv.index("--")
  _COMMAND = sys.argv[index + 1 :]
  sys.argv = sys.argv[:index]
  absltest.main()
