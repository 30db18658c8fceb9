"""Classes of labelled examples: names, counts, held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from absl import flags
from etils import epy

from data import tables
from distribution import errors

with epy.lazy_imports():
  import numpy as np
  from sklearn.utils import class_weight
  import tensorflow as tf

flags.disclaim_key_flags()  # --help lists them as the program's.

FLAGS = ("held_out", "class_names_file")
HELD_OUT_SHARE = 0.2
# Names of folders and files with training data, and with held-out data.
TRAIN, HELD_OUT = "train", ("test", "validation", "valid", "val")
_LISTED = 20  # Classes that a summary lists.
# Early stopping needs validation examples: this share of the training examples,
# at most this many, and from classes with at least this many examples.
_VALIDATION_SHARE = 0.2
_MOST_VALIDATION = 5000
_LEAST_TO_DIVIDE = 5


# Examples, whose number is known, and their labels, int64 `[n]`.
Part = tuple[Any, "np.ndarray"]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples with labels, some of which are held out.

  Attributes:
    description: Text for the model card, without paths.
    classes: Names of the classes. A label is the index of a name.
    counts: Training and held-out examples of each class, int `[classes, 2]`.
    train: Training examples. Their form depends on the function that returns
      the data set.
    test: Held-out examples, in the same form.
    labels: The class of each example of the original `train`, int `[n]`.
    place: Maps the index of a held-out text to its file and line.
    validation: Examples that `with_validation` took out of `train`, in the form
      of `test`.
  """

  description: str
  classes: Sequence[str]
  counts: np.ndarray
  train: Any
  test: Any
  labels: np.ndarray
  place: Callable[[int], str] = lambda index: ""
  validation: Any = None

  @property
  def num_held_out(self) -> int:
    """Number of examples in `test`."""
    return int(self.counts[:, 1].sum())

  def __str__(self) -> str:
    """Returns the description, with the classes and their counts."""
    return f"{self.description}: {summary(self.classes, self.counts)}"


def dataset(
  description: str, names: Sequence[str], train: Part, test: Part
) -> Dataset:
  """Counts the classes and makes a data set."""
  counts = count(names, train[1], test[1], description)
  return Dataset(description, names, counts, train[0], test[0], train[1])


def with_validation(dataset: Dataset) -> Dataset:
  """Moves some training examples to `validation`, if there are enough."""
  chosen = for_validation(dataset.labels, dataset.classes)
  if chosen is None:
    return dataset
  if isinstance(dataset.train, tuple):
    texts, labels = dataset.train
    train, validation = (
      (texts.filter(mask), labels[mask]) for mask in (~chosen, chosen)
    )
  else:
    (train, _), (validation, _) = _divided(
      dataset.train, dataset.labels, chosen
    )
  return dataclasses.replace(
    dataset,
    train=train,
    labels=dataset.labels[~chosen],
    validation=validation,
  )


def define_flags(examples: str, condition: str = "") -> None:
  """Defines flags for the hold-out and the names of classes.

  Args:
    examples: The noun for the examples in help texts, in the plural.
    condition: Prefix of the help texts that says when the flags apply.
  """
  flags.DEFINE_float(
    "held_out",
    None,
    f"{condition}Share of the {examples} of each class to hold out. Default:"
    f" the test split of the data, or else {HELD_OUT_SHARE:g}.",
    lower_bound=0.01,
    upper_bound=0.9,
  )
  flags.DEFINE_string(
    "class_names_file",
    None,
    f"{condition}File with the names of the classes, one per line, in the order"
    " of the labels. Default: the names in the data.",
  )


