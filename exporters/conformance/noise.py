"""Measures the noise of single layers in the graph of a training call.

Each layer is computed by itself, from ones, because later layers would distort
the mean of its noise. Layers are judged only if every use of the rates in the
graph is understood.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import math
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import subject as subject_lib
from exporters.reusable import graphs
from exporters.reusable import private_api

Subject = subject_lib.Subject

_RATE = 0.4  # The rate with which noise is measured.
_SMALL_RATE = 0.1  # Another rate, because drops must be in proportion to rates.
_PROPORTION = 0.6  # Least ratio of drops, relative to the ratio of the rates.
_CALLS = 50  # So many that no example keeps all values in every call by chance.
_ELEMENTS = 400_000  # Most values in the input of a layer to compute.
_ROWS, _SIZE = 8, 4  # Sizes for unknown dimensions: the first, and others.
_SHIFT = 0.05  # Tolerance for a mean, relative to the output or added noise.
_ERRORS = 6.0  # Tolerance for statistics, in standard errors.
# The values that an op may depend on, besides scalar arguments; see `origins`.
INPUT, _NOISE, _STATE = "<input>", "<noise>", "<state>"
# Names of rates whose noise keeps the mean.
_DROPS = re.compile("drop|depth|keep|surviv")
_OF_SHAPE = ("OnesLike", "Rank", "Shape", "ShapeN", "Size", "ZerosLike")
_MASKS = ("Floor", "Greater", "GreaterEqual", "Less", "LessEqual")
_SCALES = ("Identity", "Mul", "RealDiv")


@dataclasses.dataclass
class _Layer:
  """A layer with dropout or other noise.

  Attributes:
    taken: The layer's input.
    made: The layer's output.
    ops: The ops between input and output that depend on the input.
    is_added: Whether the noise is added to the input. Otherwise the input is
      multiplied by it.
  """

  taken: tf.Tensor
  made: tf.Tensor
  ops: list[tf.Operation]
  is_added: bool


def problem(subject: Subject) -> str:
  """Describes a layer whose noise is wrong in training; empty if none is seen.

  The mean of dropout must be its input, and the mean of added noise 0. Noise
  must change each example, and dropout must drop in proportion to its rate.
  """
  for trace in subject.traces if subject.rates else ():
    arguments = subject.arguments_of(trace)
    given = [arguments.get(name) for name in subject.rates]
    if (
      arguments.get("training") is True
      and subject.form_of(trace) == subject.spec
      and all(isinstance(x, tf.TensorSpec) for x in given)
    ):
      found = _measured(subject, trace, arguments)
      # Some layers drop without scaling in training, and scale in inference.
      inference = [
        {"training": False, **subject.noisy(x)} for x in (0.0, _RATE)
      ]
      return "" if found and subject.differ(*inference) else found
  return ""


def _measured(
  subject: Subject, trace: Any, arguments: Mapping[str, Any]
) -> str:
  """Describes a wrong layer of a trace; empty if none is seen.

  Args:
    subject: The SavedModel.
    trace: A trace of training, with rates that are Tensors.
    arguments: The arguments of the trace after the input, by name.
  """
  specs = [
    x
    for x in tf.nest.flatten(trace.structured_input_signature)
    if isinstance(x, tf.TypeSpec)
  ]
  try:
    graph = _inlined(trace)
  except ValueError:  # The graph cannot be imported.
    return ""
  inputs = [graph.get_tensor_by_name(x.name) for x in trace.inputs]
  scalars = {
    name: inputs[next(i for i, x in enumerate(specs) if x is spec)]
    for name, spec in arguments.items()
    if isinstance(spec, tf.TensorSpec) and name in subject.changed
  }
  captured = inputs[len(inputs) - len(trace.captured_inputs) :]
  layers = _layers(
    origins(graph, inputs, captured, scalars), scalars, {*subject.rates}
  )
  layers = [x for x in layers if math.prod(_shape(x.taken)) <= _ELEMENTS]
  if not layers:
    return ""
  # Tensors of graphs are not hashable, so their names are the keys.
  ones = {layer.taken.name: np.ones(_shape(layer.taken)) for layer in layers}

  def made(rate: float) -> list[np.ndarray]:
    values = {**subject.changed, **subject.noisy(rate)}
    fed = {x.name: values[name] for name, x in scalars.items()}
    return session.run([layer.made for layer in layers], {**fed, **ones})

  with tf.compat.v1.Session(graph=graph) as session:
    try:
      usual, first = made(0.0), made(_RATE)
      calls = [
        [*map(_statistics, usual, first, made(_RATE), made(_SMALL_RATE))]
        for _ in range(_CALLS)
      ]
    except tf.errors.OpError:  # Unknown dimensions may need other sizes.
      return ""
  by_layer = zip(*calls, strict=True)
  for layer, y, found in zip(layers, usual, by_layer, strict=True):
    if said := _described(layer, y, *map(np.array, zip(*found, strict=True))):
      given = subject.noisy(_RATE).items()
      return f"With {', '.join(f'{n}={x}' for n, x in given)} {said}"
  return ""


def _inlined(trace: Any) -> tf.Graph:
  """Returns the graph of a trace, with calls inlined and without updates.

  Inputs keep their names. Captured variables become handles with a shape.
  """
  graph, passed = private_api.inlined(trace), {}
  shapes = {x.op.name: x.shape for x in trace.inputs}
  count = len(trace.inputs) - len(trace.captured_inputs)
  pairs = zip(trace.captured_inputs, trace.inputs[count:], strict=True)
  captured = {id(x): inside.op.name for x, inside in pairs}
  variables = {captured.get(id(v.handle)): v for v in trace.variables}
  for node in graph.node:
    node.input[:] = graphs.operands(node)
    node.attr.pop("_class", None)  # Colocation is a hint.
    # It has the outputs of a call, and Tensors that the call's gradient takes.
    if node.op == "IdentityN":
      for i, x in enumerate(node.input):
        passed[f"{node.name}:{i}".removesuffix(":0")] = x
    shape, v = shapes.get(node.name), variables.get(node.name)
    if v is not None:
      node.op, shape = "VarHandleOp", v.shape
      node.attr["dtype"].type = v.dtype.as_datatype_enum
    if shape is not None:
      node.attr["shape"].shape.CopyFrom(shape.as_proto())
  by_name, used = {node.name: node for node in graph.node}, set(shapes)
  # The other outputs of the trace are Tensors that gradients take.
  queue = [x.op.name for x in trace.outputs if x.op.type == "Identity"]
  while queue:
    node = by_name[queue.pop()]
    used.add(node.name)
    for i, x in enumerate(node.input):
      while x in passed:
        x = passed[x]
      node.input[i] = x
      if graphs.node_of(x) not in used:
        queue.append(graphs.node_of(x))
  unused = [node for node in graph.node if node.name not in used]
  for node in unused:
    graph.node.remove(node)
  with tf.Graph().as_default() as made:
    tf.graph_util.import_graph_def(graph, name="")
  return made


def _statistics(
  usual: np.ndarray, first: np.ndarray, made: np.ndarray, small: np.ndarray
) -> tuple[float, float, np.ndarray, np.ndarray]:
  """Returns statistics of the noise in one call.

  Args:
    usual: The output of a layer without noise.
    first: Its output in the first call.
    made: Its output in this call.
    small: Its output with a rate of `_SMALL_RATE`.

  Returns:
    The mean and the standard deviation of the noise, whether each row differs
    from that of the first call, and the shares of zeros in `made` and `small`.
  """
  noise = made - usual
  unlike = (made != first).any(tuple(range(1, made.ndim)))
  zeros = np.mean([made == 0, small == 0], tuple(range(1, made.ndim + 1)))
  return np.mean(noise), np.std(noise), unlike, zeros


def _described(
  layer: _Layer,
  usual: np.ndarray,
  means: np.ndarray,
  deviations: np.ndarray,
  unlike: np.ndarray,
  zeros: np.ndarray,
) -> str:
  """Describes what is wrong with a layer's noise; empty if nothing is.

  Args:
    layer: The layer.
    usual: Its output without noise.
    means: The mean of its noise, by call.
    deviations: The standard deviation of its noise, by call.
    unlike: Whether rows differ from those of the first call, by call and row.
    zeros: The shares of zeros with `_RATE` and with `_SMALL_RATE`, by call.
  """
  name, changed = layer.made.op.name, unlike.any(0)
  if layer.taken.shape[0] is None and changed.any() and not changed.all():
    return f"{name} is not random for some examples of a batch"
  errors = _ERRORS * np.std(zeros, 0) / np.sqrt(_CALLS)
  most, least = np.mean(zeros, 0) + errors * (1, -1)
  if most < _PROPORTION * _RATE / _SMALL_RATE * least:
    return (
      f"{name} drops {most:.0%} at most, and {least:.0%} at least with"
      f" {_SMALL_RATE}"
    )
  shift = np.mean(means)
  size = np.mean(deviations if layer.is_added else usual)
  error = np.std(means) / np.sqrt(_CALLS)
  # A shift of NaN is accepted too.
  if not abs(shift) > max(_ERRORS * error, _SHIFT * abs(size)) or not size:
    return ""
  if layer.is_added:
    return f"{name} adds noise whose mean is not 0"
  return f"{name} is {1 + shift / size:.2g} times its input in the mean"


def _shape(x: tf.Tensor) -> list[int]:
  sizes = itertools.chain([_ROWS], itertools.repeat(_SIZE))
  return [next(sizes) if n is None else n for n in x.shape]


def _layers(
  of: Mapping[tf.Operation, frozenset[str]],
  scalars: Mapping[str, tf.Tensor],
  rates: set[str],
) -> list[_Layer]:
  """Finds the layers with noise; none if the rates have other uses too."""
  layers = []
  for op in of:
    if subject_lib.RANDOM.match(op.type) and op.outputs[0].dtype.is_floating:
      layer = _layer(op, of, rates)
      if layer and _is_closed(layer, {x.name for x in scalars.values()}):
        layers.append(layer)
  owned = [op for x in layers for op in x.ops]
  if len({*owned}) < len(owned):
    return []
  for op in {*of} - {*owned}:
    kinds = [of[x.op] for x in op.inputs]
    if any(INPUT in kind for kind in kinds) and any(
      kind & rates and INPUT not in kind for kind in kinds
    ):
      return []
  return layers


def origins(
  graph: tf.Graph,
  inputs: Iterable[tf.Tensor],
  captured: Iterable[tf.Tensor],
  scalars: Mapping[str, tf.Tensor],
) -> dict[tf.Operation, frozenset[str]]:
  """Returns the dependences of each op's value, without those of its shape.

  A value may depend on the input, on noise, on a state such as a variable that
  the graph captured, and on scalar arguments, by their names.
  """
  own = {x.op: frozenset([INPUT]) for x in inputs}
  own |= {x.op: frozenset([_STATE]) for x in captured}
  own |= {x.op: frozenset([name]) for name, x in scalars.items()}
  of: dict[tf.Operation, frozenset[str]] = {}
  operations, before = graph.get_operations(), None
  while of != before:  # The operations are in no order.
    before = dict(of)
    for op in operations:
      made = own.get(op, frozenset())
      if op.type not in _OF_SHAPE:
        made = made.union(*(of.get(x.op, ()) for x in op.inputs))
      if subject_lib.RANDOM.match(op.type):
        made |= {_NOISE}
      of[op] = made
  return of


def _layer(
  op: tf.Operation, of: Mapping[tf.Operation, frozenset[str]], rates: set[str]
) -> _Layer | None:
  """Returns the layer of a random op; None if it is of no known form."""
  shape = op.outputs[0].shape
  if (shape.rank or 0) > 2 and shape[-1] == 1 and {*shape[1:-1]} != {1}:
    return None  # Whole tokens or pixels may be dropped without scaling.
  noise, merging = {op}, set()
  queue = [op]
  while queue:
    for c in consumers(queue.pop()):
      if of[c] & {INPUT, _STATE}:
        merging.add(c)
      elif c not in noise:
        noise.add(c)
        queue.append(c)
  if len(merging) != 1:
    return None
  (merge,) = merging
  is_mask = any(x.type in _MASKS for x in noise)
  forms = ("Mul", "Select", "SelectV2") if is_mask else ("Add", "AddV2", "Mul")
  taken = [x for x in merge.inputs if INPUT in of[x.op]]
  others = [x for x in merge.inputs if INPUT not in of[x.op]]
  if merge.type not in forms or len(taken) != 1:
    return None
  if "Select" in merge.type and INPUT in of[merge.inputs[0].op]:
    return None
  if any(_STATE in of[x.op] for x in others):
    return None
  before = list(_scaled(taken[0].op, of, up=True))
  after = list(_scaled(merge, of, up=False))
  ops = [*before, merge, *after]
  numbers = [of[y.op] for x in (*noise, *ops) for y in x.inputs]
  used = rates & set().union(*(x for x in numbers if INPUT not in x))
  is_added = not merge.type.startswith(("Mul", "Select"))
  if not used or not (is_added or all(map(_DROPS.search, used))):
    return None
  if before:
    taken = [x for x in before[-1].inputs if INPUT in of[x.op]]
  made = (after[-1] if after else merge).outputs[0]
  is_float = taken[0].dtype in (tf.float32, tf.float64)
  if not is_float or not taken[0].shape.rank:
    return None
  return _Layer(taken[0], made, ops, is_added)


def _scaled(
  op: tf.Operation, of: Mapping[tf.Operation, frozenset[str]], up: bool
) -> Iterator[tf.Operation]:
  """Yields the chain of ops that scale by numbers, before or after an op.

  With `up` the chain begins with `op` and goes on to its inputs. Otherwise it
  begins with the only op that uses `op`.
  """
  if not up:
    users = consumers(op)
    if len(users) != 1:
      return
    (op,) = users
  data = [x for x in op.inputs if INPUT in of[x.op]]
  others = [of[x.op] for x in op.inputs if INPUT not in of[x.op]]
  if (
    op.type not in _SCALES
    or len(data) != 1
    or (op.type == "RealDiv" and INPUT not in of[op.inputs[0].op])
    or any(x & {_NOISE, _STATE} for x in others)
  ):
    return
  yield op
  yield from _scaled(data[0].op if up else op, of, up)


def consumers(op: tf.Operation) -> set[tf.Operation]:
  """Returns the ops that use the values of an op."""
  return {
    c for y in op.outputs for c in y.consumers() if c.type not in _OF_SHAPE
  }


def _is_closed(layer: _Layer, scalars: set[str]) -> bool:
  """Returns whether a layer is computed from its input and scalars alone."""
  seen, queue = scalars | {layer.taken.name}, [layer.made]
  while queue:
    x = queue.pop()
    if x.name not in seen:
      seen.add(x.name)
      queue.extend(x.op.inputs)
      if x.op.type == "Placeholder" or x.dtype == tf.resource:
        return False
  return True
