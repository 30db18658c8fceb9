"""Exports feature vectors, endpoints and logits of a vision transformer.

Restores a Model Garden checkpoint, or trains on small images:

  bazel run //exporters:vit -- --checkpoint_path=PATH --export_dir=DIR
  bazel run //exporters:vit -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import vit

if __name__ == "__main__":
  image_classifier.run(vit.ARCHITECTURE)
