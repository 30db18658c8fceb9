"""Reads and checks configs of Model Garden's encoders.

Model Garden itself ignores unknown keys in the legacy JSON format, and raises a
traceback for unknown keys in YAML.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
import dataclasses
import difflib
import json
import math
import re
from typing import Any

from etils import epy

from distribution import errors
from distribution import formats

with epy.lazy_imports():
  from official.legacy.bert import configs as legacy_configs
  from official.nlp.configs import encoders
  import yaml

# Legacy names of fields whose current names differ.
_LEGACY_NAMES = {
  "num_hidden_layers": "num_layers",
  "hidden_act": "hidden_activation",
  "hidden_dropout_prob": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
}
_ALBERT_NAMES = {**_LEGACY_NAMES, "embedding_size": "embedding_width"}
# Keys that do not affect the encoder, in published files of BERT and ALBERT and
# in the config.json of Hugging Face's transformers.
_LEGACY_WITHOUT_EFFECT = {
  *("backward_compatible", "directionality", "pooler_fc_size", "pooler_type"),
  *("pooler_num_attention_heads", "pooler_num_fc_layers"),
  "pooler_size_per_head",
  *("down_scale_factor", "gap_size", "num_memory_blocks", "layers_to_keep"),
  *("_name_or_path", "architectures", "bos_token_id", "classifier_dropout"),
  *("classifier_dropout_prob", "dtype", "eos_token_id", "finetuning_task"),
  *("gradient_checkpointing", "id2label", "label2id", "model_type"),
  *("num_labels", "output_past", "pad_token_id", "problem_type"),
  *("tokenizer_class", "torch_dtype", "transformers_version", "use_cache"),
}
# The only values of these legacy keys that Model Garden's encoders support.
_LEGACY_FIXED = {
  "add_cross_attention": False,
  "inner_group_num": 1,
  "is_decoder": False,
  "layer_norm_eps": 1e-12,
  "net_structure_type": 0,
  "num_hidden_groups": 1,
  "position_embedding_type": "absolute",
}
# The table of keys for BERT; see `_HUGGING_FACE`.
_BERT_OF_HUGGING_FACE = {
  "vocab_size": ("vocab_size", 30522),
  "hidden_size": ("hidden_size", 768),
  "num_hidden_layers": ("num_layers", 12),
  "num_attention_heads": ("num_attention_heads", 12),
  "intermediate_size": ("intermediate_size", 3072),
  "hidden_act": ("hidden_activation", "gelu"),
  "hidden_dropout_prob": ("dropout_rate", 0.1),
  "attention_probs_dropout_prob": ("attention_dropout_rate", 0.1),
  "max_position_embeddings": ("max_position_embeddings", 512),
  "type_vocab_size": ("type_vocab_size", 2),
  "initializer_range": ("initializer_range", 0.02),
}
# Maps Hugging Face's model_type to Model Garden's type and a table of keys. The
# table maps Hugging Face's key to Model Garden's and to Hugging Face's default.
_HUGGING_FACE: dict[str, tuple[str, dict[str, tuple[str, Any]]]] = {
  "bert": ("bert", _BERT_OF_HUGGING_FACE),
  "electra": (
    "bert",
    _BERT_OF_HUGGING_FACE
    | {
      "embedding_size": ("embedding_size", 128),
      "hidden_size": ("hidden_size", 256),
      "num_attention_heads": ("num_attention_heads", 4),
      "intermediate_size": ("intermediate_size", 1024),
    },
  ),
  "distilbert": (
    "bert",
    {
      "vocab_size": ("vocab_size", 30522),
      "dim": ("hidden_size", 768),
      "n_layers": ("num_layers", 6),
      "n_heads": ("num_attention_heads", 12),
      "hidden_dim": ("intermediate_size", 3072),
      "activation": ("hidden_activation", "gelu"),
      "dropout": ("dropout_rate", 0.1),
      "attention_dropout": ("attention_dropout_rate", 0.1),
      "max_position_embeddings": ("max_position_embeddings", 512),
      "initializer_range": ("initializer_range", 0.02),
    },
  ),
  "albert": (
    "albert",
    _BERT_OF_HUGGING_FACE
    | {
      "vocab_size": ("vocab_size", 30000),
      "embedding_size": ("embedding_width", 128),
      "hidden_size": ("hidden_size", 4096),
      "num_attention_heads": ("num_attention_heads", 64),
      "intermediate_size": ("intermediate_size", 16384),
      "hidden_act": ("hidden_activation", "gelu_new"),
      "hidden_dropout_prob": ("dropout_rate", 0.0),
      "attention_probs_dropout_prob": ("attention_dropout_rate", 0.0),
    },
  ),
  "mobilebert": (
    "mobilebert",
    {
      "vocab_size": ("word_vocab_size", 30522),
      "embedding_size": ("word_embed_size", 128),
      "hidden_size": ("hidden_size", 512),
      "num_hidden_layers": ("num_blocks", 24),
      "num_attention_heads": ("num_attention_heads", 4),
      "intermediate_size": ("intermediate_size", 512),
      "intra_bottleneck_size": ("intra_bottleneck_size", 128),
      "use_bottleneck_attention": ("use_bottleneck_attention", False),
      "key_query_shared_bottleneck": ("key_query_shared_bottleneck", True),
      "num_feedforward_networks": ("num_feedforward_networks", 4),
      "normalization_type": ("normalization_type", "no_norm"),
      "hidden_act": ("hidden_activation", "relu"),
      "hidden_dropout_prob": ("hidden_dropout_prob", 0.0),
      "attention_probs_dropout_prob": ("attention_probs_dropout_prob", 0.1),
      "max_position_embeddings": ("max_sequence_length", 512),
      "type_vocab_size": ("type_vocab_size", 2),
      "initializer_range": ("initializer_range", 0.02),
    },
  ),
}
HUGGING_FACE_TYPES = tuple(_HUGGING_FACE)
# The same for keys of config.json.
_FIXED = {**_LEGACY_FIXED, "trigram_input": True, "use_bottleneck": True}
# Hugging Face's gelu is exact; Model Garden's is an approximation.
_ACTIVATIONS = {
  **dict.fromkeys(("gelu", "gelu_python"), "gelu_exact"),
  **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu"),
  **dict.fromkeys(("silu", "swish"), "swish"),
  **{name: name for name in ("relu", "sigmoid", "tanh")},
}
_MOST_BYTES_OF_YAML = 2**20  # The parser takes 10 s for as many bytes.
# Values with which an encoder has a pooler. They change no other variable, and
# only the pooled output.
_WITH_POOLER = {
  "bigbird": {"use_gradient_checkpointing": False},
  "mobilebert": {"classifier_activation": True},
}
# Keys of numbers of layers. An encoder of the largest number is built in 20 s.
_LAYERS = {
  *("n_layers", "num_blocks", "num_hidden_layers", "num_layers"),
  "num_feedforward_networks",
}
_MOST_LAYERS = 256
_MOST_VALUES = 100_000  # Values in a config.
_MOST_NAMED = 10  # Unknown keys that an error names.
# Paths of the encoder's config in an experiment's config, or in a part of one.
_PLACES = (
  ("task", "model", "encoder"),
  ("task", "model", "discriminator_encoder"),
  ("model", "encoder"),
  ("encoder",),
)


def from_yaml(path: str) -> encoders.EncoderConfig:
  """Reads the YAML of an `official.nlp.configs.encoders.EncoderConfig`.

  For example:

      type: bert
      bert: {vocab_size: 30522, num_layers: 12}

  Missing fields take Model Garden's defaults. From an experiment's config, such
  as the params.yaml beside a checkpoint, it reads `task.model.encoder`.

  Raises:
    OSError: The file is not readable.
    ValueError: The file has an unknown encoder type, unknown keys, or a value
      of a wrong type.
  """
  try:
    content = formats.read_file(path, _MOST_BYTES_OF_YAML)
    # The loader constructs plain values only.
    values = yaml.load(content, _loader())
  except yaml.YAMLError as e:
    raise ValueError(f"not YAML: {' '.join(str(e).split())}") from e
  except RecursionError as e:
    raise ValueError("it is nested too deeply") from e
  except (AttributeError, LookupError, TypeError) as e:  # For example !!int "".
    raise ValueError(f"not YAML: {errors.one_line(e)}") from e
  _check_size(values)
  if isinstance(values, dict) and "type" not in values:
    if {"hidden_size", "num_hidden_layers"} & set(values):
      raise ValueError(
        "it is in the JSON format that came with BERT. Pass it as"
        " --bert_config_file"
      )
    values = _encoder_in(values) or values
  if not isinstance(values, dict) or "type" not in values:
    raise ValueError("it has no `type`, the type of the encoder")
  types = [f.name for f in dataclasses.fields(encoders.EncoderConfig)]
  _check_known("key", values, types)
  kind = values.pop("type")
  types.remove("type")
  types.remove("any")  # An encoder defined in Python code.
  _check_known("type", [kind], types)
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
  config.override({kind: _WITH_POOLER.get(kind, {})})
  return config


def from_legacy_json(path: str) -> encoders.EncoderConfig:
  """Reads the JSON format of the first BERT models, `bert_config.json`.

  It also reads ALBERT's, MobileBERT's and, with an `embedding_size`, ELECTRA's;
  and the config.json of Hugging Face for BERT and ALBERT.

  Raises:
    OSError: The file is not readable.
    ValueError: The file has unknown keys, a value of a wrong type or one that
      Model Garden's encoders cannot have, or no `vocab_size`.
  """
  try:
    values = json.loads(formats.read_file(path).decode("utf-8-sig"))
  except (RecursionError, ValueError) as e:  # ValueError covers invalid UTF-8.
    raise ValueError(
      f"not JSON: {e}. If it is YAML, pass it as --encoder_config_file"
    ) from e
  if not isinstance(values, dict):
    raise ValueError("it is not an object with keys")
  if "intra_bottleneck_size" in values:
    return from_hugging_face({**values, "model_type": "mobilebert"})
  is_albert = "num_hidden_groups" in values
  kind = values.get("model_type", "albert" if is_albert else "bert")
  if kind not in ("albert", "bert"):
    raise ValueError(
      f"its model_type is {kind}; only bert and albert are read. Write the YAML"
      " of Model Garden's EncoderConfig, and pass it as --encoder_config_file"
    )
  for key, fixed in _LEGACY_FIXED.items():
    if values.pop(key, fixed) != fixed:
      raise ValueError(f"{key} must be {fixed}, as in Model Garden's encoders")
  values = {k: v for k, v in values.items() if k not in _LEGACY_WITHOUT_EFFECT}
  defaults = legacy_configs.BertConfig(vocab_size=1).to_dict()
  del defaults["backward_compatible"]
  if kind == "albert":
    defaults |= {"embedding_size": 128, "type_vocab_size": 2}
  elif "embedding_size" in values:
    defaults |= {"embedding_size": 128}
  _check(values, defaults)
  if "vocab_size" not in values:
    raise ValueError("it has no vocab_size")
  names = _ALBERT_NAMES if kind == "albert" else _LEGACY_NAMES
  config = encoders.EncoderConfig(type=kind)
  fields = {
    names.get(key, key): value for key, value in {**defaults, **values}.items()
  }
  config.override({kind: fields})
  return config


def from_hugging_face(values: Mapping[str, Any]) -> encoders.EncoderConfig:
  """Converts a config of Hugging Face to an equivalent EncoderConfig.

  Args:
    values: The content of a config.json. Keys without effect on the encoder are
      ignored, as in transformers.

  Raises:
    ValueError: A value is of a wrong type, or one that Model Garden's encoders
      cannot have.
  """
  kind, keys = _HUGGING_FACE[values["model_type"]]
  for key, fixed in _FIXED.items():
    if values.get(key, fixed) != fixed:
      raise ValueError(
        f"{key} is {errors.shown(json.dumps(values[key])[:40])}, and must be"
        f" {json.dumps(fixed)}, as in Model Garden's encoders"
      )
  if values.get("pruned_heads") or "AutoModel" in (
    values.get("auto_map") or ()
  ):
    raise ValueError(
      "it has pruned_heads or an auto_map, so the layers are not those of its"
      " model_type"
    )
  defaults = {key: default for key, (_, default) in keys.items()}
  found = {**defaults, **{k: v for k, v in values.items() if k in keys}}
  _check(found, defaults)
  fields = {ours: found[key] for key, (ours, _) in keys.items()}
  act = fields["hidden_activation"]
  if act not in _ACTIVATIONS or (kind == "mobilebert" and act != "relu"):
    raise ValueError(f"the activation {act[:40]} is not one of Model Garden's")
  fields["hidden_activation"] = _ACTIVATIONS[act]
  config = encoders.EncoderConfig(type=kind)
  config.override({kind: fields})
  return config


def to_hugging_face(
  config: encoders.EncoderConfig, model_type: str | None = None
) -> dict[str, Any] | None:
  """Returns the content of an equivalent config.json, or None.

  Args:
    config: The config of the encoder.
    model_type: Hugging Face's model_type, if several are possible.

  Returns:
    None if no type of Hugging Face computes the same as the encoder.
  """
  values = config.get().as_dict()
  if model_type is None:
    model_type = config.type
    width = values.get("embedding_size")
    if model_type == "bert" and width not in (None, values["hidden_size"]):
      model_type = "electra"
  if model_type not in _HUGGING_FACE:
    return None
  kind, keys = _HUGGING_FACE[model_type]
  others = (
    set(values) - {ours for ours, _ in keys.values()} - {"embedding_size"}
  )
  defaults = encoders.EncoderConfig(type=kind).get().as_dict()
  act = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}.get(
    values["hidden_activation"]
  )
  # Every encoder has a pooler, and DistilBERT no types.
  others -= {"classifier_activation", "type_vocab_size"}
  if act is None or any(values[key] != defaults[key] for key in others):
    return None
  found = {key: values[ours] for key, (ours, _) in keys.items()}
  found["activation" if "activation" in keys else "hidden_act"] = act
  if model_type == "electra" and not values["embedding_size"]:
    found["embedding_size"] = values["hidden_size"]
  return {"model_type": model_type, "layer_norm_eps": 1e-12, **found}


def _loader() -> type[yaml.SafeLoader]:
  """Returns a loader for the YAML dialect of Model Garden."""

  class Loader(yaml.SafeLoader):
    pass

  # YAML 1.1 reads 2e-2 as a string.
  Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
  )
  Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", Loader.construct_yaml_seq
  )
  return Loader


def _check_size(values: Any) -> None:
  """Raises a ValueError for too many values, such as nested aliases yield."""
  left = [values]
  for _ in range(_MOST_VALUES):
    if not left:
      return
    value = left.pop()
    if isinstance(value, dict):
      left += value.values()
    elif isinstance(value, (list, set, tuple)):
      left += value
  raise ValueError(f"it has more than {_MOST_VALUES:,} values")


def _encoder_in(values: Mapping[str, Any]) -> Any:
  """Returns the encoder's config in an experiment's config, or None."""
  for place in _PLACES:
    part: Any = values
    for key in place:
      part = part.get(key) if isinstance(part, dict) else None
    if part:
      return part
  return None


def _check(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
  """Raises a ValueError for unknown keys and values of wrong types."""
  _check_known("key", values, defaults)
  for key, value in values.items():
    expected = type(defaults[key])
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f"{key} is {value}, and must be finite")
    if expected in (type(None), list, tuple):  # Any value is valid.
      continue
    if type(value) not in ((float, int) if expected is float else (expected,)):
      raise ValueError(f"{key} is {value!r}, and must be {expected.__name__}")
    if expected is int and value < 1 <= defaults[key]:
      raise ValueError(f"{key} is {value}, and must be at least 1")
    if expected is int and key in _LAYERS and value > _MOST_LAYERS:
      raise ValueError(f"{key} is {value}, and must be at most {_MOST_LAYERS}")
    if expected is int and value >= 2**31:
      raise ValueError(f"{key} is {value}, and must be less than 2**31")
    is_share = key.endswith(("_rate", "_prob", "_range"))
    if is_share and not 0 <= value < 1:
      raise ValueError(f"{key} is {value}, and must be from 0 to less than 1")


def _check_known(
  what: str, keys: Collection[Any], known: Collection[str]
) -> None:
  """Raises a ValueError that names all unknown keys."""
  wrong = [str(key) for key in keys if key not in known]
  unknown = []
  for key in wrong[:_MOST_NAMED]:
    near = difflib.get_close_matches(key[:40], known, n=1)
    near = f" (the nearest is {near[0]})" if near else ""
    unknown.append(f"{key[:40]}{near}")
  if len(wrong) > _MOST_NAMED:
    unknown.append(f"and {len(wrong) - _MOST_NAMED} more")
  if unknown:
    s = "s" if len(unknown) > 1 else ""
    raise ValueError(f"unknown {what}{s} {', '.join(unknown)}")
