r"""Exports a BERT-like encoder, and the preprocessor that belongs to it.

Of a checkpoint of Model Garden's,

  bazel run //exporters:bert -- --export_type=all \
    --encoder_config_file=encoder.yaml --checkpoint_path=CHECKPOINT \
    --vocab_file=vocab.txt --do_lower_case --pooler=checkpoint --export_dir=DIR

writes the encoder to DIR/encoder and the preprocessor to DIR/preprocessor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import os
import tempfile
from typing import Any

from absl import flags
from etils import epy

from distribution import strategies
from exporters import bert_preprocessor
from exporters import bert_pretraining
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import publishing
from models.nlp import bert
from models.nlp import preprocessing
from models.nlp import pretraining

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import numpy as np
  from official.nlp.configs import encoders
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from exporters.reusable import verification as verification_lib
  from exporters.reusable import xla

# Where the weights of the pooler come from.
_POOLERS = {
  "checkpoint": "the encoder's own in the checkpoint",
  "next_sentence": "that of the head that predicts next sentences",
  "random": "initial weights, to be trained by you",
  "identity": "none; the output at the first token as it is, through a dense"
  " layer that begins as the identity",
}

# What checkpoints have beside the encoder, and exports may lack.
_LEFT_OUT = (
  "masked_lm",
  "*.pooler_dense",
  "*/masked_lm",
  "*/classification_heads",
  "optimizer",
  "*/optimizer",
  "global_step",
)

_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # The preprocessor has ops of it.
import tf_keras

# Yours: sentences, a list of strings; labels, int [n], from 0 on; num_classes.
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

_MEANINGS = {
  **bert_preprocessor.MEANINGS,
  "sequence_output": "features of each token",
  "pooled_output": "features of the whole input",
  "default": "the same as `pooled_output`",
  "word_embeddings": "embeddings of the tokens",
  "embedding_output": "embeddings of the tokens, as the first layer takes them",
}


def export(
  *,
  export_dir: str,
  export_type: str,
  do_lower_case: bool,
  vocab_file: str | None = None,
  sp_model_file: str | None = None,
  check_casing: bool = True,
  encoder_config_file: str | None = None,
  bert_config_file: str | None = None,
  checkpoint_path: str | None = None,
  weights: str | None = None,
  train_on: Sequence[str] | None = None,
  training_config: pretraining.Config | None = None,
  checkpoint_dir: str | None = None,
  distribution: strategies.Config = strategies.DEFAULT,
  pooler: str | None = None,
  seq_length: int = 128,
  tokenize_with_offsets: bool = False,
  seed: int = 0,
  overwrite: bool = False,
  verification: str = "full",
  keep_failed: str | None = None,
  flag_values: Mapping[str, Any] | None = None,
) -> None:
  """Exports an encoder, its preprocessor, or both.

  Args:
    export_dir: The directory that the SavedModel appears at; of `all` the
      directory that has `encoder` and `preprocessor` in it.
    export_type: `encoder`; `encoder_with_mlm`, with the sub-object `mlm`;
      `preprocessing`; or `all`: the encoder, with `mlm` if the checkpoint has
      its head, and the preprocessor.
    do_lower_case: Whether text is lowercased and stripped of accents.
    vocab_file: The vocabulary of wordpieces. Either this or `sp_model_file`.
    sp_model_file: The model of SentencePiece.
    check_casing: Refuse a vocabulary that looks made for the other value of
      `do_lower_case`.
    encoder_config_file: The YAML of an `EncoderConfig`. An encoder needs either
      this or `bert_config_file`.
    bert_config_file: A `bert_config.json`, as the first BERTs have.
    checkpoint_path: For an encoder: its checkpoint, in any structure that Model
      Garden writes; the prefix of its files or a directory.
    weights: `raw`, or `average` for the moving averages, where the checkpoint
      has both.
    train_on: Instead of a checkpoint: text files, or `python_docs` alone, to
      pre-train the encoder on. Without `vocab_file` a vocabulary is built, of
      at most the `vocab_size` in the config.
    training_config: How to train, with `train_on`.
    checkpoint_dir: Where to keep checkpoints of the training, which goes on
      from the newest one there.
    distribution: How to distribute the training, and in which precision.
    pooler: For an encoder: where the weights of its pooler come from;
      `checkpoint`, `next_sentence`, `random` or `identity`.
    seq_length: The length that the preprocessor packs to by default.
    tokenize_with_offsets: Give the preprocessor a sub-object of that name.
    seed: Of random weights.
    overwrite: Replace `export_dir` where it exists.
    verification: `full`, `fast` or `off`.
    keep_failed: Where to keep an export that the verification has rejected.
    flag_values: For the report of the verification.

  Raises:
    ExportError: A directory is in the way; files cannot be read, or do not fit
      together; or the export differs from the model.
  """
  publishing.check_apart(export_dir, checkpoint_dir, keep_failed=keep_failed)
  token_file = vocab_file or sp_model_file
  tokenizer = None
  if token_file:
    tokenizer = _tokenizer(
      vocab_file, sp_model_file, do_lower_case, check_casing
    )
  if tokenize_with_offsets and sp_model_file:
    raise errors.ExportError(
      "--tokenize_with_offsets: text is stripped of accents before"
      " SentencePiece sees it, so that its tokens have no offsets. Leave it"
      " out."
    )
  config = None
  if export_type != "preprocessing":
    config = bert_pretraining.encoder_config(
      encoder_config_file, bert_config_file, seq_length
    )
    if tokenizer:
      _check_vocab_size(config, tokenizer, token_file)
  if train_on and pooler in ("checkpoint", "next_sentence"):
    raise errors.ExportError(
      f"--pooler={pooler}: the training does not reach a pooler. Say"
      " --pooler=random or --pooler=identity."
    )
  provenance = {
    "source": "a checkpoint"
    + (", averaged over its training" if weights == "average" else "")
  }
  together = export_type == "all"
  with contextlib.ExitStack() as stack:
    directory = stack.enter_context(
      publishing.publish(
        export_dir,
        "encoder" if together else "saved_model.pb",
        overwrite=overwrite,
      )
    )
    record: dict[str, Any] = {"flags": flag_values}
    verify = functools.partial(
      verification_lib.verify,
      level=verification,
      record=record,
      keep_failed=keep_failed,
    )
    if train_on:
      checkpoint_path = checkpoint_dir or stack.enter_context(
        tempfile.TemporaryDirectory()
      )
      tokenizer, provenance = bert_pretraining.train(
        train_on,
        config,
        tokenizer,
        training_config or pretraining.Config(seq_length=seq_length),
        do_lower_case=do_lower_case,
        distribution=distribution,
        checkpoint_dir=checkpoint_path,
      )
      token_file = token_file or os.path.join(checkpoint_path, "vocab.txt")
    if tokenizer.model:
      token_file = os.path.join(
        stack.enter_context(tempfile.TemporaryDirectory()),
        os.path.basename(token_file),
      )
      with open(token_file, "wb") as f:
        f.write(tokenizer.model)
    if export_type in ("preprocessing", "all"):
      bert_preprocessor.export(
        os.path.join(directory, "preprocessor") if together else directory,
        tokenizer,
        seq_length=seq_length,
        with_offsets=tokenize_with_offsets,
        verify=functools.partial(
          verify, process=verification_lib.start(verification)
        ),
      )
    if config:
      verify = functools.partial(
        verify, process=verification_lib.start(verification)
      )
      if verification != "off":  # There is a report.
        record["checkpoint_sha256"] = checkpoints.sha256(checkpoint_path)
      tf_keras.utils.set_random_seed(seed)
      core, pretrainer = _restored(
        config,
        checkpoint_path,
        weights,
        pooler,
        with_mlm=None if together else export_type == "encoder_with_mlm",
      )
      _export_encoder(
        os.path.join(directory, "encoder") if together else directory,
        core,
        pretrainer,
        tokenizer,
        token_file,
        {**provenance, "pooler": f"{pooler}: {_POOLERS[pooler]}"},
        verify,
      )
  print(f"Exported to {export_dir}: {export_type}")


def _tokenizer(
  vocab_file: str | None,
  sp_model_file: str | None,
  do_lower_case: bool,
  check_casing: bool,
) -> preprocessing.Tokenizer:
  """Makes the tokenizer of a file, which it checks."""
  try:
    if vocab_file:
      tokenizer = preprocessing.wordpiece_tokenizer(
        preprocessing.read_vocabulary(vocab_file), do_lower_case=do_lower_case
      )
    else:
      tokenizer = preprocessing.sentencepiece_tokenizer(
        sp_model_file, do_lower_case=do_lower_case
      )
    if check_casing:
      preprocessing.check_casing(tokenizer.tokens, do_lower_case)
  except preprocessing.CasingError as e:
    said, other = ("", "no") if do_lower_case else ("no", "")
    raise errors.ExportError(
      f"{vocab_file or sp_model_file} does not go with --{said}do_lower_case:"
      f" {e}. Say --{other}do_lower_case, or --nocheck_casing if it is right."
    ) from e
  except ValueError as e:
    raise errors.ExportError(f"{vocab_file or sp_model_file}: {e}.") from e
  return tokenizer


def _check_vocab_size(
  config: encoders.EncoderConfig,
  tokenizer: preprocessing.Tokenizer,
  token_file: str,
) -> None:
  """Refuses an encoder and a preprocessor that do not go together."""
  tokens, size = len(tokenizer.tokens), bert.vocab_size(config)
  if tokens != size:
    raise errors.ExportError(
      f"{token_file} has {tokens:,} tokens, and the encoder's config has a"
      f" vocab_size of {size:,}. "
      + (
        "They are not of the same model."
        if tokens > size
        else "If the encoder has rows to spare, add lines such as [unused1] to"
        " a copy of the vocabulary."
      )
    )


def _restored(
  config: encoders.EncoderConfig,
  checkpoint_path: str,
  weights: str | None,
  pooler_from: str,
  *,
  with_mlm: bool | None,
) -> tuple[tf_keras.Model, tf_keras.Model | None]:
  """Restores an encoder from a checkpoint.

  Args:
    config: Of the encoder.
    checkpoint_path: The checkpoint.
    weights: `raw`, `average`, or None, which leaves no choice.
    pooler_from: One of `_POOLERS`.
    with_mlm: Whether to restore the head of masked language modeling too; None:
      if it is in the checkpoint.

  Returns:
    The core model; and the pretrain model, if there is that head.
  """
  if config.type == "funnel":
    if with_mlm:
      raise errors.ExportError(
        "--export_type=encoder_with_mlm: an encoder of type funnel returns"
        " fewer vectors than there are tokens to predict. Export the encoder"
        " alone."
      )
    with_mlm = False
  try:
    with checkpoints.uninitialized():
      core = bert.core_model(config)
  except (TypeError, ValueError, tf.errors.OpError) as e:
    raise errors.ExportError(
      f"No encoder of type {config.type} can be made with its config:"
      f" {' '.join(str(e).split())}"
    ) from e
  pooler = bert.pooler(core)
  next_sentence = None
  if pooler_from == "next_sentence":
    with tf.name_scope("next_sentence/pooler_dense"):  # For errors.
      next_sentence = _built_like(pooler)
  pretrainer, masked_lm, of_masked_lm = None, None, []
  if with_mlm is not False:
    pretrainer = bert.pretrain_model(core)
    masked_lm = pretrainer.masked_lm
    of_core = {v.ref() for v in core.variables}
    of_masked_lm = [v for v in masked_lm.variables if v.ref() not in of_core]
  lacking = {
    v.ref()
    for v in checkpoints.restore(
      checkpoint_path,
      _structures(core.encoder, masked_lm, next_sentence),
      left_out=_LEFT_OUT,
      optional=[*pooler.variables, *(of_masked_lm if with_mlm is None else [])],
      weights=weights,
    )
  }
  if pooler_from == "checkpoint" and any(
    v.ref() in lacking for v in pooler.variables
  ):
    others = [f"{k} ({v})" for k, v in _POOLERS.items() if k != "checkpoint"]
    raise errors.ExportError(
      f"--pooler=checkpoint: {checkpoint_path} has no pooler. Choose another"
      f" value: {', '.join(others)}."
    )
  if next_sentence:
    pooler.set_weights(next_sentence.get_weights())
  elif pooler_from == "random":
    pooler.set_weights(_built_like(pooler).get_weights())
  elif pooler_from == "identity":
    _make_identity(pooler)
  if any(v.ref() in lacking for v in of_masked_lm):
    print("The checkpoint has no head of masked language modeling: no mlm")
    pretrainer = None
  return core, pretrainer


def _structures(
  encoder: tf_keras.layers.Layer,
  masked_lm: tf_keras.layers.Layer | None,
  next_sentence: tf_keras.layers.Dense | None,
) -> list[tf.train.Checkpoint]:
  """Returns the structures in which Model Garden saves an encoder and heads."""
  heads = {}
  if masked_lm:
    heads["masked_lm"] = masked_lm
  pretrainer = tf.train.Checkpoint(encoder_network=encoder, **heads)
  if next_sentence:
    heads["next_sentence.pooler_dense"] = next_sentence
    pretrainer.classification_heads = [tf.train.Checkpoint(dense=next_sentence)]
  return [
    tf.train.Checkpoint(encoder=encoder, **heads),
    tf.train.Checkpoint(pretrainer=pretrainer),
    tf.train.Checkpoint(model=pretrainer),
    tf.train.Checkpoint(model=encoder, **heads),
  ]


def _built_like(layer: tf_keras.layers.Dense) -> tf_keras.layers.Dense:
  """Makes a layer of the same sizes, with initial weights."""
  new = tf_keras.layers.Dense.from_config(layer.get_config())
  new.build(layer.kernel.shape[:1])
  return new


def _make_identity(pooler: tf_keras.layers.Dense) -> None:
  inputs, outputs = pooler.kernel.shape
  if inputs != outputs:
    raise errors.ExportError(
      f"--pooler=identity: the pooler has {inputs} inputs and {outputs}"
      " outputs. Choose another value."
    )
  pooler.set_weights([np.eye(inputs), np.zeros(outputs)])
  pooler.activation = tf_keras.activations.linear


def _export_encoder(
  directory: str,
  core: tf_keras.Model,
  pretrainer: tf_keras.Model | None,
  tokenizer: preprocessing.Tokenizer,
  token_file: str,
  provenance: Mapping[str, str],
  verify: Callable[..., None],
) -> None:
  """Writes the SavedModel of an encoder and its card, and verifies it."""
  config = core.encoder_config
  tunable = hyperparameters.of_model(core)
  spec = {
    name: tf.TensorSpec(tensor.shape, tf.int32)
    for name, tensor in core.input.items()
  }

  def check(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return _checked_length(inputs, bert.max_seq_length(config))

  # No Python control flow of the encoders depends on a Tensor.
  make_source = functools.partial(
    saving.source,
    hyperparameters=tunable,
    check=check,
    layer_calls={
      "official.nlp.modeling.layers.position_embedding.PositionEmbedding": (
        xla.with_own_gradient
      )
    },
    autograph=False,
  )
  source = make_source(core, spec)
  root = saving.reusable(source, also_takes=_other_forms(spec))
  signatures = {"serving_default": saving.signature(root, spec)}
  sub_objects = {}
  if pretrainer:
    mlm_spec = {
      **spec,
      "masked_lm_positions": tf.TensorSpec([None, None], tf.int32),
    }
    mlm = make_source(pretrainer, mlm_spec)
    root.mlm = saving.reusable(mlm, also_takes=_other_forms(mlm_spec))
    signatures["mlm"] = saving.signature(root.mlm, mlm_spec)
    sub_objects["mlm"] = mlm, _examples(config, mlm_spec)
  is_wordpiece = tokenizer.kind == "wordpiece"
  setattr(
    root,
    "vocab_file" if is_wordpiece else "sp_model_file",
    tf.saved_model.Asset(token_file),
  )
  root.do_lower_case = tf.Variable(
    tokenizer.do_lower_case, trainable=False, name="do_lower_case"
  )
  root.preprocessor_sha256 = saving.constant(tokenizer.sha256)
  saving.save(root, directory, signatures=signatures)
  model_card.write(
    directory,
    root,
    signatures["serving_default"],
    name=f"Encoder ({config.type})",
    description=_description(config, with_mlm=bool(pretrainer)),
    meanings=_MEANINGS,
    hyperparameters=tunable,
    example=_EXAMPLE,
    provenance={
      **provenance,
      **{
        f"{key} of its preprocessor": value
        for key, value in bert_preprocessor.provenance(tokenizer).items()
      },
    },
    needs=("tensorflow", "tf-keras", "tensorflow-hub", "tensorflow-text"),
  )
  verify(directory, source, _examples(config, spec), sub_objects=sub_objects)


def _checked_length(
  inputs: dict[str, tf.Tensor], limit: int
) -> dict[str, tf.Tensor]:
  """Adds ops that fail before the encoder does, and say why.

  Which of them does depends on who finds out. Of a free shape it is the Assert,
  at run time. A static one, such as any in an eager call, TensorFlow looks at
  before it runs anything; and XLA, so a TPU too, has no Asserts. Both name the
  op that cannot be.
  """
  word_ids = inputs["input_word_ids"]
  length = tf.shape(word_ids)[1]
  within = tf.debugging.assert_less_equal(
    length,
    limit,
    f"seq_length is past the position table of this encoder, which has {limit}"
    " rows. Pack to a smaller seq_length.",
  )
  # None when run eagerly.
  with tf.control_dependencies([within] if within is not None else []):
    rows_left = tf.fill(
      [limit - length],
      0,
      name=f"seq_length_is_past_the_position_table_which_has_{limit}_rows",
    )
  with tf.control_dependencies([rows_left]):
    return {**inputs, "input_word_ids": tf.identity(word_ids)}


def _other_forms(spec: Mapping[str, tf.TensorSpec]) -> list[Any]:
  """Returns specs of int64, and of lists in Model Garden's order."""
  int64 = {name: tf.TensorSpec(s.shape, tf.int64) for name, s in spec.items()}
  return [int64, list(spec.values()), list(int64.values())]


