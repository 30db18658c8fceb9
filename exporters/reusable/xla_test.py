"""Trains small exports under XLA, one for each kind of layer that needs a cure.

Without the cure each export must fail, or the cure would be of no use.
"""

import collections
import contextlib
import os
import pathlib
import re
import tempfile
from unittest import mock

from absl import flags
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import hyperparameters
from exporters.reusable import layer_calls
from exporters.reusable import saving
from exporters.reusable import xla
from exporters.reusable import xla_trap
from models.vision import stochastic_depth
from tools import nightly

layers = tf_keras.layers

_LARGE_MODELS = flags.DEFINE_bool(
  "large_models", False, "Test models too that take minutes to compile."
)

# The `layer_calls` of `saving.source` for models with Model Garden's layers.
_LAYER_CALLS = {
  "official.vision.modeling.layers.nn_layers.StochasticDepth": (
    stochastic_depth.without_branch
  ),
  "official.nlp.modeling.layers.position_embedding.PositionEmbedding": (
    xla.with_own_gradient
  ),
  layer_calls.class_name(layers.LSTM): xla.with_own_loop,
}

# Where XLA writes a file for each compilation.
_DUMP = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")))


def setUpModule():
  # XLA reads this when it is first used.
  os.environ["XLA_FLAGS"] = f"--xla_dump_to={_DUMP} --xla_dump_hlo_as_text"


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


def _dot_product():
  inputs = layers.Input((None, 4))
  x = layers.Conv1D(4, 3, padding="same")(inputs)
  y = layers.Conv1D(4, 1)(x)
  return tf_keras.Model(inputs, layers.Dot(axes=1)([x, y]))


def _volumes(*inner):
  return tf_keras.Sequential(
    [layers.InputLayer((None, None, None, 2)), layers.Conv3D(2, 2), *inner]
  )


class Positions(tf_keras.layers.Layer):
  """Has Model Garden's layer, which slices its weights by sequence length."""

  def __init__(self):
    super().__init__()
    from official.nlp.modeling import layers as nlp_layers

    self.positions = nlp_layers.PositionEmbedding(max_length=16)
    self.dense = layers.EinsumDense("bsh,hd->bsd", [None, 4])

  def call(self, inputs):
    return self.dense(inputs + self.positions(inputs))


class Doubled(tf_keras.layers.Layer):
  """Has dropout, and a function whose gradient needs a constant."""

  def __init__(self, rate=0.0):
    super().__init__()
    self.dropout = layers.Dropout(rate)

  def call(self, inputs, training=None):
    return self.dropout(tf.concat([inputs, inputs], axis=-1), training=training)


class Scaled(layers.Dense):
  """Uses the `call` of its base class."""

  def call(self, inputs):
    return 2.0 * super().call(inputs)


class DroppedConcatenate(layers.Concatenate):
  """Draws random numbers in a method that the `call` of its base class uses."""

  def _merge_function(self, inputs):
    return super()._merge_function([tf.nn.dropout(x, 0.5) for x in inputs])


class DroppingCell(layers.Layer):
  state_size = output_size = 4

  def call(self, inputs, states):
    return tf.nn.dropout(inputs, 0.5), states


class TrainingCell(layers.SimpleRNNCell):
  """A cell that computes something else in training."""

  def call(self, inputs, states, training=None):
    outputs, states = super().call(inputs, states)
    return (0.5 * outputs if training else outputs), states


class WeightNormalized(layers.Wrapper):
  """Computes the kernel of a layer before each call."""

  def build(self, shape):
    self.layer.build(shape)
    self.direction = self.layer.kernel

  def call(self, inputs):
    self.layer.kernel = tf.math.l2_normalize(self.direction, 0)
    return self.layer(inputs)


class Dropped(layers.Layer):
  def call(self, inputs):
    return tf.nn.dropout(inputs, 0.5)


_LAYER_CALLS[layer_calls.class_name(Dropped)] = xla.with_own_gradient
_LAYER_CALLS[layer_calls.class_name(Doubled)] = xla.with_own_gradients_of(
  "tf.concat"
)

