"""Prints the tables of `docs/`: comparisons, kinds, rules and their reasons."""

from collections.abc import Iterable, Sequence

from exporters.conformance import reasons
from exporters.conformance import rules
from exporters.reusable import comparison
from exporters.reusable import kinds as kinds_lib


def verified() -> str:
  """Returns the table of the comparisons that verification makes."""
  return _table(
    ("compared", "tolerance", "reason"),
    (
      (
        f"{kind}: {how.description}",
        f"{how.of_array:g} of the largest value in a row or column"
        if how.of_array
        else "exact",
        how.why,
      )
      for kind, how in comparison.COMPARISONS.items()
    ),
  )


def kinds() -> str:
  """Returns the table of the kinds of SavedModels."""
  return _table(
    ("kind", "takes", "returns", "must have", "rules besides those for all"),
    (
      (
        kind.name,
        kinds_lib.text(kind.takes),
        kinds_lib.text(kind.returns)
        + (", not named as logits or classes" if not kind.classifies else ""),
        ", ".join(
          [
            *(f"`{name}`" for name in kind.has),
            *(f"no `{name}`" for name in kind.lacks),
          ]
        ),
        ", ".join(kind.rules),
      )
      for kind in kinds_lib.KINDS
    ),
  )


def checked() -> str:
  """Returns the table of the rules that a check applies."""
  return _table(
    ("rule", "level", "text", "applies to"),
    ((rule.name, rule.level, rule.text, _kinds(rule)) for rule in rules.RULES),
  )


def explained() -> str:
  """Returns a section for each rule: why it matters, and what to do."""
  return "\n\n".join(
    f"## {rule.name}\n\n{rule.text} ({rule.level})\n\n"
    f"- Why it matters: {reason.why}\n"
    f"- Broken by: {reason.broken_by}.\n"
    f"- Repair: {reason.mended_by}"
    for rule in rules.RULES
    for reason in [reasons.REASONS[rule.name]]
  )


def _kinds(rule: rules.Rule) -> str:
  without = [k.name for k in kinds_lib.KINDS if rule.name in k.without]
  everything = f"all but {', '.join(without)}" if without else "all"
  return ", ".join(rule.kinds) or everything


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
  print(verified(), kinds(), checked(), explained(), sep="\n\n")
