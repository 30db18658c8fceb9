"""The error that a user can mend."""


class ExportError(Exception):
  """Bad input, or a model that cannot be exported.

  Its text is one line that says what is wrong, where, and what to do. Programs
  print that line, without a traceback.
  """
