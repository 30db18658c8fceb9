"""Trains all kinds of exports under the mixed precision policies."""

import os
from unittest import mock

from absl import flags
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from distribution import strategies
from integration_tests import image_fine_tuning
from integration_tests import use_bert

_BERT = flags.DEFINE_string("bert", None, "The export of BERT.")
_IMAGE_CLASSIFIERS = flags.DEFINE_list(
  "image_classifiers", [], "Exports of images, as NAME=DIRECTORY."
)
_LABELS = np.arange(8) % 5
_IN_BOTH = ("bert", "mnist_cnn", "resnet")


def _exports():
  pairs = (pair.split("=") for pair in _IMAGE_CLASSIFIERS.value)
  return {"bert": _BERT.value, **dict(pairs)}


def _build(kind):
  """Returns a model, the name of the export's layer, and inputs."""
  export = _exports()[kind]
  random = np.random.RandomState(0)
  if kind == "bert":
    model = use_bert.build_model(
      os.path.join(export, "encoder"), 5, retrain=True, steps=1
    )
    inputs = {
      "input_word_ids": random.randint(1, 100, [8, 16], np.int32),
      "input_mask": np.ones([8, 16], np.int32),
      "input_type_ids": np.zeros([8, 16], np.int32),
    }
    return model, "encoder", inputs
  model = image_fine_tuning.build_model(export, 5, retrain=True)
  # Pixels of 8 bits, which bfloat16 and float16 represent exactly.
  images = random.randint(256, size=[8, *model.input_shape[1:]]) / 256
  return model, "feature_extractor", images.astype(np.float32)


class MixedPrecisionTest(tf.test.TestCase):
  def test_a_step(self):
    for kind in _exports():
      expected_model, *_ = _build(kind)
      # Exports compute in float32 under any policy: few are tested with both.
      both = ("mixed_bfloat16", "mixed_float16")
      for policy in both if kind in _IN_BOTH else both[1:]:
        with self.subTest(kind=kind, policy=policy):
          self.check_a_step(kind, policy, expected_model)

  def check_a_step(self, kind, policy, expected_model):
    tf_keras.utils.set_random_seed(1)
    with strategies.precision(policy):
      model, name, inputs = _build(kind)
    layer = model.get_layer(name)
    self.assertEqual(layer.dtype_policy.name, policy)
    self.assertEqual({v.dtype for v in model.variables}, {tf.float32})
    # In float16 small gradients underflow without loss scaling.
    is_scaled = isinstance(
      model.optimizer, tf_keras.mixed_precision.LossScaleOptimizer
    )
    self.assertEqual(is_scaled, policy == "mixed_float16")

    model.set_weights(expected_model.get_weights())
    expected = expected_model(inputs)
    logits = model(inputs)
    self.assertEqual(logits.dtype, tf.float32)
    # The export computes in float32.
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(kind, policy, difference)
    self.assertLess(difference, 1e-5)

    before = layer.get_weights()
    for _ in range(2):  # use_bert's first learning rate is 0.
      loss, _ = model.train_on_batch(inputs, _LABELS)
      self.assertTrue(np.isfinite(loss))
    stood = [
      weight.name
      for old, weight in zip(before, layer.weights, strict=True)
      if np.array_equal(old, weight)
    ]
    self.assertEmpty(stood)


class LoadOptionsTest(tf.test.TestCase):
  def test_the_device_that_reads_is_handed_on(self):
    """Simulates a remote TPU, up to the call of the loader."""
    asked, load = [], tf.compat.v1.saved_model.load_v2

    def fake_load(*args, options=None, **kwargs):
      asked.append(options and options.experimental_io_device)
      return load(*args, **kwargs)

    with (
      mock.patch.object(tf.compat.v1.saved_model, "load_v2", fake_load),
      mock.patch.object(strategies, "io_device", lambda _: "/job:localhost"),
    ):
      for kind in ("bert", "mnist_cnn"):
        _build(kind)
      self.assertEqual(asked, ["/job:localhost"] * 2)
      # tensorflow-hub 0.16.1 ignores `load_model(options=…)`: it looks for
      # these options in modules of Keras that no longer exist.
      asked.clear()
      options = tf.saved_model.LoadOptions(
        experimental_io_device="/job:localhost"
      )
      inputs = tf_keras.Input([28, 28, 1])
      layer = hub.KerasLayer(_exports()["mnist_cnn"])
      path = os.path.join(self.get_temp_dir(), "model")
      tf_keras.Model(inputs, layer(inputs)).save(path, save_format="tf")
      asked.clear()
      tf_keras.models.load_model(
        path, {"KerasLayer": hub.KerasLayer}, options=options
      )
      self.assertEqual(asked, [None])


if __name__ == "__main__":
  tf.test.main()
