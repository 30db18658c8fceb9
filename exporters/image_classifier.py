"""Exports pieces of an image classifier: its feature vectors, and its logits.

The exporters of single architectures, such as `exporters/resnet.py`, run this
program with their `Architecture`. It builds the whole classifier as
`official.vision` does, restores or trains it, and exports pieces of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os

from absl import flags
from etils import epy

from distribution import formats
from exporters import classifier_training
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from models.vision import image_classification
from models.vision import stochastic_depth

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf
  import tf_keras

  from exporters import hugging_face_images
  from exporters import keras_applications
  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import keras_files
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from exporters.reusable import weight_tables
  from exporters.reusable import xla

# --help lists the flags as those of the program that defines them.
flags.disclaim_key_flags()

# Packages of Model Garden whose __init__ imports more than a classifier needs,
# such as all tasks, matplotlib and tensorflow-datasets.
_WITHOUT_INIT = (
  "official.core",
  "official.vision",
  "official.vision.configs",
  "official.vision.modeling",
  "official.vision.modeling.backbones",
)

_STOCHASTIC_DEPTH = "official.vision.modeling.layers.nn_layers.StochasticDepth"

# Parts of a trainer's checkpoint that do not belong to the classifier.
_LEFT_OUT = (
  "backbone",
  "global_step",
  "optimizer",
  "model/optimizer",
  "keras_api",
)

_AVERAGE = "/ExponentialMovingAverage"
# Variables in TensorFlow 1 checkpoints that do not belong to the classifier, by
# pattern.
_LEFT_OUT_OF_TF1 = {
  f"*{_AVERAGE}": "averages",
  "global_step": "counter",
  "*/global_step": "counter",
  "*/Momentum": "optimizer",
  "*/Adam": "optimizer",
  "*/Adam_1": "optimizer",
  "*/RMSProp": "optimizer",
  "*/RMSProp_1": "optimizer",
  "beta?_power": "optimizer",
  "training/*": "optimizer",
}

# Maps values of --export_type to names of the classifier's outputs.
_OUTPUTS = {"feature_vector": "feature_vector", "classification": "logits"}

_SQUARE = "other square ones whose height is a multiple of 32"

_DESCRIPTIONS = {
  "feature_vector": "It turns images into feature vectors, for classifiers and"
  " other models of your own.",
  "classification": "It turns images into logits of the classes that it was"
  " trained on.",
}

_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow_hub as hub
import tf_keras

# Yours: images, float32 [n, height, width, 3], RGB in [0, 1];
# labels, int [n], LABELS.
MODEL
model.compile(
    optimizer=tf_keras.optimizers.Adam(1e-4),
    loss=tf_keras.losses.LOSS(from_logits=True),
    metrics=["accuracy"],
)
model.fit(images, labels, epochs=5)
"""

