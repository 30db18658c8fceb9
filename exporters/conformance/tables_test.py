"""Tests that README's tables are those of the code."""

import pathlib

from absl.testing import absltest

from exporters.conformance import tables


class TablesTest(absltest.TestCase):
  def test_readme_has_them(self):
    readme = pathlib.Path("README.md").read_text(encoding="utf-8")
    for table in (tables.verified(), tables.kinds(), tables.checked()):
      self.assertTrue(
        table in readme,
        "README lacks this table, which //exporters/conformance:tables"
        f" prints:\n{table}",
      )


if __name__ == "__main__":
  absltest.main()
