"""Builds the preprocessor, which turns text into the inputs of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from absl import flags
from etils import epy

from exporters.reusable import command_line
from exporters.reusable import errors
from models.nlp import preprocessing

with epy.lazy_imports():
  import tensorflow as tf

  from exporters.reusable import exporting
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving

flags.disclaim_key_flags()  # --help lists the flags as the program's own.

_EXAMPLE = """
import tensorflow as tf
import tensorflow_text  # Registers the ops of the preprocessor.

preprocessor = tf.saved_model.load("path/to/preprocessor")
inputs = preprocessor(["A sentence.", "Another one."], seq_length=32)
# Of up to three segments:
questions, answers = ["A question?", "Another?"], ["An answer.", "Yes."]
segments = [preprocessor.tokenize(texts) for texts in (questions, answers)]
inputs = preprocessor.bert_pack_inputs(segments, seq_length=32)
ids = preprocessor.tokenize.get_special_tokens_dict()
"""

# Meanings of Tensors, for the cards of the encoder and the preprocessor.
MEANINGS = {
  "sentences": "text, UTF-8",
  "input_word_ids": "token ids",
  "input_mask": "1 for tokens, 0 for padding",
  "input_type_ids": "segment number of each token",
}

_FLAGS = {
  "vocab_file": "Vocabulary of wordpieces, one a line. Either this or"
  " --sp_model_file is required, except with --train_on, which then builds a"
  " vocabulary of at most the vocab_size in the encoder's config.",
  "sp_model_file": "SentencePiece model.",
  "check_casing": "Refuse a vocabulary that contradicts --do_lower_case: text"
  " never yields many of its tokens, or it lacks capitals.",
  "tokenize_with_offsets": "Add the sub-object tokenize_with_offsets to the"
  " preprocessor. It also returns the position of each token in the text."
  " Wordpieces only.",
}

_LEAST_SHARE = 0.9  # Minimum share of the encoder's ids that have a token.

# Examples for the verification of exports.
SENTENCES = [
  "The quick brown fox jumps over the lazy dog.",
  "",
  "¿Dónde está el Ñandú? It isn't here: 漢字 and unbelievabilities…",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The options of a preprocessor: values of the flags of the same names.

  Attributes:
    as_transformers: As in `preprocessing.wordpiece_tokenizer`.
  """

  do_lower_case: bool
  vocab_file: str | None = None
  sp_model_file: str | None = None
  check_casing: bool = True
  seq_length: int = 128
  tokenize_with_offsets: bool = False
  as_transformers: bool = False

  @property
  def token_file(self) -> str | None:
    """The file with the tokens; None if pre-training builds the vocabulary."""
    return self.vocab_file or self.sp_model_file


def define_flags() -> None:
  """Defines the flags of the preprocessor alone."""
  command_line.define(Options, _FLAGS)
  flags.register_multi_flags_validator(
    ["tokenize_with_offsets", "sp_model_file"],
    lambda values: not all(values.values()),
    "--tokenize_with_offsets needs --vocab_file: accents are stripped before"
    " SentencePiece, so its tokens have no offsets in the text.",
  )


