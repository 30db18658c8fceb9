"""Runs the commands in README and `docs/` that are marked as runnable."""

import pathlib
import re
import shutil

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from integration_tests import snippets
from tools import nightly

_MNIST_CNN = flags.DEFINE_string("mnist_cnn", None, "An export.")
_PAGES = ["README.md", *sorted(map(str, pathlib.Path("docs").glob("*.md")))]


class SnippetsTest(parameterized.TestCase):
  @parameterized.parameters(*_PAGES)
  def test_commands_run(self, page: str):
    text = pathlib.Path(page).read_text(encoding="utf-8")
    blocks = snippets.shell(text, nightly.IS_ON)
    if not blocks:
      self.skipTest("No command is marked.")
    directory = pathlib.Path(self.create_tempdir().full_path)
    if not re.search(r"--export_dir=/tmp/mnist_cnn\s", "".join(blocks)):
      shutil.copytree(_MNIST_CNN.value, directory / "mnist_cnn")
    snippets.run_shell(blocks, directory)

  def test_some_are_marked(self):
    texts = [pathlib.Path(p).read_text(encoding="utf-8") for p in _PAGES]
    for slow, least in ((False, 2), (True, 8)):
      found = [b for text in texts for b in snippets.shell(text, slow)]
      self.assertGreaterEqual(len(found), least)


if __name__ == "__main__":
  absltest.main()
