"""Breaks exports in one place each, and looks whether this is found there."""

import json
import os
import pathlib
import re
import tempfile

from absl.testing import parameterized
import tensorflow as tf
import tensorflow_text
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
      model.submodules,
      layers.Dropout,
      "rate",
      name="rate",
      description="",
      off=0.0,
    ),
    "momentum": lambda: hyperparameters.of_layers(
      model.submodules,
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


# Texts to token ids, as a preprocessor has it.
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
        hyperparameters=[seq_length],
      ),
      _TEXTS,
      _TEXT_EXAMPLES,
    ),
    "tokenize": (saving.source(tokenize), _TEXTS, _TEXT_EXAMPLES),
    "pack": (
      saving.source(pack, hyperparameters=[seq_length]),
      [_IDS, _IDS],
      [[_tokenize(x), _tokenize(x + "s")] for x in _TEXT_EXAMPLES],
    ),
  }


def _export_parts(parts, export_dir, change=lambda root: None):
  made = {
    name: saving.reusable(source, spec)
    for name, (source, spec, _) in parts.items()
  }
  root = made.pop("")
  for name, part in made.items():
    setattr(root, name, part)
  change(root)
  signature = saving.signature(root, parts[""][1])
  saving.save(root, export_dir, signatures={"serving_default": signature})


def _pack_other_way(segments, seq_length):
  return _pack(segments[::-1], seq_length)


def _with_head(head_kernel=1.0):
  """Returns the sources and examples of an encoder and a head on it."""
  source = _source(_model())
  kernel = tf.Variable(head_kernel * tf.ones([2, 3]), name="head_kernel")
  head = saving.source(
    lambda x, training=False: source.model(x, training=training) @ kernel,
    hyperparameters=source.hyperparameters,
    variables=[*source.variables, kernel],
    trainable_variables=[*source.trainable_variables, kernel],
    regularization_losses=source.regularization_losses,
  )
  return {"": (source, _SPEC, _EXAMPLES), "head": (head, _SPEC, _EXAMPLES)}


class VerificationTest(parameterized.TestCase, tf.test.TestCase):
  def results(self, export_dir, source=None, parts=None):
    """Runs both halves of the verification in this process."""
    work = pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))
    parts = parts or {"": (source, _EXAMPLES)}
    plan = {
      name: list(verification._calls(name, *part, "full"))
      for name, part in parts.items()
    }
    observation.write(
      work, verification._observe(parts, plan), plan, save_again=True
    )
    observation.check(export_dir, observation.load(export_dir), work)
    return json.loads((work / "results.json").read_text())

  @parameterized.named_parameters(
    ("intact", {}, {}),
    (
      "tokenize",
      {"tokenize": lambda texts: _tokenize(tf.strings.upper(texts))},
      {
        "input_word_ids differs",
        "tokenize: flat_values differs",
      },
    ),
    ("pack", {"pack": _pack_other_way}, {"pack: input_word_ids differs"}),
  )
  def test_strings(self, changes, expected):
    export_dir = os.path.join(self.get_temp_dir(), "text")
    _export_parts(_preprocessor(**changes), export_dir)
    parts = {
      name: (source, examples)
      for name, (source, _, examples) in _preprocessor().items()
    }
    results = self.results(export_dir, parts=parts)
    self.assertEqual(
      {
        (f"{what.split(': ')[0]}: " if ": " in what else "") + problem
        for _, what, _, problems in results
        for problem in problems
      },
      set(expected),
    )
    self.assertIn(
      "tokenize: inference, (3,)", [what for _, what, *_ in results]
    )

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

  @parameterized.named_parameters(
    ("intact", 1.0, lambda root: None, {}),
    (
      "value",
      1.5,
      lambda root: None,
      {
        "variables, head: values": "8 head_kernel:0 differs by 0.5",
        "outputs, head: training, (5, 4)": "the tensor differs by",
      },
    ),
    (
      "variables_missing",
      1.0,
      lambda root: delattr(root.head, "variables"),
      {"interface, head": "variables is missing"},
    ),
    (
      "missing",
      1.0,
      lambda root: delattr(root, "head"),
      {"interface, head": "__call__ is missing"},
    ),
  )
  def test_sub_object(self, kernel, change, expected):
    export_dir = os.path.join(self.get_temp_dir(), "with_head")
    _export_parts(_with_head(kernel), export_dir, change)
    parts = {
      name: (source, examples)
      for name, (source, _, examples) in _with_head().items()
    }
    found = {
      f"{kind}, {what}": problems[0]
      for kind, what, _, problems in self.results(export_dir, parts=parts)
      if problems
    }
    self.assertEqual(bool(found), bool(expected))
    for place, words in expected.items():
      self.assertStartsWith(found[place], words)

  def test_text_ops_in_a_process_of_its_own(self):
    source = saving.source(lambda texts: tensorflow_text.normalize_utf8(texts))
    export_dir = os.path.join(self.get_temp_dir(), "text_ops")
    _export_parts({"": (source, _TEXTS, None)}, export_dir)
    verification.verify(export_dir, source, _TEXT_EXAMPLES, "fast")
    with open(f"{export_dir}/assets.extra/verification.json") as f:
      self.assertIn("outputs, inference, (3,)", json.load(f)["compared"])

  def test_intact(self):
    source = _source(_model())
    export_dir = os.path.join(self.get_temp_dir(), "intact")
    _export(source, export_dir)
    before = [v.numpy() for v in source.variables]
    results = self.results(export_dir, source)
    self.assertEqual([r[3] for r in results], [[]] * len(results))
    self.assertLen(results, 19)
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
