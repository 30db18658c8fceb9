"""Uses the exports of `//exporters:text_embedding` as a stranger would."""

import pathlib
import re
import subprocess
import sys

from absl import flags
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from data import texts
from integration_tests import fitting
from integration_tests import use_text_embedding
from tools import nightly

_EXPORT = flags.DEFINE_string(
  "export", None, "A text embedding, trained on python_docs."
)
_BERT = flags.DEFINE_string(
  "bert", None, "A text embedding by BERT, pre-trained on python_docs."
)
_PROGRAM = pathlib.Path("integration_tests/use_text_embedding").absolute()


def _overlap(pairs):
  """Returns how similar queries and texts are by the words that they share."""
  queries, bodies = (
    [set(re.findall(r"[^\W_]+", text.lower())) for text in side]
    for side in pairs
  )
  shared = np.array([[len(q & b) for b in bodies] for q in queries])
  union = np.array([[len(q | b) for b in bodies] for q in queries])
  return {"shared": shared, "jaccard": shared / union}


class UseTextEmbeddingTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    tf_keras.utils.set_random_seed(1)

  def classify(self, **kwargs):
    dataset = texts.python_docs()
    model = use_text_embedding.build_classifier(
      _EXPORT.value, len(dataset.classes), **kwargs
    )
    train, test = map(use_text_embedding.arrays, (dataset.train, dataset.test))
    fitting.fit(model, train, batch_size=32, epochs=3, verbose=0)
    accuracy = fitting.evaluate(model, test, batch_size=32)
    return model.get_layer("embedding"), accuracy

  def test_classifies(self):
    before = hub.load(_EXPORT.value)
    frozen, frozen_accuracy = self.classify(retrain=False)
    trained, accuracy = self.classify(retrain=True)
    print({"frozen": frozen_accuracy, "trained": accuracy})
    # The largest class has 24 % of the texts.
    self.assertGreater(frozen_accuracy, 0.55)
    self.assertGreater(accuracy, frozen_accuracy + _MARGIN)
    self.assertAllEqual(before.variables[0], frozen.variables[0])
    moved = np.any(before.variables[0] != trained.variables[0], axis=1)
    self.assertGreater(moved.mean(), 0.3)
    # The last rows are those of unknown words.
    self.assertAllEqual(before.variables[0][-16:], np.zeros([16, 300]))
    self.assertAllEqual(moved[-16:], np.ones(16, bool))

  def test_in_a_model_of_ones_own(self):
    layer = hub.KerasLayer(
      _EXPORT.value, trainable=True, arguments={"combiner": "sum"}
    )
    model = tf_keras.Sequential(
      [
        tf_keras.Input([], dtype=tf.string),
        layer,
        tf_keras.layers.Dense(1),
      ]
    )
    self.assertEmpty(model.losses)
    self.assertLen(layer.trainable_weights, 1)
    strings = tf.constant(["Return the file.", ""])
    self.assertAllEqual(layer(strings)[1], np.zeros(300))
    mean = hub.KerasLayer(_EXPORT.value)
    self.assertAllClose(layer(strings), 3 * mean(strings), rtol=1e-5)
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(model(strings))
    gradient = tape.gradient(loss, layer.trainable_weights[0])
    self.assertIsInstance(gradient, tf.IndexedSlices)
    self.assertLen(gradient.indices, 3)
    model.compile("adam", "mse")
    before = layer(strings)
    model.fit(strings, tf.ones([2]), verbose=0)
    self.assertNotAllClose(before[0], layer(strings)[0])

  @nightly.only
  def test_finds_texts_by_their_summaries(self):
    train, test = texts.python_doc_pairs()
    self.assertEmpty(set(train.bodies) & set(test.bodies))
    samples = use_text_embedding.samples(len(test.bodies))
    self.assertGreaterEqual(len(samples), 3)
    found = {
      name: np.mean(
        [use_text_embedding.share_found(scores[i, i]) for i in samples]
      )
      for name, scores in _overlap(test).items()
    }
    model = use_text_embedding.build_search(_EXPORT.value, retrain=True)
    for name, epochs in (("embedded", 0), ("trained", 3)):
      if epochs:
        data = use_text_embedding.search_data(train)
        fitting.fit(model, data, batch_size=32, epochs=epochs, verbose=0)
      text = use_text_embedding.test_search(model, test)
      found[name] = float(re.search(r"texts: (0\.\d+)", text)[1])
    print(found)
    by_overlap = max(found["shared"], found["jaccard"])
    self.assertGreater(found["embedded"], 1.3 * by_overlap)
    self.assertGreater(found["trained"], 1.5 * by_overlap)

  @nightly.only
  def test_bert_learns_to_find_texts(self):
    train, test = texts.python_doc_pairs()
    model = use_text_embedding.build_search(
      _BERT.value, retrain=True, dropout_rate=0.1
    )
    found = []
    for epochs in (0, 2):
      if epochs:
        data = use_text_embedding.search_data(train)
        fitting.fit(model, data, batch_size=64, epochs=epochs, verbose=0)
      text = use_text_embedding.test_search(model, test)
      found.append(float(re.search(r"texts: (0\.\d+)", text)[1]))
    print({"bert": found})
    # Guessing finds 0.025 of the texts. With two seeds the embedding found
    # 0.16, and after training 0.28 and 0.29.
    self.assertGreater(found[0], 0.08)
    self.assertGreater(found[1], found[0] + 0.04)

  @nightly.only
  def test_program(self):
    output_dir = self.create_tempdir().full_path
    for arguments, message in (
      (["--task=search", "--epochs=1"], "first 5 of 200 texts: 0.[6-7]"),
      (["--noretrain", "--epochs=1", "--combiner=sqrtn"], "accuracy: 0.[4-7]"),
    ):
      result = self.run_program(
        f"--saved_model_dir={_EXPORT.value}",
        f"--output_saved_model_dir={output_dir}/{arguments[0]}",
        "--follow_links",  # Files in Bazel's sandbox are links.
        *arguments,
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      self.assertRegex(result.stdout, message)
    search = tf.saved_model.load(f"{output_dir}/--task=search")
    self.assertEqual(search(tf.constant(["Return a file."])).shape, [1, 300])
    for arguments, message in (
      (["/nowhere"], "ERROR: /nowhere does not exist"),
      ([_EXPORT.value, "--dropout_rate=0"], "no hyperparameter dropout_rate"),
      ([_EXPORT.value, "--combiner=max"], "should be one of <mean.sum.sqrtn>"),
    ):
      export, *others = arguments
      result = self.run_program(f"--saved_model_dir={export}", *others)
      self.assertEqual(result.returncode, 1)
      self.assertRegex(result.stderr, message)
      self.assertNotIn("Traceback", result.stderr)

  def run_program(self, *arguments):
    return subprocess.run(
      [_PROGRAM, *arguments], capture_output=True, text=True
    )


# With 5 seeds the accuracy of frozen vectors was 0.64 to 0.67, which is 0.05 to
# 0.08 less than that of retrained ones. A search by shared words finds 0.36 of
# the texts, by the vectors 0.62, and after training 0.65 to 0.66.
_MARGIN = 0.02


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
