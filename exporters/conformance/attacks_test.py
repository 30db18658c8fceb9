"""Tests the check with SavedModels that attack the machine that loads them.

The audit must find each attack. Attacks that do harm on load or in a call also
run in the sandbox, as with --trust. The sandbox must prevent the harm.

`serve` of this module loads the SavedModels inside the sandbox.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
from unittest import mock
import zlib

from absl import flags
from absl.testing import parameterized
import tensorflow as tf

from distribution import copies as copies_lib
from distribution import sandbox
from exporters import check
from exporters.conformance import copying
from exporters.conformance import judging
from exporters.conformance import subject as subject_lib
from exporters.reusable import errors
from exporters.reusable import observation
from exporters.reusable.private_api import node_def_pb2
from exporters.reusable.private_api import saved_model_pb2
from tools import nightly

_ALL = flags.DEFINE_bool("all", False, "Run the dear attacks too.")
_SECRET = "a secret of this machine"
_FLOATS = tf.TensorSpec([None, 4], name="inputs")

raw = tf.raw_ops


class Place:
  """The paths that an attack uses.

  Attributes:
    directory: The SavedModel to make.
    target: A file to write, which does not exist.
    secret: A file to read.
  """

  def __init__(self, root: pathlib.Path):
    self.directory = str(root / "saved_model")
    self.target = str(root / "written")
    self.secret = str(root / "secret")
    pathlib.Path(self.secret).write_text(_SECRET)


def _save(place, call=tf.identity, root=None, **attributes):
  """Saves a model that runs `call` when it is called."""
  root = root or tf.train.Checkpoint(v=tf.Variable(1.0))

  def both(inputs):
    with tf.control_dependencies(
      [x for x in tf.nest.flatten(call(inputs)) if x is not None]
    ):
      return inputs * root.v

  root.__call__ = tf.function(both, input_signature=[_FLOATS])
  for name, value in attributes.items():
    setattr(root, name, value)
  tf.saved_model.save(root, place.directory)


def _changed(place, change, call=tf.identity, **attributes):
  """Saves a model, and changes its MetaGraph."""
  _save(place, call, **attributes)
  path = pathlib.Path(place.directory, "saved_model.pb")
  model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  change(model.meta_graphs[0])
  path.write_bytes(model.SerializeToString())


def _called(make):
  """Returns an attack that runs the ops of a function in each call."""
  return lambda place: _save(place, lambda inputs: make(place))


def _node(name, op, *inputs, **attributes):
  """Makes a node of an op that a Python function cannot create."""
  node = node_def_pb2.NodeDef(name=name, op=op, input=inputs)
  for key, value in attributes.items():
    if isinstance(value, list):
      node.attr[key].list.s.extend(value)
    elif isinstance(value, bytes):
      node.attr[key].s = value
    else:
      node.attr[key].type = value
  return node


def _added(*nodes):
  """Returns an attack that adds nodes to the function that a call runs."""

  def change(graph):
    function = _function(graph, "__inference_both")
    function.node_def.extend(nodes)
    for node in nodes:
      function.control_ret[node.name] = node.name

  return lambda place: _changed(place, change)


def _function(graph, start):
  return next(
    f
    for f in graph.graph_def.library.function
    if f.signature.name.startswith(start)
  )


def _write(place):
  return raw.WriteFile(filename=place.target, contents="harm")


def _saver(place):
  return raw.SaveV2(
    prefix=place.target,
    tensor_names=["x"],
    shape_and_slices=[""],
    tensors=[1.0],
  )


def _branch(place):
  return tf.cond(
    tf.random.uniform([]) < 2.0,
    lambda: tf.py_function(lambda: 1.0, [], tf.float32),
    lambda: 1.0,
  )


def _in_gradient(place):
  @tf.custom_gradient
  def call(x):
    def gradient(dy):
      _write(place)
      return dy

    return tf.identity(x), gradient

  root = tf.train.Checkpoint(v=tf.Variable(1.0))
  root.__call__ = tf.function(
    lambda inputs: call(inputs) * root.v, input_signature=[_FLOATS]
  )
  tf.saved_model.save(
    root,
    place.directory,
    options=tf.saved_model.SaveOptions(experimental_custom_gradients=True),
  )


def _in_loss(place):
  loss = tf.function(lambda: (_write(place), tf.constant(1.0))[1])
  loss.get_concrete_function()
  _save(place, regularization_losses=[loss])


def _in_signature(place):
  root = tf.train.Checkpoint(v=tf.Variable(1.0))

  @tf.function(input_signature=[_FLOATS])
  def serve(inputs):
    _write(place)
    return {"outputs": inputs}

  tf.saved_model.save(root, place.directory, signatures=serve)


class _Resource(tf.saved_model.experimental.TrackableResource):
  def __init__(self, place, when):
    super().__init__()
    self._place, self._when = place, when

  def _create_resource(self):
    if self._when == "create":
      _write(self._place)
    return raw.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

  def _initialize(self):
    if self._when == "initialize":
      _write(self._place)
    if self._when == "endless":
      (ended,) = tf.nest.flatten(_endless(tf.zeros([1])))
      tf.Assert(tf.reduce_all(ended > 0.0), [ended])  # Keeps the loop.


def _at_load(when):
  return lambda place: _save(place, resource=_Resource(place, when))


def _uncalled(place):
  def change(graph):
    function = graph.graph_def.library.function.add()
    function.signature.name = "__inference_never_called_1"
    function.node_def.add(name="x", op="WriteFile")

  _changed(place, change)


def _second_meta_graph(place):
  _save(place, lambda inputs: _write(place))
  path = pathlib.Path(place.directory, "saved_model.pb")
  bad = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  shutil.rmtree(place.directory)
  _save(place)
  good = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  bad.meta_graphs[0].meta_info_def.tags[:] = ["train"]
  good.meta_graphs.append(bad.meta_graphs[0])
  path.write_bytes(good.SerializeToString())


def _init_op(place):
  def change(graph):
    graph.graph_def.node.add(name="init", op="WriteFile")
    nodes = graph.collection_def["saved_model_main_op"].node_list
    nodes.value.append("init")

  _changed(place, change)


def _saves_elsewhere(start, op, prefix):
  """Returns an attack that gives an op of a saver's function another path."""

  def attack(place):
    def change(graph):
      function = _function(graph, start)
      (node,) = (n for n in function.node_def if n.op == op)
      const = function.node_def.add(name="mine", op="Const")
      const.attr["dtype"].type = tf.string.as_datatype_enum
      const.attr["value"].tensor.CopyFrom(
        tf.make_tensor_proto([prefix(place)] if op[0] == "M" else prefix(place))
      )
      node.input[0] = "mine:output:0"

    _changed(place, change)

  return attack


