r"""Fine-tunes an exported embedding of texts in Keras 3.

bazel run //integration_tests/keras3:use_text_embedding_keras3 -- \
  --saved_model_dir=DIR
"""

from __future__ import annotations

from typing import Any

from etils import epy

from data import texts
from integration_tests.keras3 import fine_tuning

with epy.lazy_imports():
  import keras
  import tensorflow as tf


def build(
  saved_model_dir: str, num_classes: int, **hyperparameters: Any
) -> keras.Model:
  """Builds a classifier of texts on an export."""
  return keras.Sequential(
    [
      keras.Input([], dtype="string"),
      fine_tuning.layer(saved_model_dir, **hyperparameters),
      # Word vectors are short, and their means even shorter.
      keras.layers.BatchNormalization(momentum=0.9),
      keras.layers.Dense(num_classes, dtype="float32"),
    ]
  )


def main(
  saved_model_dir: str, epochs: int = 3, output_file: str | None = None
) -> tuple[keras.Model, float]:
  """Fine-tunes on docstrings of Python; returns the model and its accuracy."""
  dataset = texts.python_docs()
  train, test = (
    (tf.constant(strings.to_pylist()), labels)
    for strings, labels in (dataset.train, dataset.test)
  )
  model = build(saved_model_dir, len(dataset.classes))
  return model, fine_tuning.fine_tune(
    model,
    train,
    test,
    epochs=epochs,
    learning_rate=1e-2,
    output_file=output_file,
    jit_compile=False,  # XLA has no strings.
  )


if __name__ == "__main__":
  fine_tuning.run(main, epochs=3)
