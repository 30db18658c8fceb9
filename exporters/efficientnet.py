r"""Exports feature vectors, endpoints and logits of an EfficientNet.

From a checkpoint of `official.vision` or `official.legacy`:

  bazel run //exporters:efficientnet -- --checkpoint_path=CHECKPOINT \
    --experiment=efficientnet_imagenet --export_dir=DIR

After training it on small images:

  bazel run //exporters:efficientnet -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import efficientnet

if __name__ == "__main__":
  image_classifier.run(efficientnet.ARCHITECTURE)
