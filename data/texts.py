"""Texts with classes, from docstrings or from files with rows."""

from __future__ import annotations

import array
import bisect
from collections.abc import Sequence
import dataclasses
import itertools
import os
import random
from typing import NamedTuple

from absl import flags
from etils import epy

from data import classes
from data import documents
from data import tables
from distribution import errors

with epy.lazy_imports():  # Programs parse their flags first.
  import numpy as np
  import pyarrow as pa

flags.disclaim_key_flags()  # --help lists them as the program's.

# Packages of Python's standard library with many docstrings.
_PACKAGES = (
  *("asyncio", "email", "http", "importlib"),
  *("logging", "multiprocessing", "unittest", "xml"),
)
_AT_ONCE = 10_000


def define_flags() -> None:
  """Defines flags for the user's own labelled texts."""
  flags.DEFINE_list(
    "train_file",
    None,
    "Instead of --dataset: comma-separated files or patterns of files with"
    f" texts and classes, which end in {', '.join(tables.SUFFIXES)}, or in one"
    " of these and .gz.",
  )
  for name, what in (("text_column", "texts"), ("label_column", "classes")):
    flags.DEFINE_string(
      name,
      None,
      f"With --train_file: name of the column with the {what}; in files without"
      " a header its number, from 1 on. Default: what names or values tell.",
    )
  classes.define_flags("texts", "With --train_file: ")
  errors.apply_only_with(
    "train_file", ("text_column", "label_column", *classes.FLAGS)
  )


def python_docs() -> classes.Dataset:
  """Returns docstrings of Python's standard library, with packages as classes.

  A fourth of the library's modules is held out for testing.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  splits, seen = ([], []), set()
  for module, is_held_out, text in documents.docstrings():
    package = module.parts[0]
    if package in _PACKAGES and text not in seen and len(text.split()) > 3:
      seen.add(text)
      label = _PACKAGES.index(package)
      splits[is_held_out].append((text, label, str(module)))
  parts = [
    (
      pa.chunked_array([[text for text, *_ in split]]),
      np.array([label for _, label, _ in split]),
    )
    for split in splits
  ]
  dataset = _dataset("docstrings of Python's packages", _PACKAGES, *parts)
  modules = [module for *_, module in splits[True]]
  return dataclasses.replace(dataset, place=modules.__getitem__)


class Pairs(NamedTuple):
  """Summaries of texts, and the rest of each text."""

  summaries: list[str]
  bodies: list[str]


def python_doc_pairs() -> tuple[Pairs, Pairs]:
  """Returns docstrings of Python's standard library, each split in two.

  The first line of a docstring is its summary. A docstring is left out if its
  summary has fewer than four words, or its body fewer than eight, or if another
  docstring has the same body.

  Returns:
    Training pairs, and the pairs of the modules that `python_docs` holds out,
    in random order.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  splits, seen = ([], []), set()
  for _, is_held_out, text in documents.docstrings():
    summary, _, body = text.partition("\n")
    body = body.strip()
    enough = len(summary.split()) >= 4 and len(body.split()) >= 8
    if enough and body not in seen:
      seen.add(body)
      splits[is_held_out].append((summary, body))
  for pairs in splits:
    random.Random(0).shuffle(pairs)
  return tuple(Pairs(*map(list, zip(*x, strict=True))) for x in splits)


def read(
  paths: Sequence[str],
  text_column: str | None = None,
  label_column: str | None = None,
  held_out: float | None = None,
  class_names_file: str | None = None,
) -> classes.Dataset:
  """Reads files of rows with a text and a class.

  Args:
    paths: Files, or patterns of them, as `tables.read` takes them.
    text_column: Name of the column with the texts or, without a header, its
      number. None means to find it by names or values.
    label_column: Name or number of the column with the classes, or None.
    held_out: Share to hold out, of each class; the default is 0.2.
    class_names_file: File with the names of the classes, in the order of their
      labels. The default is alphabetical order.

  Raises:
    OSError: A file cannot be read.
    InputError: The classes are implausible.
    ValueError: A row cannot be read, a class is not in `class_names_file`, or
      there are too few classes or examples.
  """
  columns = {"text_column": text_column, "label_column": label_column}
  found: dict[str, _Class] = {}
  chunks, numbers = [], array.array("i")
  files, lines, starts = tables.files(paths), array.array("i"), []
  for path in files:
    rows = tables.pick(path, columns)
    starts.append(len(lines))
    while some := list(itertools.islice(rows, _AT_ONCE)):
      chunks.append(pa.array([text or "" for _, (text, _) in some]))
      lines.extend(line for line, _ in some)
      for line, (_, name) in some:
        known = found.get(name or "")
        if not known:
          known = _Class(f"{path}, line {line}", len(found))
          found[name or ""] = known
        known.count += 1
        numbers.append(known.number)
  with errors.of_input(ValueError, about=f"{', '.join(paths)}: "):
    _check(found, len(numbers))
  names = (
    classes.read_names(class_names_file) if class_names_file else sorted(found)
  )
  for name, known in found.items():
    if name not in names:
      raise ValueError(
        f"{known.where}: the class {name} is not in {class_names_file}."
      )
  of_numbers = np.array([names.index(name) for name in found], np.int64)
  labels = of_numbers[np.array(numbers, np.int64)]
  is_held_out = classes.held_out(labels, held_out)
  texts = pa.chunked_array(chunks, pa.string())
  held_out_rows = np.flatnonzero(is_held_out)

  def place(index: int) -> str:
    row = held_out_rows[index]
    file = files[bisect.bisect(starts, row) - 1]
    return f"{os.path.basename(file)}, line {lines[row]}"

  # Without directories: cards of exports contain no path of this machine.
  dataset = _dataset(
    ", ".join(os.path.basename(path) for path in paths),
    names,
    *(
      (texts.filter(pa.array(mask)), labels[mask])
      for mask in (~is_held_out, is_held_out)
    ),
  )
  return dataclasses.replace(dataset, place=place)


@dataclasses.dataclass
class _Class:
  """Where a class occurs first, its index in that order, and its count."""

  where: str
  number: int
  count: int = 0


def _check(found: dict[str, _Class], num_rows: int) -> None:
  """Raises a ValueError for implausible classes."""
  if empty := found.get(""):
    raise ValueError(
      f"{empty.where}: the class is empty, as in {empty.count} of"
      f" {num_rows:,} rows. Name it, or remove the rows."
    )
  if 2 * len(found) > num_rows:
    raise ValueError(
      f"{len(found):,} classes in {num_rows:,} rows, such as"
      f" {', '.join(name[:40] for name in list(found)[:2])}: a class needs two"
      " rows or more. Does --label_column name the texts?"
    )
  similar: dict[str, str] = {}
  for name, known in found.items():
    other = similar.setdefault(" ".join(name.casefold().split()), name)
    if other != name:
      raise ValueError(
        f"{known.where}: the class {name!r} differs only in case or blanks from"
        f" {other!r} ({found[other].where}). Write them alike."
      )


def _dataset(
  description: str,
  names: Sequence[str],
  train: tuple[pa.ChunkedArray, np.ndarray],
  test: tuple[pa.ChunkedArray, np.ndarray],
) -> classes.Dataset:
  """Returns texts, strings `[n]`, and labels, int `[n]`, as a data set.

  To pass texts to TensorFlow, call `to_numpy()` on a slice of them.
  """
  parts = ((part, part[1]) for part in (train, test))
  return classes.dataset(description, names, *parts)
