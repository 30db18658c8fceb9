"""ViT: vision transformers, Dosovitskiy et al. (arXiv:2010.11929)."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

from etils import epy

from models import autograph
from models.vision import image_classification

with epy.lazy_imports():
  from official.vision.modeling.backbones import vit
  from official.vision.modeling.layers import nn_blocks
  import tensorflow as tf
  import tf_keras

  from models.vision import patch_tokens


@autograph.off
def any_size(model: tf_keras.Model) -> tf_keras.Model:
  """Rebuilds a classifier with a vision transformer for images of any size.

  Args:
    model: Model Garden's classifier, for images of one size.

  Returns:
    A Keras model with the layers and outputs of `model`, from normalized
    images, float32 `[batch, height, width, 3]`, of at least one patch. At the
    image size of `model` the outputs are equal.
  """
  layers = model.backbone.layers
  by_type = {type(layer): layer for layer in layers}
  class_token = by_type.get(vit.TokenLayer)
  # Model Garden's encoder adds a position table of fixed length. So call the
  # encoder's private layers one by one, in the order of its `call`.
  encoder = by_type[vit.Encoder]
  images = tf_keras.Input([None, None, 3])
  patches = by_type[tf_keras.layers.Conv2D](images)
  tokens = patch_tokens.PatchTokens(
    encoder._pos_embed, [class_token] if class_token else []
  )(patches)
  tokens = encoder._dropout(tokens)
  scores: list[Any] = []
  for block in encoder._encoder_layers:
    tokens, *scores = tf.nest.flatten(block(tokens))
  tokens = encoder._norm(tokens)
  pooled = tokens
  if class_token:
    pooled, tokens = tokens[:, 0], tokens[:, 1:]
  elif "pre_logits" in model.backbone.output:
    pooled = tf_keras.layers.GlobalAveragePooling1D()(tokens)
  if representation := by_type.get(tf_keras.layers.Dense):
    pooled = tf.nn.tanh(representation(pooled))
  endpoints = {}
  for name in model.backbone.output:
    if name == "pre_logits":
      endpoints[name] = pooled[:, None, None]
    elif name == "encoded_tokens":
      endpoints[name] = pooled
    elif name == "attention_scores":
      (endpoints[name],) = scores
    else:  # The feature map.
      endpoints[name] = tf.reshape(tokens, tf.shape(patches))
  backbone = tf_keras.Model(images, endpoints)
  return tf_keras.models.clone_model(
    model,
    tf_keras.Input([None, None, 3]),
    lambda layer: backbone if layer is model.backbone else layer,
  )


@autograph.off
def of_any_sizes(
  task: Any,
  *,
  activation: str = "gelu",
  epsilon: float = 1e-6,
  tokens: Sequence[str] = ("class_token",),
  pooled: int = 1,
) -> tf_keras.Model:
  """Builds a vision transformer of sizes that Model Garden's table lacks.

  Args:
    task: The config of the task. Its backbone has the sizes.
    activation: `gelu`, or `gelu_tanh`, its approximation by tanh.
    epsilon: The epsilon of the layer normalizations.
    tokens: Names of the learned tokens that precede the patches.
    pooled: Number of these tokens whose features the head concatenates.

  Returns:
    A Keras classifier from normalized images of any size, float32
    `[batch, height, width, 3]`, to logits. Its variables have the names that
    the tables in `exporters/hugging_face_images.py` use.
  """
  config, layers = task.model.backbone.get(), tf_keras.layers
  sizes, size, patch = config.transformer, config.hidden_size, config.patch_size
  l2 = task.losses.l2_weight_decay / 2
  decay = tf_keras.regularizers.L2(l2) if l2 else None
  grid = tuple(n // patch for n in task.model.input_size[:2])
  images = tf_keras.Input([None, None, 3])
  patches = layers.Conv2D(
    size, patch, patch, kernel_regularizer=decay, name="patches"
  )(images)
  x = _patch_tokens(grid, size, tokens)(patches)
  x = layers.Dropout(sizes.dropout_rate)(x)
  for i in range(sizes.num_layers):
    x = _block(config, f"block_{i}", activation, epsilon, decay)(x)
  x = layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
  features = patch_tokens.FirstTokens(pooled)(x)
  if config.representation_size:
    features = layers.Dense(
      config.representation_size,
      "tanh",
      name="pooler",
      kernel_regularizer=decay,
    )(features)
  level = str(round(math.log2(patch)))
  outputs = {
    level: tf.reshape(x[:, len(tokens) :], tf.shape(patches)),
    "pre_logits": features[:, None, None],
  }
  backbone = tf_keras.Model(images, outputs)
  images = tf_keras.Input([None, None, 3])
  x = layers.GlobalAveragePooling2D()(backbone(images)["pre_logits"])
  logits = layers.Dense(
    task.model.num_classes, name="head", kernel_regularizer=decay
  )(x)
  return tf_keras.Model(images, logits)


def _block(
  config: Any, name: str, activation: str, epsilon: float, decay: Any
) -> tf_keras.layers.Layer:
  """Creates a block of the transformer."""
  return nn_blocks.TransformerEncoderBlock(
    num_attention_heads=config.transformer.num_heads,
    inner_dim=config.transformer.mlp_dim,
    inner_activation=lambda x: tf.nn.gelu(x, activation == "gelu_tanh"),
    output_dropout=config.transformer.dropout_rate,
    attention_dropout=config.transformer.attention_dropout_rate,
    kernel_regularizer=decay,
    norm_first=True,
    norm_epsilon=epsilon,
    stochastic_depth_drop_rate=config.init_stochastic_depth_rate,
    name=name,
  )


def _patch_tokens(
  grid: tuple[int, int], size: int, names: Sequence[str]
) -> patch_tokens.PatchTokens:
  """Builds the layer that adds learned tokens and positions."""
  positions = vit.AddPositionEmbs(posemb_target_shape=grid, name="positions")
  positions.build([None, len(names) + math.prod(grid), size])
  first = [vit.TokenLayer() for _ in names]
  for name, layer in zip(names, first, strict=True):
    with tf.name_scope(name):
      layer.build([None, None, size])
  return patch_tokens.PatchTokens(positions, first, "tokens")


ARCHITECTURE = image_classification.Architecture(
  name="vit",
  backbone="vit",
  variants=("model_name", "VIT_SPECS"),
  title="{model_name}",
  description="A vision transformer (arXiv:2010.11929)",
  experiment="vit_imagenet_pretrain",
  small={
    "kernel_initializer": "random_uniform",
    "backbone": {
      "vit": {
        "model_name": "vit-ti16",
        "representation_size": 0,
        "output_2d_feature_maps": True,
        "transformer": {"dropout_rate": 0.1},
      }
    },
  },
  sizes="others of one patch and more, square or not, for which it interpolates"
  " the table of positions",
  any_size=any_size,
  own_gradients=[
    "models.vision.patch_tokens.FirstTokens",
    "models.vision.patch_tokens.PatchTokens",
  ],
)
