"""Distribution strategies, by the names that flags give them."""

from __future__ import annotations

from etils import epy

with epy.lazy_imports():
  import tensorflow as tf

NAMES = ["default", "one_device", "mirrored"]


def get(name: str) -> tf.distribute.Strategy:
  """Makes a strategy.

  Args:
    name: `default` runs as without any; `one_device` on the first GPU, or on
      the CPU where there is none; `mirrored` on all GPUs of this machine, or on
      all its logical CPU devices.
  """
  if name == "default":
    return tf.distribute.get_strategy()
  devices = tf.config.list_logical_devices(
    "GPU"
  ) or tf.config.list_logical_devices("CPU")
  if name == "one_device":
    return tf.distribute.OneDeviceStrategy(devices[0].name)
  return tf.distribute.MirroredStrategy([device.name for device in devices])
