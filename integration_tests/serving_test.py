"""Tests classifiers that are saved for deployment."""

import io
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl import flags
from absl.testing import parameterized
import numpy as np
from PIL import Image
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
import tf_keras

from data import images as image_data
from distribution import errors
from distribution import warmup
from integration_tests import alone
from integration_tests import c_api
from integration_tests import checkpoints
from integration_tests import fitting
from integration_tests import serving
from integration_tests import snippets
from tools import nightly

_MNIST_CNN = flags.DEFINE_string("mnist_cnn", None, "An export.")
_CHECK = pathlib.Path("exporters/check").absolute()
_CLASSES = ["a cat", "größer", "x"]


def _model(*shape, pixels=False):
  """Returns a trained model that behaves differently in training."""
  tf_keras.utils.set_random_seed(1)
  layers = tf_keras.layers
  head = layers.Dense(len(_CLASSES), dtype="float32")
  flat = [] if pixels else [layers.Flatten()]
  inputs = tf_keras.Input(shape, name="images")
  x = inputs
  for layer in (layers.BatchNormalization(), layers.Dropout(0.5), *flat, head):
    x = layer(x)
  return _trained(
    fitting.classifier(inputs, x, tf_keras.optimizers.Adam()),
    np.random.default_rng(0).random([4, *shape], np.float32),
    np.zeros([4, *(shape[:-1] if pixels else ())]),
  )


def _text_model():
  words = tf_keras.layers.StringLookup(
    vocabulary=["yes", "no"], mask_token="", output_mode="multi_hot"
  )
  texts = tf_keras.Input([], dtype=tf.string, name="texts")
  x = words(tf.strings.split(texts).to_tensor(""))
  logits = fitting.logits(x, len(_CLASSES))
  model = fitting.classifier(texts, logits, tf_keras.optimizers.Adam())
  return _trained(model, np.array(["yes", "no"]), np.arange(2))


def _by_c_api(directory, name, inputs):
  """Calls a signature by the C API; returns the outputs that are floats."""
  with tf.compat.v1.Session(graph=tf.Graph()) as session:
    signature = tf.compat.v1.saved_model.load(
      session, ["serve"], directory
    ).signature_def[name]
  return c_api.call(
    os.path.dirname(tf.__file__),
    directory,
    {signature.inputs[k].name: v for k, v in inputs.items()},
    {k: v.name for k, v in signature.outputs.items() if v.dtype == 1},
  )


def _trained(model, inputs, labels):
  model.fit(inputs, labels, verbose=0)
  return model


def _encoded(pixels, kind="PNG", **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind, **options)
  return buffer.getvalue()


def _warmup_requests(directory):
  """Reads the inputs of each request, as TensorFlow Serving does."""
  found = []
  path = os.path.join(directory, warmup.PATH)
  for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
    log = prediction_log_pb2.PredictionLog.FromString(record)
    request = log.predict_log.request
    assert request.model_spec.signature_name == "serving_default"
    found.append({k: tf.make_ndarray(v) for k, v in request.inputs.items()})
  return found


