"""Plants faults in exports.

Each fault changes one thing in a SavedModel: a weight, an op, an attribute, a
constant, a default, a list of variables or losses, or a signature. Verification
must find it.
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
import re
import tempfile
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import export_checks
from exporters.reusable import graphs
from exporters.reusable import observation
from exporters.reusable import private_api
from exporters.reusable import saving
from exporters.reusable import verification

# Ops, and replacements with the same inputs and attributes but other results.
_SIMILAR = dict(
  re.findall(
    r"(\w+)→(\w+)",
    """
    AddV2→Sub AssignAddVariableOp→AssignSubVariableOp AvgPool→MaxPool
    AssignSubVariableOp→AssignAddVariableOp Elu→Relu Erf→Tanh Exp→Square
    GreaterEqual→Less Greater→LessEqual Less→GreaterEqual LogicalAnd→LogicalOr
    Max→Mean MaxPool→AvgPool Maximum→Minimum Mean→Max Mul→AddV2 Neg→Identity
    RandomStandardNormal→RandomUniform RandomUniform→RandomStandardNormal
    RealDiv→Mul Relu→Elu Rsqrt→Sqrt Sigmoid→Tanh Softmax→LogSoftmax
    Softplus→Relu Sqrt→Square Square→Abs SquaredDifference→Sub Sub→AddV2
    Sum→Mean Tanh→Sigmoid
    """,
  )
)
# Ops whose first operand has the shape and dtype of their result.
_BYPASSED = ("BiasAdd", "Elu", "Erf", "Relu", "Softmax", "Square", "Tanh")
_ORDERED = {
  **dict.fromkeys(("Sub", "RealDiv", "MatMul", "BatchMatMulV2", "Pow"), (0, 1)),
  **dict.fromkeys(("Select", "SelectV2"), (1, 2)),
}
_FLAGS = ("is_training", "transpose_a", "transpose_b", "adj_x", "adj_y")
_FLOAT = tf.float32.as_datatype_enum

# Reasons not to plant a fault, because it has no effect.
_UNUSED = "no result and no effect depends on the op"
_IN_INFERENCE = "a signature does not use what it passes to inference"
_SAME = "it would change nothing"
# Ops that pass on a factor of their input, which batch normalization removes.
_KEEPS_FACTORS = {"AvgPool", "Conv2D", "MaxPool", "Relu"}


class Export(NamedTuple):
  """The parts of an export that faults change.

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

  def child(self, name: str) -> Any:
    """Returns an attribute of the export."""
    root = self.objects.nodes[0]
    ids = {c.local_name: c.node_id for c in root.children}
    return self.objects.nodes[ids[name]]

  def to_bytes(self) -> tuple[bytes, dict[str, bytes]]:
    """Returns the export as bytes, which are equal for equal exports."""
    weights = {name: x.tobytes() for name, x in self.weights.items()}
    return self.message.SerializeToString(deterministic=True), weights


class Fault(NamedTuple):
  """One fault.

  Attributes:
    kind: The kind of change.
    where: The place, in words.
    plant: Plants the fault in an export, in place.
    equivalent: Why the fault would have no effect, or "" if it has one. Only
      faults with an effect are planted.
  """

  kind: str
  where: str
  plant: Callable[[Export], None]
  equivalent: str = ""


# `kind` and `where` of a `Fault`, a change of a function, and `equivalent`.
_Change = tuple[str, str, Callable[[graphs.Function], None], str]
# Adds nodes that compute with a Tensor of a function; returns their result's
# name.
_Insertion = Callable[[graphs.Function, str], str]


class Subject(NamedTuple):
  """An export and the observations of its live model."""

  name: str
  export_dir: str
  plan: dict[str, list[observation.Call]]
  served: dict[str, tuple[str, list[str]]]
  seen: list[observation.Observation]


