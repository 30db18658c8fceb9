"""Observes an export in a sandbox, in an environment with any TensorFlow.

It imports nothing of this repository.
"""

from collections.abc import Iterator, Mapping
from importlib import metadata
import inspect
import os
import tempfile
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

_BATCH_SIZE, _SIZE, _IDS = 8, 32, 100
_CLASSES, _EPOCHS = 3, 20


def generated(model: Any) -> dict[str, np.ndarray]:
  """Makes inputs for the signature `serving_default`, by name."""
  rng = np.random.default_rng(0)
  if "serving_default" not in model.signatures:
    raise ValueError("it has no signature serving_default. Export it with one")
  specs = model.signatures["serving_default"].structured_input_signature[1]
  inputs = {}
  for name, spec in sorted(specs.items()):
    if spec.dtype == tf.string:
      raise ValueError(f"its input {name} is strings, which are not tried")
    shape = [_BATCH_SIZE] + [_SIZE if n is None else n for n in spec.shape[1:]]
    inputs[name] = (
      rng.random(shape).astype(np.float32)
      if spec.dtype.is_floating
      else np.ones(shape, np.int32)
      if "mask" in name
      else rng.integers(0, 2 if "type" in name else _IDS, shape, np.int32)
    )
  return inputs


def observe(
  model: Any, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns outputs, gradients and losses, by name, without randomness."""
  argument = {k: tf.constant(v) for k, v in inputs.items()}
  if len(argument) == 1:
    (argument,) = argument.values()
  parameters = inspect.signature(model.__call__).parameters
  rates = {n: 0.0 for n in parameters if n.endswith("_rate")}
  training = {"training": True} if "training" in parameters else {}
  found = {}

  def add(kind: str, values: Any) -> None:
    for i, value in enumerate(tf.nest.flatten(values)):
      found[f"{kind}.{i}"] = np.array(value)

  add("outputs", model(argument))
  variables = list(model.trainable_variables)
  if not variables:
    raise ValueError("it has no trainable variables")
  with tf.GradientTape() as tape:
    outputs = model(argument, **training, **rates)
    loss = tf.add_n(
      [tf.reduce_mean(tf.square(x)) for x in tf.nest.flatten(outputs)]
    )
    regularization = [loss_of() for loss_of in model.regularization_losses]
    loss += tf.add_n(regularization) if regularization else 0.0
  add("outputs in training", outputs)
  add("losses", [loss, *regularization])
  gradients = tape.gradient(
    loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
  )
  add("gradients", [tf.convert_to_tensor(g) for g in gradients])
  return found


def differences(
  found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Returns the largest difference of each kind, relative to its values."""
  result = {}
  for kind in dict.fromkeys(name.split(".")[0] for name in expected):
    names = [n for n in expected if n.split(".")[0] == kind]
    scale = max(np.abs(expected[n]).max() for n in names)
    worst = max(np.abs(found[n] - expected[n]).max() for n in names)
    result[kind] = float(worst / scale)
  return result


def fine_tune(
  directory: str, inputs: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Fine-tunes the export, saves the model, and loads it again.

  Returns:
    The version of Keras, the losses, the numbers of updated and of all
    variables, and the largest difference of outputs after loading.
  """
  keras = tf.keras  # As in hub.KerasLayer: Keras 2, by the environment.
  package = keras.layers.Layer.__module__.partition(".")[0]
  keras.utils.set_random_seed(1)
  taken = {
    k: keras.layers.Input(v.shape[1:], dtype=v.dtype, name=k)
    for k, v in inputs.items()
  }
  layer = hub.KerasLayer(directory, trainable=True)
  outputs = layer(taken if len(taken) > 1 else next(iter(taken.values())))
  if isinstance(outputs, dict):
    outputs = outputs["default"]
  model = keras.Model(taken, keras.layers.Dense(_CLASSES)(outputs))
  model.compile(
    keras.optimizers.Adam(1e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  labels = np.arange(_BATCH_SIZE) % _CLASSES
  before = [v.numpy() for v in model.trainable_variables]
  history = model.fit(inputs, labels, epochs=_EPOCHS, verbose=0)
  moved = [
    np.any(v.numpy() != b)
    for v, b in zip(model.trainable_variables, before, strict=True)
  ]
  with tempfile.TemporaryDirectory() as saved:
    model.save(saved, save_format="tf")
    again = keras.models.load_model(saved)
    difference = np.abs(
      again.predict(inputs, verbose=0) - model.predict(inputs, verbose=0)
    )
  return {
    "keras": metadata.version(package.replace("_", "-")),
    "fine_tuning": history.history["loss"],
    "moved": int(sum(moved)),
    "variables": len(moved),
    "saved again": float(difference.max()),
  }


def serve(requests: Iterator[list[str]]) -> Iterator[dict[str, Any]]:
  """Serves requests: an export, a file of arrays, and `record` or `compare`."""
  for directory, path, mode in requests:
    yield _observed(directory, path, mode)


def _observed(directory: str, path: str, mode: str) -> dict[str, Any]:
  """Records what the export computes, or compares it with the record."""
  model = hub.load(directory)
  if mode == "record":
    inputs = generated(model)
    found = observe(model, inputs)
    np.savez(path, **{f"in.{k}": v for k, v in inputs.items()}, **found)
    return {"tensorflow": tf.__version__}
  arrays = dict(np.load(path))
  inputs = {
    k[len("in.") :]: v for k, v in arrays.items() if k.startswith("in.")
  }
  expected = {k: v for k, v in arrays.items() if not k.startswith("in.")}
  return {
    "tensorflow": tf.__version__,
    "hub": hub.__version__,
    **differences(observe(model, inputs), expected),
    **fine_tune(directory, inputs),
  }
