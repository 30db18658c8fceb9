"""Breaks each rule at least once, and tests that the rule finds it."""

import json
import os
import pathlib
from unittest import mock

from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import noise
from exporters.conformance import of_all
from exporters.conformance import of_images
from exporters.conformance import of_inference
from exporters.conformance import of_text
from exporters.conformance import of_training
from exporters.conformance import of_variables
from exporters.conformance import rules
from exporters.conformance import subject as subject_lib
from exporters.reusable import kinds
from tools import nightly

_CARD = (
  "hub.KerasLayer(…, trainable=True). Regularization in an optimizer …"
  " Arguments: dropout_rate, batch_norm_momentum, unit, rate. Takes an image,"
  " and returns feature vectors, logits or outputs."
)
_IMAGES = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
_GREY_IMAGES = tf.TensorSpec([None, 28, 28, 1], tf.float32, "images")
_TEXTS = tf.TensorSpec([None], tf.string, "texts")
_SCALAR = tf.TensorSpec([], tf.float32)
_WORDS = {
  name: tf.TensorSpec([None, None], tf.int32, name)
  for name in ("input_word_ids", "input_mask", "input_type_ids")
}


def _write(root, directory, serve=None, card=_CARD):
  signatures = {"serving_default": serve} if serve else {}
  tf.saved_model.save(root, directory, signatures=signatures)
  os.mkdir(f"{directory}/assets.extra")
  card, *described = card if isinstance(card, tuple) else (card,)
  path = pathlib.Path(directory, "assets.extra", "README.md")
  path.write_text(card, errors="surrogateescape")
  for model in described:
    path = pathlib.Path(directory, "assets.extra", "model.json")
    path.write_text(json.dumps(model))


def _lists(root, variables, trainable_variables=None):
  root.variables = variables
  root.trainable_variables = (
    variables if trainable_variables is None else trainable_variables
  )
  root.regularization_losses = []
  return root


def _mean(x, axis, keepdims):
  """Returns a mean; 0 if there are no values."""
  count = tf.cast(tf.maximum(1, tf.shape(x)[axis]), x.dtype)
  return tf.reduce_sum(x, axis, keepdims=keepdims) / count


def _image(
  directory,
  *,
  spec=_IMAGES,
  momentum_without_effect=False,
  trace_training=True,
  losses=lambda kernel: [lambda: tf.reduce_sum(kernel**2)],
  finish=lambda x, training, rate: x,
  start=lambda x: x,
  keepdims=True,
  default_rate=0.5,
  served=lambda x: x,
  start_served=lambda x: x,
  change=lambda root: None,
  names=("images", "feature_vector"),
  card=_CARD,
):
  """Writes a feature extractor for images; by default nothing is broken."""
  channels = spec.shape[-1]
  initial = tf.random.stateless_normal([channels, 5], [0, 0])
  kernel = tf.Variable(initial, name="kernel")
  mean = tf.Variable(tf.zeros([channels]), trainable=False, name="moving_mean")

  def call(
    inputs, training=False, dropout_rate=default_rate, batch_norm_momentum=0.9
  ):
    x = start(tf.cast(inputs, tf.float32))
    if keepdims:
      x = tf.squeeze(tf.reduce_mean(x, [1, 2], keepdims=True), [1, 2])
    else:
      x = tf.reduce_mean(x, [1, 2])
    if training:
      share = 1.0 - batch_norm_momentum
      if momentum_without_effect:
        share = 0.1 + 0.0 * share
      center = tf.squeeze(_mean(x, 0, keepdims=True), 0)
      mean.assign_add((center - mean) * share)
      x = tf.nn.dropout(x, dropout_rate)
    return finish((x - mean) @ kernel, training, dropout_rate)

  root = _lists(tf.train.Checkpoint(), [kernel, mean], [kernel])
  root.__call__ = tf.function(call)
  for training in (False, True) if trace_training else (False,):
    root.__call__.get_concrete_function(spec, training, _SCALAR, _SCALAR)
  root.regularization_losses = [
    tf.function(loss, input_signature=[]) for loss in losses(kernel)
  ]
  change(root)
  (of_input, of_output) = names
  serve = tf.function(
    lambda x: {
      of_output: served(
        root.__call__(
          start_served(x), False, tf.constant(0.5), tf.constant(0.9)
        )
      )
    }
  )
  taken = tf.TensorSpec(spec.shape, spec.dtype, of_input)
  _write(root, directory, serve.get_concrete_function(taken), card)


def _plain(directory, call, *arguments, spec=None, variables=(), **attributes):
  """Writes a function as a small model without a signature."""
  root = _lists(tf.train.Checkpoint(**attributes), list(variables))
  root.__call__ = tf.function(call)
  root.__call__.get_concrete_function(*([spec] if spec else arguments))
  _write(root, directory)


_VECTORS = tf.TensorSpec([None, 4], tf.float32, "vectors")


def _with_gradient(factor):
  """Returns an identity function whose gradient is multiplied by `factor`."""
  return tf.custom_gradient(lambda x: (tf.identity(x), lambda dy: dy * factor))


_part_of_gradient = tf.custom_gradient(
  lambda x: (tf.identity(x), lambda dy: dy * [0.0, 0.0, 0.0, 1.0])
)


def _learned_first(x):
  """Stops the gradients of all but the first 4 examples."""
  is_first = tf.range(tf.shape(x)[0])[:, tf.newaxis] < 4
  return tf.where(is_first, x, tf.stop_gradient(x))


@tf.custom_gradient
def _learned_on_average(x):
  """Returns `x`; for larger batches than 4, scales gradients by 4 / rows."""
  rows = tf.cast(tf.shape(x)[0], tf.float32)
  return tf.identity(x), lambda dy: dy * 4.0 / tf.maximum(4.0, rows)


@tf.custom_gradient
def _clipped(x):
  """Returns `x`; clips its gradient to a norm of 1."""
  return tf.identity(x), lambda dy: tf.clip_by_norm(dy, 1.0)


def _without_mask(x, rate, generator):
  """Drops values, but gives dropped values a gradient too."""
  del generator
  return tf.stop_gradient(tf.nn.dropout(x, rate) - x) + x


def _stale(kernel):
  before = tf.constant(kernel.numpy())
  return [lambda: tf.reduce_sum(kernel * before)]


def _second_stale(first, second):
  (stale,) = _stale(second)
  return lambda: tf.reduce_sum(first**2) + stale()


def _second_stopped(first, second):
  return lambda: tf.reduce_sum(first**2 + tf.stop_gradient(second) ** 2)


def _layers(
  directory,
  *,
  change=lambda x: x,
  trained=None,
  training=None,
  losses=None,
  average=_mean,
  start=lambda x: x,
  names="bn_{}/moving_mean",
):
  """Writes two layers with normalization in training; by default intact."""
  kernels = [
    tf.Variable(tf.random.stateless_normal([4, 4], [i, 0]), name=f"kernel_{i}")
    for i in range(2)
  ]
  means = [
    tf.Variable(tf.zeros([4]), trainable=False, name=names.format(i))
    for i in range(2)
  ]
  generator = tf.random.Generator.from_seed(1)
  variables = [*kernels, *means, generator.state]

  def call(inputs, training=False, batch_norm_momentum=0.9, dropout_rate=0.0):
    x = start(inputs)
    for i, (kernel, mean) in enumerate(zip(kernels, means, strict=True)):
      x = tf.tanh(x @ kernel)
      center = mean
      if training:  # Without keepdims XLA compiles each step anew.
        center = tf.squeeze(average(x, 0, keepdims=True), 0)
      if training:
        moves(i, mean, center, batch_norm_momentum)
        x = drop(x, dropout_rate, generator)
      x = change(x - center) if i == 0 else x - center
    return x

  moves, drop = training or (_moves, lambda x, rate, _: tf.nn.dropout(x, rate))
  root = _lists(
    tf.train.Checkpoint(generator=generator), variables, trained or kernels
  )
  root.__call__ = tf.function(call)
  for mode in (False, True):
    root.__call__.get_concrete_function(_VECTORS, mode, _SCALAR, _SCALAR)
  if losses:
    summed = tf.function(losses(*kernels), input_signature=[])
    root.regularization_losses = [summed]
  _write(root, directory)


def _averaged(
  directory,
  *,
  calls=1,
  parts=1,
  moving=2,
  variance=1.0,
  change=lambda variance, count: variance,
  finish=lambda x, training: x,
  learn=lambda v, statistic, count: v.assign(0.9 * v + 0.1 * statistic),
  loss=None,
):
  """Writes batch normalization without hyperparameters; by default intact.

  Args:
    directory: The directory to write.
    calls: How often the layer is called.
    parts: How many parts of a batch are normalized separately.
    moving: How many of the two averages move.
    variance: The initial value of the second average.
    change: Takes the variance and the number of values of a batch; returns the
      variance by which training updates the average.
    finish: Changes the outputs of the model.
    learn: Updates an average by a statistic.
    loss: Returns a loss of the kernel and the variance. None: no loss.
  """
  initial = tf.random.stateless_normal([4, 4], [0, 0])
  kernel = tf.Variable(initial, name="kernel")
  averages = [
    tf.Variable(tf.fill([4], value), trainable=False, name=f"norm/{name}")
    for name, value in (("mean", 0.0), ("var", variance))
  ]
  count = tf.Variable(0.0, trainable=False, name="count")

  def call(inputs, training=False):
    x = tf.reshape(inputs @ kernel, [parts if training else 1, -1, 4])
    for _ in range(calls):
      statistics = averages
      if training:
        statistics = tf.nn.moments(x, [1], keepdims=True)
        size = tf.cast(tf.shape(x)[1], tf.float32)
        learned = (statistics[0], change(statistics[1], size))
        pairs = [*zip(averages, learned, strict=True)][:moving]
        for v, statistic in pairs:
          learn(v, tf.reduce_mean(statistic, [0, 1]), count)
      center, spread = statistics
      x = (x - center) * tf.math.rsqrt(spread + 1e-3)
    return finish(tf.reshape(x, [-1, 4]), training)

  root = _lists(
    tf.train.Checkpoint(count=count), [kernel, *averages, count], [kernel]
  )
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
  root.call = tf.function(lambda x: call(x), input_signature=[_VECTORS])
  if loss:
    of_loss = tf.function(lambda: loss(kernel, averages[1]), input_signature=[])
    root.regularization_losses = [of_loss]
  _write(root, directory)


def _quantized(x):
  """Rounds with an op that does not take float64."""
  return tf.quantization.fake_quant_with_min_max_args(x, -9.0, 9.0)


def _debiased(v, statistic, count):
  """Updates an average by exponential smoothing with bias correction."""
  count.assign_add(1.0)
  past = 1.0 - 0.9**count
  v.assign((0.9 * v * (1.0 - 0.9 ** (count - 1.0)) + 0.1 * statistic) / past)


def _moves(i, mean, batch_mean, momentum):
  del i
  mean.assign(mean * momentum + batch_mean * (1.0 - momentum))


def _first_moves(i, mean, batch_mean, momentum):
  _moves(i, mean, batch_mean, momentum if i == 0 else 1.0)


def _follows_inversely(i, mean, batch_mean, momentum):
  _moves(i, mean, batch_mean, momentum if i == 0 else 1.0 - momentum)


def _first_follows(i, mean, batch_mean, momentum):
  _moves(i, mean, batch_mean, momentum if i == 0 else 0.9)


def _in_proportion(factor):
  """Returns an update that moves the first average `factor` times as far."""

  def moves(i, mean, batch_mean, momentum):
    share = (1.0 if i else factor) * (1.0 - momentum)
    mean.assign_add(share * (batch_mean - mean))

  return moves


def _dropout(x, rate, generator):
  del generator
  return tf.nn.dropout(x, rate)


def _unscaled(x, rate, _):
  return x * tf.cast(tf.random.uniform(tf.shape(x)) >= rate, tf.float32)


def _drops_many(x, rate, other):
  """Drops values at one rate, and 99 copies of each at the other rate."""
  copies = tf.tile(tf.nn.dropout(x, rate)[:, tf.newaxis], [1, 99, 1])
  return tf.reduce_mean(tf.nn.dropout(copies, other), 1)


def _drops_words(x, rate, _):
  """Drops whole words, and does not scale the others."""
  drawn = tf.random.uniform([tf.shape(x)[0], tf.shape(x)[1], 1])
  return (x[..., tf.newaxis] * tf.cast(drawn >= rate, tf.float32))[..., 0]


def _drops_of_odd_rows(x, rate, _):
  rows = tf.range(tf.shape(x)[0])[:, tf.newaxis] % 2
  kept = tf.random.uniform(tf.shape(x)) >= rate * tf.cast(rows, tf.float32)
  return x * tf.cast(kept, tf.float32) / (1 - rate * tf.cast(rows, tf.float32))


def _alpha_dropout(x, rate, _):
  """Drops values, but keeps a mean of 0 and a variance of 1."""
  kept = tf.cast(tf.random.uniform(tf.shape(x)) >= rate, tf.float32)
  scale = tf.math.rsqrt((1 - rate) * (1 + rate * 1.7**2))
  return scale * (x * kept - 1.7 * (1 - kept)) + scale * 1.7 * rate


def _stochastic_depth(x, rate, _):
  kept = tf.floor(1 - rate + tf.random.uniform([tf.shape(x)[0], 1]))
  return x + tf.tanh(x) * kept / (1 - rate)


def _keeps_few(x):
  """Keeps all examples of a batch or none, by chance; the twin keeps none."""
  return x * tf.cast(tf.random.uniform([]) < 0.5, tf.float32)


def _scaled_later(x, rate, _):
  return _unscaled(x, rate, _) @ tf.ones([4, 4]) / (1 - rate)


# Noise that is correct, or of a form that cannot be measured.
_NOISES = (
  _dropout,
  lambda x, rate, _: tf.nn.dropout(x, rate, [tf.shape(x)[0], 1]),
  lambda x, rate, _: tf.nn.dropout(tf.nn.dropout(x, rate), rate),
  lambda x, rate, _: x + tf.random.normal(tf.shape(x), 0.0, rate),
  lambda x, rate, _: x + rate * tf.random.uniform(tf.shape(x), -1, 1),
  lambda x, rate, _: (
    x * tf.random.normal(tf.shape(x), 1.0, tf.sqrt(rate / (1 - rate)))
  ),
  lambda x, rate, _: x + x * rate * tf.random.normal(tf.shape(x)),
  lambda x, rate, _: (
    tf.nn.softmax(x - 1e9 * (1 - _unscaled(tf.ones_like(x), rate, _))) + x
  ),
  lambda x, rate, _: tf.where(
    tf.random.uniform([tf.shape(x)[0], 1]) < rate, tf.reverse(x, [1]), x
  ),
  lambda x, rate, _: 2.0 * tf.nn.dropout(x, rate) + tf.nn.dropout(x, rate),
  lambda x, rate, _: _drops_many(x, rate, 1 - (1 - rate) ** 3),
  _alpha_dropout,
  _stochastic_depth,
  _scaled_later,
  _drops_words,
  lambda x, rate, _: tf.function(_dropout)(x, rate, 0),
)


def _baked(inference, served, averaged=False):
  """Returns a builder of a model with constants in inference or a signature.

  The constants are the values of a kernel or, if `averaged`, of a moving
  average.
  """

  def build(directory):
    kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
    mean = tf.Variable([1.0, 2.0], trainable=False, name="bn/moving_mean")
    variable = mean if averaged else kernel
    constant = tf.constant(variable.numpy())
    root = _lists(tf.train.Checkpoint(), [kernel, mean], [kernel])

    def compute(x, value):
      return x @ kernel - value if averaged else x @ value - mean

    def call(inputs, training=False):
      if training:
        mean.assign(0.9 * mean + 0.1 * tf.reduce_mean(inputs @ kernel, 0))
      is_baked = inference and not training
      return compute(inputs, constant if is_baked else variable)

    root.__call__ = tf.function(call)
    for training in (False, True):
      root.__call__.get_concrete_function(_VECTORS, training)
    serve = tf.function(
      lambda x: {"values": compute(x, constant) if served else root.__call__(x)}
    )
    _write(root, directory, serve.get_concrete_function(_VECTORS))

  return build


