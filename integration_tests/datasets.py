"""Images to fine-tune on, as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etils import epy

# Programs import this module before they parse their flags.
with epy.lazy_imports():
  import numpy as np
  from sklearn import datasets as sklearn_datasets
  import tensorflow as tf
  import tf_keras

# Digits are of scikit-learn; the others are downloaded.
NUM_CLASSES = {
  "digits": 10,
  "digits_5_9": 5,
  "moving_digits": 4,
  "mnist": 10,
  "fashion_mnist": 10,
}

if TYPE_CHECKING:
  Arrays = tuple[np.ndarray, np.ndarray]


def load(
  name: str, image_shape: tuple[int, ...] = (28, 28, 1)
) -> tuple[Arrays, Arrays]:
  """Loads a data set.

  Args:
    name: One of `NUM_CLASSES`.
    image_shape: Height, width and channels of the images. All channels of an
      image are equal: the data sets are grey. For videos the number of frames
      comes first.

  Returns:
    Training and held-out data, each as images, float32 `[n, *image_shape]` in
    [0, 1], and labels, int `[n]`, counted from 0.

  Raises:
    ConnectionError: The data set cannot be downloaded.
    ValueError: It has videos and `image_shape` is of images, or the reverse.
  """
  *frames, height, width, channels = image_shape
  if bool(frames) != (name == "moving_digits"):
    raise ValueError(
      f"--dataset={name}: moving_digits is for exports that take videos, the"
      " others are for images."
    )
  if frames:
    data = (_moving(images, *frames) for images, _ in _digits("digits"))
  else:
    data = _digits(name) if name.startswith("digits") else _downloaded(name)

  def resized(images: np.ndarray) -> np.ndarray:
    images = tf.image.resize(
      images.reshape(-1, *images.shape[-2:], 1), [height, width]
    )
    return np.repeat(images, channels, axis=-1).reshape(-1, *image_shape)

  return tuple((resized(images), labels.astype(int)) for images, labels in data)


def _downloaded(name: str) -> tuple[Arrays, Arrays]:
  try:
    splits = getattr(tf_keras.datasets, name).load_data()
  except Exception as e:  # tf_keras raises nothing more specific.
    raise ConnectionError(f"Cannot download {name}: {e}") from e
  return tuple(
    (images.astype(np.float32) / 255, labels) for images, labels in splits
  )


def _digits(name: str) -> tuple[Arrays, Arrays]:
  images, labels = sklearn_datasets.load_digits(return_X_y=True)
  first = 5 if name == "digits_5_9" else 0
  images, labels = images[labels >= first], labels[labels >= first] - first
  images = images.reshape(-1, 8, 8) / 16
  held_out = len(labels) // 5
  return (
    (images[held_out:], labels[held_out:]),
    (images[:held_out], labels[:held_out]),
  )


def _moving(images: np.ndarray, num_frames: int) -> Arrays:
  """Makes videos of digits that move diagonally: the direction is the class."""
  images = np.pad(images[:240], [(0, 0), (0, 8), (0, 8)])
  labels = np.arange(len(images)) % 4
  starts = np.random.default_rng(0).integers(16, size=(len(images), 2))
  steps = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])[labels]
  videos = [
    [
      np.roll(image, start + frame * step, axis=(0, 1))
      for frame in range(num_frames)
    ]
    for image, start, step in zip(images, starts, steps, strict=True)
  ]
  return np.array(videos), labels
