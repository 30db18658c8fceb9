"""Validates the model.json of all exports that other tests use."""

import json
import math
import pathlib
import re
import types

from absl import flags
from absl.testing import absltest
import jsonschema

from distribution import errors
from exporters.reusable import profiles

_EXPORTS = flags.DEFINE_list("exports", [], "Directories with exports.")


class ModelJsonTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    paths = [
      path
      for directory in _EXPORTS.value
      for path in sorted(pathlib.Path(directory).rglob("saved_model.pb"))
    ]
    self.models = {
      str(path.parent): json.loads(
        (path.parent / "assets.extra/model.json").read_text()
      )
      for path in paths
    }
    self.assertGreaterEqual(len(self.models), len(_EXPORTS.value))

  def test_schema(self):
    schema = json.loads(pathlib.Path("docs/model.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name, model in self.models.items():
      with self.subTest(name):
        validator.validate(model)

  def test_entries_agree(self):
    for name, model in self.models.items():
      with self.subTest(name):
        variables = model["variables"]
        sizes = [math.prod(v["shape"]) for v in variables]
        self.assertEqual(sum(sizes), model["parameters"]["all"])
        names = {v["name"] for v in variables if v["trainable"]}
        for profile in model["profiles"]:
          self.assertLess(set(profile["trainable_variables"]), names)
        for h in model["hyperparameters"]:
          if "minimum" in h:
            self.assertGreaterEqual(h["default"], h["minimum"])

  def test_readme_lists_the_hyperparameters(self):
    readme = pathlib.Path("README.md").read_text()
    for name, model in self.models.items():
      with self.subTest(name):
        row = rf"\n\| `//exporters:{model['exporter']}` \|.*"
        (row,) = re.findall(row, readme)
        configuration = model["provenance"].get("configuration", "")
        for h in model["hyperparameters"]:
          self.assertIn(f"`{h['name']}`", row)
          stated = re.search(rf"`{h['name']}` (\d[\d.]*|\"\w+\")", row)
          # NAME_small is for tests. README states the defaults of others.
          if stated and not configuration.endswith("_small"):
            self.assertEqual(json.loads(stated[1]), h["default"])


class ProfilesTest(absltest.TestCase):
  def test_layer_indices(self):
    for names, indices in (
      (
        [
          "word_embeddings/embeddings",
          "embeddings/layer_norm/gamma",
          "transformer/layer_0/self_attention/query/kernel",
          "transformer/layer_0/output/bias",
          "transformer/layer_1/output/kernel",
          "pooler_transform/kernel",
        ],
        [0, 0, 1, 1, 2, 3],
      ),
      (
        [
          "conv2d/kernel",
          "residual_block/conv2d/kernel",
          "residual_block/batch_normalization/moving_mean",
          "residual_block_1/conv2d/kernel",
        ],
        [0, 1, 1, 2],
      ),
      (
        [
          "conv1/kernel",
          "bn_conv1/gamma",
          "res2a_branch2a/kernel",
          "bn2a_branch2a/gamma",
          "res2b_branch2a/kernel",
        ],
        [0, 0, 1, 1, 2],
      ),
      (
        [
          "embedding/embeddings",
          "conv1/kernel",
          "batch_norm1/gamma",
          "conv2/kernel",
        ],
        [0, 1, 1, 2],
      ),
      ([], []),
    ):
      self.assertEqual(profiles.layer_indices(names), indices)

  def test_profiles(self):
    names = [
      *("conv1/kernel", "norm1/gamma", "norm1/beta", "norm1/moving_mean"),
      *("conv2/kernel", "dense/kernel", "dense/bias"),
    ]
    variables = [types.SimpleNamespace(name=f"{name}:0") for name in names]
    trainable = [v for v in variables if "moving" not in v.name]
    for profile, expected in (
      ("last_1", names[5:]),
      ("last_2", names[4:]),
      ("batch_norm_frozen", [names[0], *names[4:]]),
      ("last_3", "would freeze nothing"),
      ("last_4", "the model has 3 blocks"),
      ("no_embeddings", "would freeze nothing"),
    ):
      if isinstance(expected, str):
        with self.assertRaisesRegex(errors.InputError, expected):
          profiles.trained(profile, variables, trainable)
      else:
        trained = profiles.trained(profile, variables, trainable)
        self.assertEqual(
          [v.name for v in trained], [f"{n}:0" for n in expected]
        )


if __name__ == "__main__":
  absltest.main()
