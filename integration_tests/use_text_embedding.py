r"""Fine-tunes an exported embedding of texts, to classify or to search.

It trains a new head, then all weights, and prints the result:

  bazel run //integration_tests:use_text_embedding -- \
    --saved_model_dir=DIR --task=search
  bazel run //integration_tests:use_text_embedding -- \
    --saved_model_dir=DIR --train_file=texts.csv
  bazel run //integration_tests:use_text_embedding -- --saved_model_dir=DIR \
    --train_file=texts.csv --output_saved_model_dir=CLASSIFIER
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

from absl import flags
from etils import epy

from data import texts
from distribution import errors
from integration_tests import command_line
from integration_tests import fitting
from integration_tests import report
from integration_tests import serving

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tensorflow_text  # Registers the ops of embeddings with BERT.
  import tf_keras

_CANDIDATES = 200  # Number of texts that a query is compared with.
_FIRST = 5  # The right text must be among this many of the most similar ones.


def _load(saved_model_dir: str, **arguments: Any) -> tf_keras.layers.Layer:
  _ = tensorflow_text.__name__  # Runs the lazy import.
  return fitting.load_layer(saved_model_dir, name="embedding", **arguments)


def build_classifier(
  saved_model_dir: str,
  num_classes: int,
  *,
  learning_rate: float = 3e-3,
  **layer_arguments: Any,
) -> tf_keras.Model:
  """Builds and compiles a classifier of texts.

  Args:
    saved_model_dir: The embedding.
    num_classes: Number of classes.
    learning_rate: Learning rate of Adam.
    **layer_arguments: Arguments of `fitting.load_layer`. `retrain` is required.

  Returns:
    A model from strings, `[batch]`, to logits, float32 `[batch, num_classes]`.
  """
  model = tf_keras.Sequential(
    [
      tf_keras.Input([], dtype=tf.string, name="texts"),
      _load(saved_model_dir, **layer_arguments),
      # Word vectors are short, and their means even shorter.
      tf_keras.layers.BatchNormalization(momentum=0.9, name="normalization"),
      tf_keras.layers.Dense(num_classes, dtype="float32", name="logits"),
    ]
  )
  return fitting.compiled(model, tf_keras.optimizers.Adam(learning_rate))


def arrays(data: tuple[Any, np.ndarray]) -> fitting.Data:
  """Converts texts, which are pyarrow's strings, and labels to arrays."""
  strings, labels = data
  return strings.to_numpy(), labels


