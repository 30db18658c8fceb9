import gzip
import importlib
import io
import json
import os

import pyarrow
from pyarrow import parquet
import tensorflow as tf

from data import documents
from distribution import errors


def _texts(dataset):
  return [text.decode() for text in dataset.as_numpy_iterator()]


def _size(*paths):
  return sum(os.path.getsize(path) for path in paths) / 1e6


class DocumentsTest(tf.test.TestCase):
  def test_python_docs(self):
    corpus = documents.python_docs()
    train, held_out = _texts(corpus.train), _texts(corpus.held_out)
    self.assertGreater(len(train), 3500)
    self.assertBetween(len(held_out), len(train) / 8, len(train) / 2)
    self.assertEmpty(set(train) & set(held_out))
    self.assertEqual(len(set(train)), len(train))
    self.assertIn(importlib.__doc__.strip(), train + held_out)

  def write(self, name, text):
    path = os.path.join(self.get_temp_dir(), name)
    with open(path, "wb") as f:
      f.write(text.encode() if isinstance(text, str) else text)
    return path

  def test_text_files(self):
    blocks = [f"Document {i}.\nIts second line." for i in range(120)]
    first = self.write("a.txt", "\n\n" + "\n\n \n".join(blocks[:100]))
    text = ("\n\n".join(blocks[100:]) + "\n").encode()
    second = self.write("b.txt.gz", gzip.compress(text))
    corpus = documents.text_files([first, second])
    self.assertEqual(
      corpus.description,
      f"a.txt, b.txt.gz ({_size(first, second):.3g} MB)",
    )
    # In the second file the first held-out document would be number 49.
    held_out = [blocks[0], blocks[50]]
    self.assertEqual(_texts(corpus.held_out), held_out)
    expected = sorted(set(blocks) - set(held_out))
    self.assertEqual(sorted(_texts(corpus.train)), expected)
    every = documents.text_files([os.path.join(self.get_temp_dir(), "?.txt*")])
    self.assertEqual(sorted(_texts(every.train)), expected)
    # Two workers share the files.
    of_workers = [
      documents.text_files([first, second], worker=(i, 2)) for i in range(2)
    ]
    self.assertEqual(
      [sorted(_texts(corpus.of_worker)) for corpus in of_workers],
      [sorted({*blocks[:100]} - {*held_out}), sorted(blocks[100:])],
    )
    for corpus in of_workers:  # The vocabulary needs all documents.
      self.assertEqual(sorted(_texts(corpus.train)), expected)
      self.assertEqual(_texts(corpus.held_out), held_out)

  def test_rows(self):
    texts = [f"Text {i}, of row {i}.\n\nIts end." for i in range(100)]
    lines = "".join(json.dumps({"n": 1, "text": t}) + "\n" for t in texts)
    table = pyarrow.table({"body": texts})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    for name, data in (("a.jsonl", lines), ("b.parquet", buffer.getvalue())):
      corpus = documents.text_files([self.write(name, data)])
      train, held_out = _texts(corpus.train), _texts(corpus.held_out)
      self.assertEqual(held_out, texts[::50])
      self.assertEqual(train, [t for i, t in enumerate(texts) if i % 50])
    with self.assertRaisesRegex(ValueError, "remote TPUs and parameter"):
      documents.text_files([self.write("a.jsonl", lines)], is_remote=True)

  def test_long_documents_are_divided(self):
    line = "word " * 20 + "\n"
    path = self.write("long", line * 20_000)
    parts = _texts(documents.text_files([path]).train)
    self.assertBetween(max(map(len, parts)), 2**14, 2**15)
    self.assertGreater(sum(map(len, parts)), 20_000 * 100 * 0.9)
    lines = json.dumps({"text": line * 10_000}) + "\n"
    parts = _texts(documents.text_files([self.write("a.jsonl", lines)]).train)
    self.assertEqual(max(map(len, parts)), 2**14)

  def test_text_files_that_cannot_be(self):
    for name, data, message in (
      ("few", "One.\n\nTwo.\n", "few: 2 documents, .* 50 or more"),
      ("latin", "a\nCaf\xe9".encode("latin-1"), "latin, line 2: .* not UTF-8"),
      ("utf16", "Caf\xe9".encode("utf-16"), "line 1: .* perhaps UTF-16"),
      (
        "a.jsonl",
        '{"x": "a", "y": "b"}\n',
        "the columns are x, y. Set --text_c",
      ),
      ("b.parquet", "", "b.parquet: "),
      ("c.gz", gzip.compress(b"One.")[:-9], "c.gz: .* data is damaged"),
      ("d.csv.gz", gzip.compress(b"One.")[:-9], "d.csv.gz: .* is damaged"),
      ("e.csv", 'text;label\n"a" b;c\n', "line 2: .* columns with commas"),
      ("f.csv", gzip.compress(b"One."), "by gzip. .* end in .gz instead"),
    ):
      with self.assertRaisesRegex((ValueError, errors.InputError), message):
        documents.text_files([self.write(name, data)])
    with self.assertRaisesRegex(FileNotFoundError, "/none.* does not exist"):
      documents.text_files(["/none*"])


if __name__ == "__main__":
  tf.test.main()
