"""Proves that a SavedModel computes the same after `slimming`.

It follows operands from the arguments of each function to the results, and
numbers the values: equal ops with equal attributes and operands get equal
numbers. It shares no code with `slimming` but the names of ops in `graphs`.
"""

import collections
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import functools
import operator
from typing import Any, NamedTuple

from exporters.reusable import graphs
from exporters.reusable import private_api
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import saved_model_pb2
from exporters.reusable.private_api import types_pb2

# Attributes that do not change what an op computes.
_LEFT_OUT = (
  graphs.GRADIENT,
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

  A call of a function that only `after` has counts as the function's nodes.
  Changes both SavedModels: the parts that it has compared are cleared.

  Args:
    before: The SavedModel that TensorFlow wrote.
    after: The slimmed SavedModel.

  Returns:
    The difference in words, or "" if there is none.
  """
  numbers: dict[Any, int] = {}

  def number(*description: Any) -> int:
    return numbers.setdefault(description, len(numbers))

  for pair in zip(before.meta_graphs, after.meta_graphs, strict=True):
    known = graphs.functions(pair[0].graph_def)
    old, new = (_Reader(meta_graph, known, number) for meta_graph in pair)
    gone = known.keys() - new.functions.keys()
    if not gone.issubset(old.gradients.values()):
      return "a function would be missing"
    # The names of ops outside of functions stay.
    outside = [node.name for node in pair[1].graph_def.node]
    for name in [*(known.keys() - gone), ""]:
      where = name or "the graph outside of functions"
      try:
        if name:
          meanings = old.meaning(name), new.meaning(name)
        else:
          meanings = old.outside(outside), new.outside(outside)
      except KeyError as e:
        return f"{where} would have no value {e}"
      except ValueError as e:
        return f"{where} would {e}"
      for what, a, b in zip(_Meaning._fields, *meanings, strict=True):
        if a != b:
          return f"{where} would differ in {what}"
    old.clear(gone)
    new.clear(new.functions.keys() - known)
  return "" if before == after else "more than functions would differ"


class _Meaning(NamedTuple):
  """The behavior of a function. All values and ops are numbers.

  Attributes:
    keys: The names of the results.
    results: The results.
    ops: All ops with a state or an effect, except reads.
    effects: The ops that a call waits for.
    order: Each op with a variable that was read before, the variable, and these
      reads.
    gradients: Each op with a custom gradient, and the values that the gradient
      captures.
  """

  keys: list[str]
  results: list[int]
  ops: set[int]
  effects: frozenset[int]
  order: set[tuple[int, int, frozenset[int]]]
  gradients: set[tuple[int, ...]]


# By the name of an op with a custom gradient: the number of the gradient's
# function, and the names of the values that it captures.
_Captured = dict[str, tuple[int, list[str]]]


class _Reader:
  """Reads the functions of a SavedModel.

  Attributes:
    functions: The functions, by name.
    gradients: The functions of custom gradients, by the type of the gradient.
  """

  def __init__(
    self,
    meta_graph: meta_graph_pb2.MetaGraphDef,
    known: Collection[str],
    number: Callable[..., int],
  ):
    """Reads a SavedModel.

    Args:
      meta_graph: The graph, its functions and its objects.
      known: Names of functions. A call of any other function counts as that
        function's nodes.
      number: Returns the number of a description.
    """
    self._meta_graph, self._number = meta_graph, number
    self.functions = graphs.functions(meta_graph.graph_def)
    self.gradients = {
      g.registered_op_type: g.gradient_func
      for g in meta_graph.graph_def.library.registered_gradients
    }
    self._added = {k: f for k, f in self.functions.items() if k not in known}
    self.meaning = functools.cache(self.meaning)

  def meaning(self, name: str) -> _Meaning:
    """Numbers the values of a function.

    Raises:
      KeyError: A value is not defined.
      ValueError: Two values have one name, or a call waits for an op.
    """
    return _meaning(*self._flat(self.functions[name]), self._number)

  def outside(self, names: Iterable[str]) -> _Meaning:
    """Numbers the values of ops outside of functions, like `meaning`."""
    function = graphs.Function(node_def=self._meta_graph.graph_def.node)
    for name in names:
      function.ret[name] = name
    _check_names(function)
    return _meaning(function, {}, self._number)

  def _flat(
    self, function: graphs.Function
  ) -> tuple[graphs.Function, _Captured]:
    """Replaces each call of an added function by the nodes of that function."""
    flat = graphs.Function(signature=function.signature)
    captured: _Captured = {}
    instead: dict[str, list[str]] = {}  # By results and ends of calls.

    def add(
      body: graphs.Function, scope: str, operands: Mapping[str, str]
    ) -> Callable[[str], str]:
      def renamed(x: str) -> str:
        wait = "^" * x.startswith("^")
        return operands.get(x) or f"{wait}{scope}{x.removeprefix('^')}"

      _check_names(body)
      for node in body.node_def:
        name, inputs = scope + node.name, list(map(renamed, node.input))
        if callee := graphs.callee(node, self._added):
          if any(x.startswith("^") for x in inputs):
            raise ValueError("wait for an op before a call")
          names = (arg.name for arg in callee.signature.input_arg)
          inner = add(callee, f"{name}/", dict(zip(names, inputs, strict=True)))
          ends = sorted(callee.control_ret.values())
          instead[f"^{name}"] = [inner(f"^{x}") for x in ends]
          for i, result in enumerate(callee.signature.output_arg):
            instead[f"{name}:output:{i}"] = [inner(callee.ret[result.name])]
          continue
        copy = flat.node_def.add()
        copy.CopyFrom(node)
        copy.name, copy.input[:] = name, inputs
        if function := self.gradients.get(graphs.gradient(node)):
          names, others = self._captures(function, body)
          meaning = map(_frozen, self.meaning(function))
          number = self._number("gradient", others, *meaning)
          captured[name] = (number, list(map(renamed, names)))
      return renamed

    add(
      function, "", {arg.name: arg.name for arg in function.signature.input_arg}
    )

    def resolved(x: str) -> list[str]:
      return (
        [z for y in instead[x] for z in resolved(y)] if x in instead else [x]
      )

    for node in flat.node_def:
      node.input[:] = [y for x in node.input for y in resolved(x)]
    for key, x in function.ret.items():
      (flat.ret[key],) = resolved(x)
    for key, x in function.control_ret.items():
      for i, y in enumerate(resolved(f"^{x}")):
        flat.control_ret[f"{key}:{i}"] = y.removeprefix("^")
    for _, names in captured.values():
      names[:] = [y for x in names for y in resolved(x)]
    return flat, captured

  def _captures(
    self, gradient: str, function: graphs.Function
  ) -> tuple[list[str], tuple[Any, ...]]:
    """Returns the values that a custom gradient captures.

    Args:
      gradient: The name of its function.
      function: The function that has the op.

    Returns:
      The names of the captured values in the function, and the captures from
      elsewhere. Those are numbers of objects, and names of functions, whose
      values verification compares.
    """
    objects = self._meta_graph.object_graph_def
    nodes = {node.name: node for node in function.node_def}
    names, others = [], []
    for i in objects.concrete_functions[gradient].bound_inputs:
      tensor = objects.nodes[i].captured_tensor
      if not tensor.concrete_function:
        # Captured Tensors do not count, because slimming may leave fewer.
        before = (x.HasField("captured_tensor") for x in objects.nodes[:i])
        others.append(i - sum(before))
        continue
      if tensor.concrete_function != function.signature.name:
        others.append(tensor.concrete_function)
        continue
      name, _, place = tensor.name.partition(":")
      if name in nodes:
        outputs = list(graphs.outputs(nodes[name]))
        name = outputs[int(place)][0]
      names.append(name)
    return names, tuple(others)

  def clear(self, gone: Collection[str]) -> None:
    """Clears what `meaning` reads, and removes the functions `gone`."""
    library = self._meta_graph.graph_def.library
    objects = self._meta_graph.object_graph_def
    self._meta_graph.graph_def.ClearField("node")
    for name in gone:
      objects.concrete_functions.pop(name, None)
    for name in self.gradients.values():
      if name not in gone:
        objects.concrete_functions[name].ClearField("bound_inputs")
    captured = [
      i for i, x in enumerate(objects.nodes) if x.HasField("captured_tensor")
    ]
    graphs.remove_objects(objects, captured)
    for field, names in (
      (library.registered_gradients, self.gradients.values()),
      (library.function, self.functions),
    ):
      for i, name in reversed(list(enumerate(names))):
        if name in gone:
          del field[i]
    for function in library.function:
      _clear(function)


def _frozen(field: Any) -> Any:
  return frozenset(field) if isinstance(field, set) else tuple(field)


def _check_names(function: graphs.Function) -> None:
  """Raises a ValueError if two values in a function have one name."""
  names = [x.name for x in (*function.signature.input_arg, *function.node_def)]
  if len(set(names)) < len(names):
    raise ValueError("have two values of one name")


def _meaning(
  function: graphs.Function,
  captured: _Captured,
  number: Callable[..., int],
) -> _Meaning:
  """Numbers the values of a function.

  Args:
    function: The function.
    captured: What its custom gradients compute and capture.
    number: Returns the number of a description.

  Raises:
    KeyError: A value is not defined.
  """
  keys = sorted(function.ret)
  results = [function.ret[key] for key in keys]
  nodes = {node.name: node for node in function.node_def}
  arguments = [arg.name for arg in function.signature.input_arg]
  # By name. `values`: numbers of arguments, and of nodes that pass on a value.
  # `ops`: numbers of other nodes. `waited`: the ops that have run after a wait
  # for the name. `past`: the reads of variables that ran before, as bits.
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
  needed = [x for _, names in captured.values() for x in names]
  for node in _in_order(nodes, [*results, *ends, *needed]):
    operands = tuple(map(value, graphs.operands(node)))
    names = [graphs.node_of(x) for x in node.input]
    waits = frozenset().union(*(waited[x] for x in names[len(operands) :]))
    past[node.name] = functools.reduce(
      operator.or_, map(past.__getitem__, names), 0
    )
    if node.op in ("Identity", "NoOp"):
      waited[node.name] = waits.union(*(waited[x] for x in names))
      for operand in operands or [number("nothing")]:
        values[node.name] = number("late", operand, waits) if waits else operand
      continue
    gradient, _ = captured.get(node.name, (None, ()))
    described = (node.op, _attributes(node), gradient, operands, waits)
    if node.op == "Placeholder":
      described = (node.name,)
    if ordered := _is_ordered(node):
      count[described] += 1
    ops[node.name] = made = number(*described, count[described])
    if ordered:
      kept.add(made)
    is_waited_for = node.op not in _UNORDERED
    waited[node.name] = frozenset([made] * is_waited_for)
    if node.op == _READ:
      past[node.name] |= 1 << len(past)
      reads[operands[0]].append((made, 1 << len(past)))
      continue
    for x in operands:
      if first := [n for n, bit in reads[x] if bit & past[node.name]]:
        order.add((made, x, frozenset(first)))
  gradients = {
    (ops[name], *map(value, names))
    for name, (_, names) in captured.items()
    if name in ops
  }
  effects = frozenset().union(*(waited[name] for name in ends))
  return _Meaning(
    keys, list(map(value, results)), kept, effects, order, gradients
  )


def _in_order(
  nodes: Mapping[str, graphs.Node], ends: Iterable[str]
) -> Iterator[graphs.Node]:
  """Yields nodes after those that they need, in the order of the function."""
  first = [name for name, node in nodes.items() if _is_ordered(node)]
  done = set()
  for root in [*first, *map(graphs.node_of, ends)]:
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
        waiting += [
          (graphs.node_of(x), False) for x in reversed(nodes[name].input)
        ]


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
