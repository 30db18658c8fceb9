"""The command line that all programs here share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import errno
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

from absl import flags
from absl import logging
from etils import epy

from data import batches
from data import classes
from data import texts
from distribution import backups
from distribution import copies
from distribution import errors
from distribution import formats
from distribution import programs
from distribution import publishing
from distribution import scratch
from distribution import strategies
from distribution import warmup
from integration_tests import checkpoints
from integration_tests import fitting
from integration_tests import pieces
from integration_tests import report
from integration_tests import serving

# TensorFlow reads these when it is imported. tensorflow-hub needs Keras 2.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras

flags.disclaim_key_flags()  # --help lists them as the program's.

_PATHS = {
  "saved_model_dir": "The export to fine-tune: a directory, also in a bucket,"
  " or a URL, read as the environment variable TFHUB_MODEL_LOAD_FORMAT says. It"
  " is loaded and run with your rights: for a stranger's see --check_first.",
  "backup_dir": "Directory for the state of the training after each epoch,"
  " until it ends. After an interruption the same command resumes from there."
  " All machines must have access to it.",
  "checkpoint_dir": "Directory for the trained weights, to train on: if it has"
  " weights, the training starts from them, with a new optimizer. All machines"
  " must have access to it.",
  "output_saved_model_dir": "Directory to save the fine-tuned model to:"
  " classifiers as a SavedModel to deploy, other models as Keras models. It"
  " appears when the model is complete. The default is not to save it.",
  "output_piece_dir": "With --retrain: directory to save the fine-tuned export"
  " to, without the new head, as a reusable SavedModel like --saved_model_dir."
  " //exporters:fine_tuned verifies it and writes its card.",
}
_FOLLOW_LINKS = (
  "Save what symbolic links in assets and assets.extra of the exports point to,"
  " as in caches of other libraries."
)
_WRITTEN = tuple(_PATHS)[1:]
_FILES = {
  "training_record": "File to write the metrics of each epoch to, in JSON, for"
  " --fine_tuning_record of //exporters:package. The default is not to.",
  "check_first": "Command that checks each export before it is loaded, such as"
  " bazel-bin/exporters/check, which `./bazelw build //exporters:check` makes."
  " An exit status other than 0 ends this program. Default: no check.",
}
# Flags of classifiers that are None unless they are set, and their defaults.
_RECIPE = {"frozen_epochs": 5, "learning_rate_ratio": 0.1, "patience": 10}
_EXPORTS = ("saved_model_dir", "preprocessor_dir", "cell_dir")  # Flags.
# Flags that may change when a training resumes.
_OF_ANY_RUN = (
  *("check_first", "debug", "epochs", "follow_links", "strategy", "tpu"),
  "num_gpus",
  *("prompt", "length", "temperature", "report", "training_record"),
)
# Flags that apply only with --retrain: what they set, and the largest value.
RETRAINING = {
  "regularization_loss_multiplier": ("factor of regularization losses", None),
  "batch_norm_momentum": ("momentum of batch normalization", 1.0),
  "dropout_rate": ("rate of dropout", 0.99),
  "attention_dropout_rate": ("rate of dropout in the attention", 0.99),
  "stochastic_depth_rate": ("rate at which residual blocks are skipped", 0.99),
}


def define_flags(
  examples: str,
  *,
  learning_rate: float,
  retraining: Iterable[str],
  classifies: bool = False,
) -> None:
  """Defines the flags that all these programs have.

  Args:
    examples: The noun for the training examples, in the plural.
    learning_rate: Default of --learning_rate.
    retraining: Names in `RETRAINING` of flags to define.
    classifies: Whether to also define the flags of classifiers, which are
      trained in two phases.
  """
  for name, text in {**_PATHS, **_FILES}.items():
    flags.DEFINE_string(name, None, text)
  flags.mark_flag_as_required("saved_model_dir")
  flags.DEFINE_bool("follow_links", False, _FOLLOW_LINKS)
  flags.DEFINE_integer(
    "seed",
    None,
    "Seed of the new weights: the same machine then gives the same result each"
    " time if the rates of dropout are 0, as an export draws its own dropout."
    " The default draws other weights each time.",
    lower_bound=0,
  )
  strategies.define_flags()
  flags.adopt_module_key_flags(strategies)
  flags.DEFINE_bool(
    "retrain",
    True,
    "Also train the weights of the export. With --noretrain only the new head"
    " is trained.",
  )
  epochs, most = (20, "The largest number") if classifies else (5, "Number")
  for name, default, text in (
    (
      *("epochs", epochs),
      f"{most} of epochs: passes over the {examples}, or ten steps if that is"
      " more.",
    ),
    ("batch_size", 32, f"Global batch size: number of {examples} in a step."),
  ):
    flags.DEFINE_integer(name, default, text, lower_bound=1)
  alone = ", while the new head is trained alone" if classifies else ""
  flags.DEFINE_float(
    "learning_rate", learning_rate, f"Peak learning rate{alone}."
  )
  flags.register_validator(
    "learning_rate", lambda value: not value <= 0, "It must be more than 0."
  )
  for name in retraining:
    text, largest = RETRAINING[name]
    text = f"With --retrain: {text}. Default: as in the export."
    flags.DEFINE_float(name, None, text, lower_bound=0.0, upper_bound=largest)
  if classifies:
    _define_recipe_flags(examples)
    warmup.define_flags(["warmup_batch_sizes"])
  recipe = ("frozen_epochs", "learning_rate_ratio") if classifies else ()
  errors.apply_only_with("retrain", (*retraining, *recipe, "output_piece_dir"))


def _define_recipe_flags(examples: str) -> None:
  """Defines the flags of classifiers, which are trained in two phases."""
  flags.DEFINE_integer(
    "frozen_epochs",
    None,
    "With --retrain: the largest number of epochs before, which train the new"
    " head alone. 0 trains all weights at once. Default:"
    f" {_RECIPE['frozen_epochs']}.",
    lower_bound=0,
  )
  flags.DEFINE_float(
    "learning_rate_ratio",
    None,
    "With --retrain: ratio of the learning rate of all weights to"
    " --learning_rate. Default:"
    f" {_RECIPE['learning_rate_ratio']:g}.",
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    "patience",
    None,
    "Early stopping: number of epochs without improvement after which the head"
    " alone, or all weights, are trained no further. The cross-entropy of a"
    f" fifth of the {examples} to train on, spared for that, decides, and the"
    " weights of the best epoch are restored. 0 trains all epochs on all"
    f" {examples}. Default: {_RECIPE['patience']}.",
    lower_bound=0,
  )
  flags.DEFINE_enum(
    "class_weight",
    None,
    ["balanced"],
    "balanced: weigh each class by the inverse of its frequency, as"
    " scikit-learn does, in the loss and its metrics. The test is not weighted."
    " Default: all classes weigh 1.",
  )


def model_path(name: str) -> str | None:
  """Returns the path of a SavedModel or a checkpoint in a flag.

  Raises:
    InputError: TensorFlow cannot read files at this path, or the path of an
      export has no SavedModel.
  """
  value = formats.absolute(flags.FLAGS[name].value)
  if value:
    formats.check_name(name, value)
  if value and name in _EXPORTS:
    formats.check_saved_model(value)
  return value


def _output_dir(name: str, strategy: tf.distribute.Strategy) -> str | None:
  """Checks the directory in a flag, before the training rather than after."""
  output_dir = model_path(name)
  if output_dir and strategies.is_chief(strategy):
    about = f"Cannot write --{name}={output_dir}: "
    with errors.of_input(OSError, tf.errors.OpError, about=about):
      if "://" in output_dir:
        tf.io.gfile.makedirs(output_dir)
      others = tf.io.gfile.exists(output_dir) and tf.io.gfile.listdir(
        output_dir
      )
    if others:
      raise ValueError(f"{output_dir} is not empty. Choose another directory.")
    if os.path.ismount(output_dir):  # Nothing can be renamed to it.
      raise ValueError(f"{output_dir} is a mount point. Add a directory to it.")
  return output_dir


def _check_apart() -> None:
  """Raises an InputError if an output directory is another or is inside it."""
  values = {
    name: flags.FLAGS[name].value
    for name in (*_WRITTEN, *_EXPORTS)
    if name in flags.FLAGS and flags.FLAGS[name].value
  }
  paths = {name: formats.absolute(v).rstrip("/") for name, v in values.items()}
  for name, other in itertools.permutations(paths, 2):
    is_inside = f"{paths[name]}/".startswith(f"{paths[other]}/")
    if name in _WRITTEN and is_inside:
      raise errors.InputError(
        f"--{name}={values[name]} is, or is inside,"
        f" --{other}={values[other]}. Give each a directory of its own."
      )


def _backup(
  train: fitting.Data, strategy: tf.distribute.Strategy
) -> backups.Backup:
  """Finds the state of the training in --backup_dir."""
  run = {}
  if flags.FLAGS.backup_dir:
    export = hub.resolve(model_path("saved_model_dir"))
    # The index has checksums of the variables.
    files = ("saved_model.pb", "variables/variables.index")
    run = {
      **{
        flag.name: flag.value
        for flag in _flags()
        if flag.name not in _OF_ANY_RUN
      },
      "export": backups.fingerprint_of_files(
        os.path.join(export, name) for name in files
      ),
      "data": backups.fingerprint(fitting.examples(train)),
    }
  return backups.Backup(model_path("backup_dir"), run, strategy)


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
  """Turns errors that the user can cause into InputErrors."""
  about = (
    f"{flags.FLAGS.saved_model_dir} is not an export of the kind that this"
    " program takes, or not one for this data: "
  )
  with (
    errors.of_input(OSError, RuntimeError, ValueError, tf.errors.OpError),
    # Raised by code that expects another object.
    errors.of_input(AttributeError, LookupError, TypeError, about=about),
  ):
    yield


def labelled_texts() -> classes.Dataset:
  """Reads the texts of --train_file or docstrings, and prints a description.

  The program must have called `texts.define_flags`.
  """
  values = flags.FLAGS
  with input_errors():
    dataset = (
      texts.read(
        [formats.absolute(name) for name in values.train_file],
        values.text_column,
        values.label_column,
        values.held_out,
        formats.absolute(values.class_names_file),
      )
      if values.train_file
      else texts.python_docs()
    )
  print(f"Fine-tuning on {dataset}")
  return with_validation(dataset)


def with_validation(dataset: classes.Dataset) -> classes.Dataset:
  """Moves some training examples to the validation data, as flags say."""
  if not _recipe()["patience"]:
    return dataset
  if flags.FLAGS.strategy == "parameter_server":
    print("No early stopping: the workers of parameter_server do not validate.")
    return dataset
  return classes.with_validation(dataset)


def class_weights(dataset: classes.Dataset) -> Any:
  """Returns weights of classes as --class_weight says, or None."""
  if not flags.FLAGS.class_weight:
    return None
  return classes.balanced(dataset.counts[:, 0], dataset.classes)


def _recipe() -> dict[str, Any]:
  """Returns the values of the flags in `_RECIPE` that the program defines."""
  values = flags.FLAGS.flag_values_dict()
  return {
    name: default if values[name] is None else values[name]
    for name, default in _RECIPE.items()
    if name in values
  }


def _arguments() -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the arguments of `build` and of `fitting.fit` that flags set."""
  values, recipe = flags.FLAGS, _recipe()
  arguments = {
    name: value
    for name, value in values.flag_values_dict().items()
    if name in ("retrain", "learning_rate", *RETRAINING) and value is not None
  }
  ratio = recipe.pop("learning_rate_ratio", 1.0)
  if values.retrain:
    arguments["learning_rate"] *= ratio
  else:
    recipe["frozen_epochs"] = 0
  return arguments, {
    "batch_size": values.batch_size,
    "epochs": values.epochs,
    "frozen_learning_rate": values.learning_rate,
    **recipe,
  }


