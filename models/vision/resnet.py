"""ResNet: Model Garden's image classifiers, and the pieces cut out of them.

The whole classifier is built and trained first, from an experiment of
`official.vision` (`official/vision/configs/image_classification.py`); He et al.
(arXiv:1512.03385) and, for ResNet-RS, Bello et al. (arXiv:2103.07579). What
others build on is cut out of it after the fact.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epy

from models import autograph

with epy.lazy_imports():
  from official.core import config_definitions
  from official.core import exp_factory
  from official.legacy.image_classification.resnet import imagenet_preprocessing
  from official.legacy.image_classification.resnet import (
    resnet_model as legacy_resnet_model,
  )
  from official.modeling import hyperparams
  from official.vision.configs import image_classification
  from official.vision.modeling import factory
  from official.vision.modeling.backbones import resnet
  from official.vision.ops import preprocess_ops
  import tensorflow as tf
  import tf_keras
  import yaml

NORMALIZATIONS = ("imagenet", "imagenet_means", "none")
LEGACY = "legacy_resnet50"

# Experiments beside those of `official.vision`: another one, changed.
_EXPERIMENTS = {
  # For images of 32 by 32 pixels, and to be trained in a minute.
  "resnet_small": (
    "resnet_imagenet",
    {
      "model": {
        "num_classes": 10,
        "input_size": [32, 32, 3],
        "backbone": {"resnet": {"model_id": 18, "depth_multiplier": 0.25}},
      }
    },
  ),
  # From `official/legacy/image_classification/resnet/resnet_model.py`.
  LEGACY: ("resnet_imagenet", {"losses": {"l2_weight_decay": 2e-4}}),
}


def config(
  experiment: str, overrides: Sequence[str] = ()
) -> config_definitions.ExperimentConfig:
  """Makes the configuration of a ResNet and its training.

  Args:
    experiment: Name of an experiment in `official.core.exp_factory`;
      `resnet_small`, a ResNet-18 of a quarter of the width; or
      `legacy_resnet50`, the one of `official.legacy`, of which only
      `task.model.num_classes` can be changed.
    overrides: YAML files, or YAML or `key=value,…` itself, each of which
      changes what goes before it. Keys are those of the experiment, such as
      `task.model.num_classes`.

  Raises:
    ValueError: The experiment is unknown or not one of a ResNet classifier, or
      an override has an unknown key or cannot be read.
  """
  # Registers the experiments when it is imported, and so comes first.
  classification_task = image_classification.ImageClassificationTask
  name, changes = _EXPERIMENTS.get(experiment, (experiment, {}))
  try:
    params = exp_factory.get_exp_config(name)
  except LookupError as e:
    raise ValueError(
      f"There is no experiment {experiment}. Those of ResNets are"
      f" {', '.join(_EXPERIMENTS)}, resnet_imagenet and resnet_rs_imagenet."
    ) from e
  if not isinstance(params.task, classification_task):
    raise ValueError(f"{experiment} is not an experiment of a classifier.")
  params.task.override(changes)
  for override in overrides:
    try:
      hyperparams.override_params_dict(params, override, is_strict=True)
      params.validate()
    except KeyError as e:
      # What follows is advice for programmers.
      message, *_ = e.args[0].split(". ")
      raise ValueError(f"Configuration {override}: {message}.") from e
    except (AttributeError, TypeError, ValueError, yaml.YAMLError) as e:
      message = " ".join(str(e).split())
      raise ValueError(f"Configuration {override}: {message}") from e
    except tf.errors.OpError as e:
      raise ValueError(f"Cannot read {override}: {e.message}.") from e
  backbone = params.task.model.backbone
  if experiment == LEGACY:
    expected = exp_factory.get_exp_config(name)
    expected.task.override(changes)
    expected.task.model.num_classes = params.task.model.num_classes
    if params.as_dict() != expected.as_dict():
      raise ValueError(
        f"Of {LEGACY} only task.model.num_classes can be changed."
      )
  if backbone.type != "resnet":
    raise ValueError(
      f"The backbone of {experiment} is a {backbone.type}, not a resnet."
    )
  if backbone.resnet.model_id not in resnet.RESNET_SPECS:
    raise ValueError(
      "task.model.backbone.resnet.model_id, the depth, is"
      f" {backbone.resnet.model_id}; there are"
      f" {', '.join(map(str, resnet.RESNET_SPECS))}."
    )
  return params


@autograph.off
def classifier(params: config_definitions.ExperimentConfig) -> tf_keras.Model:
  """Builds the classifier, as the training does, for images of any size.

  Args:
    params: What `config` returns.

  Returns:
    Model Garden's `ClassificationModel`, from normalized images, float32
    `[batch, height, width, 3]`, to logits, float32 `[batch, num_classes]`.
  """
  weight_decay = params.task.losses.l2_weight_decay
  return factory.build_classification_model(
    tf_keras.layers.InputSpec(shape=[None, None, None, 3]),
    params.task.model,
    # Half of it, as in `official/vision/tasks/image_classification.py`.
    tf_keras.regularizers.L2(weight_decay / 2) if weight_decay else None,
  )


@autograph.off
def legacy_classifier(num_classes: int) -> tf_keras.Model:
  """Builds the ResNet-50 of `official.legacy`, for images of any size.

  Args:
    num_classes: Number of classes.

  Returns:
    A Keras model as Model Garden's, from normalized images, float32
    `[batch, height, width, 3]`, to probabilities, float32
    `[batch, num_classes]`. Its layer before the last one gives the logits.
  """
  # Model Garden's is for 224 by 224 pixels, which no layer of it needs.
  return tf_keras.models.clone_model(
    legacy_resnet_model.resnet50(num_classes),
    input_tensors=tf_keras.Input([None, None, 3]),
  )


@autograph.off
def cut(
  model: tf_keras.Model, names: Sequence[str], normalization: str = "imagenet"
) -> tf_keras.Model:
  """Cuts a piece out of a classifier. It shares the classifier's layers.

  Args:
    model: What `classifier` or `legacy_classifier` returns.
    names: What the piece returns: `feature_vector` (what goes into the last
      layer, but for dropout), `logits`, or levels of the backbone's feature
      maps, from `2` (a quarter of the image's height and width) to `5` (a
      thirty-second).
    normalization: What is done to the images first: `imagenet` subtracts the
      means of ImageNet's channels and divides by their deviations, as the
      training in `official.vision` does; `imagenet_means` multiplies with 255
      and subtracts other means, as that in `official.legacy` does; `none`
      leaves them as they are.

  Returns:
    A Keras model from images, float32 `[batch, height, width, 3]`, RGB in
    [0, 1], to the output; to a dict of outputs where `names` has several.

  Raises:
    ValueError: The classifier has no output of that name.
  """
  outputs = {}
  for layer in model.layers:
    if isinstance(layer, tf_keras.Model):  # The backbone.
      outputs.update(layer.get_output_at(0))
    elif isinstance(layer, tf_keras.layers.GlobalAveragePooling2D):
      outputs["feature_vector"] = layer.output
    elif isinstance(layer, tf_keras.layers.Dense):
      outputs["logits"] = layer.output
  for name in names:
    if name not in outputs:
      raise ValueError(f"The model has no {name}; it has {', '.join(outputs)}.")
  chosen = {name: outputs[name] for name in names}
  piece = tf_keras.Model(
    model.input, chosen if len(chosen) > 1 else chosen[names[0]]
  )
  images = tf_keras.Input([None, None, 3], name="images")
  return tf_keras.Model(images, piece(_normalized(images, normalization)))


def _normalized(images: tf.Tensor, normalization: str) -> tf.Tensor:
  if normalization == "none":
    return images
  if normalization == "imagenet":
    factors = [1 / deviation for deviation in preprocess_ops.STDDEV_NORM]
    means = preprocess_ops.MEAN_NORM
  else:
    factors = [255.0] * 3
    means = [mean / 255 for mean in imagenet_preprocessing.CHANNEL_MEANS]
  offsets = [-m * f for m, f in zip(means, factors, strict=True)]
  return tf_keras.layers.Rescaling(factors, offsets)(images)
