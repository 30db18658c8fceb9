"""Plants faults in the code of exporters, and returns what finds each.

Each fault is one change of a module of this folder: a condition negated, a
statement dropped, a number or a comparison changed. The tests of the module, or
the export and verification of a small model, must find it.
"""

import ast
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent import futures
import contextlib
import functools
import importlib
import io
import itertools
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
from typing import Any, NamedTuple
import unittest

# The tests that look for the faults of each module: a test module and patterns
# of test names or, for None, the export and verification of a model. The tests
# that find most in the least time come first.
_OF_BLOCKS = "slimming_test *equal_blocks*"
_OF_ROUNDING = "verification_test *rounding*"
_PLANS = (
  "verification_test *plans* *features* *counts_of_rows* *like_the_first*"
)
_CHECKS = (
  None,
  "verification_test *allows* *intact* *largest* *notes* *order* *other*"
  " *rounding* *xla*",
  "verification_test",
  "verification_test *finds*",
)
_MODULES = {
  "comparison": ("verification_test *allows* *compares*", *_CHECKS),
  "endpoints": _CHECKS,
  "export_checks": _CHECKS,
  "graphs": ("slimming_test", "verification_test *counts*", None),
  "hyperparameters": ("hyperparameters_test", None),
  "inlining": ("slimming_test", None),
  "layer_calls": (None, "xla_test", "saving_test"),
  "observation": ("verification_test *undoes*", *_CHECKS),
  "outlining": (_OF_BLOCKS, None),
  "randomness": (
    "verification_test *compares* *counts*",
    *_CHECKS,
    _OF_BLOCKS,
  ),
  "saving": (None, "saving_test"),
  "slimming": ("slimming_test", None),
  "slimming_check": ("slimming_test", None),
  "verification": (_PLANS, _OF_ROUNDING, *_CHECKS),
  "xla": ("layer_norm_test", None, "xla_test"),
}
_OPPOSITES = {
  ast.Eq: ast.NotEq,
  ast.Lt: ast.GtE,
  ast.Gt: ast.LtE,
  ast.In: ast.NotIn,
  ast.Is: ast.IsNot,
}
_OPPOSITES |= {new: old for old, new in _OPPOSITES.items()}
_WORDS = "only words and refusals change"
# Why faults in code with these words are not planted.
_WITHOUT_EFFECT = {
  **dict.fromkeys(
    (
      *("print", "errors.", "warn", "_print_table"),
      *("mark = ", "words = [", ", 0.0, "),
      "if form is not specs[0]",
      "where = name or",
    ),
    _WORDS,
  ),
  **dict.fromkeys(
    (
      "autograph=False",
      "_BLOCK",
      "_shortened(",
      "both = (model",
      "takes_none = ",
      "tf.cast(tf.cast(x, s.dtype",
      "node.attr.pop(",
      "os.path.dirname(name)",
      'rows.dtype.kind == "f"',
      "scopes = [",
    ),
    "only time or memory change",
  ),
  "set_seed": "any seed will do",
  "observation.float_inputs(examples[": "any example will do",
  "[0, 0], 0, rows": "any seed and example will do",
  "position.get(v.ref(), 0)": "any order will do",
  "v.ref(), -1)": "any number that is no index will do",
  '"_class"': "colocation is a hint",
  "[seed, ": "any seed and scale will do",
  "tf.shape(x), [0, 0], -1, 1": "any seed and scale will do",
  "reshape(-1": "NumPy takes -2 for -1",
  "deterministic=True": "only the order of bytes changes",
  "*waits]0": "to wait twice for a node is to wait once",
  "tf.constant(0.0)": "a constant has no gradient",
  "output, 0.0)": "a constant has no gradient",
  "dict.fromkeys(arguments, 0)": "no read of a variable has this bit",
}
_SECONDS = 1200  # For one test.
_MANY = 16


class Mutant(NamedTuple):
  """A module with one fault.

  Attributes:
    module: Name of the module.
    kind: The kind of change.
    place: The number of the source line.
    line: The source line.
    index: The index of the changed node in `ast.walk`.
    equivalent: Why the fault would have no effect, or "" if it has one. Only
      faults with an effect are planted.
  """

  module: str
  kind: str
  place: int
  line: str
  index: int
  equivalent: str


