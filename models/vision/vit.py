"""ViT: vision transformers, Dosovitskiy et al. (arXiv:2010.11929)."""

from __future__ import annotations

from typing import Any

from etils import epy

from models import autograph
from models.vision import image_classification

with epy.lazy_imports():
  from official.vision.modeling.backbones import vit
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
    images, float32 `[batch, height, width, 3]`, of at least one patch. For the
    size of `model` it computes the same.
  """
  layers = model.backbone.layers
  by_type = {type(layer): layer for layer in layers}
  class_token = by_type.get(vit.TokenLayer)
  # Model Garden's encoder adds a table of positions of one length. Its private
  # attributes are what it calls, in this order.
  encoder = by_type[vit.Encoder]
  images = tf_keras.Input([None, None, 3])
  patches = by_type[tf_keras.layers.Conv2D](images)
  tokens = patch_tokens.PatchTokens(encoder._pos_embed, class_token)(patches)
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
  own_gradients=["models.vision.patch_tokens.PatchTokens"],
)
