"""Breaks exports in one place each, and looks whether this is found there."""

import json
import os
import pathlib
import re
import tempfile

from absl.testing import parameterized
import tensorflow as tf
import tf_keras

from exporters.reusable import errors
from exporters.reusable import hyperparameters
from exporters.reusable import observation
from exporters.reusable import saving
from exporters.reusable import verification

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
    "rate": lambda: hyperparameters.of_layers(
      model, layers.Dropout, "rate", name="rate", description="", off=0.0
    ),
    "momentum": lambda: hyperparameters.of_layers(
      model,
      layers.BatchNormalization,
      "momentum",
      name="momentum",
      description="",
    ),
  }
  return saving.source(
    model, hyperparameters=[of_layers[name]() for name in tunable], **kwargs
  )


def _export(source, export_dir, change=lambda root: None, served=None):
  root = saving.reusable(source, _SPEC)
  change(root)
  signature = saving.signature(served or root, _SPEC)
  saving.save(root, export_dir, signatures={"serving_default": signature})


def _weights_off(export_dir):
  model = _model()
  kernel = model.get_layer("second").kernel
  kernel.assign_add(1e-3 * tf.ones_like(kernel))
  _export(_source(model), export_dir)


def _regularizer_dropped(export_dir):
  second = layers.Dense(2, name="second")
  _export(_source(_model(second=second)), export_dir)


def _dropout_left_on(export_dir):
  class AlwaysOn(layers.Dropout):
    def call(self, inputs, training=None):
      return super().call(inputs, training=True)

  model = _model(dropout=AlwaysOn(0.5, name="dropout"))
  _export(_source(model), export_dir)


def _momentum_ignored(export_dir):
  model = _model()
  momentum = hyperparameters.Hyperparameter("momentum", 0.8, "")

  def call(inputs, momentum, training=False):
    # Something depends on it, so that saving does not refuse it.
    return model(inputs, training=training) + 0.0 * momentum

  source = _source(model)
  rate = source.hyperparameters[0]
  _export(
    saving.source(
      call,
      hyperparameters=[rate, momentum],
      variables=model.variables,
      trainable_variables=model.trainable_variables,
      regularization_losses=source.regularization_losses,
    ),
    export_dir,
  )


def _trainable_variable_missing(export_dir):
  source = _source(_model())
  _export(
    source,
    export_dir,
    lambda root: setattr(
      root, "trainable_variables", root.trainable_variables[:-1]
    ),
  )


def _gradient_stopped(export_dir):
  class Stopped(layers.Dense):
    def call(self, inputs):
      return super().call(tf.stop_gradient(inputs))

  second = Stopped(2, kernel_regularizer="l2", name="second")
  _export(_source(_model(second=second)), export_dir)


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


def _training_without_effect(export_dir):
  model = _model()
  source = _source(model)

  def call(inputs, rate, momentum, training=False):
    del training
    return model(inputs) + 0.0 * rate * momentum

  _export(
    saving.source(
      call,
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
      variables=model.variables,
      regularization_losses=[],
    ),
    _SPEC,
  )
  _export(
    _source(model), export_dir, lambda root: setattr(root, "x", served), served
  )