# Only nightly tests compile these models, because each is like another model.
_NIGHTLY = (
  "bidirectional",
  *("global_average", "global_average_1d", "global_average_3d"),
  *("global_max_1d", "global_max_3d", "permute", "recurrent", "repeat_vector"),
  *("dot", "global_max", "separable_convolution", "weight_normalized"),
  "zero_padding",
  *("up_sampling_1d", "up_sampling_3d", "zero_padding_1d", "zero_padding_3d"),
)

_TRAPPED = {
  "bidirectional": (
    lambda: _sequences(
      layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))
    ),
    3,
  ),
  "concatenate": (_branches, 4),
  "subclass": (lambda: _sequences(Scaled(4)), 3),
  "weight_normalized": (
    lambda: _sequences(WeightNormalized(layers.Dense(4))),
    3,
  ),
  "causal_convolution": (
    lambda: _sequences(layers.Conv1D(4, 3, padding="causal")),
    3,
  ),
  "dense": (lambda: _images(layers.Dense(4, activation="gelu")), 4),
  "dot": (_dot_product, 3),
  "function": (lambda: _sequences(Doubled()), 3),
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
  "recurrent": (
    lambda: _sequences(
      layers.RNN(
        layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(5)]),
        return_sequences=True,
        go_backwards=True,
      ),
      layers.LSTM(3),
    ),
    3,
  ),
  "repeat_vector": (
    lambda: _pooled(
      layers.GlobalAveragePooling2D(), layers.RepeatVector(3), layers.ReLU()
    ),
    4,
  ),
  "separable_convolution": (
    lambda: _sequences(layers.SeparableConv1D(4, 3, padding="causal")),
    3,
  ),
  "up_sampling_1d": (lambda: _sequences(layers.UpSampling1D(2)), 3),
  "up_sampling_3d": (lambda: _volumes(layers.UpSampling3D(2)), 5),
  "zero_padding": (lambda: _images(layers.ZeroPadding2D()), 4),
  "zero_padding_1d": (lambda: _sequences(layers.ZeroPadding1D()), 3),
  "zero_padding_3d": (lambda: _volumes(layers.ZeroPadding3D()), 5),
}


def _application(name):
  return lambda: getattr(tf_keras.applications, name)(
    weights=None,
    include_top=False,
    pooling="avg",
    input_shape=(None, None, 3),
  )


def _encoder():
  from official.nlp.configs import encoders

  return encoders.build_encoder(
    encoders.EncoderConfig(
      type="bert",
      bert=encoders.BertEncoderConfig(
        vocab_size=100,
        hidden_size=64,
        num_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
      ),
    )
  )


def _tokens(seed):
  shape = [4, 16]
  return {
    "input_word_ids": tf.random.stateless_uniform(
      shape, [seed, 0], 0, 100, tf.int32
    ),
    "input_mask": tf.ones(shape, tf.int32),
    "input_type_ids": tf.zeros(shape, tf.int32),
  }


def _photos(seed):
  return tf.random.stateless_uniform([4, 64, 64, 3], [seed, 0])


@contextlib.contextmanager
def _without_the_cure():
  with (
    mock.patch.dict(xla.REPLACEMENTS, clear=True),
    mock.patch.dict(_LAYER_CALLS, clear=True),
  ):
    yield


def _batch(rank, seed, batch_size=3):
  channels = 2 if rank == 5 else 4
  size = [6 + seed] * (rank - 2)
  return tf.random.stateless_normal([batch_size, *size, channels], [seed, 0])


def _step(call, variables):
  """Returns a train step: the loss and its gradients."""

  def step(inputs):
    with tf.GradientTape() as tape:
      outputs = call(inputs)
      if isinstance(outputs, dict):
        outputs = outputs["pooled_output"]
      # Weighted, so that no symmetry of the outputs hides an error.
      weights = tf.random.stateless_normal(tf.shape(outputs), [7, 7])
      loss = tf.reduce_sum(outputs * weights)
    return loss, tape.gradient(loss, variables)

  return step


def _free(inputs):
  """Returns the spec of inputs of any size."""
  return tf.nest.map_structure(
    lambda x: tf.TensorSpec(
      [None] * len(x.shape)
      if x.dtype == tf.int32
      else [None] * (len(x.shape) - 1) + [x.shape[-1]],
      x.dtype,
    ),
    inputs,
  )


