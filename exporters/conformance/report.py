"""The result of checking a SavedModel, as data and as a page of HTML."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import html
import os
from typing import Any

from etils import epy

from exporters.conformance import findings as findings_lib
from exporters.reusable import pages

# Only what collects needs these. They import TensorFlow.
with epy.lazy_imports():
  import tensorflow as tf

  from exporters.conformance import subject as subject_lib
  from exporters.reusable import comparison

_LONGEST = 20  # Rows of a chart.


def collect(subject: subject_lib.Subject) -> dict[str, Any]:
  """Collects what is known about a SavedModel besides findings, for JSON."""
  return {
    "kind": subject.kind.name,
    "saved_with_tensorflow": subject.graph.meta_info_def.tensorflow_version,
    "suspicious": subject.suspicious,
    "claims": subject.claims,
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
      "name": name
      if name != comparison.ONLY
      else only or getattr(spec, "name", ""),
      "dtype": spec.dtype.name,
      "shape": None if spec.shape.rank is None else spec.shape.as_list(),
    }
    for name, spec in comparison.named(structure).items()
    if isinstance(spec, tf.TypeSpec)
  ]


def _variables(subject: subject_lib.Subject) -> list[dict[str, Any]]:
  """Lists the variables of the SavedModel, the largest first."""
  variables = [
    (node.variable, tf.dtypes.as_dtype(node.variable.dtype))
    for node in subject.graph.object_graph_def.nodes
    if node.HasField("variable")
  ]
  found = [
    {
      "name": variable.name,
      "dtype": dtype.name,
      "shape": None
      if variable.shape.unknown_rank
      else [dim.size for dim in variable.shape.dim],
      "trainable": variable.trainable,
      "bytes": (tf.TensorShape(variable.shape).num_elements() or 0)
      * dtype.size,
    }
    for variable, dtype in variables
  ]
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
    report: What `collect` returns, with `saved_model_dir` and `rules`.
  """
  title = os.path.basename(os.path.normpath(report["saved_model_dir"]))
  verdicts = collections.Counter(rule["verdict"] for rule in report["rules"])
  counts = ", ".join(f"{verdicts[v]} {v}" for v in findings_lib.VERDICTS)
  variables = report["variables"]
  columns = ("verdict", "rule", "level", "text", "found", "fix")
  body = [
    f"<h1>{html.escape(title)}</h1>",
    f"<p>A SavedModel of kind <b>{html.escape(report['kind'])}</b>, saved with"
    f" TensorFlow {html.escape(report['saved_with_tensorflow'])}:"
    f" {counts}.</p>",
    "<h2>Rules</h2>",
    _table(columns, [[rule[c] for c in columns] for rule in report["rules"]]),
    "<h2>Claims of its exporter, not checked</h2>",
    f"<p>Compared with the live model: "
    f"{html.escape(', '.join(report['claims']) or 'nothing')}.</p>",
    "<h2>Inputs and outputs</h2>",
    _table(
      ("", "name", "dtype", "shape"),
      [
        (what, t["name"], t["dtype"], str(t["shape"]))
        for what in ("inputs", "outputs")
        for t in report[what]
      ],
    ),
    "<h2>Hyperparameters</h2>",
    _table(
      ("argument", "default"),
      [(name, str(v)) for name, v in report["hyperparameters"].items()],
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
  return pages.page(title, body)


def _table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
  """Makes a table of texts and of bars, whose length is the share of 1."""
  if not rows:
    return "<p>None.</p>"
  head = "".join(f"<th>{cell}</th>" for cell in header)
  lines = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
  return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _cell(value: str | float) -> str:
  if isinstance(value, float):
    width = f"width:{300 * value:.1f}px"
    return f'<td><div class="bar" style="{width}"></div></td>'
  style = value.replace(" ", "-") if value in findings_lib.VERDICTS else ""
  return f'<td class="{style}">{html.escape(value)}</td>'


def _chart(rows: Sequence[tuple[str, int]], shown: Callable[[int], str]) -> str:
  """Makes a bar for each of the first rows, and one for all others."""
  if rest := rows[_LONGEST:]:
    others = (f"{len(rest)} others", sum(value for _, value in rest))
    rows = [*rows[:_LONGEST], others]
  largest = max((value for _, value in rows), default=0) or 1
  return _table(
    ("", "", ""), [(name, shown(v), v / largest) for name, v in rows]
  )


def _amount(size: int) -> str:
  for unit in ("B", "kB", "MB"):
    if size < 1000:
      return f"{size:.3g} {unit}"
    size /= 1000
  return f"{size:.3g} GB"
