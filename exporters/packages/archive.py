"""Packs a model in a .tar.gz whose bytes depend only on the model's files.

Times, owners and modes are fixed, files are sorted, and each directory precedes
its first file, because hub.resolve needs that. gzip stores the content without
compression, because weights hardly shrink and the bytes would depend on the
version of zlib. Any other archive is refused. So each model has exactly one
archive, which does not grow when it is unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import hashlib
import io
import os
import stat
import struct
import tarfile
from typing import BinaryIO, NamedTuple
import zlib

from exporters.reusable import errors

NAME = "model.tar.gz"
# The header of gzip without time, file name and operating system.
_GZIP = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_STORED = 65_535  # The longest stored block of DEFLATE.
_BLOCK = 16 * _STORED
_END = bytes(1024)
_MOST_FILES = 10_000
_MOST_BYTES = 2**35
_TYPES = {
  tarfile.LNKTYPE: "a hard link",
  tarfile.SYMTYPE: "a symbolic link",
  tarfile.CHRTYPE: "a device",
  tarfile.BLKTYPE: "a device",
  tarfile.FIFOTYPE: "a pipe",
  tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Digest(NamedTuple):
  """SHA-256 in hexadecimal, and size in bytes."""

  sha256: str
  bytes: int


class Hasher:
  """Computes the Digest of data that arrives in pieces."""

  def __init__(self) -> None:
    """Starts without data."""
    self._hash, self._size = hashlib.sha256(), 0

  def update(self, data: bytes) -> None:
    """Adds a piece of data."""
    self._hash.update(data)
    self._size += len(data)

  def digest(self) -> Digest:
    """Returns the Digest of all pieces."""
    return Digest(self._hash.hexdigest(), self._size)


def files_in(directory: str, ignored: Iterable[str] = ()) -> dict[str, str]:
  """Returns the files of a model, by their paths in its directory.

  Args:
    directory: The directory.
    ignored: Names in the directory to skip.

  Raises:
    ExportError: The directory has something other than files and directories,
      or too many files.
  """
  if "://" in directory:
    raise errors.ExportError(f"{directory} must be local. Copy it from there.")
  found: dict[str, str] = {}
  size = 0
  folders = [""]
  for folder in folders:
    with errors.of_input(OSError, about=f"Cannot read {directory}/{folder}: "):
      for entry in os.scandir(os.path.join(directory, folder)):
        path = os.path.join(folder, entry.name)
        if path in ignored:
          continue
        if entry.is_dir(follow_symlinks=False):
          folders.append(path)
        elif stat.S_ISREG((status := entry.stat()).st_mode):
          found[path] = entry.path
          size += status.st_size  # Of a sparse file too, which is as slow.
        else:
          raise errors.ExportError(f"{directory}/{path} is not a file.")
    if len(found) + len(folders) > _MOST_FILES or size > _MOST_BYTES:
      raise errors.ExportError(
        f"{directory} has more than {_MOST_FILES:,} files, or more than"
        f" {_MOST_BYTES:,} bytes."
      )
  return found


def pack(
  files: Mapping[str, str], write: Callable[[bytes], object]
) -> tuple[Digest, dict[str, Digest]]:
  """Writes an archive of files.

  Args:
    files: The path of each file to read, by its path in the archive.
    write: Called with each piece of the archive.

  Returns:
    The Digest of the archive, and the Digests of the files.
  """
  digests: dict[str, Digest] = {}
  archive = Hasher()
  for data in _gzip(_tar(files, digests)):
    archive.update(data)
    write(data)
  return archive.digest(), digests


def stream(files: Mapping[str, str]) -> BinaryIO:
  """Returns the archive of `files`, as in `pack`, as a readable stream."""
  return _Pieces(_gzip(_tar(files, {})))


class _Pieces(io.RawIOBase):
  """Makes an iterator of pieces a readable stream."""

  def __init__(self, pieces: Iterator[bytes]):
    super().__init__()
    self._pieces, self._piece = pieces, memoryview(b"")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: memoryview) -> int:
    """Reads into a buffer; returns 0 at the end."""
    if not self._piece:
      self._piece = memoryview(next(self._pieces, b""))
    size = min(len(buffer), len(self._piece))
    buffer[:size] = self._piece[:size]
    self._piece = self._piece[size:]
    return size


def _tar(files: Mapping[str, str], digests: dict[str, Digest]) -> Iterator:
  directories: set[str] = set()
  for name in sorted(files, key=os.fsencode):
    for parent in _parents(name):
      if parent not in directories:
        yield _header(parent, tarfile.DIRTYPE)
      directories.add(parent)
    hasher = Hasher()
    with (
      errors.of_input(OSError, about=f"Cannot read {files[name]}: "),
      open(files[name], "rb") as f,
    ):
      yield _header(name, tarfile.REGTYPE, os.fstat(f.fileno()).st_size)
      while data := f.read(_BLOCK):
        hasher.update(data)
        yield data
    digests[name] = hasher.digest()
    yield bytes(-digests[name].bytes % 512)
  yield _END


def _parents(name: str) -> list[str]:
  """Returns the directories above a path, the outermost first."""
  return [name[:i] for i, c in enumerate(name) if c == "/"]


def _header(name: str, type_: bytes, size: int = 0) -> bytes:
  info = tarfile.TarInfo(name)
  info.type, info.size = type_, size
  info.mode = 0o755 if type_ == tarfile.DIRTYPE else 0o644
  with errors.of_input(ValueError, about=f"{name} does not fit in a .tar: "):
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def _gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
  yield _GZIP
  checksum = size = 0
  waiting = bytearray()
  for piece in pieces:
    checksum = zlib.crc32(piece, checksum)
    size += len(piece)
    waiting += piece
    while len(waiting) > _STORED:
      yield _stored(waiting[:_STORED], is_last=False)
      del waiting[:_STORED]
  yield _stored(waiting, is_last=True)
  yield _trailer(checksum, size)


def _stored(data: bytes, *, is_last: bool) -> bytes:
  return struct.pack("<BHH", is_last, len(data), len(data) ^ 0xFFFF) + data


def _trailer(checksum: int, size: int) -> bytes:
  return struct.pack("<II", checksum, size % 2**32)


def unpack(stream: BinaryIO) -> Iterator[tuple[str, Iterator[bytes]]]:
  """Yields the path and the content of each file of an archive.

  Only one block is kept in memory. Read the content of a file before the next
  file.

  Raises:
    ExportError: `pack` did not write this archive.
  """
  reader = _Reader(_ungzip(stream))
  seen: set[str] = set()
  directories: set[str] = set()
  waiting: list[str] = []
  before = b""
  while (header := reader.read(512)) != bytes(512):
    name, size, is_directory = _entry_of(header)
    shown = errors.shown(name)
    if is_directory:
      waiting.append(name)
      if len(waiting) > _MOST_FILES:
        raise errors.ExportError(f"{NAME} has too many directories.")
      continue
    key = os.fsencode(name)
    if key <= before:
      raise errors.ExportError(
        f"{NAME} has {shown} twice."
        if name in seen
        else f"{NAME} has {shown} out of order: its files are sorted."
      )
    if len(seen) > _MOST_FILES:
      raise errors.ExportError(f"{NAME} has more than {_MOST_FILES} files.")
    parents = _parents(name)
    if not seen.isdisjoint(parents):
      raise errors.ExportError(f"{NAME} has {shown} in a file.")
    if waiting != [p for p in parents if p not in directories]:
      raise errors.ExportError(
        f"{NAME} has other directories than that of {shown} before it."
      )
    directories.update(waiting)
    waiting.clear()
    before = key
    seen.add(name)
    yield name, reader.pieces(size, shown)
    if any(reader.read(-size % 512)):
      raise errors.ExportError(f"{NAME} has data after {shown}.")
  if any(reader.read(512)) or waiting or reader.has_more():
    raise errors.ExportError(f"{NAME} has data after its last file.")


def _entry_of(header: bytes) -> tuple[str, int, bool]:
  """Returns the name, the size and whether it is a directory of a header."""
  try:
    info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
  except tarfile.HeaderError as e:
    raise errors.ExportError(f"{NAME} has a damaged header: {e}.") from e
  name = errors.shown(info.name)
  problem = ""
  type_ = header[156:157]
  if type_ not in (tarfile.REGTYPE, tarfile.DIRTYPE):
    what = _TYPES.get(info.type, f"an entry of type {info.type!r}")
    problem = f"{what}; only files and directories are allowed"
  elif not info.name or info.name.startswith("/"):
    problem = "an absolute path"
  elif not {"", ".", ".."}.isdisjoint(info.name.split("/")):
    problem = "a path that leaves its directory or is not normal"
  elif info.size < 0:
    problem = "of a negative size"
  elif header != _header(info.name, type_, info.size):
    problem = "not written by //exporters:package: mode, owner, time or format"
  if problem:
    raise errors.ExportError(f"{NAME} has {name}, which is {problem}.")
  return info.name, info.size, type_ == tarfile.DIRTYPE


def _exactly(stream: BinaryIO, size: int) -> bytes:
  data = stream.read(size)
  if len(data) != size:
    raise errors.ExportError(f"{NAME} ends early: it is truncated.")
  return data


def _ungzip(stream: BinaryIO) -> Iterator[bytes]:
  """Yields the stored blocks in the output of `_gzip`."""
  other = errors.ExportError(
    f"{NAME} is not a .tar.gz of //exporters:package: those are stored"
    " without compression, time and name."
  )
  if stream.read(len(_GZIP)) != _GZIP:
    raise other
  checksum = size = is_last = 0
  while not is_last:
    is_last, length, complement = struct.unpack("<BHH", _exactly(stream, 5))
    if (
      is_last > 1
      or length ^ complement != 0xFFFF
      or not length
      or not (is_last or length == _STORED)
    ):
      raise other
    data = _exactly(stream, length)
    checksum = zlib.crc32(data, checksum)
    size += length
    yield data
  if _exactly(stream, 8) != _trailer(checksum, size):
    raise errors.ExportError(f"{NAME} has a wrong checksum: it is damaged.")
  if stream.read(1):
    raise errors.ExportError(f"{NAME} has data after its end.")


class _Reader:
  """Reads a stream of blocks in pieces of any size."""

  def __init__(self, blocks: Iterator[bytes]):
    self._rest = blocks
    self._block = memoryview(b"")

  def pieces(self, size: int, about: str) -> Iterator[bytes]:
    """Yields the next bytes."""
    while size:
      if not self._block:
        block = next(self._rest, None)
        if block is None:
          raise errors.ExportError(f"{NAME} ends early, in {about}.")
        self._block = memoryview(block)
      piece = self._block[:size]
      self._block = self._block[len(piece) :]
      size -= len(piece)
      yield piece

  def read(self, size: int) -> bytes:
    """Returns the next bytes."""
    return b"".join(self.pieces(size, "its headers"))

  def has_more(self) -> bool:
    """Returns whether data follows; at the end, checks the checksum."""
    return bool(self._block) or next(self._rest, None) is not None
