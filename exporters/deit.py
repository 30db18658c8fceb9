r"""Exports feature vectors, endpoints and logits of a DeiT.

It restores a checkpoint, or trains on small images first:

  bazel run //exporters:deit -- --checkpoint_path=PATH --export_dir=DIR
  bazel run //exporters:deit -- --train_on=digits --export_dir=DIR
  bazel run //exporters:deit -- --checkpoint_path=PATH \
    --export_type=all --endpoints=3,4,5 --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import deit

if __name__ == "__main__":
  image_classifier.run(deit.ARCHITECTURE)
