"""Reports errors in the input in one line, and bugs with a traceback.

It imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import errno
import math
import mmap
import os
import re
import signal
import sys
import tempfile
import traceback
import types
from typing import Any, NoReturn

from absl import flags

flags.disclaim_key_flags()  # --help lists them as the program's.

# Python's handler would print a traceback if SIGINT arrived during the imports.
# This module is one of the first to be imported.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

_LONGEST = 800  # Characters of a library's message in an error.
_READ = 100_000  # Characters of a library's message that are read.
_HALF = 1000  # Characters at the start and the end of a longer error.
_LEAST_MEMORY = 2**26  # Bytes. With fewer, memory counts as full.
_BUG = (
  "This is a bug in the program, not in your input. Please report it with the"
  " command line and the traceback."
)
# Errors of files and processes that no program can prevent.
_OF_FULL_DISKS = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}
_OF_FILES = {
  *_OF_FULL_DISKS,
  *(errno.EACCES, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
  *(errno.EBUSY, errno.ENOTDIR, errno.EPERM, errno.EPIPE, errno.EROFS),
  *(errno.EAGAIN, errno.EMFILE, errno.ENFILE),  # Limits, as of ulimit.
}
# Messages of Python and of the dynamic linker.
_NO_MEMORY = re.compile(
  "Cannot allocate memory|can't start new thread|failed to map segment"
  "|error return without exception set"
)
_NOT_WRITTEN = "|".join(map(os.strerror, {*_OF_FULL_DISKS, errno.EROFS}))
# Ends the message about a full disk if scratch files fill it.
SCRATCH = ". Set TMPDIR to a directory with more space."
_PATHS = ("_dir", "_file", "_path", "train_on")  # Names of flags end in these.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")
_TEXTS = ("params_override", "prompt", "separators")  # May have many lines.
_ARGUMENTS = r"Positional arguments \(\d+ total\): \* (.*?) Keyword arguments"
# Messages of Keras, TensorFlow and gin, in one line, and their replacements.
_SAID_OTHERWISE = {
  # An InputError that Python code in a tf.data pipeline raises.
  r"\A.*?\bInputError: (.*?)(?: Traceback \(most recent call .*)?$": r"\1",
  # The name of an op in the exports of encoders.
  r"\A.*\bseq_length_is_past_the_position_table_which_has_(\d+)_rows.*": (
    r"--seq_length: the encoder has \1 positions"
  ),
  r"^Graph execution error: Detected at node \S+ defined at .*?"
  r"<stack traces unavailable> ": "",
  r"(File \"[^\"]*\", line \d+, in ([a-z_<]\S* ?)?)+": "",
  r"^Graph execution error: Detected at node \S+ defined at \(most recent call"
  r" last\): ": "",
  r"in user code: .*?(?=\b\w+Error: )": "",
  r"Exception encountered when calling layer .*? \(type \w+\)\.": "",
  r"Call arguments received by layer .*": "",
  r" ?\[\[\{\{\w+ [^}]*\}\}\]\]|\{\{\w+ [^}]*\}\}": "",
  r" ?\[Op:\w+\]( name:.*)?$": "",
  r"In call to configurable .*": "",
  r"(\b\w+Error: )?Could not find matching concrete function .*? Got: "
  rf"{_ARGUMENTS}.* Option 1: {_ARGUMENTS}.*": (
    lambda match: _of_other_arguments(*match.groups()[1:])
  ),
  r"Op type not registered '(\w+)' in binary .*": (
    r"The SavedModel has the op \1, which this program does not know: it is of"
    " another kind, or needs a package that has the op"
  ),
  # Paths in the hidden directory of an export appear as its final path;
  # `fine_tuned` replaces its own working directory.
  r"\.([^/]+)\.unfinished(?!/\1/\.work\.)(/\1)?(/[^\s;]*)?": r"\1",
  rf"^(.*?)(_temp/\S+)?; ({_NOT_WRITTEN})( \[Op:\w+\])?": (
    r"Cannot write \1: \3"
  ),
}


# When memory is full, this reserved address space is freed, and the functions
# in the list are called before the process ends.
_reserve = mmap.mmap(-1, 2**24, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
before_sudden_end: list[Callable[[], Any]] = []


def _of_other_arguments(*positional: str) -> str:
  """Describes the arguments that a SavedModel takes and those that it got."""
  got, taken = (x.split(" * ") for x in positional)
  if got[1:] == taken[1:]:  # Only the inputs differ.
    got, taken = got[:1], taken[:1]
  return f"The SavedModel takes {' and '.join(taken)}, not {' and '.join(got)}"


class InputError(Exception):
  """Bad input. Its text is one line: what is wrong, where, and what to do."""


@contextlib.contextmanager
def of_input(*types: type[Exception], about: str = "") -> Iterator[None]:
  """Turns exceptions that a user's input causes into InputErrors.

  Keep the body of the context small because a bug must keep its traceback.

  Args:
    *types: The exceptions, such as the ValueError of a function that checks its
      arguments. None: all, for libraries that may raise anything.
    about: Prefix of the message.
  """
  try:
    yield
  except InputError:
    raise
  except types or (Exception,) as e:  # noqa: B030
    text = one_line(e)
    if getattr(e, "strerror", None) and str(e.filename) in about:
      text = e.strerror
    raise InputError(f"{about}{text}") from e


@contextlib.contextmanager
def of_content(path: str) -> Iterator[None]:
  """Names an untrusted file in the errors that its values cause.

  The message of a ValueError says what is wrong. The other errors come from
  code that got a value of an unexpected type, so only `--debug` shows where.
  """
  wrong = (ArithmeticError, AttributeError, LookupError, TypeError)
  about = f"{path}: a value is missing or of a wrong kind: "
  with (
    of_input(OSError, ValueError, about=f"{path}: "),
    of_input(*wrong, about=about),
  ):
    yield


@contextlib.contextmanager
def writing(path: str, advice: str = "") -> Iterator[None]:
  """Names the path in errors about a full disk.

  Python's errors name a file that cannot be opened, but not one that cannot be
  written.
  """
  try:
    yield
  except OSError as e:
    if e.filename or e.errno not in _OF_FULL_DISKS:
      raise
    raise InputError(f"Cannot write {path}: {e.strerror}{advice}") from e


def one_line(error: BaseException) -> str:
  """Returns the message of an exception, in one line of limited length."""
  text = str(getattr(error, "message", error))  # `message` is TensorFlow's.
  if isinstance(error, UnicodeDecodeError):
    line = 1 + bytes(error.object[: error.start]).count(b"\n")
    text = f"line {line} is not UTF-8. Convert the file, for example by iconv."
  if isinstance(error, OSError) and error.strerror:
    name = f": {error.filename}" if error.filename else ""
    text = error.strerror + name
  # The text of other exceptions, such as KeyError, is not a sentence.
  elif not isinstance(error, (OSError, RuntimeError, ValueError)) and not (
    hasattr(error, "message")
  ):
    text = f"{type(error).__name__}: {text}"
  text = " ".join(text[:_READ].split())
  for said, instead in _SAID_OTHERWISE.items():
    text = re.sub(said, instead, text).strip()
  cut = f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text
  return shown(cut) or type(error).__name__


def shown(text: str) -> str:
  """Escapes the control characters of an untrusted text, for a terminal."""
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
  )


def define_flags() -> None:
  """Defines --debug."""
  flags.DEFINE_bool(
    "debug", False, "Show the traceback of errors in the input too."
  )


def check_flags(arguments: Sequence[str]) -> None:
  """Exits on a command line that absl accepts and no program can use.

  Args:
    arguments: The name of the program, and the arguments that are not flags.
  """
  if len(arguments) > 1:
    sys.exit(f"ERROR: {arguments[1]} is not a flag. Flags start with --.")
  for name, value in flags.FLAGS.flag_values_dict().items():
    if (
      name.endswith(_PATHS) and value in ("", []) and flags.FLAGS[name].present
    ):
      sys.exit(f"ERROR: --{name} is empty. Say a path, or omit it.")
    if isinstance(value, float) and not math.isfinite(value):
      sys.exit(f"ERROR: --{name}={value}: Say a finite number.")
    for text in map(str, value if isinstance(value, list) else [value]):
      if name in _TEXTS:
        text = _CONTROL.sub(" ", text)
      if problem := unreadable(f"--{name}", text):
        sys.exit(f"ERROR: {problem}")


def unreadable(name: str, path: str) -> str:
  """Returns an error if a path is not one line of UTF-8; "" if it is.

  Args:
    name: Name of the path in the error.
    path: The path, which is printed and written in cards.
  """
  if path.encode(errors="replace").decode() != path:
    return f"{name} is not UTF-8. Rename the file or directory."
  if _CONTROL.search(path):
    return (
      f"{name}: {shown(path)} has control characters, such as an end of line."
      " Leave them out, or rename the file or directory."
    )
  return ""


def apply_only_with(condition: str, names: Iterable[str]) -> None:
  """Refuses flags that have no effect without another one.

  Args:
    condition: The other flag, as `NAME` if it must be set, or `NAME=VALUE`.
    names: The flags; None, False and an empty list are not refused.
  """
  other, _, value = condition.partition("=")
  for name in names:
    flags.register_multi_flags_validator(
      [other, name],
      lambda values, name=name: (
        (values[other] == value if value else bool(values[other]))
        or values[name] is None
        or values[name] is False
        or values[name] == []
      ),
      f"--{name} applies only with --{condition}.",
    )


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Exits with one line and status 1 on an error in the input.

  The same holds for a lack of memory or disk space. Any other exception is a
  bug: it keeps its traceback, with a line that says so.
  """
  try:
    yield
  except Exception as e:
    lacks_memory = is_of_full_memory(e)
    if not lacks_memory and not _is_of_input_or_machine(e):
      # AutoGraph hides that its directory or the memory is full.
      check_scratch()
      lacks_memory = _memory_is_full()
      if not lacks_memory:
        e.add_note(_BUG)
        raise
    if flags.FLAGS.debug:
      traceback.print_exc()
    if lacks_memory:
      _end_without_memory(e)
    text = str(e) if isinstance(e, InputError) else one_line(e)
    if len(text) > 2 * _HALF:  # A long path comes before the reason.
      text = f"{text[:_HALF]}…{text[-_HALF:]}"
    sys.exit(f"ERROR: {shown(' '.join(text.split()))}")


