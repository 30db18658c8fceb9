"""BERT and its relatives: an encoder, and the model that pre-trains it.

The core model is the encoder, to be fine-tuned. The pretrain model adds a head
for masked language modeling (Devlin et al., arXiv:1810.04805) to the same
encoder. Both use the layers of Model Garden, `official.nlp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
import warnings

from etils import epy

from distribution import errors
from models import autograph
from models import fields

with epy.lazy_imports():
  from official.modeling import tf_utils
  from official.nlp.configs import encoders
  from official.nlp.modeling import models
  import tensorflow as tf
  import tf_keras

# Encoders of these types work for a single sequence length only.
FIXED_SEQ_LENGTH = ("bigbird", "fnet", "sparse_mixer")

# Model Garden's pretrainer passes all its inputs to the encoder, which warns of
# this one because it does not take it.
warnings.filterwarnings(
  "ignore", r"Input dict contained keys \['masked_lm_positions'\]"
)

# Layers whose gradient needs a compile-time constant of the forward pass (see
# `exporters/reusable/xla.py`), and the functions in the layer's module that get
# gradients of their own. An empty tuple means the whole `call`.
OWN_GRADIENTS = {
  "official.nlp.modeling.layers.bigbird_attention.BigBirdAttention": (
    "BigBirdAttention._compute_attention",
  ),
  "official.nlp.modeling.layers.kernel_attention.KernelAttention": (
    "tf.concat",
    "tf.math.reduce_max",
    "tf.math.reduce_sum",
    "tf.nn.softmax",
    "tf.reduce_sum",
  ),
  "official.nlp.modeling.layers.mobile_bert_layers.MobileBertEmbedding": (
    "tf.concat",
    "tf.pad",
  ),
  "official.nlp.modeling.layers.position_embedding.PositionEmbedding": (),
  "official.nlp.modeling.layers.reuse_attention.ReuseMultiHeadAttention": (
    "tf.concat",
    "tf.gather",
  ),
  "official.nlp.modeling.networks.funnel_transformer"
  ".FunnelTransformerEncoder": ("tf.concat",),
}

# The order in which Model Garden's encoders take a list of inputs.
INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")


@autograph.off
def core_model(encoder_config: encoders.EncoderConfig) -> tf_keras.Model:
  """Builds an encoder with named inputs and outputs.

  Args:
    encoder_config: Type and sizes of the encoder. It must take the inputs of
      BERT, which excludes XLNet.

  Returns:
    A Keras model. It takes a dict of `INPUT_NAMES`, each int32
    `[batch, seq_length]`. It returns a dict:

    - `sequence_output`, float32 `[batch, seq_length, hidden_size]`
    - `pooled_output` and `default`, the same float32 `[batch, hidden_size]`
    - `encoder_outputs`, a list of the outputs of all layers, of the shape of
      `sequence_output`

    Its attribute `encoder` is Model Garden's encoder, which has all variables;
    its attribute `encoder_config` is the argument.

  Raises:
    ValueError: Model Garden cannot build the encoder.
  """
  is_fixed = encoder_config.type in FIXED_SEQ_LENGTH
  seq_length = max_seq_length(encoder_config) if is_fixed else None
  try:
    with _activations():
      encoder = encoders.build_encoder(encoder_config)
  except Exception as e:  # The builders may raise any exception.
    message = errors.one_line(e)
    cited = fields.cited(message, encoder_config.get().as_dict())
    config = fields.shown(cited) or "its config"
    raise ValueError(
      f"Model Garden cannot build it with {config}: {message}"
    ) from e
  if getattr(encoder, "outputs", None) and not is_fixed:
    # Keras has traced its layers already. Calling it would trace them again.
    inputs = {tensor.name: tensor for tensor in encoder.inputs}
    outputs = encoder.output
  else:
    inputs = {
      name: tf_keras.Input([seq_length], dtype=tf.int32, name=name)
      for name in INPUT_NAMES
    }
    outputs = encoder(inputs)
  model = tf_keras.Model(
    inputs, {**outputs, "default": outputs["pooled_output"]}, name="core"
  )
  model.encoder = encoder
  model.encoder_config = encoder_config
  return model


@autograph.off
def pretrain_model(core: tf_keras.Model) -> tf_keras.Model:
  """Builds the model that pre-trains a core model.

  Args:
    core: A model from `core_model`. The pretrain model shares its encoder.

  Returns:
    Model Garden's `BertPretrainerV2`, built. It takes the inputs of `core` and
    `masked_lm_positions`, int32 `[batch, predictions]`. It returns the outputs
    of the encoder and `mlm_logits`, float32 `[batch, predictions, vocab_size]`.
    Model Garden writes `tf.train.Checkpoint(**model.checkpoint_items)`.
  """
  with _activations():
    activation = tf_utils.get_activation(
      _first(core.encoder_config, "hidden_activation", "inner_activation")
    )
  model = models.BertPretrainerV2(
    core.encoder,
    mlm_activation=activation,
    mlm_initializer=tf_keras.initializers.TruncatedNormal(
      stddev=core.encoder_config.get().initializer_range
    ),
  )
  # The call creates the variables of the head.
  positions = tf_keras.Input([None], dtype=tf.int32)
  model({**core.input, "masked_lm_positions": positions})
  return model


def pooler(core: tf_keras.Model) -> tf_keras.layers.Dense:
  """Returns the layer that computes the pooled output of a core model."""
  layer = getattr(core.encoder, "pooler_layer", None)
  return layer or core.encoder.get_layer("pooler_transform")  # ALBERT.


def vocab_size(encoder_config: encoders.EncoderConfig) -> int:
  """Returns the number of rows of the word embedding table."""
  return _first(encoder_config, "vocab_size", "word_vocab_size")


def max_seq_length(encoder_config: encoders.EncoderConfig) -> int:
  """Returns the number of rows of the position table."""
  return _first(
    encoder_config, "max_position_embeddings", "max_sequence_length"
  )


def with_checked_length(
  inputs: Mapping[str, tf.Tensor], encoder_config: encoders.EncoderConfig
) -> dict[str, tf.Tensor]:
  """Adds ops that fail with a message if sequences are too long.

  An Assert covers dynamic shapes at run time. A `tf.fill` of negative size
  fails for static shapes, and under XLA, which drops Asserts; its name is the
  message.
  """
  limit = max_seq_length(encoder_config)
  word_ids = inputs["input_word_ids"]
  length = tf.shape(word_ids)[1]
  within = tf.debugging.assert_less_equal(
    length,
    limit,
    f"seq_length is past the position table of this encoder, which has {limit}"
    " rows. Pack to a smaller seq_length.",
  )
  # `assert_less_equal` returns None in eager mode.
  with tf.control_dependencies([within] if within is not None else []):
    rows_left = tf.fill(
      [limit - length],
      0,
      name=f"seq_length_is_past_the_position_table_which_has_{limit}_rows",
    )
  with tf.control_dependencies([rows_left]):
    return {**inputs, "input_word_ids": tf.identity(word_ids)}


def example_inputs(
  encoder_config: encoders.EncoderConfig, spec: Mapping[str, tf.TensorSpec]
) -> list[dict[str, tf.Tensor]]:
  """Makes two batches of random inputs, of different sizes and with padding.

  The inputs are those that `spec` names.
  """
  examples = []
  for batch_size, length in (2, 16), (1, 8):
    seq_length = min(length, max_seq_length(encoder_config))
    seq_length = spec["input_word_ids"].shape[1] or seq_length
    below = {
      "input_word_ids": vocab_size(encoder_config),
      "input_mask": 2,
      "input_type_ids": encoder_config.get().type_vocab_size,
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


def _activations() -> AbstractContextManager[None]:
  """Temporarily adds activations that a config may name.

  Model Garden's `gelu` is the approximation with tanh.
  """
  return tf_keras.utils.custom_object_scope(
    {"gelu_exact": tf_keras.activations.gelu}
  )


def _first(encoder_config: encoders.EncoderConfig, *names: str) -> Any:
  """Returns a field whose name depends on the type of encoder."""
  config = encoder_config.get()
  return next(getattr(config, name) for name in names if hasattr(config, name))
