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
  """

  name: str
  default: float | int
  description: str
  layers: Sequence[Any] = ()
  attribute: str = ""
  off: float | None = None

  @property
  def spec(self) -> tf.TensorSpec:
    """Shape, dtype and name of the argument."""
    dtype = tf.int32 if isinstance(self.default, int) else tf.float32
    return tf.TensorSpec([], dtype, self.name)


def of_layers(
  layers: Iterable[Any],
  layer_type: type[Any],
  attribute: str,
  *,
  name: str,
  description: str,
  off: float | None = None,
) -> Hyperparameter:
  """Makes one hyperparameter of an attribute that layers share.

  A layer whose attribute is 0, such as a Dropout that is off, is left out, and
  so stays as it is.

  Args:
    layers: Where to look, such as the `submodules` of a Keras model.
    layer_type: The type of the layers, such as `tf_keras.layers.Dropout`.
    attribute: The attribute, such as `rate`. Its value is the default.
    name: Name of the hyperparameter.
    description: What it does and which values it takes.
    off: The value that makes training repeatable, if it is for randomness.

  Returns:
    The hyperparameter.

  Raises:
    ExportError: No layer has a value other than 0, or they differ.
  """
  bound_layers = [
    layer
    for layer in layers
    if isinstance(layer, layer_type) and getattr(layer, attribute) != 0
  ]
  values = sorted({float(getattr(layer, attribute)) for layer in bound_layers})
  if len(values) != 1:
    raise errors.ExportError(
      f"Hyperparameter {name} needs {layer_type.__name__} layers of one"
      f" {attribute} other than 0, and there are {values or 'none'}."
      " Leave it out, or make one hyperparameter for each value."
    )
  return Hyperparameter(
    name, values[0], description, bound_layers, attribute, off
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
        stack.callback(
          setattr,
          layer,
          hyperparameter.attribute,
          getattr(layer, hyperparameter.attribute),
        )
        # Layers use it beside their inputs, in the dtype that they compute in.
        setattr(
          layer,
          hyperparameter.attribute,
          tf.cast(
            values[hyperparameter.name],
            getattr(layer, "compute_dtype", tf.float32),
          ),
        )
    yield {h.name: values[h.name] for h in hyperparameters if not h.layers}
