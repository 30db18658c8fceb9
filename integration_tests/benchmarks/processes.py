"""Runs processes, alone or in turn, and says what they took."""

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

# What TensorFlow reads: Keras 2, which all exporters here are made of; no more
# than errors in the log; and of a GPU no more than is needed, for those that
# take turns share it. The same for both sides.
_ENVIRONMENT = {
  "TF_USE_LEGACY_KERAS": "1",
  "TF_CPP_MIN_LOG_LEVEL": "2",
  "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
_SAMPLING_SECONDS = 0.2
_MIB = 2**20


class ProcessError(Exception):
  """A process failed. One line says which, and what it said last."""


def run(
  command: Sequence[str], log: pathlib.Path, *, status: int = 0
) -> dict[str, float]:
  """Runs a command to its end.

  Args:
    command: The program and its arguments.
    log: Where its output goes.
    status: The exit status that it must have.

  Returns:
    `cpu_s`, of user and system, its descendants' included, if it waited for
    them; `wall_s`; `memory_mib`, the peak of the largest process; and
    `memory_all_mib`, the peak of all of them together, sampled.

  Raises:
    ProcessError: It ended with another status.
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
  """Yields a list of one number, the peak of a tree of processes in bytes.

  What processes share, such as libraries, counts once.
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
  """Runs processes that act one after another, so that all see the same load.

  Args:
    commands: For each side a program that prints an empty line when it is
      ready, acts for each line that it reads, and then prints a line of JSON.
    turns: How many turns each side takes.
    log_dir: Where their errors go.

  Returns:
    What each side printed.

  Raises:
    ProcessError: One of them failed.
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
      # The next one starts when this one waits.
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


def last_json(log: pathlib.Path) -> dict[str, float]:
  """Returns what a process printed last."""
  return json.loads(log.read_text().splitlines()[-1])


def _failure(command: Sequence[str], status: int, log: pathlib.Path) -> str:
  lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
  return f"{shlex.join(command)} ended with {status}, and said: {lines[-1]}"
