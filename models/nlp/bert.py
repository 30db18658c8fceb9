"""BERT and its relatives: an encoder, and the model that pre-trains it.

The two are split from the start. The core model is the encoder, the piece that
others build on; the pretrain model puts the heads of masked language modeling
and next sentence prediction (Devlin et al., arXiv:1810.04805) on the same one.
Both are built of Model Garden's own, `official.nlp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etils import epy

if TYPE_CHECKING:
  from official.nlp.configs import encoders

with epy.lazy_imports():
  from official.modeling import tf_utils
  from official.nlp.configs import encoders
  from official.nlp.modeling import layers
  from official.nlp.modeling import models
  import tensorflow as tf
  import tf_keras

# In the order of Model Garden's lists of inputs.
INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")


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
  """
  encoder = encoders.build_encoder(encoder_config)
  inputs = {
    name: tf_keras.Input([None], dtype=tf.int32, name=name)
    for name in INPUT_NAMES
  }
  outputs = encoder(inputs)
  model = tf_keras.Model(
    inputs, {**outputs, "default": outputs["pooled_output"]}, name="core"
  )
  model.encoder = encoder
  model.encoder_config = encoder_config
  return model


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
    mlm_activation=tf_utils.get_activation(activation(core.encoder_config)),
    mlm_initializer=initializer,
    classification_heads=heads,
  )
  # Calling it makes the variables of the heads.
  positions = tf_keras.Input([None], dtype=tf.int32)
  model({**core.input, "masked_lm_positions": positions})
  return model


def activation(encoder_config: encoders.EncoderConfig) -> str:
  """Returns the name of the activation of the encoder's dense layers."""
  config = encoder_config.get()
  for name in ("hidden_activation", "inner_activation"):
    if hasattr(config, name):
      return getattr(config, name)
  raise ValueError(f"{encoder_config.type} has no activation in its config.")
