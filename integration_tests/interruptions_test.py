"""Ends a program at random moments, and looks at what it leaves.

The moments are random in each phase of the program, as its output and files
show them. Every row of the table that this test prints is a phase.
"""

import collections
import ctypes
import itertools
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

from absl import flags
from absl.testing import absltest
import tensorflow as tf
import tensorflow_text  # noqa: F401 - registers ops

_COMMAND = flags.DEFINE_string(
  "command",
  None,
  "The program and its flags. {dir} is an empty directory, in which it writes"
  " `export`, and the state of a training to `state`.",
  required=True,
)
_MOMENTS = flags.DEFINE_integer("moments", 40, "How many moments to try.")
_ACTIONS = flags.DEFINE_list(
  "actions",
  ["SIGKILL", "SIGTERM", "SIGINT", "disk", "memory"],
  "What happens: a signal, a full disk, or a limit of memory.",
)
_TRIED = flags.DEFINE_list(
  "phases", [], "Which phases to try. Default: all that the program has."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")

# By phase, a text in the output or a file that is there once it has begun.
_PHASES = {
  "start": "",
  "training": r"Training on",
  "training on": r"Epoch ([2-9]|\d\d)/",
  "saving": ".export.unfinished/export/**/variables",
  "verifying": r"Verifying",
  "renaming": ".export.unfinished/export/**/verification.json",
}
_TRAINING = ("start", "training", "training on")
_DISK = 2**28
_LONGEST = 300  # Seconds from an interruption to the end.
_CLONE_NEWNS, _MS_REC_PRIVATE = 0x20000, 0x44000
_ABORTED = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)


def _mount(path: pathlib.Path) -> bool:
  """Mounts a tmpfs that only this process sees, if that is allowed."""
  libc = ctypes.CDLL(None, use_errno=True)
  data = f"size={_DISK}".encode()
  return not (
    libc.unshare(_CLONE_NEWNS)
    or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
    or libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, data)
  )


