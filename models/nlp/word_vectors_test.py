"""Tests the readers of word vectors."""

import codecs
import gzip

from absl.testing import absltest
import numpy as np

from models.nlp import word_vectors

_WORDS = ["the", "Ångström", "</s>", "1"]
_VECTORS = np.float32([[1, -2.5], [0.25, 3], [1e-3, 0], [7, 8]])

_ROWS = [
  f"{word} {' '.join(map(str, vector))}\n".encode()
  for word, vector in zip(_WORDS, _VECTORS.tolist(), strict=True)
]
_BINARY = [
  word.encode() + b" " + vector.tobytes()
  for word, vector in zip(_WORDS, _VECTORS, strict=True)
]
_HEADER = b"4 2\n"
_FILES = {
  "glove": b"".join(_ROWS),
  "word2vec": b"".join([_HEADER, *_ROWS]),
  "fasttext": b"".join([_HEADER, *_ROWS]).replace(b"\n", b" \r\n"),
  "word2vec_binary": b"".join([_HEADER, *_BINARY]),
  "binary_lines": b"\n".join([_HEADER + _BINARY[0], *_BINARY[1:]]) + b"\n",
}


class WordVectorsTest(absltest.TestCase):
  def read(self, content, file_format=None):
    path = self.create_tempfile(content=content).full_path
    directory = self.create_tempdir().full_path
    return word_vectors.read(path, directory, file_format)

  def assert_vectors(self, vectors, words, matrix):
    with open(vectors.vocab_file, encoding="utf-8", newline="\n") as f:
      self.assertEqual(f.read(), "".join(f"{word}\n" for word in words))
    np.testing.assert_array_equal(vectors.matrix(), matrix)

  def test_formats_are_found(self):
    for name, content in _FILES.items():
      for packed in (False, True):
        with self.subTest(name, packed=packed):
          vectors = self.read(gzip.compress(content) if packed else content)
          self.assert_vectors(vectors, _WORDS, _VECTORS)
          self.assertTrue(vectors.has_capitals)
          self.assertEqual((vectors.num_words, vectors.dim), _VECTORS.shape)

  def test_more_rows_are_zero(self):
    vectors = self.read(_FILES["glove"].decode().lower().encode())
    self.assertFalse(vectors.has_capitals)
    matrix = vectors.matrix(3)
    np.testing.assert_array_equal(matrix[:4], _VECTORS)
    np.testing.assert_array_equal(matrix[4:], np.zeros([3, 2]))
    self.assertEqual(matrix.ctypes.data % 64, 0)

  def test_format_overrules_what_is_found(self):
    vectors = self.read(b"3 1\n5 2\n", "glove")
    self.assert_vectors(vectors, ["3", "5"], [[1], [2]])

  def test_the_byte_order_mark_is_no_part_of_a_word(self):
    for header in (b"", b"1 2\n"):
      vectors = self.read(codecs.BOM_UTF8 + header + b"a 1 2\n")
      self.assert_vectors(vectors, ["a"], [[1, 2]])

  def test_words_with_spaces_and_repeated_words(self):
    vectors = self.read(b"the 1 2\n. . 3 4\nat a@b.org 5 6\nthe 7 8\n")
    self.assert_vectors(
      vectors, ["the", ". .", "at a@b.org"], [[1, 2], [3, 4], [5, 6]]
    )
    self.assertEqual(vectors.num_repeated, 1)

  def test_malformed_files(self):
    text, binary = _FILES["word2vec"], _FILES["word2vec_binary"]
    for content, file_format, message in (
      (b"", None, "line 1: it is empty"),
      (b"the\n", None, "line 1: there are no vectors"),
      (b"0 300\n", None, "line 1: there are no vectors"),
      (b"a 1 2\nb 1\n", None, "line 2: it has 1 values .* and not 2"),
      (b"a 1 2\n\n", None, "line 2: it has 0 values"),
      (b"a 1 2\nb 1 2 3\n", None, "line 2: it has 3 values"),
      (b"a 1 2\nb 1 x\n", None, "line 2: could not convert .*'x'"),
      (b"a 1 2\na_b 1_0 2\n", None, "line 2: a value has a _"),
      ("a 1 2\n".encode("utf-16"), None, "line 1: it is UTF-16. Convert"),
      (b"1 9000000\na " + bytes(9), None, "line 1: the dimension is 9,000,000"),
      (b"a 1 2\nb nan 2\n", None, "line 2: the vector of b .* not finite"),
      (b"a 1 2\nb 1 1e39\n", None, "line 2: the vector of b .* not finite"),
      (b"a 1 2\n\xff 1 2\n", None, r"line 2: b'\\xff' is not UTF-8"),
      (b"a 1 2\n", "word2vec", "line 1: it must have the number of words"),
      (text + b"more 1 2\n", None, "line 1: .* 4 words, but there are 5"),
      (text.replace(_ROWS[-1], b""), None, "4 words, but there are 3"),
      (binary[:-1], None, "word 4: .* truncated or has another format"),
      (binary + _BINARY[0], None, "4 words, but there are more"),
      (_HEADER + b"a\r\n " + bytes(32), None, r"word 1: 'a\\r\\n' is not a"),
      (gzip.compress(text)[:-9], None, "after line .*truncated or damaged"),
      (b"\x1f\x8b" + text, None, "after line 1: .*truncated or damaged"),
    ):
      with self.subTest(content):
        with self.assertRaisesRegex(ValueError, message):
          self.read(content, file_format)


if __name__ == "__main__":
  absltest.main()