def _recomputed(directory):
  """Writes a layer whose gradient calls it again, and moves its average."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 4], [0, 0]))
  mean = tf.Variable(tf.zeros([4]), trainable=False, name="bn/moving_mean")

  def train(x):
    center = _mean(x, 0, keepdims=False)
    mean.assign(0.9 * mean + 0.1 * center)
    return x - center

  @tf.custom_gradient
  def twice(x):
    def gradient(upstream):
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = train(x)
      return tape.gradient(y, x, upstream)

    return train(x), gradient

  def call(inputs, training=False):
    x = inputs @ kernel
    return twice(x) if training else x - mean

  root = _lists(tf.train.Checkpoint(), [kernel, mean], [kernel])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
  options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
  tf.saved_model.save(root, directory, options=options)


def _of_normalized_targets(directory):
  """Writes a model that was trained on normalized targets."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
  std = tf.Variable([2.0, 3.0], trainable=False, name="price_std")
  root = _lists(tf.train.Checkpoint(), [kernel, std], [kernel])

  def call(inputs, training=False):
    return inputs @ kernel * (1.0 if training else std)

  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
  _write(root, directory)


def _other_in_double(directory):
  root = _lists(tf.train.Checkpoint(), [])
  root.__call__ = tf.function(
    lambda x: 2 * x if x.dtype == tf.float64 else 3 * x
  )
  for dtype in (tf.float32, tf.float64):
    root.__call__.get_concrete_function(tf.TensorSpec([None, 4], dtype))
  _write(root, directory)


def _of_two_dtypes(directory):
  def call(inputs, training=False):
    return tf.cast(inputs, tf.float64) if training else inputs

  _two_modes(directory, call)


def _other_name_of_mode(directory):
  def call(x, is_training=False):
    return tf.nn.dropout(x, 0.5) if is_training else x

  _plain(directory, call, _VECTORS, True)


def _mode_of_another_name(directory):
  def call(x, mode="infer"):
    return tf.nn.dropout(x, 0.5) if mode == "train" else x

  root = _callable(call, [_VECTORS], [_VECTORS, "train"])
  _write(root, directory)


def _without_gradient(directory):
  """Writes a model whose training has an op without a gradient."""
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  def call(x, training=False):
    if training:
      x = tf.raw_ops.AdjustContrastv2(
        images=x[:, tf.newaxis, :, tf.newaxis], contrast_factor=1.1
      )[:, 0, :, 0]
    return x @ kernel

  _two_modes(directory, call, variables=[kernel])


def _noise_by_argument(directory):
  _two_modes(
    directory,
    lambda x, training=False, rate=0.0: tf.nn.dropout(x, rate),
    _SCALAR,
  )


def _without_noise(
  directory, change=lambda x: 1.5 * x, spec=_VECTORS, drop=tf.nn.dropout
):
  """Writes a model whose training applies `change`, even at a rate of 0."""

  def call(x, training=False, rate=0.0):
    x = drop(change(x), rate) if training else x
    return x if spec is _VECTORS else tf.reduce_sum(x, 1)

  calls = [spec, False, _SCALAR], [spec, True, _SCALAR]
  _write(_callable(call, *calls), directory)


def _stale_in_training(directory):
  """Writes a model whose training has the weights as constants."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
  constant = tf.constant(kernel.numpy())

  def call(x, training=False, rate=0.0):
    return tf.nn.dropout(x @ constant, rate) if training else x @ kernel

  calls = [_VECTORS, False, _SCALAR], [_VECTORS, True, _SCALAR]
  _write(_lists(_callable(call, *calls), [kernel]), directory)


def _with_half(directory, call):
  """Writes a function traced in both modes, for float32 and for bfloat16."""
  traces = (
    [tf.TensorSpec([None, 4], dtype), training]
    for dtype in (tf.float32, tf.bfloat16)
    for training in (False, True)
  )
  _write(_lists(_callable(call, *traces), []), directory)


def _twice_in_half(x, training=False):
  return tf.cast(x, tf.float32) * (2.0 if x.dtype == tf.bfloat16 else 1.0)


def _stale_in_double(directory):
  """Writes a model that has its weights as constants for float64 inputs."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
  constant = tf.constant(kernel.numpy())

  def call(x):
    is_double = x.dtype == tf.float64
    return tf.cast(x, tf.float32) @ (constant if is_double else kernel)

  traces = ([tf.TensorSpec([None, 4], x)] for x in (tf.float32, tf.float64))
  _write(_lists(_callable(call, *traces), [kernel]), directory)


def _in_half(directory, factor):
  kernels = [
    tf.Variable(tf.random.stateless_normal([4, 4], [i, 0]), name=f"kernel_{i}")
    for i in range(3)
  ]

  def call(x):
    x = tf.cast(x, tf.bfloat16)
    for i, kernel in enumerate(kernels):
      weights = tf.cast(kernel, tf.bfloat16)
      x = tf.tanh(x @ (_with_gradient(factor)(weights) if i == 1 else weights))
    return tf.cast(x, tf.float32)

  _plain(directory, call, _VECTORS, variables=kernels)


_MASK = np.random.default_rng(0).integers(0, 2, [1, 4]).astype(np.float32)


def _frozen_dropout(x, rate, generator):
  del generator
  return x * (1.0 - rate + rate * 2.0 * _MASK)


def _seeded_dropout(x, rate, generator):
  del generator
  return tf.nn.dropout(x, rate, seed=1)


def _dropout_of_state(x, rate, generator):
  kept = tf.cast(generator.uniform(tf.shape(x)) >= rate, tf.float32)
  return x * kept / (1.0 - rate + 1e-6)


def _counted_dropout(directory):
  """Writes dropout seeded by the number of calls, which is saved."""
  count = tf.Variable(0, trainable=False, name="count")

  def call(x, training=False):
    if training:
      seed = [1, count.assign_add(1)]
      x = tf.nn.experimental.stateless_dropout(x, 0.5, seed)
    return x

  _two_modes(directory, call, variables=[count])


def _fixed_dropout(x, rate, generator):
  del generator
  return tf.nn.dropout(tf.nn.dropout(x, rate), 0.3)


def _frozen_mask(directory):
  """Writes dropout without a rate, whose mask NumPy drew before tracing."""

  def call(inputs, training=False):
    return inputs * 2.0 * _MASK if training else inputs

  _two_modes(directory, call)


def _counts_calls(directory):
  count = tf.Variable(0, trainable=False, name="count")

  def call(inputs):
    count.assign_add(1)
    return 2.0 * inputs

  _plain(directory, call, _VECTORS, variables=[count])


def _without_effect(directory):
  idle = tf.Variable(tf.ones([4]), name="idle")
  _plain(directory, lambda x: x + 0.0 * idle, _VECTORS, variables=[idle])


def _clipped_by_range(directory):
  """Writes a layer whose weights are clipped by a trainable minimum."""
  least, kernel = tf.Variable(-9.0), tf.Variable(tf.eye(4), name="kernel")
  _plain(
    directory,
    lambda x: x @ tf.maximum(kernel, least),
    spec=_VECTORS,
    variables=[least, kernel],
  )


def _named_by_layers(directory):
  """Writes a signature that renames the outputs, as Keras does."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 3], [0, 0]))

  def call(vectors):
    return {"pooled": vectors @ kernel, "sequence": vectors[:, tf.newaxis]}

  def serve(vectors):
    made = call(vectors)
    return {"dense": made["sequence"], "norm": made["pooled"]}

  root = _lists(_callable(call, [_VECTORS]), [kernel])
  _write(root, directory, tf.function(serve).get_concrete_function(_VECTORS))


def _of_ragged(directory):
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")
  _plain(
    directory,
    lambda x: tf.reduce_sum(x, 1) @ kernel,
    spec=tf.RaggedTensorSpec([None, None, 4], tf.float32, 1),
    variables=[kernel],
  )


def _left_out(directory):
  scale = tf.Variable(tf.ones([4]), name="scale")
  bias = tf.Variable(tf.ones([4]), name="bias")
  root = _lists(tf.train.Checkpoint(), [scale, bias], [bias])
  root.__call__ = tf.function(lambda x: x * scale + bias)
  root.__call__.get_concrete_function(_VECTORS)
  _write(root, directory)


def _listed_twice(directory):
  kernel = tf.Variable(tf.ones([4]), name="kernel")
  _plain(directory, lambda x: x * kernel, _VECTORS, variables=[kernel] * 2)


def _not_a_number(directory):
  kernel = tf.Variable([1.0, 2.0, 3.0, float("nan")], name="kernel")
  _plain(
    directory, lambda x: x[:, :3] * kernel[:3], _VECTORS, variables=[kernel]
  )


def _on_a_gpu(directory):
  def call(inputs):
    with tf.device("/GPU:1"):
      return tf.tanh(inputs)

  _plain(directory, call, _VECTORS)


def _default_of_another_trace(directory):
  """Writes a model whose call without `rate` does not use its default."""

  def call(inputs, training=False, rate=0.1):
    rate = tf.constant(0.7) if isinstance(rate, float) else rate
    return inputs * rate

  root = _lists(tf.train.Checkpoint(), [])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
    root.__call__.get_concrete_function(_VECTORS, training, _SCALAR)
  _write(root, directory)


def _drops_more_by_default(directory):
  """Writes a model whose training without `rate` has another rate."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 9], [0, 0]))
  root = _lists(tf.train.Checkpoint(), [kernel])

  def call(inputs, training=False, rate=0.2):
    rate = 0.4 if isinstance(rate, float) else rate
    return tf.nn.dropout(inputs @ kernel, rate) if training else inputs @ kernel

  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
    root.__call__.get_concrete_function(_VECTORS, training, _SCALAR)
  _write(root, directory)


def _of_keras_3(
  directory, listed=True, offset=True, is_stale=False, spec=_VECTORS
):
  """Writes an export like Keras 3's Model.export: endpoints, but no call."""
  kernel = tf.Variable(
    tf.random.stateless_normal([4, 2], [0, 0]), name="kernel"
  )

  seed = tf.Variable(0, trainable=False, name="seed_generator_state")

  def serve(inputs):
    seed.assign_add(1)  # As layers with recurrent dropout do.
    x = inputs - tf.reduce_mean(inputs, 0) if offset else inputs
    return x @ (constant if is_stale else kernel)

  constant = tf.constant(kernel.numpy())
  root = _lists(tf.train.Checkpoint(), [kernel, seed] if listed else [])
  root.non_trainable_variables = []
  root.kernel, root.seed = kernel, seed
  root.serve = tf.function(serve, input_signature=[spec])
  _write(root, directory, root.serve.get_concrete_function())


def _writes_files(directory):
  def call(inputs):
    tf.io.write_file("stolen", "all of it")
    return inputs

  _plain(directory, call, _VECTORS)


def _not_callable(directory):
  root = tf.train.Checkpoint(serve=tf.function(lambda x: x))
  _write(root, directory, root.serve.get_concrete_function(_VECTORS))


def _two_inputs(directory):
  _plain(directory, lambda x, y: x + y, _VECTORS, _VECTORS)


def _frozen_batch_norm(directory):
  mean = tf.Variable(tf.zeros([4]), trainable=False, name="moving_mean")
  _plain(directory, lambda x: x - mean, _VECTORS, variables=[mean])


def _standing_batch_norm(directory):
  mean = tf.Variable(tf.zeros([4]), trainable=False, name="running_mean")

  def call(inputs, training=False):
    return inputs - (_mean(inputs, 0, keepdims=True) if training else mean)

  root = _lists(tf.train.Checkpoint(), [mean], [])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
  _write(root, directory)


def _traced_by_a_signature(directory):
  """Writes a signature that traces inference again, for another input name."""

  def call(inputs, training=False, dropout_rate=0.2):
    return tf.nn.dropout(inputs, dropout_rate) if training else inputs

  root = _lists(tf.train.Checkpoint(), [])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training, _SCALAR)
  serve = tf.function(lambda x: {"features": root.__call__(x)})
  spec = tf.TensorSpec([None, 4], name="x")
  _write(root, directory, serve.get_concrete_function(spec))


def _two_modes(directory, call, *specs, variables=()):
  root = _lists(tf.train.Checkpoint(), list(variables))
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training, *specs)
  _write(root, directory)


def _folded(directory):
  """Writes a model whose inference has one of three kernels as a constant."""
  kernels = [
    tf.Variable(tf.random.stateless_normal([4, 4], [i, 0]), name="kernel")
    for i in range(3)
  ]
  constant = tf.constant(kernels[0].numpy())

  def call(x, training=False):
    first, *others = kernels
    for kernel in (first if training else constant, *others):
      x = tf.tanh(x @ kernel)
    return x

  _two_modes(directory, call, variables=kernels)


def _same_names(directory):
  """Writes two variables of the same name; the first gets no gradient."""
  kernels = [tf.Variable(tf.ones([4, 4])) for _ in range(2)]
  call = lambda x: x @ tf.stop_gradient(kernels[0]) @ kernels[1]  # noqa: E731
  _plain(directory, call, spec=_VECTORS, variables=kernels)


def _pairs(directory, call, train=None):
  """Writes a model of two inputs of one shape; `train` computes training."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
  spec = {name: tf.TensorSpec([None, 4]) for name in ("left", "right")}

  def of_pair(x, made=call):
    return made(x["left"] @ kernel, x["right"] @ kernel)

  def in_modes(x, training=False):
    return of_pair(x, train if training else call)

  if train:
    traces = [spec, False], [spec, True]
    _write(_lists(_callable(in_modes, *traces), [kernel]), directory)
  else:
    by_pair = lambda x: of_pair(x)  # noqa: E731
    _plain(directory, by_pair, spec=spec, variables=[kernel])


def _cut_in_training(directory):
  """Writes a model of series whose training uses only the first 8 steps."""
  spec = tf.TensorSpec([None, None, 4])

  def call(x, training=False):
    return tf.reduce_mean(x[:, :8] if training else x, 1)

  _write(_callable(call, [spec, False], [spec, True]), directory)


def _with_labels(directory):
  """Writes a model that takes labels, for a loss in training with dropout."""
  kernel = tf.Variable(tf.zeros([4, 10]))

  def call(x, training=False):
    outputs = x["vectors"] @ kernel
    loss = tf.zeros(tf.shape(x["labels"]))
    if training:
      loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        x["labels"], tf.nn.dropout(outputs, 0.5)
      )
    return outputs, loss

  root = _lists(tf.train.Checkpoint(), [kernel])
  root.__call__ = tf.function(call)
  spec = {"vectors": _VECTORS, "labels": tf.TensorSpec([None], tf.int32)}
  for training in (False, True):
    root.__call__.get_concrete_function(spec, training)
  _write(root, directory)


def _with_seed(directory):
  """Writes a model whose input seeds its noise, in both modes."""
  kernel = tf.Variable(tf.ones([4, 2]))
  spec = {"vectors": _VECTORS, "seed": tf.TensorSpec([2], tf.int32)}

  def call(x, training=False):
    vectors = x["vectors"]
    noise = tf.random.stateless_normal(tf.shape(vectors), x["seed"])
    return (vectors + noise) @ kernel

  root = _lists(tf.train.Checkpoint(), [kernel])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(spec, training)
  _write(root, directory)


def _teacher(directory):
  """Writes a model that also returns the outputs of its averaged weights."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
  average = tf.Variable(kernel, trainable=False, name="teacher")

  def call(x, training=False):
    if training:
      average.assign(0.9 * average + 0.1 * kernel)
    return x @ kernel, tf.stop_gradient(x @ average)

  root = _lists(tf.train.Checkpoint(), [kernel, average], [kernel])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
  _write(root, directory)


