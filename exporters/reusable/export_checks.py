"""Checks an export against observations of its live model.

Run as a program, this module loads an export in a fresh process, observes it,
and compares it with the observations of the live model from the exporter's
process. Besides this module and those that read graphs, the fresh process
imports only what a consumer imports.

Each line of standard input is a path as JSON: first the directory of the
export, then the file for the results, then the files that `write` wrote, in
order.
"""

import collections
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import contextlib
import errno
import functools
import gc
import inspect
import itertools
import json
import math
import mmap
import os
import pathlib
import pickle
import sys
import tempfile
from typing import Any, NamedTuple

from distribution import errors

if __name__ == "__main__":
  # Importing these packages fails from here on, as consumers may lack them.
  sys.modules.update(dict.fromkeys(sys.argv[2:]))

  def _end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Exits with ENOMEM and without a traceback if memory is full."""
    if errors.is_of_full_memory(error):
      os._exit(errno.ENOMEM)
    sys.__excepthook__(kind, error, trace)

  sys.excepthook = _end

from absl import logging
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from exporters.reusable import comparison
from exporters.reusable import graphs
from exporters.reusable import observation
from exporters.reusable import randomness
from exporters.reusable import xla_trap

Arrays = comparison.Arrays
Call = observation.Call
Observation = observation.Observation
# Sums in another order differ by several units in the last place.
_PRECISION = {tf.float32: 2**-20, tf.float64: 2**-49}
_PERTURBATIONS = 8  # At most; usually one is enough.
_CONVERSIONS = ("Cast", "Identity", "IdentityN", "NoOp", "Placeholder")


class Result(NamedTuple):
  """The result of one comparison.

  Attributes:
    place: What was compared.
    kind: A key of `comparison.COMPARISONS`.
    problems: Descriptions of what is wrong.
    notes: Descriptions of what consumers cannot do with the export because of
      its model.
    undecided: Whether rounding errors alone may explain the problems, so that
      another example must decide.
  """

  place: str
  kind: str
  problems: Sequence[str]
  notes: Sequence[str] = ()
  undecided: bool = False


def check(
  export_dir: str,
  model: Any,
  plan: Mapping[str, Sequence[Call]],
  served: Mapping[str, tuple[str, Sequence[str]]],
  seen: Iterator[Observation],
  save_again: bool,
) -> list[Result]:
  """Observes an export and compares it with observations of the live model.

  Args:
    export_dir: The directory of the export.
    model: The loaded export.
    plan: The calls to make, by name of the sub-object. The first name is "",
      for the model itself.
    served: For each signature, the name of the sub-object that it calls, and
      the names of its inputs.
    seen: The observations of the live model and its sub-objects, from
      `observe_state` and `observe_calls`, in the order of `plan`.
    save_again: Whether to save the loaded export again, and to load the copy
      while the first export is moved away.

  Raises:
    RuntimeError: The observations of the live model are in another order.
  """
  results = []
  of_parts = itertools.groupby(seen, key=lambda o: o.part)
  parts = {part: _part(model, part) for part in plan}
  missing = {part: _missing(parts[part], plan[part]) for part in plan}
  missing[""] = missing[""] or _wrong_endpoints(model)
  # Observed before the first call, as in `verification.observe`.
  states = {
    part: list(observation.observe_state(part, parts[part]))
    for part, problems in missing.items()
    if not problems
  }
  still = _still_the_same([parts[part] for part in states])
  if count := randomness.seeds(export_dir):
    problem = (
      f"{count} random ops have seeds, with which all replicas draw the same"
    )
    results.append(_result("", "randomness", "", 0.0, [problem]))
  with randomness.with_seeds(export_dir, observation.load) as with_seeds:
    for part, calls in plan.items():
      results.append(_result(part, "interface", "", 0.0, missing[part]))
      _, of_live = next(of_parts)
      if part in states:
        results += _check_part(
          part,
          parts[part],
          calls,
          of_live,
          states[part],
          lambda part=part: _part(with_seeds(), part),
        )
    for signature, (part, names) in served.items():
      if missing[""] or missing[part]:
        continue
      first = plan[part][0]
      tensors = tf.nest.flatten(first.example, expand_composites=True)
      inputs = dict(zip(names, tensors, strict=True))
      called = with_seeds() if first.random else model
      result = _check_served(called, part, signature, inputs, first)
      results.append(result)
      is_served = signature in model.signatures
      if save_again and is_served and not (part or first.random):
        results.append(_check_saved_again(export_dir, model, signature, inputs))
  results.append(still())
  return results


def _still_the_same(models: Iterable[Any]) -> Callable[[], Result]:
  """Returns a function that checks that trainable variables did not change."""
  trained = {v.ref(): v for model in models for v in model.trainable_variables}
  sums = {ref: observation.checksum(v) for ref, v in trained.items()}

  def check_still() -> Result:
    problems = [
      f"a call of the export changes {v.name}, which is trainable, and a call"
      " of the model does not"
      for ref, v in trained.items()
      if observation.checksum(v) != sums[ref]
    ]
    return _result("", "variables", "after all calls", 0.0, problems)

  return check_still


def _part(model: Any, name: str) -> Any:
  """Returns a sub-object of a model, or None. "" is the model itself."""
  for attribute in name.split(".") if name else ():
    model = getattr(model, attribute, None)
  return model


def _check_part(
  part: str,
  model: Any,
  calls: Sequence[Call],
  of_live: Iterator[Observation],
  state: Iterable[Observation],
  with_seeds: Callable[[], Any],
) -> Iterator[Result]:
  """Checks a loaded model or sub-object.

  Args:
    part: Name of the sub-object, "" for the model itself.
    model: The loaded model or sub-object.
    calls: The calls to make, `seeded` ones last.
    of_live: The observations of the live model.
    state: The observations of `observe_state` before any call.
    with_seeds: Loads `model` with numbered seeds in its random ops.
  """
  plain = [c for c in calls if not c.seeded]
  seeded = [c for c in calls if c.seeded]
  steps = _graph_steps(model, plain)
  call = _traced_once(model, calls)
  seen = itertools.chain(
    state,
    observation.observe_calls(part, model, call, plain, steps),
    _observe_seeded(part, seeded, with_seeds),
  )
  perturbed = functools.cache(
    functools.partial(_observe_perturbed, part, model, calls, steps, with_seeds)
  )
  skipped = None
  unseen = []  # For each call, the gradients that no comparison can judge.
  # With `strict`, the last part would wait for a further line of input.
  for new, old in zip(seen, of_live, strict=False):
    _check_order(new.place, old.place)
    if new.call == skipped:
      continue
    if new.kind == "gradients":
      unseen.append(comparison.unseen(old.arrays))
    if isinstance(model, tf_keras.Model):
      new, old = _in_one_order(new, old)
    result = _judged(new, old, perturbed)
    if new.kind == comparison.SEEDED and result.problems:
      skipped = new.call
    yield result
  if names := sorted(set.intersection(*unseen)) if unseen else []:
    note = (
      f"those of {', '.join(names)} are zero, or nothing beside others, in all"
      " calls, so that nothing is known of them"
    )
    yield _result(part, "gradients", "", 0.0, [], [note])
  for made in calls:
    yield from _check_alone(part, model, call, calls, made, steps, with_seeds)


def _judged(
  new: Observation,
  old: Observation,
  perturbed: Callable[[str, int], Sequence[Observation]],
) -> Result:
  """Compares an observation of an export with that of its live model.

  If they differ too much, the comparison allows for the rounding errors that
  perturbed weights and inputs show. `perturbed` takes the name of the call and
  a seed, and observes the perturbed export.
  """
  if new.kind == comparison.SEEDED:
    return _result(*new[:3], 0.0, _of_seeds(old.arrays, new.arrays))
  if new.kind == comparison.SAMPLED:
    problems = randomness.compare(old.arrays, new.arrays)
    return _result(*new[:3], 0.0, problems)
  compare = functools.partial(
    comparison.compare, new.kind, old.arrays, new.arrays
  )
  if new.kind not in ("outputs", "gradients", "updates"):
    return _result(*new[:3], *compare())
  noise: list[Arrays] = []
  largest, problems = compare(noise)
  while problems and len(noise) < _PERTURBATIONS:
    seen = perturbed(new.call, len(noise))
    noise += [o.arrays for o in seen if o.kind == new.kind]
    largest, problems = compare(noise)
  is_of_gradients = new.kind == "gradients"  # Gradients jump at kinks.
  undecided = (
    is_of_gradients and bool(problems) and not compare(noise, math.inf)[1]
  )
  return _result(*new[:3], largest, problems, undecided=undecided)


def _observe_perturbed(
  part: str,
  model: Any,
  calls: Sequence[Call],
  steps: Callable[..., tf.types.experimental.PolymorphicFunction],
  with_seeds: Callable[[], Any],
  name: str,
  seed: int,
) -> list[Observation]:
  """Observes a call with weights and inputs changed by rounding errors."""
  made = next(made for made in calls if made.name == name)
  # Calls with other weights share moving averages, which their last one sets.
  alike = [made]
  if made.reweighted and not made.seeded:
    alike = [c for c in calls if c.reweighted and not c.seeded]
  alike = [c._replace(example=_rounded(c.example)) for c in alike]
  with _perturbed(with_seeds() if made.seeded else model, seed):
    if made.seeded:
      return list(_observe_seeded(part, alike, with_seeds))
    seen = observation.observe_calls(part, model, model, alike, steps)
    return [o for o in seen if o.call == name]


def _check_alone(
  part: str,
  model: Any,
  call: Callable[..., Any],
  calls: Sequence[Call],
  made: Call,
  steps: Callable[..., tf.types.experimental.PolymorphicFunction],
  with_seeds: Callable[[], Any],
) -> Iterator[Result]:
  """Makes those checks of a call that need no observation of the live model."""
  is_keras = isinstance(model, tf_keras.Model)
  if made.without is not None:
    problems = [] if _has_effect(model, made) else ["it changes nothing"]
    yield _result(part, "hyperparameters", made.name, 0.0, problems)
  if made.keras and not is_keras:
    kind = "hub.KerasLayer"
    compared = comparison.compare(kind, *_in_keras(model, made))
    yield _result(part, kind, made.name, *compared)
  if made.forms and not is_keras:
    called = (with_seeds(),) * 2 if made.seeded else (model, call)
    # The export has its original weights here.
    name = made.name.removesuffix(observation.OTHER_WEIGHTS)
    for form, kind, *arrays in _in_other_forms(*called, made):
      compared = comparison.compare(kind, *arrays)
      yield _result(part, kind, f"{name}, {form}", *compared)
  # Keras rebuilds its own layers under the consumer's strategy, in which they
  # handle empty batches.
  if made.empty and not is_keras:
    takes_none = any(observation.rows(c.example) == 0 for c in calls)
    problems = _of_no_examples(model, made, takes_none)
    yield _result(part, comparison.EMPTY, made.name, 0.0, problems)
  if made.compilation:
    compared = _under_xla(steps(*made.arguments), made)
    yield _result(part, comparison.XLA, made.name, 0.0, *compared)


def _graph_steps(
  model: Any, calls: Sequence[Call]
) -> Callable[..., tf.types.experimental.PolymorphicFunction]:
  """Returns a function that returns the train step for names of arguments.

  Each set of names has its own step because TensorFlow fails to retrace a step.
  A step has one trace for the examples of all `calls` with these names, or one
  for each length if the examples are lists.
  """

  @functools.cache
  def step(*names: str) -> tf.types.experimental.PolymorphicFunction:
    function = tf.function(
      observation.train_step(model, model, of_inputs=True),
      autograph=False,
      reduce_retracing=True,
    )
    alike = [c for c in calls if c.gradients and tuple(c.arguments) == names]
    for spec in _common_specs([c.example for c in alike]).values():
      function.get_concrete_function(spec, **alike[0].arguments)
    return function

  return step


def _rounded(example: Any) -> Any:
  """Changes the floats of an example by a few rounding errors."""

  def rounded(x: tf.Tensor) -> tf.Tensor:
    if x.dtype not in _PRECISION:
      return x
    noise = tf.random.stateless_uniform(tf.shape(x), [0, 0], -1, 1, x.dtype)
    return x * (1 + _PRECISION[x.dtype] * noise)

  return tf.nest.map_structure(rounded, example, expand_composites=True)


@contextlib.contextmanager
def _perturbed(model: Any, seed: int) -> Iterator[None]:
  """Changes the weights of a model by a few rounding errors; restores them."""
  variables = [v for v in model.variables if v.dtype in _PRECISION]
  before = [tf.identity(v) for v in variables]
  for i, (variable, value) in enumerate(zip(variables, before, strict=True)):
    noise = tf.random.stateless_uniform(
      value.shape, [seed, i], -1, 1, value.dtype
    )
    variable.assign(value * (1 + _PRECISION[value.dtype] * noise))
  try:
    yield
  finally:
    for variable, value in zip(variables, before, strict=True):
      variable.assign(value)


def _traced_once(model: Any, calls: Iterable[Call]) -> Callable[..., Any]:
  """Wraps a loaded model so that all calls without arguments share a trace.

  Lists of another length have another trace. Without the wrapper TensorFlow
  would prepare a graph for each size of the examples, and for each value of a
  float argument.
  """
  specs = _common_specs([c.example for c in calls if not c.arguments])

  @functools.cache
  def trace(count: int) -> Callable[..., Any]:
    function = tf.function(model, autograph=False)
    return function.get_concrete_function(specs[count])

  def call(example: Any, **arguments: Any) -> Any:
    count = len(tf.nest.flatten(example))
    if arguments or count not in specs:
      return model(example, **_as_tensors(arguments))
    return trace(count)(example)

  return call


def _common_specs(examples: Sequence[Any]) -> dict[int, Any]:
  """Returns specs by number of Tensors; each fits all examples with so many.

  Examples with other tensors, such as RaggedTensors, are left out.
  """
  alike = collections.defaultdict(list)
  for example in examples:
    tensors = tf.nest.flatten(example)
    if all(isinstance(x, tf.Tensor) for x in tensors):
      alike[len(tensors)].append(example)
  return {
    count: tf.nest.map_structure(_common_spec, *of_count)
    for count, of_count in alike.items()
  }


def _common_spec(*tensors: tf.Tensor) -> tf.TensorSpec:
  """Returns a spec that fits all `tensors`."""
  return tf.TensorSpec(
    [
      sizes[0] if len(set(sizes)) == 1 else None
      for sizes in zip(*(x.shape for x in tensors), strict=True)
    ],
    tensors[0].dtype,
  )


def _as_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Turns floats into Tensors because each float would need its own trace."""
  return {
    k: tf.constant(v) if isinstance(v, float) else v
    for k, v in arguments.items()
  }


