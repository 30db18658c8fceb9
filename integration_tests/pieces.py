"""Writes the fine-tuned part of a model as a reusable SavedModel again."""

from __future__ import annotations

import os
import tempfile

from etils import epy

from distribution import copies
from distribution import errors
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
  *,
  follow_links: bool,
) -> None:
  """Saves a fine-tuned export. Only the chief writes.

  Args:
    piece: The export, as `find` returns it.
    output_dir: An empty or missing directory. It appears only when complete.
    strategy: The strategy in whose scope the export was loaded.
    original_dir: As in `describe`.
    fine_tuned_on: As in `describe`.
    follow_links: As in `describe`.
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
      describe(
        directory, original_dir, fine_tuned_on, follow_links=follow_links
      )


def describe(
  output_dir: str, original_dir: str, fine_tuned_on: str, *, follow_links: bool
) -> None:
  """Records in a SavedModel which export was fine-tuned, and on which data.

  Prints which files of the original are left out.

  Args:
    output_dir: The SavedModel of the fine-tuned model or export.
    original_dir: Path or URL of the export that it was fine-tuned from. Its
      fingerprint and `assets.extra`, which has its card, are copied.
    fine_tuned_on: Text that describes the data.
    follow_links: Whether to copy the targets of symbolic links.
  """
  origin = os.path.join(output_dir, _ORIGIN)
  tf.io.gfile.makedirs(origin)
  with tempfile.TemporaryDirectory(prefix="copy.") as scratch_dir:
    try:
      left_out = copies.copy(
        hub.resolve(original_dir),
        scratch_dir,
        follow_links=follow_links,
        only=("fingerprint.pb", "assets.extra"),
      ).problems
    except errors.InputError as e:  # The trained weights are not lost.
      left_out = [str(e)]
    for problem in left_out:
      print(f"Not recorded in {_ORIGIN}: {errors.shown(problem)}")
    for folder, _, names in os.walk(scratch_dir):
      copy = os.path.join(origin, os.path.relpath(folder, scratch_dir))
      tf.io.gfile.makedirs(copy)
      for name in names:
        tf.io.gfile.copy(os.path.join(folder, name), os.path.join(copy, name))
  with tf.io.gfile.GFile(os.path.join(origin, "data.txt"), "w") as f:
    f.write(fine_tuned_on)
