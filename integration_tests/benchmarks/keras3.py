"""Exports the MNIST CNN with Keras 3's `Model.export`.

Run it with TF_USE_LEGACY_KERAS=0, and pass a checkpoint and a directory:

  python -m integration_tests.benchmarks.keras3 CHECKPOINT EXPORT_DIR
"""

import itertools
import sys

import keras
import tensorflow as tf

from models.vision import mnist_cnn

_EXTRACTOR = "model/layer_with_weights-0"  # In the checkpoint.


def main(checkpoint: str, export_dir: str) -> None:
  """Builds the model of Keras 3 layers, restores its weights and exports it."""
  mnist_cnn.tf_keras = keras  # Its layers have the same arguments in Keras 3.
  model = mnist_cnn.feature_extractor()
  reader = tf.train.load_checkpoint(checkpoint)
  numbers = itertools.count()
  for layer in model.layers:
    if layer.weights:
      path = f"{_EXTRACTOR}/layer_with_weights-{next(numbers)}"
      for weight in layer.weights:
        key = f"{path}/{weight.name}/.ATTRIBUTES/VARIABLE_VALUE"
        weight.assign(reader.get_tensor(key))
  model.export(export_dir, verbose=False)


if __name__ == "__main__":
  main(*sys.argv[1:])