def _observe_seeded(
  part: str, calls: Sequence[Call], with_seeds: Callable[[], Any]
) -> Iterator[Observation]:
  """Observes calls of an export with numbered seeds in its random ops."""
  if not calls:
    return
  model = with_seeds()
  function = tf.function(model, autograph=False)

  def call(example: Any, **arguments: Any) -> Any:
    return function(example, **_as_tensors(arguments))

  def observe(made: Call) -> Iterator[Observation]:
    trace = function.get_concrete_function(
      made.example, **_as_tensors(made.arguments)
    )
    count = randomness.draws(trace.graph.as_graph_def())
    arrays = {"draws": np.array(count)}
    yield Observation(part, comparison.SEEDED, made.name, arrays)
    tf.random.set_seed(1)  # Random ops with seeds draw the same values again.
    yield from observation.observe_calls(
      part,
      model,
      call,
      [made._replace(seeded=False, reweighted=False)],
      _graph_steps(model, [made]),
      moves=False,
    )

  for is_reweighted, alike in itertools.groupby(calls, lambda c: c.reweighted):
    if is_reweighted:  # As in `observation.observe_calls`.
      with observation.reweighted(model, {}):
        seen = [o for made in alike for o in observe(made)]
      yield from seen
    else:
      for made in alike:
        yield from observe(made)


