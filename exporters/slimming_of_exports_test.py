"""Runs each function of exports before and after slimming, on random inputs."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from exporters import bert_encoder
from exporters import image_classifier
from exporters import mnist_cnn as mnist_cnn_exporter
from exporters import text_rnn as text_rnn_exporter
from exporters import tf_module
from exporters.reusable import exporting
from exporters.reusable import graphs
from exporters.reusable import randomness
from exporters.reusable import saving
from exporters.reusable import slimming
from exporters.reusable.private_api import saved_model_pb2
from models.nlp import bert
from models.nlp import text_rnn
from models.vision import image_classification
from models.vision import mnist_cnn
from models.vision import resnet

_WITH_FILES = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}
# Values to try for unknown dimensions, in this order.
_DIMENSIONS = (3, 8, 32)


def _mnist_cnn():
  return mnist_cnn_exporter._piece(mnist_cnn.feature_extractor(features=8))


def _resnet():
  setup = image_classification.configure(
    resnet.ARCHITECTURE,
    "resnet_small",
    ["task.model.backbone.resnet.stochastic_depth_drop_rate=0.2"],
  )
  model = image_classification.build(setup)
  cut = image_classification.cut(setup, model, ["logits"], None)
  return image_classifier._piece("classification", cut, setup)


def _bert():
  config = bert.encoders.EncoderConfig(type="bert")
  sizes = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 40}
  config.override(
    {"bert": {**sizes, "num_layers": 2, "num_attention_heads": 2}}
  )
  model = bert.core_model(config)
  return bert_encoder.piece(model, None, {})


def _text_rnn():
  model = text_rnn.language_model(
    text_rnn.Architecture(units=8, embedding_size=4)
  )
  return text_rnn_exporter._language_model(model, {})[0]


def _product():
  return tf_module._product()[0]


def _values(function, size):
  """Makes random arguments for a function; None if it takes other objects.

  Args:
    function: A FunctionDef.
    size: The value of unknown dimensions.
  """
  values = []
  for i, arg in enumerate(function.signature.input_arg):
    if arg.type == tf.resource.as_datatype_enum:
      if not arg.handle_data:
        return None
      (data,) = arg.handle_data
      dtype, shape = data.dtype, data.shape
    else:
      (shape,) = function.arg_attr[i].attr["_output_shapes"].list.shape
      dtype = arg.type
    dims = [size if d.size < 0 else d.size for d in shape.dim]
    dtype = tf.as_dtype(dtype)
    if dtype == tf.variant:  # Loops take lists of Tensors as variants.
      return None
    if dtype == tf.string:
      value = tf.fill(dims, "some words")
    elif dtype == tf.bool:
      value = tf.fill(dims, True)
    else:
      value = tf.cast(tf.random.stateless_uniform(dims, [i, size]) * 3, dtype)
    values.append(value.numpy())
  return values


def _run(graph, function, values):
  """Runs a function of a graph; returns its results and the new variables.

  If the function fails, it returns the type of the error.
  """
  call = tf.compat.v1.GraphDef(library=graph.library, versions=graph.versions)
  node = call.node.add(name="call", op="StatefulPartitionedCall")
  node.attr["f"].func.name = function.signature.name
  node.attr["Tin"].list.type[:] = [
    arg.type for arg in function.signature.input_arg
  ]
  outputs = [arg.type for arg in function.signature.output_arg]
  node.attr["Tout"].list.type[:] = outputs
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    operands, variables = [], []
    for arg, value in zip(function.signature.input_arg, values, strict=True):
      operands.append(tf.constant(value))
      if arg.type == tf.resource.as_datatype_enum:
        variables.append(tf.compat.v1.Variable(value, use_resource=True))
        operands[-1] = variables[-1].handle
    for i, operand in enumerate(operands):
      call.node.add(name=f"a{i}", op="Placeholder").attr[
        "dtype"
      ].type = operand.dtype.as_datatype_enum
      node.input.append(f"a{i}")
    results = tf.graph_util.import_graph_def(
      call,
      {f"a{i}": x for i, x in enumerate(operands)},
      [f"call:{i}" for i in range(len(outputs))] or ["call"],
    )
    session.run([v.initializer for v in variables])
    try:
      return session.run(results) + session.run(variables)
    except tf.errors.OpError as e:
      return type(e)


class SlimmingOfExportsTest(parameterized.TestCase):
  @parameterized.parameters(
    (_mnist_cnn, 10), (_resnet, 10), (_bert, 10), (_text_rnn, 10), (_product, 4)
  )
  def test_each_function_computes_the_same(self, build, least):
    directory = self.create_tempdir().full_path
    path = pathlib.Path(directory, "saved_model.pb")
    messages = []
    slim = slimming.slim

    def watched(export_dir):
      messages.append(path.read_bytes())
      slim(export_dir)

    signatures = {}
    root = exporting._exported(build(), "serving_default", signatures)
    with mock.patch.object(slimming, "slim", watched):
      saving.save(root, directory, signatures=signatures)
    messages.append(path.read_bytes())
    self.assertNotEqual(*messages)
    old, new = (
      saved_model_pb2.SavedModel.FromString(m).meta_graphs[0] for m in messages
    )
    for meta_graph in (old, new):
      randomness._write_seeds(meta_graph)
    old, new = old.graph_def, new.graph_def
    count = 0
    later = graphs.functions(new)
    earlier = graphs.functions(old)
    # Slimming may turn layers into functions, which TensorFlow optimizes
    # differently.
    rtol = 1e-5 * bool(later.keys() - earlier)
    for name, function in earlier.items():
      if _WITH_FILES & {node.op for node in function.node_def}:
        continue
      # Slimming inlines functions that serve, and shares the gradients of equal
      # layers.
      if name not in later:
        self.assertRegex(name, "serve|_grad_fn")
        continue
      for size in _DIMENSIONS:
        values = _values(function, size)
        if values is None:
          break
        expected = _run(old, function, values)
        actual = _run(new, later[name], values)
        if isinstance(expected, type):
          self.assertIs(actual, expected, name)
          continue
        again = _run(old, function, values)
        # Functions that draw random numbers cannot be compared.
        if all(map(np.array_equal, expected, again)):
          for x, y in zip(expected, actual, strict=True):
            if rtol and x.dtype.kind == "f":
              np.testing.assert_allclose(y, x, rtol, err_msg=name)
            else:
              np.testing.assert_array_equal(y, x, name)
          count += 1
        break
    print(build.__name__, count, "of", len(old.library.function), "functions")
    self.assertGreaterEqual(count, least)


if __name__ == "__main__":
  absltest.main()
