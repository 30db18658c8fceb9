r"""Checks a SavedModel, from anyone, by the rules of reusable SavedModels.

  bazel run //exporters:check -- --saved_model_dir=DIR

A SavedModel is a program. Its ops are examined before it is loaded, and one
with ops that models do not need is loaded with --trust only. The exit status is
1 if a rule of level must is broken, or a rule of --excepted_rules is not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
import dataclasses
import json
import pathlib
import sys

from absl import flags
from etils import epy

from distribution import formats
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
  "excepted": "~",
  "not applicable": "-",
  "not decidable": "?",
}


def check(
  *,
  saved_model_dir: str,
  trust: bool = False,
  strict: bool = False,
  excepted_rules: Collection[str] = (),
  as_json: bool = False,
  html_file: str | None = None,
) -> bool:
  """Checks a SavedModel and prints a line for each rule for its kind.

  Args:
    saved_model_dir: The directory of the SavedModel.
    trust: Whether to load it even if its ops are suspicious.
    strict: Whether rules of level should must be kept too, and every rule be
      decidable.
    excepted_rules: Names of rules that the SavedModel need not keep.
    as_json: Whether to print JSON instead.
    html_file: Where to write a page of HTML. None: nowhere.

  Returns:
    Whether all rules are kept that must be.

  Raises:
    ExportError: No SavedModel can be loaded, the directory of `html_file` does
      not exist, or an excepted rule does not exist, is kept or does not apply.
  """
  _check_arguments(html_file, excepted_rules)
  subject = subject_lib.load(saved_model_dir, trust)
  if not as_json:
    print(f"{saved_model_dir}: a SavedModel of kind {subject.kind.name}")
  broken_verdicts = (findings_lib.FAIL, findings_lib.NOT_DECIDABLE)
  findings, broken, needless = [], [], []
  for rule, finding in rules.judge(subject):
    if finding.verdict not in broken_verdicts:
      needless += [rule.name] * (rule.name in excepted_rules)
    elif rule.name in excepted_rules:
      finding = dataclasses.replace(finding, verdict=findings_lib.EXCEPTED)
    elif strict or (rule.level, finding.verdict) == ("must", findings_lib.FAIL):
      broken.append(rule.name)
    findings.append((rule, finding))
    if not as_json and rule.is_for(subject.kind):
      _print(rule, finding)
  found = report.collect(subject, findings)
  if as_json:
    print(json.dumps(found, indent=2))
  else:
    print(_conclusion(broken, strict, excepted_rules))
  if html_file:
    pathlib.Path(html_file).write_text(report.page(found), encoding="utf-8")
  if needless:
    raise errors.ExportError(
      f"--excepted_rules: {', '.join(needless)} is not broken. Take it off the"
      " list."
    )
  return not broken


def _check_arguments(
  html_file: str | None, excepted_rules: Collection[str]
) -> None:
  if html_file:
    formats.check_output_file("html", html_file)
  names = [rule.name for rule in rules.RULES]
  if not set(excepted_rules) <= set(names):
    raise errors.ExportError(
      "--excepted_rules: a rule of this name does not exist. Rules:"
      f" {', '.join(names)}."
    )


def _conclusion(
  broken: Sequence[str], strict: bool, excepted_rules: Collection[str]
) -> str:
  if broken:
    return f"Not kept: {', '.join(broken)}."
  which = "All rules that apply" if strict else "All rules of level must"
  excepted = ", ".join(excepted_rules)
  return f"{which}{f', except {excepted},' if excepted else ''} are kept."


def _print(rule: rules.Rule, finding: findings_lib.Finding) -> None:
  line = f"  {_MARKS[finding.verdict]} {rule.name:4}{finding.verdict}"
  if finding.verdict in (findings_lib.FAIL, findings_lib.EXCEPTED):
    line += f" ({rule.level}): {rule.text} {finding.text}"
  else:
    line += f": {finding.text}"
  print(line + (f" Fix: {finding.fix}" if finding.fix else ""), flush=True)


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The SavedModel to check.")
  flags.DEFINE_bool(
    "trust",
    False,
    "Load the SavedModel even if it has ops that models do not need. They run"
    " with your rights.",
  )
  flags.DEFINE_bool(
    "strict",
    False,
    "Exit with status 1 also if a rule of level should is broken, or a rule is"
    " not decidable.",
  )
  flags.DEFINE_list(
    "excepted_rules",
    [],
    "Rules that the SavedModel cannot keep, such as I4. They are reported, and"
    " do not change the exit status. A rule that is not broken is an error"
    " here.",
  )
  flags.DEFINE_bool("json", False, "Print JSON and nothing else.")
  flags.DEFINE_string("html", None, "Write a page of HTML to this file.")
  flags.register_validator(
    "saved_model_dir", bool, "It is required: the directory to check."
  )


def main() -> None:
  """Checks the SavedModel that the flags name."""
  values = flags.FLAGS
  passed = check(
    saved_model_dir=command_line.model_path("saved_model_dir"),
    trust=values.trust,
    strict=values.strict,
    excepted_rules=values.excepted_rules,
    as_json=values.json,
    html_file=formats.absolute(values.html),
  )
  sys.exit(0 if passed else 1)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
