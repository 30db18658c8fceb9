r"""Converts an export or a deployed model to LiteRT, for phones.

LiteRT then runs the result, whose outputs must equal those of TensorFlow:

  bazel run //exporters:litert -- \
    --saved_model_dir=DIR --output_file=model.tflite --quantization=float16
  bazel run //exporters:litert -- --saved_model_dir=DIR \
    --output_file=model.tflite --quantization=int8 --calibration_data=PICTURES
  bazel run //exporters:litert -- --saved_model_dir=DIR \
    --output_file=model.tflite --trainable=head --classes=5

The result has one signature of the SavedModel, with static shapes. With
--trainable it has a new head, and the signatures `train`, `infer`, `save` and
`restore`. LiteRT runs in a process without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import stat
import tempfile
from typing import Any, NamedTuple

from absl import flags
from etils import epy

from data import images
from distribution import formats
from distribution import publishing
from distribution import sandbox
from exporters.conformance import copying
from exporters.reusable import command_line
from exporters.reusable import errors

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import numpy as np

_LOADING = copying.Options()
# Maximum relative error of an output: the root mean square of the differences,
# divided by that of the values. The error grows with a model's depth.
_TOLERANCES = {
  "none": 1e-4,
  "float16": 0.05,
  "dynamic_range": 0.15,
  "int8": 0.2,
}
# Maximum difference of losses and logits after some training steps, as a share
# of the largest value.
_TRAINING_TOLERANCE = 1e-3
_READ = 108  # Number of images to read, for calibration and the comparison.


class Sizes(NamedTuple):
  """Sizes of dimensions that the signature leaves free."""

  batch_size: int = 1
  image_size: int = 224
  seq_length: int = 128


class Training(NamedTuple):
  """Options of a model that is trained on the device.

  Attributes:
    trainable: The part to train: `head` or `all`.
    classes: Number of classes of the new head.
  """

  trainable: str
  classes: int


_SIZES = Sizes()


def convert(
  *,
  saved_model_dir: str,
  output_file: str,
  overwrite: bool = False,
  quantization: str = "none",
  compared: bool = False,
  signature: str = "serving_default",
  sizes: Sizes = _SIZES,
  calibration_data: str | None = None,
  training: Training | None = None,
  loading: copying.Options = _LOADING,
) -> None:
  """Converts a signature to LiteRT, verifies the result and prints a table.

  Args:
    saved_model_dir: The SavedModel.
    output_file: The LiteRT model to write. It appears only when complete.
    overwrite: Whether to replace `output_file`.
    quantization: A key of `_TOLERANCES`.
    compared: Whether to try all quantizations, for the table.
    signature: The signature to convert.
    sizes: Sizes of the dimensions that the signature leaves free.
    calibration_data: A data set of images, as `images.load` takes it. None:
      random numbers.
    training: Options for training on the device. None: only inference.
    loading: How to load the SavedModel.

  Raises:
    ExportError: `output_file` exists, LiteRT lacks an op, or its outputs differ
      from TensorFlow's.
  """
  check_output(output_file, overwrite)
  kinds = [*_TOLERANCES] if compared else [quantization]
  with tempfile.TemporaryDirectory(prefix="litert.") as work_dir:
    request = {"signature": signature, "sizes": sizes}
    with _converting(saved_model_dir, work_dir, request, loading) as ask:
      inputs = ask({})
      examples = f"{work_dir}/examples.npz"
      calibration = f"{work_dir}/calibration.npy" if calibration_data else None
      if calibration:
        _write_images(calibration_data, inputs, calibration)
      ask({"calibration": calibration, "examples": examples})
      for kind in kinds:
        path = f"{work_dir}/{kind}.tflite"
        asked = training._asdict() if training else {"quantization": kind}
        answer = ask({**asked, "path": path, "examples": examples})
        if "problem" in answer and kind == quantization:
          raise errors.ExportError(f"{saved_model_dir}: {answer['problem']}")
    kinds = [k for k in kinds if os.path.exists(f"{work_dir}/{k}.tflite")]
    results = _run(work_dir, kinds, training, loading)
    _print(work_dir, results)
    _check(results[quantization], quantization, training)
    _publish(f"{work_dir}/{quantization}.tflite", output_file, overwrite)
  print(f"Converted to {output_file}")


def check_output(output_file: str, overwrite: bool) -> None:
  """Raises an ExportError if a file exists or cannot be written."""
  formats.check_output_file("output_file", output_file)
  if os.path.lexists(output_file) and not overwrite:
    raise errors.ExportError(
      f"{output_file} exists. Choose another file, or say --overwrite to"
      " replace it."
    )


@contextlib.contextmanager
def _converting(
  saved_model_dir: str,
  work_dir: str,
  request: dict[str, Any],
  loading: copying.Options,
) -> Iterator[Any]:
  """Starts `phones.converting`; yields a function that sends it a request.

  Each request also has the fields of `request`.
  """
  with copying.started(
    "exporters.phones.converting",
    saved_model_dir,
    loading,
    longer=20,
    writable=[work_dir],
  ) as (ask, beginning):

    def ask_or_say_why(request: Any) -> Any:
      try:
        return ask({**beginning, **request})
      except sandbox.SandboxError as e:
        raise errors.ExportError(f"{saved_model_dir}: {e}.") from e

    beginning.update(request)
    yield ask_or_say_why


def _write_images(
  name: str, inputs: dict[str, tuple[list[int], str]], path: str
) -> None:
  """Writes images of a data set, resized to the input of the signature."""
  shapes = [shape for shape, dtype in inputs.values() if dtype == "float32"]
  if len(inputs) != 1 or not shapes or len(shapes[0]) not in (4, 5):
    raise errors.ExportError(
      "--calibration_data are images, and the signature takes"
      f" {', '.join(inputs)}. Omit it."
    )
  with errors.of_input(ConnectionError, ValueError):
    dataset = images.resized(images.load(name), shapes[0][1:])
  batch_size = shapes[0][0]
  chosen = dataset.train.take(max(_READ, batch_size))
  read = [image for image, _ in chosen.as_numpy_iterator()]
  if len(read) < batch_size:
    raise errors.ExportError(
      f"--calibration_data={name} has {len(read)} images for training, fewer"
      f" than --batch_size={batch_size}."
    )
  np.save(path, np.stack(read))


def _run(
  work_dir: str,
  kinds: list[str],
  training: Training | None,
  loading: copying.Options,
) -> dict[str, dict[str, Any]]:
  """Runs the models with LiteRT; returns the result of each."""
  results = {}
  for kind in kinds:
    model = f"{work_dir}/{kind}.tflite"
    limits = sandbox.limits(os.path.getsize(model), None, loading.gib)
    seconds = loading.seconds or 20 * limits.seconds
    # LiteRT may crash on models that it cannot run.
    with sandbox.started(
      "exporters.phones.running",
      limits._replace(seconds=seconds),
      readable=[work_dir],
      sandboxed=loading.sandbox and not sandbox.missing(),
    ) as ask:
      try:
        results[kind] = ask(
          {
            "model": model,
            "examples": f"{work_dir}/examples.npz",
            "trainable": bool(training),
          }
        )
      except sandbox.SandboxError as e:
        raise errors.ExportError(f"LiteRT cannot run the model: {e}.") from e
  return results


def _print(work_dir: str, results: dict[str, dict[str, Any]]) -> None:
  print("quantization         KiB  difference    error      ms")
  for kind, result in results.items():
    size = os.path.getsize(f"{work_dir}/{kind}.tflite") / 1024
    difference, error = float(result["difference"]), float(result["error"])
    print(
      f"{kind:<13} {size:>10,.0f}  {difference:>10.2g}  {error:>7.2g}"
      f"  {result['milliseconds']:>6.2f}"
    )
    if losses := result.get("losses"):
      print(
        f"{len(losses)} steps of training: loss {losses[0]:.4f} to"
        f" {losses[-1]:.4f}"
      )
  if any(result.get("remembers") for result in results.values()):
    print(
      "The model remembers earlier calls. Before each sequence, call"
      " reset_all_variables() of its interpreter."
    )


def _check(
  result: dict[str, Any], quantization: str, training: Training | None
) -> None:
  """Raises an ExportError if the outputs of LiteRT differ too much."""
  tolerance = _TRAINING_TOLERANCE if training else _TOLERANCES[quantization]
  # NaN, which the sandbox sends as a string, exceeds every tolerance.
  error = float(result["error"])
  if not error <= tolerance:
    advice = (
      "Train the head alone, with --trainable=head"
      if training
      else "Use another --quantization, or calibrate with --calibration_data"
    )
    raise errors.ExportError(
      f"The outputs of LiteRT have a relative error of {error:.2g}, more than"
      f" {tolerance:g}. {advice}."
    )
  if training and not result["restored"]:
    raise errors.ExportError("LiteRT does not restore what it has saved.")


def _publish(path: str, output_file: str, overwrite: bool) -> None:
  """Copies a file that the sandbox wrote to `output_file`, atomically."""
  # The process in the sandbox could have created a link.
  with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as f:
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
      raise errors.ExportError(f"{path} is not a file.")
    content = f.read()
  check_output(output_file, overwrite)
  publishing.write(output_file, content)


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The SavedModel to convert.")
  flags.DEFINE_string("output_file", None, "The model for LiteRT to write.")
  flags.DEFINE_bool("overwrite", False, "Replace --output_file if it exists.")
  flags.DEFINE_enum(
    "quantization",
    "none",
    [*_TOLERANCES],
    "none: float32. float16: weights in float16. dynamic_range: weights in"
    " int8. int8: weights and activations in int8; inputs and outputs stay"
    " float32.",
  )
  flags.DEFINE_bool(
    "compare_quantizations", False, "Print a table of all quantizations."
  )
  flags.DEFINE_string(
    "signature", "serving_default", "The signature to convert."
  )
  flags.DEFINE_integer(
    "batch_size",
    None,
    "Examples per call; with --trainable, per call of `train`. The default is"
    " 1, with --trainable 32.",
    lower_bound=1,
    upper_bound=2**16,
  )
  for name, text in {
    "image_size": "Height and width of images, where the signature leaves them"
    " free.",
    "seq_length": "Sequence length, or number of frames of a video, where the"
    " signature leaves it free.",
  }.items():
    flags.DEFINE_integer(
      name, getattr(_SIZES, name), text, lower_bound=1, upper_bound=2**16
    )
  flags.DEFINE_string(
    "calibration_data",
    None,
    "Images to calibrate int8 with and to compare the outputs of: one of"
    f" {', '.join(images.NAMES)}, tfds:NAME, or the path of a data set. The"
    " default is random numbers.",
  )
  images.require_existing("calibration_data")
  _define_training_flags()
  command_line.define(copying.Options, copying.FLAGS)
  for name in ("saved_model_dir", "output_file"):
    flags.register_validator(name, bool, "The flag is required.")


def _define_training_flags() -> None:
  flags.DEFINE_enum(
    "trainable",
    None,
    ["head", "all"],
    "What to train on the device. head: a new head on the signature's output."
    " all: the trainable variables too. The default is a model for inference.",
  )
  flags.DEFINE_integer(
    "classes",
    None,
    "With --trainable: number of classes of the new head.",
    lower_bound=2,
    upper_bound=2**20,
  )
  flags.register_multi_flags_validator(
    ["trainable", "classes"],
    lambda values: (values["trainable"] is None) == (values["classes"] is None),
    "--trainable and --classes go together.",
  )
  flags.register_multi_flags_validator(
    ["trainable", "quantization", "compare_quantizations"],
    lambda values: (
      values["trainable"] is None
      or (values["quantization"], values["compare_quantizations"])
      == ("none", False)
    ),
    "A model is trained in float32: --trainable allows no quantization.",
  )


def main() -> None:
  """Runs the program with the values of its flags."""
  values = flags.FLAGS
  training = (
    Training(values.trainable, values.classes) if values.trainable else None
  )
  convert(
    saved_model_dir=command_line.model_path("saved_model_dir"),
    output_file=formats.absolute(values.output_file),
    overwrite=values.overwrite,
    quantization=values.quantization,
    compared=values.compare_quantizations,
    signature=values.signature,
    sizes=Sizes(
      values.batch_size or (32 if training else 1),
      values.image_size,
      values.seq_length,
    ),
    calibration_data=values.calibration_data,
    training=training,
    loading=command_line.from_flags(copying.Options),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
