import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from unittest import mock
from xml.etree import ElementTree

from absl import flags
from absl.testing import absltest
import numpy as np

from integration_tests.benchmarks import compare
from integration_tests.benchmarks import processes
from integration_tests.benchmarks import results
from integration_tests.benchmarks import subjects
from tools import nightly

flags.DEFINE_string("ours", None, "An export of the MNIST CNN.")
flags.DEFINE_string("other", None, "One of the same, with other weights.")

_COMPARE = str(subjects.RUNFILES / "integration_tests/benchmarks/compare")

# Takes 200 MiB, and a second of CPU in a child.
_HUNGRY = """
import subprocess, sys, time
memory = b"x" * (200 * 2**20)
child = "import time\\nwhile time.process_time() < 1: pass"
subprocess.run([sys.executable, "-c", child])
time.sleep(0.5)
"""

# Appends its name to a shared file at each turn.
_PLAYER = """
import json, sys
print(flush=True)
for line in sys.stdin:
  with open(sys.argv[1], "a") as f:
    f.write(sys.argv[2])
  print(json.dumps({"name": sys.argv[2]}), flush=True)
"""


class CompareTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )

  @nightly.only
  def test_compares_exports_of_the_mnist_cnn(self):
    result = subprocess.run(
      [
        _COMPARE,
        "--quick",
        "--models=mnist_cnn",
        "--measures=load",
        "--output_dir=compared",
      ],
      capture_output=True,
      text=True,
      env={**os.environ, "BUILD_WORKING_DIRECTORY": str(self.directory)},
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("load and first call: wall", result.stdout)
    output_dir = self.directory / "compared"
    report = json.loads((output_dir / "results.json").read_text())
    self.assertEqual(report["refused"], {})
    sides = {s["side"]: s["values"] for s in report["samples"]}
    self.assertCountEqual(sides, ["ours", "reference", "keras3"])
    row = report["ratios"][0]
    self.assertEqual(row["quantity"], "load and first call: wall")
    self.assertEqual(
      row["ratio"]["median"],
      sides["ours"]["wall_s"] / sides["reference"]["wall_s"],
    )
    self.assertIn("| load and first call: wall |", _read(output_dir, "md"))
    self.assertStartsWith(
      (output_dir / "ratios.png").read_bytes().decode("latin-1"), "\x89PNG"
    )

  @nightly.only
  def test_makes_no_ratio_of_exports_that_differ(self):
    values = flags.FLAGS
    paths = {"ours": values.ours, "reference": values.other}
    paths["keras3"] = values.ours

    def copy(name, side, work_dir, export_dir, size):
      return ["cp", "-rL", paths[side], str(export_dir)]

    with mock.patch.object(subjects, "export_command", copy):
      agreed = compare.compare(
        ["mnist_cnn"], 1, ["load"], output_dir=self.directory
      )
    self.assertFalse(agreed)
    report = json.loads((self.directory / "results.json").read_text())
    self.assertEqual((report["ratios"], report["samples"]), ([], []))
    self.assertRegex(
      _read(self.directory, "md"),
      r"✗ MNIST CNN, 28 px: no ratio, .* differ: output by [\d.]+, of values",
    )

  def test_a_wrong_model_is_refused_in_one_line(self):
    result = subprocess.run(
      [_COMPARE, "--models=alexnet"], capture_output=True, text=True
    )
    self.assertEqual(result.returncode, 1)
    self.assertIn("Known are mnist_cnn, preprocessor,", result.stderr)
    self.assertNotIn("Traceback", result.stderr)


class ResultsTest(absltest.TestCase):
  def test_outputs_may_differ_by_a_hundred_thousandth_of_the_largest(self):
    reference = {"a": np.array([1.0, -2.0]), "ids": np.array([1, 2])}
    self.assertEqual(results.differences(reference, reference), [])
    for change, name in (
      ({"a": np.array([1.0, -2.00003])}, "a by 3e-05, of values up to 2"),
      ({"a": np.array([1.0, np.nan])}, "a by nan"),
      ({"ids": np.array([1, 3])}, "ids: 50% of the values"),
      ({"a": np.array([[1.0, -2.0]])}, r"a is float64\(1, 2\)"),
      ({"b": np.array([1.0])}, "outputs"),
    ):
      (found,) = results.differences({**reference, **change}, reference)
      self.assertRegex(found, name)
    near = {**reference, "a": np.array([1.0, -2.00001])}
    self.assertEqual(results.differences(near, reference), [])

  def test_ratios_are_made_within_each_round(self):
    seconds = {"ours": [1, 6, 3], "reference": [2, 3, 3]}
    samples = [
      {
        "model": "bert_base",
        "measure": "export",
        "side": side,
        "round": i,
        "values": {"cpu_s": value},
      }
      for side, values in seconds.items()
      for i, value in enumerate(values)
    ]
    (row,) = results.ratios(samples)
    self.assertEqual(
      row["ratio"], {"median": 1.0, "least": 0.5, "greatest": 2.0}
    )
    self.assertEqual((row["target"], row["reached"]), (0.5, False))
    self.assertEqual(
      "|".join(results.cells(row)),
      "export: CPU|3 s|3 s|Model Garden|1|0.5-2|≤ 0.5|✗",
    )

  def test_targets_are_against_model_garden_and_the_live_model(self):
    samples = [
      {
        "model": model,
        "measure": measure,
        "side": side,
        "round": 0,
        "values": {"wall_s": 1.0, "first_s": 1.0},
      }
      for model in ("mnist_cnn", "bert_tiny")
      for measure, sides in (
        ("load", ("ours", "reference")),
        ("train_xla", ("ours", "live")),
      )
      for side in sides
    ]
    targets = {
      (row["model"], row["quantity"]): (row["target"], row["reached"])
      for row in results.ratios(samples)
    }
    loads, steps = "load and first call: wall", "train step with XLA, the first"
    self.assertEqual(
      targets,
      {
        ("mnist_cnn", loads): (None, None),
        ("mnist_cnn", steps): (1.2, True),
        ("bert_tiny", loads): (0.5, False),
        ("bert_tiny", steps): (1.2, True),
      },
    )

  def test_first_and_later_turns(self):
    turns = [{"wall_s": w, "cpu_s": 2 * w} for w in (9.0, 1.0, 4.0, 2.0)]
    self.assertEqual(
      results.of_turns(turns),
      {"first_s": 9.0, "later_per_s": 0.5, "later_cpu_s": 4.0},
    )

  def test_latency_leaves_out_the_first_turn(self):
    turns = [{"wall_s": float(w)} for w in (99, *range(101))]
    expected = {"mean_s": 50.0, "p50_s": 50.0, "p90_s": 90.0, "p99_s": 99.0}
    self.assertEqual(results.latency(turns), expected)

  def test_keras_3_is_a_side_of_the_mnist_cnn(self):
    sides = ("reference", "keras3", "ours")
    self.assertEqual(subjects.sides("mnist_cnn"), sides)
    self.assertEqual(subjects.sides("resnet50"), ("reference", "ours"))
    command = subjects.export_command(
      "mnist_cnn", "keras3", pathlib.Path("/work"), pathlib.Path("/new")
    )
    self.assertEqual(command[:2], ["env", "TF_USE_LEGACY_KERAS=0"])
    self.assertEqual(command[-2:], ["/work/model.ckpt-1", "/new"])
    samples = [
      _sample("mnist_cnn", "inference_1", side, {"p99_s": seconds})
      for side, seconds in (("ours", 1.0), ("keras3", 4.0))
    ]
    (row,) = results.ratios(samples)
    self.assertEqual(
      "|".join(results.cells(row)[:5]),
      "inference, batch 1: p99|1 s|4 s|Keras 3 Model.export|0.25",
    )

  def test_cost_against_size(self):
    samples = [
      _sample(
        model,
        "size",
        side,
        {
          "parameters": parameters,
          "cpu_s": i + 1.0,
          "memory_mib": 1024.0 * (i + 1),
          "memory_all_mib": 5120.0,
        },
      )
      for model, parameters in (("bert_1g", 1e9), ("bert_4m", 4.4e6))
      for i, side in enumerate(("floor", "ours", "ours_verified", "load"))
    ]
    found = results.sizes(samples)
    costs = [(1.0, 1024.0), (2.0, 2048.0), (3.0, 5120.0), (4.0, 4096.0)]
    self.assertEqual(found, [(4.4e6, costs), (1e9, costs)])
    (table,) = results.sizes_table(samples)
    self.assertEqual(
      [list(column.cells) for column in table.columns][:2],
      [["4.4 M", "1,000 M"], ["1.0 s, 1,024 MiB"] * 2],
    )
    tree = ElementTree.fromstring(results.sizes_svg(found))
    texts = [element.text for element in tree.iter() if element.text]
    for text in (
      "CPU seconds",
      "peak memory, GiB",
      "million parameters",
      "10",
      "1000",
    ):
      self.assertIn(text, texts)
    paths = [element.get("d") for element in tree.iter()]
    self.assertIn("M45 250L345 250", paths)  # The floor, in CPU seconds.


def _sample(model, measure, side, values):
  return {
    "model": model,
    "measure": measure,
    "side": side,
    "round": 0,
    "values": values,
  }


class ProcessesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )

  def test_time_and_memory_of_a_process_and_its_child(self):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = processes.run(
      [sys.executable, "-c", _HUNGRY], self.directory / "log"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    self.assertGreater(took["cpu_s"], 1.0)
    self.assertAlmostEqual(
      took["cpu_s"],
      after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
      places=3,
    )
    self.assertGreater(took["wall_s"], 1.5)
    for key in ("memory_mib", "memory_all_mib"):
      self.assertBetween(took[key], 200, 260)

  def test_a_failure_is_told_in_one_line(self):
    program = "import sys; sys.exit('a\\nwhat is wrong')"
    with self.assertRaisesRegex(
      processes.ProcessError, "ended with 1, and said: what is wrong$"
    ):
      processes.run([sys.executable, "-c", program], self.directory / "log")
    with self.assertRaisesRegex(processes.ProcessError, "what is wrong$"):
      processes.take_turns(
        {"a": [sys.executable, "-c", program]}, {"a": 1}, self.directory
      )

  def test_processes_act_in_turn(self):
    score = self.directory / "score"
    printed = processes.take_turns(
      {
        side: [sys.executable, "-c", _PLAYER, str(score), side]
        for side in ("a", "b")
      },
      {"a": 3, "b": 2},
      self.directory,
    )
    self.assertEqual(score.read_text(), "ababa")
    self.assertEqual(
      printed, {"a": [{"name": "a"}] * 3, "b": [{"name": "b"}] * 2}
    )


def _read(directory, suffix):
  return (directory / f"results.{suffix}").read_text()


if __name__ == "__main__":
  absltest.main()
