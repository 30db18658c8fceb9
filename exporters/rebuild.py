r"""Rebuilds the model of a package, and compares the bytes.

It runs the exporter in the package's provenance with the recorded flags:

  bazel run //exporters:rebuild -- --package=DIR --public_key=KEY.pub
  bazel run //exporters:rebuild -- --package=DIR \
    --input=checkpoint_path=CHECKPOINT
  bazel run //exporters:rebuild -- --package=DIR \
    --input=vocab_file=vocab.txt --input=checkpoint_path=CHECKPOINT

The times that --measure_latency added are not compared.
The package decides which exporter runs and with which flags. Pass --public_key
for packages of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any
from xml.etree import ElementTree

from absl import flags

from distribution import formats
from distribution import scratch
from exporters.packages import archive
from exporters.packages import checking
from exporters.packages import documents
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting

_ROOT = pathlib.Path(__file__).parents[1]
# Suffixes of flags that name input files. The provenance records the names of
# these files without their folders.
_INPUTS = ("_dir", "_file", "_path")
# The times of --measure_latency, which differ in each run, as patterns in the
# files that contain them.
_ENTRY = rb',\n  "latency": \{\n.*?\n  \}'
_TIMES = {
  documents.VERIFICATION: _ENTRY,
  documents.MODEL: _ENTRY,
  documents.CARD: rb"\n\n## Latency\n.*?(?=\n\n## |\n\Z)",
}


def rebuild(
  package: str, *, inputs: Iterable[str] = (), public_key: str | None = None
) -> None:
  """Rebuilds the model of a package, and compares the bytes.

  Args:
    package: The directory of the package.
    inputs: FLAG=PATH for each file that a flag of the exporter names.
    public_key: The key that must have signed the package. None: it need not be
      signed.

  Raises:
    ExportError: The package is invalid or has no provenance, the versions of
      Python packages differ, a file is missing, or the bytes differ.
  """
  with tempfile.TemporaryDirectory() as directory:
    model, again = f"{directory}/model", f"{directory}/again"
    _, found = checking.check(
      package, public_key=public_key, unpack_dir=model, audit=False
    )
    if documents.PROVENANCE not in found:
      raise errors.ExportError(f"{package} has no {documents.PROVENANCE}.")
    statement = json.loads(found[documents.PROVENANCE])
    build = statement["predicate"]["buildDefinition"]
    _check_lock(build)
    with errors.of_input(about=f"{package}: {documents.PROVENANCE}: "):
      command = _command(build["externalParameters"], inputs)
    threads = build.get("internalParameters", {}).get("threads")
    variables = {exporting.THREADS: str(threads)} if threads else {}
    command.append(f"--export_dir={again}")
    if _run(command, variables).returncode:
      raise errors.ExportError("The exporter has failed, as it says above.")
    found = min(
      (list(_differences(model, made)) for made in _saved_models(again)),
      key=len,
    )
    if found:
      raise errors.ExportError(
        f"The rebuilt model differs in {len(found)} files. {found[0]}"
      )
    report = pathlib.Path(model, documents.VERIFICATION).read_bytes()
  apart = ", apart from its latency" if re.search(_ENTRY, report, re.S) else ""
  print(f"{package} has the same bytes as the model made again{apart}.")


def _check_lock(build: Mapping[str, Any]) -> None:
  """Raises an ExportError if other Python packages made the model."""
  here = exporting.lock_sha256()
  for dependency in build["resolvedDependencies"]:
    there = dependency.get("digest", {}).get("sha256")
    if dependency.get("name") == "lock" and there != here:
      raise errors.ExportError(
        f"The model was made with the Python packages of the lock {there}, and"
        f" this program has those of {here}. Check out the revision that it was"
        " made with."
      )


def _command(parameters: Mapping[str, Any], inputs: Iterable[str]) -> list[str]:
  """Returns the exporter to run, with its flags."""
  exporter = str(parameters.get("exporter"))
  program = _ROOT / "exporters" / f"{exporter}.py"
  if not exporter.isidentifier() or not program.exists():
    raise errors.ExportError(f"There is no exporter {exporter[:80]!r} here.")
  command = [str(program)]
  paths: dict[str, list[str]] = {}
  for given in inputs:
    name, _, path = given.partition("=")
    if name not in parameters["flags"] or not path:
      raise errors.ExportError(
        f"--input={given} is no FLAG=PATH with a flag that the package records."
      )
    paths.setdefault(name, []).append(formats.absolute(path))
  defaults = _defaults(command[0])
  for name, value in parameters["flags"].items():
    # A stranger's package must not set flags that name files to write.
    others = ("export_dir", "flagfile", *command_line.OF_THE_RUN)
    if name not in defaults or name in others:
      raise errors.ExportError(f"{exporter} has no flag --{name} to record.")
    text = _text(value)
    if name in paths:
      command += [f"--{name}={path}" for path in paths[name]]
    elif name.endswith(_INPUTS) and value:
      raise errors.ExportError(
        f"The exporter has read {text}. Say where it is: --input={name}=PATH."
      )
    elif value is not None and text != defaults[name]:
      # Leave out defaults: some flags are errors where they have no effect.
      command.append(f"--{name}={text}")
  return command


def _defaults(program: str) -> dict[str, str]:
  """Returns the defaults of a program's flags, as texts."""
  described = _run([program, "--helpxml"], {}, capture_output=True).stdout
  return {
    flag.findtext("name"): (flag.findtext("default") or "").replace("[]", "")
    for flag in ElementTree.fromstring(described).iter("flag")
  }


