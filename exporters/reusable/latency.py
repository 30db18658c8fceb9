"""Measures how long calls of a live model and of its export take.

Times differ in each run, so they are measured on request only. Each file that
has them calls the entry `latency`, so that comparisons of files can leave it
out.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import platform
import re
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from exporters.reusable import saving

_BATCH_SIZES = (1, 32)
_WARM_UP = 3  # The first call traces, and the next ones still allocate.
_CALLS = 100
# Large models get fewer calls: as many as fit into these seconds.
_FEWEST, _SECONDS = 10, 20


def measure(
  export_dir: str, source: saving.Source, example: Any, *, is_keras: bool
) -> dict[str, Any]:
  """Measures inference of a live model and of its export, and prints medians.

  Both are called as tf.functions, in turn and in this process, so that other
  load on the machine affects both.

  Args:
    export_dir: The directory of the SavedModel.
    source: The live model.
    example: The input. Its first row is repeated to batches of 1 and 32; an
      input with a fixed batch size is taken as it is.
    is_keras: Whether the export is a complete Keras model.

  Returns:
    The entry `latency` of the report; its milliseconds have three digits after
    the point.
  """
  loaded = (
    tf_keras.models.load_model(export_dir, compile=False)
    if is_keras
    else tf.saved_model.load(export_dir)
  )
  calls = {
    "live": tf.function(source.call, autograph=source.autograph),
    "export": tf.function(lambda inputs: loaded(inputs), autograph=False),
  }
  batches = []
  for inputs in _batches(source, example):
    seconds = _in_turn(calls, inputs)
    batches.append(
      {
        "inputs": [_shown(x) for x in tf.nest.flatten(inputs)],
        "calls": len(seconds["live"]),
        **{name: _summary(values) for name, values in seconds.items()},
      }
    )
    medians = (f"{name} {batches[-1][name]['p50']} ms" for name in calls)
    print(
      f"  - latency, {', '.join(batches[-1]['inputs'])}: {', '.join(medians)}",
      flush=True,
    )
  return {"machine": _machine(), "batches": batches}


def _batches(source: saving.Source, example: Any) -> Iterator[Any]:
  """Yields the inputs to measure."""
  specs = tf.nest.flatten(source.input_spec)
  if any(not spec.shape.rank or spec.shape[0] is not None for spec in specs):
    yield example
    return
  for size in _BATCH_SIZES:
    yield tf.nest.map_structure(
      lambda x, n=size: tf.concat([x[:1]] * n, 0), example
    )


def _in_turn(
  calls: dict[str, Callable[[Any], Any]], inputs: Any
) -> dict[str, list[float]]:
  """Returns the seconds of each call of each function."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  end = time.perf_counter() + _SECONDS
  for i in range(_WARM_UP + _CALLS):
    if i >= _WARM_UP + _FEWEST and time.perf_counter() > end:
      break
    for name, call in list(calls.items())[:: (-1) ** i]:
      start = time.perf_counter()
      # The value exists only when the device has computed it.
      tf.nest.flatten(call(inputs), expand_composites=True)[0].numpy()
      seconds[name].append(time.perf_counter() - start)
  return {name: values[_WARM_UP:] for name, values in seconds.items()}


def _summary(seconds: list[float]) -> dict[str, float]:
  """Returns mean and percentiles, in milliseconds."""
  p50, p90, p99 = np.percentile(seconds, (50, 90, 99))
  values = {"mean": np.mean(seconds), "p50": p50, "p90": p90, "p99": p99}
  return {name: round(1e3 * float(x), 3) for name, x in values.items()}


def _shown(tensor: Any) -> str:
  """Describes an input: dtype, shape and, for texts, length of the first."""
  shown = f"{tensor.dtype.name} {tensor.shape.as_list()}"
  if tensor.dtype == tf.string and tensor.shape.num_elements():
    length = int(tf.strings.length(tf.reshape(tensor, [-1])[0]))
    shown += f" of {length} bytes"
  return shown


def _machine() -> dict[str, Any]:
  """Names the device that TensorFlow computes on, and its host."""
  info = ""
  with contextlib.suppress(OSError):  # Other systems and sandboxes lack it.
    info = pathlib.Path("/proc/cpuinfo").read_text()
  names = re.findall(r"model name\s*: (.+)", info)
  gpus = tf.config.get_visible_devices("GPU")
  details = map(tf.config.experimental.get_device_details, gpus[:1])
  return {
    "processor": names[0] if names else platform.machine(),
    "cores": len(os.sched_getaffinity(0)),
    "device": next((d.get("device_name", "GPU") for d in details), "CPU"),
  }