def _mutants(name: str, lines: Collection[int]) -> Iterator[Mutant]:
  """Yields all faults that fit some lines of a module."""
  source = _path(name).read_text()
  texts = source.splitlines()
  tree = ast.parse(source)
  messages = {
    id(node)
    for message in filter(_is_message, ast.walk(tree))
    for node in ast.walk(message)
  }
  for i, node in enumerate(ast.walk(tree)):
    for kind, place, _ in _changes(node):
      line = texts[place.lineno - 1].strip()
      words = line if isinstance(node, ast.If) else line + ast.unparse(place)
      reasons = [why for word, why in _WITHOUT_EFFECT.items() if word in words]
      reasons = [_WORDS] * (id(place) in messages) + reasons
      if place.lineno in lines:
        yield Mutant(name, kind, place.lineno, line, i, "".join(reasons[:1]))


def _is_message(node: ast.AST) -> bool:
  """Tells whether a node raises an error, or makes a text of several words."""
  return isinstance(node, ast.Raise) or (
    isinstance(node, ast.JoinedStr)
    and any(isinstance(x, ast.Constant) and " " in x.value for x in node.values)
  )


def _changed(mutant: Mutant) -> ast.Module:
  """Returns the syntax tree of a mutant's module, with its fault."""
  tree = ast.parse(_path(mutant.module).read_text())
  node = next(itertools.islice(ast.walk(tree), mutant.index, None))
  for kind, _, change in _changes(node):
    if kind == mutant.kind:
      change(node)
  return ast.fix_missing_locations(tree)


def _path(name: str) -> pathlib.Path:
  return pathlib.Path(__file__).with_name(f"{name}.py")


def _changes(
  node: ast.AST,
) -> Iterator[tuple[str, ast.AST, Callable[[Any], None]]]:
  """Yields the kind of each change that fits a node, and what it changes."""

  def setting(name: str, value: Any) -> Callable[[Any], None]:
    return lambda node: setattr(node, name, value)

  match node:
    case ast.Compare(ops=[op]) if type(op) in _OPPOSITES:
      yield "comparison turned", node, setting("ops", [_OPPOSITES[type(op)]()])
    case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(
      test, ast.Compare
    ):
      change = setting("test", ast.UnaryOp(ast.Not(), test))
      yield "condition negated", node, change
    case ast.BoolOp(op=op):
      other = ast.Or() if isinstance(op, ast.And) else ast.And()
      yield "and for or", node, setting("op", other)
    case ast.keyword(arg=arg, value=ast.Constant(value=bool(value))) if (
      arg != "strict"  # The lengths are equal.
    ):
      change = setting("value", ast.Constant(not value))
      yield "flag flipped", node, change
    case ast.Constant(value=value) if type(value) in (int, float):
      # Adding 1 to a large number often has no effect.
      new = value + 1 if value < _MANY else 0
      yield "number changed", node, setting("value", new)
    case ast.Return(value=ast.Name()):
      yield "returns None", node, setting("value", ast.Constant(None))
  body = getattr(node, "body", None)  # The body of a lambda is no list.
  for i, statement in enumerate(body if isinstance(body, list) else ()):
    match statement:
      case ast.Expr(value=ast.Call()):
        rest = [*body[:i], ast.Pass(), *body[i + 1 :]]
        yield f"call {i} dropped", statement, setting("body", rest)


def _executed(prove: Callable[[], None]) -> dict[str, set[int]]:
  """Returns the lines of each module that an export and its tests execute."""
  # Before the first op, as `verification_test` configures devices.
  tests = [_tests(patterns) for patterns in (_OF_BLOCKS, _OF_ROUNDING, _PLANS)]
  lines = {str(_path(name)): set() for name in _MODULES}

  def trace(frame: Any, event: str, _: Any) -> Any:
    of_module = lines.get(frame.f_code.co_filename)
    if of_module is not None and event == "line":
      of_module.add(frame.f_lineno)
    return None if of_module is None else trace

  sys.settrace(trace)
  try:
    prove()
    for suite in tests:
      suite.run(unittest.TestResult())
  finally:
    sys.settrace(None)
  return {pathlib.Path(path).stem: found for path, found in lines.items()}


