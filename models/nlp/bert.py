"""BERT and its relatives: an encoder, and the model that pre-trains it.

The two are split from the start. The core model is the encoder, the piece that
others build on; the pretrain model puts the heads of masked language modeling
and next sentence prediction (Devlin et al., arXiv:1810.04805) on the same one.
Both are built of Model Garden's own, `official.nlp`.
"""

from __future__ import annotations

from typing import Any
import warnings

from etils import epy

from models import autograph

with epy.lazy_imports():
  from official.modeling import tf_utils
  from official.nlp.configs import encoders
  from official.nlp.modeling import layers
  from official.nlp.modeling import models
  import tensorflow as tf
  import tf_keras

# Their layers have matrices, or a choice of blocks, for one length alone.
_FIXED_SEQ_LENGTH = ("bigbird", "fnet", "sparse_mixer")

# Model Garden's pretrainer hands them to its encoder, which has no such input.
warnings.filterwarnings(
  "ignore", r"Input dict contained keys \['masked_lm_positions'\]"
)

# In the order of Model Garden's lists of inputs.
INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")


@autograph.off
def core_model(encoder_config: encoders.EncoderConfig) -> tf_keras.Model:
  """Builds an encoder with inputs and outputs by name.

  Args:
    encoder_config: Type and sizes of the encoder, one that takes BERT's inputs.

  Returns:
    A Keras model from a dict of `INPUT_NAMES`, each int32
    `[batch, seq_length]`, to a dict of `sequence_output`, float32
    `[batch, seq_length, hidden_size]`; `pooled_output`, float32
    `[batch, hidden_size]`; `default`, the same; and `encoder_outputs`, a list
    of what each layer returns, shaped as `sequence_output`. Its attribute
    `encoder` is Model Garden's encoder, which has all the variables, and
    `encoder_config` is the argument.

  Raises:
    ValueError: The encoder takes other inputs than BERT's.
  """
  if encoder_config.type == "xlnet":
    raise ValueError("its inputs are not those of BERT")
  seq_length = None
  if encoder_config.type in _FIXED_SEQ_LENGTH:
    seq_length = max_seq_length(encoder_config)
  encoder = encoders.build_encoder(encoder_config)
  if getattr(encoder, "outputs", None) and seq_length is None:
    # Its layers are traced already; to call it would trace them once more.
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
def pretrain_model(
  core: tf_keras.Model, *, next_sentence: bool = False
) -> tf_keras.Model:
  """Builds the model that pre-trains a core model.

  Args:
    core: What `core_model` returns. The pretrain model shares its encoder.
    next_sentence: Whether to have a head for next sentence prediction.

  Returns:
    Model Garden's `BertPretrainerV2`, built. It takes the inputs of `core` and
    `masked_lm_positions`, int32 `[batch, predictions]`, and returns a dict:
    what the encoder returns; `mlm_logits`, float32
    `[batch, predictions, vocab_size]`; and, if wanted, `next_sentence`, float32
    logits `[batch, 2]`. `tf.train.Checkpoint(**model.checkpoint_items)` is how
    Model Garden writes its checkpoints.
  """
  config = core.encoder_config.get()
  initializer = tf_keras.initializers.TruncatedNormal(
    stddev=config.initializer_range
  )
  heads = []
  if next_sentence:
    heads.append(
      layers.ClassificationHead(
        config.hidden_size,
        num_classes=2,
        dropout_rate=0.1,
        initializer=initializer,
        name="next_sentence",
      )
    )
  model = models.BertPretrainerV2(
    core.encoder,
    mlm_activation=tf_utils.get_activation(
      _first(core.encoder_config, "hidden_activation", "inner_activation")
    ),
    mlm_initializer=initializer,
    classification_heads=heads,
  )
  # Calling it makes the variables of the heads.
  positions = tf_keras.Input([None], dtype=tf.int32)
  model({**core.input, "masked_lm_positions": positions})
  return model


def pooler(core: tf_keras.Model) -> tf_keras.layers.Dense:
  """Returns the layer that makes the pooled output of a core model."""
  layer = getattr(core.encoder, "pooler_layer", None)
  return layer or core.encoder.get_layer("pooler_transform")  # ALBERT.


def vocab_size(encoder_config: encoders.EncoderConfig) -> int:
  """Returns the number of rows of the word embedding."""
  return _first(encoder_config, "vocab_size", "word_vocab_size")


def max_seq_length(encoder_config: encoders.EncoderConfig) -> int:
  """Returns the number of rows of the position table."""
  return _first(
    encoder_config, "max_position_embeddings", "max_sequence_length"
  )


def attention_dropout_rate(encoder_config: encoders.EncoderConfig) -> float:
  """Returns the rate of dropout of attention."""
  return _first(
    encoder_config,
    "attention_dropout_rate",
    "attention_dropout",
    "attention_probs_dropout_prob",
  )


def _first(encoder_config: encoders.EncoderConfig, *names: str) -> Any:
  """Returns what the config of a type has under one of several names."""
  config = encoder_config.get()
  return next(getattr(config, name) for name in names if hasattr(config, name))
