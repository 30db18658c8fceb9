"""MNIST CNN: a small convolutional network for images of single characters.

The feature extractor is the piece that is exported. For training, the
classifier adds a layer of logits to it. The convolutions of 32 and 64 filters,
each with a pooling, are those of Model Garden's MNIST example
(`official/legacy/image_classification/mnist_main.py`). Batch normalization
before the activations follows Ioffe and Szegedy (arXiv:1502.03167). Dropout
before the dense layer follows Srivastava et al. (JMLR 15, 2014).
"""

from __future__ import annotations

from etils import epy

with epy.lazy_imports():
  import tf_keras

L2_STRENGTH = 1e-4
IMAGE_SHAPE = (28, 28, 1)


def feature_extractor(
  *,
  features: int = 128,
  l2_strength: float = L2_STRENGTH,
  dropout_rate: float = 0.4,
  batch_norm_momentum: float = 0.9,
) -> tf_keras.Model:
  """Builds the feature extractor.

  Args:
    features: Length of the feature vector.
    l2_strength: Factor of the L2 regularization of every kernel.
    dropout_rate: Share of the units before the dense layer that are dropped in
      training, in [0, 1).
    batch_norm_momentum: Share of the old value that the moving averages of
      batch normalization keep at each training step, in [0, 1].

  Returns:
    A Keras model from images, float32 `[batch, 28, 28, 1]` in [0, 1], to
    feature vectors, float32 `[batch, features]`, none of them negative.
  """

  def regularizer() -> tf_keras.regularizers.Regularizer:
    return tf_keras.regularizers.L2(l2_strength)

  layers = [tf_keras.layers.InputLayer(IMAGE_SHAPE, name="images")]
  for block, filters in enumerate((32, 64), start=1):
    layers += [
      tf_keras.layers.Conv2D(
        filters,
        kernel_size=3,
        padding="same",
        use_bias=False,  # Batch normalization adds a bias.
        kernel_regularizer=regularizer(),
        name=f"conv{block}",
      ),
      tf_keras.layers.BatchNormalization(
        momentum=batch_norm_momentum, name=f"batch_norm{block}"
      ),
      tf_keras.layers.ReLU(name=f"relu{block}"),
      tf_keras.layers.MaxPool2D(name=f"pool{block}"),
    ]
  layers += [
    tf_keras.layers.Flatten(name="flatten"),
    tf_keras.layers.Dropout(dropout_rate, name="dropout"),
    tf_keras.layers.Dense(
      features,
      activation="relu",
      kernel_regularizer=regularizer(),
      name="feature_vector",
    ),
  ]
  return tf_keras.Sequential(layers, name="feature_extractor")


def classifier(extractor: tf_keras.Model, num_classes: int) -> tf_keras.Model:
  """Builds the model that trains a feature extractor.

  Args:
    extractor: The result of `feature_extractor`. The model shares its layers.
    num_classes: Number of classes.

  Returns:
    A Keras model from images, as the feature extractor takes them, to logits,
    float32 `[batch, num_classes]`. Its two layers are the attributes
    `feature_extractor` and `logits`, which also name them in checkpoints.
  """
  logits = tf_keras.layers.Dense(num_classes, name="logits")
  model = tf_keras.Sequential([extractor, logits], name="classifier")
  model.build((None, *IMAGE_SHAPE))
  model.feature_extractor = extractor
  model.logits = logits
  return model