def subject(
  name: str,
  source: saving.Source,
  examples: Sequence[Any],
  export_dir: str,
  also_takes: Sequence[Any] = (),
) -> Subject:
  """Exports a model, and observes the live model once for all faults."""
  root = saving.reusable(source, also_takes=also_takes)
  signature = saving.signature(root, source.input_spec)
  notes = saving.save(
    root, export_dir, signatures={"serving_default": signature}
  )
  assert not notes, notes
  plan, served, seen = verification.observe({"": (source, examples)}, "full")
  return Subject(name, export_dir, plan, served, list(seen))


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


def _write(export: Export, directory: str) -> None:
  path = pathlib.Path(directory)
  (path / "variables").mkdir(parents=True)
  (path / "saved_model.pb").write_bytes(export.message.SerializeToString())
  names = sorted(export.weights)
  tf.raw_ops.SaveV2(
    prefix=f"{directory}/variables/variables",
    tensor_names=names,
    shape_and_slices=[""] * len(names),
    tensors=[tf.constant(export.weights[name]) for name in names],
  )


def check(subject: Subject, directory: str) -> list[export_checks.Result]:
  """Compares the export in `directory`, faulty or not, with the live model."""
  with contextlib.redirect_stdout(io.StringIO()):
    return export_checks.check(
      directory,
      observation.load(directory),
      subject.plan,
      subject.served,
      iter(subject.seen),
      save_again=True,
    )


class _FoundError(Exception):
  pass


def found_by(subject: Subject, fault: Fault) -> str | None:
  """Plants a fault; returns the problem that verification finds, or None."""
  result = export_checks._result

  def stop_at_problems(part, kind, call, largest, problems, *args, **kwargs):
    made = result(part, kind, call, largest, problems, *args, **kwargs)
    if problems and not made.undecided:
      raise _FoundError(f"{kind}: {problems[0]}")
    return made

  export = read(subject.export_dir)
  before = export.to_bytes()
  fault.plant(export)
  if before == export.to_bytes():
    raise ValueError(f"{fault.kind} ({fault.where}) changes nothing")
  with (
    tempfile.TemporaryDirectory() as parent,
    mock.patch.object(export_checks, "_result", stop_at_problems),
  ):
    directory = os.path.join(parent, "export")  # Is moved beside itself.
    _write(export, directory)
    try:
      check(subject, directory)
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

  def change_function(export: Export, i: int, change: Any) -> None:
    function = export.library.function[i]
    change(function)
    for node in function.node_def:  # TensorFlow would find many faults by it.
      node.attr.pop("_output_shapes", None)

  for i, (name, function) in enumerate(by_name.items()):
    if role := reached.get(name):
      for kind, where, change, same in _of_function(function, role, by_name):
        plant = functools.partial(change_function, i=i, change=change)
        yield Fault(f"{role}: {kind}", f"{where} in {name}", plant, same)


def _reached(export: Export) -> dict[str, str]:
  """Returns the role of each function that an export uses, by its name."""
  by_name = {f.signature.name: f for f in export.library.function}
  waiting = [("call", name) for name in _functions_of(export.child("__call__"))]
  waiting += [
    (role, name)
    for role, children in (
      ("loss", export.child("regularization_losses").children),
      ("signature", export.child("signatures").children),
    )
    for child in children
    for name in _functions_of(export.objects.nodes[child.node_id])
  ]
  gradients = export.library.registered_gradients
  waiting += [("gradient", g.gradient_func) for g in gradients]
  roles: dict[str, str] = {}
  while waiting:
    role, name = waiting.pop(0)
    if name in by_name and name not in roles:
      roles[name] = role
      nodes = by_name[name].node_def
      waiting[:0] = [(role, f) for node in nodes for f in graphs.called(node)]
  return roles


def _functions_of(node: Any) -> list[str]:
  if node.HasField("bare_concrete_function"):
    return [node.bare_concrete_function.concrete_function_name]
  return list(node.function.concrete_functions)


def _is_last(x: np.ndarray) -> np.ndarray:
  return np.arange(x.shape[-1]) == x.shape[-1] - 1


