r"""Exports a text encoder such as BERT, and its preprocessor.

This writes both, restored from a checkpoint of Model Garden:

  bazel run //exporters:bert -- --export_type=all \
    --encoder_config_file=encoder.yaml --checkpoint_path=CHECKPOINT \
    --vocab_file=vocab.txt --do_lower_case --pooler=checkpoint --export_dir=DIR

The encoder is DIR/encoder, the preprocessor DIR/preprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import tempfile
from typing import Any

from absl import flags
from etils import epy

from exporters import bert_flags
from exporters import bert_preprocessor
from exporters import bert_pretraining
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from models.nlp import bert
from models.nlp import encoder_checkpoints
from models.nlp import preprocessing

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  from official.nlp.configs import encoders
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from exporters.reusable import xla

_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # Registers the ops of the preprocessor.
import tf_keras

# Your data: sentences, a list of strings; labels, int [n], from 0; num_classes.
preprocessor = hub.load("path/to/preprocessor")
encoder = hub.KerasLayer(
    "path/to/encoder", trainable=True, arguments={"dropout_rate": 0.1}
)
assert encoder.resolved_object.preprocessor_sha256() == (
    preprocessor.preprocessor_sha256()
)
data = tf.data.Dataset.from_tensor_slices((sentences, labels))
data = data.shuffle(10_000).batch(32).map(
    lambda texts, y: (preprocessor(texts, seq_length=64), y)
)
inputs = {
    name: tf_keras.Input([None], dtype=tf.int32, name=name)
    for name in ("input_word_ids", "input_mask", "input_type_ids")
}
logits = tf_keras.layers.Dense(num_classes)(encoder(inputs)["pooled_output"])
model = tf_keras.Model(inputs, logits)
model.compile(
    optimizer=tf_keras.optimizers.AdamW(3e-5),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(data, epochs=3)
"""

_EXPORT_TYPES = {
  "encoder": "the encoder",
  "encoder_with_mlm": "the encoder with the sub-object mlm, which predicts"
  " masked tokens",
  "preprocessing": "the preprocessor",
  "all": "the encoder, with mlm if the checkpoint has its head, and the"
  " preprocessor, each in a subdirectory",
}