def _suffix(place):
  def change(graph):
    function = _function(graph, "__inference__traced_save")
    for node in function.node_def:
      for i, text in enumerate(node.attr["value"].tensor.string_val):
        if text == b".part":
          node.attr["value"].tensor.string_val[i] = b"/../../../tmp/x"

  _changed(place, change)


def _saver_in_gradient(place):
  def change(graph):
    library = graph.graph_def.library
    function = _function(graph, "__inference__traced_save")
    library.registered_gradients.add(
      gradient_func=function.signature.name, registered_op_type="Custom-1"
    )

  _changed(place, change)


def _named_like_the_main_graph(place):
  """Adds an op to the main graph, and functions that are named to hide it.

  The audit once used these names itself.
  """

  def change(graph):
    _write_node(graph.graph_def.node)
    for name in ("the main graph", "StatefulPartitionedCall"):
      function = graph.graph_def.library.function.add()
      function.signature.name = name

  _changed(place, change)


def _write_node(nodes):
  nodes.add(name="again", op="WriteFile")


def _named_like_an_op(place):
  def change(graph):
    function = graph.graph_def.library.function.add()
    function.signature.name = "WriteFile"
    _write_node(_function(graph, "__inference_both").node_def)

  _changed(place, change)


def _op_as_function(place):
  def change(graph):
    node = _function(graph, "__inference_both").node_def.add(name="x")
    node.op = "PartitionedCall"
    node.attr["f"].func.name = "WriteFile"

  _changed(place, change)


def _defined_twice(place):
  def change(graph):
    function = _function(graph, "__inference_both")
    graph.graph_def.library.function.add().CopyFrom(function)
    _write_node(function.node_def)

  _changed(place, change)


def _table(place, path=None, change=lambda graph: None):
  initializer = tf.lookup.TextFileInitializer(
    path or place.secret,
    tf.string,
    tf.lookup.TextFileIndex.WHOLE_LINE,
    tf.int64,
    tf.lookup.TextFileIndex.LINE_NUMBER,
  )
  table = tf.lookup.StaticHashTable(initializer, -1)
  _changed(place, change, lambda _: table.lookup(tf.constant("a")), table=table)


def _table_of_any_file(place):
  def change(graph):
    function = _function(graph, "__inference__initializer")
    (node,) = (n for n in function.node_def if n.op.startswith("InitializeT"))
    const = function.node_def.add(name="mine", op="Const")
    const.attr["dtype"].type = tf.string.as_datatype_enum
    const.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(place.secret))
    node.input[1] = "mine:output:0"

  _table(place, change=change)


