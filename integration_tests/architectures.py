r"""Writes docs/architectures.md, which describes the exports of the tests.

It reads the model cards of the exports that the tests use:

  ./bazelw run //integration_tests:architectures -- --output_file=PAGE.md \
    --profile=/tmp/profile.gz

The page has the seconds of each export from the profile of a Bazel run.
"""

from collections.abc import Iterator, Mapping, Sequence
import gzip
import json
import pathlib
import re

from absl import flags

from distribution import errors
from distribution import formats
from distribution import programs
from distribution import publishing

_EXPORTS = flags.DEFINE_list("exports", [], "The exports, set by Bazel.")
_OUTPUT_FILE = flags.DEFINE_string("output_file", None, "The page to write.")
_PROFILE = flags.DEFINE_string("profile", None, "A profile of Bazel.")

_HEADER = """# Architectures

Make these exports, and this page of them:

```sh
./bazelw run //integration_tests:architectures -- --output_file=/tmp/page.md
```

Each section describes an export that the tests of this repository make: a small
model, trained for seconds to minutes. Yours differs in size and accuracy, and
has the same inputs, outputs and hyperparameters. `None` is a free dimension.
Seconds are those of both cores of one busy machine: training, exporting and the
verification.
"""
# The rows of the cards that the page includes.
_FACTS = re.compile(
  "parameters|trainable|trained on|test accuracy.*|perplexity.*|mean log-.*"
  "|training"
)


def page(exports: Sequence[str], seconds: Mapping[str, float]) -> str:
  """Returns the page.

  Args:
    exports: The directories of exports. Each has one or several SavedModels.
    seconds: Seconds that it took to make some of the exports, by their names.
  """
  sections = [_HEADER]
  for export in sorted(exports):
    for card in sorted(pathlib.Path(export).rglob("assets.extra/README.md")):
      sections.append("\n".join(_section(pathlib.Path(export), card, seconds)))
  return "\n".join(sections)


def _section(
  export: pathlib.Path, card: pathlib.Path, seconds: Mapping[str, float]
) -> Iterator[str]:
  """Yields the lines about one SavedModel."""
  model = card.parent.parent
  report = json.loads((card.parent / "verification.json").read_text())
  top, *parts = card.read_text(encoding="utf-8").split("\n## ")
  title, about, *_ = top.split("\n\n")
  tables = {part.partition("\n")[0]: list(_rows(part)) for part in parts}
  yield f"## {title.removeprefix('# ')}\n"
  yield f"{' '.join(about.split())}\n"
  yield "| | |\n| --- | --- |"
  if "exporter" in report:
    yield f"| exporter | `//exporters:{report['exporter']}` |"
  for name in ("Inputs", "Outputs"):
    tensors = (f"{n} {dtype} {shape}" for n, dtype, shape, *_ in tables[name])
    yield f"| {name.lower()} | {', '.join(tensors)} |"
  rates = (f"{n} {default}" for n, default, *_ in tables["Hyperparameters"])
  yield f"| hyperparameters | {', '.join(rates) or 'none'} |"
  for name, value, *_ in tables.get("Weights", ()):
    if _FACTS.fullmatch(name):
      yield f"| {name} | {value} |"
  files = [f for f in model.rglob("*") if f.is_file()]
  size = sum(f.stat().st_size for f in files) / 2**20
  graph = (model / "saved_model.pb").stat().st_size / 2**10
  yield f"| size | {size:.1f} MiB, of which `saved_model.pb` {graph:,.0f} KiB |"
  if export.name in seconds:
    both = "" if model == export else ", with all of its SavedModels"
    yield f"| seconds | {seconds[export.name]:.0f}{both} |"
  yield ""


def _rows(text: str) -> Iterator[list[str]]:
  """Yields the rows of a table in Markdown, without its header."""
  lines = [line for line in text.splitlines() if line.startswith("| ")]
  for line in lines[2:]:
    yield [cell.strip() for cell in line.strip("|").split(" | ")]


def _seconds(profile: str) -> dict[str, float]:
  """Returns the seconds that Bazel took to make each export."""
  with gzip.open(profile, "rt") as f:
    events = json.load(f)["traceEvents"]
  made = ((re.match(r"Making //.*:(.*)", e["name"]), e) for e in events)
  return {name[1]: e["dur"] / 1e6 for name, e in made if name and "dur" in e}


def main() -> None:
  """Writes the page that the flags name."""
  output_file = formats.absolute(_OUTPUT_FILE.value)
  formats.check_output_file("output_file", output_file)
  with errors.of_input(OSError, ValueError):
    seconds = _seconds(_PROFILE.value) if _PROFILE.value else {}
  text = page(_EXPORTS.value, seconds)
  publishing.write(output_file, text.encode())


if __name__ == "__main__":
  flags.mark_flag_as_required("output_file")
  programs.run(main)
