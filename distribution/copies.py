"""Copies a stranger's SavedModel: regular files only, of bounded size.

The original is read once, so what is examined is what is used. Copying a local
directory does not import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
import contextlib
import errno
import os
import pathlib
import re
import stat
import sys
import tempfile
from typing import NamedTuple

from etils import epy

from distribution import errors
from distribution import formats

with epy.lazy_imports():
  import tensorflow as tf

# Help text of the flag --follow_links.
FOLLOW_LINKS = (
  "Read what symbolic links in the directory point to, as in caches of other"
  " libraries."
)

# Files that a load keeps in memory. Other files may be padding.
LOADED = re.compile(r"saved_model\.pb|variables/variables\.(index|data-.*)")

_MOST_BYTES = 2**35
_MOST_FILES = 10_000
_BLOCK = 2**20
# Readers of SavedModels also look for these files. They are not copied.
_OTHER_MODELS = {
  "saved_model.cpb": "TensorFlow Serving may load it",
  "saved_model.pbtxt": "other readers may load it",
  "tfhub_module.pb": "hub.load takes the SavedModel for a TensorFlow 1 module",
}


class Copy(NamedTuple):
  """The result of a copy.

  Attributes:
    size: Bytes of the files of `LOADED`.
    problems: Descriptions of the files that were left out because a load should
      not read them.
    index: Bytes of the index of the variables, about 66 for each.
  """

  size: int
  problems: list[str]
  index: int


@contextlib.contextmanager
def copied(
  source: str, *, follow_links: bool, only: Collection[str] = ()
) -> Iterator[tuple[str, int]]:
  """Copies a SavedModel's directory to a temporary one.

  Args:
    source: As in `copy`.
    follow_links: As in `copy`.
    only: As in `copy`.

  Yields:
    The copy, and `Copy.size`. InputErrors name the original instead.

  Raises:
    InputError: `copy` raised it or left something out.
  """
  with tempfile.TemporaryDirectory(prefix="copy.") as target:
    made = copy(source, target, follow_links=follow_links, only=only)
    if made.problems:
      raise errors.InputError(f"{source}: {made.problems[0]}.")
    try:
      yield target, made.size
    except errors.InputError as e:
      raise errors.InputError(str(e).replace(target, source)) from e


def copy(
  source: str,
  target: str,
  *,
  follow_links: bool = False,
  only: Collection[str] = (),
) -> Copy:
  """Copies a SavedModel's directory.

  Args:
    source: The directory, or the URL of one.
    target: An empty directory.
    follow_links: Whether to copy the targets of symbolic links.
    only: Names of the files and folders in it to copy; empty copies all.

  Raises:
    InputError: There is no SavedModel, a file cannot be read, or there is too
      much to copy.
  """
  source = formats.absolute(source)  # A file:// URL becomes a path.
  formats.check_saved_model(source)
  if (
    not only
    and "://" not in source
    and pathlib.Path(target).resolve().is_relative_to(os.path.realpath(source))
  ):
    raise errors.InputError(
      f"{source} is, or has in it, the directory for temporary files, where it"
      " would be copied to. Set TMPDIR to one elsewhere."
    )
  problems: list[str] = []
  copies: dict[tuple[int, int], str] = {}  # By device and inode.
  loaded: dict[int, int] = {}  # Sizes, by the inode of the copy.
  size = count = 0
  for path in _paths(source, problems, follow_links, only):
    count += 1
    if count > _MOST_FILES:
      raise errors.InputError(f"{source} has more than {_MOST_FILES:,} files.")
    if path in _OTHER_MODELS:
      problems.append(f"{path} is not examined, and {_OTHER_MODELS[path]}")
      continue
    with (
      errors.of_input(about=f"Cannot read {source}/{path}: "),
      errors.writing(target, errors.SCRATCH),
    ):
      size += _copy_file(source, target, path, size, follow_links, copies)
    if LOADED.fullmatch(path):
      status = os.stat(os.path.join(target, path))
      loaded[status.st_ino] = status.st_size
  model = "saved_model.pb"
  if model in (only or [model]) and not os.path.isfile(f"{target}/{model}"):
    found = [p for p in problems if p.startswith("saved_model.pb ")]
    said = found[0] if found else "there is no saved_model.pb"
    raise errors.InputError(
      f"{source} is no SavedModel that can be checked: {said}."
    )
  index = pathlib.Path(target, "variables/variables.index")
  bytes_of_index = index.stat().st_size if index.is_file() else 0
  return Copy(sum(loaded.values()), problems, bytes_of_index)


def left_out(directory: str, only: Collection[str]) -> list[str]:
  """Returns what `copy` reports about links and special files; [] for URLs.

  Args:
    directory: The directory of a SavedModel.
    only: Names of the files and folders in it to look at.
  """
  problems: list[str] = []
  if "://" not in directory:
    for _ in _paths(directory, problems, False, only):
      pass
  return problems


def _paths(
  source: str,
  problems: list[str],
  follow_links: bool,
  only: Collection[str],
) -> Iterator[str]:
  """Yields the paths of regular files; adds other entries to `problems`."""
  if "://" in source:
    for folder, _, names in tf.io.gfile.walk(source):
      for name in names:
        path = os.path.relpath(os.path.join(folder, name), source)
        if not only or path.split("/")[0] in only:
          yield path
    return
  folders = [""]
  for folder in folders:
    if len(folders) > _MOST_FILES or folder.count("/") > 32:
      raise errors.InputError(f"{source} has too many folders.")
    with errors.of_input(OSError, about=f"Cannot read {source}/{folder}: "):
      entries = sorted(
        os.scandir(os.path.join(source, folder)), key=lambda e: e.name
      )
    for entry in entries:
      path = os.path.join(folder, entry.name)
      if only and path.split("/")[0] not in only:
        continue
      if entry.is_symlink() and not follow_links:
        problems.append(
          f"{path} is a symbolic link; --follow_links reads what it points to"
        )
      elif entry.is_dir(follow_symlinks=follow_links):
        folders.append(path)
      elif entry.is_file(follow_symlinks=follow_links):
        yield path
      else:
        problems.append(f"{path} is not a file")


def _copy_file(
  source: str,
  target: str,
  path: str,
  before: int,
  follow_links: bool,
  copies: dict[tuple[int, int], str],
) -> int:
  """Copies a file and returns its size; 0 for a hard link to one in `copies`.

  Hard links stay hard links. Copies of their content could fill the disk.
  """
  new = os.path.join(target, path)
  os.makedirs(os.path.dirname(new), exist_ok=True)
  if "://" in source:
    size = tf.io.gfile.stat(f"{source}/{path}").length
    _check_space(size + before, size, target)
    tf.io.gfile.copy(f"{source}/{path}", new)
    return size
  # Since the listing, links or pipes may have replaced the file or its folder.
  flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
  with (
    open(os.open(os.path.join(source, path), flags), "rb") as old,
    open(new, "xb") as f,
  ):
    status = os.fstat(old.fileno())
    if not stat.S_ISREG(status.st_mode):
      raise errors.InputError(f"{source}/{path} is not a file.")
    if (
      sys.platform == "linux"
      and not follow_links
      and (
        os.readlink(f"/proc/self/fd/{old.fileno()}")
        != os.path.join(os.path.realpath(source), path)
      )
    ):
      raise errors.InputError(
        f"The folder of {source}/{path} was replaced by a symbolic link."
      )
    number = (status.st_dev, status.st_ino)
    if number in copies:
      f.close()
      os.remove(new)
      os.link(copies[number], new)
      return 0
    copies[number] = new
    size = status.st_size
    if _is_sparse(old.fileno(), status):
      raise errors.InputError(
        f"{source}/{path} is sparse: {status.st_blocks * 512:,} of its"
        f" {size:,} bytes are stored. Copy it with cp --sparse=never."
      )
    _check_space(size + before, size, target)
    left = size
    while left and (block := old.read(min(left, _BLOCK))):
      left -= f.write(block)
    if left:
      raise errors.InputError(f"{source}/{path} changed while it was read.")
  return size


def _is_sparse(descriptor: int, status: os.stat_result) -> bool:
  """Returns whether a file has more than 1 MiB of holes."""
  if status.st_size - status.st_blocks * 512 < _BLOCK:
    return False
  try:  # Compressed files also have fewer blocks, but no holes.
    hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
  except OSError as e:
    return e.errno != errno.EINVAL
  finally:
    os.lseek(descriptor, 0, os.SEEK_SET)
  return hole < status.st_size


def _check_space(total: int, size: int, target: str) -> None:
  status = os.statvfs(target)
  free = status.f_bavail * status.f_frsize
  if total > _MOST_BYTES or size > free:
    raise errors.InputError(
      f"The SavedModel has {total:,} bytes or more. A check takes at most"
      f" {_MOST_BYTES:,}, and {target} has room for {free:,}{errors.SCRATCH}"
    )