def _initializer_with_another_path(place):
  def change(graph):
    name = _function(graph, "__inference__initializer").signature.name
    function = _function(graph, "__inference_both")
    function.node_def.append(
      _node("mine", "Const", dtype=tf.string.as_datatype_enum)
    )
    call = _node("call", "StatefulPartitionedCall", "mine:output:0")
    call.attr["f"].func.name = name
    function.node_def.append(call)

  _table(place, change=change)


def _asset(name):
  """Returns an attack that renames an asset; None means the secret's path."""

  def attack(place):
    def change(graph):
      graph.asset_file_def[0].filename = name or place.secret

    _table(place, change=change)

  return attack


def _linked(file):
  """Returns an attack by a symbolic link in place of a file."""

  def attack(place):
    _table(place)
    path = pathlib.Path(place.directory, file)
    path.unlink(missing_ok=True)
    path.symlink_to(place.secret)

  return attack


def _linked_folder(place):
  _save(place)
  shutil.rmtree(f"{place.directory}/variables")
  elsewhere = f"{place.directory}.elsewhere"
  os.mkdir(elsewhere)
  os.symlink(elsewhere, f"{place.directory}/variables")


def _with_file(name, content=b""):
  def attack(place):
    _save(place)
    path = pathlib.Path(place.directory, name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)

  return attack


def _gradient_of_python(place):
  def change(graph):
    function = _function(graph, "__inference_both")
    node = next(n for n in function.node_def if n.op == "Mul")
    node.attr["_gradient_op_type"].s = b"EagerPyFunc"

  _changed(place, change)


def _candidates(place):
  return raw.FixedUnigramCandidateSampler(
    true_classes=tf.zeros([1, 1], tf.int64),
    num_true=1,
    num_sampled=1,
    unique=False,
    range_max=2,
    vocab_file=place.secret,
  )[0]


def _dataset(make):
  return _called(lambda place: next(iter(make(place))))


_STRING = tf.string.as_datatype_enum

