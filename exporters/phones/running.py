"""Runs a LiteRT model. The process has NumPy and LiteRT, and no TensorFlow."""

from collections.abc import Iterator, Mapping
import time
from typing import Any

from ai_edge_litert import interpreter
import numpy as np

_CALLS = 20  # Of which the median time counts.


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Answers requests with the paths of a `model` and of `examples`.

  The answer is the result of `_compared` or, if the request has `trainable`, of
  `_trained`.
  """
  for request in requests:
    model = interpreter.Interpreter(request["model"])
    arrays = dict(np.load(request["examples"]))
    if request["trainable"]:
      yield _trained(model, arrays)
    else:
      yield _compared(model, arrays)


def _compared(
  model: interpreter.Interpreter, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Compares outputs with TensorFlow's, and measures the latency.

  Returns:
    `difference` and `error`, the largest of all outputs, as `_difference` and
    `_error` return them; whether the model `remembers` earlier calls, as fused
    recurrent layers do; and the `milliseconds` of a call.
  """
  model.allocate_tensors()
  call = model.get_signature_runner()
  difference = error = 0.0
  outputs = sorted({k.split(".", 2)[2] for k in arrays if k.startswith("out.")})
  inputs, found = {}, {}
  for i in range(1 + max(int(k.split(".")[1]) for k in arrays)):
    inputs = _named(arrays, f"in.{i}.")
    model.reset_all_variables()
    found = call(**inputs)
    for name in outputs:
      expected = arrays[f"out.{i}.{name}"]
      difference = max(difference, _difference(found[name], expected))
      error = max(error, _error(found[name], expected))
  again = call(**inputs)
  return {
    "difference": difference,
    "error": error,
    "remembers": any(np.any(again[name] != found[name]) for name in outputs),
    "milliseconds": _time(call, inputs),
  }


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
  """Returns the largest difference, as a share of the largest value.

  For other dtypes than floats, it is the share of values that differ.
  """
  if expected.dtype.kind != "f":
    return float(np.mean(found.astype(expected.dtype) != expected))
  scale = np.abs(expected).max(initial=np.finfo(np.float32).tiny)
  return float(np.abs(found - expected).max(initial=0.0) / scale)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
  """Returns the root mean square of the differences over that of the values."""
  if expected.dtype.kind != "f":
    return _difference(found, expected)
  scale = np.square(expected).mean() + np.finfo(np.float32).tiny
  return float(np.sqrt(np.square(found - expected).mean() / scale))


def _time(call: Any, inputs: Mapping[str, np.ndarray]) -> float:
  times = []
  for _ in range(_CALLS):
    start = time.perf_counter()
    call(**inputs)
    times.append(time.perf_counter() - start)
  return 1000 * float(np.median(times))


def _trained(
  model: interpreter.Interpreter, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Repeats TensorFlow's training steps, and restores the saved variables.

  Returns:
    The `losses`; the largest `difference` of losses and logits from
    TensorFlow's, which is the `error` too; whether LiteRT has `restored` what
    it had saved; and the `milliseconds` of a step.
  """
  train, infer, save, restore = map(
    model.get_signature_runner, ("train", "infer", "save", "restore")
  )
  batch = _named(arrays, "in.")
  example = {
    k: v[:1] for k, v in batch.items() if k not in ("labels", "learning_rate")
  }
  losses = [float(train(**batch)["loss"]) for _ in arrays["losses"]]
  logits = infer(**example)["logits"]
  differences = [
    _difference(np.array(losses), arrays["losses"]),
    _difference(logits, arrays["logits"]),
  ]
  saved = {name: value.copy() for name, value in save().items()}
  milliseconds = _time(train, batch)
  restore(**saved)
  return {
    "losses": losses,
    "difference": max(differences),
    "error": max(differences),
    "restored": bool(np.array_equal(infer(**example)["logits"], logits)),
    "milliseconds": milliseconds,
  }


def _named(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
  """Returns the arrays whose names begin with a prefix, without it."""
  return {
    k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
  }
