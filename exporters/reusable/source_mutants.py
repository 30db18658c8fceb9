"""Plants faults in the code of exporters, and prints which test finds each.

Each fault is one change of a module of this folder: a condition negated, a
statement dropped, a number or a comparison changed. First a model is exported
and verified with it, then the tests of the module run.
"""

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import importlib
import io
import itertools
import multiprocessing
import pathlib
import random
import sys
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
    index: The changed node, as `ast.walk` counts them.
  """

  module: str
  kind: str
  line: str
  index: int


def mutants(name: str, lines: Collection[int]) -> Iterator[Mutant]:
  """Yields all faults that fit some lines of a module."""
  source = _path(name).read_text()
  texts = source.splitlines()
  for i, node in enumerate(ast.walk(ast.parse(source))):
    for kind, place, _ in _changes(node):
      words = ast.unparse(place)
      if place.lineno in lines and not any(word in words for word in _WORDS):
        line = f"{place.lineno}: {texts[place.lineno - 1].strip()}"
        yield Mutant(name, kind, line, i)


def _changed(mutant: Mutant) -> ast.Module:
  """Returns the source of a mutant's module, with its fault."""
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
    case ast.If(test=test) | ast.IfExp(test=test):
      change = setting("test", ast.UnaryOp(ast.Not(), test))
      yield "condition negated", node, change
    case ast.Compare(ops=[op]) if type(op) in _OPPOSITES:
      yield "comparison turned", node, setting("ops", [_OPPOSITES[type(op)]()])
    case ast.BoolOp(op=op):
      other = ast.Or() if isinstance(op, ast.And) else ast.And()
      yield "and for or", node, setting("op", other)
    case ast.Constant(value=bool(value)):
      yield "flag flipped", node, setting("value", not value)
    case ast.Constant(value=int(value) | float(value)):
      yield "number + 1", node, setting("value", value + 1)
    case ast.Return(value=ast.Name()):
      yield "returns None", node, setting("value", ast.Constant(None))
  body = getattr(node, "body", None)  # Of a lambda it is no list.
  for i, statement in enumerate(body if isinstance(body, list) else ()):
    match statement:
      case ast.Expr(value=ast.Call()):
        rest = [*body[:i], ast.Pass(), *body[i + 1 :]]
        yield f"call {i} dropped", statement, setting("body", rest)


def executed(prove: Callable[[], None]) -> dict[str, set[int]]:
  """Returns the lines of each module that an export and its checks execute."""
  lines = {str(_path(name)): set() for name in _MODULES}

  def trace(frame: Any, event: str, _: Any) -> Any:
    of_module = lines.get(frame.f_code.co_filename)
    if of_module is not None and event == "line":
      of_module.add(frame.f_lineno)
    return None if of_module is None else trace

  sys.settrace(trace)
  try:
    prove()
  finally:
    sys.settrace(None)
  return {pathlib.Path(path).stem: found for path, found in lines.items()}


def sample(
  of_module: int, lines: Mapping[str, Collection[int]], seed: int = 0
) -> Iterator[Mutant]:
  """Yields some faults of each module in the given lines, always the same."""
  rng = random.Random(seed)
  for name in _MODULES:
    found = list(mutants(name, lines[name]))
    yield from rng.sample(found, min(of_module, len(found)))


def in_child(function: Callable[..., Any], *args: Any, seconds: float) -> Any:
  """Runs a function in a copy of this process.

  Call it before the first op: TensorFlow's threads are not copied.

  Raises:
    EOFError: The copy ends early.
    TimeoutError: It takes too long, and is killed.
  """
  receiver, sender = multiprocessing.Pipe(duplex=False)
  process = multiprocessing.get_context("fork").Process(
    target=lambda: sender.send(function(*args))
  )
  process.start()
  sender.close()
  try:
    if receiver.poll(seconds):
      return receiver.recv()
    raise TimeoutError
  finally:
    process.kill()
    process.join()


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
  """Replaces what a module defines; restores it on exit."""
  module = importlib.import_module(f"exporters.reusable.{mutant.module}")
  before = dict(vars(module))
  try:
    exec(compile(_changed(mutant), module.__file__, "exec"), vars(module))
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
  # Before any op: it sets up devices.
  importlib.import_module("exporters.reusable.verification_test")
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
