"""What is found of a rule, and the words in which it is said."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import tensorflow as tf

PASS = "pass"
FAIL = "fail"
NOT_APPLICABLE = "not applicable"
NOT_DECIDABLE = "not decidable"


@dataclasses.dataclass(frozen=True)
class Finding:
  """What was found of one rule.

  Attributes:
    verdict: PASS, FAIL, NOT_APPLICABLE or NOT_DECIDABLE.
    text: What was seen, or why nothing is to be seen; of a failure the cause.
    fix: What mends a failure.
  """

  verdict: str
  text: str
  fix: str = ""


def passed(text: str) -> Finding:
  """Says that a rule is kept, and what was seen."""
  return Finding(PASS, text)


def failed(cause: str, fix: str) -> Finding:
  """Says that a rule is broken, by what, and what mends it."""
  return Finding(FAIL, cause, fix)


def not_applicable(why: str) -> Finding:
  """Says that a rule is not for this SavedModel."""
  return Finding(NOT_APPLICABLE, why)


def not_decidable(why: str) -> Finding:
  """Says that it does not show whether a rule is kept."""
  return Finding(NOT_DECIDABLE, why)


def some(names: Sequence[str], count: int = 3) -> str:
  """Returns a few names, and how many more there are."""
  more = len(names) - count
  return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def described(structure: Any) -> str:
  """Returns the dtype and shape of a Tensor or its spec."""
  if hasattr(structure, "dtype"):
    return f"{structure.dtype.name} {structure.shape}"
  return str(structure)


def is_vector(spec: Any) -> bool:
  """Tells whether an output is one Tensor `[batch, something]`."""
  return isinstance(spec, tf.TensorSpec) and spec.shape.rank == 2


def is_float_vector(spec: Any) -> bool:
  """Tells whether it is float32, of a length that is known."""
  return is_vector(spec) and (
    spec.dtype == tf.float32 and spec.shape[1] is not None
  )
