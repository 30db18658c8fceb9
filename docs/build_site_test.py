"""Tests the site that is made of the pages."""

import pathlib
import re

from absl.testing import absltest

from docs import build_site


class SiteTest(absltest.TestCase):
  def test_pages_have_no_request_to_other_hosts(self):
    # It also raises an error for links that lead nowhere.
    output_dir = pathlib.Path(self.create_tempdir().full_path)
    build_site.write(output_dir)
    pages = {path.stem for path in output_dir.glob("*.html")} - {"404"}
    sources = {path.stem for path in pathlib.Path("docs").glob("*.md")}
    self.assertEqual(pages, sources | {"index", "contributing", "changelog"})
    for path in output_dir.rglob("*"):
      if path.suffix in (".html", ".css"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(
          r"(?:<(?:script|img|iframe)[^>]*src=|<link[^>]*href=|url\()[\"']?"
          r"((?:https?:)?//[^\"') ]+)",
          text,
        )
        self.assertEmpty(loaded, path)


if __name__ == "__main__":
  absltest.main()
