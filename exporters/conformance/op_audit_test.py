"""Tests the op audit with SavedModels whose ops must not run."""

import os

from absl.testing import parameterized
import tensorflow as tf
import tensorflow_text

from exporters.conformance import op_audit
from exporters.reusable import allowed_ops
from exporters.reusable.private_api import saved_model_pb2

_TEXT = tf.TensorSpec([], tf.string)


def _saves(path):
  tf.raw_ops.SaveV2(
    prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[1.0]
  )
  return path


def _restores(path):
  return tf.raw_ops.RestoreV2(
    prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
  )


def _calls_python(text):
  return tf.py_function(lambda x: x, [text], tf.string)


def _prints_into_a_file(text):
  tf.print(text, output_stream="file:///tmp/stolen")
  return text


def _nested(text):
  return tf.cond(text == "x", lambda: tf.io.read_file(text), lambda: text)


def _mapped(text):
  return next(iter(tf.data.TextLineDataset(text)))


class OpAuditTest(parameterized.TestCase, tf.test.TestCase):
  def suspicious(self, root, change=lambda graph: None, **kwargs):
    directory = os.path.join(self.get_temp_dir(), "export")
    tf.saved_model.save(root, directory, **kwargs)
    with open(f"{directory}/saved_model.pb", "rb") as f:
      graph = saved_model_pb2.SavedModel.FromString(f.read()).meta_graphs[0]
    change(graph)
    files = [f"assets/{name}" for name in os.listdir(f"{directory}/assets")]
    return op_audit.suspicious([graph], files)

  def call(self, function):
    root = tf.train.Checkpoint(v=tf.Variable(1.0))
    root.__call__ = tf.function(function, input_signature=[_TEXT])
    return root

  @parameterized.parameters(
    (tf.io.read_file, "ReadFile"),
    (_nested, "ReadFile"),
    (_saves, "SaveV2"),
    (_restores, "RestoreV2"),
    (_calls_python, "EagerPyFunc"),
    (_prints_into_a_file, "PrintV2"),
    (_mapped, "TextLineDataset"),
  )
  def test_finds(self, function, op):
    found = self.suspicious(self.call(function))
    self.assertTrue(
      any(line.startswith(f"{op} (") and " in " in line for line in found),
      found,
    )

  def test_finds_an_unknown_op(self):
    def change(graph):
      graph.graph_def.library.function[0].node_def.add(name="x", op="Custom>Op")

    (found,) = self.suspicious(self.call(tf.identity), change)
    self.assertStartsWith(found, "Custom>Op (x) in __inference")

  def test_finds_too_many_inputs(self):
    def change(graph):
      node = graph.graph_def.library.function[0].node_def.add(op="AddN")
      node.input.extend(["x"] * 100_000)

    (found,) = self.suspicious(self.call(tf.identity), change)
    self.assertRegex(found, "^AddN .* has 100,000 inputs; models need fewer$")

  def test_finds_savers_that_are_called_otherwise(self):
    def change(graph):
      saver = next(
        f
        for f in graph.graph_def.library.function
        if any(node.op == "SaveV2" for node in f.node_def)
      )
      call = graph.graph_def.library.function[0].node_def.add(
        name="again", op="StatefulPartitionedCall"
      )
      call.attr["f"].func.name = saver.signature.name
      graph.object_graph_def.nodes[0].function.concrete_functions.append(
        graph.graph_def.library.function[0].signature.name
      )

    found = self.suspicious(self.call(tf.identity), change)
    self.assertTrue(any(line.startswith("SaveV2 (") for line in found), found)

  def test_tables_are_filled_from_assets_alone(self):
    path = os.path.join(self.get_temp_dir(), "vocabulary.txt")
    with open(path, "w") as f:
      f.write("a\nb\n")
    initializer = tf.lookup.TextFileInitializer(
      path,
      tf.string,
      tf.lookup.TextFileIndex.WHOLE_LINE,
      tf.int64,
      tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    table = tf.lookup.StaticHashTable(initializer, -1)
    root = self.call(table.lookup)
    root.table = table
    self.assertEmpty(self.suspicious(root))

    def change(graph):
      for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "asset":
          node.constant.operation = "Const"  # May be any path.

    directory = os.path.join(self.get_temp_dir(), "once")
    tf.saved_model.save(root, directory)
    again = tf.saved_model.load(directory)
    self.assertEmpty(self.suspicious(again))
    for model in root, again:
      (found,) = self.suspicious(model, change)
      self.assertIn("fills a table from a file that is not an asset", found)

  def test_models_pass(self):
    """The ops of savers and of tensorflow-text pass too."""
    tokenizer = tensorflow_text.WhitespaceTokenizer()
    # The op of this call, StatefulPartitionedCall, is also the name of a node
    # that saves.
    count = tf.function(lambda text: root.v.assign_add(1.0))
    root = self.call(lambda text: (tokenizer.tokenize([text]), count(text)))
    self.assertEmpty(self.suspicious(root, signatures={}))

  def test_allowed_ops_exist(self):
    unknown = [
      op
      for op in allowed_ops.NAMES
      if not hasattr(tf.raw_ops, op) and not _is_registered(op)
    ]
    self.assertEmpty(unknown)
    for op in ("ReadFile", "WriteFile", "SaveV2", "PyFunc", "ImmutableConst"):
      self.assertNotIn(op, allowed_ops.NAMES)


def _is_registered(op):
  """Tells whether an op is registered, even if no Python module offers it."""
  graph = tf.compat.v1.GraphDef()
  graph.node.add(name="x", op=op)
  try:
    tf.graph_util.import_graph_def(graph)
  except ValueError as e:
    return "Op type not registered" not in str(e)
  return True


if __name__ == "__main__":
  tf.test.main()
