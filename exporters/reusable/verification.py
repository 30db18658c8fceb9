"""Proves that an export equals its live model."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
from importlib import metadata
import itertools
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from rich import console
from rich import table
import tensorflow as tf

from exporters.reusable import errors
from exporters.reusable import imports
from exporters.reusable import layer_calls
from exporters.reusable import observation
from exporters.reusable import saving

# Packages whose versions are recorded, besides TensorFlow, whose package has
# several names.
_PACKAGES = (
  "tf-keras",
  "tensorflow-hub",
  "tf-models-official",
)

# A model or a sub-object, and its inputs.
Part = tuple[saving.Source, Sequence[Any]]


def start(level: str) -> subprocess.Popen | None:
  """Starts the process that checks an export; returns None if `level` is `off`.

  Call it early: importing TensorFlow takes seconds. The process exits with this
  one at the latest.
  """
  if level == "off":
    return None
  return subprocess.Popen(
    [
      sys.executable,
      "-P",  # Keeps this directory, whose names are not unique, off the path.
      "-Wignore:pkg_resources is deprecated",  # By tensorflow-hub.
      observation.__file__,
      level,
      *imports.OPTIONAL,
      "scipy",  # Layers of Model Garden need it; an export does not.
    ],
    env={
      **os.environ,
      "PYTHONPATH": str(pathlib.Path(observation.__file__).parents[2]),
      "CUDA_VISIBLE_DEVICES": "-1",  # See `_compared`.
      "PYTHONIOENCODING": "utf-8",  # It prints ticks.
      "TF_USE_LEGACY_KERAS": "1",  # tensorflow-hub is Keras 2.
    },
    stdin=subprocess.PIPE,
    bufsize=0,
  )


def verify(
  export_dir: str,
  source: saving.Source,
  examples: Sequence[Any],
  level: str,
  *,
  sub_objects: Mapping[str, Part] | None = None,
  process: subprocess.Popen | None = None,
  record: Mapping[str, Any] | None = None,
  keep_failed: str | None = None,
) -> None:
  """Compares an export with its live model, in a process without model code.

  The comparisons that passed are written to `assets.extra/verification.json` in
  the export, with a SHA-256 of dtype, shape and value of all variables.

  Args:
    export_dir: The directory of the SavedModel.
    source: The live model.
    examples: Inputs of different sizes: Tensors, RaggedTensors, or lists or
      dicts of them.
    level: `full`, `fast` or `off`. `fast` takes the first example only, and
      leaves out gradients, changed hyperparameters, hub.KerasLayer, compilation
      under XLA and saving again.
    sub_objects: Model and inputs of each attribute of the export that is
      reusable by itself, such as `mlm`. Each is compared like `source`.
    process: The result of `start`, if it was called before.
    record: Further entries of the report, such as the flags of the exporter.
      Changes after this call have no effect.
    keep_failed: Where to move an export that fails.

  Raises:
    ExportError: The export differs, or does not compile once under XLA.
  """
  if level == "off":
    return
  print(f"Verifying the export ({level})", flush=True)
  record = {**(record or {}), "level": level}
  parts = {"": (source, examples), **(sub_objects or {})}
  results, record["weights_sha256"] = _compared(
    export_dir, parts, level, process
  )
  problems = [
    (r.place, text + _layer(parts, text))
    for r in results
    for text in r.problems
  ]
  if problems:
    _print_table(problems)
    if keep_failed:
      shutil.move(export_dir, keep_failed)
    raise errors.ExportError(
      f"The export failed its verification in {len(problems)} ways (see above)."
      " Nothing was exported"
      + (f"; it is kept at {keep_failed}." if keep_failed else ".")
    )
  _write_report(export_dir, results, record)


def _compared(
  export_dir: str,
  parts: Mapping[str, Part],
  level: str,
  process: subprocess.Popen | None,
) -> tuple[list[observation.Result], str]:
  """Observes the live model and lets the process compare the export with it.

  Returns:
    The results, and a SHA-256 of the live model's variables.
  """
  weights = hashlib.sha256()
  with tempfile.TemporaryDirectory() as work_dir:
    results_path = pathlib.Path(work_dir, "results.json")
    # A process that ends early says why, and its exit status tells.
    with (
      contextlib.suppress(BrokenPipeError),
      process or start(level) as process,
    ):
      process.stdin.write(f"{export_dir}\n{results_path}\n".encode())
      # Both sides compute on the CPU: GPUs multiply float32 in TF32, which is
      # off by a thousandth, and the GPU that this process trained on is full.
      with tf.device("/CPU:0"):
        plan, seen = observe(parts, level)
        seen = _hashed(seen, weights)
        for path in _write(pathlib.Path(work_dir), plan, seen):
          process.stdin.write(f"{path}\n".encode())
    if process.returncode:
      problem = "the export cannot be loaded and called"
      results = [observation.Result("", "", 0.0, [problem])]
    else:
      results = [
        observation.Result(*r) for r in json.loads(results_path.read_text())
      ]
  return results, weights.hexdigest()


def _layer(parts: Mapping[str, Part], problem: str) -> str:
  """Names the class of the innermost layer in the path that a problem has."""
  by_name = {
    layer.name: layer_calls.class_name(type(layer))
    for source, _ in parts.values()
    for layer in getattr(source.model, "submodules", ())
  }
  path = re.search(r"\((\S+) in \S+\)", problem)
  for name in path[1].split("/")[::-1] if path else ():
    if layer := by_name.get(name):
      return f" (layer {name}: {layer})"
  return ""


def _write(
  work_dir: pathlib.Path,
  plan: Mapping[str, Sequence[observation.Call]],
  seen: Iterator[observation.Observation],
) -> Iterator[pathlib.Path]:
  """Writes the files for the process to read, each as it is made."""
  plain = {name: [tuple(c) for c in calls] for name, calls in plan.items()}
  for i, item in enumerate(itertools.chain([(plain,)], seen)):
    path = work_dir / str(i)
    observation.write(path, tuple(item))
    yield path


def observe(
  parts: Mapping[str, Part], level: str
) -> tuple[
  dict[str, list[observation.Call]], Iterator[observation.Observation]
]:
  """Observes a live model and its sub-objects.

  Returns:
    The calls by name of the sub-object, and the observations.
  """
  # Before the first call, after which TensorFlow copies some variables to read
  # them.
  states = {
    name: list(observation.observe_state(name, source))
    for name, (source, _) in parts.items()
  }
  known: dict[str, dict[str, observation.Run]] = {name: {} for name in parts}
  plan = {
    name: list(_calls(name, *part, level, known[name]))
    for name, part in parts.items()
  }

  def seen() -> Iterator[observation.Observation]:
    for name, (source, _) in parts.items():
      yield from states[name]
      yield from observation.observe_calls(
        name, source, source.call, plan[name], known[name]
      )

  return plan, seen()


def _calls(
  part: str,
  source: saving.Source,
  examples: Sequence[Any],
  level: str,
  known: dict[str, observation.Run],
) -> Iterator[observation.Call]:
  """Plans the calls to compare the live model and its export in.

  Planning makes calls. The results of those that are in the plan are added to
  `known`.
  """
  steady = {h.name: h.off for h in source.hyperparameters if h.off is not None}
  training = {"training": True} if "training" in source.defaults else {}
  training_steadily = {**training, **steady}
  trained = _repeatable_run(source, examples[0], training_steadily)
  if not trained:
    print(
      f"  - {part}{': ' if part else ''}training is not compared: it is random"
      + "".join(f", also with {name} {off:g}" for name, off in steady.items())
    )
  learning = {
    # Differentiating the export takes longer than loading it.
    "gradients": level == "full" and bool(source.trainable_variables),
    "updates": len(source.variables) > len(source.trainable_variables),
  }
  for i, example in enumerate(examples if level == "full" else examples[:1]):
    size = _size(example)
    compilation = learning["gradients"] and i == 0
    yield observation.Call(
      f"inference {size}",
      example,
      {},
      **({} if training else learning),
      compilation=compilation and not training,
    )
    name = f"training {size}"
    if training and trained:
      if i == 0 and not learning["gradients"]:
        known[name] = trained
      yield observation.Call(
        name,
        example,
        training_steadily,
        **learning,
        keras=level == "full" and i == 0,
        compilation=compilation,
      )
    elif training and compilation:
      yield observation.Call(
        name, example, training, compilation=True, random=True
      )
  if level == "full":
    yield from _hyperparameter_calls(
      source,
      examples[0],
      training_steadily,
      learning["updates"],
      trained is not None,
    )


def _size(example: Any) -> str:
  tensors = tf.nest.flatten(example)
  count = f"{len(tensors)} of " if len(tensors) > 1 else ""
  return f"{count}{tensors[0].shape}"


def _repeatable_run(
  source: saving.Source, example: Any, arguments: Mapping[str, Any]
) -> observation.Run | None:
  """Calls a live model; returns None if a second call differs."""
  runs = [
    observation.run(source, source.call, example, arguments) for _ in range(2)
  ]
  return runs[0] if observation.is_same(*runs) else None


def _hyperparameter_calls(
  source: saving.Source,
  example: Any,
  arguments: Mapping[str, Any],
  updates: bool,
  repeatable: bool,
) -> Iterator[observation.Call]:
  """Plans the calls with each hyperparameter changed.

  Args:
    source: The live model.
    example: The input.
    arguments: The other arguments of the calls.
    updates: Whether to observe non-trainable variables after the call.
    repeatable: Whether two calls with `arguments` return the same.
  """
  for h in source.hyperparameters:
    value = observation.changed(h.default)
    changed = {**arguments, h.name: value}
    name = f"{h.name} {value:g}"
    if h.off is None and repeatable:
      yield observation.Call(name, example, changed, updates=updates)
    yield observation.Call(name, example, changed, without=arguments)


def _print_table(problems: Sequence[tuple[str, str]]) -> None:
  result = table.Table("compared", "problem", title="Failed verification")
  for row in problems:
    result.add_row(*row)
  console.Console().print(result)


def _hashed(
  seen: Iterator[observation.Observation], weights: Any
) -> Iterator[observation.Observation]:
  """Adds the digests of variables to a hash; passes all observations on."""
  for item in seen:
    if item.kind == "variables":
      for digest in item.arrays.values():
        weights.update(digest)
    yield item


def _write_report(
  export_dir: str,
  results: Sequence[observation.Result],
  record: Mapping[str, Any],
) -> None:
  """Writes the comparisons that passed.

  The report is the same in every run: it leaves out differences, whose last
  bits depend on how an op shares its work among threads.
  """
  report = {
    **record,
    "singleprint": tf.saved_model.experimental.read_fingerprint(
      export_dir
    ).singleprint(),
    "versions": {
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
      **{name: metadata.version(name) for name in _PACKAGES},
    },
    "comparisons": [
      {
        **comparison._asdict(),
        "kind": kind,
        "passed": [r.place for r in results if r.kind == kind],
      }
      for kind, comparison in observation.COMPARISONS.items()
    ],
  }
  directory = pathlib.Path(export_dir, "assets.extra")
  directory.mkdir(exist_ok=True)
  (directory / "verification.json").write_text(
    json.dumps(report, indent=2) + "\n"
  )
