"""Proves that a SavedModel computes the same after `slimming`.

It follows operands from the arguments of each function to the results, and
numbers the values: equal ops with equal attributes and operands get equal
numbers. It shares no code with `slimming` but the names of ops in `graphs`.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import operator
from typing import Any, NamedTuple

from exporters.reusable import graphs
from exporters.reusable import private_api
from exporters.reusable.private_api import saved_model_pb2
from exporters.reusable.private_api import types_pb2

# Attributes that do not change what an op computes.
_LEFT_OUT = (
  "_class",
  "_has_manual_control_dependencies",
  "_output_shapes",
)
_READ = "ReadVariableOp"
_UNORDERED = ("Const", "Identity", "NoOp", _READ)


def difference(
  before: saved_model_pb2.SavedModel, after: saved_model_pb2.SavedModel
) -> str:
  """Describes a difference in results or effects between two SavedModels.

  Clears what it has compared.

  Args:
    before: The SavedModel that TensorFlow wrote.
    after: The slimmed one.

  Returns:
    The difference in words, or "" if there is none.
  """
  for old, new in zip(before.meta_graphs, after.meta_graphs, strict=True):
    captured = collections.defaultdict(list)
    objects = (old.object_graph_def.nodes, new.object_graph_def.nodes)
    for pair in zip(*objects, strict=True):
      if pair[0].HasField("captured_tensor"):
        tensors = [node.captured_tensor for node in pair]
        names = [tensor.name for tensor in tensors]
        captured[tensors[0].concrete_function].append(names)
        for tensor in tensors:
          tensor.ClearField("name")
    libraries = (old.graph_def.library.function, new.graph_def.library.function)
    if len(libraries[0]) != len(libraries[1]):
      return "a function would be missing"
    for pair in zip(*libraries, strict=True):
      name = pair[0].signature.name
      if problem := _of_functions(*pair, captured[name]):
        return f"{name} would {problem}"
    # The names of ops outside of functions stay.
    names = [(node.name, node.name) for node in new.graph_def.node]
    outside = (
      graphs.Function(node_def=graph.graph_def.node) for graph in (old, new)
    )
    if problem := _of_functions(*outside, names):
      return f"the graph outside of functions would {problem}"
    for graph in (old, new):
      graph.graph_def.ClearField("node")
  return "" if before == after else "more than functions would differ"


def _of_functions(
  before: graphs.Function,
  after: graphs.Function,
  captured: Iterable[tuple[str, str]],
) -> str:
  """Describes a difference between two functions; see `difference`.

  Args:
    before: The function that TensorFlow wrote.
    after: The slimmed one.
    captured: Names of other values in both that must be equal.
  """
  keys = sorted(before.ret)
  if keys != sorted(after.ret):
    return "differ in results"
  numbers: dict[Any, int] = {}

  def number(*description: Any) -> int:
    return numbers.setdefault(description, len(numbers))

  try:
    old, new = (
      _meaning(f, [*(f.ret[key] for key in keys), *names], number)
      for f, names in (
        (before, [a for a, _ in captured]),
        (after, [b for _, b in captured]),
      )
    )
  except KeyError as e:
    return f"have no value {e}"
  except ValueError as e:
    return str(e)
  for what, a, b in zip(_Meaning._fields, old, new, strict=True):
    if a != b:
      return f"differ in {what}"
  for function in (before, after):
    _clear(function)
  return ""


class _Meaning(NamedTuple):
  """What a function does, by numbers of values.

  Attributes:
    results: The results.
    ops: All ops with a state or an effect, except reads.
    effects: The ops that a call waits for.
    order: Each op with a variable that was read before, and these reads.
  """

  results: list[int]
  ops: set[int]
  effects: frozenset[int]
  order: set[tuple[int, int, frozenset[int]]]


def _meaning(
  function: graphs.Function, results: Sequence[str], number: Callable[..., int]
) -> _Meaning:
  """Numbers the values of a function.

  Args:
    function: The function.
    results: The names of its results.
    number: Returns the number of a description.

  Raises:
    KeyError: A value is not defined.
    ValueError: Two values have one name.
  """
  nodes = {node.name: node for node in function.node_def}
  arguments = [arg.name for arg in function.signature.input_arg]
  if len(nodes.keys() | arguments) < len(function.node_def) + len(arguments):
    raise ValueError("have two values of one name")
  # By name: arguments and values that a node passes on, other nodes, the ops
  # that have run before each of them, and the reads of variables, as bits.
  values = {name: number("argument", i) for i, name in enumerate(arguments)}
  ops: dict[str, int] = {}
  waited = dict.fromkeys(arguments, frozenset())
  past = dict.fromkeys(arguments, 0)
  reads = collections.defaultdict(list)  # Numbers and bits, by variable.
  count: collections.Counter[Any] = collections.Counter()
  kept, order = set(), set()

  def value(name: str) -> int:
    node, _, output = name.partition(":")
    return values[node] if node in values else number(ops[node], output)

  ends = list(function.control_ret.values())
  for node in _in_order(nodes, [*results, *ends]):
    operands = tuple(map(value, graphs.operands(node)))
    names = [_node(x) for x in node.input]
    waits = frozenset().union(*(waited[x] for x in names[len(operands) :]))
    past[node.name] = functools.reduce(
      operator.or_, (past[x] for x in names), 0
    )
    if node.op in ("Identity", "NoOp"):
      waited[node.name] = waits.union(*(waited[x] for x in names))
      for operand in operands or [number("nothing")]:
        values[node.name] = number("late", operand, waits) if waits else operand
      continue
    described = (node.op, _attributes(node), operands, waits)
    if node.op == "Placeholder":
      described = (node.name,)
    if ordered := _is_ordered(node):
      count[described] += 1
    ops[node.name] = made = number(*described, count[described])
    if ordered:
      kept.add(made)
    waited[node.name] = (
      frozenset() if node.op in _UNORDERED else frozenset([made])
    )
    if node.op == _READ:
      past[node.name] |= 1 << len(past)
      reads[operands[0]].append((made, 1 << len(past)))
      continue
    for x in operands:
      if first := [n for n, bit in reads[x] if bit & past[node.name]]:
        order.add((made, x, frozenset(first)))
  return _Meaning(
    [value(name) for name in results],
    kept,
    frozenset().union(*(waited[name] for name in ends)),
    order,
  )


def _in_order(
  nodes: Mapping[str, graphs.Node], ends: Iterable[str]
) -> Iterator[graphs.Node]:
  """Yields nodes after those that they need, in the order of the function."""
  first = [name for name, node in nodes.items() if _is_ordered(node)]
  done = set()
  for root in [*first, *map(_node, ends)]:
    waiting = [(root, False)]
    while waiting:
      name, is_ready = waiting.pop()
      if name not in nodes or name in done:
        continue
      if is_ready:
        done.add(name)
        yield nodes[name]
      else:
        waiting.append((name, True))
        waiting += [(_node(x), False) for x in reversed(nodes[name].input)]


def _node(name: str) -> str:
  return name.removeprefix("^").partition(":")[0]


def _attributes(node: graphs.Node) -> tuple[tuple[str, bytes], ...]:
  """Returns the attributes that change what an op computes."""
  left_out = (*_LEFT_OUT, *graphs.SEEDS)
  if not graphs.SEEDED.match(node.op):
    left_out = _LEFT_OUT
  return tuple(
    (name, node.attr[name].SerializeToString(deterministic=True))
    for name in sorted(node.attr)
    if name not in left_out
  )


def _is_ordered(node: graphs.Node) -> bool:
  """Tells whether two equal ops may have different results or effects."""
  return node.op not in _UNORDERED and private_api.is_stateful(node.op)


def _clear(function: graphs.Function) -> None:
  """Clears what `_meaning` reads, and names and shapes of variables."""
  for field in ("node_def", "ret", "control_ret"):
    function.ClearField(field)
  function.signature.ClearField("control_output")
  for i, arg in enumerate(function.signature.input_arg):
    if arg.type == types_pb2.DT_RESOURCE:
      arg.ClearField("name")
      arg.ClearField("handle_data")
      function.arg_attr[i].attr.pop("_user_specified_name", None)