def _of_seeds(live: Arrays, export: Arrays) -> list[str]:
  """Returns reasons why calls with the same seeds are not comparable."""
  if not live.get("repeats", True):
    return [
      "training draws random numbers that are not TensorFlow's, such as"
      " NumPy's, or reads what calls change in Python: the export repeats what"
      " its trace has"
    ]
  if live["draws"] != export["draws"]:
    count = int(export["draws"])
    return [
      f"a call draws {live['draws']} times from random ops, and the export"
      f" {count if count >= 0 else 'in a loop or a branch'}"
    ]
  return []


def _missing(model: Any, calls: Iterable[Call]) -> list[str]:
  """Returns a problem for each attribute or argument that a model lacks."""
  problems = [
    f"{name} is missing"
    for name in observation.INTERFACE
    if not hasattr(model, name)
  ]
  if not problems:
    parameters = inspect.signature(model.__call__).parameters
    if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
      names = dict.fromkeys(name for made in calls for name in made.arguments)
      problems = [
        f"the argument `{name}` of __call__ is missing"
        for name in names
        if name not in parameters
      ]
  return problems


def _wrong_endpoints(model: Any) -> list[str]:
  """Returns a problem for each Keras 3 endpoint that is not `__call__`."""
  problems = []
  is_keras = isinstance(model, tf_keras.Model)  # Its `__call__` is a method.
  call = getattr(model, "serve" if is_keras else "__call__", None)
  of_call = getattr(call, "concrete_functions", None)
  for name, mode in (("serve", False), ("train", True)):
    endpoint = getattr(model, name, None)
    traces = getattr(endpoint, "concrete_functions", None)
    if not traces or traces != of_call:
      problems.append(f"{name} does not have the traces of __call__")
      continue
    training = inspect.signature(endpoint).parameters.get("training")
    if training and training.default is not mode:
      problems.append(f"{name} has training={training.default} as default")
  return problems


