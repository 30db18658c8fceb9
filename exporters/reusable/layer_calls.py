"""Temporarily replaces the `call` of layers while a model is traced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import inspect
import types
from typing import Any, TypeVar

import tensorflow as tf
import tf_keras

_T = TypeVar("_T")

# Functions by the `class_name` of a layer. Each takes a layer and returns the
# replacement of its `call`, which may use the original one.
Replacements = Mapping[str, Callable[[Any], Callable[..., Any]]]

# Methods that the `call` of a base class does not depend on.
_OVERRIDABLE = {
  "build",
  "call",
  "compute_mask",
  "compute_output_shape",
  "from_config",
  "get_config",
}


def class_name(layer_type: type[Any]) -> str:
  """Returns the qualified name of a class, as in `tf_keras.src.….Dense`."""
  return f"{layer_type.__module__}.{layer_type.__qualname__}"


def find(table: Mapping[str, _T], layer: Any) -> _T | None:
  """Looks up a layer in a table by `class_name`, without importing classes.

  A subclass has the value of its base class if it inherits `call`. A subclass
  that overrides `call` has no value, since that of the base class may be wrong.
  """
  call = getattr(type(layer), "call", None)
  for base in type(layer).__mro__:
    if class_name(base) in table and getattr(base, "call", None) is call:
      return table[class_name(base)]
  return None


def modules(model: Any) -> Sequence[tf.Module]:
  """Returns a model and all layers and modules in it.

  For a function, returns the modules that it names, and all in them; see
  `named`.
  """
  found = {}
  for root in [model] if isinstance(model, tf.Module) else named(model):
    try:
      inner = root.submodules
    except ValueError:
      # TensorFlow cannot sort the masks that a recurrent layer caches for each
      # graph that called it.
      inner = tf.train.TrackableView(root).descendants()
    modules_of = [root, *(x for x in inner if isinstance(x, tf.Module))]
    found.update({id(x): x for x in modules_of if id(x) not in found})
  return tuple(found.values())


def named(function: Any) -> list[tf.Module]:
  """Returns the modules that a function names, and the object of a method.

  Functions of the same Python module that it names are searched, too.
  """
  waiting, seen = [function], {}
  while waiting:
    function = waiting.pop()
    seen[id(function)] = function
    names = list(_names(getattr(function, "python_function", function)))
    waiting += [x for x in reversed(names) if id(x) not in seen]
  return [x for x in seen.values() if isinstance(x, tf.Module)]


def _names(function: Any) -> Iterator[Any]:
  """Yields the modules and functions that a function names."""
  names = [getattr(function, "__self__", None)]
  if isinstance(function, functools.partial):
    names += [function.func, *function.args, *function.keywords.values()]
    function = function.func
  elif inspect.isfunction(function) or inspect.ismethod(function):
    function = getattr(function, "__func__", function)
    for cell in function.__closure__ or ():
      with contextlib.suppress(ValueError):  # A name may have no value yet.
        names.append(cell.cell_contents)
    of_module = function.__globals__
    used = [name for name in function.__code__.co_names if name in of_module]
    names += [of_module[name] for name in used]
  module = getattr(function, "__module__", None)
  for x in names:
    is_traced = isinstance(x, tf.types.experimental.PolymorphicFunction)
    held = x.python_function if is_traced else x
    held = held.__self__ if inspect.ismethod(held) else held
    is_near = inspect.isfunction(held) and held.__module__ == module
    if isinstance(held, (tf.Module, functools.partial)) or is_near:
      yield held


@contextlib.contextmanager
def replaced(
  model: Any, replacements: Replacements
) -> Iterator[list[tf_keras.layers.Layer]]:
  """Replaces the `call` of a model's layers; restores it on exit.

  A subclass that overrides `call` gets the replacement where it calls the
  `call` of its base class. A subclass that overrides another method of the base
  class gets none, since `call` may use that method. Cells of recurrent layers
  get none, because in loops TensorFlow supports no gradient that reads
  variables. A layer gets none if its `call` has been set as an attribute.

  Yields:
    A list to which every layer that is called is added, in the model or not.
  """
  layers = modules(model)
  recurrent = [x for x in layers if isinstance(x, tf_keras.layers.RNN)]
  in_cells = {id(cell) for x in recurrent for cell in modules(x.cell)}
  calls = {}
  for layer in layers:
    base = _base(replacements, type(layer))
    if base and id(layer) not in in_cells and "call" not in vars(layer):
      # The replacement sees the `call` of `base` as the original one.
      vars(layer)["call"] = types.MethodType(base.call, layer)
      calls[base, id(layer)] = replacements[class_name(base)](layer)
      del vars(layer)["call"]
  with contextlib.ExitStack() as stack:
    for base in {base for base, _ in calls}:
      if "call" in vars(base):
        stack.callback(setattr, base, "call", base.call)
      else:
        stack.callback(delattr, base, "call")
      base.call = _dispatching(base, calls)
    called: list[tf_keras.layers.Layer] = []
    call = tf_keras.layers.Layer.__call__
    stack.callback(setattr, tf_keras.layers.Layer, "__call__", call)

    @functools.wraps(call)
    def listed(layer: Any, *args: Any, **kwargs: Any) -> Any:
      called.append(layer)
      return call(layer, *args, **kwargs)

    tf_keras.layers.Layer.__call__ = listed
    yield called


def _base(table: Mapping[str, Any], layer_type: type[Any]) -> type[Any] | None:
  """Returns the class in the table whose `call` a layer inherits or uses."""
  for i, base in enumerate(layer_type.__mro__):
    if class_name(base) in table:
      overridden = {
        name
        for subclass in layer_type.__mro__[:i]
        for name, value in vars(subclass).items()
        if callable(value) or isinstance(value, (property, staticmethod))
        if hasattr(base, name) and not name.startswith("__")
      }
      return None if overridden - _OVERRIDABLE else base
  return None


def _dispatching(
  base: type[Any], calls: Mapping[tuple[type[Any], int], Callable[..., Any]]
) -> Callable[..., Any]:
  """Makes a `call` for a class that calls the replacement of each layer."""
  original = base.call

  @functools.wraps(original)
  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    replacement = calls.get((base, id(self)))
    if replacement is None:  # A layer of another model.
      return original(self, *args, **kwargs)
    return replacement(*args, **kwargs)

  call.__signature__ = inspect.signature(original)  # Keras reads it.
  return call
