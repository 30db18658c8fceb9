"""Exports what turns text into the inputs of a BERT-like encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from etils import epy

from models.nlp import preprocessing

with epy.lazy_imports():
  import tensorflow as tf

  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving

_EXAMPLE = """
import tensorflow as tf
import tensorflow_text  # The preprocessor has ops of it.

preprocessor = tf.saved_model.load("path/to/preprocessor")
inputs = preprocessor(["A sentence.", "Another one."], seq_length=32)
# Of up to three segments:
questions, answers = ["A question?", "Another?"], ["An answer.", "Yes."]
segments = [preprocessor.tokenize(texts) for texts in (questions, answers)]
inputs = preprocessor.bert_pack_inputs(segments, seq_length=32)
ids = preprocessor.tokenize.get_special_tokens_dict()
"""

# For the cards of the encoder and of the preprocessor.
MEANINGS = {
  "sentences": "text, UTF-8",
  "input_word_ids": "ids of tokens, from 0 to less than the vocabulary's size",
  "input_mask": "1 where there is a token, 0 where there is padding",
  "input_type_ids": "number of the segment that the token is of, from 0 on",
}

_SENTENCES = [
  "The quick brown fox jumps over the lazy dog.",
  "",
  "¿Dónde está el Ñandú? It isn't here: 漢字 and unbelievabilities…",
]


def export(
  directory: str,
  tokenizer: preprocessing.Tokenizer,
  *,
  seq_length: int,
  with_offsets: bool,
  verify: Callable[..., None],
) -> None:
  """Writes the SavedModel of a preprocessor and its card, and verifies it.

  It takes sentences, strings `[batch]`, and has sub-objects: `tokenize`, with a
  function `get_special_tokens_dict`; `tokenize_with_offsets`, if wanted; and
  `bert_pack_inputs`, which takes 1 to 3 segments of tokens. They are those that
  TensorFlow Hub documents (`docs/common_saved_model_apis/text.md`).

  Args:
    directory: Where to write.
    tokenizer: Splits text into tokens.
    seq_length: The length that is packed to by default.
    with_offsets: Whether to have `tokenize_with_offsets`.
    verify: Takes the directory, the `saving.Source`, examples and sub-objects,
      as `verification.verify` does.

  Raises:
    ExportError: The export differs.
  """
  special_tokens = tokenizer.special_tokens
  tunable = [
    hyperparameters.Hyperparameter(
      "seq_length", seq_length, "Length of the result, an int."
    )
  ]

  def preprocess(sentences: tf.Tensor, seq_length: tf.Tensor) -> Any:
    tokens = tokenizer.tokenize(sentences)
    return preprocessing.pack([tokens], seq_length, special_tokens)

  def bert_pack_inputs(
    segments: Sequence[tf.RaggedTensor], seq_length: tf.Tensor
  ) -> Any:
    return preprocessing.pack(segments, seq_length, special_tokens)

  strings = tf.TensorSpec([None], tf.string, "sentences")
  segments = [
    [tf.RaggedTensorSpec([None] * rank, tf.int32)] * count
    for rank in (2, 3)
    for count in (1, 2, 3)
  ]
  examples = [tf.constant(_SENTENCES), tf.constant(_SENTENCES[:1])]
  source = saving.source(preprocess, strings, hyperparameters=tunable)
  pack = saving.source(bert_pack_inputs, segments[0], hyperparameters=tunable)
  root = saving.reusable(source)
  root.bert_pack_inputs = saving.reusable(pack, also_takes=segments[1:])
  tokens = tokenizer.tokenize(examples[0])
  sub_objects = {
    "bert_pack_inputs": (pack, [[tokens] * 2, [tokens], [tokens] * 3])
  }
  tokenizers = {"tokenize": tokenizer.tokenize}
  if with_offsets:
    tokenizers["tokenize_with_offsets"] = tokenizer.tokenize_with_offsets
  for name, function in tokenizers.items():
    of_tokens = saving.source(function, strings)
    sub_object = saving.reusable(of_tokens)
    sub_object.get_special_tokens_dict = saving.constant(special_tokens)
    setattr(root, name, sub_object)
    sub_objects[name] = (of_tokens, examples)
  root.resources = list(tokenizer.resources)
  root.preprocessor_sha256 = saving.constant(tokenizer.sha256)
  signature = saving.signature(root, strings)
  saving.save(root, directory, signatures={"serving_default": signature})
  model_card.write(
    directory,
    root,
    signature,
    name="Preprocessor of a BERT-like encoder",
    description="It splits text into the tokens of a vocabulary of"
    f" {len(tokenizer.tokens):,} and makes the inputs of an encoder of them. It"
    " does the same in training and in inference, and belongs into the data"
    " pipeline, such as `Dataset.map`.",
    meanings=MEANINGS,
    hyperparameters=tunable,
    example=_EXAMPLE,
    provenance=provenance(tokenizer),
    needs=("tensorflow", "tensorflow-text"),
  )
  verify(directory, source, examples, sub_objects=sub_objects)


def provenance(tokenizer: preprocessing.Tokenizer) -> dict[str, str]:
  """Returns what cards tell of a preprocessor."""
  return {
    "tokens": f"{len(tokenizer.tokens):,}, {tokenizer.kind}",
    "do_lower_case": str(tokenizer.do_lower_case).lower(),
    "`preprocessor_sha256()`": (
      f"`{tokenizer.sha256}`, the same for an encoder and its preprocessor"
    ),
  }
