import collections
import contextlib
import io
import os
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import graphs
from exporters.reusable import outlining
from exporters.reusable import randomness
from exporters.reusable import slimming
from exporters.reusable import slimming_check
from exporters.reusable.private_api import saved_model_pb2


def _meta_graph(export_dir):
  path = pathlib.Path(export_dir, "saved_model.pb")
  (meta_graph,) = saved_model_pb2.SavedModel.FromString(
    path.read_bytes()
  ).meta_graphs
  return meta_graph


def _functions(export_dir):
  return _meta_graph(export_dir).graph_def.library.function


@tf.custom_gradient
def _doubled(x):
  """Doubles a Tensor. The gradient captures Tensors of the function."""
  handed_on = tf.identity(x)
  two = tf.constant(2.0)
  return handed_on * two, lambda upstream: upstream * two + handed_on


@tf.custom_gradient
def _also_doubled(x):
  """Like `_doubled`, but the gradient captures another Tensor."""
  handed_on = tf.identity(x)
  two = tf.constant(2.0)
  doubled = handed_on * two
  return doubled, lambda upstream: upstream * two + doubled


@tf.custom_gradient
def _otherwise_doubled(x):
  """Like `_doubled`, but the gradient computes something else."""
  handed_on = tf.identity(x)
  two = tf.constant(2.0)
  return handed_on * two, lambda upstream: upstream * two - handed_on


def _blocks():
  """Builds blocks that differ only in their widths.

  They have dropout, moving averages and custom gradients.
  """
  blocks = []
  for i, width in enumerate([8, 16, 8, 16] + [8] * 9):
    block = tf_keras.Sequential(name=f"block_{i}")
    block.add(tf_keras.layers.Dense(width, activation="tanh"))
    block.add(tf_keras.layers.Dropout(0.5))
    block.add(tf_keras.layers.BatchNormalization())
    block.add(tf_keras.layers.Lambda(lambda x: x + tf.ones([x.shape[-1]])))
    if i > 5:
      double = {9: _also_doubled, 10: _otherwise_doubled}.get(i, _doubled)
      block.add(tf_keras.layers.Lambda(double))
    block.build([None, blocks[-1].output_shape[-1] if blocks else 4])
    blocks.append(block)
  root = tf.train.Checkpoint(
    trained=[v for b in blocks for v in b.trainable_variables],
    averages=[v for b in blocks for v in b.non_trainable_variables],
  )

  @tf.function
  def call(x, training):
    for block in blocks:
      x = block(x, training=training)
    return x

  root.__call__ = call
  for training in (False, True):
    # The argument has the name of a block.
    spec = tf.TensorSpec([None, 4], name="block_3")
    root.__call__.get_concrete_function(spec, training)
  return root


class SlimmingTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
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
      outputs = _doubled(tf.identity(outputs) * 2.0 - 2.0)
      with tf.device("/CPU:0"):
        outputs = tf.identity(outputs)
      with tf.control_dependencies([tf.identity(outputs)]):
        outputs = tf.identity(outputs)
      with tf.compat.v1.colocate_with(tf.identity(outputs)):
        outputs -= 1.0
      # The branches of a cond are functions of several outputs.
      outputs, *_ = tf.cond(
        tf.reduce_sum(images) > 0.0,
        lambda: [outputs * factor for factor in range(2, 22)],
        lambda: [outputs + term for term in range(2, 22)],
      )
      outputs.set_shape([None, 144])  # TensorFlow cannot infer this shape.
      return outputs

    root.__call__ = tf.function(call)
    images = tf.TensorSpec([None, None, 8, 3], name="images")
    for training in (False, True):
      root.__call__.get_concrete_function(images, training)
    parent = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.directories = [os.path.join(parent, x) for x in ("before", "after")]
    serve = tf.function(lambda images: {"y": call(images, False)})
    tf.saved_model.save(
      root, cls.directories[0], serve.get_concrete_function(images)
    )
    shutil.copytree(*cls.directories)
    cls.notes = slimming.slim(cls.directories[1])
    cls.images = tf.random.stateless_uniform([2, 8, 8, 3], [0, 0])

  def test_it_computes_the_same(self):
    self.assertEmpty(self.notes)
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
          # The averages after the call in training.
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
      for i, arg in enumerate(function.signature.input_arg):
        if arg.type == tf.resource:
          users = [n.op for n in function.node_def if arg.name in n.input]
          is_used = not graphs.CALLS.issuperset(users)
          self.assertEqual(bool(arg.handle_data), is_used)
          self.assertEmpty(function.arg_attr[i].attr)
      ops = {node.name: node.op for node in function.node_def}
      ends = [ops[name] for name in function.control_ret.values()]
      self.assertNotIn("ReadVariableOp", ends)
    nodes = _meta_graph(self.directories[1]).graph_def.node
    used = {graphs.node_of(name) for node in nodes for name in node.input}
    for node in nodes:
      if node.op == "ReadVariableOp":
        self.assertIn(node.name, used)
      if node.op not in graphs.CALLS:
        self.assertNotIn("_output_shapes", node.attr)

  def test_nothing_is_handed_on_or_there_twice(self):
    def ops(export_dir):
      """Returns the devices of Identity ops, and the number of constants 2."""
      (call,) = (
        function
        for function in _functions(export_dir)
        if any(node.op == "FusedBatchNormV3" for node in function.node_def)
        and any(node.op.startswith("Assign") for node in function.node_def)
      )
      constants = [
        tf.make_ndarray(node.attr["value"].tensor)
        for node in call.node_def
        if node.op == "Const"
      ]
      return (
        [n.device for n in call.node_def if n.op == "Identity"],
        sum(np.array_equal(c, 2.0) for c in constants),
      )

    identities, twos = ops(self.directories[0])
    self.assertGreater(len(identities), 4)
    self.assertEqual(twos, 3)
    identities, twos = ops(self.directories[1])
    # The gradient captures one, one copies between devices, one waits, one is
    # waited for, another op is colocated with one, and one is returned.
    self.assertCountEqual(identities, ["/device:CPU:0"] + [""] * 5)
    self.assertEqual(twos, 2)  # One is the gradient's.
    for function in _functions(self.directories[1]):
      if "_traced_" in function.signature.name:  # These save and restore.
        left = [n.name for n in function.node_def if n.op == "Identity"]
        self.assertLessEqual(len(left), 2, function.signature.name)

  def test_no_op_is_there_for_nothing_or_twice(self):
    root = tf.train.Checkpoint(v=tf.Variable(2.0))

    def call(x):
      tf.shape(x)
      with tf.device("/CPU:0"):
        x = tf.abs(tf.identity(x))
      products = [root.v * x, root.v * x]
      root.v.assign_add(1.0)
      return tf.add_n(products) + root.v

    root.__call__ = tf.function(call)
    root.__call__.get_concrete_function(tf.TensorSpec([None]))
    directory = os.path.join(self.get_temp_dir(), "twice")
    tf.saved_model.save(root, directory)
    slimming.slim(directory)
    (function,) = _functions(directory)
    ops = collections.Counter(node.op for node in function.node_def)
    self.assertEqual(ops["Shape"], 0)
    self.assertEqual(ops["Mul"], 1)
    self.assertEqual(ops["Identity"], 1)  # It is returned.
    self.assertEqual(ops["ReadVariableOp"], 2)  # One follows the write.
    x = tf.ones([1])
    loaded = tf.saved_model.load(directory)
    with tf.GradientTape() as tape:
      tape.watch(x)
      outputs = loaded(x)
    self.assertAllEqual(outputs, [7.0])
    self.assertAllEqual(tape.gradient(outputs, x), [4.0])

  def test_functions_of_the_graph_are_inlined(self):
    before, after = (
      {function.signature.name.rsplit("_", 1)[0] for function in _functions(d)}
      for d in self.directories
    )
    gone = {"__inference__traced_save", "__inference__traced_restore"}
    self.assertContainsSubset(gone, before)
    self.assertNoCommonElements(gone, after)

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

  def test_a_signature_has_effects_on_their_devices(self):
    root = tf.train.Checkpoint(v=tf.Variable(0.0))

    @tf.function(input_signature=[tf.TensorSpec([], name="x")])
    def serve(x):
      with tf.device("/CPU:0"):
        root.v.assign_add(x)
      # The result of the op is called z, too.
      return {"y": tf.multiply(2.0, x, "z")}

    directory = os.path.join(self.get_temp_dir(), "of_effects")
    tf.saved_model.save(root, directory, serve)
    slimming.slim(directory)
    (function,) = _functions(directory)
    (end,) = function.control_ret.values()
    (effect,) = (node for node in function.node_def if node.name == end)
    self.assertEqual(effect.op, "AssignAddVariableOp")
    self.assertEqual(effect.device, "/device:CPU:0")
    loaded = tf.saved_model.load(directory)
    served = loaded.signatures["serving_default"](x=tf.constant(3.0))
    self.assertAllEqual(served["y"], 6.0)

  def test_loads_without_python_functions(self):
    """Loads the graph and uses its names, as TensorFlow Serving does."""
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
      names = meta_graph.saver_def
      saved = session.run(
        names.save_tensor_name,
        {
          names.filename_tensor_name: os.path.join(self.get_temp_dir(), "of_v1")
        },
      )
    self.assertAllClose(actual, expected, rtol=1e-6)
    readers = [
      tf.train.load_checkpoint(path)
      for path in (
        saved,
        os.path.join(self.directories[0], "variables/variables"),
      )
    ]
    for name in readers[1].get_variable_to_shape_map():
      self.assertAllEqual(*(reader.get_tensor(name) for reader in readers))

  def test_short_names_differ_from_those_of_the_inputs(self):
    for name, expected in (("x", "model/x"), ("y", "y")):

      def call(x, name=name):
        two = tf.constant(2.0, name="z")  # The result of Mul is called z, too.
        with tf.name_scope("model"):
          return tf.multiply(x, two, name=name)

      root = tf.train.Checkpoint()
      root.__call__ = tf.function(lambda x: call(x))
      root.__call__.get_concrete_function(tf.TensorSpec([None], name="x"))
      directory = os.path.join(self.get_temp_dir(), f"of_{name}")
      tf.saved_model.save(root, directory)
      self.assertEmpty(slimming.slim(directory))
      (function,) = _functions(directory)
      names = [node.name for node in function.node_def]
      self.assertEqual(names, ["v0", expected, "Identity"])

  def test_a_file_that_would_compute_something_else_stays(self):
    def swap(function, *_):
      for node in function.node_def:
        if node.op == "Sub":
          node.input[:] = node.input[::-1]

    def forget(function, *_):
      for key, name in list(function.control_ret.items()):
        if "Assign" in name:
          del function.control_ret[key]
          function.signature.control_output.remove(key)

    def hurry(function, *_):
      for node in function.node_def:
        if node.op.startswith("Assign"):
          node.input[:] = [x for x in node.input if x[0] != "^"]

    def hurry_one(function, *_):
      ops = {node.name: node.op for node in function.node_def}
      first, *others = [n for n in ops if ops[n].startswith("Assign")]
      for node in function.node_def:
        if node.name in others:
          inputs = [x for x in node.input if ops.get(x[1:]) != "ReadVariableOp"]
          node.input[:] = [*inputs, f"^{first}"]

    def rename(function, *_):
      for node in function.node_def:
        if node.op == "Sub":
          node.name = "y"

    def call_twice(function, *_):
      for node in list(function.node_def):
        if node.op == "Sub":
          function.node_def.add().CopyFrom(node)

    def omit(function, *_, op="Mul"):
      nodes = [n for n in function.node_def if n.op != op]
      function.ClearField("node_def")
      function.node_def.extend(nodes)

    def omit_noise(function, *_):
      omit(function, op="RandomStandardNormal")

    root = tf.train.Checkpoint(variable=tf.Variable(2.0))

    def call(x):
      y = root.variable * x - 1.0
      root.variable.assign(x)
      y += root.variable
      root.variable.assign(x + 1.0)
      tf.random.normal([])
      return y

    root.__call__ = tf.function(call)
    root.__call__.get_concrete_function(tf.TensorSpec([]))
    directory = os.path.join(self.get_temp_dir(), "of_an_assignment")
    tf.saved_model.save(root, directory)
    path = pathlib.Path(directory, "saved_model.pb")
    before = path.read_bytes()
    for change, words in (
      (swap, "differ in results"),
      (forget, "differ in effects"),
      (hurry, "differ in results"),
      (hurry_one, "differ in order"),
      (rename, "have no value"),
      (call_twice, "have two values of one name"),
      (omit, "have no value"),
      (omit_noise, "differ in ops"),
    ):
      with (
        self.subTest(words),
        mock.patch.object(slimming, "_remove_known_shapes", change),
        contextlib.redirect_stdout(io.StringIO()) as output,
      ):
        (note,) = slimming.slim(directory)
        self.assertIn("saved_model.pb stays as", output.getvalue())
        self.assertIn(words, output.getvalue())
        self.assertIn(note, output.getvalue())
        self.assertEqual(path.read_bytes(), before)

    def call_twice_outside(graph):
      graph.node.add().CopyFrom(graph.node[0])

    with mock.patch.object(slimming, "_slim_top_level", call_twice_outside):
      (note,) = slimming.slim(directory)
    self.assertRegex(note, "outside of functions would have two values of one")

  def test_a_gradient_that_would_take_something_else_stays(self):
    root = tf.train.Checkpoint()
    root.__call__ = tf.function(lambda x: _doubled(tf.tanh(x)))
    root.__call__.get_concrete_function(tf.TensorSpec([]))
    directory = os.path.join(self.get_temp_dir(), "of_a_gradient")
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(root, directory, options=options)
    shorten = slimming._shorten_names

    def confuse(function):
      renamed = shorten(function)
      names = [n.name for n in function.node_def if n.op == "Mul"]
      return lambda name: f"{names[0]}:0" if names else renamed(name)

    with mock.patch.object(slimming, "_shorten_names", confuse):
      (note,) = slimming.slim(directory)
    self.assertIn("would differ in gradients", note)
    self.assertEmpty(slimming.slim(directory))

  def test_a_gradient_of_another_variable_differs(self):
    root = tf.train.Checkpoint(used=tf.Variable(2.0), other=tf.Variable(3.0))

    @tf.custom_gradient
    def same(x):
      return tf.identity(x), lambda upstream: upstream * root.used

    root.__call__ = tf.function(lambda x: same(tf.tanh(x)))
    root.__call__.get_concrete_function(tf.TensorSpec([]))
    directory = os.path.join(self.get_temp_dir(), "of_a_variable")
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(root, directory, options=options)
    content = pathlib.Path(directory, "saved_model.pb").read_bytes()
    for variable in ("used", "other"):
      # `difference` changes both.
      before, after = map(saved_model_pb2.SavedModel.FromString, [content] * 2)
      objects = after.meta_graphs[0].object_graph_def
      ids = {c.local_name: c.node_id for c in objects.nodes[0].children}
      (gradient,) = after.meta_graphs[0].graph_def.library.registered_gradients
      function = objects.concrete_functions[gradient.gradient_func]
      self.assertEqual([*function.bound_inputs], [ids["used"]])
      function.bound_inputs[:] = [ids[variable]]
      problem = slimming_check.difference(before, after)
      differs = "would differ in results" in problem
      self.assertEqual(differs, variable == "other", problem)

  def test_names_of_outputs(self):
    with tf.Graph().as_default() as graph:
      one = tf.ones([1])
      tf.split(tf.ones([2]), 2, name="of_a_number")
      tf.raw_ops.IdentityN(input=[one, tf.constant(3)], name="of_types")
      tf.raw_ops.TopKV2(input=one, k=1, name="of_names")
    nodes = {node.name: node for node in graph.as_graph_def().node}
    for name, outputs in (
      ("of_a_number", {"output:0": tf.float32, "output:1": tf.float32}),
      ("of_types", {"output:0": tf.float32, "output:1": tf.int32}),
      ("of_names", {"values:0": tf.float32, "indices:0": tf.int32}),
    ):
      named = {f"{name}:{place}": dtype for place, dtype in outputs.items()}
      self.assertEqual(dict(graphs.outputs(nodes[name])), named)

  def test_equal_blocks_become_calls_of_one_function(self):
    before, after = (
      os.path.join(self.get_temp_dir(), name) for name in ("flat", "of_blocks")
    )
    tf.saved_model.save(
      _blocks(),
      before,
      options=tf.saved_model.SaveOptions(experimental_custom_gradients=True),
    )
    # A function may return Tensors of a block, without an Identity.
    path = pathlib.Path(before, "saved_model.pb")
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for function in saved_model.meta_graphs[0].graph_def.library.function:
      nodes = {node.name: node for node in function.node_def}
      for key, name in list(function.ret.items()):
        node = nodes[graphs.node_of(name)]
        if node.op == "Identity":
          function.ret[key] = node.input[0]
          function.node_def.remove(node)
    path.write_bytes(saved_model.SerializeToString())
    shutil.copytree(before, after)
    self.assertEmpty(slimming.slim(after))
    calls = collections.Counter(
      node.attr["f"].func.name
      for function in _functions(after)
      for node in function.node_def
      if node.op == "StatefulPartitionedCall"
    )
    self.assertCountEqual(calls.values(), [6, 5])
    for function in _functions(after):
      signature = function.signature
      self.assertCountEqual(function.control_ret, signature.control_output)
      if signature.name in calls:
        # Floats with dimensions are arguments. Other constants stay, because
        # TensorFlow must know values such as those of axes.
        ranks = collections.defaultdict(set)
        for node in function.node_def:
          tensor = node.attr["value"].tensor
          if node.op == "Const":
            ranks[tensor.dtype].add(len(tensor.tensor_shape.dim))
        self.assertEqual(ranks, {tf.float32: {0}, tf.int32: {1}})
        # Every function that TensorFlow traces has these attributes.
        shapes = function.attr["_input_shapes"].list.shape
        self.assertLen(shapes, len(signature.input_arg))
        self.assertIn("_construction_context", function.attr)
      for i, arg in enumerate(function.signature.input_arg):
        if function.signature.name in calls and arg.type == tf.float32:
          (shape,) = function.arg_attr[i].attr["_output_shapes"].list.shape
          self.assertFalse(shape.unknown_rank)
        if function.signature.name in calls and arg.type == tf.resource:
          self.assertLen(arg.handle_data, 1)
    seen = []
    for directory in (before, after):
      with randomness.with_seeds(directory, tf.saved_model.load) as load:
        loaded = load()
        weights = list(loaded.trained)
        with tf.GradientTape() as tape:
          loss = tf.reduce_sum(loaded(tf.ones([3, 4]), True) ** 2)
        gradients = tape.gradient(loss, weights)
        seen.append([loss, *gradients, *loaded.averages])
        seen[-1].append(loaded(tf.ones([3, 4]), False))
    self.assertAllClose(*seen, rtol=1e-6)
    self.assertNotAllClose(seen[0][-1], tf.zeros([3, 8]))

    def transpose(*args):
      function = original(*args)
      for node in function.node_def:
        if node.op == "MatMul":
          node.attr["transpose_b"].b = True
      return function

    def rename(piece, *args):
      names = call_of(piece, *args)
      piece.caller.signature.input_arg[0].name = piece.nodes[0].name
      return names

    original, call_of = outlining._function, outlining._call
    for name, change, words in (
      ("_function", transpose, "would differ in results"),
      ("_call", rename, "would have two values of one name"),
    ):
      with (
        mock.patch.object(outlining, name, change),
        contextlib.redirect_stdout(io.StringIO()) as output,
      ):
        slimming.slim(before)
      self.assertIn(words, output.getvalue())

  def test_the_fingerprint_is_of_the_new_file(self):
    """Fails if TensorFlow's private module is gone."""
    before, after = map(
      tf.saved_model.experimental.read_fingerprint, self.directories
    )
    self.assertNotEqual(before.saved_model_checksum, after.saved_model_checksum)
    self.assertEqual(before.checkpoint_hash, after.checkpoint_hash)


if __name__ == "__main__":
  tf.test.main()
