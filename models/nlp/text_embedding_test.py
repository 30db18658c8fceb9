"""Tests embeddings of texts and words."""

import numpy as np
import tensorflow as tf

from models.nlp import count_vectors
from models.nlp import text_embedding
from models.nlp import word_vectors

_WORDS = [b"the", b"cat", b"\xc3\xa5"]
_MATRIX = np.float32([[1, 2], [3, -4], [0.5, 0]])


class TextEmbeddingTest(tf.test.TestCase):
  def build(self, **kwargs):
    rows = zip(_WORDS, _WORDS, _MATRIX, strict=True)
    vectors = word_vectors.store(rows, 2, self.get_temp_dir())
    return text_embedding.build(vectors, text_embedding.Splitter(), **kwargs)

  def test_separators(self):
    for separators, words in ((r"\s+", ["a,b", "c", "d"]), (",", list("abcd"))):
      splitter = text_embedding.Splitter(separators=separators)
      self.assertEqual(
        splitter.split(["A,b\0c D"]).to_list(),
        [[word.encode() for word in words]],
      )

  def test_combiners(self):
    embed = self.build().embed_texts
    texts = ["The cat, the Å!", "", "…?!", "dog", b"\xff the\x00cat"]
    total = np.float32([[5.5, 0], [0, 0], [0, 0], [0, 0], [4, -2]])
    count = np.float32([4, 1, 1, 1, 2])[:, np.newaxis]
    self.assertAllClose(embed(texts, "sum"), total)
    self.assertAllClose(embed(texts, "mean"), total / count)
    self.assertAllClose(embed(texts, "sqrtn"), total / count**0.5)
    self.assertAllEqual(
      embed(tf.zeros([0], tf.string), "sum"), np.zeros([0, 2])
    )
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, "combiner must be one of mean, sum, sqrtn"
    ):
      embed(texts, "max")

  def test_words_are_neither_split_nor_lowercased(self):
    embedding = self.build()
    words = [["cat", "The", "", "the cat"], ["å", "the", "dog", ""]]
    rows = [[1, -1, -1, -1], [2, 0, -1, -1]]
    expected = np.float32([*_MATRIX, [0, 0]])[rows]
    self.assertAllEqual(embedding.embed_words(tf.constant(words)), expected)

  def test_unknown_words_learn_in_buckets(self):
    embedding = self.build(num_oov_buckets=4)
    self.assertAllEqual(embedding.matrix[3:], np.zeros([4, 2]))
    with tf.GradientTape() as tape:
      y = embedding.embed_texts(["a dog and the cat", ""], "sum")
    gradient = tape.gradient(y, embedding.matrix)
    self.assertIsInstance(gradient, tf.IndexedSlices)
    self.assertLen(gradient.indices, 5)
    self.assertGreater(np.unique(gradient.indices).size, 3)
    embedding.matrix.scatter_add(gradient)
    known, unknown = embedding.embed_words(tf.constant([["dog", ""], ["", ""]]))
    self.assertAllEqual(known[0], known[0, :1] * np.ones(2))
    self.assertGreater(known[0, 0], 0)
    self.assertAllEqual(unknown, np.zeros([2, 2]))

  def test_trained_vectors_know_which_words_are_alike(self):
    # Nouns of animals and of machines occur with different verbs.
    random = np.random.default_rng(0)
    texts = []
    for _ in range(400):
      kind = random.integers(2)
      nouns = (["cat", "dog", "cow"], ["pump", "lathe", "drill"])[kind]
      verbs = (["eats", "sleeps"], ["hums", "rusts"])[kind]
      texts.append(["the", random.choice(nouns), random.choice(verbs)])
    config = count_vectors.Config(dim=4, window=2)
    words, vectors = count_vectors.train(texts, config)
    self.assertEqual(words[0], "the")
    self.assertAllEqual(count_vectors.train(texts, config)[1], vectors)
    lengths = np.linalg.norm(vectors, axis=1)
    self.assertEqual(np.argmin(lengths), 0)
    unit = dict(zip(words, vectors / lengths[:, np.newaxis], strict=True))
    alike = unit["cat"] @ unit["dog"], unit["pump"] @ unit["lathe"]
    others = unit["cat"] @ unit["pump"], unit["dog"] @ unit["lathe"]
    self.assertGreater(min(alike), max(others) + 0.5)
    with self.assertRaisesRegex(ValueError, "only 11 words .* smaller dim"):
      count_vectors.train(texts, count_vectors.Config(dim=11))


if __name__ == "__main__":
  tf.test.main()