def _tests(patterns: str) -> unittest.TestSuite:
  """Loads the tests of a module: its name, and patterns of their names."""
  name, *of_names = patterns.split()
  if of_names:  # All nightly cases of a module would take too long.
    os.environ["NIGHTLY"] = ""
  loader = unittest.TestLoader()
  loader.testNamePatterns = of_names or None
  return loader.loadTestsFromName(f"exporters.reusable.{name}")


def _in_child(function: Callable[..., Any], *args: Any) -> Any:
  """Runs a function in a copy of this process.

  Call it before the first op: TensorFlow's threads are not copied.

  Raises:
    EOFError: The copy ends early.
    TimeoutError: The copy takes too long, and is killed.
  """
  receiver, sender = multiprocessing.Pipe(duplex=False)
  process = multiprocessing.get_context("fork").Process(
    target=lambda: sender.send(function(*args))
  )
  process.start()
  sender.close()
  try:
    if receiver.poll(_SECONDS):
      return receiver.recv()
    raise TimeoutError
  finally:
    process.kill()
    process.join()


def _problem(
  mutant: Mutant | None, test: str | None, prove: Callable[[], None]
) -> str | None:
  """Plants a fault, if any; returns the problem that a test finds, or None.

  If `test` is None, `prove` looks for the problem.

  Call it in a process of its own: a fault may change other modules.
  """
  # Before the change, because some test modules call the module on import.
  tests = _tests(test) if test else None
  with (
    tempfile.TemporaryDirectory() as directory,
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    if mutant:
      module = importlib.import_module(f"exporters.reusable.{mutant.module}")
      # A file, because AutoGraph reads the source of what it converts.
      path = pathlib.Path(directory, "mutant.py")
      path.write_text(ast.unparse(_changed(mutant)))
      exec(compile(path.read_text(), path, "exec"), vars(module))
    if tests:
      result = unittest.TestResult()
      result.failfast = True
      tests.run(result)
      failed = [case.id() for case, _ in result.failures + result.errors]
      return failed[0].removeprefix("exporters.reusable.") if failed else None
    try:
      prove()
    except Exception as e:
      words = " ".join(str(e).split())
      return f"an export and its verification: {type(e).__name__}: {words}"
  return None


def _found(
  prove: Callable[[], None], mutant: Mutant
) -> tuple[str, str, str | None]:
  """Plants a fault; returns its kind, its place, and what finds it."""
  by = None
  for test in _MODULES[mutant.module]:
    try:
      by = by or _in_child(_problem, mutant, test, prove)
    except (EOFError, TimeoutError):
      by = f"it ends early or takes more than {_SECONDS} seconds"
  where = f"{mutant.kind}, {mutant.place}: {mutant.line}"
  return f"code of {mutant.module}.py", where, by


def planted(
  of_module: int,
  prove: Callable[[], None],
  not_planted: Counter[str],
  seed: int,
) -> Iterator[tuple[str, str, str | None]]:
  """Plants some faults in each module, the same for equal seeds.

  Call it before the first op.

  Args:
    of_module: The number of faults in each module.
    prove: Exports and verifies a model. Raises if that fails. It must be
      defined at the top level of a module, so that it can be pickled.
    not_planted: Counts other faults by `Mutant.equivalent`.
    seed: Chooses the faults.

  Yields:
    The kind of a fault, its place, and what finds it, None if nothing does.

  Raises:
    AssertionError: A test fails without a fault.
  """
  lines = _in_child(_executed, prove)
  chosen = []
  for name in _MODULES:
    every = list(_mutants(name, lines[name]))
    not_planted.update(m.equivalent for m in every if m.equivalent)
    found = [m for m in every if not m.equivalent]
    # In random order, which stays the same when other lines change.
    found.sort(
      key=lambda m: random.Random(f"{seed} {m.kind} {m.line}").random()
    )
    chosen += found[:of_module]
  processes = futures.ProcessPoolExecutor(
    len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")
  )
  tests = set().union(*_MODULES.values()) - {None}
  with processes:
    without_fault = functools.partial(_in_child, _problem, None)
    for problem in processes.map(
      without_fault, sorted(tests), itertools.repeat(prove)
    ):
      assert problem is None, f"{problem} fails without a fault"
    yield from processes.map(functools.partial(_found, prove), chosen)
