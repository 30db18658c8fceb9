r"""Pre-trains a text encoder: the --train_on of `//exporters:bert`.

It writes checkpoints, `encoder.yaml` and `vocab.txt`, for `//exporters:bert`:

  bazel run //exporters:bert_pretraining -- --train_on=python_docs \
    --encoder_config_file=encoder.yaml --do_lower_case --checkpoint_dir=DIR
  bazel run //exporters:bert_pretraining -- --train_on=texts.csv \
    --encoder_config_file=encoder.yaml --vocab_file=vocab.txt \
    --checkpoint_dir=DIR
  bazel run //exporters:bert_pretraining -- --train_on=texts.csv \
    --encoder_config_file=encoder.yaml --checkpoint_dir=DIR \
    --strategy=mirrored --mixed_precision=mixed_bfloat16
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import os
import tempfile
from typing import TYPE_CHECKING

from absl import flags
from etils import epy

from data import documents
from distribution import strategies
from exporters import bert_flags
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import training_records
from models.nlp import bert
from models.nlp import preprocessing
from models.nlp import pretraining

if TYPE_CHECKING:
  from official.nlp.configs import encoders

with epy.lazy_imports():
  from official.modeling import hyperparams
  import tensorflow as tf
  import tf_keras

# Further documents would hardly change the wordpieces.
_VOCABULARY_DOCUMENTS = 20_000

# Help texts and limits of the flags for fields of `pretraining.Config`.
_CONFIG_FLAGS = {
  "epochs": ("number of epochs; 0 keeps the initial weights.", 0),
  "steps_per_epoch": ("steps in an epoch, for text of any length.", 1),
  "batch_size": ("sequences in a step, over all devices.", 1),
  "learning_rate": ("peak learning rate of AdamW.", 0.0),
  "masking_rate": ("fraction of the tokens to predict.", 0.01, 0.9),
  "dropout": "train with the encoder's dropout. Without it models learn faster"
  " until they overfit.",
}
# The same for fields of `Training`.
_TRAINING_FLAGS = {
  "checkpoint_dir": "keep a checkpoint of each epoch in this directory, with"
  " encoder.yaml and vocab.txt. Training resumes from the newest checkpoint"
  " there.",
  "tensorboard_dir": command_line.TENSORBOARD,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """The options of pre-training: values of the flags of the same names."""

  train_on: Sequence[str]
  config: pretraining.Config
  do_lower_case: bool
  text_column: str | None = None
  distribution: strategies.Config = strategies.DEFAULT
  checkpoint_dir: str | None = None
  tensorboard_dir: str | None = None


def train(
  training: Training,
  config: encoders.EncoderConfig,
  tokenizer: preprocessing.Tokenizer | None,
  checkpoint_dir: str,
  check: Callable[[tf_keras.Model], None] = lambda core: None,
) -> tuple[preprocessing.Tokenizer, dict[str, str]]:
  """Pre-trains an encoder and saves a checkpoint of it.

  It also writes `vocab.txt` and `encoder.yaml` to `checkpoint_dir`. In a
  cluster only the chief returns; the other workers exit.

  Args:
    training: The text and the hyperparameters.
    config: The config of the encoder. Without a tokenizer, its `vocab_size` is
      an upper bound, and is set to the size of the new vocabulary.
    tokenizer: The tokenizer. None builds a vocabulary of wordpieces.
    checkpoint_dir: The directory to write to. Training resumes from its newest
      checkpoint.
    check: Called with the untrained core model; raises an error to reject it.

  Returns:
    The tokenizer, and rows for the model card that describe the training.

  Raises:
    ExportError: The text cannot be read, the checkpoints in `checkpoint_dir`
      belong to another model, or the strategy is not available.
  """
  with tempfile.TemporaryDirectory() as worker_dir:
    if training.distribution.strategy == "multi_worker_mirrored":
      _copy_for_worker(checkpoint_dir, worker_dir)
    strategy = command_line.strategy(training.distribution)
    if not strategies.is_chief(strategy):
      checkpoint_dir = worker_dir
    about = f"--train_on={','.join(training.train_on)}: "
    with errors.of_input(OSError, ValueError, about=about):
      corpus = documents.load(
        training.train_on,
        text_column=training.text_column,
        worker=strategies.worker(strategy),
        is_remote=bool(strategies.io_device(strategy)),
      )
      if tokenizer is None:
        tokenizer = _new_tokenizer(corpus, config, training)
    # These errors are about `checkpoint_dir`, not about the text.
    with errors.of_input(OSError, ValueError):
      tf_keras.utils.set_random_seed(training.config.seed)
      with strategies.precision(training.distribution.mixed_precision):
        with strategy.scope():
          core = bert.core_model(config)
          check(core)
          model = bert.pretrain_model(core)
        print(f"Training on {corpus.description}")
        with (
          strategies.cluster_errors(),
          errors.of_input(tf.errors.DataLossError, about=about),
        ):
          accuracy = pretraining.train(
            model,
            corpus,
            tokenizer,
            training.config,
            checkpoint_dir,
            {
              "encoder": config.as_dict(),
              "do_lower_case": tokenizer.do_lower_case,
            },
            training_records.callbacks(training.tensorboard_dir, strategy),
            training_records.epochs,
          )
      hyperparams.save_params_dict_to_yaml(
        config, os.path.join(checkpoint_dir, "encoder.yaml")
      )
    print(f"Accuracy on masked tokens of held-out text: {accuracy:.4f}")
    command_line.end_unless_chief(strategy)
  return tokenizer, _provenance(training, corpus, accuracy)


def _copy_for_worker(checkpoint_dir: str, worker_dir: str) -> None:
  """Copies the checkpoints that training resumes from to a worker's directory.

  Every worker must copy before the chief writes its next checkpoint.
  """
  files = tf.io.gfile  # The checkpoints may be in a bucket.
  if files.isdir(checkpoint_dir):
    for name in files.listdir(checkpoint_dir):
      files.copy(f"{checkpoint_dir}/{name}", f"{worker_dir}/{name}")


def _new_tokenizer(
  corpus: documents.Corpus, config: encoders.EncoderConfig, training: Training
) -> preprocessing.Tokenizer:
  """Builds a vocabulary of wordpieces; sets the config's `vocab_size`."""
  print(f"Building a vocabulary of {corpus.description}")
  casing = {"do_lower_case": training.do_lower_case}
  tokens = preprocessing.build_vocabulary(
    corpus.train.take(_VOCABULARY_DOCUMENTS), bert.vocab_size(config), **casing
  )
  config.get().override({"vocab_size": len(tokens)})
  return preprocessing.wordpiece_tokenizer(tokens, **casing)