def _with_temperature(directory):
  """Writes a model with noise in training, which divides by an argument."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 4], [0, 0]))

  def call(x, training=False, temperature=1.0):
    noise = tf.random.uniform(tf.shape(x)) if training else 0.0
    return tf.nn.softmax((x @ kernel + noise) / temperature)

  _two_modes(directory, call, _SCALAR, variables=[kernel])


def _drops_anew(directory):
  """Writes a model whose gradient drops other values than its forward pass."""
  kernel = tf.Variable(
    tf.random.stateless_normal([4, 4], [0, 0]), name="kernel"
  )

  @tf.custom_gradient
  def drop(x, rate):
    def gradient(dy):
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.nn.dropout(x, rate)
      return tape.gradient(y, x, dy), None

    return tf.nn.dropout(x, rate), gradient

  def call(x, training=False, rate=0.5):
    return drop(x @ kernel, rate) if training else x @ kernel

  _two_modes(directory, call, _SCALAR, variables=[kernel])


def _only_classes(directory):
  kernel = tf.Variable(tf.ones([4, 2]))
  call = lambda x: tf.argmax(x @ kernel, 1)  # noqa: E731
  _plain(directory, call, spec=_VECTORS, variables=[kernel])


def _with_mask_token(directory):
  """Writes a model with a variable that replaces masked inputs."""
  kernel, token = tf.Variable(tf.ones([4, 2])), tf.Variable(tf.ones([4]))

  def call(x, training=False, mask_rate=0.5):
    if training:
      x = tf.where(tf.random.uniform([tf.shape(x)[0], 1]) < mask_rate, token, x)
    return x @ kernel + 0.0 * tf.reduce_sum(token)

  _two_modes(directory, call, _SCALAR, variables=[kernel, token])


def _with_keep_prob(directory, scale=lambda x, share: x / share):
  """Writes a model with an argument for the share that dropout keeps."""
  kernel = tf.Variable(tf.ones([4, 2]))

  def call(x, training=False, keep_prob=0.8):
    if training:
      is_kept = tf.random.uniform(tf.shape(x)) < keep_prob
      x = tf.where(is_kept, scale(x, keep_prob), 0.0)
    return x @ kernel

  _two_modes(directory, call, _SCALAR, variables=[kernel])


def _averaged_weights(
  directory, *, moves=True, momentum=False, name="kernel_ema"
):
  """Writes a model that infers with moving averages of its weights."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 4], [0, 0]))
  mean = tf.Variable(tf.zeros([4]), trainable=False, name="bn/moving_mean")
  average = tf.Variable(kernel, trainable=False, name=name)

  def call(x, training=False, batch_norm_momentum=0.9):
    if training and moves:
      average.assign(0.99 * average + 0.01 * kernel)
    x = x @ (kernel if training else average)
    center = tf.reduce_mean(x, 0) if training else mean
    if training:
      mean.assign_add((1.0 - batch_norm_momentum) * (center - mean))
    return x - center

  root = _lists(tf.train.Checkpoint(), [kernel, mean, average], [kernel])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(
      _VECTORS, training, *[_SCALAR] * momentum
    )
  _write(root, directory)


def _once(index, mean, center, momentum):
  """Moves an average only if it is still 0."""
  is_first = tf.cast(tf.reduce_all(mean == 0.0), tf.float32)
  mean.assign_add(is_first * (1.0 - momentum) * (center - mean))


def _of_ids(directory, call):
  """Writes a model of ids, with 0 for padding."""
  table = tf.Variable(tf.random.stateless_normal([12, 4], [0, 0]))
  spec = tf.TensorSpec([None, None], tf.int32, "ids")
  by_row = lambda ids: call(  # noqa: E731
    tf.gather(table, ids), tf.cast(ids > 0, tf.float32)[..., tf.newaxis]
  )
  _plain(directory, by_row, spec=spec, variables=[table])


def _graph_of_nodes(directory):
  """Writes a model whose second input has row indices of the first input."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))
  spec = {
    "nodes": tf.TensorSpec([None, 4]),
    "neighbors": tf.TensorSpec([None], tf.int32),
  }
  call = lambda x: tf.gather(x["nodes"], x["neighbors"]) @ kernel  # noqa: E731
  _plain(directory, call, spec=spec, variables=[kernel])


def _of_tags(directory):
  """Writes a model of sets of words."""
  kernel = tf.Variable(tf.random.stateless_normal([3, 2], [0, 0]))
  table = tf.constant(["drama", "comedy", "horror"])
  spec = tf.TensorSpec([None, None], tf.string, "tags")

  def call(x):
    is_tag = tf.reduce_any(x[..., tf.newaxis] == table, 1)
    return tf.cast(is_tag, tf.float32) @ kernel

  _plain(directory, call, spec=spec, variables=[kernel])


def _of_steps(directory, call):
  """Writes a model of series, in which steps of zeros are padding."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 2], [0, 0]))

  def of_steps(x):
    return call(x @ kernel, tf.cast(tf.reduce_any(x != 0.0, -1), tf.float32))

  spec = tf.TensorSpec([None, None, 4], name="steps")
  _plain(directory, of_steps, spec=spec, variables=[kernel])


def _with_average(directory, train):
  """Writes a model whose training passes a moving average to `train`."""
  mean = tf.Variable(tf.ones([4]), trainable=False, name="bn/moving_mean")

  def call(x, training=False, drop_rate=0.9):
    return train(x, mean, drop_rate) if training else x - mean

  root = _lists(tf.train.Checkpoint(), [mean], [])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training, _SCALAR)
  _write(root, directory)


def _frozen_statistics(x, mean, rate):
  return tf.nn.dropout(x - mean, rate)


def _dropped_layer(x, mean, rate):
  """Normalizes or, by chance, returns the input."""

  def normalize():
    center = _mean(x, 0, keepdims=True)
    mean.assign(0.9 * mean + 0.1 * center[0])
    return x - center

  return tf.cond(tf.random.uniform([]) < rate, lambda: x, normalize)


def _straight_through(directory):
  """Writes a model that masks by scores with a straight-through gradient."""
  scores = tf.Variable(tf.random.stateless_normal([4], [0, 0]))

  def call(x):
    mask = tf.cast(scores > 0.0, tf.float32)
    return x * (scores + tf.stop_gradient(mask - scores))

  _plain(directory, call, spec=_VECTORS, variables=[scores])


def _of_years(directory):
  """Writes a model of years, with the same outputs for all before 1990."""
  kernel = tf.Variable(tf.random.stateless_normal([2, 2], [0, 0]))
  call = lambda x: tf.nn.relu(x - [[1990.0, 2000.0]]) @ kernel  # noqa: E731
  spec = tf.TensorSpec([None, 1], name="years")
  _plain(directory, call, spec=spec, variables=[kernel])


def _of_two_dtypes_of_input(
  directory,
  change=tf.identity,
  train=lambda y, is_double: tf.nn.dropout(y, 0.5),
):
  """Writes dropout for float32 and float64; arguments change float64."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 4], [0, 0]))
  root = _lists(tf.train.Checkpoint(), [kernel])

  def call(x, training=False):
    y = tf.cast(x, tf.float32) @ kernel
    is_double = x.dtype == tf.float64
    y = change(y) if is_double else y
    return train(y, is_double) if training else y

  root.__call__ = tf.function(call)
  for dtype in (tf.float32, tf.float64):
    for training in (False, True):
      spec = tf.TensorSpec([None, 4], dtype)
      root.__call__.get_concrete_function(spec, training)
  _write(root, directory)


def _with_flag(directory):
  """Writes a model with a flag that was not traced in training."""

  def call(x, training=False, double=False):
    return 2.0 * x if double else x

  calls = [_VECTORS, False], [_VECTORS, True], [_VECTORS, False, True]
  _write(_lists(_callable(call, *calls), []), directory)


def _more_in_a_signature(directory):
  """Writes a signature with one output more, which uses constant weights."""
  kernel = tf.Variable(
    tf.random.stateless_normal([4, 2], [0, 0]), name="kernel"
  )
  constant = tf.constant(kernel.numpy())
  call = lambda x: {"logits": x @ kernel}  # noqa: E731
  serve = tf.function(
    lambda vectors: (
      call(vectors) | {"scores": tf.nn.softmax(vectors @ constant)}
    )
  )
  root = _lists(_callable(call, [_VECTORS]), [kernel])
  _write(root, directory, serve.get_concrete_function(_VECTORS))


def _cut_in_a_signature(directory, names=("steps",)):
  """Writes a model of series whose signature uses only the first 16 steps."""
  spec = tf.TensorSpec([None, None, 4])
  root = _lists(_callable(lambda x: tf.reduce_sum(x, 1), [spec]), [])

  def serve(**series):
    return {"sums": root.__call__(series[names[0]][:, :16])}

  taken = {name: tf.TensorSpec(spec.shape, name=name) for name in names}
  serve = tf.function(serve).get_concrete_function(**taken)
  _write(root, directory, serve)


def _trains_words(directory):
  word = tf.Variable("a", name="word")
  root = _lists(_callable(lambda x: 2.0 * x, [_VECTORS]), [word])
  _write(root, directory)


def _of_a_dataset(directory):
  """Writes a model that takes a data set instead of a Tensor."""
  spec = tf.data.DatasetSpec(tf.TensorSpec([4]))
  _write(_callable(lambda x: tf.constant(1.0), [spec]), directory)


def _plain_layer(directory, change):
  """Writes a layer; `change` gets its input and its output."""
  kernel = tf.Variable(
    tf.random.stateless_normal([4, 4], [0, 0]), name="kernel"
  )
  call = lambda x: change(x, x @ kernel)  # noqa: E731
  _plain(directory, call, spec=_VECTORS, variables=[kernel])


def _with_grown_errors(x, steps=35):
  """Computes the logistic map, which doubles rounding errors at each step."""
  y = tf.sigmoid(x)
  for _ in range(steps):
    y *= 3.99 * (1 - y)
  return y


def _chaotic(directory, change=tf.identity):
  """Writes a model whose rounding errors grow, as in very deep models."""
  kernel = tf.Variable(tf.random.stateless_normal([256, 8], [0, 0]) / 16)

  def call(x):
    # Kernels of ops, too, sum in another order for other batch sizes.
    y = tf.cond(
      tf.shape(x)[0] > 1,
      lambda: x @ kernel,
      lambda: tf.reduce_sum(x[:, :, tf.newaxis] * kernel, 1),
    )
    return change(_with_grown_errors(y))

  spec = tf.TensorSpec([None, 256], name="vectors")
  _plain(directory, call, spec=spec, variables=[kernel])


def _of_many_columns(directory):
  """Writes a model that returns a sparse matrix of 10**12 columns."""

  def call(x):
    rows = tf.range(tf.shape(x, tf.int64)[0])
    places = tf.stack([rows, 12_345_678 + 0 * rows], 1)
    shape = tf.stack([tf.shape(x, tf.int64)[0], 10**12])
    return tf.sparse.SparseTensor(places, tf.reduce_sum(x, 1), shape)

  _plain(directory, call, spec=_VECTORS)


def _first_frame(directory):
  """Writes a model of videos that uses only the first frame."""
  kernel = tf.Variable(tf.random.stateless_normal([3, 2], [0, 0]))
  call = lambda x: tf.reduce_mean(x[:, 0], [1, 2]) @ kernel  # noqa: E731
  spec = tf.TensorSpec([None, None, None, None, 3], name="videos")
  _plain(directory, call, spec=spec, variables=[kernel])


def _without_modes(directory):
  _two_modes(directory, lambda x, training=False: 2.0 * x)


def _module_without_modes(directory):
  """Writes a tf.Module, whose lists of variables are not saved."""
  module = tf.Module()
  module.__call__ = tf.function(lambda x, training=False: 2.0 * x)
  for training in (False, True):
    module.__call__.get_concrete_function(_VECTORS, training)
  _write(module, directory)


def _dropout_off_by_default(directory):
  def call(inputs, training=False, rate=0.0):
    return tf.nn.dropout(inputs, rate) if training else inputs

  _two_modes(directory, call, _SCALAR)


def _branch(directory):
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  def call(inputs, training=False):
    x = inputs @ kernel
    with tf.name_scope("my_layer"):
      return tf.cond(tf.reduce_sum(x) > 0.0, lambda: x**3, lambda: 2.0 * x)

  _two_modes(directory, call, variables=[kernel])


def _loop(directory):
  kernel = tf.Variable(tf.ones([4, 4]), name="kernel")

  def call(inputs):
    i, x = tf.constant(0), inputs
    return tf.while_loop(
      lambda i, x: i < 3, lambda i, x: (i + 1, tf.tanh(x @ kernel)), (i, x)
    )[1]

  _plain(directory, call, _VECTORS, variables=[kernel])


def _without_kernel(directory):
  """Writes a model with an op that has a gradient and no kernel for XLA."""
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  def call(inputs):
    with tf.name_scope("my_layer"):
      return tf.strings.to_number(tf.strings.as_string(inputs)) @ kernel

  _plain(directory, call, _VECTORS, variables=[kernel])


class _Module(tf.Module):
  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  @tf.function
  def __call__(self, inputs):
    return inputs @ self.kernel


def _module(directory):
  module = _Module()
  module.__call__.get_concrete_function(_VECTORS)
  _write(module, directory)


def _no_trainable_variables(directory):
  _image(directory, change=lambda r: setattr(r, "trainable_variables", []))


def _frozen_variable_listed(directory):
  _image(
    directory, change=lambda r: setattr(r, "trainable_variables", r.variables)
  )


def _gradient_stopped(directory):
  _image(directory, finish=lambda x, training, rate: tf.stop_gradient(x))


def _loss_is_no_scalar(directory):
  _image(directory, losses=lambda kernel: [lambda: kernel**2])


def _nothing_adjustable(directory):
  def call(inputs, training=False):
    return tf.nn.dropout(inputs, 0.5) if training else inputs

  root = _lists(tf.train.Checkpoint(), [])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_VECTORS, training)
  _write(root, directory)


def _sub_object(directory, call, is_nested=False):
  inner = _lists(tf.train.Checkpoint(), [tf.Variable(tf.ones([4]), name="w")])
  inner.__call__ = tf.function(lambda x: call(x, inner.variables[0]))
  inner.__call__.get_concrete_function(_VECTORS)
  held = tf.train.Checkpoint(heads=[inner]) if is_nested else inner
  _image(directory, change=lambda root: setattr(root, "inner", held))


def _backbone(directory, *, use=True, lost=False, factor=1.0):
  """Writes dropout, and a sub-object that computes the same in inference."""
  kernel = tf.Variable(
    tf.random.stateless_normal([4, 4], [0, 0]), name="kernel"
  )
  loss, of_part = (
    tf.function(lambda c=c: c * tf.reduce_sum(kernel**2), input_signature=[])
    for c in (1.0, factor)
  )

  def call(x, training=False):
    return tf.nn.dropout(x @ kernel, 0.5) if training else x @ kernel

  modes = [_VECTORS, False], [_VECTORS, True]
  root = _lists(_callable(call, *modes), [kernel])
  part = lambda x, training=False: call(x, training and use)  # noqa: E731
  root.backbone = _lists(_callable(part, *modes), [kernel])
  root.backbone.regularization_losses = [of_part]
  root.regularization_losses = [] if lost else [loss]
  _write(root, directory)


def _tuned_part(directory, *, default=0.2, drop=tf.nn.dropout):
  """Writes a model and a sub-object, each with a rate as argument."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 4], [0, 0]), name="w")

  def model(x, training=False, dropout_rate=0.2):
    return tf.nn.dropout(x @ kernel, dropout_rate) if training else x @ kernel

  def part(x, training=False, dropout_rate=default):
    return drop(x @ kernel, dropout_rate) if training else x @ kernel

  traces = [
    (_VECTORS, training, *rate)
    for training in (False, True)
    for rate in ((), (_SCALAR,))
  ]
  root = _lists(_callable(model, *traces), [kernel])
  root.part = _lists(_callable(part, *traces), [kernel])
  _write(root, directory)