# Attacks by name: the function that makes the SavedModel, and a pattern of what
# the audit says of it.
_FOUND = {
  # Writes.
  "write": (_called(_write), r"WriteFile \(WriteFile\) in __inference_both"),
  "write by a saver's op": (_called(_saver), "SaveV2 .* not belong to the sav"),
  "write by slices": (
    _called(
      lambda place: raw.SaveSlices(
        filename=place.target,
        tensor_names=["x"],
        shapes_and_slices=[""],
        data=[1.0],
      )
    ),
    "SaveSlices",
  ),
  "write by print": (
    _called(lambda p: tf.print("x", output_stream=f"file://{p.target}")),
    "PrintV2",
  ),
  "merge checkpoints": (
    _called(
      lambda place: raw.MergeV2Checkpoints(
        checkpoint_prefixes=[place.secret], destination_prefix=place.target
      )
    ),
    "MergeV2Checkpoints .* not belong",
  ),
  "write a cache": (
    _dataset(lambda p: tf.data.Dataset.range(1).cache(p.target)),
    "CacheDataset",
  ),
  "write a data set": (
    _dataset(lambda p: tf.data.Dataset.range(1).snapshot(p.target)),
    "SnapshotDataset",
  ),
  "write a summary": (
    _called(
      lambda place: raw.CreateSummaryFileWriter(
        writer=raw.SummaryWriter(),
        logdir=place.target,
        max_queue=1,
        flush_millis=1,
        filename_suffix="",
      )
    ),
    "CreateSummaryFileWriter",
  ),
  "write in a gradient": (_in_gradient, "WriteFile"),
  "write in a loss": (_in_loss, "WriteFile .* __inference_<lambda>"),
  "write in a signature": (_in_signature, "WriteFile .* __inference_.*serve"),
  "write at load": (_at_load("initialize"), "WriteFile .*__init"),
  "write at creation": (
    _at_load("create"),
    "WriteFile .* __inference__creator",
  ),
  "write in no call": (_uncalled, "WriteFile .* __inference_never_called"),
  "write in another MetaGraph": (_second_meta_graph, "WriteFile"),
  "write in an init op": (_init_op, "WriteFile .init. in the main graph"),
  "save elsewhere": (
    _saves_elsewhere("__inference__traced_save", "SaveV2", lambda p: p.target),
    "SaveV2 .* other than the checkpoint's",
  ),
  "merge elsewhere": (
    _saves_elsewhere(
      "__inference__traced_save", "MergeV2Checkpoints", lambda p: p.secret
    ),
    "MergeV2Checkpoints .* other than the checkpoint's",
  ),
  "save beside": (_suffix, "SaveV2 .* other than the checkpoint's"),
  "save in a gradient": (_saver_in_gradient, "SaveV2 .* not belong"),
  "names of the audit": (
    _named_like_the_main_graph,
    "WriteFile .again. in the main graph",
  ),
  "names of ops": (_named_like_an_op, "function WriteFile has the name of an"),
  "an op as a function": (_op_as_function, "calls WriteFile, which is no func"),
  "names twice": (_defined_twice, "is defined twice"),
  "debug to a file": (
    _added(_node("x", "DebugIdentityV3", debug_urls=[b"file:///tmp/x"])),
    "DebugIdentityV3",
  ),
  # Reads.
  "read": (_called(lambda p: tf.io.read_file(p.secret)), "ReadFile"),
  "read from a branch": (
    _called(
      lambda p: tf.cond(
        tf.random.uniform([]) < 2.0,
        lambda: tf.io.read_file(p.secret),
        lambda: "",
      )
    ),
    "ReadFile .* in cond_true",
  ),
  "list": (_called(lambda p: tf.io.matching_files("/*")), "MatchingFiles"),
  "read by a reader": (
    _called(lambda p: raw.WholeFileReaderV2()),
    "WholeFileReaderV2",
  ),
  "read lines": (
    _dataset(lambda p: tf.data.TextLineDataset(p.secret)),
    "TextLineDataset",
  ),
  "read records": (
    _dataset(lambda p: tf.data.TFRecordDataset(p.secret)),
    "TFRecordDataset",
  ),
  "read a checkpoint": (
    _called(
      lambda p: raw.RestoreV2(
        prefix=p.secret,
        tensor_names=["x"],
        shape_and_slices=[""],
        dtypes=[tf.float32],
      )
    ),
    "RestoreV2 .* not belong",
  ),
  "restore elsewhere": (
    _saves_elsewhere(
      "__inference__traced_restore", "RestoreV2", lambda p: p.secret
    ),
    "RestoreV2 .* other than the checkpoint's",
  ),
  "map memory": (
    _called(
      lambda p: raw.ImmutableConst(
        dtype=tf.uint8, shape=[4], memory_region_name=p.secret
      )
    ),
    "ImmutableConst",
  ),
  "read candidates": (_called(_candidates), "FixedUnigram.* in an attribute"),
  "read a descriptor": (
    _added(_node("x", "DecodeProtoV2", descriptor_source=b"/etc/passwd")),
    "DecodeProtoV2",
  ),
  "a table of any file": (_table_of_any_file, "fills a table from a file"),
  "a table's other caller": (
    _initializer_with_another_path,
    "fills a table from a file",
  ),
  "an absolute asset": (_asset(None), "asset '/.*/secret' is not a file in as"),
  "an asset above": (_asset("../../secret"), "asset '../../secret' is not a"),
  "an asset below": (_asset("./secret"), "asset './secret' is not a file"),
  "an asset elsewhere": (_asset("gs://bucket/x"), "asset 'gs://bucket/x' is n"),
  "a linked asset": (_linked("assets/secret"), "assets/secret is a symbolic l"),
  "linked variables": (
    _linked("variables/variables.index"),
    "variables.index is a symbolic link",
  ),
  "a linked folder": (_linked_folder, "variables is a symbolic link"),
  "a linked card": (
    _linked("README.md"),
    "README.md is a symbolic link",
  ),
  # Connects.
  "connect": (_called(lambda p: tf.io.read_file("gs://x/y")), "ReadFile"),
  "debug to a server": (
    _added(_node("x", "DebugIdentityV3", debug_urls=[b"grpc://localhost:1"])),
    "DebugIdentityV3",
  ),
  "send": (
    _added(_node("x", "_Send", send_device=b"/job:a", recv_device=b"/job:b")),
    "_Send",
  ),
  "a data service": (
    _added(_node("x", "DataServiceDatasetV4")),
    "DataServiceDatasetV4",
  ),
  "collectives": (
    _added(_node("x", "CollectiveInitializeCommunicator")),
    "CollectiveInitializeCommunicator",
  ),
  "another machine": (_added(_node("x", "RemoteCall")), "RemoteCall"),
  # Executes.
  "python": (_called(_branch), "EagerPyFunc"),
  "python by token": (
    _added(_node("x", "PyFunc", token=b"pyfunc_0")),
    "PyFunc",
  ),
  "python in a gradient": (_gradient_of_python, "has the gradient of EagerPyF"),
  "python in Keras": (
    _with_file("keras_metadata.pb", b'{"class_name": "__lambda__"}'),
    "keras_metadata.pb has Python code",
  ),
  "python in a mask of Keras": (
    _with_file("keras_metadata.pb", b'{"mask_type": "lambda", "mask": "4wEA"}'),
    "keras_metadata.pb has Python code",
  ),
  "hidden python in Keras": (
    _with_file("keras_metadata.pb", rb'{"class_name": "\u005f_lambda__"}'),
    "keras_metadata.pb has Python code",
  ),
  "compiled code": (_added(_node("x", "XlaCustomCallV2")), "XlaCustomCallV2"),
  "an unknown op": (_added(_node("x", "Custom>Op")), "Custom>Op"),
  # Crashes and misleads.
  "abort": (_added(_node("x", "Abort", error_msg=b"bye")), "Abort"),
  "wait": (
    _called(
      lambda p: raw.QueueDequeueV2(
        handle=raw.FIFOQueueV2(component_types=[tf.float32]),
        component_types=[tf.float32],
      )
    ),
    "QueueDequeueV2",
  ),
  "a module of TensorFlow 1": (
    _with_file("tfhub_module.pb", b"\x08\x03"),
    "tfhub_module.pb is not examined",
  ),
  "another model as text": (
    _with_file("saved_model.pbtxt"),
    "saved_model.pbtxt is not examined",
  ),
  "another model in chunks": (
    _with_file("saved_model.cpb"),
    "saved_model.cpb is not examined",
  ),
}


