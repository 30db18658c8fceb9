"""Builds models, and pipelines of data, without AutoGraph."""

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
  """Decorates a function that builds a Keras model, or what a data set maps.

  AutoGraph looks for control flow over Tensors in all that layers and the
  function call, which takes seconds. Where there is some, building fails
  without it. TensorFlow's own decorator would import TensorFlow when the module
  is imported.

  Args:
    build: The function.
  """

  @functools.wraps(build)
  def built(*args: _P.args, **kwargs: _P.kwargs) -> _T:
    return tf.autograph.experimental.do_not_convert(build)(*args, **kwargs)

  return built
