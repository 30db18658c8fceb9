r"""Fine-tunes an exported module of `//exporters:tf_module`.

A product learns the slope of a line, and a flow the density of turned moons:

  bazel run //integration_tests:use_tf_module -- \
    --saved_model_dir=DIR --dataset=line
  bazel run //integration_tests:use_tf_module -- \
    --saved_model_dir=DIR --dataset=turned_moons
  bazel run //integration_tests:use_tf_module -- --saved_model_dir=DIR \
    --dataset=turned_moons --output_piece_dir=PIECE
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epy

from integration_tests import command_line
from integration_tests import fitting

with epy.lazy_imports():
  import numpy as np
  from sklearn import datasets
  import tensorflow as tf
  import tf_keras

if TYPE_CHECKING:
  Arrays = tuple[np.ndarray, np.ndarray]

SLOPE = 3.0


def load_data(name: str) -> tuple[Arrays, Arrays]:
  """Makes a data set.

  Args:
    name: `line`: numbers and `SLOPE` times each number, both float32 `[n]`. Or
      `turned_moons`: scikit-learn's moons, turned by 90 degrees, float32
      `[n, 2]`, and zeros, float32 `[n]`, as densities have no labels.

  Returns:
    Training and held-out data.
  """
  if name == "line":
    numbers = np.linspace(-1, 1, 1000, dtype=np.float32)
    held_out = numbers[::5] / 2
    return (numbers, SLOPE * numbers), (held_out, SLOPE * held_out)
  moons, _ = datasets.make_moons(2000, noise=0.1, random_state=1)
  turned = (moons @ [[0, 1], [-1, 0]]).astype(np.float32)
  zeros = np.zeros(len(turned), np.float32)
  return (turned[400:], zeros[400:]), (turned[:400], zeros[:400])


def log_likelihood(_: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
  """Returns the outputs of a density, as the metric of a Keras model."""
  return outputs


def build_model(
  saved_model_dir: str,
  dataset: str,
  *,
  steps: int,
  learning_rate: float = 1e-2,
  **layer_arguments: Any,
) -> tf_keras.Model:
  """Loads and compiles a module, without a head.

  Args:
    saved_model_dir: The module.
    dataset: The data set, as in `load_data`.
    steps: Number of steps of the training.
    learning_rate: Initial learning rate of Adam. It falls to 0 along a cosine.
    **layer_arguments: Arguments of `fitting.load_layer`. `retrain` is required.

  Returns:
    A model from inputs of the data set to products, float32 `[batch, 1]`, or to
    log-likelihoods, float32 `[batch]`.

  Raises:
    ValueError: The module does not take such inputs.
  """
  is_line = dataset == "line"
  inputs = tf_keras.Input([] if is_line else [2], name="inputs")
  layer = fitting.load_layer(saved_model_dir, name="module", **layer_arguments)
  serving = layer.resolved_object.signatures["serving_default"]
  taken = [s.shape for s in serving.structured_input_signature[1].values()]
  if len(taken) != 1 or not taken[0].is_compatible_with(inputs.shape):
    raise ValueError(
      f"{saved_model_dir} takes inputs of shape {', '.join(map(str, taken))},"
      f" and --dataset={dataset} has {inputs.shape}. Choose the other data set."
    )
  outputs = layer(inputs)
  # Keras takes the mean of squares over the last dimension.
  outputs = outputs[:, tf.newaxis] if is_line else outputs["log_likelihood"]
  model = tf_keras.Model(inputs, outputs)
  mse = tf_keras.metrics.MeanSquaredError
  model.compile(
    tf_keras.optimizers.Adam(
      tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    ),
    loss="mse" if is_line else lambda *args: -log_likelihood(*args),
    weighted_metrics=[mse() if is_line else log_likelihood],
  )
  return model


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(
    "examples",
    learning_rate=1e-2,
    retraining=("regularization_loss_multiplier", "dropout_rate"),
  )
  flags.DEFINE_enum(
    "dataset",
    "turned_moons",
    ["line", "turned_moons"],
    "What to train on: numbers and their products, or vectors.",
  )
  flags.register_validator(
    "retrain", bool, "There is no new head that could be trained alone."
  )


def fine_tune() -> tf_keras.Model:
  """Fine-tunes according to the flags; returns the model."""
  values = flags.FLAGS
  train, test = load_data(values.dataset)
  steps = fitting.steps_per_epoch(train, values.batch_size) * values.epochs
  return command_line.fine_tune(
    functools.partial(build_model, dataset=values.dataset, steps=steps),
    lambda model: (fitting.Parts(train, test), model),
    "examples",
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(fine_tune)
