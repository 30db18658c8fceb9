"""Converts a signature of a SavedModel to LiteRT, in the sandbox."""

from collections.abc import Callable, Iterator, Mapping
import os
import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from exporters.conformance import subject as subject_lib
from exporters.phones import training
from exporters.reusable import errors
from exporters.reusable import observation

CALIBRATED = 100  # Examples for int8.
_COMPARED = 8  # Examples of which the outputs are compared.
# Upper bounds of ids to try, because the vocabulary size is unknown.
_ENDS = (1000, 100, 10, 3, 2)
_OPS = tf.lite.OpsSet
# Ops in the converter's errors, and advice for each.
_ADVICE = {
  r"String|Regex|Table|Decode|Unicode|Tokenize|Wordpiece|FastBert": (
    "Do this step in the app, or on a server, and convert the rest"
  ),
  r"TensorList|While": (
    "Loops need static shapes: convert the cell and write the loop in the app"
  ),
  r"Backprop|Grad$": "Train the head alone, with --trainable=head",
}


class _Signature(NamedTuple):
  """A signature with static shapes.

  Attributes:
    call: From its inputs, by name, to its outputs, by name.
    specs: The inputs.
  """

  call: Callable[..., dict[str, tf.Tensor]]
  specs: dict[str, tf.TensorSpec]


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Converts a SavedModel, in answer to these requests.

  1. The request of `copying.started`, with the name of a `signature` and the
     `sizes` for `_signature`. The answer has the shape and dtype of each input.
  2. The paths of `calibration` data, or None, and of `examples` to write. The
     answer is empty.
  3. Any number of conversions: a `path` to write, and a `quantization` or the
     arguments of `training.module`. The answer is empty, or has the `problem`.
  """
  request = next(requests)
  subject = subject_lib.requested(request)
  subject_lib.load_into(subject, request["trust"])
  if subject.model is None:
    raise errors.ExportError(f"{subject.directory}: {subject.unloaded}.")
  signature = _signature(subject, request["signature"], *request["sizes"])
  yield {
    name: [spec.shape.as_list(), spec.dtype.name]
    for name, spec in signature.specs.items()
  }
  request = next(requests)
  if any(spec.dtype == tf.string for spec in signature.specs.values()):
    _converted(subject, signature, "none", [])  # Names ops, if it fails.
  examples = _examples(signature, request["calibration"])
  _write_outputs(request["examples"], signature, examples[-_COMPARED:])
  yield {}
  for request in requests:
    try:
      content = (
        _trainable(subject, signature, request, examples[0])
        if "trainable" in request
        else _converted(subject, signature, request["quantization"], examples)
      )
    except errors.ExportError as e:
      yield {"problem": str(e)}
      continue
    with open(request["path"], "wb") as f:
      f.write(content)
    yield {}


def _signature(
  subject: subject_lib.Subject,
  name: str,
  batch_size: int,
  image_size: int,
  seq_length: int,
) -> _Signature:
  """Returns a signature whose free dimensions have the given sizes."""
  call = subject.model.signatures.get(name)
  if call is None:
    raise errors.ExportError(
      f"{subject.directory} has no signature {name}. It has:"
      f" {', '.join(subject.signatures) or 'none'}. Choose one by --signature."
    )

  def fixed(name: str, spec: tf.TensorSpec) -> tf.TensorSpec:
    if spec.shape.rank is None:
      raise errors.ExportError(
        f"Input {name} has no known rank, and LiteRT needs static shapes."
      )
    sizes = [batch_size] + [seq_length] * (spec.shape.rank - 1)
    if spec.shape.rank >= 4:  # Images, or sequences of images.
      sizes[-3:-1] = [image_size, image_size]
    free = zip(sizes, spec.shape, strict=False)
    return tf.TensorSpec([n if d is None else d for n, d in free], spec.dtype)

  specs = call.structured_input_signature[1]
  return _Signature(call, {k: fixed(k, v) for k, v in sorted(specs.items())})


def _examples(
  signature: _Signature, calibration: str | None
) -> list[dict[str, tf.Tensor]]:
  """Returns examples of the inputs, read or generated."""
  specs = signature.specs
  if calibration:
    ((name, spec),) = specs.items()
    data = np.load(calibration)
    data = data[: len(data) // spec.shape[0] * spec.shape[0]]
    return [
      {name: tf.constant(batch)} for batch in data.reshape([-1, *spec.shape])
    ]
  problem = None
  for end in _ENDS:
    rng = np.random.default_rng(0)
    examples = [
      {name: _generated(name, spec, end, rng) for name, spec in specs.items()}
      for _ in range(CALIBRATED)
    ]
    try:
      signature.call(**examples[0])
    except Exception as e:  # A stranger's program may raise anything.
      problem = problem or e
    else:
      return examples
  raise errors.ExportError(
    f"The signature fails with generated inputs: {subject_lib.cause(problem)}."
    " Try another --image_size or --seq_length."
  ) from problem


def _generated(
  name: str, spec: tf.TensorSpec, end: int, rng: np.random.Generator
) -> tf.Tensor:
  """Makes an input: numbers in [0, 1), ids below `end`, masks, or a text."""
  if spec.dtype == tf.string:
    return tf.fill(spec.shape, "It rains.")
  if spec.dtype.is_floating:
    return tf.constant(rng.random(spec.shape, np.float32), spec.dtype)
  if "mask" in name:  # A mask with padding at the end.
    length = rng.integers(spec.shape[-1] // 2, spec.shape[-1], endpoint=True)
    return tf.cast(tf.fill(spec.shape, 1), spec.dtype) * tf.cast(
      tf.range(spec.shape[-1]) < length, spec.dtype
    )
  end = min(end, 2 if "type" in name or spec.dtype == tf.bool else end)
  return tf.cast(rng.integers(0, end, spec.shape), spec.dtype)


def _write_outputs(
  path: str, signature: _Signature, examples: list[dict[str, tf.Tensor]]
) -> None:
  """Writes examples of the inputs and the outputs of TensorFlow, for NumPy."""
  arrays = {}
  for i, example in enumerate(examples):
    outputs = signature.call(**example)
    for kind, tensors in ("in", example), ("out", outputs):
      for name, tensor in tensors.items():
        value = tensor.numpy()
        if tensor.dtype == tf.string:
          value = value.astype(bytes)
        arrays[f"{kind}.{i}.{name}"] = value
  np.savez(path, **arrays)


def _converted(
  subject: subject_lib.Subject,
  signature: _Signature,
  quantization: str,
  examples: list[dict[str, tf.Tensor]],
) -> bytes:
  """Converts a signature for inference."""
  call = tf.function(lambda **inputs: signature.call(**inputs))
  trace = call.get_concrete_function(**signature.specs)
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [trace], subject.model
  )
  if quantization != "none":
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
  if quantization == "float16":
    converter.target_spec.supported_types = [tf.float16]
  if quantization == "int8":
    converter.target_spec.supported_ops = [_OPS.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: examples
  return _run(converter, subject, quantization)


def _trainable(
  subject: subject_lib.Subject,
  signature: _Signature,
  request: Mapping[str, Any],
  example: Mapping[str, tf.Tensor],
) -> bytes:
  """Converts a signature with a new head, for training."""
  trains_all = request["trainable"] == "all"
  classes = request["classes"]

  def module(model: Any) -> tuple[tf.Module, dict[str, Any]]:
    return training.module(
      model,
      model.signatures[request["signature"]],
      signature.specs,
      classes=classes,
      trains_all=trains_all,
    )

  # A stranger's program may raise anything.
  with errors.of_input(about="The signature cannot be trained: "):
    root, signatures = module(subject.model)
    training.write_examples(
      request["examples"], root, signatures, example, classes
    )
    if trains_all:
      copy = f"{request['path']}.copy"
      training.copy_with_gradients(subject.directory, copy)
      root, signatures = module(observation.load(copy))
  directory = f"{request['path']}.saved_model"
  # The gradients are in the graph of `train` already.
  options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
  tf.saved_model.save(root, directory, signatures, options)
  converter = tf.lite.TFLiteConverter.from_saved_model(
    directory, list(signatures)
  )
  converter.experimental_enable_resource_variables = True
  return _run(converter, subject, "none")


def _run(
  converter: tf.lite.TFLiteConverter,
  subject: subject_lib.Subject,
  quantization: str,
) -> bytes:
  """Runs a converter; names the op and the layer that it cannot convert."""
  try:
    return converter.convert()
  except Exception as e:  # A stranger's program may raise anything.
    raise errors.ExportError(_user_message(e, subject, quantization)) from e


def _user_message(
  error: Exception, subject: subject_lib.Subject, quantization: str
) -> str:
  """Turns an error of the converter into one for users."""
  # The converter reports the first op of the graph last.
  found = [
    x
    for x in reversed(getattr(error, "errors", ()))
    if x.operator.name not in ("", "tf.Const")
  ]
  ops = list(dict.fromkeys(x.operator.name.removeprefix("tf.") for x in found))
  if not ops:
    first = next(filter(None, map(str.strip, str(error).splitlines())), "")
    kind = "" if quantization == "none" else f" with {quantization}"
    return f"The converter to LiteRT fails{kind}: {first[:300]}"
  names = [call.name for call in found[0].location.call if call.name]
  node = names[0].partition("@")[0].partition(":")[0] if names else ""
  node = re.sub(r"^gradients/(.*)_grad/\w+$", r"\1", node)
  layer = os.path.dirname(node)
  where = f" ({node}, of layer {layer})" if layer else f" ({node})"
  where = where if node else ""
  others = f" It lacks {', '.join(ops[1:6])} too." if ops[1:] else ""
  advice = [a for p, a in _ADVICE.items() if re.search(p, " ".join(ops))] or [
    "Try --quantization=dynamic_range"
    if quantization == "int8"
    else "Replace the op in the model"
  ]
  signatures = ", ".join(subject.signatures)
  return (
    f"LiteRT cannot run op {ops[0]}{where}.{others}"
    f" {advice[0]}. Its signatures, for --signature: {signatures}."
  )
