"""Replaces repeated nodes in a SavedModel by calls of one function.

For example, the twelve layers of an encoder differ only in their weights. As
one function with twelve calls, the layer is imported once when the SavedModel
is loaded, and differentiated once when it is trained.
"""

from __future__ import annotations

import collections
from collections.abc import (
  Collection,
  Hashable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import heapq
import itertools
import re
from typing import Any, NamedTuple

from exporters.reusable import graphs
from exporters.reusable import private_api
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import types_pb2

# The minimum number of nodes in a function, and of nodes that it must save.
# Functions that save fewer make the first train step slower, as measured with
# ResNet-50.
_LEAST_NODES = 10
_LEAST_SAVED = 150
_FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
_OF_SHAPES = (types_pb2.DT_INT32, types_pb2.DT_INT64)
_CONTEXT = "_construction_context"
_INPUT_SHAPES = "_input_shapes"
_SHAPES = "_output_shapes"


class _Tensor(NamedTuple):
  """A Tensor in a function.

  Attributes:
    dtype: The number of its data type.
    shape: The message of its shape.
    handle: For a resource, the messages of its variables' dtypes and shapes.
  """

  dtype: int
  shape: Any
  handle: tuple[Any, ...] = ()


class _Gradient(NamedTuple):
  """A custom gradient.

  Attributes:
    body: The function in bytes, or the gradient's type if it captures more than
      Tensors.
    captured: Messages of the Tensors that it captures.
  """

  body: bytes
  captured: list[Any]


class _Piece(NamedTuple):
  """Consecutive nodes of a function that share a name scope.

  Attributes:
    caller: The function.
    scope: The name scope.
    places: The name of the function with the index of each node in it.
    nodes: The nodes.
    arguments: Tensors that the nodes and their gradients take from elsewhere.
    results: Tensors of the nodes that are used elsewhere.
    effects: Names of nodes that a call of `caller` waits for.
    gradients: The types of the custom gradients.
    names: The names of Tensors in functions, by their names in graphs.
    key: Describes what the nodes compute. One function can replace pieces of
      equal key.
  """

  caller: graphs.Function
  scope: str
  places: list[tuple[str, int]]
  nodes: list[graphs.Node]
  arguments: dict[str, _Tensor]
  results: dict[str, _Tensor]
  effects: list[str]
  gradients: list[str]
  names: Mapping[str, str]
  key: Hashable


def outline(meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
  """Replaces repeated nodes by calls of one function.

  The nodes of a name scope, such as a layer's, become a function if another
  scope has equal nodes, with the same ops, attributes, inputs and custom
  gradients. Sizes in shapes, such as those of variables, may differ. The nodes
  stay in place if they have control inputs from elsewhere, must share a device
  with other nodes, or compute integers for other nodes.

  Args:
    meta_graph: The functions and objects as TensorFlow saved them. Changed in
      place.
  """
  library = meta_graph.graph_def.library
  gradients = _gradients(meta_graph)
  same: dict[Hashable, list[_Piece]] = {}
  largest: list[tuple[int, int, Hashable]] = []

  def read(function: graphs.Function) -> None:
    for piece in _pieces(function, gradients):
      if piece.key not in same:
        same[piece.key] = []
        # Size, then discovery: this order gives two exports the same bytes.
        order = (-len(piece.nodes), len(same), piece.key)
        heapq.heappush(largest, order)
      same[piece.key].append(piece)

  for function in library.function:
    read(function)
  taken: set[tuple[str, int]] = set()
  instead = collections.defaultdict(dict)
  unused = set()
  while largest:
    size, number, key = heapq.heappop(largest)
    pieces = [p for p in same[key] if taken.isdisjoint(p.places)]
    if (1 - len(pieces)) * size < _LEAST_SAVED:
      continue
    layer = re.sub(r"\W", "_", pieces[0].scope.split("/")[-1])
    name = f"__inference_{layer}_outlined_{number}"
    function = _function(name, pieces, gradients)
    for i, piece in enumerate(pieces):
      taken.update(piece.places)
      instead[piece.caller.signature.name].update(_call(piece, function))
      unused.update(piece.gradients if i else ())
    library.function.append(function)
    read(library.function[-1])  # Its parts may repeat elsewhere.
  for function in library.function:
    _rename(function, instead[function.signature.name])
  _remove_gradients(meta_graph, unused)


def _rename(function: graphs.Function, new: Mapping[str, str]) -> None:
  """Renames Tensors and nodes in the inputs of nodes and in the results."""
  for node in function.node_def if new else ():
    inputs = [new.get(x, x) for x in node.input]
    waits = dict.fromkeys(x for x in inputs if x[0] == "^")
    node.input[:] = [*(x for x in inputs if x[0] != "^"), *waits]
  for key, tensor in list(function.ret.items()):
    function.ret[key] = new.get(tensor, tensor)


def _gradients(
  meta_graph: meta_graph_pb2.MetaGraphDef,
) -> dict[str, _Gradient]:
  """Returns the custom gradients, by their types."""
  objects = meta_graph.object_graph_def
  by_name = graphs.functions(meta_graph.graph_def)
  gradients = {}
  for gradient in meta_graph.graph_def.library.registered_gradients:
    name, op_type = gradient.gradient_func, gradient.registered_op_type
    inputs = objects.concrete_functions[name].bound_inputs
    nodes = [objects.nodes[i] for i in inputs]
    captured = [
      node.captured_tensor for node in nodes if node.HasField("captured_tensor")
    ]
    body = op_type.encode()
    if len(captured) == len(nodes):
      body = _without_names(by_name[name])
    gradients[op_type] = _Gradient(body, captured)
  return gradients


def _without_names(function: graphs.Function) -> bytes:
  """Serializes a function without the names of the function and arguments."""
  copy = graphs.Function()
  copy.CopyFrom(function)
  copy.signature.name = ""
  copy.arg_attr.clear()
  new = {arg.name: f"{i}" for i, arg in enumerate(copy.signature.input_arg)}
  for arg in copy.signature.input_arg:
    arg.name = new[arg.name]
  for node in copy.node_def:
    node.input[:] = [new.get(x, x) for x in node.input]
  for key, tensor in list(copy.ret.items()):
    copy.ret[key] = new.get(tensor, tensor)
  return copy.SerializeToString(deterministic=True)


def _pieces(
  function: graphs.Function,
  gradients: Mapping[str, _Gradient],
) -> Iterator[_Piece]:
  """Yields the pieces of a function that another function could replace."""
  if any(node.op == "Merge" for node in function.node_def):
    return
  caller = _Caller(function, gradients)
  scopes = [node.name.split("/")[:-1] for node in function.node_def]
  seen = set()
  for depth in range(1, 1 + max(map(len, scopes), default=0)):
    place = 0
    for scope, same in itertools.groupby(
      "/".join(scope[:depth]) if len(scope) >= depth else "" for scope in scopes
    ):
      run = (place, place := place + len(list(same)))
      if scope and place - run[0] >= _LEAST_NODES and run not in seen:
        seen.add(run)
        if piece := caller.piece(scope, *run):
          yield piece


class _Caller:
  """A function, read once for all its pieces."""

  def __init__(
    self,
    function: graphs.Function,
    gradients: Mapping[str, _Gradient],
  ):
    self._function = function
    self._gradients = gradients
    self._nodes = list(function.node_def)
    self._described = {
      node.name: _described(node, self._gradient(node)) for node in self._nodes
    }
    # By name in functions: NODE:OUTPUT:INDEX, or the name of an argument.
    self._tensors: dict[str, _Tensor] = {}
    # From names in graphs, NODE:INDEX, to names in functions.
    self._names: dict[str, str] = {}
    shapes = function.attr[_INPUT_SHAPES].list.shape
    for arg, shape in zip(function.signature.input_arg, shapes, strict=False):
      self._names[f"{arg.name}:0"] = arg.name
      handle = tuple(arg.handle_data)
      self._tensors[arg.name] = _Tensor(arg.type, shape, handle)
    # By node: the index of each node that uses or waits for it, and the input.
    self._users = collections.defaultdict(list)
    for i, node in enumerate(self._nodes):
      for x in node.input:
        self._users[graphs.node_of(x)].append((i, x))
      # Users that must stay in one function with the node.
      apart = [graphs.node_of(x.name) for x in self._captured(node)]
      for x in (*apart, *graphs.colocated(node)):
        self._users[x].append((i, ""))
      shapes = node.attr[_SHAPES].list.shape if _SHAPES in node.attr else ()
      outputs = graphs.outputs(node)
      for j, ((name, dtype), shape) in enumerate(
        zip(outputs, shapes, strict=False)
      ):
        self._names[f"{node.name}:{j}"] = name
        self._tensors[name] = _Tensor(dtype, shape)
    own = set(map(graphs.gradient, self._nodes))
    for tensor in itertools.chain(
      *(g.captured for op_type, g in gradients.items() if op_type not in own)
    ):
      if tensor.concrete_function == function.signature.name:
        self._users[graphs.node_of(tensor.name)].append((-1, ""))
    for x in function.ret.values():
      self._users[graphs.node_of(x)].append((len(self._nodes), x))
    for x in function.control_ret.values():
      self._users[x].append((len(self._nodes), f"^{x}"))

  def _gradient(self, node: graphs.Node) -> _Gradient | None:
    return self._gradients.get(graphs.gradient(node))

  def _captured(self, node: graphs.Node) -> list[Any]:
    gradient = self._gradient(node)
    return gradient.captured if gradient else []

  def piece(self, scope: str, start: int, end: int) -> _Piece | None:
    """Returns nodes as a piece, or None if no function can replace them."""
    run = range(start, end)
    nodes = [self._nodes[i] for i in run if not _is_lifted(self._nodes[i])]
    inside = {node.name: i for i, node in enumerate(nodes)}
    arguments: dict[str, _Tensor] = {}

    def place(tensor: str) -> Hashable:
      if (name := graphs.node_of(tensor)) in inside:
        return tensor[0] == "^", inside[name], tensor.partition(":")[2]
      arguments[tensor] = self._tensors[tensor]
      return list(arguments).index(tensor)

    computed, gradients, effects, results = [], [], [], {}
    try:
      for node in nodes:
        if graphs.colocated(node):
          return None
        described = [self._described[node.name], *map(place, node.input)]
        for tensor in self._captured(node):
          if tensor.concrete_function != self._function.signature.name:
            return None
          described.append(place(self._names[tensor.name]))
        computed.append(tuple(described))
        if graphs.gradient(node):
          gradients.append(graphs.gradient(node))
        for user, tensor in self._users[node.name]:
          if user in run:
            pass
          elif tensor == f"^{node.name}":
            effects.append(node.name)
          else:
            results[tensor] = self._tensors[tensor]
    except KeyError:  # Nodes that wait, or Tensors of unknown shapes.
      return None
    # If XLA needs a shape that a call returns, it needs all inputs of the call
    # at compile time; see `xla`.
    if any(x.dtype in _OF_SHAPES for x in results.values()):
      return None
    results = {x: results[x] for x in sorted(results, key=place)}
    key = (
      *computed,
      *map(place, results),
      *(inside[name] for name in effects),
      *map(_of_tensor, arguments.values()),
    )
    function = self._function
    places = [(function.signature.name, i) for i in run]
    return _Piece(
      function,
      scope,
      places,
      nodes,
      arguments,
      results,
      list(dict.fromkeys(effects)),
      gradients,
      self._names,
      key,
    )


def _is_lifted(node: graphs.Node) -> bool:
  """Tells whether a node is a constant that the caller keeps and passes.

  Layers of different widths differ only in such constants. Other constants,
  such as axes and paddings, stay in the function, which needs them to infer
  shapes.
  """
  tensor = node.attr["value"].tensor if node.op == "Const" else None
  return tensor is not None and (
    tensor.dtype in _FLOATS and len(tensor.tensor_shape.dim) > 0
  )


def _described(node: graphs.Node, gradient: _Gradient | None) -> Hashable:
  """Describes what a node does with its inputs."""
  attributes = {
    name: _bytes(value) for name, value in node.attr.items() if name != _SHAPES
  }
  if gradient:
    attributes[graphs.GRADIENT] = gradient.body
  return node.op, node.device, *sorted(attributes.items())


def _of_tensor(tensor: _Tensor) -> Hashable:
  shapes = [tensor.shape, *(x.shape for x in tensor.handle)]
  ranks = [(x.unknown_rank, len(x.dim)) for x in shapes]
  return tensor.dtype, *ranks, *(x.dtype for x in tensor.handle)


def _merged(messages: Iterable[Any]) -> Any:
  """Returns a message of shapes, in which sizes that differ are unknown."""
  first, *others = messages
  merged = type(first)()
  merged.CopyFrom(first)
  for shapes in zip(*map(_shapes, (merged, *others)), strict=True):
    for dims in zip(*(shape.dim for shape in shapes), strict=True):
      if len({dim.size for dim in dims}) > 1:
        dims[0].size = -1
  return merged


def _shapes(message: Any) -> Sequence[Any]:
  """Returns the shapes in an attribute, a handle or a shape."""
  if hasattr(message, "list"):
    return message.list.shape
  return [getattr(message, "shape", message)]


def _bytes(message: Any) -> bytes:
  return message.SerializeToString(deterministic=True)


def _function(
  name: str, pieces: Sequence[_Piece], gradients: Mapping[str, _Gradient]
) -> graphs.Function:
  """Returns the function that replaces pieces.

  Changes the custom gradients of the first piece: they then capture Tensors of
  this function.
  """
  piece = pieces[0]
  new = {x.name: x.name.removeprefix(f"{piece.scope}/") for x in piece.nodes}
  free = (
    x for i in itertools.count() if (x := f"input_{i}") not in new.values()
  )
  arguments = dict(zip(piece.arguments, free, strict=False))

  def renamed(tensor: str) -> str:
    node = graphs.node_of(tensor)
    return arguments.get(tensor) or graphs.with_node(tensor, new[node])

  function = graphs.Function()
  function.attr[_CONTEXT].CopyFrom(piece.caller.attr[_CONTEXT])
  signature = function.signature
  signature.name = name
  everywhere = zip(*(p.arguments.values() for p in pieces), strict=True)
  for i, (arg, xs) in enumerate(
    zip(arguments.values(), everywhere, strict=True)
  ):
    signature.input_arg.add(name=arg, type=xs[0].dtype)
    signature.input_arg[i].handle_data.extend(
      map(_merged, zip(*(x.handle for x in xs), strict=True))
    )
    shape = _merged(x.shape for x in xs)
    function.attr[_INPUT_SHAPES].list.shape.append(shape)
    if xs[0].dtype != types_pb2.DT_RESOURCE:
      function.arg_attr[i].attr[_SHAPES].list.shape.append(shape)
  for i, (tensor, x) in enumerate(piece.results.items()):
    signature.output_arg.add(name=f"output_{i}", type=x.dtype)
    function.ret[f"output_{i}"] = renamed(tensor)
  for effect in piece.effects:
    function.control_ret[new[effect]] = new[effect]
  for nodes in zip(*(p.nodes for p in pieces), strict=True):
    node = nodes[0]
    function.node_def.append(node)
    copy = function.node_def[-1]
    if _SHAPES in node.attr:
      shapes = _merged(other.attr[_SHAPES] for other in nodes)
      copy.attr[_SHAPES].CopyFrom(shapes)
    copy.name = new[node.name]
    copy.input[:] = map(renamed, node.input)
    signature.is_stateful |= private_api.is_stateful(node.op)
  for op_type in piece.gradients:
    for tensor in gradients[op_type].captured if op_type in gradients else ():
      node = graphs.node_of(tensor.name)
      if node in new:
        tensor.name = graphs.with_node(tensor.name, new[node])
      else:
        tensor.name = f"{arguments[piece.names[tensor.name]]}:0"
      tensor.concrete_function = name
  return function


def _call(piece: _Piece, function: graphs.Function) -> dict[str, str]:
  """Replaces a piece by a call; returns new names of Tensors and effects."""
  caller = piece.caller
  taken = {node.name for node in caller.node_def}
  taken.update(arg.name for arg in caller.signature.input_arg)
  name = piece.scope
  while name in taken:
    name += "_call"
  stateful = "Stateful" * function.signature.is_stateful
  call = graphs.Node(name=name, op=f"{stateful}PartitionedCall")
  call.input.extend(piece.arguments)
  call.attr["f"].func.name = function.signature.name
  for key, tensors in (("Tin", piece.arguments), ("Tout", piece.results)):
    call.attr[key].list.type.extend(x.dtype for x in tensors.values())
  call.attr[_SHAPES].list.shape.extend(x.shape for x in piece.results.values())
  for key in ("config", "config_proto", "executor_type"):
    call.attr[key].s = b""
  names = {node.name for node in piece.nodes}
  piece.nodes[0].CopyFrom(call)
  for i in reversed(range(len(caller.node_def))):
    if caller.node_def[i].name in names:
      del caller.node_def[i]
  for key, end in sorted(caller.control_ret.items()):
    if end in names:
      del caller.control_ret[key]
  if piece.effects:
    caller.control_ret[name] = name
  tensors = {x: f"{name}:output:{i}" for i, x in enumerate(piece.results)}
  return tensors | {f"^{x}": f"^{name}" for x in piece.effects}


def _remove_gradients(
  meta_graph: meta_graph_pb2.MetaGraphDef, op_types: Collection[str]
) -> None:
  """Removes custom gradients that no node uses any more."""
  library = meta_graph.graph_def.library
  objects = meta_graph.object_graph_def
  gone = {
    g.gradient_func
    for g in library.registered_gradients
    if g.registered_op_type in op_types
  }
  for field, name in (
    (library.registered_gradients, lambda x: x.gradient_func),
    (library.function, lambda x: x.signature.name),
  ):
    for i in reversed(range(len(field))):
      if name(field[i]) in gone:
        del field[i]
  captured = set()
  for name in gone:
    captured.update(objects.concrete_functions[name].bound_inputs)
    del objects.concrete_functions[name]
  for function in objects.concrete_functions.values():
    captured.difference_update(function.bound_inputs)
  graphs.remove_objects(objects, captured)
