"""RevNet: reversible residual networks, of `official.vision`."""

from models.vision import image_classification

ARCHITECTURE = image_classification.Architecture(
  name="revnet",
  backbone="revnet",
  variants=("model_id", "REVNET_SPECS"),
  title="RevNet-{model_id}",
  description="A reversible residual network (arXiv:1707.04585)",
  experiment="revnet_imagenet",
  small={},
)
