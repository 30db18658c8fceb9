"""The command line that all programs here share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import gc
import os
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
from etils import epy

from distribution import strategies
from integration_tests import fitting

# Read by TensorFlow when it is imported. tensorflow-hub is Keras 2.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

flags.disclaim_key_flags()  # They are those of the program: --help lists them.

# Hyperparameters of exports: what they are, and their largest value.
HYPERPARAMETERS = {
  "batch_norm_momentum": ("momentum of batch normalization", 1.0),
  "dropout_rate": ("rate of dropout", 0.99),
  "attention_dropout_rate": ("rate of dropout in the attention", 0.99),
  "stochastic_depth_rate": ("rate at which residual blocks are skipped", 0.99),
}


def define_flags(
  examples: str,
  *,
  retrain: bool,
  learning_rate: float,
  hyperparameters: Iterable[str],
) -> None:
  """Defines the flags that all these programs have.

  Args:
    examples: What the program trains on, in the plural.
    retrain: Default of --retrain.
    learning_rate: Default of --learning_rate.
    hyperparameters: Names in `HYPERPARAMETERS` to define flags for.
  """
  _define_path_flags()
  strategies.define_flags()
  flags.adopt_module_key_flags(strategies)
  flags.DEFINE_bool(
    "retrain",
    retrain,
    "Also train the weights of the export. With --noretrain only the new head"
    " is trained.",
  )
  flags.DEFINE_integer(
    "epochs", 5, f"Number of passes over the {examples}.", lower_bound=1
  )
  flags.DEFINE_integer(
    "batch_size",
    32,
    f"Number of {examples} in a step, on all devices together.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "learning_rate", learning_rate, "Peak learning rate.", lower_bound=0.0
  )
  flags.DEFINE_float(
    "regularization_loss_multiplier",
    1.0,
    "With --retrain: factor of the regularization losses of the export.",
    lower_bound=0.0,
  )
  for name in hyperparameters:
    text, upper_bound = HYPERPARAMETERS[name]
    flags.DEFINE_float(
      name,
      None,
      f"With --retrain: {text}. The default is the export's.",
      lower_bound=0.0,
      upper_bound=upper_bound,
    )
  for name in ("regularization_loss_multiplier", *hyperparameters):
    flags.register_multi_flags_validator(
      ["retrain", name],
      lambda values, name=name: (
        values["retrain"] or not flags.FLAGS[name].present
      ),
      f"--{name} applies only with --retrain.",
    )


def _define_path_flags() -> None:
  flags.DEFINE_string(
    "saved_model_dir",
    None,
    "The export to fine-tune: a directory, also in a bucket, or a URL, read as"
    " the environment variable TFHUB_MODEL_LOAD_FORMAT says.",
    required=True,
  )
  flags.DEFINE_string(
    "backup_dir",
    None,
    "Directory for the state of the training after each epoch, until it ends."
    " After an interruption the same command resumes from there. All machines"
    " must have access to it.",
  )
  flags.DEFINE_string(
    "output_saved_model_dir",
    None,
    "Directory to save the fine-tuned model to. The default is not to save it.",
  )


def build_arguments() -> dict[str, Any]:
  """Returns the flags that are arguments of every `build_model`, by name."""
  names = ("retrain", "learning_rate", "regularization_loss_multiplier")
  return {
    name: flags.FLAGS[name].value
    for name in (*names, *HYPERPARAMETERS)
    if name in flags.FLAGS and flags.FLAGS[name].value is not None
  }


def path(value: str | None) -> str | None:
  """Resolves a path against the user's directory, under `bazel run` too."""
  if value is None or "://" in value:
    return value
  return os.path.join(os.environ.get("BUILD_WORKING_DIRECTORY", ""), value)


def _make_output_dir(strategy: tf.distribute.Strategy) -> str | None:
  """Makes --output_saved_model_dir, before the training rather than after."""
  output_dir = path(flags.FLAGS.output_saved_model_dir)
  if output_dir and strategies.is_chief(strategy):
    tf.io.gfile.makedirs(output_dir)
    if tf.io.gfile.listdir(output_dir):
      raise ValueError(f"{output_dir} is not empty. Choose another directory.")
  return output_dir


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
  """Prints errors that the user can cause as one line, and exits."""
  try:
    yield
  except (
    AttributeError,  # The export is of another kind,
    KeyError,
    TypeError,
    ValueError,
    OSError,  # missing or out of reach,
    tf.errors.OpError,  # or the output cannot be written.
  ) as e:
    sys.exit(f"ERROR: {' '.join(str(e).split())}")


def fine_tune(
  build: Callable[[], tf_keras.Model],
  prepare: Callable[[tf_keras.Model], tuple[Any, Any, tf_keras.Model]],
  examples: str,
) -> tf_keras.Model:
  """Builds, trains, tests and saves a model as the flags say.

  Args:
    build: Builds the compiled model, in the scope of the strategy.
    prepare: Takes that model; returns training data and test data, as for
      `fitting.fit`, and the model to save.
    examples: What the program trains on, in the plural.

  Returns:
    The trained model.
  """
  values = flags.FLAGS
  with input_errors():
    strategy = strategies.get(strategies.from_flags())
    output_dir = _make_output_dir(strategy)
    fitting.check_batch_size(values.batch_size, strategy)
    with strategies.precision(values.mixed_precision), strategy.scope():
      model = build()
    train, test, served = prepare(model)
  with strategies.cluster_errors():
    accuracy = fitting.fit(
      model,
      train,
      test,
      batch_size=values.batch_size,
      epochs=values.epochs,
      backup_dir=path(values.backup_dir),
    )
    held_out = f"{len(test[1]):,} {examples} held out"
    print(f"Test accuracy: {accuracy:.4f} on {held_out}")
    if output_dir:
      fitting.save(served, output_dir, strategy)
  return model


def run(main: Callable[[], Any]) -> None:
  """Parses the flags and calls `main`."""

  def checked(arguments: list[str]) -> None:
    if len(arguments) > 1:
      sys.exit(f"ERROR: {arguments[1]} is not a flag. Flags start with --.")
    strategies.prepare(strategies.from_flags())
    logging.set_verbosity(logging.ERROR)  # Keras warns at every save.
    try:
      main()
    finally:
      # Saves about a second at exit, where Python would destroy the models.
      gc.freeze()

  app.run(checked)
