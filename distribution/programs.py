"""How a program starts and ends."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import gc
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

# Bytes of address space. With less, TensorFlow ends the process.
_LEAST_MEMORY = 3 * 2**30
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# Python's handler would print a traceback while the program imports modules.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

_at_success: list[Callable[[], Any]] = []


def at_success(call: Callable[[], Any]) -> None:
  """Calls a function once the program has done its work, to clean up."""
  _at_success.append(call)


def succeed() -> None:
  """Calls the functions of `at_success`, the last one first."""
  while _at_success:
    _at_success.pop()()


def run(main: Callable[[], Any]) -> None:
  """Parses the flags, calls `main`, reports errors, and leaves nothing behind.

  An InputError becomes one line on standard error and exit status 1; a bug
  keeps its traceback. After a signal the exit status tells which.

  Args:
    main: The program, in the module that is run.
  """

  def guarded(arguments: list[str]) -> None:
    errors.check_flags(arguments)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < _LEAST_MEMORY:
      sys.exit(
        f"ERROR: Memory is limited to {limit / 2**30:.3g} GiB (ulimit -v)."
        f" TensorFlow needs {_LEAST_MEMORY / 2**30:.3g} GiB."
      )
    for number in _SIGNALS:
      if signal.getsignal(number) != signal.SIG_IGN:  # As nohup has it.
        signal.signal(number, _end)
    try:
      with errors.reported(), scratch.of_program():
        main()
        succeed()
        sys.stdout.flush()
    finally:
      # Saves about a second at exit, when Python would take models apart.
      gc.freeze()

  errors.define_flags()
  app.run(guarded, flags_parser=usage.parse)


def _end(number: int, frame: Any) -> None:
  """Ends this process by a signal.

  It raises nothing: Python drops what is raised in a callback of C++ or in a
  finalizer.
  """
  del frame
  for each in _SIGNALS:
    signal.signal(each, signal.SIG_DFL)
  scratch.remove_all()
  with contextlib.suppress(Exception):  # It may be just in use.
    sys.stdout.flush()
  with contextlib.suppress(OSError):
    name = signal.Signals(number).name
    os.write(2, f"ERROR: Interrupted by {name}.\n".encode())
  os.kill(os.getpid(), number)
  os._exit(128 + number)  # The first process of a container survives `kill`.
