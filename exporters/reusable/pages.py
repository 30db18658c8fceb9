"""Makes self-contained HTML pages."""

from __future__ import annotations

from collections.abc import Iterable
import html
import os
import pathlib

_PAGE = pathlib.Path(os.path.dirname(__file__), "page.html")


def page(title: str, body: Iterable[str]) -> str:
  """Returns a page; `body` is HTML, and the title is escaped."""
  template = _PAGE.read_text(encoding="utf-8")
  # A title may be "BODY".
  before, _, after = template.partition("BODY")
  return "\n".join([before.replace("TITLE", html.escape(title)), *body, after])


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """Returns an HTML table of texts, which are escaped."""
  lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
  lines += ["".join(f"<td>{html.escape(x)}</td>" for x in row) for row in rows]
  return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
