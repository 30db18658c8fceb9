r"""Draws which folders of this repository import which, as docs/imports.svg.

Run it in the root of the repository:

  python3 integration_tests/imports.py > docs/imports.svg
"""

import ast
from collections.abc import Iterator, Mapping
import itertools
import pathlib
import re

_FOLDERS = (
  *("data", "distribution", "models", "exporters", "exporters/conformance"),
  *("exporters/phones", "exporters/packages", "exporters/reusable"),
  *("exporters/tpu", "integration_tests", "integration_tests/benchmarks"),
)
_OF_TESTS = re.compile("_test.py$|mutants")
_WIDTH, _HEIGHT, _GAP = 200, 34, 56

_STYLE = """<style>
  svg { color: #222 } rect { fill: #e8eef5; stroke: #3b6ea5 }
  text { font: 14px sans-serif; fill: currentColor; text-anchor: middle }
  path { fill: none; stroke: #888 }
  @media (prefers-color-scheme: dark) {
    svg { color: #e6edf3 } rect { fill: #1c2733; stroke: #79a8d8 }
  }
</style>"""


def edges(root: str = ".") -> set[tuple[str, str]]:
  """Returns pairs of folders: one, and another that it imports."""
  found = set()
  for folder in _FOLDERS:
    for path in pathlib.Path(root, folder).rglob("*.py"):
      here = _folder(path.relative_to(root).parent)
      if here == folder and not _OF_TESTS.search(path.name):
        found |= {(folder, other) for other in _imported(path)}
  return {(a, b) for a, b in found if a != b and b}


def _folder(path: pathlib.PurePath) -> str:
  """Returns the innermost folder of `_FOLDERS` that has a path, or ""."""
  inside = [str(p) for p in (path, *path.parents) if str(p) in _FOLDERS]
  return inside[0] if inside else ""


def _imported(path: pathlib.Path) -> Iterator[str]:
  """Yields the folders of the modules that a file imports."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom) and node.module:
      yield _folder(pathlib.PurePath(node.module.replace(".", "/")))
    # A process in the sandbox imports the module with this name.
    elif isinstance(node, ast.Constant) and re.fullmatch(
      r"exporters\.\w+\.\w+", str(node.value)
    ):
      yield _folder(pathlib.PurePath(node.value.replace(".", "/")))


def _reach(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
  """Returns the pairs of folders that a path of imports connects."""
  reach = set(pairs)
  for middle, a, b in itertools.product(_FOLDERS, repeat=3):
    if (a, middle) in reach and (middle, b) in reach:
      reach.add((a, b))
  return reach


def _levels(pairs: set[tuple[str, str]]) -> Mapping[str, int]:
  """Returns the row of each folder: below all folders that import it."""
  levels = dict.fromkeys(_FOLDERS, 0)
  for _ in _FOLDERS:
    for a, b in pairs:
      levels[b] = max(levels[b], levels[a] + 1)
  return levels


def svg(pairs: set[tuple[str, str]]) -> str:
  """Draws the folders, without imports that another path implies."""
  reach = _reach(pairs)
  direct = {
    (a, b)
    for a, b in pairs
    if not any((a, m) in reach and (m, b) in reach for m in _FOLDERS)
  }
  levels = _levels(pairs)
  rows = [
    [folder for folder in _FOLDERS if levels[folder] == level]
    for level in range(max(levels.values()) + 1)
  ]
  width = max(map(len, rows)) * (_WIDTH + 30)
  places, boxes = {}, []
  for level, row in enumerate(rows):
    for i, folder in enumerate(row):
      x = width * (2 * i + 1) // (2 * len(row))
      y = 20 + level * (_HEIGHT + _GAP)
      places[folder] = x, y
      boxes.append(
        f'<rect x="{x - _WIDTH // 2}" y="{y}" width="{_WIDTH}"'
        f' height="{_HEIGHT}" rx="6"/><text x="{x}" y="{y + 22}">{folder}/'
        "</text>"
      )
  lines = []
  for a, b in sorted(direct):
    (x, y), (x2, y2) = places[a], places[b]
    y += _HEIGHT
    lines.append(f'<path d="M{x} {y} C{x} {y + 30} {x2} {y2 - 30} {x2} {y2}"/>')
  height = len(rows) * (_HEIGHT + _GAP)
  content = "\n".join([_STYLE, *lines, *boxes])
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">\n'
    f"{content}\n</svg>"
  )


if __name__ == "__main__":
  print(svg(edges()))