def _examples(
  config: encoders.EncoderConfig, spec: Mapping[str, tf.TensorSpec]
) -> list[dict[str, tf.Tensor]]:
  """Makes inputs of two sizes, with padding."""
  examples = []
  for batch_size, length in (3, 24), (1, 8):
    seq_length = min(length, bert.max_seq_length(config))
    seq_length = spec["input_word_ids"].shape[1] or seq_length
    below = {
      "input_word_ids": bert.vocab_size(config),
      "input_mask": 2,
      "input_type_ids": config.get().type_vocab_size,
      "masked_lm_positions": seq_length,
    }
    example = {
      name: tf.random.stateless_uniform(
        [batch_size, seq_length], [i, 0], maxval=below[name], dtype=tf.int32
      )
      for i, name in enumerate(spec)
    }
    example["input_mask"] = tf.sequence_mask(
      seq_length - 2 * tf.range(batch_size), seq_length, tf.int32
    )
    examples.append(example)
  return examples


def _description(config: encoders.EncoderConfig, *, with_mlm: bool) -> str:
  sizes = ", ".join(
    f"`{key}` {value}"
    for key, value in config.get().as_dict().items()
    if isinstance(value, (int, str)) and not isinstance(value, bool)
  )
  mlm = (
    "\n\nThe sub-object `mlm`, and the signature of that name, also take"
    " `masked_lm_positions`, int32 `[batch, predictions]`, and also return"
    " `mlm_logits`, float32 `[batch, predictions, vocab_size]`: the token that"
    " was masked there."
  )
  return (
    "An encoder for text, made of Model Garden's (`tf-models-official`) encoder"
    f" of type {config.type}: {sizes}. It takes a dict of int32 or int64"
    f" Tensors, or a list in the order {', '.join(bert.INPUT_NAMES)}, with a"
    f" seq_length of at most {bert.max_seq_length(config)}. It also returns"
    " `encoder_outputs`, the list of what its layers return."
    + (mlm if with_mlm else "")
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_enum(
    "export_type",
    "encoder",
    ["encoder", "encoder_with_mlm", "preprocessing", "all"],
    "What to export: the encoder; the encoder with the sub-object mlm, which"
    " predicts masked tokens; the preprocessor; or all: the encoder, with mlm"
    " if the checkpoint has its head, and the preprocessor side by side.",
  )
  bert_pretraining.define_flags()
  flags.adopt_module_key_flags(bert_pretraining)
  command_line.define_flags(without_weights=("export_type", "preprocessing"))
  flags.adopt_module_key_flags(command_line)
  flags.DEFINE_enum(
    "pooler",
    None,
    list(_POOLERS),
    "For an encoder, of which --pooler must say where the weights of its pooler"
    f" come from. {_sentences(_POOLERS)}",
  )
  flags.DEFINE_string(
    "vocab_file",
    None,
    "The vocabulary of wordpieces, one a line. Either this or --sp_model_file."
    " With --train_on it may be left out: one is built of the text, of at most"
    " the vocab_size in the encoder's config.",
  )
  flags.DEFINE_string("sp_model_file", None, "The model of SentencePiece.")
  flags.DEFINE_bool(
    "check_casing",
    True,
    "Refuse a vocabulary whose capitals, or lack of them, contradict"
    " --do_lower_case.",
  )
  flags.DEFINE_bool(
    "tokenize_with_offsets",
    False,
    "Give the preprocessor a sub-object that also tells where in the text each"
    " token is.",
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
    ["export_type", "encoder_config_file", "bert_config_file"],
    lambda values: (
      bool(values["encoder_config_file"]) + bool(values["bert_config_file"])
      == (values["export_type"] != "preprocessing")
    ),
    "An encoder needs either --encoder_config_file=PATH or"
    " --bert_config_file=PATH, --export_type=preprocessing neither.",
  )
  flags.register_multi_flags_validator(
    ["export_type", "pooler"],
    lambda values: (
      bool(values["pooler"]) == (values["export_type"] != "preprocessing")
    ),
    f"An encoder needs --pooler, one of {', '.join(_POOLERS)};"
    " --export_type=preprocessing does not.",
  )


def _sentences(meanings: Mapping[str, str]) -> str:
  return " ".join(f"{name}: {meaning}." for name, meaning in meanings.items())


def main() -> None:
  """Exports what the flags say."""
  values = flags.FLAGS
  export(
    export_dir=command_line.path(values.export_dir),
    export_type=values.export_type,
    do_lower_case=values.do_lower_case,
    vocab_file=command_line.path(values.vocab_file),
    sp_model_file=command_line.path(values.sp_model_file),
    check_casing=values.check_casing,
    encoder_config_file=command_line.path(values.encoder_config_file),
    bert_config_file=command_line.path(values.bert_config_file),
    checkpoint_path=command_line.path(values.checkpoint_path),
    weights=values.weights,
    train_on=bert_pretraining.train_on(),
    training_config=bert_pretraining.training_config(),
    checkpoint_dir=command_line.path(values.checkpoint_dir),
    distribution=strategies.from_flags(),
    pooler=values.pooler,
    seq_length=values.seq_length,
    tokenize_with_offsets=values.tokenize_with_offsets,
    seed=values.seed,
    overwrite=values.overwrite,
    verification=values.verification,
    keep_failed=command_line.path(values.keep_failed),
    flag_values=command_line.record(),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
