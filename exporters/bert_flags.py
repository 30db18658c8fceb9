"""The config of the encoder of `//exporters:bert`: its flags and its files."""

from __future__ import annotations

from absl import flags
from etils import epy

from distribution import formats
from exporters import bert_sources
from exporters.reusable import errors
from models.nlp import bert
from models.nlp import encoder_config

with epy.lazy_imports():
  from official.nlp.configs import encoders

flags.disclaim_key_flags()  # --help lists the flags as the program's own.


def define_flags() -> None:
  """Defines the flags that describe an encoder and its inputs."""
  flags.DEFINE_string(
    "encoder_config_file",
    None,
    "Config of the encoder, YAML of Model Garden's EncoderConfig. An encoder"
    " needs either this or --bert_config_file.",
  )
  flags.DEFINE_string(
    "bert_config_file",
    None,
    "Config of the encoder as JSON, the format that came with BERT.",
  )
  flags.DEFINE_bool(
    "do_lower_case",
    None,
    "Lowercase text and strip its accents. Required, with the value that the"
    " encoder was trained with.",
  )
  flags.DEFINE_integer(
    "seq_length",
    128,
    "Default sequence length of the preprocessor; with --train_on also that of"
    " training.",
    lower_bound=5,
  )
  flags.DEFINE_integer(
    "seed",
    0,
    "Seed of initial weights; with --train_on also of training.",
    lower_bound=0,
    upper_bound=2**32 - 1,
  )
  flags.register_validator(
    "do_lower_case",
    lambda value: (
      value is not None or bert_sources.in_flags("vocab_file", "sp_model_file")
    ),
    "Say --do_lower_case or --nodo_lower_case.",
  )


def config_from_flags() -> encoders.EncoderConfig:
  """Reads the config of the encoder that the flags describe."""
  values = flags.FLAGS
  return read_config(
    formats.absolute(values.encoder_config_file),
    formats.absolute(values.bert_config_file),
    values.seq_length,
  )


def read_config(
  encoder_config_file: str | None, bert_config_file: str | None, seq_length: int
) -> encoders.EncoderConfig:
  """Reads the config of an encoder from one of two files.

  Args:
    encoder_config_file: YAML of an `EncoderConfig`.
    bert_config_file: A `bert_config.json`, the format of the first BERT.
    seq_length: A sequence length that the encoder must accept.

  Raises:
    ExportError: The file is not a valid config, or the position table of the
      encoder is too short.
  """
  file = encoder_config_file or bert_config_file
  with errors.of_content(file):
    if encoder_config_file:
      config = encoder_config.from_yaml(file)
    else:
      config = encoder_config.from_legacy_json(file)
  check_seq_length(config, seq_length)
  return config


def check_seq_length(config: encoders.EncoderConfig, seq_length: int) -> None:
  """Raises an ExportError if the position table of an encoder is too short."""
  limit = bert.max_seq_length(config)
  if seq_length > limit:
    raise errors.ExportError(
      f"--seq_length={seq_length} is past the encoder's position table, which"
      f" has {limit} rows. Choose at most {limit}."
    )
