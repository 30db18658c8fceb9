"""Images and videos of scikit-learn's handwritten digits."""

from __future__ import annotations

from etils import epy

from data import classes

with epy.lazy_imports():  # Programs parse their flags first.
  import numpy as np
  from sklearn import datasets as sklearn_datasets
  from sklearn import model_selection
  import tensorflow as tf

# The first and the last class of scikit-learn's handwritten digits.
_DIGITS = {"digits": (0, 9), "digits_0_4": (0, 4), "digits_5_9": (5, 9)}
# Directions of motion in the videos: pixels down and to the right per frame.
_DIRECTIONS = {
  "moving_digits": {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 0),
    "up": (-1, 0),
  },
  "diagonally_moving_digits": {
    "down_right": (1, 1),
    "down_left": (1, -1),
    "up_right": (-1, 1),
    "up_left": (-1, -1),
  },
}
NAMES = (*_DIGITS, *_DIRECTIONS)


def load(name: str) -> classes.Dataset:
  """Returns one of `NAMES`."""
  if name in _DIRECTIONS:
    return _moving_digits(name)
  return _digits(*_DIGITS[name], by_writer=name == "digits_5_9")


def _digits(first: int, last: int, *, by_writer: bool) -> classes.Dataset:
  """Returns scikit-learn's handwritten digits (UCI, 8x8 pixels)."""
  data = sklearn_datasets.load_digits()
  kept = (data.target >= first) & (data.target <= last)
  images = data.images[kept][..., None].astype("float32") / 16
  labels = data.target[kept] - first
  if by_writer:  # The held-out digits are by other writers.
    train, test = np.split(np.arange(len(labels)), [len(labels) // 5])[::-1]
  else:
    train, test = model_selection.train_test_split(
      np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
  return classes.dataset(
    f"scikit-learn's handwritten digits {first} to {last}, enlarged from 8 by 8"
    " pixels bilinearly",
    [str(digit) for digit in range(first, last + 1)],
    classes.slices(images[train], labels[train]),
    classes.slices(images[test], labels[test]),
  )


def _moving_digits(name: str) -> classes.Dataset:
  """Returns videos of handwritten digits, whose classes are directions.

  In each frame of 16 by 16 pixels a digit moves by one pixel, and reenters on
  the opposite side. The motion repeats after 16 frames.
  """
  directions = _DIRECTIONS[name]
  is_diagonal = name != "moving_digits"
  digits = _digits(0, 9, by_writer=is_diagonal)

  def move(i: tf.Tensor, digit: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    image = tf.pad(digit[0], [[0, 8], [0, 8], [0, 0]])
    label = i % len(directions)
    step = tf.gather(list(directions.values()), label)
    start = tf.random.stateless_uniform([2], [0, i], 0, 16, tf.int32)
    frames = [tf.roll(image, start + n * step, [0, 1]) for n in range(16)]
    return tf.stack(frames), label

  def part(of_digits: tf.data.Dataset, count: int) -> classes.Part:
    videos = of_digits.take(count).enumerate().map(move, tf.data.AUTOTUNE)
    return videos, np.arange(count) % len(directions)

  return classes.dataset(
    "scikit-learn's handwritten digits, each moving"
    f" {', '.join(directions).replace('_', ' ')}",
    list(directions),
    part(digits.train, 240),
    part(digits.test, 240 if is_diagonal else 60),
  )
