"""Tests for twin."""

import os

from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from exporters.conformance import twin


@tf.function(jit_compile=True)
def _convolved(x, w):
  return tf.nn.conv2d(x, w, 2, "SAME")


def _convolved_after(x, w):
  kernel = tf.identity(w)
  with tf.control_dependencies([w + 1.0]):
    return tf.nn.conv2d(x, kernel, 2, "SAME")


def _normalized(x, w):
  return tf.compat.v1.nn.fused_batch_norm(x, tf.ones([4]), w)[0]


class TwinTest(parameterized.TestCase, tf.test.TestCase):
  @parameterized.named_parameters(
    ("a group for each channel", [3, 3, 1, 8], _convolved),
    ("groups", [3, 3, 2, 6], _convolved),
    ("no groups", [3, 3, 4, 6], _convolved),
    ("groups after another op", [3, 3, 2, 6], _convolved_after),
    ("normalization", [4], _normalized),
    (
      "resizing",
      [4],
      lambda x, w: tf.image.resize(x * w, [9, 7], antialias=False),
    ),
    (
      "pooling of frames",
      [4],
      lambda x, w: tf.nn.max_pool3d((x * w)[:, tf.newaxis], 2, 2, "SAME"),
    ),
  )
  def test_computes_the_same_in_double_precision(self, shape, compute):
    drawn = np.random.default_rng(0)
    module = tf.Module()
    module.w = tf.Variable(drawn.standard_normal(shape), dtype=tf.float32)
    module.__call__ = tf.function(
      lambda x: compute(x, module.w),
      input_signature=[tf.TensorSpec([None, 5, 6, 4])],
    )
    directory = os.path.join(self.get_temp_dir(), "export")
    tf.saved_model.save(module, directory)
    files = [f"variables/{x}" for x in os.listdir(f"{directory}/variables")]
    graph, loaded = twin.load(directory, files, tf.float64)
    images = drawn.standard_normal([2, 5, 6, 4])
    with tf.GradientTape() as tape:
      outputs = loaded(tf.constant(images))
    expected = module.__call__(tf.constant(images, tf.float32))
    self.assertEqual(outputs.dtype, tf.float64)
    self.assertAllClose(outputs, expected, 1e-4, 1e-5)
    self.assertTrue(np.any(tape.gradient(outputs, loaded.w)))
    for function in graph.graph_def.library.function:
      self.assertNotIn("_XlaMustCompile", function.attr)


if __name__ == "__main__":
  tf.test.main()
