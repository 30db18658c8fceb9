"""Draws the pictures of a card, as deterministic SVG.

The pictures are data URIs, so that a card needs no other file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
import html
import itertools
import math
import re
from typing import Any, NamedTuple

_WIDTH, _ROW, _BOX = 720, 44, 430
_MOST_ROWS, _MOST_SHAPES = 24, 3
_LONGEST = 64  # Characters in a box.
_COLORS = {"training": "#1a5fb4", "validation": "#9a6700"}


class _Block(NamedTuple):
  """Layers that are drawn as one box.

  Attributes:
    names: The paths of the layers; several if consecutive layers are alike.
    shapes: Shapes of the first layer's weights, without biases and scales.
    parameters: The number of parameters of all layers.
  """

  names: tuple[str, ...]
  shapes: tuple[str, ...]
  parameters: int


def image(svg: str, description: str) -> str:
  """Returns a picture as an HTML element, which Markdown allows."""
  data = base64.b64encode(svg.encode()).decode()
  return (
    f'<img src="data:image/svg+xml;base64,{data}"'
    f' alt="{html.escape(description)}">'
  )


def architecture(model: Mapping[str, Any]) -> str:
  """Draws the layers from inputs to outputs, with shapes and parameters.

  Args:
    model: The content of `assets.extra/model.json`.
  """
  blocks = _blocks(model["variables"])
  largest = max((b.parameters for b in blocks), default=1)
  first, last = (
    _end([f"{t['name']} {_shape(t['shape'])}" for t in model[kind]])
    for kind in ("inputs", "outputs")
  )
  height = _ROW * (len(blocks) + 3)
  parts = [_text("parameters", _WIDTH - 10, 22, "end", fill="#59636e")]
  rows = [first, *map(_row, blocks), last]
  for i, (title, shapes, parameters) in enumerate(rows):
    top, middle = _ROW * i + 30, _BOX // 2
    fill = "#dbe9f9" if parameters is None else "#f6f8fa"
    parts.append(
      f'<rect x="10" y="{top}" width="{_BOX - 10}" height="{_ROW - 10}"'
      f' rx="4" fill="{fill}" stroke="#8c959f"/>'
    )
    lines = [title, shapes] if shapes else [title]
    for line, y in zip(lines, (12, 26) if shapes else (17,), strict=True):
      parts.append(_text(_short(line), middle, top + y, "middle"))
    if i:
      parts.append(
        f'<path d="M{middle} {top - 10}v7m-3 -3l3 4l3 -4" fill="none"'
        ' stroke="#59636e"/>'
      )
    if parameters:
      width = max(150 * parameters / largest, 1)
      parts.append(
        f'<rect x="{_BOX + 20}" y="{top + 10}" width="{width:.1f}"'
        f' height="14" fill="{_COLORS["training"]}"/>'
      )
      parts.append(_text(f"{parameters:,}", _WIDTH - 10, top + 17, "end"))
  return _svg(height, parts)


def curves(epochs: Sequence[Mapping[str, float]]) -> str:
  """Draws each metric over the epochs, in training and in validation.

  Args:
    epochs: The metrics of each epoch. Names of validation metrics begin with
      `val_`.
  """
  names = sorted({n.removeprefix("val_") for e in epochs for n in e})
  parts = []
  for i, name in enumerate(names):
    left, top = i % 2 * _WIDTH // 2, i // 2 * 190
    lines = {
      label: [e.get(key, math.nan) for e in epochs]
      for label, key in (("training", name), ("validation", f"val_{name}"))
      if any(key in e for e in epochs)
    }
    parts += _chart(name, lines, left, top)
  return _svg(-(-len(names) // 2) * 190, parts)


def _chart(
  name: str, lines: Mapping[str, Sequence[float]], left: int, top: int
) -> Iterator[str]:
  """Yields the elements of a chart of 360 by 190 pixels."""
  values = [v for line in lines.values() for v in line if math.isfinite(v)]
  low, high = min(values, default=0), max(values, default=0)
  last = max(map(len, lines.values()))
  low, high = (low, high) if low < high else (low - 0.5, low + 0.5)
  yield _text(name, left + 60, top + 14, "start", font_weight="bold")
  for value, y in ((high, 30), (low, 150)):
    yield (
      f'<path d="M{left + 60} {top + y}h285" stroke="#d1d9e0" fill="none"/>'
    )
    yield _text(f"{value:.4g}", left + 54, top + y, "end")
  for epoch in {1, last}:
    x = left + 60 + 285 * (epoch - 1) / max(last - 1, 1)
    anchor = "start" if epoch == 1 else "end"
    label = "epoch 1" if epoch == 1 else str(epoch)
    yield _text(label, round(x), top + 166, anchor)
  for i, (label, line) in enumerate(lines.items()):
    points = [
      (
        left + 60 + 285 * n / max(last - 1, 1),
        top + 150 - 120 * (value - low) / (high - low),
      )
      for n, value in enumerate(line)
      if math.isfinite(value)
    ]
    color = _COLORS[label]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield (
      f'<polyline points="{path}" fill="none" stroke="{color}"'
      ' stroke-width="2"/>'
    )
    if last == 1 and points:
      yield f'<circle cx="{left + 60}" cy="{points[0][1]:.1f}" r="3"/>'
    yield _text(label, left + 345 - 80 * i, top + 14, "end", fill=color)


def _blocks(variables: Sequence[Mapping[str, Any]]) -> list[_Block]:
  """Groups variables by layer, and consecutive layers that are alike."""
  paths = [variable["name"].split("/") for variable in variables]
  siblings: dict[tuple[Any, ...], set[str]] = {}
  for path in paths:
    for i, part in enumerate(path[:-1]):
      key = (*path[:i], None, _unnumbered(part))
      siblings.setdefault(key, set()).add(part)
  groups: dict[str, list[tuple[str, Sequence[int]]]] = {}
  for path, variable in zip(paths, variables, strict=True):
    depth = next(
      (
        i + 1
        for i, part in enumerate(path[:-1])
        if len(siblings[*path[:i], None, _unnumbered(part)]) > 1
      ),
      max(len(path) - 1, 1),
    )
    rest = _unnumbered("/".join(path[depth:]))
    group = groups.setdefault("/".join(path[:depth]), [])
    group.append((rest, variable["shape"]))
  alike = itertools.groupby(
    groups.items(), lambda g: (_unnumbered(g[0]), sorted(g[1]))
  )
  blocks = [_block(dict(found)) for _, found in alike]
  if len(blocks) > _MOST_ROWS:
    kinds = itertools.groupby(groups.items(), lambda g: _unnumbered(g[0]))
    blocks = [_block(dict(found)) for _, found in kinds]
  return blocks[:_MOST_ROWS]


def _block(groups: Mapping[str, Sequence[tuple[str, Sequence[int]]]]) -> _Block:
  first = next(iter(groups.values()))
  shapes = [_shape(shape) for _, shape in first]
  large = [s for (_, shape), s in zip(first, shapes, strict=True) if shape[1:]]
  return _Block(
    tuple(groups),
    tuple(large or shapes[:1]),
    sum(math.prod(shape) for group in groups.values() for _, shape in group),
  )


def _row(block: _Block) -> tuple[str, str, int]:
  """Returns the two lines in a block's box, and its parameter count."""
  title, *others = block.names
  if others:
    number = re.search(r"\d*$", others[-1])[0]
    title = f"{len(block.names)} times: {title} … {number}"
  shapes = ", ".join(block.shapes[:_MOST_SHAPES])
  more = ", …" if len(block.shapes) > _MOST_SHAPES else ""
  return title, shapes + more, block.parameters


def _end(tensors: Sequence[str]) -> tuple[str, str, None]:
  """Returns two lines for the box of inputs or outputs."""
  if len(text := ", ".join(tensors)) <= _LONGEST:
    return text, "", None
  half = -(-len(tensors) // 2)
  return f"{', '.join(tensors[:half])},", ", ".join(tensors[half:]), None


def _unnumbered(path: str) -> str:
  return re.sub(r"_?\d+(?=/|$)", "", path)


def _shape(shape: Sequence[int | None]) -> str:
  return f"[{', '.join('?' if n is None else str(n) for n in shape)}]"


def _short(text: str) -> str:
  return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _text(text: str, x: float, y: float, anchor: str, **more: str) -> str:
  attributes = "".join(
    f' {name.replace("_", "-")}="{value}"' for name, value in more.items()
  )
  return (
    f'<text x="{x}" y="{y}" dy=".35em" text-anchor="{anchor}"{attributes}>'
    f"{html.escape(text)}</text>"
  )


def _svg(height: int, parts: Sequence[str]) -> str:
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}"'
    f' height="{height}" font-family="sans-serif" font-size="12"'
    f' fill="#1f2328"><rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    f"{''.join(parts)}</svg>"
  )
