"""Prints README's tables of what is verified and checked."""

from collections.abc import Iterable, Sequence

from exporters.conformance import rules
from exporters.reusable import observation


def verified() -> str:
  """Returns a table of what the verification of an export compares."""
  return _table(
    ("compared", "how much may differ", "why"),
    (
      (
        f"{kind}: {comparison.description}",
        f"{comparison.of_array:g} of the largest value"
        if comparison.of_array
        else "nothing",
        comparison.why,
      )
      for kind, comparison in observation.COMPARISONS.items()
    ),
  )


def checked() -> str:
  """Returns a table of the rules that a check judges by."""
  return _table(
    ("rule", "level", "what it asks for", "of"),
    (
      (rule.name, rule.level, rule.text, ", ".join(rule.kinds) or "all")
      for rule in rules.RULES
    ),
  )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
  print(verified(), checked(), sep="\n\n")
