"""Texts to fine-tune on, with their classes."""

from __future__ import annotations

import csv
import dataclasses

from etils import epy

from models.nlp import datasets

with epy.lazy_imports():  # Programs parse their flags first.
  import numpy as np

# Packages of Python's standard library that have many docstrings.
_PACKAGES = [
  *("asyncio", "email", "http", "importlib"),
  *("logging", "multiprocessing", "unittest", "xml"),
]


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

  A quarter of the library's modules is held out for testing.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  splits, seen = ([], []), set()
  for module, held_out, text in datasets.docstrings(_PACKAGES):
    if text not in seen and len(text.split()) > 3:
      seen.add(text)
      splits[held_out].append((text, module.parts[0]))
  return _dataset(*splits)


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
