"""Removes what no reader of a SavedModel uses.

More than half of the `saved_model.pb` that TensorFlow writes is names, shapes
and control dependencies that the loader infers. A smaller file loads faster.
"""

import collections
from collections.abc import Callable, Collection
import itertools
import os
import pathlib
from typing import Any

from exporters.reusable import graphs
from exporters.reusable import inlining
from exporters.reusable import outlining
from exporters.reusable import private_api
from exporters.reusable import slimming_check
from exporters.reusable.private_api import graph_pb2
from exporters.reusable.private_api import saved_model_pb2
from exporters.reusable.private_api import types_pb2

_WRITES = ("AssignAddVariableOp", "AssignSubVariableOp", "AssignVariableOp")
_SHAPES = "_output_shapes"


def slim(export_dir: str) -> list[str]:
  """Shrinks the `saved_model.pb` of a SavedModel; updates its fingerprint.

  The results of all functions stay the same. This function removes:

  - Identity ops, and ops without effects that a function does not use or has
    twice. In training, Keras' batch normalization reads its averages twice; in
    inference it computes the batch size and does not use it;
  - shapes that the loader infers from an op and its inputs. Shapes that Python
    code may have set stay: those of results and of reshaped Tensors;
  - control dependencies of a function's outputs on reads of variables. An op
    that writes a variable depends on its earlier reads anyway;
  - long names of a function's variables, of the ops that read them and of
    constants, and the shapes of variables that are only passed to other
    functions;
  - the name scope that all names in a function share;
  - seeds of random ops. With them, every process that loads the SavedModel, and
    every replica, would drop the same units;
  - the functions that save, restore and serve. Their ops move, as `inlining`
    explains;
  - ops that the layers of a stack have in common: they become a function that
    is called once per layer, as `outlining` explains;
  - unused reads of variables outside of functions.

  If `slimming_check` finds that a function would compute something else, the
  file stays unchanged, and the reason is printed. No known model causes this.

  Args:
    export_dir: The directory of the SavedModel.

  Returns:
    Notes for the verification report: the reason, or nothing.
  """
  path = pathlib.Path(export_dir, "saved_model.pb")
  saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  for meta_graph in saved_model.meta_graphs:
    graph = meta_graph.graph_def
    inlining.inline(meta_graph)
    for function in graph.library.function:
      _remove_waiting_for_reads(function)
      _remove_seeds(function)
    outlining.outline(meta_graph)
    _slim_top_level(graph)
    # Tensors of functions that the gradients of custom_gradients capture.
    captured = [
      node.captured_tensor
      for node in meta_graph.object_graph_def.nodes
      if node.HasField("captured_tensor")
    ]
    renamed = {}
    for function in graph.library.function:
      name = function.signature.name
      _remove_known_shapes(function)
      _remove_needless(
        function,
        [
          graphs.node_of(t.name)
          for t in captured
          if t.concrete_function == name
        ],
      )
      renamed[name] = _shorten_names(function)
    for tensor in captured:
      tensor.name = renamed[tensor.concrete_function](tensor.name)
  slimmed = saved_model.SerializeToString(deterministic=True)
  before = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  for meta_graph in before.meta_graphs:
    inlining.inline(meta_graph)
  if problem := slimming_check.difference(before, saved_model):
    note = f"saved_model.pb stays as TensorFlow wrote it: {problem}"
    print(f"  - {note}")
    return [note]
  path.write_bytes(slimmed)
  private_api.write_fingerprint(export_dir)
  return []


def _slim_top_level(graph: graph_pb2.GraphDef) -> None:
  """Removes unused reads of variables, and shapes that the loader infers."""
  used = {graphs.node_of(name) for node in graph.node for name in node.input}
  _remove(graph.node, lambda n: n.op == "ReadVariableOp" and n.name not in used)
  for node in graph.node:
    if node.op not in graphs.CALLS:
      node.attr.pop(_SHAPES, None)
      node.attr.pop("_has_manual_control_dependencies", None)


def _remove_waiting_for_reads(function: graphs.Function) -> None:
  """Drops control dependencies on reads of variables."""
  ops = {node.name: node.op for node in function.node_def}
  for key, name in list(function.control_ret.items()):
    if ops[name] in graphs.PURE:
      del function.control_ret[key]
  reads = {name for name, op in ops.items() if op == "ReadVariableOp"}
  for node in function.node_def:
    if node.op in ("Identity", "NoOp"):
      _remove_waiting(node, reads)
  returned = function.control_ret.values()
  empty = {
    node.name
    for node in function.node_def
    if node.op == "NoOp" and not node.input and node.name not in returned
  }
  for node in function.node_def:
    _remove_waiting(node, empty)