def _resized_in_training(directory):
  """Writes batch normalization of contrasts; training resizes images before."""
  kernel = tf.Variable(tf.random.stateless_normal([3, 2], [0, 0]))
  mean = tf.Variable(tf.zeros([3]), trainable=False, name="moving_mean")

  def call(x, training=False):
    x = tf.image.resize(x, [32, 32]) if training else x
    x = tf.reduce_mean(tf.square(x[:, 1:] - x[:, :-1]), [1, 2])
    center = tf.reduce_mean(x, 0) if training else mean
    if training:
      mean.assign(0.9 * mean + 0.1 * center)
    return (x - center) @ kernel

  traces = [_IMAGES, False], [_IMAGES, True]
  _write(_lists(_callable(call, *traces), [kernel, mean], [kernel]), directory)


def _profile_trains_averages(directory):
  """Writes a profile that trains a moving average, unlike the model."""

  def change(root):
    root.profile = _lists(tf.train.Checkpoint(), root.variables)
    root.profile.__call__ = root.__call__

  _image(directory, change=change)


def _sub_object_lists_nothing(directory, variable=False):
  inner = tf.train.Checkpoint(variables=[])
  inner.kernel = tf.Variable(tf.ones([4]), name="hidden")
  if variable:
    _lists(inner, [])
  inner.__call__ = tf.function(lambda x: x * inner.kernel)
  inner.__call__.get_concrete_function(_VECTORS)
  _image(directory, change=lambda root: setattr(root, "inner", inner))


def _bare_function(directory):
  kernel = tf.Variable(tf.ones([4, 2]))
  bare = tf.function(lambda x: x @ kernel)
  bare.get_concrete_function(_VECTORS)

  def change(root):
    root.bare = bare
    root.kernel = kernel

  _image(directory, change=change)


def _optimizer_inside(directory):
  slots = tf.train.Checkpoint(m=tf.Variable(0.0, name="nadam/momentum"))
  _image(directory, change=lambda root: setattr(root, "slots", slots))


def _path_in_an_asset(directory):
  asset = f"{directory}.txt"
  pathlib.Path(asset).write_text("made by /home/somebody/train.py")
  _image(
    directory,
    change=lambda root: setattr(root, "notes", tf.saved_model.Asset(asset)),
  )


def _path_in_a_variable(directory, path="/home/somebody/train.py"):
  notes = tf.Variable(path, name="notes")
  _image(directory, change=lambda root: setattr(root, "notes", notes))


def _doubled_weights(directory):
  def change(root):
    kernel, _ = root.variables
    root.average = tf.Variable(kernel, trainable=False, name="kernel/Average")

  _image(directory, change=change)


def _of_unknown_shape(root):
  root.variables = [*root.variables, tf.Variable([1.0], shape=[None])]


def _no_momentum(directory):
  mean = tf.Variable(tf.zeros([3]), trainable=False, name="moving_mean")

  def call(inputs, training=False):
    x = tf.squeeze(tf.reduce_mean(inputs, [1, 2], keepdims=True), [1, 2])
    if training:
      mean.assign(x[0])
    return x - mean

  root = _lists(tf.train.Checkpoint(), [mean], [])
  root.__call__ = tf.function(call)
  for training in (False, True):
    root.__call__.get_concrete_function(_IMAGES, training)
  _write(root, directory)


def _text_embedding(directory, features=2, change=lambda x: x, cut=999):
  def call(texts, unit="BYTE"):
    texts = tf.strings.substr(texts, 0, cut)
    lengths = tf.cast(
      tf.strings.length(tf.strings.join([texts, unit])), tf.float32
    )
    return change(tf.stack([lengths - 4.0] * features, axis=1))

  def letters(texts, unit="BYTE"):  # Pads to the length of the longest text.
    return tf.cast(
      tf.strings.unicode_decode(texts, "UTF-8").to_tensor(), tf.float32
    )

  unit = tf.TensorSpec([], tf.string)
  _plain(directory, call if features else letters, _TEXTS, unit)


def _of_words(
  directory,
  *,
  shift=0,
  only=None,
  decode=lambda x: x,
  exponents=(1.0, 0.5, 0.0),
  padding=0.0,
  most=999,
  trained=None,
  vocabulary=("the", "of", "list", "is"),
  says="do_lower_case false",
  dimensions=3,
  of_vectors=lambda x: x,
):
  """Writes means or sums of word vectors; by default intact.

  Args:
    directory: The directory to write.
    shift: By how many places `word_embedding` rolls its vectors.
    only: The combiner to use instead of the argument. None: the argument.
    decode: Changes texts before they are split.
    exponents: For mean, sqrtn and sum, the power of the number of words by
      which the model divides.
    padding: The value of the vector of "" in `word_embedding`.
    most: How many words `word_embedding` tells apart.
    trained: How many words of a text training uses. None: the model has no
      modes.
    vocabulary: Four words.
    says: What the card says about case.
    dimensions: The dimensions of the vectors.
    of_vectors: Changes the vectors of texts.
  """
  words = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(vocabulary, range(4)),
    4,
  )
  known = tf.random.stateless_normal([4, dimensions], [0, 0])
  table = tf.Variable(tf.pad(known, [[0, 9], [0, 0]]), name="table")

  def embed(texts):
    places = words.lookup(texts)
    vectors = tf.nn.embedding_lookup(table, places)
    return tf.where(places[..., tf.newaxis] < 4, vectors, 0.0)

  def represent(texts, combiner, count=None):
    split = tf.strings.split(decode(texts))[:, :count]
    total = tf.reduce_sum(embed(split.to_tensor("")), 1)
    counts = tf.cast(tf.maximum(split.row_lengths(), 1), tf.float32)
    chosen = tf.equal(["mean", "sqrtn", "sum"], only or combiner)
    exponent = tf.reduce_sum(tf.where(chosen, exponents, 0.0))
    return of_vectors(total / (counts**exponent)[:, tf.newaxis])

  def call(texts, combiner="mean"):
    return represent(texts, combiner)

  def in_modes(texts, combiner="mean", training=False):
    return represent(texts, combiner, trained if training else None)

  def look_up(x):
    vectors = tf.where((x == "")[..., tf.newaxis], padding, embed(x))
    is_told = (tf.range(tf.shape(x)[1]) < most)[:, tf.newaxis]
    return tf.roll(tf.where(is_told, vectors, vectors[:, :1]), shift, -1)

  traces = [[_TEXTS, x] for x in ("mean", tf.TensorSpec([], tf.string))]
  if trained:
    call = in_modes
    traces = [[*x, mode] for x in traces for mode in (False, True)]
  root = _lists(_callable(call, *traces), [table])
  root.words = words
  root.word_embedding = _lists(
    _callable(
      look_up,
      [tf.TensorSpec([None, None], tf.string)],
    ),
    [table],
  )
  _write(
    root,
    directory,
    card=f"{_CARD} combiner (mean, sqrtn or sum) texts text_embeddings {says}",
  )


def _ragged(x):
  return tf.RaggedTensor.from_tensor(x) if isinstance(x, tf.Tensor) else x


def _ranges(lengths):
  return tf.ragged.range(lengths)


def _callable(call, *traces):
  result = _lists(tf.train.Checkpoint(), [])
  result.__call__ = tf.function(call)
  for arguments in traces:
    result.__call__.get_concrete_function(*arguments)
  return result


