"""EfficientNet: Tan and Le (arXiv:1905.11946), B0 to B7."""

from __future__ import annotations

from typing import Any

from etils import epy

from models import autograph
from models.vision import image_classification

with epy.lazy_imports():
  from official.legacy.image_classification.efficientnet import (
    efficientnet_model,
  )
  import tf_keras


@autograph.off
def legacy_classifier(task: Any) -> tf_keras.Model:
  """Builds an EfficientNet of `official.legacy`.

  Args:
    task: The config of the task. Only `model.num_classes` and the `model_id` of
      `model.backbone`, such as `b0`, are used.

  Returns:
    Model Garden's Keras model without its normalization. It maps normalized
    images, float32 `[batch, height, width, 3]`, to probabilities, float32
    `[batch, num_classes]`.
  """
  overrides = {"num_classes": task.model.num_classes, "rescale_input": False}
  return efficientnet_model.EfficientNet.from_name(
    f"efficientnet-{task.model.backbone.get().model_id}", overrides=overrides
  )


_IMAGENET = {
  "model": {
    "num_classes": 1001,
    "input_size": [224, 224, 3],
    "dropout_rate": 0.2,
    "backbone": {
      "type": "efficientnet",
      "efficientnet": {
        "model_id": "b0",
        "se_ratio": 0.25,
        "stochastic_depth_drop_rate": 0.2,
      },
    },
    "norm_activation": {"activation": "swish"},
  },
  "losses": {"l2_weight_decay": 1e-5},
}

ARCHITECTURE = image_classification.Architecture(
  name="efficientnet",
  backbone="efficientnet",
  variants=("model_id", "SCALING_MAP"),
  title="EfficientNet-{model_id}",
  description="An EfficientNet (arXiv:1905.11946)",
  experiment="efficientnet_imagenet",
  small={"norm_activation": {"norm_momentum": 0.9}},
  experiments={
    # `official.vision` has the backbone, but no experiment for it.
    "efficientnet_imagenet": image_classification.Experiment(
      base="image_classification", changes=_IMAGENET
    ),
    "legacy_efficientnet": image_classification.Experiment(
      base="image_classification",
      changes=_IMAGENET,
      build=legacy_classifier,
      settable=["num_classes", "backbone"],
    ),
  },
)
