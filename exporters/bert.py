r"""Exports a text encoder such as BERT, its preprocessor, or a text embedding.

It restores a checkpoint of Model Garden, Hugging Face or others, or pre-trains:

  bazel run //exporters:bert -- --export_type=all \
    --encoder_config_file=encoder.yaml --checkpoint_path=CHECKPOINT \
    --vocab_file=vocab.txt --do_lower_case --pooler=checkpoint --export_dir=DIR
  bazel run //exporters:bert -- --export_type=all \
    --checkpoint_path=HF_DIR --export_dir=DIR
  bazel run //exporters:bert -- --export_type=text_embedding \
    --checkpoint_path=HF_DIR --export_dir=DIR

A Hugging Face directory needs only --checkpoint_path because it has the config
and the vocabulary. With --export_type=all the encoder is DIR/encoder and the
preprocessor DIR/preprocessor. A text embedding is one SavedModel that maps
strings to vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import tempfile
from typing import Any

from absl import flags
from etils import epy

from exporters import bert_encoder
from exporters import bert_flags
from exporters import bert_preprocessor
from exporters import bert_pretraining
from exporters import bert_sources
from exporters import bert_text_embedding
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from models.nlp import bert
from models.nlp import encoder_checkpoints
from models.nlp import encoder_config
from models.nlp import preprocessing

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  from official.nlp.configs import encoders
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints

_EXPORT_TYPES = {
  "encoder": "the encoder",
  "encoder_with_mlm": "the encoder with the sub-object mlm, which predicts"
  " masked tokens",
  "preprocessing": "the preprocessor",
  "text_embedding": "preprocessor, encoder and pooling in one, from strings to"
  " vectors",
  "all": "the encoder, with mlm if the checkpoint has its head, and the"
  " preprocessor, each in a subdirectory",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """The source of an encoder's weights: values of the flags of the same names.

  Attributes:
    source: The encoder at `checkpoint_path`, if another library wrote it.
    training: The pre-training to export, instead of `checkpoint_path`.
  """

  pooler: str | None
  checkpoint_path: str | None = None
  weights: str | None = None
  source: bert_sources.Source | None = None
  training: bert_pretraining.Training | None = None
  seed: int = 0


def export(
  options: exporting.Options,
  export_type: str,
  preprocessor: bert_preprocessor.Options,
  config: encoders.EncoderConfig | None,
  weights: Weights | None,
  embedding: bert_text_embedding.Options | None = None,
) -> None:
  """Exports an encoder, its preprocessor, both, or a text embedding.

  Args:
    options: Where to export and how to verify.
    export_type: One of `_EXPORT_TYPES`.
    preprocessor: The options of the preprocessor.
    config: The config of the encoder; None for `preprocessing`.
    weights: The weights of the encoder; None for `preprocessing`.
    embedding: The options of the text embedding, required for it only.

  Raises:
    ExportError: The input is invalid, or an export differs from its model.
  """
  tokenizer = bert_preprocessor.read_tokenizer(
    preprocessor, config and bert.vocab_size(config)
  )
  if embedding:
    bert_text_embedding.check(config, embedding, preprocessor.seq_length)
  training = weights and weights.training
  checkpoint_dir = training and training.checkpoint_dir
  tensorboard_dir = training and training.tensorboard_dir
  names = ("encoder", "preprocessor") if export_type == "all" else ("",)
  with (
    exporting.exporting(
      options, names, apart=[checkpoint_dir, tensorboard_dir]
    ) as export_piece,
    tempfile.TemporaryDirectory() as scratch,
  ):
    trained: dict[str, str] = {}
    check = functools.partial(exporting.check_profiles, options)
    if training:
      path = checkpoint_dir or f"{scratch}/trained"
      weights = dataclasses.replace(weights, checkpoint_path=path)
      tokenizer, trained = bert_pretraining.train(
        training, config, tokenizer, path, check
      )
    if export_type in ("preprocessing", "all"):
      export_piece(
        names[-1],
        bert_preprocessor.piece(tokenizer, preprocessor),
        bert_preprocessor.card(tokenizer),
        {},
      )
    if config:
      record = exporting.record(options, weights.checkpoint_path)
      core, pretrainer = _restored(config, weights, export_type)
      check(core)
      attributes = _attributes(
        tokenizer, preprocessor, config, weights, scratch
      )
      made = bert_encoder.piece(core, pretrainer, attributes)
      card = bert_encoder.card(
        config,
        bool(pretrainer),
        tokenizer,
        trained | _provenance(weights),
        preprocessor.seq_length if training else None,
      )
      if embedding:
        inputs = bert_preprocessor.piece(tokenizer, preprocessor)
        made = bert_text_embedding.piece(made, inputs, embedding)
        card = bert_text_embedding.card(card, made, embedding)
      export_piece(names[0], made, card, record)


def _attributes(
  tokenizer: preprocessing.Tokenizer,
  preprocessor: bert_preprocessor.Options,
  config: encoders.EncoderConfig,
  weights: Weights,
  scratch: str,
) -> dict[str, Any]:
  """Creates the attributes of an encoder, such as its vocabulary and config."""
  file = preprocessor.token_file or f"{weights.checkpoint_path}/vocab.txt"
  model_type = weights.source and weights.source.model_type
  hub_config = encoder_config.to_hugging_face(config, model_type)
  return bert_preprocessor.attributes(tokenizer, file, scratch, hub_config)


def _restored(
  config: encoders.EncoderConfig, weights: Weights, export_type: str
) -> tuple[tf_keras.Model, tf_keras.Model | None]:
  """Restores an encoder, and its pre-training model if `mlm` is exported."""
  tf_keras.utils.set_random_seed(weights.seed)
  about = (
    f"An encoder of type {config.type} with --export_type={export_type}"
    + (f" and --pooler={weights.pooler}: " if weights.pooler else ": ")
  )
  path = weights.checkpoint_path
  source = (
    weights.source
    or bert_sources.of_keras(path, config)
    or bert_sources.of_tensorflow_1(path, config)
  )
  restore = (
    functools.partial(bert_sources.restore, source)
    if source
    else functools.partial(
      checkpoints.restore, weights.checkpoint_path, weights=weights.weights
    )
  )
  with errors.of_input(TypeError, ValueError, tf.errors.OpError, about=about):
    with checkpoints.uninitialized():
      core = bert.core_model(config)
    pretrainer = encoder_checkpoints.restore(
      core,
      restore,
      pooler_from=weights.pooler,
      # `all` exports the head only if the checkpoint has it.
      with_mlm={"encoder_with_mlm": True, "all": None}.get(export_type, False),
    )
  if export_type == "all" and not pretrainer:
    print("Exporting no mlm: there is no head for it.")
  if weights.pooler == "checkpoint" and not source:
    names = checkpoints.names(weights.checkpoint_path)
    if other := encoder_checkpoints.other_pooler(names):
      print(
        f"The head {other} in the checkpoint was trained with a pooler of its"
        " own, not with that of the encoder, which the pooled output has now."
        f" --pooler={other} takes the head's."
      )
  return core, pretrainer


def _provenance(weights: Weights) -> dict[str, str]:
  """Returns rows about the weights for the model card."""
  rows = {} if weights.training else {"source": "a checkpoint"}
  if weights.source:
    kind, library = weights.source.model_type, weights.source.library
    rows["source"] = f"weights of {library}, {kind}"
  if weights.weights == "average":
    rows["source"] += ": moving averages of its weights"
  pooler = encoder_checkpoints.POOLERS.get(
    weights.pooler, "that of the checkpoint, or else initial weights"
  )
  return {**rows, "pooler": pooler}


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_enum(
    "export_type",
    "encoder",
    list(_EXPORT_TYPES),
    f"What to export. {_sentences(_EXPORT_TYPES)}",
  )
  command_line.define_flags()
  command_line.define_saved_model_format()
  bert_flags.define_flags()
  bert_preprocessor.define_flags()
  bert_pretraining.define_flags()
  bert_text_embedding.define_flags()
  flags.adopt_module_key_flags(bert_pretraining)
  command_line.require_weights(without_weights=("export_type", "preprocessing"))
  _define_pooler()
  flags.register_multi_flags_validator(
    ["export_type", "encoder_config_file", "bert_config_file"],
    lambda values: (
      bool(values["encoder_config_file"]) + bool(values["bert_config_file"])
      in _counts(values["export_type"] != "preprocessing", "bert_config_file")
    ),
    "An encoder needs either --encoder_config_file=PATH or"
    " --bert_config_file=PATH. --export_type=preprocessing needs neither, nor"
    " does a --checkpoint_path of Hugging Face, whose config.json it is.",
  )
  flags.register_multi_flags_validator(
    ["vocab_file", "sp_model_file", "train_on"],
    lambda values: (
      bool(values["vocab_file"]) + bool(values["sp_model_file"])
      in (
        (0, 1)
        if values["train_on"]
        else _counts(True, "vocab_file", "sp_model_file")
      )
    ),
    "Say what the tokens are: either --vocab_file=PATH or"
    " --sp_model_file=PATH.",
  )


def _counts(is_needed: bool, *names: str) -> tuple[int, ...]:
  """Returns how many of several alternative flags may be set.

  None of the flags is needed if the directory of --checkpoint_path has a file
  for one of them.
  """
  if not is_needed:
    return (0,)
  return (0, 1) if bert_sources.in_flags(*names) else (1,)


def _define_pooler() -> None:
  """Defines --pooler, and the checks of its combination with other flags."""
  poolers = encoder_checkpoints.POOLERS
  flags.DEFINE_enum(
    "pooler",
    None,
    list(poolers),
    "Source of the pooler's weights. Required for an encoder, and for a text"
    " embedding with --pooling=pooled. Other text embeddings take `checkpoint`"
    f" if the checkpoint has it, else `random`. {_sentences(poolers)}",
  )
  flags.register_multi_flags_validator(
    ["export_type", "pooling", "pooler"],
    lambda values: (
      bool(values["pooler"]) == (values["export_type"] != "preprocessing")
      or bert_sources.in_flags("vocab_file", "sp_model_file")
      or (
        values["export_type"] == "text_embedding"
        and values["pooling"] != "pooled"
      )
    ),
    f"An encoder needs --pooler, one of {', '.join(poolers)}."
    " --export_type=preprocessing takes none, and --export_type=text_embedding"
    " needs it with --pooling=pooled only.",
  )
  flags.register_multi_flags_validator(
    ["saved_model_format", "export_type"],
    lambda values: (
      values["saved_model_format"] == "reusable"
      or values["export_type"] == "encoder"
    ),
    "--saved_model_format=keras is for --export_type=encoder only: the"
    " preprocessor is no Keras model, and a Keras model has no sub-object mlm.",
  )
  flags.register_multi_flags_validator(
    ["train_on", "pooler"],
    lambda values: (
      not values["train_on"] or values["pooler"] in (None, "random", "identity")
    ),
    "--train_on does not train a pooler. Say --pooler=random or"
    " --pooler=identity.",
  )


def _sentences(meanings: Mapping[str, str]) -> str:
  return " ".join(f"{name}: {meaning}." for name, meaning in meanings.items())


def main() -> None:
  """Exports the models that the flags describe."""
  config, weights = None, None
  source = bert_sources.from_flags()
  if source:
    config = source.config
    bert_flags.check_seq_length(config, flags.FLAGS.seq_length)
  elif flags.FLAGS.export_type != "preprocessing":
    config = bert_flags.config_from_flags()
  if config:
    training = bert_pretraining.training_from_flags()
    weights = command_line.from_flags(Weights, training=training, source=source)
  export(
    command_line.options(),
    flags.FLAGS.export_type,
    command_line.from_flags(
      bert_preprocessor.Options,
      as_transformers=bool(source) and source.library == "Hugging Face",
    ),
    config,
    weights,
    bert_text_embedding.options_from_flags(),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
