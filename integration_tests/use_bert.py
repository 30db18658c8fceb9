r"""Fine-tunes an exported BERT-like encoder to classify text.

  bazel run //integration_tests:use_bert -- \
    --saved_model_dir=DIR/encoder --preprocessor_dir=DIR/preprocessor

It uses nothing of the code that made the exports.
"""

from __future__ import annotations

from absl import flags
from etils import epy

from distribution import strategies
from integration_tests import command_line
from integration_tests import fitting
from integration_tests import texts

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tensorflow_hub as hub
  import tensorflow_text  # The preprocessor has ops of it.
  import tf_keras


def load_preprocessor(
  preprocessor_dir: str, seq_length: int
) -> tf_keras.layers.Layer:
  """Loads an exported preprocessor.

  Args:
    preprocessor_dir: The export.
    seq_length: Number of tokens of each text that the encoder gets to see.

  Returns:
    A layer from strings `[batch]` to the inputs of the encoder, each int32
    `[batch, seq_length]`.
  """
  _ = tensorflow_text.__name__  # Imported now.
  return hub.KerasLayer(
    preprocessor_dir, arguments={"seq_length": seq_length}, name="preprocessor"
  )


def check_pair(
  preprocessor: tf_keras.layers.Layer, model: tf_keras.Model
) -> None:
  """Refuses an encoder that was trained with another preprocessor.

  Raises:
    ValueError: It was.
  """
  expected, actual = (
    layer.resolved_object.preprocessor_sha256()
    for layer in (model.get_layer("encoder"), preprocessor)
  )
  if expected != actual:
    raise ValueError(
      "The encoder was not made with this preprocessor, but with the one of"
      f" sha256 {expected.numpy().decode()}."
    )


