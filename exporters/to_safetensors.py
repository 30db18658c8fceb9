r"""Writes the Hugging Face directory of an exported text encoder.

It converts encoders and text embeddings of //exporters:bert:

  bazel run //exporters:safetensors -- \
    --saved_model_dir=DIR/encoder --output_dir=OUT
  bazel run //exporters:safetensors -- \
    --saved_model_dir=TEXT_EMBEDDING --output_dir=OUT
  bazel run //exporters:safetensors -- \
    --saved_model_dir=DIR/encoder --output_dir=OUT --follow_links

OUT gets config.json, model.safetensors and the files of the tokenizer, for
`transformers.AutoModel.from_pretrained`. It supports the types of encoders that
//exporters:bert reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import copy
import functools
import itertools
import json
import os
import re
import shutil
from typing import Any, NamedTuple

from absl import flags
from etils import epy

from distribution import copies
from distribution import formats
from distribution import publishing
from exporters.reusable import command_line
from exporters.reusable import errors

with epy.lazy_imports():
  import numpy as np
  from official.nlp.configs import encoders
  import tf_keras

  from exporters import bert_tables
  from exporters.reusable import checkpoints
  from exporters.reusable import graphs
  from exporters.reusable import private_api
  from exporters.reusable import weight_tables
  from models.nlp import bert
  from models.nlp import encoder_config

_ARCHITECTURES = {
  "albert": "Albert",
  "bert": "Bert",
  "distilbert": "DistilBert",
  "electra": "Electra",
  "mobilebert": "MobileBert",
}
# Ops that identify the activation of an encoder.
_ACTIVATIONS = {"Erf": "gelu_exact", "Erfc": "gelu_exact", "Relu": "relu"}
_MLM = "bert/cls/"
_KERNELS_OF_POOLERS = ("pooler/kernel", "pooler_transform/kernel")
_POOLERS = ("pooler/", "pooler_transform/")


class _Encoder(NamedTuple):
  """An encoder, as read from its export.

  Attributes:
    config: The content of config.json.
    lines: The table of `bert_tables` for the encoder.
    values: Functions that read the weights, by name.
    vocabulary: The path of the tokenizer's file.
    lower_case: Whether the tokenizer lowercases texts.
  """

  config: dict[str, Any]
  lines: list[weight_tables.Line]
  values: Mapping[str, Callable[[], np.ndarray]]
  vocabulary: str
  lower_case: bool


def write(
  saved_model_dir: str,
  output_dir: str,
  max_shard_size: int,
  *,
  follow_links: bool = False,
) -> None:
  """Writes the Hugging Face directory of an export.

  Args:
    saved_model_dir: An export of //exporters:bert with an encoder.
    output_dir: The directory to write. It must be empty or not exist.
    max_shard_size: Maximum bytes of weights per file.
    follow_links: Whether to read what symbolic links in the export point to.

  Raises:
    ExportError: The export has no such encoder, or `output_dir` has files.
  """
  parts = "saved_model.pb", "assets", "variables"
  with (
    publishing.publish(output_dir) as directory,
    copies.copied(saved_model_dir, follow_links=follow_links, only=parts) as (
      copy_dir,
      _,
    ),
  ):
    with errors.of_input(about=f"{copy_dir}: "):
      encoder = _read(copy_dir)
    _write_json(directory, "config.json", encoder.config)
    weight_tables.write_safetensors(
      directory,
      weight_tables.tensors_of(encoder.lines, encoder.values),
      max_shard_size,
    )
    _write_tokenizer(encoder, directory)
  kind = encoder.config["model_type"]
  print(f"Wrote {output_dir}, a Hugging Face directory of type {kind}.")


def _read(saved_model_dir: str) -> _Encoder:
  """Reads an export, and compares its config with its weights."""
  assets = os.path.join(saved_model_dir, "assets")
  config = formats.read_json(os.path.join(assets, "config.json"))
  model_type = config.get("model_type")
  if model_type not in encoder_config.HUGGING_FACE_TYPES:
    raise errors.ExportError(
      f"{saved_model_dir} has no assets/config.json of"
      f" {', '.join(encoder_config.HUGGING_FACE_TYPES)}: it is no text encoder"
      " of such a type, or an export of an earlier version. Export it again."
    )
  with errors.of_input(ValueError, about=f"{assets}/config.json: "):
    described = encoder_config.from_hugging_face(config)
  tensors = checkpoints.of_saved_model(saved_model_dir)
  lower_case = tensors.pop("do_lower_case", None)
  vocabularies = [x for x in os.listdir(assets) if x != "config.json"]
  if not lower_case or lower_case.shape or len(vocabularies) != 1:
    raise errors.ExportError(
      f"{saved_model_dir} is no export of //exporters:bert: it needs a variable"
      " do_lower_case, and one asset beside config.json."
    )
  _check_shapes(saved_model_dir, described, tensors)
  _check_activation(saved_model_dir, described.get().hidden_activation)
  values = {
    name: functools.partial(_finite, saved_model_dir, tensor)
    for name, tensor in tensors.items()
  }
  with_mlm = any(name.startswith(_MLM) for name in values)
  lines = bert_tables.hugging_face(model_type, described, with_mlm=with_mlm)
  if _is_identity(values):
    # The pooled output is the vector of [CLS]. Hugging Face would apply a tanh.
    print("Left out: the pooler, which is the identity.")
    lines = [x for x in lines if not x.ours.startswith(_POOLERS)]
  names = {line.ours for line in lines}
  lost = [x for x in values if x not in names and not x.startswith(_POOLERS)]
  lost += [name for name in names if name not in values]
  if lost:
    raise errors.ExportError(
      f"{saved_model_dir} is no {model_type} of Hugging Face: {lost[0]} is not"
      " in both."
    )
  # In models with a head, the encoder is an attribute of this name.
  prefix = f"{model_type}." if with_mlm else ""
  lines = [
    line
    if line.ours.startswith(_MLM) or line.theirs is None
    else line._replace(theirs=prefix + line.theirs)
    for line in lines
  ]
  kind = "ForMaskedLM" if with_mlm else "Model"
  # Write known keys only: others may name code that transformers downloads and
  # runs.
  known = encoder_config.to_hugging_face(described, model_type)
  known["architectures"] = [f"{_ARCHITECTURES[model_type]}{kind}"]
  return _Encoder(
    known,
    lines,
    values,
    os.path.join(assets, vocabularies[0]),
    bool(lower_case.read()),
  )


def _check_shapes(
  saved_model_dir: str,
  described: encoders.EncoderConfig,
  tensors: Mapping[str, weight_tables.Tensor],
) -> None:
  """Raises an ExportError if weights do not have the shapes of the config."""
  # All layers have the same shapes. Building one takes less than a second.
  one = copy.deepcopy(described)
  values = one.get().as_dict()
  (number,) = {"num_layers", "num_blocks"} & values.keys()
  one.override({one.type: {number: 1}})
  tf_keras.backend.clear_session()  # Names of layers count from 0 again.
  with checkpoints.uninitialized():
    model = core = bert.core_model(one)
    if any(name.startswith(_MLM) for name in tensors):
      model = bert.pretrain_model(core)
  shapes = {
    v.name.removesuffix(":0"): tuple(v.shape)
    for v in (*core.variables, *model.variables)
  }
  for name, tensor in tensors.items():
    expected = shapes.get(re.sub(r"layer_\d+", "layer_0", name))
    if expected not in (None, tensor.shape):
      raise errors.ExportError(
        f"{saved_model_dir}: {name} has the shape {tensor.shape}, and by"
        f" assets/config.json {expected}."
      )


def _check_activation(saved_model_dir: str, said: str) -> None:
  """Raises an ExportError if functions compute another activation than said."""
  with open(os.path.join(saved_model_dir, "saved_model.pb"), "rb") as f:
    model = private_api.saved_model_pb2.SavedModel.FromString(f.read())
  nodes = (graphs.all_nodes(x.graph_def) for x in model.meta_graphs)
  found = {_ACTIVATIONS.get(node.op) for node in itertools.chain(*nodes)}
  if found - {None} != {said}.intersection(_ACTIVATIONS.values()):
    raise errors.ExportError(
      f"{saved_model_dir}: its functions do not compute the activation that"
      " assets/config.json names."
    )


def _finite(path: str, tensor: weight_tables.Tensor) -> np.ndarray:
  """Reads a weight; raises an ExportError for NaN, infinities and texts."""
  with errors.of_input(about=f"{path}: {tensor.name}: "):
    value = tensor.read()
  if value.dtype.kind != "f" or not np.isfinite(value).all():
    raise errors.ExportError(
      f"{path}: {tensor.name} has values that are not finite numbers."
    )
  return value


def _is_identity(values: Mapping[str, Callable[[], np.ndarray]]) -> bool:
  """Returns whether the pooler's kernel is that of --pooler=identity."""
  kernels = [values[name]() for name in _KERNELS_OF_POOLERS if name in values]
  return any(np.array_equal(k, np.eye(*k.shape)) for k in kernels)


