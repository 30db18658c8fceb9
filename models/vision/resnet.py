"""ResNet: He et al. (arXiv:1512.03385), and ResNet-RS (arXiv:2103.07579)."""

from __future__ import annotations

from typing import Any

from etils import epy

from models import autograph
from models.vision import image_classification

with epy.lazy_imports():
  from official.legacy.image_classification.resnet import resnet_model
  import tf_keras


@autograph.off
def legacy_classifier(task: Any) -> tf_keras.Model:
  """Builds the ResNet-50 of `official.legacy`, for images of any size.

  Args:
    task: The config of the task. Only `model.num_classes` is used.

  Returns:
    A Keras model with Model Garden's layers, from normalized images, float32
    `[batch, height, width, 3]`, to probabilities, float32
    `[batch, num_classes]`. The layer before the last one returns the logits.
  """
  # Model Garden's model is for 224 by 224 pixels, but its layers take any size.
  return tf_keras.models.clone_model(
    resnet_model.resnet50(task.model.num_classes),
    input_tensors=tf_keras.Input([None, None, 3]),
  )


ARCHITECTURE = image_classification.Architecture(
  name="resnet",
  backbone="resnet",
  variants=("model_id", "RESNET_SPECS"),
  title="ResNet-{model_id}",
  description="A residual network (arXiv:1512.03385)",
  experiment="resnet_imagenet",
  small={"backbone": {"resnet": {"model_id": 18, "depth_multiplier": 0.25}}},
  experiments={
    "legacy_resnet50": image_classification.Experiment(
      base="resnet_imagenet",
      # From `official/legacy/image_classification/resnet/resnet_model.py`.
      changes={"losses": {"l2_weight_decay": 2e-4}},
      normalization="imagenet_means",
      build=legacy_classifier,
      settable=["num_classes"],
    )
  },
)
