"""Writes directories and files that appear complete or not at all."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import ctypes
import itertools
import os
import pathlib
import re
import tempfile
from typing import NamedTuple

from distribution import errors
from distribution import formats
from distribution import scratch

_AT_FDCWD = -100  # From <fcntl.h>.
_RENAME_EXCHANGE = 2  # From <linux/fs.h>.


class Kind(NamedTuple):
  """A kind of directory that programs of this project write.

  Attributes:
    marker: A file in it, or in a subdirectory, by which it is recognized.
    paths: Regular expression of all its files and empty directories.
  """

  marker: str
  paths: str


# An export, or several in subdirectories.
EXPORT = Kind(
  "assets.extra/README.md",
  r"(\w+/)?((saved_model|fingerprint|keras_metadata)\.pb"
  r"|variables(/variables\.(index|data-\d{5}-of-\d{5}))?|assets(/[^/]+)?"
  # A killed `write` leaves files of the last pattern.
  r"|assets\.extra(/README\.md|/tf_serving_warmup_requests"
  r"|/(model|training|verification)\.json|/\..+\.unfinished.*)?)",
)
CHECKPOINT = Kind(
  "checkpoint", r"checkpoint(-\d+\.(index|data-\d{5}-of-\d{5}))?"
)


def check_apart(
  *directories: str | None, keep_failed: str | None = None
) -> None:
  """Raises an InputError if two directories are the same or nested.

  Args:
    *directories: The directories to publish; None is ignored.
    keep_failed: Where to keep an export that fails. It must not exist.
  """
  if keep_failed and os.path.exists(keep_failed):
    raise errors.InputError(f"{keep_failed} exists. Choose another path.")
  directories = filter(None, [*directories, keep_failed])
  paths = [pathlib.Path(d).resolve() for d in directories]
  for path, other in itertools.permutations(paths, 2):
    if path.is_relative_to(other):
      raise errors.InputError(
        f"{path} and {other} must be apart: neither the same nor one in the"
        " other."
      )


@contextlib.contextmanager
def publish(
  path: str | os.PathLike[str], kind: Kind = EXPORT, *, overwrite: bool = False
) -> Iterator[str]:
  """Yields a temporary directory, and renames it to `path` on exit.

  `path` is checked on entry, so slow work belongs in the context. If the work
  raises an exception, nothing is left. If the process is killed, the hidden
  temporary directory stays until the next call for the same `path`.

  Args:
    path: The final directory, which is local and does not exist or is empty. A
      link is followed.
    kind: The kind of directory that may be replaced.
    overwrite: Whether to replace a directory of that kind. At every moment
      either the old one or the new one exists.

  Yields:
    The path of an empty directory beside `path`.

  Raises:
    InputError: The path is taken, another program is writing to it, or it
      cannot be created.
  """
  if "://" in str(path):
    raise errors.InputError(
      f"{path} is not a local directory, and only there an export can appear"
      " whole. Export to a local one and copy that."
    )
  about = f"Cannot write {path}: "
  with errors.of_input(OSError, RuntimeError, about=about):  # Links in a loop.
    target = pathlib.Path(path).resolve()
    _check(target, kind, overwrite)
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
  unfinished = target.with_name(f".{target.name}.unfinished")
  with _without_empty(made), scratch.directory(unfinished):
    new = unfinished / target.name
    with errors.of_input(OSError, about=about):
      new.mkdir()
    with errors.writing(str(target)):
      yield str(new)
    _check(target, kind, overwrite)
    with errors.of_input(OSError, about=about):
      if overwrite and target.exists():
        _exchange(new, target)
      else:
        new.rename(target)


@contextlib.contextmanager
def _without_empty(directories: Sequence[pathlib.Path]) -> Iterator[None]:
  """Removes empty directories on exit, inner ones first."""
  try:
    yield
  finally:
    for path in directories:
      with contextlib.suppress(OSError):
        path.rmdir()


def write(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a local file that appears complete or not at all."""
  write_all({path: content})


def write_all(contents: Mapping[str | os.PathLike[str], bytes]) -> None:
  """Writes local files that all appear complete, or not at all if one fails."""
  new: dict[pathlib.Path, pathlib.Path] = {}
  with contextlib.ExitStack() as stack:
    for path, content in contents.items():
      target = pathlib.Path(path)
      unfinished = target.with_name(f".{target.name}.unfinished")
      stack.enter_context(scratch.directory(unfinished))
      new[target] = unfinished / target.name
      with errors.writing(str(path)):
        new[target].write_bytes(content)
    for target, path in new.items():
      formats.check_replaceable(target)
      path.replace(target)


def _check(target: pathlib.Path, kind: Kind, overwrite: bool) -> None:
  with errors.of_input(OSError, about=f"{target}: "):
    try:
      names = os.listdir(target)
    except FileNotFoundError:
      return
    if target.is_mount():
      raise errors.InputError(
        f"{target} is a mount point, which nothing can be renamed to. Choose a"
        " directory in it."
      )
    if not names:
      return
    scratch_dir = pathlib.Path(tempfile.gettempdir()).resolve()
    if scratch_dir.is_relative_to(target):
      raise errors.InputError(
        f"{target} is, or has in it, the directory for temporary files. Choose"
        " another directory, or set TMPDIR to one elsewhere."
      )
    foreign, found = "", False
    for name in _leaves(target):
      found |= name.endswith(kind.marker)
      if not foreign and not _is_ours(target, name, kind):
        foreign = name
  if foreign or not found:
    problem = f"has {foreign} in it" if foreign else f"has no {kind.marker}"
    raise errors.InputError(
      f"{target} {problem}: no program of this project made it. Choose another"
      " directory."
    )
  if not overwrite:
    raise errors.InputError(
      f"{target} exists and is not empty. Choose another directory, or say"
      " --overwrite to replace it."
    )


def _is_ours(target: pathlib.Path, name: str, kind: Kind) -> bool:
  path = target / name
  if path.is_symlink() or not re.fullmatch(kind.paths, name):
    return False
  model = path.parents[1] / "saved_model.pb"  # A SavedModel names its assets.
  return path.parent.name != "assets" or (
    model.exists() and os.fsencode(path.name) in model.read_bytes()
  )


def _leaves(directory: pathlib.Path) -> Iterator[str]:
  """Yields the paths of files, links and empty directories, sorted."""
  for path in sorted(directory.iterdir()):
    inner = []
    if path.is_dir() and not path.is_symlink():
      inner = [f"{path.name}/{name}" for name in _leaves(path)]
    yield from inner or [path.name]


def _exchange(first: pathlib.Path, second: pathlib.Path) -> None:
  """Swaps two directories atomically; Python has no function for this."""
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.renameat2(
    _AT_FDCWD,
    os.fsencode(first),
    _AT_FDCWD,
    os.fsencode(second),
    _RENAME_EXCHANGE,
  ):
    raise errors.InputError(
      f"Cannot replace {second} in one step here:"
      f" {os.strerror(ctypes.get_errno())}. Remove it first, or choose another"
      " directory."
    )
