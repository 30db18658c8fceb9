import os
import pathlib
import shutil

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
import tf_keras

from exporters.reusable import slimming


def _functions(export_dir):
  path = pathlib.Path(export_dir, "saved_model.pb")
  (meta_graph,) = saved_model_pb2.SavedModel.FromString(
    path.read_bytes()
  ).meta_graphs
  return meta_graph.graph_def.library.function


class SlimmingTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    model = tf_keras.Sequential(
      [
        tf_keras.layers.InputLayer((None, 8, 3), name="images"),
        tf_keras.layers.Conv2D(4, 3),
        tf_keras.layers.BatchNormalization(momentum=0.5),
        tf_keras.layers.Flatten(),
      ]
    )
    root = tf.train.Checkpoint(
      trained=model.trainable_variables, averages=model.non_trainable_variables
    )

    def call(images, training):
      outputs = model(images, training=training)
      # The branches of a cond are functions of several outputs.
      outputs, *_ = tf.cond(
        tf.reduce_sum(images) > 0.0,
        lambda: [outputs * factor for factor in range(2, 22)],
        lambda: [outputs + term for term in range(2, 22)],
      )
      outputs.set_shape([None, 144])  # Which no op of it tells.
      return outputs

    root.__call__ = tf.function(call)
    images = tf.TensorSpec([None, None, 8, 3], name="images")
    for training in (False, True):
      root.__call__.get_concrete_function(images, training)
    self.directories = [
      os.path.join(self.get_temp_dir(), name) for name in ("before", "after")
    ]
    serve = tf.function(lambda images: {"y": call(images, False)})
    tf.saved_model.save(
      root, self.directories[0], serve.get_concrete_function(images)
    )
    shutil.copytree(*self.directories)
    slimming.slim(self.directories[1])
    self.images = tf.random.stateless_uniform([2, 8, 8, 3], [0, 0])

  def test_it_computes_the_same(self):
    before, after = map(tf.saved_model.load, self.directories)
    seen = []
    for model in (before, after):
      with tf.GradientTape() as tape:
        outputs = model(self.images, True)
        loss = tf.reduce_sum(outputs**2)
      seen.append(
        [
          outputs,
          *tape.gradient(loss, list(model.trained)),
          # The averages have moved.
          *model.averages,
          model(self.images, False),
        ]
      )
    self.assertAllClose(*seen, rtol=1e-6)
    self.assertNotAllClose(seen[0][-1], seen[0][0])
    for function in after.__call__.concrete_functions:
      returned = function.outputs[0]
      self.assertEqual(returned.shape.as_list(), [None, 144])
    (old, new) = (
      sum(p.stat().st_size for p in pathlib.Path(d).glob("saved_model.pb"))
      for d in self.directories
    )
    self.assertLess(new, 0.7 * old)

  def test_nothing_is_left_that_loading_finds_out(self):
    for function in _functions(self.directories[1]):
      for node in function.node_def:
        known = node.op in ("Conv2D", "Relu", "FusedBatchNormV3", "AddV2")
        self.assertFalse(known and "_output_shapes" in node.attr, node)
      ops = {node.name: node.op for node in function.node_def}
      ends = [ops[name] for name in function.control_ret.values()]
      self.assertNotIn("ReadVariableOp", ends)

  def test_averages_are_written_before_a_call_ends(self):
    (training,) = (
      function
      for function in _functions(self.directories[1])
      if any(node.op == "FusedBatchNormV3" for node in function.node_def)
      and any(node.op.startswith("Assign") for node in function.node_def)
    )
    nodes = {node.name: node for node in training.node_def}
    assigned = [name for name in nodes if nodes[name].op.startswith("Assign")]
    self.assertLen(assigned, 2)
    self.assertContainsSubset(assigned, training.control_ret.values())
    for name in assigned:
      waits_for = [nodes[i[1:]].op for i in nodes[name].input if i[0] == "^"]
      self.assertIn("ReadVariableOp", waits_for)

  def test_loads_without_python_functions(self):
    """As TensorFlow Serving does, by the names of the graph."""
    expected = tf.saved_model.load(self.directories[0])(self.images, False)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      meta_graph = tf.compat.v1.saved_model.load(
        session, ["serve"], self.directories[1]
      )
      signature = meta_graph.signature_def["serving_default"]
      actual = session.run(
        signature.outputs["y"].name,
        {signature.inputs["images"].name: self.images.numpy()},
      )
    self.assertAllClose(actual, expected, rtol=1e-6)

  def test_the_fingerprint_is_of_the_new_file(self):
    """Fails when TensorFlow's private module goes away."""
    before, after = map(
      tf.saved_model.experimental.read_fingerprint, self.directories
    )
    self.assertNotEqual(before.saved_model_checksum, after.saved_model_checksum)
    self.assertEqual(before.checkpoint_hash, after.checkpoint_hash)


if __name__ == "__main__":
  tf.test.main()
