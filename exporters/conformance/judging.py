"""Answers the requests of `//exporters:check` inside the sandbox."""

from collections.abc import Iterator
import math
from typing import Any

from distribution import sandbox
from exporters.conformance import report
from exporters.conformance import rules
from exporters.conformance import subject as subject_lib

_LONGEST = 4000  # Most characters of a finding.


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Answers requests about one SavedModel, in this order.

  - The request of `copying.started`: answers with the `rules`, and whether
    the SavedModel is `suspicious`.
  - "load": answers with the kind.
  - The name of a rule, any number of times: answers with the finding.
  - "report": answers with the result of `report.collect`.

  Raises:
    ExportError: The SavedModel cannot be read or loaded.
  """
  request = next(requests)
  subject = subject_lib.requested(request)
  if not request["seconds"]:
    sandbox.lower(_seconds(subject))
  yield {
    "suspicious": bool(subject.suspicious),
    "rules": [
      {"rule": rule.name, "level": rule.level, "text": rule.text}
      for rule in rules.ORDER
    ],
  }
  by_name = {rule.name: rule for rule in rules.RULES}
  for name in requests:
    sandbox.renew()
    if name == "load":
      subject_lib.load_into(subject, request["trust"])
      yield subject.kind.name
    elif name == "report":
      yield report.collect(subject)
    else:
      finding = rules.judge_one(subject, by_name[name])
      yield {
        "verdict": finding.verdict,
        "found": finding.text[:_LONGEST],
        "fix": finding.fix,
        "applies": by_name[name].is_for(subject.kind),
      }


def _seconds(subject: subject_lib.Subject) -> float:
  """Returns the limit of CPU time for all answers, in seconds.

  The limit depends on the variables that calls use. Constants, which may be
  compressed, and unused variables do not explain long calls. Good models need
  less than half of it: EfficientNet-B0 60 s, NASNetMobile 240 s, BERT-base
  90 s, and ConvNeXtLarge 900 s on a busy machine.
  """
  objects = subject.graph.object_graph_def
  used = {
    i
    for function in objects.concrete_functions.values()
    for i in function.bound_inputs
    if 0 <= i < len(objects.nodes) and objects.nodes[i].HasField("variable")
  }
  shapes = (objects.nodes[i].variable.shape.dim for i in used)
  claimed = 4 * sum(math.prod(abs(d.size) for d in dims) for dims in shapes)
  size = sum(n for f, n in subject.files.items() if f.startswith("variables/"))
  mebibytes = min(claimed, size) / 2**20
  return 55 + 20 * math.sqrt(mebibytes) + 1.5 * mebibytes + 0.3 * len(used)
