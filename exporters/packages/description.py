"""Formats a publisher's description of a model for each hub."""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any

from packaging import licenses
import yaml

from exporters.reusable import errors

_MEANINGS = {
  "publisher": "who publishes the model",
  "name": "its name",
  "version": "its version",
  "license": "an SPDX license expression, such as Apache-2.0",
  "task": "such as image-feature-extraction",
  "dataset": "what it was trained on",
  "purpose": "what it is for",
  "limits": "what it is not for",
  "evaluation": "a list of {metric, value, dataset}; [] if there is none",
}
_OPTIONAL = {"language": "a list of codes, such as [en]"}
_OF_RESULTS = {"metric", "value", "dataset"}
_OF_BENCHMARKS = {"dataset_id", "task_id"}
# Kaggle's names of licenses. Hugging Face has those of SPDX in lower case.
_LICENSES = {
  "AGPL-3.0-only": "GNU Affero General Public License 3.0",
  "Apache-2.0": "Apache 2.0",
  "BSD-3-Clause": "BSD-3-Clause",
  "CC-BY-3.0": "Attribution 3.0 Unported (CC BY 3.0)",
  "CC-BY-4.0": "Attribution 4.0 International (CC BY 4.0)",
  "CC-BY-NC-4.0": "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)",
  "CC-BY-NC-SA-4.0": "CC BY-NC-SA 4.0",
  "CC-BY-SA-3.0": "CC BY-SA 3.0",
  "CC-BY-SA-4.0": "CC BY-SA 4.0",
  "CC0-1.0": "CC0: Public Domain",
  "GPL-2.0-only": "GPL 2",
  "GPL-3.0-only": "GPL 3",
  "LGPL-3.0-only": "GNU Lesser General Public License 3.0",
  "MIT": "MIT",
}


def read(path: str) -> dict[str, Any]:
  """Reads the fields of a card from a YAML file.

  Raises:
    ExportError: A field is missing, unknown or of a wrong type.
  """
  about = f"--card_file={path}: "
  with errors.of_input(OSError, about=about), open(path, "rb") as f:
    content = f.read()
  problems = (ValueError, RecursionError, yaml.YAMLError)
  with errors.of_input(*problems, about=f"{about}not YAML: "):
    fields = yaml.safe_load(content)
  if not isinstance(fields, dict):
    raise errors.ExportError(f"{about}write FIELD: VALUE in each line.")
  for name, meaning in _MEANINGS.items():
    if fields.get(name) in (None, ""):
      raise errors.ExportError(f"{about}{name} is missing: {meaning}.")
  known = {**_MEANINGS, **_OPTIONAL}
  for name, value in fields.items():
    if name not in known:
      raise errors.ExportError(
        f"{about}{name} is unknown. The fields are {', '.join(known)}."
      )
    is_list = name in ("evaluation", "language")
    if not isinstance(value, list if is_list else str):
      advice = known[name] if is_list else "a text; put it in quotes"
      raise errors.ExportError(f"{about}{name}: write {advice}.")
  with errors.of_input(ValueError, about=f"{about}license: "):
    fields["license"] = licenses.canonicalize_license_expression(
      fields["license"]
    )
  for code in fields.get("language", []):
    if not isinstance(code, str):
      raise errors.ExportError(f"{about}language: {code} is no text; quote it.")
  for result in fields["evaluation"]:
    if (
      not isinstance(result, dict)
      or set(result) not in (_OF_RESULTS, _OF_RESULTS | _OF_BENCHMARKS)
      or type(result["value"]) not in (int, float)
    ):
      raise errors.ExportError(
        f"{about}evaluation: write {_MEANINGS['evaluation']}; value is a"
        " number. A benchmark of Hugging Face also has dataset_id and task_id."
      )
  return fields


def epochs(path: str) -> list[dict[str, float]]:
  """Reads the metrics of each epoch from a --training_record of use_*.

  Raises:
    ExportError: The file is not such a record.
  """
  about = f"--fine_tuning_record={path}: "
  with errors.of_input(OSError, about=about), open(path, "rb") as f:
    content = f.read()
  problems = (ValueError, RecursionError, KeyError, TypeError, AttributeError)
  with errors.of_input(*problems, about=f"{about}not a training record: "):
    return [
      {str(name): float(value) for name, value in epoch.items()}
      for epoch in json.loads(content)["epochs"]
    ]


