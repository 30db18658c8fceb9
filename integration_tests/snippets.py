"""Finds the blocks of code in pages and cards, and runs them.

A comment marks a block that a test runs: `<!-- runnable -->`, or
`<!-- runnable: slow -->` for a nightly test. All blocks of a page share one
directory, which replaces /tmp.
"""

from collections.abc import Mapping
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

_BLOCK = re.compile(r"<!-- (runnable.*?) -->\n```sh\n(.*?)```", re.DOTALL)
# Replaces Bazel, and runs the programs in the runfiles of this process.
_BAZELW = """#!/bin/bash
set -e
[ "$1" = run ] && shift
program=$ROOT/$(sed 's,^//,,; s,:,/,' <<< "$1")
shift
[ "$1" = -- ] && shift
[ -x "$program" ] && exec "$program" "$@"
PYTHONPATH=$PATHS exec "$PYTHON" "$program.py" "$@"
"""


def shell(text: str, slow: bool) -> list[str]:
  """Returns the marked shell blocks of a page, with slow ones if `slow`."""
  found = _BLOCK.findall(text)
  return [block for kind, block in found if slow or kind == "runnable"]


def run_shell(blocks: list[str], directory: pathlib.Path) -> str:
  """Runs the blocks of a page, with `directory` in place of /tmp.

  Returns:
    Their standard output.

  Raises:
    subprocess.CalledProcessError: A command failed.
  """
  bazelw = directory / "bazelw"
  bazelw.write_text(_BAZELW, encoding="utf-8")
  bazelw.chmod(0o755)
  root = os.getcwd()
  paths = os.pathsep.join([root, *sys.path])
  own = {"ROOT": root, "PYTHON": sys.executable, "PATHS": paths}
  script = "\n".join(blocks).replace("/tmp/", f"{directory}/")
  return subprocess.run(
    ["bash", "-eo", "pipefail", "-c", script],
    cwd=directory,
    env={**os.environ, **own},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout


def run_python(
  text: str, replaced: Mapping[str, str], names: Mapping[str, Any]
) -> dict[str, Any]:
  """Runs the first block of Python in a page or a card.

  Args:
    text: The page.
    replaced: Replacements of texts in the block, such as paths.
    names: The variables that the block expects.

  Returns:
    All variables at its end.
  """
  block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
  for old, new in replaced.items():
    if old not in block:
      raise ValueError(f"{old} is not in the block.")
    block = block.replace(old, new)
  variables = dict(names)
  exec(block, variables)
  return variables
