"""Judges good models of other projects, which must break no rule of level must.

`_MODELS` lists the exceptions, and the words of their findings.
"""

import contextlib
import functools
import io
import json
import os
from unittest import mock

from absl import flags
from absl.testing import parameterized
import tensorflow as tf
import tf_keras

from exporters import check
from exporters.conformance import findings
from exporters.conformance import rules
from exporters.conformance import subject as subject_lib
from tools import nightly

_APPLICATIONS = flags.DEFINE_list(
  "applications",
  ["MobileNetV3Small"],
  "Models of tf_keras.applications to judge. Empty: all of them.",
)
_SMALLER = {"MobileNet": {"alpha": 0.25}, "MobileNetV2": {"alpha": 0.35}}
# The models have no card. XLA takes long, and Keras' pooling breaks R14.
_NOT_JUDGED = ("R13", "R14")

layers = tf_keras.layers
_TINY = tf_keras.initializers.RandomNormal(stddev=1e-4)


def _saved(make):
  """Returns a function that saves a tf_keras model into a directory."""

  def build(directory):
    tf_keras.utils.set_random_seed(0)
    make().save(directory, save_format="tf", include_optimizer=False)

  return build


def _sequential(*parts):
  return _saved(lambda: tf_keras.Sequential([make() for make in parts]))


def _of(layer, *arguments, **kwargs):
  return lambda: layer(*arguments, **kwargs)


def _input(*shape, **kwargs):
  return _of(tf_keras.Input, shape, **kwargs)


def _dense(units, **kwargs):
  return _of(layers.Dense, units, **kwargs)


_TEXTS = tf.constant(["the cat sat", "a dog ran on the mat", "it rains"])


def _adapted(layer, data, **kwargs):
  def make():
    made = layer(**kwargs)
    made.adapt(data)
    return made

  return make


def _vectorization():
  return _adapted(
    layers.TextVectorization, _TEXTS, output_sequence_length=6, max_tokens=20
  )


def _table():
  inputs = {
    "age": tf_keras.Input([1], name="age"),
    "color": tf_keras.Input([1], dtype=tf.string, name="color"),
    "year": tf_keras.Input([1], dtype=tf.int64, name="year"),
  }
  color = layers.StringLookup(
    vocabulary=["red", "green"], output_mode="one_hot"
  )
  year = layers.IntegerLookup(vocabulary=[1999, 2000], output_mode="one_hot")
  normalize = layers.Normalization(mean=40.0, variance=100.0)
  x = layers.Concatenate()(
    [normalize(inputs["age"]), color(inputs["color"]), year(inputs["year"])]
  )
  return tf_keras.Model(inputs, layers.Dense(2)(x))


def _two_inputs():
  inputs = [tf_keras.Input([4]), tf_keras.Input([3])]
  x = layers.Concatenate()(inputs)
  outputs = {"mean": layers.Dense(2)(x), "scale": layers.Dense(1)(x)}
  return tf_keras.Model(inputs, outputs)


def _transferred():
  """Makes a classifier on a frozen backbone with batch normalization."""
  base = tf_keras.Sequential(
    [
      tf_keras.Input([None, None, 3]),
      layers.Conv2D(4, 3),
      layers.BatchNormalization(),
      layers.ReLU(),
      layers.GlobalAveragePooling2D(),
    ]
  )
  base.trainable = False
  inputs = tf_keras.Input([32, 32, 3])
  x = layers.Dropout(0.2)(base(inputs, training=False))
  return tf_keras.Model(inputs, layers.Dense(5)(x))


def _frozen(directory):
  """Saves a model with a frozen backbone, without the metadata of Keras."""
  parts = [
    layers.Dense(5, "relu", name="backbone", kernel_regularizer="l2"),
    layers.Dense(3, kernel_regularizer="l2"),
  ]
  parts[0].trainable = False
  model = tf_keras.Sequential([tf_keras.Input([6]), *parts])
  tf.saved_model.save(model, directory)


def _attention():
  inputs = tf_keras.Input([None, 8])
  x = layers.MultiHeadAttention(2, 4, dropout=0.1)(inputs, inputs)
  x = layers.LayerNormalization()(layers.Add()([inputs, x]))
  return tf_keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


