"""Compares what keras-hub computes with the goldens; run by hand.

./bazelw test //exporters/peers:keras_hub_test
"""

import json
import os

from absl.testing import absltest
import numpy as np
from safetensors import numpy as safetensors_numpy

os.environ["KERAS_BACKEND"] = "torch"

from exporters.peers import image_goldens
from exporters.peers import make_keras_hub_goldens

_GOLDENS = os.path.join(os.path.dirname(__file__), "testdata", "keras_hub")


class KerasHubTest(absltest.TestCase):
  def test_goldens_are_what_keras_hub_computes(self):
    directory = self.create_tempdir().full_path
    make_keras_hub_goldens.main(directory)
    for name in os.listdir(_GOLDENS):
      for file in ("weights", "expected"):
        actual, expected = (
          safetensors_numpy.load_file(f"{root}/{name}/{file}.safetensors")
          for root in (directory, _GOLDENS)
        )
        self.assertEqual(set(actual), set(expected))
        for key, value in expected.items():
          np.testing.assert_allclose(actual[key], value, atol=1e-5)

  def test_golden_of_images(self):
    path = os.path.join(os.path.dirname(__file__), "image_goldens.json")
    with open(path) as f:
      golden = json.load(f)["keras_hub_vit"]
    now = image_goldens.of_keras_hub()
    self.assertEqual(now["shapes"], golden["shapes"])
    for output, expected in golden["outputs"].items():
      np.testing.assert_allclose(
        now["outputs"][output], expected, rtol=0, atol=1e-5
      )


if __name__ == "__main__":
  absltest.main()