def build_search(
  saved_model_dir: str,
  *,
  learning_rate: float = 3e-3,
  sharpness: float = 10.0,
  **layer_arguments: Any,
) -> tf_keras.Model:
  """Builds and compiles a model that learns to find texts by queries.

  In each batch a query must be more similar to its own text than to the others.

  Args:
    saved_model_dir: The embedding.
    learning_rate: Learning rate of Adam.
    sharpness: Factor of the similarities.
    **layer_arguments: Arguments of `fitting.load_layer`. `retrain` is required.

  Returns:
    A model from a dict of `queries` and `texts`, strings `[batch]`, to their
    similarities, float32 `[batch, batch]`.
  """
  embedding = _load(saved_model_dir, **layer_arguments)
  inputs = {
    name: tf_keras.Input([], dtype=tf.string, name=name)
    for name in ("queries", "texts")
  }
  queries, found = (
    tf.cast(tf.math.l2_normalize(embedding(x), -1), tf.float32)
    for x in inputs.values()
  )
  scores = sharpness * tf.matmul(queries, found, transpose_b=True)
  model = tf_keras.Model(inputs, scores)

  def loss(_: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    right = tf.range(tf.shape(scores)[0])
    return tf_keras.losses.sparse_categorical_crossentropy(
      right, scores, from_logits=True
    )

  model.compile(tf_keras.optimizers.Adam(learning_rate), loss)
  return model


def search_data(pairs: texts.Pairs) -> fitting.Data:
  """Returns training data for `build_search`, with dummy labels."""
  inputs = {"queries": pairs.summaries, "texts": pairs.bodies}
  return inputs, np.zeros(len(pairs.bodies))


def embed(
  embedding: tf_keras.layers.Layer, strings: Sequence[str]
) -> np.ndarray:
  """Embeds texts in a data pipeline; returns unit vectors `[n, dim]`."""
  batches = tf.data.Dataset.from_tensor_slices(strings).batch(64)
  vectors = batches.map(embedding, num_parallel_calls=tf.data.AUTOTUNE)
  vectors = np.concatenate(list(vectors.as_numpy_iterator()))
  return vectors / np.maximum(
    np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6
  )


def share_found(scores: np.ndarray) -> float:
  """Returns the share of queries whose text is among the first five.

  Args:
    scores: Similarities `[n, n]` of queries and texts. Query i belongs to text
      i. Ties count against the query.
  """
  ranks = (scores >= np.diag(scores)[:, np.newaxis]).sum(axis=1)
  return float(np.mean(ranks <= _FIRST))


def _embedding_of(model: tf_keras.Model) -> tf_keras.Model:
  """Returns the embedding in a model of `build_search`, for saving."""
  strings = tf_keras.Input([], dtype=tf.string, name="texts")
  return tf_keras.Model(strings, model.get_layer("embedding")(strings))


def test_search(model: tf_keras.Model, pairs: texts.Pairs) -> str:
  """Evaluates the search for bodies by summaries, 200 bodies at a time."""
  embedding = model.get_layer("embedding")
  queries, bodies = (embed(embedding, side) for side in pairs)
  parts = samples(len(bodies))
  found = np.mean([share_found(queries[i] @ bodies[i].T) for i in parts])
  return (
    f"Found among the first {_FIRST} of {_CANDIDATES} texts: {found:.4f} of"
    f" {_CANDIDATES * len(parts):,} held-out queries"
  )


def samples(count: int) -> list[slice]:
  """Returns consecutive slices of 200 of `count` texts."""
  ends = range(_CANDIDATES, count + 1, _CANDIDATES)
  return [slice(end - _CANDIDATES, end) for end in ends]


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(
    "texts",
    learning_rate=1e-2,
    retraining=(
      "regularization_loss_multiplier",
      "dropout_rate",
      "attention_dropout_rate",
    ),
    classifies=True,
  )
  flags.DEFINE_enum(
    "task",
    "classify",
    ["classify", "search"],
    "classify: train a classifier of the packages that docstrings come from."
    " search: learn to find a docstring by its first line.",
  )
  flags.DEFINE_enum(
    "dataset",
    "python_docs",
    ["python_docs"],
    "Text to fine-tune on: the docstrings of Python's standard library.",
  )
  texts.define_flags()
  report.define_flags()
  errors.apply_only_with(
    "task=classify",
    ("frozen_epochs", "patience", "class_weight", "report", "train_file"),
  )
  flags.DEFINE_enum(
    "combiner",
    None,
    ["mean", "sum", "sqrtn"],
    "How an embedding by word vectors combines the words of a text. Default: as"
    " in the export.",
  )


def fine_tune() -> None:
  """Fine-tunes according to the flags."""
  values = flags.FLAGS
  combiner = {"combiner": values.combiner} if values.combiner else {}
  if values.task == "classify":
    dataset = command_line.labelled_texts()
    parts = (
      part and arrays(part)
      for part in (dataset.train, dataset.test, dataset.validation)
    )
    data = fitting.Parts(*parts, command_line.class_weights(dataset))
    command_line.fine_tune(
      functools.partial(
        build_classifier, num_classes=len(dataset.classes), **combiner
      ),
      lambda model: (
        data,
        serving.Classifier(model, dataset.classes, str(dataset)),
      ),
      "texts",
      held_out=lambda: command_line.of_texts(dataset),
    )
    return
  with command_line.input_errors():
    train, test = texts.python_doc_pairs()
  command_line.fine_tune(
    functools.partial(build_search, **combiner),
    lambda model: (
      fitting.Parts(search_data(train), None),
      _embedding_of(model),
    ),
    "texts",
    lambda model: test_search(model, test),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(fine_tune)
