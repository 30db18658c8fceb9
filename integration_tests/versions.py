r"""Tries an export in environments with older and newer TensorFlow.

It prints the differences from the locked TensorFlow, as a table:

  bazel run //integration_tests:versions -- --saved_model_dir=DIR
  bazel run //integration_tests:versions -- --saved_model_dir=DIR --version=2.15
  bazel run //integration_tests:versions -- \
    --saved_model_dir=DIR --keep_environments --environments_dir=DIR2

uv makes each environment, which is deleted afterwards. In it, another process
loads the export, compares outputs, gradients and losses, fine-tunes the export,
and saves and loads the result. docs/versions.md has the table. An environment
needs 2 GB, and some minutes of downloading.
"""

from __future__ import annotations

from collections.abc import Iterable
import datetime
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from absl import flags

from distribution import copies
from distribution import errors
from distribution import formats
from distribution import programs
from distribution import sandbox
from distribution import scratch

# The newest release of each version is tried. 2.13 is the oldest that saves
# like this project's TensorFlow. tf-keras exists since 2.14.
_VERSIONS = [f"2.{minor}" for minor in range(13, 22)]
_TOLERANCE = 1e-4  # Of differences, as shares of the largest value.
_COMPARED = ("outputs", "outputs in training", "losses", "gradients")

_SAVED_MODEL_DIR = flags.DEFINE_string(
  "saved_model_dir", None, "The export; none with strings as inputs."
)
_VERSION = flags.DEFINE_multi_string(
  "version",
  _VERSIONS,
  "Versions of TensorFlow, such as 2.15. Can be repeated.",
)
_ENVIRONMENTS_DIR = flags.DEFINE_string(
  "environments_dir",
  None,
  "Where the environments are made. The default is a temporary directory.",
)
_KEEP = flags.DEFINE_bool(
  "keep_environments",
  False,
  "Keep what is in --environments_dir, for the next run.",
)
_SANDBOX = flags.DEFINE_bool(
  "sandbox",
  True,
  "Load the export in processes that can read nothing else, write nothing and"
  " open no connection. With --nosandbox they have your rights.",
)
_FOLLOW_LINKS = flags.DEFINE_bool("follow_links", False, copies.FOLLOW_LINKS)
_UV = flags.DEFINE_string("uv", None, "Path of uv.")


def packages(version: str) -> list[str]:
  """Returns the packages of an environment with a version of TensorFlow."""
  if version == "2.13":
    others = ["tensorflow-hub==0.15.0"]  # Later ones need tf-keras.
  else:
    others = ["tensorflow-hub==0.16.1", f"tf-keras=={version}.*"]
  return [f"tensorflow=={version}.*", *others, "setuptools<80.9"]


class _Export(NamedTuple):
  """An export: its directory, a copy of it, and the size of that in bytes."""

  directory: str
  copy_dir: str
  size: int


def _observe(
  python: str, export: _Export, record: str, mode: str
) -> dict[str, Any]:
  """Runs `of_version` with an interpreter, in the sandbox."""
  limits = sandbox.limits(export.size, None, None)
  with sandbox.started(
    "integration_tests.of_version",
    sandbox.Limits(20 * limits.seconds, 2 * limits.memory),
    python=python,
    readable=[export.copy_dir],
    writable=[os.path.dirname(record)],
    sandboxed=_SANDBOX.value,
    names={export.copy_dir: export.directory},
  ) as ask:
    try:
      return ask([export.copy_dir, record, mode])
    except sandbox.SandboxError as e:
      return {"problem": f"{e}"[:200]}


def _environment(uv: str, directory: str, version: str) -> str:
  """Makes an environment unless it exists; returns its interpreter."""
  python = os.path.join(directory, "bin", "python")
  if os.path.exists(os.path.join(directory, "whole")):
    return python
  for command in (
    ["venv", "--quiet", "--python", sys.executable, directory],
    ["pip", "install", "--quiet", "--python", python, *packages(version)],
  ):
    result = subprocess.run(
      scratch.tied([uv, *command]), capture_output=True, text=True
    )
    if result.returncode or not os.path.exists(python):
      said = " ".join(result.stderr.split())[:400] or "it made no environment"
      raise errors.InputError(f"uv cannot make TensorFlow {version}: {said}")
  pathlib.Path(directory, "whole").touch()
  return python


