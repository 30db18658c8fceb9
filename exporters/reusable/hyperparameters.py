"""Hyperparameters of an export: what its consumers may tune.

A hyperparameter is a scalar argument of the exported `__call__`, with a
default. It reaches the model in one of two ways: a function takes it as an
argument of its own; a Keras model reads it from attributes of its layers, which
hold the argument's Tensor while the model is traced.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any

import tensorflow as tf

from exporters.reusable import errors


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
  """A scalar argument of the exported `__call__`.

  Attributes:
    name: Name of the argument.
    default: Its value where the consumer gives none. It makes the argument
      float32, or int32 if it is an int.
    description: What it does and which values it takes; for the model card.
    layers: The layers that read it. Empty for a model that takes it as an
      argument.
    attribute: The attribute of these layers that stands for it.
    off: The value that makes training repeatable, such as 0 for a dropout rate;
      None where nothing random depends on it.
    proportional: Each layer keeps its proportion to the default.
  """

  name: str
  default: float | int
  description: str
  layers: Sequence[Any] = ()
  attribute: str = ""
  off: float | None = None
  proportional: bool = False

  @property
  def spec(self) -> tf.TensorSpec:
    """Shape, dtype and name of the argument."""
    is_int = isinstance(self.default, int)
    return tf.TensorSpec([], tf.int32 if is_int else tf.float32, self.name)


def of_layers(
  layers: Iterable[Any],
  layer_type: type[Any],
  attribute: str,
  *,
  name: str,
  description: str,
  off: float | None = None,
  proportional: bool = False,
) -> Hyperparameter:
  """Makes one hyperparameter of an attribute that layers share.

  A layer whose attribute is `off`, such as a Dropout of rate 0, is left out,
  and so stays as it is.

  Args:
    layers: Where to look, such as the `submodules` of a Keras model.
    layer_type: The type of the layers, such as `tf_keras.layers.Dropout`.
    attribute: The attribute, such as `rate`. Its value is the default.
    name: Name of the hyperparameter.
    description: What it does and which values it takes.
    off: The value that makes training repeatable, if it is for randomness.
    proportional: The layers may differ: the largest value is the default, and
      all change in proportion to it.

  Returns:
    The hyperparameter.

  Raises:
    ExportError: No layer has a value other than `off`, or they differ.
  """
  bound_layers = [
    layer
    for layer in layers
    if isinstance(layer, layer_type) and getattr(layer, attribute) != off
  ]
  values = sorted({float(getattr(layer, attribute)) for layer in bound_layers})
  if not values or (len(values) > 1 and not proportional):
    other = "" if off is None else f" other than {off:g}"
    raise errors.ExportError(
      f"Hyperparameter {name} needs {layer_type.__name__} layers of one"
      f" {attribute}{other}, and there are {values or 'none'}."
      " Leave it out, or make one hyperparameter for each value."
    )
  return Hyperparameter(
    name, values[-1], description, bound_layers, attribute, off, proportional
  )


@contextlib.contextmanager
def bound(
  hyperparameters: Sequence[Hyperparameter], values: Mapping[str, tf.Tensor]
) -> Iterator[dict[str, tf.Tensor]]:
  """Lets layers read values of hyperparameters; gives theirs back at the end.

  Args:
    hyperparameters: What to bind.
    values: For the name of each hyperparameter a Tensor, shape `[]`.

  Yields:
    The values that no layer reads: arguments for the model, by name.
  """
  with contextlib.ExitStack() as stack:
    for hyperparameter in hyperparameters:
      for layer in hyperparameter.layers:
        own = getattr(layer, hyperparameter.attribute)
        stack.callback(setattr, layer, hyperparameter.attribute, own)
        value = values[hyperparameter.name]
        if hyperparameter.proportional:
          value *= own / hyperparameter.default
        # Layers use it beside their inputs, in the dtype that they compute in.
        dtype = getattr(layer, "compute_dtype", tf.float32)
        setattr(layer, hyperparameter.attribute, tf.cast(value, dtype))
    yield {h.name: values[h.name] for h in hyperparameters if not h.layers}
