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
    ValueError: The file is not readable, or it has an unknown encoder type, an
      unknown key, or a value of a wrong type.
  """
  try:
    values = yaml.safe_load(_read(path))
  except yaml.YAMLError as e:
    raise ValueError(f"not YAML: {' '.join(str(e).split())}") from e
  if not isinstance(values, dict) or "type" not in values:
    raise ValueError("it has no `type`, the type of the encoder")
  types = [f.name for f in dataclasses.fields(encoders.EncoderConfig)]
  for key in values:
    _check_key(key, types)
  kind = values.pop("type")
  types.remove("type")
  types.remove("any")  # An encoder that Python code defines.
  _check_key(kind, types, "type")
  if kind == "xlnet":
    raise ValueError(
      "type xlnet is not supported: its inputs are not those of BERT"
    )
  for other in set(values) - {kind}:
    raise ValueError(f"it is of type {kind}, and also has `{other}`")
  values = values.get(kind) or {}
  if not isinstance(values, dict):
    raise ValueError(f"`{kind}` has no keys")
  return _config(kind, values)


def from_legacy_json(path: str) -> encoders.EncoderConfig:
  """Reads the JSON format of the first BERT models, `bert_config.json`.

  Raises:
    ValueError: The file is not readable, or it has an unknown key, a value of a
      wrong type, or no `vocab_size`.
  """
  try:
    values = json.loads(_read(path))
  except json.JSONDecodeError as e:
    raise ValueError(f"not JSON: {e}") from e
  if not isinstance(values, dict):
    raise ValueError("it is not an object with keys")
  known = legacy_configs.BertConfig(vocab_size=None).to_dict()
  for key in values:
    _check_key(key, {*known, *_LEGACY_WITHOUT_EFFECT})
  if "vocab_size" not in values:
    raise ValueError("it has no vocab_size")
  return _config(
    "bert",
    {
      _LEGACY_NAMES.get(key, key): value
      for key, value in {**known, **values}.items()
      if key not in _LEGACY_WITHOUT_EFFECT
    },
    {new: old for old, new in _LEGACY_NAMES.items()},
  )


def _read(path: str) -> str:
  try:
    with open(path, encoding="utf-8") as f:
      return f.read()
  except OSError as e:
    raise ValueError(e.strerror) from e
  except UnicodeDecodeError as e:
    raise ValueError("not UTF-8 text") from e


def _config(
  kind: str, values: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> encoders.EncoderConfig:
  """Makes a config. `names` maps keys to those in the user's file."""
  config = encoders.EncoderConfig(type=kind)
  defaults = {
    f.name: getattr(config.get(), f.name)
    for f in dataclasses.fields(config.get())
  }
  for key, value in values.items():
    _check_key(key, defaults)
    _check_type((names or {}).get(key, key), value, defaults[key])
  config.override({kind: dict(values)}, is_strict=True)
  return config


def _check_key(key: Any, known: Collection[str], what: str = "key") -> None:
  if key not in known:
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    raise ValueError(f"unknown {what} {key}; the nearest is {nearest[0]}")


def _check_type(key: str, value: Any, default: Any) -> None:
  """Raises a ValueError for a value of another type than the default's."""
  expected = type(default)
  if expected is float and type(value) is int:
    return
  if default is None or isinstance(default, (list, tuple)):
    return
  if type(value) is not expected:
    raise ValueError(f"{key} is {value!r}, and must be {expected.__name__}")
