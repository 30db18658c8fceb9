"""Tests links and commands in README, `docs/` and the help of programs.

It is in this folder because only tests of consumers may depend on the programs
of both exporters and consumers.
"""

import ast
import contextlib
import io
import itertools
import multiprocessing
import pathlib
import re
import runpy
import shlex
import sys

from absl.testing import absltest
from absl.testing import parameterized

from integration_tests import bad_input
from integration_tests import bad_input_of_consumers
from integration_tests import imports

_PAGES = sorted(
  str(path)
  for folder in (".", "docs")
  for path in pathlib.Path(folder).glob("*.md")
)
# Programs whose source has another name.
_SOURCES = {"exporters/safetensors": "exporters/to_safetensors"}
_COMMAND = re.compile(r"bazelw? (?:run|build)(?: --config=\w+)? (//\S+)(.*)")


def _examples() -> dict[str, str]:
  """Returns the docstrings of all programs with commands, as shell blocks."""
  found = {}
  for folder in ("exporters", "integration_tests"):
    for path in pathlib.Path(folder).glob("*.py"):
      doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
      if "  bazel run //" in (doc or ""):
        found[str(path)] = f"```sh\n{doc}\n```"
  return found


def _help(program: str) -> str:
  """Returns what a program prints for --help. Call it in its own process."""
  sys.argv = [program, "--help"]
  with (
    contextlib.redirect_stdout(io.StringIO()) as output,
    contextlib.suppress(SystemExit),
  ):
    runpy.run_path(program, run_name="__main__")
  return output.getvalue()


def _commands(text: str) -> list[tuple[str, list[str]]]:
  """Returns the programs in the shell blocks of a page, with their flags."""
  found = []
  for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
    lines = block.replace("\\\n", " ").replace("&&", "\n").splitlines()
    for target, rest in filter(None, map(_parse, lines)):
      arguments = shlex.split(rest)
      names = [a.partition("=")[0] for a in arguments if a.startswith("--")]
      found.append((target, [name for name in names if name != "--"]))
  return found


def _parse(line: str) -> tuple[str, str] | None:
  match = _COMMAND.search(line)
  return match and (match[1], match[2])


def _anchors(text: str) -> set[str]:
  """Returns the anchors that GitHub makes of headings."""
  headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    for heading in headings
  }


class PagesTest(parameterized.TestCase):
  def test_there_are_pages(self):
    self.assertIn("README.md", _PAGES)
    self.assertGreater(len(_PAGES), 10)

  def test_readme_is_short(self):
    readme = pathlib.Path("README.md").read_text(encoding="utf-8")
    self.assertLessEqual(len(readme.splitlines()), 120)

  def test_programs_begin_with_two_lines_and_three_examples(self):
    programs = _examples()
    self.assertGreater(len(programs), 30)
    for program, text in programs.items():
      with self.subTest(program):
        first, second, third, *_ = text.split("\n\n")
        self.assertLen(first.splitlines(), 2)  # The block's fence, and a line.
        self.assertLen(second.splitlines(), 1)
        self.assertGreaterEqual(len(re.findall("^  bazel run", third, re.M)), 3)

  @parameterized.parameters(*_PAGES)
  def test_links(self, page: str):
    path = pathlib.Path(page)
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
      if "://" in link:
        continue
      name, _, anchor = link.partition("#")
      target = path.parent / name if name else path
      # CONTRIBUTING and others are not in the data of this test.
      if name.endswith(".md") and target.parent.name == "docs":
        self.assertTrue(target.exists(), link)
      if anchor:
        self.assertIn(anchor, _anchors(target.read_text(encoding="utf-8")))

  def test_errors_are_those_of_programs(self):
    text = pathlib.Path("docs/troubleshooting.md").read_text(encoding="utf-8")
    errors = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    self.assertGreater(len(errors), 30)
    known = [
      answer
      for module in (bad_input, bad_input_of_consumers)
      for table in (module.AT_ONCE, module.LATER)
      for _, rows in table
      for answer in rows.values()
    ]
    for error in errors:
      with self.subTest(error):
        self.assertTrue(any(error in answer for answer in known))

  def test_the_drawing_is_that_of_the_imports(self):
    drawn = pathlib.Path("docs/imports.svg").read_text(encoding="utf-8")
    self.assertEqual(drawn.strip(), imports.svg(imports.edges()))

  def test_command_lines_have_flags_that_exist(self):
    texts = {p: pathlib.Path(p).read_text(encoding="utf-8") for p in _PAGES}
    commands = [
      (page, target, names)
      for page, text in {**texts, **_examples()}.items()
      for target, names in _commands(text)
    ]
    self.assertGreater(len(commands), 100)
    by_target = sorted(commands, key=lambda command: command[1])
    context = multiprocessing.get_context("fork")
    with context.Pool(1, maxtasksperchild=1) as pool:
      for target, group in itertools.groupby(by_target, lambda c: c[1]):
        program = target.removeprefix("//").replace(":", "/")
        source = f"{_SOURCES.get(program, program)}.py"
        described = pool.apply(_help, (source,))
        for page, _, names in group:
          for name in names:
            with self.subTest(f"{page}: {target} {name}"):
              self.assertRegex(described, rf"--(\[no\])?{name.lstrip('-')}\b")


if __name__ == "__main__":
  absltest.main()
