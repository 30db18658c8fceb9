"""Hyperparameters of an export: the values that its consumers may tune.

A hyperparameter is a scalar argument of the exported `__call__`, with a
default. A function takes it as an argument. The layers of a Keras model read it
from an attribute, which holds the argument's Tensor while the model is traced.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import statistics
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import layer_calls

# The attribute from which the `call` of each class reads a hyperparameter.
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
    default: The default. The dtype of the argument is float32 for a float,
      int32 for an int, and string for a str. `saving.source` refuses others.
    description: Its effect, for the model card.
    layers: The layers that read it. Empty if the model takes it as an argument.
    attribute: The attribute that these layers read it from.
    off: The value without randomness in training, such as 0 for a dropout rate;
      None if the hyperparameter controls nothing random.
    choices: The valid values of a string.
    limits: The limits of a number, by keywords of JSON Schema: `minimum`,
      `maximum`, `exclusiveMaximum`.
    is_found: Whether `of_model` found it. Such a hyperparameter is not exported
      if it has no effect, because its layers are always called in inference.
  """

  name: str
  default: float | int | str
  description: str
  layers: Sequence[Any] = ()
  attribute: str = ""
  off: float | None = None
  choices: Sequence[str] = ()
  limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
  is_found: bool = False

  @property
  def spec(self) -> tf.TensorSpec:
    """Shape, dtype and name of the argument."""
    dtypes = {int: tf.int32, str: tf.string}
    dtype = dtypes.get(type(self.default), tf.float32)
    return tf.TensorSpec([], dtype, self.name)

  def others(self) -> list[float | int | str]:
    """Returns values to try besides the default.

    These are the other choices of a string, or a smaller and a larger number.
    The larger one is much larger, because a model may limit the argument.
    """
    if isinstance(self.default, str):
      return [x for x in self.choices if x != self.default]
    if isinstance(self.default, int):
      values = [self.default // 2, 4 * self.default + 2]
    elif 0 < self.default < 1:
      # Moving averages are updated by the share 1 - momentum, so a limit of the
      # momentum shows only near 1.
      nearer = 99 if "momentum" in (self.attribute or self.name) else 3
      values = [self.default / 2, (nearer + self.default) / (nearer + 1)]
    else:
      values = [self.default / 2, 4 * self.default + 0.5]
    return [x for x in values if x != self.default and self._allows(x)]

  def _allows(self, value: float) -> bool:
    least = self.limits.get("minimum", -math.inf)
    most = self.limits.get("maximum", math.inf)
    below = self.limits.get("exclusiveMaximum", math.inf)
    return least <= value <= most and value < below

  def of_layer(self, own: Any, value: Any) -> Any:
    """Scales the value of the argument for a layer with the value `own`.

    If `own` differs from the default, the layer's rate, or 1 - momentum,
    changes in proportion to that of the argument.
    """
    if np.float32(own) == np.float32(self.default):
      return value
    if self.attribute == "momentum":
      return 1.0 - (1.0 - value) * ((1.0 - own) / (1.0 - self.default))
    return value * (own / self.default)


# Limits of a rate: dropping everything is not allowed.
RATE = {"minimum": 0, "exclusiveMaximum": 1}


def literal(value: float | str) -> str:
  """Formats a value as a literal in Python."""
  return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def of_model(model: Any) -> list[Hyperparameter]:
  """Finds the hyperparameters of a Keras model and of all modules in it.

  - `dropout_rate`: the rates of dropout.
  - `attention_dropout_rate`: the rates of dropout in attention, as
    `_in_attention` defines it.
  - `stochastic_depth_rate`: the rates of stochastic depth layers of Model
    Garden or Keras, or of dropout that drops whole examples.
  - `batch_norm_momentum`: the momentum of trainable batch normalization.

  Layers with rate 0 keep it. If rates differ, the default is the highest, and
  the others change in proportion. If momenta differ, the default is the lowest,
  and 1 - momentum of the others changes in proportion. So a valid value of the
  argument is valid for all layers.

  Args:
    model: A Keras model, a module, or a function that names them. Other objects
      have no hyperparameters.

  Returns:
    The hyperparameters found. Each default is the shortest decimal number that
    rounds to the same float32.
  """
  found = collections.defaultdict(list)
  dropouts = []
  for layer in layer_calls.modules(model):
    attribute = layer_calls.find(_ATTRIBUTES, layer)
    value = getattr(layer, attribute) if attribute else None
    if isinstance(value, tf.Variable):  # Consumers can assign it already.
      continue
    if attribute == "momentum":
      if layer.trainable:
        found["batch_norm_momentum"].append(layer)
    elif value:
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
  """Returns the shortest decimal number that rounds to the same float32."""
  return float(str(np.float32(value)))


def _drops_examples(dropout: tf_keras.layers.Dropout) -> bool:
  """Tells whether a dropout layer drops whole examples."""
  shape = dropout.noise_shape
  return bool(shape) and all(size == 1 for size in shape[1:])


def _in_attention(
  model: tf.Module, dropouts: Sequence[tf_keras.layers.Dropout]
) -> set[int]:
  """Returns the ids of the dropout layers that belong to attention.

  These are the dropout layers in classes with `Attention` in their name. The
  attribute `attention_dropout` of another class is dropout after attention. It
  counts if it has the same rate, or if attention has no dropout inside.
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
  """Makes one hyperparameter from an attribute of several layers."""
  # If stochastic depth has layers of two classes, the more frequent one counts.
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
    is_found=True,
  )


@contextlib.contextmanager
def bound(
  hyperparameters: Sequence[Hyperparameter], values: Mapping[str, tf.Tensor]
) -> Iterator[dict[str, tf.Tensor]]:
  """Sets hyperparameters in layers; restores the original values on exit.

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
        # Layers combine the value with inputs of their compute dtype.
        dtype = getattr(layer, "compute_dtype", tf.float32)
        setattr(layer, hyperparameter.attribute, tf.cast(value, dtype))
    yield {h.name: values[h.name] for h in hyperparameters if not h.layers}
