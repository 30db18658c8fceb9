"""Computes ratios of measurements, and shows them in tables and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
import statistics
from typing import Any

import numpy as np
from rich import box
from rich import table

from integration_tests.benchmarks import subjects

# Both sides compute in float32 with the same weights, but may sum in different
# orders. The verification of exports has the same tolerance.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Quantity:
  """A ratio of two sides.

  Attributes:
    measure: Name of the measurement.
    key: Name of the value in its samples.
    description: Title of its row.
    unit: Unit of the value.
    side: The side in the numerator.
    other: The side in the denominator.
    more: Whether a larger ratio is better.
    target: Target of the ratio to the live model or to Model Garden; None: the
      ratio is only reported.
    targets: Targets of single subjects, which replace `target`.
  """

  measure: str
  key: str
  description: str
  unit: str
  side: str = "ours"
  other: str = "reference"
  more: bool = False
  target: float | None = None
  targets: Mapping[str, float] = dataclasses.field(default_factory=dict)


_VERIFIED = "with --verification=fast"
QUANTITIES = (
  Quantity(
    "export",
    "cpu_s",
    "export: CPU",
    "s",
    targets={"bert_base": 0.5, "resnet50": 0.6},
  ),
  Quantity(
    "export",
    "cpu_s",
    f"export {_VERIFIED}: CPU",
    "s",
    side="ours_verified",
    targets={"bert_base": 0.9, "resnet50": 0.9},
  ),
  Quantity("export", "wall_s", "export: wall", "s"),
  Quantity(
    "export", "wall_s", f"export {_VERIFIED}: wall", "s", side="ours_verified"
  ),
  Quantity(
    "export", "memory_mib", "export: peak of the process", "MiB", target=0.8
  ),
  Quantity(
    "export",
    "memory_mib",
    f"export {_VERIFIED}: peak of the larger process",
    "MiB",
    side="ours_verified",
    target=0.8,
  ),
  Quantity(
    "export",
    "memory_all_mib",
    f"export {_VERIFIED}: peak of both processes together",
    "MiB",
    side="ours_verified",
  ),
  Quantity(
    "export",
    "memory_mib",
    "export: peak against 1.3 x the weights + 0.8 GB",
    "MiB",
    other="limit",
    targets={"bert_3gb": 1.0},
  ),
  Quantity("export", "over_floor", "export: CPU over the floor, share", ""),
  Quantity("export", "pb_kib", "saved_model.pb", "KiB", target=0.25),
  Quantity("export", "all_mib", "all files", "MiB"),
  Quantity("load", "wall_s", "load and first call: wall", "s", target=0.5),
  Quantity("load", "cpu_s", "load and first call: CPU", "s"),
  Quantity("load", "memory_mib", "load and first call: peak", "MiB"),
  Quantity(
    "train",
    "later_per_s",
    "train steps",
    "/s",
    other="live",
    more=True,
    target=0.98,
  ),
  Quantity("train", "later_cpu_s", "train step: CPU", "s", other="live"),
  Quantity("train", "first_s", "train step, the first", "s", other="live"),
  Quantity(
    "train_xla",
    "later_per_s",
    "train steps with XLA",
    "/s",
    other="live",
    more=True,
    target=0.98,
  ),
  Quantity(
    "train_xla",
    "first_s",
    "train step with XLA, the first",
    "s",
    other="live",
    target=1.2,
  ),
  Quantity(
    "train_xla",
    "later_per_s",
    "train steps with XLA, against the reference",
    "/s",
    more=True,
    targets={"bert_4x512": 20, "bert_base": 20, "resnet50": 20},
  ),
  Quantity("inference_1", "later_s", "inference, batch 1: latency", "s"),
  Quantity(
    "inference_32",
    "later_per_s",
    "inference, batch 32: examples",
    "/s",
    more=True,
  ),
)


def differences(
  ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> list[str]:
  """Compares the outputs of two exports for the same input.

  Floats may differ by `TOLERANCE` of the largest value. Other dtypes must be
  equal.

  Returns:
    Descriptions of the differences; empty if the outputs agree.
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
      # `not <=` and not `>`, so that NaN counts as a difference.
      if not np.abs(a - b).max(initial=0) <= TOLERANCE * scale:
        found.append(
          f"{name} by {np.abs(a - b).max():.3g}, of values up to {scale:.3g}"
        )
  return found


def of_turns(
  turns: Sequence[Mapping[str, float]], calls: int = 1, examples: int = 1
) -> dict[str, float]:
  """Summarizes the turns of a process.

  Args:
    turns: The times of the turns, as the process printed them.
    calls: Number of calls, or train steps, per turn.
    examples: Number of examples per call; 1 to count calls.

  Returns:
    Seconds per call: `first_s` in the first turn, and the medians `later_s` and
    `later_cpu_s` of the later turns; and `later_per_s`, examples per second.
  """
  first, *later = turns
  median = statistics.median(turn["wall_s"] for turn in later) / calls
  return {
    "first_s": first["wall_s"] / calls,
    "later_s": median,
    "later_per_s": examples / median,
    "later_cpu_s": statistics.median(turn["cpu_s"] for turn in later) / calls,
  }


