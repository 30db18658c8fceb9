r"""Exports feature vectors, endpoints and logits of a ResNet-3D for videos.

It restores a checkpoint, or trains on small videos first:

  bazel run //exporters:resnet_3d -- --checkpoint_path=PATH --export_dir=DIR
  bazel run //exporters:resnet_3d -- --train_on=moving_digits --export_dir=DIR
  bazel run //exporters:resnet_3d -- --checkpoint_path=PATH \
    --export_type=all --endpoints=3,4,5 --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import resnet_3d

if __name__ == "__main__":
  image_classifier.run(resnet_3d.ARCHITECTURE)
