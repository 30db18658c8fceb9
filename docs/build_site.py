"""Writes README and the pages of `docs/` as a site, with MkDocs.

    bazel run //docs:site -- --output_dir=/tmp/site

The site is static and makes no request to other hosts. MkDocs is the generator
because it needs nothing but Markdown, and its theme has its fonts with it.
"""

from collections.abc import Sequence
import os
import pathlib
import re
import shutil
import tempfile

from absl import app
from absl import flags
from mkdocs import config
from mkdocs.commands import build
import mkdocs.exceptions

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
    mkdocs.exceptions.MkDocsException: A page is missing in `mkdocs.yml`, or a
      link leads nowhere.
  """
  with tempfile.TemporaryDirectory() as directory:
    pages, built = (pathlib.Path(directory, name) for name in ("docs", "site"))
    pages.mkdir()
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
      site_dir=str(built),
      validation={"nav": {"omitted_files": "warn"}, "anchors": "warn"},
    )
    build.build(settings)
    shutil.copytree(built, output_dir, dirs_exist_ok=True)


def main(argv: Sequence[str]) -> None:
  """Writes the site that the flags name."""
  del argv
  # Bazel starts programs in their runfiles.
  output_dir = pathlib.Path(
    os.environ.get("BUILD_WORKING_DIRECTORY", "."), flags.FLAGS.output_dir
  )
  if output_dir.exists() and (
    not output_dir.is_dir() or any(output_dir.iterdir())
  ):
    raise SystemExit(f"ERROR: {output_dir} is not an empty folder.")
  try:
    write(output_dir)
  except (OSError, mkdocs.exceptions.MkDocsException) as e:
    raise SystemExit(f"ERROR: {e}") from e
  print(f"Open {output_dir / 'index.html'}")


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
  app.run(main)
