r"""Exports feature vectors, endpoints and logits of a vision transformer.

From a checkpoint of `official.vision`:

  bazel run //exporters:vit -- --checkpoint_path=CHECKPOINT \
    --experiment=vit_imagenet_pretrain --export_dir=DIR

After training it on small images:

  bazel run //exporters:vit -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import vit

if __name__ == "__main__":
  image_classifier.run(vit.ARCHITECTURE)