def _end_without_memory(error: BaseException) -> NoReturn:
  """Ends the process at once: Python may be unable to exit normally."""
  about = "Memory is full, or limited too low (ulimit -v)"
  _reserve.close()
  for call in before_sudden_end:
    with contextlib.suppress(Exception):
      call()
  with contextlib.suppress(MemoryError):
    about = f"{about}: {one_line(error)}"
  print(f"ERROR: {about}", file=sys.stderr, flush=True)
  os._exit(1)


def _end_of_imports(
  kind: type[BaseException], error: BaseException, trace: Any
) -> None:
  """Reports in one line that memory is full while modules are imported."""
  if is_of_full_memory(error):
    _end_without_memory(error)
  sys.__excepthook__(kind, error, trace)


def _check_memory(name: str, *_: Any) -> None:
  """Raises an OSError before the import of a package that needs more memory.

  OpenBLAS takes 32 MiB for each thread, and SciPy's OpenBLAS repeats failed
  requests for ever.
  """
  if name in ("numpy", "scipy.linalg", "scipy.special"):
    said = os.environ.get("OPENBLAS_NUM_THREADS", "")
    threads = int(said) if said.isdecimal() else len(os.sched_getaffinity(0))
    size = 2**25 * min(64, threads) + _LEAST_MEMORY
    mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


