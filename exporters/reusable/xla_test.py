"""Trains small exports under XLA, one for each kind of layer that needs a cure.

Without the cure each of them must fail, or it would be of no use.
"""

import os
import pathlib
import re
import tempfile
from unittest import mock

# XLA reads this at its first compilation: it writes a file for each.
_DUMP = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")))
os.environ["XLA_FLAGS"] = f"--xla_dump_to={_DUMP} --xla_dump_hlo_as_text"

from absl.testing import parameterized
import tensorflow as tf
import tf_keras

from exporters.reusable import saving
from exporters.reusable import xla

layers = tf_keras.layers


def _compilations():
  return len(list(_DUMP.glob("*.before_optimizations.txt")))


def _images(*inner):
  """A model of images of any size: a convolution, layers, a convolution."""
  return tf_keras.Sequential(
    [
      layers.InputLayer((None, None, 4)),
      layers.Conv2D(4, 3),
      *inner,
      layers.Conv2D(4, 1),
    ]
  )


def _pooled(*inner):
  return tf_keras.Sequential(
    [
      layers.InputLayer((None, None, 4)),
      layers.Conv2D(4, 3),
      *inner,
    ]
  )


def _sequences(*inner):
  """A model of sequences of any length."""
  return tf_keras.Sequential(
    [layers.InputLayer((None, 4)), layers.Conv1D(4, 3), *inner]
  )


def _branches():
  inputs = layers.Input((None, None, 4))
  x = layers.Conv2D(4, 3, padding="same")(inputs)
  y = layers.Conv2D(4, 1)(x)
  return tf_keras.Model(inputs, layers.Concatenate()([x, y]))


def _volumes(*inner):
  return tf_keras.Sequential(
    [layers.InputLayer((None, None, None, 2)), layers.Conv3D(2, 2), *inner]
  )


class Positions(tf_keras.layers.Layer):
  """Model Garden's layer, which takes its weights by the sequence length."""

  def __init__(self):
    super().__init__()
    from official.nlp.modeling import layers as nlp_layers

    self.positions = nlp_layers.PositionEmbedding(max_length=16)
    self.dense = layers.EinsumDense("bsh,hd->bsd", [None, 4])

  def call(self, inputs):
    return self.dense(inputs + self.positions(inputs))


_TRAPPED = {
  "concatenate": (_branches, 4),
  "causal_convolution": (
    lambda: _sequences(layers.Conv1D(4, 3, padding="causal")),
    3,
  ),
  "dense": (lambda: _images(layers.Dense(4, activation="gelu")), 4),
  "global_average": (
    lambda: _pooled(layers.GlobalAveragePooling2D(), layers.Dense(3)),
    4,
  ),
  "global_average_1d": (
    lambda: _sequences(layers.GlobalAveragePooling1D(), layers.Dense(3)),
    3,
  ),
  "global_average_3d": (lambda: _volumes(layers.GlobalAveragePooling3D()), 5),
  "global_max": (
    lambda: _pooled(layers.GlobalMaxPooling2D(), layers.Dense(3)),
    4,
  ),
  "global_max_1d": (lambda: _sequences(layers.GlobalMaxPooling1D()), 3),
  "global_max_3d": (lambda: _volumes(layers.GlobalMaxPooling3D()), 5),
  "permute": (lambda: _images(layers.Permute((2, 1, 3))), 4),
  "position_embedding": (Positions, 3),
  "repeat_vector": (
    lambda: _pooled(
      layers.GlobalAveragePooling2D(), layers.RepeatVector(3), layers.ReLU()
    ),
    4,
  ),
  "up_sampling_1d": (lambda: _sequences(layers.UpSampling1D(2)), 3),
  "up_sampling_3d": (lambda: _volumes(layers.UpSampling3D(2)), 5),
  "zero_padding": (lambda: _images(layers.ZeroPadding2D()), 4),
  "zero_padding_1d": (lambda: _sequences(layers.ZeroPadding1D()), 3),
  "zero_padding_3d": (lambda: _volumes(layers.ZeroPadding3D()), 5),
}


def _batch(rank, seed, batch_size=3):
  channels = 2 if rank == 5 else 4
  size = [6 + seed] * (rank - 2)
  return tf.random.stateless_normal([batch_size, *size, channels], [seed, 0])


