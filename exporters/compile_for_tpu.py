r"""Checks whether a fine-tuning step of an export compiles for a TPU.

It needs no TPU, because the package libtpu contains the compiler:

  bazel run //exporters:compile_for_tpu -- \
    --saved_model_dir=DIR --topology=v5e:2x2 --batch_size=32
  bazel run //exporters:compile_for_tpu -- \
    --saved_model_dir=DIR --topology=v5e:2x2 --batch_size=max
  bazel run //exporters:compile_for_tpu -- \
    --saved_model_dir=DIR --image_size=224 --record

The step is what a user of the export would run on one core, in float32: the
export in training mode, regularization losses, a new head, gradients and Adam.
The step is compiled but not run. --record writes the results into the export.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
import contextlib
from importlib import metadata
import math
import os
import pathlib
import re
import sys
from typing import Any

from absl import flags
from etils import epy

from distribution import formats
from distribution import sandbox
from exporters.conformance import copying
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.tpu import pjrt

# This imports TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  from exporters.tpu import recording

_LOADING = copying.Options()

# Memory of one core in GiB, by generation; source: Google Cloud's TPU pages.
_MEMORY = {
  "v2": 8,
  "v3": 16,
  "v4": 32,
  "v5e": 16,
  "v5p": 95,
  "v6e": 32,
  "tpu7x": 96,
}
_TOPOLOGY = rf"({'|'.join(_MEMORY)}):[1-9]\d*(x[1-9]\d*){{1,2}}"
_BATCH_SIZES = tuple(2**i for i in range(17))  # For --batch_size=max.


def compile_for_tpu(
  *,
  saved_model_dir: str,
  libtpu: str,
  topologies: list[str],
  batch_size: int | None = 32,
  image_size: int = 224,
  seq_length: int = 128,
  loading: copying.Options = _LOADING,
  record: bool = False,
) -> bool:
  """Compiles a train step for each topology and prints the results.

  Args:
    saved_model_dir: The export.
    libtpu: Path of libtpu.so.
    topologies: Generations with their chips, such as `v5e:2x2`.
    batch_size: Examples per core. None: find the largest power of two that
      fits.
    image_size: Height and width of images, if the export leaves them free.
    seq_length: Sequence length, if the export leaves it free.
    loading: How to load the export.
    record: Whether to write the results to the export's `model.json` and card.

  Returns:
    Whether the step compiles for all topologies.

  Raises:
    ExportError: An argument is invalid, TPUs cannot run the step at any size,
      or libtpu does not work on this machine.
  """
  _check_arguments(libtpu, topologies)
  if record:
    recording.check(saved_model_dir)
  good = True
  results = []
  with _lowering(saved_model_dir, loading) as (lower, request):
    _check_compiler(lower(request), libtpu, topologies[0])
    for topology in topologies:
      largest = 0
      for size in [batch_size] if batch_size else _BATCH_SIZES:
        lowered = lower([size, image_size, seq_length])
        results.append(_compile_step(lowered, libtpu, topology, size))
        if not results[-1]["compiles"]:
          break
        largest = size
      good &= largest > 0
      if not batch_size:
        print(f"{topology}: the largest power of two that fits is {largest}")
  if record:
    recording.write(saved_model_dir, _name(libtpu), results)
    print(f"Recorded in {saved_model_dir}/assets.extra")
  return good


def _check_arguments(libtpu: str, topologies: list[str]) -> None:
  for topology in topologies:
    if not re.fullmatch(_TOPOLOGY, topology):
      raise errors.ExportError(
        f"--topology={topology} must start with one of {', '.join(_MEMORY)} and"
        " end with the chips, such as :2x2."
      )
  formats.check_file("libtpu", libtpu)
  with open(libtpu, "rb") as f:
    if f.read(4) != b"\x7fELF":
      raise errors.ExportError(f"--libtpu={libtpu} is no shared library.")


@contextlib.contextmanager
def _lowering(
  saved_model_dir: str, loading: copying.Options
) -> Iterator[tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]]:
  """Starts `lowering.serve`; yields a function to ask it, and its request."""
  with copying.started(
    "exporters.tpu.lowering",
    saved_model_dir,
    loading,
    longer=20,  # A step is traced and lowered for each batch size.
  ) as (ask, request):

    def lower(request: Any) -> dict[str, Any]:
      try:
        return ask(request)
      except sandbox.SandboxError as e:
        raise errors.ExportError(f"{saved_model_dir}: {e}.") from e

    yield lower, request


def _name(libtpu: str) -> str:
  """Returns the compiler's name and version, read from its package."""
  packages = str(pathlib.Path(libtpu).resolve().parents[1])
  found = metadata.distributions(name="libtpu", path=[packages])
  return " ".join(["libtpu", *(package.version for package in found)])


