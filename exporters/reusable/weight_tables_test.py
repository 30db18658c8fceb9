import contextlib
import io
import json
import os
import shutil
import tempfile
import unittest

import numpy as np
from safetensors import numpy as safetensors_numpy
import tensorflow as tf

from exporters.reusable import errors
from exporters.reusable import weight_tables

_LINES = [
  weight_tables.Line("query/kernel", "q.weight", (weight_tables.TRANSPOSE, 1)),
  weight_tables.Line("query/bias", "q.bias", (0,)),
  weight_tables.Line("key/kernel", "kv.weight", ((1, 0),), (0, 2)),
  weight_tables.Line("value/kernel", "kv.weight", ((1, 0),), (1, 2)),
  weight_tables.Line("conv/kernel", "conv", (weight_tables.CONVOLUTION,)),
  weight_tables.Line("types", None),
  weight_tables.Line("query/bias", "tied.bias", (0,)),
]
_SHAPES = {
  "query/kernel": (4, 2, 3),
  "query/bias": (2, 3),
  "key/kernel": (4, 5),
  "value/kernel": (4, 5),
  "conv/kernel": (2, 3, 4, 5),
  "types": (2, 2),
}
_THEIRS = {
  "q.weight": (6, 4),
  "q.bias": (6,),
  "kv.weight": (10, 4),
  "conv": (5, 4, 2, 3),
}


def _variables():
  return weight_tables.by_name(
    tf.Variable(tf.ones(shape), name=name) for name, shape in _SHAPES.items()
  )


def _theirs():
  generator = np.random.default_rng(0)
  return {
    name: generator.standard_normal(shape).astype(np.float32)
    for name, shape in _THEIRS.items()
  }


class WeightTablesTest(unittest.TestCase):
  def setUp(self):
    self.directory = tempfile.mkdtemp()
    self.addCleanup(shutil.rmtree, self.directory)

  def restore(self, arrays, **kwargs):
    path = os.path.join(self.directory, "model.safetensors")
    safetensors_numpy.save_file(arrays, path)
    tensors = weight_tables.read_safetensors(self.directory)
    variables = _variables()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      restored = weight_tables.restore(
        "SOURCE", tensors, _LINES, variables, **kwargs
      )
    return variables, restored, printed.getvalue()

  def test_in_and_out_again(self):
    arrays = _theirs()
    variables, restored, printed = self.restore(
      {**arrays, "tied.bias": arrays["q.bias"], "adam": np.ones(3)},
      left_out={"ad*": "optimizer"},
    )
    np.testing.assert_array_equal(
      variables["query/kernel"][:, 1, 2], arrays["q.weight"][5]
    )
    np.testing.assert_array_equal(
      variables["value/kernel"], arrays["kv.weight"][5:].T
    )
    self.assertEqual(
      variables["conv/kernel"][1, 2, 3, 4], arrays["conv"][4, 3, 1, 2]
    )
    self.assertFalse(variables["types"].numpy().any())
    self.assertEqual(
      printed,
      "Restored 6 tensors with 194 parameters from SOURCE."
      " Left out: optimizer (1).\n",
    )
    self.assertIn(
      ("value/kernel", "kv.weight", "part 2 of 2, transpose (1, 0)", (4, 5)),
      restored.records,
    )
    out = tempfile.mkdtemp(dir=self.directory)
    weight_tables.write_safetensors(
      out,
      weight_tables.tensors_of(
        _LINES, {name: v.numpy for name, v in variables.items()}
      ),
      400,
    )
    with open(os.path.join(out, "model.safetensors.index.json")) as f:
      self.assertGreater(len(set(json.load(f)["weight_map"].values())), 1)
    again = weight_tables.read_safetensors(out)
    self.assertEqual(set(again), set(arrays))
    for name, array in arrays.items():
      np.testing.assert_array_equal(again[name].read(), array)

  def test_optional_variables_are_there_or_lacking_together(self):
    arrays = _theirs()
    del arrays["q.bias"]
    group = ["query/kernel", "query/bias"]
    with self.assertRaisesRegex(errors.ExportError, "no value, q.bias, for"):
      self.restore(arrays, optional=[group])
    del arrays["q.weight"]
    variables, restored, _ = self.restore(arrays, optional=[group])
    self.assertEqual(restored.lacking, set(group))
    self.assertTrue(np.all(variables["query/bias"].numpy() == 1))

  def test_refuses_what_does_not_match(self):
    arrays = _theirs()
    nan = arrays["conv"] * np.nan
    less = {k: v for k, v in arrays.items() if k != "conv"}
    for wrong, message in (
      (less, r"no value, conv, for conv/kernel \(2, 3, 4, 5\)\.$"),
      (
        {**arrays, "q.weight": arrays["q.weight"].T.copy()},
        r"has \(4, 6\) for q.weight, which must be \(6, 4\) for query/kernel",
      ),
      (
        {**arrays, "more": arrays["conv"]},
        r"has more \(5, 4, 2, 3\), which",
      ),
      ({**arrays, "tied.bias": arrays["q.bias"] + 1}, "other values in tied"),
      ({**arrays, "conv": nan}, "conv that are not finite"),
      ({**arrays, "conv": np.full((5, 4, 2, 3), 1e300)}, "not .* in float32"),
      ({**arrays, "conv": arrays["conv"].astype(np.int8)}, "int8 in conv"),
    ):
      with self.subTest(message):
        with self.assertRaisesRegex(errors.ExportError, message) as caught:
          self.restore(wrong)
        self.assertNotIn("\n", str(caught.exception))

  def test_refuses_damaged_files(self):
    whole = os.path.join(self.directory, "model.safetensors")
    index = os.path.join(self.directory, "model.safetensors.index.json")
    for path, content, message in (
      (index, b'{"weight_map": {"a": "../a.safetensors"}}', "no file of"),
      (index, b'{"weight_map": {"a": "b.safetensors"}}', "There is no file"),
      (index, b'{"weight_map": [1]}', "index.json: "),
      (index, b"[" * 100_000, "index.json is no JSON: "),
      (index, b'{"weight_map": 5}', "index.json: a value is .*'int' object"),
      # The whole file replaces the index, as in transformers.
      (whole, b"\xff" * 40, "damaged: .*header"),
      (whole, b"\2\0\0\0\0\0\0\0{}rest", "damaged"),
    ):
      with self.subTest(content[:60]):
        with open(path, "wb") as f:
          f.write(content)
        with self.assertRaisesRegex(errors.ExportError, message) as caught:
          weight_tables.read_safetensors(self.directory)
        self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
  unittest.main()
