"""The result of checking a SavedModel, as data and as a page of HTML."""

from collections.abc import Iterable, Mapping, Sequence
import html
import os
from typing import Any

import tensorflow as tf

from exporters.conformance import findings as findings_lib
from exporters.conformance import rules
from exporters.conformance import subject as subject_lib

_LONGEST = 20  # Rows of a chart.


def collect(
  subject: subject_lib.Subject,
  findings: Iterable[tuple[rules.Rule, findings_lib.Finding]],
) -> dict[str, Any]:
  """Collects everything known about a SavedModel, ready for JSON."""
  return {
    "saved_model_dir": subject.directory,
    "kind": subject.kind,
    "saved_with_tensorflow": subject.graph.meta_info_def.tensorflow_version,
    "rules": [
      {
        "rule": rule.name,
        "level": rule.level,
        "text": rule.text,
        "verdict": finding.verdict,
        "found": finding.text,
        "fix": finding.fix,
      }
      for rule, finding in findings
    ],
    "suspicious": subject.suspicious,
    "inputs": _tensors(subject.spec, ""),
    "outputs": _tensors(
      subject.output_spec,
      # Only the signature names a single output.
      "/".join(subject.serving.outputs) if subject.serving else "",
    ),
    "hyperparameters": {
      name: None if default is subject_lib.NO_DEFAULT else default
      for name, default in subject.hyperparameters.items()
    },
    "variables": _variables(subject),
    "ops": subject.op_counts,
    "bytes": _sizes(subject),
  }


def _tensors(structure: Any, only: str) -> list[dict[str, Any]]:
  """Lists the Tensors of a structure by their paths."""
  return [
    {
      "name": "/".join(map(str, path)) or only or getattr(spec, "name", ""),
      "dtype": spec.dtype.name,
      "shape": None if spec.shape.rank is None else spec.shape.as_list(),
    }
    for path, spec in _flattened(structure)
    if isinstance(spec, tf.TypeSpec)
  ]


def _flattened(
  structure: Any, path: tuple[Any, ...] = ()
) -> Iterable[tuple[tuple[Any, ...], Any]]:
  items: Iterable[tuple[Any, Any]]
  if isinstance(structure, Mapping):
    items = structure.items()
  elif isinstance(structure, (list, tuple)):
    items = enumerate(structure)
  else:
    yield path, structure
    return
  for key, value in items:
    yield from _flattened(value, (*path, key))


def _variables(subject: subject_lib.Subject) -> list[dict[str, Any]]:
  """Lists the variables of the SavedModel, the largest first."""
  found = []
  for node in subject.graph.object_graph_def.nodes:
    if node.HasField("variable"):
      variable = node.variable
      dtype = tf.dtypes.as_dtype(variable.dtype)
      shape = tf.TensorShape(variable.shape)
      found.append(
        {
          "name": variable.name,
          "dtype": dtype.name,
          "shape": shape.as_list(),
          "trainable": variable.trainable,
          "bytes": shape.num_elements() * dtype.size,
        }
      )
  return sorted(found, key=lambda v: -v["bytes"])


