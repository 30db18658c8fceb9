"""Exports fine-tuned pieces of small exports, and fine-tunes them again."""

import inspect
import json
import os
import pathlib
import subprocess

from absl import flags
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from exporters import check
from exporters import fine_tuned
from exporters.conformance import copying
from exporters.reusable import errors
from exporters.reusable import exporting
from exporters.reusable import model_json
from exporters.reusable import observation
from exporters.reusable import saving
from tools import nightly

_MNIST_CNN = flags.DEFINE_string("mnist_cnn", None, "An export.")
_PRODUCT = flags.DEFINE_string("product", None, "An export.")
_PROGRAM = pathlib.Path("exporters/fine_tuned").absolute()


def _save_as_documented(layer, directory):
  trained = layer.resolved_object
  tf.saved_model.save(trained, directory, signatures=trained.signatures)


_PROFILES = ["last_1", "batch_norm_frozen"]  # Those of the --mnist_cnn export.


def _arguments(model):
  parameters = inspect.signature(model.__call__).parameters.values()
  return {p.name: p.default for p in parameters}


class _Scale(tf.Module):
  def __init__(self):
    super().__init__()
    self.factor = tf.Variable(2.0, name="factor")

  def __call__(self, x):
    return self.factor * x

  def inverse(self, x):
    return x / self.factor


def _export_with_sub_object(directory):
  """Writes an export with a sub-object, a constant, an asset and a card."""
  vocabulary = f"{directory}.txt"
  pathlib.Path(vocabulary).write_text("a\nb\n")
  module = _Scale()
  spec = tf.TensorSpec([None], tf.float32, "numbers")
  root = saving.reusable(saving.source(module, spec))
  root.inverse = saving.reusable(
    saving.source(module.inverse, spec, variables=module.variables)
  )
  root.sizes = saving.constant([7])
  root.vocabulary = tf.saved_model.Asset(vocabulary)
  served = saving.signature(root, spec, "products")
  saving.save(root, directory, signatures={"serving_default": served})
  described = model_json.read(_PRODUCT.value)
  texts = {
    "description": "It scales.\n# <i>",
    "example": "```",
    "provenance": {"<u>": "a|b"},
  }
  model_json.write(directory, {**described, **texts, "name": "Scale"})


class FineTunedTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.create_tempdir().full_path

  def path(self, name):
    return os.path.join(self.directory, name)

  def export(self, source, name="export", verification="fast", **kwargs):
    options = exporting.Options(
      export_dir=self.path(name), verification=verification
    )
    # Files in Bazel's sandbox are links.
    loading = copying.Options(follow_links=True)
    fine_tuned.export(options, self.path(source), loading=loading, **kwargs)
    return self.path(name)

  def assert_error(self, message, source, **kwargs):
    with self.assertRaisesRegex(errors.ExportError, message):
      self.export(source, "none", **kwargs)
    self.assertFalse(os.path.exists(self.path("none")))

  def test_a_piece_is_fine_tuned_twice(self):
    export = _PRODUCT.value
    singleprints = []
    for i, data in enumerate(("the first data", "other data")):
      singleprint = tf.saved_model.experimental.read_fingerprint(export)
      singleprints.append(singleprint.singleprint())
      layer = hub.KerasLayer(export, trainable=True)
      layer.trainable_weights[0].assign(3.0 + i)
      _save_as_documented(layer, self.path(f"piece_{i}"))
      export = self.export(
        f"piece_{i}",
        f"export_{i}",
        verification="full" if i == 0 else "fast",
        original_dir=export,
        fine_tuned_on=data,
      )
    layer = hub.KerasLayer(export, trainable=True)
    self.assertAllEqual(layer([10.0, 20.0]), [40.0, 80.0])
    self.assertAllClose(layer.losses, [0.016], rtol=1e-6)
    card = pathlib.Path(export, "assets.extra/README.md").read_text()
    self.assertStartsWith(card, "# Product, fine-tuned\n")
    self.assertIn("## Weights of the original\n", card)
    self.assertIn(
      f"- from Product, singleprint `{singleprints[0]}`, on the first data\n"
      f"- from Product, fine-tuned, singleprint `{singleprints[1]}`, on other"
      " data\n",
      card,
    )
    report = json.loads(
      pathlib.Path(export, "assets.extra/verification.json").read_text()
    )
    self.assertEqual(
      [
        report["original"]["original"]["singleprint"],
        report["original"]["singleprint"],
      ],
      singleprints,
    )
    self.assertEqual(
      report["original"]["original"]["flags"]["module"], "product"
    )
    requests = pathlib.Path(export, "assets.extra/tf_serving_warmup_requests")
    self.assertTrue(requests.exists())
    self.assertEqual(report["exporter"], "fine_tuned_test")
    self.assertLen(report["lock_sha256"], 64)
    self.assertLen(report["checkpoint_sha256"], 64)
    self.assertEqual(
      [step["data"] for step in model_json.read(export)["fine_tuning"]],
      ["the first data", "other data"],
    )
    status = check.check(saved_model_dir=export, strict=True)
    self.assertEqual(status, 0)

  @nightly.only
  def test_a_piece_in_a_keras_model(self):
    images = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)
    layer = hub.KerasLayer(hub.load(_MNIST_CNN.value), trainable=True)
    inputs = tf_keras.Input([28, 28, 1])
    logits = tf_keras.layers.Dense(2)(layer(inputs))
    model = tf_keras.Model(inputs, logits)
    model.compile("adam", "mse")
    model.fit(images, np.ones([8, 2]), verbose=0)
    model.save(self.path("model"), save_format="tf")
    export = hub.load(
      self.export("model", original_dir=_MNIST_CNN.value, fine_tuned_on="noise")
    )
    original = hub.load(_MNIST_CNN.value)
    self.assertEqual(_arguments(export), _arguments(original))
    self.assertEqual(
      export.signatures["serving_default"].structured_outputs,
      original.signatures["serving_default"].structured_outputs,
    )
    for name in "variables", "trainable_variables":
      new, old = (getattr(x, name) for x in (export, original))
      self.assertEqual([v.name for v in new], [v.name for v in old])
    described = model_json.read(_MNIST_CNN.value)
    for profile in described["profiles"]:
      new = getattr(export, profile["name"]).trainable_variables
      names = [v.name.removesuffix(":0") for v in new]
      self.assertEqual(names, profile["trainable_variables"])
    self.assertEqual([p["name"] for p in described["profiles"]], _PROFILES)
    self.assertAllEqual(export(images), layer(images))
    self.assertNotAllClose(export(images), original(images))
    self.assertLen(observation.regularized(export.regularization_losses), 3)

    other = hub.KerasLayer(_PRODUCT.value, trainable=True)
    other.trainable_weights[0].assign(5.0)
    both = tf_keras.Model(inputs, [logits, other(logits[:, 0])])
    both.save(self.path("both"), save_format="tf")
    named = {"original_dir": _PRODUCT.value, "fine_tuned_on": "noise"}
    self.assert_error(
      r"several pieces. Choose one with --piece \(layer_with_weights-0,"
      r" layer_with_weights-2\)",
      "both",
      **named,
    )
    named["piece"] = "layer_with_weights-2"
    product = hub.load(self.export("both", "2", "off", **named))
    self.assertAllEqual(product([1.0]), [5.0])

  def test_freezing_profiles_train_their_variables(self):
    images = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)
    described = model_json.read(_MNIST_CNN.value)
    # The number of regularized kernels that each profile trains.
    kernels = {"last_1": 1, "batch_norm_frozen": 3}
    for profile in described["profiles"]:
      for momentum, moving in ((0.9, True), (1.0, False)):
        export = hub.load(_MNIST_CNN.value)
        layer = hub.KerasLayer(
          getattr(export, profile["name"]),
          trainable=True,
          arguments={"batch_norm_momentum": momentum},
        )
        model = tf_keras.Sequential([layer, tf_keras.layers.Dense(2)])
        model.compile("adam", "mse")
        old = [v.numpy() for v in export.variables]
        model.fit(images, np.ones([8, 2]), verbose=0)
        with tf.GradientTape() as tape:
          self.assertLen(layer.losses, 1)
        self.assertLen(tape.watched_variables(), kernels[profile["name"]])
        moved = [
          v.name.removesuffix(":0")
          for v, before in zip(export.variables, old, strict=True)
          if np.any(v != before)
        ]
        trained = profile["trainable_variables"]
        averages = [
          v["name"] for v in described["variables"] if "/moving_" in v["name"]
        ]
        self.assertCountEqual(moved, trained + (averages if moving else []))

  def test_sub_objects_and_assets(self):
    _export_with_sub_object(self.path("original"))
    layer = hub.KerasLayer(self.path("original"), trainable=True)
    layer.trainable_weights[0].assign(4.0)
    _save_as_documented(layer, self.path("piece"))
    # Records in the form in which `use_*` programs write them.
    origin = self.path("piece/assets.extra/fine_tuned_from")
    os.makedirs(origin)
    pathlib.Path(origin, "data.txt").write_text("numbers\n# <b>\x1b")
    for name in "fingerprint.pb", "assets.extra":
      os.rename(self.path(f"original/{name}"), f"{origin}/{name}")
    export = hub.load(self.export("piece"))
    self.assertAllEqual(export.inverse([8.0]), [2.0])
    self.assertIs(export.inverse.variables[0], export.variables[0])
    self.assertAllEqual(export.sizes(), [7])
    vocabulary = pathlib.Path(export.vocabulary.asset_path.numpy().decode())
    self.assertEqual(vocabulary.read_text(), "a\nb\n")
    self.assertIn(self.path("export"), str(vocabulary))
    report = self.path("export/assets.extra/verification.json")
    passed = [
      place
      for comparison in json.loads(pathlib.Path(report).read_text())[
        "comparisons"
      ]
      for place in comparison["passed"]
    ]
    self.assertIn("inverse, outputs, inference (8,)", passed)
    card = self.path("export/assets.extra/README.md")
    card = pathlib.Path(card).read_text()
    self.assertIn(r" on numbers # &lt;b>\x1b" + "\n", card)
    self.assertIn("It scales.\n\\# &lt;i>\n\n", card)
    self.assertIn("\n| &lt;u> | a\\|b |\n", card)
    self.assertIn("```python\n\n```\n", card)

  @nightly.only
  def test_what_cannot_be_exported(self):
    known = {"original_dir": _PRODUCT.value, "fine_tuned_on": "numbers"}
    self.assert_error("missing does not exist", "missing", **known)
    tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=[2])]).save(
      self.path("dense"), save_format="tf"
    )
    self.assert_error("holds no export that can be trained", "dense", **known)
    layer = hub.KerasLayer(_PRODUCT.value, trainable=True)
    tf.saved_model.save(layer.resolved_object, self.path("bare"))
    self.assert_error("has lost its signature serving", "bare", **known)
    _save_as_documented(layer, self.path("piece"))
    self.assert_error("does not say what it was fine-tuned from", "piece")
    self.assert_error(
      "Set --fine_tuned_on", "piece", original_dir=_PRODUCT.value
    )
    bare = self.path("bare")
    self.assert_error("has no .*model.json", "piece", original_dir=bare)
    self.assert_error("has no piece x .root", "piece", piece="x", **known)
    self.assert_error(
      "All weights are those of the original",
      "piece",
      verification="off",
      **known,
    )
    self.assert_error(
      "another model: its inputs are {'images'",
      "piece",
      original_dir=_MNIST_CNN.value,
      fine_tuned_on="numbers",
    )

    class Reader(tf.Module):
      @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
      def __call__(self, path):
        return tf.io.read_file(path)

    tf.saved_model.save(Reader(), self.path("reader"))
    self.assert_error("suspicious .S1.. //exporters:check", "reader", **known)
    pathlib.Path(self.path("reader/saved_model.pb")).write_bytes(b"\x0a\xff")
    self.assert_error("truncated or damaged", "reader", **known)

  def test_help_is_answered_at_once(self):
    # Python prints all imports to standard error.
    result = subprocess.run(
      [_PROGRAM, "--help"],
      capture_output=True,
      text=True,
      env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    self.assertIn("--saved_model_dir", result.stdout)
    self.assertNotIn("tensorflow", result.stderr)


if __name__ == "__main__":
  tf.test.main()