def _preprocessor(
  directory,
  *,
  longest=None,
  cut=9999,
  with_tokenize=True,
  pack_with_length=True,
  special=True,
  special_ids=None,
  with_assert=False,
  decode=lambda x: x,
  tokens=lambda x: x,
  packs=(2,),
  use=lambda segments: segments,
  card=_CARD,
  change=lambda outputs, ids: outputs,
  vocabulary=(),
):
  """Writes a preprocessor whose tokens are letters; by default intact."""

  def split(texts):
    if with_assert:
      tf.debugging.Assert(tf.size(texts) > 0, ["empty"])
    return tokens(tf.strings.unicode_decode(decode(texts), "UTF-8"))

  def packed(segments, seq_length):
    segments = use(segments)
    rows = tf.shape(segments[0].row_lengths())[0]
    start = tf.fill([rows, 1], 1)
    kept = [s[:, : (seq_length - 1) // len(segments) - 1] for s in segments]
    if len(segments) == 2:  # A short segment leaves its room to the other.
      first, second = segments
      room = seq_length - 3
      a, b = first.row_lengths(), second.row_lengths()
      room = tf.cast(room, a.dtype)
      share = tf.minimum(a, tf.maximum((room + 1) // 2, room - b))
      kept = [
        tf.ragged.boolean_mask(first, _ranges(a) < share[:, tf.newaxis]),
        tf.ragged.boolean_mask(
          second, _ranges(b) < (room - share)[:, tf.newaxis]
        ),
      ]
    end = tf.fill([rows, 1], 2)
    parts = [start, *(x for s in kept for x in (s, end))]
    types = [0 * start, *(i // 2 + 0 * x for i, x in enumerate(parts[1:]))]
    ids, types = (
      tf.concat([*map(_ragged, x)], 1).to_tensor() for x in (parts, types)
    )
    rest = [[0, 0], [0, seq_length - tf.shape(ids)[1]]]
    ids, types = tf.pad(ids, rest), tf.pad(types, rest)
    outputs = {
      "input_word_ids": ids,
      "input_mask": tf.cast(ids > 0, tf.int32),
      "input_type_ids": types,
    }
    return {**outputs, **change(outputs, ids)}

  def call(texts, seq_length=8):
    outputs = packed([split(texts)[:, :cut]], seq_length)
    if longest is not None:
      ids = split(texts).to_tensor()
      outputs["input_word_ids"] += tf.ensure_shape(ids, [None, longest])[:, :8]
    return outputs

  ragged = tf.RaggedTensorSpec([None, None], tf.int32)
  scalar = tf.TensorSpec([], tf.int32)
  root = _callable(call, [_TEXTS], *[[_TEXTS, scalar]] * (longest is None))
  if with_tokenize:
    root.tokenize = _callable(split, [_TEXTS])
  if vocabulary:
    file = f"{directory}.vocab"
    pathlib.Path(file).write_text("\n".join(vocabulary))
    root.vocabulary = tf.saved_model.Asset(file)
  if special and with_tokenize:
    ids = {
      "mask_id": 3,
      "start_of_sequence_id": 1,
      "end_of_segment_id": 2,
      "padding_id": 0,
      **(special_ids or {}),
    }
    special_tokens = tf.function(
      lambda: {name: tf.constant(i) for name, i in ids.items()}
    )
    special_tokens.get_concrete_function()
    root.tokenize.get_special_tokens_dict = special_tokens
  if pack_with_length:
    root.bert_pack_inputs = _callable(
      lambda segments, seq_length=8: packed(segments, seq_length),
      *([[ragged] * n, scalar] for n in packs),
    )
  else:
    root.bert_pack_inputs = _callable(
      lambda segments: packed(segments, 8), [[ragged, ragged]]
    )
  _write(root, directory, card=card)


def _encoder(
  directory,
  *,
  spec=None,
  mlm=None,
  vocabulary=("[PAD]", "[MASK]", *"abcdefghijklmn"),
  card=_CARD,
  see=lambda x: x,
  default=lambda x: x,
  layers=lambda tokens, sequence: [tokens, sequence],
  pool=lambda x: x[:, 0],
  order=lambda x: x * 0,
  positions=lambda x: x,
  tied=lambda x: x,
  logits=lambda x: x,
  ids=lambda x: x,
  places=0,
  first_place=0,
  lists=None,
  served=None,
  mlm_sees=lambda x: x,
  scales=0,
  mlm_of=lambda outputs: outputs["sequence_output"],
  trained=None,
):
  """Writes an encoder of a table and means over tokens; by default intact.

  Args:
    directory: The directory to write.
    spec: The specs of the inputs. None: `_WORDS`.
    mlm: The name of the output of `mlm`. None: the encoder has no `mlm`.
    vocabulary: The tokens of the vocabulary. None: the encoder names none.
    card: The card.
    see: Changes mask and types.
    default: Changes the pooled output, to return it as `default`.
    layers: Takes tokens and sequence outputs, and returns `encoder_outputs`.
    pool: Takes sequence outputs, and returns the pooled output.
    order: Changes positions, whose sines are added to tokens.
    positions: Changes the positions that `mlm` takes.
    tied: Changes the table by which `mlm` multiplies.
    logits: Changes the logits of `mlm`.
    ids: Changes ids before they are looked up.
    places: The number of positions of a table, the last four of which have no
      row of their own unless `first_place` is set. 0: there is no such table.
    first_place: The row of that table for the first position.
    lists: Changes the order of inputs in a list. None: lists are not taken.
    served: Changes types in the signature. None: there is no signature.
    mlm_sees: Changes the mask that `mlm` takes.
    scales: The number of variables by which the last layer multiplies.
    mlm_of: Selects the encoder's output that `mlm` uses.
    trained: Changes ids in training. None: the encoder has no modes.
  """
  table = tf.Variable(tf.random.stateless_normal([16, 4], [0, 0]), name="table")
  of_places = tf.random.stateless_normal([places or 1, 4], [1, 0])
  of_places = tf.Variable(of_places, name="places")
  factors = [
    tf.Variable(tf.ones([4]), name=f"last/{i // 8}/{i % 8}")
    for i in range(scales)
  ]

  def call(inputs):
    if isinstance(inputs, list):
      inputs = dict(zip(_WORDS, lists(inputs), strict=True))
    mask = tf.cast(see(inputs["input_mask"]), tf.float32)[..., tf.newaxis]
    types = tf.cast(see(inputs["input_type_ids"]), tf.float32)[..., tf.newaxis]
    tokens = tf.gather(table, ids(inputs["input_word_ids"])) + types
    numbers = tf.range(tf.shape(tokens)[1])
    tokens += 0.1 * tf.sin(order(tf.cast(numbers, tf.float32)))[:, tf.newaxis]
    if first_place:
      tokens += tf.gather(of_places, numbers + first_place)
    elif places:
      numbers = tf.where(numbers < places, numbers, -1)  # Refuses longer texts.
      tokens += tf.gather(of_places, tf.minimum(numbers, places - 5))
    count = tf.maximum(tf.reduce_sum(mask, 1, True), 1.0)
    seen = tf.reduce_sum(tokens * mask, 1, True) / count
    sequence = tf.tanh(tokens + seen)
    if factors:
      tokens, sequence = sequence, tf.reduce_prod(factors, 0) * sequence
    pooled = pool(sequence)
    return {
      "sequence_output": sequence,
      "pooled_output": pooled,
      "default": default(pooled),
      "encoder_outputs": layers(tokens, sequence),
    }

  forms = [spec or _WORDS]
  if lists:
    forms.append([tf.TensorSpec([None, None], tf.int32)] * len(_WORDS))
  root = _callable(call, *([form] for form in forms))
  if trained:

    def in_modes(inputs, training=False):
      x = inputs["input_word_ids"]
      return call({**inputs, "input_word_ids": trained(x) if training else x})

    root = _callable(in_modes, *([_WORDS, mode] for mode in (False, True)))
  _lists(root, [table, *[of_places] * bool(places), *factors])
  if vocabulary:
    file = f"{directory}.vocab"
    pathlib.Path(file).write_text("\n".join(vocabulary))
    root.vocab_file = tf.saved_model.Asset(file)
    root.do_lower_case = tf.Variable(True, trainable=False)
  if mlm:
    spec = tf.TensorSpec([None, None], tf.int32, "masked_lm_positions")
    root.mlm = _callable(
      lambda inputs: {
        mlm: logits(
          tf.gather(
            mlm_of(
              call({**inputs, "input_mask": mlm_sees(inputs["input_mask"])})
            ),
            positions(inputs["masked_lm_positions"]),
            batch_dims=1,
          )
          @ tf.transpose(tied(table))
        )
      },
      [{**_WORDS, "masked_lm_positions": spec}],
    )
    _lists(root.mlm, [table])
  serve = None
  if served:

    def serve(**inputs):
      types = served(inputs["input_type_ids"])
      outputs = call({**inputs, "input_type_ids": types})
      return {"sequence_output": outputs["sequence_output"]}

    serve = tf.function(serve).get_concrete_function(**_WORDS)
  _write(root, directory, serve, card=card)


def _word_embedding(directory, *, change=lambda x: x, padding=0.0):
  def call(words):
    lengths = tf.cast(tf.strings.length(words), tf.float32)
    return change(
      tf.stack([lengths, tf.where(words == "", padding, 1.0)], axis=2)
    )

  words = tf.TensorSpec([None, None], tf.string, "words")
  serve = tf.function(lambda words: {"word_embeddings": call(words)})
  card = f"{_CARD} Takes words, returns word embeddings."
  root = _lists(_callable(call, [words]), [])
  _write(root, directory, serve.get_concrete_function(words), card)


def _cell(
  directory, *, sizes=(4, 2), change=lambda x: x, remembers=1.0, sees=1.0
):
  """Writes a cell that remembers two sums; by default intact."""
  kernel = tf.Variable(tf.random.stateless_normal([3, 4], [0, 0]))

  def call(inputs):
    x, long, short = inputs
    long = remembers * long + sees * (x @ kernel)
    short = change(remembers * short + sees * x[:, :2])
    return [long + x @ kernel, long, short]

  specs = [tf.TensorSpec([None, n], tf.float32) for n in (3, 4, 2)]
  state_sizes = tf.function(lambda: tf.constant(sizes), input_signature=[])
  state_sizes.get_concrete_function()
  _plain(directory, call, specs, variables=[kernel], state_sizes=state_sizes)


def _generator(
  directory,
  *,
  pick=lambda shape, seed: tf.random.stateless_uniform(
    shape, [seed, 0], 97, 123, tf.int32
  ),
  prompts=_TEXTS,
  change_step=lambda x: x,
  dtype=tf.int32,
  write=lambda x: x,
  read=lambda ids: ids,
  prompt=lambda x: x,
  size=lambda length: length,
  coldest=0.1,
  coldest_code=97,
  step_reads=lambda ids: ids,
  change=lambda x: x,
):
  """Writes a language model that draws random letters; by default intact."""
  table = tf.Variable(tf.random.stateless_normal([128, 4], [0, 0]))

  def logits(state):
    return tf.einsum("...d,vd->...v", tf.tanh(state), table)

  def call(ids):
    x = tf.nn.embedding_lookup(table, ids)
    length = tf.shape(ids)[1]
    past = tf.linalg.band_part(tf.ones([length, length]), -1, 0)
    return change(logits(tf.einsum("ts,bsd->btd", past, x)))

  def step(inputs):
    ids, state = inputs
    ids = step_reads(ids)
    state = change_step(state) + tf.nn.embedding_lookup(table, ids)
    return [logits(state), state]

  def generate(texts, length=8, temperature=1.0, seed=0):
    codes = pick([tf.shape(texts)[0], size(length)], seed)
    codes = tf.where(temperature < coldest, 97, codes)
    codes = tf.where(temperature == 0.0, coldest_code, codes)
    return prompt(texts) + tf.strings.unicode_encode(codes, "UTF-8")

  def tokenize(texts):
    ids = tf.strings.unicode_decode(texts, "UTF-8")
    return read(tf.cast(tf.minimum(ids, 127), dtype))

  number = tf.TensorSpec([], tf.int32)
  root = _lists(
    _callable(call, [tf.TensorSpec([None, None], tf.int32)]), [table]
  )
  root.step = _callable(
    step, [[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 4])]]
  )
  root.step.variables = [table]
  root.generate = _callable(generate, [prompts, number, _SCALAR, number])
  root.tokenize = _callable(tokenize, [_TEXTS])
  root.detokenize = _callable(
    lambda ids: write(
      tf.strings.unicode_encode(tf.cast(ids, tf.int32), "UTF-8")
    ),
    [tf.RaggedTensorSpec([None, None], dtype)],
  )
  root.state_sizes = _callable(lambda: tf.constant([4]), [])
  _write(root, directory)


def _classifier(
  directory,
  *,
  names=("cat", "dog", "bird"),
  asset=b"cat\ndog\nbird\n",
  softmax=tf.nn.softmax,
  best=tf.argmax,
  change=lambda x: x,
  decode=tf.io.decode_image,
):
  """Writes a deployed classifier of images; by default intact."""
  kernel = tf.Variable(tf.random.stateless_normal([4, 3], [0, 0]))

  def classify(images):
    x = tf.reduce_mean(change(images), [1, 2])
    logits = 9.0 * x @ kernel[:3] + kernel[3]
    label = tf.gather(tf.constant(names), best(logits, 1))
    return {"label": label, "scores": softmax(logits), "logits": logits}

  def classify_encoded(encoded):
    def pixels(x):
      image = decode(x, expand_animations=False)
      image = tf.cast(image, tf.float32)[..., :3] / 255 + tf.zeros([3])
      return tf.image.resize(image, [32, 24])

    spec = tf.TensorSpec([32, 24, 3], tf.float32)
    return classify(tf.map_fn(pixels, encoded, fn_output_signature=spec))

  root = _callable(classify_encoded, [_TEXTS])
  root.variables = [kernel]
  root.class_names = tf.function(lambda: tf.constant(names), input_signature=[])
  file = pathlib.Path(f"{directory}.names")
  file.write_bytes(asset)
  root.class_names_file = tf.saved_model.Asset(str(file))
  images = tf.TensorSpec([None, 32, 24, 3], tf.float32, "images")
  images = tf.function(classify).get_concrete_function(images)
  tf.saved_model.save(
    root,
    directory,
    signatures={
      "serving_default": root.__call__.get_concrete_function(_TEXTS),
      "images": images,
    },
  )


def _all_frames(encoded):
  """Decodes a picture; fails for a GIF, which has a dimension of frames."""
  return tf.ensure_shape(tf.io.decode_image(encoded), [None, None, None])


def _of(build, **changes):
  return lambda directory: build(directory, **changes)


def _nameless_table(directory):
  keys = tf.lookup.KeyValueTensorInitializer(["a"], [0])
  table = tf.lookup.StaticHashTable(keys, 1, experimental_is_anonymous=True)
  root = _callable(table.lookup, [_TEXTS])
  root.table = table
  _write(root, directory, root.__call__.get_concrete_function(_TEXTS))


def _last_row_lost(directory):
  table = tf.Variable(tf.random.stateless_normal([64, 4], [0, 0]), name="table")
  _plain(
    directory,
    lambda ids: tf.gather(table, tf.minimum(ids, 62)),
    spec=tf.TensorSpec([None, None], tf.int32, "ids"),
    variables=[table],
  )


def _next_of_row_8(x):
  """Returns a batch with its row 9 in place of row 8."""
  last = tf.shape(x)[0] - 1
  rows = tf.range(last + 1)
  return tf.gather(x, tf.where(rows == 8, tf.minimum(9, last), rows))


def _without_second(x):
  """Replaces repetitions of an example in a batch by zeros."""
  is_same = tf.reduce_all(x[:, tf.newaxis] == x, -1)
  first = tf.argmax(is_same, 1, tf.int32)
  is_first = first == tf.range(tf.shape(x)[0])
  return tf.where(is_first[:, tf.newaxis], x, 0.0)


def _next(x):
  return tf.pad(x[:, 1:], [[0, 0], [0, 1]])


def _replaced(pattern):
  """Returns a function that replaces matches by their first group or ""."""
  by = r"\1" if "(" in pattern else ""
  return lambda x: tf.strings.regex_replace(x, pattern, by)


def _strictly(texts):
  codes = tf.strings.unicode_decode(texts, "UTF-8", errors="strict")
  return tf.strings.unicode_encode(codes, "UTF-8")


def _past(x, position):
  return tf.range(tf.shape(x)[1])[tf.newaxis] >= position + 0 * x


_TABLES = f"""{_CARD}
| `images` | float32 | `[None, None, None, 3]` | images |
| `feature_vector` | float32 | `[None, 6]` | features |
"""


# A rule, a function that writes a SavedModel that breaks it, and a pattern of
# the finding.
_BROKEN = (
  ("S1", _writes_files, r"WriteFile \(.*\) in __inference"),
  ("R1", _not_callable, "hub.KerasLayer refuses it.*: serving_default"),
  ("R2", _two_inputs, "y has no default; hub.KerasLayer passes one"),
  ("R3", _frozen_batch_norm, "no argument `training`"),
  ("R3", _standing_batch_norm, "Moving averages .* do not move"),
  (
    "R3",
    _of(_layers, training=(_first_moves, _dropout)),
    r"do not move .*: bn_1/moving_mean:0",
  ),
  ("R3", _of(_averaged, moving=1), "do not move .*: norm/var:0"),
  ("R3", _baked(True, False, averaged=True), "not depend on bn/moving_mean:0"),
  (
    "R3",
    _recomputed,
    "train step moves bn/moving_mean:0 further than",
  ),
  ("R3", _of_two_dtypes, "One mode returns"),
  ("R3", _other_name_of_mode, "The mode is an argument `is_training`"),
  ("R4", _of(_image, trace_training=False), "'training': True.* fails"),
  ("R5", _module, "uses kernel:0, which `variables` lacks.*silently"),
  ("R5", _no_trainable_variables, "silently train nothing"),
  ("R5", _frozen_variable_listed, "moving_mean:0 in .* is not trainable"),
  ("R5", _gradient_stopped, "No output has a gradient .*: kernel:0"),
  *(
    ("R5", _of(_image, finish=lambda x, *_, f=f: _with_gradient(f)(x)), words)
    for f, words in (
      (100.0, "kernel:0 is wrong"),
      (1e-12, "kernel:0 is wrong"),
      (-1.0, "kernel:0 is wrong"),
    )
  ),
  ("R5", _of(_in_half, factor=2.0), "kernel_1:0 is wrong"),
  (
    "R5",
    _of(_layers, change=_with_gradient(0.0)),
    "is zero for all .*: kernel_0:0",
  ),
  ("R5", _of(_layers, change=_with_gradient(100.0)), "kernel_0:0 is wrong"),
  ("R5", _of(_layers, change=_part_of_gradient), "kernel_0:0 is wrong"),
  (
    "R5",
    _of(_layers, training=(_moves, _without_mask)),
    "kernel_0:0 is wrong",
  ),
  ("R5", _drops_anew, "kernel:0 is wrong"),
  ("R5", _of(_layers, change=_clipped), "kernel_0:0 is not the sum"),
  (
    "R5",
    _of(
      _layers,
      change=lambda x: tf.where(
        tf.norm(x, axis=1, keepdims=True) > 0.0,
        x / tf.norm(x, axis=1, keepdims=True),
        0.0,
      ),
    ),
    "kernel_0:0 is not finite for an input that is all 0",
  ),
  ("R5", _of(_layers, start=_with_gradient(2.0)), "gradient of the input is w"),
  ("R5", _of(_layers, change=_learned_first), "In a batch of 36 .* kernel_0:0"),
  *(
    ("R5", _of(_layers, change=change), "kernel_0:0 is wrong")
    for change in (
      _with_gradient([1.0, 1.0, 1.0, 1.001]),
      lambda x: 8.0 * x + tf.stop_gradient(tf.tanh(x)),
    )
  ),
  (
    "R5",
    _of(_layers, training=(_moves, _fixed_dropout), change=_with_gradient(1.5)),
    "kernel_0:0 is wrong",
  ),
  ("R5", _baked(True, False), "have no effect in inference"),
  ("R5", _left_out, "Trainable, but not in .*: scale:0"),
  ("R5", _without_effect, "is zero for all .*: idle:0"),
  ("R5", _listed_twice, "kernel:0 is in `variables` twice"),
  ("R5", _not_a_number, "kernel:0 is not finite"),
  ("R5", _of(_averaged, variance=np.inf), "norm/var:0 is not finite"),
  (
    "R6",
    _of(_image, losses=lambda kernel: [lambda: tf.constant(0.1)]),
    "depends on no trainable variable",
  ),
  (
    "R6",
    _of(
      _image,
      losses=lambda kernel: [
        lambda: tf.reduce_sum(kernel) + tf.random.normal([])
      ],
    ),
    "and then",
  ),
  (
    "R6",
    _of(
      _image,
      losses=lambda kernel: [
        lambda: _with_gradient(100.0)(tf.reduce_sum(kernel**2))
      ],
    ),
    "wrong gradient",
  ),
  (
    "R6",
    _of(
      _image,
      losses=lambda kernel: [lambda: tf.reduce_sum(tf.stop_gradient(kernel))],
    ),
    "depends on no trainable variable",
  ),
  (
    "R6",
    _of(_image, losses=lambda kernel: [lambda: tf.reduce_sum(kernel**2)] * 2),
    "0 and 1 are the same",
  ),
  (
    "R6",
    _of(_image, losses=_stale),
    "0 is linear in kernel:0, so it has no minimum",
  ),
  ("R6", _of(_layers, losses=_second_stale), "is linear in kernel_1:0"),
  ("R6", _of(_layers, losses=_second_stopped), "no gradient for some of"),
  (
    "R6",
    _of(_image, losses=lambda kernel: [lambda: tf.norm(0.0 * kernel)]),
    "gradient of regularization loss 0 is not finite",
  ),
  (
    "R6",
    _of(_image, losses=lambda kernel: [lambda: -tf.reduce_sum(kernel**2)]),
    "decreases without bound as the variables grow",
  ),
  ("R6", _loss_is_no_scalar, "loss 0 returns .* no float scalar"),
  (
    "R7",
    _of(_image, momentum_without_effect=True),
    "^batch_norm_momentum changes nothing",
  ),
  ("R7", _nothing_adjustable, "fixes .*dropout or other noise"),
  ("R7", _default_of_another_trace, "rate has the default 0.1"),
  ("R7", _drops_more_by_default, "rate has the default 0.2"),
  (
    "R7",
    _of(_layers, training=(_first_follows, _dropout)),
    "momentum does not reach bn_1/moving_mean:0",
  ),
  (
    "R7",
    _of(
      _layers,
      training=(
        lambda i, mean, statistic, momentum: _moves(
          i, mean, statistic, momentum if i else momentum**2
        ),
        _dropout,
      ),
    ),
    "bn_0/moving_mean:0 keeps a share of 0.0625",
  ),
  *(
    (
      "R7",
      _of(_layers, training=(_in_proportion(x), _dropout), names=names),
      words,
    )
    for x, names, words in (
      (3.0, "bn_{}/moving_mean", "bn_0/moving_mean:0 keeps a share of -1.25"),
      (0.5, "bn/moving_mean_{}", "bn/moving_mean_0:0 keeps a share of 0.62"),
    )
  ),
  (
    "R7",
    _of(
      _layers,
      training=(
        _moves,
        lambda x, rate, _: tf.nn.dropout(x, tf.where(rate > 0.0, 0.5, 0.0)),
      ),
    ),
    "no less noisy with dropout_rate=0.001",
  ),
  (
    "R7",
    _of(
      _layers,
      training=(
        _moves,
        lambda x, rate, _: tf.nn.dropout(
          x, tf.where(rate > 0.0, 1 - rate, 0.0)
        ),
      ),
    ),
    "no less noisy with dropout_rate=0.",
  ),
  ("R7", _without_noise, "With rate at 0 training still computes something"),
  (
    "R7",
    _of(_image, finish=lambda x, training, _: 1.5 * x if training else x),
    "statistics of a batch as moving averages, inference does not compute",
  ),
  *(
    ("R7", _of(_averaged, **changes), "statistics of a batch as moving av")
    for changes in (
      {"finish": lambda x, training: 1.3 * x if training else x},
      {"finish": lambda x, training: 2.0 * _MASK * x if training else x},
      {"change": lambda variance, count: tf.sqrt(variance)},
    )
  ),
  (
    "R7",
    _of(_layers, training=(_follows_inversely, _dropout)),
    r"\(bn_1/moving_mean:0\) move further with batch_norm_momentum=0.9 than",
  ),
  (
    "R7",
    _of(_layers, training=(_moves, _fixed_dropout)),
    "random with .* at 0 too",
  ),
  (
    "R8",
    _of(_plain, call=lambda x: tf.reshape(x, [2, 4]), spec=_VECTORS),
    "A batch of 5 fails",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: x / tf.cast(tf.shape(x)[0] - 1, tf.float32) * 0.0,
      spec=_VECTORS,
    ),
    "In a batch of 1 an output .* is NaN",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: x / tf.reduce_max(tf.abs(x), 1, keepdims=True),
      spec=_VECTORS,
    ),
    "For inputs that are all 0 an output .* is NaN",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: (x + 1.0) / tf.norm(x, axis=1, keepdims=True),
      spec=_VECTORS,
    ),
    "For inputs that are all 0 an output .* infinite",
  ),
  (
    "R8",
    _of(
      _two_modes,
      call=lambda x, training=False: x / tf.norm(x, axis=0) if training else x,
    ),
    "all 0 an output .*, in training. is NaN",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: 1.0 / tf.cast(tf.strings.length(x), tf.float32),
      spec=tf.TensorSpec([None], tf.string, "names"),
    ),
    "For inputs that are empty an output .* infinite",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: (
        tf.exp(20.0 * x) / tf.reduce_sum(tf.exp(20.0 * x), 1, keepdims=True)
      ),
      spec=_VECTORS,
    ),
    "ten times as large an output .* is NaN",
  ),
  (
    "R8",
    _of(_image, spec=tf.TensorSpec([4, None, None, 3])),
    r"batch size is fixed.*\(4, None",
  ),
  (
    "R8",
    _of(_layers, average=tf.reduce_mean),
    "A batch of 0 in training makes bn_0/moving_mean:0",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: tf.sqrt(tf.reduce_sum((x[:, 1:] - x[:, :-1]) ** 2, 1)),
      spec=tf.TensorSpec([None, None, 4], name="series"),
    ),
    "an input whose steps are equal is not finite",
  ),
  (
    "R8",
    _of(
      _of_ids,
      call=lambda x, mask: tf.reduce_mean((x * mask)[:, 1:], 1),
    ),
    "For a length of 1 an output .* is NaN",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: x[:, : tf.cond(tf.size(x) < 0, lambda: 2, lambda: 3)],
      spec=_VECTORS,
    ),
    "The last dimension of .* is constant",
  ),
  (
    "R8",
    _of(_of_keras_3, offset=False, spec=tf.TensorSpec([4, 4])),
    r"fixed: .*\(4, 4\)",
  ),
  ("R9", _sub_object_lists_nothing, "`inner` .* has no trainable_v"),
  (
    "R9",
    _of(_sub_object_lists_nothing, variable=True),
    "`inner` uses hidden:0, which its `variables` lacks",
  ),
  (
    "R9",
    _of(_sub_object, call=lambda x, w: _with_gradient(2.0)(x * w)),
    "`inner`: The gradient of w:0 is wrong",
  ),
  (
    "R9",
    _of(_sub_object, call=lambda x, w: x * w - tf.reduce_mean(x, 0)),
    "`inner`: An input has different outputs in a batch",
  ),
  (
    "R9",
    _of(
      _sub_object,
      call=lambda x, w: tf.nn.dropout(x * w, 0.5),
      is_nested=True,
    ),
    "`inner.heads.0`: Two calls return different outputs",
  ),
  (
    "R9",
    _of(_backbone, use=False),
    "`backbone`: training=True changes nothing",
  ),
  ("R9", _of(_backbone, lost=True), "has a regularization loss of kernel:0"),
  ("R9", _profile_trains_averages, "`profile` .* trains moving_mean:0"),
  ("R9", _bare_function, "`bare` is a bare function"),
  ("R10", _optimizer_inside, "state of an optimizer"),
  ("R10", _doubled_weights, "No function uses these .*: kernel/Average"),
  ("R10", _path_in_a_variable, "notes:0 has the path /home/somebody"),
  ("R10", _on_a_gpu, "Tanh is placed on .*GPU:1"),
  ("R10", _path_in_an_asset, "/home/somebody/train.py"),
  (
    "R11",
    _of(_image, served=lambda x: 2 * x),
    "serving_default does not compute",
  ),
  (
    "R11",
    _of(_image, served=lambda x: tf.minimum(x, 9.0)),
    "serving_default does not compute",
  ),
  (
    "R11",
    _of(_image, served=lambda x: x[:8]),
    r"shapes \(33, 5\) and \(8, 5\)",
  ),
  ("R11", _baked(False, True), "serving_default does not compute"),
  (
    "R11",
    _baked(False, True, averaged=True),
    "serving_default does not compute",
  ),
  ("R11", _nameless_table, "AnonymousHashTable .* TensorFlow Serving fails"),
  ("R11", _two_inputs, "no signature serving_default"),
  ("R11", _of(_image, names=("args_0", "output_0")), "args_0, output_0"),
  (
    "R12",
    _of(_image, finish=lambda x, training, rate: tf.nn.softmax(x)),
    r"probabilities \(by Softmax\)",
  ),
  (
    "R12",
    _of(_image, finish=lambda x, training, rate: tf.sigmoid(x)),
    r"probabilities \(by Sigmoid\)",
  ),
  (
    "R12",
    _of(
      _plain,
      call=lambda x: {"logits": tf.nn.softmax(x), "other": x},
      spec=_VECTORS,
    ),
    r"probabilities \(by Softmax\)",
  ),
  ("R13", _of(_image, card="trainable=True"), "regularization in the opt"),
  (
    "R13",
    _of(_image, card=_CARD.replace("dropout_rate", "drop_rate")),
    "does not name the argument dropout_rate",
  ),
  (
    "R13",
    _of(_image, card=_CARD + ' arguments={"drop_rate": 0.1}'),
    "argument drop_rate, which does not exist",
  ),
  (
    "R13",
    _of(
      _image, card=_CARD.replace("an image", "`text`").replace("feature ", "")
    ),
    "does not name images, feature_vector",
  ),
  (
    "R13",
    _of(_image, card=_CARD + " | `dropout_rate` | 0.1 |"),
    "dropout_rate is 0.1 by default, and it is 0.5",
  ),
  (
    "R13",
    _of(_image, card=_CARD + " Its `dropout_rate` defaults to 0.1."),
    "dropout_rate is 0.1 by default, and it is 0.5",
  ),
  (
    "R13",
    _of(
      _image,
      card=(_CARD, {"variables": [], "hyperparameters": [], "profiles": []}),
    ),
    "model.json is that of another model: it lists 0 variables of ",
  ),
  ("R13", _of(_image, card=_TABLES), r"feature_vector is .*6\], and it is"),
  (
    "R13",
    _of(
      _image,
      card=_CARD + " | parameters | 1,000 |",
      change=_of_unknown_shape,
    ),
    "1,000 param",
  ),
  ("R14", _of(_image, keepdims=False), r"gradient of Mean \(Mean in "),
  ("R14", _branch, r"refuses .* gradient of StatelessIf \(my_layer/cond"),
  ("R14", _loop, r"refuses .* gradient of While \(while\w* in "),
  ("R14", _without_kernel, r"refuses .* no kernel for AsString \(.*my_layer/"),
  (
    "R15",
    _of(_plain, call=lambda x: x - tf.reduce_mean(x, 0), spec=_VECTORS),
    "in a batch than alone",
  ),
  (
    "R15",
    _of(
      _plain,
      call=lambda x: tf.cond(
        tf.shape(x)[0] > 5, lambda: x - tf.reduce_mean(x, 0), lambda: x
      ),
      spec=_VECTORS,
    ),
    "in a batch than alone",
  ),
  *(
    ("R15", _of(_plain, call=call, spec=_VECTORS), "in a batch than alone")
    for call in (
      lambda x: tf.where(tf.reduce_max(x) > 9.0, x / 255, x),
      lambda x: tf.pad(
        x[:32], [[0, tf.maximum(0, tf.shape(x)[0] - 32)], [0, 0]]
      ),
      _next_of_row_8,
      _without_second,
    )
  ),
  (
    "R15",
    _of(_chaotic, change=lambda y: y - tf.reduce_mean(y, 0)),
    "in a batch than alone",
  ),
  ("R15", _other_in_double, "tf.float64.* has different outputs"),
  (
    "R15",
    _of(_plain, call=lambda x: tf.nn.dropout(x, 0.02), spec=_VECTORS),
    "Two calls return different outputs",
  ),
  (
    "R15",
    _of(
      _plain,
      call=lambda x: tf.where(x > 3.0, tf.random.normal(tf.shape(x)), x),
      spec=_VECTORS,
    ),
    "Two calls return different outputs",
  ),
  (
    "R15",
    _of(
      _plain,
      call=lambda x: tf.nn.experimental.stateless_dropout(x, 0.5, [1, 2]),
      spec=_VECTORS,
    ),
    "in a batch than alone",
  ),
  (
    "R15",
    _of(_plain, call=lambda x: tf.ones_like(x), spec=_VECTORS),
    "the same for all inputs",
  ),
  (
    "R15",
    _of(
      _plain,
      call=lambda x: tf.reduce_mean(x.to_tensor(), 1),
      spec=tf.RaggedTensorSpec([None, None], tf.float32),
    ),
    "in a batch than alone",
  ),
  ("R15", _noise_by_argument, "Two calls in inference differ"),
  ("R15", _counts_calls, "changes count:0"),
  (
    "R16",
    _of(_layers, training=(_moves, _frozen_dropout)),
    "drawn once",
  ),
  ("R16", _frozen_mask, "drawn once"),
  ("R16", _counted_dropout, "draws by count:0, which each call moves"),
  ("R16", _of(_layers, training=(_moves, _seeded_dropout)), "has the seed 1"),
  (
    "R16",
    _of(_layers, training=(_moves, _dropout_of_state)),
    "draws from a state",
  ),
  (
    "R17",
    _of(_pairs, call=lambda left, right: left + 0.0 * right),
    "right has no effect on a call",
  ),
  (
    "R17",
    _of(_of_ids, call=lambda x, mask: tf.reduce_sum((x * mask)[:, :500], 1)),
    "The last 500 of 1000 positions have no effect on a call in inference",
  ),
  (
    "R17",
    _of(_of_ids, call=lambda x, mask: tf.reduce_sum((x * mask)[:, :16], 1)),
    "The last 32 of 64 positions have no effect on a call in inference",
  ),
  (
    "R17",
    _of(
      _pairs,
      call=lambda left, right: left + right,
      train=lambda left, right: tf.nn.dropout(left, 0.5),
    ),
    "right has an effect in inference, and none in training",
  ),
  ("R17", _cut_in_training, "no effect on a call in training"),
  ("K1", _of_keras_3, "in a batch than alone"),
  ("K1", _of(_of_keras_3, listed=False), "`serve` uses kernel:0"),
  (
    "K1",
    _of(_of_keras_3, offset=False, is_stale=True),
    "`serve` holds the value of kernel:0 as a constant",
  ),
  (
    "I1",
    _of(_image, spec=tf.TensorSpec([None, None, None, 3], tf.uint8)),
    "takes uint8",
  ),
  (
    "I2",
    _of(
      _image,
      finish=lambda x, training, rate: (
        tf.nn.dropout(x, rate) if training else x
      ),
    ),
    "Dropout is applied to the output",
  ),
  (
    "I3",
    _of(
      _image,
      finish=lambda x, training, rate: x[:, tf.newaxis],
      names=("images", "logits"),
    ),
    r"\(None, 1, 5\), not float32 \[batch, classes",
  ),
  (
    "I4",
    _of(_image, spec=tf.TensorSpec([None, 8, 8, 3])),
    r"Not all of height, width are free: \(8, 8\)",
  ),
  (
    "I4",
    _of(_image, start=lambda x: x[:, :100, :100]),
    "the lower right quarter has no effect",
  ),
  (
    "R15",
    _of(_image, start=lambda x: tf.cast(tf.cast(x, tf.uint8), tf.float32)),
    "the same for all inputs",
  ),
  ("I5", _no_momentum, "batch_norm_momentum cannot be set"),
  ("T1", _of(_text_embedding, features=None), r"\(None, None\), not float32"),
  ("T1", _of(_text_embedding, change=lambda x: x / x), "is not finite"),
  (
    "T1",
    _of(_text_embedding, change=lambda x: x / (1 + tf.reduce_max(x))),
    "A vector alone differs",
  ),
  (
    "T1",
    _of(_text_embedding, change=lambda x: tf.ensure_shape(x, [6, 2])),
    "cannot be called alone",
  ),
  ("T1", _of(_text_embedding, cut=16), "The last of 8 words.* has no effect"),
  ("T1", _of(_text_embedding, cut=100), "The last of 32 words"),
  (
    "T1",
    _of(
      _of_words,
      decode=lambda x: tf.strings.reduce_join(
        tf.strings.split(x)[:, :64], 1, separator=" "
      ),
    ),
    "The last of 200 words.* names no limit",
  ),
  (
    "T1",
    _of(_of_words, trained=16),
    "The last of 32 words, .* on the vector in training",
  ),
  ("T1", _of(_of_words, shift=1), "a vector for '.*' that differs"),
  ("T1", _of(_of_words, padding=1.0), "a vector for '' that differs"),
  ("T1", _of(_of_words, most=3), "a vector for '.+' that differs"),
  ("T1", _of(_of_words, says="A text is lowercased"), "case are not the same"),
  ("T1", _of(_of_words, exponents=(1.0, 0.0, 0.5)), "same sum, divided by 1"),
  ("T1", _of(_of_words, exponents=(0.0, 0.5, 1.0)), "same sum, divided by 1"),
  (
    "R5",
    _of(
      _of_words,
      dimensions=32,
      of_vectors=lambda x: tf.tile(x[:, :16], [1, 2]),
    ),
    "columns 16 to 31 of table:0 is zero",
  ),
  ("R7", _of(_of_words, only="sum"), "combiner changes nothing"),
  ("R8", _of(_of_words, decode=_strictly), "A text that is not UTF-8 fails"),
  ("R8", _of(_preprocessor, decode=_strictly), "A text that is not UTF-8"),
  ("T2", _of(_preprocessor, with_tokenize=False), "no sub-object `tokenize`"),
  (
    "T2",
    _of(_preprocessor, packs=(2, 3), use=lambda segments: segments[:2]),
    "3 segments in 12 tokens: ",
  ),
  (
    "T2",
    _of(_preprocessor, tokens=lambda x: x[:, :999]),
    "The last of 600 words has no tokens",
  ),
  (
    "T2",
    _of(_preprocessor, tokens=lambda x: x[:, :-5]),
    "'the' has no tokens",
  ),
  (
    "T2",
    _of(_preprocessor, card=f"{_CARD} | `do_lower_case` | true |"),
    "says that do_lower_case is true",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      decode=lambda x: tf.strings.lower(x, encoding=""),
      card=f"{_CARD} | `do_lower_case` | true |",
    ),
    "says that do_lower_case is true",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      decode=_replaced(r"\p{Han}"),
    ),
    "'你好' has no tokens",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      vocabulary=["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "##s", "the"],
    ),
    r"'the' has the ids \[116, 104, 101\], and the vocabulary says 6",
  ),
  *(
    ("T2", _of(_preprocessor, decode=_replaced(pattern)), words)
    for pattern, words in (
      (r"[[:punct:]]", "',' has no tokens"),
      (r"\w{20,}", "'qx.*' has no tokens"),
      (r"\b(the|of|list|return|is|good)\w+", "end of the word 'theof'"),
    )
  ),
  (
    "T2",
    _of(
      _preprocessor,
      decode=lambda x: tf.strings.lower(x, encoding="utf-8"),
      card=f"{_CARD} `do_lower_case` true: strips accents.",
    ),
    "says that it strips accents",
  ),
  (
    "T2",
    _of(_preprocessor, tokens=lambda x: x[:, ::-1]),
    "not those of its words, in their order",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      decode=tf.strings.lower,
      card=f"{_CARD} `do_lower_case`: False",
    ),
    "says that do_lower_case is false",
  ),
  (
    "T7",
    _of(_preprocessor, special_ids={"mask_id": 1}),
    "are both 1",
  ),
  (
    "T7",
    _of(_preprocessor, special_ids={"mask_id": ord("t")}),
    "mask_id is 116, which is the id of a token of texts",
  ),
  (
    "T7",
    _of(_preprocessor, special_ids={"vocab_size": 900}),
    "vocab_size is 900, and there are ids up to",
  ),
  ("T2", _of(_preprocessor, pack_with_length=False), "and a seq_length"),
  ("T2", _of(_preprocessor, longest=9), "cannot run in Dataset.map"),
  (
    "T2",
    _of(
      _preprocessor,
      change=lambda y, ids: {
        "input_mask": tf.where(_past(ids, 16), 1, y["input_mask"])
      },
    ),
    "segments in 40 tokens: the mask is not 1",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      change=lambda y, ids: {
        "input_type_ids": tf.where(_past(ids, 16), 0, y["input_type_ids"])
      },
    ),
    "2 segments in 40 tokens: the types are",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      change=lambda y, ids: {"input_word_ids": tf.where(ids == 2, 3, ids)},
    ),
    "the ids are",
  ),
  (
    "T2",
    _of(
      _preprocessor,
      change=lambda y, ids: {
        "input_type_ids": y["input_type_ids"]
        * tf.cast(tf.shape(ids)[0] < 9, tf.int32)
      },
    ),
    "A batch of 45: the types are",
  ),
  ("T2", _of(_preprocessor, cut=64), "A call with seq_length=512: the mask"),
  (
    "T2",
    _of(
      _preprocessor,
      change=lambda y, ids: {"input_word_ids": tf.where(ids > 999, 3, ids)},
    ),
    "the ids are .*text 3",
  ),
  ("T8", _of(_preprocessor, with_assert=True), "Assert ops"),
  (
    "T3",
    _of(
      _encoder,
      spec={k: tf.TensorSpec([None, 8], tf.int32, k) for k in _WORDS},
    ),
    r"\(None, 8\), not int32 \[batch, seq_length\]",
  ),
  (
    "T3",
    _of(_encoder, see=lambda x: tf.where(_past(x, 16), 1, x)),
    "With 40 tokens",
  ),
  ("T3", _of(_encoder, see=lambda x: x * 0 + 1), "whose mask is 0 change"),
  (
    "T3",
    _of(_encoder, pool=lambda x: 0 * x[:, 0]),
    "pooled_output does not depend",
  ),
  (
    "T3",
    _of(_encoder, pool=lambda x: x[:, -1]),
    "whose mask is 0 change pooled_output",
  ),
  (
    "T3",
    _of(_encoder, order=lambda x: tf.minimum(x, 15)),
    "40 tokens the order of the tokens has no effect from token 20 on",
  ),
  (
    "T3",
    _of(_encoder, order=lambda x: x[::-1]),
    "appended tokens whose mask is 0 change the output of the first",
  ),
  ("T3", _of(_encoder, default=lambda x: 2 * x), "default is not pooled"),
  ("T3", _of(_encoder, layers=lambda x, y: [x, 2 * y]), "no list that ends"),
  ("T3", _of(_encoder, layers=lambda x, y: [y, x, y]), "has a layer twice"),
  (
    "T3",
    _of(_encoder, scales=16, layers=lambda x, y: [y]),
    "encoder_outputs has 1 of 2 layers",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", positions=lambda x: x * 0),
    "same for all masked_lm_positions",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", positions=lambda x: (x + 1) % 16),
    r"of a position \+1 from",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", tied=lambda x: x[:, ::-1] * 0 + 1),
    "do not depend on the embedding of each",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", logits=tf.nn.softmax),
    "are probabilities",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", tied=tf.stop_gradient),
    "do not depend on the embedding of each",
  ),
  ("T4", _encoder, "Neither the encoder nor its card"),
  ("T5", _of(_encoder, mlm="logits"), "returns logits, not mlm_logits"),
  ("T6", _of(_encoder, vocabulary=None), "vocab_file and do_lower_case"),
  ("T6", _of(_encoder, vocabulary="ab"), "has 2 tokens, and table:0 16 rows"),
  ("T6", _of(_encoder, vocabulary="a" * 17), "has 17 tokens, and"),
  (
    "T6",
    _of(_encoder, vocabulary="abcdABCDabcdABCD"),
    "do_lower_case is true, and 8 tokens have capitals",
  ),
  ("T6", _of(_encoder, vocabulary="abcdefghijklmnop"), "such as .CLS..$"),
  (
    "T6",
    _of(_encoder, mlm="mlm_logits", vocabulary=["[PAD]", *"abcdefghijklmno"]),
    "such as .CLS. and .MASK.",
  ),
  (
    "R15",
    _of(_encoder, ids=lambda x: tf.minimum(x, 9)),
    "15 does not use its row of table",
  ),
  (
    "R15",
    _of(_encoder, ids=lambda x: x % 12),
    "15 does not use its row of table",
  ),
  ("R15", _last_row_lost, "63 does not use its row of table"),
  (
    "T3",
    _of(_encoder, see=lambda x: tf.where(_past(x, 150), 0, x)),
    "With 160 tokens .* has no effect from token 156 on",
  ),
  (
    "T3",
    _of(_encoder, places=64),
    "With 64 tokens the order of the tokens has no effect from token 60 on",
  ),
  (
    "T3",
    _of(_encoder, places=64, first_place=1),
    "table of 64 positions has no row for the last one",
  ),
  (
    "T3",
    _of(_encoder, trained=lambda x: tf.where(_past(x, 32), 0, x)),
    "In training the last 4 of 160 tokens",
  ),
  (
    "T3",
    _of(_encoder, lists=lambda x: [x[0], x[2], x[1]]),
    "A list of the inputs has different outputs",
  ),
  (
    "R11",
    _of(_encoder, served=tf.zeros_like),
    "serving_default does not compute",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", positions=lambda x: tf.minimum(x, 20)),
    "are the same at the positions",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", positions=lambda x: tf.sort(x, 1)),
    "in another order than masked_lm_positions",
  ),
  (
    "T5",
    _of(_encoder, mlm="mlm_logits", mlm_sees=tf.ones_like),
    "do not depend on input_mask",
  ),
  (
    "T5",
    _of(
      _encoder,
      mlm="mlm_logits",
      scales=5,
      mlm_of=lambda outputs: outputs["encoder_outputs"][0],
    ),
    "do not depend on the last layer, such as last/0",
  ),
  ("T7", _of(_preprocessor, special=False), "no get_special_tokens_dict"),
  ("W1", _of(_word_embedding, padding=1.0), 'The vector of "" is not zero'),
  (
    "W1",
    _of(_word_embedding, change=lambda x: x - tf.reduce_mean(x, 1, True)),
    "A vector before padding differs",
  ),
  (
    "W1",
    _of(_word_embedding, change=lambda x: tf.cast(x, tf.float64)),
    r"float64 \(None, None, 2\), not float32",
  ),
  (
    "G1",
    _of(
      _generator,
      pick=lambda shape, seed: tf.random.uniform(shape, 97, 123, tf.int32),
    ),
    "different texts for the same seed",
  ),
  (
    "G1",
    _of(_generator, pick=lambda shape, seed: tf.fill(shape, 97)),
    "same texts for four seeds",
  ),
  (
    "G1",
    _of(_generator, prompts=tf.TensorSpec([3], tf.string)),
    r"does not continue strings \[batch\]",
  ),
  *(
    ("G1", _of(_generator, prompt=prompt), words)
    for prompt, words in (
      (lambda x: tf.fill(tf.shape(x), ""), "ignores a prompt"),
      (lambda x: tf.fill(tf.shape(x), x[0]), "ignores a prompt"),
      (
        lambda x: tf.strings.join([x, tf.strings.reduce_join(x)]),
        "otherwise beside another",
      ),
      (
        lambda x: tf.strings.regex_replace(x, "^.", ""),
        "returns 'eturn the list of al",
      ),
    )
  ),
  ("G1", _of(_generator, size=lambda x: 0 * x + 32), "ignores length"),
  ("G1", _of(_generator, coldest=0.0), "ignores temperature"),
  ("G1", _of(_generator, coldest_code=98), "with a temperature of 0"),
  (
    "G2",
    _of(_generator, step_reads=lambda ids: tf.minimum(ids, 99)),
    "`step` and a call differ",
  ),
  ("G3", _of(_generator, read=lambda x: x[:, :20]), "of 400 words has the ids"),
  (
    "G2",
    _of(_generator, change_step=lambda x: 0.9 * x),
    "`step` and a call differ",
  ),
  (
    "G2",
    _of(
      _generator, change=lambda x: tf.concat([x[:, :50], 2.0 * x[:, 50:]], 1)
    ),
    "`step` and a call differ",
  ),
  (
    "G2",
    _of(_generator, change_step=lambda x: tf.tile(x, [2, 1])),
    "take and return",
  ),
  ("G3", _of(_generator, dtype=tf.int64), "do not fit|returns int64"),
  ("G3", _of(_generator, write=tf.strings.upper), "returns 'THE END' for"),
  (
    "D1",
    _of(_classifier, names=("cat", "cat", "dog"), asset=b"cat\ncat\ndog"),
    "3 logits and 2 different class names",
  ),
  ("D1", _of(_classifier, softmax=tf.sigmoid), "not the softmax"),
  ("D1", _of(_classifier, best=tf.argmin), r"those of \['.* says \['"),
  ("D1", _of(_classifier, asset=b"dog\ncat\nbird\n"), "No asset lists the"),
  (
    "D1",
    _of(_classifier, change=lambda x: x - tf.reduce_mean(x)),
    "different logits in a batch than alone",
  ),
  (
    "D2",
    _of(
      _classifier,
      decode=lambda x, **kwargs: tf.io.decode_image(x, channels=4, **kwargs),
    ),
    "A JPEG cannot be decoded",
  ),
  (
    "D2",
    _of(_classifier, decode=lambda x, **_: _all_frames(x)),
    "A GIF cannot be decoded",
  ),
  (
    "D2",
    _of(
      _classifier,
      decode=lambda x, **kwargs: tf.io.decode_image(x, **kwargs) // 2,
    ),
    "A grey PNG is classified differently",
  ),
  (
    "D2",
    _of(
      _classifier,
      decode=lambda x, **kwargs: tf.io.decode_image(x, channels=3, **kwargs)[
        ..., ::-1
      ],
    ),
    "A PNG is classified differently",
  ),
  (
    "D2",
    _of(
      _classifier,
      decode=lambda x, **kwargs: (
        tf.io.decode_image(x, **kwargs)
        // tf.where(tf.io.is_jpeg(x), tf.constant(2, tf.uint8), 1)
      ),
    ),
    "A JPEG is classified differently",
  ),
  ("C1", _of(_cell, sizes=(4, 3)), "does not take states of `state_sizes`"),
  (
    "C1",
    _of(_cell, change=lambda x: x[:, :1]),
    r"\(1, 2\) and returns .* \(1, 1\)",
  ),
  ("C1", _of(_cell, remembers=0.0), "does not depend on the states"),
  ("C1", _of(_cell, sees=0.0), "The new states do not depend on the inputs"),
  ("R3", _mode_of_another_name, "The mode is an argument `mode`"),
  (
    "R5",
    _without_gradient,
    "AdjustContrastv2 has no gradient, so the model cannot",
  ),
  (
    "R6",
    _of(_averaged, loss=lambda kernel, v: tf.reduce_sum(kernel**2) + v[0]),
    "loss 0 depends on norm/var:0, which training updates",
  ),
  (
    "R11",
    _of(_image, start_served=lambda x: tf.image.resize(x, [32, 32])),
    "serving_default does not compute",
  ),
  (
    "R11",
    _of(_image, served=lambda x: tf.cast(x, tf.float64)),
    "the dtypes float32 and float64",
  ),
  *(
    ("R7", _of(_layers, training=(_moves, drop)), words)
    for drop, words in (
      (_unscaled, r"is 0\.\d* times its input"),
      (
        lambda x, rate, _: tf.nn.dropout(x, rate) / (1 - rate),
        r"is 1\.\d* times its",
      ),
      (lambda x, rate, _: x + rate * tf.random.uniform(tf.shape(x)), "adds"),
      (_drops_of_odd_rows, "not random for some examples"),
      (
        lambda x, rate, _: tf.function(_unscaled)(x, rate, 0),
        r"is 0\.\d* times its input",
      ),
      (
        lambda x, rate, _: x * tf.random.normal(tf.shape(x), 1 - rate, rate),
        r"is 0\.\d* times its input",
      ),
      (
        lambda x, rate, _: _drops_many(x, rate, tf.minimum(rate, 0.2)),
        "drops 2.% at most, and .*% at least with 0.1",
      ),
    )
  ),
  (
    "R7",
    _of(_with_keep_prob, scale=lambda x, share: x),
    r"With keep_prob=0.6 .* is 0\.\d* times its input",
  ),
  (
    "R3",
    _of(_averaged_weights, moves=False),
    "do not move in a call with training=True: kernel_ema:0",
  ),
  (
    "R3",
    _of(_averaged_weights, moves=False, name="shadow"),
    "do not move in a call with training=True: shadow:0",
  ),
  ("R3", _of(_layers, training=(_once, _dropout)), "do not move in a call"),
  ("R5", _only_classes, "No output has a float dtype"),
  ("R5", _folded, "holds the value of kernel:0 as a constant"),
  ("R5", _same_names, "No output has a gradient .*: Variable:0"),
  (
    "R8",
    _of(
      _of_ids,
      call=lambda x, mask: tf.reduce_sum(x * mask, 1) / tf.reduce_sum(mask, 1),
    ),
    "inputs that are all 0",
  ),
  (
    "R8",
    _of(_plain, call=lambda x: tf.reshape(x, [-1, 2]), spec=_VECTORS),
    "A batch of 2 has 4 rows",
  ),
  (
    "R15",
    _of(
      _of_ids,
      call=lambda x, mask: tf.reduce_sum(x * tf.reduce_max(mask, 0), 1),
    ),
    "different outputs in a batch than alone",
  ),
  (
    "R15",
    _of(
      _plain,
      call=lambda x: tf.where(tf.reduce_any(x != x), 0.0, x),
      spec=_VECTORS,
    ),
    "different outputs in a batch than alone",
  ),
  (
    "I4",
    _of(_image, start=lambda x: tf.reshape(x, [-1, *[tf.shape(x)[1]] * 2, 3])),
    r"A size of \(\d+, \d+\) fails",
  ),
  ("R13", _of(_image, card=_CARD + "\udcff"), "is not UTF-8: invalid start"),
  (
    "I1",
    _of(_image, card=_CARD + " Pixels are in [0, 255]."),
    r"The card says \[0, 255\] of pixels",
  ),
  (
    "R11",
    _of(
      _image,
      served=lambda x: tf.pad(
        x[:16], [[0, tf.maximum(0, tf.shape(x)[0] - 16)], [0, 0]]
      ),
    ),
    "serving_default does not compute",
  ),
  (
    "R15",
    _of(
      _of_steps,
      call=lambda x, mask: (
        tf.reduce_sum(x, 1) / tf.reduce_max(tf.reduce_sum(mask, 1))
      ),
    ),
    "different outputs in a batch than alone",
  ),
  (
    "R7",
    _of(_with_average, train=_frozen_statistics),
    "normalizes with bn/moving_mean:0, and moves none",
  ),
  (
    "R5",
    _of(_layers, change=_learned_on_average),
    "is not the sum over its examples",
  ),
  (
    "R3",
    _of(
      _of_two_dtypes_of_input,
      train=lambda y, is_double: y if is_double else tf.nn.dropout(y, 0.5),
    ),
    "training with .*float64.* does not draw random numbers",
  ),
  (
    "R5",
    _of(
      _of_two_dtypes_of_input,
      change=tf.stop_gradient,
    ),
    "With .*float64.* there is no gradient",
  ),
  ("R4", _with_flag, "'training': True, 'double': True.* fails"),
  ("R11", _cut_in_a_signature, "sums differs by"),
  (
    "R5",
    _of(
      _plain_layer,
      change=lambda x, y: tf.where(x[:, :1] > 0.0, y, tf.stop_gradient(y)),
    ),
    "The gradient of kernel:0 is wrong",
  ),
  (
    "R7",
    _of(
      _averaged,
      finish=lambda x, training: _quantized(x) * (1.5 if training else 1.0),
    ),
    "With the statistics of a batch as moving averages",
  ),
  ("I4", _first_frame, "the second half of the frames has no effect"),
  (
    "R17",
    _of(_plain, call=lambda x: 2.0 * x[:, 1:], spec=_VECTORS),
    "column 0 .from 0 on. has no effect",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: (
        x[:, -1] * tf.sqrt(400.0 - tf.cast(tf.shape(x)[1], tf.float32))
      ),
      spec=tf.TensorSpec([None, None, 4]),
    ),
    "For a length of 512 an output .* is NaN",
  ),
  (
    "R3",
    _of(
      _of_two_dtypes_of_input,
      train=lambda y, is_double: 1.5 * y if is_double else y,
    ),
    "Training with .*float64.* has other outputs or updates",
  ),
  ("R7", _resized_in_training, "With the statistics of a batch"),
  (
    "R9",
    _of(_backbone, factor=-1.0),
    "`backbone`: Regularization loss 0 decreases without bound",
  ),
  (
    "R9",
    _of(_backbone, factor=10.0),
    "`backbone`: its regularization losses of kernel:0 are not as large",
  ),
  (
    "R7",
    _of(_tuned_part, default=0.7),
    "`part`: dropout_rate is 0.7 by default, and 0.2 in a call of the model",
  ),
  (
    "R7",
    _of(_tuned_part, drop=lambda x, rate: 1.5 * tf.nn.dropout(x, rate)),
    "`part`: With dropout_rate at 0 training still computes",
  ),
  (
    "R10",
    _of(_path_in_a_variable, path=r"C:\Users\somebody\train.py"),
    r"has the path C:.Users.somebody.train\.py",
  ),
  (
    "R11",
    _of(_cut_in_a_signature, names=("steps", "weights")),
    "takes 2 inputs, and a call 1",
  ),
  (
    "R11",
    _more_in_a_signature,
    "1 more .* holds the value of kernel:0",
  ),
  ("R2", _of_a_dataset, "contains DatasetSpec.* which is not a Tensor"),
  ("R5", _trains_words, "of no float dtype: word:0"),
  (
    "R7",
    _of(
      _layers,
      training=(
        lambda i, mean, center, momentum: _moves(
          i, mean, center, tf.minimum(momentum, 0.97)
        ),
        _dropout,
      ),
    ),
    "batch_norm_momentum does not reach",
  ),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: x + tf.reduce_sum(tf.ensure_shape(x[64:], [0, 4])),
      spec=_VECTORS,
    ),
    "A batch of 100 fails",
  ),
  (
    "R17",
    _of(
      _of_ids,
      call=lambda x, mask: tf.reduce_sum(
        (x * mask)[:, : tf.minimum(tf.shape(x)[1], 40)], 1
      ),
    ),
    "The last 128 of 256 positions have no effect",
  ),
  ("R7", _stale_in_training, "computes something else"),
  ("R3", _of(_with_half, call=_twice_in_half), "Training with .*bfloat16"),
  (
    "R15",
    _of(_with_half, call=_twice_in_half),
    "bfloat16.* has different outputs",
  ),
  ("R15", _stale_in_double, "tf.float64.* has different outputs"),
  *(
    ("R7", _of(_without_noise, **changes), "computes something else")
    for changes in (
      {"change": lambda x: tf.clip_by_value(x, 0.0, 1.0)},
      {"change": lambda x: tf.concat([x[:30], 1.5 * x[30:]], 0)},
      {
        "change": lambda x: x[:, :8],
        "spec": tf.TensorSpec([None, None, 4], name="steps"),
      },
    )
  ),
  (
    "R7",
    _of(
      _without_noise,
      change=tf.identity,
      drop=lambda x, rate: tf.where(
        tf.range(tf.shape(x)[0])[:, tf.newaxis] % 2 == 0,
        tf.nn.dropout(x, rate),
        x,
      ),
    ),
    "Among equal examples in a batch, some get noise",
  ),
  (
    "T6",
    _of(_encoder, vocabulary=["[CLS]", *"abcdefghijklmn"]),
    "has 15 tokens, and table:0 16 rows",
  ),
)
# A rule, and a function that writes a SavedModel that keeps it.
_KEPT = (
  ("R3", _of_normalized_targets),
  ("R5", _of(_layers, start=tf.math.log)),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] // 16, 64]),
      spec=tf.TensorSpec([None, None, 4], name="series"),
    ),
  ),
  ("R5", _with_mask_token),
  ("R5", _of(_pairs, call=lambda left, right: left - right)),
  ("R5", _teacher),
  ("R5", _with_temperature),
  ("R5", _with_keep_prob),
  (
    "R6",
    _of(
      _image,
      losses=lambda kernel: [lambda: tf.nn.relu(tf.norm(kernel) - 99.0)],
    ),
  ),
  (
    "R6",
    _of(_image, losses=lambda kernel: [lambda: 0.0 * tf.reduce_sum(kernel)]),
  ),
  ("R5", _clipped_by_range),
  # In double precision this function is flat for small steps.
  ("R5", _of(_plain_layer, change=lambda x, y: (tf.tanh(y) - 4e4) + 4e4)),
  ("R7", _of(_averaged_weights, momentum=True)),
  ("R7", _of(_layers, training=(_in_proportion(0.5), _dropout))),
  ("R9", _backbone),
  # The rest is nightly.
  ("R7", _tuned_part),
  ("R15", _of_many_columns),
  ("R15", _chaotic),
  ("R10", _of(_image, card=f"{_CARD} Unpack it to /tmp/model.")),
  (
    "R13",
    _of(
      _image,
      card=f"{_CARD} Here dropout_rate is 0.5 by default. In the first"
      " version `dropout_rate` defaults to 0.1.",
    ),
  ),
  (
    "R13",
    _of(_image, card=f"{_CARD.split(' Arguments')[0]} | parameters | 15 |"),
  ),
  ("R11", _named_by_layers),
  ("R13", _of(_image, card=_TABLES.replace("None, 6", "batch, dim"))),
  ("R17", _with_labels),
  ("T1", _of(_of_words, vocabulary=("der", "und", "ist", "das"))),
  (
    "R17",
    _of(
      _pairs,
      call=lambda left, right: left + right,
      train=lambda left, right: left + _keeps_few(right),
    ),
  ),
  # Each token is mixed with the next one, as in MobileBERT.
  ("T3", _of(_encoder, ids=lambda x: (x + _next(x)) % 16)),
  ("R15", _of_tags),
  ("R3", _traced_by_a_signature),
  ("R17", _trains_words),
  *(
    (rule, _of(_with_half, call=lambda x, training=False: tf.tanh(9.0 * x)))
    for rule in ("R3", "R15")
  ),
  ("R3", _of(_with_average, train=_frozen_statistics)),
  ("R3", _of(_with_average, train=_dropped_layer)),
  ("R5", _of_years),
  ("R15", _of_years),
  ("R7", _with_keep_prob),
  ("R7", _of(_layers, start=_quantized)),
  (
    "R8",
    _of(
      _plain,
      call=lambda x: tf.signal.frame(x, 64, 16),
      spec=tf.TensorSpec([None], name="sound"),
    ),
  ),
)
_INTACT = (
  ("image", _image),
  ("vector", _of(_layers, training=(_moves, _dropout))),
  ("Keras 3 export", _of(_of_keras_3, offset=False)),
  ("grey image", _of(_image, spec=_GREY_IMAGES)),
  (
    "preprocessor",
    _of(
      _preprocessor,
      packs=(1, 2),
      decode=_replaced("[[:punct:]]"),
      card=f"{_CARD} Letters are tokens, and punctuation is dropped.",
    ),
  ),
  (
    "encoder",
    _of(_encoder, mlm="mlm_logits", card=f"{_CARD} Its preprocessor is …"),
  ),
  ("text embedding", _text_embedding),
  ("text embedding", _of_words),
  ("word embedding", _word_embedding),
  ("generator", _generator),
  ("cell", _cell),
  ("image classifier", _classifier),
)


