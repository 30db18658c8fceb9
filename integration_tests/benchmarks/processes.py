"""Runs processes, alone or in turn, and measures their time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import select
import shlex
import subprocess
import time

import psutil

from distribution import scratch

# TensorFlow's settings, the same for both sides: Keras 2, which all exporters
# use; only errors in the log; and GPU memory on demand, as processes share it.
_ENVIRONMENT = {
  "TF_USE_LEGACY_KERAS": "1",
  "TF_CPP_MIN_LOG_LEVEL": "2",
  "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
_SAMPLING_SECONDS = 0.2
_MIB = 2**20


class ProcessError(Exception):
  """A process failed. The message is one line: its command and last output."""


def run(
  command: Sequence[str], log: pathlib.Path, *, status: int = 0
) -> dict[str, float]:
  """Runs a command that exits with `status`; its output goes to the file `log`.

  Returns:
    `cpu_s`, user and system time, including that of descendants that it waited
    for; `wall_s`; `memory_mib`, the peak of the largest process; and
    `memory_all_mib`, the sampled peak of all processes together.

  Raises:
    ProcessError: The command exited with another status.
  """
  start = time.perf_counter()
  peak = 0
  with (
    _started(command, log) as process,
    open(os.pidfd_open(process.pid), "rb") as ended,
  ):
    tree = psutil.Process(process.pid)
    while not select.select([ended], [], [], _SAMPLING_SECONDS)[0]:
      with contextlib.suppress(
        psutil.Error
      ):  # The process has ended meanwhile.
        processes = [tree, *tree.children(recursive=True)]
        sizes = [process.memory_info() for process in processes]
        # Memory that processes share, such as libraries, counts once.
        own = sum(size.rss - size.shared for size in sizes)
        peak = max(peak, own + max(size.shared for size in sizes))
    _, wait_status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(wait_status)
  if process.returncode != status:
    raise _error(process, log)
  return {
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "wall_s": wall,
    "memory_mib": usage.ru_maxrss * 1024 / _MIB,
    "memory_all_mib": peak / _MIB,
  }


def take_turns(
  commands: Mapping[str, Sequence[str]],
  turns: Mapping[str, int],
  log_dir: pathlib.Path,
) -> dict[str, list[dict[str, float]]]:
  """Runs processes that take turns, so that all see the same load.

  Args:
    commands: One command per side. It prints an empty line when it is ready.
      For each line that it reads, it takes a turn and prints a line of JSON.
    turns: Number of turns of each side.
    log_dir: Directory for their standard errors.

  Returns:
    The parsed output of each side.

  Raises:
    ProcessError: A process failed.
  """
  printed: dict[str, list[dict[str, float]]] = {side: [] for side in commands}
  processes = {}
  logs = {side: log_dir / f"{side}.log" for side in commands}
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  with contextlib.ExitStack() as stack:
    for side, command in commands.items():
      process = stack.enter_context(_started(command, logs[side], **pipes))
      processes[side] = process
      # Start the next process only when this one is ready.
      _next_line(process, logs[side])
    for turn in range(max(turns.values())):
      for side, process in processes.items():
        if turn < turns[side]:
          with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
          printed[side].append(json.loads(_next_line(process, logs[side])))
  return printed


@contextlib.contextmanager
def _started(
  command: Sequence[str], log: pathlib.Path, **pipes: int
) -> Iterator[subprocess.Popen]:
  """Starts a process; its output goes to `log`, except for that of `pipes`."""
  with open(log, "wb") as output:
    files = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
    process = subprocess.Popen(
      scratch.tied(command),
      bufsize=1,
      text=True,
      env={**os.environ, **_ENVIRONMENT},
      **{**files, **pipes},
    )
  process.args = command
  with process:
    try:
      yield process
    finally:
      process.kill()


def _next_line(process: subprocess.Popen, log: pathlib.Path) -> str:
  if line := process.stdout.readline():
    return line
  process.wait()
  raise _error(process, log)


def _error(process: subprocess.Popen, log: pathlib.Path) -> ProcessError:
  lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
  return ProcessError(
    f"{shlex.join(process.args)} ended with {process.returncode}, and said:"
    f" {lines[-1]}"
  )
