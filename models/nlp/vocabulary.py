"""Wordpiece vocabularies."""

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
    max_size: Number of tokens that the vocabulary has at most.
    do_lower_case: Lower-case the text and strip its accents, as the tokenizer
      that will use the vocabulary does.

  Returns:
    The tokens, in the order of their ids: `SPECIAL_TOKENS`, then characters,
    then wordpieces, the most frequent first. The same text gives the same.

  Raises:
    ValueError: `max_size` does not suffice for the characters of the text.
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
      f" {len(tokens)} tokens, more than {max_size}. Allow as many."
    )
  return tokens
