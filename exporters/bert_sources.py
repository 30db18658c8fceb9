"""Reads text encoders from the directories and files of other libraries.

A Hugging Face directory has the weights of the encoder, its config, its tokens
and their casing. One of sentence-transformers also has the pooling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import itertools
import os
from typing import Any

from absl import flags
from etils import epy

from distribution import formats
from exporters.reusable import errors

with epy.lazy_imports():
  from official.nlp.configs import encoders
  import tensorflow as tf

  from exporters import bert_tables
  from exporters.reusable import checkpoints
  from exporters.reusable import command_line
  from exporters.reusable import keras_files
  from exporters.reusable import weight_tables
  from models.nlp import bert
  from models.nlp import encoder_config
  from models.nlp import preprocessing

flags.disclaim_key_flags()  # --help lists the flags as the program's own.

_POSITIONS = "its positions are relative or rotary, BERT's absolute"
_TOKENS = "its tokens and special tokens are not those of BERT"
_DECODER = "it is a decoder or has one, and is no encoder like BERT"
_WHY_NOT = {
  **dict.fromkeys(("camembert", "roberta", "xlm-roberta", "xlm"), _TOKENS),
  **dict.fromkeys(("deberta", "deberta-v2", "mpnet"), _POSITIONS),
  **dict.fromkeys(("modernbert", "nomic_bert", "roformer"), _POSITIONS),
  **dict.fromkeys(("bart", "gpt2", "llama", "t5", "mt5", "xlnet"), _DECODER),
}
# Types of modules in sentence-transformers, without their packages.
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {
  **dict.fromkeys(("cls", "cls_token"), "cls"),
  **dict.fromkeys(("mean", "mean_tokens"), "mean"),
}
_LOWERCASES = "its sentence_bert_config.json lowercases texts"
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
# Parts of variable names in TensorFlow 1 checkpoints, and the type of encoder
# that each identifies.
_PARTS_OF_NAMES = {
  "transformer/group_0/": "albert",
  "/bottleneck/": "mobilebert",
  "electra/": "electra",
}
# Names of files beside the checkpoints of the first releases, by the flag whose
# value they determine.
_BESIDE = {
  "bert_config_file": ("albert_config.json", "bert_config.json"),
  "sp_model_file": ("30k-clean.model",),
  "vocab_file": ("vocab.txt",),
}
# The flags that make a file of `_BESIDE` unnecessary.
_EITHER = {
  "bert_config_file": ("bert_config_file", "encoder_config_file"),
  "sp_model_file": ("sp_model_file", "vocab_file"),
  "vocab_file": ("sp_model_file", "vocab_file"),
}
_KERAS_HUB = {
  "AlbertBackbone": "albert",
  "BertBackbone": "bert",
  "DistilBertBackbone": "distilbert",
  "ElectraBackbone": "electra",
}
# Maps keras-hub's keys to Hugging Face's keys.
_KEYS_OF_KERAS_HUB = {
  "vocabulary_size": "vocab_size",
  "vocab_size": "vocab_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "hidden_dim": "hidden_size",
  "embedding_dim": "embedding_size",
  "intermediate_dim": "intermediate_size",
  "max_sequence_length": "max_position_embeddings",
  "num_segments": "type_vocab_size",
  "num_groups": "num_hidden_groups",
  "num_inner_repetitions": "inner_group_num",
}
_KEYS_OF_KERAS_HUB_DISTILBERT = {
  "vocabulary_size": "vocab_size",
  "num_layers": "n_layers",
  "num_heads": "n_heads",
  "hidden_dim": "dim",
  "intermediate_dim": "hidden_dim",
  "max_sequence_length": "max_position_embeddings",
  "dropout": "dropout",
}
_LARGEST_LENGTH = 10**6  # transformers writes 1e30 for no limit.
# Tokenizer classes. With the suffix `Fast`, they produce the same tokens.
_TOKENIZERS = tuple(
  f"{name}Tokenizer"
  for name in ("Albert", "Bert", "DistilBert", "Electra", "MobileBert")
)
# Tokenizer classes that tokenizer.json alone defines.
_GENERIC_TOKENIZERS = ("PreTrainedTokenizer", "TokenizersBackend")
# The special tokens of the preprocessor, with wordpieces and SentencePiece.
_SPECIAL = {
  "cls_token": ("[CLS]",),
  "mask_token": ("[MASK]",),
  "pad_token": ("[PAD]", "<pad>"),
  "sep_token": ("[SEP]",),
  "unk_token": ("[UNK]", "<unk>"),
}
# Maps keys of tokenizer_config.json to the normalizer's keys in tokenizer.json.
_NORMALIZER = {
  "do_lower_case": "lowercase",
  "strip_accents": "strip_accents",
  "tokenize_chinese_chars": "handle_chinese_chars",
  "clean_text": "clean_text",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """An encoder of another library, with its weights and settings.

  Attributes:
    description: The path and the kind of directory, for messages.
    model_type: The type of the encoder, as its library names it.
    config: The config of the same encoder in Model Garden.
    tensors: The weights, by name. Hugging Face's names lack the prefix of the
      encoder.
    options: Values of flags that the source determines, by flag.
    origins: The files that determine these values, by flag.
    problem: Why the vectors of sentence-transformers cannot be computed, or "".
    library: `Hugging Face`, `TensorFlow 1`, `keras-hub` or `Keras`.
  """

  description: str
  model_type: str
  config: encoders.EncoderConfig
  tensors: Mapping[str, weight_tables.Tensor]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
  problem: str = ""
  library: str = "Hugging Face"

  def __post_init__(self) -> None:
    """Raises an ExportError if the config has more layers than the weights.

    This precedes the build of the model, which is slow for many layers.
    """
    sizes = self.config.get().as_dict()
    layers = sizes.get("num_layers") or sizes.get("num_blocks") or 0
    # A block of MobileBERT has several feed-forward networks.
    layers *= sizes.get("num_feedforward_networks", 1)
    if self.config.type != "albert":  # Its layers share their weights.
      weight_tables.check_layers(self.description, layers, self.tensors)


def in_flags(*names: str) -> bool:
  """Returns whether files at --checkpoint_path make flags unnecessary.

  The flags are alternatives: a file for one of them beside the checkpoint makes
  all unnecessary. So does a directory of another library. The result is also
  True without a checkpoint, because `from_flags` then raises a better error.

  Args:
    *names: The flags, such as `vocab_file`.
  """
  path = _path_in_flags()
  if not path:
    return False
  try:
    if formats.described(path):
      return True
    formats.checkpoint_prefix(path, takes_others=True)
  except errors.ExportError:
    return True
  return not set(names).isdisjoint(_beside(path))


def _path_in_flags() -> str | None:
  return formats.absolute(flags.FLAGS.flag_values_dict().get("checkpoint_path"))


def _beside(path: str) -> dict[str, str]:
  """Returns the files beside a checkpoint, by the flags they replace."""
  directory = path if os.path.isdir(path) else os.path.dirname(path)
  found = {}
  for flag, names in _BESIDE.items():
    for name in names:
      if os.path.lexists(os.path.join(directory, name)):
        found[flag] = os.path.join(directory, name)
  return found


def from_flags() -> Source | None:
  """Reads the directory in --checkpoint_path, if it is of another library.

  The values in the directory become the defaults of flags that the user did
  not set. So do the files beside a checkpoint of the first releases, and its
  pooler.

  Returns:
    The encoder; None if the checkpoint is not of another library.

  Raises:
    ExportError: As in `read`; or a required flag has no value.
  """
  values, source = flags.FLAGS, None
  if not in_flags(*_BESIDE):
    return None
  path = command_line.model_path("checkpoint_path")
  if formats.described(path):
    if values.encoder_config_file or values.bert_config_file:
      raise errors.ExportError(
        f"{path} has a config.json. Omit --encoder_config_file and"
        " --bert_config_file."
      )
    source = read(path)
    description, options, origins = (
      source.description,
      source.options,
      source.origins,
    )
  else:
    description, options, origins = _of_first_release(path)
  said = []
  for name, value in options.items():
    if not values[name].present:
      try:
        values.set_default(name, value)
      except flags.IllegalFlagValueError as e:
        where = origins.get(name, "the position table")
        raise errors.ExportError(f"{path} ({where}): {e}. Say --{name}.") from e
      # The config decides the casing, whatever the vocabulary looks like.
      if name == "do_lower_case":
        values.set_default("check_casing", False)
      shown = os.path.basename(str(value))
      said.append(f"--{name}={shown} ({origins.get(name, 'default')})")
  if values.do_lower_case is None and values.vocab_file:
    lower = _casing(formats.absolute(values.vocab_file))
    if lower is not None:
      values.set_default("do_lower_case", lower)
      said.append(f"--do_lower_case={lower} (the tokens)")
  if said:
    print(f"{description}. It says {', '.join(said)}.")
  _check_choices(source, description)
  return source


def _check_choices(source: Source | None, description: str) -> None:
  """Refuses flags without a value that a checkpoint leaves to the user."""
  values = flags.FLAGS
  pooled = values.export_type != "text_embedding" or values.pooling == "pooled"
  is_encoder = values.export_type != "preprocessing"
  for missing, flag in (
    (not (values.vocab_file or values.sp_model_file), "--vocab_file=PATH"),
    (values.do_lower_case is None, "--do_lower_case or --nodo_lower_case"),
    (
      values.pooler is None and pooled and is_encoder,
      "--pooler, such as random or identity",
    ),
  ):
    if missing:
      raise errors.ExportError(
        f"{description}, and leaves a choice. Say {flag}."
      )
  if (
    source
    and source.problem
    and values.export_type == "text_embedding"
    and not values["pooling"].present
  ):
    raise errors.ExportError(
      f"{description}, but {source.problem}. Say --pooling for other vectors."
    )


def _of_first_release(
  path: str,
) -> tuple[str, dict[str, Any], dict[str, str]]:
  """Derives values of flags from a checkpoint and the files beside it.

  Returns:
    A description, the values of flags by name, and the origins of the values.
  """
  options: dict[str, Any] = {
    flag: file
    for flag, file in _beside(path).items()
    if not any(flags.FLAGS[name].value for name in _EITHER[flag])
  }
  origins = dict.fromkeys(options, "beside the checkpoint")
  description = f"{path} is a checkpoint"
  if keras_files.is_file(path):
    return description, options, origins
  if tensors := checkpoints.by_name(path):
    model_type = _type_of_tensorflow_1(tensors)
    description += f" of TensorFlow 1 of type {model_type}"
    if any(name.endswith("/pooler/dense/kernel") for name in tensors):
      options["pooler"], origins["pooler"] = "checkpoint", "the weights"
    elif model_type == "electra":
      options["pooler"] = "identity"
      origins["pooler"] = "its lack in the weights"
  return description, options, origins


def _casing(vocab_file: str) -> bool | None:
  """Returns whether tokens are lowercased; None if they do not show it."""
  with errors.of_content(vocab_file):
    tokens = preprocessing.read_vocabulary(vocab_file)
  possible = [
    lower
    for lower in (False, True)
    if not preprocessing.casing_problem("transformers", tokens, lower)
  ]
  return possible[0] if len(possible) == 1 else None


def read(path: str) -> Source:
  """Reads a directory of another library, except the values of its tensors.

  Raises:
    ExportError: Model Garden has no such encoder, or a file is missing or
      malformed.
  """
  library, model_type = formats.described(path)
  description = f"{path} is a {library} directory of type {model_type[:80]}"
  if library == "keras-hub" and model_type in _KERAS_HUB:
    return _read_keras_hub(path, description, _KERAS_HUB[model_type])
  if library != "Hugging Face" or (
    model_type not in encoder_config.HUGGING_FACE_TYPES
  ):
    types = ", ".join(encoder_config.HUGGING_FACE_TYPES)
    why = _WHY_NOT.get(
      model_type,
      f"only {types} of Hugging Face and {', '.join(_KERAS_HUB)} of keras-hub"
      " can be exported",
    )
    raise errors.ExportError(f"{errors.shown(description)}: {why}.")
  directory = formats.hugging_face_dir(path)
  file = os.path.join(directory, "config.json")
  values = formats.read_json(file)
  with errors.of_content(file):
    config = encoder_config.from_hugging_face(values)
  tensors = _without_prefix(path, weight_tables.read_safetensors(directory))
  _check_sizes(file, values, tensors)
  options, origins = _tokenizer(directory)
  problem = ""
  modules = f"{path}/modules.json"
  if formats.read_json(modules, list):
    with errors.of_content(modules):
      pooling, problem = _sentence_transformers(path, directory)
    options |= pooling
    origins |= dict.fromkeys(pooling, "modules.json")
    if "seq_length" in pooling:
      origins["seq_length"] = "sentence_bert_config.json"
    if problem == _LOWERCASES and options.get("do_lower_case"):
      problem = ""  # The tokenizer lowercases anyway.
  # By default, sentence-transformers cuts texts at the end of the position
  # table.
  longest = _LARGEST_LENGTH if "pooling" in options else 128
  options["seq_length"] = min(
    options.get("seq_length", longest), bert.max_seq_length(config)
  )
  has_pooler = bool({"pooler.dense.weight", "pooler.weight"} & set(tensors))
  if has_pooler:
    options["pooler"], origins["pooler"] = "checkpoint", "the weights"
  elif (
    model_type in ("distilbert", "electra")
    or "pooling" in options
    or (values.get("classifier_activation") is False)
  ):
    # In transformers, heads of encoders without a pooler take the vector of
    # [CLS].
    options["pooler"], origins["pooler"] = "identity", "its lack in the weights"
  return Source(
    description=description,
    model_type=model_type,
    config=config,
    tensors=tensors,
    options=options,
    origins=origins,
    problem=problem,
  )


def _read_keras_hub(path: str, description: str, model_type: str) -> Source:
  """Reads an encoder from a preset of keras-hub."""
  file = os.path.join(path, "config.json")
  said = formats.typed(file, formats.read_json(file), "config", dict) or {}
  values: dict[str, Any] = {"model_type": model_type}
  if model_type == "distilbert":
    keys = _KEYS_OF_KERAS_HUB_DISTILBERT
    values["attention_dropout"] = said.get("dropout")
  else:
    keys = _KEYS_OF_KERAS_HUB
    values |= {
      "hidden_act": "gelu_new",
      "hidden_dropout_prob": said.get("dropout"),
      "attention_probs_dropout_prob": said.get("dropout"),
    }
  with errors.of_content(file):
    if missing := [
      key for key in ("num_layers", "hidden_dim", "dropout") if key not in said
    ]:
      raise ValueError(f"it has no {missing[0]}")
    values |= {ours: said[key] for key, ours in keys.items() if key in said}
    config = encoder_config.from_hugging_face(values)
  _, tensors = keras_files.read(os.path.join(path, "model.weights.h5"))
  _check_sizes(file, said, tensors)
  options: dict[str, Any] = {
    "seq_length": min(128, bert.max_seq_length(config))
  }
  origins = {}
  vocab_file = os.path.join(path, "assets", "tokenizer", "vocabulary.txt")
  if os.path.lexists(vocab_file):
    options["vocab_file"], origins["vocab_file"] = vocab_file, "vocabulary.txt"
  file = f"{path}/tokenizer.json"
  tokenizer = formats.typed(file, formats.read_json(file), "config", dict) or {}
  lower = formats.typed(file, tokenizer, "lowercase", bool)
  if lower is not None and tokenizer.get("strip_accents") == lower:
    options["do_lower_case"] = lower
    origins["do_lower_case"] = "tokenizer.json"
  has_pooler = model_type != "distilbert"
  options["pooler"] = "checkpoint" if has_pooler else "identity"
  origins["pooler"] = "the weights" if has_pooler else "its lack in the weights"
  return Source(
    description=description,
    model_type=model_type,
    config=config,
    tensors=tensors,
    options=options,
    origins=origins,
    library="keras-hub",
  )


def of_tensorflow_1(path: str, config: encoders.EncoderConfig) -> Source | None:
  """Returns the encoder in a TensorFlow 1 checkpoint; None for another file.

  Raises:
    ExportError: The type of the encoder is not that of `config`.
  """
  tensors = checkpoints.by_name(path)
  if tensors is None:
    return None
  model_type = _type_of_tensorflow_1(tensors)
  description = f"{path} is a checkpoint of TensorFlow 1 of type {model_type}"
  wanted = "bert" if model_type == "electra" else model_type
  if config.type != wanted:
    raise errors.ExportError(
      f"{description}, and its config is of type {config.type}. Give the config"
      f" of this {model_type}."
    )
  return Source(
    description=description,
    model_type=model_type,
    config=config,
    tensors=tensors,
    library="TensorFlow 1",
  )


def _type_of_tensorflow_1(names: Collection[str]) -> str:
  """Returns the type of an encoder by the names of its variables."""
  model_type = "bert"
  for part, kind in _PARTS_OF_NAMES.items():
    if any(part in name for name in names):
      model_type = kind
  return model_type


def of_keras(path: str, config: encoders.EncoderConfig) -> Source | None:
  """Returns the encoder in a Keras file; None for another file.

  Raises:
    ExportError: The file has no encoder of `config`, or is damaged.
  """
  if not keras_files.is_file(path):
    return None
  tensors = keras_files.by_weight(path)
  if tensors is None:
    tensors = _by_attribute(path, config)
  return Source(
    description=f"{path} is a file of Keras",
    model_type=config.type,
    config=config,
    tensors=tensors,
    library="Keras",
  )


def _by_attribute(
  path: str, config: encoders.EncoderConfig
) -> dict[str, weight_tables.Tensor]:
  """Returns the tensors of a `.weights.h5` or `.keras` file.

  Their names are attribute paths, relative to the encoder. Those of the heads
  are relative to the model.
  """
  _, found = keras_files.read(path)
  end = "transformer_layers/transformer_encoder_block/_output_dense/vars/0"
  prefix = next((x.removesuffix(end) for x in found if x.endswith(end)), None)
  if prefix is None or config.type != "bert":
    raise errors.ExportError(
      f"{path} numbers weights by attributes, as `.weights.h5` and `.keras` do,"
      " and is no BERT of official.legacy. Load the model and write them with"
      " save_weights('x.h5')."
    )
  outer = prefix.removesuffix("layers/bert_encoder/")
  return {
    name.removeprefix(prefix)
    if name.startswith(prefix)
    else name.removeprefix(outer).removeprefix("layers/"): tensor
    for name, tensor in found.items()
  }


def restore(
  source: Source,
  roots: Sequence[tf.train.Checkpoint],
  *,
  parts: Sequence[tf.train.Checkpoint] = (),
  left_out: Collection[str] = (),
  optional: Sequence[tf.Variable] = (),
) -> list[tf.Variable]:
  """Restores an encoder from a source.

  The arguments after `source` and the result are those of
  `checkpoints.restore`. `parts`, `left_out` and further `roots` have no effect:
  `bert_tables` says which tensors to ignore.
  """
  del parts, left_out
  table, left_out = {
    "Hugging Face": (bert_tables.hugging_face, bert_tables.LEFT_OUT),
    "TensorFlow 1": (bert_tables.tensorflow_1, bert_tables.LEFT_OUT_OF_TF1),
    "keras-hub": (bert_tables.keras_hub, {}),
    "Keras": (
      bert_tables.keras if any("vars/" in x for x in source.tensors) else None,
      {**bert_tables.LEFT_OUT_OF_KERAS, **keras_files.NOT_WEIGHTS},
    ),
  }[source.library]
  objects = tf.train.TrackableView(roots[0]).descendants()
  variables = weight_tables.by_name(
    x for x in objects if isinstance(x, tf.Variable)
  )
  lines = (
    [weight_tables.Line(n, n.removeprefix("bert/")) for n in variables]
    if not table
    else table(
      source.model_type,
      source.config,
      with_mlm=any(name.startswith("bert/cls/") for name in variables),
    )
  )
  may_lack = weight_tables.by_name(optional)
  groups = itertools.groupby(sorted(may_lack), lambda name: name.split("/")[0])
  restored = weight_tables.restore(
    source.description.replace(" is ", ", ", 1),
    source.tensors,
    lines,
    variables,
    left_out=left_out,
    optional=[list(group) for _, group in groups],
  )
  return [v for name, v in may_lack.items() if name in restored.lacking]


def _without_prefix(
  path: str, tensors: Mapping[str, weight_tables.Tensor]
) -> dict[str, weight_tables.Tensor]:
  """Drops the encoder's prefix from names, and replaces legacy names."""
  end = "embeddings.word_embeddings.weight"
  found = [name for name in tensors if name.endswith(end)]
  if len(found) != 1:
    raise errors.ExportError(
      f"{path} has {len(found) or 'no'} tensors named {end}, and must have one."
    )
  prefix = found[0].removesuffix(end)
  renamed: dict[str, weight_tables.Tensor] = {}
  for name, tensor in tensors.items():
    name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
      if name.endswith(f"LayerNorm{old}"):
        name = name.removesuffix(old) + new
    if name in renamed:
      raise errors.ExportError(
        f"{path} has two tensors for {name}: {renamed[name].name} and"
        f" {tensor.name}."
      )
    renamed[name] = tensor
  return renamed


