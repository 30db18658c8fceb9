"""Builds Model Garden's image classifiers, and cuts pieces out of them.

A classifier of images is built from an experiment of
`official/vision/configs/image_classification.py`, a classifier of videos from
one of `video_classification.py` there. Feature vector, logits and endpoints are
cut out of the classifier after its weights are restored or trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
from typing import Any

from etils import epy

from distribution import errors
from models import autograph
from models import fields

with epy.lazy_imports():
  from official.core import exp_factory
  from official.legacy.image_classification.resnet import imagenet_preprocessing
  from official.modeling import hyperparams
  from official.vision.modeling import factory
  from official.vision.modeling import factory_3d
  from official.vision.ops import preprocess_ops
  import tensorflow as tf
  import tf_keras

# The fields about the backbone in the config of any `official.vision` model.
_MODEL_OF_BACKBONE = ("backbone", "norm_activation", "input_size")

Normalization = tuple[Sequence[float], Sequence[float]]
NORMALIZATIONS = ("imagenet", "imagenet_means", "centered", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """The differences between classifiers of images and of videos.

  Attributes:
    noun: `image` or `video`.
    axes: The names of the axes of an image or video.
    config: The part of the task's config that has `num_classes` and the shape.
    shape: The field for the shape in the part `config`.
    small: The changes by `NAME_small` to the config of the task.
    normalization: How training normalizes images, one of `NORMALIZATIONS`.
  """

  noun: str
  axes: str
  config: str
  shape: str
  small: Mapping[str, Any]
  normalization: str


IMAGES = Kind(
  noun="image",
  axes="height, width, 3",
  config="model",
  shape="input_size",
  small={"model": {"num_classes": 10, "input_size": [32, 32, 3]}},
  normalization="imagenet",
)

VIDEOS = Kind(
  noun="video",
  axes="frames, height, width, 3",
  config="train_data",
  shape="feature_shape",
  small={
    "train_data": {"num_classes": 4, "feature_shape": [8, 32, 32, 3]},
    "validation_data": {"num_classes": 4},
  },
  normalization="none",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A configuration of a classifier and its training.

  Attributes:
    base: The experiment of `official.vision` to start from.
    changes: The changes to the config of its task.
    normalization: How training normalizes images: one of `NORMALIZATIONS`, or
      means and deviations of images in [0, 1]. None: the default of the kind.
    build: Builds the classifier from the config of the task; None: the factory
      of `official.vision`.
    settable: With `build`, the fields of `task.model` that it reads. Overrides
      of other fields are refused.
  """

  base: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  normalization: str | Normalization | None = None
  build: Callable[[Any], tf_keras.Model] | None = None
  settable: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """A family of classifiers with one type of backbone.

  Attributes:
    name: Stem of the names of its modules, programs and experiments.
    backbone: Type of the backbone in Model Garden's config, and its module.
    variants: The field of the backbone's config that names the variant, and the
      table in the backbone's module that has all variants.
    title: Name of the model; `{…}` stands for fields of the backbone's config.
    description: A noun phrase for the model card, with the source.
    sizes: The sizes that it takes besides those of training, for the card.
    square: Variants with this in their name take only square images.
    experiment: Name of the default experiment for checkpoints.
    small: Changes to the config of the model that make `NAME_small` of the
      default experiment. That experiment trains in about a minute on images of
      32 by 32 pixels.
    kind: Whether it classifies images or videos.
    experiments: Experiments that Model Garden lacks, by name.
    any_size: Rebuilds Model Garden's classifier for images of one size as a
      classifier for images of any size, with the same layers. None: Model
      Garden's classifier already takes any size.
    own_gradients: Qualified names of layer classes whose gradient needs a
      compile-time constant of the forward pass (see
      `exporters/reusable/xla.py`).
    layer_calls: Replacements for the `call` of layers, by the qualified name of
      the layer's class. Each function takes a layer, and returns the `call` to
      export instead of the layer's.
  """

  name: str
  backbone: str
  variants: tuple[str, str]
  title: str
  description: str
  experiment: str
  small: Mapping[str, Any]
  kind: Kind = IMAGES
  experiments: Mapping[str, Experiment] = dataclasses.field(
    default_factory=dict
  )
  sizes: str = "others of 32 by 32 pixels and more, square or not"
  square: str | None = None
  any_size: Callable[[tf_keras.Model], tf_keras.Model] | None = None
  own_gradients: Sequence[str] = ()
  layer_calls: Mapping[str, Callable[[Any], Callable[..., Any]]] = (
    dataclasses.field(default_factory=dict)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """The configuration of a classifier and its training.

  Attributes:
    architecture: The architecture.
    name: Name of the experiment.
    experiment: The experiment.
    task: The config of Model Garden's task, with overrides.
    changes: The values that overrides changed, by path, such as
      `task.model.num_classes`.
  """

  architecture: Architecture
  name: str
  experiment: Experiment
  task: Any
  changes: Mapping[str, Any]

  @property
  def data(self) -> Any:
    """The part of `task` with `num_classes`. Callers may set its fields."""
    return getattr(self.task, self.architecture.kind.config)

  @property
  def input_shape(self) -> list[int]:
    """The shape of an image or video in training, as `Kind.axes` says."""
    return list(getattr(self.data, self.architecture.kind.shape))

  @property
  def variant(self) -> Any:
    """Name of the variant, in `Architecture.variants`."""
    field, _ = self.architecture.variants
    return getattr(self.task.model.backbone.get(), field)

  @property
  def is_square(self) -> bool:
    """Whether the classifier takes only square images."""
    square = self.architecture.square
    return square is not None and square in self.variant

  @property
  def normalization(self) -> str | Normalization:
    """How training normalizes images; see `Experiment`."""
    if self.experiment.normalization:
      return self.experiment.normalization
    if getattr(self.task.train_data, "zero_centering_image", False):
      return "centered"
    return self.architecture.kind.normalization


def configure(
  architecture: Architecture,
  name: str | None = None,
  overrides: Sequence[str] = (),
) -> Setup:
  """Configures a classifier and its training.

  Args:
    architecture: The architecture.
    name: `NAME_small`, one of the architecture's `experiments`, or one of
      `official.core.exp_factory`; None: the architecture's default.
    overrides: YAML files, YAML, or `key=value,…`. Later overrides win. Keys are
      those of the experiment, such as `task.model.num_classes`.

  Raises:
    ValueError: The experiment is unknown or not one of this architecture, or
      an override has an unknown key or cannot be read.
  """
  name = name or architecture.experiment
  is_small = name == f"{architecture.name}_small"
  base = architecture.experiment if is_small else name
  experiment = architecture.experiments.get(base) or Experiment(base=base)
  # The import registers the experiments.
  noun = architecture.kind.noun
  configs = importlib.import_module(
    f"official.vision.configs.{noun}_classification"
  )
  try:
    params = exp_factory.get_exp_config(experiment.base)
  except LookupError as e:
    ours = [f"{architecture.name}_small", *architecture.experiments]
    raise ValueError(
      f"There is no experiment {experiment.base}. Those of this exporter are"
      f" {', '.join(ours)}, and Model Garden's own with a backbone of type"
      f" {architecture.backbone}."
    ) from e
  task = f"{noun.capitalize()}ClassificationTask"
  if not isinstance(params.task, getattr(configs, task)):
    raise ValueError(f"{name} is not an experiment of {noun} classification.")
  params.task.override(experiment.changes)
  if is_small:
    params.task.override(architecture.kind.small)
    params.task.model.override(architecture.small)
  before = params.as_dict()
  for override in overrides:
    _override(params, override)
  after = params.as_dict()
  setup = Setup(
    architecture=architecture,
    name=name,
    experiment=experiment,
    task=params.task,
    changes=_changes(before, after),
  )
  _check(setup, before, after)
  return setup


def _override(params: hyperparams.Config, override: str) -> None:
  try:
    values = hyperparams.override_params_dict(
      hyperparams.ParamsDict(), override, is_strict=False
    ).as_dict()
    params.override(_of_backbone(values) or values, is_strict=True)
    params.validate()
  except KeyError as e:
    message, *_ = str(e.args[0]).split(
      ". "
    )  # The rest of the message is advice for programmers.
    raise ValueError(f"Configuration {override}: {message}.") from e
  except tf.errors.OpError as e:
    raise ValueError(
      f"{override} is neither a file that can be read nor YAML nor KEY=VALUE,…:"
      f" {e.message}."
    ) from e
  except (AttributeError, TypeError) as e:
    raise ValueError(
      f"Configuration {override}: it must have keys and values, as the"
      " params.yaml that Model Garden writes."
    ) from e
  except Exception as e:  # The parser may raise any exception.
    message = errors.one_line(e)
    raise ValueError(f"Configuration {override}: {message}") from e


def _of_backbone(values: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the backbone's fields in the config of a detector or segmenter.

  The config is that of an experiment of `official.vision`, such as the
  params.yaml that training writes. Returns None for the config of a classifier.
  """
  task = values.get("task")
  model = task.get("model") if isinstance(task, dict) else None
  if not isinstance(model, dict) or "backbone" not in model:
    return None
  if not any(key == "decoder" or key.endswith("head") for key in model):
    return None
  of_backbone = {"model": _MODEL_OF_BACKBONE, "losses": ["l2_weight_decay"]}
  return {
    "task": {
      part: {k: v for k, v in (task.get(part) or {}).items() if k in keys}
      for part, keys in of_backbone.items()
    }
  }


def _check(setup: Setup, before: dict[str, Any], after: dict[str, Any]) -> None:
  """Raises a ValueError for overrides without effect and unknown variants."""
  if setup.experiment.build:
    settable = setup.experiment.settable
    for field in settable:
      before["task"]["model"][field] = after["task"]["model"][field]
    if after != before:
      raise ValueError(
        f"Of {setup.name} only these can be changed:"
        f" {', '.join(f'task.model.{field}' for field in settable)}."
      )
  backbone = setup.task.model.backbone
  if backbone.type != setup.architecture.backbone:
    raise ValueError(
      f"The backbone of {setup.name}, as configured, is of type"
      f" {backbone.type}; this exporter takes only"
      f" {setup.architecture.backbone}."
    )
  _check_shape(setup)
  field, table = setup.architecture.variants
  variants = getattr(_backbone_module(setup.architecture), table)
  if setup.variant not in [*variants]:  # An override may have any type.
    raise ValueError(
      f"task.model.backbone.{backbone.type}.{field} is {setup.variant}; there"
      f" are {', '.join(map(str, variants))}."
    )


def _check_shape(setup: Setup) -> None:
  """Raises a ValueError for shapes other than those of RGB images or videos."""
  kind = setup.architecture.kind
  shape = getattr(setup.data, kind.shape)
  path = f"task.{kind.config}.{kind.shape}"
  axes = kind.axes.count(",") + 1
  if (
    not isinstance(shape, (list, tuple))
    or len(shape) != axes
    or not all(n is None or (type(n) is int and n > 0) for n in shape)
  ):
    raise ValueError(f"{path} is {shape}; it must be [{kind.axes}].")
  if shape[-1] != 3:
    of = {1: f"grey {kind.noun}s", 4: f"{kind.noun}s with an alpha channel"}
    what = of.get(shape[-1], f"{kind.noun}s of {shape[-1]} channels")
    raise ValueError(
      f"{path} is {shape}, for {what}; only classifiers of RGB {kind.noun}s can"
      f" be exported, [{kind.axes}]. Train one: tf.image.grayscale_to_rgb makes"
      " RGB of grey, and [..., :3] drops alpha."
    )


def _changes(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the changed fields of the task, and checks their types."""
  defaults = fields.flat(before)
  changes = {
    path: value
    for path, value in fields.flat(after).items()
    if path.startswith("task")
    and (path not in defaults or defaults[path] != value)
  }
  for path, value in changes.items():
    has_fields = any(other.startswith(f"{path}.") for other in defaults)
    if has_fields and (value is not None or _is_built(path)):
      raise ValueError(f"{path} is {value!r}; it must have fields.")
    for i, character in enumerate(path):
      if character == "." and defaults.get(path[:i]) is not None:
        raise ValueError(f"{path[:i]} has no field {path[i + 1 :]}.")
    _check_type(path, value, defaults.get(path))
  return changes


def _is_built(path: str) -> bool:
  """Returns whether a field is about the model or its regularization."""
  return path == "task" or path.startswith(("task.model", "task.losses"))


def _check_type(path: str, value: Any, default: Any) -> None:
  """Raises a ValueError for a value of the wrong type or out of range."""
  if not _is_built(path):
    return
  if type(default) in (int, float):
    is_right, wanted = type(value) in (int, float), "a number"
  elif type(default) in (bool, str):
    is_right = type(value) is type(default)
    wanted = "a string" if isinstance(default, str) else "true or false"
  else:
    return
  if not is_right and value is not None:
    raise ValueError(f"{path} is {value!r}; it must be {wanted}.")
  if path.endswith(("weight_decay", "epsilon")) and (value or 0) < 0:
    raise ValueError(f"{path} is {value}; it must be 0 or more.")
  if path.endswith(("_rate", "momentum")) and not 0 <= (value or 0) < 1:
    raise ValueError(f"{path} is {value}; it must be from 0 to less than 1.")


def _backbone_module(architecture: Architecture) -> Any:
  """Imports the module of a backbone, which registers it with the factory."""
  return importlib.import_module(
    f"official.vision.modeling.backbones.{architecture.backbone}"
  )


@autograph.off
def build(setup: Setup) -> tf_keras.Model:
  """Builds the classifier as its training does.

  Args:
    setup: The result of `configure`.

  Returns:
    Model Garden's classifier, from normalized images, float32
    `[batch, height, width, 3]`, to logits or, in `official.legacy`,
    probabilities, float32 `[batch, num_classes]`. Height and width are free
    unless the architecture has `any_size`. Videos have frames before height.

  Raises:
    ValueError: Model Garden cannot build it.
  """
  architecture, model = setup.architecture, setup.task.model
  kind = architecture.kind
  classes = setup.data.num_classes
  if type(classes) is not int or classes < 1:
    raise ValueError(
      f"task.{kind.config}.num_classes is {classes}; it must be"
      " the number of classes, 1 or more."
    )
  _backbone_module(architecture)
  # Halve the factor, as `official/vision/tasks/image_classification.py` does.
  weight_decay = setup.task.losses.l2_weight_decay / 2
  regularizer = tf_keras.regularizers.L2(weight_decay) if weight_decay else None
  *size, channels = setup.input_shape
  if not architecture.any_size:
    size = [None] * len(size)
  spec = tf_keras.layers.InputSpec(shape=[None, *size, channels])
  try:
    if setup.experiment.build:
      return setup.experiment.build(setup.task)
    if architecture.kind == VIDEOS:
      return factory_3d.build_model(
        model.model_type, spec, model, setup.data.num_classes, regularizer
      )
    return factory.build_classification_model(spec, model, regularizer)
  except Exception as e:  # The builders may raise any exception.
    message = errors.one_line(e)
    if "Negative dimension size" in message:
      pixels = f"{setup.input_shape[-3]} by {setup.input_shape[-2]} pixels"
      message = f"{kind.noun}s of {pixels} are too small for it"
    changes = fields.cited(message, setup.changes) or setup.changes
    raise ValueError(
      f"Model Garden cannot build a {architecture.backbone} with"
      f" {fields.shown(changes) or 'this config'}: {message}"
    ) from e


@autograph.off
def cut(
  setup: Setup,
  model: tf_keras.Model,
  names: Sequence[str],
  normalization: str | Normalization | None = None,
) -> tf_keras.Model:
  """Cuts a piece out of a classifier. The piece shares the classifier's layers.

  Args:
    setup: The result of `configure`.
    model: The result of `build`.
    names: The outputs of the piece: `feature_vector`, the input of the last
      layer, before dropout; `logits`; or endpoints, the feature maps of the
      backbone, by Model Garden's names, such as `2` for level 2.
    normalization: How to normalize images; None: as training does. `imagenet`
      subtracts the means of ImageNet's channels and divides by their
      deviations, as `official.vision` does. `imagenet_means` multiplies by 255
      and subtracts other means, as training of `official.legacy`'s ResNet does.
      `centered` maps [0, 1] to [-1, 1]. `none` leaves images as they are.

  Returns:
    A Keras model from images, float32 `[batch, height, width, 3]`, RGB in
    [0, 1], to the output, or to a dict of outputs if `names` has several.

  Raises:
    ValueError: The classifier has no output of that name.
  """
  if setup.architecture.any_size:
    model = setup.architecture.any_size(model)
  # `any_size` may have called layers again. The last output of each layer is
  # the one in `model`.
  outputs = {}
  for layer in model.layers:
    if isinstance(layer, tf_keras.Model):  # The backbone.
      outputs.update(layer.get_output_at(-1))
  # A vision transformer's feature vector is no endpoint.
  outputs.pop("pre_logits", None)
  logits = max(
    i
    for i, layer in enumerate(model.layers)
    if isinstance(layer, tf_keras.layers.Dense)
  )
  dropout = isinstance(model.layers[logits - 1], tf_keras.layers.Dropout)
  features = model.layers[logits - 1 - dropout]
  outputs["feature_vector"] = features.get_output_at(-1)
  outputs["logits"] = model.layers[logits].get_output_at(-1)
  for name in names:
    if name not in outputs:
      raise ValueError(f"The model has no {name}; it has {', '.join(outputs)}.")
  chosen = {name: outputs[name] for name in names}
  (normalized,) = model.inputs
  piece = tf_keras.Model(
    normalized, chosen if len(chosen) > 1 else chosen[names[0]]
  )
  images = tf_keras.Input(normalized.shape[1:], name="images")
  normalization = normalization or setup.normalization
  return tf_keras.Model(images, piece(_normalized(images, normalization)))


def _normalized(
  images: tf.Tensor, normalization: str | Normalization
) -> tf.Tensor:
  if normalization == "none":
    return images
  if not isinstance(normalization, str):
    means, deviations = normalization
    factors = [1 / deviation for deviation in deviations]
  elif normalization == "imagenet":
    factors = [1 / deviation for deviation in preprocess_ops.STDDEV_NORM]
    means = preprocess_ops.MEAN_NORM
  elif normalization == "centered":
    factors = [2.0] * 3
    means = [0.5] * 3
  else:
    factors = [255.0] * 3
    means = [mean / 255 for mean in imagenet_preprocessing.CHANNEL_MEANS]
  offsets = [-m * f for m, f in zip(means, factors, strict=True)]
  return tf_keras.layers.Rescaling(factors, offsets)(images)
