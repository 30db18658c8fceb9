import tensorflow as tf
import tf_keras

from models.vision import mnist_cnn


class MnistCnnTest(tf.test.TestCase):
  def test_parameter_counts(self):
    extractor = mnist_cnn.feature_extractor()
    # Two convolutions of 3x3, batch normalization with 4 numbers per channel,
    # and a dense layer on 7x7 cells of 64 channels.
    expected = 9 * 32 + 9 * 32 * 64 + 4 * (32 + 64) + (7 * 7 * 64 + 1) * 128
    self.assertEqual(extractor.count_params(), expected)
    classifier = mnist_cnn.classifier(extractor, 10)
    self.assertEqual(classifier.count_params(), expected + 129 * 10)

  def test_classifier_shares_the_extractor(self):
    extractor = mnist_cnn.feature_extractor(features=16)
    classifier = mnist_cnn.classifier(extractor, 5)
    images = tf.random.stateless_uniform([3, 28, 28, 1], [1, 2])
    features = extractor(images)
    self.assertEqual(features.shape, [3, 16])
    self.assertAllClose(classifier(images), classifier.logits(features))

  def test_arguments_reach_the_layers(self):
    extractor = mnist_cnn.feature_extractor(
      l2_strength=0.5, dropout_rate=0.25, batch_norm_momentum=0.75
    )
    kernels = [w for w in extractor.weights if "kernel" in w.name]
    self.assertAllClose(
      extractor.losses, [0.5 * tf.reduce_sum(k**2) for k in kernels]
    )
    self.assertLen(kernels, 3)
    self.assertEqual(extractor.get_layer("dropout").rate, 0.25)
    self.assertEqual(
      [
        layer.momentum
        for layer in extractor.layers
        if isinstance(layer, tf_keras.layers.BatchNormalization)
      ],
      [0.75, 0.75],
    )


if __name__ == "__main__":
  tf.test.main()
