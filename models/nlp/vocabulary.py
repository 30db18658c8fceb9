"""Learns wordpiece vocabularies."""

from __future__ import annotations

from etils import epy

with epy.lazy_imports():
  import tensorflow as tf
  from tensorflow_text.tools.wordpiece_vocab import bert_vocab_from_dataset

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build(
  documents: tf.data.Dataset, max_size: int, *, do_lower_case: bool
) -> list[str]:
  """Learns a wordpiece vocabulary from text, with tensorflow-text.

  Args:
    documents: Strings, shape `[]`.
    max_size: Maximum number of tokens.
    do_lower_case: Lowercase the text and strip accents, as the tokenizer will.

  Returns:
    The tokens in the order of their ids: `SPECIAL_TOKENS`, characters, and
    wordpieces by descending frequency. The result is deterministic.

  Raises:
    ValueError: `max_size` is too small for the characters of the text.
  """
  tokens = bert_vocab_from_dataset.bert_vocab_from_dataset(
    documents.batch(1024).prefetch(tf.data.AUTOTUNE),
    max_size,
    list(SPECIAL_TOKENS),
    bert_tokenizer_params={"lower_case": do_lower_case},
  )
  if len(tokens) > max_size:
    raise ValueError(
      f"The smallest vocabulary that tensorflow-text finds for this text has"
      f" {len(tokens)} tokens, more than {max_size}. Increase the maximum."
    )
  return tokens
