"""What the command lines of all consumers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import gc
import os
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epy

from distribution import strategies

# Read by TensorFlow when it is imported. tensorflow-hub is Keras 2.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with epy.lazy_imports():
  import tensorflow as tf


def define_flags(only_with_retrain: list[str]) -> None:
  """Defines the flags that all consumers have.

  Args:
    only_with_retrain: Flags that say something only with --retrain.
  """
  flags.DEFINE_string(
    "saved_model_dir",
    None,
    "The export to fine-tune: a directory, also in a bucket, or a URL, which is"
    " read as TFHUB_MODEL_LOAD_FORMAT in the environment says.",
    required=True,
  )
  strategies.define_flags()
  flags.adopt_module_key_flags(strategies)
  flags.DEFINE_string(
    "backup_dir",
    None,
    "Where to keep the state of the training after each epoch until its end."
    " The same command goes on from there after an interruption. All machines"
    " must see it.",
  )
  flags.DEFINE_string(
    "output_saved_model_dir", None, "Where to save the fine-tuned model."
  )
  for name in only_with_retrain:
    flags.register_multi_flags_validator(
      ["retrain", name],
      lambda values, name=name: (
        values["retrain"] or not flags.FLAGS[name].present
      ),
      f"--{name} applies only with --retrain.",
    )


def path(value: str | None) -> str | None:
  """Makes a path start from the user's directory under `bazel run` too."""
  if value is None or "://" in value:
    return value
  return os.path.join(os.environ.get("BUILD_WORKING_DIRECTORY", ""), value)


def make_output_dir(strategy: tf.distribute.Strategy) -> str | None:
  """Makes the directory to save to before the training, not after it.

  Args:
    strategy: Of several workers only the chief saves.

  Raises:
    ValueError: It is not empty.
  """
  output_dir = path(flags.FLAGS.output_saved_model_dir)
  if output_dir and strategies.is_chief(strategy):
    tf.io.gfile.makedirs(output_dir)
    if tf.io.gfile.listdir(output_dir):
      raise ValueError(f"{output_dir} is not empty. Choose another directory.")
  return output_dir


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
  """Turns the errors of bad input into one line, and exits."""
  try:
    yield
  except (
    AttributeError,  # Another kind of model than the program is for,
    KeyError,
    TypeError,
    ValueError,
    OSError,  # none at all, no network,
    tf.errors.OpError,  # or no place for the output.
  ) as e:
    sys.exit(f"ERROR: {' '.join(str(e).split())}")


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls `main`."""

  def checked(arguments: list[str]) -> None:
    if len(arguments) > 1:
      sys.exit(f"ERROR: {arguments[1]} is not a flag. Flags start with --.")
    strategies.prepare(strategies.from_flags())
    logging.set_verbosity(logging.ERROR)  # Keras warns at every save.
    try:
      main()
    finally:
      # Before it ends Python would take models apart, a second for naught.
      gc.freeze()

  app.run(checked)
