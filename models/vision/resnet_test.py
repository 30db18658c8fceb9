from official.legacy.image_classification.resnet import resnet_model
from official.vision.modeling.layers import nn_layers
from official.vision.ops import preprocess_ops
import tensorflow as tf
import tf_keras

from models.vision import resnet


def _images(*shape):
  return tf.random.stateless_uniform([*shape, 3], [1, 2])


def _shake(model):
  """Gives all variables, also those that start at 0 or 1, some noise."""
  for i, variable in enumerate(model.variables):
    noise = tf.random.stateless_uniform(variable.shape, [i, 0])
    variable.assign(variable * (0.9 + 0.2 * noise) + 0.01 * noise)


class ResNetTest(tf.test.TestCase):
  def assert_same(self, actual, expected):
    largest = float(tf.reduce_max(tf.abs(expected)))
    self.assertAllClose(actual, expected, rtol=0, atol=1e-5 * largest)

  def test_parameter_counts(self):
    for overrides, count, losses in (
      # 25,557,032 as everywhere, one more class of 2,048 features, and the two
      # moving averages of 26,560 channels.
      ([], 25_557_032 + 2_049 + 2 * 26_560, 54),
      # Other than elsewhere the first block has a projection of 64 channels.
      (
        ["task.model.backbone.resnet.model_id=18"],
        11_689_512 + 513 + 2 * 4_800 + 64 * 64 + 4 * 64,
        22,
      ),
    ):
      model = resnet.classifier(resnet.config("resnet_imagenet", overrides))
      self.assertEqual(model.count_params(), count)
      # One for each kernel, of half the weight decay 1e-4.
      kernels = [v for v in model.variables if "kernel" in v.name]
      self.assertLen(model.losses, losses)
      self.assertAllClose(
        sorted(model.losses),
        sorted(5e-5 * tf.reduce_sum(kernel**2) for kernel in kernels),
      )

  def test_greatest_depth(self):
    model = resnet.classifier(
      resnet.config(
        "resnet_imagenet",
        [
          "task.model.backbone.resnet.model_id=200",
          "task.model.backbone.resnet.depth_multiplier=0.125",
        ],
      )
    )
    # The depth counts all layers but the projections of the four levels.
    self.assertLen([v for v in model.variables if "kernel" in v.name], 204)
    self.assertLen(model.losses, 204)

  def test_variants(self):
    params = resnet.config(
      "resnet_rs_imagenet",
      ["task.model.backbone.resnet.stochastic_depth_drop_rate=0.25"],
    )
    rates = {
      layer._drop_rate
      for layer in resnet.classifier(params).submodules
      if isinstance(layer, nn_layers.StochasticDepth)
    }
    self.assertAllClose(sorted(rates), [0.1, 0.15, 0.2, 0.25])
    small = resnet.classifier(resnet.config("resnet_small"))
    self.assertEqual(small.count_params(), 706_106)

  def test_config_errors(self):
    for experiment, override, message in (
      (
        "nonsense",
        None,
        "no experiment nonsense. Those of ResNets are resnet_",
      ),
      ("retinanet_resnetfpn_coco", None, "not an experiment of a classifier"),
      ("vit_imagenet_pretrain", None, "is a vit, not a resnet"),
      ("resnet_imagenet", "task.model.nope=3", "=3: The key 'nope' does not"),
      ("resnet_imagenet", "a: b: c", "mapping values are not allowed here"),
      ("resnet_imagenet", "/nowhere.yaml", "Cannot read /nowhere.yaml: "),
      (
        "resnet_imagenet",
        "task: {model: {backbone: {resnet: {model_id: 51}}}}",
        "the depth, is 51; there are 10, 18, 26",
      ),
      ("legacy_resnet50", "task.losses.l2_weight_decay=1", "can be changed"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        resnet.config(experiment, [override] if override else [])

  def test_cut_equals_model_garden(self):
    model = resnet.classifier(resnet.config("resnet_small"))
    _shake(model)
    levels = ["2", "3", "4", "5"]
    piece = resnet.cut(model, ["feature_vector", "logits", *levels])
    for height, width in ((32, 32), (64, 64), (224, 224), (33, 96)):
      images = _images(2, height, width)
      normalized = tf.stack(
        [
          preprocess_ops.normalize_image(
            255 * image, preprocess_ops.MEAN_RGB, preprocess_ops.STDDEV_RGB
          )
          for image in images
        ]
      )
      outputs = piece(images)
      self.assertEqual(outputs["feature_vector"].shape, [2, 128])
      self.assert_same(outputs["logits"], model(normalized))
      endpoints = model.backbone(normalized)
      for level in levels:
        cells = 2 ** int(level)
        self.assertEqual(
          outputs[level].shape[1:3], [-(-height // cells), -(-width // cells)]
        )
        self.assert_same(outputs[level], endpoints[level])
    self.assertLen(resnet.cut(model, ["feature_vector"]).losses, 21)
    with self.assertRaisesRegex(
      ValueError, "no 6; it has 2, 3, 4, 5, feature_vector, logits"
    ):
      resnet.cut(model, ["feature_vector", "6"])

  def test_legacy(self):
    original = resnet_model.resnet50(7, rescale_inputs=True)
    _shake(original)
    images = _images(2, 224, 224)
    head = original.get_layer("fc1000")
    features = tf_keras.Model(original.input, head.input)(images)
    # Else the first class would have all of the probability.
    head.kernel.assign(10 * head.kernel / tf.reduce_max(features))
    model = resnet.legacy_classifier(7)
    model.set_weights(original.get_weights())
    self.assertLen(model.losses, 55)
    self.assertAllClose(model.losses, original.losses)
    cut = resnet.cut(model, ["feature_vector", "logits"], "imagenet_means")
    outputs = cut(images)
    expected = original(images)
    self.assertLess(tf.reduce_max(expected), 0.9)
    self.assert_same(tf.nn.softmax(outputs["logits"]), expected)
    self.assert_same(outputs["feature_vector"], features)
    self.assertEqual(cut(_images(1, 64, 96))["feature_vector"].shape, [1, 2048])


if __name__ == "__main__":
  tf.test.main()
