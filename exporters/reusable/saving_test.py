import functools
import os
import types

import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import errors
from exporters.reusable import hyperparameters
from exporters.reusable import keras_saving
from exporters.reusable import layer_calls
from exporters.reusable import model_card
from exporters.reusable import observation
from exporters.reusable import private_api
from exporters.reusable import saving

_SPEC = tf.TensorSpec([None, 2], tf.float32)


_FIRST, _SECOND = (tf_keras.layers.Dense(2) for _ in range(2))


def _first_layer(x):
  return _FIRST(x)


def _sum_of_layers(x):
  return _first_layer(x) + _SECOND(x)


class Affine(tf.Module):
  """A module that in training scales its outputs and counts its calls."""

  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable([[1.0], [2.0]], name="kernel")
    self.calls = tf.Variable(0.0, trainable=False, name="calls")

  @tf.function
  def __call__(self, inputs, training=False, scale=1.0):
    outputs = inputs @ self.kernel
    if training:
      self.calls.assign_add(1.0)
      outputs *= scale
    return outputs


class Product(tf.train.Checkpoint):
  """A product with the attributes that TensorFlow Hub documents."""

  def __init__(self):
    super().__init__()
    self.v = tf.Variable(2.0, name="v")
    self.w = tf.Variable(1.0, name="w")
    self.variables = [self.v, self.w]
    self.trainable_variables = [self.v]
    self.regularization_losses = [lambda: 0.001 * self.v**2]

  @tf.function
  def __call__(self, inputs):
    return inputs * self.v * self.w


_SCALE = hyperparameters.Hyperparameter("scale", 3.0, "factor in training")


def _keras_model():
  regularizer = tf_keras.regularizers.L2(0.5)
  return tf_keras.Sequential(
    [
      tf_keras.layers.InputLayer((2,), name="inputs"),
      tf_keras.layers.Dense(
        3, kernel_regularizer=regularizer, bias_regularizer=regularizer
      ),
      tf_keras.layers.BatchNormalization(momentum=0.5),
      tf_keras.layers.Dropout(0.5),
      tf_keras.layers.Dense(3, kernel_regularizer=regularizer),
    ]
  )


def _reusable(model, spec, **kwargs):
  return saving.reusable(saving.source(model, spec, **kwargs))


