"""Fine-tunes an exported feature vector or classifier of images.

It imports none of the code that made the export.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any

from absl import flags
from etils import epy

from data import classes
from data import images as image_data
from distribution import errors
from distribution import formats
from distribution import strategies
from integration_tests import command_line
from integration_tests import fitting
from integration_tests import report
from integration_tests import serving

with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

flags.disclaim_key_flags()  # --help lists them as the program's.


def build_model(
  saved_model_dir: str,
  num_classes: int,
  *,
  task: str = "classification",
  image_size: int | None = None,
  augmentation: bool = False,
  learning_rate: float = 1e-3,
  **layer_arguments: Any,
) -> tf_keras.Model:
  """Builds and compiles a new head on an export.

  Args:
    saved_model_dir: The export. It returns features or logits, `[batch, n]`, or
      a dict with `feature_vector` and, for segmentation, feature maps.
    num_classes: Number of classes of images.
    task: `classification` or `segmentation`, which adds class 0, background.
    image_size: Height and width. None means the size of the export, or 32.
    augmentation: Whether to shift, rotate and zoom training images slightly.
    learning_rate: Learning rate of Adam.
    **layer_arguments: Arguments of `fitting.load_layer`. `retrain` is required.

  Returns:
    A model from images, float32 `[batch, height, width, channels]` in [0, 1],
    or videos, with the number of frames before the height, to logits, float32:
    `[batch, num_classes]` for classification, `[batch, height, width,
    num_classes + 1]` for segmentation.

  Raises:
    ValueError: The inputs or outputs of the export do not fit the arguments.
  """
  layer = fitting.load_layer(
    saved_model_dir, name="feature_extractor", **layer_arguments
  )
  images = tf_keras.Input(
    _image_shape(layer.resolved_object, image_size), name="images"
  )
  about = f"The export cannot take images of {tuple(images.shape[1:])}: "
  with errors.of_input(TypeError, ValueError, tf.errors.OpError, about=about):
    outputs = layer(_augmented(images) if augmentation else images)
  if task == "segmentation":
    logits = _pixel_logits(outputs, num_classes + 1, images.shape)
  else:
    if isinstance(outputs, dict):
      if "feature_vector" not in outputs:
        raise ValueError(
          f"The export returns no feature_vector, but {', '.join(outputs)}."
        )
      outputs = outputs["feature_vector"]
    logits = fitting.logits(outputs, num_classes)
  return fitting.classifier(
    images, logits, tf_keras.optimizers.Adam(learning_rate)
  )


def _image_shape(export: tf.Module, image_size: int | None) -> tuple[int, ...]:
  """Returns the shape of the images or videos that an export takes."""
  signature = export.signatures.get("serving_default")
  inputs = (
    list(signature.structured_input_signature[1].values())
    if signature
    else [tf.TensorSpec([None, None, None, 3])]
  )
  if len(inputs) != 1 or inputs[0].shape.rank not in (4, 5):
    raise ValueError(f"The export does not take images, but {inputs}.")
  _, *frames, height, width, channels = inputs[0].shape
  size = (height, width)
  if image_size and not set(size) <= {None, image_size}:
    raise ValueError(
      f"--image_size={image_size}: the export takes only images of {size[0]} by"
      f" {size[1]} pixels. Omit --image_size."
    )
  height, width = (length or image_size or 32 for length in size)
  return *(n or 8 for n in frames), height, width, channels


def _augmented(images: tf.Tensor) -> tf.Tensor:
  x = tf_keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")(images)
  x = tf_keras.layers.RandomRotation(0.05, fill_mode="nearest")(x)
  return tf_keras.layers.RandomZoom(0.1, 0.1, fill_mode="nearest")(x)


def _pixel_logits(
  outputs: tf.Tensor | dict[str, tf.Tensor],
  num_classes: int,
  image_shape: tuple[int | None, ...],
) -> tf.Tensor:
  """Computes logits of each pixel from all feature maps of an export.

  A convolution maps each feature map to 32 channels. The logits come from their
  sum, at a fourth of the image size, and are resized to the image size.
  """
  if not isinstance(outputs, dict):
    outputs = {}
  maps = [outputs[k] for k in sorted(outputs) if outputs[k].shape.rank == 4]
  if not maps:
    raise ValueError(
      "--task=segmentation needs an export with endpoints. Export it with"
      " --endpoints."
    )
  _, height, width, _ = image_shape
  conv, resizing = tf_keras.layers.Conv2D, tf_keras.layers.Resizing
  x = [resizing(height // 4, width // 4)(conv(32, 1)(x)) for x in maps]
  x = tf_keras.layers.ReLU()(sum(x))
  x = conv(num_classes, 3, padding="same", name="logits")(x)
  return resizing(height, width, dtype="float32")(x)


def with_masks(
  images: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Replaces the label of each image by a class for each pixel.

  Images are `[…, height, width, channels]`, labels int `[…]`. The class of a
  pixel, int `[…, height, width]`, is 0 for background and 1 + label for ink.
  """
  is_ink = images[..., 0] > 0.5
  return images, tf.where(is_ink, 1 + labels[..., None, None], 0)


