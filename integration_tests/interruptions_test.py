"""Interrupts a program at random moments, and checks what it leaves.

The output and the files of the program show which phase it is in. The moments
within a phase are random. They are measured in CPU time, because a busy machine
stretches the phases. The test prints a table of phases, actions and ends.

Importing TensorFlow would take most of the time. After a first run this process
therefore imports the packages that the run imported, and most programs are
forks of it. Programs that are interrupted at their start are not.
"""

import atexit
import collections
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import ctypes
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
from absl.testing import absltest

_COMMAND = flags.DEFINE_string(
  "command",
  None,
  "The program and its flags. {dir} is an empty directory, in which it writes"
  " `export`, a directory or a file, and the state of a training to `state`."
  " {texts} is a file of 400 documents, with an empty line after each.",
  required=True,
)
_RIVAL = flags.DEFINE_string(
  "rival", None, "Another program that writes `export`. Default: --command."
)
_MOMENTS = flags.DEFINE_integer(
  "moments", 40, "How many moments to try.", lower_bound=1
)
_RIVALRIES = flags.DEFINE_integer(
  "rivalries", 5, "How often to run two programs for one destination."
)
_ACTIONS = flags.DEFINE_list(
  "actions",
  ["SIGKILL", "SIGTERM", "SIGINT", "disk", "memory"],
  "What happens: a signal, a full disk, or a limit of memory.",
)
_TRIED = flags.DEFINE_list(
  "phases", [], "Which phases to try. Default: all that the program has."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")

# The sign that a phase has begun: a text in the output, or a file.
_PHASES = {
  "start": "",
  "training": r"Training on|Fine-tuning on",
  "training on": r"Epoch ([2-9]|\d\d)/",
  "saving": ".export.unfinished/export/**/[!.]*.*",
  "verifying": r"Verifying",
  "renaming": r"✓ signatures",
}
_TRAINING = ("training", "training on")
_DISK = 2**29
_LONGEST = 300  # Seconds from an interruption to the end.
_CLONE_NEWNS, _MS_REC_PRIVATE = 0x20000, 0x44000
# The dynamic linker exits with 127 if it lacks memory.
_ABORTED = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, 127)
# Python's message, with exit status 1, if it lacks memory to start.
_NO_PYTHON = "Fatal Python error: init"
_TICK = os.sysconf("SC_CLK_TCK")
_LOST = (
  r"^ERROR: (Another program is writing .*export.unfinished\. Wait for its"
  r"|Another program trains with the state in \S+state\. Wait for its"
  r"|\S+export (exists|has|is not empty))"
)


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
  """Returns the ids of the processes of a run in a directory."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):
      if f"TMPDIR={directory}/tmp".encode() in path.read_bytes():
        found.append(int(path.parent.name))
  return found


def _cpu(process: int) -> float:
  """Returns the CPU seconds of a process and its children."""
  seconds = 0.0
  with contextlib.suppress(OSError):
    folder = pathlib.Path(f"/proc/{process}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    seconds += sum(map(int, fields[11:15])) / _TICK
    for path in folder.glob("task/*/children"):
      seconds += sum(_cpu(int(child)) for child in path.read_text().split())
  return seconds


def _digests(path: pathlib.Path) -> dict[str, tuple[int, str]]:
  """Returns the size and the SHA-256 of each file in a directory."""
  found = [path] if path.is_file() else sorted(path.rglob("*"))
  return {
    f.relative_to(path).as_posix(): (
      f.stat().st_size,
      hashlib.sha256(f.read_bytes()).hexdigest(),
    )
    for f in found
    if f.is_file()
  }


def _has_epochs(state: pathlib.Path) -> bool:
  """Returns whether a directory has the state after at least one epoch."""
  listed = [p.read_text() for p in state.glob("**/checkpoint")]
  if listed:
    return any(re.search(r'^model_\w+: ".*-0*[1-9]', x) for x in listed)
  record = state / "training.json"
  return record.exists() and bool(
    json.loads(record.read_text()).get("logs of the epochs")
  )


class _Fork:
  """A program that runs in a fork of this process, like a `Popen`."""

  def __init__(
    self, command: Sequence[str], output: int, environment: Mapping[str, str]
  ):
    sys.stdout.flush()
    self.returncode: int | None = None
    self.pid = os.fork()
    if self.pid:
      return
    atexit._clear()  # Handlers of this process, such as matplotlib's.
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
      os.environ.update(environment)
      tempfile.tempdir = None
      for name in list(flags.FLAGS):
        if flags.FLAGS.find_module_defining_flag(name) == sys.argv[0]:
          delattr(flags.FLAGS, name)
      flags.FLAGS.unparse_flags()
      sys.argv = list(command)
      sys.stdout.reconfigure(line_buffering=True)
      runpy.run_path(sys.argv[0], run_name="__main__")
      status = 0
    except SystemExit as e:
      if isinstance(e.code, str):
        print(e.code, file=sys.stderr)
      status = 1 if isinstance(e.code, str) else e.code or 0
    except BaseException:
      sys.excepthook(*sys.exc_info())
    finally:
      atexit._run_exitfuncs()
      os._exit(status)

  def poll(self) -> int | None:
    if self.returncode is None and os.waitid(
      os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
      self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
    return self.returncode

  def wait(self, timeout: float = _LONGEST) -> int:
    end = time.monotonic() + timeout
    while self.poll() is None:
      if time.monotonic() > end:
        raise subprocess.TimeoutExpired("", timeout)
      time.sleep(0.01)
    return self.returncode

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


def _import(names: Iterable[str]) -> None:
  """Imports packages from outside this repository."""
  root = pathlib.Path(__file__).parents[1]
  for name in names:
    if not (root / name.partition(".")[0]).exists():
      with contextlib.suppress(Exception):
        importlib.import_module(name)


class _Run:
  """A run of the program, in a directory."""

  def __init__(
    self,
    directory: pathlib.Path,
    name: str = "output",
    command: str | None = None,
    *,
    forked: bool = False,
    **variables: str,
  ):
    self.directory = directory
    self.output_path = directory.parent / name
    self.began = time.time()
    self.goes_on = _has_epochs(directory / "state")
    # This run may end before it removes the leftovers of a killed one.
    self.found = set(os.listdir(directory)) | set(os.listdir(directory / "tmp"))
    command = shlex.split(
      (command or _COMMAND.value).format(
        dir=directory, texts=directory.parent / "texts.txt"
      )
    )
    variables |= {"PYTHONUNBUFFERED": "1", "TMPDIR": str(directory / "tmp")}
    with open(self.output_path, "wb") as f:
      if forked:
        # The source of a program is beside Bazel's launcher.
        command[0] = f"{command[0].removesuffix('.py')}.py"
        self.process = _Fork(command, f.fileno(), variables)
      else:
        self.process = subprocess.Popen(
          [*[sys.executable] * command[0].endswith(".py"), *command],
          stdout=f,
          stderr=f,
          env={**os.environ, **variables},
        )

  @property
  def output(self) -> str:
    return self.output_path.read_text(errors="replace")

  def has_begun(self, phase: str) -> bool:
    sign = _PHASES[phase]
    if "**" in sign:
      try:
        # Older files are leftovers of a killed run.
        return any(
          path.stat().st_mtime > self.began
          for path in self.directory.glob(sign)
        )
      except FileNotFoundError:  # A directory has just been removed.
        return False
    return re.search(sign, self.output) is not None

  def phase(self) -> str:
    if self.process.poll() is not None:
      return "end"
    return [phase for phase in _PHASES if self.has_begun(phase)][-1]

  def wait_for(self, phase: str, delay: float) -> None:
    """Waits until a phase has begun and used CPU time, or the program ends."""
    pause = 0.005 if phase == "renaming" else 0.02
    while not self.has_begun(phase) and self.process.poll() is None:
      time.sleep(pause)
    until = _cpu(self.process.pid) + delay
    while _cpu(self.process.pid) < until and self.process.poll() is None:
      time.sleep(pause)

  def wait(self) -> int:
    """Waits for the end; returns the exit status."""
    try:
      status = self.process.wait(_LONGEST)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      raise AssertionError(f"It does not end: {self.output[-500:]}") from None
    size = self.output_path.stat().st_size
    end = time.monotonic() + 10
    while _processes(self.directory) and time.monotonic() < end:
      time.sleep(0.01)
    if left := _processes(self.directory):
      raise AssertionError(f"Processes {left} outlived the program.")
    if self.output_path.stat().st_size != size:
      raise AssertionError(f"A child printed at last: {self.output[-300:]}")
    if self.goes_on and "Epoch 1/" in self.output:
      raise AssertionError("It did not go on with the training.")
    return status


class InterruptionsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # Programs that a shell starts in the background ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    base = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    self.addCleanup(shutil.rmtree, base, ignore_errors=True)
    words = random.Random(0)
    (base / "texts.txt").write_text(
      "".join(
        " ".join(words.choices("abcdefghijklmnop", k=60)) + "\n\n"
        for _ in range(400)
      )
    )
    self.directory = base / "disk"
    self.directory.mkdir()
    self.actions = _ACTIONS.value
    if "disk" in self.actions and not _mount(self.directory):
      self.actions.remove("disk")
    (self.directory / "tmp").mkdir()
    self.export = self.directory / "export"
    self.whole: Mapping[str, tuple[int, str]] = {}  # The first export.
    self.earlier: Mapping[str, tuple[int, str]] = {}

  def start(self, **options: Any) -> _Run:
    """Starts the program; removes an export that it would not overwrite."""
    if "--overwrite" not in _COMMAND.value:
      self.remove("export")
      self.earlier = {}
    return _Run(self.directory, **options)

  def remove(self, name: str) -> None:
    path = self.directory / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

  def left(self) -> list[str]:
    """Returns names of a run's leftovers: all but its export and state."""
    names = set(os.listdir(self.directory)) - {"export", "state", "tmp"}
    return sorted(names) + os.listdir(self.directory / "tmp")

  def check_export(self) -> None:
    """Checks that the export is the earlier one, or a complete new one.

    The export is not loaded: `verification.json` has the digests of the files
    that the exporter's verification has loaded.
    """
    if not self.export.exists():
      self.assertEmpty(self.earlier, "The earlier export is lost.")
      return
    now = _digests(self.export)
    if now == self.earlier:
      return
    self.whole = self.whole or now
    reports = [x for x in now if x.endswith("verification.json")]
    self.assertEqual(
      [x for x in now if x not in reports],
      [x for x in self.whole if not x.endswith("verification.json")],
    )
    for name in reports:
      folder = name.removesuffix("assets.extra/verification.json")
      report = json.loads((self.export / name).read_text())
      for file, sha256 in report["files"].items():
        self.assertEqual(now[f"{folder}{file}"][1], sha256, file)
    verified = "verification.json" in " ".join(self.whole)
    for name, (size, _) in now.items() if not verified else ():
      # The sizes of the others depend on the decimals of training metrics.
      if not name.endswith((".json", ".md", ".html", "fingerprint.pb")):
        self.assertEqual(size, self.whole[name][0], name)
    self.earlier = now

  def check_record(self, run: _Run) -> None:
    """Checks that the record of a training has all its epochs."""
    epochs = re.findall(r"Epoch \d+/(\d+)", run.output)
    for path in self.export.rglob("training.json") if epochs else ():
      record = json.loads(path.read_text())["epochs"]
      self.assertLen(record, int(epochs[-1]), run.goes_on)

  def complete(self, **options: Any) -> tuple[_Run, dict[str, float]]:
    """Runs the program to its end; returns the CPU time before each phase."""
    run = self.start(**options)
    began = {}
    used = 0.0
    while run.process.poll() is None:
      used = max(used, _cpu(run.process.pid))
      for phase in _PHASES.keys() - began.keys():
        if run.has_begun(phase):
          began[phase] = used
      time.sleep(0.02)
    self.assertEqual(run.wait(), 0, run.output)
    self.assertEmpty(self.left())
    self.check_export()
    self.check_record(run)
    began["end"] = used
    return run, dict(sorted(began.items(), key=lambda item: item[1]))

  def act(self, run: _Run, action: str, moment: random.Random) -> None:
    if action == "disk":
      with open(self.directory / "filler", "wb") as f:
        size = 2**24
        while size:
          try:
            os.posix_fallocate(f.fileno(), f.seek(0, os.SEEK_END), size)
          except OSError:
            size //= 2
    elif action == "memory":
      for process in {run.process.pid, *_processes(self.directory)}:
        with contextlib.suppress(OSError, IndexError, ValueError):
          statm = pathlib.Path(f"/proc/{process}/statm").read_text()
          size = int(statm.split()[0]) * resource.getpagesize()
          size += moment.randrange(2**26)
          resource.prlimit(process, resource.RLIMIT_AS, (size, size))
    else:
      run.process.send_signal(signal.Signals[action])

  def check_end(self, run: _Run, action: str, during: str) -> str:
    """Checks how a run ended; returns a description."""
    status, told = run.wait(), run.output[-2000:]
    (self.directory / "filler").unlink(missing_ok=True)
    earlier = self.earlier
    self.check_export()
    if status and during in ("start", *_TRAINING):
      self.assertEqual(self.earlier, earlier, "An export appears too early.")
      self.assertEqual(self.export.exists(), bool(earlier))
    if action != "SIGKILL" and status not in _ABORTED:
      self.assertEmpty(set(self.left()) - run.found, told)
    if status == 0:
      self.check_record(run)
      return "completed"
    is_aborted = status in _ABORTED or told.startswith(_NO_PYTHON)
    if action == "memory" and is_aborted:
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
    began = {}
    # A single moment needs no measurement of the phases before it.
    if _MOMENTS.value > 1:
      run, began = self.complete(PYTHONPROFILEIMPORTTIME="1")
      _import(re.findall(r"^import time:.*\| +(\S+)$", run.output, re.M))
    print({phase: round(when, 1) for phase, when in began.items()}, flush=True)
    lengths = {
      phase: began[after] - began[phase]
      for phase, after in itertools.pairwise(began)
    }
    # Renaming is so short that a run may not show it.
    last = {"renaming"} if "verifying" in began else set()
    tried = _TRIED.value or lengths.keys() | last
    phases = [phase for phase in _PHASES if phase in tried]
    table = collections.Counter()
    failures = []
    for i in range(_MOMENTS.value):
      # The last run leaves a state to resume from.
      phase = phases[i % len(phases)]
      action = self.actions[sum(divmod(i, len(phases))) % len(self.actions)]
      if i == _MOMENTS.value - 1 and "training on" in phases:
        phase, action = "training on", self.actions[0]
      # An interrupted training resumes while later phases are tried.
      if i % len(phases) == 0 or phase == "training on":
        self.remove("state")
      command = _COMMAND.value
      if phase in _TRAINING and i % 2 and "verification" in command:
        command += " --verification=off"  # Saves half of the time.
      is_forked = phase != "start" and _MOMENTS.value > 1
      run = self.start(command=command, forked=is_forked)
      # A signal during Python's own imports would print a traceback.
      least = 0.1 if phase == "start" else 0
      delay = moment.uniform(least, max(least, lengths.get(phase, 0)))
      run.wait_for(phase, delay if i < _MOMENTS.value - 1 else 0)
      if phase == "renaming":  # CPU time is too coarse.
        time.sleep(moment.uniform(0, 0.3))
      during = run.phase()
      self.act(run, action, moment)
      try:
        ended = self.check_end(run, action, during)
      except (AssertionError, OSError) as e:
        ended = "FAILED"
        print(run.output[-5000:])
        failures.append(f"{during} + {delay:.2f} s, {action}: {e}")
        print(failures[-1])
      table[during, action, ended] += 1
      print(f"{i}: {during} + {delay:.2f} s, {action}: {ended}", flush=True)
    for (phase, action, ended), count in sorted(table.items()):
      print(f"{phase:12} {action:8} {ended:10} {count}")
    if failures:
      self.fail("\n\n".join(failures))
    run, _ = self.complete(forked=_MOMENTS.value > 1)
    if "training on" in phases:
      self.assertNotIn("Epoch 1/", run.output)

  def test_two_programs_for_one_destination(self):
    if _MOMENTS.value == 1 or not _RIVALRIES.value:
      self.skipTest("It is long.")
    moment = random.Random(_SEED.value)
    _, began = self.complete()
    used = began["end"]
    table = collections.Counter()
    for _ in range(_RIVALRIES.value):
      self.remove("state")
      first = self.start()
      if moment.random() < 0.8:
        first.wait_for("start", moment.uniform(0, used))
      second = _Run(self.directory, "second", _RIVAL.value)
      statuses = [run.process.wait(600) for run in (first, second)]
      self.assertIn(0, statuses)
      for run, status in zip((first, second), statuses, strict=True):
        if status:
          self.assertEqual(status, 1, run.output)
          self.assertRegex(run.output.splitlines()[-1], _LOST)
      self.assertEmpty(self.left())
      if _RIVAL.value:
        self.whole = {}
      self.check_export()
      table[tuple(statuses)] += 1
    print("Exit statuses of both:", dict(table))


if __name__ == "__main__":
  absltest.main()
