from official.vision.modeling import classification_model
from official.vision.modeling.backbones import vit as model_garden
import tensorflow as tf
import tf_keras

from models.vision import image_classification
from models.vision import patch_tokens
from models.vision import vit


def _classifier(**config):
  """Builds Model Garden's classifier for 8 by 12 pixels: 4 by 6 patches."""
  spec = tf_keras.layers.InputSpec(shape=[None, 8, 12, 3])
  backbone = model_garden.VisionTransformer(
    mlp_dim=32,
    num_heads=2,
    num_layers=2,
    dropout_rate=0.0,
    input_specs=spec,
    patch_size=2,
    hidden_size=16,
    output_2d_feature_maps=True,
    output_attention_scores=True,
    **config,
  )
  model = classification_model.ClassificationModel(backbone, 5, spec)
  for i, variable in enumerate(model.variables):
    noise = tf.random.stateless_normal(variable.shape, [i, 0], stddev=0.2)
    variable.assign_add(noise)
  return model


def _images(height, width):
  return tf.random.stateless_normal([2, height, width, 3], [1, 2])


def _results(model, images):
  """Returns the outputs, and the gradients of the images and all variables."""
  with tf.GradientTape() as tape:
    tape.watch(images)
    outputs = model(images, training=True)
    loss = tf.add_n([tf.reduce_sum(x**2) for x in outputs.values()])
  variables = model.trainable_variables
  gradients = tape.gradient(loss, [images, *variables])
  keys = ["images", *(v.ref() for v in variables)]
  return outputs, dict(zip(keys, gradients, strict=True))


class VitTest(tf.test.TestCase):
  def assert_same(self, actual, expected):
    """Asserts that differences are at most 1e-5 of the largest value."""
    self.assertEqual(actual.keys(), expected.keys())
    largest = max(float(tf.reduce_max(tf.abs(x))) for x in expected.values())
    for key, value in expected.items():
      self.assertAllClose(actual[key], value, rtol=0, atol=1e-5 * largest)

  def test_any_size(self):
    names = ["logits", "1", "attention_scores"]
    for config in (
      {"pooler": "token", "representation_size": 24},
      # The grid of the table of positions differs from the grid in training.
      {"pooler": "gap", "pos_embed_shape": (3, 3)},
      {"pooler": "none"},
    ):
      with self.subTest(**config):
        original = _classifier(**config)
        endpoints = original.backbone(original.input)
        endpoints["logits"] = original.output
        expected = tf_keras.Model(
          original.input, {name: endpoints[name] for name in names}
        )
        setup = image_classification.configure(vit.ARCHITECTURE)
        model = image_classification.cut(setup, original, names, "none")
        self.assertLen(model.variables, len(original.variables))
        for actual, wanted in zip(
          _results(model, _images(8, 12)),
          _results(expected, _images(8, 12)),
          strict=True,
        ):
          self.assert_same(actual, wanted)
        for height, width in ((2, 2), (12, 8), (17, 30)):
          outputs, gradients = _results(model, _images(height, width))
          self.assertEqual(outputs["1"].shape, [2, height // 2, width // 2, 16])
          for value in (*outputs.values(), *gradients.values()):
            self.assertAllInRange(value, -1e6, 1e6)  # NaN is out of range, too.

  def test_positions_are_interpolated(self):
    positions = model_garden.AddPositionEmbs(posemb_target_shape=(2, 3))
    class_token = model_garden.TokenLayer()
    positions(class_token(tf.zeros([1, 6, 1])))
    positions.pos_embedding.assign([[[9.0]] + [[float(i)] for i in range(6)]])
    layer = patch_tokens.PatchTokens(positions, [class_token])
    tokens = layer(tf.zeros([1, 4, 3, 1]))
    self.assertAllClose(
      tf.squeeze(tokens),
      # The token 9; the row 0, 1, 2; two interpolated rows; the row 3, 4, 5.
      [9, 0, 1, 2, 0.75, 1.75, 2.75, 2.25, 3.25, 4.25, 3, 4, 5],
    )

  def test_own_gradients(self):
    types = (patch_tokens.FirstTokens, patch_tokens.PatchTokens)
    self.assertEqual(
      vit.ARCHITECTURE.own_gradients,
      [f"{t.__module__}.{t.__qualname__}" for t in types],
    )


if __name__ == "__main__":
  tf.test.main()
