"""Verifies that an export behaves like its live model."""

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
import dataclasses
import errno
import functools
import hashlib
from importlib import metadata
import itertools
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
from rich import console
from rich import table
import tensorflow as tf

from distribution import publishing
from distribution import scratch
from exporters.reusable import comparison
from exporters.reusable import errors
from exporters.reusable import export_checks
from exporters.reusable import hyperparameters
from exporters.reusable import imports
from exporters.reusable import latency
from exporters.reusable import layer_calls
from exporters.reusable import observation
from exporters.reusable import private_api
from exporters.reusable import randomness
from exporters.reusable import saving

# Packages whose versions are recorded. TensorFlow's is recorded separately,
# because its package has several names.
_PACKAGES = ("tf-keras", "tensorflow-hub", "tf-models-official")

_KERAS_NOTE = (
  "A complete Keras model has no hyperparameters as arguments, Keras loads it"
  " in place of hub.KerasLayer, and may list its variables in another order:"
  " none of these is compared."
)

# The number of other examples to try if rounding errors decide.
_OTHER_EXAMPLES = 3

# Rows of a large batch. It has `_MORE` rows if a call costs little: if the
# number of weights times the number of values in a row is below `_LITTLE`. The
# rows are in random order, because errors may have a period.
_MANY, _MORE = 36, 300
_TRAINED = 8  # In training, if inference has `_MANY`; else `_MANY`.
_LITTLE = 5e8


# A model or a sub-object, and its inputs.
Part = tuple[saving.Source, Sequence[Any]]


class _Training(NamedTuple):
  """How a model is trained.

  Attributes:
    arguments: The arguments of a call in training; {} for a model without
      modes.
    steadily: The same arguments, and rates that switch noise off.
    by_default: Whether training with `arguments` is random.
    is_random: Whether training with `steadily` is still random.
    is_straight: Whether a call and its graph can draw the same random numbers.
    learning: Whether to observe `gradients` and `updates`, by these names.
  """

  arguments: Mapping[str, Any]
  steadily: Mapping[str, Any]
  by_default: bool
  is_random: bool
  is_straight: bool
  learning: Mapping[str, bool]

  @property
  def mode(self) -> str:
    """The mode in which consumers train."""
    return "training" if self.arguments else "inference"


def start(level: str) -> subprocess.Popen | None:
  """Starts the process that checks an export; returns None if `level` is `off`.

  Call it early: importing TensorFlow takes seconds. The process exits with this
  one at the latest.
  """
  if level == "off":
    return None
  return subprocess.Popen(
    scratch.tied(
      [
        sys.executable,
        "-P",  # Keeps this directory, whose names are not unique, off the path.
        "-Wignore:pkg_resources is deprecated",  # By tensorflow-hub.
        export_checks.__file__,
        level,
        *imports.OPTIONAL,
        "scipy",  # Layers of Model Garden need it; an export does not.
      ]
    ),
    env={
      **os.environ,
      "PYTHONPATH": str(pathlib.Path(export_checks.__file__).parents[2]),
      "CUDA_VISIBLE_DEVICES": "-1",  # See `_compared`.
      "TF_USE_LEGACY_KERAS": "1",  # tensorflow-hub is Keras 2.
    },
    stdin=subprocess.PIPE,
    bufsize=0,
  )


def verify(
  export_dir: str,
  source: saving.Source,
  examples: Sequence[Any],
  level: str,
  *,
  sub_objects: Mapping[str, Part] | None = None,
  served: Mapping[str, str] | None = None,
  is_keras: bool = False,
  process: subprocess.Popen | None = None,
  record: Mapping[str, Any] | None = None,
  keep_failed: str | None = None,
  measure_latency: bool = False,
  notes: Iterable[str] = (),
) -> dict[str, Any]:
  """Compares an export with its live model, in a process without model code.

  The comparisons that passed are written to `assets.extra/verification.json` in
  the export, with a SHA-256 of dtype, shape and value of all variables.

  Args:
    export_dir: The directory of the SavedModel.
    source: The live model.
    examples: Inputs of different sizes: Tensors, RaggedTensors, or lists or
      dicts of them.
    level: `full`, `fast` or `off`. `fast` uses only the first example, and
      skips gradients, changed hyperparameters, hub.KerasLayer, the empty batch,
      compilation under XLA and saving again.
    sub_objects: Model and inputs of each attribute of the export that is
      reusable by itself, such as `mlm`. Each is compared like `source`. Without
      inputs, only its variables and losses are compared.
    served: The name of the sub-object that each signature calls, by the name of
      the signature; "" is the model. Default: `serving_default` calls the
      model.
    is_keras: Whether the export is a complete Keras model. It is then loaded by
      Keras, and compared without changed hyperparameters.
    process: The result of `start`, if it was called before.
    record: Further entries of the report, such as the flags of the exporter.
    keep_failed: Where to move an export that fails.
    measure_latency: Whether to measure latency, once the export has passed.
    notes: Further notes for the report, from `saving.save`.

  Returns:
    The report; {} if `level` is `off`.

  Raises:
    ExportError: The export differs, or does not compile once under XLA.
  """
  if level == "off":
    return {}
  print(f"Verifying the export ({level})", flush=True)
  if is_keras:
    defaults = {k: v for k, v in source.defaults.items() if k == "training"}
    source = dataclasses.replace(source, hyperparameters=(), defaults=defaults)
  parts = {"": (source, examples), **(sub_objects or {})}
  results, weights_sha256 = _decided(export_dir, parts, served, level, process)
  if is_keras:
    print(f"  - {_KERAS_NOTE}")
    results.append(
      export_checks.Result(
        "hyperparameters", "hyperparameters", (), [_KERAS_NOTE]
      )
    )
  problems = [
    (r.place, text + _layer(parts, text))
    for r in results
    for text in r.problems
  ]
  full = os.strerror(errno.ENOSPC)
  if any(full in text for _, text in problems):
    raise errors.ExportError(
      f"Cannot write {tempfile.gettempdir()}: {full}{errors.SCRATCH}"
    )
  if problems:
    raise _failed(problems, export_dir, keep_failed)
  entries = {"level": level, "weights_sha256": weights_sha256}
  if measure_latency:
    example = _listed(examples[0], source)
    entries["latency"] = latency.measure(
      export_dir, source, example, is_keras=is_keras
    )
  results.append(export_checks.Result("slimming", "", (), list(notes)))
  return _write_report(export_dir, results, {**(record or {}), **entries})


