import functools
import importlib

from official.legacy.image_classification.efficientnet import efficientnet_model
from official.legacy.image_classification.resnet import resnet_model
from official.vision.modeling.layers import nn_layers
from official.vision.ops import preprocess_ops
import tensorflow as tf
import tf_keras

from models.vision import image_classification
from tools import nightly

# Numbers of trainable parameters for 1,001 classes. For 1,000 classes they are
# those of the papers and of other implementations: 25,557,032 for ResNet-50,
# 4,231,976 for MobileNetV1, 3,504,872 for V2, 2,542,856 and 5,483,032 for V3,
# 3.8 M and 11.1 M for V4, 5,288,548 and 66,347,960 for EfficientNet-B0 and B7,
# 86,567,656 for ViT-B/16.
_PARAMETERS = (
  ("resnet", "", 25_557_032 + 2_049),
  # Unlike in other implementations, the first block has a projection of 64
  # channels.
  ("resnet", "resnet.model_id=18", 11_689_512 + 513 + 64 * 64 + 2 * 64),
  ("mobilenet", "mobilenet.model_id=MobileNetV1", 4_231_976 + 1_025),
  ("mobilenet", "", 3_504_872 + 1_281),
  ("mobilenet", "mobilenet.model_id=MobileNetV3Small", 2_542_856 + 1_025),
  ("mobilenet", "mobilenet.model_id=MobileNetV3Large", 5_483_032 + 1_281),
  ("mobilenet", "mobilenet.model_id=MobileNetV3EdgeTPU", 4_092_713),
  ("mobilenet", "mobilenet.model_id=MobileNetMultiAVG", 4_950_153),
  ("mobilenet", "mobilenet.model_id=MobileNetV4ConvSmall", 3_775_305),
  ("mobilenet", "mobilenet.model_id=MobileNetV4HybridMedium", 11_075_929),
  ("efficientnet", "", 5_288_548 + 1_281),
  ("efficientnet", "efficientnet.model_id=b7", 66_347_960 + 2_561),
  # The paper's RevNet-104 has 45.2 M; Model Garden's has fewer channels.
  ("revnet", "", 22_786_665),
  ("revnet", "revnet.model_id=104", 40_628_841),
  # With a `representation_size`, as in DeiT, there is a further layer from 768
  # to 768 features.
  ("vit", "vit.representation_size=0", 86_567_656 + 769),
  ("deit", "", 86_567_656 + 769 + 768 * 769),
  ("resnet_3d", "", 33_617_872),
)


def _images(*shape):
  return tf.random.stateless_uniform([*shape, 3], [1, 2])


def _shake(model):
  """Adds noise to all variables, because many start at 0 or 1."""
  for i, variable in enumerate(model.variables):
    noise = tf.random.stateless_uniform(variable.shape, [i, 0])
    variable.assign(variable * (0.9 + 0.2 * noise) + 0.01 * noise)


def _setup(name, experiment=None, *overrides):
  architecture = importlib.import_module(f"models.vision.{name}").ARCHITECTURE
  return image_classification.configure(architecture, experiment, overrides)


def _classifier(*arguments):
  return image_classification.build(_setup(*arguments))


