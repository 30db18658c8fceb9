r"""Fine-tunes an exported ResNet-3D feature extractor on other videos.

It trains a new head, then all weights, and prints the accuracy:

  bazel run //integration_tests:use_resnet_3d -- \
    --saved_model_dir=DIR --dataset=moving_digits
  bazel run //integration_tests:use_resnet_3d -- \
    --saved_model_dir=DIR --dataset=tfds:NAME \
    --output_saved_model_dir=CLASSIFIER
  bazel run //integration_tests:use_resnet_3d -- \
    --saved_model_dir=DIR --dataset=moving_digits \
    --noretrain --report=FILE.html
"""

from integration_tests import image_fine_tuning

if __name__ == "__main__":
  image_fine_tuning.main()
