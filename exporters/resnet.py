r"""Exports feature vectors, endpoints and logits of a ResNet.

From a checkpoint of `official.vision` or `official.legacy`:

  bazel run //exporters:resnet -- --checkpoint_path=CHECKPOINT \
    --experiment=resnet_imagenet --export_dir=DIR

After training it on small images:

  bazel run //exporters:resnet -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import resnet

if __name__ == "__main__":
  image_classifier.run(resnet.ARCHITECTURE)
