r"""Fine-tunes an exported recurrent language model on other text.

It trains all weights, prints the perplexity, and generates text:

  bazel run //integration_tests:use_text_rnn -- \
    --saved_model_dir=DIR/language_model --prompt='def '
  bazel run //integration_tests:use_text_rnn -- \
    --saved_model_dir=DIR/language_model --text_file=texts.txt
  bazel run //integration_tests:use_text_rnn -- \
    --saved_model_dir=DIR/language_model --cell_dir=DIR/cell
"""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import sysconfig
from typing import Any
import zlib

from absl import flags
from etils import epy

from data import images as image_data
from data import tables
from distribution import errors
from distribution import formats
from integration_tests import command_line
from integration_tests import fitting

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras

_DIGIT_SHAPE = (8, 8, 1)

# Packages of Python's standard library, the text of --dataset=python_source.
_PACKAGES = ["collections", "concurrent", "html", "json", "urllib", "wsgiref"]


def python_source() -> tuple[list[str], list[str]]:
  """Returns Python modules: texts to train on, and held-out ones.

  Raises:
    FileNotFoundError: The source of the library is not installed.
  """
  library = pathlib.Path(sysconfig.get_paths()["stdlib"])
  splits = ([], [])
  for package in _PACKAGES:
    for path in sorted((library / package).rglob("*.py")):
      name = path.relative_to(library).as_posix()
      splits[zlib.crc32(name.encode()) % 4 == 0].append(path.read_text("utf-8"))
  if not all(splits):
    raise FileNotFoundError(f"There is no source of Python in {library}.")
  return splits


def read_text(path: str) -> tuple[list[str], list[str]]:
  """Reads a text file. Its last tenth is held out.

  Raises:
    OSError: The file cannot be read.
    ValueError: The file is not UTF-8.
  """
  with tables.decompressing(path), tables.open_file(path) as f:
    text = tables.decoded(f.read(), f"{path}, ")
  size = len(text) - len(text) // 10
  return [text[:size]], [text[size:]]


def sequences(texts: Sequence[str], export: Any, seq_length: int) -> Any:
  """Cuts texts into sequences: inputs and labels, int32 `[n, seq_length]`.

  Raises:
    ValueError: The texts are shorter than one sequence.
  """
  ids = export.tokenize(tf.constant(texts))
  boundaries = tf.zeros([len(texts), 1], tf.int32)
  ids = tf.concat([boundaries, ids, boundaries], 1).flat_values.numpy()
  count = (len(ids) - 1) // seq_length
  if not count:
    raise ValueError(
      f"The text has fewer than the {seq_length} bytes of one sequence. Take"
      " more text, or choose a smaller --seq_length."
    )
  return tuple(
    x[: count * seq_length].reshape(count, seq_length)
    for x in (ids[:-1], ids[1:])
  )


def build_model(
  saved_model_dir: str,
  *,
  retrain: bool,
  learning_rate: float = 3e-3,
  **layer_arguments: float,
) -> tf_keras.Model:
  """Loads and compiles a language model, from ids to logits.

  Args:
    saved_model_dir: The export.
    retrain: Must be true, as there is no new head.
    learning_rate: Learning rate of Adam.
    **layer_arguments: Arguments of `fitting.load_layer`.
  """
  if not retrain:
    raise ValueError("--noretrain leaves nothing to train. Omit it.")
  layer = fitting.load_layer(
    saved_model_dir, name="language_model", retrain=True, **layer_arguments
  )
  ids = tf_keras.Input([None], dtype=tf.int32, name="ids")
  optimizer = tf_keras.optimizers.Adam(learning_rate, global_clipnorm=1.0)
  return fitting.classifier(ids, layer(ids), optimizer)


def perplexity(model: tf_keras.Model, data: fitting.Data) -> float:
  """Returns the perplexity per byte: e to the mean cross-entropy."""
  inputs, labels = data
  logits = model.predict(inputs, verbose=0)
  losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
  return float(np.exp(np.mean(losses)))


def load_cell(cell_dir: str) -> tf_keras.layers.Layer:
  """Loads an exported cell, to train it in `tf_keras.layers.RNN`."""

  class ExportedCell(
    tf_keras.layers.Layer
  ):  # A nested class, because TensorFlow is imported lazily.
    def __init__(self, **kwargs: Any):
      super().__init__(**kwargs)
      self.cell = hub.KerasLayer(fitting.load(cell_dir), trainable=True)
      export = self.cell.resolved_object
      self.state_size = [int(size) for size in export.state_sizes()]
      self.output_size = self.state_size[-1]
      _, specs = export.signatures["serving_default"].structured_input_signature
      self.input_size = specs["cell_input"].shape[-1]

    def call(self, inputs: tf.Tensor, states: Sequence[tf.Tensor]) -> Any:
      output, *states = self.cell([inputs, *states])
      return output, states

  about = f"{cell_dir} is no exported cell: "
  with errors.of_input(AttributeError, LookupError, TypeError, about=about):
    return ExportedCell(name="cell")


