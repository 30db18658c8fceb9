"""Checks whether a SavedModel, from anyone, is safe to load and can be reused.

It prints the verdict, and what each broken rule means for you:

  bazel run //exporters:check -- --saved_model_dir=DIR
  bazel run //exporters:check -- --saved_model_dir=DIR --html=FILE.html
  bazel run //exporters:check -- --saved_model_dir=DIR --strict --json

A SavedModel is a program. The check examines a private copy and loads it in a
sandbox. A SavedModel with ops that models do not need is loaded only with
--trust.

The exit status is 1 if a rule of level must is broken, if the process in the
sandbox ends early, or if a rule of --excepted_rules is not broken. It is 2 if a
rule of level must is not decidable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
import json
import sys
from typing import Any

from absl import flags

from distribution import formats
from distribution import publishing
from distribution import sandbox
from exporters.conformance import conclusion
from exporters.conformance import copying
from exporters.conformance import findings as findings_lib
from exporters.conformance import report_page
from exporters.reusable import command_line
from exporters.reusable import errors

# CPU time limit of one call: enough for the gradients of large models, and an
# end for endless loops.
_CALL_SECONDS = 30.0
_OPTIONS = copying.Options()
_AUDIT = "S1"  # The rule that is judged before the SavedModel is loaded.
_OF_TRAINING = "R5"  # This rule applies to every kind that can be trained.


def check(
  *,
  saved_model_dir: str,
  options: copying.Options = _OPTIONS,
  strict: bool = False,
  excepted_rules: Collection[str] = (),
  allow_undecided: Collection[str] = (),
  as_json: bool = False,
  html_file: str | None = None,
) -> int:
  """Checks a SavedModel, and prints the verdict and the broken rules.

  Args:
    saved_model_dir: The directory of the SavedModel.
    options: How to load it.
    strict: Whether rules of level `should` must be kept too.
    excepted_rules: Names of rules that the SavedModel may break.
    allow_undecided: Names of rules that need not be decidable.
    as_json: Whether to print JSON instead.
    html_file: The HTML page to write. None: do not write a page.

  Returns:
    The exit status: 1 if a rule that must be kept is broken, or the process in
    the sandbox ended; otherwise 2 if such a rule is not decidable; otherwise 0.

  Raises:
    ExportError: No SavedModel can be loaded, the directory of `html_file` does
      not exist, or an excepted rule is unknown, is kept or does not apply.
  """
  _check_html_file(html_file)
  with (
    # An untrusted model may take over the sandboxed process and send anything.
    errors.of_input(KeyError, TypeError, about="The sandbox answers: "),
    copying.started(
      "exporters.conformance.judging",
      saved_model_dir,
      options,
      call=_CALL_SECONDS,
      # oneDNN convolutions return a wrong shape for an empty batch (R8).
      variables={"TF_ENABLE_ONEDNN_OPTS": "0"},
    ) as (ask, request),
  ):
    return _report(
      _judged(ask, request, excepted_rules, allow_undecided),
      {"saved_model_dir": saved_model_dir, "rules": []},
      strict,
      excepted_rules,
      allow_undecided,
      as_json,
      html_file,
    )


def _judged(
  ask: Callable[[Any], Any],
  request: dict[str, Any],
  excepted_rules: Collection[str],
  allow_undecided: Collection[str],
) -> Iterator[dict[str, Any]]:
  """Yields parts of the report: the kind, each rule's finding, and facts.

  If the process in the sandbox ends, the rules that it has not judged yet are
  undecided, except the audit, whose result is already known.
  """
  try:
    answer = ask(request)
  except sandbox.SandboxError as e:
    raise errors.ExportError(f"The SavedModel cannot be examined: {e}") from e
  rules, said = answer["rules"], ""
  names = [rule["rule"] for rule in rules]
  for flag, given in (
    ("excepted_rules", excepted_rules),
    ("allow_undecided", allow_undecided),
  ):
    if not set(given) <= set(names):
      raise errors.ExportError(
        f"--{flag}: a rule of this name does not exist. Rules:"
        f" {', '.join(names)}."
      )
  steps = [("load", lambda kind: {"kind": kind})]
  steps += [(rule["rule"], rule.__or__) for rule in rules]
  for name, found in [*steps, ("report", dict)]:
    _show_progress(name)
    if not said:
      try:
        yield found(ask(name))
        continue
      except sandbox.SandboxError as e:
        in_progress = name
        said = (
          f"{'the' if name in ('load', 'report') else 'judging'} {name}: {e}"
        )
    if name in names:
      finding = {"verdict": findings_lib.NOT_DECIDABLE, "found": said}
      if name == _AUDIT:
        is_bad = answer["suspicious"]
        finding = {
          "verdict": findings_lib.FAIL if is_bad else findings_lib.PASS,
          "found": "This was judged before the process ended.",
        }
      applies = name in (_AUDIT, in_progress)
      yield found({**finding, "fix": "", "applies": applies})
  _show_progress("")
  if said:
    yield {"ended": said}


def _show_progress(name: str) -> None:
  """Shows the current step, on a terminal only."""
  if sys.stderr.isatty():
    print(f"\r\x1b[K{name}", end="", file=sys.stderr, flush=True)


def _report(
  judged: Iterator[dict[str, Any]],
  report: dict[str, Any],
  strict: bool,
  excepted_rules: Collection[str],
  allow_undecided: Collection[str],
  as_json: bool,
  html_file: str | None,
) -> int:
  """Prints and writes the parts of the report; returns the exit status."""
  open_verdicts = (findings_lib.FAIL, findings_lib.NOT_DECIDABLE)
  broken, undecided, needless, is_to_train = [], [], [], True
  for found in judged:
    if "rule" not in found:
      report |= found
      continue
    name, verdict, applies = found["rule"], found["verdict"], found["applies"]
    if verdict not in open_verdicts:
      needless += [name] * (name in excepted_rules)
    elif name in excepted_rules:
      found["verdict"] = findings_lib.EXCEPTED
    elif applies and (strict or found["level"] == "must"):
      if verdict == findings_lib.FAIL:
        broken.append(name)
      elif name not in allow_undecided:
        undecided.append(name)
    if name == _OF_TRAINING:
      is_to_train = applies
    del found["applies"]
    report["rules"].append(found)
  ended = report.get("ended")
  report["conclusion"] = conclusion.sentence(
    report["rules"], broken, undecided, ended, is_to_train
  )
  print(json.dumps(report, indent=2) if as_json else conclusion.text(report))
  if html_file:
    if "variables" not in report:
      raise errors.ExportError(f"No --html: {ended}.")
    publishing.write(html_file, report_page.page(report).encode())
    if not as_json:
      print(f"Wrote {html_file}")
  if needless and not ended:
    raise errors.ExportError(
      f"--excepted_rules: {', '.join(needless)} is not broken. Take it off the"
      " list."
    )
  return 1 if broken or ended else 2 if undecided else 0


def _check_html_file(html_file: str | None) -> None:
  if html_file:
    formats.check_output_file("html", html_file)


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The SavedModel to check.")
  command_line.define(copying.Options, copying.FLAGS)
  flags.DEFINE_bool(
    "strict",
    False,
    "Treat rules of level should as those of level must in the exit status.",
  )
  flags.DEFINE_list(
    "excepted_rules",
    [],
    "Rules that the SavedModel cannot keep, such as I4. They are reported, and"
    " do not change the exit status. A rule that is not broken is an error"
    " here.",
  )
  flags.DEFINE_list(
    "allow_undecided",
    [],
    "Rules that need not be decidable, such as R13 for a SavedModel whose"
    " documentation is elsewhere. Otherwise the exit status is 2 if a rule is"
    " not decidable, and none is broken.",
  )
  flags.DEFINE_bool("json", False, "Print JSON and nothing else.")
  flags.DEFINE_string("html", None, "Write a page of HTML to this file.")
  flags.register_validator(
    "saved_model_dir", bool, "It is required: the directory to check."
  )


def main() -> None:
  """Checks the SavedModel that the flags name."""
  values = flags.FLAGS
  status = check(
    saved_model_dir=command_line.model_path("saved_model_dir"),
    options=command_line.from_flags(copying.Options),
    strict=values.strict,
    excepted_rules=values.excepted_rules,
    allow_undecided=values.allow_undecided,
    as_json=values.json,
    html_file=formats.absolute(values.html),
  )
  sys.exit(status)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
