"""Starts and ends programs."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import functools
import gc
import io
import os
import resource
import signal
import sys
from typing import Any

from absl import app
from absl import flags

from distribution import errors
from distribution import scratch
from distribution import usage

flags.disclaim_key_flags()  # --help lists them as the program's.

# Bytes of address space, and threads. With less, TensorFlow aborts.
_LEAST_MEMORY = 3 * 2**30
_LEAST_THREADS = 32
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGXCPU)

_at_success: list[Callable[[], Any]] = []


def at_success(call: Callable[[], Any]) -> None:
  """Registers a function that cleans up after the program has succeeded."""
  _at_success.append(call)


def succeed() -> None:
  """Calls the functions of `at_success`, the last one first."""
  while _at_success:
    _at_success.pop()()


def run(main: Callable[..., Any], *, known_only: bool = False) -> None:
  """Parses the flags, calls `main`, reports errors, and cleans up.

  An InputError becomes one line on standard error and exit status 1; a bug
  keeps its traceback. After a signal, the process ends by that signal.

  Args:
    main: The program, a function of the main module.
    known_only: Whether to accept other flags, and to pass the name of the
      program and all arguments that are not its flags to `main`.
  """

  def guarded(arguments: list[str]) -> None:
    errors.check_flags(arguments[: 1 if known_only else None])
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < _LEAST_MEMORY:
      sys.exit(
        f"ERROR: Memory is limited to {limit / 2**30:.3g} GiB (ulimit -v)."
        f" TensorFlow needs {_LEAST_MEMORY / 2**30:.3g} GiB."
      )
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if 0 <= limit < _LEAST_THREADS and os.geteuid():  # Root has no limit.
      sys.exit(
        f"ERROR: Processes and threads are limited to {limit} (ulimit -u)."
        f" TensorFlow needs {_LEAST_THREADS}."
      )
    for number in _SIGNALS:
      if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP.
        signal.signal(number, _end)
    try:
      with errors.reported(), scratch.of_program():
        try:
          main(*[arguments] * known_only)
          succeed()
        finally:
          _flush()
    finally:
      # Saves about a second at exit: Python does not free the models.
      gc.freeze()

  _open_streams()
  errors.define_flags()
  parse = functools.partial(usage.parse, known_only=known_only)
  app.run(guarded, flags_parser=parse)


def _flush() -> None:
  """Writes the buffer of the standard output.

  Raises:
    InputError: The disk is full, or nothing reads the pipe. It replaces an
      error of the program, which may have the same cause but name another file.
  """
  try:
    sys.stdout.flush()
  except OSError as e:
    # Python flushes again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise errors.InputError(f"The standard output: {e.strerror}.") from e


def _open_streams() -> None:
  """Opens closed standard streams, and lets them print all characters.

  Otherwise the next file that the program opens would get the number of a
  closed stream, and with it all that TensorFlow prints.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
      setattr(sys, name, os.fdopen(number, "w" if number else "r"))
  escape = "backslashreplace"  # Where the locale is not UTF-8.
  if isinstance(sys.stdout, io.TextIOWrapper):  # A test may replace it.
    sys.stdout.reconfigure(errors=escape)
    os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:{escape}"


def _end(number: int, frame: Any) -> None:
  """Cleans up, and ends this process by a signal.

  It raises no exception because Python would drop one that is raised in a
  callback from C++ or in a finalizer.
  """
  del frame
  for each in _SIGNALS:
    signal.signal(each, signal.SIG_DFL)
  scratch.remove_all()
  with contextlib.suppress(Exception):
    sys.stdout.flush()  # The signal may have interrupted a write.
  with contextlib.suppress(OSError):
    name = signal.Signals(number).name
    os.write(2, f"ERROR: Interrupted by {name}.\n".encode())
  os.kill(os.getpid(), number)
  os._exit(128 + number)  # The first process of a container survives `kill`.
