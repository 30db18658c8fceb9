"""Finds variables that a call uses only for some values of its input."""

from collections.abc import Iterable, Sequence
import re
from typing import Any

import tensorflow as tf

from exporters.conformance import noise
from exporters.conformance import op_audit
from exporters.conformance import subject as subject_lib

Subject = subject_lib.Subject

# Ops that turn values into choices, and ops that run one of several functions.
_CHOOSES = re.compile(
  "ArgM(ax|in)|Bucketize|(Not)?Equal|(Greater|Less)(Equal)?|Is(Finite|Inf|Nan)"
  "|LookupTableFind.*|(Static)?Regex.*Match|TopK.*|.*Unique.*"
)
_BRANCHES = re.compile("(Stateless)?(Case|If|While)|Switch")


def without(
  subject: Subject, variables: Iterable[tf.Variable]
) -> list[tf.Variable]:
  """Returns the variables whose use does not depend on values of the input."""
  left = list(variables)
  for trace in subject.traces:
    if left and subject.form_of(trace) == subject.spec:
      left = _always_used(trace, left)
  return left


def _always_used(trace: Any, variables: list[tf.Variable]) -> list[tf.Variable]:
  """Returns the variables whose use in a trace depends on no choice."""
  (first, *_), _ = trace.structured_input_signature
  taken = len(tf.nest.flatten(first, expand_composites=True))
  inputs = len(trace.inputs) - len(trace.captured_inputs)
  scalars = {x.name: x for x in trace.inputs[taken:inputs]}
  of = noise.origins(trace.graph, trace.inputs, trace.inputs[inputs:], scalars)
  choosing = {
    node.op
    for function, node in op_audit.nodes(trace.graph.as_graph_def())
    if function and _CHOOSES.fullmatch(node.op)
  }
  made = {
    op
    for op, kind in of.items()
    if noise.INPUT in kind
    and (
      _CHOOSES.fullmatch(op.type)
      or _BRANCHES.fullmatch(op.type)
      or (choosing and op.type.endswith("PartitionedCall"))
    )
  }
  choices = _reached(made)

  def is_chosen(v: tf.Variable) -> bool:
    if id(v.handle) not in handles:
      return False
    using = _reached([handles[id(v.handle)].op])
    # A choice computed from the variable itself, such as a class, is none.
    return any(
      (op in made and not _CHOOSES.fullmatch(op.type))
      or any(x.op in choices and x.op not in using for x in op.inputs)
      for op in using
    )

  captured = zip(trace.captured_inputs, trace.inputs[inputs:], strict=True)
  handles = {id(x): made for x, made in captured}
  return [v for v in variables if not is_chosen(v)]


def _reached(ops: Iterable[tf.Operation]) -> set[tf.Operation]:
  """Returns the ops, and all ops that depend on their values."""
  seen, queue = set(ops), [*ops]
  while queue:
    for op in noise.consumers(queue.pop()) - seen:
      seen.add(op)
      queue.append(op)
  return seen


def is_shared(subject: Subject, variable: tf.Variable) -> bool:
  """Tells whether a call uses a variable more than once.

  The gradients of the uses may cancel, such as those of a bias if the outputs
  of two calls of a layer are subtracted.
  """
  return any(
    _count_uses(trace, inside.op.name) > 1
    for trace in subject.traces
    for x, inside in zip(
      trace.captured_inputs[::-1], trace.inputs[::-1], strict=False
    )
    if x is variable.handle
  )


def _count_uses(trace: Any, name: str) -> int:
  """Counts the ops that take an input of a trace, also inside functions."""
  graph = trace.graph.as_graph_def()
  functions = {f.signature.name: f for f in graph.library.function}

  def count(nodes: Sequence[op_audit.Node], name: str) -> int:
    used = 0
    for node in nodes:
      called = functions.get(node.attr["f"].func.name)
      for i, x in enumerate(node.input):
        if x == name and called:
          used += count(called.node_def, called.signature.input_arg[i].name)
        elif x == name:
          used += 1
    return used

  return count(graph.node, name)
