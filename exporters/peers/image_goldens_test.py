"""Compares the goldens of images with what transformers computes now."""

import json
import pathlib

from absl.testing import absltest
import numpy as np

from exporters.peers import image_goldens


class ImageGoldensTest(absltest.TestCase):
  def test_goldens(self):
    path = pathlib.Path("exporters/peers/image_goldens.json")
    goldens = json.loads(path.read_text())
    for name, now in image_goldens.of_transformers().items():
      self.assertEqual(now["shapes"], goldens[name]["shapes"])
      for output, expected in goldens[name]["outputs"].items():
        np.testing.assert_allclose(
          now["outputs"][output], expected, rtol=0, atol=1e-5
        )


if __name__ == "__main__":
  absltest.main()
