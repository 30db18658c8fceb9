r"""Compares the exporters with the ones that users would use instead.

It measures time, memory and sizes of both sides, and prints the ratios:

  bazel run //integration_tests/benchmarks:compare -- --output_dir=DIR
  bazel run //integration_tests/benchmarks:compare -- --output_dir=DIR --quick
  bazel run //integration_tests/benchmarks:compare -- --output_dir=DIR \
    --models=mnist_cnn,bert_4x512 --rounds=3

The program generates checkpoints. Our exporter and the reference export each
checkpoint several times. The reference is Model Garden's exporter or, for the
MNIST CNN, Keras' `Model.save`, beside Keras 3's `Model.export`. Exporters and
exports are measured in a process of their own. Exports whose outputs differ get
no ratio. A complete comparison takes hours, one with --quick minutes.

With --measures=size the program exports and loads BERTs from 0.4 million to a
billion parameters, and plots what that costs:

  bazel run //integration_tests/benchmarks:compare -- --output_dir=DIR \
    --measures=size --rounds=1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from distribution import formats
from distribution import publishing
from integration_tests import command_line
from integration_tests.benchmarks import processes
from integration_tests.benchmarks import results
from integration_tests.benchmarks import subjects

MEASURES = ("export", "load", "train", "inference", "size", "answers")
# Other formats to export text encoders from, with the name of the file.
_FORMATS = {"safetensors": "hub", "h5": "bert.h5", "tf1": "bert_model.ckpt"}
# Number of calls for each batch size. The first call traces.
_INFERENCE_TURNS = {1: 101, 32: 33}
_XLA_SIZE = 64  # Largest size of train steps under XLA, without --full.
# Train steps of the reference's export under XLA, which may compile each step.
_REFERENCE_XLA_STEPS = 3
_PACKAGES = ("tensorflow", "tf-keras", "tensorflow-hub", "tf-models-official")

# Measurement, side and values.
_Sample = tuple[str, str, dict[str, float]]


def compare(
  names: Sequence[str],
  rounds: int,
  measures: Sequence[str],
  *,
  full: bool = False,
  output_dir: pathlib.Path | None = None,
) -> bool:
  """Compares the exporters, and prints and writes the results of each model.

  Args:
    names: Keys of `subjects.SUBJECTS`.
    rounds: Number of repetitions of each measurement.
    measures: A subset of `MEASURES`. All but `answers` export the model.
    full: Whether to train Model Garden's exports under XLA at full size too.
    output_dir: Directory for results.json, results.md and the plots.

  Returns:
    Whether the outputs of the two exports agree for all models.

  Raises:
    ProcessError: An exporter or a measurement failed.
  """
  if output_dir:
    output_dir.mkdir(parents=True, exist_ok=True)
  screen = console.Console(width=1000, record=True)  # No table row wraps.
  with tempfile.TemporaryDirectory(prefix="compare.") as temporary:
    work_dir = pathlib.Path(temporary)
    report: dict[str, Any] = {
      "load_average": os.getloadavg(),  # Before this program adds to the load.
      "cpus": os.cpu_count(),
      **_measure(work_dir, "devices"),
      "machine": platform.machine(),
      "python": platform.python_version(),
      "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
      "rounds": rounds,
      "samples": [],
      "answers": _answers(rounds, work_dir) if "answers" in measures else [],
      "refused": {},
    }
    screen.out(_heading(report), highlight=False)
    screen.print(*results.tables([], report["answers"]))
    for name in names:
      _write(report, screen, output_dir)
      directory = work_dir / name
      directory.mkdir()
      samples, differing = _compare(directory, rounds, measures, full)
      shutil.rmtree(directory)
      if differing:
        report["refused"][name] = differing
        screen.out(
          f"✗ {subjects.SUBJECTS[name].description}: no ratio, because the"
          f" outputs of the two exports differ: {'; '.join(differing)}. The"
          f" tolerance is {results.TOLERANCE:g} of the largest value.\n",
          highlight=False,
        )
      report["samples"] += samples
      screen.print(*results.tables(results.ratios(samples), []))
    screen.print(*results.sizes_table(report["samples"]))
    _write(report, screen, output_dir)
  return not report["refused"]


def _heading(report: Mapping[str, Any]) -> str:
  processors = ", ".join([report["machine"], *report["gpus"]])
  versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
  return (
    "# The exporters, compared\n\n"
    f"Medians, with rounds = {report['rounds']}, on {report['cpus']} cores"
    f" ({processors}), with {versions}. A ratio is ours ÷ the other's within a"
    " round; the spread is from the least to the greatest of all rounds.\n"
  )


def _write(
  report: Mapping[str, Any],
  screen: console.Console,
  output_dir: pathlib.Path | None,
) -> None:
  """Writes results.json, results.md and the plots, if there is a directory."""
  if not output_dir:
    return
  rows = results.ratios(report["samples"])
  files = {
    "results.json": json.dumps({**report, "ratios": rows}, indent=1).encode(),
    "results.md": screen.export_text(clear=False).encode(),
  }
  if rows:
    files["ratios.png"] = results.plot(rows)
  if sizes := results.sizes(report["samples"]):
    files["sizes.svg"] = results.sizes_svg(sizes).encode()
  for name, content in files.items():
    publishing.write(output_dir / name, content)


def _answers(rounds: int, work_dir: pathlib.Path) -> list[dict[str, Any]]:
  """Measures how fast all programs answer --help and a wrong flag."""
  programs = {
    f"{folder}/{path.name}": [str(path)]
    for folder in ("exporters", "integration_tests")
    for path in sorted((subjects.RUNFILES / folder).iterdir())
    if path.is_file()
    and not path.suffix  # The programs in the data of the target.
  }
  others = {c[-1]: c for c in subjects.MODEL_GARDEN.values()}
  programs |= others
  print("All programs: --help and a wrong flag", flush=True)
  return [
    {
      "program": program,
      "flag": flag,
      **processes.run([*command, flag], work_dir / "log", status=status),
    }
    for _ in range(rounds)
    for program, command in programs.items()
    for flag in results.ANSWERED
    # The exit status of absl's own --help is 1 too.
    for status in [int(flag != "--help" or program in others)]
  ]


def _compare(
  directory: pathlib.Path, rounds: int, measures: Sequence[str], full: bool
) -> tuple[list[dict[str, Any]], list[str]]:
  """Measures one subject in a directory with its name.

  The checkpoint is in its subdirectory `live`, the first export of each side in
  the subdirectory with the name of the side.

  Returns:
    Samples for `results.ratios`; and the differences between the outputs of the
    exports. If there are any, there are no samples.
  """
  name = directory.name
  measures = [m for m in measures if m in subjects.SUBJECTS[name].measures]
  if not measures:
    return [], []
  work_dir = directory / "live"
  work_dir.mkdir()
  print(f"{name}: generating the checkpoint", flush=True)
  command = subjects.measurement("generate", name=name, work_dir=work_dir)
  processes.run(command, directory / "generate.log")
  steps = {
    "export": lambda: _export(directory, "export" in measures),
    "load": lambda: _load(directory),
    "train": lambda: _train(directory, full),
    "inference": lambda: _infer(directory),
    "size": lambda: _size(directory),
  }
  compared = () if measures == ["size"] else ("export", "load")
  samples: list[dict[str, Any]] = []
  for round_ in range(rounds):
    for step, run in steps.items():
      # The first round always exports and loads, to compare the outputs.
      if step in measures or (round_ == 0 and step in compared):
        print(f"{name}, round {round_ + 1}: {step}", flush=True)
        samples += [
          {
            "model": name,
            "measure": measure,
            "side": side,
            "round": round_,
            "values": values,
          }
          for measure, side, values in run()
          if step in measures
        ]
      if step == "load" and round_ == 0 and compared:
        *others, ours = (
          dict(np.load(directory / f"{side}.npz"))
          for side in subjects.sides(name)
        )
        if differing := [
          text for other in others for text in results.differences(ours, other)
        ]:
          return [], differing
  return samples, []


def _export(directory: pathlib.Path, measured: bool) -> list[_Sample]:
  """Exports a subject with each exporter, and keeps the first exports.

  Args:
    directory: The directory of the subject.
    measured: Whether to also export with verification and from other formats,
      and to measure the floor.
  """
  export_dir = directory / "new"
  sides = subjects.sides(directory.name)
  samples = []
  for side in (*sides, "ours_verified") if measured else sides:
    took = _run_exporter(side, export_dir)
    files = [path for path in export_dir.rglob("*") if path.is_file()]
    took["all_mib"] = sum(path.stat().st_size for path in files) / 2**20
    took["pb_kib"] = (export_dir / "saved_model.pb").stat().st_size / 2**10
    samples.append(("export", side, took))
    if side in sides and not (directory / side).exists():
      export_dir.rename(directory / side)
    else:
      shutil.rmtree(export_dir)
  if measured:
    floor = _floor(directory)["cpu_s"]
    for _, _, values in samples:
      values["over_floor"] = (values["cpu_s"] - floor) / values["cpu_s"]
    if subjects.SUBJECTS[directory.name].family == "bert":
      samples += map(_export_from, [directory] * len(_FORMATS), _FORMATS)
    limit = (1.3 * _weights(directory) + 0.8e9) / 2**20
    samples.append(("export", "limit", {"memory_mib": limit}))
  return samples


def _weights(directory: pathlib.Path) -> int:
  """Returns the bytes of the weights of a subject."""
  files = (directory / "live").glob(f"{subjects.CHECKPOINT}.data*")
  return sum(path.stat().st_size for path in files)


def _floor(directory: pathlib.Path) -> dict[str, float]:
  """Measures what any exporter needs: TensorFlow, and a copy of the weights."""
  command = [sys.executable, "-m", "integration_tests.benchmarks.floor"]
  copy = directory / "copy"
  copy.mkdir()
  if _weights(directory):
    command += [f"{directory}/live/{subjects.CHECKPOINT}", f"{copy}/weights"]
  took = processes.run(command, directory / "floor.log")
  shutil.rmtree(copy)
  return took


def _export_from(directory: pathlib.Path, source: str) -> _Sample:
  """Exports a text encoder from a checkpoint of another format."""
  work_dir, export_dir = directory / "live", directory / "new"
  folder = directory / source
  folder.mkdir()
  path = folder / _FORMATS[source]
  if source == "safetensors":
    program = str(subjects.RUNFILES / "exporters" / "safetensors")
    paths = [f"--saved_model_dir={directory / 'ours'}", f"--output_dir={path}"]
    command = [program, *paths]
  else:
    arguments = {"name": directory.name, "work_dir": work_dir, "path": path}
    command = subjects.measurement(f"write_{source}", **arguments)
  processes.run(command, directory / f"{source}.log")
  command = subjects.export_command(
    directory.name, "ours", work_dir, export_dir, checkpoint=path
  )
  took = processes.run(command, directory / "export.log")
  shutil.rmtree(export_dir)
  shutil.rmtree(folder)
  return "export", source, took


def _size(directory: pathlib.Path) -> list[_Sample]:
  """Measures the floor, our exports of a subject, and loading."""
  parameters = {"parameters": _weights(directory) / 4}  # Weights are float32.
  found = {"floor": _floor(directory)}
  for side in ("ours", "ours_verified"):
    found[side] = _run_exporter(side, directory / side)
    if side == "ours":
      paths = {"name": directory.name, "saved_model_dir": directory / side}
      found["load"] = _measure(directory, "load", **paths)
    shutil.rmtree(directory / side)
  return [("size", side, took | parameters) for side, took in found.items()]


def _run_exporter(
  side: str, export_dir: pathlib.Path, size: int | None = None
) -> dict[str, float]:
  """Exports a subject to a folder of its directory."""
  directory = export_dir.parent
  command = subjects.export_command(
    directory.name, side, directory / "live", export_dir, size
  )
  return processes.run(command, directory / "export.log")


def _measure(directory: pathlib.Path, action: str, **kwargs: Any) -> Any:
  """Runs a function of `measurements`, and parses the last line it prints."""
  log = directory / f"{action}.log"
  processes.run(subjects.measurement(action, **kwargs), log)
  return json.loads(log.read_text().splitlines()[-1])


def _load(directory: pathlib.Path) -> Iterator[_Sample]:
  """Loads and calls each export, and keeps its outputs as SIDE.npz."""
  for side in subjects.sides(directory.name):
    arguments = {"name": directory.name, "saved_model_dir": directory / side}
    yield "load", side, _measure(directory, "load", **arguments)


def _train(directory: pathlib.Path, full: bool) -> Iterator[_Sample]:
  """Trains the live model and the exports in turn, step by step."""
  subject = subjects.SUBJECTS[directory.name]
  size = subject.size
  turns = {"live": subject.steps, "ours": subject.steps}
  for measure in ("train", "train_xla"):
    if measure == "train_xla":
      reference = "reference"
      if size > _XLA_SIZE and not full:
        # Model Garden's export takes images of one size.
        size, reference = _XLA_SIZE, "reference_small"
        if not (directory / reference).exists():
          _run_exporter("reference", directory / reference, size)
      turns[reference] = _REFERENCE_XLA_STEPS
    arguments = {"size": size, "jit_compile": measure == "train_xla"}
    for side, values in _in_turn("train", directory, turns, **arguments):
      yield measure, side.removesuffix("_small"), results.of_turns(values)


def _infer(directory: pathlib.Path) -> Iterator[_Sample]:
  """Calls the exports in turn."""
  for batch_size, calls in _INFERENCE_TURNS.items():
    turns = dict.fromkeys(subjects.sides(directory.name), calls)
    for side, values in _in_turn(
      "infer", directory, turns, batch_size=batch_size
    ):
      yield f"inference_{batch_size}", side, results.latency(values)


def _in_turn(
  action: str, directory: pathlib.Path, turns: Mapping[str, int], **kwargs: Any
) -> Iterable[tuple[str, list[dict[str, float]]]]:
  """Runs a function of `measurements` on subdirectories, in turn."""
  commands = {}
  for side in turns:
    paths = {"name": directory.name, "saved_model_dir": directory / side}
    commands[side] = subjects.measurement(action, **paths, **kwargs)
  return processes.take_turns(commands, turns, directory).items()


def define_flags() -> None:
  """Defines the flags of this program."""
  quick = f"with --quick {', '.join(subjects.QUICK)}"
  for name, known, default in (
    ("models", subjects.SUBJECTS, f"{', '.join(subjects.DEFAULT)}; {quick}"),
    ("measures", MEASURES, "all"),
  ):
    known_names = ", ".join(known)
    text = f"Which to compare, of {known_names}. Default: {default}."
    flags.DEFINE_list(name, None, text)
    flags.register_validator(
      name,
      lambda values, known=known: set(values or ()) <= set(known),
      f"Known are {known_names}.",
    )
  flags.DEFINE_integer(
    "rounds", None, "Repetitions. Default: 3; with --quick 1.", lower_bound=1
  )
  flags.DEFINE_bool(
    "quick", False, "Compare the smallest variant of each model, in one round."
  )
  flags.DEFINE_bool(
    "full",
    False,
    "Train ResNet-50 under XLA at its full size, which takes Model Garden's"
    " export minutes for each step.",
  )
  flags.DEFINE_string(
    "output_dir",
    None,
    "Directory for results.json, results.md, ratios.png and sizes.svg. Default:"
    " only print the results.",
  )


def main() -> None:
  """Runs the program with the values of its flags."""
  values = flags.FLAGS
  default = subjects.QUICK if values.quick else subjects.DEFAULT
  output_dir = formats.absolute(values.output_dir)
  try:
    agreed = compare(
      values.models or default,
      values.rounds or (1 if values.quick else 3),
      values.measures or MEASURES,
      full=values.full,
      output_dir=output_dir and pathlib.Path(output_dir),
    )
  except (OSError, processes.ProcessError) as e:
    sys.exit(f"ERROR: {e}")
  sys.exit(0 if agreed else 1)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
