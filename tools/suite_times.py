"""Prints the seconds of each test and export of a Bazel run, in Markdown.

  ./bazelw test //... --profile=/tmp/profile.gz
  python3 tools/suite_times.py /tmp/profile.gz

Seconds are summed over all cores.
"""

import collections
from collections.abc import Mapping
import gzip
import json
import re
import sys

# Kinds of actions, by a regular expression for their names. The first match
# counts.
_KINDS = {
  "Making ": "exports made",
  "_check_test": "rules, one test for each export",
  "_compile_for_tpu_test": "compiler for TPUs, one test for each architecture",
  ":use_": "consumers' programs",
  "//exporters:": "exporters",
  "//exporters/conformance": "rules",
  "//exporters/reusable": "what exporters share",
  "//models|//data": "models and data",
  "": "other tests",
}
_ACTION = re.compile(r"(Making|Testing) (//\S+)")


def seconds(path: str) -> collections.Counter[str]:
  """Returns the seconds of each export and test, by name."""
  with gzip.open(path, "rt") as f:
    events = json.load(f)["traceEvents"]
  summed = collections.Counter()
  for event in events:
    name = _ACTION.match(event["name"])
    if name and event.get("cat") == "action processing":
      # Sum, because a test may have several shards.
      summed[name[0]] += event["dur"] / 1e6
  return summed


def table(of_names: Mapping[str, float]) -> str:
  """Returns the table: a row for each kind, the slowest first."""
  kinds = collections.defaultdict(dict)
  for name, value in of_names.items():
    kind = next(k for part, k in _KINDS.items() if re.search(part, name))
    kinds[kind][name] = value
  rows = [
    "| kind | number | seconds | the slowest |",
    "| --- | --- | --- | --- |",
  ]
  for kind, of in sorted(kinds.items(), key=lambda x: -sum(x[1].values())):
    slowest = sorted(of, key=of.get, reverse=True)[:3]
    named = ", ".join(f"{n.split(':')[1]} {of[n]:.0f}" for n in slowest)
    rows.append(f"| {kind} | {len(of)} | {sum(of.values()):.0f} | {named} |")
  total = sum(of_names.values())
  rows.append(f"| all | {len(of_names)} | {total:.0f} | |")
  return "\n".join(rows)


if __name__ == "__main__":
  print(table(seconds(sys.argv[1])))
