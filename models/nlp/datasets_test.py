import importlib
import os

import tensorflow as tf

from models.nlp import datasets
from models.nlp import preprocessing


def _texts(dataset):
  return [text.decode() for text in dataset.as_numpy_iterator()]


class DatasetsTest(tf.test.TestCase):
  def test_python_docs(self):
    corpus = datasets.python_docs()
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
    second = self.write("b.txt", "\n\n".join(blocks[100:]) + "\n")
    corpus = datasets.text_files([first, second])
    self.assertEqual(corpus.description, "120 documents of a.txt, b.txt")
    train, held_out = _texts(corpus.train), _texts(corpus.held_out)
    self.assertEqual([text.strip() for text in held_out], blocks[::50])
    self.assertEqual(
      [text.strip() for text in train],
      [text for i, text in enumerate(blocks) if i % 50],
    )
    every = datasets.text_files([os.path.join(self.get_temp_dir(), "?.txt")])
    self.assertEqual(_texts(every.train), train)

  def test_text_files_that_cannot_be(self):
    few = self.write("few", "One.\n\nTwo.\n")
    latin = self.write("latin", "Caf\xe9".encode("latin-1"))
    with self.assertRaisesRegex(ValueError, "few: 2 documents, .* 50 or more"):
      datasets.text_files([few])
    with self.assertRaisesRegex(ValueError, "latin is not UTF-8"):
      datasets.text_files([latin])
    with self.assertRaisesRegex(FileNotFoundError, "/none.* does not exist"):
      datasets.text_files(["/none*"])


class VocabularyTest(tf.test.TestCase):
  def test_build(self):
    documents = datasets.python_docs().train.take(300)
    tokens = preprocessing.build_vocabulary(documents, 400, do_lower_case=True)
    self.assertEqual(tokens[:5], list(preprocessing.SPECIAL_TOKENS))
    self.assertBetween(len(tokens), 300, 400)
    self.assertLen(set(tokens), len(tokens))
    self.assertContainsSubset(["the", "return", "##ing"], tokens)
    self.assertIsNone(preprocessing.casing_problem("wordpiece", tokens, True))
    # All characters of the text are in it.
    tokenizer = preprocessing.wordpiece_tokenizer(tokens, do_lower_case=True)
    ids = tokenizer.tokenize(list(documents)).flat_values
    self.assertNotIn(tokens.index("[UNK]"), ids.numpy())
    cased = preprocessing.build_vocabulary(documents, 400, do_lower_case=False)
    self.assertContainsSubset(["The", "Return"], cased)

  def test_too_small(self):
    documents = tf.data.Dataset.from_tensors("abcdefg")
    with self.assertRaisesRegex(ValueError, "has 19 tokens, more than 12"):
      preprocessing.build_vocabulary(documents, 12, do_lower_case=True)


if __name__ == "__main__":
  tf.test.main()