def of_texts(dataset: classes.Dataset) -> report.HeldOut:
  """Describes the held-out texts, for a report."""
  return report.HeldOut(
    dataset.classes,
    str(dataset),
    lambda index: dataset.test[0][index].as_py(),
    dataset.place,
  )


def fine_tune(
  build: Callable[..., tf_keras.Model],
  prepare: Callable[[tf_keras.Model], tuple[fitting.Parts, Any]],
  examples: str,
  test_model: Callable[[tf_keras.Model], str] | None = None,
  held_out: Callable[[], report.HeldOut] | None = None,
) -> tf_keras.Model:
  """Builds, trains, tests and saves a model as the flags say.

  Args:
    build: Builds the compiled model, in the scope of the strategy, from the
      values of --saved_model_dir, --retrain, --learning_rate and the flags in
      `RETRAINING` that are set, under these names.
    prepare: Takes the built model, and returns the data and the object to save:
      a `serving.Classifier` or a Keras model.
    examples: The noun for the training examples, in the plural.
    test_model: Tests the trained model without the test data, and returns the
      result in words. Default: compute the metric on the test data.
    held_out: Describes the test data for --report. The model is a classifier.

  Returns:
    The trained model.
  """
  values = flags.FLAGS
  with input_errors():
    strategy = strategies.get(strategies.from_flags())
    if values.seed is not None:
      tf_keras.utils.set_random_seed(values.seed)
    output_dir, piece_dir = (
      _output_dir(name, strategy)
      for name in ("output_saved_model_dir", "output_piece_dir")
    )
    report_file = held_out and formats.absolute(values.report)
    record_file = formats.absolute(values.training_record)
    _check_files(report_file, record_file, strategy)
    _check_batch_size(strategy)
    arguments, recipe = _arguments()
    with strategies.precision(values.mixed_precision), strategy.scope():
      model = build(saved_model_dir=model_path("saved_model_dir"), **arguments)
    piece = pieces.find(model) if piece_dir else None
    data, served = prepare(model)
    backup = _backup(data.train, strategy)
    checkpoint_dir = model_path("checkpoint_dir")
    class_names = getattr(served, "class_names", ())
    weights = checkpoints.restore(model, checkpoint_dir, class_names)
  with strategies.cluster_errors():
    history = fitting.fit(
      model,
      data.train,
      validation=data.validation,
      class_weights=data.class_weights,
      backup=backup,
      **recipe,
    )
    if record_file and strategies.is_chief(strategy):
      _write_record(record_file, history)
    result = "" if test_model else _test_result(model, data.test, examples)
    print(test_model(model) if test_model else f"Test {result}")
    checkpoints.save(weights, checkpoint_dir, class_names, strategy)
    about = (
      f"{len(fitting.examples(data.train)):,} {examples} of {_data_names()}"
    )
    if output_dir:
      _save(served, output_dir, strategy, result, about)
    if piece_dir:
      source, links = model_path("saved_model_dir"), values.follow_links
      pieces.save(piece, piece_dir, strategy, source, about, follow_links=links)
    if report_file:
      _report(report_file, model, data.test, held_out(), history, examples)
  return model


