"""Writes the result of a check as a self-contained HTML page.

All texts are escaped, because names may come from an untrusted model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import html
import json
import os
from typing import Any

from exporters.conformance import conclusion
from exporters.conformance import findings
from exporters.reusable import pages

_LONGEST = 20  # Rows of a chart.
_ROW = 52  # Height of a module, in pixels.
_GUTTER = 44  # Width for the lines between modules, in pixels.


def page(report: Mapping[str, Any]) -> str:
  """Makes the page.

  Args:
    report: The report that `check` prints as JSON.
  """
  title = os.path.basename(os.path.normpath(report["saved_model_dir"]))
  return pages.page(title, [f"<h1>{html.escape(title)}</h1>", *_body(report)])


def _body(report: Mapping[str, Any]) -> Iterator[str]:
  rules, said = report["rules"], report["conclusion"]
  style = "pass" if said.startswith("reusable") else "fail"
  yield f'<p class="verdict {style}">{_text(said[:1].upper() + said[1:])}.</p>'
  yield (
    f"<p>A SavedModel of kind <b>{_text(report['kind'])}</b>, saved with"
    f" TensorFlow {_text(report['saved_with_tensorflow'])}.</p>"
  )
  for rule in conclusion.failures(rules):
    yield _finding(rule)
  for rule in rules:
    if rule["verdict"] == findings.EXCEPTED:
      yield _finding(rule)
  for found, names in conclusion.undecided(rules):
    yield (
      f"<p><b>Not decidable</b>: {_text(', '.join(names))}: {_text(found)}</p>"
    )
  for verdict, what in (
    (findings.PASS, "rules are kept"),
    (findings.NOT_APPLICABLE, "rules do not apply"),
  ):
    chosen = [r for r in rules if r["verdict"] == verdict]
    rows = [(r["rule"], r["level"], r["text"], r["found"]) for r in chosen]
    yield _folded(
      f"{len(rows)} {what}",
      pages.table(("rule", "level", "text", "found"), rows),
    )
  yield "<h2>Modules</h2>"
  yield _modules(report["modules"], conclusion.failures(rules))
  yield from _rest(report)


def _finding(rule: Mapping[str, Any]) -> str:
  """Returns a section about a broken rule."""
  said = conclusion.reason(rule["rule"])
  parts = (
    ("Found", rule["found"]),
    ("Why it matters", said.why),
    ("Fix", rule["fix"] or said.mended_by),
  )
  lines = "".join(f"<dt>{n}</dt><dd>{_text(v)}</dd>" for n, v in parts if v)
  style = rule["verdict"] if rule["level"] == "must" else findings.EXCEPTED
  level = "" if rule["verdict"] == findings.FAIL else f"{rule['verdict']}, "
  return (
    f'<section class="{_text(style)}"><h3>{_text(rule["rule"])}'
    f" <small>{_text(level + rule['level'])}</small></h3>"
    f"<p>{_text(rule['text'])}</p><dl>{lines}</dl></section>"
  )


def _modules(
  modules: Sequence[Mapping[str, Any]], broken: Sequence[Mapping[str, Any]]
) -> str:
  """Draws the modules from top to bottom."""
  if not modules:
    return "<p>None: it was not loaded, or cannot be called.</p>"
  largest = max(int(m["bytes"]) for m in modules) or 1
  lines, rows = [], []
  for i, module in enumerate(modules):
    lines += [_edge(int(j), i) for j in module["after"] if 0 <= int(j) < i]
    shape = "unknown shape" if module["output"] is None else module["output"]
    count, size = int(module["parameters"]), int(module["bytes"])
    about = str(shape).replace("None", "?")
    if count:
      about += f" · {count:,} parameters, {_amount(size)}"
    marks = [r["rule"] for r in broken if _names(r["found"], module["name"])]
    mark = f' <b class="fail">✗ {_text(", ".join(marks))}</b>' if marks else ""
    rows.append(
      f'<div class="module"><div>{_text(module["name"])}{mark}</div>'
      f"<small>{_text(about)}</small>{_bar(size / largest)}</div>"
    )
  circles = "".join(
    f'<circle cx="36" cy="{_y(i)}" r="4"/>' for i in range(len(modules))
  )
  height = _ROW * len(modules)
  return (
    f'<div class="graph"><svg width="{_GUTTER}" height="{height}"'
    f' aria-hidden="true">{"".join(lines)}{circles}</svg>'
    f"<div>{''.join(rows)}</div></div>"
  )


def _y(i: int) -> int:
  return _ROW * i + 14


def _edge(start: int, end: int) -> str:
  """Draws a line from one module to another, beside those in between."""
  x = 36 if end == start + 1 else max(2, 30 - 4 * (end - start))
  return (
    f'<path d="M36 {_y(start)} C{x} {_y(start) + 20} {x} {_y(end) - 20}'
    f' 36 {_y(end)}"/>'
  )


def _names(found: str, module: str) -> bool:
  """Returns whether a finding names a module, ignoring common words."""
  last = module.rpartition("/")[2]
  return ("_" in last and last in found) or ("/" in module and module in found)


def _rest(report: Mapping[str, Any]) -> Iterator[str]:
  """Yields the sections after the findings."""
  yield "<h2>Inputs and outputs</h2>"
  yield _table(
    ("", "name", "dtype", "shape"),
    [
      (what, t["name"], t["dtype"], t["shape"])
      for what in ("inputs", "outputs")
      for t in report[what]
    ],
  )
  yield "<h2>Hyperparameters</h2>"
  yield _table(("argument", "default"), report["hyperparameters"].items())
  variables = report["variables"]
  yield (
    f"<h2>Variables</h2><p>{len(variables)} variables,"
    f" {sum(v['trainable'] for v in variables)} of them trainable,"
    f" {_amount(sum(v['bytes'] for v in variables))}.</p>"
  )
  sizes = [(f"{v['name']} {v['shape']}", v["bytes"]) for v in variables]
  yield _folded("The largest", _chart(sizes, _amount))
  yield "<h2>Size</h2>"
  yield _chart(list(report["bytes"].items()), _amount)
  yield "<h2>Ops</h2>"
  yield _folded(
    f"{len(report['ops'])} kinds", _chart(list(report["ops"].items()), str)
  )
  yield "<h2>Claims of its exporter, in model.json</h2>"
  yield _table(
    ("entry", "value"),
    (
      (entry, value if isinstance(value, str) else json.dumps(value))
      for entry, value in report["described"].items()
      if entry not in ("example", "variables")
    ),
  )


def _text(value: Any) -> str:
  return html.escape(str(value))


def _folded(summary: str, content: str) -> str:
  return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
  rows = [list(map(str, row)) for row in rows]
  return pages.table(header, rows) if rows else "<p>None.</p>"


def _bar(share: float) -> str:
  return f'<div class="bar" style="width:{100 * share:.1f}%"></div>'


def _chart(rows: Sequence[tuple[str, int]], shown: Callable[[int], str]) -> str:
  """Draws a bar for each of the first rows, and one for all others."""
  if rest := rows[_LONGEST:]:
    others = (f"{len(rest)} others", sum(value for _, value in rest))
    rows = [*rows[:_LONGEST], others]
  largest = max((value for _, value in rows), default=0) or 1
  lines = (
    f'<div class="row"><span>{_text(name)}</span>'
    f"<span>{_text(shown(v))}</span>{_bar(v / largest)}</div>"
    for name, v in rows
  )
  return f'<div class="chart">{"".join(lines)}</div>'


def _amount(size: int) -> str:
  for unit in ("B", "kB", "MB"):
    if size < 1000:
      return f"{size:.3g} {unit}"
    size /= 1000
  return f"{size:.3g} GB"
