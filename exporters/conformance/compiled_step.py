"""Compiles a consumer's train step for XLA and reports the result."""

import collections
from collections.abc import Mapping, Sequence
import functools
import inspect
import re
from typing import Any, NamedTuple

import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import subject
from exporters.reusable import observation
from exporters.reusable import xla_trap


class Compilation(NamedTuple):
  """The result of compiling a train step.

  Attributes:
    baked: Descriptions of the inputs and variables that the program holds as
      constants instead of parameters. Empty if the step compiles once.
    causes: The reasons from `xla_trap.constants` why these are constants.
    refused: Why XLA cannot compile the step. Empty if it can.
    failed: The error of the step without XLA. Empty if it runs without XLA.
  """

  baked: Sequence[str] = ()
  causes: Sequence[str] = ()
  refused: str = ""
  failed: str = ""


def compiled(model: Any, example: Any) -> Compilation:
  """Compiles the train step that a consumer would write.

  Args:
    model: A loaded SavedModel.
    example: A batch of inputs.
  """
  takes_training = "training" in inspect.signature(model.__call__).parameters
  step = observation.train_step(
    model,
    functools.partial(model, training=True) if takes_training else model,
    list(getattr(model, "regularization_losses", ())),
  )
  try:
    traced = tf.function(step).get_concrete_function(example)
  except Exception as e:  # A stranger's program may raise anything.
    return Compilation(failed=subject.cause(e))
  try:
    hlo = tf.function(step, jit_compile=True).experimental_get_compiler_ir(
      example
    )(stage="hlo")
  except (ValueError, tf.errors.OpError) as e:
    try:
      tf.function(step)(example)
    except tf.errors.OpError as e:
      return Compilation(failed=subject.cause(e))
    graph = traced.graph.as_graph_def()
    flow = [*xla_trap.branches(graph), *xla_trap.loops(graph)]
    return Compilation(refused=_cause(str(e), flow))
  return Compilation(_baked(hlo, traced, example), xla_trap.constants(traced))


def _cause(message: str, control_flow: Sequence[str]) -> str:
  """Extracts the cause and the name of the op from XLA's error message.

  The message begins with the cause; notes for developers follow.

  Args:
    message: The error message.
    control_flow: The branches and loops that XLA cannot differentiate.
  """
  if control_flow:
    return f"it cannot compile the gradient of {findings.some(control_flow)}"
  # XLA prints the call that leads to the op in double brackets.
  place = re.search(
    r"\[\[(?:{{function_node [^}]*}})?(?:{{node )?([^\]}]+)", message
  ) or re.search(r"{{node ([^}]+)", message)
  if op := re.search(r"No registered '(\w+)' OpKernel", message):
    cause = f"it has no kernel for {op[1]}"
  else:
    lines = message.removeprefix("Failed getting HLO text: '").splitlines()
    cause = next(filter(None, lines), "it does not say why").strip()
  return cause + (
    f" ({place[1].split('PartitionedCall/')[-1]})" if place else ""
  )


def _baked(hlo: str, traced: Any, example: Any) -> list[str]:
  """Names the inputs and variables that a program holds as constants.

  Args:
    hlo: The text of the program.
    traced: The train step that the program was compiled from.
    example: The batch that the program was compiled with.
  """
  named = example if isinstance(example, Mapping) else {"": example}
  arguments = [
    (" ".join(filter(None, ["the input", name, f"[{_shape(x)}]"])), x)
    for name, part in named.items()
    for x in tf.nest.flatten(part)
  ] + [(f"the variable {v.name}", v) for v in traced.variables]
  entry = hlo[hlo.index("\nENTRY ") :]
  parameters = re.findall(r"= \w+\[([\d,]*)\]\S* parameter\(", entry)
  # Count shapes, because several parameters may have the same one.
  missing = collections.Counter(
    _shape(x) for _, x in arguments
  ) - collections.Counter(parameters)
  return [words for words, x in arguments if missing[_shape(x)]]


def _shape(array: Any) -> str:
  return ",".join(map(str, array.shape))
