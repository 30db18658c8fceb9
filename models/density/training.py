"""Trains normalizing flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import TYPE_CHECKING

from etils import epy

if TYPE_CHECKING:
  from models.density import real_nvp

with epy.lazy_imports():
  import numpy as np
  from sklearn import datasets
  import tensorflow as tf
  import tf_keras

# Share of the hidden units that training drops.
DROPOUT_RATE = 0.02


@dataclasses.dataclass(frozen=True)
class Config:
  """The hyperparameters of training.

  Attributes:
    epochs: Number of epochs; 0 keeps the initial weights.
    batch_size: Vectors per step.
    learning_rate: Initial learning rate of Adam, which falls to 0 along a
      cosine.
    seed: Seed of the order of the vectors, and of dropout.
  """

  epochs: int = 60
  batch_size: int = 256
  learning_rate: float = 5e-3
  seed: int = 0


def moons() -> tuple[np.ndarray, np.ndarray]:
  """Returns points on scikit-learn's two half circles, with noise of 0.1.

  Returns:
    Vectors to train on and vectors held out, float32 `[n, 2]`.
  """
  vectors, _ = datasets.make_moons(5000, noise=0.1, random_state=0)
  return tuple(np.split(vectors.astype(np.float32), [4000]))


def train(
  flow: real_nvp.RealNVP,
  vectors: np.ndarray,
  config: Config,
  on_epoch_end: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
) -> None:
  """Trains a flow to give vectors a high likelihood.

  Args:
    flow: The flow. Its mean and standard deviation become those of `vectors`.
    vectors: float32 `[n, num_features]`.
    config: The hyperparameters of training.
    on_epoch_end: Called with the index of each epoch and its mean loss.
  """
  flow.mean.assign(vectors.mean(0))
  flow.stddev.assign(vectors.std(0))
  tf_keras.utils.set_random_seed(config.seed)
  size = min(config.batch_size, len(vectors))
  steps = len(vectors) // size * config.epochs
  optimizer = tf_keras.optimizers.Adam(
    tf_keras.optimizers.schedules.CosineDecay(
      config.learning_rate, max(steps, 1)
    )
  )
  variables = flow.trainable_variables

  @tf.function
  def step(batch: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
      outputs = flow(batch, True, DROPOUT_RATE)
      losses = [loss() for loss in flow.regularization_losses]
      loss = tf.add_n(losses) - tf.reduce_mean(outputs["log_likelihood"])
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return loss

  rng = np.random.default_rng(config.seed)
  for epoch in range(config.epochs):
    order = rng.permutation(len(vectors))
    losses = [
      step(vectors[order[start : start + size]])
      for start in range(0, len(vectors) - size + 1, size)
    ]
    on_epoch_end(epoch, {"loss": float(np.mean(losses))})


DATASETS = {"moons": moons}
