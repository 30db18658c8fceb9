import itertools
from unittest import mock

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from models.vision import datasets

_LABEL = tfds.features.ClassLabel(names=["black", "white"])


class Colored(tfds.core.GeneratorBasedBuilder):
  """Ten images, black and white by turns."""

  VERSION = tfds.core.Version("1.0.0")
  channels, splits, label = 3, ("train", "test"), _LABEL

  def _info(self):
    image = tfds.features.Image(shape=(6, 4, self.channels))
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {"image": image, "label": self.label}
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples() for split in self.splits}

  def _generate_examples(self):
    for i in range(10):
      image = np.full([6, 4, self.channels], 255 * (i % 2), np.uint8)
      yield i, {"image": image, "label": i % 2}


class Grey(Colored):
  channels, splits = 1, ("train",)


class Numbers(Colored):
  label = tfds.features.Scalar(np.int64)


class DatasetsTest(tf.test.TestCase):
  def test_moving_digits(self):
    dataset = datasets.load("moving_digits", (5, 16, 16, 3))
    ((videos, labels),) = dataset.train.batch(1000)
    self.assertEqual(videos.shape, [240, 5, 16, 16, 3])
    steps = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
    self.assertEqual(dataset.classes, [*steps])
    for video, label in zip(videos, labels, strict=True):
      step = steps[dataset.classes[label]]
      for first, second in itertools.pairwise(video):
        self.assertAllEqual(np.roll(first, step, axis=(0, 1)), second)
    # An image makes a video of equal frames.
    for video, _ in datasets.load("digits", (2, 8, 8, 1)).test.take(1):
      self.assertAllEqual(video[0], video[1])
    with self.assertRaisesRegex(ValueError, "the model takes images"):
      datasets.load("moving_digits", (32, 32, 3))

  def test_digits(self):
    everything = datasets.load("digits", (28, 28, 1))
    half = datasets.load("digits_0_4", (32, 24, 3))
    self.assertEqual(len(everything.train) + len(everything.test), 1797)
    self.assertEqual(everything.classes, [*"0123456789"])
    self.assertEqual(half.classes, [*"01234"])
    (images, _), *_ = everything.test.batch(360)
    self.assertEqual(images.shape, [360, 28, 28, 1])
    self.assertEqual(images.dtype, tf.float32)
    self.assertAllEqual([tf.reduce_min(images), tf.reduce_max(images)], [0, 1])
    ((images, labels),) = half.train.batch(2000)
    self.assertEqual(images.shape[1:], [32, 24, 3])
    self.assertAllEqual(images[..., 0], images[..., 2])
    self.assertAllEqual(np.unique(labels), range(5))
    # A digit is nearest to the mean of the training images of its class.
    means = [tf.reduce_mean(images[labels == c], 0) for c in range(5)]
    ((images, labels),) = half.test.batch(2000)
    distances = [tf.norm(images - mean, axis=[1, 2])[:, 0] for mean in means]
    nearest = tf.argmin(distances, axis=0)
    self.assertGreater(np.mean(nearest == labels), 0.9)

  def test_tensorflow_datasets(self):
    directory = self.get_temp_dir()
    # TFDS_DATA_DIR was read when tensorflow_datasets was imported.
    self.enter_context(
      mock.patch("tensorflow_datasets.core.constants.DATA_DIR", directory)
    )
    for name, sizes in (("colored", (10, 10)), ("grey", (8, 2))):
      dataset = datasets.load(f"tfds:{name}", (32, 32, 3))
      self.assertEqual(dataset.classes, ["black", "white"])
      self.assertEqual((len(dataset.train), len(dataset.test)), sizes)
      ((images, labels),) = dataset.train.batch(10)
      self.assertEqual(images.shape, [sizes[0], 32, 32, 3])
      self.assertAllEqual(images[:, 0, 0, 0], tf.cast(labels, tf.float32))
    for name, message in (
      ("tfds:colored", "have 3 channels; the model takes 1"),
      ("tfds:numbers", "one label each; its features are image, label"),
      ("tfds:nowhere", "tensorflow-datasets has no nowhere: .*not found.$"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        datasets.load(name, (28, 28, 1))


if __name__ == "__main__":
  tf.test.main()