def _endless(inputs):
  return tf.while_loop(lambda x: tf.reduce_all(x < 9.0), tf.identity, [inputs])


def _large(inputs):
  ones = tf.ones([50_000, 50_000])
  return tf.reduce_sum(ones * tf.reduce_sum(inputs))


def _huge_constant(place):
  def change(graph):
    function = _function(graph, "__inference_both")
    const = function.node_def.add(name="huge", op="Const")
    const.attr["dtype"].type = tf.float32.as_datatype_enum
    tensor = tf.make_tensor_proto(1.0, shape=[1])
    tensor.tensor_shape.dim[0].size = 2**40
    const.attr["value"].tensor.CopyFrom(tensor)
    function.control_ret["huge"] = "huge"

  _changed(place, change)


def _nested(place):
  """Makes a chain of 5,000 functions, each of which calls the next."""

  def change(graph):
    library = graph.graph_def.library
    leaf = _function(graph, "__inference_both")
    leaf.node_def.append(_node("next", "PartitionedCall"))
    leaf.node_def[-1].attr["f"].func.name = "__inference_f_0"
    for i in range(5000):
      function = library.function.add()
      function.signature.name = f"__inference_f_{i}"
      if i < 4999:
        node = function.node_def.add(name="next", op="PartitionedCall")
        node.attr["f"].func.name = f"__inference_f_{i + 1}"

  _changed(place, change)


def _recursive(place):
  def change(graph):
    function = _function(graph, "__inference_both")
    node = function.node_def.add(name="again", op="StatefulPartitionedCall")
    node.attr["f"].func.name = function.signature.name

  _changed(place, change)


def _deep_structure(place):
  """Makes a signature with a deeply nested structure."""

  def change(graph):
    functions = graph.object_graph_def.concrete_functions
    name = next(n for n in functions if n.startswith("__inference_both"))
    value = functions[name].output_signature
    for _ in range(40):
      value = value.list_value.values.add()

  _changed(place, change)


def _two_meta_graphs(place):
  _save(place)
  path = pathlib.Path(place.directory, "saved_model.pb")
  model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  model.meta_graphs.append(model.meta_graphs[0])
  path.write_bytes(model.SerializeToString())


def _many(place):
  def change(graph):
    library = graph.graph_def.library
    template = _function(graph, "__inference_both")
    for i in range(8000):
      function = library.function.add()
      function.CopyFrom(template)
      function.signature.name = f"__inference_f_{i}"

  _changed(place, change)


def _cycle(place):
  """Makes the root its own child, and a list its own element."""

  def change(graph):
    nodes = graph.object_graph_def.nodes
    index = len(nodes)
    held = nodes.add().user_object
    held.identifier = "trackable_list_wrapper"
    held.version.producer = held.version.min_consumer = 1
    nodes[index].children.add(node_id=index, local_name="0")
    nodes[0].children.add(node_id=index, local_name="variables")
    nodes[0].children.add(node_id=0, local_name="again")

  _changed(place, change)


def _child(node_id, name):
  """Returns an attack that adds an invalid child to the root."""

  def change(graph):
    root = graph.object_graph_def.nodes[0]
    root.children.add(node_id=node_id, local_name=name)

  return lambda place: _changed(place, change)


