"""Runs processes, alone or in turn, and measures their time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import pathlib
import shlex
import subprocess
import threading
import time
from typing import Any

import psutil

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
  """Runs a command to its end.

  Args:
    command: The program and its arguments.
    log: File for its output.
    status: The expected exit status.

  Returns:
    `cpu_s`, user and system time, including that of descendants that it waited
    for; `wall_s`; `memory_mib`, the peak of the largest process; and
    `memory_all_mib`, the sampled peak of all processes together.

  Raises:
    ProcessError: The command exited with another status.
  """
  start = time.perf_counter()
  with open(log, "wb") as output:
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      env={**os.environ, **_ENVIRONMENT},
    )
  with _sampled_memory(process.pid) as peak:
    try:
      _, wait_status, usage = os.wait4(process.pid, 0)
    except BaseException:
      process.kill()
      raise
    wall = time.perf_counter() - start
  process.returncode = os.waitstatus_to_exitcode(wait_status)
  if process.returncode != status:
    raise ProcessError(_failure(command, process.returncode, log))
  return {
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "wall_s": wall,
    "memory_mib": usage.ru_maxrss * 1024 / _MIB,
    "memory_all_mib": peak[0] / _MIB,
  }


@contextlib.contextmanager
def _sampled_memory(pid: int) -> Any:
  """Yields a list of one number, the peak of a process tree in bytes.

  Memory that processes share, such as libraries, counts once.
  """
  peak = [0]
  ended = threading.Event()

  def sample() -> None:
    with contextlib.suppress(psutil.Error):
      root = psutil.Process(pid)
      while not ended.wait(_SAMPLING_SECONDS):
        sizes = []
        for process in [root, *root.children(recursive=True)]:
          with contextlib.suppress(psutil.Error):
            sizes.append(process.memory_info())
        if sizes:
          peak[0] = max(
            peak[0],
            sum(s.rss - s.shared for s in sizes) + max(s.shared for s in sizes),
          )

  thread = threading.Thread(target=sample, daemon=True)
  thread.start()
  try:
    yield peak
  finally:
    ended.set()
    thread.join()


def take_turns(
  commands: Mapping[str, Sequence[str]],
  turns: Mapping[str, int],
  log_dir: pathlib.Path,
) -> dict[str, list[dict[str, float]]]:
  """Runs processes that take turns, so that the machine's load is the same.

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
  with contextlib.ExitStack() as stack:
    processes = {}
    for side, command in commands.items():
      with open(log_dir / f"{side}.log", "wb") as log:
        process = subprocess.Popen(
          command,
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=log,
          env={**os.environ, **_ENVIRONMENT},
        )
      stack.enter_context(process)  # Closes its pipes, and waits.
      stack.callback(process.kill)
      processes[side] = process
      # Start the next process only when this one is ready.
      _next_line(process, command, log_dir / f"{side}.log")
    for turn in range(max(turns.values())):
      for side, process in processes.items():
        if turn >= turns[side]:
          continue
        with contextlib.suppress(BrokenPipeError):
          process.stdin.write(b"\n")
          process.stdin.flush()
        line = _next_line(process, commands[side], log_dir / f"{side}.log")
        printed[side].append(json.loads(line))
  return printed


def _next_line(
  process: subprocess.Popen, command: Sequence[str], log: pathlib.Path
) -> bytes:
  line = process.stdout.readline()
  if not line:
    raise ProcessError(_failure(command, process.wait(), log))
  return line


def _failure(command: Sequence[str], status: int, log: pathlib.Path) -> str:
  lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
  return f"{shlex.join(command)} ended with {status}, and said: {lines[-1]}"
