"""Ends programs and checks which files they leave. The module is a program."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest

from distribution import errors
from distribution import programs
from distribution import publishing
from distribution import scratch

# Fails once its temporary directory is gone.
_CHILD = """
import os, pathlib
print("ready", flush=True)
for i in range(50_000):
  pathlib.Path(os.environ["TMPDIR"], str(i)).touch()
print("It lives.")
"""


def _wait_for_ever(path: str) -> None:
  """Writes files, starts a child, and suppresses all exceptions of Python."""
  pathlib.Path(tempfile.gettempdir(), "file").write_text("")
  child = scratch.tied([sys.executable, "-uc", _CHILD])
  with publishing.publish(path) as directory, subprocess.Popen(child):
    pathlib.Path(directory, "file").write_text("")
    while True:
      with contextlib.suppress(BaseException):
        time.sleep(0.01)


def _fail(path: str) -> None:
  child = scratch.tied([sys.executable, "-uc", _CHILD])
  with open(os.devnull, "w") as output:
    subprocess.Popen(child, stdout=output)
  while not os.path.exists(os.path.join(os.environ["TMPDIR"], "9")):
    time.sleep(0.01)
  raise errors.InputError(f"No {path}.")


def _lose_files(path: str) -> None:
  shutil.rmtree(tempfile.gettempdir())
  pathlib.Path(tempfile.gettempdir(), "file").write_text(path)


def _print(path: str) -> None:
  with open(path, "w") as f:
    print("printed ✓", flush=True)
    os.write(1, b"printed by C")
    f.write("whole")


def _lack_memory(path: str) -> None:
  pathlib.Path(tempfile.gettempdir(), "file").write_text("")
  no_memory = OSError(errno.ENOMEM, "")
  with (
    mock.patch.object(scratch, "_empty", side_effect=[True, no_memory]),
    publishing.publish(path),
  ):
    raise MemoryError


class ProgramsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.tmp = self.directory / "tmp"
    self.tmp.mkdir()

  def start(self, name, *before):
    return subprocess.Popen(
      [*before, sys.executable, __file__, name, str(self.directory / "export")],
      env={
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONUNBUFFERED": "",
        "TMPDIR": str(self.tmp),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def left(self):
    return [*os.listdir(self.tmp), *os.listdir(self.directory)]

  def test_a_signal_ends_it(self):
    for number in programs._SIGNALS:
      process = self.start("_wait_for_ever")
      self.assertEqual(process.stdout.readline(), "ready\n")
      self.assertLen(self.left(), 3)
      process.send_signal(number)
      # The output ends when the child has ended, too.
      output, _ = process.communicate()
      self.assertEqual(output, f"ERROR: Interrupted by {number.name}.\n")
      self.assertEqual(process.returncode, -number)
      self.assertEqual(self.left(), ["tmp"])

  def test_the_next_one_removes_what_a_killed_one_leaves(self):
    foreign = self.tmp / "reusable_models-of-a-user"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    process = self.start("_wait_for_ever")
    process.stdout.readline()
    process.kill()
    self.assertEqual(process.communicate()[0], "")
    self.assertLen(self.left(), 4)
    (self.tmp / "reusable_models-new").mkdir()  # Killed at once.
    process = self.start("_fail")
    output, _ = process.communicate()
    self.assertEqual(output, f"ERROR: No {self.directory}/export.\n")
    self.assertEqual(process.returncode, 1)
    self.assertCountEqual(
      self.left(), ["tmp", ".export.unfinished", foreign.name]
    )
    self.assertTrue((foreign / "notes.txt").exists())

  def test_a_living_one_keeps_its_files(self):
    process = self.start("_wait_for_ever")
    process.stdout.readline()
    before = self.left()
    self.start("_fail").communicate()
    self.assertCountEqual(self.left(), before)
    process.terminate()
    process.communicate()

  def test_full_memory_is_one_line_and_leaves_nothing(self):
    process = self.start("_lack_memory")
    self.assertEqual(
      process.communicate()[0],
      "ERROR: Memory is full, or limited too low (ulimit -v): MemoryError:\n",
    )
    self.assertEqual(process.returncode, 1)
    self.assertEqual(self.left(), ["tmp"])

  def test_lost_temporary_files_are_one_line(self):
    process = self.start("_lose_files")
    self.assertRegex(
      process.communicate()[0],
      r"\AERROR: \S+, for temporary files, was removed while .* stays\.\n\Z",
    )
    self.assertEqual(process.returncode, 1)
    self.assertEqual(self.left(), ["tmp"])

  def test_no_file_gets_the_number_of_a_closed_stream(self):
    process = self.start("_print", "sh", "-c", 'exec "$@" >&- 2>&-', "sh")
    self.assertEqual(process.communicate()[0], "")
    self.assertEqual(process.returncode, 0)
    self.assertEqual((self.directory / "export").read_text(), "whole")

  def test_prints_all_characters_in_any_locale(self):
    process = self.start("_print", "env", "PYTHONIOENCODING=ascii")
    self.assertEqual(process.communicate()[0], "printed \\u2713\nprinted by C")

  def test_full_standard_output_is_one_line(self):
    process = self.start("_print", "sh", "-c", 'exec "$@" >/dev/full', "sh")
    self.assertEqual(
      process.communicate()[0],
      "ERROR: The standard output: No space left on device.\n",
    )
    self.assertEqual(process.returncode, 1)

  def test_no_traceback_of_what_ends_the_imports(self):
    waits = "import distribution.errors, time; print(1, flush=True); "
    for then, output, status in (
      ("time.sleep(100)", "", -signal.SIGINT),
      (
        "raise ImportError('x.so: failed to map segment')",
        "ERROR: Memory is full, or limited too low (ulimit -v): ImportError:"
        " x.so: failed to map segment\n",
        1,
      ),
      (  # OpenBLAS would wait for memory for ever.
        "import resource; resource.setrlimit(resource.RLIMIT_AS, [2**27] * 2);"
        " import numpy",
        "ERROR: Memory is full, or limited too low (ulimit -v): Cannot allocate"
        " memory\n",
        1,
      ),
    ):
      process = subprocess.Popen(
        [sys.executable, "-c", waits + then],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
      )
      self.assertEqual(process.stdout.readline(), "1\n")
      if status < 0:
        process.send_signal(signal.SIGINT)
      self.assertEqual(process.communicate()[0], output)
      self.assertEqual(process.returncode, status)


if __name__ == "__main__":
  if sys.argv[1:2] and sys.argv[1] in (
    *("_wait_for_ever", "_fail", "_print", "_lack_memory", "_lose_files"),
  ):
    function, argument = globals()[sys.argv[1]], sys.argv[2]
    del sys.argv[1:]
    programs.run(lambda: function(argument))
  absltest.main()