def _giant_variable(place):
  def change(graph):
    for node in graph.object_graph_def.nodes:
      if node.HasField("variable"):
        node.variable.shape.dim.add(size=2**40)

  _changed(place, change)


def _calls_itself_in_a_branch(place):
  def change(graph):
    function = graph.graph_def.library.function.add()
    function.signature.name = "__inference_deeper"
    const = function.node_def.add(name="c", op="Const")
    const.attr["dtype"].type = tf.bool.as_datatype_enum
    const.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(True))
    node = function.node_def.add(name="i", op="If", input=["c:output:0"])
    node.attr["Tcond"].type = tf.bool.as_datatype_enum
    for branch in ("then_branch", "else_branch"):
      node.attr[branch].func.name = "__inference_deeper"

  _changed(place, change)


def _gradient_of_itself(place):
  def change(graph):
    function = _function(graph, "__inference_both")
    node = function.node_def.add(name="x", op="SymbolicGradient")
    node.attr["f"].func.name = function.signature.name

  _changed(place, change)


def _used(make):
  """Returns an attack by a string, whose op an Assert keeps in the graph."""

  def call(inputs):
    del inputs
    return tf.debugging.Assert(tf.strings.length(make()) > 0, [0])

  return lambda place: _save(place, call)


def _packed():
  """Unpacks 8 GB from 8 MB."""
  packer = zlib.compressobj(9)
  data = b"".join(packer.compress(bytes(2**20)) for _ in range(8000))
  return raw.DecodeCompressed(
    bytes=data + packer.flush(), compression_type="ZLIB"
  )


def _replaced():
  """Replaces each of a million letters by a million others."""
  text = tf.strings.reduce_join(tf.fill([2**20], "a"))
  return tf.strings.regex_replace(text, "a", "b" * 2**20)


def _says(*parts):
  """Returns an attack that fails with an error message."""
  return lambda place: _save(
    place, lambda x: tf.debugging.Assert(tf.size(x) < 0, list(parts))
  )


def _padded(place):
  """Saves an endless loop and a large variable, which must not buy time."""
  root = tf.train.Checkpoint(v=tf.Variable(1.0))
  root.padding = tf.Variable(tf.random.uniform([2**23]))
  _save(place, _endless, root)


def _slow_card(place):
  _save(place)
  card = pathlib.Path(place.directory, "assets.extra/README.md")
  card.parent.mkdir()
  card.write_text("trainable=True " + "regularization " * 500_000)


def _fifo(place):
  os.mkdir(place.directory)
  os.mkfifo(f"{place.directory}/saved_model.pb")


def _linked_model(place):
  _save(place)
  model = f"{place.directory}/saved_model.pb"
  os.rename(model, place.target)
  os.symlink(place.target, model)


def _sparse(place):
  _save(place)
  os.truncate(f"{place.directory}/variables/variables.index", 2**40)


def _too_many_files(place):
  _save(place)
  for i in range(10_001):
    pathlib.Path(place.directory, "assets", str(i)).touch()


def _damaged(file):
  def attack(place):
    _save(place)
    path = pathlib.Path(place.directory, file)
    path.write_bytes(b"\xff" * len(path.read_bytes()))

  return attack


def _recursive_links(place):
  _save(place)
  os.symlink(".", f"{place.directory}/assets/again")


