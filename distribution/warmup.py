"""Writes requests that TensorFlow Serving runs while it loads a model.

The first request of a user is then as fast as later ones. See
https://www.tensorflow.org/tfx/serving/saved_model_warmup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
from typing import Any

from absl import flags
from etils import epy

from distribution import errors

with epy.lazy_imports():
  import tensorflow as tf
  from tensorflow_serving.apis import prediction_log_pb2

flags.disclaim_key_flags()  # --help lists them as the program's.

PATH = "assets.extra/tf_serving_warmup_requests"
_NUMBERS = {
  "warmup_batch_sizes": "Batch sizes of the requests with which TensorFlow"
  " Serving warms up the model. None without a value.",
  "warmup_lengths": "Sequence lengths, or heights and widths, of these"
  " requests, where the model takes any. Default: one that the verification"
  " uses.",
}


def define_flags(names: Sequence[str] = tuple(_NUMBERS)) -> None:
  """Defines `--warmup_batch_sizes` and `--warmup_lengths`, or one of them."""
  for name in names:
    default = ["1"] if name == "warmup_batch_sizes" else []
    flags.DEFINE_list(name, default, _NUMBERS[name])
    flags.register_validator(
      name,
      lambda values: all(v.isdecimal() and 0 < int(v) < 2**31 for v in values),
      "Write whole numbers above 0, such as 1,32.",
    )


def write(
  directory: str,
  serve: Any,
  batch_sizes: Sequence[int | str],
  lengths: Sequence[int | str] = (),
  *,
  examples: Any = (),
  string: bytes = b"",
) -> None:
  """Writes warm-up requests for `serving_default`, after calling it with them.

  All values of an input are the first value of an example, or 0 without one.
  No file is written if the signature takes anything but dense Tensors, because
  TensorFlow Serving takes nothing else.

  Args:
    directory: The SavedModel.
    serve: Its signature `serving_default`, a ConcreteFunction.
    batch_sizes: The batch size of each request.
    lengths: Sizes for all other free dimensions. There is a request for each
      pair of a length and a batch size.
    examples: Structures of dense Tensors or arrays. The example of an input is
      the first compatible Tensor of its name, or of any name if no structure
      has its name. Without `lengths`, free dimensions are those of the example,
      or 1.
    string: The value of string inputs, instead of an example's.

  Raises:
    InputError: The signature fails on a request.
  """
  args, kwargs = serve.structured_input_signature  # kwargs if it is loaded.
  flat = tf.nest.flatten((args, kwargs))
  if not all(isinstance(spec, tf.TensorSpec) for spec in flat):
    return
  specs = {spec.name: spec for spec in flat}
  logs = []
  like = {name: _like(name, spec, examples) for name, spec in specs.items()}
  for shapes in _shapes(specs, batch_sizes, lengths, like):
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = "serving_default"
    inputs = {}
    for name, shape in shapes.items():
      dtype = specs[name].dtype
      value = tf.reshape(like[name], [-1])[0].numpy()
      value = string if string and dtype == tf.string else value
      # A proto with one value for all elements keeps the file small.
      proto = tf.make_tensor_proto(value, dtype, shape)
      request.inputs[name].CopyFrom(proto)
      inputs[name] = tf.fill(shape, tf.constant(value, dtype))
    about = f"A warm-up request of the shapes {shapes} fails: "
    with (
      errors.of_input(tf.errors.OpError, ValueError, about=about),
      _without_optimizer(),
    ):
      serve(**inputs)
    logs.append(log.SerializeToString(deterministic=True))
  if logs:
    path = os.path.join(directory, PATH)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
      for log in dict.fromkeys(logs):  # Shapes without free dimensions repeat.
        writer.write(log)


@contextlib.contextmanager
def _without_optimizer() -> Iterator[None]:
  """Temporarily disables graph optimization, which takes longer than a run."""
  name = "disable_meta_optimizer"
  optimizer = tf.config.optimizer
  before = optimizer.get_experimental_options().get(name, False)
  optimizer.set_experimental_options({name: True})
  try:
    yield
  finally:
    optimizer.set_experimental_options({name: before})


def _like(name: str, spec: tf.TensorSpec, examples: Sequence[Any]) -> tf.Tensor:
  """Returns the first nonempty example of an input, or zeros."""
  of_name = [x[name] for x in examples if isinstance(x, Mapping) and name in x]
  for x in map(tf.convert_to_tensor, of_name or tf.nest.flatten(examples)):
    if spec.is_compatible_with(x) and tf.size(x):
      return x
  return tf.zeros([n or 1 for n in spec.shape], spec.dtype)


def _shapes(
  specs: Mapping[str, tf.TensorSpec],
  batch_sizes: Sequence[int | str],
  lengths: Sequence[int | str],
  like: Mapping[str, tf.Tensor],
) -> Iterator[dict[str, list[int]]]:
  """Yields the shape of each input for each request."""
  for batch_size in map(int, batch_sizes):
    for length in map(int, lengths or [0]):
      yield {
        name: [
          int(known or (length or like[name].shape[i] if i else batch_size))
          for i, known in enumerate(spec.shape)
        ]
        for name, spec in specs.items()
      }
