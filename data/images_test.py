import contextlib
import io
import pathlib
from unittest import mock

import numpy as np
from PIL import Image
import tensorflow as tf
import tensorflow_datasets as tfds

from data import classes
from data import images
from distribution import errors

_LABEL = tfds.features.ClassLabel(names=["black", "white"])


class Colored(tfds.core.GeneratorBasedBuilder):
  """Ten images, black and white by turns."""

  VERSION = tfds.core.Version("1.0.0")
  channels, splits, label = 3, ("train", "test"), _LABEL
  keys = ("image", "label")

  def _info(self):
    image = tfds.features.Image(shape=(6, 4, self.channels))
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        dict(zip(self.keys, (image, self.label), strict=True))
      ),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples() for split in self.splits}

  def _generate_examples(self):
    for i in range(10):
      image = np.full([6, 4, self.channels], 255 * (i % 2), np.uint8)
      yield i, dict(zip(self.keys, (image, i % 2), strict=True))


class Grey(Colored):
  channels, splits, keys = 1, ("train",), ("scan", "finding")


class Numbers(Colored):
  label = tfds.features.Scalar(np.int64)


_COLORS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
# Files of each class, and what is special about them.
_FILES = (
  ("a.jpg", None),
  ("b.JPEG", "turned"),
  ("c.png", "transparent"),
  ("d.png", "palette"),
  ("e.gif", "palette"),
  ("f.bmp", None),
  ("g.webp", None),
  ("h.jpg", "cmyk"),
  ("deeper/i.png", None),
  ("j.png", None),
)


def _load(name, image_shape=(16, 16, 3), **kwargs):
  return images.resized(images.load(name, **kwargs), image_shape)


def _arrays(examples):
  pixels, labels = zip(*examples.as_numpy_iterator(), strict=True)
  return np.array(pixels), np.array(labels)


def _save(color, path, form=None):
  """Saves a picture in one color with a darker upper half."""
  pixels = np.full([48, 40, 3], color, np.uint8)
  pixels[:24] //= 2
  picture, options = Image.fromarray(pixels), {}
  if form == "turned":
    options["exif"] = picture.getexif()
    options["exif"][0x112] = 6  # A viewer turns it clockwise.
    picture = picture.transpose(Image.Transpose.ROTATE_90)
  elif form == "transparent":
    picture.putalpha(Image.new("L", picture.size, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 40, 4))
  elif form == "palette":
    picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
  elif form == "cmyk":
    picture = picture.convert("CMYK")
  path.parent.mkdir(parents=True, exist_ok=True)
  picture.save(path, **options)


