r"""Exports an embedding of texts or words with word vectors.

It reads vectors of word2vec, GloVe or fastText, or trains them first:

  bazel run //exporters:text_embedding -- \
    --word_vectors_file=vectors.txt.gz --export_dir=DIR
  bazel run //exporters:text_embedding -- \
    --train_on=python_docs --export_dir=DIR
  bazel run //exporters:text_embedding -- --export_type=word_embedding \
    --word_vectors_file=vectors.txt.gz --num_oov_buckets=16 --export_dir=DIR
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile

from absl import flags
from etils import epy

from data import documents
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from models.nlp import count_vectors
from models.nlp import text_embedding
from models.nlp import word_vectors

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf

  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving

_EXPORT_TYPES = {
  "text_embedding": "texts to vectors, with the sub-object word_embedding",
  "word_embedding": "words to vectors",
}

_TRAINING_FLAGS = {
  "dim": ("dimension of the vectors.", 1),
  "min_count": ("minimum number of occurrences of a word.", 1),
  "window": ("largest distance of two words that count as neighbors.", 1),
}

_EXAMPLES = {
  "text_embedding": """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

# Yours: texts, str [n]; labels, int [n], from 0 on; num_classes.
model = tf_keras.Sequential([
    tf_keras.Input([], dtype=tf.string),
    hub.KerasLayer(
        "path/to/text_embedding",
        trainable=True,
        arguments={"combiner": "sqrtn"},
    ),
    tf_keras.layers.Dense(num_classes),
])
model.compile(
    optimizer="adam",
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(texts, labels, epochs=10)
""",
  "word_embedding": """
import tensorflow as tf

embedding = tf.saved_model.load("path/to/word_embedding")
# Text of one length needs padding: "" has the vector 0.
words = tf.constant([["a", "short", "text"], ["another", "", ""]])
vectors = embedding(words)
# embedding.trainable_variables are fine-tuned with the model that uses it.
""",
}

_DESCRIPTIONS = {
  "text_embedding": "Turns texts into vectors: the mean, or the `combiner` that"
  " you choose, of the vectors of their words. {splitting} {unknown} The vector"
  " of a text without a word that counts, such as an empty one or one of"
  " punctuation alone, is 0. The sub-object `word_embedding` maps words,"
  " strings `[batch, length]`, to float32 `[batch, length, dim]`. It does not"
  ' split or lowercase them; the vector of `""`, which is padding, is 0.',
  "word_embedding": "Turns words into vectors. It does not split or lowercase"
  ' them. {unknown} The vector of `""`, which is padding, is 0.',
}

_MEANINGS = {
  "texts": "text, UTF-8",
  "words": "words, UTF-8; empty strings are padding",
  "text_embeddings": "a vector for each text, 0 if it has no word that counts",
  "word_embeddings": "a vector for each word",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vectors:
  """The source of word vectors: values of the flags of the same names.

  Attributes:
    training: How to train on `python_docs`, instead of reading a file.
  """

  word_vectors_file: str | None = None
  word_vectors_format: str | None = None
  training: count_vectors.Config | None = None


def export(
  options: exporting.Options,
  export_type: str,
  vectors: Vectors,
  *,
  do_lower_case: bool | None = None,
  separators: str = text_embedding.SEPARATORS,
  num_oov_buckets: int = 0,
  trainable: bool = True,
) -> None:
  """Exports an embedding of texts or words.

  Args:
    options: Where to export and how to verify.
    export_type: One of `_EXPORT_TYPES`.
    vectors: The source of the word vectors.
    do_lower_case: Whether to lowercase text. None: lowercase if no word of
      `vectors` has capitals.
    separators: Regular expression of separators of words.
    num_oov_buckets: Number of vectors that unknown words share.
    trainable: Whether consumers may train the vectors.

  Raises:
    ExportError: The file is malformed or missing, a directory is taken, or the
      export differs from its model.
  """
  with (
    exporting.exporting(options) as export_piece,
    tempfile.TemporaryDirectory() as scratch,
  ):
    splitter = text_embedding.Splitter(do_lower_case is not False, separators)
    with errors.of_input(tf.errors.OpError, about="--separators: "):
      if tf.strings.regex_full_match("", separators):
        raise errors.ExportError(
          f"--separators={separators} matches an empty string: each character"
          r" would be a word. Say --separators='\s+' to split at white space."
        )
    source, found = _vectors(vectors, splitter, scratch)
    if do_lower_case is None:
      splitter = dataclasses.replace(
        splitter, do_lower_case=not found.has_capitals
      )
      if found.has_capitals and export_type == "text_embedding":
        print(
          "Text is not lowercased: words of the file have capitals. Say"
          " --do_lower_case to lowercase it."
        )
    embedding = text_embedding.build(
      found, splitter, num_oov_buckets=num_oov_buckets, trainable=trainable
    )
    provenance = {
      **source,
      "words": f"{found.num_words:,}, of dimension {found.dim}",
      "vectors of unknown words": str(num_oov_buckets),
    }
    piece = _piece(export_type, embedding, found)
    card = _card(export_type, splitter, num_oov_buckets, provenance)
    export_piece("", piece, card, {})


def _vectors(
  vectors: Vectors, splitter: text_embedding.Splitter, scratch: str
) -> tuple[dict[str, str], word_vectors.WordVectors]:
  """Reads or trains word vectors; returns rows for the card and vectors."""
  if path := vectors.word_vectors_file:
    with (
      errors.of_input(OSError, ValueError, about=f"{path}: "),
      errors.writing(scratch, errors.SCRATCH),
    ):
      found = word_vectors.read(path, scratch, vectors.word_vectors_format)
    if found.num_repeated:
      print(
        f"Left out {found.num_repeated:,} vectors of words that come earlier in"
        f" {path}."
      )
    return {"source": f"the file {os.path.basename(path)}"}, found
  with errors.of_input(OSError, ValueError, about="--train_on=python_docs: "):
    corpus = documents.python_docs()
    print(f"Training on {corpus.description}")
    texts = [
      text
      for batch in corpus.train.batch(1024)
      for text in splitter.split(batch).to_list()
    ]
    words, matrix = count_vectors.train(texts, vectors.training)
  rows = zip(words, words, matrix, strict=True)
  with errors.writing(scratch, errors.SCRATCH):
    found = word_vectors.store(rows, vectors.training.dim, scratch)
  return {
    "trained on": f"{corpus.description}, {len(texts):,} texts",
    "training": "singular value decomposition of the positive pointwise mutual"
    f" information of words at most {vectors.training.window} apart; lengths by"
    " smooth inverse frequency",
  }, found


def _piece(
  export_type: str,
  embedding: text_embedding.Embedding,
  vectors: word_vectors.WordVectors,
) -> exporting.Piece:
  """Describes the SavedModel to export."""
  words = tf.constant(_some_words(vectors.vocab_file))
  of_words = exporting.Piece(
    source=saving.source(
      embedding.embed_words,
      tf.TensorSpec([None, None], tf.string, "words"),
      variables=[embedding.matrix],
      autograph=False,
    ),
    examples=[tf.stack([words, words[::-1]]), words[tf.newaxis, :1]],
    output_name="word_embeddings",
  )
  attributes = {
    "vocab_file": tf.saved_model.Asset(vectors.vocab_file),
    "resources": [embedding.table],
  }
  if export_type == "word_embedding":
    return dataclasses.replace(of_words, attributes=attributes)
  texts = tf.strings.reduce_join([words, words[::-1]], 0, separator=", ")
  combiner = hyperparameters.Hyperparameter(
    "combiner",
    "mean",
    "How the vectors of the words of a text are combined: their `mean`, their"
    " `sum`, or `sqrtn`, the sum divided by the square root of the number of"
    " words.",
    choices=list(text_embedding.COMBINERS),
  )
  return exporting.Piece(
    source=saving.source(
      embedding.embed_texts,
      tf.TensorSpec([None], tf.string, "texts"),
      hyperparameters=[combiner],
      variables=[embedding.matrix],
      autograph=False,
    ),
    examples=[texts, texts[:1]],
    output_name="text_embeddings",
    attributes=attributes,
    sub_objects={"word_embedding": of_words},
  )


def _some_words(vocab_file: str) -> list[str]:
  """Returns words for the verification: known, unknown and empty ones."""
  with open(vocab_file, encoding="utf-8", newline="\n") as f:
    known = [line.rstrip("\n") for line in itertools.islice(f, 8)]
  return [*known, "", "…", "?unknown"]


def _card(
  export_type: str,
  splitter: text_embedding.Splitter,
  num_oov_buckets: int,
  provenance: dict[str, str],
) -> model_card.Card:
  lowercased = "lowercased and " if splitter.do_lower_case else ""
  unknown = (
    f"Words without a vector share {num_oov_buckets} vectors, by a hash, which"
    " are 0 until they are trained."
    if num_oov_buckets
    else "Words without a vector do not count; alone, their vector is 0."
  )
  return model_card.Card(
    name=f"{export_type.replace('_', ' ').capitalize()} by word vectors",
    description=_DESCRIPTIONS[export_type].format(
      splitting=f"A text is {lowercased}split at white space and at matches of"
      f" the regular expression `{splitter.separators}`.",
      unknown=unknown,
    ),
    meanings=_MEANINGS,
    example=_EXAMPLES[export_type],
    loaded="embedding"
    if export_type == "word_embedding"
    else "model.layers[0].resolved_object",
    provenance=provenance,
    needs=("tensorflow", "tf-keras", "tensorflow-hub")
    if export_type == "text_embedding"
    else ("tensorflow",),
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(checkpoints=False)
  flags.DEFINE_enum(
    "export_type",
    "text_embedding",
    list(_EXPORT_TYPES),
    "What to export. "
    + " ".join(f"{name}: {text}." for name, text in _EXPORT_TYPES.items()),
  )
  flags.DEFINE_string(
    "word_vectors_file",
    None,
    "File of word vectors: text or binary, also compressed by gzip. While it is"
    " exported, the vectors take as much space in TMPDIR as in memory.",
  )
  flags.DEFINE_enum(
    "word_vectors_format",
    None,
    list(word_vectors.FORMATS),
    "Format of --word_vectors_file. Default: found from its content. "
    + " ".join(f"{name}: {x}." for name, x in word_vectors.FORMATS.items()),
  )
  flags.DEFINE_enum(
    "train_on",
    None,
    ["python_docs"],
    "Train word vectors instead of reading a file, on the docstrings of"
    " Python's standard library.",
  )
  command_line.define(
    count_vectors.Config, _TRAINING_FLAGS, only_with="train_on"
  )
  flags.DEFINE_bool(
    "do_lower_case",
    None,
    "Lowercase text before its words are looked up. Default: if no word of the"
    " file has capitals; with --train_on always.",
  )
  flags.DEFINE_string(
    "separators",
    text_embedding.SEPARATORS,
    "Regular expression (RE2) of what separates the words of a text, besides"
    " white space. The default separates at all but letters, marks and digits,"
    r" of any script. For tokenized text say --separators='\s+'.",
  )
  flags.DEFINE_integer(
    "num_oov_buckets",
    0,
    "Number of additional vectors for words without one; a hash of the word"
    " chooses. They are 0 until consumers train them. With 0 buckets unknown"
    " words do not count.",
    lower_bound=0,
  )
  flags.DEFINE_bool(
    "trainable", True, "Whether consumers may train the vectors."
  )
  flags.mark_flags_as_mutual_exclusive(
    ["word_vectors_file", "train_on"], required=True
  )
  command_line.forbid_without("word_vectors_file", ["word_vectors_format"])


def main() -> None:
  """Exports the embedding that the flags describe."""
  values = flags.FLAGS
  export(
    command_line.options(),
    values.export_type,
    command_line.from_flags(
      Vectors,
      training=values.train_on
      and command_line.from_flags(count_vectors.Config),
    ),
    do_lower_case=values.do_lower_case,
    separators=values.separators,
    num_oov_buckets=values.num_oov_buckets,
    trainable=values.trainable,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
