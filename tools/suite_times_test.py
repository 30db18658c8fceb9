import gzip
import json
import pathlib
import tempfile
import unittest

from tools import suite_times


class SuiteTimesTest(unittest.TestCase):
  def test_table(self):
    def action(name, seconds, category="action processing"):
      return {"name": name, "cat": category, "dur": seconds * 1e6}

    events = [
      action("Making //exporters:a", 7),
      action("Testing //exporters:a_check_test", 20),
      action("Testing //data:b_test (shard 1 of 2)", 2),
      action("Testing //data:b_test (shard 2 of 2)", 3),
      action("Testing //data:b_test", 100, "general information"),
      action("PythonZip data/b.zip", 100),
      {"name": "thread_name", "ph": "M"},
    ]
    path = pathlib.Path(tempfile.mkdtemp(), "profile.gz")
    path.write_bytes(
      gzip.compress(json.dumps({"traceEvents": events}).encode())
    )
    rows = suite_times.table(suite_times.seconds(str(path))).splitlines()
    self.assertEqual(
      rows[2:],
      [
        "| rules, one test for each export | 1 | 20 | a_check_test 20 |",
        "| exports made | 1 | 7 | a 7 |",
        "| models and data | 1 | 5 | b_test 5 |",
        "| all | 3 | 32 | |",
      ],
    )


if __name__ == "__main__":
  unittest.main()
