"""Findings about rules, and helpers to word them."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from etils import epy

with epy.lazy_imports():  # Not needed to print findings.
  import tensorflow as tf

PASS = "pass"
FAIL = "fail"
NOT_APPLICABLE = "not applicable"
NOT_DECIDABLE = "not decidable"
EXCEPTED = "excepted"  # The caller expects it broken or undecidable.
VERDICTS = (PASS, FAIL, EXCEPTED, NOT_DECIDABLE, NOT_APPLICABLE)


@dataclasses.dataclass(frozen=True)
class Finding:
  """The finding about one rule.

  Attributes:
    verdict: One of `VERDICTS`.
    text: The observation, the cause of a failure, or the reason why the rule
      does not apply or cannot be decided.
    fix: How to repair a failure.
  """

  verdict: str
  text: str
  fix: str = ""


# Constructors of findings from their text; `failed` also takes the fix.
passed = functools.partial(Finding, PASS)
failed = functools.partial(Finding, FAIL)
not_applicable = functools.partial(Finding, NOT_APPLICABLE)
not_decidable = functools.partial(Finding, NOT_DECIDABLE)


def some(names: Sequence[str], count: int = 3) -> str:
  """Joins the first names, and says how many more there are."""
  more = len(names) - count
  return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def described(structure: Any) -> str:
  """Returns the dtype and shape of a Tensor or its spec."""
  if hasattr(structure, "dtype"):
    return f"{structure.dtype.name} {structure.shape}"
  return str(structure)


def is_vector(spec: Any) -> bool:
  """Returns whether an output is one Tensor of rank 2."""
  return isinstance(spec, tf.TensorSpec) and spec.shape.rank == 2


def is_float_vector(spec: Any) -> bool:
  """Returns whether an output is float32 `[batch, n]` with n known."""
  return is_vector(spec) and (
    spec.dtype == tf.float32 and spec.shape[1] is not None
  )
