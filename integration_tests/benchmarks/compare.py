r"""Compares the exporters with what users would pick instead.

  bazel run //integration_tests/benchmarks:compare -- --output_dir=/tmp/compared

generates checkpoints, exports each with our exporter and with Model Garden's
(the MNIST CNN with Keras' own `Model.save`), in turn and several rounds, and
measures the exports and the exporters, each in a process of its own. No ratio
is made of two exports whose outputs differ. It takes hours; --quick, minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile
from typing import Any

from absl import flags
import numpy as np
from rich import console

from integration_tests import command_line
from integration_tests.benchmarks import processes
from integration_tests.benchmarks import results
from integration_tests.benchmarks import subjects

MEASURES = ("export", "load", "train", "inference", "answers")
_INFERENCE_TURNS = 16
_PACKAGES = ("tensorflow", "tf-keras", "tensorflow-hub", "tf-models-official")


def compare(
  names: Sequence[str],
  rounds: int,
  measures: Sequence[str],
  *,
  full: bool = False,
  output_dir: pathlib.Path | None = None,
) -> bool:
  """Measures, and prints and writes what came out after each model.

  Args:
    names: Of `subjects.SUBJECTS`.
    rounds: How often each measurement is repeated.
    measures: Of `MEASURES`. All but `answers` need, and imply, an export.
    full: Train Model Garden's exports under XLA in full size too.
    output_dir: Where results.json, results.md and ratios.png go.

  Returns:
    Whether the outputs agreed for all.

  Raises:
    ProcessError: An exporter, or what measures its export, has failed.
  """
  report: dict[str, Any] = {
    "rounds": rounds,
    "samples": [],
    "answers": [],
    "refused": {},
  }
  screen = console.Console(width=None if sys.stdout.isatty() else 120)
  with (
    tempfile.TemporaryDirectory(prefix="compare.") as work_dir,
    screen.status("Starting") as status,
  ):

    def note(text: str) -> None:
      if screen.is_terminal:
        status.update(text)
      else:
        screen.print(text, highlight=False)

    def show(samples: Sequence[Any], answers: Sequence[Any]) -> None:
      for table in results.tables(results.ratios(samples), answers):
        screen.print(results.rich_table(*table))
      if output_dir:
        _write(report, output_dir)

    report["machine"] = _machine(pathlib.Path(work_dir))
    if "answers" in measures:
      report["answers"] = _answers(rounds, pathlib.Path(work_dir), note)
      show([], report["answers"])
    for name in names:
      directory = pathlib.Path(work_dir, name)
      directory.mkdir()
      samples, differing = _compare(
        name, rounds, measures, full, directory, note
      )
      shutil.rmtree(directory)
      if differing:
        report["refused"][name] = differing
        screen.print(_refusal(name, differing), highlight=False, markup=False)
      report["samples"] += samples
      show(samples, [])
  if output_dir:
    print(f"Wrote {', '.join(sorted(os.listdir(output_dir)))} to {output_dir}")
  return not report["refused"]


def _refusal(name: str, differences: Sequence[str]) -> str:
  return (
    f"✗ {subjects.SUBJECTS[name].description}: no ratio, for the outputs of the"
    f" two exports differ: {'; '.join(differences)}. Allowed is"
    f" {results.TOLERANCE:g} of the largest value."
  )


def _answers(
  rounds: int, work_dir: pathlib.Path, note: Callable[[str], None]
) -> list[dict[str, Any]]:
  """Times --help and a wrong flag of all programs."""
  programs = {
    binary: [str(subjects.RUNFILES / binary)] for binary in subjects.BINARIES
  }
  for command in subjects.MODEL_GARDEN.values():
    programs[command[-1]] = command
  samples = []
  for _ in range(rounds):
    for program, command in programs.items():
      note(f"{program}: --help and a wrong flag")
      seconds = {
        key: processes.run(
          # The exit status of absl's --help is 1, too.
          [*command, flag],
          work_dir / "answers.log",
          status=1,
        )["wall_s"]
        for key, flag in (("help_s", "--help"), ("wrong_flag_s", "--nonsense"))
      }
      samples.append({"program": program, **seconds})
  return samples


def _compare(
  name: str,
  rounds: int,
  measures: Sequence[str],
  full: bool,
  directory: pathlib.Path,
  note: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[str]]:
  """Measures one subject.

  Returns:
    Samples, as `results.ratios` takes them; and how the outputs of the exports
    differ, in which case there are no samples.
  """
  subject = subjects.SUBJECTS[name]
  measures = [m for m in measures if m in subject.measures]
  if not measures:
    return [], []
  work_dir = directory / "work"
  work_dir.mkdir()
  note(f"{name}: generating the checkpoint")
  processes.run(
    subjects.measurement("generate", name=name, work_dir=str(work_dir)),
    directory / "generate.log",
  )
  samples: list[dict[str, Any]] = []

  def add(measure: str, side: str, round_: int, values: Any) -> None:
    if measure.partition("_")[0] in measures:
      samples.append(
        {
          "model": name,
          "measure": measure,
          "side": side,
          "round": round_,
          "values": values,
        }
      )

  kept = {side: directory / side for side in ("reference", "ours")}
  for round_ in range(rounds):
    if round_ == 0 or "export" in measures:
      sides = [*kept, "ours_verified"] if "export" in measures else list(kept)
      _export(name, sides, round_, directory, work_dir, kept, add, note)
    # The first one is also the comparison.
    if round_ == 0 or "load" in measures:
      for side, export_dir in kept.items():
        note(f"{name}, round {round_ + 1}: loading, {side}")
        add("load", side, round_, _load(name, side, export_dir, directory))
    if round_ == 0:
      ours, reference = (
        dict(np.load(directory / f"{side}.npz"))
        for side in ("ours", "reference")
      )
      if differing := results.differences(ours, reference):
        return [], differing
    if "export" in measures:
      note(f"{name}, round {round_ + 1}: the floor")
      _add_floor(work_dir, round_, samples, add)
    if "train" in measures:
      note(f"{name}, round {round_ + 1}: training")
      _train(name, round_, directory, work_dir, kept, full, add)
    if "inference" in measures:
      note(f"{name}, round {round_ + 1}: inference")
      _infer(name, round_, directory, kept, add)
  return samples, []


def _export(
  name: str,
  sides: Sequence[str],
  round_: int,
  directory: pathlib.Path,
  work_dir: pathlib.Path,
  kept: dict[str, pathlib.Path],
  add: Callable[..., None],
  note: Callable[[str], None],
) -> None:
  """Exports a subject in several ways; the first exports stay at `kept`."""
  for side in sides:
    note(f"{name}, round {round_ + 1}: exporting, {side}")
    export_dir = directory / "new"
    took = processes.run(
      subjects.export_command(name, side, work_dir, export_dir),
      directory / "export.log",
    )
    add("export", side, round_, {**took, **_sizes(export_dir)})
    if side in kept and not kept[side].exists():
      export_dir.rename(kept[side])
    else:
      shutil.rmtree(export_dir)


def _sizes(export_dir: pathlib.Path) -> dict[str, float]:
  files = [path for path in export_dir.rglob("*") if path.is_file()]
  return {
    "pb_kib": (export_dir / "saved_model.pb").stat().st_size / 2**10,
    "all_mib": sum(path.stat().st_size for path in files) / 2**20,
  }


def _load(
  name: str, side: str, export_dir: pathlib.Path, directory: pathlib.Path
) -> dict[str, float]:
  """Loads and calls an export; its outputs go to `directory`."""
  log = directory / "load.log"
  processes.run(
    subjects.measurement(
      "load",
      name=name,
      saved_model_dir=str(export_dir),
      outputs=str(directory / f"{side}.npz"),
    ),
    log,
  )
  return processes.last_json(log)


def _add_floor(
  work_dir: pathlib.Path,
  round_: int,
  samples: list[dict[str, Any]],
  add: Callable[..., None],
) -> None:
  """Adds to exports the share of their time that is not any exporter's."""
  log = work_dir / "floor.log"
  imported = processes.run([sys.executable, "-c", "import tensorflow"], log)
  floor = imported["cpu_s"]
  weights = sum(p.stat().st_size for p in work_dir.glob("model.ckpt-1.data*"))
  if weights:  # A preprocessor has none.
    processes.run(
      subjects.measurement(
        "write_variables",
        work_dir=str(work_dir),
        path=str(work_dir / "written"),
      ),
      log,
    )
    floor += processes.last_json(log)["cpu_s"]
  for sample in samples:
    if sample["measure"] == "export" and sample["round"] == round_:
      cpu = sample["values"]["cpu_s"]
      sample["values"]["over_floor"] = (cpu - floor) / cpu
  limit = (1.3 * weights + 0.8e9) / 2**20
  add("export", "limit", round_, {"memory_mib": limit})


