r"""Exports a recurrent language model of text, and its cell.

It trains the model first, or restores a checkpoint:

  bazel run //exporters:text_rnn -- --train_on=python_docs --export_dir=DIR
  bazel run //exporters:text_rnn -- \
    --train_on=texts.txt --cell=gru --units=256 --export_dir=DIR
  bazel run //exporters:text_rnn -- --checkpoint_path=CHECKPOINT \
    --export_type=all --export_dir=DIR
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any

from absl import flags
from etils import epy

from data import documents
from distribution import backups
from distribution import publishing
from distribution import strategies
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from exporters.reusable import training_records
from models.nlp import text_rnn

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from exporters.reusable import xla


_LANGUAGE_MODEL_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

# Your data: texts, a list of strings.
layer = hub.KerasLayer(
    "path/to/language_model", trainable=True, arguments={"dropout_rate": 0.1}
)
export = layer.resolved_object
# 0 is the boundary of texts: before the first byte and after the last one.
ids = tf.concat([[0]] + [[*x, 0] for x in export.tokenize(texts).to_list()], 0)
data = tf.data.Dataset.from_tensor_slices(ids).batch(65, drop_remainder=True)
data = data.map(lambda x: (x[:-1], x[1:])).shuffle(10_000).batch(32)
model = tf_keras.Sequential([tf_keras.Input([None], dtype=tf.int32), layer])
model.compile(
    optimizer=tf_keras.optimizers.Adam(1e-3),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
model.fit(data, epochs=3)

# Continue texts:
print(export.generate(["Returns the "], length=200, temperature=0.5, seed=1))
# Or step by step, from states of zeros:
states = [tf.zeros([1, size]) for size in export.state_sizes()]
logits, *states = export.step([tf.constant([0]), *states])
"""

_CELL_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow_hub as hub
import tf_keras


class Cell(tf_keras.layers.Layer):
    def __init__(self, path, **kwargs):
        super().__init__(**kwargs)
        self.cell = hub.KerasLayer(path, trainable=True)
        sizes = self.cell.resolved_object.state_sizes()
        self.state_size = [int(size) for size in sizes]
        self.output_size = self.state_size[-1]

    def call(self, inputs, states):
        output, *states = self.cell([inputs, *states])
        return output, states


