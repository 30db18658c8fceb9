r"""Fine-tunes exported ResNet feature vectors on other images.

  bazel run //integration_tests:use_resnet -- \
    --saved_model_dir=DIR --dataset=digits_5_9 --retrain

It uses nothing of the code that made the export.
"""

from __future__ import annotations

from absl import flags
from etils import epy

from integration_tests import command_line
from integration_tests import datasets
from integration_tests import fine_tuning

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tf_keras


def build_classifier(
  saved_model_dir: str,
  num_classes: int,
  *,
  retrain: bool,
  image_size: int = 32,
  augmentation: bool = False,
  batch_norm_momentum: float | None = None,
  regularization_loss_multiplier: float = 1.0,
  learning_rate: float = 1e-3,
) -> tf_keras.Model:
  """Puts a new classifier on an export, and compiles both for training.

  Args:
    saved_model_dir: The export, of feature vectors, with endpoints or without.
    num_classes: Number of classes.
    retrain: Train the weights of the export too.
    image_size: Height and width of the images.
    augmentation: Shift, turn and zoom the images a little in training.
    batch_norm_momentum: Momentum of its batch normalization; None: its default.
    regularization_loss_multiplier: Factor of its regularization losses.
    learning_rate: Of Adam.

  Returns:
    A model from images, float32 `[batch, image_size, image_size, 3]`, RGB in
    [0, 1], to logits, float32 `[batch, num_classes]`.
  """
  images, outputs = _outputs(
    saved_model_dir,
    image_size,
    augmentation,
    retrain,
    batch_norm_momentum,
    regularization_loss_multiplier,
  )
  if isinstance(outputs, dict):
    outputs = outputs["feature_vector"]
  # In float32, as the loss, whatever the precision of the rest.
  logits = tf_keras.layers.Dense(num_classes, dtype="float32", name="logits")(
    outputs
  )
  return fine_tuning.compiled(tf_keras.Model(images, logits), learning_rate)


def build_segmenter(
  saved_model_dir: str,
  num_classes: int,
  *,
  retrain: bool,
  image_size: int = 64,
  batch_norm_momentum: float | None = None,
  regularization_loss_multiplier: float = 1.0,
  learning_rate: float = 1e-3,
) -> tf_keras.Model:
  """Puts a small segmentation head on an export's endpoints.

  Each level is brought to few channels and enlarged to the finest one; their
  sum gives the logits, which are enlarged to the image.

  Args:
    saved_model_dir: The export, with the endpoints 2 to 5.
    num_classes: Number of classes of a pixel.
    retrain: As in `build_classifier`, and so what follows.
    image_size: A multiple of 32.
    batch_norm_momentum: See there.
    regularization_loss_multiplier: See there.
    learning_rate: See there.

  Returns:
    A model from images, float32 `[batch, image_size, image_size, 3]`, RGB in
    [0, 1], to logits, float32 `[batch, image_size, image_size, num_classes]`.
  """
  images, outputs = _outputs(
    saved_model_dir,
    image_size,
    False,  # Masks would have to move with the images.
    retrain,
    batch_norm_momentum,
    regularization_loss_multiplier,
  )
  if not isinstance(outputs, dict):
    raise ValueError(
      f"{saved_model_dir} has no endpoints. Export it with --endpoints=2,3,4,5."
    )
  levels = []
  for level in range(2, 6):
    x = tf_keras.layers.Conv2D(32, 1, name=f"lateral{level}")(
      outputs[str(level)]
    )
    levels.append(
      tf_keras.layers.UpSampling2D(2 ** (level - 2), interpolation="bilinear")(
        x
      )
    )
  x = tf_keras.layers.ReLU()(tf_keras.layers.Add()(levels))
  x = tf_keras.layers.Conv2D(num_classes, 3, padding="same", name="logits")(x)
  logits = tf_keras.layers.UpSampling2D(
    4, interpolation="bilinear", dtype="float32"
  )(x)
  return fine_tuning.compiled(tf_keras.Model(images, logits), learning_rate)


def _outputs(
  saved_model_dir: str,
  image_size: int,
  augmentation: bool,
  retrain: bool,
  batch_norm_momentum: float | None,
  regularization_loss_multiplier: float,
) -> tuple[tf.Tensor, tf.Tensor | dict[str, tf.Tensor]]:
  """Returns symbolic images and what the export makes of them."""
  images = tf_keras.Input([image_size, image_size, 3], name="images")
  x = images
  if augmentation:
    x = tf_keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")(x)
    x = tf_keras.layers.RandomRotation(0.05, fill_mode="nearest")(x)
    x = tf_keras.layers.RandomZoom(0.1, 0.1, fill_mode="nearest")(x)
  layer = fine_tuning.layer(
    saved_model_dir,
    retrain=retrain,
    arguments={"batch_norm_momentum": batch_norm_momentum},
    regularization_loss_multiplier=regularization_loss_multiplier,
  )
  return images, layer(x)


def with_masks(data: datasets.Arrays) -> datasets.Arrays:
  """Makes a class of each pixel: 0 for background, 1 + label for ink."""
  images, labels = data
  is_ink = images[..., 0] > 0.5
  return images, np.where(is_ink, 1 + labels[:, None, None], 0)


def define_flags() -> None:
  """Defines the flags of this program."""
  fine_tuning.define_flags()
  flags.adopt_module_key_flags(fine_tuning)
  flags.DEFINE_enum(
    "task",
    "classification",
    ["classification", "segmentation"],
    "What to learn: classes of images; or of pixels, with the endpoints of the"
    " export: background, or the class of the image where there is ink.",
  )
  flags.DEFINE_integer(
    "image_size",
    32,
    "Height and width of the images; for segmentation a multiple of 32.",
    lower_bound=32,
  )
  flags.DEFINE_bool(
    "augmentation",
    False,
    "For classification: shift, turn and zoom the images a little in training.",
  )


def _load() -> tuple[datasets.Arrays, datasets.Arrays]:
  values = flags.FLAGS
  size = values.image_size
  data = datasets.load(values.dataset, (size, size, 3))
  if values.task == "segmentation":
    return tuple(map(with_masks, data))
  return data


def _build(saved_model_dir: str, num_classes: int) -> tf_keras.Model:
  values = flags.FLAGS
  arguments = {
    "retrain": values.retrain,
    "image_size": values.image_size,
    "batch_norm_momentum": values.batch_norm_momentum,
    "regularization_loss_multiplier": values.regularization_loss_multiplier,
    "learning_rate": values.learning_rate,
  }
  if values.task == "segmentation":
    return build_segmenter(saved_model_dir, num_classes, **arguments)
  return build_classifier(
    saved_model_dir,
    num_classes,
    augmentation=values.augmentation,
    **arguments,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(lambda: fine_tuning.fine_tune(_load, _build))