def build_classifier(cell_dir: str) -> tf_keras.Model:
  """Builds a classifier that reads digits row by row with an exported cell.

  Args:
    cell_dir: The cell.

  Returns:
    A compiled model from images, float32 `[batch, *_DIGIT_SHAPE]`, to logits,
    float32 `[batch, 10]`.
  """
  cell = load_cell(cell_dir)
  images = tf_keras.Input(_DIGIT_SHAPE, name="images")
  rows = tf_keras.layers.Reshape(_DIGIT_SHAPE[:2])(images)
  rows = tf_keras.layers.Dense(cell.input_size)(rows)
  features = tf_keras.layers.RNN(cell, name="rnn")(rows)
  return fitting.classifier(
    images,
    fitting.logits(features, 10),
    tf_keras.optimizers.Adam(2e-3, global_clipnorm=1.0),
  )


def fit_classifier(
  cell_dir: str, *, epochs: int, verbose: int | str = "auto"
) -> tuple[tf_keras.Model, float]:
  """Trains the classifier of digits. Returns it and its test accuracy."""
  model = build_classifier(cell_dir)
  train, test = image_data.arrays("digits", _DIGIT_SHAPE)
  fitting.fit(model, train, batch_size=32, epochs=epochs, verbose=verbose)
  return model, fitting.evaluate(model, test, batch_size=32)


def generate(
  model: tf_keras.Model, prompts: Sequence[str], **arguments: float
) -> list[str]:
  """Continues texts with a fine-tuned language model.

  Args:
    model: The model.
    prompts: The beginnings of the texts.
    **arguments: `length`, `temperature` and `seed`.
  """
  export = model.get_layer("language_model").resolved_object
  texts = export.generate(tf.constant(prompts, tf.string), **arguments)
  return [text.decode() for text in texts.numpy()]


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(
    "sequences",
    learning_rate=3e-3,
    retraining=("regularization_loss_multiplier", "dropout_rate"),
  )
  flags.DEFINE_enum(
    "dataset",
    "python_source",
    ["python_source"],
    "Text to fine-tune on: source code of Python's standard library.",
  )
  flags.DEFINE_string(
    "text_file",
    None,
    "Instead of --dataset: a UTF-8 text, whose last tenth is held out.",
  )
  flags.DEFINE_integer(
    "seq_length", 64, "Number of bytes in a sequence.", lower_bound=1
  )
  flags.DEFINE_string(
    "prompt", None, "After the training, continue this text and print it."
  )
  flags.DEFINE_integer(
    "length", 200, "The most bytes to add to --prompt.", lower_bound=0
  )
  flags.DEFINE_float(
    "temperature",
    0.5,
    "For --prompt: 0 takes the most likely byte, 1 samples.",
    lower_bound=0.0,
  )
  flags.DEFINE_string(
    "cell_dir",
    None,
    "Also train a classifier of digits, row by row, on this exported cell.",
  )


def fine_tune() -> None:
  """Fine-tunes according to the flags."""
  values = flags.FLAGS
  with command_line.input_errors():
    cell_dir = command_line.model_path("cell_dir")
    train, test = (
      read_text(formats.absolute(values.text_file))
      if values.text_file
      else python_source()
    )
  held_out = None

  def prepare(model: tf_keras.Model) -> tuple[fitting.Parts, tf_keras.Model]:
    nonlocal held_out
    if cell_dir:
      load_cell(cell_dir)  # Fails before the training if the cell does not fit.
    export = model.get_layer("language_model").resolved_object
    data, held_out = (
      sequences(texts, export, values.seq_length) for texts in (train, test)
    )
    print(f"Perplexity per byte before: {perplexity(model, held_out):.3f}")
    return fitting.Parts(data, held_out), model

  model = command_line.fine_tune(build_model, prepare, "sequences")
  print(f"Perplexity per byte after: {perplexity(model, held_out):.3f}")
  if values.prompt is not None:
    arguments = {"length": values.length, "temperature": values.temperature}
    print(generate(model, [values.prompt], **arguments)[0])
  if cell_dir:
    with command_line.input_errors():
      _, accuracy = fit_classifier(cell_dir, epochs=values.epochs)
    print(f"Accuracy of the classifier of digits: {accuracy:.4f}")


if __name__ == "__main__":
  define_flags()
  command_line.run(fine_tune)
