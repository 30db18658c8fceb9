"""Compares what keras-hub computes with the goldens; run by hand.

./bazelw test //exporters/peers:keras_hub_test
"""

import os

from absl.testing import absltest
import numpy as np
from safetensors import numpy as safetensors_numpy

os.environ["KERAS_BACKEND"] = "torch"

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


if __name__ == "__main__":
  absltest.main()