def _check_compiler(
  lowered: dict[str, Any], libtpu: str, topology: str
) -> None:
  """Compiles a trivial program, to detect a broken compiler."""
  try:
    pjrt.compile_program(
      base64.b64decode(lowered["program"]),
      libtpu=libtpu,
      topology=topology,
      seconds=120,
    )
  except pjrt.TpuError as e:
    raise errors.ExportError(
      f"The compiler {libtpu} does not work on this machine or does not know"
      f" {topology}: {e}"
    ) from e


def _compile_step(
  lowered: dict[str, Any], libtpu: str, topology: str, batch_size: int
) -> dict[str, Any]:
  """Compiles a step; prints the result and returns it for `recording`."""
  program = base64.b64decode(lowered["program"])
  result = {"topology": topology, "inputs": lowered["shapes"]}
  what = f"{topology}, batch {batch_size}"
  available = _MEMORY[topology.partition(":")[0]]
  for full_effort in (False, True):
    try:
      compiled = pjrt.compile_program(
        program, libtpu=libtpu, topology=topology, full_effort=full_effort
      )
      break
    except pjrt.TpuError as e:
      said = errors.shown(" ".join(str(e).split()))
    fits = "Ran out of memory" not in said
    if fits:
      print(f"✗ {what}: does not compile. The compiler says: {said[:300]}")
    elif full_effort:
      # The message names the memory needed, then the memory available.
      memory = "B of ".join(re.findall(r"\b([\d.]+[KMGT])\b", said)[:2])
      print(
        f"✗ {what}: does not fit; {memory}B HBM. Use a smaller --batch_size."
      )
    else:
      print(f"{what}: does not fit at low effort; trying at full effort")
      continue
    return {**result, "compiles": False, "fits": fits}
  intensity = compiled.flops / compiled.accessed_bytes
  print(
    f"✓ {what}: compiles; {compiled.peak_bytes / 2**20:,.0f} MiB of"
    f" {available * 2**10:,} MiB HBM; {compiled.flops:.3g} flops and"
    f" {compiled.accessed_bytes:.3g} bytes per step, {intensity:.3g} flops per"
    " byte"
    + ("" if full_effort else " (at low effort, which overstates memory)"),
    flush=True,
  )
  return {
    **result,
    "compiles": True,
    "hbm_bytes": compiled.peak_bytes,
    "hbm_available_bytes": available * 2**30,
    "flops": _known(compiled.flops),
    "accessed_bytes": _known(compiled.accessed_bytes),
    "full_effort": full_effort,
  }


def _known(value: float) -> float | None:
  return None if math.isnan(value) else value


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The export.")
  flags.DEFINE_multi_string(
    "topology",
    ["v5e:2x2"],
    "TPUs to compile for, such as v5e:2x2 or v4:2x2x1. Can be repeated.",
  )
  flags.DEFINE_string(
    "batch_size",
    "32",
    "Examples per core and step; max searches for the largest power of two that"
    " fits.",
  )
  flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of images, where the export leaves them free.",
    lower_bound=1,
    upper_bound=2**16,
  )
  flags.DEFINE_integer(
    "seq_length",
    128,
    "Sequence length, or number of frames of a video, where the export leaves"
    " it free.",
    lower_bound=1,
    upper_bound=2**16,
  )
  command_line.define(copying.Options, copying.FLAGS)
  flags.DEFINE_bool(
    "record",
    False,
    "Write the results into the export's assets.extra/model.json and"
    " card, replacing earlier results.",
  )
  flags.DEFINE_string("libtpu", None, "Path of libtpu.so.")
  for name in ("saved_model_dir", "libtpu"):
    flags.register_validator(name, bool, "The flag is required.")
  flags.register_validator(
    "batch_size",
    lambda value: (
      value == "max" or (value.isdecimal() and 0 < int(value) < 2**31)
    ),
    "It must be a positive number or max.",
  )


def main() -> None:
  """Runs the program with the values of its flags."""
  values = flags.FLAGS
  size = values.batch_size
  good = compile_for_tpu(
    saved_model_dir=command_line.model_path("saved_model_dir"),
    # BUILD files set a path that is relative to the working directory.
    libtpu=os.path.expanduser(values.libtpu),
    topologies=values.topology,
    batch_size=None if size == "max" else int(size),
    image_size=values.image_size,
    seq_length=values.seq_length,
    loading=command_line.from_flags(copying.Options),
    record=values.record,
  )
  sys.exit(0 if good else 1)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