def _test_result(
  model: tf_keras.Model, test: fitting.Data, examples: str
) -> str:
  """Evaluates the model; returns its last metric, in words."""
  value = fitting.evaluate(model, test, batch_size=flags.FLAGS.batch_size)
  count = f"{len(fitting.examples(test)):,} {examples}"
  return f"{model.metrics_names[-1]}: {value:.4f} on {count} held out"


def _save(
  served: serving.Classifier | tf_keras.Model,
  output_dir: str,
  strategy: tf.distribute.Strategy,
  result: str,
  about: str,
) -> None:
  """Saves a trained model to --output_saved_model_dir."""
  source = model_path("saved_model_dir")
  if isinstance(served, serving.Classifier):
    sizes = flags.FLAGS.warmup_batch_sizes
    serving.save(served, output_dir, strategy, source, result, sizes)
    return
  fitting.save(served, output_dir, strategy)
  if strategies.is_chief(strategy):
    links = flags.FLAGS.follow_links
    pieces.describe(output_dir, source, about, follow_links=links)


def _check_files(
  report_file: str | None,
  record_file: str | None,
  strategy: tf.distribute.Strategy,
) -> None:
  """Raises an InputError before the training if a file cannot be written."""
  if report_file and strategies.is_chief(strategy):
    report.check(report_file)
  if record_file:
    formats.check_output_file("training_record", record_file)


