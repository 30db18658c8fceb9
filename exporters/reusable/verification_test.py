"""Breaks exports in one place each, and tests that the fault is found there."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import platform
import random
import re
import types
from unittest import mock

from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_text
import tf_keras

from exporters.reusable import allowed_ops
from exporters.reusable import comparison
from exporters.reusable import errors
from exporters.reusable import export_checks
from exporters.reusable import exporting
from exporters.reusable import hyperparameters
from exporters.reusable import layer_calls
from exporters.reusable import mutants
from exporters.reusable import observation
from exporters.reusable import randomness
from exporters.reusable import saving
from exporters.reusable import verification
from exporters.reusable.private_api import saved_model_pb2
from tools import nightly

# Two devices. Tests use the second in place of a GPU.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 2,
)

layers = tf_keras.layers
_SPEC = tf.TensorSpec([None, 4], tf.float32, "features")
_EXAMPLES = [
  tf.random.stateless_normal([batch_size, 4], [1, batch_size])
  for batch_size in (5, 1)
]


def _model(**changes):
  """Builds a small model; `changes` replace layers by name."""
  tf_keras.utils.set_random_seed(0)
  parts = {
    "first": layers.Dense(3, kernel_regularizer="l2", name="first"),
    "batch_norm": layers.BatchNormalization(momentum=0.8, name="batch_norm"),
    "dropout": layers.Dropout(0.5, name="dropout"),
    "second": layers.Dense(2, kernel_regularizer="l2", name="second"),
  }
  model = tf_keras.Sequential(
    [layers.InputLayer((4,)), *{**parts, **changes}.values()]
  )
  return model


def _source(model, tunable=("rate", "momentum"), **kwargs):
  of_layers = {
    "rate": ("rate", 0.5, "", [model.get_layer("dropout")], "rate", 0.0),
    "momentum": (
      "momentum",
      0.8,
      "",
      [model.get_layer("batch_norm")],
      "momentum",
    ),
  }
  return saving.source(
    model,
    _SPEC,
    hyperparameters=[
      hyperparameters.Hyperparameter(*of_layers[name]) for name in tunable
    ],
    **kwargs,
  )


def _export(
  source, export_dir, change=lambda root: None, served=None, spec=_SPEC
):
  root = saving.reusable(source)
  change(root)
  signature = saving.signature(served or root, spec)
  saving.save(root, export_dir, signatures={"serving_default": signature})


def _changed(change):
  """Returns a builder of an export that was changed before it was saved."""
  return lambda export_dir: _export(_source(_model()), export_dir, change)


def _last_missing(name):
  return _changed(lambda root: setattr(root, name, getattr(root, name)[:-1]))


def _variables_hidden(export_dir):
  def hide(root):
    root.weights = root.variables
    del root.variables

  _changed(hide)(export_dir)


def _reversed(name):
  return _changed(lambda root: setattr(root, name, getattr(root, name)[::-1]))


def _variable_renamed(export_dir):
  first = layers.Dense(3, kernel_regularizer="l2", name="other")
  _export(_source(_model(first=first)), export_dir)


def _no_signature(export_dir):
  root = saving.reusable(_source(_model()))
  saving.save(root, export_dir, signatures={})


def _reads_the_first(export_dir):
  path = os.path.join(export_dir, "saved_model.pb")

  class Reading(layers.Dense):
    def call(self, inputs):
      size = tf.strings.length(tf.io.read_file(path))
      return super().call(inputs) + 0.0 * tf.cast(size, tf.float32)

  second = Reading(2, kernel_regularizer="l2", name="second")
  names = allowed_ops.NAMES | {"ReadFile"}  # Otherwise saving refuses it.
  with mock.patch.object(allowed_ops, "NAMES", names):
    _export(_source(_model(second=second)), export_dir)


def _without_hyperparameters():
  """Returns the source and examples of a model that is random in training."""
  return {"": (_source(_model(), tunable=()), _SPEC, _EXAMPLES)}


def _dropout_left_out(export_dir):
  model = _model(dropout=layers.Dropout(0.0, name="dropout"))
  _export(_source(model, tunable=()), export_dir)


class _Noise(layers.Layer):
  def call(self, inputs, training=None):
    noise = tf.random.normal(tf.shape(inputs)) if training else 0.0
    return inputs + noise


class _Frozen(layers.BatchNormalization):
  def call(self, inputs, training=None):
    return super().call(inputs, training=False)


_RANDOM = np.random.default_rng(0)


class _NumpyMask(layers.Layer):
  def call(self, inputs, training=None):
    if not training:
      return inputs
    return inputs * _RANDOM.binomial(1, 0.5, inputs.shape[1:])


def _noisy(**changes):
  return _source(_model(dropout=_Noise(name="dropout"), **changes), ())


def _with_noise(**changes):
  return {"": (_noisy(**changes), _SPEC, _EXAMPLES)}


def _frozen_beside_noise(export_dir):
  batch_norm = _Frozen(momentum=0.8, name="batch_norm")
  _export(_noisy(batch_norm=batch_norm), export_dir)


def _other_noise(export_dir):
  class Other(_Noise):
    def call(self, inputs, training=None):
      return inputs + 1.1 * (super().call(inputs, training) - inputs)

  _export(_source(_model(dropout=Other(name="dropout")), ()), export_dir)


class _NoisyLoop(layers.Layer):
  stddev = 0.5

  def call(self, inputs, training=None):
    def step(i, x):
      return i + 1, x + tf.random.normal(tf.shape(x), stddev=self.stddev)

    if not training:
      return inputs
    return tf.while_loop(lambda i, _: i < 3, step, (0, inputs))[1]


class _NoisierLoop(_NoisyLoop):
  stddev = 0.55


def _noisy_loop(layer=_NoisyLoop):
  source = _source(_model(dropout=layer(name="dropout")), ())
  return {"": (source, _SPEC, _EXAMPLES)}


class _HalfTheRate(layers.Dropout):
  def call(self, inputs, training=None):
    rate, self.rate = self.rate, 0.5 * self.rate
    outputs = super().call(inputs, training)
    self.rate = rate
    return outputs


class _NoSmallRate(layers.Dropout):
  def call(self, inputs, training=None):
    rate = self.rate
    self.rate = tf.where(rate < 0.2, 0.0, rate)
    outputs = super().call(inputs, training)
    self.rate = rate
    return outputs


def _small_rates_lost(export_dir):
  dropout = _NoSmallRate(0.5, name="dropout")
  _export(_source(_model(dropout=dropout)), export_dir)


def _rate_halved(export_dir):
  dropout = _HalfTheRate(0.5, name="dropout")
  _export(_source(_model(dropout=dropout)), export_dir)


def _with_seed():
  dropout = layers.Dropout(0.5, name="dropout", seed=7)
  return {"": (_source(_model(dropout=dropout)), _SPEC, _EXAMPLES)}


def _seed_saved(export_dir):
  with mock.patch.object(saving.slimming, "slim"):
    _export_parts(_with_seed(), export_dir)


def _with_numpy_mask():
  return _with_noise(second=_NumpyMask(name="second"))


def _two_rows_swapped(export_dir):
  class Swapped(layers.Dense):
    def call(self, inputs):
      outputs = super().call(inputs)
      swapped = tf.reverse(outputs, [0])
      return tf.where(tf.shape(inputs)[0] == 2, swapped, outputs)

  second = Swapped(2, kernel_regularizer="l2", name="second")
  _export(_source(_model(second=second)), export_dir)


def _late_rows_lost(export_dir):
  class First256(layers.Dense):
    def call(self, inputs):
      outputs = super().call(inputs)
      row = tf.range(tf.shape(inputs)[0])[:, tf.newaxis]
      return tf.where(row < 256, outputs, 0.0)

  second = First256(2, kernel_regularizer="l2", name="second")
  _export(_source(_model(second=second)), export_dir)


def _training_hidden(export_dir):
  """Breaks the contract of hub.KerasLayer, which looks for `training`."""
  source = _source(_model())

  @tf.function
  def call(inputs, **arguments):
    return source.call(inputs, **arguments)

  scalar = tf.TensorSpec([], tf.float32)
  for training in ({}, {"training": True}):
    call.get_concrete_function(_SPEC, **training)
    call.get_concrete_function(_SPEC, **training, rate=scalar)
    call.get_concrete_function(_SPEC, **training, rate=scalar, momentum=scalar)
  _export(
    source,
    export_dir,
    lambda root: setattr(root, "__call__", call),
    saving.reusable(source),
  )


def _training_missing(root):
  call = root.__call__

  @tf.function
  def without_training(inputs, rate=0.5, momentum=0.8):
    return call(inputs, rate=rate, momentum=momentum)

  scalar = tf.TensorSpec([], tf.float32)
  without_training.get_concrete_function(_SPEC, scalar, scalar)
  root.__call__ = without_training


def _weights_off(export_dir):
  model = _model()
  kernel = model.get_layer("second").kernel
  kernel.assign_add(1e-3 * tf.ones_like(kernel))
  _export(_source(model), export_dir)


def _regularizer_dropped(export_dir):
  second = layers.Dense(2, name="second")
  _export(_source(_model(second=second)), export_dir)


def _loss_without_gradient(export_dir):
  def stopped(kernel):
    return tf.stop_gradient(tf_keras.regularizers.L2()(kernel))

  second = layers.Dense(2, kernel_regularizer=stopped, name="second")
  _export(_source(_model(second=second)), export_dir)


def _loss_of_old_weights(export_dir):
  """Exports a loss that is right for the present weights only."""
  live = _model()
  before = [w.numpy() for w in live.trainable_variables]

  def of_old(kernel):
    (old,) = (x for x in before if x.shape == kernel.shape and x.ndim > 1)
    loss = tf_keras.regularizers.L2()
    return loss(kernel) * tf.norm(kernel) / tf.norm(old)

  changes = {
    name: layers.Dense(units, kernel_regularizer=of_old, name=name)
    for name, units in (("first", 3), ("second", 2))
  }
  _export(_source(_model(**changes)), export_dir)


def _half_precision_changed(change):
  def converted(inputs, spec):
    if inputs.dtype != spec.dtype:
      return change(tf.cast(inputs, spec.dtype))
    return None

  def build(export_dir):
    source = _source(_model())
    with mock.patch.object(saving, "_converted", converted):
      root = saving.reusable(
        source, also_takes=saving.of_mixed_precision(_SPEC)
      )
    signature = saving.signature(root, _SPEC)
    saving.save(root, export_dir, signatures={"serving_default": signature})

  return build


def _half_precision_without_gradient(export_dir):
  root = saving.reusable(
    _source(_model()), also_takes=saving.of_mixed_precision(_SPEC)
  )
  signature = saving.signature(root, _SPEC)
  saving.save(root, export_dir, signatures={"serving_default": signature})
  path = pathlib.Path(export_dir, "saved_model.pb")
  saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  for function in saved.meta_graphs[0].graph_def.library.function:
    if {"Cast", "StatefulPartitionedCall"} < {n.op for n in function.node_def}:
      for node in function.node_def:
        if node.op == "Identity":
          node.op = "StopGradient"
  path.write_bytes(saved.SerializeToString())


def _dropout_left_on(export_dir):
  class AlwaysOn(layers.Dropout):
    def call(self, inputs, training=None):
      return super().call(inputs, training=True)

  model = _model(dropout=AlwaysOn(0.5, name="dropout"))
  _export(_source(model), export_dir)


def _weight_as_constant(index, change=lambda x: x):
  """Returns a builder of an export with `change` of a weight as a constant."""
  return lambda export_dir: _of_constant(export_dir, index, change)


def _of_constant(export_dir, index, change):
  model = _model()
  weight = model.trainable_variables[index]
  value = change(tf.constant(weight.numpy()))

  def call(inputs, training=False):
    changed = tf.reduce_sum(tf.stop_gradient(change(weight) - value) ** 2)
    return model(inputs, training=training) + changed

  source = _source(model)
  _export(
    saving.source(
      call,
      _SPEC,
      hyperparameters=source.hyperparameters,
      variables=model.variables,
      trainable_variables=model.trainable_variables,
      regularization_losses=source.regularization_losses,
    ),
    export_dir,
  )


def _momentum_ignored(export_dir):
  model = _model()
  momentum = hyperparameters.Hyperparameter("momentum", 0.8, "")

  def call(inputs, momentum, training=False):
    # The outputs depend on it, so that saving does not refuse it.
    return model(inputs, training=training) + 0.0 * momentum

  source = _source(model)
  rate = source.hyperparameters[0]
  _export(
    saving.source(
      call,
      _SPEC,
      hyperparameters=[rate, momentum],
      variables=model.variables,
      trainable_variables=model.trainable_variables,
      regularization_losses=source.regularization_losses,
    ),
    export_dir,
  )


def _gradient_stopped(name, units):
  """Returns a builder of an export where no gradient passes a layer."""
  # `saving.source` would see the op itself.
  stopped = tf.function(tf.stop_gradient)

  class Stopped(layers.Dense):
    def call(self, inputs):
      return super().call(stopped(inputs))

  layer = Stopped(units, kernel_regularizer="l2", name=name)
  return lambda export_dir: _export(
    _source(_model(**{name: layer})), export_dir
  )


def _outputs_swapped(export_dir):
  class Swapped(layers.Dense):
    def call(self, inputs):
      return tf.reverse(super().call(inputs), [1])

  second = Swapped(2, kernel_regularizer="l2", name="second")
  _export(_source(_model(second=second)), export_dir)


def _averages_stand_still(export_dir):
  class Still(layers.BatchNormalization):
    def _assign_moving_average(self, variable, value, momentum, inputs_size):
      return super()._assign_moving_average(
        variable, variable + 0.0 * value, momentum, inputs_size
      )

  batch_norm = Still(momentum=0.8, name="batch_norm")
  _export(_source(_model(batch_norm=batch_norm)), export_dir)


def _averages_of_the_start(export_dir):
  """Exports averages that also move by their distance from their start."""

  class FromStart(layers.BatchNormalization):
    def _assign_moving_average(self, variable, value, momentum, inputs_size):
      with tf.init_scope():
        start = tf.constant(variable.numpy())
      return super()._assign_moving_average(
        variable, value + (variable - start), momentum, inputs_size
      )

  batch_norm = FromStart(momentum=0.8, name="batch_norm")
  _export(_source(_model(batch_norm=batch_norm)), export_dir)


def _with_largest(update=tf.maximum):
  """Returns the source and examples of a model that keeps the largest inputs.

  Args:
    update: Computes the new largest inputs from the old ones and a batch's.
  """
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")
  largest = tf.Variable(tf.zeros([4]), trainable=False, name="largest")

  def call(inputs, training=False):
    if training:
      # An empty batch has no maximum.
      of_batch = tf.maximum(tf.reduce_max(tf.abs(inputs), 0), 0.0)
      largest.assign(update(largest, of_batch))
      return inputs @ kernel
    return inputs / largest @ kernel

  variables = [kernel, largest]
  return {
    "": (saving.source(call, _SPEC, variables=variables), _SPEC, _EXAMPLES)
  }


def _averages_of_nothing(export_dir):
  class AlwaysUpdated(layers.BatchNormalization):
    def _support_zero_size_input(self):
      return False

  batch_norm = AlwaysUpdated(momentum=0.8, name="batch_norm")
  _export(_source(_model(batch_norm=batch_norm)), export_dir)


def _weights_decay(export_dir):
  class Decaying(layers.Dense):
    def call(self, inputs, training=None):
      outputs = super().call(inputs)
      if training:
        self.kernel.assign((1 - 1e-6) * self.kernel)
      return outputs

  second = Decaying(2, kernel_regularizer="l2", name="second")
  _export(_source(_model(second=second)), export_dir)


def _outputs_of_nothing(export_dir):
  class Filled(layers.Dense):
    def call(self, inputs):
      missing = tf.cast(tf.shape(inputs)[:1] == 0, tf.int32)
      outputs = super().call(inputs)
      return tf.pad(outputs, [[0, missing[0]], [0, 0]])

  second = Filled(2, kernel_regularizer="l2", name="second")
  _export(_source(_model(second=second)), export_dir)


def _training_without_effect(export_dir):
  model = _model()
  source = _source(model)

  def call(inputs, rate, momentum, training=False):
    # The traces differ, or the export would have no `training`.
    zero = 0.0 if training else -0.0
    return model(inputs) + zero * rate * momentum

  _export(
    saving.source(
      call,
      _SPEC,
      hyperparameters=[
        hyperparameters.Hyperparameter("rate", 0.5, ""),
        hyperparameters.Hyperparameter("momentum", 0.8, ""),
      ],
      variables=model.variables,
      trainable_variables=model.trainable_variables,
      regularization_losses=source.regularization_losses,
    ),
    export_dir,
  )


def _serving_differs(export_dir):
  model = _model()
  served = saving.reusable(
    saving.source(
      lambda x: model(x) + 1.0,
      _SPEC,
      variables=model.variables,
      regularization_losses=[],
    )
  )
  _export(
    _source(model), export_dir, lambda root: setattr(root, "x", served), served
  )


# A preprocessor from texts to token ids.
_TEXTS = tf.TensorSpec([None], tf.string, "texts")
_IDS = tf.RaggedTensorSpec([None, None], tf.int32)
_TEXT_EXAMPLES = [
  tf.constant(["zero \0 byte", "", "a b c d e"]),
  tf.constant(["one"]),
]


def _tokenize(texts):
  return tf.ragged.map_flat_values(
    lambda words: tf.cast(tf.strings.to_hash_bucket_fast(words, 100), tf.int32),
    tf.strings.split(texts),
  )


def _pack(segments, seq_length):
  seq_length = tf.cast(seq_length, tf.int32)
  ids = tf.concat(segments, 1)[:, :seq_length].to_tensor()
  padding = [[0, 0], [0, seq_length - tf.shape(ids)[1]]]
  return {"input_word_ids": tf.pad(ids, padding), "texts": tf.shape(ids)[0]}


def _preprocessor(**changes):
  """Returns the sources and examples of a preprocessor and its parts."""
  tokenize = changes.get("tokenize", _tokenize)
  pack = changes.get("pack", _pack)
  seq_length = hyperparameters.Hyperparameter("seq_length", 4.0, "")
  return {
    "": (
      saving.source(
        lambda texts, seq_length: pack([tokenize(texts)], seq_length),
        _TEXTS,
        hyperparameters=[seq_length],
      ),
      _TEXTS,
      _TEXT_EXAMPLES,
    ),
    "tokenize": (saving.source(tokenize, _TEXTS), _TEXTS, _TEXT_EXAMPLES),
    "pack": (
      saving.source(pack, [_IDS, _IDS], hyperparameters=[seq_length]),
      [_IDS, _IDS],
      [[_tokenize(x), _tokenize(x + "s")] for x in _TEXT_EXAMPLES],
    ),
  }


def _export_parts(parts, export_dir, change=lambda root: None):
  made = {
    name: saving.reusable(source) for name, (source, _, _) in parts.items()
  }
  root = made.pop("")
  for name, part in made.items():
    *path, last = name.split(".")
    setattr(functools.reduce(getattr, path, root), last, part)
  change(root)
  signature = saving.signature(root, parts[""][1])
  saving.save(root, export_dir, signatures={"serving_default": signature})


def _tokenize_upper(texts):
  return _tokenize(tf.strings.upper(texts))


def _pack_other_way(segments, seq_length):
  return _pack(segments[::-1], seq_length)


def _with_head(kernel=1.0):
  """Returns the sources and examples of an encoder and a head on it."""
  source = _source(_model())
  kernel = tf.Variable(kernel * tf.ones([2, 3]), name="head_kernel")
  head = saving.source(
    lambda x, training=False: source.model(x, training=training) @ kernel,
    _SPEC,
    hyperparameters=source.hyperparameters,
    variables=[*source.variables, kernel],
    trainable_variables=[*source.trainable_variables, kernel],
    regularization_losses=source.regularization_losses,
  )
  return {"": (source, _SPEC, _EXAMPLES), "head": (head, _SPEC, _EXAMPLES)}


def _with_nested():
  parts = _with_head()
  return {**parts, "head.inner": parts["head"]}


def _times_two_in_large_batches(x):
  return tf.where(tf.shape(x)[0] > 5, 2.0, 1.0) * x


def _two_heads(factor):
  """Returns a model with an output of 1e8; scales the other's gradient."""
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")
  other = tf.Variable(1e8 * tf.ones([4, 2]), name="other")

  @tf.custom_gradient
  def scaled(x):
    return tf.identity(x), lambda dy: factor * dy

  def call(inputs):
    return {"class": scaled(inputs @ kernel), "people": inputs @ other}

  variables = [kernel, other]
  source = saving.source(call, _SPEC, variables=variables)
  return {"": (source, _SPEC, _EXAMPLES)}