class _Subclassed(tf_keras.Model):
  def __init__(self):
    super().__init__()
    self.hidden = layers.Dense(8, "relu", kernel_regularizer="l2")
    self.norm = layers.BatchNormalization()
    self.drop = layers.Dropout(0.3)
    self.top = layers.Dense(3)

  def call(self, inputs, training=False):
    x = self.norm(self.hidden(inputs), training=training)
    return self.top(self.drop(x, training=training))


def _subclassed():
  model = _Subclassed()
  model(tf.zeros([2, 4]))
  return model


def _mlp(directory):
  """Saves the low-level example of TensorFlow Hub's documentation."""

  class MLP(tf.train.Checkpoint):
    pass

  dim, rate = 3, 0.3
  root = MLP()
  root.v = tf.Variable(tf.random.stateless_normal([4, dim], [0, 0]))
  root.variables = root.trainable_variables = [root.v]

  @tf.function(input_signature=[tf.TensorSpec([None, 4])])
  def infer(x):
    return x @ root.v

  def call(x, training=False):
    return tf.nn.dropout(x @ root.v, rate) if training else infer(x)

  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(tf.TensorSpec([None, 4]), training)
  root.regularization_losses = [
    tf.function(lambda: 1e-3 * tf.reduce_sum(root.v**2), input_signature=[])
  ]
  tf.saved_model.save(root, directory)


def _function(spec, call, *variables):
  """Returns a function that saves `call` with variables of given shapes."""

  def build(directory):
    root = tf.train.Checkpoint()
    made = [
      tf.Variable(tf.random.stateless_normal(shape, [0, 0]), name=f"v_{i}")
      for i, shape in enumerate(variables)
    ]
    root.variables = root.trainable_variables = made
    root.regularization_losses = []
    root.__call__ = tf.function(lambda x: call(x, *made))
    root.__call__.get_concrete_function(spec)
    tf.saved_model.save(root, directory)

  return build


def _with_odd_variables(directory):
  root = tf.train.Checkpoint()
  version = tf.Variable("1.0", trainable=False)
  values = tf.Variable(tf.complex(tf.ones([3]), tf.ones([3])))
  empty = tf.Variable(tf.zeros([0, 3]))
  scale = tf.Variable(1.5, dtype=tf.bfloat16)
  root.trainable_variables = [values, empty, scale]
  root.variables = [version, *root.trainable_variables]
  root.regularization_losses = []
  root.__call__ = tf.function(
    lambda x: (
      x * tf.math.real(values) * tf.cast(scale, tf.float32)
      + x**2 * tf.math.imag(values)
      + tf.reduce_sum(empty)
      + tf.strings.to_number(version)
    )
  )
  root.__call__.get_concrete_function(tf.TensorSpec([None, 3]))
  tf.saved_model.save(root, directory)


def _embedded(texts, table):
  words = tf.strings.split(texts)
  ids = tf.strings.to_hash_bucket_fast(words, 50)
  sums = tf.reduce_sum(tf.ragged.map_flat_values(tf.gather, table, ids), 1)
  return (
    sums
    / tf.sqrt(tf.cast(tf.maximum(words.row_lengths(), 1), tf.float32))[
      :, tf.newaxis
    ]
  )


def _heard(waveform, kernel):
  """Returns scores and spectrum of each frame of a sound, as YAMNet does."""
  frames = tf.signal.frame(waveform, 400, 160, pad_end=True)
  spectrum = tf.math.log(tf.abs(tf.signal.rfft(frames, [512])) + 0.01)
  return tf.sigmoid(spectrum @ kernel), spectrum


def _mixed():
  """Makes a model whose gradients have the rounding errors of bfloat16."""
  half = {"dtype": "mixed_bfloat16"}
  return tf_keras.Sequential(
    [
      tf_keras.Input([32, 32, 3]),
      layers.Conv2D(4, 3, **half),
      layers.BatchNormalization(**half),
      layers.ReLU(**half),
      layers.GlobalAveragePooling2D(**half),
      layers.Dense(5),
    ]
  )


