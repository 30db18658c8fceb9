"""Tests that docs/architectures.md agrees with the exports."""

import pathlib
import re

from absl import flags
from absl.testing import absltest

from integration_tests import architectures

# Accuracy, size and seconds depend on the machine.
_VARIES = re.compile(r"(?m)^\| (test accuracy|size|seconds)\b.*\n")


class ArchitecturesTest(absltest.TestCase):
  def test_page(self):
    page = pathlib.Path("docs/architectures.md").read_text(encoding="utf-8")
    page, made = (
      _VARIES.sub("", text)
      for text in (page, architectures.page(flags.FLAGS.exports, {}))
    )
    for part in made.split("\n## "):
      self.assertIn(part.strip(), page)
    # The table of README names the default of each hyperparameter too.
    self.assertIn("| hyperparameters | `dropout_rate` 0.4,", made)


if __name__ == "__main__":
  absltest.main()
