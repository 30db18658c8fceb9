"""Runs the exporter as a program, and checks the exports."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
import numpy as np
import tensorflow as tf

_EXPORTER = pathlib.Path("exporters/text_embedding").absolute()

_GLOVE = b"the 1 2\ncat 3 -4\n. . 5 6\nthe 7 8\nsat 0.5 0\n"

# The program of a consumer that uses only TensorFlow.
_CONSUMER = """
import sys
import tensorflow as tf
export = tf.saved_model.load(sys.argv[1])
texts = tf.constant(["The cat: sat", "", "?!", "a dog"])
for combiner in ("mean", "sum", "sqrtn"):
  print(export(texts, combiner=combiner).numpy().tolist())
mapped = tf.data.Dataset.from_tensors(texts).map(export)
print(next(iter(mapped)).numpy().tolist())
words = tf.constant([["cat", "Cat", "", ". ."]])
print(export.word_embedding(words).numpy().tolist())
try:
  export(texts, combiner="max")
except tf.errors.InvalidArgumentError as e:
  print(e)
assert not {"models", "exporters", "tensorflow_text"} & set(sys.modules)
"""


def _run(*arguments, **kwargs):
  return subprocess.run(
    [_EXPORTER, *arguments], capture_output=True, text=True, **kwargs
  )


class TextEmbeddingTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )
    cls.file = cls.directory / "glove.txt"
    cls.file.write_bytes(_GLOVE)
    cls.export_dir = cls.directory / "export"
    cls.result = _run(
      f"--word_vectors_file={cls.file}", f"--export_dir={cls.export_dir}"
    )

  def test_verified_in_full(self):
    self.assertEqual(self.result.returncode, 0, self.result.stderr)
    for line in (
      "Left out 1 vectors of words that come earlier",
      "✓ gradients, inference (36,), other weights",
      '✓ hyperparameters, combiner "sum"',
      "✓ word_embedding, gradients, inference (1, 1)",
      "✓ saved again",
    ):
      self.assertIn(line, self.result.stdout)

  def test_consumers_need_tensorflow_alone(self):
    moved = self.directory / "elsewhere"
    self.export_dir.rename(moved)
    self.addCleanup(moved.rename, self.export_dir)
    result = subprocess.run(
      [sys.executable, "-c", _CONSUMER, moved],
      capture_output=True,
      text=True,
      cwd=self.directory,
      env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    *lines, error = result.stdout.split("\n", 5)
    total, zeros = np.float32([4.5, -2]), [[0.0, 0.0]] * 3
    mean = [(total / 3).tolist(), *zeros]
    expected = [
      mean,
      [total.tolist(), *zeros],
      [(total / np.float32(3) ** 0.5).tolist(), *zeros],
      mean,
      [[[3.0, -4.0], [0.0, 0.0], [0.0, 0.0], [5.0, 6.0]]],
    ]
    for line, value in zip(lines, expected, strict=True):
      np.testing.assert_allclose(json.loads(line), value, rtol=1e-6)
    self.assertIn("combiner must be one of mean, sum, sqrtn", error)

  def test_nothing_of_this_machine_is_in_it(self):
    vocabulary = self.export_dir / "assets" / "vocab.txt"
    self.assertEqual(vocabulary.read_text(), "the\ncat\n. .\nsat\n")
    for path in self.export_dir.rglob("*"):
      if path.is_file():
        for text in (self.directory, tempfile.gettempdir()):
          self.assertNotIn(os.fsencode(text), path.read_bytes(), path)

  def test_card(self):
    card = (self.export_dir / "assets.extra" / "README.md").read_text()
    for line in (
      "| `texts` | string | `[None]` | text, UTF-8 |",
      "| `text_embeddings` | float32 | `[None, 2]` | a vector for each text, 0",
      '| `combiner` | "mean" | How the vectors',
      "| source | the file glove.txt |",
      "| words | 4, of dimension 2 |",
    ):
      self.assertIn(f"\n{line}", card)
    self.assertIn("A text is lowercased and split", card)
    self.assertIn('arguments={"combiner": "mean"}', card)

  def test_frozen_words_with_capitals(self):
    self.file.write_bytes(_GLOVE.replace(b"the", b"The"))
    export_dir = self.directory / "words"
    result = _run(
      f"--word_vectors_file={self.file}",
      "--word_vectors_format=glove",
      "--export_type=word_embedding",
      "--num_oov_buckets=3",
      "--notrainable",
      "--verification=off",
      f"--export_dir={export_dir}",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    export = tf.saved_model.load(str(export_dir))
    self.assertEqual(export.variables[0].shape, [4 + 3, 2])
    self.assertEmpty(export.trainable_variables)
    np.testing.assert_array_equal(
      export(tf.constant([["The", "the", ""]])), [[[1, 2], [0, 0], [0, 0]]]
    )

  def test_help_is_answered_at_once(self):
    result = _run("--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    self.assertIn("models.nlp.word_vectors", result.stderr)
    self.assertNotIn("tensorflow", result.stderr)
    self.assertIn("--[no]do_lower_case", result.stdout)
    self.assertNotIn("--checkpoint_path", result.stdout)


if __name__ == "__main__":
  absltest.main()
