"""Builds a text embedding from a preprocessor, an encoder and a pooling."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import inspect
import json
from typing import Any

from absl import flags
from etils import epy

from exporters import bert_preprocessor
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from models.nlp import bert

with epy.lazy_imports():
  from official.nlp.configs import encoders
  import tensorflow as tf

  from exporters.reusable import model_card
  from exporters.reusable import saving

flags.disclaim_key_flags()  # --help lists the flags as the program's own.

_POOLINGS = {
  "mean": "the mean of the vectors of all tokens, [CLS] and [SEP] included",
  "cls": "the vector of [CLS]",
  "pooled": "the pooled output, which --pooler makes of the vector of [CLS]",
}

_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # Registers the ops of the tokenizer.
import tf_keras

# Your data: sentences, a list of strings; labels, int [n], from 0; num_classes.
embedding = hub.KerasLayer(
    "path/to/text_embedding", trainable=True, arguments=ARGUMENTS,
    input_shape=[], dtype=tf.string,
)
model = tf_keras.Sequential([embedding, tf_keras.layers.Dense(num_classes)])
model.compile(
    optimizer=tf_keras.optimizers.AdamW(3e-5),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
data = tf.data.Dataset.from_tensor_slices((sentences, labels))
model.fit(data.shuffle(10_000).batch(32), epochs=3)

# Frozen, in a data pipeline and for semantic search by cosine similarity:
embed = hub.load("path/to/text_embedding")
batches = tf.data.Dataset.from_tensor_slices(sentences).batch(32).map(embed)
vectors, query = tf.concat(list(batches), 0), embed(["What do you look for?"])
scores, best = tf.math.top_k(tf.matmul(query, vectors, transpose_b=True), k=5)
"""
# Precedes the search example if vectors do not have unit length.
_TO_UNIT_LENGTH = """\
vectors, query = (tf.math.l2_normalize(x, -1) for x in (vectors, query))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The options of a text embedding: values of the flags of the same names."""

  pooling: str = "mean"
  normalize: bool = False


def define_flags() -> None:
  """Defines the flags of a text embedding."""
  meanings = " ".join(f"{name}: {what}." for name, what in _POOLINGS.items())
  flags.DEFINE_enum(
    "pooling",
    Options.pooling,
    list(_POOLINGS),
    f"With --export_type=text_embedding: the vector of a text. {meanings}",
  )
  flags.DEFINE_bool(
    "normalize",
    Options.normalize,
    "With --export_type=text_embedding: scale vectors to unit length, so that"
    " their inner product is the cosine similarity. Consumers can do so"
    " themselves, but cannot restore the lengths.",
  )
  names = [field.name for field in dataclasses.fields(Options)]
  flags.register_multi_flags_validator(
    ["export_type", *names],
    lambda values: (
      values["export_type"] == "text_embedding"
      or not any(flags.FLAGS[name].present for name in names)
    ),
    f"--{' and --'.join(names)} apply only with --export_type=text_embedding.",
  )


def options_from_flags() -> Options | None:
  """Returns the options in the flags; None for other --export_type."""
  if flags.FLAGS.export_type != "text_embedding":
    return None
  return command_line.from_flags(Options)


def check(
  config: encoders.EncoderConfig, options: Options, seq_length: int
) -> None:
  """Raises an ExportError if the encoder does not support the options."""
  kind, limit = config.type, bert.max_seq_length(config)
  if kind == "funnel" and options.pooling != "pooled":
    raise errors.ExportError(
      "An encoder of type funnel returns fewer vectors than tokens. Say"
      " --pooling=pooled."
    )
  if kind in bert.FIXED_SEQ_LENGTH and seq_length != limit:
    raise errors.ExportError(
      f"An encoder of type {kind} takes sequences of one length only. Say"
      f" --seq_length={limit}."
    )


