r"""Fine-tunes an exported ResNet-3D feature extractor on other videos.

bazel run //integration_tests:use_resnet_3d -- \
  --saved_model_dir=DIR --dataset=moving_digits
"""

from integration_tests import image_fine_tuning

if __name__ == "__main__":
  image_fine_tuning.main()
