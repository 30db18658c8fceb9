"""Finds the tables in which a model looks up ids and positions."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from exporters.conformance import gradients
from exporters.conformance import subject as subject_lib

Subject = subject_lib.Subject

_IDS = "input_word_ids"
_TRIED = 128  # Number of ids to try.
_FEWEST = 16  # Least number of rows of a table whose ids are tried.
_FEW = 0.1  # Share of ids that need not use a row, such as padding.


class Tables(NamedTuple):
  """Tables of a model.

  Attributes:
    of_ids: The table of ids. None: no table was found.
    positions: The number of positions with an embedding; 0 if unknown.
    unused: The number of rows before that of the first position.
  """

  of_ids: tf.Variable | None = None
  positions: int = 0
  unused: int = 0


def tables(subject: Subject) -> Tables:
  """Finds tables by the rows that outputs depend on."""
  inputs = _unmasked(subject.example(2))
  ids = _ids(inputs)
  if ids is None:
    return Tables()
  unique = set(np.ravel(ids).tolist())
  length = ids.shape[-1]
  of_ids, positions, unused = None, 0, 0
  for table, rows in _used(subject, inputs):
    if rows == unique and len(rows) > 1:
      of_ids = table
    elif rows and rows == set(range(min(rows), min(rows) + length)):
      positions, unused = table.shape[0] - min(rows), min(rows)
  # All rows of a square kernel are used too, so it is no table of positions.
  if positions <= length:
    return Tables(of_ids)
  return Tables(of_ids, positions, unused)


def confused(subject: Subject) -> str:
  """Describes an id that has another id's embedding; empty if none has."""
  table = tables(subject).of_ids
  if table is None or table.shape[0] < _FEWEST:
    return ""
  size = table.shape[0]
  shape = _ids(subject.example(1)).shape[1:]
  count = math.ceil(min(_TRIED, size // 2) / math.prod(shape))
  # Leave out the second-last id, because its row shows that ids are clipped.
  tried = np.random.default_rng(0).integers(1, size - 2, [count, *shape])
  np.ravel(tried)[-1] = size - 1
  inputs = _unmasked(subject.example(count))
  ids = tf.constant(tried, _ids(inputs).dtype)
  inputs = {**inputs, _IDS: ids} if isinstance(inputs, Mapping) else ids
  unique = set(np.ravel(tried).tolist())
  used = [rows for v, rows in _used(subject, inputs) if v is table]
  rows = used[0] if used else unique  # The model may refuse some ids.
  missing = sorted(unique - rows)
  if len(missing) > _FEW * len(unique) or (missing and rows - unique):
    return f"{missing[-1]} does not use its row of {table.name}"
  return ""


def _ids(inputs: Any) -> tf.Tensor | None:
  """Returns the ids among inputs; None if there are none."""
  ids = inputs.get(_IDS) if isinstance(inputs, Mapping) else inputs
  is_ids = tf.is_tensor(ids) and isinstance(ids, tf.Tensor)
  return ids if is_ids and ids.dtype.is_integer and ids.shape.rank else None


def _unmasked(inputs: Any) -> Any:
  if not isinstance(inputs, Mapping) or "input_mask" not in inputs:
    return inputs
  return {**inputs, "input_mask": tf.ones_like(inputs["input_mask"])}


def _used(subject: Subject, inputs: Any) -> list[tuple[tf.Variable, set[int]]]:
  """Returns matrices with the rows that outputs depend on.

  Leaves out matrices without a gradient.
  """
  matrices = [
    v for v in subject.variables if v.shape.rank == 2 and v.dtype.is_floating
  ]
  try:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(matrices)
      outputs = subject_lib.floats(subject.model(inputs))
      total = gradients.weighted(outputs)
    found = tape.gradient(total, matrices)
  except Exception:  # Without floats or gradients, no table is found.
    return []
  return [
    (v, set(np.flatnonzero(np.any(tf.convert_to_tensor(g), 1)).tolist()))
    for v, g in zip(matrices, found, strict=True)
    if g is not None
  ]