def _remove_known_shapes(function: graphs.Function) -> None:
  """Removes shapes that the loader infers, except in calls; see `slim`."""
  resources = {
    arg.name: arg
    for arg in function.signature.input_arg
    if arg.type == types_pb2.DT_RESOURCE
  }
  handed_on = set(resources)
  returned = {graphs.node_of(name) for name in function.ret.values()}
  for node in function.node_def:
    taken = resources.keys() & set(node.input)
    if node.op not in graphs.CALLS:
      handed_on -= taken
    if not (
      (taken and node.op not in _WRITES)
      or node.op == "Reshape"
      or node.name in returned
      or any(a.HasField("func") for a in node.attr.values())
    ):
      node.attr.pop(_SHAPES, None)
  for name in handed_on:
    resources[name].ClearField("handle_data")


def _remove_seeds(function: graphs.Function) -> None:
  for node in function.node_def:
    if graphs.SEEDED.match(node.op):
      for name in graphs.SEEDS:
        node.attr.pop(name, None)


def _remove_needless(
  function: graphs.Function, captured: Collection[str]
) -> None:
  """Removes Identity ops, and ops that are duplicate or not used.

  Keeps nodes that are returned, that other nodes are colocated with, that other
  functions use (`captured`), and Identity ops that copy between devices.
  """
  kept = {*captured, *map(graphs.node_of, function.ret.values())}
  waited_for = set()
  taken_on = collections.defaultdict(set)
  for node in function.node_def:
    kept.update(graphs.colocated(node))
    waited_for.update(
      graphs.node_of(name) for name in node.input if name[0] == "^"
    )
    for name in node.input:
      taken_on[graphs.node_of(name)].add(node.device)

  instead: dict[str, str] = {}  # By the name of a Tensor or of a node.
  firsts: dict[bytes, str] = {}
  for node in function.node_def:
    _replace_inputs(node, instead)
    if node.name in kept or node.op not in graphs.PURE:
      pass
    elif node.op != "Identity":
      like = graphs.Node()
      like.CopyFrom(node)
      like.ClearField("name")
      first = firsts.setdefault(
        like.SerializeToString(deterministic=True), node.name
      )
      if first != node.name:
        instead[node.name] = first
    elif (
      node.name not in waited_for
      and len(node.input) == 1
      and (not node.device or {node.device} == taken_on[node.name])
    ):
      instead[f"{node.name}:output:0"] = node.input[0]
  for node in function.node_def:
    _replace_inputs(node, instead)

  used = collections.Counter(
    graphs.node_of(name) for node in function.node_def for name in node.input
  )
  # Backwards, because an op is used only by later ops.
  for i in reversed(range(len(function.node_def))):
    node = function.node_def[i]
    if node.op in graphs.PURE and not used[node.name] and node.name not in kept:
      used.subtract(map(graphs.node_of, node.input))
      del function.node_def[i]


def _replace_inputs(node: graphs.Node, instead: dict[str, str]) -> None:
  inputs: dict[str, list[str]] = {"": [], "^": []}
  for name in node.input:
    while (known := name in instead) or graphs.node_of(name) in instead:
      if known:
        name = instead[name]
      else:
        name = graphs.with_node(name, instead[graphs.node_of(name)])
    inputs["^" * (name[0] == "^")].append(name)
  node.input[:] = [*inputs[""], *dict.fromkeys(inputs["^"])]


def _shorten_names(function: graphs.Function) -> Callable[[str], str]:
  """Shortens names in a function; returns the function that renames them."""
  names = [node.name for node in function.node_def]
  scoped = [os.path.dirname(name) for name in names if "/" in name]
  scope = f"{os.path.commonpath(scoped)}/" if scoped else ""
  new = {name: name.removeprefix(scope) for name in names}
  inputs = {arg.name for arg in function.signature.input_arg}
  if len(inputs.union(new.values())) < len(inputs) + len(new):
    new = dict(zip(names, names, strict=True))
  taken = inputs.union(new.values())
  free = (name for i in itertools.count() if (name := f"v{i}") not in taken)
  for i, arg in enumerate(function.signature.input_arg):
    if arg.type == types_pb2.DT_RESOURCE:
      new[arg.name] = arg.name = next(free)
      function.arg_attr[i].attr.pop("_user_specified_name", None)
  for node in function.node_def:
    if node.op in ("Const", "ReadVariableOp"):
      new[node.name] = next(free)

  def rename(name: str) -> str:
    node = graphs.node_of(name)
    return graphs.with_node(name, new.get(node, node))

  for node in function.node_def:
    node.name = rename(node.name)
    node.input[:] = map(rename, node.input)
    if "_class" in node.attr:
      node.attr["_class"].list.s[:] = [
        f"loc:@{rename(name)}".encode() for name in graphs.colocated(node)
      ]
  # A list, because iteration over a changing protobuf map skips items.
  for key, name in list(function.ret.items()):
    function.ret[key] = rename(name)
  ends = {rename(k): rename(v) for k, v in function.control_ret.items()}
  function.control_ret.clear()
  function.control_ret.update(ends)
  function.signature.control_output[:] = sorted(ends)
  return rename


def _remove_waiting(node: graphs.Node, names: Collection[str]) -> None:
  _remove(node.input, lambda name: name[0] == "^" and name[1:] in names)


def _remove(field: Any, is_left_out: Callable[[Any], bool]) -> None:
  for i in reversed(range(len(field))):
    if is_left_out(field[i]):
      del field[i]
