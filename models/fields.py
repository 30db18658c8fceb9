"""Finds the fields of a config that an error message is about."""

from collections.abc import Mapping
import re
from typing import Any

_MOST = 6  # The largest number of fields in a message.


def flat(values: Any, path: str = "") -> dict[str, Any]:
  """Flattens nested dicts, whose keys become paths with dots."""
  if not isinstance(values, Mapping):
    return {path: values}
  flattened = {}
  for key, value in values.items():
    flattened |= flat(value, f"{path}.{key}" if path else str(key))
  return flattened


def cited(message: str, values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields whose values occur in the message of an error."""

  def is_cited(value: Any) -> bool:
    text = re.escape(str(value))
    return bool(re.search(rf"(?<![\w.]){text}(?![\w.]*\w)", message))

  return {path: value for path, value in values.items() if is_cited(value)}


def shown(values: Mapping[str, Any]) -> str:
  """Returns some of the fields with their values, as text."""
  named = [f"{path}={value}" for path, value in values.items()]
  more = f" and {len(named) - _MOST} more" if len(named) > _MOST else ""
  return ", ".join(named[:_MOST]) + more
