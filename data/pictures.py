"""Pictures, the files of images: finds them in folders and decodes them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from concurrent import futures
import io
import itertools
import os
import sys

from etils import epy

from data import classes
from distribution import errors

with epy.lazy_imports():  # Programs parse their flags first.
  import numpy as np
  from PIL import Image
  from PIL import ImageOps
  import tensorflow as tf

# First bytes of picture files, by suffix.
_BEGINNINGS = {
  ".jpg": b"\xff\xd8",
  ".jpeg": b"\xff\xd8",
  ".png": b"\x89PNG",
  ".gif": b"GIF8",
  ".bmp": b"BM",
  ".webp": b"RIFF",
}
# Pictures collected from the web usually include a few broken files, which do
# no harm. More than a few mean an interrupted copy or another format.
_MOST_UNREADABLE = 0.05


def folders(path: str) -> list[str]:
  """Returns the names of the folders in a folder; [] if it is no folder."""
  if not tf.io.gfile.isdir(path):
    return []
  return sorted(
    name.rstrip("/")
    for name in tf.io.gfile.listdir(path)
    if not name.startswith(".") and tf.io.gfile.isdir(os.path.join(path, name))
  )


def folder(
  path: str, share: float | None, names: Sequence[str] | None
) -> classes.Dataset:
  """Reads a folder that has a folder of pictures for each class."""
  source = f"the pictures in {os.path.basename(path.rstrip('/'))}"
  parts, names_of_parts = [path], {classes.TRAIN, *classes.HELD_OUT}
  inside = folders(path)
  tests = [name for name in classes.HELD_OUT if name in inside]
  if tests and classes.TRAIN in inside and names_of_parts.issuperset(inside):
    classes.refuse_share(share, path, f"a folder {tests[0]}")
    parts = [os.path.join(path, part) for part in (classes.TRAIN, tests[0])]
  found = sorted({f for part in parts for f in folders(part)})
  if names and set(names) != set(found):
    raise ValueError(
      f"The file of class names and the folders in {path} differ in"
      f" {', '.join(sorted(set(names) ^ set(found))[:5])}."
    )
  names = names or found
  pictures = [_pictures(part, names, source) for part in parts]

  def read(name: tf.Tensor, label: tf.Tensor) -> tuple:
    return (tf.io.read_file(name), name), label

  if len(parts) == 1:
    ((paths, labels),) = pictures
    is_held_out = classes.held_out(labels, share)
    pictures = [(paths[x], labels[x]) for x in (~is_held_out, is_held_out)]
  return classes.dataset(
    source,
    names,
    *(
      (classes.slices(*part)[0].map(read, tf.data.AUTOTUNE), part[1])
      for part in pictures
    ),
  )


def _pictures(
  path: str, names: Sequence[str], source: str
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the pictures in the folders of classes, in random order.

  Returns:
    Their paths, and their labels, int64. Local files that do not begin like a
    picture are left out, and the first of them listed on standard error.
  """
  # tf.io.gfile is slow for many local files.
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
  if "://" not in path:  # In a bucket each file would cost a request.
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
  """Returns whether a file begins like a picture of any of the formats."""
  try:
    with open(path, "rb") as f:
      return f.read(4).startswith(tuple(_BEGINNINGS.values()))
  except OSError:
    return False


def decoded(
  batches: tf.data.Dataset,
  image_shape: Sequence[int],
  total: int,
  description: str,
  *,
  is_training: bool,
) -> tf.data.Dataset:
  """Decodes pictures to images, uint8 `[batch, height, width, channels]`.

  Args:
    batches: Batches of pairs of a picture and a label. A picture is a pair of
      the bytes of a file and its name.
    image_shape: The last three are the shape of an image.
    total: Number of pictures in the data set, for the share of unreadable ones.
    description: Text about the data set, for the error about them.
    is_training: Whether to replace undecodable pictures by others. Otherwise
      their label becomes -1.

  Returns:
    Batches of pairs of an image and a label. Too many unreadable pictures raise
    an InputError in the pipeline.
  """
  height, width, channels = image_shape[-3:]
  unreadable, last = {}, []

  def pixels(encoded: bytes, name: bytes) -> np.ndarray | None:
    try:
      return _pixels(encoded, height, width, channels)
    except Exception as e:  # Pillow's decoders raise many types of exceptions.
      if name not in unreadable:
        unreadable[name] = f"{name.decode(errors='replace') or 'a record'}: {e}"
        print(f"Skipped {unreadable[name]}", file=sys.stderr)
        _refuse_many(unreadable.values(), total, description)
      return None

  def decode(
    encoded: np.ndarray, names: np.ndarray, labels: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    found = [*zip(map(pixels, encoded, names), labels, strict=True)]
    last[:] = [pair for pair in found if pair[0] is not None] or last
    others = itertools.cycle(last if is_training else [])

    def readable(image: np.ndarray | None, label: int) -> tuple:
      # There is no replacement yet if the whole first batch is broken.
      black = np.zeros([height, width, channels], np.uint8)
      label_of_black = label if is_training else np.int64(-1)
      return (
        (image, label)
        if image is not None
        else next(others, (black, label_of_black))
      )

    images, labels = zip(*itertools.starmap(readable, found), strict=True)
    return np.stack(images), np.stack(labels)

  def decode_batch(batch: tuple, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    images, labels = tf.numpy_function(
      decode, (*batch, labels), (tf.uint8, tf.int64)
    )
    images = tf.ensure_shape(images, [None, height, width, channels])
    return images, tf.ensure_shape(labels, [None])

  return batches.map(decode_batch, tf.data.AUTOTUNE)


def _pixels(
  encoded: bytes, height: int, width: int, channels: int
) -> np.ndarray:
  image = Image.open(io.BytesIO(encoded))
  # Decodes a JPEG at a fraction of its size if that is large enough.
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
  return np.asarray(image).reshape(height, width, channels)


def _refuse_many(unreadable: Iterable, total: int, source: str) -> None:
  """Raises an InputError if more than a few pictures are unreadable."""
  count = len(unreadable)
  if count > _MOST_UNREADABLE * total:
    raise errors.InputError(
      f"{source}: {count} of {total:,} pictures are unreadable, more than"
      f" {_MOST_UNREADABLE:.0%}. Copy them again, or move them away. One is"
      f" {[*unreadable][-1]}"
    )
