"""Reports the source of each restored value, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
import html
import json
import sys

from distribution import publishing
from exporters.reusable import errors
from exporters.reusable import pages
from exporters.reusable import weight_tables

_HEADER = ("variable", "from", "through", "shape")


def write(path: str) -> None:
  """Reports the restores of this process as HTML, JSON or text, by suffix.

  Args:
    path: The file; `-` prints the text and exits.
  """
  if path == "-":
    print(_text())
    sys.exit()
  content = _text
  if path.endswith(".json"):
    content = _json
  elif path.endswith((".html", ".htm")):
    content = _page
  publishing.write(path, f"{content()}\n".encode())


def _rows(restored: weight_tables.Restored) -> list[tuple[str, ...]]:
  return [
    (r.tensor, r.source or "nothing", r.through, str(list(r.shape)))
    for r in restored.records
  ]


def _text() -> str:
  lines = []
  for restored in weight_tables.restores:
    lines += [
      f"{tensor} {shape}: {source}, {through}"
      for tensor, source, through, shape in _rows(restored)
    ]
    lines += [f"left out: {n}, {w}" for n, w in restored.left_out.items()]
  return "\n".join(errors.shown(line) for line in lines)


def _json() -> str:
  found = [
    {
      "source": restored.source,
      "restored": [record._asdict() for record in restored.records],
      "left_out": dict(restored.left_out),
      "lacking": sorted(restored.lacking),
    }
    for restored in weight_tables.restores
  ]
  return json.dumps(found, indent=2)


def _page() -> str:
  return pages.page("What was restored", _body())


def _body() -> Iterator[str]:
  yield "<h1>What was restored</h1>"
  for restored in weight_tables.restores:
    yield f"<p>From {html.escape(restored.source)}</p>"
    yield pages.table(_HEADER, _rows(restored))
    yield "<h2>Left out</h2>"
    yield (
      pages.table(("tensor", "what it is"), restored.left_out.items())
      if restored.left_out
      else "<p>Nothing.</p>"
    )
