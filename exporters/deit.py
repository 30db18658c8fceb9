r"""Exports feature vectors, endpoints and logits of a DeiT.

From a checkpoint of `official.vision`:

  bazel run //exporters:deit -- --checkpoint_path=CHECKPOINT \
    --experiment=deit_imagenet_pretrain --export_dir=DIR

After training it on small images:

  bazel run //exporters:deit -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import deit

if __name__ == "__main__":
  image_classifier.run(deit.ARCHITECTURE)
