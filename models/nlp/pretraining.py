"""Pre-trains encoders by masked language modeling.

The task is BERT's (Devlin et al., arXiv:1810.04805): a share of the tokens is
masked, and the model predicts them. Text is packed as RoBERTa's "full
sentences" (Liu et al., arXiv:1907.11692): documents follow each other, with a
separator between them, so that no sequence is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
import sys
from typing import Any

from etils import epy

from distribution import strategies
from models import autograph
from models.nlp import datasets
from models.nlp import preprocessing

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_text as text
  import tf_keras


@dataclasses.dataclass(frozen=True)
class Config:
  """How to pre-train.

  Attributes:
    epochs: Number of epochs; 0 trains nothing.
    steps_per_epoch: Steps in an epoch, whatever the length of the text.
    batch_size: Sequences in a step, on all devices together.
    seq_length: Tokens in a sequence.
    learning_rate: Of AdamW, at its highest: it rises from 0 in the first tenth
      of the steps, and then falls to 0 along a cosine.
    masking_rate: Share of the tokens to predict, in (0, 1).
    dropout: Whether the dropout of the model is active. Without it models learn
      faster, which is right for as long as they do not overfit (Lan et al.,
      arXiv:1909.11942, section 4.8).
    seed: Of the initial weights, the order of the text, the masks and dropout.
  """

  epochs: int = 10
  steps_per_epoch: int = 100
  batch_size: int = 32
  seq_length: int = 64
  learning_rate: float = 1e-3
  masking_rate: float = 0.15
  dropout: bool = False
  seed: int = 0


def train(
  model: tf_keras.Model,
  corpus: datasets.Corpus,
  tokenizer: preprocessing.Tokenizer,
  config: Config,
  *,
  checkpoint_dir: str | None = None,
) -> float:
  """Pre-trains a model, with a progress bar.

  Args:
    model: What `bert.pretrain_model` returns. Made in the scope of a strategy,
      it is trained under it.
    corpus: The text.
    tokenizer: Splits it into the tokens of the model.
    config: How to train.
    checkpoint_dir: Where to keep checkpoints, in Model Garden's form, `ckpt-`
      and the number of steps; and the vocabulary, `vocab.txt`. If there are
      any, training goes on after the newest; what is random is then not what it
      would have been.

  Returns:
    The share of masked tokens in the held-out text that the model predicts, in
    [0, 1].

  Raises:
    ValueError: The checkpoints in `checkpoint_dir` are of another model or
      another vocabulary.
  """
  strategy = model.distribute_strategy
  asynchronous = strategies.is_asynchronous(strategy)
  with _prepared(model, config):
    with strategy.scope():
      inputs = {x.name: x for x in tf.nest.flatten(model.inputs)}
      # For the loss, whatever the precision of the rest.
      as_float32 = tf_keras.layers.Activation("linear", dtype="float32")
      logits = as_float32(model(inputs)["mlm_logits"])
      trained = tf_keras.Model(inputs, logits)
      trained.compile(
        _optimizer(trained, config),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[
          tf_keras.metrics.SparseCategoricalAccuracy("masked_token_accuracy")
        ],
      )
      checkpoint = tf.train.Checkpoint(
        model=model, optimizer=trained.optimizer, **model.checkpoint_items
      )
      callbacks = []
      if checkpoint_dir:
        manager = tf.train.CheckpointManager(
          checkpoint, checkpoint_dir, max_to_keep=2
        )
        options = tf.train.CheckpointOptions(
          experimental_io_device=strategies.io_device(strategy)
        )
        _resume(manager, tokenizer, options)
        callbacks.append(
          tf_keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: manager.save(
              int(trained.optimizer.iterations.numpy()), options=options
            )
          )
        )
    steps_done = int(trained.optimizer.iterations.numpy())
    # Another seed than at the start, or the same text would come again; and
    # none where workers take batches of their own, or all would take the same.
    tf.random.set_seed(None if asynchronous else config.seed + steps_done)
    if config.epochs:
      trained.fit(
        examples(corpus.train, tokenizer, config, training=True),
        initial_epoch=steps_done // config.steps_per_epoch,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        callbacks=callbacks,
        # A bar on a terminal; in a log a line for each epoch.
        verbose=1 if sys.stdout.isatty() else 2,
      )
    tf.random.set_seed(config.seed)
    held_out = examples(corpus.held_out, tokenizer, config, training=False)
    return strategies.evaluate(trained, held_out)


def examples(
  documents: tf.data.Dataset,
  tokenizer: preprocessing.Tokenizer,
  config: Config,
  *,
  training: bool,
) -> tf.data.Dataset:
  """Packs and masks text, with tensorflow-text.

  What is random depends on TensorFlow's global seed.

  Args:
    documents: Strings, shape `[]`.
    tokenizer: Splits them into tokens.
    config: Sizes and rates.
    training: Whether to shuffle the documents and repeat them forever.

  Returns:
    Batches: the inputs of the pretrain model; ids of the tokens that were
    masked, int32 `[batch, predictions]`; and their weights, float32 of the same
    shape, 0 where there is none. All batches have the same shape.
  """
  ids = tokenizer.special_tokens
  start = tf.constant([ids["start_of_sequence_id"]])
  end = tf.constant([ids["end_of_segment_id"]])
  predictions = math.ceil(config.masking_rate * config.seq_length)
  unselectable = [
    ids["start_of_sequence_id"],
    ids["end_of_segment_id"],
    *(i for i, t in enumerate(tokenizer.tokens) if t in ("[UNK]", "<unk>")),
  ]
  chooser = text.MaskValuesChooser(ids["vocab_size"], ids["mask_id"])

  @autograph.off
  def join(documents: tf.Tensor) -> tf.Tensor:
    tokens = tokenizer.tokenize(documents)
    if tokens.ragged_rank > 1:
      tokens = tokens.merge_dims(1, 2)
    ends = tf.repeat(end[tf.newaxis], tokens.nrows(), axis=0)
    return tf.concat([tokens, ends], axis=1).values

  @autograph.off
  def mask(tokens: tf.RaggedTensor) -> tuple[dict[str, tf.Tensor], ...]:
    # The selector shuffles the positions of all sequences at the same time;
    # without a state the result does not depend on who is first.
    seed = tf.random.uniform([], maxval=tf.int32.max, dtype=tf.int32)
    selector = text.RandomItemSelector(
      predictions,
      config.masking_rate,
      unselectable,
      shuffle_fn=lambda positions: tf.random.experimental.stateless_shuffle(
        positions, [seed, tf.reduce_sum(positions)]
      ),
    )
    tokens, positions, labels = text.mask_language_model(
      tokens, selector, chooser
    )
    word_ids, input_mask = text.pad_model_inputs(tokens, config.seq_length)
    positions, _ = text.pad_model_inputs(positions, predictions)
    labels, weights = text.pad_model_inputs(labels, predictions)
    inputs = {
      "input_word_ids": word_ids,
      "input_mask": input_mask,
      "input_type_ids": tf.zeros_like(word_ids),
      "masked_lm_positions": tf.cast(positions, tf.int32),
    }
    return tf.nest.map_structure(
      of_one_shape, (inputs, labels, tf.cast(weights, tf.float32))
    )

  def of_one_shape(x: tf.Tensor) -> tf.Tensor:
    """Fills the last batch with zeros: TPUs need to know all shapes."""
    missing = config.batch_size - tf.shape(x)[0]
    x = tf.pad(x, [[0, missing], [0, 0]])
    return tf.ensure_shape(x, [config.batch_size, x.shape[1]])

  if training:
    documents = documents.shuffle(10_000).repeat()
  sequences = (
    documents.batch(256)
    .map(join, tf.data.AUTOTUNE)
    .rebatch(config.seq_length - 2)
    .map(lambda tokens: tf.concat([start, tokens, end], axis=0))
  )
  if training:
    sequences = sequences.shuffle(1_000)
  return (
    sequences.ragged_batch(config.batch_size, drop_remainder=training)
    # One after the other, for the random numbers to be the same each time.
    .map(mask)
    .prefetch(tf.data.AUTOTUNE)
  )


def _optimizer(
  model: tf_keras.Model, config: Config
) -> tf_keras.optimizers.Optimizer:
  """Makes BERT's optimizer: AdamW with a warm-up, its gradients clipped."""
  steps = config.epochs * config.steps_per_epoch
  warmup_steps = max(steps // 10, 1)
  optimizer = tf_keras.optimizers.AdamW(
    tf_keras.optimizers.schedules.CosineDecay(
      0.0,
      max(steps - warmup_steps, 1),
      warmup_target=config.learning_rate,
      warmup_steps=warmup_steps,
    ),
    weight_decay=0.01,
    epsilon=1e-6,
    global_clipnorm=1.0,
  )
  optimizer.exclude_from_weight_decay(
    var_names=["bias", "layer_norm", "LayerNorm"]
  )
  # Now, for a checkpoint to be restored at once.
  optimizer.build(model.trainable_variables)
  return optimizer


@contextlib.contextmanager
def _prepared(model: tf_keras.Model, config: Config) -> Iterator[None]:
  """Sets attributes of layers for the training, and gives theirs back."""
  with contextlib.ExitStack() as stack:

    def set_attribute(layer: tf_keras.layers.Layer, name: str, value: Any):
      stack.callback(setattr, layer, name, getattr(layer, name))
      setattr(layer, name, value)

    for layer in model.submodules:
      if isinstance(layer, tf_keras.layers.Dropout) and not config.dropout:
        set_attribute(layer, "rate", 0.0)
      # Masked language modeling does not reach it, of which Keras would warn.
      if isinstance(layer, tf_keras.layers.Dense) and "pooler" in layer.name:
        set_attribute(layer, "trainable", False)
    yield


def _resume(
  manager: tf.train.CheckpointManager,
  tokenizer: preprocessing.Tokenizer,
  options: tf.train.CheckpointOptions,
) -> None:
  """Restores the newest checkpoint, or writes the first and the vocabulary."""
  vocab_file = os.path.join(manager.directory, "vocab.txt")
  vocabulary = "".join(f"{token}\n" for token in tokenizer.tokens)
  if not manager.latest_checkpoint:
    tf.io.gfile.makedirs(manager.directory)
    with tf.io.gfile.GFile(vocab_file, "w") as f:
      f.write(vocabulary)
    manager.save(0, options=options)
    return
  if not tf.io.gfile.exists(vocab_file):
    raise ValueError(
      f"{manager.directory} has checkpoints of another program: there is no"
      " vocab.txt. Train in another directory."
    )
  with tf.io.gfile.GFile(vocab_file) as f:
    if f.read() != vocabulary:
      raise ValueError(
        f"{vocab_file} is another vocabulary than the one to train with. Train"
        " with it, or in another directory."
      )
  try:
    manager.checkpoint.restore(
      manager.latest_checkpoint, options
    ).assert_consumed()
  except (AssertionError, ValueError) as e:
    raise ValueError(
      f"{manager.latest_checkpoint} is of another model. Train in another"
      f" directory. TensorFlow says: {' '.join(str(e).split())}"
    ) from e
