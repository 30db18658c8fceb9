"""Computes ratios of measurements, and shows them in tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import io
import operator
import os
import statistics
from typing import Any

import numpy as np
from rich import box
from rich import table

from integration_tests.benchmarks import subjects

# Both sides compute in float32 with the same weights, but may sum in different
# orders. The verification of exports has the same tolerance.
TOLERANCE = 1e-5


# Flags of every program whose answers are timed, and their columns.
ANSWERED = {"--help": "--help, s", "--nonsense": "a wrong flag, s"}

_UNITS = {"per_s": "/s", "_s": "s", "_mib": "MiB", "_kib": "KiB", "": ""}
_OTHERS = {"live": "live model", "keras3": "Keras 3 Model.export"}
_VERIFIED = "export with --verification=fast"
# The ratios to report. A key is a measurement with the sides of the numerator
# and the denominator. Each of its ratios has the name of the measured value,
# the title of the row, and a target or None; a dict has the targets of single
# subjects. `_row` drops targets against references other than Model Garden.
# Names end with the unit; only for `per_s` more is better.
_RATIOS = {
  ("export", "ours", "reference"): (
    ("cpu_s", "export: CPU", {"bert_base": 0.5, "resnet50": 0.6}),
    ("wall_s", "export: wall", None),
    ("memory_mib", "export: peak of the process", 0.8),
    ("over_floor", "export: CPU over the floor, share", None),
    ("pb_kib", "saved_model.pb", 0.25),
    ("all_mib", "all files", None),
  ),
  ("export", "ours", "limit"): (
    (
      "memory_mib",
      "export: peak against 1.3 x the weights + 0.8 GB",
      {"bert_3gb": 1.0},
    ),
  ),
  **{
    ("export", source, "limit"): (
      (
        "memory_mib",
        f"export from {title}: peak against 1.3 x the weights + 0.8 GB",
        {"bert_3gb": 1.0},
      ),
    )
    for source, title in {
      "safetensors": "safetensors",
      "h5": "Keras' H5",
      "tf1": "TensorFlow 1",
    }.items()
  },
  ("export", "ours_verified", "reference"): (
    ("cpu_s", f"{_VERIFIED}: CPU", {"bert_base": 0.9, "resnet50": 0.9}),
    ("wall_s", f"{_VERIFIED}: wall", None),
    ("memory_mib", f"{_VERIFIED}: peak of the larger process", 0.8),
    ("memory_all_mib", f"{_VERIFIED}: peak of both processes together", None),
  ),
  ("load", "ours", "reference"): (
    ("wall_s", "load and first call: wall", 0.5),
    ("cpu_s", "load and first call: CPU", None),
    ("memory_mib", "load and first call: peak", None),
  ),
  ("train", "ours", "live"): (
    ("later_per_s", "train steps", 0.98),
    ("later_cpu_s", "train step: CPU", None),
    ("first_s", "train step, the first", None),
  ),
  ("train_xla", "ours", "live"): (
    ("later_per_s", "train steps with XLA", 0.98),
    ("first_s", "train step with XLA, the first", 1.2),
  ),
  ("train_xla", "ours", "reference"): (
    (
      "later_per_s",
      "train steps with XLA, against the reference",
      {"bert_4x512": 20, "bert_base": 20, "resnet50": 20},
    ),
  ),
  **{
    (f"inference_{size}", "ours", other): tuple(
      (f"{value}_s", f"inference, batch {size}: {value}", None)
      for value in ("mean", "p50", "p90", "p99")
    )
    for size in (1, 32)
    for other in ("reference", "keras3")
  },
  ("export", "ours", "keras3"): (
    ("cpu_s", "export: CPU", None),
    ("wall_s", "export: wall", None),
    ("memory_mib", "export: peak of the process", None),
    ("pb_kib", "saved_model.pb", None),
  ),
  ("load", "ours", "keras3"): (
    ("wall_s", "load and first call: wall", None),
    ("cpu_s", "load and first call: CPU", None),
  ),
}


def differences(
  ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> list[str]:
  """Compares the outputs of two exports for the same input.

  Floats may differ by `TOLERANCE` of the largest value; other dtypes must be
  equal. Returns descriptions of the differences, none if the outputs agree.
  """
  if set(ours) != set(reference):
    return [f"outputs {sorted(ours)} and {sorted(reference)}"]
  found = []
  for name in sorted(ours):
    a, b = ours[name], reference[name]
    if a.shape != b.shape or a.dtype != b.dtype:
      found.append(f"{name} is {a.dtype}{a.shape} and {b.dtype}{b.shape}")
    elif a.dtype.kind != "f":
      if not np.array_equal(a, b):
        found.append(f"{name}: {(a != b).mean():.0%} of the values")
    else:
      scale = np.abs(b).max(initial=0)
      # `not <=` instead of `>`, so that NaN counts as a difference.
      if not np.abs(a - b).max(initial=0) <= TOLERANCE * scale:
        found.append(
          f"{name} by {np.abs(a - b).max():.3g}, of values up to {scale:.3g}"
        )
  return found


def of_turns(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Summarizes turns of one train step each.

  Returns:
    `first_s`, seconds of the first step; `later_per_s`, later steps per second;
    and `later_cpu_s`, CPU seconds of a later step. Values of later steps are
    medians.
  """
  first, *later = turns
  return {
    "first_s": first["wall_s"],
    "later_per_s": 1 / statistics.median(turn["wall_s"] for turn in later),
    "later_cpu_s": statistics.median(turn["cpu_s"] for turn in later),
  }


