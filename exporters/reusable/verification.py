"""Proves that an export equals the model it was made of."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
from importlib import metadata
import itertools
import json
import os
import pathlib
import platform
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
from exporters.reusable import observation
from exporters.reusable import saving

# Whose versions may matter to an export, beside TensorFlow's, which comes in
# packages of several names.
_PACKAGES = (
  "tf-keras",
  "tensorflow-hub",
  "tf-models-official",
)

# A model or a sub-object of it, and inputs.
Part = tuple[saving.Source, Sequence[Any]]


def start(level: str) -> subprocess.Popen | None:
  """Starts the process that checks an export; None if `level` is `off`.

  It takes seconds to import TensorFlow: the earlier, the better. It ends with
  this process, if `verify` does not end it.
  """
  if level == "off":
    return None
  return subprocess.Popen(
    [
      sys.executable,
      "-P",  # Beside this module are others with names that are not ours alone.
      "-Wignore:pkg_resources is deprecated",  # By tensorflow-hub.
      observation.__file__,
      level,
      *imports.OPTIONAL,
      "scipy",  # Layers of Model Garden need it; an export does not.
    ],
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    | {
      "CUDA_VISIBLE_DEVICES": "-1",  # See `verify`.
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
  """Compares an export, in a process of its own, with the live model.

  The process imports no more than a consumer does. What was compared is written
  into the export, `assets.extra/verification.json`, with a SHA-256 of the
  weights: of those of each variable's dtype, shape and value, in their order.

  Args:
    export_dir: The directory of the SavedModel.
    source: The live model.
    examples: Inputs of different sizes: Tensors, RaggedTensors, or lists or
      dicts of them.
    level: `full`; `fast`, with the first example alone, and without gradients,
      changing hyperparameters, hub.KerasLayer and saving again; or `off`.
    sub_objects: For the name of each attribute of the export that is an export
      by itself, such as `mlm`: its model and inputs. All is compared that is
      compared of `source`.
    process: What `start` has returned, if it was called before.
    record: What the report shall tell, too, such as the flags of the exporter.
    keep_failed: Where to move an export that fails.

  Raises:
    ExportError: The export differs.
  """
  if level == "off":
    return
  print(f"Verifying the export ({level})", flush=True)
  parts = {"": (source, examples), **(sub_objects or {})}
  with tempfile.TemporaryDirectory() as work_dir:
    results_path = pathlib.Path(work_dir, "results.json")
    # It says what is wrong, and its status does, if it ends before it has read.
    with (
      contextlib.suppress(BrokenPipeError),
      process or start(level) as process,
    ):
      process.stdin.write(f"{export_dir}\n{results_path}\n".encode())
      weights = hashlib.sha256()
      # Both sides on the CPU. GPUs compute products of float32 in TF32, a
      # thousandth off, and the one that this process trained on is full.
      with tf.device("/CPU:0"):
        plan, seen = observe(parts, level)
        seen = _hashed(seen, weights)
        for path in _write(pathlib.Path(work_dir), plan, seen):
          process.stdin.write(f"{path}\n".encode())
    if process.returncode:
      problems = [("", "the export cannot be loaded and called")]
    else:
      results = [
        observation.Result(*r) for r in json.loads(results_path.read_text())
      ]
      problems = [(r.place, text) for r in results for text in r.problems]
  if problems:
    _print_table(problems)
    if keep_failed:
      shutil.move(export_dir, keep_failed)
    raise errors.ExportError(
      f"The export differs from the model in {len(problems)} ways (see above)."
      " Nothing was exported"
      + (f"; it is kept at {keep_failed}." if keep_failed else ".")
    )
  _write_report(
    export_dir,
    results,
    {**(record or {}), "level": level, "weights_sha256": weights.hexdigest()},
  )


def _write(
  work_dir: pathlib.Path,
  plan: Mapping[str, Sequence[observation.Call]],
  seen: Iterator[observation.Observation],
) -> Iterator[pathlib.Path]:
  """Writes, as it is made, each file that the process has to read."""
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
    The calls that are made of each, and what is seen.
  """
  # All before the first call, after which TensorFlow copies some variables to
  # read them.
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
  """Plans the calls that the live model and its export are compared in.

  To plan takes calls; what came out of one that is in the plan goes to `known`.
  """
  steady = {h.name: h.off for h in source.hyperparameters if h.off is not None}
  training = {"training": True} if "training" in source.defaults else {}
  training_steadily = {**training, **steady}
  runs = [
    observation.run(source, source.call, examples[0], training_steadily)
    for _ in range(2)
  ]
  repeatable = observation.is_same(*runs)
  if not repeatable:
    print(
      f"  - {part}{': ' if part else ''}training is not compared: it is random"
      + "".join(f", also with {name} {off:g}" for name, off in steady.items())
    )
  learning = {
    # To derive the export takes longer than to load it.
    "gradients": level == "full" and bool(source.trainable_variables),
    "updates": len(source.variables) > len(source.trainable_variables),
  }
  for i, example in enumerate(examples if level == "full" else examples[:1]):
    tensors = tf.nest.flatten(example)
    size = f"{len(tensors)} of " if len(tensors) > 1 else ""
    size += str(tensors[0].shape)
    yield observation.Call(
      f"inference {size}", example, {}, **({} if training else learning)
    )
    if training and repeatable:
      name = f"training {size}"
      if i == 0 and not learning["gradients"]:
        known[name] = runs[0]
      yield observation.Call(
        name,
        example,
        training_steadily,
        **learning,
        keras=level == "full" and i == 0,
      )
  if level == "full":
    for h in source.hyperparameters:
      value = observation.changed(h.default)
      changed = {**training_steadily, h.name: value}
      name = f"{h.name} {value:g}"
      if h.off is None and repeatable:
        yield observation.Call(
          name, examples[0], changed, updates=learning["updates"]
        )
      yield observation.Call(
        name, examples[0], changed, without=training_steadily
      )


def _print_table(problems: Sequence[tuple[str, str]]) -> None:
  result = table.Table("compared", "difference", title="The export differs")
  for row in problems:
    result.add_row(*row)
  console.Console().print(result)


def _hashed(
  seen: Iterator[observation.Observation], weights: Any
) -> Iterator[observation.Observation]:
  """Adds the digests of all variables to a hash, as they come by."""
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
  """Writes what was compared; nothing that differs from run to run.

  So no differences: how an operation shares its work among threads may change
  the last bits.
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