def _train(
  name: str,
  round_: int,
  directory: pathlib.Path,
  work_dir: pathlib.Path,
  kept: dict[str, pathlib.Path],
  full: bool,
  add: Callable[..., None],
) -> None:
  """Trains the live model and the exports in turn, step by step."""
  subject = subjects.SUBJECTS[name]
  exports: dict[str, pathlib.Path | None] = {**kept, "live": None}
  for measure, size in (
    ("train", subject.size),
    ("train_xla", subject.size if full else subject.xla_size),
  ):
    turns = {"live": subject.steps, "ours": subject.steps}
    if measure == "train_xla":
      turns["reference"] = subject.reference_xla_steps
      if subject.family == "resnet" and size != subject.size:
        # Model Garden's takes images of one size.
        exports["reference"] = directory / f"reference_{size}"
        if not exports["reference"].exists():
          processes.run(
            subjects.export_command(
              name, "reference", work_dir, exports["reference"], size
            ),
            directory / "export.log",
          )
    printed = processes.take_turns(
      {
        side: subjects.measurement(
          "train",
          name=name,
          work_dir=str(work_dir),
          saved_model_dir=str(exports[side]) if exports[side] else None,
          size=size,
          jit_compile=measure == "train_xla",
        )
        for side in turns
      },
      turns,
      directory,
    )
    for side, values in printed.items():
      add(measure, side, round_, results.of_turns(values))


