"""Replaces the `call` of layers while a model is traced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from typing import Any, TypeVar

import tensorflow as tf

_T = TypeVar("_T")

# For the `class_name` of a layer, a function that takes such a layer and
# returns the `call` that replaces its own, which it may use.
Replacements = Mapping[str, Callable[[Any], Callable[..., Any]]]


def class_name(layer_type: type[Any]) -> str:
  """Returns the qualified name of a class, as in `tf_keras.src.….Dense`."""
  return f"{layer_type.__module__}.{layer_type.__qualname__}"


def find(table: Mapping[str, _T], layer: Any) -> _T | None:
  """Looks up a layer in a table by `class_name`, without importing classes.

  An instance of a subclass counts if it inherits `call`. If it overrides
  `call`, the value may not suit it.
  """
  call = getattr(type(layer), "call", None)
  for base in type(layer).__mro__:
    if class_name(base) in table and getattr(base, "call", None) is call:
      return table[class_name(base)]
  return None


def modules(model: Any) -> Sequence[tf.Module]:
  """Returns a model and all layers and modules in it; none for a function."""
  return (model, *model.submodules) if isinstance(model, tf.Module) else ()


@contextlib.contextmanager
def replaced(model: Any, replacements: Replacements) -> Iterator[None]:
  """Replaces the `call` of a model's layers; restores it on exit."""
  with contextlib.ExitStack() as stack:
    for layer in modules(model):
      if replacement := find(replacements, layer):
        # An attribute of the layer takes precedence over its class' method.
        layer.call = replacement(layer)
        stack.callback(vars(layer).pop, "call")
    yield
