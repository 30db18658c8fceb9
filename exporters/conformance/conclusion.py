"""Formats the result of a check: the verdict, and the report on a terminal."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from distribution import errors
from exporters.conformance import findings
from exporters.conformance import reasons

_NO_REASON = reasons.Reason("", "", "")


def sentence(
  rules: Sequence[Mapping[str, Any]],
  broken: Collection[str],
  undecided: Collection[str],
  ended: str | None,
  is_to_train: bool,
) -> str:
  """Returns the verdict.

  Args:
    rules: The rules with their findings.
    broken: Names of the broken rules among those that must be kept.
    undecided: Names of the undecided rules among those that must be decided.
    ended: Why the check ended early, or None.
    is_to_train: Whether models of this kind are trained further.
  """
  which = ", ".join(broken)
  if "S1" in broken:
    said = f"not safe to load, because {which}"
  elif ended:
    said = "not reusable, because " + (f"{which}, and " if broken else "")
    said += f"the check ended while {ended}"
  elif any(not reason(name).trains for name in broken):
    said = f"not reusable, because {which}"
  elif broken:
    said = f"usable for inference only, because {which}"
  elif undecided:
    said = f"not known to be reusable: {', '.join(undecided)} not decidable"
  elif is_to_train:
    said = "reusable"
  else:
    said = "usable for inference only, as all models of its kind"
  excepted = [r["rule"] for r in rules if r["verdict"] == findings.EXCEPTED]
  advice = [r["rule"] for r in failures(rules) if r["rule"] not in broken]
  for what, names in (("excepted", excepted), ("advice not taken", advice)):
    said += f"; {what}: {', '.join(names)}" if names else ""
  return said


def reason(name: str) -> reasons.Reason:
  """Returns why a rule matters; an empty `Reason` for an unknown rule."""
  return reasons.REASONS.get(name, _NO_REASON)


def failures(rules: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the broken rules; those of level `must` come first."""
  failed = [r for r in rules if r["verdict"] == findings.FAIL]
  return sorted(failed, key=lambda r: r["level"] != "must")


def undecided(
  rules: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, list[str]]]:
  """Yields each reason for undecided rules, with the names of these rules.

  Rules that depend on the same broken rule share its reason.
  """
  by_reason: dict[str, list[str]] = {}
  for rule in rules:
    if rule["verdict"] == findings.NOT_DECIDABLE:
      name = f"{rule['rule']} ({rule['level']})"
      by_reason.setdefault(rule["found"], []).append(name)
  yield from by_reason.items()


def text(report: Mapping[str, Any]) -> str:
  """Formats a report for a terminal: verdict, broken rules, other rules.

  Args:
    report: The report that `check` prints as JSON.
  """
  return "\n".join(errors.shown(line) for line in _lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
  rules = report["rules"]
  yield f"{report['saved_model_dir']}: {report['conclusion']}."
  if "kind" in report:
    yield f"It is a SavedModel of kind {report['kind']}."
  excepted = [r for r in rules if r["verdict"] == findings.EXCEPTED]
  for mark, rule in [
    *(("✗", rule) for rule in failures(rules)),
    *(("~", rule) for rule in excepted),
  ]:
    said = reason(rule["rule"])
    yield ""
    yield f"{mark} {rule['rule']} ({rule['level']}): {rule['text']}"
    yield f"    Found: {rule['found']}"
    if said.why:
      yield f"    Why it matters: {said.why}"
    if fix := rule["fix"] or said.mended_by:
      yield f"    Fix: {fix}"
  yield ""
  for found, names in undecided(rules):
    yield f"? Not decidable: {', '.join(names)}: {found}"
  kept = [r["rule"] for r in rules if r["verdict"] == findings.PASS]
  yield f"✓ Kept: {', '.join(kept) or 'none'}"
  yield "docs/rules.md explains each rule."
