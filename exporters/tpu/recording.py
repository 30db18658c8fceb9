"""Records in an export the results of compiling it for TPUs."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from exporters.reusable import errors
from exporters.reusable import model_json


def check(export_dir: str) -> None:
  """Raises an ExportError if the results cannot be written into an export."""
  for path in model_json.contents(export_dir, model_json.read(export_dir)):
    is_link = path.is_symlink() or path.parent.is_symlink()
    if is_link or (path.exists() and not path.is_file()):
      raise errors.ExportError(
        f"--record: {path} is a symbolic link or not a file."
      )
    if not os.access(path.parent, os.W_OK):
      raise errors.ExportError(f"--record: {path.parent} is not writable.")


def write(
  export_dir: str, compiler: str, results: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the results into `model.json` and the card, replacing earlier ones.

  Both files are replaced, or none.

  Args:
    export_dir: The export.
    compiler: Name and version of the compiler.
    results: One mapping per compiled step: `topology`, `inputs` (their shapes)
      and `compiles`. If it compiles, also `hbm_bytes`, `hbm_available_bytes`,
      `flops` and `accessed_bytes`, None where unknown; otherwise `fits`, False
      if it needs too much memory.
  """
  found = {"compiler": compiler, "results": results}
  described = model_json.read(export_dir)
  model_json.write(export_dir, {**described, "compilation_for_tpus": found})