class XlaTest(parameterized.TestCase, tf.test.TestCase):
  def export(self, model, inputs, **kwargs):
    export_dir = self.create_tempdir().full_path
    source = saving.source(
      model, _free(inputs), layer_calls=_LAYER_CALLS, **kwargs
    )
    root = saving.reusable(source)
    saving.save(root, export_dir, signatures={})
    return tf.saved_model.load(export_dir)

  def is_trapped(self, loaded, inputs, **mode):
    """Tells whether XLA refuses a train step, or makes inputs constants."""
    step = tf.function(
      _step(lambda x: loaded(x, **mode), loaded.trainable_variables),
      jit_compile=True,
    )
    try:
      hlo = step.experimental_get_compiler_ir(inputs)(stage="hlo")
    except ValueError as e:  # A loop of unlimited length.
      self.assertIn("fixed tensor list size", str(e))
      return True
    entry = hlo[hlo.index("\nENTRY ") :]
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* parameter\(", entry)
    needed = [*tf.nest.flatten(inputs), *loaded.trainable_variables]
    missing = collections.Counter(
      ",".join(map(str, x.shape)) for x in needed
    ) - collections.Counter(shapes)
    return bool(missing)

  @parameterized.named_parameters(
    (k, *v) for k, v in _TRAPPED.items() if k not in _NIGHTLY or nightly.IS_ON
  )
  def test_compiles_once_and_right(self, build, rank):
    model = build()
    model(_batch(rank, 0))

    def attributes():
      return [
        [vars(layer).get(name) for name in ("call", "activation")]
        for layer in model.submodules
      ]

    before = attributes()
    loaded = self.export(model, _batch(rank, 0))
    self.assertEqual(attributes(), before)
    with _without_the_cure():
      uncured = self.export(model, _batch(rank, 0))
    self.assertTrue(self.is_trapped(uncured, _batch(rank, 0)))
    self.assertFalse(self.is_trapped(loaded, _batch(rank, 0)))

    live = _step(lambda x: model(x, training=True), model.trainable_variables)
    step = _step(loaded, loaded.trainable_variables)
    for wrap in (
      lambda f: f,
      tf.function,
      lambda f: tf.function(f, jit_compile=True),
    ):
      expected_step, actual_step = wrap(live), wrap(step)
      # The second batch has other sizes.
      for batch in (_batch(rank, 0), _batch(rank, 1, batch_size=2)):
        expected = tf.nest.flatten(expected_step(batch))
        actual = tf.nest.flatten(actual_step(batch))
        for a, e in zip(actual, expected, strict=True):
          scale = tf.reduce_max(tf.abs(e)) + 1e-6
          self.assertAllClose(a / scale, e / scale, rtol=0, atol=1e-6)

    # The compiled step is not compiled again.
    compiled = _compilations()
    self.assertGreater(compiled, 0)
    actual_step(_batch(rank, 0) + 1.0)
    self.assertEqual(_compilations(), compiled)

  @parameterized.parameters(
    lambda x: DroppedConcatenate()([x, x]),
    layers.RNN(DroppingCell(), return_sequences=True),
    Dropped(),
  )
  def test_gradients_are_of_the_same_random_numbers(self, layer):
    inputs = layers.Input((None, 4))
    model = tf_keras.Model(inputs, layer(inputs))
    ones = tf.ones([8, 5, 4])
    loaded = self.export(model, ones)
    with tf.GradientTape() as tape:
      tape.watch(ones)
      outputs = loaded(ones)
    # Each value is an input times a mask.
    parts = tf.split(outputs, outputs.shape[-1] // 4, axis=-1)
    gradient = tape.gradient(outputs, ones)
    self.assertAllEqual(gradient, tf.add_n(parts))
    self.assertBetween(np.mean(outputs == 0.0), 0.3, 0.7)

  @nightly.only
  def test_compiles_a_deep_stack_once(self):
    """Functions of equal layers return no shapes, which XLA would need."""
    inputs = layers.Input((None, 4))
    outputs = inputs
    for _ in range(6):
      dense = layers.Dense(4, "gelu")(outputs)
      outputs = layers.Add()([outputs, layers.Dropout(0.1)(dense)])
    model = tf_keras.Model(inputs, outputs)
    loaded = self.export(model, _batch(3, 0))
    self.assertFalse(self.is_trapped(loaded, _batch(3, 0), training=True))

  @nightly.only
  def test_cells_know_the_mode_in_gradients(self):
    inputs = layers.Input((None, 4))
    model = tf_keras.Model(inputs, layers.RNN(TrainingCell(4))(inputs))
    loaded = self.export(model, _batch(3, 0))
    expected, actual = (
      _step(lambda x, m=m: m(x, training=True), m.trainable_variables)(
        _batch(3, 0)
      )
      for m in (model, loaded)
    )
    for a, e in zip(*map(tf.nest.flatten, (actual, expected)), strict=True):
      self.assertAllClose(a, e, rtol=1e-5, atol=1e-6)

  def test_gradients_as_of_the_compiled_live_model(self):
    """XLA in TensorFlow 2.20 changes gradients if the batch is a constant."""
    model = tf_keras.Sequential(
      [
        layers.InputLayer((None, None, 4)),
        layers.Conv2D(4, 3, padding="same"),
        layers.Permute((2, 1, 3)),
        layers.Lambda(lambda x: x**3),
      ]
    )
    inputs = tf.random.stateless_normal([4, 8, 8, 4], [0, 0])

    def loss_and_gradients(call, variables):
      @tf.function(jit_compile=True)
      def step(x):
        with tf.GradientTape() as tape:
          loss = tf.reduce_sum(call(x))
        return [loss, *tape.gradient(loss, variables)]

      return step(inputs)

    expected = loss_and_gradients(model, model.trainable_variables)
    loaded = self.export(model, inputs)
    actual = loss_and_gradients(loaded, loaded.trainable_variables)
    for a, e in zip(actual, expected, strict=True):
      self.assertAllClose(a, e, rtol=1e-4, atol=1e-3)

  @parameterized.parameters(
    (xla.with_own_loop, layers.SimpleRNN(4), (None, True)),
    (xla.with_own_loop, layers.RNN(layers.GRUCell(4)), (None, True, None)),
    (xla.with_own_gradient, Doubled(), (True,)),
  )
  def test_arguments_by_position(self, replacement, layer, others):
    inputs = _batch(3, 0)
    expected = layer(inputs)
    self.assertAllClose(replacement(layer)(inputs, *others), expected)

  def test_shapes_of_variables_are_known(self):
    layer = layers.SimpleRNN(4)  # Keras loads it without the cure.
    layer(_batch(3, 0))
    step = tf.function(_step(layer, layer.trainable_weights))
    trace = step.get_concrete_function(_batch(3, 0))
    nodes = trace.graph.as_graph_def().node
    self.assertIn("VariableShape", {node.op for node in nodes})
    self.assertEmpty(xla_trap.constants(trace))

  def test_names_the_variables_and_arguments_that_are_needed(self):
    variable = tf.Variable(2, name="count")
    same = tf.function(lambda n: (n, n))

    def step(size):
      return tf.zeros([variable, same(size)[0]])

    trace = tf.function(step).get_concrete_function(tf.TensorSpec([], tf.int32))
    self.assertEqual(
      xla_trap.constants(trace),
      [
        f"XLA needs the value of {name} at compile time"
        for name in ("count:0", "size")
      ],
    )

  def test_functions_are_computed_again_and_dropout_is_not(self):
    layer = Doubled(0.5)
    inputs = tf.random.stateless_uniform([4, 8, 4], [0, 0], 1.0, 2.0)
    concat, call = tf.concat, layers.Layer.__call__
    with layer_calls.replaced(layer, _LAYER_CALLS), tf.GradientTape() as tape:
      tape.watch(inputs)
      outputs = layer(inputs, training=True)
    self.assertIs(tf.concat, concat)
    self.assertIs(layers.Layer.__call__, call)
    # Each output is an input, doubled or dropped.
    gradient = tape.gradient(outputs, inputs)
    self.assertAllClose(gradient * inputs, sum(tf.split(outputs, 2, axis=-1)))

  def test_gradients_pass_through_a_kernel_that_a_wrapper_makes(self):
    layer = WeightNormalized(layers.Dense(4))
    inputs = tf.random.stateless_normal([3, 5], [0, 0])
    gradients = []
    for replacements in ({}, xla.REPLACEMENTS):
      with (
        layer_calls.replaced(layer, replacements),
        tf.GradientTape() as tape,
      ):
        outputs = layer(inputs)
      gradients.append(tape.gradient(outputs, layer.trainable_variables))
    self.assertNotAllClose(gradients[0][0], tf.zeros([5, 4]))
    self.assertAllClose(*gradients)

  def test_hyperparameters_compile_once(self):
    from official.nlp.modeling import layers as nlp_layers
    from official.vision.modeling.layers import nn_layers

    model = tf_keras.Sequential(
      [
        layers.InputLayer((None, 4)),
        layers.BatchNormalization(momentum=0.9),
        nlp_layers.TransformerEncoderBlock(
          2, 8, "relu", output_dropout=0.1, attention_dropout=0.2
        ),
        nn_layers.StochasticDepth(0.3),
        layers.Dense(2),
      ]
    )
    tunable = hyperparameters.of_model(model)
    defaults = {h.name: h.default for h in tunable}
    self.assertEqual(
      defaults,
      {
        "dropout_rate": 0.1,
        "attention_dropout_rate": 0.2,
        "stochastic_depth_rate": 0.3,
        "batch_norm_momentum": 0.9,
      },
    )
    inputs = _batch(3, 0, batch_size=64)
    loaded = self.export(model, inputs, hyperparameters=tunable)
    (mean,) = [v for v in loaded.variables if "moving_mean" in v.name]

    @tf.function(jit_compile=True)
    def step(arguments):
      mean.assign(tf.zeros_like(mean))
      results = _step(
        lambda x: loaded(x, training=True, **arguments),
        loaded.trainable_variables,
      )(inputs)
      return [*tf.nest.flatten(results), mean.read_value()]

    def run(**changes):
      values = dict.fromkeys(defaults, 0.0) | changes
      return step({k: tf.constant(v) for k, v in values.items()})

    expected = run()
    compiled = _compilations()
    self.assertAllClose(run(), expected)  # Nothing random is left.
    for name in defaults:
      loss, *gradients, average = run(**{name: 0.5})
      self.assertAllEqual(
        [bool(tf.reduce_all(tf.math.is_finite(g))) for g in gradients],
        [True] * len(gradients),
      )
      if name == "batch_norm_momentum":
        self.assertAllClose(average, 0.5 * expected[-1])
      else:
        self.assertNotAllClose(loss, expected[0])
    self.assertEqual(_compilations(), compiled)

  @parameterized.named_parameters(
    ("mobilenet_v2", _application("MobileNetV2"), _photos, True, True),
    ("resnet50", _application("ResNet50"), _photos, True, True),
    ("densenet121", _application("DenseNet121"), _photos, True, True),
    # Not in training, because dropout would differ.
    ("encoder", _encoder, _tokens, False),
  )
  @nightly.only
  def test_models(self, build, inputs, training, is_large=False):
    if is_large and not _LARGE_MODELS.value:
      self.skipTest("It takes minutes; xla_large_models_test runs it.")
    model = build()
    loaded = self.export(model, inputs(0))
    self.assertFalse(self.is_trapped(loaded, inputs(0), training=True))
    with _without_the_cure():
      uncured = self.export(model, inputs(0))
    self.assertTrue(self.is_trapped(uncured, inputs(0), training=True))
    del uncured

    def results(call, variables):
      step = tf.function(
        _step(lambda x: call(x, training=training), variables), jit_compile=True
      )
      step(inputs(0))
      compiled = _compilations()
      flat = tf.nest.flatten(step(inputs(1)))
      self.assertEqual(_compilations(), compiled)
      return [tf.convert_to_tensor(x) for x in flat]

    expected = results(model, model.trainable_variables)
    actual = results(loaded, loaded.trainable_variables)
    largest = max(float(tf.reduce_max(tf.abs(x))) for x in expected)
    for a, e in zip(actual, expected, strict=True):
      self.assertAllClose(a / largest, e / largest, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
  tf.test.main()
