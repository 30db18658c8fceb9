"""Finds variables that a call uses or not, by the values of its input."""

from collections.abc import Iterable, Sequence
import re
from typing import Any

import tensorflow as tf

from exporters.conformance import noise
from exporters.conformance import op_audit
from exporters.conformance import subject as subject_lib

Subject = subject_lib.Subject

# Ops that make choices of values, and those that run one of several functions.
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
  """Returns the variables that do not meet a choice in a trace."""
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
    # A class, made of all of it, is no choice.
    return any(
      (op in made and not _CHOOSES.fullmatch(op.type))
      or any(x.op in choices and x.op not in using for x in op.inputs)
      for op in using
    )

  captured = zip(trace.captured_inputs, trace.inputs[inputs:], strict=True)
  handles = {id(x): made for x, made in captured}
  return [v for v in variables if not is_chosen(v)]


def _reached(ops: Iterable[tf.Operation]) -> set[tf.Operation]:
  """Returns ops, and those that depend on their values."""
  seen, queue = set(ops), [*ops]
  while queue:
    for op in noise.consumers(queue.pop()) - seen:
      seen.add(op)
      queue.append(op)
  return seen


def is_shared(subject: Subject, variable: tf.Variable) -> bool:
  """Tells whether a call uses a variable twice.

  Its gradients may cancel, as those of a bias do where the outputs of two calls
  of a layer are subtracted.
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
  """Counts the ops that take an input of a trace, also in functions."""
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
