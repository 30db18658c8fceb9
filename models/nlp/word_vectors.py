"""Reads files of word vectors, which may fill most of the memory.

A file is read once, in blocks. Its words and vectors are written to two files.
`WordVectors.matrix` reads the vectors straight into the memory of the model.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
import dataclasses
import gzip
import io
import itertools
import os
import sys
import zlib

from etils import epy

# Programs import this module before they parse their flags.
with epy.lazy_imports():
  import numpy as np
  from rich import progress

FORMATS = {
  "word2vec": "text; the first line has the number of words and the dimension",
  "fasttext": "the same, as in fastText's *.vec",
  "word2vec_binary": "the binary format of word2vec",
  "glove": "text without such a first line",
}

_BLOCK = 2**20  # Bytes to read at once.
_LONGEST = 2**22  # Maximum bytes of a line, a word or a binary vector.
_ALIGNMENT = 16  # Alignment of a matrix, in float32 values.

# The position in the file, for messages; the word; and its float32 vector.
_Row = tuple[str, bytes, "np.ndarray"]


@dataclasses.dataclass(frozen=True)
class WordVectors:
  """Words and their vectors, in files.

  Attributes:
    vocab_file: The file of the words, UTF-8, one per line.
    vectors_file: The file of the vectors, float32, in the order of the words.
    num_words: Number of words.
    dim: Dimension of the vectors.
    num_repeated: Number of vectors that were dropped because an earlier vector
      has the same word.
    has_capitals: Whether any word has capital letters.
  """

  vocab_file: str
  vectors_file: str
  num_words: int
  dim: int
  num_repeated: int
  has_capitals: bool

  def matrix(self, num_more: int = 0) -> np.ndarray:
    """Reads the vectors and appends `num_more` zero vectors, as float32.

    Aligned memory lets TensorFlow use the array without a copy.
    """
    size = self.num_words * self.dim
    memory = np.empty(size + num_more * self.dim + _ALIGNMENT, np.float32)
    start = -memory.ctypes.data // memory.itemsize % _ALIGNMENT
    values = memory[start : start + size + num_more * self.dim]
    with open(self.vectors_file, "rb") as f:
      f.readinto(values[:size])
    values[size:] = 0.0
    return values.reshape(-1, self.dim)


def read(
  path: str, directory: str, file_format: str | None = None
) -> WordVectors:
  """Reads a file of word vectors, which may be compressed with gzip.

  Some widely used files repeat words. The first vector of a word is used.

  Args:
    path: The file.
    directory: The directory to write the words and the vectors to.
    file_format: One of `FORMATS`. None detects it from the content.

  Raises:
    OSError: The file cannot be read.
    ValueError: The file is malformed. The message names the line.
  """
  last = "line 1"

  def counted(rows: Iterable[_Row]) -> Iterator[_Row]:
    nonlocal last
    for row in rows:
      last = row[0]
      yield row

  name = os.path.basename(path)
  about = f"Reading {name}"
  # Without a terminal, show no progress: rich exits when a pipe is closed.
  is_hidden = not sys.stdout.isatty()
  with progress.open(
    path, "rb", description=about, disable=is_hidden
  ) as tracked:
    f = io.BufferedReader(tracked, _BLOCK)
    if f.peek(2)[:2] == b"\x1f\x8b":
      f = io.BufferedReader(gzip.GzipFile(fileobj=f), _BLOCK)
    try:
      dim, rows = _rows(f, file_format)
      with np.errstate(over="ignore"):  # `store` refuses inf.
        return store(counted(rows), dim, directory)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
      raise ValueError(
        f"after {last}: the compressed data is truncated or"
        f" damaged ({e}). Get the file again."
      ) from e


def store(rows: Iterable[_Row], dim: int, directory: str) -> WordVectors:
  """Writes words and their vectors, float32 `[dim]`, to a directory.

  Raises:
    ValueError: A word or a vector is invalid.
  """
  paths = [os.path.join(directory, n) for n in ("vocab.txt", "vectors.f32")]
  seen: set[bytes] = set()
  num_repeated = 0
  has_capitals = False
  with open(paths[0], "wb") as words, open(paths[1], "wb") as vectors:
    for place, word, vector in rows:
      try:
        text = word.decode()
      except UnicodeDecodeError as e:
        raise ValueError(f"{place}: {word} is not UTF-8.") from e
      if not text or "\n" in text or "\r" in text:
        raise ValueError(f"{place}: {text!r} is not a word.")
      if not np.isfinite(vector).all():
        raise ValueError(
          f"{place}: the vector of {text} has values that are not finite"
          " (NaN or infinite) in float32."
        )
      if word in seen:
        num_repeated += 1
        continue
      seen.add(word)
      has_capitals = has_capitals or text != text.lower()
      words.write(word + b"\n")
      vectors.write(vector)
  return WordVectors(*paths, len(seen), dim, num_repeated, has_capitals)


def _rows(
  f: io.BufferedReader, file_format: str | None
) -> tuple[int, Iterator[_Row]]:
  """Returns the dimension and the rows of a file."""
  first = f.readline(_LONGEST).removeprefix(codecs.BOM_UTF8)
  if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise ValueError(
      "line 1: it is UTF-16. Convert the file: iconv -f UTF-16 -t UTF-8"
    )
  fields = first.split()
  if not fields:
    raise ValueError("line 1: it is empty.")
  has_header = len(fields) == 2 and all(field.isdigit() for field in fields)
  if not file_format:
    file_format = "glove"
    if has_header:
      _, value, *_ = *f.peek(_BLOCK).split(None, 2), b"", b""
      file_format = "word2vec" if _is_number(value) else "word2vec_binary"
  count, dim = None, len(fields) - 1
  if file_format != "glove":
    if not has_header:
      raise ValueError(
        "line 1: it must have the number of words and the dimension in the"
        f" format {file_format}."
      )
    count, dim = map(int, fields)
  if not dim or count == 0:
    raise ValueError("line 1: there are no vectors.")
  if 4 * dim > _LONGEST:
    raise ValueError(
      f"line 1: the dimension is {dim:,}. The largest is {_LONGEST // 4:,}."
    )
  if file_format == "word2vec_binary":
    return dim, _of_binary(f, count, dim)
  lines = iter(lambda: f.readline(_LONGEST), b"")
  if count is None:
    lines = itertools.chain([first], lines)
  return dim, _of_text(lines, count, dim)


def _of_text(
  lines: Iterable[bytes], count: int | None, dim: int
) -> Iterator[_Row]:
  """Yields the rows of a text file.

  Args:
    lines: The lines with words.
    count: The number of words that line 1 states. None: the format is GloVe's,
      and line 1 has a word.
    dim: The dimension of the vectors.
  """
  found = 0
  for number, line in enumerate(lines, 1 if count is None else 2):
    place = f"line {number}"
    fields = line.split()
    if len(fields) == dim + 1:
      word = fields[0]
    elif len(fields) > dim + 1 and not _is_number(fields[-dim - 1]):
      word = b" ".join(fields[:-dim])  # Some words of GloVe have spaces.
    else:
      raise ValueError(
        f"{place}: it has {max(len(fields) - 1, 0)} values after the word"
        f" and not {dim}, as line 1 says."
      )
    try:
      if b"_" in line and any(b"_" in x for x in fields[-dim:]):
        # `float` would ignore it.
        raise ValueError("a value has a _")
      vector = np.fromiter(map(float, fields[-dim:]), np.float32, dim)
    except ValueError as e:
      raise ValueError(f"{place}: {e}.") from e
    yield place, word, vector
    found += 1
  if found != (count or found):
    raise ValueError(
      f"line 1: it says that there are {count:,} words, but there are"
      f" {found:,}. The file is truncated, or not whole."
    )


def _of_binary(f: io.BufferedReader, count: int, dim: int) -> Iterator[_Row]:
  """Yields the rows of word2vec's binary format."""
  size = 4 * dim
  data, start = b"", 0
  for number in range(1, count + 1):
    while (end := data.find(b" ", start)) < 0 or end + size >= len(data):
      block = f.read(_BLOCK)
      if not block or (end < 0 and len(data) - start > _LONGEST):
        raise ValueError(
          f"word {number}: line 1 says that there are {count:,} words of {dim}"
          " binary values, but the file is truncated or has another format."
        )
      data, start = data[start:] + block, 0
    word = data[start:end].lstrip(b"\n")
    yield f"word {number}", word, np.frombuffer(data, "<f4", dim, end + 1)
    start = end + 1 + size
  if data[start:].strip() or f.read(_BLOCK).strip():
    raise ValueError(
      f"line 1: it says that there are {count:,} words, but there are more."
    )


def _is_number(field: bytes) -> bool:
  try:
    float(field)
  except ValueError:
    return False
  return True