def _masked(factor):
  """Returns a model with masked logits; scales their gradient."""
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  @tf.custom_gradient
  def scaled(x):
    return tf.identity(x), lambda dy: factor * dy

  def call(inputs):
    return tf.where([True, False], scaled(inputs @ kernel), tf.float32.min)

  source = saving.source(call, _SPEC, variables=[kernel])
  return {"": (source, _SPEC, _EXAMPLES)}


def _plain():
  return {"": (_source(_model()), _SPEC, _EXAMPLES)}


def _matmul(change):
  """Returns the source and examples of a function, which `xla` cannot cure."""
  kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  def call(inputs, training=False):
    x = change(inputs @ kernel)
    return tf.nn.dropout(x, 0.5) if training else x

  return {
    "": (saving.source(call, _SPEC, variables=[kernel]), _SPEC, _EXAMPLES)
  }


def _transposed():
  return _matmul(lambda x: tf.transpose(tf.transpose(x) ** 3))


def _branching():
  return _matmul(
    lambda x: tf.cond(tf.reduce_sum(x) > 0.0, lambda: x**3, lambda: 2.0 * x)
  )


def _broken_parts(build, change=lambda root: None, **changes):
  return lambda export_dir: _export_parts(build(**changes), export_dir, change)


# A name; the live model and its sub-objects; a builder of its broken export;
# kind, place and words of the comparison that must find the fault.
_BROKEN = [
  (
    "variables_hidden",
    _plain,
    _variables_hidden,
    "interface",
    "interface",
    "variables is missing",
  ),
  (
    "training_missing",
    _plain,
    _changed(_training_missing),
    "interface",
    "interface",
    "^the argument `training` of __call__ is missing$",
  ),
  (
    "endpoint_in_the_wrong_mode",
    _plain,
    _changed(lambda root: setattr(root, "train", root.__call__)),
    "interface",
    "interface",
    "^train has training=False as default$",
  ),
  (
    "endpoint_with_traces_of_its_own",
    _plain,
    _changed(
      lambda root: setattr(root, "serve", saving.signature(root, _SPEC))
    ),
    "interface",
    "interface",
    "^serve does not have the traces of __call__$",
  ),
  (
    "sub_object_missing",
    _with_head,
    _broken_parts(_with_head, lambda root: delattr(root, "head")),
    "interface",
    "head, interface",
    "__call__ is missing",
  ),
  (
    "nested_sub_object_missing",
    _with_nested,
    _broken_parts(_with_nested, lambda root: delattr(root.head, "inner")),
    "interface",
    "head.inner, interface",
    "__call__ is missing",
  ),
  (
    "variables_of_sub_object_missing",
    _with_head,
    _broken_parts(_with_head, lambda root: delattr(root.head, "variables")),
    "interface",
    "head, interface",
    "variables is missing",
  ),
  (
    "weights_off",
    _plain,
    _weights_off,
    "variables",
    "variables",
    "6 second/kernel:0 differs",
  ),
  (
    "weights_of_sub_object_off",
    _with_head,
    _broken_parts(_with_head, kernel=1.5),
    "variables",
    "head, variables",
    "8 head_kernel:0 differs",
  ),
  (
    "variable_renamed",
    _plain,
    _variable_renamed,
    "variables",
    "variables",
    "0 first/kernel:0 is missing",
  ),
  (
    "variables_in_another_order",
    _plain,
    _reversed("variables"),
    "variables",
    "variables",
    "0 first/kernel:0 is missing",
  ),
  (
    "trainable_variables_in_another_order",
    _plain,
    _reversed("trainable_variables"),
    "trainable variables",
    "trainable variables",
    "0 first/kernel:0 is missing",
  ),
  (
    "trainable_variable_missing",
    _plain,
    _last_missing("trainable_variables"),
    "trainable variables",
    "trainable variables",
    "5 second/bias:0 is missing",
  ),
  (
    "trainable_variable_not_listed",
    _plain,
    _last_missing("variables"),
    "trainable variables",
    "trainable variables",
    "5 second/bias:0 differs",
  ),
  (
    "regularizer_dropped",
    _plain,
    _regularizer_dropped,
    "regularization losses",
    "regularization losses",
    "gradient for 4 second/kernel:0 is missing",
  ),
  (
    "loss_without_gradient",
    _plain,
    _loss_without_gradient,
    "regularization losses",
    "regularization losses",
    "gradient for 4 second/kernel:0 is missing",
  ),
  (
    "loss_of_old_weights",
    _plain,
    _loss_of_old_weights,
    "regularization losses",
    r"regularization losses, training \(36, 4\), other weights",
    "the sum differs by",
  ),
  (
    "half_precision_doubled",
    _plain,
    _half_precision_changed(lambda x: 2 * x),
    "other forms",
    "other forms, rate 0.875, one seed, bfloat16",
    "outputs differs by",
  ),
  (
    "input_gradient_stopped",
    _plain,
    _gradient_stopped("first", 3),
    "gradients",
    r"gradients, training \(1, 4\)",
    "^the input is missing$",
  ),
  (
    "half_precision_without_gradient",
    _plain,
    _half_precision_without_gradient,
    "gradients",
    r"gradients, inference \(5, 4\), bfloat16",
    "0 first/kernel:0 is missing",
  ),
  (
    "half_precision_without_gradient_for_input",
    _plain,
    _half_precision_changed(tf.stop_gradient),
    "gradients",
    r"gradients, inference \(5, 4\), bfloat16",
    r"^the input \[0\] is missing$",
  ),
  (
    "dropout_left_on",
    _plain,
    _dropout_left_on,
    "outputs",
    r"outputs, inference \(5, 4\)",
    "the tensor differs by",
  ),
  (
    "weight_as_constant",
    _plain,
    _weight_as_constant(0),
    "outputs",
    r"outputs, inference \(5, 4\), other weights",
    "the tensor differs by",
  ),
  (
    "weight_normalized_as_constant",
    _plain,
    _weight_as_constant(0, tf.math.l2_normalize),
    "outputs",
    r"outputs, inference \(5, 4\), other weights",
    "the tensor differs by",
  ),
  (
    "signs_as_constant",
    _plain,
    _weight_as_constant(0, tf.sign),
    "outputs",
    r"outputs, inference \(5, 4\), other weights",
    "the tensor differs by",
  ),
  (
    "zero_as_constant",
    _plain,
    _weight_as_constant(1),
    "outputs",
    r"outputs, inference \(5, 4\), other weights",
    "the tensor differs by",
  ),
  (
    "outputs_swapped",
    _plain,
    _outputs_swapped,
    "outputs",
    r"outputs, inference \(5, 4\)",
    "the tensor differs by",
  ),
  (
    "training_without_effect",
    _plain,
    _training_without_effect,
    "outputs",
    r"outputs, training \(5, 4\)",
    "the tensor differs by",
  ),
  (
    "tokens_of_other_words",
    _preprocessor,
    _broken_parts(_preprocessor, tokenize=_tokenize_upper),
    "outputs",
    r"tokenize, outputs, inference \(3,\)",
    "flat_values differs",
  ),
  (
    "segments_in_another_order",
    _preprocessor,
    _broken_parts(_preprocessor, pack=_pack_other_way),
    "outputs",
    r"pack, outputs, inference 2 of \(3, None\)",
    "input_word_ids differs",
  ),
  (
    "gradient_stopped",
    _plain,
    _gradient_stopped("second", 2),
    "gradients",
    r"gradients, training \(1, 4\)",
    "0 first/kernel:0 is missing",
  ),
  (
    "largest_forgotten",
    _with_largest,
    _broken_parts(_with_largest, update=lambda old, new: new + 0.0 * old),
    "updates",
    r"updates, training \(36, 4\), other weights",
    "largest:0 differs by",
  ),
  (
    "averages_stand_still",
    _plain,
    _averages_stand_still,
    "updates",
    r"updates, training \(5, 4\)",
    "batch_norm/moving_mean:0 differs by",
  ),
  (
    "averages_of_the_start",
    _plain,
    _averages_of_the_start,
    "updates",
    r"updates, training \(36, 4\), other weights",
    "batch_norm/moving_mean:0 differs by",
  ),
  (
    "largest_kept",
    _with_largest,
    _broken_parts(
      _with_largest, update=lambda old, new: tf.where(old == 0.0, new, old)
    ),
    "updates",
    r"updates, training \(36, 4\), other weights",
    "largest:0 differs by",
  ),
  (
    "momentum_ignored",
    _plain,
    _momentum_ignored,
    "hyperparameters",
    "hyperparameters, momentum 0.4",
    "it changes nothing",
  ),
  (
    "weights_decay",
    _plain,
    _weights_decay,
    "variables",
    "variables, after all calls",
    "^a call of the export changes second/kernel:0",
  ),
  (
    "dropout_left_out",
    _without_hyperparameters,
    _dropout_left_out,
    "randomness",
    r"randomness, training \(5, 4\)",
    "the randomness of calls differs",
  ),
  (
    "frozen_beside_noise",
    _with_noise,
    _frozen_beside_noise,
    "updates",
    r"updates, training \(5, 4\), one seed",
    "batch_norm/moving_mean:0 differs by",
  ),
  (
    "other_noise",
    _with_noise,
    _other_noise,
    "outputs",
    r"outputs, training \(5, 4\), one seed",
    "the tensor differs by",
  ),
  (
    "rate_halved",
    _plain,
    _rate_halved,
    "outputs",
    r"outputs, training \(5, 4\), one seed",
    "the tensor differs by",
  ),
  (
    "small_rates_lost",
    _plain,
    _small_rates_lost,
    "outputs",
    r"outputs, rate 0.125, one seed, other weights",
    "the tensor differs by",
  ),
  (
    "seed_saved",
    _with_seed,
    _seed_saved,
    "randomness",
    "randomness",
    "^1 random ops have seeds",
  ),
  (
    "noisier_loop",
    _noisy_loop,
    _broken_parts(_noisy_loop, layer=_NoisierLoop),
    "distribution",
    r"distribution, training \(5, 4\), \d+ calls",
    r"standard deviations of the tensor of the outputs over \d+ calls differ",
  ),
  (
    "frozen_mask_of_numpy",
    _with_numpy_mask,
    _broken_parts(_with_numpy_mask),
    "one seed",
    r"one seed, training \(5, 4\), one seed",
    "numbers that are not TensorFlow's",
  ),
  (
    "rows_swapped_in_a_batch_of_two",
    _plain,
    _two_rows_swapped,
    "outputs",
    r"outputs, inference \(2, 4\)",
    "the tensor differs by",
  ),
  (
    "late_rows_lost",
    _plain,
    _late_rows_lost,
    "outputs",
    r"outputs, inference \(300, 4\)",
    "the tensor differs by",
  ),
  (
    "training_hidden",
    _plain,
    _training_hidden,
    "hub.KerasLayer",
    r"hub.KerasLayer, training \(5, 4\)",
    "outputs differs by",
  ),
  # The model is random in training, so this call has no outputs to compare.
  (
    "constant_for_xla",
    _transposed,
    _broken_parts(_transposed),
    "compilation under XLA",
    r"compilation under XLA, training \(5, 4\)",
    r"gradient of Transpose \(transpose\S* in \S+\) takes a",
  ),
  (
    "averages_of_nothing",
    _plain,
    _averages_of_nothing,
    "empty batch",
    r"empty batch, training \(5, 4\)",
    "moving_mean:0 differs by nan.*moving_variance:0 differs by nan",
  ),
  (
    "outputs_of_nothing",
    _plain,
    _outputs_of_nothing,
    "empty batch",
    r"empty batch, training \(5, 4\)",
    r"the tensor has the shape \(1, 2\)",
  ),
  (
    "branch_for_xla",
    _branching,
    _broken_parts(_branching),
    "compilation under XLA",
    r"compilation under XLA, training \(5, 4\)",
    r"cannot compile the gradient of StatelessIf \(cond\S* in \S+\)",
  ),
  (
    "many_rows_in_training",
    lambda: _matmul(lambda x: x),
    _broken_parts(lambda: _matmul(_times_two_in_large_batches)),
    "outputs",
    r"outputs, training \(36, 4\), one seed, other weights",
    r"differs by .* in \[:, 0\]",
  ),
  (
    "gradient_beside_a_large_output",
    lambda: _two_heads(1.0),
    _broken_parts(lambda: _two_heads(0.5)),
    "gradients",
    r"gradients, inference \(1, 4\)",
    "0 kernel:0 differs",
  ),
  (
    "gradient_beside_a_mask",
    lambda: _masked(1.0),
    _broken_parts(lambda: _masked(0.5)),
    "gradients",
    r"gradients, inference \(1, 4\)",
    "0 kernel:0 differs",
  ),
  (
    "no_signature",
    _plain,
    _no_signature,
    "signatures",
    "signatures, serving_default",
    "there is no signature of this name",
  ),
  (
    "signature_of_another",
    _plain,
    _serving_differs,
    "signatures",
    "signatures, serving_default",
    "outputs differs by 1",
  ),
  (
    "reads_the_first",
    _plain,
    _reads_the_first,
    "saved again",
    "saved again",
    "it does not work: .*saved_model.pb; No such file",
  ),
]