def _check_sizes(
  file: str,
  values: Mapping[str, Any],
  tensors: Mapping[str, weight_tables.Tensor],
) -> None:
  """Raises an ExportError if a size in a config is larger than any tensor."""
  sizes = {size for tensor in tensors.values() for size in tensor.shape}
  for key, value in values.items():
    is_size = key.endswith(("_size", "dim", "_embeddings"))
    if is_size and type(value) is int and value > max(sizes, default=0):
      raise errors.ExportError(
        f"{file}: {key} is {value}, and no tensor in the weights is that long."
      )


def _tokenizer(directory: str) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns values of flags by tokenizer files, and the file of each value."""
  options: dict[str, Any] = {}
  origins: dict[str, str] = {}
  for name in ("vocab.txt", "tokenizer.json"):
    if os.path.lexists(f"{directory}/{name}"):
      options["vocab_file"] = f"{directory}/{name}"
      origins["vocab_file"] = name
  if os.path.lexists(f"{directory}/spiece.model"):
    options = {"sp_model_file": f"{directory}/spiece.model"}
    origins = {"sp_model_file": "spiece.model"}
  config = formats.read_json(f"{directory}/tokenizer_config.json")
  whole = formats.read_json(f"{directory}/tokenizer.json")
  with errors.of_content(f"The tokenizer in {directory}"):
    _check_tokenizer(directory, config, whole)
    found = _normalizer(directory, config, whole)
  if "do_lower_case" in found:
    options["do_lower_case"], origins["do_lower_case"] = found["do_lower_case"]
  lower = options.get("do_lower_case")
  for key, needed in (
    ("strip_accents", lower),
    ("tokenize_chinese_chars", True),
    ("clean_text", True),
  ):
    value, file = found.get(key, (needed, ""))
    if needed is not None and value != needed:
      raise errors.ExportError(
        f"{directory}/{file} has {key} {str(value).lower()} and do_lower_case"
        f" {str(lower).lower()}. The preprocessor does not do that: it"
        " lowercases and strips accents or does neither, and splits at Chinese"
        " characters."
      )
  file = f"{directory}/tokenizer_config.json"
  length = formats.typed(file, config, "model_max_length", int, float)
  if length and 0 < length < _LARGEST_LENGTH:
    options["seq_length"] = int(length)
    origins["seq_length"] = "tokenizer_config.json"
  return options, origins


def _check_tokenizer(
  directory: str, config: Mapping[str, Any], whole: Mapping[str, Any]
) -> None:
  """Raises an ExportError for a tokenizer other than BERT's or ALBERT's.

  Args:
    directory: The directory of the files, for messages.
    config: The content of tokenizer_config.json.
    whole: The content of tokenizer.json.
  """
  kind = str(config.get("tokenizer_class") or _TOKENIZERS[0])
  if kind.removesuffix("Fast") not in (*_TOKENIZERS, *_GENERIC_TOKENIZERS):
    raise errors.ExportError(
      f"{directory}/tokenizer_config.json is of {errors.shown(kind[:80])}. Only"
      f" the tokens of {', '.join(_TOKENIZERS)} can be exported."
    )
  by_role = formats.read_json(f"{directory}/special_tokens_map.json")
  for key, known in _SPECIAL.items():
    for token in (by_role.get(key), config.get(key)):
      token = token["content"] if isinstance(token, dict) else token
      if token not in (None, *known):
        raise errors.ExportError(
          f"The tokenizer in {directory} has the {key}"
          f" {errors.shown(str(token)[:80])}. The preprocessor has {known[0]}."
        )
  added = {
    *formats.read_json(f"{directory}/added_tokens.json"),
    *(config.get("never_split") or ()),
    *(
      t["content"] for t in (config.get("added_tokens_decoder") or {}).values()
    ),
    *(t["content"] for t in whole.get("added_tokens") or ()),
  }
  if others := sorted(map(str, added.difference(preprocessing.ALL_SPECIAL))):
    raise errors.ExportError(
      f"The tokenizer in {directory} has added tokens, such as"
      f" {errors.shown(others[0][:80])}. The preprocessor would split them. If"
      " no text has them, remove them from the files of the tokenizer."
    )


def _normalizer(
  directory: str, config: Mapping[str, Any], whole: Mapping[str, Any]
) -> dict[str, tuple[bool, str]]:
  """Returns the settings of a tokenizer's normalizer, with their files.

  Settings in tokenizer_config.json override those in tokenizer.json, except for
  generic tokenizer classes, where tokenizer.json wins.
  """
  inner = whole.get("normalizer") or {}
  if inner.get("type") != "BertNormalizer":
    inner = {}
  kind = str(config.get("tokenizer_class")).removesuffix("Fast")
  sources = [
    (inner, _NORMALIZER, "tokenizer.json"),
    (config, {key: key for key in _NORMALIZER}, "tokenizer_config.json"),
  ]
  if kind in _GENERIC_TOKENIZERS:
    sources.reverse()
  return {
    key: (value, file)
    for values, names, file in sources
    for key in _NORMALIZER
    if (value := formats.typed(f"{directory}/{file}", values, names[key], bool))
    is not None
  }


def _sentence_transformers(
  path: str, directory: str
) -> tuple[dict[str, Any], str]:
  """Reads the modules of sentence-transformers.

  Returns:
    Values of flags by name; and why the vectors of the directory cannot be
    computed, or "".
  """
  options: dict[str, Any] = {"normalize": False}
  types = []
  for module in formats.read_json(f"{path}/modules.json", list):
    name = os.path.basename(str(module.get("path", "")))
    types.append(str(module.get("type")).rpartition(".")[2])
    if types[-1] == "Pooling":
      file = f"{path}/{name}/config.json"
      pooling = formats.read_json(file)
      modes = formats.typed(file, pooling, "pooling_mode", str, list) or [
        key.removeprefix("pooling_mode_")
        for key, value in pooling.items()
        if key.startswith("pooling_mode_") and value is True
      ]
      modes = [modes] if isinstance(modes, str) else [str(m) for m in modes]
      if len(modes) != 1 or modes[0] not in _POOLINGS:
        return (
          {},
          f"its pooling is {errors.shown(', '.join(modes)) or 'not said'}",
        )
      options["pooling"] = _POOLINGS[modes[0]]
    options["normalize"] |= types[-1] == "Normalize"
  if types[:2] != ["Transformer", "Pooling"] or set(types) - set(_MODULES):
    return {}, f"its modules are {errors.shown(', '.join(types))[:200]}"
  file = f"{directory}/sentence_bert_config.json"
  said = formats.read_json(file)
  length = formats.typed(file, said, "max_seq_length", int)
  if length and 0 < length < _LARGEST_LENGTH:
    options["seq_length"] = length
  prompts = formats.read_json(f"{path}/config_sentence_transformers.json")
  if prompts.get("default_prompt_name"):
    return options, "it puts a prompt before each text by default"
  if formats.typed(file, said, "do_lower_case", bool):
    return options, _LOWERCASES
  return options, ""
