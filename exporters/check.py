r"""Judges a SavedModel, from anyone, by the rules of reusable SavedModels.

  bazel run //exporters:check -- --saved_model_dir=DIR

A SavedModel is a program. Its ops are looked at before anything of it is run,
and one with ops that a model has no need of is not loaded, unless you say
--trust. The exit status is 1 where a rule that is a must is broken.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

from absl import flags
from etils import epy

from exporters.reusable import command_line
from exporters.reusable import errors

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  from exporters.conformance import findings as findings_lib
  from exporters.conformance import report
  from exporters.conformance import rules
  from exporters.conformance import subject as subject_lib

_MARKS = {
  "pass": "✓",
  "fail": "✗",
  "not applicable": "-",
  "not decidable": "?",
}


def check(
  *,
  saved_model_dir: str,
  trust: bool = False,
  strict: bool = False,
  as_json: bool = False,
  html_file: str | None = None,
) -> bool:
  """Judges a SavedModel, and prints a line for each rule.

  Args:
    saved_model_dir: Its directory.
    trust: Load it whatever its ops are.
    strict: Whether advice is to be kept too, and nothing left undecided.
    as_json: Print JSON instead.
    html_file: Where to write a page, if anywhere.

  Returns:
    Whether nothing is broken that must not be.

  Raises:
    ExportError: There is no SavedModel that can be loaded, or no place for the
      page.
  """
  if html_file and not os.path.isdir(os.path.dirname(html_file)):
    raise errors.ExportError(
      f"--html: the directory {os.path.dirname(html_file)} does not exist."
    )
  subject = subject_lib.read(saved_model_dir)
  subject_lib.load(subject, trust)
  if not as_json:
    print(f"{saved_model_dir}: a SavedModel of kind {subject.kind}")
  findings = []
  for rule, finding in rules.judge(subject):
    findings.append((rule, finding))
    if not as_json:
      _print(rule, finding)
  if as_json or html_file:
    found = report.collect(subject, findings)
    if as_json:
      print(json.dumps(found, indent=2))
    if html_file:
      pathlib.Path(html_file).write_text(report.page(found), encoding="utf-8")
  wanted = (findings_lib.PASS, findings_lib.NOT_APPLICABLE)
  broken = [
    rule.name
    for rule, finding in findings
    if (strict and finding.verdict not in wanted)
    or (rule.level == "must" and finding.verdict == findings_lib.FAIL)
  ]
  if not as_json:
    print(
      f"Not kept: {', '.join(broken)}."
      if broken
      else "All rules that apply are kept."
      if strict
      else "All rules that must be kept are."
    )
  return not broken


def _print(rule: rules.Rule, finding: findings_lib.Finding) -> None:
  line = f"  {_MARKS[finding.verdict]} {rule.name:4}{finding.verdict}"
  if finding.verdict == findings_lib.FAIL:
    line += f" ({rule.level}): {rule.text} {finding.text} Fix: {finding.fix}"
  elif finding.verdict == findings_lib.PASS:
    line += f": {finding.text}"
  else:
    line += f", {finding.text}"
  print(line, flush=True)


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The SavedModel to judge.")
  flags.DEFINE_bool(
    "trust",
    False,
    "Load it though it has ops that a model has no need of. Whatever they do,"
    " they do with your rights.",
  )
  flags.DEFINE_bool(
    "strict",
    False,
    "Let the exit status be 1 also where a rule that is advice is broken, or"
    " one cannot be decided.",
  )
  flags.DEFINE_bool("json", False, "Print JSON, and nothing else.")
  flags.DEFINE_string("html", None, "Write a page to this file.")
  flags.register_validator(
    "saved_model_dir", bool, "It is needed: the directory to judge."
  )


def main() -> None:
  """Checks what the flags say."""
  values = flags.FLAGS
  passed = check(
    saved_model_dir=command_line.path(values.saved_model_dir),
    trust=values.trust,
    strict=values.strict,
    as_json=values.json,
    html_file=command_line.path(values.html),
  )
  sys.exit(0 if passed else 1)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