def define_flags() -> None:
  """Defines the flags of a program that fine-tunes exports of images."""
  command_line.define_flags(
    "images",
    learning_rate=1e-2,
    retraining=command_line.RETRAINING,
    classifies=True,
  )
  image_data.define_flags("dataset", "digits_5_9", "Images to fine-tune on.")
  report.define_flags()
  flags.DEFINE_enum(
    "task",
    "classification",
    ["classification", "segmentation"],
    "What to predict: the class of each image, or of each pixel: background, or"
    " the class of the image where there is ink. Segmentation needs an export"
    " with endpoints.",
  )
  flags.DEFINE_integer(
    "image_size",
    None,
    "Height and width of the images. The default is the size that the export"
    " takes, and 32 if it takes any size.",
    lower_bound=32,
    upper_bound=4096,
  )
  flags.DEFINE_bool(
    "augmentation",
    False,
    "With --task=classification: shift, rotate and zoom the images a little in"
    " training.",
  )
  # Augmentation would have to move the masks with the images.
  errors.apply_only_with(
    "task=classification", ("augmentation", "class_weight")
  )


def fine_tune() -> tf_keras.Model:
  """Fine-tunes according to the flags; returns the model."""
  values = flags.FLAGS
  build = functools.partial(
    build_model,
    task=values.task,
    image_size=values.image_size,
    augmentation=values.augmentation,
  )
  is_segmentation = values.task == "segmentation"
  background = ["background"] * is_segmentation

  def deployed(
    model: tf_keras.Model, dataset: classes.Dataset
  ) -> serving.Classifier:
    names = [*background, *dataset.classes]
    return serving.Classifier(model, names, str(dataset))

  return fine_tune_on_dataset(
    build, with_masks if is_segmentation else None, deployed, background
  )


def fine_tune_on_dataset(
  build: Callable[..., tf_keras.Model],
  change: Callable[..., tuple[tf.Tensor, tf.Tensor]] | None = None,
  saved: Callable[..., Any] = lambda model, dataset: model,
  background: Sequence[str] = (),
) -> tf_keras.Model:
  """Fine-tunes on the images of --dataset.

  Args:
    build: The `build` of `command_line.fine_tune`, as a function of
      `num_classes`.
    change: Maps an image and its label to other ones. None keeps them.
    saved: Maps the model and the data set to the object to save.
    background: Names of classes to add before those of the data set.

  Returns:
    The model.
  """
  values = flags.FLAGS

  @functools.cache  # The strategy must be created first.
  def load() -> classes.Dataset:
    dataset = image_data.load(
      values.dataset,
      values.held_out,
      formats.absolute(values.class_names_file),
    )
    print(f"Fine-tuning on {dataset}")
    return command_line.with_validation(dataset)

  def prepare(model: tf_keras.Model) -> tuple[fitting.Parts, Any]:
    is_remote = bool(strategies.io_device(model.distribute_strategy))
    dataset = image_data.resized(
      load(), model.input_shape[1:], is_remote=is_remote
    )
    parts = (
      part.map(change) if part and change else part
      for part in (dataset.train, dataset.test, dataset.validation)
    )
    weights = command_line.class_weights(dataset)
    return fitting.Parts(*parts, weights), saved(model, dataset)

  def held_out() -> report.HeldOut:
    dataset = load()
    files = image_data.names_of_files(dataset)

    def place(index: int) -> str:  # Includes the folder of the class.
      return "/".join(files[index].split("/")[-2:]) if files else ""

    names = [*background, *dataset.classes]
    return report.HeldOut(names, str(dataset), None, place)

  return command_line.fine_tune(
    lambda **arguments: build(num_classes=len(load().classes), **arguments),
    prepare,
    "images",
    held_out=held_out,
  )


def main() -> None:
  """Runs the program."""
  define_flags()
  command_line.run(fine_tune)