class NamedDataTest(tf.test.TestCase):
  def test_moving_digits(self):
    for name, steps in (
      ("moving_digits", [(0, 1), (0, -1), (1, 0), (-1, 0)]),
      ("diagonally_moving_digits", [(1, 1), (1, -1), (-1, 1), (-1, -1)]),
    ):
      dataset = _load(name, (20, 16, 16, 3))
      videos, labels = _arrays(dataset.train)
      self.assertEqual(videos.shape, (240, 20, 16, 16, 3))
      self.assertLen(dataset.classes, 4)
      self.assertAllEqual(dataset.counts[:, 0], [60] * 4)
      for video, label in zip(videos, labels, strict=True):
        moved = np.roll(video[:-1], steps[label], axis=(1, 2))
        np.testing.assert_array_equal(moved, video[1:])
    # An image makes a video of equal frames.
    for video, _ in _load("digits", (2, 8, 8, 1)).test.take(1):
      self.assertAllEqual(video[0], video[1])
    with self.assertRaisesRegex(ValueError, "the model takes images"):
      _load("moving_digits", (32, 32, 3))

  def test_digits(self):
    everything = _load("digits", (28, 28, 1))
    half = _load("digits_0_4", (32, 24, 3))
    self.assertEqual(len(everything.train) + len(everything.test), 1797)
    self.assertEqual(everything.classes, [*"0123456789"])
    self.assertEqual(half.classes, [*"01234"])
    pixels, _ = _arrays(everything.test)
    self.assertEqual(pixels.shape, (360, 28, 28, 1))
    self.assertEqual(pixels.dtype, np.float32)
    self.assertAllEqual([pixels.min(), pixels.max()], [0, 1])
    pixels, labels = _arrays(half.train)
    self.assertEqual(pixels.shape[1:], (32, 24, 3))
    self.assertAllEqual(pixels[..., 0], pixels[..., 2])
    self.assertAllEqual(np.unique(labels), range(5))
    # A digit is nearest to the mean of the training images of its class.
    means = [pixels[labels == c].mean(0) for c in range(5)]
    pixels, labels = _arrays(half.test)
    distances = [np.square(pixels - mean).sum((1, 2, 3)) for mean in means]
    self.assertGreater(np.mean(np.argmin(distances, axis=0) == labels), 0.9)
    self.assertEqual(images.load("digits_5_9").num_held_out, 179)

  def test_tensorflow_datasets(self):
    directory = self.get_temp_dir()
    # TFDS_DATA_DIR was read when tensorflow_datasets was imported.
    self.enter_context(
      mock.patch("tensorflow_datasets.core.constants.DATA_DIR", directory)
    )
    for name, held_out, sizes in (
      ("tfds:colored", None, (10, 10)),
      ("tfds:grey", None, (8, 2)),
      (f"{directory}/grey", 0.4, (6, 4)),
      (f"{directory}/grey/1.0.0", 0.4, (6, 4)),
    ):
      dataset = _load(name, (32, 32, 3), held_out=held_out)
      self.assertEqual(dataset.classes, ["black", "white"])
      self.assertEqual((len(dataset.train), len(dataset.test)), sizes)
      self.assertAllEqual(dataset.counts, [[n // 2 for n in sizes]] * 2)
      for split in (dataset.train, dataset.test):
        pixels, labels = _arrays(split)
        self.assertEqual(pixels.shape[1:], (32, 32, 3))
        self.assertAllEqual(pixels[:, 0, 0, 0], labels)
    for name, message in (
      ("tfds:numbers", "one label each; its features are image, label"),
      ("tfds:nowhere", "tensorflow-datasets has no nowhere: .*not found.$"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        images.load(name)
    with self.assertRaisesRegex(ValueError, "has test, to be held out. Omit"):
      images.load("tfds:colored", held_out=0.1)


class PicturesTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path) / "colors"

  def write_colors(self):
    for name, color in _COLORS.items():
      for file, form in _FILES:
        _save(color, self.root / name / file, form)
      (self.root / name / ".hidden").write_text("")

  def load(self, **kwargs):
    """Returns the data set, and what was printed about it."""
    with contextlib.redirect_stderr(io.StringIO()) as output:
      return _load(f"folder:{self.root}", **kwargs), output.getvalue()

  def assert_colors(self, dataset, examples):
    for image, label in zip(*_arrays(examples), strict=True):
      color = np.array(_COLORS[dataset.classes[label]]) / 255
      self.assertAllClose(image[9:].mean((0, 1)), color, atol=0.1)
      self.assertAllClose(image[3:7].mean((0, 1)), color / 2, atol=0.1)

  def test_all_kinds_of_pictures(self):
    self.write_colors()
    dataset, output = self.load()
    self.assertEqual(output, "")
    self.assertEqual(
      str(dataset),
      "the pictures in colors: 3 classes, 24 examples + 6 held out: blue 8+2,"
      " green 8+2, red 8+2",
    )
    self.assert_colors(dataset, dataset.train.concatenate(dataset.test))
    # All pictures are read; the transparent ones are white at the top.
    pixels, labels = _arrays(dataset.train.concatenate(dataset.test))
    self.assertAllEqual(np.bincount(labels), [10] * 3)
    self.assertEqual(sum(pixels[:, 0].min((1, 2)) > 0.95), 3)
    divided = classes.with_validation(images.load(str(self.root)))
    divided = images.resized(divided, (16, 16, 3))
    parts = divided.train, divided.validation
    self.assertAllEqual(
      [np.bincount(_arrays(part)[1]) for part in parts], [[6] * 3, [2] * 3]
    )
    self.assert_colors(dataset, parts[0].concatenate(parts[1]))
    grey, _ = self.load(image_shape=(8, 8, 1))
    self.assertEqual(_arrays(grey.test)[0].shape, (6, 8, 8, 1))
    files = images.names_of_files(images.load(str(self.root)))
    folders = [name.split("/")[-2] for name in files]
    _, labels = _arrays(dataset.test)
    self.assertEqual(folders, [dataset.classes[label] for label in labels])

  def test_folders_for_tests_and_names_of_classes(self):
    for file in ("train/red/a", "train/green/a", "validation/green/a"):
      _save(_COLORS["red"], self.root / f"{file}.png")
    self.assertAllEqual(self.load()[0].counts, [[1, 1], [1, 0]])
    names = self.root.parent / "names.txt"
    for text, message in (
      ("red\ngreen\n", None),
      ("red\nblue\n", "the folders in .* differ in blue, green"),
      ("red\nred\n", "line 2: the name of the class is there twice"),
      ("red\n\n", "line 2: the name of the class is missing"),
    ):
      names.write_text(text)
      if message is None:
        dataset, _ = self.load(class_names_file=str(names))
        self.assertEqual(dataset.classes, ["red", "green"])
        continue
      with self.assertRaisesRegex(ValueError, message):
        self.load(class_names_file=str(names))
    with self.assertRaisesRegex(ValueError, "a folder validation, .* Omit"):
      self.load(held_out=0.5)
    with self.assertRaisesRegex(ValueError, "1 classes, .* needs two classes"):
      images.load(str(self.root / "validation"))

  def test_what_cannot_be_read(self):
    self.write_colors()
    good = (self.root / "red" / "a.jpg").read_bytes()
    (self.root / "red" / "notes.txt").write_text("No picture.")
    (self.root / "red" / "page.jpg").write_text("<html>")
    (self.root / "blue" / "half.jpg").write_bytes(good[: len(good) // 2])
    dataset, output = self.load()
    self.assertIn("Left out in the pictures in colors, as no", output)
    self.assertIn(": 1 .txt", output)
    self.assertIn("red/page.jpg\n1 of 32 pictures are unreadable", output)
    self.assertEqual(dataset.counts.sum(), 31)
    with contextlib.redirect_stderr(io.StringIO()) as output:
      (_, train), (_, test) = map(_arrays, (dataset.train, dataset.test))
    self.assertIn("colors/blue/half.jpg: Truncated File", output.getvalue())
    self.assertLen(output.getvalue().splitlines(), 1)
    # In training, another picture replaces it.
    self.assertLen(train, len(dataset.train))
    self.assertGreaterEqual(train.min(), 0)
    self.assertLen(test, len(dataset.test))
    for i in range(2):
      (self.root / "blue" / f"{i}.jpg").write_bytes(good[: len(good) // 2])
    dataset, _ = self.load()
    with contextlib.redirect_stderr(io.StringIO()):
      with self.assertRaisesRegex(
        errors.InputError, "^the pictures in colors: 2 of 33 .*jpg: Trunc[^T]*$"
      ):
        with errors.of_input(tf.errors.OpError):
          _arrays(dataset.train.concatenate(dataset.test))
    (self.root / "red" / "empty.png").write_bytes(b"")
    with self.assertRaisesRegex(errors.InputError, "2 of 35 .* more than 5%"):
      self.load()

  def test_records(self):
    self.root.mkdir()
    kinds = {
      "encoded": lambda v: {"bytes_list": tf.train.BytesList(value=[v])},
      "class/text": lambda v: {"bytes_list": tf.train.BytesList(value=[v])},
      "class/label": lambda v: {"int64_list": tf.train.Int64List(value=[v])},
    }

    def write(name, *records):
      with tf.io.TFRecordWriter(str(self.root / name)) as writer:
        for record in records:
          features = {
            f"image/{key}": tf.train.Feature(**kinds[key](value))
            for key, value in record.items()
          }
          features = tf.train.Features(feature=features)
          writer.write(tf.train.Example(features=features).SerializeToString())

    records = []
    for label, (name, color) in enumerate(_COLORS.items(), 1):
      _save(color, self.root.parent / "a.jpg")
      encoded = (self.root.parent / "a.jpg").read_bytes()
      records.append(
        {"encoded": encoded, "class/label": label, "class/text": name.encode()}
      )
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
      write(name, *records * 5)
    for path, sizes in (("", (15, 15)), ("/train*", (12, 3))):
      dataset = _load(str(self.root) + path)
      self.assertEqual(dataset.classes, ["0", *_COLORS])
      self.assertEqual((len(dataset.train), len(dataset.test)), sizes)
      self.assert_colors(dataset, dataset.train.concatenate(dataset.test))
    write("x.tfrecord", {"class/label": 1})
    for name, message in (
      ("x.tfrecord", "2 classes, 1 examples \\+ 0 held out"),
      ("none", "none does not exist"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        images.load(f"{self.root}/{name}")
    write("y.tfrecord", {"encoded": b""})
    with self.assertRaisesRegex(ValueError, "no TFRecords with image/encoded"):
      images.load(f"{self.root}/y.tfrecord")


if __name__ == "__main__":
  tf.test.main()
