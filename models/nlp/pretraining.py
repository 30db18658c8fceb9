"""Pre-trains encoders with masked language modeling.

As in BERT (Devlin et al., arXiv:1810.04805), a share of the tokens is masked,
and the model predicts these tokens. Text is packed like RoBERTa's "full
sentences" (Liu et al., arXiv:1907.11692): documents are concatenated with
separators, so no sequence is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import os
import sys
from typing import Any

from etils import epy

from data import batches
from data import documents
from distribution import backups
from distribution import strategies
from models import autograph
from models.nlp import preprocessing

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_text as text
  import tf_keras


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyperparameters of the pre-training.

  Attributes:
    epochs: Number of epochs; 0 leaves the model untrained.
    steps_per_epoch: Steps per epoch, independent of the length of the text.
    batch_size: Sequences per step, on all devices together.
    seq_length: Tokens per sequence.
    learning_rate: AdamW's peak learning rate: it rises from 0 during the first
      tenth of the steps, then falls to 0 along a cosine.
    masking_rate: Share of the tokens to predict, in (0, 1).
    dropout: Whether to use dropout. Models that do not overfit learn faster
      without it (Lan et al., arXiv:1909.11942, section 4.8).
    seed: Seed of the initial weights, shuffling, masks and dropout.
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
  corpus: documents.Corpus,
  tokenizer: preprocessing.Tokenizer,
  config: Config,
  checkpoint_dir: str,
  about: Mapping[str, Any] | None = None,
  callbacks: Sequence[tf_keras.callbacks.Callback] = (),
  logs: list[dict[str, float]] | None = None,
) -> float:
  """Pre-trains a model.

  Args:
    model: A model of `bert.pretrain_model`, built in the scope of the strategy
      to train with. Training freezes its pooler and, without `config.dropout`,
      sets its dropout rates to 0.
    corpus: The text.
    tokenizer: Splits the text into tokens of the model's vocabulary.
    config: Hyperparameters.
    checkpoint_dir: Directory for the vocabulary, `vocab.txt`, and for Model
      Garden's checkpoints, `ckpt-STEPS`. Training resumes from the newest one;
      its random numbers then differ from those of uninterrupted training.
    about: Other settings that the result depends on. Training resumes only if
      these settings, the text and `config` apart from `epochs` are unchanged.
    callbacks: Keras callbacks. Keras calls them before a checkpoint is saved.
    logs: JSON values of each epoch, saved with the checkpoints. When training
      resumes, this function fills in the past epochs. One of the callbacks must
      append each new epoch.

  Returns:
    The share of masked tokens in the held-out text that the model predicts
    correctly, in [0, 1].

  Raises:
    ValueError: The checkpoints in `checkpoint_dir` belong to another training,
      model or vocabulary, or have more steps than `config`.
  """
  strategy = model.distribute_strategy
  run = {
    **dataclasses.asdict(config),
    "mixed_precision": tf_keras.mixed_precision.global_policy().name,
    "text": backups.fingerprint(corpus.train),
    **(about or {}),
  }
  del run["epochs"]  # The number of epochs may grow.
  logs = [] if logs is None else logs
  with strategy.scope():
    trained = _compiled(model, config)
    saves = _checkpoints(
      model, trained.optimizer, checkpoint_dir, tokenizer, run, logs
    )
  steps_done = int(trained.optimizer.iterations.numpy())
  if steps_done > config.epochs * config.steps_per_epoch:
    raise ValueError(
      f"{checkpoint_dir} has a checkpoint of {steps_done:,} steps, more than"
      f" {config.epochs} epochs of {config.steps_per_epoch:,}. Train for more"
      " epochs, or use another directory."
    )
  # A killed process may have written the logs of an epoch without its state.
  del logs[steps_done // config.steps_per_epoch :]
  # The seed depends on the step, so that resumed training repeats no text.
  # Asynchronous workers get random seeds, because they need different text.
  asynchronous = strategies.is_asynchronous(strategy)
  tf.random.set_seed(None if asynchronous else config.seed + steps_done)
  if config.epochs:
    train = examples(corpus.of_worker, tokenizer, config, training=True)
    with batches.timed(train, strategy) as timed:
      trained.fit(
        timed,
        initial_epoch=steps_done // config.steps_per_epoch,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        callbacks=[*callbacks, saves],
        # A progress bar on a terminal, otherwise one line per epoch.
        verbose=1 if sys.stdout.isatty() else 2,
      )
  tf.random.set_seed(config.seed)
  held_out = examples(corpus.held_out, tokenizer, config, training=False)
  return strategies.evaluate(trained, held_out)


def _compiled(model: tf_keras.Model, config: Config) -> tf_keras.Model:
  """Compiles the model that maps inputs to logits of the masked tokens.

  It freezes the pooler and, without `config.dropout`, turns dropout off.
  """
  for layer in model.submodules:
    if isinstance(layer, tf_keras.layers.Dropout) and not config.dropout:
      layer.rate = 0.0
    # Keras would warn that the loss does not depend on the pooler.
    if isinstance(layer, tf_keras.layers.Dense) and "pooler" in layer.name:
      layer.trainable = False
  inputs = {x.name: x for x in tf.nest.flatten(model.inputs)}
  # Compute the loss in float32, whatever the precision of the model.
  as_float32 = tf_keras.layers.Activation("linear", dtype="float32")
  compiled = tf_keras.Model(inputs, as_float32(model(inputs)["mlm_logits"]))
  compiled.compile(
    _optimizer(compiled, config),
    tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=[
      tf_keras.metrics.SparseCategoricalAccuracy("masked_token_accuracy")
    ],
  )
  return compiled


def examples(
  documents: tf.data.Dataset,
  tokenizer: preprocessing.Tokenizer,
  config: Config,
  *,
  training: bool,
) -> tf.data.Dataset:
  """Packs text into sequences and masks tokens, with tensorflow-text.

  Shuffling and masking depend on TensorFlow's global seed.

  Args:
    documents: Strings, shape `[]`.
    tokenizer: Splits documents into tokens.
    config: Sizes and rates.
    training: Whether to shuffle the documents and repeat them forever.

  Returns:
    Batches of the model's inputs; of the ids of the masked tokens, int32
    `[batch, predictions]`; and of their weights, float32 of the same shape, 0
    for padding. All batches have the same shape.
  """
  ids = tokenizer.special_tokens
  start = tf.constant([ids["start_of_sequence_id"]])
  end = tf.constant([ids["end_of_segment_id"]])

  @autograph.off
  def join(documents: tf.Tensor) -> tf.Tensor:
    tokens = tokenizer.tokenize(documents)
    if tokens.ragged_rank > 1:
      tokens = tokens.merge_dims(1, 2)
    ends = tf.repeat(end[tf.newaxis], tokens.nrows(), axis=0)
    return tf.concat([tokens, ends], axis=1).values

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
    # Map sequentially, so that random numbers are reproducible.
    .map(_masking(tokenizer, config))
    .prefetch(tf.data.AUTOTUNE)
  )


def _masking(
  tokenizer: preprocessing.Tokenizer, config: Config
) -> Callable[[tf.RaggedTensor], tuple[Any, ...]]:
  """Returns the function that masks a batch of sequences for `examples`."""
  ids = tokenizer.special_tokens
  predictions = math.ceil(config.masking_rate * config.seq_length)
  unselectable = [
    ids["start_of_sequence_id"],
    ids["end_of_segment_id"],
    *(i for i, t in enumerate(tokenizer.tokens) if t in ("[UNK]", "<unk>")),
  ]
  chooser = text.MaskValuesChooser(ids["vocab_size"], ids["mask_id"])

  @autograph.off
  def mask(tokens: tf.RaggedTensor) -> tuple[Any, ...]:
    # The selector shuffles the sequences in parallel. A stateless shuffle makes
    # the result independent of their order.
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
      static, (inputs, labels, tf.cast(weights, tf.float32))
    )

  def static(x: tf.Tensor) -> tf.Tensor:
    """Pads the last batch with zeros, because TPUs need static shapes."""
    missing = config.batch_size - tf.shape(x)[0]
    x = tf.pad(x, [[0, missing], [0, 0]])
    return tf.ensure_shape(x, [config.batch_size, x.shape[1]])

  return mask


def _optimizer(
  model: tf_keras.Model, config: Config
) -> tf_keras.optimizers.Optimizer:
  """Creates BERT's optimizer: AdamW with warm-up and gradient clipping."""
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
  # Create the slots now, so that a checkpoint restores them at once.
  optimizer.build(model.trainable_variables)
  return optimizer


