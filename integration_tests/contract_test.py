"""Checks an export against the rules of reusable SavedModels, from outside.

Only TensorFlow, tf_keras and tensorflow-hub are used here. Each export is a
target of its own, which says with --saved_model_dir what to check.
"""

import collections
import inspect
import itertools
import os
import pathlib
import re

from absl import flags
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "The export.")


def _inputs(spec, batch_size, seed):
  """Returns random inputs, with 64 for what is free in the shape."""
  shape = [size or 64 for size in spec.shape[1:]]
  return tf.random.stateless_uniform([batch_size, *shape], [seed, 0])


def _first(outputs):
  """Returns the one output, or of a dict the one of fewest dimensions."""
  return min(tf.nest.flatten(outputs), key=lambda output: len(output.shape))


class ContractTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.export = hub.load(_SAVED_MODEL_DIR.value)
    self.traces = self.export.__call__.concrete_functions
    # Positional: the input, `training`, and the hyperparameters.
    (self.spec, *_), _ = self.traces[0].structured_input_signature
    signature = tf.saved_model.load(_SAVED_MODEL_DIR.value).signatures
    self.serving = signature["serving_default"]

  def tuned(self, value):
    """Returns arguments that set every hyperparameter to a value."""
    parameters = inspect.signature(self.export.__call__).parameters
    self.assertIs(parameters["training"].default, False)
    return {
      name: value
      for name, parameter in parameters.items()
      if isinstance(parameter.default, float)
    }

  def test_every_combination_of_arguments_has_a_trace(self):
    """Rules R1 to R4 and R8."""
    for batch_size, training, value in itertools.product(
      (1, 3), (False, True), (None, 0.25, tf.constant(0.25))
    ):
      arguments = {} if value is None else self.tuned(value)
      outputs = self.export(
        _inputs(self.spec, batch_size, 1), training=training, **arguments
      )
      for output in tf.nest.flatten(outputs):
        self.assertEqual(output.dtype, tf.float32)
        self.assertEqual(output.shape[0], batch_size)
    self.assertAllClose(
      self.export(_inputs(self.spec, 3, 1)),
      self.export(_inputs(self.spec, 3, 1), training=False),
      rtol=0,
      atol=0,
    )
    self.assertLen(self.traces, 2)

  def test_lists_of_variables(self):
    """Rule R5."""
    listed = {v.ref() for v in self.export.variables}
    used = {v.ref() for trace in self.traces for v in trace.variables}
    self.assertNotEmpty(used)
    self.assertContainsSubset(used, listed)
    trainable = {v.ref() for v in self.export.trainable_variables}
    self.assertNotEmpty(trainable)
    self.assertContainsSubset(trainable, listed)
    with tf.GradientTape() as tape:
      outputs = self.export(_inputs(self.spec, 3, 1), training=True)
      loss = tf.add_n([tf.reduce_sum(y**2) for y in tf.nest.flatten(outputs)])
    gradients = tape.gradient(loss, list(self.export.trainable_variables))
    for variable, gradient in zip(
      self.export.trainable_variables, gradients, strict=True
    ):
      self.assertTrue(variable.trainable)
      self.assertIsNotNone(gradient, variable.name)

  def test_regularization_losses(self):
    """Rule R6."""
    for loss in self.export.regularization_losses:
      self.assertEqual(loss().shape, [])
      self.assertEqual(loss().dtype, tf.float32)
      self.assertGreater(loss(), 0.0)

  def test_stands_alone(self):
    """Rule R10."""
    names = " ".join(v.name for v in self.export.variables)
    self.assertNotRegex(names, "(?i)adam|sgd|momentum|iteration|learning_rate")
    for path in pathlib.Path(_SAVED_MODEL_DIR.value).rglob("*"):
      if path.is_file():
        self.assertIsNone(
          re.search(rb"/(home|root|tmp|usr|var|proc)/", path.read_bytes()),
          f"{path} has an absolute path in it.",
        )

  def test_signature(self):
    """Rule R11."""
    specs = self.serving.structured_input_signature[1]
    (name,) = specs
    self.assertNotIn(name, ("args_0", "inputs"))
    x = _inputs(self.spec, 3, 1)
    served = self.serving(**{name: x})
    outputs = self.export(x)
    if not isinstance(outputs, dict):
      (output_name,) = served
      outputs = {output_name: outputs}
    self.assertAllClose(served, outputs, rtol=0, atol=0)

  def test_card(self):
    """Rule R13."""
    card = os.path.join(_SAVED_MODEL_DIR.value, "assets.extra", "README.md")
    with open(card) as f:
      text = f.read()
    self.assertIn("Regularization that an optimizer applies", text)

  def test_a_train_step_compiles_once_under_xla(self):
    """Rule R14."""
    images = tf_keras.Input(self.spec.shape[1:])
    outputs = hub.KerasLayer(_SAVED_MODEL_DIR.value, trainable=True)(images)
    model = tf_keras.Model(images, tf_keras.layers.Dense(3)(_first(outputs)))
    variables = model.trainable_variables
    optimizer = tf_keras.optimizers.Adam()
    optimizer.build(variables)
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=True)
    def step(inputs, labels):
      with tf.GradientTape() as tape:
        logits = model(inputs, training=True)
        loss = loss_of(labels, logits) + tf.add_n(model.losses)
      gradients = tape.gradient(loss, variables)
      optimizer.apply_gradients(zip(gradients, variables, strict=True))
      return loss

    labels = tf.constant([0, 1, 2, 0, 1])
    # With a value: only then a batch that became a constant is seen.
    hlo = step.experimental_get_compiler_ir(_inputs(self.spec, 5, 1), labels)(
      stage="hlo"
    )
    entry = hlo[hlo.index("\nENTRY ") :]
    parameters = re.findall(r"= \w+\[([\d,]*)\]\S* parameter\(", entry)
    # Counted: one variable must not pass for another of the same shape.
    needed = [_inputs(self.spec, 5, 1).shape]
    needed += [v.shape for v in model.variables]
    missing = collections.Counter(
      ",".join(map(str, shape)) for shape in needed
    ) - collections.Counter(parameters)
    self.assertEmpty(missing)
    constants = re.findall(r"= \w+\[([\d,]*)\]\S* constant\(", hlo)
    large = [
      shape
      for shape in constants
      if len([d for d in shape.split(",") if d not in ("", "1")]) > 1
    ]
    self.assertEmpty(large)


if __name__ == "__main__":
  tf.test.main()