def _check_order(expected: str, actual: str) -> None:
  if actual != expected:
    raise RuntimeError(
      f"The live model was observed in another order: {actual!r} came where"
      f" {expected!r} was expected."
    )


def _result(
  part: str,
  kind: str,
  call: str,
  largest: float,
  problems: Sequence[str],
  notes: Sequence[str] = (),
  undecided: bool = False,
) -> Result:
  """Makes a result and prints a line for it."""
  place = Observation(part, kind, call, {}).place
  mark = "-" if notes or undecided else "✗" if problems else "✓"
  words = [f"largest difference {largest:.1g}"] if largest else notes
  print(f"  {mark} {': '.join([place, *words])}", flush=True)
  return Result(place, kind, problems, notes, undecided)


def _has_effect(model: Any, made: Call) -> bool:
  """Tells whether arguments change outputs or updates of an export.

  Other weights are tried too, because some weights, such as those of adapters,
  begin as zeros.
  """
  arguments = [*map(_as_tensors, (made.arguments, made.without))]
  if observation.differ(model, model, made.example, *arguments):
    return True
  with observation.reweighted(model, {}):
    return observation.differ(model, model, made.example, *arguments)


def _of_no_examples(model: Any, made: Call, takes_none: bool) -> list[str]:
  """Calls an export with a batch of 0 rows; returns problems.

  Args:
    model: The export or a sub-object.
    made: The call, with an example that has rows.
    takes_none: Whether the live model takes 0 rows in inference.
  """
  example = tf.nest.map_structure(lambda x: x[:0], made.example)
  # On CPUs oneDNN's convolutions fail without rows. XLA crashes on strings.
  jitted = tf.function(model, autograph=False, jit_compile=True)
  is_text = any(x.dtype == tf.string for x in tf.nest.flatten(example))
  # A plain call is tried first if it may work, because compiling takes longer.
  both = (model, jitted) if takes_none else (jitted, model)
  for call in (model,) if is_text else both:
    try:
      outputs, updates = observation.run(model, call, example, made.arguments)
      break
    except (ValueError, tf.errors.OpError) as e:
      failure = f"the call fails: {' '.join(str(e).split())}"
  else:
    return [failure]
  moving = observation.moving_variables(model)
  # Integers are left out because they may count calls.
  values = [
    {k: x for k, x in values.items() if comparison.is_inexact(x)}
    for values in (observation.by_variable(moving, moving), updates)
  ]
  _, problems = comparison.compare(comparison.EMPTY, *values)
  if problems:
    right = _rightly_moved(model, call, made, example, [*values[0]])
    values = [{k: x for k, x in v.items() if k not in right} for v in values]
    _, problems = comparison.compare(comparison.EMPTY, *values)
  nothing = (
    "; a replica may get no examples, and must then update nothing, as by"
    " tf.where(rows > 0, new, old)"
  )
  return [
    *(f"{problem}{nothing}" for problem in problems),
    *_wrong_outputs_of_none(model, call, made, outputs),
  ]


