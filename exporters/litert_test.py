"""Converts exports to LiteRT, and trains one in LiteRT without TensorFlow."""

import os
import pathlib
import sys

from absl import flags
from absl.testing import absltest
from ai_edge_litert import interpreter
import numpy as np
from sklearn import datasets

from exporters import litert
from exporters.conformance import copying
from exporters.reusable import errors

_BERT = flags.DEFINE_string("bert", None, "An export of type all.")
_MNIST_CNN = flags.DEFINE_string("mnist_cnn", None, "An export of digits 0-4.")
_TEXT_EMBEDDING = flags.DEFINE_string("text_embedding", None, "An export.")
# Files in Bazel's sandbox are links.
_LOADING = copying.Options(follow_links=True)


def _digits() -> tuple[np.ndarray, np.ndarray]:
  """Returns digits 5 to 9 in the export's input size, and labels from 0 on."""
  digits = datasets.load_digits(n_class=10)
  chosen = digits.target > 4
  images = np.kron(digits.images[chosen] / 16, np.ones([3, 3]))
  images = np.pad(images, [[0, 0], [2, 2], [2, 2]])[..., np.newaxis]
  return images.astype(np.float32), digits.target[chosen] - 5


def _logits(infer, images: np.ndarray) -> np.ndarray:
  return np.concatenate(
    [infer(images=image[np.newaxis])["logits"] for image in images]
  )


class LitertTest(absltest.TestCase):
  def convert(self, saved_model_dir: str, **kwargs) -> str:
    """Converts a SavedModel; returns the path of the LiteRT model."""
    path = os.path.join(self.create_tempdir(), "model.tflite")
    litert.convert(
      saved_model_dir=saved_model_dir,
      output_file=path,
      loading=_LOADING,
      **kwargs,
    )
    return path

  def test_quantizations(self):
    found = {}
    run = litert._run
    self.enter_context(
      absltest.mock.patch.object(
        litert, "_run", lambda *args: found.update(run(*args)) or found
      )
    )
    path = self.convert(_MNIST_CNN.value, compared=True, quantization="int8")
    self.assertLess(found["none"]["difference"], 1e-5)
    most = {"float16": 1e-3, "dynamic_range": 0.02, "int8": 0.05}
    for kind, error in most.items():
      self.assertBetween(found[kind]["error"], 1e-5, error, kind)
    # Weights in int8 take a quarter of 1.6 MB. Inputs and outputs stay float32.
    self.assertBetween(os.path.getsize(path), 400_000, 500_000)
    model = interpreter.Interpreter(path)
    details = model.get_input_details() + model.get_output_details()
    self.assertEqual([x["dtype"] for x in details], [np.float32] * 2)
    self.assertIn(np.int8, [x["dtype"] for x in model.get_tensor_details()])
    self.assertNotIn("tensorflow", sys.modules)

  def test_trains_a_head_on_the_device(self):
    path = self.convert(
      _MNIST_CNN.value,
      sizes=litert.Sizes(batch_size=32),
      training=litert.Training("head", 5),
    )
    images, labels = _digits()
    model = interpreter.Interpreter(path)
    train, infer, save = map(
      model.get_signature_runner, ("train", "infer", "save")
    )
    losses = []
    for i in range(60):
      batch = np.arange(32 * i, 32 * i + 32) % 600
      result = train(
        images=images[batch],
        labels=labels[batch].astype(np.int32),
        learning_rate=np.float32(0.01),
      )
      losses.append(float(result["loss"]))
    self.assertAlmostEqual(losses[0], np.log(5), places=4)
    self.assertLess(np.mean(losses[-10:]), 0.5)
    logits = _logits(infer, images[600:800])
    self.assertGreater(np.mean(logits.argmax(-1) == labels[600:800]), 0.7)
    restored = interpreter.Interpreter(path)
    before = _logits(restored.get_signature_runner("infer"), images[600:604])
    np.testing.assert_array_equal(before, np.zeros([4, 5]))
    restored.get_signature_runner("restore")(**save())
    after = _logits(restored.get_signature_runner("infer"), images[600:604])
    np.testing.assert_array_equal(after, logits[:4])

  def test_trains_all_weights_of_an_encoder(self):
    path = self.convert(
      os.path.join(_BERT.value, "encoder"),
      sizes=litert.Sizes(batch_size=4, seq_length=16),
      training=litert.Training("all", 3),
    )
    saved = interpreter.Interpreter(path).get_signature_runner("save")()
    self.assertGreater(len(saved), 30)

  def test_names_what_litert_lacks(self):
    with self.assertRaisesRegex(
      errors.ExportError, r"cannot run op StaticRegexReplace .* in the app"
    ):
      self.convert(_TEXT_EMBEDDING.value)

  def test_keeps_an_existing_file(self):
    path = pathlib.Path(self.create_tempdir(), "model.tflite")
    path.write_text("mine")
    with self.assertRaisesRegex(errors.ExportError, "exists"):
      litert.convert(saved_model_dir=_MNIST_CNN.value, output_file=str(path))
    self.assertEqual(path.read_text(), "mine")


if __name__ == "__main__":
  absltest.main()