def _step(call, variables):
  """Returns a train step: the loss and its gradients."""

  def step(inputs):
    with tf.GradientTape() as tape:
      outputs = call(inputs)
      # Weighted, so that no symmetry of the outputs hides an error.
      weights = tf.random.stateless_normal(tf.shape(outputs), [7, 7])
      loss = tf.reduce_sum(outputs * weights)
    return loss, tape.gradient(loss, variables)

  return step


class XlaTest(parameterized.TestCase, tf.test.TestCase):
  def export(self, model, rank):
    channels = 2 if rank == 5 else 4
    spec = tf.TensorSpec([None] * (rank - 1) + [channels], tf.float32)
    export_dir = self.create_tempdir().full_path
    saving.save(saving.reusable(model, spec), export_dir, signatures={})
    return tf.saved_model.load(export_dir)

  def is_trapped(self, loaded, inputs):
    """Tells whether a train step has its batch as a constant."""
    step = tf.function(
      _step(lambda x: loaded(x, training=True), loaded.trainable_variables),
      jit_compile=True,
    )
    hlo = step.experimental_get_compiler_ir(inputs)(stage="hlo")
    entry = hlo[hlo.index("\nENTRY ") :]
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* parameter\(", entry)
    expected = [inputs.shape, *(v.shape for v in loaded.trainable_variables)]
    return not {",".join(map(str, s)) for s in expected} <= set(shapes)

  @parameterized.named_parameters((k, *v) for k, v in _TRAPPED.items())
  def test_compiles_once_and_right(self, build, rank):
    model = build()
    model(_batch(rank, 0))

    def attributes():
      return [
        [vars(layer).get(name) for name in ("call", "activation")]
        for layer in model.submodules
      ]

    before = attributes()
    loaded = self.export(model, rank)
    self.assertEqual(attributes(), before)
    with (
      mock.patch.object(xla, "_LAYERS", ()),
      mock.patch.object(xla, "_NAMES", ()),
    ):
      uncured = self.export(model, rank)
    self.assertTrue(self.is_trapped(uncured, _batch(rank, 0)))
    self.assertFalse(self.is_trapped(loaded, _batch(rank, 0)))

    live = _step(lambda x: model(x, training=True), model.trainable_variables)
    step = _step(lambda x: loaded(x, training=True), loaded.trainable_variables)
    for wrap in (
      lambda f: f,
      tf.function,
      lambda f: tf.function(f, jit_compile=True),
    ):
      expected_step, actual_step = wrap(live), wrap(step)
      # Another size of the batch and the images.
      for batch in (_batch(rank, 0), _batch(rank, 1, batch_size=2)):
        expected = tf.nest.flatten(expected_step(batch))
        actual = tf.nest.flatten(actual_step(batch))
        for a, e in zip(actual, expected, strict=True):
          scale = tf.reduce_max(tf.abs(e)) + 1e-6
          self.assertAllClose(a / scale, e / scale, rtol=0, atol=1e-6)

    # The step that is compiled by now compiles no more.
    compiled = _compilations()
    self.assertGreater(compiled, 0)
    actual_step(_batch(rank, 0) + 1.0)
    self.assertEqual(_compilations(), compiled)

  def test_gradients_that_were_wrong(self):
    # conv, transpose, cube and sum: XLA computes gradients that are far off
    # where the batch has become a constant.
    def build():
      return tf_keras.Sequential(
        [
          layers.InputLayer((None, None, 4)),
          layers.Conv2D(4, 3, padding="same"),
          layers.Permute((2, 1, 3)),
          layers.Lambda(lambda x: x**3),
        ]
      )

    model = build()
    inputs = tf.random.stateless_normal([4, 8, 8, 4], [0, 0])
    loaded = self.export(model, 4)

    def loss_and_gradients(call, variables):
      @tf.function(jit_compile=True)
      def step(x):
        with tf.GradientTape() as tape:
          loss = tf.reduce_sum(call(x))
        return [loss, *tape.gradient(loss, variables)]

      return step(inputs)

    expected = loss_and_gradients(model, model.trainable_variables)
    actual = loss_and_gradients(loaded, loaded.trainable_variables)
    for a, e in zip(actual, expected, strict=True):
      self.assertAllClose(a, e, rtol=1e-4, atol=1e-3)


if __name__ == "__main__":
  tf.test.main()
