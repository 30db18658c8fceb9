"""Fine-tunes a ResNet-3D, trained on four directions, on diagonal ones."""

import sys

from absl import flags
import numpy as np
import tensorflow as tf
import tf_keras

from data import images as image_data
from integration_tests import image_fine_tuning

_PRETRAINED = flags.DEFINE_string(
  "pretrained", None, "Export of a feature vector, trained on moving digits."
)
_UNTRAINED = flags.DEFINE_string(
  "untrained", None, "The same export with initial weights."
)


class UseResNet3DTest(tf.test.TestCase):
  def test_pretrained_weights_beat_untrained_ones(self):
    losses, accuracies = {}, {}
    for flag in _PRETRAINED, _UNTRAINED:
      tf_keras.utils.set_random_seed(0)
      model = image_fine_tuning.build_model(
        flag.value, 4, retrain=True, batch_norm_momentum=0.5
      )
      self.assertEqual(model.input_shape, (None, 8, 32, 32, 3))
      (videos, labels), test = image_data.arrays(
        "diagonally_moving_digits", model.input_shape[1:]
      )
      layer = model.get_layer("feature_extractor")
      before = [v.numpy() for v in layer.variables]
      model.fit(videos[:96], labels[:96], batch_size=32, epochs=4, verbose=2)
      for variable, value in zip(layer.variables, before, strict=True):
        self.assertFalse(np.array_equal(variable, value), variable.name)
      losses[flag.name], accuracies[flag.name] = model.evaluate(
        *test, verbose=0
      )
    print(losses, accuracies)
    self.assertGreater(accuracies["pretrained"], 0.6)
    self.assertGreater(accuracies["pretrained"], accuracies["untrained"] + 0.2)

  def test_other_numbers_of_frames_and_sizes(self):
    export = tf.saved_model.load(_PRETRAINED.value)
    vectors = [
      export(tf.random.stateless_uniform([2, *shape, 3], [1, 2]))
      for shape in ((1, 32, 32), (5, 40, 64))
    ]
    for vector in vectors:
      self.assertEqual(vector["feature_vector"].shape, [2, 2048])


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  tf.test.main()
