"""Temporary directories that the next run removes if a program is killed.

Each has a marker file, which its process locks. The lock ends with the process,
however it ends, and the next run removes directories without a lock.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import uuid

from distribution import errors

_PREFIX = "reusable_models-"  # Prefix of a program's directory in TMPDIR.
_MARKER = "temporary.txt"
_TEXT = b"Files of a running program. If it is killed, the next removes them."
_TRIES = 20  # Attempts: another process may be removing the directory.
_PAUSE = 0.05  # Seconds.

# Locks by directory and process id. The id tells the directories of this
# process from those of its parent, which a fork must not remove.
_mine: dict[tuple[str, int], int] = {}

# PR_SET_PDEATHSIG is 1, SIGKILL is 9. The parent may have ended before the
# call. A terminal sends SIGINT to children too, which leave it to their parent:
# it reports the signal and kills them.
_TIE = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(parent):
  os.execvp(command[0], command)
"""


def tied(command: Sequence[str]) -> list[str]:
  """Wraps a command so that it is killed when its parent process ends."""
  return [sys.executable, "-ISc", _TIE, str(os.getpid()), *command]


@contextlib.contextmanager
def directory(path: str | os.PathLike[str]) -> Iterator[None]:
  """Creates a temporary directory, or takes an abandoned one, until exit.

  Args:
    path: Its path, whose parent exists.

  Raises:
    InputError: Another process uses it, or the path is taken.
  """
  path = str(path)
  for _ in range(_TRIES):
    with errors.of_input(OSError, about=f"Cannot write {path}: "):
      with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
      try:
        if (lock := _lock(path)) is not None:
          break
      except FileNotFoundError:
        pass
      except (MemoryError, OSError):  # The disk or the memory is full.
        with contextlib.suppress(OSError):
          os.rmdir(path)
        raise
    time.sleep(_PAUSE)
  else:
    raise errors.InputError(
      f"Another program is writing {path}. Wait for its end, or choose another"
      " directory."
    )
  _mine[path, os.getpid()] = lock
  try:
    yield
  finally:
    # If memory is full, `remove_all` tries again once some is free.
    if _remove(path, lock):
      del _mine[path, os.getpid()]


def _lock(path: str) -> int | None:
  """Locks and empties a temporary directory.

  Returns:
    The descriptor of the lock; None if another process holds it.

  Raises:
    FileNotFoundError: The directory has just been removed.
    InputError: The path is not a temporary directory of this module.
  """
  marker = os.path.join(path, _MARKER)
  in_way = errors.InputError(
    f"{path} is in the way: no program of this project made it. Remove it, or"
    " choose another directory."
  )
  names = os.listdir(path)
  if os.path.islink(path) or (names and _MARKER not in names):
    raise in_way
  lock = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(lock), os.lstat(marker)):
      raise FileNotFoundError(path)
    text = os.read(lock, 2 * len(_TEXT))
    # The marker is written before any other file.
    if text != _TEXT and (not _TEXT.startswith(text) or len(names) > 1):
      raise in_way
    _empty(path)
    try:
      os.pwrite(lock, _TEXT, 0)
    except (MemoryError, OSError):
      os.remove(marker)
      raise
  except BlockingIOError:
    os.close(lock)
    return None
  except BaseException:
    os.close(lock)
    raise
  return lock


def _empty(path: str) -> bool:
  """Removes all files but the marker; returns whether that succeeded."""
  for name in os.listdir(path):
    if name != _MARKER:
      other = os.path.join(path, name)
      with contextlib.suppress(OSError):
        if os.path.isdir(other) and not os.path.islink(other):
          shutil.rmtree(other)
        else:
          os.remove(other)
  return set(os.listdir(path)) <= {_MARKER}


def _remove(path: str, lock: int) -> bool:
  """Removes a temporary directory, the marker last; returns if it did."""
  with contextlib.suppress(OSError):
    if _empty(path):
      # A signal handler may have removed the marker.
      pathlib.Path(path, _MARKER).unlink(missing_ok=True)
      os.rmdir(path)
      os.close(lock)
      return True
  return False


@contextlib.contextmanager
def of_program() -> Iterator[None]:
  """Puts temporary files of this program and its children in one directory.

  On entry it removes the directories of programs that were killed. On exit it
  kills the children of this process. The directory is removed when the process
  ends, after libraries such as matplotlib have removed their own files.
  """
  with errors.of_input(OSError, about="TMPDIR: "):
    parent = tempfile.gettempdir()
    if problem := errors.unreadable("TMPDIR", parent):
      raise errors.InputError(problem)
    _remove_abandoned(parent)
  path = os.path.join(parent, f"{_PREFIX}{uuid.uuid4().hex}")
  before = os.environ.get("TMPDIR"), tempfile.tempdir
  stack = contextlib.ExitStack()
  stack.enter_context(directory(path))
  atexit.register(_close, stack, path)
  errors.before_sudden_end.append(remove_all)
  # tensorflow-hub keeps its cache in TMPDIR.
  hub = os.path.join(parent, "tfhub_modules")
  os.environ.setdefault("TFHUB_CACHE_DIR", hub)
  os.environ["TMPDIR"] = tempfile.tempdir = path
  try:
    errors.check_scratch()  # AutoGraph only warns that it cannot write there.
    yield
  except Exception as e:
    if os.path.isdir(path):
      raise
    raise errors.InputError(
      f"{path}, for temporary files, was removed while the program ran. Set"
      " TMPDIR to a directory that stays."
    ) from e
  finally:
    os.environ["TMPDIR"], tempfile.tempdir = before[0] or parent, before[1]
    _kill_children()


def _close(stack: contextlib.ExitStack, path: str) -> None:
  if (path, os.getpid()) in _mine:  # Only the parent removes it, not a fork.
    stack.close()


def _remove_abandoned(parent: str) -> None:
  for entry in os.scandir(parent):
    with contextlib.suppress(OSError, errors.InputError):
      if (
        entry.name.startswith(_PREFIX)
        and entry.is_dir(follow_symlinks=False)
        and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        and (lock := _lock(entry.path)) is not None
        and not _remove(entry.path, lock)
      ):
        os.close(lock)


def remove_all() -> None:
  """Kills the children of this process and removes its directories."""
  _kill_children()
  for (path, process), lock in list(_mine.items()):
    if process == os.getpid():
      _remove(path, lock)


def _kill_children() -> None:
  # Some kernels lack these files. `tied` then kills the children later.
  with contextlib.suppress(MemoryError, OSError):
    for path in pathlib.Path("/proc/self/task").glob("*/children"):
      with contextlib.suppress(OSError):
        for child in map(int, path.read_text().split()):
          os.kill(child, signal.SIGKILL)
          os.waitpid(child, 0)
