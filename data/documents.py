"""Documents to pre-train on, without labels."""

from __future__ import annotations

import ast
import codecs
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import glob
import itertools
import os
import pathlib
import platform
import sys
import sysconfig
from typing import Any
import zlib

from absl import flags
from etils import epy

from data import tables
from distribution import errors
from distribution import formats

with epy.lazy_imports():
  import tensorflow as tf

flags.disclaim_key_flags()  # --help lists them as the program's.

PYTHON_DOCS = "python_docs"

# Linux distributions package these modules separately. Without them the text of
# a Python version is the same on all machines.
_LEFT_OUT = {
  *("dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3"),
  *("site-packages", "test", "tests", "tkinter", "turtledemo", "turtle.py"),
}

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

_HELD_OUT = 50  # One of this many documents is held out.
_MOST_HELD_OUT = 10_000
_LINES_AT_ONCE = 100
_LONGEST = 2**14  # Most characters of a document.
_CHECKED_BYTES = 2**20  # Checked at the start of each file.
_OPEN_FILES = 16


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Training documents and held-out documents, each a string, shape `[]`.

  Attributes:
    description: Text for the model card, without paths.
    train: The training documents of all workers.
    held_out: The held-out documents.
    of_files: The training documents of this worker, if each worker reads its
      own files; otherwise None.
  """

  description: str
  train: tf.data.Dataset
  held_out: tf.data.Dataset
  of_files: tf.data.Dataset | None = None

  @property
  def of_worker(self) -> tf.data.Dataset:
    """The training documents of this worker."""
    return self.train if self.of_files is None else self.of_files


def python_docs() -> Corpus:
  """Returns the docstrings of this Python's standard library, without repeats.

  A quarter of the modules is held out.

  Raises:
    FileNotFoundError: This Python has no source of its standard library.
  """
  splits, seen = ([], []), set()
  for _, is_held_out, text in docstrings():
    if text not in seen:
      seen.add(text)
      splits[is_held_out].append(text)
  return Corpus(
    f"the docstrings of Python {platform.python_version()}'s standard library",
    *map(tf.data.Dataset.from_tensor_slices, splits),
  )


def docstrings() -> Iterator[tuple[pathlib.PurePath, bool, str]]:
  """Yields the docstrings of this Python's standard library.

  Yields:
    The path of a module in the library, whether the module is held out, and the
    docstring. A quarter of the modules is held out.

  Raises:
    FileNotFoundError: This Python has no source of its standard library.
  """
  library = pathlib.Path(sysconfig.get_paths()["stdlib"])
  paths = [path.relative_to(library) for path in library.rglob("*.py")]
  modules = sorted(
    path
    for path in paths
    if path.with_suffix("").parts[0] in sys.stdlib_module_names
    and not _LEFT_OUT.intersection(path.parts)
  )
  if not modules:
    raise FileNotFoundError(
      f"There is no source in {library}. Use a Python that has the source of"
      " its standard library."
    )
  for module in modules:
    # A hash of the name, so the split does not depend on other modules.
    is_held_out = zlib.crc32(module.as_posix().encode()) % 4 == 0
    for node in ast.walk(ast.parse((library / module).read_bytes())):
      text = isinstance(node, _DOCUMENTED) and ast.get_docstring(node)
      if text:
        yield module, is_held_out, text


def define_flags(text: str) -> None:
  """Defines --train_on and --text_column.

  Args:
    text: The beginning of the help text of --train_on.
  """
  flags.DEFINE_list(
    "train_on",
    None,
    f"{text} Comma-separated paths or patterns of UTF-8 files, also in"
    f" buckets; or {PYTHON_DOCS}, the docstrings of Python's standard library."
    f" Files that end in {', '.join(tables.SUFFIXES)} have a document in each"
    " row; in others blank lines separate documents. All may be compressed and"
    " end in .gz.",
  )
  flags.register_validator("train_on", _check_exist)
  flags.DEFINE_string(
    "text_column",
    None,
    "With --train_on: name of the column with the documents, in files with"
    " rows; without a header its number, from 1 on. Default: a name such as"
    " text.",
  )


def _check_exist(names: Sequence[str] | None) -> bool:
  """Raises a ValidationError for directories and missing local files."""
  for name in names or ():
    path = formats.absolute(name)
    if os.path.isdir(path):
      raise flags.ValidationError(
        f"{path} is a directory. Give files, or a pattern such as {path}/*.txt."
      )
    is_known = name == PYTHON_DOCS or "://" in path or os.path.exists(path)
    if not is_known and not glob.glob(path):
      raise flags.ValidationError(f"{path} does not exist.")
  return True


def load(names: Sequence[str], **options: Any) -> Corpus:
  """Returns the documents of --train_on; `options` go to `text_files`."""
  if list(names) == [PYTHON_DOCS]:
    return python_docs()
  return text_files([*map(formats.absolute, names)], **options)


def text_files(
  paths: Sequence[str],
  *,
  text_column: str | None = None,
  worker: tuple[int, int] = (0, 1),
  is_remote: bool = False,
) -> Corpus:
  """Returns the documents in files, which are read lazily.

  Files whose suffix `tables.read` knows have a document in each row; in others
  blank lines separate documents. Files that end in .gz are compressed. A
  document of more than 16,384 characters is split, and each part counts as one.

  Args:
    paths: Paths or patterns of UTF-8 files, also in buckets. Up to 16 files are
      read in parallel. One in 50 documents of each file is held out, at most
      10,000 in total.
    text_column: The column of the documents in files with rows, as in
      `tables.pick`.
    worker: Index of this worker, and the number of workers. If there are at
      least as many files, each worker reads its own files.
    is_remote: Whether other machines, which run no Python, read the files.

  Raises:
    FileNotFoundError: A path matches no file.
    ValueError: A file cannot be read, or there are fewer than 50 documents.
  """
  files = tables.files(paths)
  if text_column and not any(map(_has_rows, files)):
    raise ValueError(
      f"--text_column={text_column} applies only to files with rows, which end"
      f" in {', '.join(tables.SUFFIXES)}."
    )
  for path in files:
    _check(path, text_column, is_remote)
  numbered = list(zip(files, range(len(files)), strict=True))
  everything = _documents(numbered, text_column)
  with errors.of_input(tf.errors.OpError, about=f"{', '.join(paths)}: "):
    found = sum(1 for _ in everything.take(_HELD_OUT))
  if found < _HELD_OUT:
    raise ValueError(
      f"{', '.join(paths)}: {found} documents, in rows or separated by blank"
      f" lines. Training needs {_HELD_OUT} or more."
    )
  index, count = worker
  of_files = None
  if 1 < count <= len(files):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
      tf.data.experimental.AutoShardPolicy.OFF
    )
    of_files = _part(_documents(numbered[index::count], text_column), False)
    of_files = of_files.with_options(options)
  # Without directories, because model cards must contain no local path.
  names = ", ".join(os.path.basename(path) for path in paths)
  size = sum(tf.io.gfile.stat(path).length for path in files)
  return Corpus(
    f"{names} ({size / 1e6:,.3g} MB)",
    _part(everything, False),
    _part(everything, True).take(_MOST_HELD_OUT),
    of_files,
  )


def _part(documents: tf.data.Dataset, is_held_out: bool) -> tf.data.Dataset:
  """Returns either the held-out or the training documents of `_documents`."""
  return documents.filter(
    lambda index, _: (index % _HELD_OUT == 0) == is_held_out
  ).map(lambda _, text: text)


def _has_rows(path: str) -> bool:
  return tables.suffix(path) in tables.SUFFIXES


def _check(path: str, text_column: str | None, is_remote: bool) -> None:
  """Raises a ValueError if the beginning of a file cannot be read."""
  if _has_rows(path):
    if is_remote:
      raise ValueError(
        f"{path}: remote TPUs and parameter servers read only text. Convert it,"
        " or use another --strategy."
      )
    next(tables.pick(path, {"text_column": text_column}), None)
    return
  with tables.decompressing(path), tables.open_file(path) as f:
    beginning = f.read(_CHECKED_BYTES)
  try:
    is_whole = len(beginning) < _CHECKED_BYTES
    codecs.getincrementaldecoder("utf-8")().decode(beginning, is_whole)
  except UnicodeDecodeError as e:
    line = 1 + beginning[: e.start].count(b"\n")
    raise tables.not_utf8(f"{path}, line {line}", beginning) from e


def _documents(
  paths: Sequence[tuple[str, int]], text_column: str | None
) -> tf.data.Dataset:
  """Returns documents with indices, from several files in turn.

  The index of a document counts from a different start in each file. Otherwise
  every small file would begin with a held-out document.
  """

  def of_files(
    chosen: list[tuple[str, int]],
    read: Callable[[tf.Tensor], tf.data.Dataset],
  ) -> tf.data.Dataset:
    names, indices = zip(*chosen, strict=True)
    files = tf.data.Dataset.from_tensor_slices(
      (list(names), tf.constant(indices, tf.int64))
    )
    return files.interleave(
      lambda name, index: read(name).unbatch().enumerate(index),
      cycle_length=min(len(chosen), _OPEN_FILES),
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  rows = [pair for pair in paths if _has_rows(pair[0])]
  blocks = [pair for pair in paths if not _has_rows(pair[0])]
  parts = [
    of_files(chosen, read)
    for chosen, read in ((rows, _rows_of(text_column)), (blocks, _blocks))
    if chosen
  ]
  return parts[0] if len(parts) == 1 else parts[0].concatenate(parts[1])


def _rows_of(text_column: str | None) -> Callable[[tf.Tensor], tf.data.Dataset]:
  """Makes a function that returns the texts of a file, strings `[None]`."""

  def parts(path: str) -> Iterator[str]:
    with errors.of_input(OSError, ValueError):
      for _, (text,) in tables.pick(path, {"text_column": text_column}):
        if text and not text.isspace():
          for i in range(0, len(text), _LONGEST):
            yield text[i : i + _LONGEST]

  def texts(path: bytes) -> Iterator[list[str]]:
    of_file = parts(path.decode())
    while some := list(itertools.islice(of_file, _LINES_AT_ONCE)):
      yield some

  spec = tf.TensorSpec([None], tf.string)
  return lambda path: tf.data.Dataset.from_generator(
    texts, args=(path,), output_signature=spec
  )


def _blocks(path: tf.Tensor) -> tf.data.Dataset:
  """Returns the blocks of lines in a text file, strings `[None]`.

  The pipeline has no Python functions, because the workers of a parameter
  server could not run them.
  """
  is_compressed = tf.strings.regex_full_match(path, r"(?i).*\.gz")
  lines = tf.data.TextLineDataset(
    path, compression_type=tf.where(is_compressed, "GZIP", "")
  ).concatenate(tf.data.Dataset.from_tensors(""))

  def split(begun: tf.Tensor, lines: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    text = tf.strings.join([begun, tf.strings.reduce_join(lines + "\n")])
    text = tf.strings.regex_replace(text, r"\n\s*\n", "\n\n")
    blocks = tf.strings.split(text, "\n\n")
    is_long = tf.strings.length(blocks[-1]) > _LONGEST
    ended = tf.strings.strip(blocks if is_long else blocks[:-1])
    begun = "" if is_long else blocks[-1]
    return begun, tf.boolean_mask(ended, ended != "")

  return lines.batch(_LINES_AT_ONCE).scan("", split)
