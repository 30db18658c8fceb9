"""How training is distributed, by the names that --strategy has."""

from __future__ import annotations

from absl import flags
from etils import epy

with epy.lazy_imports():
  from official.common import distribute_utils
  import tensorflow as tf

NAMES = ("default", "one_device", "mirrored")


def define_flag() -> None:
  """Defines --strategy."""
  flags.DEFINE_enum(
    "strategy",
    "default",
    NAMES,
    "With --train_on: how to distribute the training: not at all, on one"
    " device, or mirrored on all GPUs of this machine.",
  )


def get(name: str) -> tf.distribute.Strategy:
  """Makes a strategy of TensorFlow's.

  Args:
    name: One of `NAMES`.
  """
  if name == "default":
    return tf.distribute.get_strategy()
  gpus = len(tf.config.list_logical_devices("GPU"))
  return distribute_utils.get_distribution_strategy(
    name, num_gpus=min(gpus, 1) if name == "one_device" else gpus
  )