def build_model(
  saved_model_dir: str,
  num_classes: int,
  *,
  retrain: bool,
  steps: int,
  dropout_rate: float | None = None,
  attention_dropout_rate: float | None = None,
  learning_rate: float = 3e-4,
) -> tf_keras.Model:
  """Puts a new classifier on an encoder, and compiles both for training.

  Args:
    saved_model_dir: The encoder.
    num_classes: Number of classes.
    retrain: Train the weights of the encoder too.
    steps: Number of steps that the training will take.
    dropout_rate: Rate of the encoder's dropout; None: its default.
    attention_dropout_rate: That of its attention; None: its default.
    learning_rate: Of AdamW, at its highest: it rises from 0 in the first tenth
      of the steps, and falls to 0 along a cosine.

  Returns:
    A model from what the preprocessor returns to logits, float32
    `[batch, num_classes]`.
  """
  arguments = {
    "dropout_rate": dropout_rate,
    "attention_dropout_rate": attention_dropout_rate,
  }
  inputs = {
    name: tf_keras.Input([None], dtype=tf.int32, name=name)
    for name in ("input_word_ids", "input_mask", "input_type_ids")
  }
  outputs = hub.KerasLayer(
    saved_model_dir,
    trainable=retrain,
    arguments={k: v for k, v in arguments.items() if v is not None},
    load_options=tf.saved_model.LoadOptions(
      experimental_io_device=strategies.io_device(tf.distribute.get_strategy())
    ),
    name="encoder",
  )(inputs)
  # In float32, as the loss, whatever the precision of the rest.
  logits = tf_keras.layers.Dense(num_classes, dtype="float32", name="logits")(
    outputs["pooled_output"]
  )
  model = tf_keras.Model(inputs, logits)
  warmup_steps = max(steps // 10, 1)
  optimizer = tf_keras.optimizers.AdamW(
    tf_keras.optimizers.schedules.CosineDecay(
      0.0,
      max(steps - warmup_steps, 1),
      warmup_target=learning_rate,
      warmup_steps=warmup_steps,
    ),
    weight_decay=0.01,
    global_clipnorm=1.0,
  )
  optimizer.exclude_from_weight_decay(
    var_names=["bias", "layer_norm", "LayerNorm"]
  )
  model.compile(
    optimizer=optimizer,
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=["accuracy"],
  )
  return model


def preprocessed(
  data: tuple[np.ndarray, np.ndarray], preprocessor: tf_keras.layers.Layer
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Makes an encoder's inputs of texts, once for all epochs, on the host.

  Args:
    data: Texts, str `[n]`, and labels, int `[n]`.
    preprocessor: What `load_preprocessor` returns.

  Returns:
    Inputs, each int32 `[n, seq_length]`, and the labels.
  """
  text, labels = data
  parts = [
    tf.nest.map_structure(np.asarray, preprocessor(text[i : i + 1024]))
    for i in range(0, len(text), 1024)
  ]
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }, labels


def serving_model(
  model: tf_keras.Model, preprocessor: tf_keras.layers.Layer
) -> tf_keras.Model:
  """Returns a model from strings `[batch]` to what `model` returns."""
  strings = tf_keras.Input([], dtype=tf.string, name="text")
  return tf_keras.Model(strings, model(preprocessor(strings)))


def define_flags() -> None:
  """Defines the flags of this program."""
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
  flags.DEFINE_string(
    "train_file",
    None,
    "Instead of --dataset: a file with a class, a tab and a text in each line."
    " Every fifth line is held out.",
  )
  flags.DEFINE_bool(
    "retrain",
    True,
    "Train the weights of the encoder too. With --noretrain only a new"
    " classifier on its features is trained.",
  )
  flags.DEFINE_integer(
    "seq_length",
    64,
    "Number of tokens of each text that the encoder gets to see.",
    lower_bound=3,
  )
  flags.DEFINE_float(
    "dropout_rate",
    None,
    "With --retrain: the rate, instead of the encoder's default.",
    lower_bound=0.0,
    upper_bound=0.99,
  )
  flags.DEFINE_float(
    "attention_dropout_rate",
    None,
    "With --retrain: the rate of dropout in the attention, instead of the"
    " encoder's default.",
    lower_bound=0.0,
    upper_bound=0.99,
  )
  flags.DEFINE_integer(
    "epochs", 5, "How often to go through the texts.", lower_bound=1
  )
  flags.DEFINE_integer(
    "batch_size",
    32,
    "Texts in a step, on all devices together.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "learning_rate",
    3e-4,
    "Learning rate of AdamW at its highest. 3e-5 suits large encoders.",
    lower_bound=0.0,
  )
  command_line.define_flags(
    only_with_retrain=["dropout_rate", "attention_dropout_rate"]
  )


def main() -> None:
  """Fine-tunes as the flags say."""
  values = flags.FLAGS
  with command_line.input_errors():
    strategy = strategies.get(strategies.from_flags())
    output_dir = command_line.make_output_dir(strategy)
    fitting.check_batch_size(values.batch_size, strategy)
    dataset = (
      texts.read_tsv(command_line.path(values.train_file))
      if values.train_file
      else texts.python_docs()
    )
    preprocessor = load_preprocessor(
      command_line.path(values.preprocessor_dir), values.seq_length
    )
    with strategies.precision(values.mixed_precision), strategy.scope():
      model = build_model(
        command_line.path(values.saved_model_dir),
        len(dataset.class_names),
        retrain=values.retrain,
        steps=-(-len(dataset.train[1]) // values.batch_size) * values.epochs,
        dropout_rate=values.dropout_rate,
        attention_dropout_rate=values.attention_dropout_rate,
        learning_rate=values.learning_rate,
      )
    check_pair(preprocessor, model)
    train, test = (
      preprocessed(data, preprocessor) for data in (dataset.train, dataset.test)
    )
  with strategies.cluster_errors():
    accuracy = fitting.fit(
      model,
      train,
      test,
      batch_size=values.batch_size,
      epochs=values.epochs,
      backup_dir=command_line.path(values.backup_dir),
    )
    held_out = f"{len(dataset.test[1]):,} texts held out"
    print(f"Test accuracy: {accuracy:.4f} on {held_out}")
    if output_dir:
      fitting.save(serving_model(model, preprocessor), output_dir, strategy)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
