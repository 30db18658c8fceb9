r"""Fine-tunes an exported BERT-like encoder to classify text.

It trains a new head, then all weights, and prints the accuracy:

  bazel run //integration_tests:use_bert -- \
    --saved_model_dir=DIR/encoder --preprocessor_dir=DIR/preprocessor
  bazel run //integration_tests:use_bert -- --saved_model_dir=DIR/encoder \
    --preprocessor_dir=DIR/preprocessor --train_file=texts.csv
  bazel run //integration_tests:use_bert -- --saved_model_dir=DIR/encoder \
    --preprocessor_dir=DIR/preprocessor --train_file=texts.csv \
    --output_saved_model_dir=CLASSIFIER
"""

from __future__ import annotations

import functools
from typing import Any

from absl import flags
from etils import epy

from data import texts
from distribution import errors
from integration_tests import command_line
from integration_tests import fitting
from integration_tests import report
from integration_tests import serving

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tensorflow_hub as hub
  import tensorflow_text  # Registers the ops of the preprocessor.
  import tf_keras

  from integration_tests import layerwise


def load_preprocessor(
  preprocessor_dir: str, seq_length: int
) -> tf_keras.layers.Layer:
  """Loads an exported preprocessor as a layer.

  It takes strings, `[batch]`, and returns the inputs of the encoder, each int32
  `[batch, seq_length]`.
  """
  _ = tensorflow_text.__name__  # Runs the lazy import.
  layer = hub.KerasLayer(
    fitting.load(preprocessor_dir),
    arguments={"seq_length": seq_length},
    name="preprocessor",
  )
  about = f"{preprocessor_dir} is no exported preprocessor of BERT: "
  with errors.of_input(
    about=about
  ):  # The exception depends on the kind of SavedModel.
    layer(tf.constant([""]))
    _ = layer.resolved_object.preprocessor_sha256
  return layer


def check_pair(
  preprocessor: tf_keras.layers.Layer, model: tf_keras.Model
) -> None:
  """Raises a ValueError if an encoder was trained with another preprocessor."""
  expected, actual = (
    layer.resolved_object.preprocessor_sha256()
    for layer in (model.get_layer("encoder"), preprocessor)
  )
  if expected != actual:
    raise ValueError(
      "The encoder was not made with this preprocessor, but with the one of"
      f" sha256 {expected.numpy().decode()}. Set --preprocessor_dir to that."
    )


def build_model(
  saved_model_dir: str,
  num_classes: int,
  *,
  steps: int,
  learning_rate: float = 3e-4,
  weight_decay: float = 0.01,
  layer_decay: float | None = None,
  **layer_arguments: Any,
) -> tf_keras.Model:
  """Builds and compiles a new classifier on an encoder.

  Args:
    saved_model_dir: The encoder.
    num_classes: Number of classes.
    steps: Number of steps of the training.
    learning_rate: Peak learning rate of AdamW: it rises from 0 in the first
      tenth of the steps, and falls to 0 along a cosine.
    weight_decay: As in `layerwise.optimizer`.
    layer_decay: As in `layerwise.optimizer`.
    **layer_arguments: Arguments of `fitting.load_layer`. `retrain` is required.

  Returns:
    A model from the outputs of the preprocessor to logits, float32
    `[batch, num_classes]`.
  """
  inputs = {
    name: tf_keras.Input([None], dtype=tf.int32, name=name)
    for name in ("input_word_ids", "input_mask", "input_type_ids")
  }
  encoder = fitting.load_layer(
    saved_model_dir, name="encoder", **layer_arguments
  )
  logits = fitting.logits(encoder(inputs)["pooled_output"], num_classes)
  warmup_steps = max(steps // 10, 1)
  optimizer = layerwise.optimizer(
    saved_model_dir,
    tf_keras.optimizers.schedules.CosineDecay(
      0.0,
      max(steps - warmup_steps, 1),
      warmup_target=learning_rate,
      warmup_steps=warmup_steps,
    ),
    weight_decay=weight_decay,
    layer_decay=layer_decay,
    global_clipnorm=1.0,
  )
  return fitting.classifier(inputs, logits, optimizer)


def preprocessed(
  data: tuple[Any, np.ndarray], preprocessor: tf_keras.layers.Layer
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Preprocesses texts of `texts.read` on the host, once for all epochs.

  Returns inputs of the encoder, each int32 `[n, seq_length]`, and the labels.
  """
  text, labels = data
  parts = [
    preprocessor(text[i : i + 1024].to_numpy())
    for i in range(0, len(text), 1024)
  ]
  inputs = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
  return inputs, labels


def serving_model(
  model: tf_keras.Model, preprocessor: tf_keras.layers.Layer
) -> tf_keras.Model:
  """Prepends the preprocessor to `model`, which then takes strings."""
  strings = tf_keras.Input([], dtype=tf.string, name="text")
  return tf_keras.Model(strings, model(preprocessor(strings)))


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(
    "texts",
    learning_rate=3e-3,
    retraining=(
      "regularization_loss_multiplier",
      "dropout_rate",
      "attention_dropout_rate",
    ),
    classifies=True,
  )
  flags.DEFINE_string(
    "preprocessor_dir",
    None,
    "The export of the preprocessor that belongs to the encoder.",
    required=True,
  )
  flags.DEFINE_enum(
    "dataset",
    "python_docs",
    ["python_docs"],
    "Text to fine-tune on: the docstrings of Python's standard library, whose"
    " classes are packages.",
  )
  flags.DEFINE_float(
    "weight_decay",
    0.01,
    "Weight decay of AdamW, relative to the learning rate. Biases and"
    " normalization have none.",
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    "layer_decay",
    None,
    "With --retrain: ratio of the learning rate of each layer to that of the"
    " next one; the new head has --learning_rate. Default: all layers train at"
    " the same rate.",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  errors.apply_only_with("retrain", ["layer_decay"])
  texts.define_flags()
  report.define_flags()
  flags.DEFINE_integer(
    "seq_length",
    64,
    "Number of tokens of each text that the encoder receives.",
    lower_bound=3,
  )


def fine_tune() -> None:
  """Fine-tunes according to the flags."""
  values = flags.FLAGS
  dataset = command_line.labelled_texts()
  steps = fitting.steps_per_epoch(dataset.train[1], values.batch_size)
  build = functools.partial(
    build_model,
    num_classes=len(dataset.classes),
    steps=steps * values.epochs,
    weight_decay=values.weight_decay,
    layer_decay=values.layer_decay,
  )

  def prepare(model: tf_keras.Model) -> tuple[Any, ...]:
    preprocessor = load_preprocessor(
      command_line.model_path("preprocessor_dir"), values.seq_length
    )
    check_pair(preprocessor, model)
    parts = (
      part and preprocessed(part, preprocessor)
      for part in (dataset.train, dataset.test, dataset.validation)
    )
    served = serving_model(model, preprocessor)
    return (
      fitting.Parts(*parts, command_line.class_weights(dataset)),
      serving.Classifier(served, dataset.classes, str(dataset)),
    )

  command_line.fine_tune(
    build, prepare, "texts", held_out=lambda: command_line.of_texts(dataset)
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(fine_tune)
