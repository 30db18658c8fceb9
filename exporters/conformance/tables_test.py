"""Tests that the tables in `docs/` are those of the code."""

import pathlib

from absl.testing import absltest

from exporters.conformance import tables


class TablesTest(absltest.TestCase):
  def test_pages_have_them(self):
    for page, table in (
      ("verification", tables.verified()),
      ("check", tables.kinds()),
      ("check", tables.checked()),
      ("rules", tables.explained()),
    ):
      text = pathlib.Path(f"docs/{page}.md").read_text(encoding="utf-8")
      self.assertTrue(
        table in text,
        f"docs/{page}.md lacks this text, which"
        f" //exporters/conformance:tables prints:\n{table}",
      )


if __name__ == "__main__":
  absltest.main()
