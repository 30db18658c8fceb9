import itertools

from official.vision.modeling import classification_model
from official.vision.modeling.backbones import vit as model_garden
import tensorflow as tf
import tf_keras

from models.vision import image_classification
from models.vision import vit


def _classifier(**config):
  """Builds Model Garden's classifier for 8 by 12 pixels: 4 by 6 patches."""
  spec = tf_keras.layers.InputSpec(shape=[None, 8, 12, 3])
  backbone = model_garden.VisionTransformer(
    mlp_dim=32,
    num_heads=2,
    num_layers=2,
    input_specs=spec,
    patch_size=2,
    dropout_rate=0.0,
    hidden_size=16,
    **config,
  )
  model = classification_model.ClassificationModel(backbone, 5, spec)
  for i, variable in enumerate(model.variables):
    noise = tf.random.stateless_normal(variable.shape, [i, 0], stddev=0.2)
    variable.assign_add(noise)
  return model


def _images(batch_size, height, width):
  return tf.random.stateless_normal([batch_size, height, width, 3], [1, 2])


def _results(model, images):
  """Returns outputs and gradients of the loss, of images and variables."""
  # Jitted, XLA would fold the constants of both models differently.
  with tf.GradientTape() as tape:
    tape.watch(images)
    outputs = model(images, training=True)
    loss = tf.add_n([tf.reduce_sum(y**2) for y in tf.nest.flatten(outputs)])
  variables = [v.ref() for v in model.trainable_variables]
  gradients = tape.gradient(loss, [images, *(v.deref() for v in variables)])
  return outputs, dict(zip(["images", *variables], gradients, strict=True))


class VitTest(tf.test.TestCase):
  def assert_same(self, actual, expected):
    """Asserts that differences are less than 1e-5 of the largest value."""
    self.assertEqual(actual.keys(), expected.keys())
    largest = max(float(tf.reduce_max(tf.abs(x))) for x in expected.values())
    for key, value in expected.items():
      self.assertAllClose(actual[key], value, rtol=0, atol=1e-5 * largest)

  def test_any_size(self):
    configs = [
      dict(pooler=pooler, representation_size=size)
      for pooler, size in itertools.product(["token", "gap", "none"], [0, 24])
    ]
    # The table is for another grid of patches than that of the training.
    configs.append(dict(pooler="gap", pos_embed_shape=(3, 3)))
    for config in configs:
      with self.subTest(**config):
        original = _classifier(
          output_2d_feature_maps=True, output_attention_scores=True, **config
        )
        model = vit.any_size(original)
        names = ["logits", "1", "attention_scores"]
        piece = image_classification.cut(model, names, "none")
        self.assertCountEqual(
          [v.ref() for v in piece.variables],
          [v.ref() for v in original.variables],
        )
        both = tf_keras.Model(
          original.input,
          {
            "logits": original.output,
            **{n: original.backbone(original.input)[n] for n in names[1:]},
          },
        )
        outputs, gradients = _results(piece, _images(2, 8, 12))
        expected, expected_gradients = _results(both, _images(2, 8, 12))
        self.assert_same(outputs, expected)
        self.assert_same(gradients, expected_gradients)


if __name__ == "__main__":
  tf.test.main()
