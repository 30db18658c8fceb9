"""ViT: vision transformers, Dosovitskiy et al. (arXiv:2010.11929)."""

from __future__ import annotations

from models.vision import image_classification

OWN_GRADIENTS = ("official.vision.modeling.backbones.vit.TokenLayer",)

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
        "transformer": {"dropout_rate": 0.1},
      }
    },
  },
  own_gradients=OWN_GRADIENTS,
)
