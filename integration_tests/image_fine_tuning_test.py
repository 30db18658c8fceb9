"""Tests `image_fine_tuning` where the architecture does not matter.

`use_image_classifier_test` tests what depends on the architecture.
"""

import functools
from http import server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from unittest import mock

from absl import flags
from absl.testing import flagsaver
import numpy as np
import tensorflow as tf
import tf_keras

from data import images as image_data
from distribution import errors
from integration_tests import image_fine_tuning
from integration_tests import snippets
from tools import nightly

_MNIST_CNN = flags.DEFINE_string(
  "mnist_cnn", None, "The export trained on digits 0 to 4."
)
_RESNET = flags.DEFINE_string("resnet", None, "The same, with endpoints.")
_PROGRAM = pathlib.Path("integration_tests/use_mnist_cnn").absolute()


def setUpModule():
  image_fine_tuning.define_flags()


def _build(**kwargs):
  tf_keras.utils.set_random_seed(1)
  return image_fine_tuning.build_model(_MNIST_CNN.value, 5, **kwargs)


def _layer(model):
  return model.get_layer("feature_extractor")


def _moved(model, before):
  """Returns whether each weight of the export has changed."""
  return [
    not np.array_equal(old, new)
    for old, new in zip(before, _layer(model).get_weights(), strict=True)
  ]


class ImageFineTuningTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.train, cls.test = image_data.arrays("digits_5_9", (28, 28, 1))

  def test_an_export_at_a_url(self):
    """The load format that reads a bucket is tested up to the bucket's name."""
    directory = self.create_tempdir()
    # Bazel passes links to files, which tensorflow-hub does not take.
    export = shutil.copytree(_MNIST_CNN.value, os.path.join(directory, "copy"))
    name = shutil.make_archive(
      os.path.join(directory, "export"), "gztar", export
    )
    images = self.test[0][:8]
    expected = image_fine_tuning.build_model(_MNIST_CNN.value, 5, retrain=False)

    class Handler(server.SimpleHTTPRequestHandler):
      def log_message(self, *_):
        pass

      def do_GET(self):
        if "tf-hub-format=uncompressed" not in self.path:
          return super().do_GET()
        self.send_response(303)
        self.end_headers()
        self.wfile.write(b"gs://bucket/export")

    handler = functools.partial(Handler, directory=directory)
    with server.ThreadingHTTPServer(("localhost", 0), handler) as http_server:
      threading.Thread(target=http_server.serve_forever).start()
      self.addCleanup(http_server.shutdown)
      url = f"http://localhost:{http_server.server_port}"
      environment = {"TFHUB_CACHE_DIR": self.create_tempdir().full_path}
      with mock.patch.dict(os.environ, environment):
        actual = image_fine_tuning.build_model(
          f"{url}/{os.path.basename(name)}", 5, retrain=False
        )
      environment = {"TFHUB_MODEL_LOAD_FORMAT": "UNCOMPRESSED"}
      with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(tf.compat.v2.io.gfile, "exists") as exists,
      ):
        exists.return_value = False
        with self.assertRaisesRegex(Exception, "gs://bucket/export"):
          image_fine_tuning.build_model(f"{url}/export", 5, retrain=False)
    self.assertAllEqual(_layer(actual)(images), _layer(expected)(images))

  @nightly.only
  def test_retraining_beats_frozen_features(self):
    """The retrained model is saved, and loaded as a Keras model."""
    accuracy = {}
    for retrain in (False, True):
      hyperparameters = {"dropout_rate": 0.2, "batch_norm_momentum": 0.8}
      model = _build(
        retrain=retrain,
        augmentation=retrain,
        **(hyperparameters if retrain else {}),
      )
      before = _layer(model).get_weights()
      model.fit(*self.train, batch_size=32, epochs=5, verbose=0)
      _, accuracy[retrain] = model.evaluate(*self.test, verbose=0)
      self.assertEqual(_moved(model, before), [retrain] * 12)
      if not retrain:
        self.assertAllEqual(model.losses, [0.0])
    print(accuracy)
    self.assertGreater(accuracy[True], accuracy[False] + 0.05)
    self.assertGreater(accuracy[True], 0.85)
    output_dir = os.path.join(self.get_temp_dir(), "fine_tuned")
    model.save(output_dir, save_format="tf")
    reloaded = tf_keras.models.load_model(output_dir)
    images, _ = self.test
    self.assertAllClose(reloaded(images), model(images), atol=1e-5)
    _, served = reloaded.evaluate(*self.test, verbose=0)
    self.assertAllClose(served, accuracy[True], atol=0.02)

  def test_regularization_losses(self):
    models = {
      multiplier: _build(
        retrain=True, regularization_loss_multiplier=multiplier
      )
      for multiplier in (1.0, 10.0, 0.0)
    }
    kernels = [v for v in models[1.0].variables if "kernel" in v.name][:-1]
    expected = np.array([1e-4 * tf.reduce_sum(k**2) for k in kernels])
    self.assertLen(expected, 3)
    for multiplier, model in models.items():
      self.assertAllClose(
        model.losses, [multiplier * expected.sum()], rtol=1e-5
      )
    # The loss that training minimizes includes them.
    images, labels = self.test
    loss, _ = models[10.0].evaluate(images, labels, verbose=0)
    cross_entropy = tf.reduce_mean(
      tf_keras.losses.sparse_categorical_crossentropy(
        labels, models[10.0](images), from_logits=True
      )
    )
    self.assertAllClose(loss, cross_entropy + 10 * sum(expected), rtol=1e-4)

  def test_dropout_rate(self):
    model = tf.saved_model.load(_MNIST_CNN.value)
    (kernel,) = [v for v in model.variables if v.shape[0] == 3136]
    images = self.train[0][:1]

    def active_units(**kwargs):
      # The gradient of the dense kernel is zero in the rows of dropped units.
      with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, **kwargs))
      return np.any(tape.gradient(loss, kernel) != 0, axis=1)

    # Momentum 1 keeps the moving averages the same for all calls.
    everything = active_units(
      training=True, dropout_rate=0.0, batch_norm_momentum=1.0
    )
    self.assertGreater(everything.sum(), 500)
    for arguments, rate in (
      ({"dropout_rate": 0.2}, 0.2),
      ({"dropout_rate": 0.8}, 0.8),
      ({}, 0.4),
    ):
      shares = [
        1.0
        - active_units(training=True, batch_norm_momentum=1.0, **arguments)[
          everything
        ].mean()
        for _ in range(20)
      ]
      # Five standard deviations are 0.025 at most for 10,000 units or more.
      self.assertAllClose(np.mean(shares), rate, atol=0.025)
    inference = [model(images, dropout_rate=rate) for rate in (0.0, 0.9)]
    self.assertAllEqual(*inference)

  def test_hyperparameters_reach_the_export(self):
    model = _build(retrain=True, batch_norm_momentum=1.0, dropout_rate=0.0)
    before = _layer(model).get_weights()
    images = self.train[0][:64]
    first, second = (model(images, training=True) for _ in range(2))
    self.assertAllEqual(first, second)
    self.assertNotIn(True, _moved(model, before))
    _build(retrain=True)(images, training=True)

  @nightly.only
  def test_the_documented_examples_run(self):
    card = "assets.extra/README.md"
    train, test = image_data.arrays("digits_5_9", (32, 32, 3))
    for name, export, path, min_accuracy, data in (
      ("mnist_cnn", _MNIST_CNN.value, "README.md", 0.85, None),
      ("mnist_cnn", _MNIST_CNN.value, f"{_MNIST_CNN.value}/{card}", 0.85, None),
      ("resnet", _RESNET.value, f"{_RESNET.value}/{card}", 0.8, (train, test)),
    ):
      with self.subTest(path):
        text = pathlib.Path(path).read_text()
        (images, labels), test = data or (self.train, self.test)
        names = {"images": images, "labels": labels, "num_classes": 5}
        trained = self.create_tempdir().full_path
        replaced = {f"path/to/{name}": export}
        if path != "README.md":
          replaced["path/to/trained"] = trained
        names = snippets.run_python(text, replaced, names)
        _, accuracy = names["model"].evaluate(*test, verbose=0)
        self.assertGreater(accuracy, min_accuracy)
        if path != "README.md":
          weights = tf.saved_model.load(trained).variables
          self.assertAllEqual(weights[0], names["trained"].variables[0])

  def test_what_an_export_does_not_support(self):
    written = os.path.join(self.get_temp_dir(), "written.html")
    pathlib.Path(written).touch()
    for arguments, message in (
      ({"saved_model_dir": "/nowhere"}, "^/nowhere does not exist"),
      ({"saved_model_dir": "integration_tests"}, "has no saved_model.pb"),
      ({"task": "segmentation"}, "Export it with --endpoints"),
      ({"report": "/nowhere/x.html"}, "/nowhere/x.html: /nowhere is no dir"),
      ({"report": f"{__file__}/x.html"}, "py/x.html: .*py is no dir"),
      ({"report": written}, "--report: .*written.html exists. Remove it"),
      ({"image_size": "64"}, "takes only images of 28 by 28 pixels"),
      (
        {"retrain": "true", "stochastic_depth_rate": "0.1"},
        "no hyperparameter stochastic_depth_rate, but dropout_rate,",
      ),
    ):
      arguments = {"saved_model_dir": _MNIST_CNN.value, **arguments}
      with self.subTest(message), flagsaver.as_parsed(**arguments):
        with self.assertRaisesRegex(errors.InputError, message):
          image_fine_tuning.fine_tune()

  @nightly.only
  def test_program(self):
    output_dir = os.path.join(self.get_temp_dir(), "output")
    page = pathlib.Path(self.get_temp_dir(), "page.html")
    record = pathlib.Path(self.get_temp_dir(), "record.json")
    export = f"--saved_model_dir={_MNIST_CNN.value}"
    for arguments, status, message in (
      (
        [
          *(export, "--dataset=digits_5_9", "--frozen_epochs=1", "--epochs=2"),
          *("--strategy=one_device", f"--output_saved_model_dir={output_dir}"),
          *(f"--report={page}", f"--training_record={record}"),
        ],
        0,
        r"Test accuracy: 0\.[89]\d* on 179 images held out\n"
        f"Saved the fine-tuned model to {output_dir}\n"
        f"Wrote the report {page}",
      ),
      (["--saved_model_dir=/nowhere"], 1, "ERROR: /nowhere does not exist"),
      ([export, "y"], 1, "ERROR: y is not a flag"),
      (
        [export, "--noretrain", "--frozen_epochs=1"],
        1,
        "--frozen_epochs applies only with --retrain",
      ),
      ([export, "--dropout_rate=2"], 1, "not a number in the range"),
      ([export, "--image_size=8"], 1, r"in the range \[32, 4096\]"),
      ([export, "--report=x.htm"], 1, "It must end in .html"),
      (
        [export, "--task=segmentation", "--augmentation"],
        1,
        "only with --task=classification",
      ),
      (
        [export, "--task=segmentation", "--class_weight=balanced"],
        1,
        "--class_weight applies only with --task=classification",
      ),
    ):
      with self.subTest(message):
        result = subprocess.run(
          [_PROGRAM, *arguments], capture_output=True, text=True
        )
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertRegex(result.stdout + result.stderr, message)
        self.assertNotIn("Traceback", result.stderr)
    epochs = json.loads(record.read_text())["epochs"]
    self.assertLen(epochs, 3)  # One epoch trained the head alone.
    self.assertLess(epochs[-1]["loss"], epochs[0]["loss"])
    serve = tf.saved_model.load(output_dir).signatures["images"]
    images, labels = self.test
    served = [int(x) for x in serve(images=tf.constant(images))["label"]]
    self.assertGreater(np.mean(np.array(served) == labels + 5), 0.8)
    right = np.sum(np.array(served) == labels + 5)
    self.assertIn(f"{right} of the 179 held-out images", page.read_text())


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