def _write_record(path: str, history: Mapping[str, Sequence[float]]) -> None:
  """Writes the metrics of each epoch as exporters do for their trainings."""
  rows = zip(*history.values(), strict=True)
  epochs = [
    {k: float(f"{v:.6g}") for k, v in zip(history, row, strict=True)}
    for row in rows
  ]
  content = json.dumps({"epochs": epochs}, indent=2)
  publishing.write(path, f"{content}\n".encode())


def _check_batch_size(strategy: tf.distribute.Strategy) -> None:
  batch_size, replicas = flags.FLAGS.batch_size, strategy.num_replicas_in_sync
  if batch_size % replicas:
    raise ValueError(
      f"--batch_size={batch_size} is not a multiple of the {replicas} replicas"
      " that share a batch."
    )


def _report(
  path: str,
  model: tf_keras.Model,
  test: fitting.Data,
  held_out: report.HeldOut,
  history: Mapping[str, Sequence[float]],
  examples: str,
) -> None:
  """Tests a model once more, for a report. Only the chief writes it."""
  outcome = report.collect(
    strategies.predictions(
      model, batches.testing(fitting.examples(test), flags.FLAGS.batch_size)
    ),
    len(held_out.class_names),
  )
  if not strategies.is_chief(model.distribute_strategy):
    return
  facts = {
    "program": os.path.basename(sys.argv[0]),
    **serving.source(model_path("saved_model_dir")),
    "data": held_out.description,
    "flags": "\n".join(
      flag.serialize()
      for flag in _flags()
      if flag.value is not None
      and flag.name not in ("dataset", "debug", "report")
    ),
    "TensorFlow": tf.__version__,
    "time": time.strftime("%Y-%m-%d %H:%M"),
  }
  report.write(path, report.page(outcome, held_out, history, examples, facts))


