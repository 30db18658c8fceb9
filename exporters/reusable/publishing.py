"""Makes an export appear at its directory whole, or not at all."""

from collections.abc import Iterator
import contextlib
import ctypes
import fcntl
import itertools
import os
import pathlib
import shutil
import uuid

from exporters.reusable import errors

_AT_FDCWD = -100  # From <fcntl.h>.
_RENAME_EXCHANGE = 2  # From <linux/fs.h>.


def check_apart(
  *directories: str | None, keep_failed: str | None = None
) -> None:
  """Raises an ExportError if a directory is another, or lies in it.

  Args:
    *directories: The directories to publish; None is passed over.
    keep_failed: Where to keep an export that fails. It must not exist.
  """
  if keep_failed and os.path.exists(keep_failed):
    raise errors.ExportError(f"{keep_failed} exists. Choose another path.")
  directories = filter(None, [*directories, keep_failed])
  paths = [pathlib.Path(d).resolve() for d in directories]
  for path, other in itertools.permutations(paths, 2):
    if path.is_relative_to(other):
      raise errors.ExportError(
        f"{path} and {other} must be apart: neither the same nor one in the"
        " other."
      )


@contextlib.contextmanager
def publish(
  export_dir: str | os.PathLike[str], marker: str, *, overwrite: bool = False
) -> Iterator[str]:
  """Gives a directory to write; renames it to `export_dir` at the end.

  Slow work belongs inside: `export_dir` is checked at the start. When the work
  raises, nothing is left. When the process is killed, the unfinished directory
  stays, hidden, until the next call for the same `export_dir`.

  Args:
    export_dir: Where the export shall appear: a local directory that does not
      exist or is empty.
    marker: A file that tells such directories from others.
    overwrite: Replace an existing `export_dir` that has `marker` in it, in one
      step: at every moment there is either the old one or the new one.

  Yields:
    The path of an empty directory beside `export_dir`.

  Raises:
    ExportError: `export_dir` is in the way, or cannot be made.
  """
  if "://" in str(export_dir):
    raise errors.ExportError(
      f"{export_dir} is not a local directory, and only there an export can"
      " appear whole. Export to a local one and copy that."
    )
  target = pathlib.Path(export_dir).resolve()
  _check(target, marker, overwrite)
  unfinished = f".{target.name}.unfinished-"
  staging = target.with_name(unfinished + uuid.uuid4().hex)
  with errors.of_input(OSError, about=f"Cannot write beside {target}: "):
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir()
  # The lock goes when this process does, however it ends.
  lock = os.open(staging, os.O_RDONLY)
  fcntl.flock(lock, fcntl.LOCK_EX)
  try:
    _remove_abandoned(target.parent, unfinished)
    with errors.writing(str(target)):
      yield str(staging)
    _check(target, marker, overwrite)
    if overwrite and target.exists():
      _exchange(staging, target)
    else:
      staging.rename(target)
  finally:
    shutil.rmtree(staging, ignore_errors=True)
    os.close(lock)


def _check(target: pathlib.Path, marker: str, overwrite: bool) -> None:
  names = []
  with (
    errors.of_input(OSError, about=f"{target}: "),
    contextlib.suppress(FileNotFoundError),
  ):
    names = [path.name for path in target.iterdir()]
  if target.is_mount():
    raise errors.ExportError(
      f"{target} is a mount point, which nothing can be renamed to. Choose a"
      " directory in it."
    )
  if names and marker not in names:
    raise errors.ExportError(
      f"{target} has other things in it (no {marker}). Choose another"
      " directory."
    )
  if names and not overwrite:
    raise errors.ExportError(
      f"{target} exists and is not empty. Choose another directory, or say"
      " --overwrite to replace it."
    )


def _remove_abandoned(parent: pathlib.Path, prefix: str) -> None:
  """Removes what killed processes left: directories that nobody locks."""
  for path in parent.iterdir():
    if path.name.startswith(prefix):
      with contextlib.suppress(OSError):  # Locked, or gone meanwhile.
        lock = os.open(path, os.O_RDONLY)
        try:
          fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
          shutil.rmtree(path)
        finally:
          os.close(lock)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> None:
  """Swaps two directories in one step, which Python has no function for."""
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.renameat2(
    _AT_FDCWD,
    os.fsencode(first),
    _AT_FDCWD,
    os.fsencode(second),
    _RENAME_EXCHANGE,
  ):
    raise errors.ExportError(
      f"Cannot replace {second} in one step here:"
      f" {os.strerror(ctypes.get_errno())}. Remove it first, or choose another"
      " directory."
    )
