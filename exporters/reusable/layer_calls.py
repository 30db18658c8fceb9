"""Has layers of a model called otherwise, while it is traced."""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import tensorflow as tf


@contextlib.contextmanager
def replaced(
  model: Any,
  is_chosen: Callable[[Any], bool],
  replacement: Callable[[Any], Callable[..., Any]],
) -> Iterator[None]:
  """Replaces the `call` of layers; at the end the model is as before.

  Args:
    model: A Keras model or a module; what else it is has no layers.
    is_chosen: Tells whether it is a layer whose `call` is replaced.
    replacement: Makes the new `call` of a layer, which may use the old one.
  """
  with contextlib.ExitStack() as stack:
    if isinstance(model, tf.Module):
      for layer in filter(is_chosen, (model, *model.submodules)):
        # As an attribute of the layer it goes before the method of its class.
        layer.call = replacement(layer)
        stack.callback(vars(layer).pop, "call")
    yield
