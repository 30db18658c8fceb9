r"""Exports feature vectors, endpoints and logits of a ResNet.

It restores a checkpoint, or trains on small images first:

  bazel run //exporters:resnet -- --checkpoint_path=PATH --export_dir=DIR
  bazel run //exporters:resnet -- --train_on=digits --export_dir=DIR
  bazel run //exporters:resnet -- --checkpoint_path=PATH \
    --export_type=all --endpoints=3,4,5 --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import resnet

if __name__ == "__main__":
  image_classifier.run(resnet.ARCHITECTURE)
