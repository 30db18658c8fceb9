"""Defines the flags of all exporters, and starts them.

Neither this module nor an exporter may import TensorFlow before the flags are
parsed, so that `--help` and errors in flags are printed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import ctypes
import dataclasses
import gc
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags
from absl import logging

from distribution import errors
from distribution import formats
from distribution import programs
from distribution import strategies
from distribution import warmup
from exporters.reusable import export_options
from exporters.reusable import imports
from exporters.reusable import profiles

if TYPE_CHECKING:
  import tensorflow as tf

# --help lists these flags as the program's.
flags.disclaim_key_flags()

# TensorFlow reads both on import. tensorflow-hub and Model Garden need Keras 2;
# level 2 logs errors only.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


_T = TypeVar("_T")

_MODEL_PATHS = ("_dir", "_path", "keep_failed")  # Suffixes of names of flags.
_PATHS = (*_MODEL_PATHS, "_file")
_INPUTS = ("checkpoint_path", "original_dir", "saved_model_dir")
_LARGEST_INT = 2**31 - 1

_M_ARENA_MAX = -8  # In malloc.h.

# Flags that do not affect the export. Records of the export omit them.
OF_THE_RUN = (
  *("checkpoint_report", "debug", "keep_failed", "measure_latency"),
  "overwrite",
  *("follow_links", "gib", "sandbox", "seconds"),
)

_EXPORT_FLAGS = {
  "export_dir": "Directory for the SavedModel, which appears there complete and"
  " verified. It must not exist, or be empty.",
  "overwrite": "Replace an existing SavedModel at --export_dir, in one step.",
  "keep_failed": "Directory for an export that fails verification, for"
  " inspection. It must not exist. Default: such an export is removed.",
  "measure_latency": "Measure how long calls of the model and of its export"
  " take, after the verification, and write the times to its report, model.json"
  " and the card. These three files then differ in each run.",
}

# The help text of --tensorboard_dir in programs that train.
TENSORBOARD = (
  "write the metrics of each epoch to this directory, for TensorBoard."
)

_DEFINE = {
  bool: flags.DEFINE_bool,
  float: flags.DEFINE_float,
  int: flags.DEFINE_integer,
  type(None): flags.DEFINE_string,
}


def define_flags(*, checkpoints: bool = True) -> None:
  """Defines the flags that all exporters have.

  Call it only if the exporter runs as a program. Its module is also a library,
  and a process may import several exporters.

  Args:
    checkpoints: Whether the program restores checkpoints.
  """
  define(export_options.Options, _EXPORT_FLAGS)
  warmup.define_flags()
  flags.DEFINE_enum(
    "verification",
    "full",
    ["full", "fast", "off"],
    "Compare the export with the live model before it appears. full: weights,"
    " losses, outputs, gradients and more, for several input sizes; fast:"
    " weights, losses and outputs, for one size; off: nothing.",
  )
  flags.register_validator(
    "export_dir", bool, "It is required: the directory to write."
  )
  flags.register_multi_flags_validator(
    ["measure_latency", "verification"],
    lambda values: (
      not values["measure_latency"] or values["verification"] != "off"
    ),
    "--measure_latency needs --verification=full or fast.",
  )
  if checkpoints:
    _define_checkpoint_flags()


def _define_checkpoint_flags() -> None:
  flags.DEFINE_string(
    "checkpoint_path",
    None,
    "The checkpoint to export: the prefix of its files, a directory, whose"
    " newest checkpoint is restored, or a SavedModel with the same variables.",
  )
  flags.DEFINE_enum(
    "weights",
    None,
    ["raw", "average"],
    "With --checkpoint_path: which weights to restore if the checkpoint also"
    " has their moving averages. Model Garden evaluates the averages.",
  )
  flags.DEFINE_string(
    "checkpoint_report",
    None,
    "With --checkpoint_path: file for a report of what each variable was"
    " restored from, and what else the checkpoint has. Its suffix selects HTML,"
    " JSON or text. - prints the report and exports nothing.",
  )
  forbid_without("checkpoint_path", ["checkpoint_report", "weights"])
  flags.DEFINE_list(
    "freezing_profiles",
    [],
    "Sub-objects to add that train fewer variables: last_N trains the last N"
    " blocks or layers and what follows them, no_embeddings all but the"
    " embeddings, batch_norm_frozen all but gamma and beta of batch"
    " normalization.",
  )
  flags.register_validator(
    "freezing_profiles",
    lambda names: all(map(profiles.PROFILE.fullmatch, names)),
    "Profiles are last_N (such as last_2), no_embeddings and"
    " batch_norm_frozen.",
  )


def define_saved_model_format() -> None:
  """Defines --saved_model_format, for exporters of Keras models."""
  flags.DEFINE_enum(
    "saved_model_format",
    export_options.Options.saved_model_format,
    ["reusable", "keras"],
    "Format of the export. reusable: one function for each mode, with the"
    " hyperparameters as arguments. keras: the complete Keras model, for"
    " tf_keras.models.load_model, with fixed hyperparameters.",
  )
  flags.register_multi_flags_validator(
    ["saved_model_format", "freezing_profiles"],
    lambda values: (
      values["saved_model_format"] != "keras" or not values["freezing_profiles"]
    ),
    "--freezing_profiles does not apply with --saved_model_format=keras: freeze"
    " the layers of the loaded Keras model.",
  )


def require_weights(
  *, without_weights: tuple[str, str] = ("export_dir", "")
) -> None:
  """Requires either --checkpoint_path or --train_on.

  Args:
    without_weights: A flag, and the value of it that forbids both.
  """
  name, value = without_weights
  exception = f"; neither with --{name}={value}" if value else ""
  flags.register_multi_flags_validator(
    ["checkpoint_path", "train_on", name],
    lambda values: (
      sum(bool(values[f]) for f in ("checkpoint_path", "train_on"))
      == (values[name] != value)
    ),
    "Say where the weights come from: either --checkpoint_path=PATH or"
    f" --train_on=NAME{exception}.",
  )


def options() -> export_options.Options:
  """Returns the values of the flags that all exporters have."""
  report = flags.FLAGS.flag_values_dict().get("checkpoint_report")
  if report and report != "-":
    report = formats.absolute(report)
    formats.check_output_file("checkpoint_report", report)
  return from_flags(
    export_options.Options, flag_values=_record(), checkpoint_report=report
  )


def define(
  cls: type,
  meanings: Mapping[str, str | tuple],
  *,
  only_with: str | None = None,
) -> None:
  """Defines flags for fields of a dataclass, with the same defaults.

  Args:
    cls: The dataclass. Fields without a default, or with None, become strings.
    meanings: Help texts by name. For a number it may be a tuple of the text,
      the lowest and the highest value.
    only_with: The flag without which these flags are refused.
  """
  for name, meaning in meanings.items():
    text, *bounds = (meaning,) if isinstance(meaning, str) else meaning
    if only_with:
      text = f"With --{only_with}: {text}"
    default = getattr(cls, name, None)
    if type(default) is int:
      bounds += (None, _LARGEST_INT)[len(bounds) :]
    _DEFINE[type(default)](name, default, text, *bounds)
  if only_with:
    forbid_without(only_with, meanings)


def from_flags(cls: type[_T], **others: Any) -> _T:
  """Creates a dataclass from the flags with the names of its fields.

  Args:
    cls: The dataclass. Paths become absolute, by `formats.absolute`.
    **others: Values of fields, which override those of flags.

  Raises:
    ExportError: As for `model_path`.
  """
  fields = {field.name for field in dataclasses.fields(cls)}
  values = {
    name: (
      model_path(name)
      if name.endswith(_MODEL_PATHS)
      else formats.absolute(value)
      if name.endswith(_PATHS)
      else value
    )
    for name, value in flags.FLAGS.flag_values_dict().items()
    if name in fields
  }
  return cls(**{**values, **others})


def model_path(name: str) -> str | None:
  """Returns the path of a SavedModel or checkpoint in a flag.

  Raises:
    ExportError: TensorFlow cannot read the path, or it has another format.
  """
  value = formats.absolute(flags.FLAGS[name].value)
  is_hdf5 = value and value.endswith((".h5", ".hdf5"))
  if value and not is_hdf5:
    formats.check_name(name, value)
  try:
    if value and name == "checkpoint_path":
      formats.checkpoint_prefix(value, takes_others=True)
    elif value and name in _INPUTS:
      formats.check_saved_model(value)
  except errors.InputError as e:
    raise errors.InputError(f"--{name}: {e}") from e
  return value


def _check_paths() -> None:
  """Checks the paths in flags before TensorFlow is imported."""
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    if flag.value and flag.name == "output_file":
      formats.check_output_file(flag.name, formats.absolute(flag.value))
    elif flag.value and flag.name.endswith("_file"):
      paths = flag.value if isinstance(flag.value, list) else [flag.value]
      for path in map(formats.absolute, paths):
        if "://" in path and flag.name != "class_names_file":
          raise errors.InputError(
            f"--{flag.name}={path}: this file must be local. Copy it from"
            " there."
          )
        formats.check_file(flag.name, path)
    elif flag.value and flag.name.endswith(_MODEL_PATHS):
      path = model_path(flag.name)
      if flag.name not in _INPUTS:
        formats.check_output(flag.name, path)


def _record() -> dict[str, Any]:
  """Returns the flags that the export depends on, for its verification report.

  Paths of inputs are reduced to their last part. Outputs are left out.
  """
  record = {}
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    name, value = flag.name, flag.value
    is_output = name.endswith("_dir") and name not in _INPUTS
    if is_output or name in OF_THE_RUN:
      continue
    if isinstance(value, list):  # Some lists have paths.
      value = [os.path.basename(v) for v in value]
    elif value and (
      name.endswith(_PATHS)
      or (name == "train_on" and not value.startswith("tfds:"))
    ):
      value = os.path.basename(os.path.normpath(value))
    record[name] = value
  return dict(sorted(record.items()))


def strategy(config: strategies.Config) -> tf.distribute.Strategy:
  """Creates a strategy, or raises an ExportError if its devices are missing.

  Call it before TensorFlow runs anything else.
  """
  with errors.of_input(ValueError):
    return strategies.get(config)


def end_unless_chief(strategy: tf.distribute.Strategy) -> None:
  """Exits unless this process is the chief, which exports."""
  if not strategies.is_chief(strategy):
    print("The training is over. The chief does the rest.")
    sys.exit()


def forbid_without(condition: str, names: Iterable[str]) -> None:
  """Refuses flags (`names`) if the flag `condition` is not set."""
  for name in names:
    flags.register_multi_flags_validator(
      [condition, name],
      lambda values, name=name: (
        values[condition] is not None or not flags.FLAGS[name].present
      ),
      f"--{name} applies only with --{condition}.",
    )


def _configure_process(without_init: Sequence[str]) -> None:
  """Changes process-wide settings, once the flags are parsed.

  No other code in the exporters changes process-wide settings permanently.
  """
  imports.without_init(without_init)
  train_on = "train_on" in flags.FLAGS and flags.FLAGS.train_on
  if train_on:
    with errors.of_input(ValueError):
      strategies.prepare(strategies.from_flags())
  else:
    # Only training uses GPUs.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  # Image data sets, for which --train_on is a string and not a list, and named
  # TPUs need the packages of OPTIONAL.
  reads_images = isinstance(train_on, str) or (
    "calibration_data" in flags.FLAGS and flags.FLAGS.calibration_data
  )
  if not reads_images and not strategies.from_flags().tpu:
    imports.leave_out(imports.OPTIONAL)
  # Models and graphs are many long-lived objects, which frequent garbage
  # collections would scan in vain.
  gc.set_threshold(100_000, 20, 100)
  # One malloc heap per core. By default glibc has eight per core, and freed
  # memory stays in its heap.
  if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
    mallopt(_M_ARENA_MAX, os.cpu_count())
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)


def run(main: Callable[[], None], *, without_init: Sequence[str] = ()) -> None:
  """Configures the process, and runs a program by `programs.run`.

  Args:
    main: The program, in the module that is run.
    without_init: Packages to import without their `__init__.py`, as in
      `imports.without_init`, to save time.
  """

  def configured() -> None:
    _check_paths()
    _configure_process(without_init)
    main()

  programs.run(configured)
