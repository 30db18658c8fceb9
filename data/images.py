"""Images with classes: named data sets, folders and TFRecords."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import dataclasses
import io
import os
import sys

from absl import flags
from etils import epy

from data import classes
from distribution import errors
from distribution import formats

# Programs import this module before they parse their flags.
with epy.lazy_imports():
  import numpy as np
  from PIL import Image
  from PIL import ImageOps
  from sklearn import datasets as sklearn_datasets
  from sklearn import model_selection
  import tensorflow as tf
  import tensorflow_datasets as tfds

flags.disclaim_key_flags()  # They are those of the program.

# The first and the last class of scikit-learn's handwritten digits.
_DIGITS = {"digits": (0, 9), "digits_0_4": (0, 4), "digits_5_9": (5, 9)}
# Directions of videos of them: pixels down and to the right, in each frame.
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
_DOWNLOADED = ("mnist", "fashion_mnist", "cifar10")
NAMES = (*_DIGITS, *_DIRECTIONS, *_DOWNLOADED)
_TFDS, _FOLDER = "tfds:", "folder:"  # Prefixes of names.

# Suffixes of pictures, and what the files begin with.
_BEGINNINGS = {
  ".jpg": b"\xff\xd8",
  ".jpeg": b"\xff\xd8",
  ".png": b"\x89PNG",
  ".gif": b"GIF8",
  ".bmp": b"BM",
  ".webp": b"RIFF",
}
# Names of what is trained on and held out, in folders and names of files.
_TRAIN, _HELD_OUT = "train", ("test", "validation", "valid", "val")
# A few broken files are usual in pictures that were collected from the web, and
# change no class. More come of an interrupted copy or of another format.
_MOST_UNREADABLE = 0.05
_CACHED_BYTES = 2**30
_MOST_CLASSES = 2**20  # Of TFRecords.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set, of which `test` is held out.

  Attributes:
    description: What it is, for the model card, without paths.
    classes: Names of the classes that the labels count, from 0 on.
    counts: Training and held-out images of each class, int `[classes, 2]`.
    train: Pairs of an image and a label, int64 `[]`. Their number is known. As
      `load` returns it, an image is uint8 or float32 `[height, width,
      channels]`, a video the same after the frames, or it is a pair of the
      bytes of a file and its name.
    test: The same.
  """

  description: str
  classes: Sequence[str]
  counts: np.ndarray
  train: tf.data.Dataset
  test: tf.data.Dataset

  @property
  def num_held_out(self) -> int:
    """Number of images in `test`."""
    return int(self.counts[:, 1].sum())

  def __str__(self) -> str:
    """Describes it with its classes."""
    return f"{self.description}: {classes.summary(self.classes, self.counts)}"

  def names_of_files(self) -> list[str]:
    """Returns those of `test`, as `load` returns it; none if it has none."""
    spec, _ = self.test.element_spec
    if isinstance(spec, tuple):
      names = self.test.map(lambda image, label: image[1])
    elif spec.dtype == tf.string:
      names = self.test.map(lambda name, label: name)
    else:
      return []
    return [x.decode(errors="replace") for x in names.as_numpy_iterator()]


