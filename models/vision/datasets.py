"""Data sets of small grey images, by name."""

from collections.abc import Callable
import dataclasses

from etils import epy
import numpy as np

# Programs import this module for the names, before they parse their flags.
with epy.lazy_imports():
  from sklearn import datasets as sklearn_datasets
  from sklearn import model_selection
  import tensorflow as tf
  import tf_keras


@dataclasses.dataclass(frozen=True)
class Split:
  """Images, float32 `[n, 28, 28, 1]` in [0, 1], and labels, int64 `[n]`."""

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set, of which `test` is held out."""

  description: str
  num_classes: int
  train: Split
  test: Split


def digits(classes: range = range(10)) -> Dataset:
  """Returns scikit-learn's handwritten digits (UCI, 8x8 pixels), enlarged.

  Args:
    classes: The digits to keep. The labels count from 0.
  """
  data = sklearn_datasets.load_digits()
  images = tf.image.resize(data.images[..., np.newaxis] / 16.0, (28, 28))
  kept = np.isin(data.target, classes)
  labels = data.target[kept] - classes.start
  train_images, test_images, train_labels, test_labels = (
    model_selection.train_test_split(
      images.numpy()[kept],
      labels,
      test_size=0.2,
      stratify=labels,
      random_state=0,
    )
  )
  return Dataset(
    f"scikit-learn's handwritten digits {classes.start} to {classes.stop - 1},"
    " enlarged from 8 by 8 pixels bilinearly",
    len(classes),
    Split(train_images, train_labels),
    Split(test_images, test_labels),
  )


def _downloaded(description: str, module_name: str) -> Dataset:
  """Returns a data set that tf_keras downloads into ~/.keras/datasets.

  Args:
    description: What it is called.
    module_name: Its module in `tf_keras.datasets`.

  Raises:
    ConnectionError: It is not there and cannot be downloaded.
  """
  try:
    splits = getattr(tf_keras.datasets, module_name).load_data()
  except Exception as e:  # tf_keras raises nothing more specific.
    raise ConnectionError(f"{description} cannot be downloaded: {e}") from e
  return Dataset(
    description,
    10,
    *(
      Split(
        images[..., np.newaxis].astype(np.float32) / 255.0,
        labels.astype(np.int64),
      )
      for images, labels in splits
    ),
  )


BY_NAME: dict[str, Callable[[], Dataset]] = {
  "digits": digits,
  "digits_0_4": lambda: digits(range(5)),
  "mnist": lambda: _downloaded("MNIST", "mnist"),
  "fashion_mnist": lambda: _downloaded("Fashion-MNIST", "fashion_mnist"),
}
