"""Data sets of images, by name."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from etils import epy

# Programs import this module for the names, before they parse their flags.
with epy.lazy_imports():
  from sklearn import datasets as sklearn_datasets
  from sklearn import model_selection
  import tensorflow as tf
  import tensorflow_datasets as tfds

# Digits are scikit-learn's handwritten ones; the others are downloaded.
NAMES = (
  "digits",
  "digits_0_4",
  "moving_digits",
  "mnist",
  "fashion_mnist",
  "cifar10",
)
PREFIX = "tfds:"  # Before the name of a data set in tensorflow-datasets.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set, of which `test` is held out.

  Attributes:
    description: What it is, for the model card.
    classes: Names of the classes that the labels count, from 0 on.
    train: Pairs of an image, float32 `[height, width, channels]` in [0, 1],
      and a label, int64 `[]`. Their number is known.
    test: The same.
  """

  description: str
  classes: Sequence[str]
  train: tf.data.Dataset
  test: tf.data.Dataset


def is_name(name: str) -> bool:
  """Tells whether `load` may know a name; tensorflow-datasets is not asked."""
  return name in NAMES or (name.startswith(PREFIX) and name != PREFIX)


def load(name: str, image_shape: Sequence[int]) -> Dataset:
  """Loads a data set.

  Args:
    name: One of `NAMES`, or `tfds:NAME` for NAME in tensorflow-datasets, which
      keeps what it downloads in the directory that TFDS_DATA_DIR says.
    image_shape: Height, width and channels that the images get: they are
      resized bilinearly, and grey ones repeated to three channels. For videos
      the number of frames comes first; an image becomes equal frames.

  Raises:
    ConnectionError: It is not there and cannot be downloaded.
    ValueError: It is unknown, or has no single images with one label, or images
      of other channels.
  """
  if name == "moving_digits":
    dataset = _moving_digits(image_shape)
  elif name.startswith("digits"):
    dataset = _digits(range(5) if name == "digits_0_4" else range(10))
  else:
    dataset = _of_tensorflow_datasets(name.removeprefix(PREFIX))
  channels = dataset.train.element_spec[0].shape[-1]
  if channels not in (1, image_shape[-1]):
    raise ValueError(
      f"The images of {name} have {channels} channels; the model takes"
      f" {image_shape[-1]}."
    )

  def prepare(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
    image = tf.image.convert_image_dtype(image, tf.float32)  # From uint8 too.
    image = tf.image.resize(image, image_shape[-3:-1])
    return tf.broadcast_to(image, image_shape), label

  return dataclasses.replace(
    dataset,
    **{
      split: getattr(dataset, split).map(prepare, tf.data.AUTOTUNE)
      for split in ("train", "test")
    },
  )


def _digits(classes: range) -> Dataset:
  """Returns scikit-learn's handwritten digits (UCI, 8x8 pixels)."""
  data = sklearn_datasets.load_digits()
  kept = (data.target >= classes.start) & (data.target < classes.stop)
  images = data.images[kept][..., None].astype("float32") / 16
  labels = data.target[kept] - classes.start
  train_images, test_images, train_labels, test_labels = (
    model_selection.train_test_split(
      images, labels, test_size=0.2, stratify=labels, random_state=0
    )
  )
  return Dataset(
    f"scikit-learn's handwritten digits {classes.start} to {classes.stop - 1},"
    " enlarged from 8 by 8 pixels bilinearly",
    [str(digit) for digit in classes],
    tf.data.Dataset.from_tensor_slices((train_images, train_labels)),
    tf.data.Dataset.from_tensor_slices((test_images, test_labels)),
  )


def _moving_digits(video_shape: Sequence[int]) -> Dataset:
  """Returns videos of handwritten digits, whose classes are directions.

  A digit moves by one of 16 by 16 pixels in each frame, and comes back on the
  other side.
  """
  if len(video_shape) != 4:
    raise ValueError("moving_digits has videos; the model takes images.")
  steps = {"right": [0, 1], "left": [0, -1], "down": [1, 0], "up": [-1, 0]}
  digits = _digits(range(10))

  def move(i: tf.Tensor, digit: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    image = tf.pad(digit[0], [[0, 8], [0, 8], [0, 0]])
    label = i % len(steps)
    step = tf.gather(list(steps.values()), label)
    start = tf.random.stateless_uniform([2], [0, i], 0, 16, tf.int32)
    frames = [
      tf.roll(image, start + frame * step, [0, 1])
      for frame in range(video_shape[0])
    ]
    return tf.stack(frames), label

  return Dataset(
    "scikit-learn's handwritten digits, each moving right, left, down or up",
    list(steps),
    digits.train.take(240).enumerate().map(move, tf.data.AUTOTUNE),
    digits.test.take(60).enumerate().map(move, tf.data.AUTOTUNE),
  )


def _of_tensorflow_datasets(name: str) -> Dataset:
  """Returns a data set of tensorflow-datasets; downloads it if need be."""
  try:
    builder = tfds.builder(name)
  except ValueError as e:  # It lists all there are, line by line.
    raise ValueError(
      f"tensorflow-datasets has no {name}: {str(e).splitlines()[0]}"
    ) from e
  features = builder.info.features
  if builder.info.supervised_keys != ("image", "label") or not isinstance(
    features["label"], tfds.features.ClassLabel
  ):
    raise ValueError(
      f"{name} has no single images with one label each; its features are"
      f" {', '.join(features)}."
    )
  try:
    builder.download_and_prepare()
  except Exception as e:  # It raises what its downloads and parsers do.
    message = " ".join(str(e).split())
    raise ConnectionError(
      f"tensorflow-datasets cannot prepare {name}: {message}"
    ) from e
  held_out = [s for s in ("test", "validation") if s in builder.info.splits]
  train, test = (
    ("train", held_out[0]) if held_out else ("train[:80%]", "train[80%:]")
  )
  return Dataset(
    f"{builder.info.full_name} of tensorflow-datasets",
    features["label"].names,
    builder.as_dataset(split=train, as_supervised=True),
    builder.as_dataset(split=test, as_supervised=True),
  )
