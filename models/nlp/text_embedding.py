"""Embeds words and texts with a table of word vectors.

An embedding uses only ops of TensorFlow itself, so consumers need no other
package. It has no Assert, so TPU hosts can run it in data pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import hashlib

from etils import epy

from models.nlp import word_vectors

with epy.lazy_imports():
  import tensorflow as tf

# Combiners divide the sum of n vectors by n to the power of these exponents.
COMBINERS = {"mean": 1.0, "sum": 0.0, "sqrtn": 0.5}

# Everything except letters, marks (such as accents) and digits.
SEPARATORS = r"[^\pL\pM\pN]+"


@dataclasses.dataclass(frozen=True)
class Splitter:
  """Splits text into words.

  Attributes:
    do_lower_case: Whether words are lowercased.
    separators: Regular expression (RE2) of separators of words. White space and
      zero bytes always separate words.
  """

  do_lower_case: bool = True
  separators: str = SEPARATORS

  def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
    """Splits texts, strings `[batch]`, into words `[batch, (words)]`."""
    # Also split at zero bytes, because `lower` ends a text at the first one.
    separators = rf"{self.separators}|\x00"
    texts = tf.strings.regex_replace(texts, separators, " ")
    if self.do_lower_case:
      texts = tf.strings.lower(texts, encoding="utf-8")
    return tf.strings.split(texts)


@dataclasses.dataclass(frozen=True)
class Embedding:
  """Embeds words and texts.

  Attributes:
    matrix: The vectors of the words, followed by those of the buckets for
      unknown words.
    table: Maps each word to its row of `matrix`.
    embed_texts: Maps texts, strings `[batch]`, and a combiner, a scalar string,
      to float32 `[batch, dim]`. Words without a vector are ignored.
    embed_words: Maps words, strings `[batch, length]`, to float32
      `[batch, length, dim]`. "" and words without a vector get a vector of 0.
  """

  matrix: tf.Variable
  table: tf.lookup.StaticHashTable
  embed_texts: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
  embed_words: Callable[[tf.Tensor], tf.Tensor]


def build(
  vectors: word_vectors.WordVectors,
  splitter: Splitter,
  *,
  num_oov_buckets: int = 0,
  trainable: bool = True,
) -> Embedding:
  """Creates an embedding of word vectors.

  Args:
    vectors: The words and their vectors.
    splitter: Splits texts into words.
    num_oov_buckets: Number of vectors for unknown words. A hash of the word
      selects the vector. These vectors start at 0 and can be trained.
    trainable: Whether the vectors are trainable.
  """
  # DLPack shares the memory of the array. All other conversions copy it.
  memory = vectors.matrix(num_oov_buckets).__dlpack__()
  matrix = tf.Variable(
    tf.experimental.dlpack.from_dlpack(memory),
    trainable=trainable,
    name="word_vectors",
  )
  with open(vectors.vocab_file, "rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()

  class Initializer(tf.lookup.TextFileInitializer):
    # TensorFlow Serving needs a name. The default name contains the path of the
    # vocabulary, which must not be in the export.
    _shared_name = f"words_{digest}"

  table = tf.lookup.StaticHashTable(
    Initializer(
      vectors.vocab_file,
      *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
      *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
      vocab_size=vectors.num_words,
    ),
    default_value=-1,
  )

  def rows(words: tf.Tensor) -> tf.Tensor:
    """Returns the row of each word in `matrix`; -1 if it has no vector."""
    found = table.lookup(words)
    if not num_oov_buckets:
      return found
    buckets = tf.strings.to_hash_bucket_fast(words, num_oov_buckets)
    unknown = (found < 0) & (words != "")
    return tf.where(unknown, vectors.num_words + buckets, found)

  def embed_words(words: tf.Tensor) -> tf.Tensor:
    found = rows(words)
    embedded = tf.gather(matrix, tf.maximum(found, 0))
    return tf.where(found[..., tf.newaxis] < 0, 0.0, embedded)

  def embed_texts(texts: tf.Tensor, combiner: tf.Tensor) -> tf.Tensor:
    words = splitter.split(texts)
    found = rows(words.flat_values)
    known = tf.where(found >= 0)[:, 0]
    embedded = tf.gather(matrix, tf.gather(found, known))
    of_text = tf.gather(words.value_rowids(), known)
    num_texts = tf.size(texts, tf.int64)
    count = tf.math.unsorted_segment_sum(
      tf.ones_like(of_text, tf.float32), of_text, num_texts
    )
    total = tf.math.unsorted_segment_sum(embedded, of_text, num_texts)
    divisor = tf.maximum(count, 1.0) ** _exponent(combiner)
    return total / divisor[:, tf.newaxis]

  return Embedding(matrix, table, embed_texts, embed_words)


def _exponent(combiner: tf.Tensor) -> tf.Tensor:
  """Returns the exponent of a combiner; fails for an unknown one."""
  chosen = tf.equal(list(COMBINERS), combiner)
  exponent = tf.reduce_sum(tf.where(chosen, list(COMBINERS.values()), 0.0))
  # Avoid an Assert, because TPU hosts may not run one in data pipelines.
  return tf.debugging.check_numerics(
    tf.where(tf.reduce_any(chosen), exponent, float("nan")),
    f"The argument combiner must be one of {', '.join(COMBINERS)}.",
  )
