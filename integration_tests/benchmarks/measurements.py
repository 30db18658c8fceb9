"""Measurements, each run in a process of its own so that nothing is warm.

`subjects.measurement` returns the command that runs a function of this module.
A function prints lines of JSON. If it takes turns with others, it reads a line
before each turn.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
import resource
import sys
import time
from typing import Any

from etils import epy
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # noqa: F401 Registers ops of the preprocessor.
import tf_keras

from integration_tests.benchmarks import subjects

# Only live models need Model Garden. Importing it would add to other costs.
with epy.lazy_imports():
  from integration_tests.benchmarks import sources


def devices() -> None:
  """Prints the GPUs that TensorFlow finds."""
  gpus = tf.config.list_physical_devices("GPU")
  details = map(tf.config.experimental.get_device_details, gpus)
  _print({"gpus": [d.get("device_name", "GPU") for d in details]})


def save_with_keras(name: str, work_dir: str, export_dir: str) -> None:
  """Exports a subject with Keras' `Model.save`."""
  sources.restored(name, work_dir).save(export_dir, include_optimizer=False)


def load(name: str, saved_model_dir: str) -> None:
  """Measures loading an export and calling it once, without imports.

  Writes the outputs to the file `saved_model_dir`.npz.
  """
  # tensorflow-hub imports Keras 3 at its first load. Keras imports packages
  # such as scikit-learn, which can take longer than the load.
  import keras  # noqa: F401

  inputs = _batch(name, 3)
  values, seconds = _timed(_load_and_call, name, saved_model_dir, inputs)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  np.savez(f"{saved_model_dir}.npz", **values)
  _print({**seconds, "memory_mib": memory})


def _layer(
  name: str, saved_model_dir: str, trainable: bool = False
) -> Callable[..., Any]:
  """Loads an export as its consumers do."""
  side = pathlib.Path(saved_model_dir).name
  if subjects.SUBJECTS[name].keras and side.startswith("reference"):
    return tf_keras.models.load_model(saved_model_dir, compile=False)
  if side == "keras3":
    loaded = tf.saved_model.load(saved_model_dir)
    return lambda inputs: loaded.serve(inputs)  # Keeps the variables.
  return hub.KerasLayer(saved_model_dir, trainable=trainable)


def _load_and_call(
  name: str, saved_model_dir: str, inputs: Any
) -> dict[str, np.ndarray]:
  """Returns all outputs of an export; parts of a list are `NAME[INDEX]`."""
  outputs = _layer(name, saved_model_dir)(inputs)
  if not isinstance(outputs, dict):
    outputs = {"output": outputs}
  return {
    f"{name}[{i}]" if isinstance(value, (list, tuple)) else name: part.numpy()
    for name, value in outputs.items()
    for i, part in enumerate(tf.nest.flatten(value))
  }


def train(
  name: str, saved_model_dir: str, size: int, jit_compile: bool
) -> None:
  """Measures train steps, one per turn, each on a new batch.

  Without an export, `saved_model_dir` has the checkpoint of the live model.
  `size` is the height and width of images, or the sequence length.
  """
  if tf.saved_model.contains_saved_model(saved_model_dir):
    model = _layer(name, saved_model_dir, trainable=True)
  else:
    model = sources.restored(name, saved_model_dir)
  weights = model.trainable_weights
  # The learning rate is too small to change the weights noticeably.
  optimizer = tf_keras.optimizers.SGD(1e-6, jit_compile=False)
  optimizer.build(weights)

  @tf.function(jit_compile=jit_compile)
  def step(inputs: Any) -> tf.Tensor:
    with tf.GradientTape() as tape:
      outputs = model(inputs, training=True)
      loss = tf.add_n(
        [tf.reduce_mean(x**2) for x in tf.nest.flatten(outputs)] + model.losses
      )
    gradients = tape.gradient(loss, weights)
    optimizer.apply_gradients(
      (g, w) for g, w in zip(gradients, weights, strict=True) if g is not None
    )
    return loss

  batch_size = subjects.SUBJECTS[name].batch_size
  _in_turn(lambda inputs: step(inputs).numpy(), name, batch_size, size)


def infer(name: str, saved_model_dir: str, batch_size: int) -> None:
  """Measures inference on `batch_size` examples, one call per turn."""
  layer = _layer(name, saved_model_dir)
  call = tf.function(lambda inputs: layer(inputs))
  _in_turn(
    lambda inputs: tf.nest.flatten(call(inputs))[0].numpy(), name, batch_size
  )


def _batch(
  name: str, batch_size: int, size: int | None = None, seed: int = 0
) -> Any:
  """Returns `subjects.batch` as Tensors, by default of the subject's size."""
  subject = subjects.SUBJECTS[name]
  arrays = subjects.batch(subject, batch_size, size or subject.size, seed)
  return tf.nest.map_structure(tf.constant, arrays)


def _in_turn(action: Callable[[Any], Any], *batch: Any) -> None:
  """Prints an empty line, then times `action` on a batch for each line read.

  The arguments `batch` are those of `_batch`.
  """
  print(flush=True)
  for turn, _ in enumerate(sys.stdin):
    _print(_timed(action, _batch(*batch, seed=turn))[1])


def _timed(
  action: Callable[..., Any], *args: Any
) -> tuple[Any, dict[str, float]]:
  cpu, wall = time.process_time(), time.perf_counter()
  result = action(*args)
  return result, {
    "cpu_s": time.process_time() - cpu,
    "wall_s": time.perf_counter() - wall,
  }


def _print(values: dict[str, Any]) -> None:
  print(json.dumps(values), flush=True)


if __name__ == "__main__":
  _, function, arguments = sys.argv
  run = globals().get(function) or getattr(sources, function)
  run(**json.loads(arguments))