def _text(value: Any) -> str:
  """Formats the value of a flag."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, list):
    return ",".join(value)
  return str(value)


def _run(
  command: Sequence[str], variables: Mapping[str, str], **kwargs: Any
) -> subprocess.CompletedProcess[bytes]:
  path = {"PYTHONPATH": os.pathsep.join(sys.path)}
  environment = {**os.environ, **path, **variables}
  command = scratch.tied([sys.executable, *command])
  return subprocess.run(command, env=environment, **kwargs)


def _saved_models(directory: str) -> Iterator[str]:
  """Yields the directories of the SavedModels below a directory."""
  for folder, _, names in os.walk(directory):
    if "saved_model.pb" in names:
      yield folder


def _differences(first: str, second: str) -> Iterator[str]:
  """Yields a sentence for each file that differs between two SavedModels."""
  files, others = archive.files_in(first), archive.files_in(second)
  # These files depend on the others, so their differences come last.
  follows = ("assets.extra", "fingerprint.pb")
  names = sorted(
    files.keys() | others.keys(), key=lambda n: (n.startswith(follows), n)
  )
  for name in names:
    if name not in others:
      yield f"{name} was not made again."
    elif name not in files:
      yield f"{name} was made, and the package lacks it."
    else:
      old = pathlib.Path(files[name]).read_bytes()
      if name in _TIMES:
        old = re.sub(_TIMES[name], b"", old, flags=re.S)
      new = pathlib.Path(others[name]).read_bytes()
      if old != new:
        yield _difference(name, old, new)


def _difference(name: str, old: bytes, new: bytes) -> str:
  """Describes the first difference between two contents of a file."""
  if name.endswith((".json", ".md", ".txt")):
    lines = zip(old.splitlines(), new.splitlines(), strict=False)
    for number, (before, after) in enumerate(lines, 1):
      if before != after:
        shown = [
          errors.shown(s.decode(errors="replace").strip())
          for s in (before, after)
        ]
        return f"{name}, line {number}: {shown[0]} was {shown[1]} this time."
  at = next(
    (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
    min(len(old), len(new)),
  )
  return (
    f"{name} differs from byte {at:,} on (SHA-256"
    f" {hashlib.sha256(old).hexdigest()[:12]}, this time"
    f" {hashlib.sha256(new).hexdigest()[:12]})."
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("package", None, "The directory of the package.")
  flags.DEFINE_string(
    "public_key", None, "The key that must have signed the package, in PEM."
  )
  flags.DEFINE_multi_string(
    "input",
    [],
    "Where a file is that a flag of the exporter names, as FLAG=PATH, for"
    " example checkpoint_path=/tmp/checkpoint. Repeat it for further files.",
  )
  flags.register_validator(
    "package", bool, "It is required: the directory of the package."
  )


def main() -> None:
  """Rebuilds the model of the package that the flags name."""
  values = flags.FLAGS
  rebuild(
    formats.absolute(values.package),
    inputs=values.input,
    public_key=formats.absolute(values.public_key),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