def _wrong_outputs_of_none(
  model: Any, call: Callable[..., Any], made: Call, outputs: Any
) -> list[str]:
  """Returns a problem for each wrong output of a call with 0 rows."""
  arrays = observation.named_arrays(outputs)
  problems = [
    f"{name} is not finite"
    for name, y in arrays.items()
    if comparison.is_inexact(y)
    and not np.isfinite(y.astype(np.complex64)).all()
  ]
  shapes = {k: y.shape for k, y in arrays.items() if any(y.shape[:1])}
  if shapes:
    some, _ = observation.run(model, call, made.example, made.arguments)
    # Outputs without a batch dimension may have any shape.
    batched = {
      k
      for k, y in observation.named_arrays(some).items()
      if y.shape[:1] == (observation.rows(made.example),)
    }
    problems += [
      f"{name} has the shape {shape}"
      for name, shape in shapes.items()
      if name in batched
    ]
  return problems


def _rightly_moved(
  model: Any,
  call: Callable[..., Any],
  made: Call,
  none: Any,
  names: Iterable[str],
) -> set[str]:
  """Finds non-trainable variables that a batch of 0 rows, `none`, may change.

  - Variables that every batch changes alike, such as steps, temperatures and
    averages of weights. They must also change alike from zeros, because a small
    effect of the data may not show beside large values.
  - Sums over rows, such as those of a codebook. Twice the rows add twice as
    much to the value that an empty batch leaves.
  - Variables that another batch sets to the same values with and without the
    empty batch, as in batch renormalization.
  """

  def after(*batches: Any, zeroed: bool = False) -> Arrays:
    def calls(_: Any, **arguments: Any) -> None:
      for v in observation.moving_variables(model) if zeroed else ():
        v.assign(tf.zeros_like(v))
      for batch in batches:
        call(batch, **arguments)

    return observation.run(model, calls, None, made.arguments)[1]

  some = made.example
  first = tf.nest.map_structure(lambda x: x[:1], some)
  twice = tf.nest.map_structure(lambda x: tf.concat([x, x], 0), some)
  orders = [], [none], [some], [first], [twice], [none, some], [some, none]
  try:
    seen = [after(*batches) for batches in orders]
    seen += [after(batch, zeroed=True) for batch in (none, some, first)]
  except (ValueError, tf.errors.OpError):  # The model takes no other sizes.
    return set()
  return {
    name
    for name in names
    if _is_rightly_moved(*(x[name].astype(np.complex128) for x in seen))
  }


def _is_rightly_moved(
  old: np.ndarray,
  empty: np.ndarray,
  full: np.ndarray,
  one: np.ndarray,
  double: np.ndarray,
  before: np.ndarray,
  last: np.ndarray,
  *of_zeros: np.ndarray,
) -> bool:
  """Judges a variable by its values after the batches of `_rightly_moved`."""

  def near(x: np.ndarray, y: np.ndarray, of: Any, share: float = 1e-3) -> bool:
    x, y = np.abs(x - y).max(initial=0.0), np.abs(of).max(initial=0.0)
    return bool(x <= share * y)

  from_0, *others = of_zeros
  is_alike = all(near(x, empty, empty - old) for x in (full, one)) and all(
    near(x, from_0, from_0) for x in others
  )
  rows = full - empty
  is_sum = near(double - full, rows, rows, 0.1) and rows.any()
  is_harmless = near(last, full, full - old) and (
    near(before, full, full - old) or near(empty, old, full - old)
  )
  return bool(np.isfinite(empty).all() and (is_alike or is_sum or is_harmless))


