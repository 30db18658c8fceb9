"""Fine-tunes exports on two replicas, with batches that do not divide."""

import os
import pathlib

# oneDNN returns the shape of the input for a convolution of an empty batch.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from exporters.reusable import hyperparameters
from exporters.reusable import private_api
from exporters.reusable import saving
from tools import nightly

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 2,
)
_SPEC = tf.TensorSpec([None, 6, 6, 1], tf.float32)
_MEAN = "batch_norm/moving_mean:0"
_TWO = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def _features(normalized):
  """Builds a small model from images to features."""
  tf_keras.utils.set_random_seed(1)
  layers = [
    tf_keras.layers.InputLayer((6, 6, 1), name="images"),
    tf_keras.layers.Conv2D(4, 3, kernel_regularizer="l2", name="conv"),
    tf_keras.layers.GlobalAveragePooling2D(),
    tf_keras.layers.Dense(5, "tanh", name="dense"),
  ]
  if normalized:
    norm = tf_keras.layers.BatchNormalization(momentum=0.5, name="batch_norm")
    layers.insert(2, norm)
  return tf_keras.Sequential(layers, name="features")


def _train(strategy, features, examples):
  """Fine-tunes features with a new head, three epochs in batches of 4.

  Args:
    strategy: The strategy.
    features: Returns the layer to fine-tune.
    examples: The number of examples.

  Returns:
    The values of all variables, by name.
  """
  rng = np.random.default_rng(0)
  with strategy.scope():
    model = tf_keras.Sequential(
      [
        features(),
        tf_keras.layers.Dense(3, kernel_initializer="ones", name="head"),
      ]
    )
    model.build([None, 6, 6, 1])
    model.compile(
      tf_keras.optimizers.SGD(0.1),
      tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
  model.fit(
    rng.random((examples, 6, 6, 1), np.float32),
    np.arange(examples) % 3,
    batch_size=4,
    epochs=3,
    shuffle=False,
    verbose=0,
  )
  return {v.name: v.numpy() for v in model.variables}


class ReplicasTest(parameterized.TestCase, tf.test.TestCase):
  def export(self, normalized):
    """Exports a model; returns a function that loads it as a layer."""
    model = _features(normalized)
    tunable = hyperparameters.of_model(model)
    source = saving.source(model, _SPEC, hyperparameters=tunable)
    directory = self.create_tempdir().full_path
    saving.save(saving.reusable(source), directory, signatures={})
    return lambda: hub.KerasLayer(directory, trainable=True)

  @parameterized.parameters(
    *[(False, 8), (True, 9)],
    *[(False, 9), (False, 11), (True, 8), (True, 11)] * nightly.IS_ON,
  )
  def test_trains_like_the_live_model(self, normalized, examples):
    """The last batch has 4, 1 or 3 examples. With 1, a replica gets none."""
    export = self.export(normalized)
    found = _train(_TWO, export, examples)
    live = _train(_TWO, lambda: _features(normalized), examples)
    self.assertLen(found, len(live))
    for name, value in live.items():
      self.assertAllClose(found[name], value, atol=1e-5, rtol=1e-5, msg=name)
    if normalized:
      self.assertGreater(np.abs(found[_MEAN]).min(), 0.0)  # It has moved.
    if examples == 8 and not normalized:
      one = _train(tf.distribute.get_strategy(), export, 8)
      self.assertAllClose(found, one, atol=1e-5, rtol=1e-5)

  def test_names_no_devices(self):
    """A SavedModel that is written under a strategy loads on any machine."""
    load = self.export(normalized=True)
    with _TWO.scope():
      layer = load()
    directory = self.create_tempdir().full_path
    tf.saved_model.save(layer.resolved_object, directory)
    self.assertLen(tf.saved_model.load(directory).variables, 8)
    path = pathlib.Path(directory, "saved_model.pb")
    (proto,) = private_api.saved_model_pb2.SavedModel.FromString(
      path.read_bytes()
    ).meta_graphs
    nodes = list(proto.graph_def.node)
    for function in proto.graph_def.library.function:
      nodes += function.node_def
    # TensorFlow's saver names devices that every machine has.
    of_saver = {"/device:CPU:0", "/device:CPU:*"}
    self.assertEqual({n.device for n in nodes} - of_saver, {""})
    objects = proto.object_graph_def.nodes
    self.assertEqual({x.variable.device for x in objects}, {""})


if __name__ == "__main__":
  tf.test.main()