# Replacements for MODEL and LABELS in the example.
_FEATURE_VECTOR_EXAMPLE = """inputs = tf_keras.Input(images.shape[1:])
features = hub.KerasLayer(
    "path/to/NAME",
    trainable=True,
ARGUMENTS)(inputs)
logits = tf_keras.layers.Dense(num_classes)(FEATURES)
model = tf_keras.Model(inputs, logits)"""
_MODELS = {
  "feature_vector": (_FEATURE_VECTOR_EXAMPLE, "from 0 on; num_classes"),
  "classification": (
    'model = tf_keras.Sequential([hub.KerasLayer("path/to/NAME",'
    " trainable=True)])",
    "numbers of this model's classes",
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The classifier to build, and the pieces to export.

  The fields are the values of the flags of the same names, except for:

  Attributes:
    architecture: The family of classifiers.
    overrides: Overrides of the experiment, as in
      `image_classification.configure`.
  """

  architecture: image_classification.Architecture
  experiment: str | None = None
  overrides: Sequence[str] = ()
  export_type: str = "feature_vector"
  endpoints: Sequence[str] = ()
  normalization: str | None = None

  @property
  def outputs(self) -> dict[str, list[str]]:
    """The names of the outputs of each SavedModel, by its kind."""
    types = [self.export_type] if self.export_type != "all" else _OUTPUTS
    outputs = {kind: [_OUTPUTS[kind]] for kind in types}
    if self.endpoints:
      outputs["feature_vector"] += self.endpoints
    return outputs


def export(
  config: Config,
  weights: classifier_training.Weights,
  options: exporting.Options,
) -> None:
  """Exports pieces of a classifier.

  Args:
    config: The classifier to build, and the pieces to export.
    weights: The source of the weights: a checkpoint of the classifier in any
      structure of Model Garden, weights in Keras' own format or in HDF5, or
      training. A feature vector needs only the weights of the backbone.
    options: Where to export and how to verify.

  Raises:
    ExportError: A directory is taken, the configuration is wrong, the data is
      missing, the checkpoint does not match, or an export differs from the
      model.
  """
  if config.endpoints and config.export_type == "classification":
    raise errors.ExportError("Endpoints come with the feature vector only.")
  kinds = list(config.outputs)
  names = kinds if config.export_type == "all" else [""]
  with exporting.exporting(
    options, names, apart=weights.directories
  ) as export_piece:
    if weights.train_on:
      setup = _configured(config, f"{config.architecture.name}_small")
      pieces, provenance = _trained(config, setup, weights, options)
    else:
      setup, pieces, provenance = restored(config, weights)
      exporting.check_profiles(options, *pieces.values())
    record = exporting.record(options, weights.checkpoint_path)
    for name, kind in zip(names, kinds, strict=True):
      piece = _piece(kind, pieces[kind], setup)
      card = _card(kind, piece, config, setup, provenance)
      export_piece(name, piece, card, record)


def _cut(
  config: Config, setup: image_classification.Setup, model: tf_keras.Model
) -> dict[str, tf_keras.Model]:
  """Returns the pieces of the classifier to export, by kind."""
  with errors.of_input(ValueError):
    return {
      kind: image_classification.cut(
        setup, model, outputs, config.normalization
      )
      for kind, outputs in config.outputs.items()
    }


def _trained(
  config: Config,
  setup: image_classification.Setup,
  weights: classifier_training.Weights,
  options: exporting.Options,
) -> tuple[dict[str, tf_keras.Model], dict[str, str]]:
  """Trains the classifier; returns its pieces, and rows for the card."""

  def build(num_classes: int) -> tuple[tf.train.Checkpoint, tf_keras.Model]:
    setup.data.num_classes = num_classes
    with errors.of_input(ValueError):
      model = image_classification.build(setup)
    # Raise any errors before training starts.
    pieces = _cut(config, setup, model)
    exporting.check_profiles(options, *pieces.values())
    trained = image_classification.cut(
      setup, model, ["logits"], config.normalization
    )
    return tf.train.Checkpoint(model=model), trained

  trained, provenance = classifier_training.train(
    build,
    setup.input_shape,
    weights,
    about={
      "experiment": setup.name,
      "task": setup.task.as_dict(),
      "normalization": config.normalization,
    },
    overwrite=options.overwrite,
  )
  return _cut(config, setup, trained.model), provenance


def _configured(
  config: Config, default: str | None = None
) -> image_classification.Setup:
  """Configures the experiment that the flags name."""
  with errors.of_input(ValueError):
    return image_classification.configure(
      config.architecture, config.experiment or default, config.overrides
    )


def restored(
  config: Config, weights: classifier_training.Weights
) -> tuple[
  image_classification.Setup, dict[str, tf_keras.Model], dict[str, str]
]:
  """Builds the pieces of a classifier, and restores their weights.

  Returns:
    The configuration; the pieces, by kind; and rows about the weights for the
    card.

  Raises:
    ExportError: The source does not match the configuration.
  """
  path = weights.checkpoint_path
  source = None
  if formats.described(path):
    source = hugging_face_images.read(
      config.architecture, path, config.overrides, config.normalization
    )
  elif keras_files.is_file(path):
    source = keras_applications.read(
      config.architecture, path, config.overrides
    )
  if source and config.experiment:
    raise errors.ExportError(
      f"--experiment does not apply: {path} has a configuration of its own."
    )
  if source and not source.has_head and "classification" in config.outputs:
    raise errors.ExportError(
      f"{path} has no head, so that only --export_type=feature_vector can be"
      " exported."
    )
  setup = source.setup if source else _configured(config)
  with errors.of_input(ValueError), checkpoints.uninitialized():
    model = image_classification.build(setup)
  pieces = _cut(config, setup, model)
  _restore(path, source or setup, model, pieces, weights.weights)
  num_classes = setup.data.num_classes
  classes = weights.class_names(num_classes)
  if source and not classes:
    classes = ", ".join(source.classes)
  if not classes and "classification" in pieces:
    classes = f"{num_classes}, numbered as in the data that it was trained on"
  rows = {"source": weights.description}
  return setup, pieces, rows | ({"classes": classes} if classes else {})


def _restore(
  path: str,
  source: hugging_face_images.Source | image_classification.Setup,
  model: tf_keras.Model,
  pieces: Mapping[str, tf_keras.Model],
  weights: str | None,
) -> None:
  """Restores a classifier; ignores missing variables that no piece uses."""
  backbone = getattr(model, "backbone", None)
  refs = {w.ref() for piece in pieces.values() for w in piece.weights}
  used = [v for v in model.variables if v.ref() in refs]
  named = weight_tables.by_name(used)
  if isinstance(source, hugging_face_images.Source):
    if source.is_numbered:
      named = _numbered(model, used)
    _restore_by_name(path, source.tensors, source.lines, named, source.left_out)
  elif os.path.isfile(f"{path}/saved_model.pb"):
    tensors = checkpoints.of_saved_model(path)
    names = keras_files.numbered(tensors)
    tensors = {names[name]: tensor for name, tensor in tensors.items()}
    lines = [
      weight_tables.Line(n, n) for n in _numbered(model, model.variables)
    ]
    left_out = {"save_counter": "counters"}
    _restore_by_name(
      f"{path}, a SavedModel", tensors, lines, _numbered(model, used), left_out
    )
  elif keras_files.is_file(path):
    models = [model, backbone] if backbone is not None else [model]
    keras_files.restore(path, models, used)
  elif (tensors := checkpoints.by_name(path)) is not None:
    _restore_tf1(path, source, tensors, model, named, weights)
  else:
    checkpoint = tf.train.Checkpoint
    roots = [checkpoint(model=model), model, checkpoints.keras_weights(model)]
    parts = []
    if backbone is not None and len(used) == len(backbone.weights):
      # For checkpoints with another head, such as that of a detector.
      parts.append(checkpoint(backbone=backbone))
      name = next(
        name
        for name, child in tf.train.TrackableView(model).children(model).items()
        if child is backbone
      )
      parts.append(checkpoint(model=checkpoint(**{name: backbone})))
    checkpoints.restore(
      path, roots, parts=parts, left_out=_LEFT_OUT, weights=weights
    )


def _numbered(
  model: tf_keras.Model, variables: Sequence[tf.Variable]
) -> dict[str, tf.Variable]:
  """Returns variables by name, with layers numbered within the model."""
  names = keras_files.numbered([v.name for v in model.variables])
  return {names[v.name]: v for v in variables}


def _restore_by_name(
  path: str,
  tensors: Mapping[str, weight_tables.Tensor],
  lines: Sequence[weight_tables.Line],
  named: Mapping[str, tf.Variable],
  left_out: Mapping[str, str],
) -> None:
  """Restores variables; ignores tensors of other variables in the table."""
  others = {line.theirs for line in lines if line.ours not in named}
  left_out = {**left_out, **dict.fromkeys(others, "not exported")}
  weight_tables.restore(path, tensors, lines, named, left_out=left_out)


def _restore_tf1(
  path: str,
  setup: image_classification.Setup,
  tensors: Mapping[str, weight_tables.Tensor],
  model: tf_keras.Model,
  named: Mapping[str, tf.Variable],
  weights: str | None,
) -> None:
  """Restores a ResNet from a TensorFlow 1 checkpoint of `official`."""
  if any(name.startswith("resnet_model/") for name in tensors):
    raise errors.ExportError(
      f"{path} is a TensorFlow 1 checkpoint of official/r1/resnet, whose"
      " convolutions with strides pad both sides alike, unlike those of any"
      " model here."
    )
  if setup.experiment.build is None:
    raise errors.ExportError(
      f"{path} is a TensorFlow 1 checkpoint, which only the ResNet-50 of"
      " `official` has: //exporters:resnet --experiment=legacy_resnet50."
    )
  has_averages = any(name.endswith(_AVERAGE) for name in tensors)
  if has_averages != (weights is not None):
    raise errors.ExportError(
      f"{path} has moving averages of its weights, too: say --weights=raw or"
      " --weights=average."
      if has_averages
      else f"{path} has no moving averages: leave out --weights."
    )
  lines = []
  for name, variable in weight_tables.by_name(model.variables).items():
    average = name + _AVERAGE
    # The moving averages of batch normalization may have no average of their
    # own.
    if weights == "average" and (variable.trainable or average in tensors):
      lines.append(weight_tables.Line(name, average))
    else:
      lines.append(weight_tables.Line(name, name))
  unwanted = {line.ours: "raw weights" for line in lines} if weights else {}
  _restore_by_name(
    path, tensors, lines, named, {**_LEFT_OUT_OF_TF1, **unwanted}
  )


def _piece(
  kind: str, model: tf_keras.Model, setup: image_classification.Setup
) -> exporting.Piece:
  """Describes one SavedModel to export."""
  architecture = setup.architecture
  noun = architecture.kind.noun
  images = tf.TensorSpec(model.input_shape, tf.float32, f"{noun}s")
  source = saving.source(
    model,
    images,
    hyperparameters=hyperparameters.of_model(model),
    layer_calls={
      _STOCHASTIC_DEPTH: stochastic_depth.without_branch,
      **architecture.layer_calls,
      **dict.fromkeys(architecture.own_gradients, xla.with_own_gradient),
    },
    autograph=False,
  )
  return exporting.Piece(
    source=source,
    examples=[
      _example(images, 3, 9, 64, 64 if setup.is_square else 96),
      _example(images, 1, 5, 96, 96 if setup.is_square else 64),
    ],
    also_takes=saving.of_mixed_precision(images),
    output_name=_OUTPUTS[kind],
  )


def _example(spec: tf.TensorSpec, batch_size: int, *size: int) -> tf.Tensor:
  """Makes random images or videos.

  Args:
    spec: A spec of rank 4 for images, of rank 5 for videos.
    batch_size: Number of images or videos.
    *size: Frames, height and width. Images have no frames.
  """
  return tf.random.stateless_uniform(
    [batch_size, *size[5 - spec.shape.rank :], 3], [batch_size, 0]
  )


def _card(
  kind: str,
  piece: exporting.Piece,
  config: Config,
  setup: image_classification.Setup,
  provenance: Mapping[str, str],
) -> model_card.Card:
  architecture, task = setup.architecture, setup.task
  noun = architecture.kind.noun
  is_multilabel = task.train_data.is_multilabel or getattr(
    task.losses, "use_binary_cross_entropy", False
  )
  weight_decay = task.losses.l2_weight_decay
  title = architecture.title.format(**task.model.backbone.get().as_dict())
  return model_card.Card(
    name=f"{title} {kind.replace('_', ' ')}",
    description=f"{architecture.description}, cut out of the model that was"
    f" trained. {_DESCRIPTIONS[kind].replace('image', noun)} Besides"
    f" {noun}s of the training size (see Inputs), it takes"
    f" {_SQUARE if setup.is_square else architecture.sizes}.",
    meanings={
      f"{noun}s": "RGB; the model normalizes them itself."
      " `tf.image.grayscale_to_rgb` makes RGB of grey, and `[..., :3]` drops"
      " alpha",
      "feature_vector": f"features of each {noun}, averaged over it",
      "logits": f"of {setup.data.num_classes} classes (see Weights), for a"
      f" {'sigmoid' if is_multilabel else 'softmax'}",
      **_endpoints(config.outputs[kind][1:], piece),
    },
    ranges={f"{noun}s": (0, 1)},
    sizes={f"{noun}s": {"training": setup.input_shape[:-1]}},
    example=_example_code(kind, piece, config, is_multilabel),
    loaded=f"model.layers[{int(kind == 'feature_vector')}].resolved_object",
    provenance={
      "configuration": setup.name,
      **provenance,
      "L2 regularization of the kernels": f"{weight_decay / 2:g}",
    },
  )


def _endpoints(
  endpoints: Sequence[str], piece: exporting.Piece
) -> dict[str, str]:
  """Describes each endpoint by the pixels that a cell of it covers."""
  if not endpoints:
    return {}
  size = 128
  outputs = piece.source.model(
    _example(piece.source.input_spec, 1, 16, size, size)
  )
  cells = {name: size // outputs[name].shape[-2] for name in endpoints}
  return {
    name: f"feature map of a cell for {n} by {n} pixels"
    for name, n in cells.items()
  }


def _example_code(
  kind: str, piece: exporting.Piece, config: Config, is_multilabel: bool
) -> str:
  arguments = ", ".join(
    f'"{h.name}": {h.default:g}' for h in piece.source.hyperparameters[:1]
  )
  features = 'features["feature_vector"]' if config.endpoints else "features"
  is_binary = is_multilabel and kind == "classification"
  model, labels = _MODELS[kind]
  code = _EXAMPLE
  for name, value in {
    "MODEL": model,
    "LABELS": labels,
    "height, width, 3": config.architecture.kind.axes,
    "images": f"{config.architecture.kind.noun}s",
    "NAME": config.architecture.name,
    "FEATURES": features,
    "ARGUMENTS": f"    arguments={{{arguments}}},\n" if arguments else "",
    "LOSS": f"{'Binary' if is_binary else 'SparseCategorical'}Crossentropy",
  }.items():
    code = code.replace(name, value)
  return code


def define_flags(architecture: image_classification.Architecture) -> None:
  """Defines the flags of an architecture's exporter."""
  flags.DEFINE_enum(
    "export_type",
    "feature_vector",
    [*_OUTPUTS, "all"],
    "What to export: feature vectors, the classifier with its logits, or both,"
    " each in a subdirectory of --export_dir with that name.",
  )
  flags.DEFINE_list(
    "endpoints",
    [],
    "Feature maps that the export of feature vectors returns too, such as"
    " 2,3,4,5: the levels of the backbone, by Model Garden's names. All outputs"
    " are then in a dict.",
  )
  experiments = [f"{architecture.name}_small", *architecture.experiments]
  flags.DEFINE_string(
    "experiment",
    None,
    f"Name of the configuration: {', '.join(experiments)}, or one of Model"
    f" Garden's, such as {architecture.experiment}. Default: with --train_on"
    f" {experiments[0]}, with --checkpoint_path {architecture.experiment}.",
  )
  flags.DEFINE_multi_string(
    "config_file",
    [],
    "A YAML file that overrides the configuration, such as the params.yaml that"
    " Model Garden writes beside its checkpoints. May be given several times.",
  )
  field, _ = architecture.variants
  flags.DEFINE_string(
    "params_override",
    None,
    "Further overrides, as YAML or KEY=VALUE,…: for example"
    f" task.model.backbone.{architecture.backbone}.{field}=…,"
    "task.model.num_classes=1000.",
  )
  flags.DEFINE_enum(
    "normalization",
    None,
    image_classification.NORMALIZATIONS,
    "How the classifier was trained to see images in [0, 1]. imagenet: minus"
    " the means and divided by the deviations of ImageNet's channels."
    " imagenet_means: times 255, minus means. centered: in [-1, 1]. none: as"
    " they are. Default: as Model Garden trains the configuration. The export"
    " normalizes like that.",
  )
  command_line.define_flags()
  command_line.define_saved_model_format()
  classifier_training.define_flags()


def run(architecture: image_classification.Architecture) -> None:
  """Runs an architecture's exporter as a program."""

  def main() -> None:
    overrides = [*map(formats.absolute, flags.FLAGS.config_file)]
    config = command_line.from_flags(
      Config,
      architecture=architecture,
      overrides=[*overrides, *filter(None, [flags.FLAGS.params_override])],
    )
    export(config, classifier_training.weights(), command_line.options())

  define_flags(architecture)
  command_line.run(main, without_init=_WITHOUT_INIT)