def _under_xla(
  step: tf.types.experimental.PolymorphicFunction, made: Call
) -> tuple[list[str], list[str]]:
  """Examines the train step of an export; returns problems and notes."""
  if any(x.dtype == tf.string for x in tf.nest.flatten(made.example)):
    return [], [
      "XLA takes no strings. Consumers can train the export without XLA only,"
      " and not on TPUs; a sub-object that takes numbers is compared by itself."
    ]
  if any(isinstance(x, tf.RaggedTensor) for x in tf.nest.flatten(made.example)):
    return [], [
      "XLA takes no RaggedTensors. Consumers can train the export without XLA"
      " only, and not on TPUs."
    ]
  trace = step.get_concrete_function(made.example, **made.arguments)
  graph = trace.graph.as_graph_def()
  if loops := xla_trap.loops(graph):
    # XLA refuses such a step, whatever else it contains.
    return [], [
      f"XLA cannot compile the gradient of {loop}, a loop of unlimited length."
      " Consumers can train the export without XLA only, and not on TPUs."
      for loop in loops
    ]
  return [
    f"{cause}, so XLA recompiles every train step: reduce with keepdims=True,"
    " or give its layer xla.with_own_gradient, by the layer_calls of"
    " saving.source"
    for cause in xla_trap.constants(trace)
  ] + [
    f"XLA cannot compile the gradient of {op}: compute without a branch on a"
    " Tensor"
    for op in xla_trap.branches(graph)
  ], []


def _check_served(
  model: Any,
  part: str,
  signature: str,
  inputs: Mapping[str, tf.Tensor],
  made: Call,
) -> Result:
  """Compares a signature with a direct call of the model or sub-object."""
  kind = "signatures"
  if signature not in model.signatures:
    problem = "there is no signature of this name"
    return _result(part, kind, signature, 0.0, [problem])
  called = _part(model, part)
  if made.random:  # Random ops with seeds draw the same values again.
    tf.random.set_seed(1)
  structure = observation.run(called, called, made.example, {})[0]
  if made.random:
    tf.random.set_seed(1)
  served = model.signatures[signature](**inputs)
  if isinstance(structure, Mapping):
    named = structure
  else:  # The names of a list's outputs are sorted.
    is_list = isinstance(structure, (list, tuple))
    listed = structure if is_list else [structure]
    tensors = [y for y in listed if isinstance(y, tf.Tensor)]
    named = dict(zip(sorted(served), tensors, strict=False))
  outputs = observation.named_arrays(
    {k: y for k, y in named.items() if isinstance(y, tf.Tensor)}
  )
  compared = comparison.compare(kind, outputs, observation.named_arrays(served))
  return _result(part, kind, signature, *compared)


def _check_saved_again(
  export_dir: str,
  model: Any,
  signature: str,
  inputs: Mapping[str, tf.Tensor],
) -> Result:
  """Compares a signature of the export with that of a copy saved from it."""
  kind = "saved again"
  try:
    again = _saved_again(export_dir, model, signature, inputs)
  except tf.errors.OpError as e:
    compared = 0.0, [f"it does not work: {' '.join(e.message.split())}"]
  else:
    served = observation.named_arrays(model.signatures[signature](**inputs))
    compared = comparison.compare(kind, served, again)
  return _result("", kind, "", *compared)


def _in_keras(model: Any, made: Call) -> tuple[Arrays, Arrays]:
  """Observes a loaded model and a hub.KerasLayer that wraps it."""
  arguments = dict(made.arguments)
  training = {k: arguments.pop(k) for k in ["training"] if k in arguments}
  # Keras casts floats of the input to the layer's dtype.
  dtypes = [x.dtype for x in tf.nest.flatten(made.example)]
  dtype = next((x for x in dtypes if x.is_floating), None)
  layer = hub.KerasLayer(
    model, trainable=True, arguments=arguments, dtype=dtype
  )

  def see(
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
    weights: Sequence[tf.Variable],
    losses: Sequence[tf.Tensor],
  ) -> Arrays:
    outputs, _ = observation.run(model, call, made.example, arguments)
    seen = {"outputs": outputs, "regularization loss": losses}
    return observation.named_arrays(seen) | observation.positions_in(
      model, weights
    )

  losses = [f() for f in model.regularization_losses]
  return (
    see(model, made.arguments, model.trainable_variables, losses),
    see(layer, training, layer.trainable_weights, layer.losses),
  )