def _provenance(
  training: Training, corpus: documents.Corpus, accuracy: float
) -> dict[str, str]:
  config = training.config
  if not config.epochs:
    return {"source": "not trained"}
  return {
    "trained on": corpus.description,
    "accuracy on masked tokens of held-out text": f"{accuracy:.4f}",
    "training": f"{config.epochs} epochs of {config.steps_per_epoch} steps of"
    f" AdamW, batches of {config.batch_size} sequences of {config.seq_length}"
    f" tokens, learning rate {config.learning_rate:g} decaying to 0, masking"
    f" rate {config.masking_rate:g}, seed {config.seed}, in"
    f" {training.distribution.mixed_precision}",
  }


def define_flags() -> None:
  """Defines the flags of training; `bert_flags` has those of the encoder."""
  documents.define_flags(
    "Pre-train the encoder on this text instead of restoring a checkpoint."
  )
  command_line.define(Training, _TRAINING_FLAGS, only_with="train_on")
  command_line.define(pretraining.Config, _CONFIG_FLAGS, only_with="train_on")
  strategies.define_flags("With --train_on: ")
  flags.adopt_module_key_flags(strategies)
  command_line.forbid_without("train_on", ["text_column", *strategies.FLAGS])


def training_from_flags() -> Training | None:
  """Returns the training options of the flags; None without --train_on."""
  if not flags.FLAGS.train_on:
    return None
  return command_line.from_flags(
    Training,
    config=command_line.from_flags(pretraining.Config),
    distribution=strategies.from_flags(),
  )


def main() -> None:
  """Pre-trains the encoder that the flags describe."""
  training = training_from_flags()
  config = bert_flags.config_from_flags()
  train(training, config, None, training.checkpoint_dir)
  print(f"Trained: {flags.FLAGS.checkpoint_dir}")


if __name__ == "__main__":
  bert_flags.define_flags()
  define_flags()
  for name in ("train_on", "checkpoint_dir"):
    flags.register_validator(name, bool, "The flag is required.")
  flags.mark_flags_as_mutual_exclusive(
    ["encoder_config_file", "bert_config_file"], required=True
  )
  command_line.run(main)
