"""Fine-tunes the exports of `//exporters:mnist_cnn` as a stranger would."""

import functools
from http import server
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from unittest import mock

from absl import flags
import numpy as np
import tensorflow as tf
import tf_keras

from distribution import strategies
from integration_tests import datasets
from integration_tests import use_mnist_cnn

_PRETRAINED = flags.DEFINE_string(
  "pretrained", None, "The export trained on digits 0 to 4."
)
_UNTRAINED = flags.DEFINE_string(
  "untrained", None, "The same with its initial weights."
)
_PROGRAM = pathlib.Path("integration_tests/use_mnist_cnn").absolute()


def setUpModule():
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
  )


def _layer(model):
  return model.get_layer("feature_extractor")


class UseMnistCnnTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.train, cls.test = datasets.load("digits_5_9")

  def fit(
    self, saved_model_dir, *, epochs=5, seed=1, strategy="default", **kwargs
  ):
    """Returns a trained model, its test accuracy and its weights before."""
    tf_keras.utils.set_random_seed(seed)
    with strategies.get(strategies.Config(strategy)).scope():
      model = use_mnist_cnn.build_model(saved_model_dir, 5, **kwargs)
    before = _layer(model).get_weights()
    model.fit(*self.train, batch_size=32, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(*self.test, verbose=0)
    return model, accuracy, before

  def moved(self, model, before):
    """Tells for each weight of the export whether training moved it."""
    return [
      not np.array_equal(old, new)
      for old, new in zip(before, _layer(model).get_weights(), strict=True)
    ]

  def test_pretrained_weights_learn_sooner(self):
    """As frozen features, random ones do as well where one trains for long."""
    losses = {}
    for export in (_UNTRAINED, _PRETRAINED):
      models = [
        self.fit(export.value, retrain=True, epochs=1, seed=seed)[0]
        for seed in (1, 2, 3)
      ]
      losses[export.name] = np.mean(
        [model.evaluate(*self.test, verbose=0)[0] for model in models]
      )
    print(losses)
    self.assertLess(losses["pretrained"], losses["untrained"] / 2)

  def test_frozen_weights_stay(self):
    model, _, before = self.fit(_PRETRAINED.value, retrain=False)
    self.assertNotIn(True, self.moved(model, before))
    self.assertAllEqual(model.losses, [0.0, 0.0, 0.0])

  def test_an_export_at_a_url(self):
    """Of the bucket of another load format there is no more than the name."""
    directory = self.create_tempdir()
    # Bazel gives links to files, which tensorflow-hub does not take.
    export = shutil.copytree(_PRETRAINED.value, os.path.join(directory, "copy"))
    name = shutil.make_archive(
      os.path.join(directory, "export"), "gztar", export
    )
    images = self.test[0][:8]
    expected = use_mnist_cnn.build_model(_PRETRAINED.value, 5, retrain=False)

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
        actual = use_mnist_cnn.build_model(
          f"{url}/{os.path.basename(name)}", 5, retrain=False
        )
      environment = {"TFHUB_MODEL_LOAD_FORMAT": "UNCOMPRESSED"}
      with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(tf.compat.v2.io.gfile, "exists") as exists,
      ):
        exists.return_value = False
        with self.assertRaisesRegex(Exception, "gs://bucket/export"):
          use_mnist_cnn.build_model(f"{url}/export", 5, retrain=False)
    self.assertAllEqual(_layer(actual)(images), _layer(expected)(images))

  def test_retraining_beats_frozen_features(self):
    accuracy = {}
    for retrain in (False, True):
      model, accuracy[retrain], before = self.fit(
        _PRETRAINED.value, retrain=retrain
      )
      self.assertEqual(self.moved(model, before), [retrain] * 12)
    print(accuracy)
    self.assertGreater(accuracy[True], accuracy[False] + 0.05)

  def test_regularization_losses(self):
    models = [
      use_mnist_cnn.build_model(
        _PRETRAINED.value, 5, retrain=True, regularization_loss_multiplier=m
      )
      for m in (1.0, 10.0, 0.0)
    ]
    kernels = [v for v in models[0].variables if "kernel" in v.name][:-1]
    expected = np.array([1e-4 * tf.reduce_sum(k**2) for k in kernels])
    self.assertLen(expected, 3)
    for model, multiplier in zip(models, (1.0, 10.0, 0.0), strict=True):
      self.assertAllClose(model.losses, multiplier * expected, rtol=1e-5)
    # The loss that training minimizes has them in it.
    images, labels = self.test
    loss, _ = models[1].evaluate(images, labels, verbose=0)
    logits = models[1](images)
    cross_entropy = tf.reduce_mean(
      tf_keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
      )
    )
    self.assertAllClose(loss, cross_entropy + 10 * sum(expected), rtol=1e-4)

  def test_dropout_rate(self):
    model = tf.saved_model.load(_PRETRAINED.value)
    (kernel,) = [v for v in model.variables if v.shape[0] == 3136]
    images = self.train[0][:1]

    def active_units(**kwargs):
      # The gradient of the dense kernel is zero in the rows of dropped units.
      with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, **kwargs))
      return np.any(tape.gradient(loss, kernel) != 0, axis=1)

    # Momentum 1 keeps the moving averages, so that all calls see the same.
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
      # Of 10,000 units and more: five standard deviations are 0.025 at most.
      self.assertAllClose(np.mean(shares), rate, atol=0.025)
    inference = [model(images, dropout_rate=rate) for rate in (0.0, 0.9)]
    self.assertAllEqual(*inference)

  def test_batch_norm_momentum(self):
    model = tf.saved_model.load(_PRETRAINED.value)
    averages = [v for v in model.variables if "moving" in v.name]
    self.assertLen(averages, 4)
    images = self.train[0][:64]
    start = [v.numpy() for v in averages]

    def step(**arguments):
      for variable, value in zip(averages, start, strict=True):
        variable.assign(value)
      model(images, training=True, **arguments)
      return [v.numpy() for v in averages]

    # With momentum 0 the averages are what the batch has.
    batch = step(batch_norm_momentum=0.0)
    for arguments, momentum in (
      ({"batch_norm_momentum": 0.25}, 0.25),
      ({"batch_norm_momentum": 1.0}, 1.0),
      ({}, 0.9),
    ):
      for new, old, of_batch in zip(
        step(**arguments), start, batch, strict=True
      ):
        self.assertAllClose(
          new, momentum * old + (1.0 - momentum) * of_batch, rtol=1e-4
        )
    model(images, batch_norm_momentum=0.0)
    self.assertAllEqual(averages[0], step(batch_norm_momentum=1.0)[0])

  def save_and_serve(self, model, export_dir):
    """Saves a fine-tuned model; compares it, when the export is gone."""
    images = self.test[0]
    # The replicas of a strategy have moving averages of their own, and what is
    # saved is their mean: let them all have it.
    for variable in model.non_trainable_variables:
      variable.assign(variable.read_value())
    expected = model.predict(images, verbose=0)
    output_dir = os.path.join(self.get_temp_dir(), "fine_tuned")
    model.save(output_dir, save_format="tf")
    shutil.rmtree(export_dir)
    (served,) = (
      tf.saved_model.load(output_dir)
      .signatures["serving_default"](tf.constant(images))
      .values()
    )
    self.assertAllClose(served, expected, atol=1e-5)
    reloaded = tf_keras.models.load_model(output_dir)
    self.assertAllClose(
      reloaded.predict(images, verbose=0), expected, atol=1e-5
    )
    _, accuracy = reloaded.evaluate(*self.test, verbose=0)
    return accuracy

  def test_the_fine_tuned_model_needs_no_export(self):
    for strategy in ("default", "mirrored"):
      with self.subTest(strategy):
        export_dir = os.path.join(self.get_temp_dir(), strategy)
        shutil.copytree(
          _PRETRAINED.value, export_dir, copy_function=shutil.copyfile
        )
        os.chmod(export_dir, 0o755)
        for directory in pathlib.Path(export_dir).glob("*/"):
          directory.chmod(0o755)
        model, accuracy, before = self.fit(
          export_dir,
          epochs=3,
          retrain=True,
          strategy=strategy,
          dropout_rate=0.2,
          batch_norm_momentum=0.8,
        )
        if strategy == "mirrored":
          kernel = _layer(model).trainable_variables[0]
          self.assertLen(kernel.values, 2)
          self.assertAllEqual(*kernel.values)
          (mean, *_) = _layer(model).non_trainable_variables
          self.assertNotAllClose(*mean.values)
        self.assertNotIn(False, self.moved(model, before))
        self.assertGreater(accuracy, 0.85)
        served = self.save_and_serve(model, export_dir)
        self.assertAllClose(served, accuracy, atol=0.02)

  def test_the_documented_examples_run(self):
    card = pathlib.Path(_PRETRAINED.value, "assets.extra", "README.md")
    for text in (card.read_text(), pathlib.Path("README.md").read_text()):
      (example,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
      self.assertIn('"path/to/mnist_cnn"', example)
      images, labels = self.train
      names = {"images": images, "labels": labels, "num_classes": 5}
      exec(example.replace("path/to/mnist_cnn", _PRETRAINED.value), names)
      _, accuracy = names["model"].evaluate(*self.test, verbose=0)
      self.assertGreater(accuracy, 0.85)

  def test_readme_tells_the_hyperparameters(self):
    model = tf.saved_model.load(_PRETRAINED.value)
    defaults = {
      name: parameter.default
      for name, parameter in inspect.signature(
        model.__call__
      ).parameters.items()
      if isinstance(parameter.default, float)
    }
    self.assertLen(defaults, 2)
    readme = pathlib.Path("README.md").read_text()
    for name, default in defaults.items():
      self.assertIn(f"`{name}` {default:g}", readme)

  def test_program(self):
    output_dir = os.path.join(self.get_temp_dir(), "output")
    result = self.run_program(
      f"--saved_model_dir={_PRETRAINED.value}",
      "--dataset=digits_5_9",
      "--retrain",
      "--epochs=2",
      "--strategy=one_device",
      f"--output_saved_model_dir={output_dir}",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertRegex(result.stdout, r"Test accuracy: 0\.[89]\d* on 179")
    self.assertIn(f"Saved the fine-tuned model to {output_dir}", result.stdout)
    self.assertTrue(os.path.exists(os.path.join(output_dir, "saved_model.pb")))
    for arguments, message in (
      (["--saved_model_dir=/nowhere"], "ERROR: /nowhere does not exist"),
      (["--saved_model_dir=integration_tests"], "ERROR: Trying to load"),
      (["--saved_model_dir=x", "y"], "ERROR: y is not a flag"),
      (["--saved_model_dir=x", "--dropout_rate=0.1"], "only with --retrain"),
      (
        ["--saved_model_dir=x", "--dropout_rate=2"],
        "not a number in the range",
      ),
    ):
      result = self.run_program(*arguments)
      self.assertEqual(result.returncode, 1)
      self.assertIn(message, result.stderr)
      self.assertNotIn("Traceback", result.stderr)

  def run_program(self, *arguments):
    return subprocess.run(
      [_PROGRAM, *arguments], capture_output=True, text=True
    )


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
