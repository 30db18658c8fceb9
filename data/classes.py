"""Classes of labelled examples: their names, their counts, and a hold-out."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from etils import epy

from data import tables
from distribution import errors

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf

flags.disclaim_key_flags()  # They are those of the program.

FLAGS = ("held_out", "class_names_file")
HELD_OUT_SHARE = 0.2
_LISTED = 20  # Classes that a summary lists.


def define_flags(examples: str, condition: str = "") -> None:
  """Defines flags for the hold-out and the names of classes.

  Args:
    examples: What the classes are of, in the plural.
    condition: Prefix of the help texts that says when the flags apply.
  """
  flags.DEFINE_float(
    "held_out",
    None,
    f"{condition}share of the {examples} of each class to hold out. Default:"
    f" what the data itself holds out, or {HELD_OUT_SHARE:g}.",
    lower_bound=0.01,
    upper_bound=0.9,
  )
  flags.DEFINE_string(
    "class_names_file",
    None,
    f"{condition}file with the names of the classes, one in each line, in the"
    " order of the labels. Default: the names in the data.",
  )


def read_names(path: str) -> list[str]:
  """Reads names of classes, one in each line, in the order of the labels.

  Raises:
    ValueError: The file is missing, is empty or is not UTF-8, or a name is
      empty or twice there.
  """
  about = f"Cannot read the names of classes in {path}: "
  with errors.of_input(tf.errors.OpError, about=about):
    with tf.io.gfile.GFile(path, "rb") as f:
      lines = tables.decoded(f.read(), f"{path}, ").splitlines()
  names: dict[str, None] = {}
  for number, name in enumerate(map(str.strip, lines or [""]), 1):
    if not name or name in names:
      raise ValueError(
        f"{path}, line {number}: the name of the class is"
        f" {'there twice' if name else 'missing'}."
      )
    names[name] = None
  return list(names)


def write_names(path: str, names: Sequence[str]) -> None:
  """Writes names of classes, one in each line, as `read_names` reads them."""
  with tf.io.gfile.GFile(path, "w") as f:
    f.write("".join(" ".join(name.splitlines()) + "\n" for name in names))


def held_out(labels: np.ndarray, share: float | None) -> np.ndarray:
  """Chooses examples to hold out: the same share of each class, at random.

  Each class keeps an example for training, and one of more than one is held
  out.

  Args:
    labels: The class of each example, int `[n]`.
    share: Share to hold out, in (0, 1); None: `HELD_OUT_SHARE`.

  Returns:
    Whether to hold out each example, bool `[n]`; the same in each run.
  """
  share = HELD_OUT_SHARE if share is None else share
  chosen = np.zeros(len(labels), bool)
  order = np.random.default_rng(0).permutation(len(labels))
  for label in np.unique(labels):
    examples = order[labels[order] == label]
    most = len(examples) - 1
    chosen[examples[: min(max(round(share * len(examples)), 1), most)]] = True
  return chosen


def summary(names: Sequence[str], counts: np.ndarray) -> str:
  """Lists classes with their counts, int `[classes, 2]`: trained, held out."""
  listed = ", ".join(
    f"{name} {train}+{test}"
    for name, (train, test) in zip(names[:_LISTED], counts, strict=False)
  )
  left = len(names) - _LISTED
  train, test = counts.sum(axis=0)
  return f"{len(names)} classes, {train:,} examples + {test:,} held out: " + (
    f"{listed}, and {left} more" if left > 0 else listed
  )


def count(
  names: Sequence[str], train: np.ndarray, test: np.ndarray, source: str
) -> np.ndarray:
  """Counts the examples of each class.

  Args:
    names: Names of the classes that the labels count.
    train: Labels of the training examples.
    test: Labels of the examples held out.
    source: Where they are from, for errors.

  Returns:
    Counts, int `[classes, 2]`.

  Raises:
    ValueError: There are fewer than two classes, or nothing to train on or to
      test with, or a class in the test that is not in the training.
  """
  labels = np.concatenate([train, test])
  if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
    raise ValueError(
      f"{source}: labels are {labels.min()} to {labels.max()}, but there are"
      f" {len(names)} classes."
    )
  counts = np.stack(
    [np.bincount(x, minlength=len(names)) for x in (train, test)], axis=1
  )
  untrained = [
    name
    for name, (n, tested) in zip(names, counts, strict=True)
    if tested and not n
  ]
  if len(names) < 2 or not len(train) or not len(test) or untrained:
    raise ValueError(
      f"{source} has {summary(names, counts)}. Training needs two classes, and"
      " of each class that is held out an example to train on"
      + (f", of {', '.join(untrained[:5])} too." if untrained else ".")
    )
  return counts
