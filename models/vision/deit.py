"""DeiT: vision transformers, Touvron et al. (arXiv:2012.12877)."""

import dataclasses

from models.vision import vit

ARCHITECTURE = dataclasses.replace(
  vit.ARCHITECTURE,
  name="deit",
  title="DeiT, {model_name}",
  description="A vision transformer trained on ImageNet alone"
  " (arXiv:2012.12877)",
  experiment="deit_imagenet_pretrain",
)