def check_forms(
  source: saving.Source, forms: Iterable[Any], example: Any
) -> None:
  """Refuses other dtypes for which the live model computes other results.

  The export casts the input. A model may do more, such as scale integers.

  Raises:
    ExportError: The outputs of the live model differ.
  """
  call = _explained(source.call)

  def cast(x: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    is_rounded = x.dtype.is_floating and spec.dtype.is_integer
    return tf.cast(100 * tf.abs(x) if is_rounded else x, spec.dtype)

  for form in forms:
    try:
      given = tf.nest.map_structure(cast, example, form)
      cast_back = tf.nest.map_structure(cast, given, source.input_spec)
      actual = call(given)
    except (ValueError, TypeError, tf.errors.OpError, errors.ExportError):
      continue  # Only the export takes this form, such as a list.
    try:
      expected = observation.named_arrays(call(cast_back))
    except errors.ExportError as e:
      raise errors.ExportError(
        f"The model takes {form}, and not the same numbers in the form of its"
        f" input, to which the export casts them. Leave it out of also_takes."
        f" ({e})"
      ) from e
    for name, x in observation.named_arrays(actual).items():
      y = expected[name]
      if not comparison.is_inexact(x) or x.shape != y.shape:
        continue
      # The difference exceeds the precision of any dtype.
      if np.abs(x - y).max(initial=0.0) > 0.1 * np.abs(y).max(initial=0.0):
        if observation.differ(source, call, example, {}, {}):
          return  # Random outputs always differ.
        raise errors.ExportError(
          f"The model computes {name} otherwise for {form} than for the same"
          " numbers in the form of its input, to which the export casts them."
          " Leave it out of also_takes, or compute the same for both."
        )


def _failed(
  problems: Sequence[tuple[str, str]], export_dir: str, keep_failed: str | None
) -> errors.ExportError:
  """Prints what differs, and moves the export to `keep_failed`, if given."""
  _print_table(problems)
  if keep_failed:
    try:
      os.rename(export_dir, keep_failed)
    except OSError:  # `keep_failed` is on another file system.
      with publishing.publish(keep_failed) as failed_dir:
        shutil.copytree(export_dir, failed_dir, dirs_exist_ok=True)
  return errors.ExportError(
    f"The export failed its verification in {len(problems)} ways (see above)."
    " Nothing was exported"
    + (f"; it is kept at {keep_failed}." if keep_failed else ".")
  )


def _decided(
  export_dir: str,
  parts: Mapping[str, Part],
  served: Mapping[str, str] | None,
  level: str,
  process: subprocess.Popen | None,
) -> tuple[list[export_checks.Result], str]:
  """Compares an export with its model; tries other examples if undecided.

  An export passes if each comparison has passed with one of the examples, and
  none has failed with any of them.

  Returns:
    The same as `_compared`.
  """
  results, weights_sha256 = _compared(export_dir, parts, served, level, process)
  where = "in this example"
  for seed in range(_OTHER_EXAMPLES):
    found = [r for r in results if r.problems]
    if not found or not all(r.undecided for r in found):
      break
    print("  - rounding errors decide: compared again with other examples")
    others = {
      name: (source, [_other(x, seed) for x in examples])
      for name, (source, examples) in parts.items()
    }
    try:
      again, _ = _compared(export_dir, others, served, level, None)
    except errors.ExportError as e:  # The model may not take such values.
      print(f"  - other examples failed: {e}")
      break
    where = f"in each of {seed + 2} examples"
    by_place = {r.place: r for r in again}
    kept = [by_place.get(r.place, r) if r.undecided else r for r in results]
    results = kept + [
      r for r in again if r.problems and not r.undecided and r not in kept
    ]
  more = f" {where}, so nothing is decided"
  return [
    r._replace(problems=[p + more * r.undecided for p in r.problems])
    for r in results
  ], weights_sha256


def _other(example: Any, seed: int) -> Any:
  """Shuffles the values of an example, and scales those that are floats."""

  def other(x: Any) -> Any:
    if isinstance(x, tf.RaggedTensor):
      return x.with_flat_values(other(x.flat_values))
    if isinstance(x, tf.SparseTensor):
      return x.with_values(other(x.values))
    # Equal seeds keep the inputs of a sequence, such as ids and mask, together.
    values = tf.random.experimental.stateless_shuffle(
      tf.reshape(x, [-1]), [seed, 0]
    )
    if x.dtype.is_floating:
      scale = tf.random.stateless_uniform(values.shape, [seed, 1], 0.9, 1.0)
      values *= tf.cast(scale, x.dtype)
    return tf.reshape(values, x.shape)

  return tf.nest.map_structure(other, example)


def _compared(
  export_dir: str,
  parts: Mapping[str, Part],
  served: Mapping[str, str] | None,
  level: str,
  process: subprocess.Popen | None,
) -> tuple[list[export_checks.Result], str]:
  """Observes the live model and lets the process compare the export with it.

  Returns:
    The results, and a SHA-256 of the live model's variables.
  """
  weights = hashlib.sha256()
  with (
    tempfile.TemporaryDirectory() as work_dir,
    errors.writing(work_dir, errors.SCRATCH),
  ):
    results_path = pathlib.Path(work_dir, "results.json")
    # A process that ends early prints the reason; its status is read below.
    with (
      contextlib.suppress(BrokenPipeError),
      process or start(level) as process,
    ):

      def send(path: str | os.PathLike[str]) -> None:
        process.stdin.write(f"{json.dumps(str(path))}\n".encode())

      send(export_dir)
      send(results_path)
      # Both processes compute on the CPU. GPUs multiply float32 in TF32, with
      # errors of a thousandth, and training may have filled the GPU's memory.
      with tf.device("/CPU:0"):
        plan, named, seen = observe(parts, level, served)
        # Plain tuples: the class `Call` has another name in the process.
        plain = {name: list(map(tuple, calls)) for name, calls in plan.items()}
        for i, item in enumerate(itertools.chain([(plain, named)], seen)):
          if i and item.kind == "variables":
            for digest in item.arrays.values():
              weights.update(digest)
          path = pathlib.Path(work_dir, str(i))
          export_checks.write(path, tuple(item))
          send(path)
    if process.returncode in (errno.ENOMEM, errno.ENOSPC, errno.EPIPE):
      raise OSError(process.returncode, os.strerror(process.returncode))
    if process.returncode:
      raise errors.ExportError(
        "The process that verifies the export has ended early,"
        f" {_end(process.returncode)}: nothing is known of the export."
      )
    results = [
      export_checks.Result(*r) for r in json.loads(results_path.read_text())
    ]
  return results, weights.hexdigest()


def _end(status: int) -> str:
  """Describes how a process ended."""
  if status > 0:
    return f"with exit status {status}"
  name = signal.Signals(-status).name
  memory = ", perhaps because memory is full" if name == "SIGKILL" else ""
  return f"killed by {name}{memory}"


def _layer(parts: Mapping[str, Part], problem: str) -> str:
  """Names the innermost layer in the path that a problem has, and its class."""
  by_name = {
    layer.name: layer_calls.class_name(type(layer))
    for source, _ in parts.values()
    for layer in layer_calls.modules(source.model)[1:]
  }
  path = re.search(r"\((\S+) in \S+\)", problem)
  for name in path[1].split("/")[::-1] if path else ():
    if layer := by_name.get(name):
      return f" (layer {name}: {layer})"
  return ""


def observe(
  parts: Mapping[str, Part],
  level: str,
  served: Mapping[str, str] | None = None,
) -> tuple[
  dict[str, list[observation.Call]],
  dict[str, tuple[str, list[str]]],
  Iterator[observation.Observation],
]:
  """Observes a live model and its sub-objects.

  Returns:
    The calls by name of the sub-object, the sub-object and the names of the
    inputs of each signature, and the observations.
  """
  named = {
    signature: (part, [*saving.input_specs(parts[part][0].input_spec)])
    for signature, part in (served or {"serving_default": ""}).items()
  }
  parts = {
    name: (dataclasses.replace(source, call=_explained(source.call)), examples)
    for name, (source, examples) in parts.items()
  }
  # Before the first call: after it, TensorFlow copies some variables when it
  # reads them.
  states = {
    name: list(observation.observe_state(name, source))
    for name, (source, _) in parts.items()
  }
  plan = {
    name: _named_apart(
      _calls(name, source, [_listed(x, source) for x in examples], level)
    )
    for name, (source, examples) in parts.items()
  }
  for name, (source, _) in parts.items():
    after = next(observation.observe_state(name, source)).arrays
    _, changed = comparison.compare("variables", states[name][0].arrays, after)
    if changed:
      # Changes of other variables are undone.
      raise errors.ExportError(
        "A call of the model changes a trainable variable, or a regularization"
        f" loss changes a variable: {changed[0]}. Verification could not undo"
        " that. Let calls change variables that are not trainable, and losses"
        " none."
      )
  for source, examples in parts.values():
    if any(source.unread) and examples:
      _check_unread(source, _listed(examples[0], source))

  def seen() -> Iterator[observation.Observation]:
    for name, (source, _) in parts.items():
      yield from states[name]
      yield from _observe_calls(name, source, plan[name])

  return plan, named, seen()


def _observe_calls(
  part: str, source: saving.Source, calls: Sequence[observation.Call]
) -> Iterator[observation.Observation]:
  """Observes calls of a live model; refuses results that prove nothing."""
  step = _explained(observation.train_step(source, source.call, of_inputs=True))
  sizes = collections.defaultdict(set)
  as_it_is = {c.name for c in calls if not c.reweighted}
  for observed in observation.observe_calls(
    part, source, source.call, calls, lambda *_: step
  ):
    if observed.kind == "outputs":
      for output, y in observed.arrays.items():
        sizes[output].update(y.shape[-1:])
        if observed.call == calls[0].name:
          _check_numbers(f"{observed.place}: {output}", y)
    if observed.kind == "gradients" and observed.call in as_it_is:
      for variable, x in observed.arrays.items():
        if not variable.startswith(comparison.INPUT):
          _check_numbers(f"{observed.place}: {variable}", x)
    yield observed
  _check_last_dimensions(source, [c.example for c in calls], sizes)


def _check_numbers(place: str, values: np.ndarray) -> None:
  """Refuses values that are all NaN, because all NaN values count as equal."""
  if values.size and comparison.is_inexact(values) and np.isnan(values).all():
    raise errors.ExportError(
      f"{place} is NaN everywhere, so that nothing could be compared. Give"
      " examples for which outputs and gradients are numbers."
    )


def _check_unread(source: saving.Source, example: Any) -> None:
  """Refuses a model whose outputs depend on variables that no trace reads.

  Raises:
    ExportError: A trace has the value of a variable as a constant.
  """
  for mode, unread in enumerate(source.unread):
    arguments = {"training": True} if mode else {}
    if not unread or observation.differ(
      source, source.call, example, arguments, arguments
    ):
      continue  # Random outputs always differ.
    before = [tf.identity(v) for v in unread]
    outputs, _ = observation.run(source, source.call, example, arguments)
    for variable in unread:
      variable.assign(_changed(variable))
    try:
      others, _ = observation.run(source, source.call, example, arguments)
    except errors.ExportError:  # The model may not take such values.
      continue
    finally:
      for variable, value in zip(unread, before, strict=True):
        variable.assign(value)
    if observation.results_differ((outputs, {}), (others, {})):
      names = ", ".join(v.name for v in unread)
      raise errors.ExportError(
        f"Calls of the model read {names}, which its graph has as constants:"
        " read variables by TensorFlow's functions, not by Python's."
      )


def _changed(variable: tf.Variable) -> tf.Tensor:
  if variable.dtype == tf.bool:
    return tf.logical_not(variable)
  if variable.dtype == tf.string:
    return tf.strings.join([variable, "x"])
  return variable + tf.ones([], variable.dtype)


def _check_last_dimensions(
  source: saving.Source,
  examples: Sequence[Any],
  sizes: Mapping[str, Collection[int]],
) -> None:
  """Refuses a single output Tensor whose graph lost the number of features.

  Layers on the output need this number. Other unknown dimensions follow from
  dimensions of the input or, for texts and ragged inputs, from its values.

  Args:
    source: The live model. A loaded export has no `output_spec`.
    examples: The inputs of all calls.
    sizes: The last dimensions of each output that calls have returned.

  Raises:
    ExportError: The trace does not know the last dimension, although it was the
      same in all calls, with different unknown dimensions of the inputs.
  """
  output = source.output_spec
  if not isinstance(output, tf.TensorSpec) or not output.dtype.is_floating:
    return
  specs = tf.nest.flatten(source.input_spec)
  if any(
    isinstance(s, tf.RaggedTensorSpec) or s.dtype == tf.string for s in specs
  ):
    return
  flat = [tf.nest.flatten(x) for x in examples]
  for i, spec in enumerate(specs):
    for axis, size in enumerate(spec.shape):
      of_axis = {x[i].shape[axis] for x in flat if i < len(x)}
      if size is None and len(of_axis) < 2:
        return
  of_calls = sizes[comparison.ONLY]
  if output.shape.rank > 1 and output.shape[-1] is None and len(of_calls) == 1:
    raise errors.ExportError(
      "The graph of the model loses the last dimension of its output: it is"
      f" {output.shape}, and was always {max(of_calls)} when called. Layers on"
      " it need that number: set it by tf.ensure_shape."
    )


def _explained(call: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a call of a model to report its errors in one line."""

  def explained(*args: Any, **kwargs: Any) -> Any:
    about = "The model cannot be called to compare its export: "
    kinds = (RuntimeError, TypeError, ValueError, tf.errors.OpError)
    try:
      with errors.of_input(*kinds, about=about):
        return call(*args, **kwargs)
    except LookupError as e:
      if "gradient registry" not in str(e):
        raise
      raise errors.ExportError(
        f"Consumers could not train the model: an op has no gradient ({e})."
        " Return its input instead, or stop the gradient before it."
      ) from e

  return explained


def _calls(
  part: str, source: saving.Source, examples: Sequence[Any], level: str
) -> Iterator[observation.Call]:
  """Plans the calls that compare the live model with its export.

  Differentiating the export takes longer than loading it. Therefore only these
  calls compare gradients:

  - the last example of each length of a list, which is often a single row;
  - a larger batch;
  - other weights;
  - other values of hyperparameters.
  """
  if not examples:
    return
  first, last, is_full = examples[0], examples[-1], level == "full"
  how = _training(source, first, level)
  for example in examples if is_full else [first]:
    yield from _calls_of_example(source, examples, example, level, how)
  others = list(_of_other_sizes(source, examples)) if is_full else []
  if how.arguments or not how.is_random:
    longer = _of_other_lengths(source, last) if is_full else ()
    for other in (*longer, *others):
      yield observation.Call(f"inference {_size(other)}", other, {})
  learns = how.arguments or any(how.learning.values())
  larger = _larger(source, others[-1]) if others and learns else None
  larger = first if larger is None else larger
  if is_full:
    yield from _reweighted_calls(source, first, larger, how)
    yield from _changed_calls(source, first, how)
  if how.by_default:
    yield from _random_calls(part, source, first, level, larger, how)


def _training(source: saving.Source, example: Any, level: str) -> _Training:
  """Finds out how a model is trained; refuses behavior that no graph has."""
  steady = {h.name: h.off for h in source.hyperparameters if h.off is not None}
  arguments = {"training": True} if "training" in source.defaults else {}
  steadily = {**arguments, **steady}
  by_default, is_random = _is_random(source, example, arguments, steadily)
  if arguments:
    _check_repeatable(source, example)
  if arguments or not by_default:
    _note_default(source, example)
  if source.inference and not by_default:
    _check_modes(source, example)
  given = source.trainable_variables or observation.float_inputs(example)
  return _Training(
    arguments,
    steadily,
    by_default,
    is_random,
    is_straight=by_default and _is_straight(source, example, arguments),
    learning={
      "gradients": level == "full" and bool(given),
      # Whether there are variables that only calls change.
      "updates": len(source.variables) > len(source.trainable_variables),
    },
  )


def _calls_of_example(
  source: saving.Source,
  examples: Sequence[Any],
  example: Any,
  level: str,
  how: _Training,
) -> Iterator[observation.Call]:
  """Plans the calls with one of the examples, in each mode."""
  first, is_full = examples[0], level == "full"
  is_first = example is first
  # A list of another length has another trace.
  last_ones = {len(tf.nest.flatten(x)): x for x in examples}.values()
  updates = {"updates": how.learning["updates"]}
  of_last = how.learning if any(example is x for x in last_ones) else updates
  compiled = first if how.is_random else examples[-1]
  once = {
    "compilation": is_full
    and bool(source.trainable_variables)
    and example is compiled,
    "empty": is_full
    and is_first
    and all(
      spec.shape.rank and spec.shape[0] is None
      for spec in tf.nest.flatten(source.input_spec)
    ),
  }
  # A model without modes is trained in its only mode.
  if how.arguments or not how.is_random:
    # Consumers may train with normalization as in inference. If there are
    # weights, the gradients of this mode are compared with other weights.
    in_inference = updates if source.variables else how.learning
    if not how.arguments:
      in_inference = {**of_last, **once}
    elif how.is_random:
      in_inference = of_last
    elif not is_first:
      in_inference = {}
    yield observation.Call(
      f"inference {_size(example)}", example, {}, forms=is_first, **in_inference
    )
  call = observation.Call(
    f"{how.mode} {_size(example)}", example, how.steadily, **once
  )
  if how.is_random and is_first:
    yield call._replace(random=True)
  elif how.arguments and not how.is_random:
    keras = is_full and is_first
    forms = keras and not how.by_default
    yield call._replace(keras=keras, forms=forms, **of_last)


def _named_apart(
  calls: Iterable[observation.Call],
) -> list[observation.Call]:
  """Numbers calls of the same name, which has the shape of only one input."""
  apart, count = [], collections.Counter()
  for call in calls:
    if call.without is None:  # Calls with it share the name of another call.
      count[call.name] += 1
      if count[call.name] > 1:
        call = call._replace(name=f"{call.name} ({count[call.name]})")
    apart.append(call)
  return apart


def _is_random(
  source: saving.Source,
  example: Any,
  training: Mapping[str, Any],
  steadily: Mapping[str, Any],
) -> tuple[bool, bool]:
  """Tells whether training is random with `training` and with `steadily`."""
  states = []

  def call(*args: Any, **kwargs: Any) -> Any:
    states.append(_python_state(source.model))
    return source.call(*args, **kwargs)

  differ = functools.partial(observation.differ, source, call, example)
  with saving.no_losses_of_calls(source):  # Traces were checked in `saving`.
    differs = differ(training, training)
    _, before = states  # The first call may build layers.
    _check_same(before, _python_state(source.model))
    # Two calls may draw the same numbers by chance.
    by_default = differs or bool(randomness.draws(_graph(source, example)))
  return by_default, by_default and (
    steadily == training or differ(steadily, steadily)
  )


def _check_repeatable(source: saving.Source, example: Any) -> None:
  """Refuses a model with modes that draws random numbers in inference.

  Raises:
    ExportError: Two calls in inference differ.
  """
  graph = _graph(source, example, training=False)
  if randomness.draws(graph) and observation.differ(
    source, source.call, example, {}, {}
  ):
    raise errors.ExportError(
      "Two calls of the model differ in inference: it draws random numbers"
      " there. Draw in training only, or let consumers pass them as an input."
    )


def _note_default(source: saving.Source, example: Any) -> None:
  """Prints a note if a model's default, `training=None`, is not inference."""
  default = saving.parameters_of(source.model).get("training")
  if not default or default.default is not None:
    return
  try:
    differs = observation.differ(
      source, source.call, example, {}, {"training": None}
    )
  except errors.ExportError:  # The model does not take None.
    return
  if differs:
    print(
      "  - training: Its default is False, as consumers expect. A call of the"
      " model without it computes something else.",
      flush=True,
    )


def _check_modes(source: saving.Source, example: Any) -> None:
  """Refuses a model whose modes differ in eager calls, but not in graphs.

  Raises:
    ExportError: A call in inference differs from one in training.
  """
  others = _other_values(source)
  if any(
    observation.results_differ(
      *(
        observation.run(source, _explained(call), example, arguments)
        for call in (source.call, source.inference)
      )
    )
    for arguments in ({}, others)
  ):
    raise errors.ExportError(
      "A call of the model with training=False differs from one with"
      " training=True, and their graphs do not. Decide by `training` alone."
    )


def _other_values(source: saving.Source, i: int = 0) -> dict[str, Any]:
  """Returns another value of each hyperparameter that is not a rate."""
  rest = [h for h in source.hyperparameters if h.off is None]
  return {h.name: _values_of(h)[i] for h in rest}


def _values_of(
  hyperparameter: hyperparameters.Hyperparameter,
) -> Sequence[Any]:
  """Returns other values of a hyperparameter; its default if there are none.

  The comparison finds no effect of the default, and refuses the export.
  """
  return hyperparameter.others() or [hyperparameter.default]


def _is_straight(
  source: saving.Source, example: Any, training: Mapping[str, Any]
) -> bool:
  """Tells whether a call and its graph can draw the same random numbers."""
  drawn = observation.draws(source, source.call, example, training)
  # More draws than in the graph are a fault, which the comparison finds. There
  # may be fewer if the call uses a function that was traced before.
  return drawn >= randomness.draws(_graph(source, example)) > -1


def _python_state(model: Any) -> dict[Any, Any]:
  """Returns random states, and Python values in a model's modules, by name."""
  _, keys, *more = np.random.get_state()
  return {
    "Python's random": random.getstate(),
    "numpy.random": (keys.tolist(), *more),
    **{
      (i, f"{type(module).__name__}.{name}{key}"): value
      for i, module in enumerate(layer_calls.modules(model))
      for name, held in vars(module).items()
      for key, value in _items(held)
      if isinstance(value, (bool, int, float, str))
    },
  }


def _items(held: Any) -> Iterable[tuple[str, Any]]:
  """Returns the values that an attribute holds, with their keys as text."""
  if not isinstance(held, dict):
    return [("", held)]
  items = held.items()  # `repr` of another kind of key may take long.
  return [(f"[{k!r}]", x) for k, x in items if isinstance(k, (int, str))]


def _check_same(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> None:
  """Refuses a call that changes Python values, which are constants in graphs.

  Raises:
    ExportError: The values of `_python_state` differ.
  """
  for name, value in after.items():
    if value == before.get(name, value):
      continue
    if isinstance(name, str):
      raise errors.ExportError(
        f"A call of the model draws numbers from {name}: its graph repeats"
        " those that it drew while it was traced. Draw them by tf.random."
      )
    raise errors.ExportError(
      f"A call of the model changes {name[1]} from {before[name]} to {value}:"
      " its graph keeps the value that it had when it was traced. Make it a"
      " tf.Variable."
    )


def _changed_calls(
  source: saving.Source,
  example: Any,
  how: _Training,
) -> Iterator[observation.Call]:
  """Plans calls with another value of each hyperparameter.

  Rates bring noise, so `_random_calls` compares calls with other rates. Here it
  is only checked that rates have an effect.
  """
  others = {h.name: _values_of(h)[0] for h in source.hyperparameters}
  if others and (how.arguments or (len(others) > 1 and not how.is_random)):
    # Consumers pass them in inference too, where most have no effect.
    yield observation.Call(f"inference, {_in_words(others)}", example, others)
  for h in source.hyperparameters:
    is_rate = h.off is not None
    # A small rate may drop nothing of a small example.
    values = [0.5] if is_rate else _values_of(h)
    calls = [
      observation.Call(
        f"{h.name} {hyperparameters.literal(value)}",
        example,
        {**how.steadily, h.name: value},
      )
      for value in values
    ]
    if not is_rate and not how.is_random:
      for i, call in enumerate(calls):
        gradients = how.learning["gradients"] and i == 0
        yield call._replace(**{**how.learning, "gradients": gradients})
    yield calls[0]._replace(without=how.steadily)


def _in_words(values: Mapping[str, Any]) -> str:
  return ", ".join(
    f"{k} {hyperparameters.literal(v)}" for k, v in values.items()
  )


def _reweighted_calls(
  source: saving.Source,
  example: Any,
  larger: Any,
  how: _Training,
) -> Iterator[observation.Call]:
  """Plans calls with other weights and moving averages, in each mode.

  The training call takes the larger batch: it shows faults of large batches and
  of other weights at once. It has no gradients if the calls of `_random_calls`
  with other rates have them.
  """
  reweighted = bool(source.variables)
  more = observation.OTHER_WEIGHTS * reweighted
  if how.arguments and reweighted:
    yield observation.Call(
      f"inference {_size(example)}{more}",
      example,
      {},
      **how.learning,
      reweighted=True,
    )
  if not how.is_random and (reweighted or larger is not example):
    yield observation.Call(
      f"{how.mode} {_size(larger)}{more}",
      larger,
      how.steadily,
      gradients=how.learning["gradients"] and not how.is_straight,
      updates=how.learning["updates"],
      reweighted=reweighted,
    )


def _of_other_sizes(
  source: saving.Source, examples: Sequence[Any]
) -> Iterator[Any]:
  """Makes batches of few and of many rows from the first example.

  Inputs with different numbers of rows, such as nodes and edges, are no batch.
  They are repeated instead.
  """
  counts = [{x.shape[0] for x in _batched(source, e)} for e in examples]
  if not all(counts):  # No input has a batch.
    return
  if any(len(rows) != 1 for rows in counts):
    repeated = _of_rows(source, examples[0], _repeated)
    if all(map(all, counts)) and _takes(source, repeated):
      yield repeated
    return
  first, (rows,), counts = examples[0], counts[0], set().union(*counts)
  inputs = tf.nest.flatten(first)
  for count in {0, 1, 2} - counts:
    few = _of_rows(source, first, lambda x, n=count: x[:n])
    # Ids in one input may refer to rows of another input.
    is_sure = count > 0 and len(inputs) == 1
    if count < rows and (is_sure or _takes(source, few, first)):
      yield few
  if rows == 0:
    return
  weights, values = (
    sum(float(tf.size(x)) for x in xs) for xs in (source.variables, inputs)
  )
  many = _MORE if weights * values / rows < _LITTLE else _MANY
  if max(counts) < many:
    if many == _MANY:
      first = _shortened(source, first, examples[-1])
    index = tf.random.stateless_uniform([many], [0, 0], 0, rows, tf.int32)
    yield _of_rows(source, first, lambda x: tf.gather(x, index))


def _repeated(x: Any) -> Any:
  index = tf.range(x.shape[0])
  return tf.gather(x, tf.tile(index, [-(-_TRAINED // x.shape[0])]))


def _shortened(source: saving.Source, example: Any, other: Any) -> Any:
  """Cuts an example to the lengths of another example that is not longer.

  This saves time, because a large batch of a large model takes seconds.
  """
  inputs, specs = _with_specs(source, example)
  others = tf.nest.flatten(other)
  if len(others) != len(inputs) or not all(
    isinstance(x, tf.Tensor) and x.shape.rank for x in [*inputs, *others]
  ):
    return example
  lengths = [x.shape[1:] for x in others]
  cut = [
    x[(slice(None), *map(slice, of_x))]
    for x, of_x in zip(inputs, lengths, strict=True)
  ]
  if (
    any(None in spec.shape[1:] for spec in specs)
    and lengths != [x.shape[1:] for x in inputs]
    and lengths == [x.shape[1:] for x in cut]
  ):
    shorter = tf.nest.pack_sequence_as(example, cut)
    return shorter if _takes(source, shorter) else example
  return example


def _batched(source: saving.Source, example: Any) -> list[Any]:
  """Returns the inputs that have a batch, unlike a scalar or a table."""
  batched = []
  _of_rows(source, example, batched.append)
  return batched


def _of_rows(
  source: saving.Source, example: Any, change: Callable[[Any], Any]
) -> Any:
  """Changes the inputs that have a batch."""
  changed = [
    change(x) if spec.shape.rank and spec.shape[0] is None else x
    for x, spec in zip(*_with_specs(source, example), strict=True)
  ]
  return tf.nest.pack_sequence_as(example, changed)


def _with_specs(
  source: saving.Source, example: Any
) -> tuple[list[Any], list[Any]]:
  """Returns inputs and their specs; repeats the last spec for a longer list."""
  inputs, specs = map(tf.nest.flatten, (example, source.input_spec))
  return inputs, (specs + specs[-1:] * len(inputs))[: len(inputs)]


def _of_other_lengths(source: saving.Source, example: Any) -> Iterator[Any]:
  """Yields an input with small unknown dimensions, and one with doubled ones.

  The dimension of the batch stays. The small sizes are 1 for the first unknown
  dimension of each Tensor, and 2 for the others. If Python code of the model
  branches on such a size, its graph has only one of the branches.
  """
  inputs, specs = _with_specs(source, example)
  if not all(isinstance(x, tf.Tensor) for x in inputs):
    return
  unknown = [
    [axis for axis, size in enumerate(spec.shape) if axis and size is None]
    for spec in specs
  ]
  if not any(unknown) or not all(observation.rows(x) for x in inputs):
    return

  def few(x: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    for i, axis in enumerate(axes):  # An image of one pixel hides resizing.
      size = min(1 if i == 0 else 2, x.shape[axis])
      x = tf.gather(x, tf.range(size), axis=axis)
    return x

  def twice(x: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    for axis in axes:
      x = tf.concat([x, x], axis)
    return x

  for change in (few, twice):
    changed = [*map(change, inputs, unknown)]
    other = tf.nest.pack_sequence_as(example, changed)
    if any(
      x.shape != y.shape for x, y in zip(changed, inputs, strict=True)
    ) and _takes(source, other):
      yield other


def _larger(source: saving.Source, many: Any) -> Any:
  """Returns rows of a large batch to train on; None if it has too few."""
  rows, *others = {x.shape[0] for x in _batched(source, many)}
  if others:  # Ids in one input may refer to rows of another input.
    return many
  count = _MANY if rows > _MANY else _TRAINED
  return _of_rows(source, many, lambda x: x[:count]) if rows >= count else None


def _random_calls(
  part: str,
  source: saving.Source,
  example: Any,
  level: str,
  larger: Any,
  how: _Training,
) -> Iterator[observation.Call]:
  """Plans calls with fixed seeds, or samples of calls.

  If training is always random, these calls take the place of the other training
  calls.
  """
  count = 0
  if not how.is_straight:
    count = _calls_to_compare(part, source, example, how.arguments)
  words = f"{count} calls" if count else "one seed"
  print(
    f"  - {part}{': ' if part else ''}training is random: it is compared with"
    f" {words}",
    flush=True,
  )
  rates = [h for h in source.hyperparameters if h.off is not None]
  rates = rates if level == "full" else []
  call = observation.Call(
    f"{how.mode} {_size(example)}, {words}",
    example,
    how.arguments,
    **how.learning,
    seeded=how.is_straight,
    sampled=count,
  )
  # If there is a call with other rates, that call has the gradients.
  of_rates = how.is_straight and bool(rates)
  yield call._replace(gradients=call.gradients and not of_rates)
  if level != "full":
    return
  reweighted = bool(source.variables)
  fewer = min(count, randomness.LEAST_CALLS)  # They find gross errors.
  of_fewer = f"{fewer} calls" if count else words
  of_fewer += observation.OTHER_WEIGHTS * reweighted
  more = call._replace(example=larger, reweighted=reweighted, sampled=fewer)
  if how.is_random and (reweighted or larger is not example):
    yield more._replace(name=f"{how.mode} {_size(larger)}, {of_fewer}")
  others = [_other_values(source, i) for i in (0, -1)]
  for values in others[: 1 + (others[0] != others[1])]:
    if how.is_random and how.is_straight and values:
      yield more._replace(
        name=f"{_in_words(values)}, {of_fewer}",
        arguments={**how.arguments, **values},
      )
  if rates:
    of = (more, rates, of_fewer) if how.is_straight else (call, rates, words)
    yield from _calls_with_rates(*of)


def _calls_with_rates(
  call: observation.Call,
  rates: Sequence[hyperparameters.Hyperparameter],
  how: str,
) -> Iterator[observation.Call]:
  """Plans random calls with other rates."""
  # Different values tell apart rates with the same default.
  for is_small in (False, True)[: 1 + call.seeded]:
    changed = {
      h.name: h.default / (i + 4)
      if is_small
      else _larger_rate(h.default, i + 4)
      for i, h in enumerate(rates)
    }
    yield call._replace(
      name=f"{_in_words(changed)}, {how}",
      arguments={**call.arguments, **changed},
      gradients=call.seeded and not is_small and call.gradients,
      forms=call.seeded and not is_small,
    )


def _larger_rate(default: float, i: int) -> float:
  """Returns a rate above the default; calls without noise try one below."""
  return 1.0 - (1.0 - default) / i if default < 1.0 else default * i


def _calls_to_compare(
  part: str, source: saving.Source, example: Any, training: Mapping[str, Any]
) -> int:
  """Returns how many calls the comparison of distributions needs."""
  calls = [
    observation.Call("pilot", example, training, sampled=randomness.PILOT_CALLS)
  ]
  (pilot,) = observation.observe_calls(
    part, source, source.call, calls, lambda *_: source.call
  )
  return randomness.calls_to_compare(pilot.arrays)


def _takes(source: saving.Source, few: Any, usual: Any = None) -> bool:
  """Tells whether a model takes a batch of few rows. Some ops do not take 0.

  Eager loops over 0 rows return vectors, whatever they return for more rows.
  Such a batch is used only if the usual outputs are vectors, too.
  """
  try:
    vectors = _vectors(source, few)
  except errors.ExportError:
    return False
  return not any(vectors) or usual is None or vectors == _vectors(source, usual)


def _vectors(source: saving.Source, example: Any) -> list[bool]:
  """Tells which outputs have one dimension."""
  outputs = observation.run(source, source.call, example, {})[0]
  return [len(y.shape) == 1 for y in observation.named_arrays(outputs).values()]


def _graph(source: saving.Source, example: Any, training: bool = True) -> Any:
  """Returns the graph of a call, as it will be exported."""
  arguments = {
    # Python numbers would need new traces.
    name: training if name == "training" else tf.constant(default)
    for name, default in source.defaults.items()
  }
  if source.function:  # The function has this trace already.
    with private_api.as_in_a_save():
      trace = source.function.get_concrete_function(
        source.input_spec, **arguments
      )
  else:  # A loaded export has no Python function to trace.
    trace = tf.function(source.call).get_concrete_function(example, **arguments)
  return trace.graph.as_graph_def()


def _listed(example: Any, source: saving.Source) -> Any:
  """Turns a tuple into a list, as `saving.source` does with the spec.

  The keys of a dict get the order of the spec, in which lists have the inputs.
  Tensors are copied, because a Tensor that occurs twice would get one gradient.
  """
  spec = source.input_spec
  if isinstance(spec, Mapping) and set(spec) == set(example):
    example = {key: example[key] for key in spec}
  example = list(example) if isinstance(example, tuple) else example
  return tf.nest.map_structure(tf.identity, example)


def _size(example: Any) -> str:
  tensors = tf.nest.flatten(example)
  count = f"{len(tensors)} of " if len(tensors) > 1 else ""
  sized = next((x for x in tensors if x.shape.rank), tensors[0])
  return f"{count}{sized.shape}"


def _print_table(problems: Sequence[tuple[str, str]]) -> None:
  result = table.Table(title="Failed verification")
  for name in ("compared", "problem"):
    result.add_column(name, overflow="fold")  # Whole names of classes.
  for row in problems:
    result.add_row(*row)
  terminal = console.Console()
  with terminal.capture() as captured:  # rich exits where a pipe is closed.
    terminal.print(result)
  print(captured.get(), end="")


def _write_report(
  export_dir: str,
  results: Sequence[export_checks.Result],
  record: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes and returns the comparisons that passed, and notes on the others.

  The report is the same in every run, except for `latency`. It omits numerical
  differences, whose last bits depend on how an op splits its work among
  threads.
  """
  try:
    fingerprint = tf.saved_model.experimental.read_fingerprint(export_dir)
    singleprint = fingerprint.singleprint()
  except FileNotFoundError:  # See `private_api.write_fingerprint`.
    singleprint = None
  report = {
    **record,
    "singleprint": singleprint,
    "files": _sha256_of_files(pathlib.Path(export_dir)),
    "versions": {
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
      **{name: metadata.version(name) for name in _PACKAGES},
    },
    "comparisons": [
      {
        **how._asdict(),
        "kind": kind,
        "passed": [r.place for r in results if r.kind == kind and not r.notes],
      }
      for kind, how in comparison.COMPARISONS.items()
    ],
    "notes": [f"{r.place}: {note}" for r in results for note in r.notes],
  }
  directory = pathlib.Path(export_dir, "assets.extra")
  directory.mkdir(exist_ok=True)
  (directory / "verification.json").write_text(
    json.dumps(report, indent=2) + "\n"
  )
  return report


def _sha256_of_files(export_dir: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each file of the model, without `assets.extra`."""
  sha256 = {}
  for path in sorted(export_dir.rglob("*")):
    name = path.relative_to(export_dir)
    if path.is_file() and name.parts[0] != "assets.extra":
      with path.open("rb") as f:
        sha256[name.as_posix()] = hashlib.file_digest(f, "sha256").hexdigest()
  return sha256