def ratios(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Computes the rows of the tables.

  Each ratio is of two samples of the same round. A row has the median, least
  and greatest of the ratios and of both sides.

  Args:
    samples: Mappings with `model`, `measure`, `side`, `round` and `values`.
  """
  values = {
    (s["model"], s["measure"], s["side"], s["round"], key): value
    for s in samples
    for key, value in s["values"].items()
  }
  models = dict.fromkeys(s["model"] for s in samples)
  rounds = sorted({s["round"] for s in samples})
  rows = []
  for model in models:
    for q in QUANTITIES:
      pairs = [
        (
          values.get((model, q.measure, q.side, r, q.key)),
          values.get((model, q.measure, q.other, r, q.key)),
        )
        for r in rounds
      ]
      pairs = [(a, b) for a, b in pairs if a is not None and b]
      if not pairs:
        continue
      ratio = _spread([a / b for a, b in pairs])
      target = q.targets.get(model, q.target)
      family = subjects.SUBJECTS[model].family
      if q.other == "reference" and not subjects.is_model_garden(family):
        target = None
      rows.append(
        {
          "model": model,
          "quantity": q.description,
          "unit": q.unit,
          "ours": _spread([a for a, _ in pairs]),
          "other": _spread([b for _, b in pairs]),
          "other_side": q.other,
          "ratio": ratio,
          "rounds": len(pairs),
          "more_is_better": q.more,
          "target": target,
          "reached": (
            None
            if target is None
            else ratio["median"] >= target
            if q.more
            else ratio["median"] <= target
          ),
        }
      )
  return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
  return {
    "median": statistics.median(values),
    "least": min(values),
    "greatest": max(values),
  }


COLUMNS = ("", "ours", "against", "", "ratio", "spread", "target", "")


def cells(row: Mapping[str, Any]) -> list[str]:
  """Formats a row for a table with `COLUMNS`."""
  unit = row["unit"]
  better = "≥" if row["more_is_better"] else "≤"
  ratio = row["ratio"]
  return [
    row["quantity"],
    f"{_number(row['ours']['median'])} {unit}".strip(),
    f"{_number(row['other']['median'])} {unit}".strip(),
    _other_name(row),
    _number(ratio["median"]),
    f"{_number(ratio['least'])}-{_number(ratio['greatest'])}",
    "" if row["target"] is None else f"{better} {row['target']:g}",
    {None: "", True: "✓", False: "✗"}[row["reached"]],
  ]


def _other_name(row: Mapping[str, Any]) -> str:
  """Returns the name of the side in the denominator."""
  if row["other_side"] != "reference":
    return {"live": "live model", "limit": "limit"}[row["other_side"]]
  return subjects.reference_name(subjects.SUBJECTS[row["model"]].family)


def _number(value: float) -> str:
  """Formats three digits, or all before the decimal point."""
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


ANSWER_COLUMNS = ("program", "--help, s", "a wrong flag, s")


def answers(samples: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns the rows of a table with `ANSWER_COLUMNS`."""
  programs = dict.fromkeys(s["program"] for s in samples)
  rows = []
  for program in programs:
    row = [program]
    for key in ("help_s", "wrong_flag_s"):
      s = _spread([x[key] for x in samples if x["program"] == program])
      row.append(f"{s['median']:.2f} ({s['least']:.2f}-{s['greatest']:.2f})")
    rows.append(row)
  return rows


def tables(
  rows: Sequence[Mapping[str, Any]], answer_samples: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
  """Yields title, columns and cells of a table per model and of the answers."""
  for model in dict.fromkeys(row["model"] for row in rows):
    yield (
      subjects.SUBJECTS[model].description,
      COLUMNS,
      [cells(row) for row in rows if row["model"] == model],
    )
  if answer_samples:
    yield "Time to answer", ANSWER_COLUMNS, answers(answer_samples)


def rich_table(
  title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]
) -> table.Table:
  """Returns a table for the terminal."""
  result = table.Table(
    title=title, box=box.SIMPLE, title_justify="left", pad_edge=False
  )
  for column in columns:
    result.add_column(column, justify="left" if not column else "right")
  for line in lines:
    result.add_row(*line)
  return result


def markdown(
  title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]
) -> str:
  """Returns a table as Markdown."""
  return "\n".join(
    [
      f"## {title}",
      "",
      *(
        f"| {' | '.join(line)} |"
        for line in [columns, ["---"] * len(columns), *lines]
      ),
      "",
    ]
  )


def plot(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Plots the ratios with spreads and targets, one panel per model."""
  os.environ.setdefault("MPLBACKEND", "agg")
  from matplotlib import pyplot as plt
  from matplotlib import ticker

  by_model = {
    model: [row for row in rows if row["model"] == model]
    for model in dict.fromkeys(row["model"] for row in rows)
  }
  figure, axes = plt.subplots(
    len(by_model),
    figsize=(10, 1 + sum(0.3 * len(r) + 0.8 for r in by_model.values())),
    height_ratios=[len(r) + 1 for r in by_model.values()],
    sharex=True,
    squeeze=False,
    layout="constrained",
  )
  colors = {None: "tab:gray", True: "tab:green", False: "tab:red"}
  for ax, (model, shown) in zip(axes[:, 0], by_model.items(), strict=True):
    for y, row in enumerate(shown):
      ratio = row["ratio"]
      ax.errorbar(
        ratio["median"],
        y,
        xerr=[
          [ratio["median"] - ratio["least"]],
          [ratio["greatest"] - ratio["median"]],
        ],
        fmt="o",
        color=colors[row["reached"]],
        capsize=3,
      )
      if row["target"]:
        ax.plot(row["target"], y, "|", color="black", markersize=14)
    ax.axvline(1, color="lightgray", zorder=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_yticks(
      range(len(shown)),
      [
        f"{row['quantity']}{', more is better' * row['more_is_better']}"
        f" ({_other_name(row)})"
        for row in shown
      ],
      fontsize=8,
    )
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.set_title(subjects.SUBJECTS[model].description, loc="left", fontsize=10)
  figure.supxlabel(
    "ours ÷ the other (in brackets): median, least and greatest of the rounds."
    " Black bar: target; green: reached; red: missed.",
    fontsize=8,
  )
  figure.savefig(path, dpi=120)
  plt.close(figure)