def _in_other_forms(
  model: Any, call: Callable[..., Any], made: Call
) -> Iterator[tuple[str, str, Arrays, Arrays]]:
  """Calls a loaded model with each other form of the input that it takes.

  `call` calls the model with inputs like the example. Tracing gradients takes
  seconds, so gradients are not compared where a form only converts the input
  for the function of the example's form.

  Yields:
    The name of the form, the kind of the comparison, and the outputs and
    updates, or the gradients, of two calls with the same values: in the form of
    the example, and in this form.
  """
  example = made.example
  values = tf.nest.flatten(
    list(example.values()) if isinstance(example, Mapping) else example
  )
  forms = _other_forms(model, example, values)

  def see(like: Any, specs: Sequence[tf.TensorSpec], kind: str) -> Arrays:
    def function(given: Sequence[tf.Tensor], **arguments: Any) -> Any:
      # The function casts the values of both forms, which rounds their
      # gradients alike.
      given = [tf.cast(x, s.dtype) for x, s in zip(given, specs, strict=True)]
      if like is example:
        given = [
          tf.cast(x, v.dtype) for x, v in zip(given, values, strict=True)
        ]
      inputs = (
        dict(zip(like, given, strict=True))
        if isinstance(like, Mapping)
        else tf.nest.pack_sequence_as(like, given)
      )
      return (call if like is example else model)(inputs, **arguments)

    if made.seeded:  # After `set_seed` TensorFlow prepares all graphs again.
      tf.random.set_seed(1)  # Random ops with seeds draw the same values again.
    if kind == "gradients":
      function = observation.train_step(model, function, of_inputs=True)
    result, updates = observation.run(model, function, values, made.arguments)
    if kind == "gradients":
      return observation.gradient_arrays(model, result[1])
    return observation.named_arrays({"outputs": result}) | updates

  # For values that all forms can express, one call in the example's form is
  # enough.
  for _, specs, _ in forms.values():
    values = [
      tf.cast(tf.cast(x, s.dtype), x.dtype) if s.dtype.is_floating else x
      for x, s in zip(values, specs, strict=True)
    ]
  of_example = functools.cache(lambda: see(example, values, "other forms"))
  for name, (form, specs, only_converts) in forms.items():
    cast = [tf.cast(x, s.dtype) for x, s in zip(values, specs, strict=True)]
    back = [tf.cast(x, v.dtype) for x, v in zip(cast, values, strict=True)]
    is_same = all(map(np.array_equal, back, values))
    kind = "other forms"
    expected = of_example() if is_same else see(example, specs, kind)
    yield name, kind, expected, see(form, specs, kind)
    if not only_converts and (
      model.trainable_variables or observation.float_inputs(values)
    ):
      kind = "gradients"
      yield name, kind, see(example, specs, kind), see(form, specs, kind)


def _other_forms(
  model: Any, example: Any, values: Sequence[tf.Tensor]
) -> dict[str, tuple[Any, Sequence[tf.TensorSpec], bool]]:
  """Finds the forms of the input that a model takes besides the example's.

  Args:
    model: The loaded model.
    example: The input.
    values: The Tensors in it.

  Returns:
    For each form by name: its specs as the model takes them, the same as a
    list, and whether its functions only convert the input for a function of
    the example's form.
  """
  forms, own = {}, set()
  traces = collections.defaultdict(list)
  for function in model.__call__.concrete_functions:
    form = function.structured_input_signature[0][0]
    if isinstance(form, Mapping) and isinstance(example, Mapping):
      form = {key: form[key] for key in example}
    is_dict = isinstance(form, Mapping)
    specs = list(form.values()) if is_dict else tf.nest.flatten(form)
    are_tensors = all(isinstance(x, tf.TensorSpec) for x in specs)
    if not are_tensors or len(specs) != len(values):
      continue
    name = ", ".join(x.dtype.name for x in specs)
    if form is not specs[0]:
      name = f"{'dict' if is_dict else 'list'} of {name}"
    is_own = is_dict == isinstance(example, Mapping) and all(
      x.dtype == v.dtype for x, v in zip(specs, values, strict=True)
    )
    if is_own:
      own.add(tf.compat.as_str(function.name))
    else:
      forms.setdefault(name, (form, specs))
      traces[name].append(function.graph)
  return {
    name: (*form, all(_only_converts(graph, own) for graph in traces[name]))
    for name, form in forms.items()
  }


def _only_converts(graph: tf.Graph, functions: Collection[str]) -> bool:
  """Tells whether a graph only converts Tensors and calls `functions`."""
  return all(
    op.get_attr("f").name in functions
    if op.type in graphs.CALLS
    else op.type in _CONVERSIONS and "_gradient_op_type" not in op.node_def.attr
    for op in graph.get_operations()
  )


def _saved_again(
  export_dir: str,
  model: Any,
  signature: str,
  inputs: Mapping[str, tf.Tensor],
) -> Arrays:
  """Saves a loaded export again; returns outputs of the copy.

  The export is moved away before the copy is loaded.
  """
  with tempfile.TemporaryDirectory() as again:
    if is_keras := isinstance(model, tf_keras.Model):
      model.save(again, include_optimizer=False, signatures=model.signatures)
    else:
      tf.saved_model.save(model, again, model.signatures)
    # Renamed in place, so that a lock on the directory stays valid.
    moved = f"{export_dir}.moved"
    os.rename(export_dir, moved)
    try:
      loaded = (_load_keras if is_keras else tf.saved_model.load)(again)
      return observation.named_arrays(loaded.signatures[signature](**inputs))
    finally:
      os.rename(moved, export_dir)