def read_names(path: str) -> list[str]:
  """Reads names of classes, one in each line, in the order of the labels.

  Raises:
    InputError: The file cannot be read.
    ValueError: The file is empty or is not UTF-8, or a name is empty or
      duplicated.
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

  Each class keeps at least one training example. If it has more than one
  example, at least one is held out.

  Args:
    labels: The class of each example, int `[n]`.
    share: Share to hold out, in (0, 1); None: `HELD_OUT_SHARE`.

  Returns:
    Whether to hold out each example, bool `[n]`. The choice is the same in
    every run.
  """
  share = HELD_OUT_SHARE if share is None else share
  chosen = np.zeros(len(labels), bool)
  order = np.random.default_rng(0).permutation(len(labels))
  for label in np.unique(labels):
    examples = order[labels[order] == label]
    most = len(examples) - 1
    chosen[examples[: min(max(round(share * len(examples)), 1), most)]] = True
  return chosen


def for_validation(
  labels: np.ndarray, names: Sequence[str]
) -> np.ndarray | None:
  """Chooses training examples for validation, the same share of each class.

  Prints their number, or why there are none.

  Args:
    labels: The class of each training example, int `[n]`.
    names: Names of the classes.

  Returns:
    Whether each example is for validation, bool `[n]`. None if a class has
    fewer than five.
  """
  counts = np.bincount(labels, minlength=len(names))
  few = [i for i in np.argsort(counts) if 0 < counts[i] < _LEAST_TO_DIVIDE]
  if few:
    print(
      f"No early stopping: class {names[few[0]]} has too few training examples"
      f" ({counts[few[0]]}; validation needs {_LEAST_TO_DIVIDE} of each class)"
    )
    return None
  share = min(_VALIDATION_SHARE, _MOST_VALIDATION / len(labels))
  chosen = held_out(labels, share)
  print(
    f"Early stopping: of the {len(labels):,} training examples"
    f" {chosen.sum():,} are for validation, {(~chosen).sum():,} to train on"
  )
  return chosen


def balanced(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Computes and prints scikit-learn's "balanced" class weights.

  Args:
    counts: Number of training examples of each class, int `[classes]`.
    names: Names of the classes.

  Returns:
    `n / (classes * n_of_class)`, float `[classes]`, and 1 for a class without
    examples.
  """
  present = np.flatnonzero(counts)
  labels = np.repeat(present, counts[present])
  weights = np.ones(len(names))
  weights[present] = class_weight.compute_class_weight(
    "balanced", classes=present, y=labels
  )
  listed = [f"{n} {w:.3g}" for n, w in zip(names, weights, strict=True)]
  left = [f"and {len(listed) - _LISTED} more"] * (len(listed) > _LISTED)
  print(f"Class weights: {', '.join(listed[:_LISTED] + left)}")
  return weights


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
    names: Names of the classes. A label is the index of a name.
    train: Labels of the training examples.
    test: Labels of the examples held out.
    source: Name of the data, for errors.

  Returns:
    Counts, int `[classes, 2]`.

  Raises:
    ValueError: There are fewer than two classes, no training or no held-out
      examples, or held-out examples of a class without training examples.
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


def divided(
  examples: tf.data.Dataset, labels: np.ndarray, share: float | None
) -> tuple[Part, Part]:
  """Splits examples, ordered as `labels`, into training and held-out ones."""
  return _divided(examples, labels, held_out(labels, share))


def _divided(
  examples: tf.data.Dataset, labels: np.ndarray, is_held_out: np.ndarray
) -> tuple[Part, Part]:
  def part(chosen: np.ndarray) -> Part:
    of_part = (
      examples.enumerate()
      .filter(lambda i, _: tf.gather(chosen, i))
      .map(lambda _, example: example)
      .apply(tf.data.experimental.assert_cardinality(chosen.sum()))
    )
    return of_part, labels[chosen]

  return part(~is_held_out), part(is_held_out)


def slices(images: np.ndarray, labels: np.ndarray) -> Part:
  """Returns arrays as examples, pairs of an image and a label."""
  labels = labels.astype(np.int64)
  return tf.data.Dataset.from_tensor_slices((images, labels)), labels


def refuse_share(share: float | None, source: str, part: str) -> None:
  """Raises a ValueError if --held_out is set but the data has a test split."""
  if share:
    raise ValueError(f"{source} has {part}, to be held out. Omit --held_out.")