class ServingTest(parameterized.TestCase, tf.test.TestCase):
  def save(self, model):
    output_dir = os.path.join(self.create_tempdir(), "deployed")
    os.mkdir(output_dir)
    serving.save(
      serving.Classifier(model, _CLASSES, "pets"),
      output_dir,
      model.distribute_strategy,
      "/somewhere/export/",
      "accuracy: 0.5",
    )
    return output_dir

  def test_servers_without_python(self):
    deployed = self.save(_model(8, 8, 3))
    for directory, name, shape in (
      (deployed, "images", [3, 8, 8, 3]),
      (_MNIST_CNN.value, "serving_default", [3, 28, 28, 1]),
    ):
      images = np.random.default_rng(0).random(shape, np.float32)
      found = _by_c_api(directory, name, {"images": images})
      serve = tf.saved_model.load(directory).signatures[name]
      expected = serve(images=tf.constant(images))
      floats = {k: v for k, v in expected.items() if v.dtype == tf.float32}
      self.assertNotEmpty(found)
      self.assertAllClose(found, floats, atol=1e-6, rtol=1e-6)

  @parameterized.named_parameters(
    ("texts", None, False),
    ("images", (8, 8, 3), False),
    *[
      ("grey", (8, 8, 1), False),
      ("pixels", (8, 8, 3), True),
      ("videos", (2, 8, 8, 3), False),
    ]
    * nightly.IS_ON,
  )
  def test_keeps_the_rules_and_returns_what_the_model_does(self, shape, pixels):
    model = _model(*shape, pixels=pixels) if shape else _text_model()
    output_dir = self.save(model)
    root = tf.saved_model.load(output_dir)
    inputs = tf.constant(["yes", "no no", ""])
    if shape:
      inputs = tf.random.stateless_uniform([3, *shape], [0, 0])
      (name, serve) = ("images", root.signatures["images"])
    else:
      (name, serve) = ("texts", root.signatures["serving_default"])
    outputs = serve(**{name: inputs})
    logits = model(inputs)
    best = np.argmax(logits, axis=-1)
    self.assertAllClose(outputs["logits"], logits, atol=1e-5)
    self.assertAllClose(outputs["scores"], tf.nn.softmax(logits), atol=1e-5)
    if pixels:
      self.assertAllEqual(outputs["class_ids"], best)
    else:
      labels = [label.decode() for label in outputs["label"].numpy()]
      self.assertEqual(labels, [_CLASSES[i] for i in best])
    flags = ["--strict", f"--saved_model_dir={output_dir}"]
    result = subprocess.run([_CHECK, *flags], capture_output=True, text=True)
    self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
    kind = "image classifier" if shape else "text classifier"
    self.assertIn(f"a SavedModel of kind {kind}.\n", result.stdout)

  def test_needs_tensorflow_alone(self):
    model = _model(8, 8, 3)
    output_dir = self.save(model)
    pixels = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 3], np.uint8)
    expected = model(tf.image.convert_image_dtype(pixels, tf.float32))
    encoded = np.array([_encoded(x) for x in pixels], object)
    served = alone.call(output_dir, {"encoded_images": encoded})
    self.assertAllClose(served["logits"], expected, rtol=0, atol=1e-5)
    best = [_CLASSES[i].encode() for i in np.argmax(expected, axis=1)]
    self.assertAllEqual(served["label"], best)
    files = pathlib.Path(output_dir)
    self.assertEqual(
      (files / "assets/class_names.txt").read_text().splitlines(), _CLASSES
    )
    (inputs,) = _warmup_requests(output_dir)
    sent = inputs["encoded_images"]
    logits = tf.saved_model.load(output_dir)(tf.constant(sent))["logits"]
    self.assertAllClose(logits, model(tf.zeros([1, 8, 8, 3])), atol=1e-5)
    card = (files / "assets.extra/README.md").read_text()
    for text in ("`encoded_images`", "1. größer", "| export |", "| pets |"):
      self.assertIn(text, card)
    self.assertNotIn("somewhere", card)
    (files / "x.png").write_bytes(encoded[0])
    replaced = {
      "path/to/deployed": output_dir,
      "picture.jpg": str(files / "x.png"),
    }
    names = snippets.run_python(card, replaced, {})
    self.assertAllClose(names["outputs"]["logits"], expected[:1], atol=1e-5)

  def test_warmup_requests(self):
    """Each batch size is tried with each length; failing ones are refused."""
    directory = self.create_tempdir().full_path

    @tf.function(
      input_signature=[
        tf.TensorSpec([None, None], tf.int32, name="ids"),
        tf.TensorSpec([None, None], tf.float32, name="mask"),
      ]
    )
    def serve(ids, mask):
      tf.debugging.assert_less(tf.shape(ids)[1], 10)
      return {"outputs": mask + tf.cast(tf.reduce_sum(ids), tf.float32)}

    call = serve.get_concrete_function()
    warmup.write(directory, call, [1, 4], ["3", "5"])
    self.assertEqual(
      [{k: v.shape for k, v in r.items()} for r in _warmup_requests(directory)],
      [{"ids": s, "mask": s} for s in ((1, 3), (1, 5), (4, 3), (4, 5))],
    )
    warmup.write(directory, call, [2], examples=np.ones([2, 7], np.float32))
    (request,) = _warmup_requests(directory)
    self.assertEqual(request["mask"].shape, (2, 7))
    self.assertEqual(request["ids"].shape, (2, 1))
    with self.assertRaisesRegex(
      errors.InputError, r"'ids': \[1, 12\].*fails: "
    ):
      warmup.write(directory, call, [1], [12])

  def test_decodes_as_training_does(self):
    """Pillow decodes and resizes the pictures in training."""
    folder = self.create_tempdir().full_path
    y, x = np.mgrid[:96, :64].astype(np.float32)
    wave = np.stack([x / 63, y / 95, 0.5 + np.sin(x / 20) / 2], axis=-1)
    rgb = np.round(255 * wave).astype(np.uint8)
    alpha = np.where(x > y, 255, 40)[..., np.newaxis].astype(np.uint8)
    files = {
      "rgb.png": _encoded(rgb),
      "grey.png": _encoded(rgb[..., 0]),
      "alpha.png": _encoded(np.concatenate([rgb, alpha], axis=-1)),
      "grey_alpha.png": _encoded(np.concatenate([rgb[..., :1], alpha], -1)),
      "rgb.bmp": _encoded(rgb, "BMP"),
      "rgb.gif": _encoded(rgb, "GIF"),
      "rgb.webp": _encoded(rgb, "WEBP", quality=95),
    }
    for orientation in range(1, 9):
      for endian in "<", ">":
        exif = Image.Exif()
        exif.endian = endian
        exif[0x10F], exif[0x112] = "Ein Hersteller", orientation
        files[f"{orientation}{endian}.jpg"] = _encoded(
          rgb, "JPEG", exif=exif, quality=95
        )
    for label in "ab":
      os.mkdir(os.path.join(folder, label))
      for name, content in files.items():
        pathlib.Path(folder, label, name).write_bytes(content)
    dataset = image_data.load(folder)
    for shape, channels in ((96, 64), 3), ((24, 20), 3), ((24, 20), 1):
      resized = image_data.resized(dataset, [*shape, channels])
      pairs = tf.data.Dataset.zip(dataset.train, resized.train)
      self.assertLen(pairs, int(0.8 * 2 * len(files)))
      for ((encoded, name), _), (expected, _) in pairs:
        actual = serving.decode(encoded, *shape, channels)
        self.assertAllClose(actual, expected, rtol=0, atol=0.04, msg=name)
        if name.numpy().endswith((b"rgb.png", b"grey.png", b"bmp")):
          self.assertAllClose(actual, expected, rtol=0, atol=0.006, msg=name)

  def test_appears_whole_or_not_at_all(self):
    output_dir = os.path.join(self.create_tempdir(), "deployed")
    with self.assertRaises(ValueError):
      with fitting.published(output_dir, is_chief=True) as directory:
        pathlib.Path(directory, "a_file").touch()
        raise ValueError
    self.assertEmpty(os.listdir(os.path.dirname(output_dir)))
    with mock.patch.object(tf.saved_model, "save") as save:
      with fitting.published(output_dir, is_chief=False) as directory:
        self.assertIsNone(directory)
      save.assert_not_called()


class CheckpointsTest(tf.test.TestCase):
  def test_restores_weights_of_the_same_classes(self):
    directory = os.path.join(self.create_tempdir(), "kept")
    first, second = _model(8, 8, 3), _model(8, 8, 3)
    second.set_weights([np.zeros_like(w) for w in second.get_weights()])
    strategy = first.distribute_strategy
    for _ in range(2):
      weights = checkpoints.restore(first, directory, _CLASSES)
      checkpoints.save(weights, directory, _CLASSES, strategy)
    self.assertLen(os.listdir(directory), 4)  # Only the latest checkpoint's.
    checkpoints.restore(second, directory, _CLASSES)
    self.assertAllEqual(
      *(
        np.concatenate([w.ravel() for w in m.get_weights()])
        for m in (first, second)
      )
    )
    for model, names, message in (
      (first, ["a cat", "x", "größer"], "for other classes: a cat, größer"),
      (_model(4, 4, 3), _CLASSES, "of another model"),
      (_text_model(), _CLASSES, "of another model"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        checkpoints.restore(model, directory, names)


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
