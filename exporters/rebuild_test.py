"""Packages an export, and rebuilds it from the package."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
from unittest import mock

from absl import flags
from absl.testing import absltest

from distribution import errors
from exporters import package
from exporters import rebuild
from exporters.packages import fakes

_EXPORT = flags.DEFINE_string("saved_model_dir", None, "An export.")
_INPUT = flags.DEFINE_multi_string("input", [], "As of the program.")


def _add_latency(directory):
  """Adds times to an export, as --measure_latency does."""
  latency = {"machine": {"cores": 2}, "batches": [{"live": {"p50": 0.1}}]}
  for name, is_ascii in (("verification", True), ("model", False)):
    path = directory / f"{name}.json"
    content = json.loads(path.read_text())
    items = list(content.items())
    items.insert(len(items) - 1, ("latency", latency))
    text = json.dumps(dict(items), indent=2, ensure_ascii=is_ascii)
    path.write_text(f"{text}\n")
  card = directory / "README.md"
  added = "## Latency\n\n| live | 0.1 |\n\n## Keras 3"
  text, count = re.subn("## Keras 3", added, card.read_text())
  assert count == 1, text
  card.write_text(text)


class RebuildTest(absltest.TestCase):
  def test_the_bytes_are_the_same(self):
    export = self.create_tempdir().full_path
    shutil.copytree(
      _EXPORT.value, export, copy_function=shutil.copyfile, dirs_exist_ok=True
    )
    _add_latency(pathlib.Path(export, "assets.extra"))
    packaged = os.path.join(self.create_tempdir().full_path, "package")
    package.package(saved_model_dir=export, output_dir=packaged)
    # Rebuild with another directory, language, time zone and number of threads.
    others = {
      "LC_ALL": "C",
      "OMP_NUM_THREADS": "1",
      "TF_NUM_INTRAOP_THREADS": "1",
      "TZ": "Asia/Kathmandu",
      "USER": "another",
    }
    with (
      mock.patch.dict(os.environ, others),
      contextlib.redirect_stdout(io.StringIO()) as output,
    ):
      rebuild.rebuild(packaged, inputs=_INPUT.value)
    self.assertIn("made again, apart from its latency.", output.getvalue())

  def test_a_difference_is_named(self):
    first, second = (self.create_tempdir().full_path for _ in range(2))
    fakes.write_model(first)
    fakes.write_model(second, weights=b"weightz")
    weights, report = rebuild._differences(first, second)
    self.assertStartsWith(
      weights,
      "variables/variables.data-00000-of-00001 differs from byte 6 on",
    )
    self.assertStartsWith(report, "assets.extra/verification.json, line 1: ")
    os.remove(f"{second}/assets/vocab.txt")
    missing, *_ = rebuild._differences(first, second)
    self.assertEqual(missing, "assets/vocab.txt was not made again.")

  def test_other_packages_are_an_error(self):
    fakes.write_model(model := f"{self.create_tempdir().full_path}/model")
    packaged = f"{self.create_tempdir().full_path}/package"
    package.package(saved_model_dir=model, output_dir=packaged)
    with self.assertRaisesRegex(errors.InputError, "of the lock 1111"):
      rebuild.rebuild(packaged)

  def test_flags_of_files_need_their_places(self):
    parameters = {
      "exporter": "resnet",
      "flags": {
        "checkpoint_path": "ckpt",
        "endpoints": ["2", "3"],
        "epochs": 12,  # The default, which the command leaves out.
        "weights": None,
      },
    }
    with self.assertRaisesRegex(errors.InputError, "--input=checkpoint_path="):
      rebuild._command(parameters, [])
    for wrong in ("checkpoint_path", "checkpoint=/c/t"):
      with self.assertRaisesRegex(errors.InputError, "is no FLAG=PATH"):
        rebuild._command(parameters, [wrong])
    program, *arguments = rebuild._command(parameters, ["checkpoint_path=/c/t"])
    self.assertEndsWith(program, "exporters/resnet.py")
    self.assertEqual(arguments, ["--checkpoint_path=/c/t", "--endpoints=2,3"])
    writes = {"exporter": "resnet", "flags": {"checkpoint_report": "/tmp/x"}}
    with self.assertRaisesRegex(errors.InputError, "no flag --checkpoint_rep"):
      rebuild._command(writes, [])
    for wrong in ("../x", "check/../resnet", "none"):
      with self.assertRaisesRegex(errors.InputError, "no exporter"):
        rebuild._command({"exporter": wrong, "flags": {}}, [])


if __name__ == "__main__":
  absltest.main()
