"""Fails if a private part of TensorFlow is gone, and tries the fallbacks."""

import os
from unittest import mock

import tensorflow as tf
import tf_keras

from exporters.reusable import private_api
from exporters.reusable import saving

_SPEC = tf.TensorSpec([None, 2])


class PrivateApiTest(tf.test.TestCase):
  def test_all_is_there(self):
    self.assertIsNotNone(private_api.save_context)
    self.assertIsNotNone(private_api.fingerprinting_utils)
    a = tf.constant([1.0, 2.0])
    with private_api.tensors_equal_by_identity():
      self.assertIs(a == tf.identity(a), False)
    self.assertAllEqual(a == tf.identity(a), [True, True])

  def test_inlines(self):
    inner = tf.function(tf.tanh)
    trace = tf.function(lambda x: inner(x)).get_concrete_function(_SPEC)
    self.assertIn("Tanh", [n.op for n in private_api.inlined(trace).node])
    with mock.patch.object(private_api, "convert_to_constants", None):
      self.assertNotIn("Tanh", [n.op for n in private_api.inlined(trace).node])

  def test_what_documented_objects_have_undocumented(self):
    function = tf.function(lambda x: {"y": 2.0 * x})
    self.assertTrue(callable(function.python_function))
    trace = function.get_concrete_function(_SPEC)
    self.assertEqual(trace.structured_outputs["y"].shape, [None, 2])
    self.assertEqual(trace.structured_input_signature[0][0].shape, [None, 2])
    self.assertEqual(trace.variables, ())
    self.assertLen(trace.graph.outputs, 1)

  def test_paths_of_keras(self):
    layers = [tf_keras.layers.BatchNormalization(), tf_keras.layers.Dense(1)]
    model = tf_keras.Sequential(layers)
    model.build([None, 2])
    paths = private_api.keras_paths(model)
    batch_norm = "layers/batch_normalization/vars"
    self.assertIs(paths[f"{batch_norm}/3"], layers[0].moving_variance)
    self.assertIs(paths["layers/dense/vars/0"], layers[1].kernel)
    self.assertLen(paths, 6)
    with mock.patch.dict("sys.modules", {"tf_keras.src.saving": None}):
      self.assertRaises(NotImplementedError, private_api.keras_paths, model)

  def test_saves_without(self):
    kernel = tf.Variable([[1.0], [2.0]])

    def call(x, training=False):
      return (2.0 if training else 1.0) * x @ kernel

    export_dir = os.path.join(self.get_temp_dir(), "export")
    with (
      mock.patch.object(private_api, "save_context", None),
      mock.patch.object(private_api, "fingerprinting_utils", None),
    ):
      source = saving.source(call, _SPEC, variables=[kernel])
      root = saving.reusable(
        source, also_takes=saving.of_mixed_precision(_SPEC)
      )
      signature = saving.signature(root, _SPEC)
      saving.save(root, export_dir, signatures={"serving_default": signature})
    self.assertNotIn("fingerprint.pb", os.listdir(export_dir))
    loaded = tf.saved_model.load(export_dir)
    x = tf.ones([1, 2])
    self.assertAllEqual(loaded(x), [[3.0]])
    self.assertAllEqual(loaded(tf.cast(x, tf.bfloat16), training=True), [[6.0]])
    served = loaded.signatures["serving_default"](inputs=x)
    self.assertAllEqual(served["outputs"], [[3.0]])


if __name__ == "__main__":
  tf.test.main()
