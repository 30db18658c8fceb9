"""Runs all programs on the tables of bad input beside this file.

It is in this folder because only tests of consumers may depend on the programs
of both exporters and consumers. Each case runs in a fork of this process, which
imports TensorFlow only once, after the cases that must fail without it.
"""

from collections.abc import Iterator, Mapping, Sequence
import ctypes
import gc
import importlib
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
import tempfile
from typing import Any, NamedTuple

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from distribution import scratch
from integration_tests import bad_input
from integration_tests import bad_input_of_consumers as of_consumers
from tools import nightly

_FILES = {**bad_input.FILES, **of_consumers.FILES}
_ROOT = os.getcwd()
_MOST_LINES = 3
_NO_MOUNT = 77  # Exit status if this machine does not let a process mount.
_CLONE_NEWNS, _MS_RDONLY, _MS_REC_PRIVATE = 0x20000, 1, 0x44000
_MOUNTS = {"{full}": (0, b"size=16k"), "{read_only}": (_MS_RDONLY, b"")}
# TensorFlow logs these where it finds no GPU.
_LOGS = re.compile(
  r"^(WARNING: All log |[EWI]0000 |\d{4}-\d\d-\d\d ).*\n", re.M
)
# Every run tests `LATER` for these programs; nightly runs test it for all.
_ALWAYS = (
  "exporters/check",
  "exporters/text_embedding",
)
_IMPORTED_ONCE = (
  *("tensorflow", "tf_keras", "tensorflow_hub", "tensorflow_text"),
  "official.vision.configs.image_classification",
  *("official.nlp.configs.encoders", "official.nlp.modeling.models"),
)


class Result(NamedTuple):
  """How a program has ended."""

  status: int
  stdout: str
  stderr: str
  imported_tensorflow: bool


def _mount(path: str, options: int, data: bytes) -> None:
  """Mounts a tmpfs that only this process sees."""
  libc = ctypes.CDLL(None, use_errno=True)
  if (
    libc.unshare(_CLONE_NEWNS)
    or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
    or libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", options, data)
  ):
    os._exit(_NO_MOUNT)


def _as_main(program: str, arguments: Sequence[str]) -> int:
  """Runs a program in this process; returns its exit status."""
  flags.FLAGS.unparse_flags()
  path = os.path.join(_ROOT, f"{program}.py")
  sys.argv = [path, *arguments]
  try:
    runpy.run_path(path, run_name="__main__")
  except SystemExit as e:
    if isinstance(e.code, str):
      print(e.code, file=sys.stderr)
    return 1 if isinstance(e.code, str) else e.code or 0
  except BaseException:
    sys.excepthook(*sys.exc_info())
    return 1
  return 0


def _run(
  program: str,
  arguments: Sequence[str],
  work_dir: pathlib.Path,
  mounts: Mapping[str, Any],
) -> Result:
  """Runs a program in a fork of this process, in a directory of its own."""
  paths = [work_dir.with_suffix(f".{i}") for i in range(3)]
  sys.stdout.flush()
  sys.stderr.flush()
  if pid := os.fork():
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    stdout, stderr, imported = (
      p.read_text(errors="replace") if p.exists() else "" for p in paths
    )
    return Result(status, stdout, _LOGS.sub("", stderr), bool(imported))
  status = 70
  try:
    sys.stdout, sys.stderr = (path.open("w") for path in paths[:2])
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
      os.dup2(stream.fileno(), number)  # TensorFlow writes there.
    os.chdir(work_dir)
    for path, mount in mounts.items():
      _mount(path, *mount)
    status = _as_main(program, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    paths[2].write_text("yes" if "tensorflow" in sys.modules else "")
  finally:
    scratch.remove_all()
    os._exit(status)


def _cases(table: bad_input.Table) -> Iterator[tuple[str, str, str]]:
  for programs, rows in table:
    program, _, good = programs.partition(" ")
    for changed, expected in rows.items():
      yield program, f"{good} {changed}", expected


class BadInputTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )
    cls.made = set()

  def file(self, name: str) -> str:
    """Returns the path of a file in `_FILES`; makes the file if necessary."""
    path = self.directory / name
    if name not in self.made:
      self.made.add(name)
      content = _FILES[name]
      if isinstance(content, bytes):
        path.write_bytes(content)
      elif isinstance(content, str):
        self.check_good(content, path)
      else:
        content(path, self.file)
    return str(path)

  def run_case(self, program: str, text: str, out: pathlib.Path) -> Result:
    """Runs a program after replacing each {name} in its flags by a path."""
    work_dir = self.directory / "work"
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir()
    arguments = [
      re.sub(
        r"{([^{}]+)}",
        lambda match: str(out) if match[1] == "out" else self.file(match[1]),
        argument,
      )
      for argument in shlex.split(text)
    ]
    mounts = {
      self.file(name.strip("{}")): mount
      for name, mount in _MOUNTS.items()
      if name in text
    }
    result = _run(program, arguments, work_dir, mounts)
    self.assertEmpty(os.listdir(work_dir))
    return result

  def check_good(self, text: str, out: pathlib.Path) -> None:
    """Makes a file by running a program on good input."""
    program, _, text = text.partition(" ")
    result = self.run_case(program, text, out)
    self.assertEqual(result.status, 0, result)

  def check(self, program: str, text: str, expected: str) -> Result:
    out = self.directory / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    result = self.run_case(program, text, out / "export")
    if result.status == _NO_MOUNT:
      self.skipTest("This machine does not let a process mount.")
    told = result.stderr.replace(str(self.directory), "DIR")
    self.assertEqual(result.status, 1, told)
    self.assertNotIn("Traceback", told)
    self.assertRegex(told, expected)
    self.assertLessEqual(len(told.splitlines()), _MOST_LINES, told)
    self.assertEmpty(os.listdir(out))
    return result

  def test_names_of_files_are_unique(self):
    self.assertLen(_FILES, len(bad_input.FILES) + len(of_consumers.FILES))

  @parameterized.parameters(
    *_cases([*bad_input.AT_ONCE, *of_consumers.AT_ONCE])
  )
  def test_at_once(self, program: str, text: str, expected: str):
    result = self.check(program, text, expected)
    self.assertFalse(result.imported_tensorflow)

  @parameterized.parameters(*_cases([*bad_input.LATER, *of_consumers.LATER]))
  def test_with_tensorflow(self, program: str, text: str, expected: str):
    if program not in _ALWAYS and not nightly.IS_ON:
      self.skipTest("Only nightly tests run this program.")
    for name in _IMPORTED_ONCE:
      importlib.import_module(name)
    gc.freeze()  # Forks share imported objects: they need not scan them.
    self.check(program, text, expected)


if __name__ == "__main__":
  absltest.main()