def _detector():
  inputs = tf_keras.Input([64, 64, 3])
  x = layers.Conv2D(8, 3, strides=4, activation="relu")(inputs)
  boxes = layers.Conv2D(4, 1, name="boxes")(x)
  scores = layers.Conv2D(3, 1, activation="sigmoid", name="scores")(x)
  return tf_keras.Model(inputs, [boxes, scores])


def _segmenter():
  inputs = tf_keras.Input([None, None, 3])
  x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
  x = layers.Concatenate()([inputs, layers.UpSampling2D()(x)])
  return tf_keras.Model(
    inputs, layers.Conv2D(5, 1, activation="softmax", name="scores")(x)
  )


def _recommended(directory):
  """Saves a model that knows three users, and returns names of films."""
  users = tf.lookup.KeyValueTensorInitializer(["ann", "bob", "eve"], [1, 2, 3])
  root = tf.train.Checkpoint(users=tf.lookup.StaticHashTable(users, 0))
  films = tf.constant(["m1", "m2", "m3", "/home/x", "/tmp"])
  root.variables = root.trainable_variables = tables = [
    tf.Variable(tf.random.stateless_normal([n, 3], [n, 0])) for n in (4, 5)
  ]
  root.regularization_losses = []

  @tf.function(input_signature=[_spec(tf.string, None)])
  def call(names):
    x = tf.gather(tables[0], root.users.lookup(names))
    scores, best = tf.math.top_k(x @ tf.transpose(tables[1]), 2)
    return scores, tf.gather(films, best)

  root.__call__ = call
  tf.saved_model.save(root, directory)


def _transformed(waveforms, kernel):
  """Returns features of sounds; NaN for a sound shorter than a frame."""
  spectrum = tf.abs(tf.signal.stft(waveforms, 256, 128))
  return tf.reduce_mean(tf.math.log(spectrum + 1e-3) @ kernel, 1)


def _seen(pictures, kernel):
  def color(x):
    pixels = tf.cast(tf.io.decode_png(x, channels=3), tf.float32)
    return tf.reduce_mean(pixels, [0, 1]) / 255

  spec = tf.TensorSpec([3], tf.float32)
  return tf.map_fn(color, pictures, fn_output_signature=spec) @ kernel


def _quantized(x, kernel, codes):
  x = x @ kernel
  distances = tf.reduce_sum((x[:, tf.newaxis] - codes) ** 2, 2)
  nearest = tf.gather(codes, tf.argmin(distances, 1))
  return x + tf.stop_gradient(nearest - x) + 0.1 * nearest


def _parsed(records, kernel):
  feature = tf.io.FixedLenFeature([4], tf.float32)
  return tf.io.parse_example(records, {"x": feature})["x"] @ kernel


def _attended(x, table, kernel):
  mask = tf.cast(x["attention_mask"], tf.float32)[:, tf.newaxis]
  y = tf.gather(table, x["input_ids"])
  weights = tf.matmul(y, y, transpose_b=True) + (mask - 1.0) * 1e9
  return (mask @ (tf.nn.softmax(weights) @ y @ kernel))[:, 0]


def _attended_pairs(x, kernel):
  y = x["x"] @ kernel
  weights = tf.matmul(y, y, transpose_b=True)
  return tf.nn.softmax(tf.where(x["mask"], weights, weights - 1e9)) @ y


def _paired(x, kernel, table):
  """Returns the likeness of all texts and images of a batch."""
  texts, images = x["texts"] @ kernel, x["images"] @ kernel
  vectors = [tf.reduce_mean(y, 1) for y in (texts, images)]
  return {
    "pairs": tf.matmul(*vectors, transpose_b=True),
    "likeness": vectors[0] @ tf.transpose(table),
    "steps": tf.transpose(texts, [1, 0, 2]),
    "table": tf.identity(table),
  }