def _in_one_order(
  new: Observation, old: Observation
) -> tuple[Observation, Observation]:
  """Renumbers the variables in `new` like those of the same name in `old`.

  Keras lists the variables of some layers in another order, so the positions of
  trainable variables are left out of both.
  """

  def name(key: str) -> str:
    return key.partition(" ")[2] or key  # Without the index.

  keys = collections.defaultdict(list)
  for key in old.arrays:
    keys[name(key)].append(key)
  arrays = {
    keys[name(key)].pop(0) if keys[name(key)] else key: array
    for key, array in new.arrays.items()
  }
  if new.kind != "trainable variables":
    return new._replace(arrays=arrays), old
  nothing = np.array(0)
  return (
    new._replace(arrays=dict.fromkeys(arrays, nothing)),
    old._replace(arrays=dict.fromkeys(old.arrays, nothing)),
  )


def _load_keras(export_dir: str) -> Any:
  """Loads a complete Keras model; adds the interface of other exports."""
  try:
    model = tf_keras.models.load_model(export_dir, compile=False)
  except (MemoryError, OSError, tf.errors.OpError):
    raise
  except Exception as e:  # Layers that Keras rebuilds may raise anything.
    raise ValueError(f"Keras raises {type(e).__name__}: {e}") from e
  # Bypasses Keras' setter, which would make Keras save the losses.
  vars(model)["regularization_losses"] = [
    lambda i=i: model.losses[i] for i in range(len(model.losses))
  ]
  # As in `saving.source`, leaves out vocabularies and variables without a size,
  # which preprocessing layers adapt.
  kind = type(model)
  listed = property(
    lambda model: [
      v
      for v in kind.variables.fget(model)
      if isinstance(v, tf.Variable) and v.shape.is_fully_defined()
    ]
  )
  model.__class__ = type(kind.__name__, (kind,), {"variables": listed})
  return model


def write(path: pathlib.Path, value: Any) -> None:
  """Writes nested containers of arrays and Tensors to a file for `_read`.

  The memory of arrays goes to a second file, which the reader maps.
  """
  buffers: list[pickle.PickleBuffer] = []
  pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
  memory = [buffer.raw() for buffer in buffers]
  with open(f"{path}.memory", "wb") as f:
    f.writelines(memory)
  path.write_bytes(pickle.dumps((pickled, [m.nbytes for m in memory])))


def _read(path: str) -> Any:
  pickled, sizes = pickle.loads(pathlib.Path(path).read_bytes())
  memory = memoryview(b"")
  if any(sizes):
    with open(f"{path}.memory", "rb") as f:
      memory = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
  ends = itertools.accumulate(sizes)
  parts = [memory[e - s : e] for s, e in zip(sizes, ends, strict=True)]
  return pickle.loads(pickled, buffers=parts)


def _lines() -> Iterator[str]:
  for line in sys.stdin:
    yield json.loads(line)
  sys.exit(1)  # The exporter's process has ended early, and reports why.


def main(level: str) -> None:
  """Checks an export; the module docstring describes standard input.

  Args:
    level: `full` or `fast`, as in `verification.verify`.
  """
  # Graphs are many long-lived objects; see `command_line`.
  gc.set_threshold(100_000, 20, 100)
  # Optimizing graphs that run once or twice takes longer than running them.
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
  # TensorFlow warns if it traces the train steps of several sub-objects.
  tf.get_logger().setLevel("ERROR")
  lines = _lines()
  export_dir = next(lines)
  results_path = next(lines)
  is_keras = os.path.exists(os.path.join(export_dir, "keras_metadata.pb"))
  if is_keras:  # Keras warns at every save.
    logging.set_verbosity(logging.ERROR)
  try:
    model = (_load_keras if is_keras else observation.load)(export_dir)
    if "tensorflow_text" in sys.modules:
      print("  - the export needs tensorflow_text for its ops", flush=True)
    plan, served = _read(next(lines))
    results = check(
      export_dir,
      model,
      {part: [Call(*c) for c in calls] for part, calls in plan.items()},
      served,
      (Observation(*_read(line)) for line in lines),
      save_again=level == "full",
    )
  except (LookupError, OSError, ValueError, tf.errors.OpError) as e:
    if errors.is_of_full_memory(e) or "OOM when allocating" in str(e):
      os._exit(errno.ENOMEM)
    if getattr(e, "errno", None) in (errno.ENOSPC, errno.EPIPE):
      os._exit(e.errno)  # Nothing reads or stores what this process prints.
    done = "differentiated" if isinstance(e, LookupError) else "called"
    problem = f"it cannot be loaded and {done}: {' '.join(str(e).split())}"
    results = [Result("", "", [problem])]
  try:
    pathlib.Path(results_path).write_text(json.dumps(results))
  except OSError as e:  # The disk is full, which `verification` reports.
    os._exit(e.errno)


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as directory:
    # Deletes AutoGraph's files, which TensorFlow's teardown would delete.
    tempfile.tempdir = directory
    main(sys.argv[1])
  # Skips that teardown, which takes seconds.
  sys.stdout.flush()
  os._exit(0)