def _checkpoints(
  model: tf_keras.Model,
  optimizer: tf_keras.optimizers.Optimizer,
  checkpoint_dir: str,
  tokenizer: preprocessing.Tokenizer,
  run: Mapping[str, Any],
  logs: list[dict[str, float]],
) -> tf_keras.callbacks.Callback:
  """Restores the newest checkpoint; returns a callback that saves more."""
  manager = tf.train.CheckpointManager(
    tf.train.Checkpoint(
      model=model, optimizer=optimizer, **model.checkpoint_items
    ),
    checkpoint_dir,
    max_to_keep=2,
  )
  options = tf.train.CheckpointOptions(
    experimental_io_device=strategies.io_device(model.distribute_strategy)
  )
  logs[:] = _resume(manager, tokenizer, run, options)

  def save(*_: Any) -> None:
    backups.keep_logs(manager.directory, run, logs)
    manager.save(int(optimizer.iterations.numpy()), options=options)

  return tf_keras.callbacks.LambdaCallback(on_epoch_end=save)


def _resume(
  manager: tf.train.CheckpointManager,
  tokenizer: preprocessing.Tokenizer,
  run: Mapping[str, Any],
  options: tf.train.CheckpointOptions,
) -> list[dict[str, float]]:
  """Restores the newest checkpoint, or writes the first one and vocab.txt.

  Returns:
    The logs of the completed epochs.
  """
  vocab_file = os.path.join(manager.directory, "vocab.txt")
  vocabulary = "".join(f"{token}\n" for token in tokenizer.tokens)
  if not manager.latest_checkpoint:
    backups.claim(manager.directory, run)
    tf.io.write_file(vocab_file, vocabulary)
    manager.save(0, options=options)
    return []
  if not tf.io.gfile.exists(vocab_file):
    raise ValueError(
      f"{manager.directory} has checkpoints of another program, without"
      " vocab.txt. Use another directory."
    )
  if tf.io.read_file(vocab_file).numpy().decode() != vocabulary:
    raise ValueError(
      f"{vocab_file} is another vocabulary than the given one. Train with it,"
      " or use another directory."
    )
  logs = backups.logs_of(backups.claim(manager.directory, run))
  try:
    manager.checkpoint.restore(
      manager.latest_checkpoint, options
    ).assert_consumed()
  except (AssertionError, IndexError, ValueError, tf.errors.OpError) as e:
    raise ValueError(
      f"{manager.latest_checkpoint} is of another model or damaged. Use another"
      f" directory. TensorFlow says: {' '.join(str(e).split())}"
    ) from e
  return logs