def latency(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Summarizes turns of one call each, except for the first, which traces.

  Returns:
    Seconds per call: `mean_s`; and percentiles, `p50_s`, `p90_s` and `p99_s`.
  """
  seconds = [turn["wall_s"] for turn in turns[1:]]
  percentiles = {
    f"p{p}_s": float(np.percentile(seconds, p)) for p in (50, 90, 99)
  }
  return {"mean_s": statistics.fmean(seconds), **percentiles}


def ratios(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Computes the rows of the tables.

  Samples are mappings with `model`, `measure`, `side`, `round` and `values`.
  Each ratio is between two samples of the same round. A row has the median,
  least and greatest of the ratios and of both sides.
  """
  values = {
    (s["model"], s["measure"], s["side"], s["round"]): s["values"]
    for s in samples
  }
  rounds = sorted({s["round"] for s in samples})
  rows = []
  for model in dict.fromkeys(s["model"] for s in samples):
    for (measure, *sides), quantities in _RATIOS.items():
      for quantity in quantities:
        key = quantity[0]
        pairs = [
          [values.get((model, measure, s, r), {}).get(key) for s in sides]
          for r in rounds
        ]
        pairs = [(a, b) for a, b in pairs if a is not None and b]
        if pairs:
          rows.append(_row(model, sides[1], quantity, pairs))
  return rows


def _row(
  model: str, other: str, quantity: Sequence[Any], pairs: Sequence[Any]
) -> dict[str, Any]:
  """Returns a row, from the values of both sides in each round."""
  key, title, target = quantity
  if isinstance(target, Mapping):
    target = target.get(model)
  if other == "reference":
    other = "Model Garden"
    if subjects.SUBJECTS[model].keras:
      other, target = "--saved_model_format=keras", None
    elif subjects.SUBJECTS[model].family == "mnist_cnn":
      other, target = "tf_keras Model.save", None
  ratio = _spread([a / b for a, b in pairs])
  more = key.endswith("per_s")
  compared = operator.ge if more else operator.le
  return {
    "model": model,
    "quantity": title,
    "unit": next(unit for end, unit in _UNITS.items() if key.endswith(end)),
    "ours": _spread([a for a, _ in pairs]),
    "other": _spread([b for _, b in pairs]),
    "other_side": _OTHERS.get(other, other),
    "ratio": ratio,
    "rounds": len(pairs),
    "more_is_better": more,
    "target": target,
    "reached": None if target is None else compared(ratio["median"], target),
  }


def _spread(values: Sequence[float]) -> dict[str, float]:
  return {
    "median": statistics.median(values),
    "least": min(values),
    "greatest": max(values),
  }


def cells(row: Mapping[str, Any]) -> list[str]:
  """Formats a row of `ratios` for its table."""
  better = "≥" if row["more_is_better"] else "≤"
  ratio = row["ratio"]
  return [
    row["quantity"],
    f"{_number(row['ours']['median'])} {row['unit']}".strip(),
    f"{_number(row['other']['median'])} {row['unit']}".strip(),
    row["other_side"],
    _number(ratio["median"]),
    f"{_number(ratio['least'])}-{_number(ratio['greatest'])}",
    "" if row["target"] is None else f"{better} {row['target']:g}",
    {None: "", True: "✓", False: "✗"}[row["reached"]],
  ]


def _number(value: float) -> str:
  """Formats three digits, or all before the decimal point."""
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tables(
  rows: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> Iterator[table.Table]:
  """Yields a table per model and one of the answers, in Markdown."""
  columns = ("", "ours", "against", "", "ratio", "spread", "target", "")
  for model, shown in _by(rows, "model").items():
    title = subjects.SUBJECTS[model].description
    yield _table(title, columns, map(cells, shown))
  if answers:
    text = "{median:.2f} ({least:.2f}-{greatest:.2f})"
    lines = []
    for program, samples in _by(answers, "program").items():
      seconds = [
        [s["wall_s"] for s in samples if s["flag"] == f] for f in ANSWERED
      ]
      lines.append([program, *(text.format_map(_spread(s)) for s in seconds)])
    yield _table("Time to answer", ("program", *ANSWERED.values()), lines)


def _by(
  rows: Sequence[Mapping[str, Any]], key: str
) -> dict[str, list[Mapping[str, Any]]]:
  """Groups rows by the value of a key, in the order of first occurrence."""
  groups = {}
  for row in rows:
    groups.setdefault(row[key], []).append(row)
  return groups


def _table(
  title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]
) -> table.Table:
  headers = [
    table.Column(column, justify="right" if column else "left")
    for column in columns
  ]
  result = table.Table(
    *headers, title=f"## {title}", box=box.MARKDOWN, title_justify="left"
  )
  for line in lines:
    result.add_row(*line)
  return result


# The lines of the plot of sizes: side, key of its memory, label and color.
_LINES = (
  ("floor", "memory_mib", "floor: import TensorFlow, copy the weights", "#888"),
  ("ours", "memory_mib", "export", "#3b6ea5"),
  (
    "ours_verified",
    "memory_all_mib",
    "export with --verification=fast",
    "#b3701e",
  ),
  ("load", "memory_mib", "load and first call, CPU after imports", "#4f8a4f"),
)
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 735 345">
<style>
  svg {{ color: #222 }} text {{ font: 13px sans-serif; fill: currentColor }}
  path {{ fill: none; stroke-width: 2.5 }}
  .tick {{ stroke: #8886; stroke-width: 1 }} .floor {{ stroke-dasharray: 6 3 }}
  .x {{ text-anchor: middle }} .y {{ text-anchor: end }}
  @media (prefers-color-scheme: dark) {{ svg {{ color: #e6edf3 }} }}
</style>
{}
</svg>
"""


def sizes(
  samples: Sequence[Mapping[str, Any]],
) -> list[tuple[float, list[tuple[float, float]]]]:
  """Returns cost against size: medians of all rounds, smallest model first.

  Returns:
    Parameters of each model, with CPU seconds and MiB of each of `_LINES`.
  """
  measured = [s for s in samples if s["measure"] == "size"]
  found = []
  for of_model in _by(measured, "model").values():
    sides = _by(of_model, "side")

    def median(side: str, key: str, sides: Any = sides) -> float:
      return statistics.median(s["values"][key] for s in sides[side])

    costs = [
      (median(side, "cpu_s"), median(side, memory))
      for side, memory, *_ in _LINES
    ]
    found.append((median("floor", "parameters"), costs))
  return sorted(found)


def sizes_table(samples: Sequence[Mapping[str, Any]]) -> Iterator[table.Table]:
  """Yields a table of `sizes` in Markdown, if any were measured."""
  if found := sizes(samples):
    lines = [
      [
        f"{_number(parameters / 1e6)} M",
        *(f"{seconds:.1f} s, {mib:,.0f} MiB" for seconds, mib in costs),
      ]
      for parameters, costs in found
    ]
    columns = ("parameters", *(line[2] for line in _LINES))
    yield _table("Cost against size: CPU and peak memory", columns, lines)


def sizes_svg(found: Sequence[tuple[float, Any]]) -> str:
  """Plots the result of `sizes`, log-log: CPU and peak memory."""
  parts = []
  millions = [parameters / 1e6 for parameters, _ in found]
  for i, (title, unit) in enumerate(
    (("CPU seconds", 1), ("peak memory, GiB", 2**10))
  ):
    left, right, top, bottom = 45 + 365 * i, 345 + 365 * i, 35, 250
    lines = [[costs[j][i] / unit for _, costs in found] for j in range(4)]
    x = _log_scale(millions, left, right)
    values = [value for line in lines for value in line]
    y = _log_scale(values, bottom, top)
    middle = (left + right) // 2
    parts += [
      f'<text class="x" x="{middle}" y="20">{title}</text>',
      f'<text class="x" x="{middle}" y="286">million parameters</text>',
    ]
    for tick in _ticks(millions, (1,)):
      parts += [
        f'<path class="tick" d="M{x(tick)} {top}V{bottom}"/>',
        f'<text class="x" x="{x(tick)}" y="268">{tick:g}</text>',
      ]
    for tick in _ticks(values, (1, 2, 5)):
      parts += [
        f'<path class="tick" d="M{left} {y(tick)}H{right}"/>',
        f'<text class="y" x="{left - 5}" y="{y(tick) + 4}">{tick:g}</text>',
      ]
    for (side, *_, color), line in zip(_LINES, lines, strict=True):
      points = "L".join(
        f"{x(a)} {y(b)}" for a, b in zip(millions, line, strict=True)
      )
      parts.append(f'<path class="{side}" stroke="{color}" d="M{points}"/>')
  for j, (side, _, name, color) in enumerate(_LINES):
    left, height = 45 + 365 * (j // 2), 310 + 22 * (j % 2)
    parts += [
      f'<path class="{side}" stroke="{color}" d="M{left} {height}h24"/>',
      f'<text x="{left + 30}" y="{height + 4}">{name}</text>',
    ]
  return _SVG.format("\n".join(parts))


def _log_scale(
  values: Sequence[float], start: int, end: int
) -> Callable[[float], int]:
  """Returns a function that maps values to pixels, on a logarithmic scale."""
  low, high = np.log10(min(values)), np.log10(max(values))
  factor = (end - start) / ((high - low) or 1)
  return lambda value: round(start + factor * (np.log10(value) - low))


def _ticks(values: Sequence[float], digits: Sequence[int]) -> list[float]:
  """Returns the powers of ten, times `digits`, among values."""
  ticks = (digit * 10.0**k for k in range(-3, 7) for digit in digits)
  return [t for t in ticks if min(values) <= t <= max(values)]


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
  """Plots the ratios with spreads and targets, one panel per model, as PNG."""
  os.environ.setdefault("MPLBACKEND", "agg")
  from matplotlib import pyplot as plt
  from matplotlib import ticker

  by_model = _by(rows, "model")
  figure, axes = plt.subplots(
    len(by_model),
    figsize=(10, 1 + sum(0.3 * len(r) + 0.8 for r in by_model.values())),
    height_ratios=[len(r) + 1 for r in by_model.values()],
    sharex=True,
    squeeze=False,
    layout="constrained",
  )
  color_of = {None: "tab:gray", True: "tab:green", False: "tab:red"}
  for ax, (model, shown) in zip(axes[:, 0], by_model.items(), strict=True):
    ax.axvline(1, color="lightgray", zorder=0)
    for y, row in enumerate(shown):
      ratio, color = row["ratio"], color_of[row["reached"]]
      ax.plot([ratio["least"], ratio["greatest"]], [y, y], color=color)
      ax.plot(ratio["median"], y, "o", color=color)
      if row["target"] is not None:
        ax.plot(row["target"], y, "k|", markersize=14)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    labels = [
      f"{row['quantity']}{', more is better' * row['more_is_better']}"
      f" ({row['other_side']})"
      for row in shown
    ]
    ax.set_yticks(range(len(shown)), labels, fontsize=8)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.set_title(subjects.SUBJECTS[model].description, loc="left", fontsize=10)
  figure.supxlabel(
    "ours ÷ the other (in brackets): median, least and greatest of the rounds."
    " Black bar: target; green: reached; red: missed.",
    fontsize=8,
  )
  file = io.BytesIO()
  figure.savefig(file, dpi=120)
  plt.close(figure)
  return file.getvalue()
