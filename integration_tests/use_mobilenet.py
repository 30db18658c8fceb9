r"""Fine-tunes an exported MobileNet feature extractor on other images.

It trains a new head, then all weights, and prints the accuracy:

  bazel run //integration_tests:use_mobilenet -- \
    --saved_model_dir=DIR --dataset=digits_5_9
  bazel run //integration_tests:use_mobilenet -- \
    --saved_model_dir=DIR --dataset=PICTURES \
    --output_saved_model_dir=CLASSIFIER
  bazel run //integration_tests:use_mobilenet -- \
    --saved_model_dir=DIR --dataset=digits_5_9 \
    --noretrain --report=FILE.html
"""

from integration_tests import image_fine_tuning

if __name__ == "__main__":
  image_fine_tuning.main()
