r"""Fine-tunes an exported MNIST CNN feature extractor in Keras 3.

bazel run //integration_tests/keras3:use_mnist_cnn_keras3 -- \
  --saved_model_dir=DIR
"""

from __future__ import annotations

from typing import Any

from etils import epy

from data import images as image_data
from integration_tests.keras3 import fine_tuning

with epy.lazy_imports():
  import keras


def build(saved_model_dir: str, **hyperparameters: Any) -> keras.Model:
  """Builds a classifier of five classes of images on an export."""
  return keras.Sequential(
    [
      keras.Input([28, 28, 1]),
      fine_tuning.layer(saved_model_dir, **hyperparameters),
      keras.layers.Dense(5, dtype="float32"),
    ]
  )


def main(
  saved_model_dir: str, epochs: int = 3, output_file: str | None = None
) -> tuple[keras.Model, float]:
  """Fine-tunes on the digits 5 to 9; returns the model and its accuracy."""
  train, test = image_data.arrays("digits_5_9", (28, 28, 1))
  model = build(saved_model_dir)
  return model, fine_tuning.fine_tune(
    model,
    train,
    test,
    epochs=epochs,
    learning_rate=1e-3,
    output_file=output_file,
  )


if __name__ == "__main__":
  fine_tuning.run(main, epochs=3)
