"""Turns AutoGraph off while models and data pipelines are built."""

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
  """Turns AutoGraph off in a function that builds a model or maps a data set.

  AutoGraph searches all called code for control flow over Tensors, which takes
  seconds. Do not decorate a function that has such control flow. Unlike
  TensorFlow's own decorator, this one does not import TensorFlow when it is
  applied.

  Args:
    build: The function to decorate.
  """

  @functools.wraps(build)
  def built(*args: _P.args, **kwargs: _P.kwargs) -> _T:
    return tf.autograph.experimental.do_not_convert(build)(*args, **kwargs)

  return built
