r"""Writes the Hugging Face directory of an exported text encoder.

It converts encoders and text embeddings of //exporters:bert:

  bazel run //exporters:safetensors -- \
    --saved_model_dir=DIR/encoder --output_dir=OUT
  bazel run //exporters:safetensors -- \
    --saved_model_dir=TEXT_EMBEDDING --output_dir=OUT
  bazel run //exporters:safetensors -- \
    --saved_model_dir=DIR/encoder --output_dir=OUT --trust

OUT gets config.json, model.safetensors and the files of the tokenizer, for
`transformers.AutoModel.from_pretrained`. It supports the types of encoders that
//exporters:bert reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import os
import shutil
from typing import Any

from absl import flags
from etils import epy

from distribution import formats
from distribution import publishing
from exporters.reusable import command_line
from exporters.reusable import errors

with epy.lazy_imports():
  import numpy as np

  from exporters import bert_tables
  from exporters.reusable import checkpoints
  from exporters.reusable import weight_tables
  from models.nlp import encoder_config

_ARCHITECTURES = {
  "albert": "Albert",
  "bert": "Bert",
  "distilbert": "DistilBert",
  "electra": "Electra",
  "mobilebert": "MobileBert",
}
_MLM = "bert/cls/"
_KERNELS_OF_POOLERS = ("pooler/kernel", "pooler_transform/kernel")
_POOLERS = ("pooler/", "pooler_transform/")


def write(saved_model_dir: str, output_dir: str, max_shard_size: int) -> None:
  """Writes the Hugging Face directory of an export.

  Args:
    saved_model_dir: An export of //exporters:bert with an encoder.
    output_dir: The directory to write. It must be empty or not exist.
    max_shard_size: Maximum bytes of weights per file.

  Raises:
    ExportError: The export has no such encoder, or `output_dir` has files.
  """
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
    encoder = encoder_config.from_hugging_face(config)
  tensors = checkpoints.of_saved_model(saved_model_dir)
  lower_case = bool(tensors.pop("do_lower_case").read())
  values = {name: tensor.read for name, tensor in tensors.items()}
  with_mlm = any(name.startswith(_MLM) for name in values)
  lines = bert_tables.hugging_face(model_type, encoder, with_mlm=with_mlm)
  if _is_identity(values):
    # The pooled output is the vector of [CLS]. Hugging Face's has a tanh.
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
  # In models with a head, this attribute is the encoder.
  prefix = f"{model_type}." if with_mlm else ""
  lines = [
    line
    if line.ours.startswith(_MLM) or line.theirs is None
    else line._replace(theirs=prefix + line.theirs)
    for line in lines
  ]
  kind = "ForMaskedLM" if with_mlm else "Model"
  config["architectures"] = [f"{_ARCHITECTURES[model_type]}{kind}"]
  with publishing.publish(output_dir) as directory:
    _write_json(directory, "config.json", config)
    weight_tables.write_safetensors(
      directory, weight_tables.tensors_of(lines, values), max_shard_size
    )
    _write_tokenizer(assets, directory, lower_case)
  print(f"Wrote {output_dir}, a Hugging Face directory of type {model_type}.")


def _is_identity(values: Mapping[str, Callable[[], np.ndarray]]) -> bool:
  """Returns whether --pooler=identity has made the pooler."""
  kernel = next(
    read() for name, read in values.items() if name in _KERNELS_OF_POOLERS
  )
  return np.array_equal(kernel, np.eye(*kernel.shape))


def _write_json(directory: str, name: str, values: Mapping[str, Any]) -> None:
  with open(os.path.join(directory, name), "w") as f:
    json.dump(values, f, indent=2, sort_keys=True)
    f.write("\n")


def _write_tokenizer(assets: str, directory: str, lower_case: bool) -> None:
  """Writes the vocabulary with the file names of transformers."""
  (name,) = [name for name in os.listdir(assets) if name != "config.json"]
  is_sentencepiece = not name.endswith(".txt")
  target = "spiece.model" if is_sentencepiece else "vocab.txt"
  shutil.copyfile(os.path.join(assets, name), os.path.join(directory, target))
  kind = "AlbertTokenizer" if is_sentencepiece else "BertTokenizer"
  _write_json(
    directory,
    "tokenizer_config.json",
    {"do_lower_case": lower_case, "tokenizer_class": kind},
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


def main() -> None:
  """Writes the directory that the flags name."""
  write(
    command_line.model_path("saved_model_dir"),
    command_line.model_path("output_dir"),
    flags.FLAGS.max_shard_size,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
