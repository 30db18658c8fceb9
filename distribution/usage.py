"""Prints the help of programs, and errors in their flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import difflib
import re
import signal
import sys
import textwrap

from absl import flags

flags.disclaim_key_flags()  # --help lists them as the program's.

_HELP = {"--help", "-help", "--helpshort", "-helpshort", "-h"}
# The flags of each group. Flags of no group are in `_REST`.
_REST = "What goes in"
_GROUPS = {
  _REST: "",
  "What comes out": (
    r"export_.*|output_.*|\w*report|saved_model_format|verification|html|json"
    r"|overwrite|keep_\w+|unpack_dir|to|dry_run|record|max_shard_size|strict"
    r"|excepted_rules|allow_undecided|quantization|compare_quantizations"
    r"|freezing_profiles|training_record|warmup_batch_sizes|warmup_lengths"
    r"|prompt|length|temperature"
  ),
  "Training": (
    r"epochs|frozen_epochs|batch_size|\w*learning_rate\w*|\w+_rate|seed|patience"
    r"|retrain|trainable|class_weight|\w*momentum|l2_\w+|regularization_\w+"
    r"|(backup|checkpoint|tensorboard)_dir|augmentation|steps_per_epoch|dropout"
    r"|(layer|weight)_decay"
  ),
  "Accelerators": "strategy|tpu|num_gpus|mixed_precision|topology|libtpu",
  "Safety and errors": (
    "audit|check_first|debug|follow_links|gib|sandbox|seconds|trust"
  ),
}
# Descriptions of values that say no more than the type.
_NO_NEWS = re.compile(r"|an? (integer|number|comma separated list)|.*\d{10}\]")
# Patterns in absl's errors, and their replacements.
_SAID_OTHERWISE = {
  r"^flags .*?: (?=[A-Z-])|^flag --\w+=None: (?=Flag)|^flag ": "",
  r"=None: ": ": ",
  # Lists become what the user wrote.
  r"^(--\w+=)\['(.*?)'\](?=: )": lambda m: m[1] + ",".join(m[2].split("', '")),
  r"invalid literal for int.*": "It must be a whole number.",
  r"could not convert string to float.*": "It must be a number.",
}


def parse(arguments: Sequence[str], *, known_only: bool = False) -> list[str]:
  """Parses a command line, for `app.run`.

  Exits after --help, and with one line on a wrong flag.

  Args:
    arguments: The command line.
    known_only: Whether to return unknown flags instead of exiting.

  Returns:
    The arguments that are not flags.
  """
  if _HELP.intersection(arguments):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # For `--help | head`.
    print(help_text())
    sys.exit()
  try:
    return flags.FLAGS(arguments, known_only=known_only)
  except flags.UnrecognizedFlagError as e:
    near = difflib.get_close_matches(e.flagname, [f.name for f in _flags()], 1)
    advice = f"Did you mean --{near[0]}?" if near else "See --help."
    sys.exit(f"ERROR: --{e.flagname} is not a flag. {advice}")
  except flags.Error as e:
    text = " ".join(str(e).split())
    for said, instead in _SAID_OTHERWISE.items():
      text = re.sub(said, instead, text, count=1)
    sys.exit(f"ERROR: {text}")


def help_text() -> str:
  """Returns the docstring of the program and its flags in groups."""
  groups: dict[str, list[str]] = {name: [] for name in _GROUPS}
  for flag in sorted(_flags(), key=lambda flag: flag.name):
    fitting = (n for n, p in _GROUPS.items() if re.fullmatch(p, flag.name))
    groups[next(fitting, _REST)] += _described(flag)
  parts = [(sys.modules["__main__"].__doc__ or "").strip()]
  parts += [
    "\n".join([f"{n}:", *lines]) for n, lines in groups.items() if lines
  ]
  return "\n\n".join(parts)


def _flags() -> list[flags.Flag]:
  return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def _described(flag: flags.Flag) -> Iterator[str]:
  """Yields the lines about a flag: name, values, help and default."""
  values = "|".join(getattr(flag.parser, "enum_values", ()))
  # absl puts the values of an enum before its help.
  about = re.sub(r"^<.*?>: ", "", flag.help)
  if not values and not _NO_NEWS.fullmatch(flag.parser.syntactic_help):
    about += f" It is {flag.parser.syntactic_help}."
  if flag.default not in (None, [], "") and not flag.boolean:
    about += f" (default: {flag.default_as_str.strip(chr(39))})"
  elif flag.boolean:
    about += f" (default: {'yes' if flag.default else 'no'})"
  name = f"  --{'[no]' * bool(flag.boolean)}{flag.name}"
  yield f"{name}={values}" if values else name
  yield from textwrap.wrap(
    about, 74, initial_indent=" " * 6, subsequent_indent=" " * 6
  )
