"""Texts to fine-tune on, with their classes."""

from __future__ import annotations

import ast
import csv
import dataclasses
import pathlib
import sys
import sysconfig
import zlib

from etils import epy

with epy.lazy_imports():  # Programs parse their flags first.
  import numpy as np

# Packages of Python's standard library that have many docstrings.
_PACKAGES = [
  *("asyncio", "email", "http", "importlib"),
  *("logging", "multiprocessing", "unittest", "xml"),
]
# Directories that Linux distributions package separately.
_LEFT_OUT = {
  *("dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3"),
  *("site-packages", "test", "tests", "tkinter", "turtledemo", "turtle.py"),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Texts with classes.

  Attributes:
    class_names: The classes.
    train: Texts, an array of str `[n]`, and labels, int `[n]`: indices into
      `class_names`.
    test: The same, held out.
  """

  class_names: list[str]
  train: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]


def python_docs() -> Dataset:
  """Returns docstrings of Python's standard library, with packages as classes.

  A fourth of the library's modules is held out for testing.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  library = pathlib.Path(sysconfig.get_paths()["stdlib"])
  modules = sorted(
    path.relative_to(library)
    for path in library.rglob("*.py")
    if path.relative_to(library).with_suffix("").parts[0]
    in sys.stdlib_module_names
    and not _LEFT_OUT.intersection(path.relative_to(library).parts)
  )
  if not modules:
    raise FileNotFoundError(f"There is no source of Python in {library}.")
  splits, seen = ([], []), set()
  for module in modules:
    # A hash of the name does not depend on which modules are installed.
    held_out = zlib.crc32(module.as_posix().encode()) % 4 == 0
    package = module.parts[0]
    if package in _PACKAGES:
      for text in _docstrings(library / module):
        if text not in seen and len(text.split()) > 3:
          seen.add(text)
          splits[held_out].append((text, package))
  return _dataset(*splits)


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

  def arrays(pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    return (
      np.array([text for text, _ in pairs]),
      np.array([class_names.index(name) for _, name in pairs]),
    )

  return Dataset(class_names, arrays(train), arrays(test))