sys.excepthook = _end_of_imports
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=_check_memory))


def is_of_full_disk(error: Exception) -> bool:
  """Returns whether a full disk caused an exception, also TensorFlow's."""
  return bool(re.search(_NOT_WRITTEN, str(error)))


def check_scratch() -> None:
  """Exits with one line if the directory for temporary files is full."""
  directory = os.environ.get("TMPDIR") or tempfile.gettempdir()
  try:
    with tempfile.TemporaryFile(dir=directory) as f:
      f.write(bytes(2**16))
  except OSError as e:
    if e.errno in _OF_FULL_DISKS:
      sys.exit(f"ERROR: Cannot write {directory}: {e.strerror}{SCRATCH}")


def _memory_is_full() -> bool:
  try:
    return not bytearray(_LEAST_MEMORY)
  except MemoryError:
    return True


def is_of_full_memory(error: BaseException) -> bool:
  """Tells whether full or limited memory raised an exception."""
  return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def _is_of_input_or_machine(error: Exception) -> bool:
  if isinstance(error, InputError):
    return True
  if isinstance(error, OSError):
    return error.errno in _OF_FILES
  if is_of_full_disk(error):  # Libraries raise their own exceptions.
    return True
  if "InputError: " in str(getattr(error, "message", "")):
    return True
  types = getattr(sys.modules.get("tensorflow"), "errors", None)
  if types and isinstance(error, types.OpError):
    of_machine = (
      types.DataLossError,
      types.PermissionDeniedError,
      types.ResourceExhaustedError,
    )
    return (
      isinstance(error, of_machine)
      # No op failed: a file, perhaps a remote one, cannot be accessed.
      or "[Op:" not in error.message
    )
  return False
