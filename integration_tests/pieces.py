"""Writes the fine-tuned part of a model as a reusable SavedModel again."""

from __future__ import annotations

import os
import tempfile

from etils import epy

from distribution import strategies
from integration_tests import fitting

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras

# The files that `describe` writes for `//exporters:fine_tuned`.
_ORIGIN = "assets.extra/fine_tuned_from"


def find(model: tf_keras.Model) -> tf.Module:
  """Returns the export in a model.

  Raises:
    ValueError: The model is built on a complete Keras model instead.
  """
  for layer in model.submodules:
    if isinstance(layer, hub.KerasLayer) and layer.trainable_weights:
      return layer.resolved_object
  raise ValueError(
    "--output_piece_dir: the model trains no reusable SavedModel. Take an"
    " export with --saved_model_format=reusable."
  )


def save(
  piece: tf.Module,
  output_dir: str,
  strategy: tf.distribute.Strategy,
  original_dir: str,
  fine_tuned_on: str,
) -> None:
  """Saves a fine-tuned export. Only the chief writes.

  Args:
    piece: The export, as `find` returns it.
    output_dir: An empty or missing directory. It appears only when complete.
    strategy: The strategy in whose scope the export was loaded.
    original_dir: As `describe` takes it.
    fine_tuned_on: As `describe` takes it.
  """
  # All workers call save, because reading replicated variables is collective.
  with (
    fitting.published(output_dir, strategies.is_chief(strategy)) as directory,
    tempfile.TemporaryDirectory() as scratch_dir,
  ):
    tf.saved_model.save(
      piece,
      directory or scratch_dir,
      signatures=piece.signatures,
      options=tf.saved_model.SaveOptions(
        experimental_io_device=strategies.io_device(strategy)
      ),
    )
    if directory:
      describe(directory, original_dir, fine_tuned_on)


def describe(output_dir: str, original_dir: str, fine_tuned_on: str) -> None:
  """Records in a SavedModel which export was fine-tuned, and on which data.

  Args:
    output_dir: The SavedModel of the fine-tuned model or export.
    original_dir: Path or URL of the export that it was fine-tuned from. Its
      fingerprint and `assets.extra`, which has its card, are copied.
    fine_tuned_on: Text that describes the data.
  """
  original_dir = hub.resolve(original_dir)
  origin = os.path.join(output_dir, _ORIGIN)
  extra = os.path.join(original_dir, "assets.extra")
  files = [os.path.join(original_dir, "fingerprint.pb")]
  for folder, _, names in tf.io.gfile.walk(extra):
    files += [os.path.join(folder, name) for name in names]
  for file in filter(tf.io.gfile.exists, files):
    copy = os.path.join(origin, os.path.relpath(file, original_dir))
    tf.io.gfile.makedirs(os.path.dirname(copy))
    tf.io.gfile.copy(file, copy)
  tf.io.gfile.makedirs(origin)
  with tf.io.gfile.GFile(os.path.join(origin, "data.txt"), "w") as f:
    f.write(fine_tuned_on)
