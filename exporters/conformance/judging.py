"""Answers what `//exporters:check` asks, in the process of its sandbox."""

from collections.abc import Iterator
from typing import Any

from exporters.conformance import report
from exporters.conformance import rules
from exporters.conformance import subject as subject_lib
from exporters.reusable import errors


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Answers requests about one SavedModel, in this order.

  - A dict: the `directory`; what is suspicious already, `problems`; `trust`;
    and `unloaded`, why the SavedModel is not loaded, or "". The answer has the
    `rules` and whether it is `suspicious`.
  - "load". The answer is the kind.
  - The names of rules. The answers are the findings.
  - "report". The answer is what `report.collect` returns.

  After an answer with an `error` there are no more.
  """
  request = next(requests)
  try:
    subject = subject_lib.read(request["directory"])
    subject.suspicious[:0] = request["problems"]
    subject.unloaded = request["unloaded"] or subject.unloaded
    yield {
      "suspicious": bool(subject.suspicious),
      "rules": [
        {"rule": rule.name, "level": rule.level, "text": rule.text}
        for rule in rules.ORDER
      ],
    }
    by_name = {rule.name: rule for rule in rules.RULES}
    for name in requests:
      if name == "load":
        subject_lib.load_into(subject, request["trust"])
        yield subject.kind.name
      elif name == "report":
        yield report.collect(subject)
      else:
        finding = rules.judge_one(subject, by_name[name])
        yield {
          "verdict": finding.verdict,
          "found": finding.text,
          "fix": finding.fix,
          "applies": by_name[name].is_for(subject.kind),
        }
  except errors.ExportError as e:
    yield {"error": str(e)}
