"""Proves that an export equals the model it was made of."""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from rich import console
from rich import table
import tensorflow as tf

from exporters.reusable import errors
from exporters.reusable import observation
from exporters.reusable import saving


def verify(
  export_dir: str,
  source: saving.Source,
  examples: Sequence[Any],
  level: str,
  *,
  sub_objects: Mapping[str, tuple[saving.Source, Sequence[Any]]] | None = None,
  keep_failed: str | None = None,
) -> None:
  """Compares an export, in a process of its own, with the live model.

  The process imports no more than a consumer does. What was compared is written
  into the export, `assets.extra/verification.json`.

  Args:
    export_dir: The directory of the SavedModel.
    source: The live model.
    examples: Inputs of different sizes: Tensors, RaggedTensors, or lists or
      dicts of them.
    level: `full`; `fast`, with the first example alone, and without changing
      hyperparameters and saving again; or `off`.
    sub_objects: For the name of each attribute of the export that is an export
      by itself, such as `mlm`: its model and inputs. All is compared that is
      compared of `source`.
    keep_failed: Where to move an export that fails.

  Raises:
    ExportError: The export differs.
  """
  if level == "off":
    return
  print(f"Verifying the export ({level})", flush=True)
  with tempfile.TemporaryDirectory() as work_dir:
    work = pathlib.Path(work_dir)
    # It loads the export while this process observes the live model.
    with subprocess.Popen(
      # -P: beside this module are others with names that are not ours alone.
      [sys.executable, "-P", observation.__file__, export_dir, work_dir],
      env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
      | {"PYTHONIOENCODING": "utf-8"},  # It prints ticks.
      stdin=subprocess.PIPE,
    ) as process:
      parts = {"": (source, examples), **(sub_objects or {})}
      plan = {
        name: list(_calls(name, *part, level)) for name, part in parts.items()
      }
      observation.write(
        work, _observe(parts, plan), plan, save_again=level == "full"
      )
    if process.returncode:
      problems = [("process", "", "the export cannot be loaded and called")]
    else:
      results = json.loads((work / "results.json").read_text())
      problems = [
        (kind, what, problem)
        for kind, what, _, found in results
        for problem in found
      ]
  if problems:
    _print_table(problems)
    if keep_failed:
      shutil.move(export_dir, keep_failed)
    raise errors.ExportError(
      f"The export differs from the model in {len(problems)} ways (see above)."
      " Nothing was exported"
      + (f"; it is kept at {keep_failed}." if keep_failed else ".")
    )
  _write_report(export_dir, source, level, results)


def _calls(
  part: str, source: saving.Source, examples: Sequence[Any], level: str
) -> Iterator[observation.Call]:
  """Plans the calls that the live model and its export are compared in."""
  steady = {h.name: h.off for h in source.hyperparameters if h.off is not None}
  training = {"training": True} if "training" in source.defaults else {}
  training_steadily = {**training, **steady}
  repeatable = observation.is_same(
    source, source.call, examples[0], training_steadily, training_steadily
  )
  if not repeatable:
    print(
      f"  - {part}{': ' if part else ''}training is not compared: it is random"
      + "".join(f", also with {name} {off:g}" for name, off in steady.items())
    )
  learning = {
    "gradients": bool(source.trainable_variables),
    "updates": len(source.variables) > len(source.trainable_variables),
  }
  for i, example in enumerate(examples if level == "full" else examples[:1]):
    size = " ".join(str(x.shape) for x in tf.nest.flatten(example)[:1])
    yield observation.Call(
      f"inference, {size}", example, {}, **({} if training else learning)
    )
    if training and repeatable:
      yield observation.Call(
        f"training, {size}", example, training_steadily, **learning
      )
  if level == "full":
    for h in source.hyperparameters:
      value = _changed(h.default)
      changed = {**training_steadily, h.name: value}
      if h.off is None and repeatable:
        yield observation.Call(
          f"{h.name} {value:g}", examples[0], changed, **learning
        )
      yield observation.Call(
        f"of {h.name} {value:g}",
        examples[0],
        changed,
        without=training_steadily,
      )


def _changed(default: float) -> float:
  """Returns another value for a hyperparameter, of the same type."""
  if isinstance(default, int):
    return default // 2 or 2
  return default / 2 or 0.5


def _observe(
  parts: Mapping[str, tuple[saving.Source, Sequence[Any]]],
  plan: Mapping[str, Sequence[observation.Call]],
) -> Iterator[tuple[str, str, observation.Arrays]]:
  for name, (source, _) in parts.items():
    yield from observation.of_part(
      name, observation.observe(source, source.call, plan[name])
    )


def _print_table(problems: Sequence[tuple[str, str, str]]) -> None:
  result = table.Table(
    "compared", "in", "difference", title="The export differs"
  )
  for row in problems:
    result.add_row(*row)
  console.Console().print(result)


def _write_report(
  export_dir: str,
  source: saving.Source,
  level: str,
  results: Sequence[Sequence[Any]],
) -> None:
  """Writes what was compared; nothing that differs from run to run."""
  weights = hashlib.sha256()
  for variable in source.variables:
    weights.update(variable.numpy().tobytes())
  report = {
    "level": level,
    "compared": [f"{kind}, {what}" for kind, what, *_ in results],
    "tolerances": observation.TOLERANCES,
    "versions": {"tensorflow": tf.__version__, "numpy": np.__version__},
    "weights_sha256": weights.hexdigest(),
    "singleprint": tf.saved_model.experimental.read_fingerprint(
      export_dir
    ).singleprint(),
  }
  directory = pathlib.Path(export_dir, "assets.extra")
  directory.mkdir(exist_ok=True)
  (directory / "verification.json").write_text(
    json.dumps(report, indent=2) + "\n"
  )