def _infer(
  name: str,
  round_: int,
  directory: pathlib.Path,
  kept: dict[str, pathlib.Path],
  add: Callable[..., None],
) -> None:
  """Calls the exports in turn."""
  for batch_size, calls in ((1, 4), (32, 1)):
    printed = processes.take_turns(
      {
        side: subjects.measurement(
          "infer",
          name=name,
          saved_model_dir=str(export_dir),
          batch_size=batch_size,
          calls=calls,
        )
        for side, export_dir in kept.items()
      },
      dict.fromkeys(kept, _INFERENCE_TURNS),
      directory,
    )
    for side, values in printed.items():
      add(
        f"inference_{batch_size}",
        side,
        round_,
        results.of_turns(values, calls, batch_size),
      )


def _machine(work_dir: pathlib.Path) -> dict[str, Any]:
  load_average = os.getloadavg()  # Before anything of ours runs.
  log = work_dir / "devices.log"
  processes.run(subjects.measurement("devices"), log)
  return {
    "cpus": os.cpu_count(),
    **processes.last_json(log),
    "machine": platform.machine(),
    "python": platform.python_version(),
    "load_average": load_average,
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def _write(report: dict[str, Any], output_dir: pathlib.Path) -> None:
  """Writes results.json, results.md and ratios.png."""
  rows = results.ratios(report["samples"])
  (output_dir / "results.json").write_text(
    json.dumps({**report, "ratios": rows}, indent=1)
  )
  machine = report["machine"]
  processors = ", ".join([machine["machine"], *machine["gpus"]])
  versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
  parts = [
    "# The exporters, compared\n",
    f"Medians, with rounds = {report['rounds']}, on {machine['cpus']} cores"
    f" ({processors}), with {versions}. A ratio is ours ÷ the other's, made"
    " within each round; the spread is its least and greatest.\n",
    *(
      f"{_refusal(name, differences)}\n"
      for name, differences in report["refused"].items()
    ),
    *(
      results.markdown(*table)
      for table in results.tables(rows, report["answers"])
    ),
  ]
  (output_dir / "results.md").write_text("\n".join(parts))
  if rows:
    results.plot(rows, output_dir / "ratios.png")


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_list(
    "models",
    None,
    f"What to compare, of {', '.join(subjects.SUBJECTS)}. Default:"
    f" {', '.join(subjects.DEFAULT)}; with --quick"
    f" {', '.join(subjects.QUICK)}.",
  )
  flags.DEFINE_list(
    "measures", list(MEASURES), f"What to measure, of {', '.join(MEASURES)}."
  )
  flags.DEFINE_integer(
    "rounds", None, "Default: 3; with --quick 1.", lower_bound=1
  )
  flags.DEFINE_bool(
    "quick", False, "The smallest of each model, and one round."
  )
  flags.DEFINE_bool(
    "full",
    False,
    "Train ResNet-50 under XLA at its full size: Model Garden's export takes"
    " minutes for each step.",
  )
  flags.DEFINE_string(
    "output_dir",
    None,
    "Where to write results.json, results.md and ratios.png. Default: they are"
    " printed only.",
  )
  for name, known in (
    ("models", tuple(subjects.SUBJECTS)),
    ("measures", MEASURES),
  ):
    flags.register_validator(
      name,
      lambda values, known=known: set(values or ()) <= set(known),
      f"They are {', '.join(known)}.",
    )


def main() -> None:
  """Compares what the flags say."""
  values = flags.FLAGS
  names = values.models or (
    subjects.QUICK if values.quick else subjects.DEFAULT
  )
  output_dir = command_line.path(values.output_dir)
  try:
    if output_dir:
      output_dir = pathlib.Path(output_dir)
      output_dir.mkdir(parents=True, exist_ok=True)
    agreed = compare(
      names,
      values.rounds or (1 if values.quick else 3),
      values.measures,
      full=values.full,
      output_dir=output_dir,
    )
  except (OSError, processes.ProcessError) as e:
    sys.exit(f"ERROR: {e}")
  sys.exit(0 if agreed else 1)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
