r"""Fine-tunes an exported ResNet feature extractor on other images.

bazel run //integration_tests:use_resnet -- \
  --saved_model_dir=DIR --dataset=digits_5_9
"""

from integration_tests import image_fine_tuning

if __name__ == "__main__":
  image_fine_tuning.main()
