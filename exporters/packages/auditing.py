"""Audits the ops of a model, inside a sandbox."""

from collections.abc import Iterator
from typing import Any

from exporters.conformance import subject


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Answers the request of `copying.started` with the suspicious ops."""
  yield subject.requested(next(requests)).suspicious
