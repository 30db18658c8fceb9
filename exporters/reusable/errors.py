"""The error that a user can correct."""

from distribution import errors

# Bad input, or a model that cannot be exported. See `distribution/errors.py`.
ExportError = errors.InputError
of_content = errors.of_content
of_input = errors.of_input
one_line = errors.one_line
shown = errors.shown
writing = errors.writing
SCRATCH = errors.SCRATCH