_MEANINGS = {
  **bert_preprocessor.MEANINGS,
  "sequence_output": "features of each token",
  "pooled_output": "features of the whole input",
  "default": "the same as `pooled_output`",
  "word_embeddings": "embeddings of the tokens",
  "embedding_output": "embeddings of the tokens, the input of the first layer",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """Where the weights of an encoder come from.

  Attributes:
    pooler: The source of the pooler, one of `encoder_checkpoints.POOLERS`.
    checkpoint_path: Checkpoint of Model Garden: a file prefix or a directory.
    weights: `raw` or `average`, if the checkpoint also has moving averages.
    training: The pre-training to export, instead of `checkpoint_path`.
    seed: Seed of initial weights.
  """

  pooler: str
  checkpoint_path: str | None = None
  weights: str | None = None
  training: bert_pretraining.Training | None = None
  seed: int = 0


def export(
  options: exporting.Options,
  export_type: str,
  preprocessor: bert_preprocessor.Options,
  config: encoders.EncoderConfig | None = None,
  weights: Weights | None = None,
) -> None:
  """Exports an encoder, its preprocessor, or both.

  Args:
    options: Where to export and how to verify.
    export_type: One of `_EXPORT_TYPES`.
    preprocessor: The options of the preprocessor.
    config: The config of the encoder; None for `preprocessing`.
    weights: The weights of the encoder; None for `preprocessing`.

  Raises:
    ExportError: A directory is in the way, files cannot be read or do not fit
      together, or an export differs from its model.
  """
  tokenizer = bert_preprocessor.read_tokenizer(
    preprocessor, config and bert.vocab_size(config)
  )
  token_file = preprocessor.token_file
  training = weights and weights.training
  names = ("encoder", "preprocessor") if export_type == "all" else ("",)
  apart = [training and training.checkpoint_dir]
  with (
    exporting.exporting(options, names, apart=apart) as export_piece,
    tempfile.TemporaryDirectory() as scratch_dir,
  ):
    provenance = {"source": "a checkpoint"}
    if training:
      checkpoint_dir = training.checkpoint_dir or f"{scratch_dir}/training"
      training = dataclasses.replace(training, checkpoint_dir=checkpoint_dir)
      tokenizer, provenance = bert_pretraining.train(
        training, config, tokenizer, do_lower_case=preprocessor.do_lower_case
      )
      weights = dataclasses.replace(weights, checkpoint_path=checkpoint_dir)
      token_file = token_file or f"{checkpoint_dir}/vocab.txt"
    if export_type in ("preprocessing", "all"):
      export_piece(
        names[-1],
        bert_preprocessor.piece(tokenizer, preprocessor),
        bert_preprocessor.card(tokenizer),
        {},
      )
    if config:
      record = {}
      if options.verification != "off":  # Otherwise nothing is recorded.
        record["checkpoint_sha256"] = checkpoints.sha256(
          weights.checkpoint_path
        )
      core, pretrainer = _restored(config, weights, export_type)
      attributes = bert_preprocessor.attributes_of_encoder(
        tokenizer, token_file, scratch_dir
      )
      export_piece(
        names[0],
        _encoder(core, pretrainer, attributes),
        _card(config, bool(pretrainer), tokenizer, weights, provenance),
        record,
      )


def _restored(
  config: encoders.EncoderConfig, weights: Weights, export_type: str
) -> tuple[tf_keras.Model, tf_keras.Model | None]:
  """Restores a core model; returns it and its pretrain model, if wanted."""
  tf_keras.utils.set_random_seed(weights.seed)
  try:
    with checkpoints.uninitialized():
      core = bert.core_model(config)
    pretrainer = encoder_checkpoints.restore(
      core,
      functools.partial(
        checkpoints.restore, weights.checkpoint_path, weights=weights.weights
      ),
      pooler_from=weights.pooler,
      # `all` takes what the checkpoint has.
      with_mlm={"encoder": False, "encoder_with_mlm": True}.get(export_type),
    )
  except (TypeError, ValueError, tf.errors.OpError) as e:
    raise errors.ExportError(
      f"An encoder of type {config.type} with --export_type={export_type} and"
      f" --pooler={weights.pooler}: {' '.join(str(e).split())}."
    ) from e
  return core, pretrainer


def _encoder(
  core: tf_keras.Model,
  pretrainer: tf_keras.Model | None,
  attributes: Mapping[str, Any],
) -> exporting.Piece:
  """Makes the encoder, with the sub-object `mlm` if there is a pretrainer."""
  config = core.encoder_config
  tunable = hyperparameters.of_model(core)
  spec = {
    name: tf.TensorSpec(tensor.shape, tf.int32)
    for name, tensor in core.input.items()
  }

  def piece(
    model: tf_keras.Model, spec: Mapping[str, tf.TensorSpec], **kwargs: Any
  ) -> exporting.Piece:
    int64 = {name: tf.TensorSpec(s.shape, tf.int64) for name, s in spec.items()}
    return exporting.Piece(
      source=saving.source(
        model,
        spec,
        hyperparameters=tunable,
        check=functools.partial(
          bert.with_checked_length, encoder_config=config
        ),
        layer_calls={bert.POSITION_EMBEDDING: xla.with_own_gradient},
        # No Python control flow of the encoders depends on a Tensor.
        autograph=False,
      ),
      # Lists are in the order of Model Garden.
      also_takes=[int64, list(spec.values()), list(int64.values())],
      examples=bert.example_inputs(config, spec),
      **kwargs,
    )

  sub_objects = {}
  if pretrainer:
    positions = tf.TensorSpec([None, None], tf.int32)
    sub_objects["mlm"] = piece(
      pretrainer, {**spec, "masked_lm_positions": positions}, signature="mlm"
    )
  return piece(core, spec, attributes=attributes, sub_objects=sub_objects)


def _card(
  config: encoders.EncoderConfig,
  with_mlm: bool,
  tokenizer: preprocessing.Tokenizer,
  weights: Weights,
  provenance: Mapping[str, str],
) -> model_card.Card:
  """Makes the card of the encoder."""
  if weights.weights == "average":
    provenance = {"source": "a checkpoint: moving averages of its weights"}
  sizes = ", ".join(
    f"`{key}` {value}"
    for key, value in config.get().as_dict().items()
    if isinstance(value, (int, str)) and not isinstance(value, bool)
  )
  description = (
    f"A text encoder of type {config.type} from Model Garden"
    f" (`tf-models-official`): {sizes}. It takes a dict of int32 or int64"
    f" Tensors, or a list in the order {', '.join(bert.INPUT_NAMES)}, with a"
    f" seq_length of at most {bert.max_seq_length(config)}. It also returns"
    " `encoder_outputs`, a list of the outputs of its layers."
  )
  if with_mlm:
    description += (
      "\n\nThe sub-object `mlm`, and the signature of that name, predict masked"
      " tokens. They also take `masked_lm_positions`, int32"
      " `[batch, predictions]`, and also return `mlm_logits`, float32"
      " `[batch, predictions, vocab_size]`."
    )
  pooler = encoder_checkpoints.POOLERS[weights.pooler]
  tokens = bert_preprocessor.provenance(tokenizer)
  return model_card.Card(
    name=f"Text encoder ({config.type})",
    description=description,
    meanings=_MEANINGS,
    example=_EXAMPLE,
    provenance={
      **provenance,
      "pooler": f"{weights.pooler}: {pooler}",
      **{f"{key} of its preprocessor": value for key, value in tokens.items()},
    },
    needs=("tensorflow", "tf-keras", "tensorflow-hub", "tensorflow-text"),
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_enum(
    "export_type",
    "encoder",
    list(_EXPORT_TYPES),
    f"What to export. {_sentences(_EXPORT_TYPES)}",
  )
  for module in (
    command_line,
    bert_flags,
    bert_preprocessor,
    bert_pretraining,
  ):
    module.define_flags()
    flags.adopt_module_key_flags(module)
  command_line.require_weights(without_weights=("export_type", "preprocessing"))
  poolers = encoder_checkpoints.POOLERS
  flags.DEFINE_enum(
    "pooler",
    None,
    list(poolers),
    "Source of the pooler's weights. Required for an encoder."
    f" {_sentences(poolers)}",
  )
  for names, needed in (
    (
      ["encoder_config_file", "bert_config_file"],
      "either --encoder_config_file=PATH or --bert_config_file=PATH",
    ),
    (["pooler"], f"--pooler, one of {', '.join(poolers)}"),
  ):
    flags.register_multi_flags_validator(
      ["export_type", *names],
      lambda values, names=names: (
        sum(bool(values[name]) for name in names)
        == (values["export_type"] != "preprocessing")
      ),
      f"An encoder needs {needed}; --export_type=preprocessing does not.",
    )
  flags.register_multi_flags_validator(
    ["vocab_file", "sp_model_file", "train_on"],
    lambda values: (
      bool(values["vocab_file"]) + bool(values["sp_model_file"])
      in ((0, 1) if values["train_on"] else (1,))
    ),
    "Say what the tokens are: either --vocab_file=PATH or"
    " --sp_model_file=PATH.",
  )
  flags.register_multi_flags_validator(
    ["train_on", "pooler"],
    lambda values: (
      not values["train_on"]
      or values["pooler"] not in ("checkpoint", "next_sentence")
    ),
    "--train_on does not train a pooler. Say --pooler=random or"
    " --pooler=identity.",
  )


def _sentences(meanings: Mapping[str, str]) -> str:
  return " ".join(f"{name}: {meaning}." for name, meaning in meanings.items())


def main() -> None:
  """Exports what the flags say."""
  values = flags.FLAGS
  config, weights = None, None
  if values.export_type != "preprocessing":
    config = bert_flags.encoder_config_from_flags()
    weights = Weights(
      pooler=values.pooler,
      checkpoint_path=command_line.path(values.checkpoint_path),
      weights=values.weights,
      training=bert_pretraining.training_from_flags(),
      seed=values.seed,
    )
  export(
    command_line.options(),
    values.export_type,
    bert_preprocessor.options_from_flags(),
    config,
    weights,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
