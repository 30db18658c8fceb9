"""ResNet-3D: residual networks for videos, of `official.vision`."""

from models.vision import image_classification

ARCHITECTURE = image_classification.Architecture(
  name="resnet_3d",
  backbone="resnet_3d",
  variants=("model_id", "RESNET_SPECS"),
  title="ResNet-3D-{model_id}",
  description="A residual network for videos (arXiv:2008.03800)",
  experiment="video_classification_kinetics400",
  small={},
  kind=image_classification.VIDEOS,
  sizes="any number of frames, of 32 by 32 pixels and more, square or not",
)
