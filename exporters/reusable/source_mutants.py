"""Plants faults in the code of exporters, and prints which test finds each.

Each fault is one change of a module of this folder: a condition negated, a
statement dropped, a number or a comparison changed. First a model is exported
and verified with it, then the tests of the module run.
"""

import ast
from collections.abc import Callable, Iterator
import contextlib
import copy
import importlib
import io
import pathlib
import random
from typing import Any, NamedTuple
import unittest

# Modules, and tests that need them. Cheap tests come first.
_MODULES = {
  "comparison": (
    "verification_test.VerificationTest.test_compares_columns_and_structure",
  ),
  "export_checks": (),
  "graphs": ("slimming_test",),
  "hyperparameters": ("hyperparameters_test",),
  "layer_calls": ("xla_test",),
  "observation": (),
  "randomness": (
    "verification_test.VerificationTest.test_compares_distributions",
  ),
  "saving": ("saving_test",),
  "slimming": ("slimming_test",),
  "verification": (),
  "xla": ("layer_norm_test", "xla_test"),
}
_OPPOSITES = {
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.Lt: ast.GtE,
  ast.GtE: ast.Lt,
  ast.Gt: ast.LtE,
  ast.LtE: ast.Gt,
  ast.In: ast.NotIn,
  ast.NotIn: ast.In,
  ast.Is: ast.IsNot,
  ast.IsNot: ast.Is,
}
# They change no result, only words, time or memory.
_WORDS = ("print", "errors.", "warn", "_print_table", "f.write")


class Mutant(NamedTuple):
  """A module with one fault.

  Attributes:
    module: Name of the module.
    kind: The kind of change.
    line: The source line.
    tree: The changed source.
  """

  module: str
  kind: str
  line: str
  tree: ast.Module


def mutants(name: str, source: str) -> Iterator[Mutant]:
  """Yields all faults that fit the source of a module."""
  lines = source.splitlines()
  original = ast.parse(source)
  for i, node in enumerate(ast.walk(original)):
    for kind, change in _changes(node):
      tree = copy.deepcopy(original)
      changed = next(n for j, n in enumerate(ast.walk(tree)) if j == i)
      line = lines[node.lineno - 1].strip()
      change(changed)
      if not any(word in ast.unparse(node) for word in _WORDS):
        yield Mutant(
          name, kind, f"{node.lineno}: {line}", ast.fix_missing_locations(tree)
        )


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
  match node:
    case ast.If() | ast.IfExp():
      yield "condition negated", _negate
    case ast.Compare(ops=[op]) if type(op) in _OPPOSITES:

      def turn(node: ast.Compare) -> None:
        node.ops = [_OPPOSITES[type(op)]()]

      yield "comparison turned", turn
    case ast.BoolOp():

      def other(node: ast.BoolOp) -> None:
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()

      yield "and for or", other
    case ast.Constant(value=bool()):

      def flip(node: ast.Constant) -> None:
        node.value = not node.value

      yield "flag flipped", flip
    case ast.Constant(value=int() | float()):

      def add(node: ast.Constant) -> None:
        node.value += 1

      yield "number + 1", add
    case ast.FunctionDef(body=[*_, ast.Return(value=ast.Name())]):

      def nothing(node: ast.FunctionDef) -> None:
        node.body[-1] = ast.Return(ast.Constant(None))

      yield "returns None", nothing
  body = getattr(node, "body", None)  # Of a lambda it is no list.
  for i, statement in enumerate(body if isinstance(body, list) else ()):
    if isinstance(statement, ast.Expr) and isinstance(
      statement.value, ast.Call
    ):

      def drop(node: Any, i: int = i) -> None:
        node.body[i] = ast.Pass()

      yield "call dropped", drop


def _negate(node: Any) -> None:
  node.test = ast.UnaryOp(ast.Not(), node.test)


def sample(of_module: int, seed: int = 0) -> Iterator[Mutant]:
  """Yields some faults of each module, always the same."""
  rng = random.Random(seed)
  for name in _MODULES:
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    found = list(mutants(name, path.read_text()))
    yield from rng.sample(found, min(of_module, len(found)))


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
  """Replaces what a module defines; restores it on exit."""
  module = importlib.import_module(f"exporters.reusable.{mutant.module}")
  before = dict(vars(module))
  try:
    exec(compile(mutant.tree, module.__file__, "exec"), vars(module))
    yield
  finally:
    vars(module).clear()
    vars(module).update(before)


def found_by(mutant: Mutant, prove: Callable[[], None]) -> str | None:
  """Plants a fault; returns what finds it, None if nothing does.

  Call it in a process of its own: a fault may change other modules.

  Args:
    mutant: The fault.
    prove: Exports and verifies a model. Raises if that fails.
  """
  tests = _MODULES[mutant.module]
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
    planted(mutant),
  ):
    try:
      prove()
    except Exception as e:
      words = " ".join(str(e).split())
      return f"an export and its verification: {type(e).__name__}: {words}"
    for name in (*tests, "verification_test"):
      result = unittest.TestResult()
      result.failfast = True
      tests = unittest.defaultTestLoader.loadTestsFromName(
        f"exporters.reusable.{name}"
      )
      tests.run(result)
      if not result.wasSuccessful():
        return f"{(result.failures + result.errors)[0][0].id()}"
  return None