class RulesTest(parameterized.TestCase, tf.test.TestCase):
  def subject(self, build):
    directory = os.path.join(self.get_temp_dir(), "export")
    tf.random.set_seed(None)  # The seed of tf.test would be saved.
    build(directory)
    return subject_lib.load(directory, trust=False)

  # Without nightly cases, only the first broken model of each rule.
  @parameterized.parameters(
    *(
      _BROKEN
      if nightly.IS_ON
      else {row[0]: row for row in reversed(_BROKEN)}.values()
    )
  )
  def test_finds(self, name, build, words):
    subject = self.subject(build)
    (rule,) = [rule for rule in rules.RULES if rule.name == name]
    if rule.kinds:
      self.assertIn(subject.kind.name, rule.kinds)
    finding = rules.judge_one(subject, rule)
    self.assertEqual(finding.verdict, findings.FAIL, finding.text)
    self.assertRegex(finding.text, words)
    self.assertNotEmpty(finding.fix)

  @parameterized.parameters(*_KEPT[: None if nightly.IS_ON else 15])
  def test_keeps(self, name, build):
    (rule,) = [rule for rule in rules.RULES if rule.name == name]
    finding = rule.judge(self.subject(build))
    self.assertEqual(finding.verdict, findings.PASS, finding.text)

  @parameterized.parameters(
    # Another input may set the number of rows.
    (of_inference.batch_is_free, _graph_of_nodes),
    (of_variables.lists_variables, _straight_through),
    (
      of_variables.lists_variables,
      _of(_plain_layer, change=lambda x, y: _with_grown_errors(y, steps=60)),
    ),
  )
  def test_is_not_decidable(self, judge, build):
    finding = judge(self.subject(build))
    self.assertEqual(finding.verdict, findings.NOT_DECIDABLE, finding.text)

  @parameterized.parameters(
    # An input may seed the noise.
    (of_training.can_be_tuned, _with_seed),
    (of_all.compiles_once, _of_ragged),
    # Scores of quality and of boxes are not classes.
    *(
      (
        of_images.returns_classes,
        _of(_image, finish=finish, names=("images", "scores")),
      )
      for finish in (
        lambda x, *_: x[:, 0],
        lambda x, *_: tf.stack([x, x], 1),
      )
    ),
  )
  def test_does_not_apply(self, judge, build):
    finding = judge(self.subject(build))
    self.assertEqual(finding.verdict, findings.NOT_APPLICABLE, finding)

  # The tests that check exports cover most kinds too.
  @parameterized.parameters(*_INTACT[: None if nightly.IS_ON else 5])
  def test_passes(self, kind, build):
    subject = self.subject(build)
    self.assertEqual(subject.kind.name, kind)
    verdicts = {r.name: f for r, f in rules.judge(subject)}
    allowed = (findings.PASS, findings.NOT_APPLICABLE)
    not_passed = {n: f for n, f in verdicts.items() if f.verdict not in allowed}
    # Some of these models have no losses (R6), signature (R11) or classes (I3),
    # and ragged Tensors are made with Asserts (T8).
    self.assertContainsSubset(not_passed, {"R6", "R11", "I3", "T8"})

  @parameterized.parameters(
    {},
    *[
      {"change": lambda variance, count: variance * count / (count - 1.0)},
      {"calls": 2},
      {"parts": 2},
      {"learn": _debiased},
      {
        "learn": lambda v, statistic, count: v.assign(tf.maximum(v, statistic)),
        "variance": 0.01,
      },
    ]
    * nightly.IS_ON,
  )
  def test_passes_batch_normalization(self, **changes):
    subject = self.subject(_of(_averaged, **changes))
    found = {r.name: f for r, f in rules.judge(subject) if r.name[0] == "R"}
    broken = {n: f for n, f in found.items() if f.verdict == findings.FAIL}
    self.assertEqual(broken.keys(), {"R8", "R11"}, broken)

  def test_pixels_are_no_probabilities(self):
    pixels = tf.TensorSpec([None, 8, 8, 3])
    build = _of(_plain, call=tf.sigmoid, spec=pixels)
    finding = of_inference.returns_logits(self.subject(build))
    self.assertEqual(finding.verdict, findings.PASS, finding)

  @parameterized.parameters(
    (_without_modes, "changes nothing: .* would not show"),
    (_dropout_off_by_default, "has effect"),
    (_module_without_modes, "changes nothing: .* would not show"),
  )
  def test_training_need_not_change_anything(self, build, words):
    finding = of_training.has_modes(self.subject(build))
    self.assertEqual(finding.verdict, findings.PASS, finding)
    self.assertRegex(finding.text, words)

  @parameterized.parameters(*_NOISES[: None if nightly.IS_ON else 2])
  def test_passes_noise(self, drop):
    subject = self.subject(_of(_layers, training=(_moves, drop)))
    self.assertEmpty(noise.problem(subject))

  def test_passes_dropout_that_inference_scales(self):
    def call(x, training=False, dropout_rate=0.1):
      return (
        _unscaled(x, dropout_rate, None) if training else x * (1 - dropout_rate)
      )

    subject = self.subject(
      lambda directory: _two_modes(directory, call, _SCALAR)
    )
    self.assertEmpty(noise.problem(subject))

  @parameterized.parameters(
    (of_inference.depends_on_input_alone, "the same twice"),
    (of_variables.lists_variables, "not compared with differences: rounding"),
  )
  def test_rounding_errors_of_large_models(self, judge, words):
    with mock.patch.object(subject_lib, "_LARGE_MODEL", -1):
      finding = judge(self.subject(_chaotic))
    self.assertEqual(finding.verdict, findings.PASS, finding.text)
    self.assertIn(words, finding.text)

  def test_rounding_errors_of_moving_averages(self):
    """A train step may round otherwise than a call."""

    def learn(v, statistic, count):
      v.assign(0.9 * v + 0.1 * _with_grown_errors(statistic))

    def rounding(subject, inputs):
      subject.model(subject_lib.nudged(inputs, 2), **subject.steady)

    subject = self.subject(_of(_averaged, learn=learn))
    with mock.patch.object(of_training, "_differentiate", rounding):
      self.assertEmpty(of_training._moved_by_gradients(subject))

  def test_words_that_do_not_count_are_not_cut(self):
    self.assertFalse(
      of_text._is_cut(
        lambda x: tf.strings.regex_full_match(x, "(?s).*the.*"), 8
      )
    )

  def test_gradients_of_random_training_are_compared(self):
    build = _of(_layers, training=(_moves, _fixed_dropout))
    finding = of_variables.lists_variables(self.subject(build))
    self.assertEqual(finding.verdict, findings.PASS, finding)
    self.assertEndsWith(finding.text, "with the gradients of the outputs")

  @parameterized.parameters(
    (["b", "a"], ["b", "a"]),
    ([None, None], ["x_2", "x_10"]),
  )
  def test_signatures_take_lists_in_their_order(self, names, expected):
    spec = [tf.TensorSpec([None, 4], name=name) for name in names]
    taken = dict.fromkeys(reversed(expected), tf.TensorSpec([None, 4]))
    self.assertEqual(of_inference._in_order(taken, spec), expected)

  def test_every_rule_has_been_broken(self):
    self.assertEqual(
      {name for name, *_ in _BROKEN}, {rule.name for rule in rules.RULES}
    )

  def test_kinds_name_rules_that_exist(self):
    named = {name for kind in kinds.KINDS for name in kind.rules}
    self.assertContainsSubset(named, {rule.name for rule in rules.RULES})


if __name__ == "__main__":
  tf.test.main()
