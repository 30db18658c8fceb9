r"""Pre-trains an encoder for `//exporters:bert`: what --train_on does.

By itself it leaves checkpoints, which `//exporters:bert` exports, and beside
them `encoder.yaml` and `vocab.txt`:

  bazel run //exporters:bert_pretraining -- --train_on=python_docs \
    --encoder_config_file=encoder.yaml --do_lower_case --checkpoint_dir=DIR
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import tempfile
from typing import TYPE_CHECKING

from absl import flags
from etils import epy

from distribution import strategies
from exporters.reusable import command_line
from exporters.reusable import errors
from models.nlp import bert
from models.nlp import datasets
from models.nlp import encoder_config as encoder_config_lib
from models.nlp import preprocessing
from models.nlp import pretraining
from models.nlp import vocabulary

if TYPE_CHECKING:
  from official.nlp.configs import encoders

with epy.lazy_imports():
  from official.modeling import hyperparams
  import tensorflow as tf
  import tf_keras


def train(
  train_on: Sequence[str],
  config: encoders.EncoderConfig,
  tokenizer: preprocessing.Tokenizer | None,
  training_config: pretraining.Config,
  *,
  do_lower_case: bool,
  distribution: strategies.Config,
  checkpoint_dir: str,
) -> tuple[preprocessing.Tokenizer, dict[str, str]]:
  """Pre-trains an encoder, or goes on with it, and leaves a checkpoint.

  Args:
    train_on: Text files, or `python_docs` alone.
    config: Of the encoder. If the vocabulary is built, its `vocab_size` is the
      greatest that is allowed, and is set to the one that there is.
    tokenizer: The tokenizer; None: a vocabulary is built for it.
    training_config: How to train.
    do_lower_case: Of the vocabulary that is built.
    distribution: How to distribute it, and in which precision. Of the processes
      of a cluster only the chief gets beyond this function; the others end.
    checkpoint_dir: Where the checkpoints are, the vocabulary, `vocab.txt`, and
      at the end the config, `encoder.yaml`.

  Returns:
    The tokenizer, and what the card tells of the training.

  Raises:
    ExportError: The text cannot be read, what is in `checkpoint_dir` is of
      another model, or what is asked of `distribution` cannot be had.
  """
  # Workers other than the chief write elsewhere. They go on, too, from what
  # there is now, when the chief has not yet begun.
  own_dir = tempfile.TemporaryDirectory()
  files = tf.io.gfile  # It may be in a bucket.
  if distribution.strategy == "multi_worker_mirrored" and files.isdir(
    checkpoint_dir
  ):
    for name in files.listdir(checkpoint_dir):
      files.copy(f"{checkpoint_dir}/{name}", f"{own_dir.name}/{name}")
  strategy = command_line.strategy(distribution)
  if not strategies.is_chief(strategy):
    checkpoint_dir = own_dir.name
  try:
    corpus = (
      datasets.python_docs()
      if list(train_on) == ["python_docs"]
      else datasets.text_files(train_on)
    )
    if tokenizer is None:
      print(f"Building a vocabulary of {corpus.description}")
      tokens = vocabulary.build(
        corpus.train, bert.vocab_size(config), do_lower_case=do_lower_case
      )
      tokenizer = preprocessing.wordpiece_tokenizer(
        tokens, do_lower_case=do_lower_case
      )
      config.get().override({"vocab_size": len(tokens)})
    tf_keras.utils.set_random_seed(training_config.seed)
    with strategies.precision(distribution.mixed_precision):
      with strategy.scope():
        model = bert.pretrain_model(bert.core_model(config))
      print(f"Training on {corpus.description}")
      with strategies.cluster_errors():
        accuracy = pretraining.train(
          model,
          corpus,
          tokenizer,
          training_config,
          checkpoint_dir=checkpoint_dir,
        )
    hyperparams.save_params_dict_to_yaml(
      config, os.path.join(checkpoint_dir, "encoder.yaml")
    )
  except (OSError, ValueError) as e:
    raise errors.ExportError(
      f"--train_on={','.join(train_on)}: {' '.join(str(e).split())}"
    ) from e
  print(f"Masked tokens of held-out text that are predicted: {accuracy:.4f}")
  command_line.end_unless_chief(strategy)
  if not training_config.epochs:
    return tokenizer, {"source": "not trained"}
  return tokenizer, {
    "trained on": corpus.description,
    "masked tokens of held-out text that are predicted": f"{accuracy:.4f}",
    "training": f"{training_config.epochs} epochs of"
    f" {training_config.steps_per_epoch} steps of AdamW, batches of"
    f" {training_config.batch_size} sequences of"
    f" {training_config.seq_length} tokens, learning rate"
    f" {training_config.learning_rate:g} falling to 0, masking rate"
    f" {training_config.masking_rate:g}, seed {training_config.seed}, in"
    f" {distribution.mixed_precision}",
  }


def encoder_config(
  encoder_config_file: str | None, bert_config_file: str | None, seq_length: int
) -> encoders.EncoderConfig:
  """Reads the config of an encoder.

  Args:
    encoder_config_file: The YAML of an `EncoderConfig`. Either this or
      `bert_config_file`.
    bert_config_file: A `bert_config.json`, as the first BERTs have.
    seq_length: The length of sequences that it must be able to take.

  Raises:
    ExportError: The file is not such a config, or its position table is short.
  """
  try:
    if encoder_config_file:
      config = encoder_config_lib.from_yaml(encoder_config_file)
    else:
      config = encoder_config_lib.from_legacy_json(bert_config_file)
  except ValueError as e:
    file = encoder_config_file or bert_config_file
    raise errors.ExportError(f"{file}: {e}.") from e
  limit = bert.max_seq_length(config)
  if seq_length > limit:
    raise errors.ExportError(
      f"--seq_length={seq_length} is past the encoder's position table, which"
      f" has {limit} rows."
    )
  return config


def define_flags() -> None:
  """Defines the flags that say what to train, and how."""
  flags.DEFINE_list(
    "train_on",
    None,
    "Pre-train the encoder on this text, and take no checkpoint. Paths of UTF-8"
    " files, with commas between them, in which blank lines end documents; or"
    " python_docs, the docstrings of Python's standard library.",
  )
  flags.DEFINE_string(
    "encoder_config_file",
    None,
    "For an encoder: the YAML of Model Garden's EncoderConfig. Either this or"
    " --bert_config_file.",
  )
  flags.DEFINE_string(
    "bert_config_file",
    None,
    "For an encoder: its config as JSON, the format that came with BERT.",
  )
  flags.DEFINE_bool(
    "do_lower_case",
    None,
    "Whether text is lowercased and stripped of accents, as it was when the"
    " encoder was trained. It must be said.",
  )
  flags.DEFINE_integer(
    "seq_length",
    128,
    "The length that the preprocessor packs to by default; with --train_on of"
    " the sequences too.",
    lower_bound=5,
  )
  flags.DEFINE_integer(
    "seed",
    0,
    "Seed of random weights; with --train_on of all that is random in it.",
  )
  flags.register_validator(
    "do_lower_case",
    lambda value: value is not None,
    "Say --do_lower_case or --nodo_lower_case.",
  )
  flags.DEFINE_string(
    "checkpoint_dir",
    None,
    "With --train_on: keep checkpoints in this directory, one for each epoch,"
    " and beside them encoder.yaml and vocab.txt. Training goes on from the"
    " newest one that is there.",
  )
  strategies.define_flags("With --train_on: ")
  flags.adopt_module_key_flags(strategies)
  flags.DEFINE_integer(
    "epochs",
    pretraining.Config.epochs,
    "With --train_on: how many epochs to train; 0 keeps initial weights.",
    lower_bound=0,
  )
  flags.DEFINE_integer(
    "steps_per_epoch",
    pretraining.Config.steps_per_epoch,
    "With --train_on: steps in an epoch, whatever the length of the text.",
    lower_bound=1,
  )
  flags.DEFINE_integer(
    "batch_size",
    pretraining.Config.batch_size,
    "With --train_on: sequences in a step, on all devices together.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "learning_rate",
    pretraining.Config.learning_rate,
    "With --train_on: learning rate of AdamW at its highest.",
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    "masking_rate",
    pretraining.Config.masking_rate,
    "With --train_on: share of the tokens to predict.",
    lower_bound=0.01,
    upper_bound=0.9,
  )
  flags.DEFINE_bool(
    "dropout",
    pretraining.Config.dropout,
    "With --train_on: have the encoder's dropout active in the training."
    " Without it models learn faster, until they overfit.",
  )
  command_line.forbid_without(
    "train_on",
    [
      "checkpoint_dir",
      *strategies.FLAGS,
      "epochs",
      "steps_per_epoch",
      "batch_size",
      "learning_rate",
      "masking_rate",
      "dropout",
    ],
  )


def training_config() -> pretraining.Config:
  """Returns what the flags say."""
  values = flags.FLAGS
  return pretraining.Config(
    epochs=values.epochs,
    steps_per_epoch=values.steps_per_epoch,
    batch_size=values.batch_size,
    seq_length=values.seq_length,
    learning_rate=values.learning_rate,
    masking_rate=values.masking_rate,
    dropout=values.dropout,
    seed=values.seed,
  )


def train_on() -> list[str] | None:
  """Returns what the flag says."""
  names = flags.FLAGS.train_on
  return names and [
    name if name == "python_docs" else command_line.path(name) for name in names
  ]


def main() -> None:
  """Trains as the flags say, and leaves a checkpoint."""
  values = flags.FLAGS
  train(
    train_on(),
    encoder_config(
      command_line.path(values.encoder_config_file),
      command_line.path(values.bert_config_file),
      values.seq_length,
    ),
    None,
    training_config(),
    do_lower_case=values.do_lower_case,
    distribution=strategies.from_flags(),
    checkpoint_dir=command_line.path(values.checkpoint_dir),
  )
  print(f"Trained: {values.checkpoint_dir}")


if __name__ == "__main__":
  define_flags()
  for needed in ("train_on", "checkpoint_dir"):
    flags.register_validator(needed, bool, "It is needed.")
  flags.register_multi_flags_validator(
    ["encoder_config_file", "bert_config_file"],
    lambda values: sum(map(bool, values.values())) == 1,
    "Say either --encoder_config_file=PATH or --bert_config_file=PATH.",
  )
  command_line.run(main)
