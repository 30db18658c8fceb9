"""Generates damaged input for parsers, and checks how they fail."""

from collections.abc import Callable, Sequence
import os

from absl.testing import absltest
import hypothesis
from hypothesis import configuration
from hypothesis import strategies as st

from distribution import errors

_MOST_CHARACTERS = 2000
# Bytes that a parser may not expect.
_PARTS = (
  *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"\xe2\x80\xa8", b"\x1b[2J"),
  *(b'"', b"\n", b"\r", b"\t", b" ", b",", b"\\ud83d", b"PK\x03\x04"),
  *(b"-1", b"0", b"1e999", b"nan", b"null", b"9" * 5000, b"[]", b"{}"),
  *(b"[" * 9999, b"x" * 99_999, b"a\n" * 999, b"!!int ''", b"&a [*a]"),
)


@st.composite
def damaged(draw: Callable, whole: bytes) -> bytes:
  """Draws copies of `whole` with a few parts removed, inserted or changed."""
  data = bytearray(whole)
  for _ in range(draw(st.integers(1, 3))):
    start = draw(st.integers(0, len(data)))
    end = draw(
      st.sampled_from([start, start + 1, start + 8])
      | st.just(max(start, len(data)))
    )
    part = draw(st.just(b"") | st.sampled_from(_PARTS) | st.binary(max_size=4))
    data[start:end] = part
  return bytes(data)


def files(wholes: Sequence[bytes]) -> st.SearchStrategy[bytes]:
  """Draws contents of a file: random bytes, or a valid file with damage.

  Args:
    wholes: The contents of valid files.
  """
  return st.one_of(st.binary(max_size=64), *map(damaged, wholes))


def fuzz(
  check: Callable[..., None],
  strategy: st.SearchStrategy,
  found: Sequence = (),
  max_examples: int = 100,
) -> None:
  """Checks examples of a strategy, deterministically.

  Args:
    check: Called with an example; raises an error if a parser is wrong.
    strategy: Draws examples.
    found: Examples that failed in the past; they are checked first.
    max_examples: Number of examples to draw.
  """
  configuration.set_hypothesis_home_dir(absltest.TEST_TMPDIR.value)
  for example in found:
    check(example)

  @hypothesis.settings(
    max_examples=max_examples,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(strategy)
  def run(example: bytes) -> None:
    check(example)

  run()


def check_answer(
  parse: Callable[[], None], types: Sequence[type[Exception]], named: str
) -> None:
  """Asserts that a parser returns, or raises a readable one-line error.

  Args:
    parse: Calls the parser.
    types: The exceptions that callers treat as errors in the input.
    named: A text that the error must contain.
  """
  try:
    with errors.of_input(*types):
      parse()
  except errors.InputError as e:
    text = str(e)
    assert os.path.basename(named) in text, text
    assert text.isprintable() and len(text) < _MOST_CHARACTERS, text
