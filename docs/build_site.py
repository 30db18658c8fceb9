"""Writes README and the pages of `docs/` as a site, with MkDocs.

    bazel run //docs:site -- --output_dir=/tmp/site

The site is static and makes no request to other hosts. MkDocs is the generator
because it needs nothing but Markdown, and its theme has its fonts with it.
"""

import os
import pathlib
import re
import shutil
import tempfile

from absl import flags
from mkdocs import config
from mkdocs.commands import build
import mkdocs.exceptions

from distribution import errors
from distribution import formats
from distribution import programs
from distribution import publishing

_KIND = publishing.Kind("index.html", "")  # None is replaced.

# Pages beside `docs/`, and their names in the site.
_OTHERS = {
  "README.md": "index.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
}


def _moved(text: str) -> str:
  """Rewrites links for pages that have moved into one folder."""
  for old, new in _OTHERS.items():
    text = re.sub(rf"\]\((?:\.\./)?{old}([)#])", rf"]({new}\1", text)
  text = re.sub(r"\]\(docs/", "](", text)
  return re.sub(r"\[([^]]*)\]\(LICENSE\)", r"\1", text)


def write(output_dir: str | os.PathLike[str]) -> None:
  """Writes the site to a folder.

  Raises:
    InputError: A page is missing in `mkdocs.yml`, a link leads nowhere, or the
      folder cannot be written or has files in it.
  """
  with (
    publishing.publish(output_dir, _KIND) as built,
    tempfile.TemporaryDirectory() as directory,
    errors.of_input(mkdocs.exceptions.MkDocsException),
  ):
    pages = pathlib.Path(directory)
    texts = {}
    for path in pathlib.Path("docs").iterdir():
      if path.suffix in (".css", ".json", ".svg"):
        shutil.copy(path, pages)
      elif path.suffix == ".md":
        texts[path.name] = path.read_text(encoding="utf-8")
    for old, new in _OTHERS.items():
      texts[new] = pathlib.Path(old).read_text(encoding="utf-8")
    for name, text in texts.items():
      (pages / name).write_text(_moved(text), encoding="utf-8")
    settings = config.load_config(
      "docs/mkdocs.yml",
      docs_dir=str(pages),
      site_dir=built,
      validation={"nav": {"omitted_files": "warn"}, "anchors": "warn"},
    )
    build.build(settings)


def main() -> None:
  """Writes the site that the flags name."""
  output_dir = formats.absolute(flags.FLAGS.output_dir)
  write(output_dir)
  print(f"Open {output_dir}/index.html")


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    "output_dir",
    None,
    "Folder for the site. It must not exist, or be empty.",
    required=True,
  )


if __name__ == "__main__":
  define_flags()
  programs.run(main)