def _sizes(subject: subject_lib.Subject) -> dict[str, int]:
  """Returns the bytes of each part of the SavedModel."""
  graph = subject.graph
  functions = graph.graph_def.library.ByteSize()
  sizes = {
    "graph: functions": functions,
    "graph: the rest": graph.graph_def.ByteSize() - functions,
    "objects": graph.object_graph_def.ByteSize(),
  }
  rest = subject.files["saved_model.pb"] - sum(sizes.values())
  sizes["saved_model.pb: the rest"] = rest
  for file, size in subject.files.items():
    place = file.split(os.sep)[0]
    if place != "saved_model.pb":
      sizes[place] = sizes.get(place, 0) + size
  return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def page(report: Mapping[str, Any]) -> str:
  """Makes a page of HTML that needs no other file.

  Args:
    report: What `collect` returns.
  """
  name = os.path.basename(os.path.normpath(report["saved_model_dir"]))
  variables = report["variables"]
  body = [
    f"<h1>{html.escape(name)}</h1>",
    f"<p>A SavedModel of kind <b>{report['kind']}</b>, saved with TensorFlow"
    f" {html.escape(report['saved_with_tensorflow'])}:"
    f" {_counts(report['rules'])}.</p>",
    "<h2>Rules</h2>",
    _rules(report["rules"]),
    "<h2>Inputs and outputs</h2>",
    _table(
      ("", "name", "dtype", "shape"),
      [
        (what, html.escape(t["name"]), t["dtype"], str(t["shape"]))
        for what in ("inputs", "outputs")
        for t in report[what]
      ],
    ),
    "<h2>Hyperparameters</h2>",
    _table(
      ("argument", "default"),
      [
        (html.escape(key), str(value))
        for key, value in report["hyperparameters"].items()
      ],
    ),
    f"<h2>Variables</h2><p>{len(variables)} variables,"
    f" {sum(v['trainable'] for v in variables)} of them trainable,"
    f" {_amount(sum(v['bytes'] for v in variables))}. The largest:</p>",
    _chart(
      [(f"{v['name']} {v['shape']}", v["bytes"]) for v in variables], _amount
    ),
    "<h2>Size</h2>",
    _chart(list(report["bytes"].items()), _amount),
    "<h2>Ops</h2>",
    _chart(list(report["ops"].items()), str),
  ]
  return _PAGE.replace("TITLE", html.escape(name)).replace(
    "BODY", "\n".join(body)
  )


def _counts(judged: Sequence[Mapping[str, str]]) -> str:
  verdicts = [rule["verdict"] for rule in judged]
  return ", ".join(
    f"{verdicts.count(verdict)} {verdict}"
    for verdict in (
      findings_lib.PASS,
      findings_lib.FAIL,
      findings_lib.EXCEPTED,
      findings_lib.NOT_DECIDABLE,
      findings_lib.NOT_APPLICABLE,
    )
  )


def _rules(judged: Sequence[Mapping[str, str]]) -> str:
  return _table(
    ("", "rule", "level", "what it asks for", "found"),
    [
      (
        f'<span class="{rule["verdict"].replace(" ", "-")}">'
        f"{rule['verdict']}</span>",
        rule["rule"],
        rule["level"],
        html.escape(rule["text"]),
        html.escape(rule["found"])
        + (f"<br><b>Fix:</b> {html.escape(rule['fix'])}" * bool(rule["fix"])),
      )
      for rule in judged
    ],
  )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  if not rows:
    return "<p>None.</p>"
  head = "".join(f"<th>{cell}</th>" for cell in header)
  lines = [
    "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    for row in rows
  ]
  return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _chart(rows: Sequence[tuple[str, int]], shown: Any) -> str:
  """Makes a bar for each of the first rows, and one for all others."""
  rows = list(rows)
  if len(rows) > _LONGEST:
    rest = rows[_LONGEST:]
    others = (f"{len(rest)} others", sum(value for _, value in rest))
    rows = [*rows[:_LONGEST], others]
  largest = max((value for _, value in rows), default=0) or 1
  return _table(
    ("", "", ""),
    [
      (
        html.escape(name),
        shown(value),
        f'<div class="bar" style="width:{300 * value / largest:.1f}px"></div>',
      )
      for name, value in rows
    ],
  )


def _amount(size: int) -> str:
  for unit in ("B", "kB", "MB"):
    if size < 1000:
      return f"{size:.3g} {unit}"
    size /= 1000
  return f"{size:.3g} GB"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto;
  padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0;
  overflow-wrap: anywhere }
td:not(:last-child) { min-width: 4em }
tr + tr td { border-top: 1px solid #eee }
span { white-space: nowrap; font-weight: 600 }
.pass { color: #17692b }
.fail { color: #b3261e }
.excepted { color: #8a5a00 }
.not-applicable, .not-decidable { color: #666; font-weight: 400 }
.bar { background: #3b6ea5; height: .8em; margin-top: .35em; min-width: 1px }
</style>
BODY
</html>
"""