# Attacks that end the check, which must say why in a line. For each name: the
# function that makes the SavedModel, a pattern of the line, whether the
# SavedModel is trusted, and whether the attack runs only with --all.
_ENDING = {
  "a pipe": (_fifo, "saved_model.pb is a .*pipe .* not a file", False, False),
  "a linked model": (_linked_model, "is a symbolic link", False, False),
  "a sparse file": (_sparse, "is sparse: .* of its", False, False),
  "too many files": (_too_many_files, "more than 10,000 files", False, False),
  "a damaged model": (
    _damaged("saved_model.pb"),
    "truncated or damaged",
    False,
    True,
  ),
  "a damaged index": (
    _damaged("variables/variables.index"),
    "cannot be loaded",
    False,
    True,
  ),
  "an endless loop": (
    lambda place: _save(place, _endless),
    "judging R4: it needs more than 15 s",
    False,
    False,
  ),
  "an endless load": (
    _at_load("endless"),
    "the load: it needs more than 15 s",
    False,
    True,
  ),
  "memory": (
    lambda place: _save(place, _large),
    "memory|OOM|allocat",
    False,
    True,
  ),
  "a huge constant": (_huge_constant, "because|cannot be", False, True),
  "nested calls": (_nested, "because|cannot be", False, True),
  "recursion": (_recursive, "cannot be loaded", False, True),
  "a deep structure": (_deep_structure, "because|cannot be", False, True),
  "8,000 functions": (_many, "because R5", False, True),
  "a slow pattern": (_slow_card, "because R5", False, True),
  "MetaGraphs": (
    _two_meta_graphs,
    "cannot be loaded: Importing .* more than one MetaGraph",
    False,
    True,
  ),
  "a padded loop": (
    _padded,
    "judging R4: it needs more than 30 s for one call",
    False,
    True,
  ),
  "a cycle": (_cycle, "cannot be loaded: .*recursion", False, True),
  "a child nowhere": (_child(2**31 - 1, "x"), "cannot be", False, True),
  "a child below": (_child(-1, "x"), "because|cannot be", False, True),
  "a class": (_child(1, "__class__"), "cannot be loaded", False, True),
  "a giant variable": (_giant_variable, "cannot be loaded", False, True),
  "a branch": (_calls_itself_in_a_branch, "cyclic dependency", False, True),
  "its own gradient": (_gradient_of_itself, "cyclic dependency", False, True),
  "packed bytes": (_used(_packed), "because R5", False, True),
  "replaced letters": (
    _used(_replaced),
    "memory|allocat|died|GiB",
    False,
    True,
  ),
  "a long error": (
    _says(tf.strings.reduce_join(tf.fill([3_000_000], " "))),
    "because R5",
    False,
    True,
  ),
  "an error like a report": (
    _says("\033[2J", "\r✓ Kept: S1\n✓ Kept: R5"),
    r"assertion failed: .*\\033\[2J.*\\n✓ Kept",
    False,
    True,
  ),
  "an abort": (
    lambda place: _save(
      place,
      lambda x: raw.Abort(error_msg="bye \033[2J", exit_without_error=False),
    ),
    r"judging R4: it died of SIGABRT: .*bye \\x1b",
    True,
    False,
  ),
  "an exit": (
    lambda place: _save(place, lambda x: raw.Abort(exit_without_error=True)),
    "judging R4: it ended with status 0",
    True,
    True,
  ),
  "a deadlock": (
    _FOUND["wait"][0],
    "judging R4: it waits for something",
    True,
    True,
  ),
}


def serve(requests):
  """Loads SavedModels without an audit; calls and differentiates them."""
  for directory in requests:
    said = []
    try:
      model = observation.load(directory)
      for function in (
        model,
        *model.signatures.values(),
        *getattr(model, "regularization_losses", ()),
      ):
        try:
          inputs = tf.ones([2, 4])
          with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
          said.append(repr(tape.gradient(outputs, inputs)))
          said.append(repr(outputs))
        except Exception as e:
          said.append(repr(e))
    except Exception as e:
      said.append(repr(e))
    yield said


