"""Texts to fine-tune on, with their classes."""

from __future__ import annotations

import ast
from collections.abc import Sequence
import csv
import pathlib
import random
import sys
import sysconfig
from typing import NamedTuple
import zlib

from etils import epy

with epy.lazy_imports():  # Programs parse their flags first.
  import numpy as np

# Packages of Python's standard library that have many docstrings.
_PACKAGES = [
  *("asyncio", "email", "http", "importlib"),
  *("logging", "multiprocessing", "unittest", "xml"),
]
# Linux distributions package these modules separately.
_LEFT_OUT = {
  *("distutils", "ensurepip", "idlelib", "lib2to3", "test", "tests", "tkinter"),
  *("turtle.py", "turtledemo"),
}


class Dataset(NamedTuple):
  """Texts, str `[n]`, with labels, int `[n]`: indices into `class_names`."""

  class_names: list[str]
  train: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]


class Pairs(NamedTuple):
  """Summaries of texts, and what follows them."""

  summaries: list[str]
  bodies: list[str]


def python_docs() -> Dataset:
  """Returns docstrings of Python's standard library, with packages as classes.

  A fourth of the library's modules is held out for testing.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  splits = (
    [(text, package) for text, package in split if len(text.split()) > 3]
    for split in _split(_PACKAGES)
  )
  return _dataset(*splits)


def python_doc_pairs() -> tuple[Pairs, Pairs]:
  """Returns docstrings of all of Python's standard library, split in two.

  The first line of a docstring is its summary. One of fewer than four words is
  left out, as are bodies of fewer than eight and repeated ones.

  Returns:
    Pairs for training; and those of the modules that `python_docs` holds out,
    in random order.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  splits, seen = [], set()
  for split in _split(sorted(sys.stdlib_module_names)):
    pairs = []
    for text, _ in split:
      summary, _, body = text.partition("\n")
      body = body.strip()
      enough = len(summary.split()) >= 4 and len(body.split()) >= 8
      if enough and body not in seen:
        seen.add(body)
        pairs.append((summary, body))
    random.Random(0).shuffle(pairs)
    splits.append(Pairs(*map(list, zip(*pairs, strict=True))))
  return tuple(splits)


def _split(
  packages: Sequence[str],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
  """Returns the docstrings of packages and the packages' names, in two splits.

  The second has those of a fourth of the modules.
  """
  library = pathlib.Path(sysconfig.get_paths()["stdlib"])
  files = (
    path.relative_to(library)
    for package in packages
    for path in (library / f"{package}.py", *(library / package).rglob("*.py"))
    if path.is_file()
  )
  modules = sorted(f for f in files if not _LEFT_OUT.intersection(f.parts))
  if not modules:
    raise FileNotFoundError(f"There is no source of Python in {library}.")
  splits, seen = ([], []), set()
  for module in modules:
    # A hash of the name does not depend on which modules are installed.
    held_out = zlib.crc32(module.as_posix().encode()) % 4 == 0
    for text in _docstrings(library / module):
      if text and text not in seen:
        seen.add(text)
        splits[held_out].append((text, module.parts[0]))
  return splits


def _docstrings(path: pathlib.Path) -> list[str]:
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  nodes = ast.walk(ast.parse(path.read_bytes()))
  return [ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds)]


def read_tsv(path: str) -> Dataset:
  """Reads a file with a class, a tab and a text in each line.

  Every fifth line is held out for testing.

  Raises:
    OSError: The file cannot be read.
    ValueError: A line has another form, or there are fewer than two classes.
  """
  with open(path, encoding="utf-8", newline="") as f:
    rows = list(csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
  for number, row in enumerate(rows, start=1):
    if len(row) != 2:
      raise ValueError(
        f"{path}, line {number}: there must be a class, a tab and a text."
      )
  if len({name for name, _ in rows}) < 2:
    raise ValueError(f"{path} has fewer than two classes.")
  pairs = [(text, name) for name, text in rows]
  return _dataset([pair for i, pair in enumerate(pairs) if i % 5], pairs[::5])


def _dataset(
  train: list[tuple[str, str]], test: list[tuple[str, str]]
) -> Dataset:
  class_names = sorted({name for _, name in train + test})
  splits = (
    (
      np.array([text for text, _ in pairs]),
      np.array([class_names.index(name) for _, name in pairs]),
    )
    for pairs in (train, test)
  )
  return Dataset(class_names, *splits)
