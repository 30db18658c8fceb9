"""Runs the commands of `docs/publishing.md` in their order, as printed."""

import pathlib
import re
import subprocess

from absl.testing import absltest

_TARGET = re.compile(r"\./bazelw run //(\w+):(\w+) --")


class PublishingPageTest(absltest.TestCase):
  def test_the_commands_run(self):
    directory = self.create_tempdir().full_path
    page = pathlib.Path("docs/publishing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    blocks = [block for block in blocks if "OWNER/" not in block]
    self.assertLen(blocks, 3)
    for block in blocks:
      # Runs without Bazel, and in the directory of the test instead of /tmp.
      script = block.replace("/tmp/", f"{directory}/")
      script = _TARGET.sub(rf"{pathlib.Path.cwd()}/\1/\2", script)
      result = subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      print(result.stdout)
    self.assertIn("has the same bytes as the model made again", result.stdout)


if __name__ == "__main__":
  absltest.main()