def read_tokenizer(
  options: Options, vocab_size: int | None
) -> preprocessing.Tokenizer | None:
  """Creates a tokenizer from a file; returns None without a file.

  Args:
    options: The options of the preprocessor.
    vocab_size: Vocabulary size of the encoder; None accepts any.

  Raises:
    ExportError: The file cannot be read, its tokens contradict
      `do_lower_case`, or their number does not match the encoder.
  """
  file = options.token_file
  if not file:
    return None
  casing = {
    "do_lower_case": options.do_lower_case,
    "as_transformers": options.as_transformers,
  }
  with errors.of_content(file):
    if options.vocab_file:
      tokens = preprocessing.read_vocabulary(file)
      if options.as_transformers and len(tokens) < (vocab_size or 0):
        # Encoders often have a few more word embeddings than tokens.
        if len(tokens) < _LEAST_SHARE * vocab_size:
          raise ValueError(
            f"it has {len(tokens):,} tokens for {vocab_size:,} ids. It may be"
            " truncated, or of another encoder"
          )
        print(f"{file} has {len(tokens):,} tokens for {vocab_size:,} ids.")
        tokens += [f"[unused_{i}]" for i in range(len(tokens), vocab_size)]
      tokenizer = preprocessing.wordpiece_tokenizer(tokens, **casing)
    else:
      tokenizer = preprocessing.sentencepiece_tokenizer(file, **casing)
  _check_casing(file, tokenizer, options.check_casing)
  size = len(tokenizer.tokens)
  if size != (vocab_size or size):
    too = "many lines: every id after one that is too many has shifted"
    if size < vocab_size:
      too = (
        "few lines: every id after a missing one has shifted. Only if all that"
        " are missing are at the end, add lines such as [unused1] there"
      )
    raise errors.ExportError(
      f"{file} has {size:,} tokens, but the encoder's config has a vocab_size"
      f" of {vocab_size:,}. Take the file that belongs to the encoder. This one"
      f" has {abs(size - vocab_size):,} too {too}."
    )
  return tokenizer


def _check_casing(
  file: str, tokenizer: preprocessing.Tokenizer, is_strict: bool
) -> None:
  """Raises an ExportError for a wrong casing; prints unused tokens."""
  kind = tokenizer.kind
  if tokenizer.as_transformers and kind == "wordpiece":
    kind = "transformers"
  tokens = tokenizer.tokens
  lower = tokenizer.do_lower_case
  problem = preprocessing.casing_problem(kind, tokens, lower)
  if problem and is_strict:
    said, other = ("", "no") if lower else ("no", "")
    advice = f"Say --{other}do_lower_case, or"
    if problem_of_other := preprocessing.casing_problem(
      kind, tokens, not lower
    ):
      advice = (
        f"Nor does it go with --{other}do_lower_case: {problem_of_other}. If"
        " the encoder was trained on text that something else had prepared, as"
        " lowercased with accents, prepare yours likewise, and say"
        " --nodo_lower_case"
      )
    raise errors.ExportError(
      f"{file} does not go with --{said}do_lower_case: {problem}. {advice}"
      " --nocheck_casing if the file is right."
    )
  if lost := preprocessing.unreachable(kind, tokens, lower):
    print(
      f"{file}: no text yields {len(lost):,} of its {len(tokens):,} tokens,"
      f" such as {', '.join(map(repr, lost[:5]))}"
    )


