"""Writes the results of compiling for TPUs into an export."""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import re
from typing import Any

from distribution import publishing
from exporters.conformance import subject as subject_lib
from exporters.reusable import errors
from exporters.reusable import model_card

_ENTRY = "compilation_for_tpus"
_TITLE = "## Compilation for TPUs"


def check(export_dir: str) -> None:
  """Raises an ExportError if the results cannot be written into an export."""
  for name in (subject_lib.CARD, subject_lib.VERIFICATION):
    path = pathlib.Path(export_dir, name)
    if path.is_symlink() or path.parent.is_symlink():
      raise errors.ExportError(f"--record: {path} is a symbolic link.")
    if not path.is_file():
      raise errors.ExportError(
        f"--record: {path} does not exist. The export must be on a local disk,"
        " and exported and verified by this project."
      )
    if not os.access(path.parent, os.W_OK):
      raise errors.ExportError(f"--record: {path.parent} is not writable.")
    about = f"--record: {path}: "
    with errors.of_input(OSError, TypeError, ValueError, about=about):
      text = path.read_text(encoding="utf-8")
      if name == subject_lib.VERIFICATION:
        dict(json.loads(text))


def write(
  export_dir: str, compiler: str, results: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the results into the report and the card, replacing earlier ones.

  Each of the two files is replaced atomically.

  Args:
    export_dir: The export.
    compiler: Name and version of the compiler.
    results: One mapping per compiled step: `topology`, `inputs` (their shapes)
      and `compiles`. If it compiles, also `hbm_bytes`, `hbm_available_bytes`,
      `flops` and `accessed_bytes`, None where unknown; otherwise `fits`, False
      if it needs too much memory.
  """
  path = pathlib.Path(export_dir, subject_lib.VERIFICATION)
  with errors.of_input(ValueError, about=f"Cannot read {path}: "):
    report = dict(json.loads(path.read_text()))
  report[_ENTRY] = {"compiler": compiler, "results": results}
  publishing.write(path, f"{json.dumps(report, indent=2)}\n".encode())

  columns = "result", "inputs of one core", "peak HBM, of", "flops"
  table = model_card.table((*columns, "bytes accessed"), map(_row, results))
  path = pathlib.Path(export_dir, subject_lib.CARD)
  card = path.read_text(encoding="utf-8")
  # A section ends where the next one begins.
  card = re.sub(rf"\n{_TITLE}\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL)
  publishing.write(
    path,
    f"{card.rstrip()}\n\n{_TITLE}\n\nA fine-tuning step (this model in training"
    f" mode, a new head, Adam; float32) was compiled with {compiler}, without a"
    f" TPU. Nothing was run on a TPU.\n\n{table}\n".encode(),
  )


def _row(result: Mapping[str, Any]) -> list[str]:
  """Formats a result for the table of the card."""
  topology = result["topology"]
  inputs = ", ".join(f"`{shape}`" for shape in result["inputs"])
  if not result["compiles"]:
    verdict = "does not compile for" if result["fits"] else "does not fit"
    return [f"{verdict} {topology}", inputs, "", "", ""]
  needed, available = (
    f"{result[key] / 2**20:,.0f} MiB"
    for key in ("hbm_bytes", "hbm_available_bytes")
  )
  figures = (
    "" if result[key] is None else f"{result[key]:.3g}"
    for key in ("flops", "accessed_bytes")
  )
  return [
    *(f"compiles for {topology}", inputs, f"{needed}, {available}"),
    *figures,
  ]
