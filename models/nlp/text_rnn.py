"""A recurrent language model of bytes: predicts the next byte of a text.

The model reads and writes the UTF-8 bytes of a text, so it covers any text and
needs no vocabulary. Id 0 marks the boundary of texts, before the first byte and
after the last one, and pads batches. Id n + 1 is the byte n.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import sys
from typing import Any

from etils import epy

from data import batches
from data import documents
from distribution import backups
from distribution import strategies

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

VOCAB_SIZE = 257

_DOCUMENTS_AT_ONCE = 256
_SHUFFLED_SEQUENCES = 10_000
_HELD_OUT_SEQUENCES = 2_000  # Maximum number for the evaluation.


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Sizes and regularization of a language model.

  Attributes:
    cell: `lstm` or `gru`.
    num_layers: Number of stacked cells.
    units: Size of each cell's output.
    embedding_size: Size of the embedding of a byte.
    dropout_rate: Dropout rate after the embedding and after the last cell.
    l2_strength: Factor of the L2 regularization of all kernels.
  """

  cell: str = "lstm"
  num_layers: int = 1
  units: int = 192
  embedding_size: int = 64
  dropout_rate: float = 0.1
  l2_strength: float = 1e-7


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyperparameters of the training.

  Attributes:
    epochs: Number of epochs; 0 keeps the initial weights.
    steps_per_epoch: Steps per epoch, independent of the length of the text.
    batch_size: Sequences per step, on all devices together.
    seq_length: Bytes per sequence.
    learning_rate: Initial learning rate of Adam. It falls to 0 along a cosine.
    seed: Seed of the initial weights, shuffling and dropout.
  """

  epochs: int = 6
  steps_per_epoch: int = 100
  batch_size: int = 32
  seq_length: int = 64
  learning_rate: float = 1e-2
  seed: int = 0


def language_model(architecture: Architecture) -> tf_keras.Model:
  """Builds a model that predicts the logits of the next id at each position.

  It takes ids, int32 `[batch, length]`, and returns float32
  `[batch, length, VOCAB_SIZE]`. Its layers are `embedding`, `rnn`, `logits` and
  dropout.
  """
  l2 = tf_keras.regularizers.L2(architecture.l2_strength)
  cell = {"gru": tf_keras.layers.GRUCell, "lstm": tf_keras.layers.LSTMCell}
  cells = [
    cell[architecture.cell](
      architecture.units, kernel_regularizer=l2, recurrent_regularizer=l2
    )
    for _ in range(architecture.num_layers)
  ]
  ids = tf_keras.Input([None], dtype=tf.int32, name="ids")
  x = tf_keras.layers.Embedding(
    VOCAB_SIZE, architecture.embedding_size, name="embedding"
  )(ids)
  x = tf_keras.layers.Dropout(architecture.dropout_rate)(x)
  x = tf_keras.layers.RNN(
    tf_keras.layers.StackedRNNCells(cells), return_sequences=True, name="rnn"
  )(x)
  x = tf_keras.layers.Dropout(architecture.dropout_rate)(x)
  # The logits are float32 even in mixed precision.
  logits = tf_keras.layers.Dense(
    VOCAB_SIZE, kernel_regularizer=l2, dtype="float32", name="logits"
  )
  return tf_keras.Model(ids, logits(x), name="language_model")


def step(
  model: tf_keras.Model, ids: tf.Tensor, states: list[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Computes one step of a language model in inference.

  Args:
    model: The model.
    ids: int32 `[batch]`.
    states: The states before the step, each float32 `[batch, units]`; zeros at
      the start.

  Returns:
    Logits, float32 `[batch, VOCAB_SIZE]`, and the states after the step.
  """
  output, states = cell_step(model, model.get_layer("embedding")(ids), states)
  return model.get_layer("logits")(output), states


