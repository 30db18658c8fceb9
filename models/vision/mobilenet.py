"""MobileNet: versions 1 to 4, and their relatives, of `official.vision`."""

from models.vision import image_classification

ARCHITECTURE = image_classification.Architecture(
  name="mobilenet",
  backbone="mobilenet",
  variants=("model_id", "SUPPORTED_SPECS_MAP"),
  title="{model_id}",
  description="A small network of depthwise separable convolutions"
  " (arXiv:1704.04861, arXiv:1801.04381, arXiv:1905.02244, arXiv:2404.10518)",
  # The attention of these variants assumes as many rows as columns.
  square="Hybrid",
  experiment="mobilenet_imagenet",
  small={
    "backbone": {"mobilenet": {"filter_size_scale": 0.35}},
    # The default of 0.997 needs thousands of steps to settle.
    "norm_activation": {"norm_momentum": 0.9},
  },
)