def piece(
  tokenizer: preprocessing.Tokenizer, options: Options
) -> exporting.Piece:
  """Describes the preprocessor to export.

  It takes sentences, strings `[batch]`, and has the interface of TensorFlow Hub
  (`docs/common_saved_model_apis/text.md`). Its sub-objects are `tokenize`, with
  the function `get_special_tokens_dict`; `bert_pack_inputs`, which takes 1 to 3
  segments of tokens; and optionally `tokenize_with_offsets`.
  """
  special_tokens = tokenizer.special_tokens
  tunable = [
    hyperparameters.Hyperparameter(
      "seq_length",
      options.seq_length,
      "Length of the result, an int.",
      limits={"minimum": 3},
    )
  ]

  def bert_pack_inputs(
    segments: Sequence[tf.RaggedTensor], seq_length: tf.Tensor
  ) -> Any:
    return preprocessing.pack(segments, seq_length, special_tokens)

  def preprocess(sentences: tf.Tensor, seq_length: tf.Tensor) -> Any:
    return bert_pack_inputs([tokenizer.tokenize(sentences)], seq_length)

  strings = tf.TensorSpec([None], tf.string, "sentences")
  examples = [tf.constant(SENTENCES), tf.constant(SENTENCES[:1])]
  segments, *more_segments = (
    [tf.RaggedTensorSpec([None] * rank, tf.int32)] * count
    for rank in (2, 3)
    for count in (1, 2, 3)
  )
  tokens = tokenizer.tokenize(examples[0])
  pieces = tokens.merge_dims(1, -1)  # Wordpieces that are not grouped by words.
  sub_objects = {
    "bert_pack_inputs": exporting.Piece(
      source=saving.source(bert_pack_inputs, segments, hyperparameters=tunable),
      examples=[[x] * n for x in (tokens, pieces) for n in (2, 1, 3)],
      also_takes=more_segments,
    )
  }
  tokenizers = {"tokenize": tokenizer.tokenize}
  if options.tokenize_with_offsets:
    tokenizers["tokenize_with_offsets"] = tokenizer.tokenize_with_offsets
  for name, function in tokenizers.items():
    sub_objects[name] = exporting.Piece(
      source=saving.source(function, strings),
      examples=examples,
      attributes={"get_special_tokens_dict": saving.constant(special_tokens)},
    )
  return exporting.Piece(
    source=saving.source(preprocess, strings, hyperparameters=tunable),
    examples=examples,
    attributes={
      "resources": list(tokenizer.resources),
      "preprocessor_sha256": saving.constant(tokenizer.sha256),
    },
    sub_objects=sub_objects,
  )


def attributes(
  tokenizer: preprocessing.Tokenizer,
  token_file: str,
  scratch_dir: str,
  config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Creates the attributes of an encoder that identify its preprocessor.

  Args:
    tokenizer: The tokenizer of the preprocessor.
    token_file: The name of the file with its tokens.
    scratch_dir: A directory that exists until the export is saved.
    config: Hugging Face's config of the encoder, if it has one.
  """
  name = "vocab_file" if tokenizer.kind == "wordpiece" else "sp_model_file"
  lines = "".join(f"{token}\n" for token in tokenizer.tokens)
  # Drop the path and the white space of the file.
  base = os.path.basename(token_file).replace("tokenizer.json", "vocab.txt")
  token_file = os.path.join(scratch_dir, base)
  with errors.writing(scratch_dir, errors.SCRATCH), open(token_file, "wb") as f:
    f.write(tokenizer.model or lines.encode())
  config_file = os.path.join(scratch_dir, "config.json")
  if config:
    with open(config_file, "w") as f:
      json.dump(config, f, indent=2, sort_keys=True)
  return {
    **({"config_file": tf.saved_model.Asset(config_file)} if config else {}),
    name: tf.saved_model.Asset(token_file),
    "do_lower_case": tf.Variable(
      tokenizer.do_lower_case, trainable=False, name="do_lower_case"
    ),
    "preprocessor_sha256": saving.constant(tokenizer.sha256),
  }


def card(tokenizer: preprocessing.Tokenizer) -> model_card.Card:
  """Creates the card of the preprocessor."""
  return model_card.Card(
    name="Preprocessor of a text encoder",
    description="Splits text into the tokens of a vocabulary of"
    f" {len(tokenizer.tokens):,}, and packs them into the inputs of an encoder."
    " It does the same in training and in inference, and belongs in the data"
    " pipeline, such as `Dataset.map`.",
    meanings=MEANINGS,
    example=_EXAMPLE,
    provenance=provenance(tokenizer),
    needs=("tensorflow", "tensorflow-text"),
  )


def provenance(tokenizer: preprocessing.Tokenizer) -> dict[str, str]:
  """Returns rows about the tokenizer for the cards."""
  return {
    "tokens": f"{len(tokenizer.tokens):,}, {tokenizer.kind}",
    "do_lower_case": str(tokenizer.do_lower_case).lower(),
    "`preprocessor_sha256()`": (
      f"`{tokenizer.sha256}`, the same for an encoder and its preprocessor"
    ),
  }
