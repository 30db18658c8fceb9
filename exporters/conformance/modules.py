"""Derives the graph of modules in a SavedModel from name scopes of a call."""

from collections.abc import Iterable, Mapping
import re
from typing import Any

import tensorflow as tf

from exporters.conformance import subject as subject_lib
from exporters.reusable import graphs

_MOST = 40  # Most modules. More are merged into their outer scopes.
_DEEPEST = 8
_LONGEST = 200  # Most characters of a name.
_READ = "ReadVariableOp"
_OF_SIZES = re.compile(
  "Cast|ConcatV2|GatherV2|Pack|Prod|Range|Shape|StridedSlice|Sub"
)
# Ops that belong to no module if they are outside of any name scope.
_PLAIN = frozenset(["Const", "Identity", "NoOp", "Placeholder", _READ])


def collect(subject: subject_lib.Subject) -> list[dict[str, Any]]:
  """Returns the modules of a call in inference, in the order of their ops.

  A module is a dict of its `name`, the shape of its `output` or None, the
  number of its `parameters`, their `bytes`, and `after`, the indices of the
  modules that feed it. A shared variable counts in each module that uses it.
  """
  if not subject.traces:
    return []
  trace = next(filter(_infers, subject.traces), subject.traces[0])
  graph = trace.graph.as_graph_def(add_shapes=True)
  by_name, nodes = graphs.functions(graph), list(graph.node)
  handles = {id(v.handle): v for v in trace.variables}
  held = {
    inside.op.name: handles[id(outside)]
    for outside, inside in trace.graph.captures
    if id(outside) in handles
  }
  # The call of a Keras model only calls another function.
  while len(rest := [n for n in nodes if n.op not in _PLAIN]) == 1:
    function = graphs.callee(rest[0], by_name)
    if not function:
      break
    arguments = [arg.name for arg in function.signature.input_arg]
    given = map(graphs.node_of, graphs.operands(rest[0]))
    pairs = zip(arguments, given, strict=True)
    held = {name: held[x] for name, x in pairs if x in held}
    nodes = list(function.node_def)
  return _grouped(nodes, held)


def _infers(trace: Any) -> bool:
  positional, named = trace.structured_input_signature
  return not any(value is True for value in (*positional, *named.values()))


def _grouped(
  nodes: Iterable[graphs.Node], held: Mapping[str, tf.Variable]
) -> list[dict[str, Any]]:
  """Groups nodes by name scopes; `held` maps inputs to their variables."""
  held = dict(held)
  for node in nodes:
    if node.op == _READ and (operand := graphs.node_of(node.input[0])) in held:
      held[node.name] = held[operand]
  inside = [n for n in nodes if n.op not in ("Const", _READ)]
  inside = [n for n in inside if "/" in n.name or n.op not in _PLAIN]
  for depth in range(_DEEPEST, 0, -1):
    scope = {n.name: _scope(n, depth) for n in inside}
    names = list(dict.fromkeys(scope.values()))
    if len(names) <= _MOST:
      break
  found = {
    name: {"name": name[:_LONGEST], "output": None, "after": []}
    for name in names[:_MOST]
  }
  used: dict[str, dict[int, tf.Variable]] = {name: {} for name in found}
  order = {name: i for i, name in enumerate(found)}
  by_name = {n.name: n for n in inside}
  for node in inside:
    here = scope[node.name]
    if here not in found:
      continue
    for operand in map(graphs.node_of, graphs.operands(node)):
      if operand in held:
        used[here][id(held[operand])] = held[operand]
      there = scope.get(operand, here)
      if there != here and there in found and not _sizes(by_name[operand]):
        found[there]["output"] = _shape(by_name[operand])
        if order[there] not in found[here]["after"]:
          found[here]["after"].append(order[there])
    if not found[here]["output"]:
      found[here]["output"] = _shape(node)
  for name, module in found.items():
    sizes = [(v.shape.num_elements() or 0, v) for v in used[name].values()]
    module["parameters"] = sum(n for n, _ in sizes)
    module["bytes"] = sum(n * v.dtype.size for n, v in sizes)
  return _connected(list(found.values()))


def _connected(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Drops modules that have neither parameters nor connections."""
  before = {i for module in modules for i in module["after"]}
  kept = [
    i
    for i, module in enumerate(modules)
    if module["parameters"] or module["after"] or i in before
  ]
  for i in kept:
    modules[i]["after"] = [kept.index(j) for j in modules[i]["after"]]
  return [modules[i] for i in kept]


def _sizes(node: graphs.Node) -> bool:
  """Returns whether a node computes a shape or size."""
  shape = _shape(node)
  rank = None if shape is None else len(shape)
  return rank == 0 or bool(rank == 1 and _OF_SIZES.fullmatch(node.op))


def _scope(node: graphs.Node, depth: int) -> str:
  """Returns the name scope of a node. That of a call is the call's name."""
  parts = node.name.split("/")
  if node.op not in graphs.CALLS:
    parts.pop()
  return "/".join(parts[:depth]) or node.name


def _shape(node: graphs.Node) -> list[int | None] | None:
  shapes = node.attr["_output_shapes"].list.shape
  shape = tf.TensorShape(shapes[0] if shapes else None)
  return None if shape.rank is None else shape.as_list()
