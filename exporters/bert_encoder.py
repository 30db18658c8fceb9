"""Builds the encoder of `//exporters:bert`: its SavedModel and card."""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

from etils import epy

from exporters import bert_preprocessor
from exporters.reusable import exporting
from models.nlp import bert
from models.nlp import preprocessing

with epy.lazy_imports():
  from official.nlp.configs import encoders
  import tensorflow as tf
  import tf_keras

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

_MEANINGS = {
  **bert_preprocessor.MEANINGS,
  "sequence_output": "features of each token",
  "pooled_output": "features of the whole input",
  "default": "the same as `pooled_output`",
  "word_embeddings": "embeddings of the tokens",
  "embedding_output": "embeddings of the tokens, the input of the first layer",
}


def piece(
  core: tf_keras.Model,
  pretrainer: tf_keras.Model | None,
  attributes: Mapping[str, Any],
) -> exporting.Piece:
  """Describes the encoder to export; `pretrainer` becomes its sub-object `mlm`.

  Args:
    core: A model from `bert.core_model`.
    pretrainer: The pretrain model of `core`. None: do not export `mlm`.
    attributes: Further attributes of the SavedModel.
  """
  config = core.encoder_config
  tunable = hyperparameters.of_model(core)
  spec = {
    name: tf.TensorSpec(tensor.shape, tf.int32)
    for name, tensor in core.input.items()
  }

  def make(
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
        layer_calls={
          layer: xla.with_own_gradients_of(*functions)
          if functions
          else xla.with_own_gradient
          for layer, functions in bert.OWN_GRADIENTS.items()
        },
        # Encoders have no Python control flow that depends on a Tensor.
        autograph=False,
      ),
      # A list of inputs is in Model Garden's order.
      also_takes=[int64, list(spec.values()), list(int64.values())],
      examples=bert.example_inputs(config, spec),
      **kwargs,
    )

  sub_objects = {}
  if pretrainer:
    positions = tf.TensorSpec([None, None], tf.int32)
    sub_objects["mlm"] = make(
      pretrainer, {**spec, "masked_lm_positions": positions}, signature="mlm"
    )
  return make(core, spec, attributes=attributes, sub_objects=sub_objects)


def card(
  config: encoders.EncoderConfig,
  with_mlm: bool,
  tokenizer: preprocessing.Tokenizer,
  provenance: Mapping[str, str],
  trained_length: int | None,
) -> model_card.Card:
  """Creates the card of the encoder.

  Args:
    config: The config of the encoder.
    with_mlm: Whether the export has the sub-object `mlm`.
    tokenizer: The tokenizer of its preprocessor.
    provenance: Rows about the weights and the training.
    trained_length: Sequence length of pre-training by this program, if any.
  """
  sizes = ", ".join(
    f"`{key}` {value}"
    for key, value in config.get().as_dict().items()
    if isinstance(value, (int, str)) and not isinstance(value, bool)
  )
  description = (
    f"A text encoder of type {config.type} from Model Garden"
    f" (`tf-models-official`): {sizes}. It takes a dict of int32 or int64"
    f" Tensors, or a list in the order {', '.join(bert.INPUT_NAMES)}. It also"
    " returns `encoder_outputs`, a list of the outputs of its layers."
  )
  if with_mlm:
    description += (
      "\n\nThe sub-object `mlm`, and the signature of that name, predict masked"
      " tokens. They also take `masked_lm_positions`, int32"
      " `[batch, predictions]`, and also return `mlm_logits`, float32"
      " `[batch, predictions, vocab_size]`."
    )
  lengths = {"largest": [bert.max_seq_length(config)]}
  if trained_length:
    lengths["training"] = [trained_length]
  return model_card.Card(
    name=f"Text encoder ({config.type})",
    description=description,
    meanings=_MEANINGS,
    sizes=dict.fromkeys(bert.INPUT_NAMES, lengths),
    ranges={
      "input_word_ids": (0, bert.vocab_size(config) - 1),
      "input_mask": (0, 1),
      "input_type_ids": (0, config.get().type_vocab_size - 1),
    },
    example=_EXAMPLE,
    loaded="encoder.resolved_object",
    provenance={**provenance, **bert_preprocessor.provenance(tokenizer)},
    needs=("tensorflow", "tf-keras", "tensorflow-hub", "tensorflow-text"),
  )