_OF_WEIGHTS = {
  "last bit of a value": lambda x: np.nextafter(
    x.ravel(), x.ravel() + _is_last(x.ravel()), dtype=x.dtype
  ),
  "a column x 1.001": lambda x: x * np.where(_is_last(x), 1.001, 1),
  "sign": np.negative,
  "transposed": lambda x: (
    np.swapaxes(x, -1, -2) if x.ndim > 1 and x.shape[-1] == x.shape[-2] else x
  ),
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
      new = change(np.atleast_1d(x)).astype(x.dtype).reshape(x.shape)
      same = _SAME if np.array_equal(x, new) else ""
      yield Fault(f"weights: {kind}", name, setting({name: new}), same)
  for (a, x), (b, y) in itertools.combinations(floats.items(), 2):
    if x.shape == y.shape:
      same = _SAME if np.array_equal(x, y) else ""
      kind = "weights: two variables swapped"
      yield Fault(kind, f"{a} and {b}", setting({a: y, b: x}), same)


def _swap_children(children: Any, i: int) -> None:
  a, b = children[i], children[(i + 1) % len(children)]
  a.node_id, b.node_id = b.node_id, a.node_id


_OF_LISTS = {
  "dropped": lambda children, i: children.pop(i),
  "twice": lambda children, i: children.add(node_id=children[i].node_id),
  "swapped": _swap_children,
}


def _of_objects(export: Export) -> Iterator[Fault]:
  """Yields changes of lists of variables and losses, and of `trainable`."""

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
    pairs = {x.key: x.value for x in spec.named_tuple_value.values}
    return getattr(pairs[key], pairs[key].WhichOneof("kind")).values

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
  """Yields swaps of the variables that functions read, and of signatures."""

  def swap(export: Export, name: str, i: int, j: int) -> None:
    bound = export.objects.concrete_functions[name].bound_inputs
    bound[i], bound[j] = bound[j], bound[i]

  def exchange(export: Export, a: str, b: str) -> None:
    functions = export.objects.concrete_functions
    first, second = (
      functions[name].canonicalized_input_signature for name in (a, b)
    )
    copy = first.SerializeToString()
    first.CopyFrom(second)
    second.ParseFromString(copy)

  shapes = {
    i: str(node.variable.shape)
    for i, node in enumerate(export.objects.nodes)
    if node.HasField("variable")
  }
  concrete = export.objects.concrete_functions
  calls = _functions_of(export.child("__call__"))
  for name in concrete:
    role = "call" if name in calls else "other"
    bound = enumerate(concrete[name].bound_inputs)
    for (i, x), (j, y) in itertools.combinations(bound, 2):
      if shapes.get(x, i) == shapes.get(y, j):
        plant = functools.partial(swap, name=name, i=i, j=j)
        kind = f"{role}: two variables swapped"
        yield Fault(kind, f"{i}, {j} of {name}", plant, _SAME * (x == y))
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
  # Nodes in which a fault has no effect, and why.
  nowhere = {
    graphs.node_of(name): "the end of a slice of one element is not read"
    for node in function.node_def
    if node.op == "StridedSlice" and node.attr["shrink_axis_mask"].i
    for name in node.input[2:]
  }
  nowhere |= dict.fromkeys(_unread(function), "no slice reads the constant")
  nowhere |= {name: _UNUSED for name in ops if name not in live}
  for i, node in enumerate(function.node_def):
    where = f"{node.op} {node.name}"
    for kind, change, same in _of_node(node, role):
      if kind == "op: AddV2 → Sub":
        same = _of_subtraction(function, node)
      plant = functools.partial(_change_node, i=i, change=change)
      yield kind, where, plant, nowhere.get(node.name, same)
  for kind, where, plant, same in _of_operands(function, role, ops):
    yield kind, where, plant, nowhere.get(where.split()[1], same)
  for name in sorted(function.control_ret.values()):
    same = "a call runs all of its function if a result is used"
    plant = functools.partial(_forget, name=name)
    yield "effect dropped", name, plant, same * ("Assign" not in ops[name])
  outputs = list(function.signature.output_arg)
  for a, b in itertools.combinations(outputs, 2):
    if a.type == b.type:

      def swap(function, a=a.name, b=b.name):
        function.ret[a], function.ret[b] = function.ret[b], function.ret[a]

      yield "two results swapped", f"{a.name} and {b.name}", swap, ""
  yield from _of_scalars(function, by_name, live)


def _unread(function: graphs.Function) -> set[str]:
  """Names constants that are only begins or ends that slices ignore."""
  every = range(8)  # A slice has fewer dimensions.
  read = collections.defaultdict(set)  # Indices of elements, by node.
  for node in reversed(function.node_def):  # Users come after what they use.
    for j, name in enumerate(node.input):
      mask = 0
      if node.op in ("StridedSlice", "StridedSliceGrad") and j in (1, 2):
        mask = node.attr["begin_mask" if j == 1 else "end_mask"].i
      if node.op != "Pack" or j in read[node.name]:
        read[graphs.node_of(name)].update(k for k in every if not mask >> k & 1)
  for name in function.ret.values():
    read[graphs.node_of(name)].update(every)
  return {
    node.name
    for node in function.node_def
    if node.op == "Const"
    and read[node.name].isdisjoint(
      range(tf.make_ndarray(node.attr["value"].tensor).size)
    )
  }


def _of_subtraction(function: graphs.Function, node: graphs.Node) -> str:
  """Tells why Sub in place of AddV2 has no effect; "" if it has one."""
  for other in function.node_def:
    if other.op == "FloorMod" and f"{node.name}:z:0" == other.input[0]:
      return _SAME  # As in (axis + rank) % rank.
    if other.op == "Const" and f"{other.name}:output:0" == node.input[1]:
      value = tf.make_ndarray(other.attr["value"].tensor)
      if value.dtype == np.float32 and np.all(np.abs(value) < 1e-7):
        return "float32 rounds the operand away"
  return ""


def _of_operands(
  function: graphs.Function, role: str, ops: Mapping[str, str]
) -> Iterator[_Change]:
  """Yields faults in the first operands of nodes.

  Args:
    function: The function.
    role: Its role, from `_reached`.
    ops: The op of each node, by the node's name.
  """
  of_operands: dict[str, _Insertion] = {
    "operand x 1.0001": _times(1.0001),
    "operand in bfloat16": _rounded,
    "operand without gradient": lambda function, operand: _node(
      function, "StopGradient", operand, T=tf.float32
    ),
  }
  # Neither is differentiated, and gradients have a larger tolerance.
  if role in ("gradient", "signature"):
    of_operands = {"operand x 1.01": _times(1.01)}
  differentiated = _live(function, _differentiated)
  taken_by = collections.defaultdict(list)
  for node in function.node_def:
    for name in graphs.operands(node):
      taken_by[graphs.node_of(name)].append(node)
  for i, node in enumerate(function.node_def):
    is_select = node.op in ("Select", "SelectV2")  # Operand 0 is bool.
    floats = "T" in node.attr and node.attr["T"].type == _FLOAT
    operands = [ops.get(graphs.node_of(x)) for x in graphs.operands(node)]
    if not (floats and operands and operands[is_select] != "Const"):
      continue
    for kind, inserted in of_operands.items():
      same = ""
      if node.op in ("Shape", "Size", "Rank", "ShapeN", "ZerosLike"):
        same = "the op reads only the shape of its operand"
      elif kind == "operand x 1.0001":
        same = _of_factor(node, taken_by)
      elif kind == "operand without gradient":
        stops = node.op == "StopGradient"
        # In inference the variance is a moving average, which is not trained.
        scope, norm, _ = node.name.partition("/batchnorm/")
        has_moments = f"{scope}/moments/SquaredDifference" in ops
        is_average = operands[0] == "Rsqrt" and norm and not has_moments
        is_dead = stops or is_average or node.name not in differentiated
        same = "no gradient passes there" if is_dead else ""
      plant = functools.partial(_insert, i=i, j=is_select, inserted=inserted)
      yield kind, f"{node.op} {node.name}", plant, same


def _of_factor(
  node: graphs.Node, taken_by: Mapping[str, Sequence[graphs.Node]]
) -> str:
  """Tells why a factor of 1.0001 has no effect; "" if it has one."""

  def is_normalized(node):
    takers = taken_by[node.name] if node.op in _KEEPS_FACTORS else ()
    return bool(takers) and all(
      is_normalized(x)
      or (x.op == "FusedBatchNormV3" and x.attr["is_training"].b)
      for x in takers
    )

  if is_normalized(node):
    return "batch normalization divides the factor out"
  if "AssignMovingAvg" in node.name:
    return "it changes an update by less than its tolerance"
  takers = {x.op for x in taken_by[node.name]}
  if node.op == "StopGradient" and takers == {"SquaredDifference"}:
    return "a variance is least at the mean, and changes by a square"
  if node.op == "GreaterEqual" or takers == {"Floor"}:
    return "it moves one random number in 10,000 past its threshold"
  return ""


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
  """Changes a node, and updates the references to its result."""
  node = function.node_def[i]
  op = node.op
  change(node)
  if node.op == op or op.startswith("Assign"):
    return
  old, new = (f"{node.name}:{_result(x)}:0" for x in (op, node.op))
  for other in function.node_def:
    other.input[:] = [new if x == old else x for x in other.input]
  for key, name in function.ret.items():
    function.ret[key] = new if name == old else name


def _result(op: str) -> str:
  """Returns the name of the first result of an op."""
  return private_api.op_def(op).output_arg[0].name


def _differentiated(node: graphs.Node) -> list[str]:
  """Returns the operands of a node that get a gradient."""
  if node.op == "StopGradient":
    return []
  # The operands are the result, which gets none, and then the inputs.
  is_custom = bool(graphs.gradient(node))
  return graphs.operands(node)[1 if is_custom else 0 :]


def _live(
  function: graphs.Function, operands: Callable[[graphs.Node], Iterable[str]]
) -> set[str]:
  """Names the nodes that the results and effects of a function depend on.

  Args:
    function: The function.
    operands: Returns the operands of a node that count. With `_differentiated`,
      which returns those that get a gradient, effects do not count.
  """
  by_name = {node.name: node for node in function.node_def}
  waiting = list(function.ret.values())
  if operands is not _differentiated:
    waiting += function.control_ret.values()
  live = set()
  while waiting:
    name = graphs.node_of(waiting.pop())
    if name in by_name and name not in live:
      live.add(name)
      waiting += operands(by_name[name])
  return live


def _of_scalars(
  function: graphs.Function,
  by_name: Mapping[str, graphs.Function],
  live: set[str],
) -> Iterator[_Change]:
  """Yields faults that drop or halve a hyperparameter in one of its uses."""
  names = set()
  for i, arg in enumerate(function.signature.input_arg):
    shapes = function.arg_attr[i].attr["_output_shapes"].list.shape
    if arg.type == _FLOAT and not shapes[0].dim and not shapes[0].unknown_rank:
      names.add(arg.name)
  for i, node in enumerate(function.node_def):
    callee = graphs.callee(node, by_name)
    for j, name in enumerate(node.input):
      if name not in names:
        continue
      argument = callee.signature.input_arg[j].name if callee else ""
      same = "" if node.name in live else _UNUSED
      if callee and not any(argument in n.input for n in callee.node_def):
        same = _IN_INFERENCE
      for kind, inserted in (("ignored", _constant), ("x 0.5", _times(0.5))):
        plant = functools.partial(_insert, i=i, j=j, inserted=inserted)
        kind = f"hyperparameter {kind} in one place"
        yield kind, f"{name} for {node.op} {node.name}", plant, same


def _insert(
  function: graphs.Function, i: int, j: int, inserted: _Insertion
) -> None:
  """Inserts nodes between node `i` and its operand `j`."""
  new = inserted(function, function.node_def[i].input[j])
  function.node_def[i].input[j] = new


def _node(
  function: graphs.Function, op: str, *inputs: str, **types: tf.DType
) -> str:
  """Adds a node to a function; returns the name of its result."""
  node = function.node_def.add(name=f"planted_{len(function.node_def)}", op=op)
  node.input[:] = inputs
  for name, dtype in types.items():
    node.attr[name].type = dtype.as_datatype_enum
  return f"{node.name}:{_result(op)}:0"


def _constant(function: graphs.Function, _: str, value: float = 0.4) -> str:
  constant = _node(function, "Const", dtype=tf.float32)
  tensor = tf.make_tensor_proto(value, tf.float32)
  function.node_def[-1].attr["value"].tensor.CopyFrom(tensor)
  return constant


def _times(factor: float) -> _Insertion:
  return lambda function, operand: _node(
    function, "Mul", operand, _constant(function, "", factor), T=tf.float32
  )


def _rounded(function: graphs.Function, operand: str) -> str:
  low = _node(function, "Cast", operand, SrcT=tf.float32, DstT=tf.bfloat16)
  return _node(function, "Cast", low, SrcT=tf.bfloat16, DstT=tf.float32)


def _of_node(
  node: graphs.Node, role: str
) -> Iterator[tuple[str, Callable[[graphs.Node], None], str]]:
  """Yields kind, change and `Fault.equivalent` of each fault in a node."""

  def replace(node):
    node.op = similar
    node.attr.pop("explicit_paddings", None)
    if similar in ("AvgPool", "MaxPool"):
      node.attr["T"].type = _FLOAT

  def bypass(node):
    node.op = "Identity"
    del node.input[1:]
    for name in set(node.attr) - {"T"}:
      del node.attr[name]

  def swap(node):
    first, second = _ORDERED[node.op]
    a, b = node.input[first], node.input[second]
    node.input[first], node.input[second] = b, a

  def seed(node):
    node.attr["seed"].i = node.attr["seed2"].i = 7

  if similar := _SIMILAR.get(node.op):
    yield f"op: {node.op} → {similar}", replace, ""
  if node.op in _BYPASSED:
    yield f"op: {node.op} left out", bypass, ""
  if node.op in _ORDERED:
    yield "operands swapped", swap, ""
  if graphs.SEEDED.match(node.op):
    yield "seed saved", seed, ""
  if node.op == "Const":
    value = tf.make_ndarray(node.attr["value"].tensor)
    is_mask = value.dtype == np.float32 and np.max(abs(value), initial=0) > 1e6
    same = "a mask takes any large number" if is_mask else ""
    for kind, change in _of_constant(value):
      yield kind, change, same or _IN_INFERENCE * (role == "signature")
  for name, value in node.attr.items():

    def change(node, name=name):
      value = node.attr[name]
      if value.f:
        value.f *= 2.0
      elif value.s:
        value.s = b"VALID" if value.s == b"SAME" else b"SAME"
      else:
        value.b = not value.b

    if value.f or name in (*_FLAGS, "padding"):
      is_pooling = name == "padding" and node.op != "Conv2D"
      same = "pooling of even sizes has no padding" * is_pooling
      yield f"attribute: {name}", change, same


def _of_constant(
  value: np.ndarray,
) -> Iterator[tuple[str, Callable[[graphs.Node], None]]]:
  if not value.size:
    return
  if value.dtype == np.float32:
    is_tiny = np.abs(value) < 1e-2  # Such as an epsilon.
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
  """Chooses `count` faults with an effect, spread evenly over all kinds.

  The choice is random, and the same for equal seeds.
  """
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


def spread(model: tf_keras.Model) -> None:
  """Adds noise to all weights, so large that every op affects the results."""
  rng = np.random.default_rng(0)
  for variable in model.variables:
    if variable.dtype == tf.float32:
      noise = rng.uniform(-0.3, 0.3, variable.shape).astype(np.float32)
      is_variance = "variance" in variable.name
      variable.assign_add(abs(noise) if is_variance else noise)
