"""Text for pre-training, as documents."""

from __future__ import annotations

import ast
from collections.abc import Sequence
import dataclasses
import os
import pathlib
import platform
import sys
import sysconfig
import zlib

from etils import epy

with epy.lazy_imports():
  import tensorflow as tf

# Linux distributions package these modules separately. Without them the text of
# a Python version is the same on all machines.
_LEFT_OUT = {
  *("dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3"),
  *("site-packages", "test", "tests", "tkinter", "turtledemo", "turtle.py"),
}

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

_HELD_OUT_EVERY = 50  # Documents of text files.
_LINES_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents for training and held-out ones, each a string, shape `[]`."""

  description: str
  train: tf.data.Dataset
  held_out: tf.data.Dataset


def python_docs() -> Corpus:
  """Returns the docstrings of this Python's standard library, without repeats.

  A quarter of the modules is held out.

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
  splits, seen = ([], []), set()
  for module in modules:
    # A hash of the name, so the split does not depend on other modules.
    held_out = zlib.crc32(module.as_posix().encode()) % 4 == 0
    for node in ast.walk(ast.parse((library / module).read_bytes())):
      text = isinstance(node, _DOCUMENTED) and ast.get_docstring(node)
      if text and text not in seen:
        seen.add(text)
        splits[held_out].append(text)
  return Corpus(
    f"the docstrings of Python {platform.python_version()}'s standard library",
    *map(tf.data.Dataset.from_tensor_slices, splits),
  )


def text_files(paths: Sequence[str]) -> Corpus:
  """Returns the documents in text files.

  Blank lines separate documents. Every 50th document is held out.

  Args:
    paths: Paths or glob patterns of UTF-8 files.

  Raises:
    FileNotFoundError: A path matches no file.
    ValueError: A file is not UTF-8, or there are fewer than 50 documents.
  """
  files = []
  for path in paths:
    found = sorted(tf.io.gfile.glob(path))
    if not found:
      raise FileNotFoundError(f"{path} does not exist.")
    files += found
  count = 0
  for path in files:
    try:
      for blocks in _blocks([path]):
        tf.strings.unicode_transcode(blocks, "UTF-8", "UTF-8", errors="strict")
        count += len(blocks)
    except tf.errors.InvalidArgumentError as e:
      raise ValueError(f"{path} is not UTF-8.") from e
  if count < _HELD_OUT_EVERY:
    raise ValueError(
      f"{', '.join(paths)}: {count} documents, separated by blank lines."
      f" Pre-training needs {_HELD_OUT_EVERY} or more."
    )

  numbered = _blocks(files).unbatch().enumerate()

  def documents(held_out: bool) -> tf.data.Dataset:
    return numbered.filter(
      lambda index, _: (index % _HELD_OUT_EVERY == 0) == held_out
    ).map(lambda _, text: text)

  # Without directories: cards of exports contain no path of this machine.
  names = ", ".join(os.path.basename(path) for path in paths)
  return Corpus(
    f"{count:,} documents of {names}", documents(False), documents(True)
  )


def _blocks(paths: Sequence[str]) -> tf.data.Dataset:
  """Returns the blocks of lines in text files, shape `[None]`.

  The pipeline is free of Python functions, which a parameter server's workers
  could not run.
  """
  end = tf.data.Dataset.from_tensors("")
  lines = tf.data.Dataset.from_tensor_slices(paths).flat_map(
    lambda path: tf.data.TextLineDataset(path).concatenate(end)
  )

  def split(begun: tf.Tensor, lines: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    text = tf.strings.join([begun, tf.strings.reduce_join(lines + "\n")])
    text = tf.strings.regex_replace(text, r"\n\s*\n", "\n\n")
    blocks = tf.strings.split(text, "\n\n")
    ended = tf.strings.strip(blocks[:-1])
    return blocks[-1], tf.boolean_mask(ended, ended != "")

  return lines.batch(_LINES_AT_ONCE).scan("", split)