def define_flags(flag: str, default: str | None, text: str) -> None:
  """Defines flags that choose a data set, its hold-out and names of classes.

  Args:
    flag: Name of the flag for the data set.
    default: Its default.
    text: What its help text begins with.
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

  def exists(name: str | None) -> bool:
    return name is None or is_named(name) or bool(_path(name))

  flags.register_validator(
    flag,
    exists,
    f"It must be one of {', '.join(NAMES)}, {_TFDS}NAME, or an existing path.",
  )


def is_named(name: str) -> bool:
  """Tells whether `load` takes this as a name, and not as a path."""
  return name in NAMES or (name.startswith(_TFDS) and name != _TFDS)


def _path(name: str) -> str | None:
  """Returns the absolute path in the value of a flag; None if it is none."""
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
) -> Dataset:
  """Finds a data set and counts its classes; `resized` reads its images.

  Args:
    name: A value of the flag that `define_flags` defines.
      tensorflow-datasets keeps what it downloads in the directory that
      TFDS_DATA_DIR says.
    held_out: Share to hold out, of each class; the default is 0.2. Data sets
      with a part for tests take no share.
    class_names_file: File with the names of the classes. For folders it sets
      their order.

  Raises:
    ConnectionError: It is not there and cannot be downloaded.
    ValueError: It is unknown, of another form, or cannot be read.
  """
  names = class_names_file and classes.read_names(class_names_file)
  if name in _DIGITS or name in _DIRECTIONS:
    if held_out:
      raise ValueError(f"{name} has a part to hold out. Omit --held_out.")
    return _renamed(
      _digits(*_DIGITS[name], by_writer=name == "digits_5_9")
      if name in _DIGITS
      else _moving_digits(name),
      names,
    )
  if is_named(name):
    builder = _builder(name.removeprefix(_TFDS))
    return _renamed(_of_tensorflow_datasets(builder, held_out), names)
  path = _path(name)
  if not path:
    raise ValueError(f"{name} does not exist.")
  prepared = sorted(
    os.path.join(path, part)
    for part in ("", *_folders(path))
    if tf.io.gfile.exists(os.path.join(path, part, "features.json"))
  )
  if prepared:  # Versions of a data set have folders.
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
  return _folder(path, held_out, names)


def _renamed(dataset: Dataset, names: Sequence[str] | None) -> Dataset:
  if not names:
    return dataset
  if len(names) != len(dataset.classes):
    raise ValueError(
      f"The file of class names has {len(names)} of them, but"
      f" {dataset.description} has {len(dataset.classes)} classes."
    )
  return dataclasses.replace(dataset, classes=names)


def resized(
  dataset: Dataset, image_shape: Sequence[int], *, is_remote: bool = False
) -> Dataset:
  """Returns a data set that `load` returned with images of one shape.

  Bytes are decoded as they are needed: transparent pixels become white, and
  pictures turn as their EXIF orientation says. Decoded training images are kept
  in memory if they need less than 1 GiB. In `test`, pictures that cannot be
  decoded have the label -1.

  Args:
    dataset: The data set.
    image_shape: Height, width and channels that the images get, float32 in
      [0, 1]: they are resized bilinearly, grey ones repeated to three channels,
      and colors made grey for one. For videos the number of frames comes first;
      an image becomes equal frames.
    is_remote: Whether other machines read the data set, and run no Python.

  Raises:
    ValueError: It has videos, and the shape is that of an image; or images have
      other channels; or Python would have to decode them on other machines.
  """
  spec, _ = dataset.train.element_spec
  if isinstance(spec, tuple):
    if is_remote:
      raise ValueError(
        f"{dataset.description}: remote TPUs and parameter servers cannot"
        " decode pictures. Use another --strategy, or tensorflow-datasets."
      )
    prepare = _decoder(dataset, image_shape)
  else:
    prepare = _resizer(dataset, image_shape)

  def convert(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
    image = tf.image.convert_image_dtype(image, tf.float32)  # From uint8 too.
    return tf.broadcast_to(image, image_shape), label

  count = len(dataset.train)
  train = dataset.train.map(prepare, tf.data.AUTOTUNE)
  if isinstance(spec, tuple):
    # Others stand in for pictures that cannot be decoded.
    train = train.filter(lambda image, label: label >= 0).repeat().take(count)
    train = train.apply(tf.data.experimental.assert_cardinality(count))
  image, _ = train.element_spec
  if count * image.shape.num_elements() * image.dtype.size <= _CACHED_BYTES:
    train = train.cache()
  return dataclasses.replace(
    dataset,
    train=train.map(convert, tf.data.AUTOTUNE),
    test=dataset.test.map(prepare, tf.data.AUTOTUNE).map(
      convert, tf.data.AUTOTUNE
    ),
  )


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
  dataset: Dataset, image_shape: Sequence[int]
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


def _decoder(
  dataset: Dataset, image_shape: Sequence[int]
) -> Callable[..., tuple]:
  """Makes a function that decodes pictures, uint8 `[height, width, channels]`.

  The label of a picture that cannot be decoded becomes -1.
  """
  height, width, channels = image_shape[-3:]
  total, unreadable = int(dataset.counts.sum()), {}

  def pixels(encoded: bytes, name: bytes) -> tuple[np.ndarray, bool]:
    try:
      image = Image.open(io.BytesIO(encoded))
      # JPEG is decoded at a fraction of its size if that is large enough.
      image.draft("RGB", [2 * max(height, width)] * 2)
      image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):  # 16 bits.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
      image = image.convert("L" if channels == 1 else "RGB")
      image = image.resize((width, height), Image.BILINEAR, reducing_gap=2.0)
      return np.asarray(image).reshape(height, width, -1), True
    except Exception as e:  # Pillow raises what its many decoders do.
      if name not in unreadable:
        unreadable[name] = f"{name.decode(errors='replace') or 'a record'}: {e}"
        print(f"Skipped {unreadable[name]}", file=sys.stderr)
        _refuse_many(unreadable.values(), total, dataset.description)
      return np.zeros([height, width, channels], np.uint8), False

  def decode(image: tuple, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
    image, is_readable = tf.numpy_function(pixels, image, (tf.uint8, tf.bool))
    image = tf.ensure_shape(image, [height, width, channels])
    label = tf.where(is_readable, label, -1)
    return image, tf.ensure_shape(label, [])

  return decode


def _refuse_many(unreadable: Iterable, total: int, source: str) -> None:
  """Raises an InputError if more than a few pictures are unreadable."""
  count = len(unreadable)
  if count > _MOST_UNREADABLE * total:
    raise errors.InputError(
      f"{source}: {count} of {total:,} pictures are unreadable, more than"
      f" {_MOST_UNREADABLE:.0%}. Copy them again, or move them away. One is"
      f" {[*unreadable][-1]}"
    )


# Examples, of a known number, and their labels, int64 `[n]`.
_Part = tuple["tf.data.Dataset", "np.ndarray"]


def _dataset(
  description: str, names: Sequence[str], train: _Part, test: _Part
) -> Dataset:
  """Counts the classes and makes a data set."""
  counts = classes.count(names, train[1], test[1], description)
  return Dataset(description, names, counts, train[0], test[0])


def _divided(
  examples: tf.data.Dataset, labels: np.ndarray, share: float | None
) -> tuple[_Part, _Part]:
  """Divides examples, which come in the order of their labels."""
  is_held_out = classes.held_out(labels, share)

  def part(chosen: np.ndarray) -> _Part:
    of_part = (
      examples.enumerate()
      .filter(lambda i, _: tf.gather(chosen, i))
      .map(lambda _, example: example)
      .apply(tf.data.experimental.assert_cardinality(chosen.sum()))
    )
    return of_part, labels[chosen]

  return part(~is_held_out), part(is_held_out)


def _slices(images: np.ndarray, labels: np.ndarray) -> _Part:
  labels = labels.astype(np.int64)
  return tf.data.Dataset.from_tensor_slices((images, labels)), labels


def _digits(first: int, last: int, *, by_writer: bool) -> Dataset:
  """Returns scikit-learn's handwritten digits (UCI, 8x8 pixels)."""
  data = sklearn_datasets.load_digits()
  kept = (data.target >= first) & (data.target <= last)
  images = data.images[kept][..., None].astype("float32") / 16
  labels = data.target[kept] - first
  if by_writer:  # Other people have written those held out.
    train, test = np.split(np.arange(len(labels)), [len(labels) // 5])[::-1]
  else:
    train, test = model_selection.train_test_split(
      np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
  return _dataset(
    f"scikit-learn's handwritten digits {first} to {last}, enlarged from 8 by 8"
    " pixels bilinearly",
    [str(digit) for digit in range(first, last + 1)],
    _slices(images[train], labels[train]),
    _slices(images[test], labels[test]),
  )


def _moving_digits(name: str) -> Dataset:
  """Returns videos of handwritten digits, whose classes are directions.

  A digit moves by one of 16 by 16 pixels in each frame, and comes back on the
  other side: after 16 frames the first one follows.
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

  def part(of_digits: tf.data.Dataset, count: int) -> _Part:
    videos = of_digits.take(count).enumerate().map(move, tf.data.AUTOTUNE)
    return videos, np.arange(count) % len(directions)

  return _dataset(
    "scikit-learn's handwritten digits, each moving"
    f" {', '.join(directions).replace('_', ' ')}",
    list(directions),
    part(digits.train, 240),
    part(digits.test, 240 if is_diagonal else 60),
  )


def _builder(name: str) -> tfds.core.DatasetBuilder:
  """Returns a data set of tensorflow-datasets; downloads it if need be."""
  try:
    builder = tfds.builder(name)
  except (AssertionError, ValueError) as e:  # It lists all that there are.
    raise ValueError(
      f"tensorflow-datasets has no {name}: {str(e).splitlines()[0]}"
    ) from e
  _keys(builder)
  try:
    builder.download_and_prepare()
  except Exception as e:  # It raises what its downloads and parsers do.
    message = " ".join(str(e).split())
    raise ConnectionError(
      f"tensorflow-datasets cannot prepare {name}: {message}"
    ) from e
  return builder


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
  """Returns the names of the only image and the only label of an example."""
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
) -> Dataset:
  """Returns a data set that tensorflow-datasets has prepared."""
  image, label = _keys(builder)

  def read(split: str, *keys: str) -> tf.data.Dataset:
    decoders = tfds.decode.PartialDecoding(set(keys))
    return builder.as_dataset(split=split, decoders=decoders).map(
      lambda example: tuple(example[key] for key in keys)
    )

  def part(split: str) -> _Part:
    labels = [x for (x,) in read(split, label).batch(4096).as_numpy_iterator()]
    return read(split, image, label), np.concatenate(labels)

  description = f"{builder.info.full_name} of tensorflow-datasets"
  names = builder.info.features[label].names
  train = part("train")
  for split in _HELD_OUT:
    test = split in builder.info.splits and part(split)
    if test and test[1].min() >= 0:  # Competitions hide labels as -1.
      _refuse_share(share, description, split)
      return _dataset(description, names, train, test)
  return _dataset(description, names, *_divided(*train, share))


def _refuse_share(share: float | None, source: str, part: str) -> None:
  if share:
    raise ValueError(f"{source} has {part}, to be held out. Omit --held_out.")


def _records(
  path: str,
  files: Sequence[str],
  share: float | None,
  names: Sequence[str] | None,
) -> Dataset:
  """Reads TFRecords with the keys of Model Garden."""
  label_keys = {
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    "image/class/text": tf.io.FixedLenFeature([], tf.string, ""),
  }
  image_keys = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
    "image/filename": tf.io.FixedLenFeature([], tf.string, ""),
  }
  texts = {}  # By labels.

  def part(files: Sequence[str]) -> _Part:
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
    if named(_TRAIN) and named(*_HELD_OUT):
      _refuse_share(share, path, "files for tests")
      parts = part(named(_TRAIN)), part(named(*_HELD_OUT))
    else:
      parts = _divided(*part(files), share)
  # Messages of TensorFlow may cite bytes that are not UTF-8.
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
  return _dataset(f"the TFRecords {os.path.basename(path)}", names, *parts)


def _folders(path: str) -> list[str]:
  """Returns the names of the folders in a folder; none if it is none."""
  if not tf.io.gfile.isdir(path):
    return []
  return sorted(
    name.rstrip("/")
    for name in tf.io.gfile.listdir(path)
    if not name.startswith(".") and tf.io.gfile.isdir(os.path.join(path, name))
  )


def _folder(
  path: str, share: float | None, names: Sequence[str] | None
) -> Dataset:
  """Reads a folder with a folder of pictures for each class."""
  source = f"the pictures in {os.path.basename(path.rstrip('/'))}"
  folders, parts = _folders(path), [path]
  tests = [name for name in _HELD_OUT if name in folders]
  if tests and _TRAIN in folders and {_TRAIN, *_HELD_OUT}.issuperset(folders):
    _refuse_share(share, path, f"a folder {tests[0]}")
    parts = [os.path.join(path, part) for part in (_TRAIN, tests[0])]
  found = sorted(
    {f for part in parts for f in _folders(os.path.join(path, part))}
  )
  if names and set(names) != set(found):
    raise ValueError(
      f"The file of class names and the folders in {path} differ in"
      f" {', '.join(sorted(set(names) ^ set(found))[:5])}."
    )
  names = names or found
  pictures = [_pictures(part, names, source) for part in parts]

  def read(name: tf.Tensor, label: tf.Tensor) -> tuple:
    return (tf.io.read_file(name), name), label

  divided = (
    [_slices(*part) for part in pictures]
    if len(parts) > 1
    else _divided(*_slices(*pictures[0]), share)
  )
  return _dataset(
    source,
    names,
    *((part.map(read, tf.data.AUTOTUNE), labels) for part, labels in divided),
  )


def _pictures(
  path: str, names: Sequence[str], source: str
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the pictures in the folders of classes, in random order.

  Returns:
    Their paths, and their labels, int64. Those that are not what their suffixes
    say are left out, and named on standard error.
  """
  # TensorFlow's function for all file systems is slow for many files.
  walk = tf.io.gfile.walk if "://" in path else os.walk
  found, others = [], collections.Counter()
  for label, name in enumerate(names):
    for folder, _, files in walk(os.path.join(path, name)):
      for file in sorted(files):
        suffix = os.path.splitext(file)[1].lower()
        if suffix in _BEGINNINGS:
          found.append((os.path.join(folder, file), label))
        elif not file.startswith("."):
          others[suffix or file] += 1
  if others:
    listed = ", ".join(f"{n} {what}" for what, n in others.most_common(5))
    print(f"Left out in {source}, as no pictures: {listed}", file=sys.stderr)
  unreadable = set()
  if "://" not in path:  # In a bucket it would take a request for each.
    with futures.ThreadPoolExecutor(8) as executor:
      readable = executor.map(_is_picture, [name for name, _ in found])
      unreadable = {
        name
        for (name, _), is_picture in zip(found, readable, strict=True)
        if not is_picture
      }
  for name in sorted(unreadable)[:20]:
    print(f"Unreadable: {name}", file=sys.stderr)
  if unreadable:
    count = f"{len(unreadable)} of {len(found):,} pictures are unreadable"
    print(f"{count}: they are left out", file=sys.stderr)
    _refuse_many(sorted(unreadable), len(found), source)
  found = [pair for pair in found if pair[0] not in unreadable]
  np.random.default_rng(0).shuffle(found)
  labels = np.array([label for _, label in found], np.int64)
  return np.array([name for name, _ in found], object), labels


def _is_picture(path: str) -> bool:
  """Tells whether a file begins as its suffix says, or as another picture."""
  try:
    with open(path, "rb") as f:
      return f.read(4).startswith(tuple(_BEGINNINGS.values()))
  except OSError:
    return False