# Your data: sequences, float32 [n, steps, features]; labels, int [n], from 0;
# num_classes.
model = tf_keras.Sequential([
    tf_keras.layers.Dense(EMBEDDING_SIZE),  # The size of the cell's inputs.
    tf_keras.layers.RNN(Cell("path/to/cell")),
    tf_keras.layers.Dense(num_classes),
])
model.compile(
    optimizer="adam",
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(sequences, labels, epochs=10)
# Once saved: tf_keras.models.load_model(…, custom_objects={"Cell": Cell})
"""

_ARCHITECTURE_FLAGS = {
  "num_layers": ("Number of stacked cells.", 1),
  "units": ("Size of each cell's output.", 1),
  "embedding_size": ("Size of the embedding of a byte.", 1),
  "dropout_rate": (
    "Dropout rate after the embedding and the last cell.",
    0.0,
    0.99,
  ),
  "l2_strength": (
    "Factor of the L2 regularization of all kernels, in training and in the"
    " regularization losses of the export.",
    0.0,
  ),
}
_TRAINING_FLAGS = {
  "epochs": ("number of epochs; 0 exports the initial weights.", 0),
  "steps_per_epoch": ("steps in an epoch, for text of any length.", 1),
  "batch_size": ("sequences in a step, on all devices together.", 1),
  "seq_length": ("bytes of each sequence.", 1),
  "learning_rate": ("initial learning rate of Adam.", 0.0),
  "seed": ("seed of the initial weights, the order of the text, dropout.", 0),
}
_DIRECTORY_FLAGS = {
  "checkpoint_dir": "directory for the checkpoint of the trained model. It must"
  " not exist, or be empty; --overwrite replaces one with a checkpoint.",
  "backup_dir": "where to keep the state of the training after each epoch,"
  " until the export has appeared. After an interruption the same command"
  " resumes from there. All machines must see it.",
  "tensorboard_dir": command_line.TENSORBOARD,
}

_LANGUAGE_MODEL = """\
It reads a text byte by byte, in UTF-8, and returns the logits of each byte that
follows. There is no vocabulary: it can read and write any text.

Sub-objects, which share its weights and compute as in inference:

- `generate(prompts, length=100, temperature=0.8, seed=0)`: strings `[batch]` to
  strings `[batch]`, the prompts with at most `length` more bytes. A text ends
  where the model predicts its end. At temperature 0 each byte is the most
  likely one. The same seed gives the same texts on the same kind of device.
- `step([ids, *states])`: ids int32 `[batch]` and states float32
  `[batch, units]`, zeros at the start of a text. It returns
  `[logits, *states]`, and can be trained.
- `tokenize(texts)`: strings `[batch]` to a RaggedTensor of ids, int32, without
  the boundaries; `detokenize(ids)` is its inverse. Bytes that are not UTF-8
  become U+FFFD.
- `state_sizes()`: the units of each state, int32."""

_CELL = """\
One step of a recurrent network: the cells of a language model of text, for the
layer `tf_keras.layers.RNN` of your own model. It takes a list
`[inputs, *states]` and returns `[output, *states]`. States are zeros at the
start of a sequence; `state_sizes()` returns the units of each, int32. It
computes in float32: in a model of mixed precision give the layers around it
`dtype="float32"`."""

_PROMPTS = ["Returns the ", "", "¿Dónde está 漢字? ", "\n\n    "]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """The source of the weights: values of the flags of the same names."""

  checkpoint_path: str | None = None
  weights: str | None = None
  train_on: Sequence[str] | None = None
  text_column: str | None = None
  config: text_rnn.Config = dataclasses.field(default_factory=text_rnn.Config)
  distribution: strategies.Config = strategies.DEFAULT
  checkpoint_dir: str | None = None
  backup_dir: str | None = None
  tensorboard_dir: str | None = None


def export(
  weights: Weights,
  architecture: text_rnn.Architecture,
  options: exporting.Options,
  *,
  export_type: str = "language_model",
) -> None:
  """Exports a language model, its cell, or both.

  Args:
    weights: A checkpoint, `tf.train.Checkpoint(model=
      models.nlp.text_rnn.language_model(…))`; or how to train one.
    architecture: Sizes and regularization of the model.
    options: Where to export and how to verify.
    export_type: `language_model`, `cell` or `all`, which writes both to
      directories of these names.

  Raises:
    ExportError: A directory is taken, the text cannot be read, the checkpoint
      does not match, or an export differs from the model.
  """
  makers = {"language_model": _language_model, "cell": _cell}
  names = list(makers) if export_type == "all" else [""]
  directories = [
    *(weights.checkpoint_dir, weights.backup_dir, weights.tensorboard_dir)
  ]
  with exporting.exporting(options, names, apart=directories) as export_piece:
    if weights.train_on:
      model, provenance = _train(weights, architecture, options, export_type)
    else:
      with checkpoints.uninitialized():
        model = text_rnn.language_model(architecture)
      _check_profiles(options, export_type, model)
      checkpoints.restore(
        weights.checkpoint_path,
        [tf.train.Checkpoint(model=model), model],
        left_out=["model/optimizer"],
        weights=weights.weights,
      )
      average = ", averaged over its training"
      provenance = {
        "source": "a checkpoint of the language model"
        + (average if weights.weights == "average" else "")
      }
    provenance |= {
      name.replace("_", " "): str(value)
      for name, value in dataclasses.asdict(architecture).items()
    }
    record = exporting.record(options, weights.checkpoint_path)
    for name in names:
      piece, card = makers[name or export_type](model, provenance)
      export_piece(name, piece, card, record)


def _check_profiles(
  options: exporting.Options, export_type: str, model: tf_keras.Model
) -> None:
  models = {"language_model": model, "cell": model.get_layer("rnn").cell}
  chosen = models.values() if export_type == "all" else [models[export_type]]
  exporting.check_profiles(options, *chosen)


def _train(
  weights: Weights,
  architecture: text_rnn.Architecture,
  options: exporting.Options,
  export_type: str,
) -> tuple[tf_keras.Model, dict[str, str]]:
  """Trains a model; returns the model in float32, and rows for its card."""
  strategy = command_line.strategy(weights.distribution)
  with contextlib.ExitStack() as stack:
    if weights.checkpoint_dir:
      directory = stack.enter_context(
        publishing.publish(
          weights.checkpoint_dir,
          publishing.CHECKPOINT,
          overwrite=options.overwrite,
        )
      )
    about = f"--train_on={','.join(weights.train_on)}: "
    with errors.of_input(OSError, ValueError, about=about):
      corpus = documents.load(
        weights.train_on,
        text_column=weights.text_column,
        worker=strategies.worker(strategy),
        is_remote=bool(strategies.io_device(strategy)),
      )
    with errors.of_input(ValueError):
      callbacks = _callbacks(weights, architecture, corpus, strategy)
    tf_keras.utils.set_random_seed(weights.config.seed)
    with strategies.precision(weights.distribution.mixed_precision):
      with strategy.scope():
        model = text_rnn.language_model(architecture)
      _check_profiles(options, export_type, model)
      print(f"Training on {corpus.description}")
      with (
        strategies.cluster_errors(),
        errors.of_input(tf.errors.DataLossError, about=about),
      ):
        perplexity = text_rnn.train(model, corpus, weights.config, callbacks)
    print(f"Perplexity per byte of held-out text: {perplexity:.3f}")
    if weights.distribution != strategies.DEFAULT:
      values = model.get_weights()  # All workers must take part.
      command_line.end_unless_chief(strategy)
      model = text_rnn.language_model(architecture)
      model.set_weights(values)
    if weights.checkpoint_dir:
      tf.train.Checkpoint(model=model).save(
        os.path.join(directory, "checkpoint")
      )
  config = weights.config
  if not config.epochs:
    return model, {"source": "not trained"}
  return model, {
    "trained on": corpus.description,
    "perplexity per byte of held-out text": f"{perplexity:.3f}",
    "training": f"{config.epochs} epochs of {config.steps_per_epoch} steps of"
    f" Adam, batches of {config.batch_size} sequences of {config.seq_length}"
    f" bytes, learning rate {config.learning_rate:g} falling to 0, seed"
    f" {config.seed}, in {weights.distribution.mixed_precision}",
  }


def _callbacks(
  weights: Weights,
  architecture: text_rnn.Architecture,
  corpus: documents.Corpus,
  strategy: tf.distribute.Strategy,
) -> list[tf_keras.callbacks.Callback]:
  """Makes the callbacks that record the training and save its state."""
  recording = training_records.callbacks(weights.tensorboard_dir, strategy)
  if not weights.backup_dir:
    return recording
  run = {
    **dataclasses.asdict(architecture),
    **dataclasses.asdict(weights.config),
    "mixed_precision": weights.distribution.mixed_precision,
    "text": backups.fingerprint(corpus.train),
  }
  epochs = run.pop("epochs")  # The number of epochs may grow.
  return recording + backups.callbacks(
    weights.backup_dir, run, strategy, epochs, training_records.epochs
  )


def _language_model(
  model: tf_keras.Model, provenance: dict[str, str]
) -> tuple[exporting.Piece, model_card.Card]:
  """Describes the SavedModel of the language model and its card."""
  sizes = text_rnn.state_sizes(model)
  piece = exporting.Piece(
    source=saving.source(
      model,
      tf.TensorSpec([None, None], tf.int32, "ids"),
      hyperparameters=hyperparameters.of_model(model),
    ),
    examples=[
      tf.random.stateless_uniform(
        shape, shape, 0, text_rnn.VOCAB_SIZE, tf.int32
      )
      for shape in ([3, 16], [1, 5])
    ],
    also_takes=[tf.TensorSpec([None, None], tf.int64)],
    output_name="logits",
    attributes={"state_sizes": saving.constant(tf.constant(sizes))},
    sub_objects={
      "step": _step_piece(
        functools.partial(text_rnn.step, model),
        model,
        tf.TensorSpec([None], tf.int32, "ids"),
        sizes,
      ),
      **_functions_of_texts(model),
    },
  )
  card = model_card.Card(
    name="Recurrent language model of bytes",
    description=_LANGUAGE_MODEL,
    meanings={
      "ids": "0 at the boundaries of texts, n + 1 for byte n of UTF-8",
      "logits": "logits of the id that follows each",
    },
    ranges={"ids": (0, text_rnn.VOCAB_SIZE - 1)},
    example=_LANGUAGE_MODEL_EXAMPLE,
    loaded="export",
    provenance=provenance,
  )
  return piece, card


def _functions_of_texts(model: tf_keras.Model) -> dict[str, exporting.Piece]:
  """Describes the sub-objects that take or return strings."""
  strings = tf.TensorSpec([None], tf.string, "texts")
  texts = tf.constant(_PROMPTS)
  tokens = text_rnn.tokenize(texts)
  tokens_spec = tf.RaggedTensorSpec([None, None], tf.int32)
  sampling = [
    hyperparameters.Hyperparameter(*row)
    for row in (
      ("length", 100, "The most bytes to add, an int."),
      ("temperature", 0.8, "0 takes the most likely byte, 1 samples."),
      ("seed", 0, "Seed of the samples, an int."),
    )
  ]
  generate = saving.source(
    functools.partial(text_rnn.generate, model),
    strings,
    hyperparameters=sampling,
    variables=model.variables,
    trainable_variables=(),
  )
  return {
    name: exporting.Piece(source=source, examples=[inputs, inputs[:1]])
    for name, source, inputs in (
      ("generate", generate, texts),
      ("tokenize", saving.source(text_rnn.tokenize, strings), texts),
      (
        "detokenize",
        saving.source(text_rnn.detokenize, tokens_spec),
        tokens,
      ),
    )
  }


def _cell(
  model: tf_keras.Model, provenance: dict[str, str]
) -> tuple[exporting.Piece, model_card.Card]:
  """Describes the SavedModel of the cell alone."""
  cell = model.get_layer("rnn").cell
  size = model.get_layer("embedding").output_dim
  sizes = text_rnn.state_sizes(model)
  piece = _step_piece(
    functools.partial(text_rnn.cell_step, model),
    cell,
    tf.TensorSpec([None, size], tf.float32, "cell_input"),
    sizes,
    regularization_losses=[
      lambda i=i: cell.losses[i] for i in range(len(cell.losses))
    ],
  )
  states = _state_names(sizes)
  card = model_card.Card(
    name="Recurrent cell",
    description=_CELL,
    meanings={
      "cell_input": "input of the step, such as an embedding",
      "cell_output": "output of the step",
      **dict.fromkeys(states, "state before the step"),
      **{f"next_{name}": "state after the step" for name in states},
    },
    example=_CELL_EXAMPLE.replace("EMBEDDING_SIZE", str(size)),
    loaded="model.layers[1].cell.cell.resolved_object",
    provenance=provenance,
  )
  return piece, card


def _step_piece(
  step: Callable[..., Any],
  layer: tf_keras.layers.Layer,
  spec: tf.TensorSpec,
  sizes: Sequence[int],
  **kwargs: Any,
) -> exporting.Piece:
  """Describes a step from `[input, *states]` to `[output, *states]`.

  Args:
    step: Maps an input and states to an output and states.
    layer: The model or the cell that `step` calls.
    spec: The input of the step.
    sizes: The size of each state.
    **kwargs: Arguments of `saving.source`.
  """

  def flat(x: tf.Tensor, *states: tf.Tensor) -> list[tf.Tensor]:
    output, states = step(x, states)
    return [output, *states]

  # The gradient needs compile-time constants of the forward pass; see `xla`.
  computed = xla.step_computed_again(layer, flat)

  def call(inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return computed(*inputs)

  states = [
    tf.TensorSpec([None, size], tf.float32, name)
    for name, size in zip(_state_names(sizes), sizes, strict=True)
  ]

  def example(x: tf.TensorSpec, n: int) -> tf.Tensor:
    end = text_rnn.VOCAB_SIZE if x.dtype.is_integer else 1
    shape = [n, *x.shape[1:]]
    return tf.random.stateless_uniform(shape, [n, 0], 0, end, x.dtype)

  return exporting.Piece(
    source=saving.source(
      call, [spec, *states], variables=layer.variables, **kwargs
    ),
    examples=[[example(x, n) for x in (spec, *states)] for n in (3, 1)],
    output_name=["cell_output", *(f"next_{x.name}" for x in states)],
    attributes={"state_sizes": saving.constant(tf.constant(sizes))},
  )


def _state_names(sizes: Sequence[int]) -> list[str]:
  """Returns a name for each state, in sorted order for signatures."""
  digits = len(str(len(sizes) - 1))
  return [f"state_{i:0{digits}}" for i in range(len(sizes))]


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags()
  flags.DEFINE_enum(
    "export_type",
    "language_model",
    ["language_model", "cell", "all"],
    "What to export: the language model, its cell alone, or both, to"
    " directories of these names in --export_dir.",
  )
  flags.DEFINE_enum(
    "cell", text_rnn.Architecture.cell, ["lstm", "gru"], "The kind of cell."
  )
  command_line.define(text_rnn.Architecture, _ARCHITECTURE_FLAGS)
  documents.define_flags(
    "Instead of --checkpoint_path: train the model on this text and export it."
  )
  command_line.define(Weights, _DIRECTORY_FLAGS, only_with="train_on")
  command_line.define(text_rnn.Config, _TRAINING_FLAGS, only_with="train_on")
  strategies.define_flags("With --train_on: ")
  flags.adopt_module_key_flags(strategies)
  command_line.forbid_without("train_on", ["text_column", *strategies.FLAGS])
  command_line.require_weights()


def main() -> None:
  """Exports the model that the flags describe."""
  weights = command_line.from_flags(
    Weights,
    config=command_line.from_flags(text_rnn.Config),
    distribution=strategies.from_flags(),
  )
  export(
    weights,
    command_line.from_flags(text_rnn.Architecture),
    command_line.options(),
    export_type=flags.FLAGS.export_type,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
