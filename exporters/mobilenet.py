r"""Exports feature vectors, endpoints and logits of a MobileNet.

From a checkpoint of `official.vision`:

  bazel run //exporters:mobilenet -- --checkpoint_path=CHECKPOINT \
    --experiment=mobilenet_imagenet --export_dir=DIR

After training it on small images:

  bazel run //exporters:mobilenet -- --train_on=digits --export_dir=DIR
"""

from exporters import image_classifier
from models.vision import mobilenet

if __name__ == "__main__":
  image_classifier.run(mobilenet.ARCHITECTURE)
