"""The flags that the exporter of text encoders and its training share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from exporters.reusable import command_line
from exporters.reusable import errors
from models.nlp import bert
from models.nlp import encoder_config

if TYPE_CHECKING:
  from official.nlp.configs import encoders

flags.disclaim_key_flags()  # They are those of the program.


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
    "Lowercase text and strip its accents. Required, and as in the training of"
    " the encoder.",
  )
  flags.DEFINE_integer(
    "seq_length",
    128,
    "Default length that the preprocessor packs to; with --train_on also the"
    " length of the training's sequences.",
    lower_bound=5,
  )
  flags.DEFINE_integer(
    "seed",
    0,
    "Seed of initial weights; with --train_on of everything random in it.",
  )
  flags.register_validator(
    "do_lower_case",
    lambda value: value is not None,
    "Say --do_lower_case or --nodo_lower_case.",
  )


def encoder_config_from_flags() -> encoders.EncoderConfig:
  """Reads the config of the encoder that the flags describe."""
  values = flags.FLAGS
  return read_encoder_config(
    command_line.path(values.encoder_config_file),
    command_line.path(values.bert_config_file),
    values.seq_length,
  )


def read_encoder_config(
  encoder_config_file: str | None, bert_config_file: str | None, seq_length: int
) -> encoders.EncoderConfig:
  """Reads the config of an encoder.

  Args:
    encoder_config_file: YAML of an `EncoderConfig`. Either this or
      `bert_config_file`.
    bert_config_file: A `bert_config.json`, the format that came with BERT.
    seq_length: A length of sequences that the encoder must accept.

  Raises:
    ExportError: The file is not such a config, or the position table of the
      encoder is too short.
  """
  try:
    if encoder_config_file:
      config = encoder_config.from_yaml(encoder_config_file)
    else:
      config = encoder_config.from_legacy_json(bert_config_file)
  except ValueError as e:
    file = encoder_config_file or bert_config_file
    raise errors.ExportError(f"{file}: {e}.") from e
  limit = bert.max_seq_length(config)
  if seq_length > limit:
    raise errors.ExportError(
      f"--seq_length={seq_length} is past the encoder's position table, which"
      f" has {limit} rows. Choose at most {limit}."
    )
  return config
