r"""Exports feature vectors, endpoints and logits of a RevNet.

From a checkpoint of `official.vision`:

  bazel run //exporters:revnet -- --checkpoint_path=CHECKPOINT \
    --experiment=revnet_imagenet --export_dir=DIR

After training it on small images:

  bazel run //exporters:revnet -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import revnet

if __name__ == "__main__":
  image_classifier.run(revnet.ARCHITECTURE)