def eval_results(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns benchmark results in the format of Hugging Face's .eval_results."""
  return [
    {
      "dataset": {"id": r["dataset_id"], "task_id": r["task_id"]},
      "value": r["value"],
    }
    for r in fields["evaluation"]
    if "dataset_id" in r
  ]


def readme(fields: Mapping[str, Any], card: str, pictures: str) -> str:
  """Returns the card with front matter for Hugging Face.

  Args:
    fields: The fields of the card.
    card: The card that the exporter wrote.
    pictures: The section with pictures of the model, in Markdown.
  """
  license_ = fields["license"]
  front = {
    "library_name": "tf-keras",
    "license": license_.lower() if license_ in _LICENSES else "other",
    "pipeline_tag": fields["task"],
    "tags": ["tensorflow", "saved-model"],
  }
  if license_ not in _LICENSES:
    front["license_name"] = license_
  if "language" in fields:
    front["language"] = fields["language"]
  if results := fields["evaluation"]:
    front["model-index"] = [
      {
        "name": fields["name"],
        "results": [
          {
            "task": {"type": fields["task"]},
            "dataset": _dataset(r),
            "metrics": [{"type": r["metric"], "value": r["value"]}],
          }
          for r in results
        ],
      }
    ]
  matter = yaml.safe_dump(front, allow_unicode=True, width=1000)
  return f"---\n{matter}---\n\n{text(fields, pictures + card)}"


def _dataset(result: Mapping[str, Any]) -> dict[str, str]:
  name = result["dataset"]
  if "dataset_id" not in result:
    return {"name": name, "type": name}
  benchmark = {"type": result["dataset_id"], "config": result["task_id"]}
  return {"name": name, **benchmark}


def text(fields: Mapping[str, Any], card: str) -> str:
  """Returns the card with the publisher's description of the model."""
  rows = "\n".join(
    f"| {r['metric']} | {r['value']} | {r['dataset']} |"
    for r in fields["evaluation"]
  )
  evaluation = "None."
  if rows:
    evaluation = f"| metric | value | data set |\n| --- | --- | --- |\n{rows}"
  return f"""\
# {fields["name"]} {fields["version"]}

Published by {fields["publisher"]} under {fields["license"]}. Trained on \
{fields["dataset"]}.

## Purpose

{fields["purpose"]}

## Limits

{fields["limits"]}

## Evaluation

{evaluation}

{card}"""


def kaggle_metadata(
  fields: Mapping[str, Any], card: str, handle: str, *, fine_tunable: bool
) -> dict[str, dict[str, Any]]:
  """Returns Kaggle's metadata files, by name.

  They do not say whether the model is private, so that setting stays.

  Args:
    fields: The fields of the card.
    card: The card that the exporter wrote.
    handle: OWNER/MODEL/FRAMEWORK/VARIATION.
    fine_tunable: Whether the model has trainable variables.

  Raises:
    ExportError: Kaggle does not know the license.
  """
  owner, model, framework, variation = handle.split("/")
  return {
    "model-metadata.json": {
      "ownerSlug": owner,
      "slug": model,
      "title": fields["name"],
      "subtitle": "",
      "description": text(fields, card),
      "publishTime": "",
      "provenanceSources": fields["dataset"],
    },
    "model-instance-metadata.json": {
      "ownerSlug": owner,
      "modelSlug": model,
      "instanceSlug": variation,
      "framework": framework,
      "overview": fields["purpose"],
      "usage": card,
      "licenseName": kaggle_license(fields["license"]),
      "fineTunable": fine_tunable,
      "trainingData": [fields["dataset"]],
    },
  }


def kaggle_license(license_: str) -> str:
  """Returns Kaggle's name of a license.

  Raises:
    ExportError: Kaggle does not know the license.
  """
  if license_ not in _LICENSES:
    raise errors.ExportError(
      f"Kaggle has no license {license_}, but {', '.join(_LICENSES)}."
    )
  return _LICENSES[license_]
