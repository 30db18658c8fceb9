"""Rows of files with texts: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
import functools
import gzip
import itertools
import json
import os
import re
from typing import IO, NamedTuple
import zlib

from etils import epy

from distribution import errors

with epy.lazy_imports():  # Programs parse their flags first.
  from pyarrow import parquet
  import tensorflow as tf

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

# Names of columns that need no flag.
_NAMES = {
  "text_column": (
    *("text", "texts", "sentence", "message", "review", "content", "comment"),
    *("document", "body", "tweet", "question", "query", "utterance"),
  ),
  "label_column": (
    *("label", "labels", "class", "category", "target", "sentiment"),
    *("intent", "topic", "rating"),
  ),
}
_SAMPLE = 1000  # Rows to inspect for the column of the classes.
_LONGEST = 2**28  # Most bytes of a line, and most characters of a cell.
# First bytes of files that are not text, and what to do about them.
_NOT_TEXT = {
  b"\x1f\x8b": "compressed by gzip. Unpack it. Files to train on may end in .gz"
  " instead.",
  b"PK\x03\x04": "an archive or a spreadsheet. Unpack it, or save it as CSV.",
  b"PAR1": "Parquet. Let its name end in .parquet.",
}


class Table(NamedTuple):
  """Rows of a file.

  Attributes:
    header: Names of the columns; None for formats that may lack a header.
    rows: For each row its number, from 1 on, and its cells, strings or None. In
      text files the number is that of the row's first line.
  """

  header: list[str] | None
  rows: Iterator[tuple[int, list[str | None]]]


def files(paths: Sequence[str]) -> list[str]:
  """Expands paths and patterns to files.

  Raises:
    OSError: A path or pattern matches no file, or a bucket cannot be read.
  """
  found = []
  for path in paths:
    try:
      matched = sorted(tf.io.gfile.glob(path))
    except tf.errors.OpError as e:
      raise OSError(f"Cannot read {path}: {e.message}") from e
    if not matched:
      raise FileNotFoundError(f"{path} does not exist.")
    found += matched
  return found


def suffix(path: str) -> str:
  """Returns the suffix of a file; if it is compressed, the one before .gz."""
  return os.path.splitext(path.lower().removesuffix(".gz"))[1]


def read(path: str) -> Table:
  """Reads a file in the format of its suffix. Compressed files end in .gz.

  Raises:
    ValueError: The suffix is unknown, or a row cannot be read, which may also
      happen during iteration.
  """
  kind = suffix(path)
  if kind == ".parquet":
    return _parquet(path)
  if kind == ".jsonl":
    return _json_lines(path)
  if kind in (".csv", ".tsv"):
    return Table(None, (_csv if kind == ".csv" else _tsv)(path))
  raise ValueError(
    f"{path}: the file must end in {', '.join(SUFFIXES)}, or one of them and"
    " .gz."
  )


def open_file(path: str) -> IO[bytes]:
  """Opens a file, also in a bucket, and decompresses it if it ends in .gz."""
  is_compressed = path.lower().endswith(".gz")
  if "://" not in path:
    return (gzip.open if is_compressed else open)(path, "rb")
  file = tf.io.gfile.GFile(path, "rb")  # tf.io.gfile is slower, line by line.
  return gzip.GzipFile(fileobj=file) if is_compressed else file


@contextlib.contextmanager
def decompressing(path: str) -> Iterator[None]:
  """Raises a ValueError if a file cannot be decompressed."""
  try:
    yield
  except (EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise ValueError(
      f"{path}: the compressed data is damaged: {e}. Get the file again."
    ) from e


def _lines(path: str) -> Iterator[str]:
  """Yields the lines of a UTF-8 file, without a byte order mark."""
  with decompressing(path), open_file(path) as f:
    read = functools.partial(f.readline, _LONGEST)
    if "://" in path and not isinstance(f, gzip.GzipFile):
      read = f.readline  # tf.io.gfile's readline takes no limit.
    for number, line in enumerate(iter(read, b""), 1):
      if len(line) >= _LONGEST:
        raise ValueError(f"{path}, line {number}: it has 256 MiB or more.")
      try:
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")
      except UnicodeDecodeError as e:
        raise not_utf8(f"{path}, line {number}", line) from e


def decoded(data: bytes, about: str = "") -> str:
  """Decodes UTF-8, without a byte order mark.

  Raises:
    ValueError: The data is not UTF-8. The message is `about` and the line.
  """
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    line = 1 + data[: e.start].count(b"\n")
    raise not_utf8(f"{about}line {line}", data) from e


def not_utf8(where: str, data: bytes) -> ValueError:
  """Returns the error about bytes that are not UTF-8."""
  for start, advice in _NOT_TEXT.items():
    if data.startswith(start):
      return ValueError(f"{where}: this is not text, but {advice}")
  is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
  encoding = "UTF-16" if is_utf16 else "Windows-1252"
  return ValueError(
    f"{where}: this is not UTF-8, but perhaps"
    f" {encoding if is_utf16 else 'Latin-1 or Windows-1252'}. Convert the file,"
    f" for example by: iconv -f {encoding} -t UTF-8"
  )


def _csv(path: str) -> Iterator[tuple[int, list[str]]]:
  csv.field_size_limit(_LONGEST)  # The default limit is 131,072 characters.
  lines = _lines(path)
  first = next(lines, "")
  reader = csv.reader(itertools.chain([first], lines), strict=True)
  end = 0
  try:
    for row in reader:
      if row:
        yield end + 1, row
      end = reader.line_num
  except csv.Error as e:
    raise ValueError(f"{path}, line {end + 1}: {e}.{_advice(first)}") from e


def _advice(line: str) -> str:
  """Returns advice if another character separates the columns."""
  if "," in line or not re.search("[;\t]", line):
    return ""
  return " Separate the columns with commas, or with tabs in a file *.tsv."


def _tsv(path: str) -> Iterator[tuple[int, list[str]]]:
  """Yields rows. An unmatched quotation mark ends with its line."""
  for number, line in enumerate(_lines(path), 1):
    if line := line.rstrip("\r\n"):
      yield number, [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
  if len(cell) > 1 and cell[0] == cell[-1] == '"':
    return cell[1:-1].replace('""', '"')
  return cell


def _json_lines(path: str) -> Table:
  def objects() -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(path), 1):
      if line.strip():
        try:
          row = json.loads(line)
          if (
            "\\ud" in line or "\\uD" in line
          ):  # Perhaps half of a surrogate pair.
            json.dumps(row, ensure_ascii=False).encode()
        except (RecursionError, ValueError) as e:
          raise ValueError(f"{path}, line {number}: {e}.") from e
        if not isinstance(row, dict):
          raise ValueError(f"{path}, line {number}: this is no JSON object.")
        yield number, row

  _, first = next(objects(), (0, {}))
  return Table(
    list(first),
    ((n, [_string(row.get(key)) for key in first]) for n, row in objects()),
  )


def _parquet(path: str) -> Table:
  with errors.of_input(about=f"{path}: "):  # pyarrow raises anything.
    opened = open_file(path)
    # Files of tf.io.gfile lack this attribute.
    if not hasattr(opened, "closed"):
      opened.closed = False
    file = parquet.ParquetFile(opened)
    names = file.schema_arrow.names

  def rows() -> Iterator[tuple[int, list[str | None]]]:
    number = 0
    with errors.of_input(about=f"{path}: "):
      for batch in file.iter_batches(_SAMPLE):
        for row in zip(*(column.to_pylist() for column in batch), strict=True):
          number += 1
          yield number, [_string(cell) for cell in row]

  return Table(names, rows())


def _string(cell: object) -> str | None:
  return cell if cell is None or isinstance(cell, str) else str(cell)


def pick(
  path: str, columns: Mapping[str, str | None]
) -> Iterator[tuple[int, list[str | None]]]:
  """Yields the rows of a file, with some of its columns.

  Args:
    path: The file.
    columns: The value of the flag text_column and, for labelled texts, of
      label_column: the name of a column or, without a header, its number from 1
      on. None means to find the column by its name or its values.

  Raises:
    ValueError: The file cannot be read, or the choice of columns is ambiguous.
      This may also happen during iteration.
  """
  header, rows = read(path)
  sample = []
  if header is None:
    sample = list(itertools.islice(rows, _SAMPLE))
    rows = itertools.chain(sample, rows)
  names = header or [cell.strip() for _, row in sample[:1] for cell in row]
  if not names:
    raise ValueError(f"{path} is empty.")
  indices = _named(path, columns, names)
  if header is None and any(v and v.isdecimal() for v in columns.values()):
    indices = [int(v or 0) - 1 for v in columns.values()]
    if not set(indices) <= set(range(len(names))):
      raise ValueError(f"{path} has {len(names)} columns. Number both of them.")
  elif indices and header is None:
    next(rows)
  elif header is None and not (indices or any(columns.values())):
    indices = _by_values(path, columns, [row for _, row in sample])
  if not indices:
    needed = " and ".join(f"--{flag}" for flag in columns)
    raise ValueError(
      f"{path}: the columns are {', '.join(names)[:200]}. Set {needed} to names"
      " of columns, or to numbers if the first line is no header."
      f"{_advice(names[0])}"
    )
  for number, row in rows:
    if len(row) != len(names):
      raise ValueError(
        f"{path}, line {number}: the number of columns is {len(row)}, but in"
        f" the first line it is {len(names)}."
      )
    yield number, [row[i] for i in indices]


def _named(
  path: str, columns: Mapping[str, str | None], names: Sequence[str]
) -> list[int] | None:
  """Finds columns by the values of flags, or by well-known names."""
  indices = []
  for flag, value in columns.items():
    if value and not value.isdecimal() and value not in names:
      raise ValueError(
        f"{path} has no column {value}, but {', '.join(names)[:200]}. Change"
        f" --{flag}."
      )
    known = {value} if value else _NAMES[flag]
    matched = [n for n in names if n in known or n.lower() in known]
    index = names.index(matched[0]) if len(matched) == 1 else None
    indices.append(index)
  if len(names) == len(indices) == 2 and indices.count(None) == 1:
    other = 1 - sum(filter(None, indices))
    indices = [other if i is None else i for i in indices]
  return None if None in indices else indices


def _by_values(
  path: str, columns: Mapping[str, str | None], rows: Sequence[Sequence[str]]
) -> list[int] | None:
  """Finds texts and labels in two columns: labels are short and few.

  Raises:
    ValueError: The label of the first line occurs in no other line, so the line
      may be a header.
  """
  if len(columns) != 2 or len(rows[0]) != 2:
    return None
  rows = [row for row in rows if len(row) == 2]
  cells = list(zip(*rows, strict=True))
  lengths = [sum(map(len, column)) for column in cells]
  label = int(lengths[1] < lengths[0])
  if 2 * lengths[label] > lengths[1 - label] or (
    2 * len(set(cells[label])) > len(rows)
  ):
    return None
  if rows[0][label] not in {row[label] for row in rows[1:]}:
    raise ValueError(
      f"{path}: the first line may be a header. If it is, set --text_column and"
      f" --label_column to {rows[0][1 - label][:40]} and {rows[0][label][:40]};"
      f" if not, to {2 - label} and {label + 1}."
    )
  return [1 - label, label]
