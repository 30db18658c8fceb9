"""Writes into an export what the compiler of TPUs has said of it."""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import re
from typing import Any

from exporters.conformance import subject as subject_lib
from exporters.reusable import errors
from exporters.reusable import model_card

_ENTRY = "compilation_for_tpus"
_TITLE = "## Compilation for TPUs"


def check(export_dir: str) -> None:
  """Raises an ExportError if nothing can be written into an export."""
  for name in (subject_lib.CARD, subject_lib.VERIFICATION):
    path = pathlib.Path(export_dir, name)
    if not path.is_file():
      raise errors.ExportError(
        f"--record: {path} does not exist. Only what this project has exported"
        " and verified, on a local disk, can be written into."
      )
    if not os.access(path.parent, os.W_OK):
      raise errors.ExportError(f"--record: {path.parent} cannot be written to.")


def write(
  export_dir: str, compiler: str, results: Sequence[Mapping[str, Any]]
) -> None:
  """Writes results in place of earlier ones, into the report and the card.

  Each of the two files is replaced in one step.

  Args:
    export_dir: The export.
    compiler: Name and version.
    results: For each step that was compiled: `topology`; `inputs`, shapes;
      `compiles`; where it does not `fits`, whether the memory is not why; and
      where it does `hbm_bytes`, `hbm_available_bytes`, `flops` and
      `accessed_bytes`, None where it is not told.
  """
  path = pathlib.Path(export_dir, subject_lib.VERIFICATION)
  report = json.loads(path.read_text())
  report[_ENTRY] = {"compiler": compiler, "results": results}
  _replace(path, json.dumps(report, indent=2) + "\n")

  table = model_card.table(
    (
      "result",
      "inputs of one core",
      "HBM at most, of",
      "flops",
      "bytes accessed",
    ),
    (
      (
        f"{_verdict(r)} {r['topology']}",
        ", ".join(f"`{shape}`" for shape in r["inputs"]),
        *(
          (
            f"{r['hbm_bytes'] / 2**20:,.0f} MiB,"
            f" {r['hbm_available_bytes'] / 2**20:,.0f} MiB",
            _figure(r["flops"]),
            _figure(r["accessed_bytes"]),
          )
          if r["compiles"]
          else ("", "", "")
        ),
      )
      for r in results
    ),
  )
  path = pathlib.Path(export_dir, subject_lib.CARD)
  card = path.read_text(encoding="utf-8")
  # It ends where the next section begins.
  card = re.sub(rf"\n{_TITLE}\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL)
  _replace(
    path,
    f"{card.rstrip()}\n\n{_TITLE}\n\nA fine-tuning step (this model in training"
    " mode, a new head, Adam; float32) was given to the compiler of TPUs,"
    f" {compiler}, on a machine without one. Nothing was run on a TPU.\n\n"
    f"{table}\n",
  )


def _verdict(result: Mapping[str, Any]) -> str:
  if result["compiles"]:
    return "compiles for"
  return "does not compile for" if result["fits"] else "does not fit"


def _figure(value: float | None) -> str:
  return "" if value is None else f"{value:.3g}"


def _replace(path: pathlib.Path, text: str) -> None:
  new = path.with_name(f".{path.name}.new")
  new.write_text(text, encoding="utf-8")
  new.replace(path)