_ALWAYS = (
  *("outputs", "gradients", "regularization losses", "one seed"),
  *("other forms", "signatures", "empty batch", "compilation under XLA"),
)

# The calls of a model: the name, the size of the example if the name lacks it,
# the arguments, and how each is observed.
_PLAN = """
inference (5, 4): updates forms
training (5, 4): training=True rate=0.0 updates keras empty
inference (1, 4):
training (1, 4): training=True rate=0.0 gradients updates compilation
inference (0, 4):
inference (2, 4):
inference (300, 4):
inference (5, 4), other weights: gradients updates reweighted
training (36, 4), other weights: training=True rate=0.0 updates reweighted
inference, rate 0.25, momentum 0.4: (5, 4) rate=0.25 momentum=0.4
rate 0.5: (5, 4) training=True rate=0.5 without
momentum 0.4: (5, 4) training=True rate=0.0 momentum=0.4 gradients updates
momentum 0.998: (5, 4) training=True rate=0.0 momentum=0.998 updates
momentum 0.4: (5, 4) training=True rate=0.0 momentum=0.4 without
training (5, 4), one seed: training=True updates seeded
rate 0.875, one seed, other weights: (36, 4) training=True rate=0.875 \
gradients updates forms seeded reweighted
rate 0.125, one seed, other weights: (36, 4) training=True rate=0.125 updates \
seeded reweighted
"""
_FAST_PLAN = """
inference (5, 4): updates forms
training (5, 4): training=True rate=0.0 updates
training (5, 4), one seed: training=True updates seeded
"""
# The calls of a model that is random with any arguments.
_RANDOM_PLAN = """
inference (5, 4): updates forms
training (5, 4): training=True compilation empty random
inference (1, 4): gradients updates
inference (0, 4):
inference (2, 4):
inference (300, 4):
inference (5, 4), other weights: gradients updates reweighted
training (5, 4), one seed: training=True gradients updates seeded
training (36, 4), one seed, other weights: training=True gradients updates \
seeded reweighted
"""
# The calls of a model without modes, weights and floats.
_PREPROCESSOR_PLAN = """
inference 2 of (3, None): empty forms
inference 2 of (1, None):
inference 2 of (0, None):
inference 2 of (2, None):
inference 2 of (300, None):
seq_length 2: 2 of (3, None) seq_length=2.0
seq_length 16.5: 2 of (3, None) seq_length=16.5
seq_length 2: 2 of (3, None) seq_length=2.0 without
"""

