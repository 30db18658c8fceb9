r"""Fine-tunes an exported MNIST CNN feature extractor on other images.

bazel run //integration_tests:use_mnist_cnn -- \
  --saved_model_dir=DIR --dataset=digits_5_9
"""

from integration_tests import image_fine_tuning

if __name__ == "__main__":
  image_fine_tuning.main()