def _flags() -> list[flags.Flag]:
  """Returns the program's flags that name no directories and files."""
  return [
    flag
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    if not flag.name.endswith(("_dir", "_file"))
  ]


def _data_names() -> str:
  """Names the training data as the flags do, without directories."""
  values = flags.FLAGS.flag_values_dict()
  files = values.get("train_file") or values.get("text_file")
  names = files or values["dataset"]
  names = [names] if isinstance(names, str) else names
  return ", ".join(os.path.basename(os.path.normpath(name)) for name in names)


def _check_first() -> None:
  """Runs the command in --check_first on each export; raises if it fails."""
  value = flags.FLAGS.check_first
  about = f"--check_first={value}: "
  if not value.split():
    raise errors.InputError(
      "--check_first is empty. Say a command, or omit it."
    )
  for name in _EXPORTS:
    if name not in flags.FLAGS or not (path := model_path(name)):
      continue
    directory = formats.absolute(".")
    with errors.of_input(OSError, ValueError, about=about):
      program, *arguments = shlex.split(value)
      if os.path.dirname(program):
        program = os.path.join(directory, program)
      if not shutil.which(program):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
      command = [program, *arguments, f"--saved_model_dir={path}"]
      status = subprocess.run(
        scratch.tied(command), check=False, cwd=directory
      ).returncode
    if status:
      raise errors.InputError(
        f"{about}{path} is not loaded, because the check ended with exit status"
        f" {status}."
      )


def _check_assets() -> None:
  """Raises an InputError if assets that would be saved again are links.

  TensorFlow would save the files outside of the export that they point to.
  """
  values = flags.FLAGS.flag_values_dict()
  saves = values.get("output_saved_model_dir") or values.get("output_piece_dir")
  if not saves or values.get("follow_links"):
    return
  for name in _EXPORTS:
    path = model_path(name) if name in flags.FLAGS else None
    for problem in copies.left_out(path, ("assets",)) if path else ():
      raise errors.InputError(f"{path}: {problem}.")


def run(main: Callable[[], Any]) -> None:
  """Checks the flags, and runs a program by `programs.run`."""

  def checked() -> None:
    _check_apart()
    for name in _WRITTEN:
      if name in flags.FLAGS and (path := model_path(name)):
        formats.check_output(name, path)
    for name in _EXPORTS:
      if name in flags.FLAGS:
        model_path(name)  # Fails before TensorFlow is imported.
    _check_assets()
    with errors.of_input(ValueError):
      strategies.prepare(strategies.from_flags())
    if flags.FLAGS.flag_values_dict().get("check_first") is not None:
      _check_first()
    logging.set_verbosity(logging.ERROR)  # Keras warns at every save.
    main()

  programs.run(checked)
