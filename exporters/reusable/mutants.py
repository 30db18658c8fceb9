r"""Plants faults in exports, and prints which comparison finds each.

Each fault is one change of a SavedModel: of a weight, an op, an attribute, a
constant, a default, a list of variables or losses, a signature. Verification
must find it. A fault that survives is a hole in verification, or has no effect.

  bazel run //exporters/reusable:mutants [-- CODE_FAULTS [EXPORT…]]

CODE_FAULTS is the number of faults in each module of this folder, 6 by default,
and each EXPORT one of mnist_cnn, bert and resnet.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import io
import itertools
import os
import pathlib
import random
import sys
import tempfile
import time
from typing import Any, NamedTuple
from unittest import mock

from absl import app
import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import export_checks
from exporters.reusable import graphs
from exporters.reusable import hyperparameters
from exporters.reusable import observation
from exporters.reusable import private_api
from exporters.reusable import saving
from exporters.reusable import source_mutants
from exporters.reusable import verification

if __name__ == "__main__":  # Only the program needs these.
  from official.nlp.configs import encoders
  from official.vision.modeling import backbones

  from exporters.reusable import xla
  from models.nlp import bert
  from models.vision import stochastic_depth

# Ops of the same inputs and attributes that compute something else.
_SIMILAR = dict(
  pair.split()
  for pair in """
    AddV2 Sub|AssignAddVariableOp AssignSubVariableOp|AvgPool MaxPool
    AssignSubVariableOp AssignAddVariableOp|Elu Relu|Erf Tanh|Exp Square
    GreaterEqual Less|Greater LessEqual|Less GreaterEqual|LogicalAnd LogicalOr
    Max Mean|MaxPool AvgPool|Maximum Minimum|Mean Max|Mul AddV2|Neg Identity
    RandomStandardNormal RandomUniform|RandomUniform RandomStandardNormal
    RealDiv Mul|Relu Elu|Rsqrt Sqrt|Sigmoid Tanh|Softmax LogSoftmax
    Softplus Relu|Sqrt Square|Square Abs|SquaredDifference Sub|Sub AddV2
    Sum Mean|Tanh Sigmoid
  """.replace("\n", "|").split("|")
  if pair.strip()
)
# Ops whose first operand has the shape and dtype of their result.
_BYPASSED = ("BiasAdd", "Elu", "Erf", "Relu", "Softmax", "Square", "Tanh")
# Names of the results of planted ops; "y" for others of one operand.
_RESULTS = {
  **dict.fromkeys(("Identity", "MaxPool", "AvgPool", "Max", "Mean"), "output"),
  **dict.fromkeys(("Elu", "Relu"), "activations"),
  "LogSoftmax": "logsoftmax",
}
_ORDERED = {"Sub": (0, 1), "RealDiv": (0, 1), "MatMul": (0, 1), "Pow": (0, 1)}
_ORDERED |= {"Select": (1, 2), "SelectV2": (1, 2), "BatchMatMulV2": (0, 1)}
_FLOAT = tf.float32.as_datatype_enum

# Why a fault that fits is not planted.
_UNUSED = "no result and no effect depends on the op"
_WITHOUT_GRADIENT = "no gradient passes there"
_IN_INFERENCE = "a signature does not use what it passes to inference"
_UNPADDED = "pooling of even sizes has no padding"
_RUNS_ANYWAY = "a call runs all of its function if a result is used"
_OF_SHAPES = "the op reads only the shape of its operand"
_ONE_ELEMENT = "the end of a slice of one element is not read"
_SAME = "it would change nothing"
_NORMALIZED = "batch normalization divides the factor out"
_ROUNDED = "float32 rounds the operand away"
_RARE = (
  "a factor of 1.0001 moves one random number in 10,000 past its threshold"
)
_AVERAGES = "a factor of 1.0001 changes an update by less than its tolerance"
_KEEPS_FACTORS = {"AvgPool", "Conv2D", "MaxPool", "Relu"}

_SMALL_BERT = {
  "vocab_size": 50,
  "hidden_size": 16,
  "num_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "max_position_embeddings": 12,
}


class Export(NamedTuple):
  """What a fault changes.

  Attributes:
    message: The `saved_model.pb`.
    weights: The tensors of the checkpoint, by name.
  """

  message: Any
  weights: dict[str, np.ndarray]

  @property
  def library(self) -> Any:
    """The functions and their gradients."""
    return self.message.meta_graphs[0].graph_def.library

  @property
  def objects(self) -> Any:
    """The graph of objects. The first node is the export itself."""
    return self.message.meta_graphs[0].object_graph_def

  def child(self, *path: str) -> Any:
    """Returns an object of the export."""
    node = self.objects.nodes[0]
    for name in path:
      children = {c.local_name: c.node_id for c in node.children}
      node = self.objects.nodes[children[name]]
    return node


class Fault(NamedTuple):
  """One fault.

  Attributes:
    kind: What is changed.
    where: The place, in words.
    plant: Changes an export.
    equivalent: Why it would have no effect. Such a fault is not planted.
  """

  kind: str
  where: str
  plant: Callable[[Export], None]
  equivalent: str = ""


# A kind and a place, a change of a function, and `Fault.equivalent`.
_Change = tuple[str, str, Callable[[graphs.Function], None], str]

NONE = Fault("none", "", lambda export: None)


class Subject(NamedTuple):
  """An export and what was observed of its live model."""

  name: str
  export_dir: str
  plan: dict[str, list[observation.Call]]
  seen: list[observation.Observation]


def subject(
  name: str,
  source: saving.Source,
  examples: Sequence[Any],
  export_dir: str,
  also_takes: Sequence[Any] = (),
) -> Subject:
  """Exports a model, and observes the live one once for all faults."""
  root = saving.reusable(source, also_takes=also_takes)
  signature = saving.signature(root, source.input_spec)
  saving.save(root, export_dir, signatures={"serving_default": signature})
  plan, seen = verification.observe({"": (source, examples)}, "full")
  return Subject(name, export_dir, plan, list(seen))


def read(export_dir: str) -> Export:
  """Reads an export."""
  message = private_api.saved_model_pb2.SavedModel.FromString(
    pathlib.Path(export_dir, "saved_model.pb").read_bytes()
  )
  reader = tf.train.load_checkpoint(f"{export_dir}/variables/variables")
  weights = {}
  for name, dtype in reader.get_variable_to_dtype_map().items():
    # NumPy's own type for strings drops trailing zero bytes.
    is_text = object if dtype == tf.string else None
    weights[name] = np.asarray(reader.get_tensor(name), is_text)
  return Export(message, weights)


def _write(export: Export, directory: str, weights_of: str | None) -> None:
  """Writes an export, with weights as they are at `weights_of` if it is set."""
  path = pathlib.Path(directory)
  (path / "saved_model.pb").write_bytes(export.message.SerializeToString())
  if weights_of:
    os.symlink(f"{weights_of}/variables", path / "variables")
    return
  (path / "variables").mkdir()
  names = sorted(export.weights)
  tf.raw_ops.SaveV2(
    prefix=f"{directory}/variables/variables",
    tensor_names=names,
    shape_and_slices=[""] * len(names),
    tensors=[tf.constant(export.weights[name]) for name in names],
  )


class _FoundError(Exception):
  pass


def found_by(subject: Subject, fault: Fault) -> str | None:
  """Plants a fault; returns what finds it, None if nothing does."""
  result = export_checks._result

  def stop_at_problems(part, kind, call, largest, problems, notes=()):
    if problems:
      raise _FoundError(f"{kind}: {problems[0]}")
    return result(part, kind, call, largest, problems, notes)

  export = read(subject.export_dir)
  message = export.message.SerializeToString(deterministic=True)
  weights = {name: x.tobytes() for name, x in export.weights.items()}
  fault.plant(export)
  same = weights == {name: x.tobytes() for name, x in export.weights.items()}
  if (
    fault.kind != "none"
    and same
    and message == export.message.SerializeToString(deterministic=True)
  ):
    raise ValueError(f"{fault.kind} ({fault.where}) changes nothing")
  with (
    tempfile.TemporaryDirectory() as parent,
    mock.patch.object(export_checks, "_result", stop_at_problems),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    directory = os.path.join(parent, "export")  # Is moved beside itself.
    os.mkdir(directory)
    _write(export, directory, subject.export_dir if same else None)
    try:
      export_checks.check(
        directory,
        observation.load(directory),
        subject.plan,
        iter(subject.seen),
        save_again=True,
      )
    except _FoundError as e:
      return str(e)
    except Exception as e:  # In the exporter's child it ends the process.
      return f"it cannot be loaded and called: {' '.join(str(e).split())}"
  return None


def faults(export: Export) -> Iterator[Fault]:
  """Yields all faults that fit an export."""
  yield from _of_weights(export)
  yield from _of_objects(export)
  yield from _of_defaults(export)
  yield from _of_bindings(export)
  reached = _reached(export)
  by_name = {f.signature.name: f for f in export.library.function}
  for i, function in enumerate(export.library.function):
    if role := reached.get(function.signature.name):
      for kind, where, change, equivalent in _of_function(
        function, role, by_name
      ):
        yield Fault(
          f"{role}: {kind}",
          f"{where} in {function.signature.name}",
          functools.partial(_change_function, i=i, change=change),
          equivalent,
        )


def _change_function(
  export: Export, i: int, change: Callable[[graphs.Function], None]
) -> None:
  function = export.library.function[i]
  change(function)
  for node in function.node_def:  # TensorFlow would find many faults by them.
    node.attr.pop("_output_shapes", None)


def _reached(export: Export) -> dict[str, str]:
  """Names what each function of a library is for."""
  by_name = {f.signature.name: f for f in export.library.function}
  functions = export.objects.nodes
  roles: dict[str, str] = {}
  waiting = [("call", name) for name in _functions_of(export.child("__call__"))]
  waiting += [
    (role, name)
    for role, path in (
      ("loss", "regularization_losses"),
      ("signature", "signatures"),
    )
    for child in export.child(path).children
    for name in _functions_of(functions[child.node_id])
  ]
  gradients = export.library.registered_gradients
  waiting += [("gradient", g.gradient_func) for g in gradients]
  while waiting:
    role, name = waiting.pop(0)
    if name in by_name and name not in roles:
      roles[name] = role
      waiting[:0] = [
        (role, inner)
        for node in by_name[name].node_def
        for inner in graphs.called(node)
      ]
  return roles


def _functions_of(node: Any) -> list[str]:
  if node.HasField("bare_concrete_function"):
    return [node.bare_concrete_function.concrete_function_name]
  return list(node.function.concrete_functions)


def _last_bit(x: np.ndarray) -> np.ndarray:
  x = x.copy()
  x.reshape(-1)[-1] = np.nextafter(x.reshape(-1)[-1], np.float32(9))
  return x


def _column(x: np.ndarray) -> np.ndarray:
  x = np.atleast_1d(x.copy())
  x[..., -1] *= np.float32(1.001)
  return x


def _transposed(x: np.ndarray) -> np.ndarray:
  is_square = x.ndim > 1 and x.shape[-1] == x.shape[-2]
  return np.swapaxes(x, -1, -2) if is_square else x


_OF_WEIGHTS = {
  "last bit of a value": _last_bit,
  "a column x 1.001": _column,
  "sign": np.negative,
  "transposed": _transposed,
  "columns rolled": lambda x: np.roll(x, 1, -1) if x.ndim > 1 else x,
  "bfloat16": lambda x: np.array(tf.cast(tf.cast(x, tf.bfloat16), x.dtype)),
}


def _of_weights(export: Export) -> Iterator[Fault]:
  """Yields changes of values in the checkpoint."""

  def setting(values: Mapping[str, np.ndarray]) -> Callable[[Export], None]:
    return lambda export: export.weights.update(values)

  floats = {
    name: x for name, x in export.weights.items() if x.dtype == np.float32
  }
  for name, x in floats.items():
    for kind, change in _OF_WEIGHTS.items():
      new = np.ascontiguousarray(change(x)).reshape(x.shape)
      same = _SAME if np.array_equal(x, new) else ""
      yield Fault(f"weights: {kind}", name, setting({name: new}), same)
  for (a, x), (b, y) in itertools.combinations(floats.items(), 2):
    if x.shape == y.shape:
      same = _SAME if np.array_equal(x, y) else ""
      kind = "weights: two variables swapped"
      yield Fault(kind, f"{a} and {b}", setting({a: y, b: x}), same)


def _drop(children: Any, i: int) -> None:
  del children[i]


def _double(children: Any, i: int) -> None:
  children.add(node_id=children[i].node_id)


def _swap(children: Any, i: int) -> None:
  a, b = children[i], children[(i + 1) % len(children)]
  a.node_id, b.node_id = b.node_id, a.node_id


_OF_LISTS = {"dropped": _drop, "twice": _double, "swapped": _swap}


def _of_objects(export: Export) -> Iterator[Fault]:
  """Yields changes of lists, and of which variables tapes watch."""

  def change_list(export: Export, name: str, i: int, change: Any) -> None:
    children = export.child(name).children
    change(children, i)
    for j, child in enumerate(children):
      child.local_name = str(j)

  for name in ("variables", "trainable_variables", "regularization_losses"):
    count = len(export.child(name).children)
    for i in range(count):
      for kind, change in _OF_LISTS.items():
        plant = functools.partial(change_list, name=name, i=i, change=change)
        same = _SAME if kind == "swapped" and count == 1 else ""
        yield Fault(f"{name}: {kind}", f"{i} of {name}", plant, same)

  def flip(export: Export, i: int) -> None:
    variable = export.objects.nodes[i].variable
    variable.trainable = not variable.trainable

  for i, node in enumerate(export.objects.nodes):
    if node.HasField("variable") and node.variable.dtype == _FLOAT:
      plant = functools.partial(flip, i=i)
      yield Fault("variables: trainable flipped", node.variable.name, plant)


def _of_defaults(export: Export) -> Iterator[Fault]:
  def fields(export: Export, key: str) -> Any:
    spec = export.child("__call__").function.function_spec.fullargspec
    pairs = spec.named_tuple_value.values
    value = next(pair.value for pair in pairs if pair.key == key)
    return getattr(value, value.WhichOneof("kind")).values

  def change(export: Export, i: int) -> None:
    value = fields(export, "defaults")[i]
    if value.WhichOneof("kind") == "bool_value":
      value.bool_value = not value.bool_value
    else:
      value.float64_value *= 0.5

  count = len(fields(export, "defaults"))
  for i, name in enumerate(list(fields(export, "args"))[-count:]):
    plant = functools.partial(change, i=i)
    yield Fault("default of an argument", name.string_value, plant)


def _of_bindings(export: Export) -> Iterator[Fault]:
  """Yields functions that read other variables, or are taken for others."""

  def swap(export: Export, name: str, i: int, j: int) -> None:
    bound = export.objects.concrete_functions[name].bound_inputs
    bound[i], bound[j] = bound[j], bound[i]

  def exchange(export: Export, a: str, b: str) -> None:
    first, second = (
      export.objects.concrete_functions[name].canonicalized_input_signature
      for name in (a, b)
    )
    copy = type(first).FromString(first.SerializeToString())
    first.CopyFrom(second)
    second.CopyFrom(copy)

  shapes = {
    i: str(node.variable.shape)
    for i, node in enumerate(export.objects.nodes)
    if node.HasField("variable")
  }
  concrete = export.objects.concrete_functions
  calls = _functions_of(export.child("__call__"))
  for name in concrete:
    bound = list(concrete[name].bound_inputs)
    for i, j in itertools.combinations(range(len(bound)), 2):
      if shapes.get(bound[i], i) == shapes.get(bound[j], j):
        role = "call" if name in calls else "other"
        yield Fault(
          f"{role}: two variables swapped",
          f"{i}, {j} of {name}",
          functools.partial(swap, name=name, i=i, j=j),
          _SAME if bound[i] == bound[j] else "",
        )
  for a, b in itertools.combinations(calls, 2):
    if concrete[a].bound_inputs == concrete[b].bound_inputs:
      plant = functools.partial(exchange, a=a, b=b)
      yield Fault("call: two modes swapped", f"{a} and {b}", plant)


def _of_function(
  function: graphs.Function, role: str, by_name: Mapping[str, graphs.Function]
) -> Iterator[_Change]:
  """Yields faults in a function."""
  live = _live(function, lambda node: node.input)
  ops = {node.name: node.op for node in function.node_def}
  unread = {
    name.partition(":")[0]
    for node in function.node_def
    if node.op == "StridedSlice" and node.attr["shrink_axis_mask"].i
    for name in node.input[2:]
  }
  # A fault there has no effect, or less than float32 holds.
  nowhere = dict.fromkeys(unread, _ONE_ELEMENT)
  nowhere |= {name: _UNUSED for name in ops if name not in live}
  epsilons = {
    f"{node.name}:output:0"
    for node in function.node_def
    if node.op == "Const"
    and node.attr["dtype"].type == _FLOAT
    and np.all(np.abs(tf.make_ndarray(node.attr["value"].tensor)) < 1e-7)
  }
  # As in (axis + rank) % rank.
  modulo = {x.input[0] for x in function.node_def if x.op == "FloorMod"}
  for i, node in enumerate(function.node_def):
    where = f"{node.op} {node.name}"
    for kind, change, equivalent in _of_node(node, role):
      if kind == "op: AddV2 → Sub" and node.input[1] in epsilons:
        equivalent = _ROUNDED
      elif kind == "op: AddV2 → Sub" and f"{node.name}:z:0" in modulo:
        equivalent = _SAME
      plant = functools.partial(_change_node, i=i, change=change)
      yield kind, where, plant, nowhere.get(node.name, equivalent)
  for kind, where, plant, equivalent in _of_operands(function, role, ops):
    yield kind, where, plant, nowhere.get(where.split()[1], equivalent)
  for name in sorted(function.control_ret.values()):
    equivalent = "" if ops[name].startswith("Assign") else _RUNS_ANYWAY
    plant = functools.partial(_forget, name=name)
    yield "effect dropped", name, plant, equivalent
  outputs = list(function.signature.output_arg)
  for a, b in itertools.combinations(outputs, 2):
    if a.type == b.type:

      def swap(function, a=a.name, b=b.name):
        function.ret[a], function.ret[b] = function.ret[b], function.ret[a]

      yield "two results swapped", f"{a.name} and {b.name}", swap, ""
  yield from _of_scalars(function, by_name, live)


def _of_operands(
  function: graphs.Function, role: str, ops: Mapping[str, str]
) -> Iterator[_Change]:
  """Yields faults in the first operands of ops, which are named in `ops`."""
  # Gradients have a larger tolerance, and are not differentiated.
  of_operands = {
    "operand x 1.0001": _times(1.0001),
    "operand in bfloat16": _rounded,
    "operand without gradient": _stopped,
  }
  if role in ("gradient", "signature"):
    of_operands = {"operand x 1.01": _times(1.01)}
  differentiated = _live(function, _differentiated)
  taken_by = collections.defaultdict(list)
  for node in function.node_def:
    for name in graphs.operands(node):
      taken_by[name.partition(":")[0]].append(node)
  for i, node in enumerate(function.node_def):
    is_select = node.op in ("Select", "SelectV2")  # Their first one is bool.
    floats = "T" in node.attr and node.attr["T"].type == _FLOAT
    operands = [ops.get(x.partition(":")[0]) for x in graphs.operands(node)]
    if not (floats and operands and operands[is_select] != "Const"):
      continue
    for kind, inserted in of_operands.items():
      equivalent = ""
      if node.op in ("Shape", "Size", "Rank", "ShapeN", "ZerosLike"):
        equivalent = _OF_SHAPES
      elif kind == "operand x 1.0001":
        equivalent = _of_factor(node, taken_by)
      elif inserted is _stopped and node.name not in differentiated:
        equivalent = _WITHOUT_GRADIENT
      plant = functools.partial(_insert, i=i, j=is_select, inserted=inserted)
      yield kind, f"{node.op} {node.name}", plant, equivalent


def _of_factor(
  node: graphs.Node, taken_by: Mapping[str, Sequence[graphs.Node]]
) -> str:
  """Tells why a factor of 1.0001 before an op has no effect; "" if it has."""

  def is_normalized(node):
    takers = taken_by[node.name] if node.op in _KEEPS_FACTORS else ()
    return bool(takers) and all(
      is_normalized(x)
      or (x.op == "FusedBatchNormV3" and x.attr["is_training"].b)
      for x in takers
    )

  if is_normalized(node):
    return _NORMALIZED
  if "AssignMovingAvg" in node.name:
    return _AVERAGES
  is_threshold = {x.op for x in taken_by[node.name]} == {"Floor"}
  return _RARE if is_threshold or node.op == "GreaterEqual" else ""


def _forget(function: graphs.Function, name: str) -> None:
  """Removes an effect from a function."""
  for key in [k for k, v in function.control_ret.items() if v == name]:
    del function.control_ret[key]
    function.signature.control_output.remove(key)
  for node in function.node_def:
    if f"^{name}" in node.input:
      node.input.remove(f"^{name}")


def _change_node(
  function: graphs.Function, i: int, change: Callable[[graphs.Node], None]
) -> None:
  """Changes a node, and names its result as other nodes know it."""
  node = function.node_def[i]
  op = node.op
  change(node)
  if node.op == op or op not in _RESULTS.keys() | set(_BYPASSED) | {"Neg"}:
    return
  new = f"{node.name}:{_RESULTS.get(node.op, 'y')}:0"

  def renamed(name: str) -> str:
    return new if name.startswith(f"{node.name}:") else name

  for other in function.node_def:
    other.input[:] = map(renamed, other.input)
  for key, name in function.ret.items():
    function.ret[key] = renamed(name)


def _differentiated(node: graphs.Node) -> list[str]:
  """Returns the operands to which the gradient of a node goes."""
  # A custom gradient is that of the inputs, which come after the result.
  is_custom = "_gradient_op_type" in node.attr
  return graphs.operands(node)[1 if is_custom else 0 :]


def _live(
  function: graphs.Function, operands: Callable[[graphs.Node], Iterable[str]]
) -> set[str]:
  """Names the nodes that the results, or an effect, depend on by `operands`."""
  by_name = {node.name: node for node in function.node_def}
  waiting = list(function.ret.values())
  if operands is not _differentiated:
    waiting += function.control_ret.values()
  live = set()
  while waiting:
    name = waiting.pop().removeprefix("^").partition(":")[0]
    if name in by_name and name not in live:
      live.add(name)
      waiting += operands(by_name[name])
  return live


def _of_scalars(
  function: graphs.Function,
  by_name: Mapping[str, graphs.Function],
  live: set[str],
) -> Iterator[_Change]:
  """Yields uses of hyperparameters that are lost."""
  shapes = {
    arg.name: function.arg_attr[i].attr["_output_shapes"].list.shape
    for i, arg in enumerate(function.signature.input_arg)
    if arg.type == _FLOAT
  }
  names = {
    name
    for name, (shape, *_) in shapes.items()
    if not shape.dim and not shape.unknown_rank
  }
  for i, node in enumerate(function.node_def):
    callee = graphs.callee(node, by_name)
    for j, name in enumerate(node.input):
      if name not in names:
        continue
      argument = callee.signature.input_arg[j].name if callee else ""
      equivalent = "" if node.name in live else _UNUSED
      if callee and not any(argument in n.input for n in callee.node_def):
        equivalent = _IN_INFERENCE
      for kind, inserted in (("ignored", _constant), ("x 0.5", _halved)):
        yield (
          f"hyperparameter {kind} in one place",
          f"{name} for {node.op} {node.name}",
          functools.partial(_insert, i=i, j=j, inserted=inserted),
          equivalent,
        )


def _insert(
  function: graphs.Function,
  i: int,
  j: int,
  inserted: Callable[[graphs.Function, str], str],
) -> None:
  """Puts nodes before an operand of a node."""
  new = inserted(function, function.node_def[i].input[j])
  function.node_def[i].input[j] = new


def _node(
  function: graphs.Function, op: str, output: str, *inputs: str, **types: Any
) -> str:
  node = function.node_def.add(name=f"planted_{len(function.node_def)}", op=op)
  node.input[:] = inputs
  for name, dtype in types.items():
    node.attr[name].type = dtype.as_datatype_enum
  return f"{node.name}:{output}:0"


def _constant(function: graphs.Function, operand: str, value: Any = 0.4) -> str:
  del operand
  constant = _node(function, "Const", "output", dtype=tf.float32)
  tensor = tf.make_tensor_proto(value, tf.float32)
  function.node_def[-1].attr["value"].tensor.CopyFrom(tensor)
  return constant


def _times(factor: float) -> Callable[[graphs.Function, str], str]:
  def inserted(function: graphs.Function, operand: str) -> str:
    constant = _constant(function, operand, factor)
    return _node(function, "Mul", "z", operand, constant, T=tf.float32)

  return inserted


_halved = _times(0.5)


def _rounded(function: graphs.Function, operand: str) -> str:
  types = {"SrcT": tf.float32, "DstT": tf.bfloat16}
  low = _node(function, "Cast", "y", operand, **types)
  types = {"SrcT": tf.bfloat16, "DstT": tf.float32}
  return _node(function, "Cast", "y", low, **types)


def _stopped(function: graphs.Function, operand: str) -> str:
  return _node(function, "StopGradient", "output", operand, T=tf.float32)


def _of_node(
  node: graphs.Node, role: str
) -> Iterator[tuple[str, Callable[[graphs.Node], None], str]]:
  """Yields kind and change of faults in a node, and `Fault.equivalent`."""
  if similar := _SIMILAR.get(node.op):

    def replace(node):
      node.op = similar
      node.attr.pop("explicit_paddings", None)
      if similar in ("AvgPool", "MaxPool"):
        node.attr["T"].type = _FLOAT

    yield f"op: {node.op} → {similar}", replace, ""
  if node.op in _BYPASSED:

    def bypass(node):
      node.op = "Identity"
      del node.input[1:]
      for name in set(node.attr) - {"T"}:
        del node.attr[name]

    yield f"op: {node.op} left out", bypass, ""
  if node.op in _ORDERED:
    first, second = _ORDERED[node.op]

    def swap(node):
      a, b = node.input[first], node.input[second]
      node.input[first], node.input[second] = b, a

    yield "operands swapped", swap, ""
  if graphs.SEEDED.match(node.op):

    def seed(node):
      node.attr["seed"].i = node.attr["seed2"].i = 7

    yield "seed saved", seed, ""
  if node.op == "Const":
    in_inference = _IN_INFERENCE if role == "signature" else ""
    for kind, change in _of_constant(node):
      yield kind, change, in_inference
  for name, value in node.attr.items():

    def change(node, name=name):
      value = node.attr[name]
      if value.f:
        value.f *= 2.0
      elif value.s:
        value.s = b"VALID" if value.s == b"SAME" else b"SAME"
      else:
        value.b = not value.b

    flags = ("is_training", "transpose_a", "transpose_b", "adj_x", "adj_y")
    if value.f or name in (*flags, "padding"):
      is_pooling = name == "padding" and node.op != "Conv2D"
      yield f"attribute: {name}", change, _UNPADDED if is_pooling else ""


def _of_constant(
  node: graphs.Node,
) -> Iterator[tuple[str, Callable[[graphs.Node], None]]]:
  value = tf.make_ndarray(node.attr["value"].tensor)
  if not value.size:
    return
  if value.dtype == np.float32:
    is_tiny = np.abs(value) < 1e-6  # Such as an epsilon.
    new = np.where(is_tiny, 0.1, 1.01 * value).astype(np.float32)
    kind = "constant x 1.01, or 0.1"
  elif value.dtype in (np.int32, np.int64):
    kind, new = "whole constant + 1", (value + 1).astype(value.dtype)
  elif value.dtype == bool:
    kind, new = "constant negated", ~value
  else:
    return
  tensor = tf.make_tensor_proto(new)
  yield kind, lambda node: node.attr["value"].tensor.CopyFrom(tensor)


def sample(faults: Iterable[Fault], count: int, seed: int = 0) -> list[Fault]:
  """Chooses faults at random, always the same, and as many of each kind."""
  rng = random.Random(seed)
  by_kind = collections.defaultdict(list)
  for fault in faults:
    if not fault.equivalent:
      by_kind[fault.kind].append(fault)
  kinds = list(by_kind.values())
  for of_kind in (kinds, *kinds):
    rng.shuffle(of_kind)
  rounds = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
  return list(itertools.islice(filter(None, rounds), count))


def _mnist_cnn() -> tuple[Any, ...]:
  """Builds a CNN like that of `models/vision/mnist_cnn.py`."""
  layers = tf_keras.layers
  parts = [layers.InputLayer((28, 28, 1), name="images")]
  for filters in (4, 8):
    parts += [
      layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_regularizer="l2"
      ),
      layers.BatchNormalization(momentum=0.9),
      layers.ReLU(),
      layers.MaxPool2D(),
    ]
  parts += [
    layers.Flatten(),
    layers.Dropout(0.4),
    layers.Dense(16, "relu", kernel_regularizer="l2"),
  ]
  spec = tf.TensorSpec([None, 28, 28, 1], tf.float32, "images")
  return tf_keras.Sequential(parts), spec, {}, saving.of_mixed_precision(spec)


def _bert() -> tuple[Any, ...]:
  """Builds an encoder of two layers, with dropout."""
  config = encoders.EncoderConfig(type="bert")
  config.override({"bert": _SMALL_BERT})
  names = ("input_word_ids", "input_mask", "input_type_ids")
  spec = {name: tf.TensorSpec([None, None], tf.int32) for name in names}
  int64 = [tf.TensorSpec([None, None], tf.int64)] * 3
  layer_calls = {
    layer: xla.with_own_gradients_of(*functions)
    if functions
    else xla.with_own_gradient
    for layer, functions in bert.OWN_GRADIENTS.items()
  }
  model = encoders.build_encoder(config)
  return model, spec, layer_calls, [[*spec.values()], int64]


def _resnet() -> tuple[Any, ...]:
  """Builds a ResNet with batch normalization and stochastic depth."""
  backbone = backbones.ResNet(
    10,
    depth_multiplier=0.25,
    init_stochastic_depth_rate=0.2,
    kernel_regularizer=tf_keras.regularizers.L2(1e-3),
  )
  images = tf_keras.Input([None, None, 3])
  pooled = tf_keras.layers.GlobalAveragePooling2D()(backbone(images)["5"])
  spec = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
  layer_calls = {
    "official.vision.modeling.layers.nn_layers.StochasticDepth": (
      stochastic_depth.without_branch
    )
  }
  return tf_keras.Model(images, pooled), spec, layer_calls, []


def _subjects(
  directory: str, names: Sequence[str]
) -> Iterator[tuple[Subject, int]]:
  """Exports small models; yields them, and how many faults to plant."""
  tf_keras.utils.set_random_seed(0)
  for name, build, size, count in (
    ("mnist_cnn", _mnist_cnn, [28, 28, 1], 150),
    ("bert", _bert, [6], 60),
    # Of 32 x 32 pixels one is left, and normalization of few equal values
    # makes much of rounding errors.
    ("resnet", _resnet, [64, 64, 3], 60),
  ):
    if names and name not in names:
      continue
    model, spec, layer_calls, also_takes = build()
    spread(model)
    source = saving.source(
      model,
      spec,
      hyperparameters=hyperparameters.of_model(model),
      layer_calls=layer_calls,
      autograph=False,
    )
    examples = [
      tf.nest.map_structure(lambda s, n=n: _example(s, [n, *size]), spec)  # noqa: B023
      for n in (3, 1)
    ]
    path = os.path.join(directory, name)
    yield subject(name, source, examples, path, also_takes), count


def _example(spec: tf.TensorSpec, shape: Sequence[int]) -> tf.Tensor:
  seed = [shape[0], 0]
  if spec.dtype == tf.float32:
    return tf.random.stateless_normal(shape, seed)
  return tf.random.stateless_uniform(shape, seed, 0, 2, spec.dtype)


def spread(model: tf_keras.Model) -> None:
  """Gives all weights values of their own, as after a training."""
  rng = np.random.default_rng(0)
  for variable in model.variables:
    if variable.dtype == tf.float32:
      noise = rng.uniform(-0.1, 0.1, variable.shape).astype(np.float32)
      is_variance = "variance" in variable.name
      variable.assign_add(abs(noise) if is_variance else noise)


def _tiny() -> tuple[tf_keras.Model, tf.TensorSpec, list[tf.Tensor]]:
  """Builds a model that has most of what `saving` and `xla` treat."""
  layers = tf_keras.layers
  tf_keras.utils.set_random_seed(0)
  model = tf_keras.Sequential(
    [
      layers.InputLayer((4, 3)),
      layers.Dense(3, "relu", kernel_regularizer="l2"),
      layers.LayerNormalization(epsilon=1e-6),
      layers.BatchNormalization(momentum=0.8),
      layers.Flatten(),
      layers.Dropout(0.5),
      layers.Dense(2, kernel_regularizer="l2"),
    ]
  )
  spread(model)
  examples = [tf.random.stateless_normal([n, 4, 3], [n, 0]) for n in (5, 1)]
  return model, tf.TensorSpec([None, 4, 3], tf.float32, "features"), examples


def prove() -> None:
  """Exports and verifies a model, and plants some faults in the export.

  Raises:
    AssertionError: Verification refuses the export, or misses a fault.
  """
  model, spec, examples = _tiny()
  with tempfile.TemporaryDirectory() as directory:
    source = saving.source(
      model, spec, hyperparameters=hyperparameters.of_model(model)
    )
    of = subject(
      "tiny", source, examples, directory, saving.of_mixed_precision(spec)
    )
    by = found_by(of, NONE)
    assert by is None, by
    for fault in sample(faults(read(directory)), 6):
      assert found_by(of, fault), f"{fault.kind} ({fault.where}) survives"


def _of_exports(
  names: Sequence[str], not_planted: collections.Counter[str]
) -> Iterator[tuple[str, str, str | None]]:
  """Yields the kind of a fault in an export, its place, and what finds it.

  Args:
    names: Names of the exports, all if empty.
    not_planted: Is updated with the number of faults by `Fault.equivalent`.
  """
  with tempfile.TemporaryDirectory() as directory:
    for of, count in _subjects(directory, names):
      if problem := found_by(of, NONE):
        raise AssertionError(f"{of.name} fails without a fault: {problem}")
      all_faults = list(faults(read(of.export_dir)))
      not_planted.update(f.equivalent for f in all_faults if f.equivalent)
      for fault in sample(all_faults, count):
        where = f"{of.name}: {fault.where}"
        yield f"export, {fault.kind}", where, found_by(of, fault)


def _of_sources(of_module: int) -> Iterator[tuple[str, str, str | None]]:
  """Yields the same for faults in the code of this folder."""
  in_child = functools.partial(source_mutants.in_child, seconds=1200)
  # Without a fault in the code.
  lines = in_child(source_mutants.executed, prove)
  for mutant in source_mutants.sample(of_module, lines):
    try:
      by = in_child(source_mutants.found_by, mutant, prove)
    except (EOFError, TimeoutError):
      by = "it ends early or takes more than 20 minutes"
    yield f"code of {mutant.module}.py", f"{mutant.kind}, {mutant.line}", by


def main(argv: Sequence[str]) -> None:
  """Plants faults, and prints what finds them."""
  of_module = int((argv[1:] or [6])[0])
  found = collections.defaultdict(collections.Counter)
  not_planted: collections.Counter[str] = collections.Counter()
  survivors = []
  begin = time.monotonic()
  planted = itertools.chain(
    _of_sources(of_module), _of_exports(argv[2:], not_planted)
  )
  for i, (kind, where, by) in enumerate(planted, 1):
    if by is None:
      survivors.append(f"{kind} ({where})")
    found[kind][by.partition(":")[0] if by else "NOTHING"] += 1
    line = f"{kind} ({where}): {by or 'SURVIVES'}"[:200]
    print(f"{time.monotonic() - begin:5.0f} s {i:4} {line}", flush=True)
  for kind in sorted(found):
    by = ", ".join(f"{k} {n}" for k, n in found[kind].most_common())
    print(f"{found[kind].total():4} {kind}: {by}")
  for reason, number in not_planted.items():
    print(f"{number:4} not planted: {reason}")
  for survivor in survivors:
    print(f"survives: {survivor}")
  count = sum(by.total() for by in found.values())
  print(f"{len(survivors)} of {count} faults survive.")
  sys.exit(len(survivors) > 0.02 * count)


if __name__ == "__main__":
  app.run(main)  # Tests in this process need flags.
