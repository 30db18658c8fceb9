"""The error that a user can correct."""

from collections.abc import Iterator
import contextlib


class ExportError(Exception):
  """Bad input, or a model that cannot be exported.

  Its text is one line that says what is wrong, where, and what to do. Programs
  print that line, without a traceback.
  """


@contextlib.contextmanager
def of_input(*types: type[Exception], about: str = "") -> Iterator[None]:
  """Turns exceptions that a user's input causes into ExportErrors.

  Keep what is inside small: a bug must keep its traceback.

  Args:
    *types: The exceptions, such as the ValueError of a function that checks its
      arguments.
    about: What the message begins with.
  """
  try:
    yield
  except types as e:
    text = getattr(e, "strerror", None) or str(e)  # That of an OSError.
    raise ExportError(f"{about}{' '.join(text.split())}") from e