class VerificationTest(parameterized.TestCase, tf.test.TestCase):
  def results(self, export_dir, source):
    """Runs both halves of the verification in this process."""
    work = pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))
    calls = list(verification._calls(source, _EXAMPLES, "full"))
    observation.write(
      work,
      observation.observe(source, source.call, calls, _EXAMPLES),
      calls,
      _EXAMPLES,
      save_again=True,
    )
    observation.check(export_dir, tf.saved_model.load(export_dir), work)
    return json.loads((work / "results.json").read_text())

  @parameterized.named_parameters(
    (
      "weights_off",
      _weights_off,
      "variables, values",
      "6 second/kernel:0 differs by 0.001",
    ),
    (
      "regularizer_dropped",
      _regularizer_dropped,
      "regularization losses, values",
      "1 is missing",
    ),
    (
      "dropout_left_on",
      _dropout_left_on,
      r"outputs, inference, \(5, 4\)",
      "differs by",
    ),
    (
      "momentum_ignored",
      _momentum_ignored,
      "effect, of momentum 0.4",
      "it changes nothing",
    ),
    (
      "trainable_variable_missing",
      _trainable_variable_missing,
      "variables, trainable",
      "5 second/bias:0 is missing",
    ),
    (
      "gradient_stopped",
      _gradient_stopped,
      r"gradients, training, \(5, 4\)",
      "0 first/kernel:0 is missing",
    ),
    (
      "outputs_swapped",
      _outputs_swapped,
      r"outputs, inference, \(5, 4\)",
      "differs by",
    ),
    (
      "averages_stand_still",
      _averages_stand_still,
      r"updates, training, \(5, 4\)",
      "batch_norm/moving_mean:0 differs",
    ),
    (
      "training_without_effect",
      _training_without_effect,
      r"outputs, training, \(5, 4\)",
      "differs by",
    ),
    (
      "serving_differs",
      _serving_differs,
      "outputs, serving_default",
      "outputs differs by 1",
    ),
  )
  def test_finds(self, build, where, words):
    export_dir = os.path.join(self.get_temp_dir(), "broken")
    build(export_dir)
    found = {
      f"{kind}, {what}": "; ".join(problems)
      for kind, what, _, problems in self.results(export_dir, _source(_model()))
      if problems
    }
    matching = [
      text for place, text in found.items() if re.fullmatch(where, place)
    ]
    self.assertLen(matching, 1, found)
    self.assertRegex(matching[0], words)

  def test_intact(self):
    source = _source(_model())
    export_dir = os.path.join(self.get_temp_dir(), "intact")
    _export(source, export_dir)
    before = [v.numpy() for v in source.variables]
    results = self.results(export_dir, source)
    self.assertEqual([r[3] for r in results], [[]] * len(results))
    self.assertLen(results, 18)
    for variable, value in zip(source.variables, before, strict=True):
      self.assertAllEqual(variable, value)

  def test_finds_a_hyperparameter_without_effect_on_either_side(self):
    kernel = tf.Variable(tf.ones([4, 2]))
    source = saving.source(
      lambda x, scale: x @ kernel + 0.0 * scale,
      hyperparameters=[hyperparameters.Hyperparameter("scale", 1.0, "")],
      variables=[kernel],
    )
    export_dir = os.path.join(self.get_temp_dir(), "no_effect")
    _export(source, export_dir)
    found = [r for r in self.results(export_dir, source) if r[3]]
    self.assertEqual(
      found, [["effect", "of scale 0.5", 0.0, ["it changes nothing"]]]
    )

  def test_in_a_process_of_its_own(self):
    source = _source(_model())
    export_dir = os.path.join(self.get_temp_dir(), "export")
    kept = os.path.join(self.get_temp_dir(), "kept")
    _export(source, export_dir)
    verification.verify(export_dir, source, _EXAMPLES, "fast")
    with open(f"{export_dir}/assets.extra/verification.json") as f:
      report = json.load(f)
    self.assertEqual(report["level"], "fast")
    self.assertIn("variables, values", report["compared"])

    source.variables[0].assign_add(tf.ones([4, 3]))
    with self.assertRaisesRegex(errors.ExportError, r"in \d+ ways .*kept at"):
      verification.verify(
        export_dir, source, _EXAMPLES, "fast", keep_failed=kept
      )
    self.assertFalse(os.path.exists(export_dir))
    pathlib.Path(kept, "variables", "variables.index").unlink()
    with self.assertRaisesRegex(errors.ExportError, "in 1 ways"):
      verification.verify(kept, source, _EXAMPLES, "fast")


if __name__ == "__main__":
  tf.test.main()
