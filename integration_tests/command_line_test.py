"""Tests the help of all programs, and errors in their flags."""

import os
import re
import subprocess
import sys

from absl import flags
from absl.testing import absltest

_PROGRAMS = flags.DEFINE_list("programs", None, "The programs.")


def _flags(program, argument):
  """Returns the flags in the help, without absl's own modules."""
  result = subprocess.run([program, argument], capture_output=True, text=True)
  text = re.sub(r"(?m)^absl\.\S+:\n(?:  .*\n|\n)+", "", result.stdout)
  return set(re.findall(r"(?m)^  --(?:\[no\])?(\w+)", text))


class HelpTest(absltest.TestCase):
  def test_help_lists_all_flags_of_the_program(self):
    self.assertNotEmpty(_PROGRAMS.value)
    for program in _PROGRAMS.value:
      with self.subTest(os.path.basename(program)):
        actual = _flags(os.path.abspath(program), "--help")
        everything = _flags(os.path.abspath(program), "--helpfull")
        self.assertEqual(actual, everything)
        self.assertContainsSubset(
          {
            *("saved_model_dir", "output_saved_model_dir", "backup_dir"),
            "checkpoint_dir",
            "output_piece_dir",
            *("strategy", "tpu", "num_gpus", "mixed_precision"),
            *("dataset", "retrain", "epochs", "batch_size", "learning_rate"),
          },
          actual,
        )
        if not program.endswith("use_keras_model"):  # Its rates are fixed.
          self.assertIn("dropout_rate", actual)
          self.assertIn("regularization_loss_multiplier", actual)

  def test_errors_are_one_line(self):
    (program,) = (x for x in _PROGRAMS.value if x.endswith("use_mnist_cnn"))
    for flag, error in (
      ("--learning_rate=nan", "--learning_rate=nan: Say a finite number."),
      ("--lerning_rate=1", "is not a flag. Did you mean --learning_rate?"),
      ("--epochs=0", "--epochs=0: 0 is not"),
    ):
      result = subprocess.run(
        [os.path.abspath(program), "--saved_model_dir=x", flag],
        capture_output=True,
        text=True,
      )
      self.assertEqual(result.returncode, 1)
      self.assertIn(error, result.stderr)
      self.assertLen(result.stderr.splitlines(), 1)

  def test_help_has_groups_and_defaults(self):
    (program,) = (x for x in _PROGRAMS.value if x.endswith("use_mnist_cnn"))
    text = subprocess.check_output([program, "--help"], text=True)
    titles = re.findall(
      "^(What .*|Training|Accelerators|Safety.*):$", text, re.M
    )
    self.assertLen(titles, 5)
    self.assertRegex(text, r"  --batch_size\n(?:      .*\n)*.*\(default: 32\)")


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  absltest.main()
