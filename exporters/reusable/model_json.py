"""Describes an export for programs, in `assets.extra/model.json`.

The schema is `docs/model.schema.json`. The card is generated from this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from typing import Any

import tensorflow as tf

from distribution import formats
from distribution import publishing
from exporters.reusable import errors
from exporters.reusable import kinds
from exporters.reusable import model_card
from exporters.reusable import observation
from exporters.reusable import profiles as profiles_lib
from exporters.reusable import saving

PATH = "assets.extra/model.json"
_CARD = "assets.extra/README.md"


def describe(
  card: model_card.Card,
  exporter: str,
  root: tf.train.Checkpoint,
  source: saving.Source,
  signature: tf.types.experimental.ConcreteFunction,
  *,
  profiles: Sequence[str] = (),
  sub_objects: Mapping[str, saving.Source],
  is_keras: bool,
) -> dict[str, Any]:
  """Describes an export.

  Args:
    card: Facts that only the exporter knows.
    exporter: Name of the program.
    root: The exported object.
    source: The model that was exported.
    signature: The export's `serving_default`: names, dtypes and shapes.
    profiles: Names of the freezing profiles.
    sub_objects: The models that are sub-objects, by their paths.
    is_keras: Whether the export is a complete Keras model.
  """
  names = [v.name for v in source.variables]
  inputs = saving.input_specs(source.input_spec)
  outputs = signature.structured_outputs
  attributes = tf.train.TrackableView(root).children(root)
  described = {
    "version": 1,
    "name": card.name,
    "description": card.description,
    "exporter": exporter,
    "kind": kinds.of(
      source.input_spec, source.output_spec, attributes, outputs
    ).name,
    "format": "keras" if is_keras else "reusable",
    "has_training_mode": "training" in source.defaults,
    "inputs": [*_tensors(inputs, card)],
    "outputs": [*_tensors(outputs, card)],
    "hyperparameters": _hyperparameters(source),
    "sub_objects": [
      {"name": name, "hyperparameters": _hyperparameters(sub_object)}
      for name, sub_object in sub_objects.items()
    ],
    "parameters": {
      "all": _size(source.variables),
      "trainable": _size(source.trainable_variables),
    },
    "regularization_losses": len(
      observation.regularized(source.regularization_losses)
    ),
    "variables": [*_variables(source)],
    "profiles": [
      {
        "name": name,
        "description": profiles_lib.describe(name, names),
        "trainable_variables": _names(getattr(root, name)),
      }
      for name in profiles
    ],
    "provenance": dict(card.provenance),
    "versions": {"tensorflow": tf.__version__},
  }
  return described | model_card.usage(
    card, described["parameters"]["trainable"], is_keras=is_keras
  )


def _names(model: Any) -> list[str]:
  return [v.name.removesuffix(":0") for v in model.trainable_variables]


def _size(variables: Sequence[tf.Variable]) -> int:
  return sum(v.shape.num_elements() for v in variables)


def _tensors(
  specs: Mapping[str, Any], card: model_card.Card
) -> Iterator[dict[str, Any]]:
  for name, spec in specs.items():
    if name not in card.meanings:
      raise errors.ExportError(
        f"The card has no meaning for {name}. Add it to its meanings."
      )
    known = {}
    if limits := card.ranges.get(name):
      known["minimum"], known["maximum"] = limits
    if sizes := card.sizes.get(name):
      known["sizes"] = {what: list(size) for what, size in sizes.items()}
    yield {
      "name": name,
      "dtype": spec.dtype.name,
      "shape": spec.shape.as_list(),
      "meaning": card.meanings[name],
      **known,
    }


def _hyperparameters(source: saving.Source) -> list[dict[str, Any]]:
  return [
    {
      "name": h.name,
      "dtype": h.spec.dtype.name,
      "default": h.default,
      "description": h.description,
      **h.limits,
      **({"choices": list(h.choices)} if h.choices else {}),
    }
    for h in source.hyperparameters
  ]


def _variables(source: saving.Source) -> Iterator[dict[str, Any]]:
  names = [v.name for v in source.variables]
  trainable = {v.ref() for v in source.trainable_variables}
  indices = profiles_lib.layer_indices(names)
  for variable, index in zip(source.variables, indices, strict=True):
    yield {
      "name": variable.name.removesuffix(":0"),
      "dtype": variable.dtype.name,
      "shape": variable.shape.as_list(),
      "trainable": variable.ref() in trainable,
      "layer_index": index,
      "weight_decay": variable.ref() in trainable
      and profiles_lib.decays(variable.name),
    }


def verified(report: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entries from a verification report; {} without a report."""
  if not report:
    return {}
  passed = [c["kind"] for c in report["comparisons"] if c["passed"]]
  copied = ("checkpoint_sha256", "weights_sha256", "latency")
  return {
    "versions": report["versions"],
    **{name: report[name] for name in copied if name in report},
    "verification": {"level": report["level"], "passed": passed},
  }


def read(export_dir: str) -> dict[str, Any]:
  """Reads the description of an export.

  Raises:
    ExportError: There is no description, or it is damaged.
  """
  path = pathlib.Path(export_dir, PATH)
  if not path.is_file():
    raise errors.ExportError(
      f"{export_dir} has no {PATH}. Export it again: older exports lack it."
    )
  return parsed(path)


def parsed(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object in a file, which may be a stranger's.

  Raises:
    ExportError: The file is damaged or too large, or has NaN or infinity.
  """
  value = formats.read_json(str(path))
  with errors.of_input(about=f"{path}: "):
    json.dumps(value, allow_nan=False)
  return value


def write(export_dir: str, described: Mapping[str, Any]) -> None:
  """Writes the description, and the card generated from it, into an export."""
  made = contents(export_dir, described)
  pathlib.Path(export_dir, PATH).parent.mkdir(exist_ok=True)
  publishing.write_all(made)


def contents(
  export_dir: str, described: Mapping[str, Any]
) -> dict[pathlib.Path, bytes]:
  """Returns the contents of the description and the card, by their paths."""
  about = f"{export_dir}: {PATH} is incomplete or of another form: "
  with errors.of_input(about=about):
    content = json.dumps(described, indent=2, ensure_ascii=False)
    texts = {PATH: f"{content}\n", _CARD: model_card.text(described)}
    return {pathlib.Path(export_dir, p): t.encode() for p, t in texts.items()}
