"""Flags and training that the programs for Keras 3 share."""

from __future__ import annotations

from collections.abc import Callable
import os
import pathlib
import tempfile
from typing import Any

from absl import flags
from etils import epy

from distribution import formats
from distribution import programs
from distribution import publishing

# TensorFlow reads these. The programs import this module before it.
os.environ.pop("TF_USE_LEGACY_KERAS", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with epy.lazy_imports():
  import keras

  from integration_tests.keras3 import reusable_layer

flags.disclaim_key_flags()  # --help lists them as the program's.


def run(main: Callable[[str, int, str | None], Any], *, epochs: int) -> None:
  """Runs a program with the values of its flags.

  Args:
    main: Takes --saved_model_dir, --epochs and --output_file.
    epochs: The default of --epochs.
  """
  flags.DEFINE_string("saved_model_dir", None, "The export.", required=True)
  flags.DEFINE_integer("epochs", epochs, "Number of epochs.", lower_bound=1)
  flags.DEFINE_string(
    "output_file",
    None,
    "A `.keras` file to save the fine-tuned model in. Loading it reads"
    " --saved_model_dir again. Default: none.",
  )
  flags.register_validator(
    "output_file",
    lambda path: path is None or path.endswith(".keras"),
    "It must end in .keras.",
  )

  def checked() -> None:
    values = flags.FLAGS
    export, output_file = map(
      formats.absolute, (values.saved_model_dir, values.output_file)
    )
    formats.check_saved_model(export)
    if output_file:
      formats.check_output_file("output_file", output_file)
    main(export, values.epochs, output_file)

  programs.run(checked)


def layer(saved_model_dir: str, **arguments: Any) -> keras.Layer:
  """Loads an export as a layer with hyperparameters."""
  return reusable_layer.ReusableLayer(saved_model_dir, arguments, name="export")


def fine_tune(
  model: keras.Model,
  train: tuple[Any, Any],
  test: tuple[Any, Any],
  *,
  epochs: int,
  learning_rate: float,
  output_file: str | None = None,
  **kwargs: Any,
) -> float:
  """Trains a classifier in batches of 32; prints and returns its accuracy.

  Args:
    model: A model that returns logits.
    train: Inputs and labels.
    test: Inputs and labels to measure the accuracy on.
    epochs: Number of epochs.
    learning_rate: Learning rate of Adam.
    output_file: A `.keras` file to save the model in, or None.
    **kwargs: Arguments of `keras.Model.compile`.
  """
  model.compile(
    keras.optimizers.Adam(learning_rate),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    **kwargs,
  )
  model.fit(*train, batch_size=32, epochs=epochs, verbose=0)
  _, accuracy = model.evaluate(*test, verbose=0)
  print(f"Test accuracy: {accuracy:.4f} on {len(test[1])} held out")
  if output_file:
    with tempfile.TemporaryDirectory() as scratch_dir:
      unfinished = pathlib.Path(scratch_dir, "model.keras")
      model.save(unfinished)
      publishing.write(output_file, unfinished.read_bytes())
    print(f"Saved to {output_file}")
  return accuracy