def _at_hours(seconds, table):
  return tf.gather(table, seconds // 3600 % 24)


def _with_distances(x, near, far):
  distances = tf.range(tf.shape(x)[1])
  weights = tf.where(distances < 16, tf.gather(near, distances % 16), far)
  return x * tf.sin(weights)[:, tf.newaxis]


def _in_steps(x, kernel):
  return tf.reshape(x @ kernel, [tf.shape(x)[0], 2, 2])


def _spec(dtype, *shape, **kwargs):
  return tf.TensorSpec(shape, dtype, **kwargs)


# The finding is true: hub.KerasLayer loses these regularization losses.
_OF_INNER_LAYERS = {"R6": "hub.KerasLayer gets none"}
_MADE_UP = {"R5": "the gradients of ops that round or choose"}

# Models that only nightly tests judge.
_NIGHTLY = (
  *("attention mask", "ids of a small vocabulary", "masked", "ragged", "texts"),
  *("channels first", "numbers", "tags of words", "volumes"),
  *("batch renormalization", "quantized", "records", "segmenter"),
  *("complex", "expert", "missing numbers", "nested inputs"),
  *("all frozen", "frozen", "odd variables", "outliers"),
  *("distances", "graph", "hours", "pairs, a table and steps", "picture"),
  *("differences", "mask of pairs", "steps before examples", "tasks"),
  *("dropout", "ids of a table", "list", "noisy", "normalized", "subclassed"),
  *("image of at least 71", "sound", "table", "transferred", "waveforms"),
  *("spectral normalization", "vanishing image"),
)

# The name of each model, the function that saves it, and its kind. Last, the
# rules of level must that are broken or not decidable, besides `_NOT_JUDGED`,
# with a pattern of the finding.
_MODELS = (
  ("dense", _sequential(_input(4), _dense(3)), "vector", {}),
  (
    "dropout",
    _sequential(_input(4), _dense(8), _of(layers.Dropout, 0.5), _dense(3)),
    "vector",
    {},
  ),
  (
    "normalized",
    _sequential(
      _input(4), _dense(8), _of(layers.BatchNormalization), _dense(3)
    ),
    "vector",
    {},
  ),
  (
    "noisy",
    _sequential(
      _input(9, 4),
      _of(layers.GaussianNoise, 0.1),
      _of(layers.SpatialDropout1D, 0.5),
      _of(layers.Conv1D, 3, 3),
    ),
    "plain",
    {},
  ),
  (
    "image",
    _sequential(
      _input(40, 40, 3),
      _of(layers.RandomFlip),
      _of(layers.Rescaling, 1 / 255),
      _of(layers.Conv2D, 4, 3, strides=2, use_bias=False),
      _of(layers.BatchNormalization),
      _of(layers.ReLU),
      _of(layers.GlobalAveragePooling2D),
      _dense(5, activation="softmax"),
    ),
    "image",
    {},
  ),
  (
    # Its signals vanish in inference, as in deep models with initial weights.
    "vanishing image",
    _sequential(
      _input(20, 20, 3),
      *[
        _of(layers.Conv2D, 4, 1, kernel_initializer=_TINY),
        _of(layers.BatchNormalization),
        _of(layers.ReLU),
      ]
      * 4,
      _of(layers.GlobalAveragePooling2D),
      _dense(5, activation="softmax"),
    ),
    "image",
    {},
  ),
  (
    "image of at least 71",
    _sequential(
      _input(None, None, 3),
      _of(layers.Conv2D, 4, 71, strides=9),
      _of(layers.GlobalMaxPooling2D),
    ),
    "image",
    {},
  ),
  (
    "grey image",
    _sequential(
      _input(28, 28, 1),
      _of(layers.Conv2D, 4, 3, activation="relu"),
      _of(layers.MaxPool2D),  # Its output for NaN depends on the memory.
      _of(layers.Flatten),
      _of(layers.Dropout, 0.4),
      _dense(10),
    ),
    "grey image",
    {},
  ),
  (
    "video",
    _sequential(
      _input(6, 20, 20, 3),
      _of(layers.Conv3D, 2, 3),
      _of(layers.GlobalAveragePooling3D),
    ),
    "video",
    {},
  ),
  (
    "sound",
    _sequential(
      _input(4000, 1),
      _of(layers.Conv1D, 4, 80, strides=16),
      _of(layers.GlobalAveragePooling1D),
    ),
    "plain",
    {},
  ),
  (
    "texts in columns",
    _sequential(
      _input(1, dtype=tf.string),
      _vectorization(),
      _of(layers.Embedding, 20, 4),
      _of(layers.GlobalAveragePooling1D),
      _dense(2),
    ),
    "plain",
    {},
  ),
  (
    "texts",
    _sequential(
      _input(dtype=tf.string),
      _vectorization(),
      _of(layers.Embedding, 20, 4, mask_zero=True),
      _of(layers.LSTM, 4),
      _dense(1),
    ),
    "plain",
    {},
  ),
  (
    "normalization",
    _sequential(
      _input(3),
      _adapted(layers.Normalization, [[1.0, 2, 3], [2, 4, 9]]),
      _dense(2),
    ),
    "vector",
    {},
  ),
  ("table", _saved(_table), "plain", {}),
  (
    "ids of a small vocabulary",
    _sequential(
      _input(7, dtype=tf.int32), _of(layers.Embedding, 3, 4), _of(layers.GRU, 5)
    ),
    "plain",
    {},
  ),
  (
    "masked",
    _sequential(
      _input(None, 4),
      _of(layers.Masking),
      lambda: layers.Bidirectional(layers.LSTM(3, kernel_regularizer="l2")),
    ),
    "plain",
    _OF_INNER_LAYERS,
  ),
  ("list", _saved(_two_inputs), "plain", {}),
  ("mixed precision", _saved(_mixed), "image", {}),
  ("detector", _saved(_detector), "image", {}),
  ("segmenter", _saved(_segmenter), "image", {}),
  (
    "spectral normalization",
    _sequential(
      _input(6), lambda: layers.SpectralNormalization(layers.Dense(4))
    ),
    "vector",
    {},
  ),
  (
    "batch renormalization",
    _sequential(
      _input(9),
      _dense(8),
      lambda: layers.BatchNormalization(renorm=True),
      _of(layers.ReLU),
      _dense(3),
    ),
    "vector",
    {},
  ),
  (
    "attention mask",
    _function(
      {
        name: _spec(tf.int32, None, None)
        for name in ("input_ids", "attention_mask")
      },
      _attended,
      [20, 4],
      [4, 3],
    ),
    "plain",
    {},
  ),
  (
    "quantized",
    _function(_spec(tf.float32, None, 4), _quantized, [4, 3], [5, 3]),
    "vector",
    _MADE_UP,
  ),
  (
    "records",
    _function(_spec(tf.string, None), _parsed, [4, 3]),
    "text embedding",
    dict.fromkeys(("R4", "R5", "R15", "T1"), "no input was found"),
  ),
  ("recommender", _recommended, "plain", {}),
  (
    "ids of a table",
    _sequential(
      _input(1, dtype=tf.int64),
      _of(layers.IntegerLookup, vocabulary=[*range(2000, 2012)]),
      _of(layers.Embedding, 13, 4),
      _dense(2),
    ),
    "plain",
    {},
  ),
  (
    "waveforms",
    _function(_spec(tf.float32, None, None), _transformed, [129, 4]),
    "vector",
    {},
  ),
  ("transferred", _saved(_transferred), "image", {}),
  ("frozen", _frozen, "vector", {}),
  (
    "all frozen",
    _sequential(_input(4), _dense(3, trainable=False)),
    "vector",
    {},
  ),
  ("attention", _saved(_attention), "plain", {}),
  ("subclassed", _saved(_subclassed), "vector", {}),
  (
    "nested",
    _sequential(
      _input(4),
      lambda: tf_keras.Sequential(
        [tf_keras.Input([4]), layers.Dense(3, kernel_regularizer="l2")]
      ),
      _dense(2),
    ),
    "vector",
    _OF_INNER_LAYERS,
  ),
  (
    "ragged",
    _sequential(
      _input(None, dtype=tf.int32, ragged=True),
      _of(layers.Embedding, 9, 4),
      _of(layers.LSTM, 3),
    ),
    "plain",
    {},
  ),
  ("sparse", _sequential(_input(8, sparse=True), _dense(2)), "plain", {}),
  ("low-level", _mlp, "vector", {}),
  (
    "text embedding",
    _function(_spec(tf.string, None), _embedded, [50, 6]),
    "text embedding",
    {},
  ),
  (
    "waveform",
    _function(_spec(tf.float32, None), _heard, [257, 3]),
    "vector",
    {},
  ),
  (
    "numbers",
    _function(_spec(tf.float32, None), lambda x, v: x * v + 1.0, [1]),
    "vector",
    {},
  ),
  (
    "scalar",
    _function(_spec(tf.float32), lambda x, v: x * v, [3]),
    "plain",
    {},
  ),
  (
    "unknown rank",
    _function(tf.TensorSpec(None, tf.float32), lambda x, v: x @ v, [8, 3]),
    "plain",
    {},
  ),
  (
    "shaped",
    _function(_spec(tf.float32, None, 3), _in_steps, [3, 4]),
    "vector",
    {},
  ),
  (
    "dict with a scalar",
    _function(
      {"x": _spec(tf.float32, None, 3), "scale": _spec(tf.float32)},
      lambda x, v: tf.tanh(x["x"] @ v) * x["scale"],
      [3, 4],
    ),
    "plain",
    {},
  ),
  (
    "channels first",
    _sequential(
      _input(3, 16, 16),
      _of(layers.Permute, (2, 3, 1)),
      _of(layers.Conv2D, 2, 3),
      _of(layers.Flatten),
    ),
    "plain",
    {},
  ),
  (
    "steps before examples",
    _function(
      _spec(tf.float32, None, None, 4), lambda x, v: tf.cumsum(x @ v), [4, 3]
    ),
    "plain",
    {},
  ),
  (
    "mask of pairs",
    _function(
      {
        "x": _spec(tf.float32, None, 6, 4),
        "mask": _spec(tf.bool, None, 6, 6),
      },
      _attended_pairs,
      [4, 4],
    ),
    "plain",
    {},
  ),
  (
    "differences",
    _function(
      {x: _spec(tf.float32, None, 4) for x in ("left", "right")},
      lambda x, v, b: (x["left"] @ v + b) - (x["right"] @ v + b),
      [4, 3],
      [3],
    ),
    "plain",
    {},
  ),
  (
    "distances",
    _function(_spec(tf.float32, None, None, 4), _with_distances, [16], [1]),
    "plain",
    {},
  ),
  (
    "hours",
    _function(_spec(tf.int64, None), _at_hours, [24, 3]),
    "plain",
    {},
  ),
  (
    "graph",
    _function(
      {
        "nodes": _spec(tf.float32, None, 4),
        "to": _spec(tf.float32, None, None),
      },
      lambda x, v: x["to"] @ tf.tanh(x["nodes"] @ v),
      [4, 3],
    ),
    "plain",
    {},
  ),
  (
    "picture",
    _function(
      _spec(tf.float32, None, None, 3),
      lambda x, v: tf.nn.conv2d(x[tf.newaxis], v, 1, "SAME")[0],
      [3, 3, 3, 3],
    ),
    "plain",
    {},
  ),
  (
    "pairs, a table and steps",
    _function(
      {x: _spec(tf.float32, None, None, 4) for x in ("texts", "images")},
      _paired,
      [4, 3],
      [8, 3],
    ),
    "plain",
    {},
  ),
  (
    "volumes",
    _sequential(
      _input(6, 8, 8, 1), _of(layers.Conv3D, 2, 3), _of(layers.Flatten)
    ),
    "plain",
    {},
  ),
  (
    "sounds",
    _function(
      _spec(tf.float32, None),
      lambda x, w: (
        tf.reduce_mean(tf.signal.frame(x, 400, 160)[:, :3], 0)[tf.newaxis] @ w
      ),
      [3, 2],
    ),
    "vector",
    {},
  ),
  (
    "tags of words",
    _sequential(
      _input(None, dtype=tf.int32), _of(layers.Embedding, 9, 4), _dense(3)
    ),
    "plain",
    {},
  ),
  (
    "complex",
    _function(
      _spec(tf.float32, None, 4),
      lambda x, v: tf.complex(x @ v, tf.tanh(x @ v)),
      [4, 3],
    ),
    "vector",
    {},
  ),
  (
    "nested inputs",
    _function(
      {"a": {"x": _spec(tf.float32, None, 4)}, "b": [_spec(tf.int32, None)]},
      lambda x, v: (
        x["a"]["x"] @ v + tf.cast(x["b"][0][:, tf.newaxis], tf.float32)
      ),
      [4, 3],
    ),
    "plain",
    {},
  ),
  ("odd variables", _with_odd_variables, "vector", {}),
  (
    "expert",
    _function(
      _spec(tf.float32, None, 4),
      lambda x, v, w: tf.where(x[:, :1] < -5.0, x @ w, x @ v),
      [4, 3],
      [4, 3],
    ),
    "vector",
    {},
  ),
  (
    "outliers",
    _function(
      _spec(tf.float32, None, 4),
      lambda x, v, w: tf.where(x[:, :1] > 1e6, x @ w, x @ v),
      [4, 3],
      [4, 3],
    ),
    "vector",
    {},
  ),
  (
    "missing numbers",
    _function(
      _spec(tf.float32, None, 4),
      lambda x, v, w: tf.where(tf.math.is_nan(x), w, x) @ v,
      [4, 3],
      [4],
    ),
    "vector",
    {},
  ),
  (
    "tasks",
    _function(
      {"task": _spec(tf.string, None), "x": _spec(tf.float32, None, 4)},
      lambda x, v, w: tf.where(
        (x["task"] == "one")[:, tf.newaxis], x["x"] @ w, x["x"] @ v
      ),
      [4, 3],
      [4, 3],
    ),
    "plain",
    {},
  ),
  (
    "pictures",
    _function(
      _spec(tf.string, None),
      _seen,
      [3, 2],
    ),
    "text embedding",
    {},
  ),
)


class OthersTest(parameterized.TestCase, tf.test.TestCase):
  def broken(self, build, kind):
    """Returns the findings on broken or undecidable rules of level must."""
    directory = os.path.join(self.get_temp_dir(), "export")
    with contextlib.redirect_stderr(None):
      build(directory)
    subject = subject_lib.load(directory, trust=False)
    self.assertEqual(subject.kind.name, kind)
    judged = [
      rule
      for rule in rules.RULES
      if rule.level == "must" and rule.name not in _NOT_JUDGED
    ]
    with mock.patch.object(rules, "ORDER", judged):
      return {
        rule.name: finding.text
        for rule, finding in rules.judge(subject)
        if finding.verdict in (findings.FAIL, findings.NOT_DECIDABLE)
      }

  @parameterized.named_parameters(
    model for model in _MODELS if model[0] not in _NIGHTLY or nightly.IS_ON
  )
  def test_verdicts(self, build, kind, expected):
    found = self.broken(build, kind)
    self.assertEqual(found.keys(), expected.keys(), found)
    for name, words in expected.items():
      self.assertRegex(found[name], words)

  @nightly.only
  def test_applications(self):
    named = _APPLICATIONS.value or [
      name
      for name, model in vars(tf_keras.applications).items()
      if callable(model)
    ]
    for name in named:
      with self.subTest(name):
        tf_keras.backend.clear_session()
        make = functools.partial(
          getattr(tf_keras.applications, name),
          input_shape=(96, 96, 3),
          weights=None,
          classes=9,
          **_SMALLER.get(name, {}),
        )
        directory = os.path.join(self.get_temp_dir(), "export")
        _saved(make)(directory)
        # `check` sets limits of time and memory, as for users.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
          check.check(saved_model_dir=directory, as_json=True)
        report = json.loads(printed.getvalue())
        self.assertEqual(report["kind"], "image")
        self.assertEmpty(
          {
            judged["rule"]: judged["found"]
            for judged in report["rules"]
            if judged["level"] == "must"
            and judged["verdict"] in (findings.FAIL, findings.NOT_DECIDABLE)
            and judged["rule"] not in _NOT_JUDGED
          }
        )


if __name__ == "__main__":
  tf.test.main()
