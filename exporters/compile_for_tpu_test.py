"""Compiles train steps for TPUs, and tests the errors of steps that fail."""

import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess

from absl import flags
from absl.testing import parameterized
import tensorflow as tf
import tf_keras

from exporters.tpu import pjrt
from tools import nightly

layers = tf_keras.layers

_LIBTPU = flags.DEFINE_string("libtpu", None, "Path of libtpu.so.")
_MNIST_CNN = flags.DEFINE_string("mnist_cnn", None, "An export.")
_BERT = flags.DEFINE_string("bert", None, "An export of type all.")
_BINARY = "exporters/compile_for_tpu"


def _string_op(inputs):
  text = tf.strings.upper(tf.strings.as_string(inputs))
  return tf.strings.to_number(text) * 1.0


def _unbounded_loop(inputs):
  (outputs,) = tf.while_loop(
    lambda x: tf.reduce_sum(x) < 100.0, lambda x: [x * 2.0], [inputs]
  )
  return tf.ensure_shape(outputs, [32, 128, 4])


def _dynamic_shape(inputs):
  return tf.boolean_mask(inputs, inputs[:, 0, 0] > 0.0)


def _nearest_neighbours(inputs):
  return tf.image.resize(inputs[..., None], [64, 4], "nearest")[..., 0]


