"""Exports feature vectors, endpoints and logits of a DeiT.

Restores a Model Garden checkpoint, or trains on small images:

  bazel run //exporters:deit -- --checkpoint_path=PATH --export_dir=DIR
  bazel run //exporters:deit -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import deit

if __name__ == "__main__":
  image_classifier.run(deit.ARCHITECTURE)