def piece(
  encoder: exporting.Piece, preprocessor: exporting.Piece, options: Options
) -> exporting.Piece:
  """Describes the text embedding of an encoder and its preprocessor.

  The embedding takes sentences, strings `[batch]`, and returns float32
  `[batch, dim]`. Its variables are those of the encoder. Encoder and
  preprocessor become its sub-objects of these names.
  """
  core, spec = encoder.source.model, encoder.source.input_spec
  (seq_length,) = preprocessor.source.hyperparameters
  tunable = [
    dataclasses.replace(h, layers=()) for h in encoder.source.hyperparameters
  ]
  if spec["input_word_ids"].shape[1] is None:
    longest = bert.max_seq_length(core.encoder_config)
    description = (
      "Length in tokens that texts are cut to, [CLS] and [SEP] included, from 3"
      f" to {longest}."
    )
    limits = {**seq_length.limits, "maximum": longest}
    tunable.append(
      dataclasses.replace(seq_length, description=description, limits=limits)
    )

  def embed(sentences: tf.Tensor, **arguments: Any) -> tf.Tensor:
    # In a trace, call the traces of encoder and preprocessor.
    preprocess, encode = (
      part.source.call if tf.executing_eagerly() else part.source.function
      for part in (preprocessor, encoder)
    )
    length = arguments.pop("seq_length", tf.constant(seq_length.default))
    inputs = {
      name: tf.ensure_shape(tensor, spec[name].shape)
      for name, tensor in preprocess(sentences, seq_length=length).items()
    }
    outputs = encode(inputs, **arguments)
    vectors = _pooled(outputs, inputs["input_mask"], options.pooling)
    return tf.math.l2_normalize(vectors, -1) if options.normalize else vectors

  arguments = dict.fromkeys(
    [*encoder.source.defaults, *(h.name for h in tunable)]
  )
  embed.__signature__ = inspect.Signature(
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for name in ("sentences", *arguments)
  )
  texts = bert_preprocessor.SENTENCES
  long = " ".join(texts * seq_length.default)
  return exporting.Piece(
    source=saving.source(
      embed,
      preprocessor.source.input_spec,
      hyperparameters=tunable,
      variables=encoder.source.variables,
      trainable_variables=_trainable(encoder.source, options.pooling),
      regularization_losses=encoder.source.regularization_losses,
      autograph=False,
    ),
    examples=[tf.constant([*texts, long]), tf.constant([""])],
    output_name="text_embeddings",
    attributes=encoder.attributes,
    sub_objects={"preprocessor": preprocessor, "encoder": encoder},
  )


def _trainable(encoder: saving.Source, pooling: str) -> list[tf.Variable]:
  """Returns the variables that the vectors depend on."""
  pooler = bert.pooler(encoder.model).variables if pooling != "pooled" else ()
  unused = {v.ref() for v in pooler}
  return [v for v in encoder.trainable_variables if v.ref() not in unused]


def _pooled(
  outputs: Mapping[str, tf.Tensor], mask: tf.Tensor, pooling: str
) -> tf.Tensor:
  """Pools the outputs of an encoder into vectors, `[batch, dim]`."""
  if pooling == "pooled":
    return outputs["pooled_output"]
  features = outputs["sequence_output"]
  if pooling == "cls":
    return features[:, 0]
  weights = tf.cast(mask, features.dtype)[..., tf.newaxis]
  # A text without tokens, as with a seq_length of 0, gets a zero vector.
  return tf.math.divide_no_nan(
    tf.reduce_sum(features * weights, 1), tf.reduce_sum(weights, 1)
  )


def card(
  encoder: model_card.Card, made: exporting.Piece, options: Options
) -> model_card.Card:
  """Creates the card of the text embedding from the encoder's card."""
  kind = made.sub_objects["encoder"].source.model.encoder_config.type
  vector = _POOLINGS[options.pooling]
  if options.normalize:
    vector += ", scaled to unit length"
  arguments = {h.name: h.default for h in made.source.hyperparameters[-1:]}
  example = _EXAMPLE.replace("ARGUMENTS", json.dumps(arguments))
  if not options.normalize:
    example = example.replace("scores, best", f"{_TO_UNIT_LENGTH}scores, best")
  unused = (
    " Vectors do not depend on the pooler, whose variables only `encoder` lists"
    " as trainable."
  )
  if options.pooling == "pooled":
    unused = ""
  return dataclasses.replace(
    encoder,
    name=f"Text embedding ({kind})",
    description=f"A text encoder of type {kind} from Model Garden"
    " (`tf-models-official`) with its preprocessor and pooling. It takes texts,"
    f" and returns a vector for each: {vector}. Text beyond the sequence length"
    " is cut off. An empty text has the vector of [CLS] and [SEP] alone.\n\n"
    "The sub-objects `preprocessor` and `encoder` can be used by themselves."
    " `encoder` has the same variables, so training one trains the other."
    f"{unused} XLA takes no strings: to train with `jit_compile=True` or on"
    " TPUs, call `preprocessor` in `Dataset.map`, and train `encoder`.",
    meanings={**encoder.meanings, "text_embeddings": vector},
    example=example,
    loaded="embedding.resolved_object",
    provenance={
      **encoder.provenance,
      "pooling": options.pooling,
      "normalized": str(options.normalize).lower(),
    },
  )
