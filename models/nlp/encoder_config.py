"""Reads and checks configs of Model Garden's encoders.

Model Garden itself ignores unknown keys of the legacy JSON format, and raises a
traceback for those of the YAML format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
import dataclasses
import difflib
import json
from typing import Any

from etils import epy

with epy.lazy_imports():
  from official.legacy.bert import configs as legacy_configs
  from official.nlp.configs import encoders
  import yaml

# Legacy names that differ from the current ones.
_LEGACY_NAMES = {
  "num_hidden_layers": "num_layers",
  "hidden_act": "hidden_activation",
  "hidden_dropout_prob": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
}
# Keys of published files that have no effect.
_LEGACY_WITHOUT_EFFECT = {
  *("backward_compatible", "directionality", "pooler_fc_size", "pooler_type"),
  *("pooler_num_attention_heads", "pooler_num_fc_layers"),
  "pooler_size_per_head",
}


def from_yaml(path: str) -> encoders.EncoderConfig:
  """Reads the YAML of an `official.nlp.configs.encoders.EncoderConfig`.

  For example:

      type: bert
      bert: {vocab_size: 30522, num_layers: 12}

  Missing fields take Model Garden's defaults.

  Raises:
    OSError: The file is not readable.
    ValueError: It has an unknown encoder type, an unknown key, or a value of a
      wrong type.
  """
  try:
    with open(path, "rb") as f:
      values = yaml.safe_load(f)
  except yaml.YAMLError as e:
    raise ValueError(f"not YAML: {' '.join(str(e).split())}") from e
  if not isinstance(values, dict) or "type" not in values:
    raise ValueError("it has no `type`, the type of the encoder")
  types = [f.name for f in dataclasses.fields(encoders.EncoderConfig)]
  for key in values:
    _check_known("key", key, types)
  kind = values.pop("type")
  types.remove("type")
  types.remove("any")  # An encoder that Python code defines.
  _check_known("type", kind, types)
  if kind == "xlnet":
    raise ValueError(
      "type xlnet is not supported: its inputs are not those of BERT"
    )
  for other in set(values) - {kind}:
    raise ValueError(f"it is of type {kind}, and also has `{other}`")
  values = values.get(kind) or {}
  if not isinstance(values, dict):
    raise ValueError(f"`{kind}` has no keys")
  config = encoders.EncoderConfig(type=kind)
  _check(values, config.get().as_dict())
  config.override({kind: values})
  return config


def from_legacy_json(path: str) -> encoders.EncoderConfig:
  """Reads the JSON format of the first BERT models, `bert_config.json`.

  Raises:
    OSError: The file is not readable.
    ValueError: It has an unknown key, a value of a wrong type, or no
      `vocab_size`.
  """
  try:
    with open(path, encoding="utf-8") as f:
      values = json.load(f)
  except ValueError as e:  # This includes text that is not UTF-8.
    raise ValueError(f"not JSON: {e}") from e
  if not isinstance(values, dict):
    raise ValueError("it is not an object with keys")
  defaults = legacy_configs.BertConfig(vocab_size=0).to_dict()
  _check(values, {**defaults, **dict.fromkeys(_LEGACY_WITHOUT_EFFECT)})
  if "vocab_size" not in values:
    raise ValueError("it has no vocab_size")
  fields = {
    _LEGACY_NAMES.get(key, key): value
    for key, value in {**defaults, **values}.items()
    if key not in _LEGACY_WITHOUT_EFFECT
  }
  config = encoders.EncoderConfig(type="bert")
  config.override({"bert": fields})
  return config


def _check(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
  """Raises a ValueError for unknown keys and values of another type."""
  for key, value in values.items():
    _check_known("key", key, defaults)
    expected = type(defaults[key])
    if expected in (type(None), list, tuple):  # Any value will do.
      continue
    if type(value) not in ((float, int) if expected is float else (expected,)):
      raise ValueError(f"{key} is {value!r}, and must be {expected.__name__}")


def _check_known(what: str, key: Any, known: Collection[str]) -> None:
  if key not in known:
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    raise ValueError(f"unknown {what} {key}; the nearest is {nearest[0]}")
