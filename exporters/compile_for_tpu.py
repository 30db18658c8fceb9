r"""Tells whether the fine-tuning step of an export compiles for a TPU.

No TPU is needed: the compiler is in the package libtpu.

  bazel run //exporters:compile_for_tpu -- \
    --saved_model_dir=DIR --topology=v5e:2x2 --batch_size=32

The step is that of a consumer: the export in training mode, regularization, a
new head, gradients, Adam; float32, on one core. Nothing is run: that it
compiles is all that is proved. With --record it is written into the export.
"""

from __future__ import annotations

from importlib import metadata
import math
import pathlib
import re
import sys
from typing import Any

from absl import flags
from etils import epy

from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.tpu import pjrt

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf

  from exporters.conformance import subject as subject_lib
  from exporters.tpu import lowering
  from exporters.tpu import recording

# Memory of one core in GiB, as Google Cloud's pages of each generation have it.
_MEMORY = {
  "v2": 8,
  "v3": 16,
  "v4": 32,
  "v5e": 16,
  "v5p": 95,
  "v6e": 32,
  "tpu7x": 96,
}
_LARGEST_BATCH = 2**16


def compile_for_tpu(
  *,
  saved_model_dir: str,
  libtpu: str,
  topologies: list[str],
  batch_size: int | None = 32,
  image_size: int = 224,
  seq_length: int = 128,
  trust: bool = False,
  record: bool = False,
) -> bool:
  """Compiles a train step, and prints a line for each topology.

  Args:
    saved_model_dir: The export.
    libtpu: Path of libtpu.so.
    topologies: Such as `v5e:2x2`: a generation, and chips.
    batch_size: Examples of one core; None looks for the largest power of two
      that fits.
    image_size: Height and width of images, where the export leaves them free.
    seq_length: Length of sequences, where the export leaves it free.
    trust: Load the export whatever its ops are.
    record: Write the results into the export's report and its card.

  Returns:
    Whether it compiles for all.

  Raises:
    ExportError: TPUs cannot run the step, whatever its size; or libtpu does not
      work here.
  """
  for topology in topologies:
    if topology.partition(":")[0] not in _MEMORY:
      raise errors.ExportError(
        f"--topology={topology}: it starts with one of {', '.join(_MEMORY)},"
        " and goes on like :2x2."
      )
  if record:
    recording.check(saved_model_dir)
  subject = subject_lib.read(saved_model_dir)
  subject_lib.load(subject, trust)
  if subject.model is None:
    raise errors.ExportError(f"{saved_model_dir}: {subject.unloaded}.")
  _check_compiler(libtpu, topologies[0])

  def try_size(topology: str, size: int) -> dict[str, Any]:
    sizes = {
      "batch_size": size,
      "image_size": image_size,
      "seq_length": seq_length,
    }
    program = lowering.lower(subject, **sizes)
    specs = tf.nest.flatten(lowering.inputs(subject, **sizes))
    return {
      "topology": topology,
      "inputs": [spec.shape.as_list() for spec in specs],
      **_try(libtpu, topology, size, program),
    }

  good = True
  results = []
  for topology in topologies:
    if batch_size is not None:
      results.append(try_size(topology, batch_size))
      good &= results[-1]["compiles"]
    else:
      size = 1
      while size <= _LARGEST_BATCH:
        results.append(try_size(topology, size))
        if not results[-1]["compiles"]:
          break
        size *= 2
      good &= size > 1
      print(f"{topology}: the largest power of two that fits is {size // 2}")
  if record:
    recording.write(saved_model_dir, _name(libtpu), results)
    print(f"Recorded in {saved_model_dir}/assets.extra")
  return good


def _name(libtpu: str) -> str:
  """Returns name and version of the compiler, from beside its package."""
  packages = str(pathlib.Path(libtpu).resolve().parents[1])
  found = metadata.distributions(name="libtpu", path=[packages])
  return " ".join(["libtpu", *(package.version for package in found)])


def _check_compiler(libtpu: str, topology: str) -> None:
  """Compiles next to nothing, so that later failures are the export's."""
  try:
    pjrt.compile_program(
      lowering.lower_trifle(), libtpu=libtpu, topology=topology, timeout=120
    )
  except pjrt.TpuError as e:
    raise errors.ExportError(
      f"The compiler {libtpu} does not work here, or does not know {topology}:"
      f" {e}"
    ) from e


def _try(
  libtpu: str, topology: str, batch_size: int, program: bytes
) -> dict[str, Any]:
  """Compiles a step; prints and returns what came out."""
  what = f"{topology}, batch {batch_size}"
  available = _MEMORY[topology.partition(":")[0]]
  for full_effort in (False, True):
    try:
      compiled = pjrt.compile_program(
        program, libtpu=libtpu, topology=topology, full_effort=full_effort
      )
      break
    except pjrt.TpuError as e:
      said = " ".join(str(e).split())
      out_of_memory = "Ran out of memory" in said
      if out_of_memory and not full_effort:
        print(f"{what}: does not fit at low effort; trying at full effort")
        continue
      if out_of_memory:
        # Needed, then available.
        sizes = re.findall(r"\b([\d.]+[KMGT])\b", said)[:2]
        print(
          f"✗ {what}: does not fit; {'B of '.join(sizes)}B HBM. Take smaller"
          " batches."
        )
      else:
        print(f"✗ {what}: does not compile. The compiler says: {said[:300]}")
      return {"compiles": False, "fits": not out_of_memory}
  intensity = compiled.flops / compiled.accessed_bytes
  print(
    f"✓ {what}: compiles; {compiled.peak_bytes / 2**20:,.0f} MiB of"
    f" {available * 2**10:,} MiB HBM; {compiled.flops:.3g} flops and"
    f" {compiled.accessed_bytes:.3g} bytes a step, {intensity:.3g} flops a"
    " byte"
    + ("" if full_effort else " (at low effort, which overstates memory)"),
    flush=True,
  )
  return {
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
    "TPUs to compile for, such as v5e:2x2 or v4:2x2x1; may be repeated.",
  )
  flags.DEFINE_string(
    "batch_size",
    "32",
    "Examples of one core in a step; `max` looks for the largest power of two"
    " that fits.",
  )
  flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of images, where the export leaves them free.",
    lower_bound=1,
  )
  flags.DEFINE_integer(
    "seq_length",
    128,
    "Length of sequences, where the export leaves it free.",
    lower_bound=1,
  )
  flags.DEFINE_bool(
    "trust", False, "Load it though it has ops that a model has no need of."
  )
  flags.DEFINE_bool(
    "record",
    False,
    "Write the results into the export: its assets.extra/verification.json, and"
    " a section of its card, in place of earlier ones.",
  )
  flags.DEFINE_string("libtpu", None, "Path of libtpu.so.")
  for name in ("saved_model_dir", "libtpu"):
    flags.register_validator(name, bool, "It is needed.")
  flags.register_validator(
    "batch_size",
    lambda value: value == "max" or (value.isdecimal() and int(value) > 0),
    "It is a number, or max.",
  )


def main() -> None:
  """Compiles what the flags say."""
  values = flags.FLAGS
  size = values.batch_size
  good = compile_for_tpu(
    saved_model_dir=command_line.path(values.saved_model_dir),
    # Bazel gives it, from where the program starts.
    libtpu=values.libtpu,
    topologies=values.topology,
    batch_size=None if size == "max" else int(size),
    image_size=values.image_size,
    seq_length=values.seq_length,
    trust=values.trust,
    record=values.record,
  )
  sys.exit(0 if good else 1)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