_LOST = tf.TensorSpec([None, None])


def _in_words(call):
  """Writes a planned call as in `_PLAN`."""
  size = verification._size(call.example)
  arguments = [f"{k}={v}" for k, v in call.arguments.items()]
  flags = [k for k, v in call._asdict().items() if v is True]
  without = ["without"] * (call.without is not None)
  size = [size] * (size not in call.name)
  return " ".join([f"{call.name}:", *size, *arguments, *flags, *without])


def _check(export_dir, parts):
  """Runs both halves of the verification in this process."""
  parts = {
    name: (source, examples) for name, (source, _, examples) in parts.items()
  }
  return export_checks.check(
    export_dir,
    observation.load(export_dir),
    *verification.observe(parts, "full"),
    save_again=True,
  )


class VerificationTest(parameterized.TestCase, tf.test.TestCase):
  # Without nightly cases, only the first fault of each kind in `_ALWAYS`. Few
  # lines of code find these kinds.
  @parameterized.named_parameters(
    _BROKEN
    if nightly.IS_ON
    else {r[3]: r for r in reversed(_BROKEN) if r[3] in _ALWAYS}.values()
  )
  def test_finds(self, live, build, kind, where, words):
    export_dir = os.path.join(self.get_temp_dir(), "broken")
    build(export_dir)
    found = [r for r in _check(export_dir, live()) if r.problems]
    matching = [r for r in found if re.fullmatch(where, r.place)]
    self.assertLen(matching, 1, found)
    self.assertEqual(matching[0].kind, kind)
    self.assertRegex("; ".join(matching[0].problems), words)

  def test_compares_columns_and_structure(self):
    """A large column hides no small one, and no two paths share a name."""
    old = np.array([[1e6, 10.0], [1e6, 20.0]], np.float32)
    worst, problems = comparison.compare(
      "outputs", {"y": old}, {"y": old + np.float32([0.0, 5.0])}
    )
    self.assertAllClose(worst, 5e-5)
    self.assertEqual(
      problems, ["y differs by 5 in [:, 1]; its largest value there is 20"]
    )
    half = np.ones(2, np.float16)
    for kind, ulps, count in (
      *(("outputs", 1, 0), ("outputs", 3, 1)),
      *(("gradients", 16, 0), ("gradients", 17, 1)),
    ):
      other = half + np.float16(ulps / 1024)
      _, problems = comparison.compare(kind, {"y": half}, {"y": other})
      self.assertLen(problems, count)
    _, problems = comparison.compare(
      "outputs", {"y": old}, {"y": old * 1.000001}
    )
    self.assertEmpty(problems)
    for other in (old[:1], old.astype(np.float64)):
      _, (problem,) = comparison.compare("outputs", {"y": old}, {"y": other})
      self.assertIn("and was float32[2, 2]", problem)
    # The small column may differ by as much as rounding errors change it.
    small = {"y": old + np.float32([0.0, 0.5])}
    _, problems = comparison.compare("outputs", {"y": old}, small)
    self.assertEmpty(problems)
    for perturbed, count in (
      ([0.0, 0.0], 1),
      ([0.0, 1e-3], 1),
      ([0.0, 0.2], 0),
      ([1e3, 0.0], 1),
    ):
      noise = [{"y": small["y"] + np.float32(perturbed)}]
      _, problems = comparison.compare("outputs", {"y": old}, small, noise)
      self.assertLen(problems, count)
    row = {"y": old[0]}  # An array with one axis is one column.
    _, problems = comparison.compare("outputs", row, {"y": old[0] + 5})
    self.assertEmpty(problems)
    # Rows are compared where repeated calls show rounding errors.
    _, (problem,) = comparison.compare("outputs", row, {"y": old[0] + 5}, ())
    self.assertStartsWith(problem, "y differs by 5 in [1]; its largest")
    old = np.stack([old, 1e-6 * old])
    new = old * np.float32([[[1.0]], [[1.1]]])
    self.assertEmpty(comparison.compare("outputs", {"y": old}, {"y": new})[1])
    _, (problem,) = comparison.compare("outputs", {"y": old}, {"y": new}, ())
    self.assertStartsWith(problem, "y differs by 0.1 in [1, 0, :]; its largest")
    # An infinite value or a NaN that both have hides nothing, either.
    old = np.array([[np.inf, np.nan, 2.0]] * 2, np.float32)
    new = np.where(np.isfinite(old), 2.000001, old).astype(np.float32)
    self.assertEmpty(comparison.compare("outputs", {"y": old}, {"y": new})[1])
    for i in range(3):
      other = new.copy()
      other[0, i] = 3.0
      for pair in ((old, other), (other, old)):
        _, problems = comparison.compare(
          "outputs", *({"y": array} for array in pair)
        )
        self.assertLen(problems, 1)
    old[:, 0] = [np.inf, 5.0]
    _, problems = comparison.compare("outputs", {"y": old}, {"y": old + 1})
    self.assertLen(problems, 1)
    # An infinite value does not count in the size of its column.
    old = np.array([[np.inf], [1e-3]], np.float32)
    _, problems = comparison.compare(
      "outputs", {"y": old}, {"y": old + np.float32(5e-6)}
    )
    self.assertLen(problems, 1)
    self.assertLen(comparison.named({"a": {"b": 1}, "a/b": 2, "a//b": 3}), 3)
    self.assertNotEqual(
      comparison.named({"a": [1]}), comparison.named({"a": {"0": 1}})
    )

  def test_allows_what_rounding_errors_change(self):
    old = np.array([1.0, 2.0], np.float32)

    def problems(actual, *perturbed):
      new, *others = (old + np.float32([0.0, x]) for x in (actual, *perturbed))
      noise = [{"y": x} for x in others]
      return comparison.compare("gradients", {"y": old}, {"y": new}, noise)[1]

    self.assertLen(problems(0.02), 1)
    self.assertEmpty(problems(0.02, 0.02, 0.03))
    self.assertLen(problems(0.02, 0.02, 0.024), 1)
    self.assertLen(problems(0.02, np.nan), 1)
    # Rounding errors allow 100 times the tolerance at most.
    self.assertEmpty(problems(0.19, 0.1))
    (problem,) = problems(0.21, 0.1)
    self.assertEndsWith(problem, "; rounding errors alone change it by 0.11")
    # A float64 may be computed as float32 in the graph alone, or on both sides.
    double = {"y": old.astype(np.float64)}
    single = {"y": double["y"] + 1e-7}
    for noise, count in (([], 1), ([double], 0)):
      _, found = comparison.compare("outputs", double, single, noise)
      self.assertLen(found, count)

  def test_names_gradients_that_others_hide(self):
    for y, names in ((1e-5, {"2 u"}), (1e-7, {"2 u", "the input y"})):
      sizes = {"0 w": 1.0, "1 v": 1e-9, "2 u": 0.0, "the input x": 10.0}
      sizes["the input y"] = y
      arrays = {k: np.float32([0.0, x]) for k, x in sizes.items()}
      self.assertEqual(comparison.unseen(arrays), names)

  def test_allows_what_rounding_errors_change_beside_large_gradients(self):
    """A gradient may be zero up to the rounding errors of other gradients."""

    def problems(actual, *perturbed, dtype=np.float32):
      small, *others = (np.array([x], dtype) for x in (actual, *perturbed))
      large = np.array([1.0], np.float32)
      return comparison.compare(
        "gradients",
        {"y": np.zeros([1], dtype), "large": large},
        {"y": small, "large": large},
        [{"y": x, "large": large} for x in others],
      )[1]

    self.assertEmpty(problems(9e-8))
    self.assertLen(problems(2e-6), 1)
    self.assertEmpty(problems(2e-6, 1e-6))
    self.assertLen(problems(2e-5, 0.0), 1)
    # Repeated calls show no rounding errors of half precision.
    self.assertEmpty(problems(2e-6, dtype=np.float16))
    for name in ("y", comparison.INPUT):  # No gradient is large.
      pair = ({name: np.array([x], np.float32)} for x in (1e-6, 2e-6))
      self.assertLen(comparison.compare("gradients", *pair)[1], 1)
    y = {"y": np.array([1.0])}
    for x, count in ((0.0, 0), (1.0, 1)):  # An eager tape has None for 0.
      _, found = comparison.compare("gradients", y, {**y, "x": np.array([x])})
      self.assertLen(found, count)
    # So may gradients for inputs, if gradients for variables are ten times as
    # large.
    old, new, noise = (
      {"y": np.array([1.0]), comparison.INPUT: np.array([x])}
      for x in (0.0, 2e-8, 1e-8)
    )
    for others, count in (([noise], 0), ([], 1)):
      _, found = comparison.compare("gradients", old, new, others)
      self.assertLen(found, count)

  @parameterized.named_parameters(
    ("feature", [4, 3], lambda x, weight: x @ weight, 3),
    (
      "token",
      [4, 3],
      lambda x, weight: x[..., tf.newaxis] * tf.gather(weight, tf.range(4)),
      3,
    ),
    (
      "channel",
      [1, 4, 3],
      lambda x, weight: tf.nn.conv1d(x[:, tf.newaxis], weight, 1, "SAME"),
      (0, 3),
    ),
    (
      "head",
      [2, 2, 3],
      lambda x, weight: tf.einsum(
        "bhi,hio->bo", tf.reshape(x, [-1, 2, 2]), weight
      ),
      (1, 1),
    ),
    ("value", [4], lambda x, weight: x * weight, 3),
  )
  def test_finds_other_gradients_of_small(self, shape, call, index):
    """The last of four features is small."""
    weight = tf.Variable(tf.random.stateless_uniform(shape, [1, 2], 0.5, 1.0))
    factor = np.zeros(shape, np.float32)
    factor[index] = 1.0
    doubled = tf.function(lambda w: w + factor * (w - tf.stop_gradient(w)))

    def source(change):
      scale = tf.constant([1.0, 1.0, 1.0, 2e-4])
      return saving.source(
        lambda x: call(x * scale, change(weight)), _SPEC, variables=[weight]
      )

    live = source(tf.identity)
    for exported, kinds in ((live, set()), (source(doubled), {"gradients"})):
      export_dir = os.path.join(self.get_temp_dir(), f"small {len(kinds)}")
      _export(exported, export_dir)
      results = _check(export_dir, {"": (live, _SPEC, _EXAMPLES)})
      self.assertEqual({r.kind for r in results if r.problems}, kinds)

  @parameterized.parameters(
    (2**-23, {"variables"}), (0.01, {"variables", "gradients", "outputs"})
  )
  def test_allows_other_gradients_where_values_are_nearly_equal(
    self, apart, kinds
  ):
    """The larger of two weights gets a gradient, here 5 % of the largest."""
    kernel = tf.Variable([1.0, 1.0 + apart, 1.0])
    source = saving.source(
      lambda x: x * (0.05 * tf.maximum(kernel[0], kernel[1]) + kernel[2]),
      _SPEC,
      variables=[kernel],
    )
    export_dir = os.path.join(self.get_temp_dir(), "nearly_equal")
    _export(source, export_dir)
    model = observation.load(export_dir)
    model.variables[0].assign([1.0 + apart, 1.0, 1.0])
    observed = verification.observe({"": (source, _EXAMPLES)}, "full")
    results = export_checks.check(export_dir, model, *observed, False)
    self.assertEqual({r.kind for r in results if r.problems}, kinds)

  @parameterized.parameters(
    (1.0, False, 2, None),
    (1.5, False, 1, " differs by"),  # Other weights decide.
    (1.0, True, 4, "in each of 4 examples, so nothing is decided$"),
  )
  def test_takes_other_examples_where_rounding_decides(
    self, factor, is_always_equal, rounds, words
  ):
    """The larger of two products gets all of the gradient."""
    kernel = tf.Variable([1.0, 1.0 + 2**-23, 1.0])

    @tf.custom_gradient
    def scaled(x):
      return tf.identity(x), lambda upstream: factor * upstream

    def call(x, change=tf.identity):
      products = kernel[0] * x[:, 0], kernel[1] * x[:, 1 - is_always_equal]
      return change(tf.maximum(*products)) + kernel[2] * x[:, 2]

    export_dir = os.path.join(self.get_temp_dir(), "undecided")
    of_export = saving.source(
      lambda x: call(x, scaled), _SPEC, variables=[kernel]
    )
    _export(of_export, export_dir)
    model = observation.load(export_dir)
    model.variables[0].assign([1.0 + 2**-23, 1.0, 1.0])

    def compared(export_dir, parts, served, level, process):
      observed = verification.observe(parts, level)
      results = export_checks.check(export_dir, model, *observed, False)
      return [r for r in results if r.kind != "variables"], ""

    source = saving.source(lambda x: call(x), _SPEC, variables=[kernel])
    examples = [tf.repeat(x[:, :2], 2, axis=1) for x in _EXAMPLES]
    with (
      mock.patch.object(
        verification, "_compared", side_effect=compared
      ) as mocked,
      # With many rows, one row may never cross the kink at which all rows are.
      mock.patch.object(verification, "_larger", lambda *_: None),
    ):
      results, _ = verification._decided(
        export_dir, {"": (source, examples)}, None, "full", None
      )
    self.assertEqual(mocked.call_count, rounds)
    problems = [p for r in results for p in r.problems]
    if words is None:
      self.assertEmpty(problems)
    else:
      self.assertNotEmpty(problems)
      for problem in problems:
        self.assertRegex(problem, words)

  def test_compares_distributions(self):
    """Samples of one distribution never differ; other samples do."""
    rng = np.random.default_rng(0)

    def dropped(rate, calls=256):
      return {"y": rng.binomial(1, 1 - rate, (calls, 40)) / (1 - rate)}

    frozen = {"y": dropped(0.5)["y"][:1] + 0.01 * dropped(0.5)["y"]}
    for _ in range(50):
      samples = dropped(0.5), dropped(0.5)
      self.assertEmpty(randomness.compare(*samples))
    rows = np.tile(dropped(0.5)["y"][:, :4], 10)  # All rows share a mask.
    for other in (dropped(0.25), dropped(0.0), frozen, {"y": rows}):
      self.assertNotEmpty(randomness.compare(dropped(0.5), other))

    # Rounding errors of one side change equal values by the same amount.
    self.assertEmpty(
      randomness.compare(dropped(0.5), {"y": dropped(0.5)["y"] + 1e-8})
    )

    def noise(deviation, calls):
      return {"y": rng.normal(1.0, deviation, (calls, 3))}

    calls = randomness.calls_to_compare(noise(0.5, randomness.PILOT_CALLS))
    self.assertBetween(calls, 1000, 8000)
    for _ in range(20):
      self.assertNotEmpty(
        randomness.compare(noise(0.5, calls), noise(0.55, calls))
      )
      self.assertEmpty(randomness.compare(noise(0.5, calls), noise(0.5, calls)))

  def test_counts_draws(self):
    """Functions with custom gradients are counted like other functions."""

    @tf.custom_gradient
    def same(x):
      return tf.identity(x), lambda upstream: upstream

    def twice(inner):
      drawing = tf.function(lambda x: inner(x + tf.random.normal([2])))
      return drawing(drawing(tf.random.normal([2])))

    for inner in (tf.identity, same):
      trace = tf.function(
        functools.partial(twice, inner)
      ).get_concrete_function()
      self.assertEqual(randomness.draws(trace.graph.as_graph_def()), 3)
    # Draws of a generator cannot be numbered.
    generator = tf.random.Generator.from_seed(1)
    trace = tf.function(lambda: generator.normal([2])).get_concrete_function()
    self.assertEqual(randomness.draws(trace.graph.as_graph_def()), -1)
    # Draws in a loop cannot be numbered, whatever a call draws later.
    looped = tf.function(
      lambda: tf.while_loop(
        lambda x: tf.reduce_sum(x) < 9.0,
        lambda x: [x + tf.random.uniform([2])],
        [tf.zeros([2])],
      )[0]
    )
    later = tf.function(lambda: looped() + tf.random.normal([2]))
    graph = later.get_concrete_function().graph.as_graph_def()
    self.assertEqual(randomness.draws(graph), -1)

  def test_every_comparison_finds_something(self):
    self.assertEqual(
      {kind for *_, kind, _, _ in _BROKEN}, set(comparison.COMPARISONS)
    )

  def test_finds_planted_faults(self):
    """The program `mutants` plants many more faults of each kind."""
    spec = saving.of_mixed_precision(_SPEC)
    directory = os.path.join(self.get_temp_dir(), "subject")
    model = _model()
    mutants.spread(model)
    subject = mutants.subject("", _source(model), _EXAMPLES, directory, spec)
    results = mutants.check(subject, directory)
    self.assertEmpty([r for r in results if r.problems])
    every = mutants.faults(mutants.read(directory))
    # Faults of one kind come in the order of functions' names, which depend on
    # other tests. A bias before normalization has no gradient.
    faults = {
      f.kind: f
      for f in every
      if not f.equivalent and not f.where.startswith(("BiasAdd", "Identity"))
    }
    for kind, by in (
      ("weights: last bit of a value", "variables"),
      ("default of an argument", "updates"),
      ("loss: constant x 1.01, or 0.1", "regularization losses"),
      ("gradient: operand x 1.01", "gradients"),
      ("call: hyperparameter x 0.5 in one place", "o"),
      ("call: seed saved", "randomness"),
      ("other: two variables swapped", "signatures"),
    ):
      found = mutants.found_by(subject, faults[kind])
      self.assertStartsWith(f"{kind}: {found}", f"{kind}: {by}")

  @parameterized.parameters(
    (_with_head, 87),
    (_preprocessor, 39),
    *[(_plain, 45), (_noisy_loop, 25), (_with_seed, 45)] * nightly.IS_ON,
  )
  def test_intact(self, live, count):
    parts = live()
    export_dir = os.path.join(self.get_temp_dir(), "intact")
    _export_parts(parts, export_dir)
    variables = [v for source, *_ in parts.values() for v in source.variables]
    before = [v.numpy() for v in variables]
    results = _check(export_dir, parts)
    self.assertEqual([r for r in results if r.problems], [])
    self.assertLen(results, count)
    for variable, value in zip(variables, before, strict=True):
      self.assertAllEqual(variable, value)

  def test_takes_what_is_no_batch(self):
    """Inputs may have different rows and nested names, and outputs any form."""
    kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

    def call(graph):
      nodes = graph["z"]["nodes"] @ kernel
      edges = graph["edges"]
      return {"a/b": tf.gather(nodes, edges), "scale": 3.5, "nodes": nodes}

    spec = {
      "z": {"nodes": _SPEC},
      "edges": tf.TensorSpec([None, 2], tf.int32),
    }
    examples = [
      {"edges": tf.constant([[0, 0]] * n), "z": {"nodes": x}}
      for n, x in zip((9, 2), _EXAMPLES, strict=False)
    ]
    source = saving.source(call, spec, variables=[kernel])
    export_dir = os.path.join(self.get_temp_dir(), "graph")
    parts = {"": (source, spec, examples)}
    _export_parts(parts, export_dir)
    results = _check(export_dir, parts)
    self.assertEmpty([r for r in results if r.problems])
    self.assertIn("signatures, serving_default", [r.place for r in results])

  @parameterized.parameters(
    (lambda old, x, n: 0.9 * old, True),  # A falling temperature.
    (lambda old, x, n: 0.9 * old + tf.reduce_sum(x), True),
    (lambda old, x, n: tf.where(n > 0, 0.9 * old + n, old - 1e-9), True),
    (lambda old, x, n: tf.where(n > 0, tf.reduce_max(x), old / 2), False),
    (lambda old, x, n: 0.9 * old + 0.1 * tf.reduce_mean(x), False),
    (lambda old, x, n: 0.9 * old + tf.reduce_sum(x) / (n + 0.1), False),
    (lambda old, x, n: 0.9999 * old + 1e-4 * tf.reduce_max(x), False),
    (lambda old, x, n: 0.9999 * old + tf.reduce_max(x[:1]), False),
    (lambda old, x, n: tf.reduce_sum(x) / (n + 0.1), False),
    (lambda old, x, n: tf.where(old < 2, tf.reduce_max(x), old), False),
    # An average of data that are small beside the variable.
    (lambda old, x, n: 0.9 * old + 1e-6 * tf.reduce_sum(x) / (n + 0.1), False),
  )
  def test_empty_batches(self, update, is_right):
    """Empty batches may change sums of rows, and values that need no rows."""

    class Model(tf.Module):
      def __call__(self, x):
        rows = tf.cast(tf.shape(x)[0], tf.float32)
        self.average.assign(update(self.average, x, rows))
        return x

    model = Model()
    model.average = tf.Variable(1.0, trainable=False)
    made = observation.Call("", tf.constant([3.0, 1.0, 5.0]), {})
    problems = export_checks._of_no_examples(model, made, takes_none=True)
    self.assertEqual(not problems, is_right, problems)

  def test_compares_signatures_of_sub_objects(self):
    parts = _with_head()
    export_dir = os.path.join(self.get_temp_dir(), "export")
    root = saving.reusable(parts[""][0])
    root.head = saving.reusable(parts["head"][0])
    signatures = {
      "serving_default": saving.signature(root, _SPEC),
    }
    root.other = saving.reusable(_with_head(2.0)["head"][0])
    signatures["head"] = saving.signature(root.other, _SPEC)
    saving.save(root, export_dir, signatures=signatures)
    parts = {name: (part[0], part[2]) for name, part in parts.items()}
    served = {"serving_default": "", "head": "head"}
    results = export_checks.check(
      export_dir,
      observation.load(export_dir),
      *verification.observe(parts, "fast", served),
      save_again=False,
    )
    self.assertEqual(
      [r.place for r in results if r.problems], ["head, signatures, head"]
    )

  def test_refuses_examples_that_say_nothing(self):
    source = _source(_model())
    _, _, seen = verification.observe(
      {"": (source, [tf.fill([3, 4], np.nan)])}, "fast"
    )
    with self.assertRaisesRegex(errors.ExportError, "is NaN everywhere"):
      list(seen)

  @parameterized.parameters(
    (lambda self: random.random(), "draws numbers from Python's random: its"),
    (lambda self: np.random.uniform(), "draws numbers from numpy.random: its"),
    (
      lambda self: setattr(self, "count", self.count + 1),
      "changes Counting.count from 3 to 4: its graph keeps",
    ),
    (
      lambda self: self.counts.update(n=self.counts["n"] + 1),
      r"changes Counting.counts\['n'\] from 3 to 4: its graph keeps",
    ),
  )
  def test_refuses_what_changes_in_python(self, change, words):
    class Counting(tf.Module):
      count = 1

      def __call__(self, inputs):
        change(self)
        return inputs

    model = Counting()
    model.counts = {"n": 1}
    source = saving.source(model, _SPEC)
    with self.assertRaisesRegex(errors.ExportError, words):
      verification.observe({"": (source, _EXAMPLES)}, "fast")

  def test_refuses_modes_that_differ_in_calls_alone(self):
    def call(inputs, scale, training=False):
      is_used = training or not tf.executing_eagerly()
      return inputs * scale if is_used else inputs

    scale = hyperparameters.Hyperparameter("scale", 1.0, "")
    source = saving.source(call, _SPEC, hyperparameters=[scale])
    with self.assertRaisesRegex(errors.ExportError, "by `training` alone"):
      verification.observe({"": (source, _EXAMPLES)}, "fast")

  @parameterized.parameters(1.0, 2.0)
  def test_says_that_none_is_no_inference(self, scale):
    def call(inputs, training=None):
      return inputs * (scale if training is None else 3.0 if training else 1.0)

    with contextlib.redirect_stdout(io.StringIO()) as printed:
      source = saving.source(call, _SPEC)
      verification.observe({"": (source, _EXAMPLES)}, "fast")
    is_said = "A call of the model without it" in printed.getvalue()
    self.assertEqual(is_said, scale != 1.0)

  @parameterized.parameters(0.0, 2.0)
  def test_refuses_noise_in_inference(self, in_training):
    def call(inputs, training=False):
      scale = in_training if training else 1.0
      return inputs + tf.random.normal([4]) * scale if scale else inputs

    source = saving.source(call, _SPEC)
    with self.assertRaisesRegex(errors.ExportError, "differ in inference"):
      verification.observe({"": (source, _EXAMPLES)}, "fast")

  def test_names_of_calls_differ(self):
    spec = [_SPEC, tf.TensorSpec([None, None])]
    source = saving.source(lambda x: x[0] + tf.reduce_sum(x[1]), spec)
    example = [_EXAMPLES[0], _EXAMPLES[0]]
    calls, *_ = verification.observe({"": (source, [example])}, "full")
    names = [call.name for call in calls[""]]
    self.assertIn("inference 2 of (5, 4) (3)", names)
    self.assertCountEqual(names, set(names))
    empty = [_EXAMPLES[0], tf.ones([5, 0])]
    calls, *_ = verification.observe({"": (source, [empty])}, "full")
    self.assertLess(len(calls[""]), len(names))  # There is no other length.

  def test_refuses_forms_that_the_model_computes_otherwise(self):
    forms = [tf.TensorSpec([None, 4], d) for d in (tf.float16, tf.uint8)]
    cast = saving.source(lambda x: tf.cast(x, tf.float32), _SPEC)
    verification.check_forms(cast, [*forms, [_SPEC]], _EXAMPLES[0])
    scaled = saving.source(
      lambda x: tf.image.convert_image_dtype(x, tf.float32), _SPEC
    )
    with self.assertRaisesRegex(errors.ExportError, "otherwise for .*uint8"):
      verification.check_forms(scaled, forms, _EXAMPLES[0])

    def bounded(x):
      if x.dtype == tf.float32:
        tf.debugging.assert_less(x, 9.0)
      return tf.image.convert_image_dtype(x, tf.float32)

    source = saving.source(bounded, _SPEC)
    with self.assertRaisesRegex(errors.ExportError, "not the same numbers"):
      verification.check_forms(source, forms[1:], _EXAMPLES[0])

  @parameterized.parameters(
    (lambda x: x if x.shape[1] == 1 else tf.concat([x, x], 1),),
    *[(lambda x: x if x.shape[1] in (None, 4) else -x,)] * nightly.IS_ON,
  )
  def test_tries_other_lengths(self, call):
    spec = tf.TensorSpec([None, None])
    source = saving.source(call, spec)
    export_dir = os.path.join(self.get_temp_dir(), "lengths")
    _export(source, export_dir, spec=spec)
    results = _check(export_dir, {"": (source, spec, _EXAMPLES)})
    lengths = {r.place[-6:] for r in results if r.problems}
    self.assertNotEmpty(lengths & {"(1, 1)", "(1, 8)"})

  def test_finds_a_hyperparameter_without_effect_on_either_side(self):
    kernel = tf.Variable(tf.ones([4, 2]))
    source = saving.source(
      lambda x, scale: x @ kernel + 0.0 * scale,
      _SPEC,
      hyperparameters=[hyperparameters.Hyperparameter("scale", 1.0, "")],
      variables=[kernel],
    )
    export_dir = os.path.join(self.get_temp_dir(), "no_effect")
    _export(source, export_dir)
    results = _check(export_dir, {"": (source, _SPEC, _EXAMPLES)})
    self.assertEqual(
      [(r.place, r.problems) for r in results if r.problems],
      [("hyperparameters, scale 0.5", ["it changes nothing"])],
    )
    # Consumers train a model without modes in its only mode.
    self.assertIn("gradients, inference (1, 4)", [r.place for r in results])

  @parameterized.parameters(
    ([1.0, 0.0, -2.0, 3.0], [-0.5, 2**-7, 1.0, 3.0]),
    ([1.0, 2.0, 2**-7], [0.5, 2.0, 2**-8]),
    ([[-0.0, 3.0, 0.0]], [[2**-7, 3.0, 2**-7]]),
    ([0.0, 2**-7], [2**-8, 2**-7]),  # Else 0 would become an existing value.
    ([1e-45, 0.0, 3.0], [3.0, 0.0, 1e-45]),  # A half of it would be zero.
    ([2, 1, 3], [3, 1, 2]),
    (["b", "a", "c"], ["c", "a", "b"]),
    ([0, 2, 2], [0, 2, 2]),  # These may be ends of ragged rows.
    ([[2.0, -2.0], [2.0, -2.0]], [[-1.0, -2.0], [2.0, 1.0]]),
    (-3.0, -1.5),
  )
  def test_changes_weights_and_undoes_it(self, values, expected):
    weight = tf.Variable(values)
    moving = tf.Variable([5.0, 5.0], trainable=False)
    model = mock.Mock(variables=[weight, moving], trainable_variables=[weight])
    with observation.reweighted(model, {"moving": np.float32([3.0, 4.0])}):
      self.assertAllEqual(weight, tf.constant(expected))
      self.assertAllEqual(moving, [6.0, 2.0])
    self.assertEqual(  # To the bit.
      tf.io.serialize_tensor(weight), tf.io.serialize_tensor(values)
    )
    self.assertAllEqual(moving, [5.0, 5.0])

  @parameterized.parameters(
    (_plain, "", "full", _PLAN),
    (_plain, "", "fast", _FAST_PLAN),
    (_with_noise, "", "full", _RANDOM_PLAN),
    (_preprocessor, "pack", "full", _PREPROCESSOR_PLAN),
  )
  def test_plans(self, live, part, level, plan):
    source, _, examples = live()[part]
    calls, *_ = verification.observe({"": (source, examples)}, level)
    self.assertEqual([*map(_in_words, calls[""])], plan.strip().split("\n"))

  @parameterized.parameters(
    (True, tf.int32, True), (False, tf.int32, False), (False, tf.float32, True)
  )
  def test_plans_gradients(self, has_weights, dtype, expected):
    weights = [tf.Variable(2.0)] * has_weights
    source = saving.source(
      lambda x: sum(weights, tf.cast(x, tf.float32)),
      tf.TensorSpec([None], dtype),
      variables=weights,
    )
    examples = [tf.range(3, dtype=dtype), tf.range(2, dtype=dtype)]
    calls, *_ = verification.observe({"": (source, examples)}, "full")
    self.assertEqual(any(call.gradients for call in calls[""]), expected)

  @parameterized.parameters(
    (lambda x, rate=0.5: x, []),
    (lambda x, **kwargs: x, []),
    (lambda x: x, ["the argument `rate` of __call__ is missing"]),
  )
  def test_notes_missing_arguments(self, call, problems):
    model = mock.Mock(spec=["__call__", *observation.INTERFACE])
    model.__call__ = call
    planned = [observation.Call("", None, {"rate": 0.1})]
    self.assertEqual(export_checks._missing(model, planned), problems)

  @parameterized.parameters(
    ({"a": tf.ones(1), "b": tf.ones(1)}, "list of float32, float32"),
    ([tf.ones(1), tf.ones(1)], "dict of float32, float32"),
  )
  def test_notes_other_forms(self, example, other):
    specs = [tf.TensorSpec([None], name=name) for name in "ba"]
    traces = [
      mock.Mock(structured_input_signature=((form,), {}), graph=tf.Graph())
      for form in ({x.name: x for x in specs}, specs, specs[0])
    ]
    for i, trace in enumerate(traces):
      trace.name = f"call_{i}"
    call = mock.Mock(concrete_functions=traces)
    model = types.SimpleNamespace(__call__=call)
    values = tf.nest.flatten(example)
    forms = export_checks._other_forms(model, example, values)
    self.assertEqual([*forms], [other])

  def test_allows_scalars_of_bfloat16(self):
    self.assertEqual(observation.as_array(tf.constant(2, tf.bfloat16)), 2)

  def test_other_examples_have_values_like_the_first(self):
    ids, ones = tf.range(1, 7), tf.ones([6])
    others = verification._other({"ids": ids, "ones": ones}, 0)
    self.assertAllEqual(tf.sort(others["ids"]), ids)
    self.assertNotAllEqual(others["ids"], ids)
    self.assertAllInRange(others["ones"], 0.9, 1.0, open_upper_bound=True)

  @parameterized.parameters(
    ([3, 1], [0, 2, 300]),
    ([3, 1], [0, 2, 36], 1),
    ([1], [0, 300]),
    ([0], []),
    ([5, 301], [0, 1, 2]),
  )
  def test_calls_with_other_counts_of_rows(self, counts, others, little=5e8):
    with mock.patch.object(verification, "_LITTLE", little):
      made = verification._of_other_sizes(
        _source(_model()), [tf.eye(n, 4) for n in counts]
      )
      self.assertEqual([len(x) for x in made], others)

  @parameterized.parameters(("a", []), ("ab", ["inference, a 0.5, b 0.5"]))
  def test_changes_hyperparameters_together(self, names, expected):
    source = saving.source(
      (lambda x, a, b: x * a * b) if names == "ab" else lambda x, a: x * a,
      _SPEC,
      hyperparameters=[
        hyperparameters.Hyperparameter(name, 1.0, "") for name in names
      ],
    )
    calls, *_ = verification.observe({"": (source, _EXAMPLES)}, "full")
    found = [c.name for c in calls[""] if c.name.startswith("inference, ")]
    self.assertEqual(found, expected)

  @parameterized.parameters(
    ({}, ["a 0.5, one seed", "a 4.5, one seed"]),
    ({"maximum": 1.0}, ["a 0.5, one seed"]),
  )
  def test_plans_other_values_beside_noise(self, limits, expected):
    source = saving.source(
      lambda x, a: x * a + tf.random.normal([4]),
      _SPEC,
      hyperparameters=[
        hyperparameters.Hyperparameter("a", 1.0, "", limits=limits)
      ],
    )
    calls, *_ = verification.observe({"": (source, _EXAMPLES)}, "full")
    found = [c.name for c in calls[""] if c.name.startswith("a ") and c.seeded]
    self.assertEqual(found, expected)

  def test_traces_a_call_without_a_python_function(self):
    source = saving.source(lambda x: tf.tanh(x), _SPEC)
    source = dataclasses.replace(source, function=None)
    graph = verification._graph(source, _EXAMPLES[0])
    self.assertIn("Tanh", [node.op for node in graph.node])

  def test_keys_get_the_order_of_the_spec(self):
    source = saving.source(lambda x: x["b"], {"b": _SPEC, "a": _SPEC})
    example = {"a": _EXAMPLES[0], "b": _EXAMPLES[0]}
    self.assertEqual([*verification._listed(example, source)], ["b", "a"])

  def test_cuts_large_examples(self):
    spec = [tf.TensorSpec([None, None])] * 2
    source = saving.source(lambda x: tf.concat(x, 1), spec)
    long, short = ([tf.ones(shape)] * 2 for shape in ([3, 8], [1, 2]))
    cut = verification._shortened(source, long, short)
    self.assertEqual([x.shape for x in cut], [[3, 2]] * 2)
    self.assertIs(verification._shortened(source, long, short[:1]), long)
    self.assertIs(verification._shortened(source, short, long), short)
    with_scalar = [long[0], tf.ones([])]
    source = saving.source(lambda x: x[0], [spec[0], tf.TensorSpec([])])
    self.assertIs(
      verification._shortened(source, with_scalar, short), with_scalar
    )

  def test_cuts_inputs_that_have_a_batch(self):
    """The last spec is that of all further inputs."""
    fixed, batch = tf.TensorSpec([2]), tf.TensorSpec([None])
    source = saving.source(lambda x: x[0], [fixed, batch])
    cut = verification._of_rows(source, [tf.ones([2])] * 4, lambda x: x[:1])
    self.assertEqual([len(x) for x in cut], [2, 1, 1, 1])

  def test_no_other_counts_without_a_batch(self):
    source = saving.source(lambda x: 2.0 * x, tf.TensorSpec([2, 5]))
    calls, *_ = verification.observe({"": (source, [tf.ones([2, 5])])}, "full")
    self.assertEqual([call.name for call in calls[""]], ["inference (2, 5)"])

  def test_one_trace_for_examples_of_other_sizes(self):
    examples = [tf.ones([n, size, 4]) for n, size in ((3, 8), (1, 8), (1, 6))]
    ragged = tf.ragged.constant([[1], []])
    for of, shape in (
      (examples[:1], [3, 8, 4]),
      (examples[:2], [None, 8, 4]),
      (examples, [None, None, 4]),
    ):
      self.assertEqual(
        export_checks._common_specs(of), {1: tf.TensorSpec(shape)}
      )
    lists = [[examples[0]], [examples[1]] * 2, ragged]
    self.assertEqual(
      export_checks._common_specs(lists),
      {n: [tf.TensorSpec(x.shape)] * n for n, x in enumerate(examples[:2], 1)},
    )

  def test_compares_lists_of_other_lengths(self):
    kernel = tf.Variable(tf.ones([4, 2]))
    spec = tf.TensorSpec([None, 4])

    def piece(change):
      def call(inputs):
        y = tf.add_n([x @ kernel for x in inputs])
        return {"y": change(y) if len(inputs) == 1 else y, "nothing": None}

      return exporting.Piece(
        source=saving.source(call, [spec, spec], variables=[kernel]),
        examples=[[x, x] for x in _EXAMPLES],
        also_takes=[[spec], [tf.TensorSpec([None, 4], tf.float16)] * 2],
      )

    def halved(y):
      return y / 2 + tf.stop_gradient(y / 2)

    live, kinds = piece(tf.identity), ("outputs", "gradients")
    examples = exporting._examples(live)
    self.assertEqual([len(x) for x in examples], [2, 1, 2])
    for change, places in (
      (tf.identity, []),
      (tf.negative, [f"{x}, inference (5, 4)" for x in kinds]),
      (halved, ["gradients, inference (5, 4)"]),
    ):
      export_dir = os.path.join(self.get_temp_dir(), change.__name__)
      exported = piece(change)
      root = saving.reusable(exported.source, also_takes=exported.also_takes)
      signature = saving.signature(root, [spec, spec])
      saving.save(root, export_dir, signatures={"serving_default": signature})
      results = _check(export_dir, {"": (live.source, spec, examples)})
      self.assertEqual([r.place for r in results if r.problems], places)

  def test_refuses_losses_of_eager_calls(self):
    class Adding(layers.Layer):
      def call(self, inputs, training=None):
        if training and tf.executing_eagerly():
          self.add_loss(tf.reduce_mean(inputs))
        return inputs

    source = _source(_model(second=Adding(name="second")))
    with self.assertRaisesRegex(errors.ExportError, "by add_loss"):
      verification.observe({"": (source, _EXAMPLES)}, "fast")

  @parameterized.parameters(
    (True, bool, "read read:0, which its graph has as constants"),
    (2, lambda x: x > 2, "read read:0"),
    (b"a", lambda x: len(x) > 1, "read read:0"),
    (0.5, lambda x: x > 1, "read read:0", True),
    (0.5, bool, None),  # Nothing depends on its value.
    (0.5, lambda x: x > 1 and tf.reshape(x, [2]), None),  # 1.5 is refused.
  )
  def test_refuses_values_of_variables_in_the_graph(
    self, value, read, words, in_training=False
  ):
    variable = tf.Variable(value, trainable=False, name="read")

    def call(inputs, training=False):
      if training and in_training:
        return inputs * variable
      with tf.init_scope():
        factor = 2.0 if read(variable.numpy()) else 1.0
      return inputs * factor

    source = saving.source(call, _SPEC, variables=[variable])
    context = contextlib.nullcontext()
    if words:
      context = self.assertRaisesRegex(errors.ExportError, words)
    with context:
      verification.observe({"": (source, _EXAMPLES)}, "fast")
    self.assertEqual(variable.numpy(), value)

  @parameterized.parameters(
    {"fails": True},
    {"shapes": [(5, 4), (5, 4)]},
    {"spec": tf.TensorSpec([None], tf.string)},
    {"spec": tf.RaggedTensorSpec([None, None])},
    {"output": tf.TensorSpec([None, 2])},
    {"output": tf.TensorSpec([None, None], tf.int32)},
    {"output": tf.TensorSpec([None])},
    {"output": tf.RaggedTensorSpec([None, None])},
    {"sizes": [2, 3]},
  )
  def test_refuses_outputs_without_a_number_of_features(
    self,
    fails=False,
    spec=_SPEC,
    shapes=((5, 4), (1, 4)),
    output=_LOST,
    sizes=(2,),
  ):
    source = mock.Mock(input_spec=spec, output_spec=output)
    examples = [tf.zeros(shape) for shape in shapes]
    context = contextlib.nullcontext()
    if fails:
      words = "last dimension of its output: .* was always 2 when called"
      context = self.assertRaisesRegex(errors.ExportError, words)
    with context:
      verification._check_last_dimensions(
        source, examples, {comparison.ONLY: sizes}
      )

  def test_keras_may_raise_anything(self):
    with mock.patch.object(tf_keras.models, "load_model") as load_model:
      load_model.side_effect = AssertionError("Found 1 object")
      with self.assertRaisesRegex(ValueError, "raises AssertionError: Found 1"):
        export_checks._load_keras("export")

  @nightly.only
  def test_vocabularies_of_keras_are_no_variables(self):
    layer = layers.TextVectorization(4, output_mode="multi_hot")
    layer.adapt(tf.constant(["a b", "b"]))
    model = tf_keras.Sequential([layers.InputLayer((), dtype=tf.string), layer])
    export_dir = self.create_tempdir().full_path
    model.save(export_dir)
    self.assertEmpty(export_checks._load_keras(export_dir).variables)

  def test_other_order_is_an_error(self):
    parts = _with_head()
    export_dir = os.path.join(self.get_temp_dir(), "export")
    _export_parts(parts, export_dir)
    parts = {name: (part[0], part[2]) for name, part in parts.items()}
    plan, served, seen = verification.observe(parts, "fast")
    seen = list(seen)
    loaded = observation.load(export_dir)
    for order in (seen[1:], seen[::-1]):
      with self.assertRaisesRegex(
        RuntimeError, "in another order: .* expected"
      ):
        export_checks.check(
          export_dir, loaded, plan, served, iter(order), False
        )

  def test_names_the_layer_that_xla_needs_cured(self):
    flip = layers.Permute((2, 1), name="flip")
    model = tf_keras.Sequential(
      [
        layers.InputLayer((4,)),
        layers.Dense(4),
        layers.Reshape((2, 2)),
        flip,
        layers.Flatten(),
        layers.Dense(2),
      ]
    )
    export_dir = os.path.join(self.get_temp_dir(), "trapped")
    with mock.patch.dict(saving.xla.REPLACEMENTS, clear=True):
      source = saving.source(model, _SPEC)
      _export(source, export_dir)
    with self.assertRaisesRegex(errors.ExportError, "in 1 ways"):
      with mock.patch.object(verification, "_print_table") as print_table:
        verification.verify(export_dir, source, _EXAMPLES[:1], "full")
    (((_, problem),),) = print_table.call_args.args
    self.assertRegex(
      problem,
      r"gradient of Transpose \(flip/transpose in .* \(layer flip:"
      r" tf_keras\.\S+\.Permute\)$",
    )

  def verified(self, model, length, **kwargs):
    """Exports and verifies a model of sequences; returns the report."""
    spec = tf.TensorSpec([None, length, 4], tf.float32, "features")
    export_dir = os.path.join(self.get_temp_dir(), "sequences")
    source = saving.source(model, spec, **kwargs)
    _export_parts({"": (source, spec, None)}, export_dir)
    # As if TensorFlow had no writer of fingerprints.
    pathlib.Path(export_dir, "fingerprint.pb").unlink()
    verification.verify(export_dir, source, [tf.ones([2, 5, 4])], "full")
    with open(f"{export_dir}/assets.extra/verification.json") as f:
      return json.load(f)

  @nightly.only
  def test_notes_that_xla_cannot_compile_a_loop(self):
    model = tf_keras.Sequential(
      [layers.InputLayer((None, 4)), layers.LSTM(3), layers.Dense(2)]
    )
    report = self.verified(model, None)
    (note,) = report["notes"]
    self.assertRegex(
      note,
      r"^compilation under XLA, \w+ \(2, 5, 4\): XLA cannot compile the"
      r" gradient of StatelessWhile \(while\w* in \S+\), a loop of unlimited",
    )
    passed = {c["kind"]: c["passed"] for c in report["comparisons"]}
    self.assertEmpty(passed["compilation under XLA"])
    self.assertLen(passed["gradients"], 3)
    self.assertIsNone(report["singleprint"])

  @parameterized.parameters(
    (_TEXTS, _TEXT_EXAMPLES, tf.strings.length, "strings"),
    (
      _IDS,
      [*map(_tokenize, _TEXT_EXAMPLES)],
      lambda ids: tf.reduce_sum(ids, 1),
      "RaggedTensors",
    ),
  )
  def test_notes_what_xla_does_not_take(self, spec, examples, number, words):
    kernel = tf.Variable([3.0])
    source = saving.source(
      lambda x: kernel * tf.cast(number(x), tf.float32),
      spec,
      variables=[kernel],
    )
    export_dir = os.path.join(self.get_temp_dir(), "not_for_xla")
    parts = {"": (source, spec, examples)}
    _export_parts(parts, export_dir)
    results = _check(export_dir, parts)
    (noted,) = [r for r in results if r.notes or r.problems]
    self.assertEmpty(noted.problems)
    self.assertStartsWith(noted.notes[0], f"XLA takes no {words}.")
    self.assertIn("signatures, serving_default", [r.place for r in results])

  @nightly.only
  def test_xla_can_compile_an_unrolled_loop(self):
    model = tf_keras.Sequential(
      [layers.InputLayer((5, 4)), layers.LSTM(3, unroll=True), layers.Dense(2)]
    )
    name = layer_calls.class_name(layers.LSTM)
    cure = {name: saving.xla.with_own_gradient}
    report = self.verified(model, 5, layer_calls=cure)
    self.assertEmpty(report["notes"])

  def test_in_a_process_of_its_own(self):
    source = _source(_model())
    export_dir = os.path.join(self.get_temp_dir(), "export")
    kept = os.path.join(self.get_temp_dir(), "kept")
    _export(source, export_dir)
    process = verification.start("fast")
    # On TPUs no package is named tensorflow.
    versions = {
      "tf-keras": "1",
      "tensorflow-hub": "2",
      "tf-models-official": "3",
    }
    with mock.patch.object(
      verification.metadata, "version", versions.__getitem__
    ):
      verification.verify(
        export_dir,
        source,
        _EXAMPLES,
        "fast",
        process=process,
        record={"flags": {"epochs": 3}},
        notes=["a note"],
      )
    self.assertEqual(process.returncode, 0)
    with open(f"{export_dir}/assets.extra/verification.json") as f:
      report = json.load(f)
    self.assertEqual(report["level"], "fast")
    self.assertEqual(report["flags"], {"epochs": 3})
    self.assertEqual(report["notes"], ["slimming: a note"])
    versions |= {
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
    }
    self.assertEqual(report["versions"], versions)
    passed = {c["kind"]: c["passed"] for c in report["comparisons"]}
    self.assertEqual(
      passed["outputs"],
      [
        "outputs, inference (5, 4)",
        "outputs, training (5, 4)",
        "outputs, training (5, 4), one seed",
      ],
    )

    source.variables[0].assign_add(tf.ones([4, 3]))
    with self.assertRaisesRegex(errors.ExportError, r"in \d+ ways .*kept at"):
      verification.verify(
        export_dir, source, _EXAMPLES, "fast", keep_failed=kept
      )
    self.assertFalse(os.path.exists(export_dir))
    process = verification.start("fast")
    process.kill()
    with self.assertRaisesRegex(errors.ExportError, "killed by SIGKILL"):
      verification.verify(kept, source, _EXAMPLES, "fast", process=process)
    pathlib.Path(kept, "variables", "variables.index").unlink()
    with self.assertRaisesRegex(errors.ExportError, "in 1 ways"):
      verification.verify(kept, source, _EXAMPLES, "fast")

  def test_on_the_cpu(self):
    devices = set()

    def model(inputs):
      outputs = inputs @ kernel
      if tf.executing_eagerly():
        devices.add(outputs.device[-len("/device:CPU:0") :])
      return outputs

    export_dir = os.path.join(self.get_temp_dir(), "on_the_cpu")
    with tf.device("/CPU:1"):
      kernel = tf.Variable(tf.ones([4, 2]))
      source = saving.source(model, _SPEC, variables=[kernel])
      _export(source, export_dir)
      verification.verify(export_dir, source, _EXAMPLES, "full")
    self.assertEqual(devices, {"/device:CPU:0"})

  @nightly.only
  def test_text_ops_in_a_process_of_its_own(self):
    source = saving.source(lambda x: tensorflow_text.normalize_utf8(x), _TEXTS)
    export_dir = os.path.join(self.get_temp_dir(), "text_ops")
    _export_parts({"": (source, _TEXTS, None)}, export_dir)
    verification.verify(export_dir, source, _TEXT_EXAMPLES, "full")
    with open(f"{export_dir}/assets.extra/verification.json") as f:
      self.assertIn('"outputs, inference (3,)"', f.read())


if __name__ == "__main__":
  tf.test.main()