class SavingTest(tf.test.TestCase):
  def test_a_profile_shares_the_call(self):
    model = _keras_model()
    source = saving.source(model, _SPEC)
    root = saving.reusable(source)
    last = model.layers[-1].trainable_weights
    signature = saving.signature(root, _SPEC)
    sizes = []
    for with_profile in (False, True):
      if with_profile:
        frozen = saving.frozen(source, last)
        root.last_1 = saving.profile(root, frozen)
      path = os.path.join(self.get_temp_dir(), f"profile_{with_profile}")
      saving.save(root, path, signatures={"serving_default": signature})
      graph = private_api.saved_model_pb2.SavedModel()
      with open(f"{path}/saved_model.pb", "rb") as f:
        graph.ParseFromString(f.read())
      sizes.append(len(graph.meta_graphs[0].graph_def.library.function))
    self.assertEqual(sizes[0] + 1, sizes[1])  # The loss.
    loaded = tf.saved_model.load(path)
    names = [v.name for v in loaded.last_1.trainable_variables]
    self.assertEqual(names, [v.name for v in last])
    self.assertLen(loaded.last_1.variables, len(model.variables))
    # The first layer's two losses would be constant here.
    (loss,) = loaded.last_1.regularization_losses
    self.assertAllClose(loss(), model.losses[-1])
    self.assertAllEqual(loaded.last_1(tf.ones([1, 2])), loaded(tf.ones([1, 2])))

  def save_and_load(self, model, spec, **kwargs):
    root = _reusable(model, spec, **kwargs)
    export_dir = os.path.join(self.get_temp_dir(), self.id())
    signature = saving.signature(root, spec)
    traces = root.__call__.experimental_get_tracing_count()
    saving.save(root, export_dir, signatures={"serving_default": signature})
    # TensorFlow has saved the traces that there were, and made no others.
    self.assertEqual(root.__call__.experimental_get_tracing_count(), traces)
    return tf.saved_model.load(export_dir)

  def assert_regularized(self, loaded, model, count):
    """Checks that one function has the sum of the losses, and its gradients."""
    (loss,) = loaded.regularization_losses
    self.assertAllClose(loss(), sum(model.losses), rtol=1e-6)
    with tf.GradientTape(persistent=True) as tape:
      losses = [loss(), tf.add_n(model.losses)]
    actual, expected = (
      tape.gradient(loss, x.trainable_variables)
      for loss, x in zip(losses, (loaded, model), strict=True)
    )
    self.assertLen([x for x in expected if x is not None], count)
    for x, y in zip(actual, expected, strict=True):
      self.assertEqual(x is None, y is None)
      if y is not None:
        self.assertAllClose(x, y, rtol=1e-6)

  def assert_refused(self, message, *args, **kwargs):
    with self.assertRaisesRegex(errors.ExportError, message):
      _reusable(*args, **kwargs)

  def test_module(self):
    loaded = self.save_and_load(Affine(), _SPEC, hyperparameters=[_SCALE])
    x = tf.constant([[1.0, 1.0], [0.0, 2.0]])
    self.assertAllEqual(loaded(x), [[3.0], [4.0]])
    self.assertAllEqual(loaded(x, training=True), [[9.0], [12.0]])
    self.assertAllEqual(loaded(x, training=True, scale=0.5), [[1.5], [2.0]])
    self.assertAllEqual(
      loaded.signatures["serving_default"](inputs=x)["outputs"], loaded(x)
    )
    self.assertEqual([v.name for v in loaded.trainable_variables], ["kernel:0"])
    (calls,) = [v for v in loaded.variables if v.name == "calls:0"]
    self.assertEqual(calls.numpy(), 2.0)
    # One trace for each mode, whatever has been called.
    self.assertLen(loaded.__call__.concrete_functions, 2)

  def test_endpoints_of_keras_3(self):
    loaded = self.save_and_load(Affine(), _SPEC, hyperparameters=[_SCALE])
    again = os.path.join(self.get_temp_dir(), "again")
    tf.saved_model.save(loaded, again)
    x = tf.constant([[1.0, 1.0], [0.0, 2.0]])
    for model in loaded, tf.saved_model.load(again):
      self.assertIs(model.serve, model.__call__)
      traces = model.__call__.concrete_functions
      self.assertEqual(model.train.concrete_functions, traces)
      self.assertAllEqual(model.train(x), [[9.0], [12.0]])
      self.assertAllEqual(model.train(x, scale=2.0), [[6.0], [8.0]])
      self.assertAllEqual(model.serve(x), [[3.0], [4.0]])
    product = self.save_and_load(Product(), _SPEC)
    self.assertIs(product.train, product.__call__)  # It has no `training`.

  def test_checkpoint(self):
    model = Product()
    # `__call__` may be an attribute, too.
    root = tf.train.Checkpoint(model=model)
    for name in observation.INTERFACE:
      setattr(root, name, getattr(model, name))
    for checkpoint in (model, root):
      loaded = self.save_and_load(checkpoint, _SPEC)
      self.assertAllEqual(loaded(tf.ones([1, 2])), [[2.0, 2.0]])
      self.assertLen(loaded.variables, 2)
      self.assertEqual([v.name for v in loaded.trainable_variables], ["v:0"])
      (loss,) = loaded.regularization_losses
      self.assertAllClose(loss(), 0.004)

  def test_function_of_dicts(self):
    bias = tf.Variable(1.0)
    spec = {"a": _SPEC, "b": _SPEC}

    def call(inputs):
      total = inputs["a"] + inputs["b"] + bias
      return {"total": total, "parts": [inputs["a"]]}

    loaded = self.save_and_load(call, spec, variables=[bias])
    x = tf.ones([1, 2])
    self.assertAllEqual(loaded({"a": x, "b": x})["total"], [[3.0, 3.0]])
    self.assertAllEqual(loaded({"a": x, "b": x})["parts"], [x])
    self.assertEqual(
      loaded.signatures["serving_default"](a=x, b=x).keys(), {"total"}
    )
    self.assertLen(loaded.trainable_variables, 1)

  def test_keras_model(self):
    model = _keras_model()
    tunable = hyperparameters.of_model(model)
    before = model.get_config()
    loaded = self.save_and_load(model, _SPEC, hyperparameters=tunable)
    self.assertEqual(before, model.get_config())
    x = tf.random.stateless_normal([5, 2], [1, 2])
    self.assertAllClose(loaded(x), model(x), rtol=1e-6)
    self.assert_regularized(loaded, model, 3)

  def test_losses_of_nested_layers_are_there_once(self):
    class Outer(tf_keras.layers.Layer):
      def __init__(self):
        super().__init__()
        self.inner = _keras_model()
        self.scale = self.add_weight(
          name="scale", shape=[], regularizer=tf_keras.regularizers.L1(2.0)
        )

      def call(self, inputs):
        return self.inner(inputs) * self.scale

    outer = Outer()
    outer(tf.ones([1, 2]))
    loaded = self.save_and_load(outer, _SPEC)
    self.assert_regularized(loaded, outer, 4)
    # Keras passes `training` to the dropout, though `call` does not name it.
    x = tf.ones([100, 2])
    self.assertNotAllClose(loaded(x, training=True)[0], loaded(x)[0])

  def test_losses_of_methods_and_functions(self):
    class Coder(tf_keras.Model):
      def __init__(self):
        super().__init__()
        self.encoder, self.decoder = _keras_model(), _keras_model()

      def encode(self, inputs):
        return self.encoder(inputs)

      def call(self, inputs):
        return self.encoder(inputs), self.decoder(inputs)

    model = Coder()
    model(tf.ones([1, 2]))
    encode = functools.partial(lambda function, x: function(x), model.encode)
    for function in (model.encode, lambda x: encode(x)):
      loaded = self.save_and_load(
        function, _SPEC, variables=model.encoder.variables
      )
      self.assert_regularized(loaded, model.encoder, 3)
    # An object of any kind may hold the layer, and may hold other layers.
    held = types.SimpleNamespace(encoder=model.encoder)
    model.other = tf_keras.layers.Dense(2, activity_regularizer="l2")

    class Holder(tf.Module):
      def __call__(self, inputs):
        return held.encoder(inputs)

    for function in (Holder(), lambda x: model.encoder(x)):
      loaded = self.save_and_load(
        function,
        _SPEC,
        variables=model.encoder.variables,
        trainable_variables=model.encoder.trainable_variables,
      )
      self.assert_regularized(loaded, model.encoder, 3)

  def test_sub_object(self):
    module = Affine()
    root = _reusable(module, _SPEC, hyperparameters=[_SCALE])
    root.doubled = _reusable(
      lambda x: 2.0 * (x @ module.kernel), _SPEC, variables=[module.kernel]
    )
    export_dir = os.path.join(self.get_temp_dir(), "sub_object")
    saving.save(root, export_dir, signatures={})
    loaded = tf.saved_model.load(export_dir)
    self.assertAllEqual(loaded.doubled(tf.ones([1, 2])), [[6.0]])
    self.assertIs(
      loaded.doubled.trainable_variables[0], loaded.trainable_variables[0]
    )

  def test_no_training_that_changes_nothing(self):
    layers = tf_keras.layers

    def model_with(layer):
      return tf_keras.Sequential(
        [
          layers.InputLayer((None, 2)),
          layers.Dense(3, activation="gelu"),
          layers.LayerNormalization(epsilon=1e-6),
          layer,
          layers.Lambda(
            lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: 2 * x)
          ),
        ]
      )

    spec = tf.TensorSpec([None, None, 2])
    for layer, has_training in (
      (layers.Dropout(0.0), False),
      (layers.Dropout(0.1), True),
      (layers.BatchNormalization(), True),
    ):
      model = model_with(layer)
      source = saving.source(model, spec)
      self.assertEqual("training" in source.defaults, has_training)
    model = model_with(layers.Dropout(0.0))
    self.assertNotIn("training", saving.source(model, spec).defaults)
    loaded = self.save_and_load(model, spec)
    self.assertLen(loaded.__call__.concrete_functions, 1)
    x = tf.random.stateless_normal([3, 4, 2], [1, 2])
    results = []
    for call in (loaded, model):
      with tf.GradientTape() as tape:
        outputs = call(x) ** 3
      results.append(
        [outputs, *tape.gradient(outputs, call.trainable_variables)]
      )
    self.assertAllClose(*results, rtol=1e-4, atol=1e-4)

  def test_python_control_flow_over_tensors(self):
    def call(x):
      if tf.reduce_sum(x) > 0.0:  # For AutoGraph.
        x = 2.0 * x
      return x

    loaded = self.save_and_load(call, _SPEC)
    self.assertAllEqual(loaded(tf.ones([1, 2])), [[2.0, 2.0]])
    self.assertAllEqual(loaded(-tf.ones([1, 2])), [[-1.0, -1.0]])

  def test_training_that_changes_constants_of_a_branch(self):
    def call(x, training=False):
      factor = 2.0 if training else 3.0
      return tf.cond(tf.reduce_all(x > 0.0), lambda: x * factor, lambda: x)

    loaded = self.save_and_load(call, _SPEC)
    x = tf.ones([1, 2])
    self.assertAllEqual(loaded(x, training=True), 2.0 * x)
    self.assertAllEqual(loaded(x, training=False), 3.0 * x)

  def test_synchronized_batch_normalization_stays_out(self):
    layer = tf_keras.layers.BatchNormalization(synchronized=True)
    model = tf_keras.Sequential([tf_keras.layers.InputLayer((2,)), layer])
    source = saving.source(model, _SPEC)
    self.assertTrue(layer.synchronized)
    trace = source.function.get_concrete_function(_SPEC, training=True)
    # The sum over replicas would be an IdentityN, with a custom gradient.
    ops = trace.graph.get_operations()
    self.assertNotIn("IdentityN", {op.type for op in ops})

  def test_empty_batches_change_nothing(self):
    layers = tf_keras.layers
    whole = layers.BatchNormalization()
    models = {
      "fused": (whole, 4),
      "flat": (layers.BatchNormalization(), 2),
      "volume": (layers.BatchNormalization(), 5),
      "synchronized": (layers.BatchNormalization(synchronized=True), 4),
    }
    for name, (layer, rank) in models.items():
      shape = [2] * (rank - 1)
      model = tf_keras.Sequential([layers.InputLayer(shape), layer])
      for tunable in (hyperparameters.of_model(model), []):
        with self.subTest(name, tunable=len(tunable)):
          loaded = self.save_and_load(
            model, tf.TensorSpec([None, *shape]), hyperparameters=tunable
          )
          before = [v.numpy() for v in loaded.variables]
          with tf.GradientTape() as tape:
            outputs = loaded(tf.ones([0, *shape]), training=True)
          self.assertEqual(outputs.shape, [0, *shape])
          for v, value in zip(loaded.variables, before, strict=True):
            self.assertAllEqual(v, value)
          for gradient in tape.gradient(outputs, loaded.trainable_variables):
            self.assertAllEqual(gradient, [0.0, 0.0])
          loaded(tf.ones([3, *shape]), training=True)
          mean = loaded.variables[2]
          self.assertAllClose(mean, [0.01, 0.01])
    # The layers themselves keep Keras' behavior.
    whole(tf.ones([0, 2, 2, 2]), training=True)
    self.assertTrue(np.isnan(whole.moving_mean).all())

  def test_seeds_of_the_process_stay_out(self):
    tf.random.set_seed(7)
    root = _reusable(_keras_model(), _SPEC)
    trace = root.__call__.get_concrete_function(_SPEC, training=True)
    (random_op,) = [
      op for op in trace.graph.get_operations() if op.type == "RandomUniform"
    ]
    self.assertEqual(random_op.get_attr("seed"), 0)
    self.assertEqual(random_op.get_attr("seed2"), 0)

  def test_seeds_of_layers_stay_out(self):
    inputs = tf_keras.Input((2,))
    outputs = tf_keras.layers.Dropout(0.5, seed=3)(inputs)
    root = _reusable(tf_keras.Model(inputs, outputs), _SPEC)
    export_dir = self.create_tempdir().full_path
    saving.save(root, export_dir, signatures={})
    ones = tf.ones([64, 2])
    first, second = (
      tf.saved_model.load(export_dir)(ones, training=True) for _ in range(2)
    )
    self.assertNotAllEqual(first, second)

  def test_refuses_layers_that_are_frozen_too_late(self):
    model = tf_keras.Sequential(
      [tf_keras.layers.InputLayer((3,)), *map(tf_keras.layers.Dense, (2, 2))]
    )
    source = saving.source(model, tf.TensorSpec([None, 3]))
    saving.reusable(source)
    model.layers[0].trainable = False
    with self.assertRaisesRegex(errors.ExportError, "Freeze its layers before"):
      saving.reusable(source)

  def test_says_what_is_lost(self):
    layers = tf_keras.layers

    class Scaled(layers.Dense):
      def call(self, inputs, scale=2.0):
        return scale * super().call(inputs)

    layer = Scaled(2)
    layer.build([None, 2])
    scaled = saving.source(layer, _SPEC)
    self.assertIn("have scale=2.0. Consumers", saving.lost(scaled)["arguments"])
    module = type("WithLosses", (Affine,), {"losses": ()})()
    lost = saving.lost(saving.source(module, _SPEC, hyperparameters=[_SCALE]))
    self.assertIn("`losses` of the model are not read", lost["losses"])
    spec = tf.TensorSpec([None, 3])
    for constraint, words in ((None, "^$"), ("non_neg", "dense/kernel:0")):
      tf_keras.backend.reset_uids()
      dense = layers.Dense(2, kernel_constraint=constraint)
      model = tf_keras.Sequential([layers.InputLayer((3,)), dense])
      lost = saving.lost(saving.source(model, spec))
      self.assertRegex(lost.get("constraints", ""), words)
    base = tf_keras.Sequential([layers.Dense(2), layers.Dropout(0.5)])
    inputs = tf_keras.Input([2])
    model = tf_keras.Model(inputs, base(inputs, training=False))
    source = saving.source(
      model, _SPEC, hyperparameters=hyperparameters.of_model(model)
    )
    self.assertEqual(source.defaults, {})
    self.assertIn("set dropout_rate.", saving.lost(source)["hyperparameters"])
    source = saving.source(
      lambda x, training=True: x if training else 2.0 * x, _SPEC
    )
    self.assertRegex(saving.lost(source)["training"], "^Its default is False")
    for zero, words in ((False, "^$"), (True, "An output of the model has")):
      embedding = layers.Embedding(3, 2, mask_zero=zero, input_length=3)
      source = saving.source(
        tf_keras.Sequential([embedding]), tf.TensorSpec([None, 3], tf.int32)
      )
      self.assertRegex(saving.lost(source).get("masks", ""), words)

  def test_other_forms(self):
    """A tuple becomes a list, and outputs may be None or complex."""

    def model(pair):
      total = pair[0] + pair[1]
      return total, None, tf.complex(total, total)

    root = _reusable(model, (_SPEC, _SPEC))
    signature = saving.signature(root, [_SPEC, _SPEC])
    export_dir = self.create_tempdir().full_path
    saving.save(root, export_dir, signatures={"serving_default": signature})
    loaded = tf.saved_model.load(export_dir)
    ones = tf.ones([3, 2])
    total, nothing, last = loaded([ones, ones])
    self.assertAllEqual(total, 2 * ones)
    self.assertIsNone(nothing)
    served = loaded.signatures["serving_default"](inputs_0=ones, inputs_1=ones)
    self.assertCountEqual(served, ["outputs_0", "outputs_2"])
    self.assertAllEqual(served["outputs_2"], last)

  def test_refuses_forms_that_consumers_cannot_use(self):
    sparse = tf.SparseTensorSpec([None, 4])
    self.assert_refused("can be taken as its indices", lambda x: x, sparse)
    with self.assertRaisesRegex(errors.ExportError, "returns SparseTensor"):
      root = _reusable(lambda x: tf.sparse.from_dense(x), _SPEC)
      saving.signature(root, _SPEC)
    source = saving.source(lambda x: x, _SPEC)
    for form in (
      tf.TensorSpec([None, None, 2]),
      tf.RaggedTensorSpec([None, None]),
    ):
      with self.assertRaisesRegex(errors.ExportError, "dimensions are not"):
        saving.reusable(source, also_takes=[form])
    source = saving.source(lambda x: x["a"], {"a": _SPEC})
    with self.assertRaisesRegex(errors.ExportError, "a dict of b; the input"):
      saving.reusable(source, also_takes=[{"b": _SPEC}])
    for keys, message in (
      (["a b"], "use letters, digits"),
      (["_a"], "use letters, digits"),
      (["a", "A"], "A, a must be different names"),
      (["x.y", "x/y"], "must be different names"),
      (["self"], "none of them `self`"),
    ):
      spec = dict.fromkeys(keys, _SPEC)
      self.assert_refused(message, lambda x: x, spec)
    generator = tf.random.Generator.from_seed(1)
    with_noise = lambda x: x + generator.normal([2])  # noqa: E731
    self.assert_refused("tf.random.Generator", with_noise, _SPEC)
    in_python = lambda x: tf.numpy_function(np.tanh, [x], x.dtype)  # noqa: E731
    self.assert_refused("calls Python code", in_python, _SPEC)
    of_file = lambda x: x * tf.strings.to_number(tf.io.read_file("/scale"))  # noqa: E731
    self.assert_refused("has the op ReadFile", of_file, _SPEC)

  def test_refuses_names_and_values_that_functions_cannot_have(self):
    call = lambda x, k=1: x * tf.cast(k, x.dtype)  # noqa: E731
    for name, default, message in (
      ("inputs", 1.0, "A hyperparameter is called 'inputs'"),
      ("a b", 1.0, "A hyperparameter is called 'a b'"),
      ("k", 2**31, "k is 2147483648, and an int32 has no such value"),
      ("k", True, "k is True, and consumers can give a float, an int or a str"),
    ):
      h = hyperparameters.Hyperparameter(name, default, "")
      self.assert_refused(message, call, _SPEC, hyperparameters=[h])
    spec = {"a": {"b": _SPEC}, "a_b": _SPEC}
    self.assert_refused("a_b must be different", lambda x: x["a_b"], spec)
    slices = lambda x: tf.IndexedSlices(x, tf.range(2))  # noqa: E731
    for call, message in (
      (lambda x: {3: x}, "a dict with the key 3; outputs are named"),
      (slices, "returns IndexedSlices, and consumers do not have it"),
      (lambda x: tf.cast(x, tf.qint8), "returns qint8. Return dequantized"),
      (
        lambda x: x if x[0, 0] > 0 else -x,
        "over a Tensor, which needs",
      ),
    ):
      self.assert_refused(message, call, _SPEC, autograph=False)
    with self.assertRaisesRegex(errors.ExportError, "2 outputs, .* are y"):
      saving.signature(_reusable(lambda x: [x, x], _SPEC), _SPEC, ["y"])
    tf.config.run_functions_eagerly(True)
    self.addCleanup(tf.config.run_functions_eagerly, False)
    self.assert_refused("no function has a graph", lambda x: x, _SPEC)

  def test_keeps_what_was_set_on_a_model(self):
    """Keeps a `call` set on a layer, overridden losses and a scheduled rate."""

    class Doubled(tf_keras.layers.Dense):
      @property
      def losses(self):
        return [2.0 * loss for loss in super().losses]

    model = _keras_model()
    model.add(Doubled(2, kernel_regularizer="l2"))
    dense = next(
      x for x in model.layers if isinstance(x, tf_keras.layers.Dense)
    )
    original = dense.call
    dense.call = lambda x: 3.0 * original(x)
    rate = tf.Variable(0.5, trainable=False)
    model.add(tf_keras.layers.Dropout(rate))
    bound = [x for h in hyperparameters.of_model(model) for x in h.layers]
    self.assertNotIn(model.layers[-1], bound)
    x = tf.ones([3, 2])
    before = model(x)
    root = _reusable(model, _SPEC)
    self.assertAllClose(root.__call__(x), before)
    self.assertAllClose(model(x), before)
    (loss,) = root.regularization_losses
    self.assertAllClose(loss(), sum(model.losses))

  def test_refuses_seeds_that_all_consumers_share(self):
    seed = tf.Variable([1, 2], trainable=False)

    def drawing(given):
      def call(x, training=False):
        fixed = x + tf.random.stateless_normal(tf.shape(x), [3, 4])
        noise = tf.random.stateless_normal(tf.shape(x), given())
        return fixed + noise if training else fixed

      return call

    for given in (lambda: seed, lambda: [1, 2]):
      self.assert_refused(
        "Training draws by StatelessRandomNormal.* from a seed",
        drawing(given),
        _SPEC,
        variables=[seed],
      )
    _reusable(drawing(lambda: tf.random.uniform([2], 0, 9, tf.int32)), _SPEC)

  def test_recurrent_dropout(self):
    """TensorFlow cannot list the submodules of such a layer."""
    inputs = tf_keras.Input((None, 4))
    outputs = tf_keras.layers.LSTM(3, recurrent_dropout=0.5)(inputs)
    spec = tf.TensorSpec([None, None, 4])
    root = _reusable(tf_keras.Model(inputs, outputs), spec)
    ones = tf.ones([2, 5, 4])
    first, second = (root.__call__(ones, training=True) for _ in range(2))
    self.assertNotAllEqual(first, second)

  def test_refuses_a_model_without_trainable_variables(self):
    model = _keras_model()
    model.trainable = False
    self.assert_refused("lists none of them as trainable", model, _SPEC)

  def test_refuses_a_variable_that_is_not_listed(self):
    hidden = tf.Variable(1.0, name="hidden")
    nested = tf.function(lambda x: x * hidden)
    self.assert_refused("uses hidden:0, which", lambda x: nested(x), _SPEC)
    layers = tf_keras.layers
    self.assert_refused("call it once before", layers.Dense(2), _SPEC)
    unbuilt = tf_keras.Sequential([layers.Dense(2)])
    self.assert_refused("have not yet been created", unbuilt, _SPEC)
    lstm = layers.LSTM(2, stateful=True, batch_input_shape=(3, 4, 2))
    self.assert_refused(
      "Keras leaves out the states",
      tf_keras.Sequential([lstm]),
      tf.TensorSpec([3, 4, 2]),
    )

    class Measured(layers.Dense):
      def call(self, inputs):
        self.add_metric(tf.norm(inputs), name="norm")
        return super().call(inputs)

    layer = Measured(2)
    layer.build([None, 2])
    self.assert_refused("leave add_metric out", layer, _SPEC)

  def test_refuses_python_control_flow_and_changes_of_tables(self):
    leaky = tf_keras.layers.LeakyReLU(input_shape=(2,))
    tunable = hyperparameters.Hyperparameter("a", 0.5, "", [leaky], "alpha")
    self.assert_refused(
      "Layer leaky_re_lu, a LeakyReLU, has Python control flow over a Tensor",
      tf_keras.Sequential([leaky]),
      _SPEC,
      hyperparameters=[tunable],
    )
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)

    def call(ids):
      table.insert(ids, ids)
      return table.lookup(ids)

    ids = tf.TensorSpec([None], tf.int64)
    self.assert_refused("A call of the model changes a table", call, ids)

  def test_refuses_a_trainable_variable_that_is_not_listed(self):
    kernel = tf.Variable([[1.0], [2.0]], name="kernel")
    self.assert_refused(
      "kernel:0 is among trainable_variables and not among",
      lambda x: x @ kernel,
      _SPEC,
      trainable_variables=[kernel],
    )

  def test_refuses_a_trainable_variable_that_no_output_trains(self):
    dead, kernel = (
      tf.Variable([[1.0], [2.0]], name=name) for name in ("dead", "kernel")
    )
    for model, losses in (
      (lambda x: x @ kernel, []),
      (lambda x: x @ kernel, [lambda: tf.nn.l2_loss(dead)]),
      (lambda x: x @ kernel + 0.0 * tf.stop_gradient(x @ dead), []),
      (
        lambda x, training=False: (
          x @ kernel + 0.0 * (x @ dead) if not training else x @ kernel
        ),
        [],
      ),
    ):
      self.assert_refused(
        "lists dead:0 as trainable, but no output of training has a gradient",
        model,
        _SPEC,
        variables=[kernel, dead],
        regularization_losses=losses,
      )
    # A model may leave `dead` to a sub-object to train.
    arguments = {"variables": [kernel, dead], "trainable_variables": [kernel]}
    loaded = self.save_and_load(lambda x: x @ kernel, _SPEC, **arguments)
    self.assertLen(loaded.variables, 2)
    for model in (
      lambda x: tf.cond(x[0, 0] > 0, lambda: x @ kernel, lambda: x[:, :1]),
      lambda x: tf.gather(kernel, tf.cast(x[:, 0], tf.int32)),
      lambda x: tf.recompute_grad(lambda y: y @ kernel)(x),
      lambda x: tf.map_fn(lambda row: row[tf.newaxis] @ kernel, x),
    ):
      saving.source(model, _SPEC, variables=[kernel])

  def test_refuses_weights_that_are_not_finite(self):
    module = Affine()
    module.kernel.assign([[1.0], [float("nan")]])
    self.assert_refused(
      "kernel:0 has values that are not finite",
      module,
      _SPEC,
      hyperparameters=[_SCALE],
    )

  def test_other_values_may_be_infinite(self):
    module = Affine()

    @tf.function  # Keras' fit builds variables in a function, too.
    def build():
      if not hasattr(module, "mask"):
        module.mask = tf.Variable([[float("-inf")]], trainable=False)

    build()
    loaded = self.save_and_load(
      lambda x: x @ module.kernel + module.mask,
      _SPEC,
      variables=[module.kernel, module.mask],
    )
    self.assertAllEqual(loaded(tf.ones([1, 2])), [[float("-inf")]])

  def test_leaves_out_what_layers_adapt_and_do_not_read(self):
    layer = tf_keras.layers.Discretization(num_bins=2)
    layer.adapt(np.arange(8.0))
    self.assertLen(layer.variables, 1)
    source = saving.source(layer, tf.TensorSpec([None, 1]))
    self.assertEmpty(source.variables)

  def test_refuses_training_that_cannot_be_found(self):
    self.assert_refused(r"takes \*\*kwargs", lambda x, **kwargs: x, _SPEC)
    self.assert_refused(
      "takes is_training=False", lambda x, is_training=False: x, _SPEC
    )

  def test_refuses_an_optimizer(self):
    module = Affine()
    module.optimizer = tf_keras.optimizers.Adam()
    module.optimizer.build([module.kernel])
    self.assert_refused(
      "include those of an optimizer, Adam",
      module,
      _SPEC,
      hyperparameters=[_SCALE],
      variables=[
        module.kernel,
        module.calls,
        *module.optimizer.variables,
      ],
    )
    root = _reusable(module, _SPEC, hyperparameters=[_SCALE])
    root.optimizer = module.optimizer
    with self.assertRaisesRegex(errors.ExportError, "holds an optimizer, Adam"):
      saving.save(root, self.get_temp_dir(), signatures={})

  def test_a_compiled_model_loses_its_optimizer(self):
    model = _keras_model()
    model.compile("adam", "mse")
    model.fit(tf.ones([4, 2]), tf.ones([4, 3]), verbose=0)
    loaded = self.save_and_load(model, _SPEC)
    self.assertLen(loaded.variables, len(model.layers[0].weights) + 4 + 2)

  def test_functions_name_layers(self):
    self.assertEqual(layer_calls.named(_sum_of_layers), [_FIRST, _SECOND])
    dense = tf_keras.layers.Dense(2)
    self.assertEqual(layer_calls.named(lambda x: dense(x)), [dense])

  def test_refuses_a_hyperparameter_without_effect(self):
    model = _keras_model()
    dense, batch_norm, *_ = model.layers
    for layer, attribute in ((batch_norm, "axis_"), (dense, "momentum")):
      setattr(layer, attribute, 0.5)
      self.assert_refused(
        "tunable changes nothing",
        model,
        _SPEC,
        hyperparameters=[
          hyperparameters.Hyperparameter("tunable", 0.5, "", [layer], attribute)
        ],
      )
      self.assertEqual(getattr(layer, attribute), 0.5)
    self.assert_refused(
      "unused changes nothing",
      lambda x, unused: x + 0.0 * tf.stop_gradient(x),
      _SPEC,
      hyperparameters=[hyperparameters.Hyperparameter("unused", 1.0, "")],
    )
    # A ragged input is two inputs of a trace.
    self.assert_refused(
      "unused changes nothing",
      lambda x, unused: x * 2.0,
      tf.RaggedTensorSpec([None, None]),
      hyperparameters=[hyperparameters.Hyperparameter("unused", 1.0, "")],
    )
    self.assert_refused(
      "missing is neither bound to layers nor",
      lambda x: x,
      _SPEC,
      hyperparameters=[hyperparameters.Hyperparameter("missing", 1.0, "")],
    )

  def test_complete_keras_models_hold_no_python_functions(self):
    layers = tf_keras.layers
    for layer in (
      layers.Dense(2, kernel_regularizer=lambda w: tf.reduce_sum(w), name="a"),
      tf_keras.Sequential([layers.Lambda(lambda x: x, name="a")]),
    ):
      model = tf_keras.Sequential([layers.InputLayer((2,)), layer])
      source = saving.source(model, _SPEC, variables=model.weights)
      with self.assertRaisesRegex(errors.ExportError, "^Layer a .* has a Pyth"):
        directory = self.create_tempdir().full_path
        keras_saving.save(source, directory, signatures={}, attributes={})

  def test_examples_of_complete_keras_models(self):
    for start in ("", "import tensorflow_hub as hub\n"):
      card = model_card.Card(
        name="",
        description="",
        meanings={},
        example=f'{start}import tf_keras\nx = hub.KerasLayer("y")',
        provenance={},
      )
      self.assertEqual(
        model_card.usage(card, 1, is_keras=True)["example"],
        'import tf_keras\nx = tf_keras.models.load_model("y")',
      )

  def test_refuses_models_that_cannot_be_called(self):
    for model in (tf.Module(), tf.train.Checkpoint()):
      self.assert_refused("has no method `__call__`", model, _SPEC)

  def test_refuses_unknown_ranks(self):
    unknown = tf.TensorSpec(None)
    self.assert_refused("^An input of the model, .* unknown rank", abs, unknown)
    shape = tf.TensorSpec([None], tf.int32)
    self.assert_refused(
      "^An output .* unknown rank", lambda x: tf.ones(x), shape
    )
    variable = tf.Variable(2.0, shape=tf.TensorShape(None))
    self.assert_refused(
      "has the shape <unknown>. Give it a size",
      lambda x: x * variable,
      _SPEC,
      variables=[variable],
    )

  def test_refuses_modes_of_different_structure(self):
    self.assert_refused(
      "must have the same structure",
      lambda x, training=False: {"x": x} if training else x,
      _SPEC,
    )

  def test_refuses_losses_that_are_not(self):
    product = Product()
    product.regularization_losses = lambda: []
    self.assert_refused("of Product is a method", product, _SPEC)
    left = []
    tf.function(lambda: left.append(tf.zeros([])))()
    for loss, message in (
      (lambda: tf.ones([2]), r"TensorSpec\(shape=\(2,\).*; it must be a func"),
      (lambda: None, "NoneType; it must be a function"),
      (tf.ones([]), "must be a function that returns a float scalar"),
      (lambda: tf.constant(np.nan), "loss is nan; it must be finite"),
      (lambda: left[0], "Tensor that a call of the model has left"),
    ):
      self.assert_refused(
        message, lambda x: x, _SPEC, regularization_losses=[loss]
      )
    model = tf_keras.Sequential(
      [tf_keras.layers.Dense(1, activity_regularizer="l2", name="active")]
    )
    model.build((None, 2))
    self.assert_refused("active has an activity regularizer", model, _SPEC)

    class AddsLoss(tf_keras.layers.Layer):
      def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs))
        return inputs

    self.assert_refused("adds losses that depend", AddsLoss(), _SPEC)
    inputs = tf_keras.Input([2])
    model = tf_keras.Model(inputs, AddsLoss(name="of_inputs")(inputs))
    self.assert_refused("layer of_inputs adds losses that depend", model, _SPEC)

  def test_closes_gradients_in_training_alone(self):
    layers = tf_keras.layers
    norm = layers.LayerNormalization(epsilon=1e-6)
    model = tf_keras.Sequential(
      [layers.InputLayer((2,)), norm, layers.Dropout(0.5)]
    )
    source = saving.source(model, _SPEC)
    for training in (False, True):
      trace = source.function.get_concrete_function(_SPEC, training=training)
      closed = "_gradient_op_type" in str(trace.graph.as_graph_def())
      self.assertEqual(closed, training)

  def test_holds_the_tables_of_a_model(self):
    lookup = tf_keras.layers.TextVectorization(output_sequence_length=2)
    lookup.adapt(["a b", "b"])
    inputs = tf_keras.Input([], dtype=tf.string)
    embedding = tf_keras.layers.Embedding(4, 3)
    model = tf_keras.Model(inputs, embedding(lookup(inputs)))
    root = _reusable(model, tf.TensorSpec([None], tf.string, "texts"))
    self.assertLen(root.variables, 1)
    texts = tf.constant(["b a", "c"])
    rows = tf.gather(embedding.embeddings, [[2, 3], [1, 0]])
    directory = self.create_tempdir().full_path
    saving.save(root, directory, signatures={})
    self.assertAllEqual(tf.saved_model.load(directory)(texts), rows)

  def test_refuses_a_table_that_it_does_not_hold(self):
    table = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(["a"], [2.0]), 0.0
    )
    spec = tf.TensorSpec([None], tf.string)
    root = _reusable(lambda x: table.lookup(x), spec)
    with self.assertRaisesRegex(errors.ExportError, "does not hold"):
      saving.save(root, self.get_temp_dir(), signatures={})
    root.table = table
    saving.save(root, self.get_temp_dir(), signatures={})


if __name__ == "__main__":
  tf.test.main()
