"""Reads data and exports from gs://, and writes results there."""

import io
import json
import os
import subprocess
import unittest

from absl import flags
import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet
import tensorflow as tf

from data import documents
from data import texts
from distribution import buckets
from integration_tests import alone

_EXPORT = flags.DEFINE_string("export", None, "An export of the MNIST CNN.")
_PROGRAM = os.path.abspath("integration_tests/use_mnist_cnn")


def setUpModule():
  unittest.enterModuleContext(buckets.serving())


def _write(name, data):
  with tf.io.gfile.GFile(f"gs://{name}", "wb") as f:
    f.write(data)


def _png(level):
  file = io.BytesIO()
  Image.fromarray(np.full([20, 20], level, np.uint8)).save(file, "PNG")
  return file.getvalue()


class BucketsTest(tf.test.TestCase):
  def test_texts(self):
    written = [f"Document {i}." for i in range(100)]
    blocks = "\n\n".join(written).encode()
    rows = "".join(json.dumps({"text": t}) + "\n" for t in written).encode()
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": written}), table)
    _write("texts/a.txt", blocks)
    _write("texts/b.jsonl", rows)
    _write("texts/c.parquet", table.getvalue())
    corpus = documents.text_files(["gs://texts/*"])
    found = [t.decode() for t in corpus.train.as_numpy_iterator()]
    held_out = [t.decode() for t in corpus.held_out.as_numpy_iterator()]
    self.assertEqual(sorted(found + held_out), sorted(written * 3))
    rows = "text,label\n" + '"good, here",x\nbad,y\n' * 10
    _write("texts/labelled/d.csv", rows.encode())
    dataset = texts.read(["gs://texts/labelled/d.csv"])
    self.assertAllEqual(dataset.counts, [[8, 2]] * 2)
    with self.assertRaisesRegex(OSError, "gs://texts/none .*not exist"):
      documents.text_files(["gs://texts/none"])
    with self.assertRaisesRegex(OSError, "Cannot read gs://forbidden/x: "):
      documents.text_files(["gs://forbidden/x"])

  def test_pictures_and_what_is_written(self):
    for name, level in (("dark", 0), ("light", 255)):
      for i in range(10):
        _write(f"data/pictures/{name}/{i}.png", _png(level))
    for folder, _, files in tf.io.gfile.walk(_EXPORT.value):
      for file in files:
        path = os.path.join(folder, file)
        with open(path, "rb") as f:
          _write("data/export" + path.removeprefix(_EXPORT.value), f.read())
    arguments = [
      "--saved_model_dir=gs://data/export",
      "--dataset=gs://data/pictures",
      "--retrain",
      "--epochs=1",
      "--batch_size=4",
      "--output_saved_model_dir=gs://data/deployed",
      "--output_piece_dir=gs://data/piece",
      "--checkpoint_dir=gs://data/checkpoints",
    ]
    result = subprocess.run(
      [_PROGRAM, *arguments], capture_output=True, text=True
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("2 classes, 16 examples + 4 held out", result.stdout)
    outputs = alone.call(
      "gs://data/deployed", {"encoded_images": np.array([_png(255)] * 3)}
    )
    self.assertEqual(outputs["scores"].shape, (3, 2))
    piece = tf.saved_model.load("gs://data/piece")
    self.assertEqual(piece(tf.zeros([2, 28, 28, 1])).shape[0], 2)
    self.assertTrue(tf.train.latest_checkpoint("gs://data/checkpoints"))


if __name__ == "__main__":
  tf.test.main()