def _write_json(directory: str, name: str, values: Mapping[str, Any]) -> None:
  with open(os.path.join(directory, name), "w") as f:
    json.dump(values, f, indent=2, sort_keys=True)
    f.write("\n")


def _write_tokenizer(encoder: _Encoder, directory: str) -> None:
  """Writes the vocabulary and its config to files named as in transformers."""
  is_sentencepiece = not encoder.vocabulary.endswith(".txt")
  target = "spiece.model" if is_sentencepiece else "vocab.txt"
  shutil.copyfile(encoder.vocabulary, os.path.join(directory, target))
  kind = "AlbertTokenizer" if is_sentencepiece else "BertTokenizer"
  _write_json(
    directory,
    "tokenizer_config.json",
    {"do_lower_case": encoder.lower_case, "tokenizer_class": kind},
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The export.", required=True)
  flags.DEFINE_string(
    "output_dir", None, "The directory to write.", required=True
  )
  flags.DEFINE_integer(
    "max_shard_size",
    5 * 10**9,
    "The most bytes of weights in one file. A larger model is in several files"
    " with an index.",
    lower_bound=1,
  )
  flags.DEFINE_bool("follow_links", False, copies.FOLLOW_LINKS)


def main() -> None:
  """Writes the directory that the flags name."""
  write(
    command_line.model_path("saved_model_dir"),
    command_line.model_path("output_dir"),
    flags.FLAGS.max_shard_size,
    follow_links=flags.FLAGS.follow_links,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