class AttacksTest(parameterized.TestCase, tf.test.TestCase):
  def place(self, name):
    root = pathlib.Path(self.get_temp_dir(), re.sub(r"\W", "_", name))
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    # TensorFlow does not remove links to directories.
    self.addCleanup(shutil.rmtree, root)
    return Place(root)

  def copied(self, place):
    target = os.path.join(
      self.get_temp_dir(),
      "copies",
      os.path.basename(os.path.dirname(place.directory)),
    )
    os.makedirs(target)
    # TensorFlow would follow the links in the URL of a local directory.
    return target, copying.copy(f"file://{place.directory}", target).problems

  def test_the_audit_and_the_sandbox_hold(self):
    """Each attack is found; without an audit, none of them succeeds either."""
    limits = sandbox.Limits(seconds=3000, memory=2**32)
    copies = os.path.join(self.get_temp_dir(), "copies")
    os.mkdir(copies)
    refused = []
    tools = {nightly.__file__, os.path.realpath(nightly.__file__)}
    with sandbox.started(
      "exporters.conformance.attacks_test",
      limits,
      readable=[copies, *map(os.path.dirname, tools)],
    ) as ask:
      for name, (attack, expected) in _FOUND.items():
        place = self.place(name)
        attack(place)
        copy, problems = self.copied(place)
        found = "\n".join([*problems, *subject_lib.read(copy).suspicious])
        self.assertRegex(found, expected, name)
        if name in ("abort", "wait", "collectives"):  # These end the process.
          continue
        said = "\n".join(ask(copy))
        self.assertFalse(os.path.exists(place.target), name)
        self.assertNotIn(_SECRET, said, name)
        refused += [name] * ("PermissionDenied" in said)
    # The other attacks fail by themselves, or TensorFlow 2 does not run them.
    self.assertContainsSubset(
      {
        *("write", "write by a saver's op", "write by slices"),
        *("write by print", "write a cache", "write a summary"),
        *("write in a gradient", "write in a signature", "write at load"),
        *("read lines", "read from a branch", "a table of any file"),
      },
      refused,
    )

  @nightly.only
  def test_the_check_ends(self):
    for name, (attack, expected, trust, is_dear) in _ENDING.items():
      if is_dear > _ALL.value:
        continue
      with self.subTest(name):
        place = self.place(name)
        attack(place)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
          try:
            status = check.check(
              saved_model_dir=place.directory,
              options=copying.Options(
                trust=trust, seconds=15 if "15 s" in expected else 0
              ),
            )
          except errors.ExportError as e:
            status = 1
            print(e)
        self.assertEqual(status, 1)
        said = out.getvalue()
        self.assertRegex(said, expected)

  def test_padding_buys_no_time(self):
    place = self.place("padded")
    _padded(place)
    padded = subject_lib.read(place.directory)
    self.assertLess(judging._seconds(padded), 56)

  def test_a_folder_becomes_a_link(self):
    place = self.place("replaced")
    _save(place)
    list_paths = copies_lib._paths

    def listed(*arguments):
      paths = [*list_paths(*arguments)]
      folder = f"{place.directory}/variables"
      os.rename(folder, place.target)
      os.symlink(place.target, folder)
      return paths

    with (
      mock.patch.object(copies_lib, "_paths", listed),
      self.assertRaisesRegex(errors.ExportError, "replaced by a symbolic link"),
    ):
      self.copied(place)

  def test_a_file_of_many_names_is_copied_once(self):
    place = self.place("names")
    _save(place)
    before = copying.copy(place.directory, self.create_tempdir().full_path)
    # Files that a load does not read must not raise the limits either.
    pathlib.Path(place.directory, "assets/padding").write_bytes(bytes(999))
    model = os.path.join(place.directory, "saved_model.pb")
    for i in range(3):
      os.link(model, os.path.join(place.directory, f"assets_{i}"))
    self.assertEqual(self.copied(place)[1], [])
    target = os.path.join(self.get_temp_dir(), "copies", "names")
    self.assertEqual(os.stat(f"{target}/assets_2").st_nlink, 4)
    again = copying.copy(place.directory, self.create_tempdir().full_path)
    self.assertEqual(again, before)
    with self.assertRaisesRegex(errors.ExportError, "directory for temporary"):
      copying.copy(place.directory, f"{place.directory}/assets")

  def test_nothing_is_loaded_without_a_sandbox(self):
    with mock.patch.object(sandbox, "missing", lambda: "no sandbox"):
      with self.assertRaisesRegex(errors.ExportError, "loaded: no sandbox. To"):
        check.check(saved_model_dir=self.get_temp_dir())
      place = self.place("trusted")
      _save(place, tf.identity)
      said = io.StringIO()
      with contextlib.redirect_stderr(said):
        check.check(
          saved_model_dir=place.directory, options=copying.Options(trust=True)
        )
      self.assertEqual(
        said.getvalue(), "Loaded without a sandbox: no sandbox.\n"
      )

  def test_names_are_text(self):
    """Names in a model cannot be markup, or control a terminal."""
    name = "</td><script>BODY\033[2J\r\u202eTITLE"

    def change(graph):
      graph.meta_info_def.tensorflow_version = name
      serving = graph.signature_def["serving_default"]
      serving.outputs[name].CopyFrom(serving.outputs["output_0"])
      serving.inputs[name].CopyFrom(serving.inputs["inputs"])
      for node in graph.object_graph_def.nodes:
        if node.HasField("variable"):
          node.variable.name = name
      for node in graph.graph_def.node:
        if node.op == "Placeholder":
          node.op = name

    place = self.place("names")
    _changed(place, change)
    pathlib.Path(place.directory, "assets", os.fsdecode(b"\xff\n")).touch()
    page = os.path.join(self.get_temp_dir(), "page.html")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      check.check(saved_model_dir=place.directory, html_file=page)
      check.check(saved_model_dir=place.directory, as_json=True)
    lines = out.getvalue()
    for c in lines.replace("\n", ""):
      self.assertTrue(c.isprintable(), repr(c))
    found = json.loads(lines[lines.index("\n{") :], parse_constant=self.fail)
    self.assertIn("<script>", json.dumps(found))
    content = pathlib.Path(page).read_text()
    self.assertIn("&lt;script&gt;BODY", content)
    self.assertNotIn("<script", content)


if __name__ == "__main__":
  tf.test.main()
