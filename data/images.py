"""Images with classes: named data sets, folders and TFRecords."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import os

from absl import flags
from etils import epy

from data import classes
from data import digits
from data import pictures
from distribution import errors
from distribution import formats

# Programs import this module before they parse their flags.
with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tensorflow_datasets as tfds

flags.disclaim_key_flags()  # --help lists them as the program's.

_DOWNLOADED = ("mnist", "fashion_mnist", "cifar10")
NAMES = (*digits.NAMES, *_DOWNLOADED)
_TFDS, _FOLDER = "tfds:", "folder:"  # Prefixes of names.

_CACHED_BYTES = 2**30
_AT_ONCE = 16  # One step of tf.data costs as much as decoding a small picture.
_MOST_CLASSES = 2**20  # In TFRecords.


def define_flags(flag: str, default: str | None, text: str) -> None:
  """Defines flags for a data set, its held-out share and its class names.

  Args:
    flag: Name of the flag for the data set.
    default: Default of this flag.
    text: The beginning of the help text of this flag.
  """
  flags.DEFINE_string(
    flag,
    default,
    f"{text} One of {', '.join(NAMES)}; {_TFDS}NAME for NAME in"
    " tensorflow-datasets; or a path: of a folder with a folder of pictures for"
    " each class (JPEG, PNG, GIF, BMP, WebP), of a data set that"
    " tensorflow-datasets has prepared, or of TFRecords with image/encoded and"
    f" image/class/label. {_FOLDER}PATH is a path too. All digits come with"
    " scikit-learn; moving ones are videos. mnist, fashion_mnist and cifar10"
    " are downloaded.",
  )
  classes.define_flags("images")
  require_existing(flag)


def require_existing(flag: str) -> None:
  """Requires that the value of a flag, if it has one, can be loaded."""
  flags.register_validator(
    flag,
    lambda name: name is None or is_named(name) or bool(_path(name)),
    f"It must be one of {', '.join(NAMES)}, {_TFDS}NAME, or an existing path.",
  )


def is_named(name: str) -> bool:
  """Returns whether `load` takes this as a name, not as a path."""
  return name in NAMES or (name.startswith(_TFDS) and name != _TFDS)


def _path(name: str) -> str | None:
  """Returns the absolute path in the value of a flag; None for a name."""
  if not name.removeprefix(_FOLDER):
    return None
  path = formats.absolute(name.removeprefix(_FOLDER))
  if "://" in path:
    return path
  is_there = os.path.exists(path) or (
    "*" in path and os.path.isdir(os.path.dirname(path))
  )
  return path if is_there else None


def load(
  name: str,
  held_out: float | None = None,
  class_names_file: str | None = None,
) -> classes.Dataset:
  """Finds a data set and counts its classes; `resized` reads its images.

  Args:
    name: A value of the flag that `define_flags` defines.
      tensorflow-datasets downloads to the directory in TFDS_DATA_DIR.
    held_out: Share of each class to hold out; the default is 0.2. Data sets
      with a test split take no share.
    class_names_file: File with the names of the classes. For folders it sets
      their order.

  Returns:
    A data set of pairs of an image and a label, int64 `[]`; their number is
    known. An image is uint8 or float32 `[height, width, channels]`, a video has
    frames as its first dimension, and a picture is a pair of the bytes of a
    file and its name.

  Raises:
    ConnectionError: The data set cannot be downloaded.
    ValueError: The data set is unknown or unreadable, or its examples do not
      have a single image and a single label.
  """
  names = class_names_file and classes.read_names(class_names_file)
  if name in digits.NAMES:
    classes.refuse_share(held_out, name, "a part")
    return _renamed(digits.load(name), names)
  if is_named(name):
    builder = _builder(name.removeprefix(_TFDS))
    return _renamed(_of_tensorflow_datasets(builder, held_out), names)
  path = _path(name)
  if not path:
    raise ValueError(f"{name} does not exist.")
  prepared = sorted(
    os.path.join(path, part)
    for part in ("", *pictures.folders(path))
    if tf.io.gfile.exists(os.path.join(path, part, "features.json"))
  )
  if prepared:  # Each version of a data set is a folder.
    builder = tfds.builder_from_directory(prepared[-1])
    return _renamed(_of_tensorflow_datasets(builder, held_out), names)
  records = (
    [path]
    if "*" in path or not tf.io.gfile.isdir(path)
    else [
      f"{path}/*tfrecord*",
      f"{path}/*-of-*",
    ]
  )
  records = sorted({f for r in records for f in tf.io.gfile.glob(r)})
  if records:
    return _records(path, records, held_out, names)
  return pictures.folder(path, held_out, names)


def _renamed(
  dataset: classes.Dataset, names: Sequence[str] | None
) -> classes.Dataset:
  if not names:
    return dataset
  if len(names) != len(dataset.classes):
    raise ValueError(
      f"The file of class names has {len(names)} of them, but"
      f" {dataset.description} has {len(dataset.classes)} classes."
    )
  return dataclasses.replace(dataset, classes=names)


def resized(
  dataset: classes.Dataset,
  image_shape: Sequence[int],
  *,
  is_remote: bool = False,
) -> classes.Dataset:
  """Converts a data set from `load` to images of one shape.

  Pictures are decoded lazily. Transparent pixels become white, and the EXIF
  orientation is applied. Decoded training images are kept
  in memory if they need less than 1 GiB. In `test` and `validation`, pictures
  that cannot be decoded have the label -1.

  Args:
    dataset: The data set.
    image_shape: Height, width and channels of the result, float32 in [0, 1].
      Images are resized bilinearly and converted between grey and color. For
      videos the number of frames comes first, and an image is repeated for each
      frame.
    is_remote: Whether other machines, which run no Python, read the data set.

  Raises:
    ValueError: The data set has videos but the shape is that of an image, its
      images have another number of channels, or other machines would have to
      decode pictures, which needs Python.
  """
  is_encoded = isinstance(dataset.train.element_spec[0], tuple)
  if is_encoded and is_remote:
    raise ValueError(
      f"{dataset.description}: remote TPUs and parameter servers cannot decode"
      " pictures. Use another --strategy, or tensorflow-datasets."
    )

  def prepare(
    examples: tf.data.Dataset, *, is_training: bool
  ) -> tf.data.Dataset:
    count = len(examples)
    if is_encoded:
      of = int(dataset.counts.sum()), dataset.description
      batches = pictures.decoded(
        examples.batch(_AT_ONCE), image_shape, *of, is_training=is_training
      )
    else:
      resize = _resizer(dataset, image_shape)
      batches = examples.map(resize, tf.data.AUTOTUNE).batch(_AT_ONCE)
    image = batches.element_spec[0]
    size = count * image.shape[1:].num_elements() * image.dtype.size
    if is_training and size <= _CACHED_BYTES:
      batches = batches.cache()
    batches = batches.map(convert, tf.data.AUTOTUNE)
    return batches.unbatch().apply(
      tf.data.experimental.assert_cardinality(count)
    )

  def convert(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    images = tf.image.convert_image_dtype(images, tf.float32)  # May be uint8.
    if images.shape.rank == len(image_shape):  # A video of equal frames.
      images = images[:, tf.newaxis]
    shape = [tf.shape(images)[0], *image_shape]
    return tf.broadcast_to(images, shape), labels

  return dataclasses.replace(
    dataset,
    train=prepare(dataset.train, is_training=True),
    test=prepare(dataset.test, is_training=False),
    validation=dataset.validation
    and prepare(dataset.validation, is_training=False),
  )


def names_of_files(dataset: classes.Dataset) -> list[str]:
  """Returns the names of the pictures in `test`; [] if it has no pictures."""
  if not isinstance(dataset.test.element_spec[0], tuple):
    return []
  names = dataset.test.map(lambda image, label: image[1])
  return [x.decode(errors="replace") for x in names.as_numpy_iterator()]


def arrays(
  name: str, image_shape: Sequence[int]
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
  """Loads a small data set: images, `[n, *image_shape]`, and labels, `[n]`.

  Returns:
    Training data and held-out data.
  """
  dataset = resized(load(name), image_shape)
  return tuple(
    next(split.batch(int(count)).as_numpy_iterator())
    for split, count in zip(
      (dataset.train, dataset.test), dataset.counts.sum(axis=0), strict=True
    )
  )


def _resizer(
  dataset: classes.Dataset, image_shape: Sequence[int]
) -> Callable[..., tuple]:
  """Makes a function that resizes images, and frames of videos."""
  spec, _ = dataset.train.element_spec
  *is_video, _, _, channels = spec.shape
  if is_video and len(image_shape) == 3:
    raise ValueError(
      f"{dataset.description}: these are videos; the model takes images."
    )
  if channels not in (1, 3, image_shape[-1]):
    raise ValueError(
      f"The images of {dataset.description} have {channels} channels; the"
      f" model takes {image_shape[-1]}."
    )
  frames, (height, width, channels) = image_shape[:-3], image_shape[-3:]

  def resize(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
    if image.shape.rank == 4:  # The movement of each video is periodic.
      image = tf.gather(image, tf.range(frames[0]) % image.shape[0])
    is_large = image.dtype == tf.uint8
    image = tf.image.convert_image_dtype(image, tf.float32)
    if channels == 1 and image.shape[-1] == 3:
      image = tf.image.rgb_to_grayscale(image)
    image = tf.image.resize(image, [height, width], antialias=is_large)
    if is_large:
      image = tf.image.convert_image_dtype(image, tf.uint8, saturate=True)
    return image, label

  return resize


def _builder(name: str) -> tfds.core.DatasetBuilder:
  """Returns a data set of tensorflow-datasets; downloads it if need be."""
  try:
    builder = tfds.builder(name)
  except (AssertionError, ValueError) as e:  # The message lists all data sets.
    raise ValueError(
      f"tensorflow-datasets has no {name}: {str(e).splitlines()[0]}"
    ) from e
  _keys(builder)
  try:
    builder.download_and_prepare()
  except (
    Exception
  ) as e:  # Downloads and parsers raise many types of exceptions.
    message = " ".join(str(e).split())
    raise ConnectionError(
      f"tensorflow-datasets cannot prepare {name}: {message}"
    ) from e
  return builder


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
  """Returns the keys of the only image and the only label of an example."""
  features = dict(builder.info.features)
  keys = [
    [key for key, feature in features.items() if isinstance(feature, kind)]
    for kind in (tfds.features.Image, tfds.features.ClassLabel)
  ]
  if [len(k) for k in keys] != [1, 1]:
    raise ValueError(
      f"{builder.info.name} has no single images with one label each; its"
      f" features are {', '.join(features)}."
    )
  return keys[0][0], keys[1][0]


def _of_tensorflow_datasets(
  builder: tfds.core.DatasetBuilder, share: float | None
) -> classes.Dataset:
  """Returns a data set that tensorflow-datasets has prepared."""
  image, label = _keys(builder)

  def read(split: str, *keys: str) -> tf.data.Dataset:
    decoders = tfds.decode.PartialDecoding(set(keys))
    return builder.as_dataset(split=split, decoders=decoders).map(
      lambda example: tuple(example[key] for key in keys)
    )

  def part(split: str) -> classes.Part:
    labels = [x for (x,) in read(split, label).batch(4096).as_numpy_iterator()]
    return read(split, image, label), np.concatenate(labels)

  description = f"{builder.info.full_name} of tensorflow-datasets"
  names = builder.info.features[label].names
  train = part("train")
  for split in classes.HELD_OUT:
    test = split in builder.info.splits and part(split)
    if (
      test and test[1].min() >= 0
    ):  # Competitions hide the labels of their test split as -1.
      classes.refuse_share(share, description, split)
      return classes.dataset(description, names, train, test)
  return classes.dataset(description, names, *classes.divided(*train, share))


def _records(
  path: str,
  files: Sequence[str],
  share: float | None,
  names: Sequence[str] | None,
) -> classes.Dataset:
  """Reads TFRecords with Model Garden's keys."""
  label_keys = {
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    "image/class/text": tf.io.FixedLenFeature([], tf.string, ""),
  }
  image_keys = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
    "image/filename": tf.io.FixedLenFeature([], tf.string, ""),
  }
  texts = {}  # Names of classes, by label.

  def part(files: Sequence[str]) -> classes.Part:
    records = tf.data.TFRecordDataset(files, num_parallel_reads=8)
    labels = []
    for batch in records.batch(1024).map(
      lambda batch: tf.io.parse_example(batch, label_keys)
    ):
      labels += [batch["image/class/label"].numpy()]
      words = batch["image/class/text"].numpy()
      texts.update(zip(labels[-1], words, strict=True))

    def parse(record: tf.Tensor) -> tuple:
      example = tf.io.parse_single_example(record, image_keys | label_keys)
      image = tuple(example[key] for key in image_keys)
      return image, example["image/class/label"]

    count = sum(map(len, labels))
    return records.map(parse, tf.data.AUTOTUNE).apply(
      tf.data.experimental.assert_cardinality(count)
    ), np.concatenate(labels or [np.zeros(0, np.int64)])

  def named(*words: str) -> list[str]:
    return [f for f in files if os.path.basename(f).startswith(words)]

  try:
    if named(classes.TRAIN) and named(*classes.HELD_OUT):
      classes.refuse_share(share, path, "files for tests")
      parts = part(named(classes.TRAIN)), part(named(*classes.HELD_OUT))
    else:
      parts = classes.divided(*part(files), share)
  # TensorFlow's messages may quote bytes that are not UTF-8.
  except (tf.errors.OpError, UnicodeDecodeError) as e:
    raise ValueError(
      f"{path}: these are no TFRecords with image/encoded and"
      f" image/class/label: {errors.one_line(e)}"
    ) from e
  if not texts:
    raise ValueError(f"{path}: there is no TFRecord.")
  if not 0 <= min(texts) <= max(texts) < _MOST_CLASSES:
    raise ValueError(
      f"{path}: the labels in image/class/label must be 0 to"
      f" {_MOST_CLASSES - 1:,}; they are {min(texts)} to {max(texts)}."
    )
  names = names or [
    texts.get(i, b"").decode(errors="replace") or str(i)
    for i in range(max(texts) + 1)
  ]
  return classes.dataset(
    f"the TFRecords {os.path.basename(path)}", names, *parts
  )
