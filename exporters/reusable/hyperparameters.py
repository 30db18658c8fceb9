"""Hyperparameters of an export: the values that its consumers may tune.

A hyperparameter is a scalar argument of the exported `__call__`, with a
default. It reaches the model in one of two ways: a function takes it as an
argument; the layers of a Keras model read it from one of their attributes,
which holds the argument's Tensor while the model is traced.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import statistics
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls

# Layers that read a hyperparameter from an attribute in their `call`.
_ATTRIBUTES = {
  layer_calls.class_name(tf_keras.layers.Dropout): "rate",
  layer_calls.class_name(tf_keras.layers.BatchNormalization): "momentum",
  layer_calls.class_name(
    tf_keras.layers.experimental.SyncBatchNormalization
  ): "momentum",
  "official.vision.modeling.layers.nn_layers.StochasticDepth": "_drop_rate",
  "tf_keras.src.applications.convnext.StochasticDepth": "drop_path_rate",
}

_DESCRIPTIONS = {
  "dropout_rate": "Share of the features that training drops.",
  "attention_dropout_rate": "Share of the attention weights, and of the outputs"
  " of attention, that training drops.",
  "stochastic_depth_rate": "Share of the examples for which training skips a"
  " residual block.",
  "batch_norm_momentum": "Share of the old value that the moving averages of"
  " batch normalization keep at each training step; 1 keeps them as they are."
  " Lower values suit small data sets. Under a distribution strategy each"
  " replica normalizes its own part of the batch and keeps its own averages;"
  " reading and saving take their mean.",
}


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
  """A scalar argument of the exported `__call__`.

  Attributes:
    name: Name of the argument.
    default: Its default. The argument is int32 if it is an int, a string if it
      is one, else float32.
    description: Its effect, for the model card.
    layers: The layers that read it. Empty if the model takes it as an argument.
    attribute: The attribute that these layers read it from.
    off: The value that makes training repeatable, such as 0 for a dropout rate;
      None if nothing random depends on it.
    choices: The values of a string.
    limits: The valid values of a number, by keywords of JSON Schema: `minimum`,
      `maximum`, `exclusiveMaximum`.
  """

  name: str
  default: float | int | str
  description: str
  layers: Sequence[Any] = ()
  attribute: str = ""
  off: float | None = None
  choices: Sequence[str] = ()
  limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def spec(self) -> tf.TensorSpec:
    """Shape, dtype and name of the argument."""
    dtypes = {int: tf.int32, str: tf.string}
    dtype = dtypes.get(type(self.default), tf.float32)
    return tf.TensorSpec([], dtype, self.name)

  def of_layer(self, own: Any, value: Any) -> Any:
    """Returns a layer's value, given its own one and that of the argument.

    If its own differs from the default, a rate keeps its proportion to the
    argument, and a momentum that of 1 - momentum.
    """
    if np.float32(own) == np.float32(self.default):
      return value
    if self.attribute == "momentum":
      return 1.0 - (1.0 - value) * ((1.0 - own) / (1.0 - self.default))
    return value * (own / self.default)


# Limits of a share that must leave something.
RATE = {"minimum": 0, "exclusiveMaximum": 1}


def literal(value: float | str) -> str:
  """Writes a value as in Python code."""
  return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def of_model(model: Any) -> list[Hyperparameter]:
  """Finds the hyperparameters of a Keras model and of all modules in it.

  - `dropout_rate`: the rates of dropout.
  - `attention_dropout_rate`: the rates of dropout in attention, as
    `_in_attention` defines it.
  - `stochastic_depth_rate`: the rates of Model Garden's or Keras' layers of
    stochastic depth, or of dropout that drops whole examples.
  - `batch_norm_momentum`: the momentum of batch normalization that is
    trainable.

  Layers of rate 0 stay as they are. Where rates differ, the default is the
  largest, and the others keep their proportion to it. Where momenta differ, the
  default is the smallest, and 1 - momentum of the others keeps its proportion.
  A value that is valid for the argument is then valid for all layers.

  Args:
    model: A Keras model or a module. Nothing is found in any other object.

  Returns:
    The hyperparameters that the model has. Defaults are rounded to the shortest
    decimal number of the same float32.
  """
  found = collections.defaultdict(list)
  dropouts = []
  for layer in layer_calls.modules(model):
    attribute = layer_calls.find(_ATTRIBUTES, layer)
    if attribute == "momentum":
      if layer.trainable:
        found["batch_norm_momentum"].append(layer)
    elif attribute and getattr(layer, attribute):
      is_dropout = attribute == "rate" and not _drops_examples(layer)
      (dropouts if is_dropout else found["stochastic_depth_rate"]).append(layer)
  in_attention = _in_attention(model, dropouts) if dropouts else ()
  for layer in dropouts:
    prefix = "attention_" if id(layer) in in_attention else ""
    found[f"{prefix}dropout_rate"].append(layer)
  return [
    _of_layers(name, description, found[name])
    for name, description in _DESCRIPTIONS.items()
    if found[name]
  ]


def _rounded(value: float) -> float:
  """Returns the shortest decimal number of the same float32."""
  return float(str(np.float32(value)))


def _drops_examples(dropout: tf_keras.layers.Dropout) -> bool:
  """Tells whether a dropout drops all features of an example together."""
  shape = dropout.noise_shape
  return bool(shape) and all(size == 1 for size in shape[1:])


def _in_attention(
  model: tf.Module, dropouts: Sequence[tf_keras.layers.Dropout]
) -> set[int]:
  """Returns the ids of the dropouts that belong to attention.

  Their owner is of a class whose name contains `Attention`. A dropout that its
  owner calls `attention_dropout` comes behind attention: it belongs to it if it
  has the same rate, or if attention has no dropout of its own.
  """
  known = {id(layer) for layer in dropouts}
  view = tf.train.TrackableView(model)
  inside, behind = [], []
  for owner in view.descendants():
    is_attention = "Attention" in type(owner).__name__
    for name, child in view.children(owner).items():
      if id(child) in known and is_attention:
        inside.append(child)
      elif id(child) in known and "attention_dropout" in name:
        behind.append(child)
  rates = {layer.rate for layer in inside}
  return {
    id(layer)
    for layer in (*inside, *behind)
    if not rates or layer.rate in rates
  }


def _of_layers(
  name: str, description: str, layers: Sequence[Any]
) -> Hyperparameter:
  """Makes one hyperparameter of an attribute of layers."""
  # Of two kinds of stochastic depth, the one that more layers are.
  attribute = statistics.mode(layer_calls.find(_ATTRIBUTES, x) for x in layers)
  layers = [x for x in layers if layer_calls.find(_ATTRIBUTES, x) == attribute]
  values = {_rounded(getattr(layer, attribute)) for layer in layers}
  is_momentum = attribute == "momentum"
  if len(values) > 1:
    description += (
      " This is the lowest momentum; 1 - momentum of the others changes in"
      " proportion."
      if is_momentum
      else " This is the highest rate; lower ones change in proportion."
    )
  return Hyperparameter(
    name,
    min(values) if is_momentum else max(values),
    description,
    layers,
    attribute,
    off=None if is_momentum else 0.0,
    limits={"minimum": 0, "maximum": 1} if is_momentum else RATE,
  )


@contextlib.contextmanager
def bound(
  hyperparameters: Sequence[Hyperparameter], values: Mapping[str, tf.Tensor]
) -> Iterator[dict[str, tf.Tensor]]:
  """Lets layers read hyperparameters; restores their own values on exit.

  Args:
    hyperparameters: The hyperparameters.
    values: Their values by name: Tensors of shape `[]`, or numbers.

  Yields:
    The values that no layer reads: arguments of the model, by name.
  """
  with contextlib.ExitStack() as stack:
    for hyperparameter in hyperparameters:
      for layer in hyperparameter.layers:
        own = getattr(layer, hyperparameter.attribute)
        stack.callback(setattr, layer, hyperparameter.attribute, own)
        value = hyperparameter.of_layer(own, values[hyperparameter.name])
        # Layers combine it with their inputs, in the dtype they compute in.
        dtype = getattr(layer, "compute_dtype", tf.float32)
        setattr(layer, hyperparameter.attribute, tf.cast(value, dtype))
    yield {h.name: values[h.name] for h in hyperparameters if not h.layers}