class ImageClassificationTest(tf.test.TestCase):
  def assert_same(self, actual, expected):
    largest = float(tf.reduce_max(tf.abs(expected)))
    self.assertAllClose(actual, expected, rtol=0, atol=1e-5 * largest)

  @nightly.only
  def test_parameter_counts(self):
    for name, override, count in _PARAMETERS:
      with self.subTest(f"{name} {override}"):
        overrides = [f"task.model.backbone.{override}"] if override else []
        model = _classifier(name, None, *overrides)
        trainable = [w.shape.num_elements() for w in model.trainable_weights]
        self.assertEqual(sum(trainable), count)

  @nightly.only
  def test_variants_of_resnet(self):
    backbone = "task.model.backbone.resnet."
    model = _classifier(
      "resnet",
      None,
      f"{backbone}model_id=200,{backbone}depth_multiplier=0.125",
    )
    # The depth of 200 does not count the projections of the four levels.
    kernels = [v for v in model.variables if "kernel" in v.name]
    self.assertLen(kernels, 204)
    # Each kernel has a loss, whose factor is half the weight decay of 1e-4.
    self.assertAllClose(
      sorted(model.losses),
      sorted(5e-5 * tf.reduce_sum(kernel**2) for kernel in kernels),
    )
    model = _classifier(
      "resnet",
      "resnet_rs_imagenet",
      f"{backbone}stochastic_depth_drop_rate=0.25",
    )
    rates = {
      layer._drop_rate
      for layer in model.submodules
      if isinstance(layer, nn_layers.StochasticDepth)
    }
    self.assertAllClose(sorted(rates), [0.1, 0.15, 0.2, 0.25])

  def test_config_errors(self):
    for experiment, override, message in (
      (
        "nonsense",
        None,
        "no experiment nonsense. Those of this exporter are resnet_small, ",
      ),
      ("retinanet_resnetfpn_coco", None, "not an experiment of image class"),
      ("vit_imagenet_pretrain", None, "is of type vit; this .* only resnet"),
      (None, "task.model.nope=3", "=3: The key 'nope' does not"),
      (None, "task.model.head=3", "=3: The key 'head' does not"),
      (None, "a: b: c", "mapping values are not allowed here"),
      (None, "/nowhere.yaml", "/nowhere.yaml is neither a file that can be"),
      (None, "task=5", "must have keys and values"),
      (None, "task.model=5", "task.model is 5; it must have fields"),
      (
        None,
        "task: {model: {backbone: {resnet: {model_id: 51}}}}",
        "resnet.model_id is 51; there are 10, 18, 26",
      ),
      (
        "legacy_resnet50",
        "task.model.num_classes=0",
        "num_classes is 0; it must be the number of classes",
      ),
      (
        None,
        "task.model.num_classes=ten",
        "num_classes is 'ten'; it must be",
      ),
      (
        None,
        "task.losses.l2_weight_decay=0.0001x",
        "task.losses.l2_weight_decay is '0.0001x'; it must be a number",
      ),
      (
        None,
        "task.model.backbone.resnet.stem_type=v9",
        "cannot build a resnet with task.model.backbone.resnet.stem_type=v9: S",
      ),
      (
        None,
        "task.model.norm_activation.activation=geluu,"
        "task.model.backbone.resnet.depth_multiplier=0.5",
        "with task.model.norm_activation.activation=geluu: Unknown act",
      ),
      (
        None,
        "task.model.backbone.resnet.depth_multiplier=0",
        "with task.model.backbone.resnet.depth_multiplier=0: ",
      ),
      (
        None,
        "task.model.kernel_initializer=he_norml",
        "with task.model.kernel_initializer=he_norml: ",
      ),
      ("image_classification", None, r"is \[\]; it must be .height, width, 3]"),
      (None, "task.model.input_size=32", "is 32; it must be .height, width, 3"),
      (None, "task.model.input_size=[32,32]", "it must be .height, width, 3"),
      (None, "task.model.input_size=[0,32,3]", "it must be .height, width, 3"),
      (None, "task.model.input_size=[28,28,1]", "for grey images; only class"),
      (None, "task.model.input_size=[28,28,4]", "with an alpha channel; only"),
      (
        "legacy_resnet50",
        "task.losses.l2_weight_decay=1",
        "only these can be changed: task.model.num_classes",
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        _classifier("resnet", experiment, *filter(None, [override]))
    with self.assertRaisesRegex(
      ValueError, "images of 8 by 8 pixels are too small for it$"
    ):
      _classifier("vit", "vit_small", "task.model.input_size=[8,8,3]")

  def test_cut_equals_model_garden(self):
    model = _classifier("resnet", "resnet_small")
    self.assertEqual(model.count_params(), 706_106)
    _shake(model)
    levels = ["2", "3", "4", "5"]
    cut = functools.partial(
      image_classification.cut, _setup("resnet", "resnet_small"), model
    )
    piece = cut(["feature_vector", "logits", *levels])
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
    self.assertLen(cut(["feature_vector"]).losses, 21)
    with self.assertRaisesRegex(
      ValueError, "no 6; it has 2, 3, 4, 5, feature_vector, logits"
    ):
      cut(["feature_vector", "6"])

  def test_legacy_resnet(self):
    original = resnet_model.resnet50(7, rescale_inputs=True)
    _shake(original)
    images = _images(2, 224, 224)
    head = original.get_layer("fc1000")
    features = tf_keras.Model(original.input, head.input)(images)
    # Without this scaling, one class would get a probability of 1.
    head.kernel.assign(10 * head.kernel / tf.reduce_max(features))
    setup = _setup("resnet", "legacy_resnet50", "task.model.num_classes=7")
    model = image_classification.build(setup)
    model.set_weights(original.get_weights())
    self.assertLen(model.losses, 55)
    self.assertAllClose(model.losses, original.losses)
    names = ["feature_vector", "logits"]
    cut = image_classification.cut(setup, model, names)
    outputs = cut(images)
    expected = original(images)
    self.assertLess(tf.reduce_max(expected), 0.9)
    self.assert_same(tf.nn.softmax(outputs["logits"]), expected)
    self.assert_same(outputs["feature_vector"], features)
    self.assertEqual(cut(_images(1, 64, 96))["feature_vector"].shape, [1, 2048])

  def test_legacy_efficientnet(self):
    overrides = {"num_classes": 7}
    original = efficientnet_model.EfficientNet.from_name(
      "efficientnet-b0", overrides=overrides
    )
    _shake(original)
    setup = _setup(
      "efficientnet", "legacy_efficientnet", "task.model.num_classes=7"
    )
    model = image_classification.build(setup)
    model.set_weights(original.get_weights())
    piece = image_classification.cut(setup, model, ["logits"])
    images = _images(2, 64, 96)
    self.assert_same(tf.nn.softmax(piece(images)), original(255 * images))
    self.assertGreater(tf.math.reduce_std(piece(images)), 1e-3)


if __name__ == "__main__":
  tf.test.main()