class CompileForTpuTest(parameterized.TestCase, tf.test.TestCase):
  def run_binary(self, *arguments):
    return subprocess.run(
      # Files in Bazel's sandbox are links.
      [_BINARY, f"--libtpu={_LIBTPU.value}", "--follow_links", *arguments],
      capture_output=True,
      encoding="utf-8",
    )

  def copy(self, directory):
    """Copies an export, because files that Bazel built are read-only."""
    export = pathlib.Path(self.create_tempdir(), "export")
    shutil.copytree(directory, export)
    for path in export, *export.rglob("*"):
      path.chmod(0o755)
    return export

  def export(self, function, **attributes):
    """Exports an encoder whose last layer is `function`."""
    inputs = {
      name: layers.Input([None], dtype=tf.int32, name=name)
      for name in ("input_word_ids", "input_mask", "input_type_ids")
    }
    outputs = layers.Embedding(10, 4)(inputs["input_word_ids"])
    outputs = layers.Lambda(function, name="suspect")(outputs)
    model = tf_keras.Model(
      inputs, {"default": outputs[:, 0], "sequence_output": outputs}
    )
    root = tf.train.Checkpoint(
      variables=model.variables,
      trainable_variables=model.trainable_variables,
      **attributes,
    )
    root.__call__ = tf.function(lambda x: model(x))
    root.__call__.get_concrete_function(
      {k: tf.TensorSpec([None, None], tf.int32, k) for k in inputs}
    )
    directory = os.path.join(self.get_temp_dir(), "export")
    tf.saved_model.save(root, directory)
    return directory

  @parameterized.parameters(
    (_BERT, "/encoder"), *[(_MNIST_CNN, "")] * nightly.IS_ON
  )
  def test_exports_compile(self, flag, directory):
    export = self.copy(f"{flag.value}{directory}")
    files = {p: p.read_bytes() for p in export.rglob("*") if p.is_file()}
    done = self.run_binary(
      "--record",
      f"--saved_model_dir={export}",
      "--topology=v5e:2x2",
      "--topology=v6e:2x2",
      "--image_size=32",
      "--seq_length=8",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for topology, memory in (("v5e", "16,384"), ("v6e", "32,768")):
      self.assertRegex(
        done.stdout,
        rf"✓ {topology}:2x2, batch 32: compiles; \d+ MiB of {memory} MiB HBM;"
        r" [\d.e+]+ flops",
      )
    needed = [int(n) for n in re.findall(r"(\d+) MiB of", done.stdout)]
    self.assertAllInRange(needed, 5, 200)  # Measured: 26 to 49 MiB.

    card = export / "assets.extra" / "README.md"
    report = export / "assets.extra" / "model.json"
    recorded = json.loads(report.read_text())
    self.assertEqual(
      {**recorded, **json.loads(files[report])}, recorded
    )  # Recording changes no other file.
    recorded = recorded["compilation_for_tpus"]
    self.assertRegex(recorded["compiler"], r"^libtpu \d+\.")
    self.assertEqual(
      [round(r["hbm_bytes"] / 2**20) for r in recorded["results"]], needed
    )
    text = card.read_text()
    before, _, after = files[card].decode().partition("\n## Keras 3")
    self.assertStartsWith(text, before)
    self.assertEndsWith(text, after)
    for topology, n in zip(("v5e", "v6e"), needed, strict=True):
      self.assertRegex(
        text, rf"\| compiles for {topology}:2x2 \| `\[32, .*\| {n} MiB, "
      )
    changed = [p for p in files if files[p] != p.read_bytes()]
    self.assertCountEqual(changed, [card, report])
    self.assertCountEqual((p for p in export.rglob("*") if p.is_file()), files)

  def test_strings_are_refused(self):
    done = self.run_binary(f"--saved_model_dir={_BERT.value}/preprocessor")
    self.assertEqual(done.returncode, 1)
    self.assertRegex(
      done.stderr, r"ERROR: \S+ takes strings \(kind: preprocessor\), .*\n$"
    )

  @nightly.only
  def test_what_does_not_fit(self):
    export = self.copy(f"{_BERT.value}/encoder")
    done = self.run_binary(
      f"--saved_model_dir={export}", "--batch_size=65536", "--record"
    )
    self.assertEqual(done.returncode, 1)
    self.assertIn(
      "| does not fit v5e:2x2 | `[65536, 128]`",
      (export / "assets.extra" / "README.md").read_text(),
    )
    self.assertIn("does not fit at low effort; trying at full", done.stdout)
    self.assertRegex(done.stdout, r"✗ v5e.*: does not fit; [\d.]+GB of 15.75GB")

  @parameterized.parameters(
    (
      _string_op,
      r"no op AsString.* \(\S*/suspect/AsString, of layer \S*/suspect\)\..*"
      r"Dataset.map",
    ),
    (
      _unbounded_loop,
      r"The op is \S*suspect_while\S*, .*loops must have a bound",
    ),
    (_dynamic_shape, r"TPUs need static shapes"),
    (_nearest_neighbours, r"cannot tell whether .* TPUs have this op"),
  )
  @nightly.only
  def test_refuses(self, function, words):
    done = self.run_binary(f"--saved_model_dir={self.export(function)}")
    self.assertEqual(done.returncode, 1)
    self.assertRegex(done.stderr.splitlines()[-1], f"^ERROR: .*{words}")
    self.assertNotIn("Traceback", done.stderr)

  @nightly.only
  def test_refuses_a_table(self):
    table = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer([0, 1], [1.0, 2.0]), 0.0
    )
    directory = self.export(
      lambda x: x * table.lookup(tf.cast(x > 0.0, tf.int32)), table=table
    )
    done = self.run_binary(f"--saved_model_dir={directory}")
    self.assertEqual(done.returncode, 1)
    self.assertRegex(
      done.stderr.splitlines()[-1],
      r"^ERROR: Op LookupTableFindV2 \(.*, of layer \S*/suspect/\S*, in .*\)"
      r" looks up a table.*Dataset.map",
    )

  def test_structures_are_those_of_the_header(self):
    (header,) = pathlib.Path(tf.sysconfig.get_include()).glob(
      "xla/pjrt/c/pjrt_c_api.h"
    )
    text = re.sub(r"//.*", "", header.read_text())
    table = re.findall(r"_PJRT_API_STRUCT_FIELD\((PJRT_\w+)\);", text)
    for name, position in pjrt.FUNCTIONS.items():
      self.assertEqual(table[position], name)
    for name in (
      "PJRT_Compile_Args",
      "PJRT_Error_Message_Args",
      "PJRT_Executable_GetCompiledMemoryStats_Args",
      "PJRT_Executable_GetCostAnalysis_Args",
      "PJRT_Program",
      "PJRT_TopologyDescription_Create_Args",
    ):
      body = re.search(rf"struct {name} {{(.*?)}};", text, re.DOTALL)[1]
      self.assertEqual(
        re.findall(r"(\w+);", body),
        [field for field, _ in getattr(pjrt, name)._fields_],
      )
    self.assertEqual(pjrt.PJRT_NamedValue.value_size.offset, 48)
    self.assertEqual(ctypes.sizeof(pjrt.PJRT_NamedValue), 56)


if __name__ == "__main__":
  tf.test.main()