def _processes(directory: pathlib.Path) -> list[int]:
  """Returns the processes of a run in a directory."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
      if f"TMPDIR={directory}/tmp".encode() in path.read_bytes():
        found.append(int(path.parent.name))
    except OSError:
      pass
  return found


class _Run:
  """A run of the program, in a directory."""

  def __init__(self, directory: pathlib.Path, name: str = "output"):
    self.directory = directory
    self.output_path = directory.parent / name
    self.started, self.began = time.monotonic(), time.time()
    # This run may end before it removes what a killed one has left.
    self.found = set(os.listdir(directory)) | set(os.listdir(directory / "tmp"))
    command = _COMMAND.value.format(dir=directory)
    with open(self.output_path, "wb") as f:
      self.process = subprocess.Popen(
        shlex.split(command),
        stdout=f,
        stderr=f,
        env={
          **os.environ,
          "PYTHONUNBUFFERED": "1",
          "TMPDIR": str(directory / "tmp"),
        },
      )

  @property
  def output(self) -> str:
    return self.output_path.read_text(errors="replace")

  def has_begun(self, phase: str) -> bool:
    sign = _PHASES[phase]
    if "**" in sign:
      try:
        # A run that was killed has left older ones.
        return any(
          path.stat().st_mtime > self.began
          for path in self.directory.glob(sign)
        )
      except FileNotFoundError:  # A directory has just been removed.
        return False
    return re.search(sign, self.output) is not None

  def wait_for(self, phase: str) -> None:
    while not self.has_begun(phase) and self.process.poll() is None:
      time.sleep(0.0005)

  def wait(self) -> int:
    """Waits for the end; returns the exit status."""
    try:
      status = self.process.wait(_LONGEST)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      raise AssertionError("It does not end.") from None
    size = self.output_path.stat().st_size
    end = time.monotonic() + 10
    while _processes(self.directory) and time.monotonic() < end:
      time.sleep(0.01)
    if left := _processes(self.directory):
      raise AssertionError(f"Processes {left} outlived the program.")
    if self.output_path.stat().st_size != size:
      raise AssertionError(f"A child printed at last: {self.output[-300:]}")
    return status


class InterruptionsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    base = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    self.directory = base / "disk"
    self.directory.mkdir()
    self.actions = _ACTIONS.value
    if "disk" in self.actions and not _mount(self.directory):
      self.actions.remove("disk")
    (self.directory / "tmp").mkdir()
    self.export = self.directory / "export"
    self.loaded = None

  def start(self) -> _Run:
    """Starts the program, without an earlier export if it takes none."""
    if "--overwrite" not in _COMMAND.value:
      shutil.rmtree(self.export, ignore_errors=True)
      self.loaded = None
    return _Run(self.directory)

  def left(self) -> list[str]:
    """Returns names of what a run has left, besides its export and state."""
    names = set(os.listdir(self.directory)) - {"export", "state", "tmp"}
    return sorted(names) + os.listdir(self.directory / "tmp")

  def check_export(self) -> None:
    """Checks that the export, if there is one, is whole."""
    paths = sorted(self.export.rglob("saved_model.pb"))
    if not self.export.exists():
      self.assertIsNone(self.loaded, "The earlier export is lost.")
      return
    times = [path.stat().st_mtime_ns for path in paths]
    if times == self.loaded:
      return
    self.assertNotEmpty(paths)
    for path in paths:
      tf.saved_model.load(str(path.parent))
      self.assertNotEmpty(list(path.parent.glob("variables/*.index")))
    self.loaded = times

  def complete(self) -> tuple[_Run, dict[str, float]]:
    """Runs the program to its end; returns when each phase has begun."""
    run = self.start()
    began = {}
    while run.process.poll() is None:
      for phase in _PHASES.keys() - began.keys():
        if run.has_begun(phase):
          began[phase] = time.monotonic() - run.started
      time.sleep(0.005)
    self.assertEqual(run.wait(), 0, run.output)
    self.assertEmpty(self.left())
    self.check_export()
    shutil.rmtree(self.directory / "state", ignore_errors=True)
    began["end"] = time.monotonic() - run.started
    return run, dict(sorted(began.items(), key=lambda item: item[1]))

  def act(self, run: _Run, action: str, moment: random.Random) -> None:
    if action == "disk":
      with open(self.directory / "filler", "wb") as f:
        try:
          while f.write(bytes(2**16)):
            f.flush()
        except OSError:
          pass
    elif action == "memory":
      for process in _processes(self.directory):
        try:
          statm = pathlib.Path(f"/proc/{process}/statm").read_text()
          size = int(statm.split()[0]) * resource.getpagesize()
          size += moment.randrange(2**26)
          resource.prlimit(process, resource.RLIMIT_AS, (size, size))
        except (OSError, IndexError, ValueError):
          pass
    else:
      run.process.send_signal(signal.Signals[action])

  def check_end(self, run: _Run, action: str) -> str:
    """Checks how a run ended; returns it in a word."""
    status, told = run.wait(), run.output[-2000:]
    (self.directory / "filler").unlink(missing_ok=True)
    self.check_export()
    if action != "SIGKILL" and status not in _ABORTED:
      self.assertEmpty(set(self.left()) - run.found, told)
    if status == 0:
      return "completed"
    if action == "memory" and status in _ABORTED:
      return "aborted"
    self.assertNotIn("Traceback", told)
    if action in ("disk", "memory"):
      self.assertEqual(status, 1, told)
      self.assertStartsWith(told.splitlines()[-1], "ERROR: ")
      return "one line"
    self.assertEqual(status, -signal.Signals[action], told)
    return "signal"

  def test_leaves_nothing(self):
    moment = random.Random(_SEED.value)
    # A single moment needs no measurement of the phases before it.
    _, began = self.complete() if _MOMENTS.value > 1 else (None, {})
    print({phase: round(when, 1) for phase, when in began.items()}, flush=True)
    lengths = {
      phase: began[after] - began[phase]
      for phase, after in itertools.pairwise(began)
    }
    # Renaming lasts so short a time that it may not be seen.
    phases = [
      phase
      for phase in _PHASES
      if phase in (_TRIED.value or [*lengths, "renaming"])
    ]
    table = collections.Counter()
    failures = []
    for i in range(_MOMENTS.value):
      # The last one leaves a state to go on from.
      phase = phases[i % len(phases)]
      action = self.actions[sum(divmod(i, len(phases))) % len(self.actions)]
      if i == _MOMENTS.value - 1 and "training on" in phases:
        phase = "training on"
      run = self.start()
      run.wait_for(phase)
      delay = moment.uniform(0, lengths.get(phase, 0.01))
      if i < _MOMENTS.value - 1:
        time.sleep(delay)
      self.act(run, action, moment)
      try:
        ended = self.check_end(run, action)
      except (AssertionError, tf.errors.OpError, OSError) as e:
        ended = "FAILED"
        failures.append(f"{phase} + {delay:.2f} s, {action}: {e}")
        print(failures[-1])
      if phase not in _TRAINING:
        shutil.rmtree(self.directory / "state", ignore_errors=True)
      table[phase, action, ended] += 1
      print(f"{i}: {phase} + {delay:.2f} s, {action}: {ended}", flush=True)
    for (phase, action, ended), count in sorted(table.items()):
      print(f"{phase:12} {action:8} {ended:10} {count}")
    if failures:
      self.fail("\n\n".join(failures))
    run, _ = self.complete()
    if "training on" in phases:
      self.assertNotIn("Epoch 1/", run.output)

  def test_two_programs_for_one_destination(self):
    if _MOMENTS.value < 10:
      self.skipTest("It is long.")
    runs = [_Run(self.directory, name) for name in ("first", "second")]
    statuses = [run.process.wait(600) for run in runs]
    self.assertCountEqual(statuses, [0, 1])
    loser = runs[statuses.index(1)]
    self.assertRegex(
      loser.output.splitlines()[-1],
      "^ERROR: Another program is writing .*export.unfinished. Wait for its",
    )
    self.assertEmpty(self.left())
    self.check_export()


if __name__ == "__main__":
  absltest.main()
