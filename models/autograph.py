"""Builds models without AutoGraph."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import ParamSpec, TypeVar

from etils import epy

with epy.lazy_imports():
  import tensorflow as tf

_P = ParamSpec("_P")
_T = TypeVar("_T")


def off(build: Callable[_P, _T]) -> Callable[_P, _T]:
  """Decorates a function that builds a Keras model.

  Calling a layer symbolically, AutoGraph looks for control flow over Tensors in
  all that the layer calls, which takes seconds. Where there is some, building
  fails without it. TensorFlow's own decorator would import TensorFlow when the
  module is imported.

  Args:
    build: The function.
  """

  @functools.wraps(build)
  def built(*args: _P.args, **kwargs: _P.kwargs) -> _T:
    return tf.autograph.experimental.do_not_convert(build)(*args, **kwargs)

  return built