def row(found: dict[str, Any]) -> tuple[bool, list[str]]:
  """Returns whether all results are right, and the cells of a table row."""
  if "problem" in found:
    return False, ["—", *["✗"] * len(_COMPARED), found["problem"], "✗"]
  cells = [found["keras"]]
  good = True
  for kind in _COMPARED:
    difference = float(found[kind])  # NaN is sent as a string.
    is_right = difference <= _TOLERANCE
    good &= is_right
    cells.append(f"{'' if is_right else '✗ '}{difference:.1g}")
  first, *_, last = map(float, found["fine_tuning"])
  trains = last < first and found["moved"] == found["variables"]
  difference = float(found["saved again"])
  again = difference <= _TOLERANCE
  cells += [
    f"{'' if trains else '✗ '}{first:.2f} to {last:.2f},"
    f" {found['moved']} of {found['variables']} moved",
    "✓" if again else f"✗ {difference:.1g}",
  ]
  return good and trains and again, cells


def try_versions(
  export: _Export,
  versions: Iterable[str],
  uv: str,
  environments_dir: str,
  record: str,
  *,
  keep: bool,
) -> bool:
  """Prints the table; returns whether the export works in all versions."""
  reference = _observe(sys.executable, export, record, "record")
  if "problem" in reference:
    raise errors.InputError(f"{export.directory}: {reference['problem']}")
  print(
    f"{os.path.basename(export.directory)}, compared with TensorFlow"
    f" {reference['tensorflow']} on {datetime.date.today()}:\n"
  )
  titles = ["TensorFlow", "Keras", *_COMPARED, "loss of fine-tuning", "saved"]
  print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
  good = True
  for version in versions:
    directory = os.path.join(environments_dir, version)
    try:
      python = _environment(uv, directory, version)
      found = _observe(python, export, record, "compare")
    except errors.InputError as e:
      found = {"problem": str(e)}
    finally:
      if not keep and os.path.exists(os.path.join(directory, "pyvenv.cfg")):
        shutil.rmtree(directory, ignore_errors=True)
    is_right, cells = row(found)
    good &= is_right
    name = found.get("tensorflow", version)
    print(f"| {' | '.join([name, *cells])} |", flush=True)
  return good


def main() -> None:
  """Runs the program with the values of its flags."""
  saved_model_dir = formats.absolute(_SAVED_MODEL_DIR.value)
  formats.check_saved_model(saved_model_dir)
  if _SANDBOX.value and (lacking := sandbox.missing()):
    raise errors.InputError(f"Nothing is loaded: {lacking}. Or: --nosandbox.")
  uv = os.path.abspath(os.path.expanduser(_UV.value))
  if not shutil.which(uv):
    raise errors.InputError(f"--uv={_UV.value} is no program.")
  with (
    copies.copied(saved_model_dir, follow_links=_FOLLOW_LINKS.value) as copy,
    tempfile.TemporaryDirectory() as scratch_dir,
    tempfile.TemporaryDirectory() as record_dir,
  ):
    directory = formats.absolute(_ENVIRONMENTS_DIR.value) or scratch_dir
    formats.check_output("environments_dir", directory)
    os.makedirs(directory, exist_ok=True)
    good = try_versions(
      _Export(saved_model_dir, *copy),
      _VERSION.value,
      uv,
      directory,
      os.path.join(record_dir, "record.npz"),
      keep=_KEEP.value,
    )
  sys.exit(0 if good else 1)


if __name__ == "__main__":
  flags.mark_flags_as_required(["saved_model_dir", "uv"])
  flags.register_multi_flags_validator(
    ["environments_dir", "keep_environments"],
    lambda values: (
      bool(values["environments_dir"]) or not values["keep_environments"]
    ),
    "--keep_environments needs --environments_dir.",
  )
  programs.run(main)