def cell_step(
  model: tf_keras.Model, inputs: tf.Tensor, states: list[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Computes one step of the stacked cells of a language model.

  Args:
    model: The model.
    inputs: float32 `[batch, embedding_size]`.
    states: The states before the step, as in `step`.

  Returns:
    Output, float32 `[batch, units]`, and the states after the step.
  """
  cell = model.get_layer("rnn").cell
  structure = tf.nest.pack_sequence_as(cell.state_size, list(states))
  output, states = cell(inputs, structure)
  return output, tf.nest.flatten(states)


def state_sizes(model: tf_keras.Model) -> list[int]:
  """Returns the size of each recurrent state of a language model."""
  return tf.nest.flatten(model.get_layer("rnn").cell.state_size)


def tokenize(texts: tf.Tensor) -> tf.RaggedTensor:
  """Splits texts, strings `[batch]`, into ids, int32 `[batch, None]`.

  Bytes that are not UTF-8 are replaced by U+FFFD.
  """
  texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
  parts = tf.strings.bytes_split(texts)
  values = tf.reshape(tf.io.decode_raw(parts.flat_values, tf.uint8), [-1])
  return parts.with_flat_values(tf.cast(values, tf.int32) + 1)


def detokenize(ids: tf.RaggedTensor) -> tf.Tensor:
  """Joins ids, int32 `[batch, None]`, into texts, strings `[batch]`.

  Boundaries are dropped. Bytes that are not UTF-8 are replaced by U+FFFD.
  """
  texts = tf.strings.reduce_join(tf.gather(_bytes(), ids), axis=-1)
  return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")


def _bytes() -> tf.Tensor:
  """Returns the string that each id adds to a text, by id."""
  return tf.constant([b"", *(bytes([i]) for i in range(VOCAB_SIZE - 1))])


def generate(
  model: tf_keras.Model,
  prompts: tf.Tensor,
  length: tf.Tensor,
  temperature: tf.Tensor,
  seed: tf.Tensor,
) -> tf.Tensor:
  """Continues texts with sampled bytes.

  Args:
    model: The model.
    prompts: Strings `[batch]`.
    length: Maximum number of bytes to add, an int. A text may end earlier.
    temperature: Scale of the noise, a float. At 0 each byte is the most likely
      one; at 1 it is sampled from the distribution of the model.
    seed: An int. The same seed gives the same texts on the same kind of device.

  Returns:
    The prompts with their continuations, strings `[batch]`, valid UTF-8.
  """
  ids = tokenize(prompts)
  sizes = tf.cast(ids.row_lengths(), tf.int32)
  padded = tf.pad(ids.to_tensor(), [[0, 0], [0, 1]])
  batch, width = tf.unstack(tf.shape(padded))
  strings = _bytes()

  def body(i: Any, last: Any, ended: Any, texts: Any, states: Any) -> Any:
    logits, states = step(model, last, states)
    # The most likely byte after Gumbel noise is a sample of the distribution.
    uniform = tf.random.stateless_uniform(
      tf.shape(logits), [seed, i], minval=1e-20
    )
    noise = -tf.math.log(-tf.math.log(uniform))
    sampled = tf.argmax(
      logits + tf.maximum(temperature, 0.0) * noise, -1, tf.int32
    )
    is_prompt = i < sizes
    ended |= ~is_prompt & ((sampled == 0) | (i - sizes >= length))
    given = padded[:, tf.minimum(i, width - 1)]
    last = tf.where(is_prompt, given, tf.where(ended, 0, sampled))
    texts = tf.strings.join([texts, tf.gather(strings, last)])
    return i + 1, last, ended, texts, states

  zeros = tf.zeros([batch], tf.int32)
  states = [tf.zeros([batch, size]) for size in state_sizes(model)]
  texts = tf.fill([batch], "")
  _, _, _, texts, _ = tf.while_loop(
    lambda i, last, ended, *_: ~tf.reduce_all(ended),
    body,
    (0, zeros, zeros > 0, texts, states),
  )
  return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")


def train(
  model: tf_keras.Model,
  corpus: documents.Corpus,
  config: Config,
  callbacks: Sequence[tf_keras.callbacks.Callback] = (),
) -> float:
  """Trains a language model, with a progress bar.

  Args:
    model: The model, built in the scope of the training strategy.
    corpus: The text.
    config: Hyperparameters.
    callbacks: Keras callbacks. If they resume a training, the order of the text
      differs from that of uninterrupted training.

  Returns:
    The perplexity per byte of the held-out text: e to the mean cross-entropy.
  """
  strategy = model.distribute_strategy
  with strategy.scope():
    trained = _compiled(model, config)
  if config.epochs and not backups.restored(trained, callbacks):
    # Asynchronous workers draw their own batches. A seed would make them equal.
    is_asynchronous = strategies.is_asynchronous(strategy)
    seed = None if is_asynchronous else config.seed
    if is_asynchronous:
      tf.random.set_seed(None)
    train_batches = batches.for_each_worker(
      _sequences(corpus.of_worker, config.seq_length)
      .shuffle(_SHUFFLED_SEQUENCES, seed)
      .repeat()
      .batch(config.batch_size, drop_remainder=True)
    )
    with batches.timed(train_batches, strategy) as timed:
      trained.fit(
        timed,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        callbacks=list(callbacks),
        # A progress bar on a terminal, otherwise one line per epoch.
        verbose=1 if sys.stdout.isatty() else 2,
      )
  # TPUs need batches of equal size. So pad the last batch with sequences of
  # weight 0.
  held_out = _sequences(corpus.held_out, config.seq_length)
  held_out = held_out.take(_HELD_OUT_SEQUENCES)
  filling = held_out.take(1).map(lambda x, y, weights: (x, y, 0.0 * weights))
  held_out = held_out.concatenate(filling.repeat(config.batch_size - 1))
  held_out = held_out.batch(config.batch_size, drop_remainder=True)
  return math.exp(
    strategies.evaluate(trained, batches.for_each_worker(held_out))
  )


def _compiled(model: tf_keras.Model, config: Config) -> tf_keras.Model:
  """Wraps and compiles a model, so that the model itself has no optimizer."""
  schedule = tf_keras.optimizers.schedules.CosineDecay(
    config.learning_rate, max(config.epochs * config.steps_per_epoch, 1)
  )
  trained = tf_keras.Sequential([model])
  trained.compile(
    optimizer=tf_keras.optimizers.Adam(schedule, global_clipnorm=1.0),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=[
      tf_keras.metrics.SparseCategoricalCrossentropy(
        "cross_entropy", from_logits=True
      )
    ],
  )
  return trained


def _sequences(documents: tf.data.Dataset, seq_length: int) -> tf.data.Dataset:
  """Concatenates documents and cuts them into sequences of equal length.

  Returns:
    Inputs and labels, int32 `[seq_length]`, and weights, 0 for padding.
  """

  def joined(texts: tf.Tensor) -> tf.Tensor:
    ids = tf.pad(tokenize(texts).to_tensor(-1), [[0, 0], [1, 0]])
    ids = tf.boolean_mask(ids, ids >= 0)
    ids = tf.concat([ids, [0]], 0)
    # The last label of a sequence is the first input of the next.
    count = -(-(tf.size(ids) - 1) // seq_length)
    ids = tf.pad(ids, [[0, count * seq_length + 1 - tf.size(ids)]])
    return tf.stack(
      [tf.reshape(x, [count, seq_length]) for x in (ids[:-1], ids[1:])], 1
    )

  def split(pair: tf.Tensor) -> tuple[tf.Tensor, ...]:
    inputs, labels = pair[0], pair[1]
    return inputs, labels, tf.cast(inputs + labels > 0, tf.float32)

  return documents.batch(_DOCUMENTS_AT_ONCE).map(joined).unbatch().map(split)
