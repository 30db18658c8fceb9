r"""Exports pieces of a ResNet: its feature vectors, and its logits.

It builds the whole classifier as `official.vision` trains it, takes the weights
of a checkpoint,

  bazel run //exporters:resnet -- --checkpoint_path=CHECKPOINT \
    --experiment=resnet_imagenet --export_dir=DIR

or trains it first,

  bazel run //exporters:resnet -- --train_on=digits --export_dir=DIR

and cuts the pieces out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from typing import Any

from absl import flags
from etils import epy

from distribution import strategies
from exporters import classifier_training
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import imports
from exporters.reusable import publishing
from models.vision import resnet
from models.vision import stochastic_depth
from models.vision import training

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  from official.core import config_definitions
  import tensorflow as tf
  import tf_keras

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from exporters.reusable import verification as verification_lib

# Packages of Model Garden that import much more than a ResNet is made of, such
# as all tasks, matplotlib and tensorflow-datasets. Their modules do without.
_WITHOUT_INIT = (
  "official.core",
  "official.vision",
  "official.vision.configs",
  "official.vision.modeling",
  "official.vision.modeling.backbones",
)

# What --export_type says, and what the classifier calls it.
_OUTPUTS = {"feature_vector": "feature_vector", "classification": "logits"}

_DESCRIPTIONS = {
  "feature_vector": "It turns images of any size into feature vectors, for"
  " classifiers and other models of your own.",
  "classification": "It turns images of any size into logits of the classes"
  " that it was trained on.",
}

_EXAMPLES = {
  "feature_vector": """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow_hub as hub
import tf_keras

# Yours: images, float32 [n, height, width, 3], RGB in [0, 1]; labels, int [n],
# from 0 on; num_classes.
inputs = tf_keras.Input(images.shape[1:])
features = hub.KerasLayer(
    "path/to/resnet",
    trainable=True,
    arguments={"batch_norm_momentum": 0.9},
)(inputs)
logits = tf_keras.layers.Dense(num_classes)(FEATURES)
model = tf_keras.Model(inputs, logits)
model.compile(
    optimizer="adam",
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(images, labels, epochs=5)
""",
  "classification": """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow_hub as hub
import tf_keras

# Yours: images, float32 [n, height, width, 3], RGB in [0, 1]; labels, int [n],
# numbers of this model's classes.
model = tf_keras.Sequential([hub.KerasLayer("path/to/resnet", trainable=True)])
model.compile(
    optimizer=tf_keras.optimizers.Adam(1e-4),
    loss=tf_keras.losses.LOSS(from_logits=True),
    metrics=["accuracy"],
)
model.fit(images, labels, epochs=5)
""",
}


def export(
  *,
  export_dir: str,
  export_type: str = "feature_vector",
  endpoints: Sequence[str] = (),
  experiment: str | None = None,
  config_overrides: Sequence[str] = (),
  normalization: str | None = None,
  checkpoint_path: str | None = None,
  weights: str | None = None,
  train_on: str | None = None,
  training_config: training.Config | None = None,
  distribution: strategies.Config = strategies.DEFAULT,
  checkpoint_dir: str | None = None,
  backup_dir: str | None = None,
  overwrite: bool = False,
  verification: str = "full",
  keep_failed: str | None = None,
  flag_values: Mapping[str, Any] | None = None,
) -> None:
  """Exports pieces of a ResNet.

  Args:
    export_dir: The directory that the SavedModel appears at.
    export_type: `feature_vector`, `classification`, or `all`: both, in
      directories of these names in `export_dir`.
    endpoints: Feature maps that the feature vector comes with, as
      `models.vision.resnet.cut` names them.
    experiment: Name of the configuration, as `models.vision.resnet.config`
      knows it. Default: `resnet_imagenet`, with `train_on` `resnet_small`.
    config_overrides: What to change in it, as `config` takes it.
    normalization: Of the images, as `cut` names it. Default: as Model Garden
      trains the configuration.
    checkpoint_path: A checkpoint of Model Garden's classifier, or of its
      backbone where nothing else is exported; or the classifier's weights as
      Keras saves them, in its own format or in a file `*.h5`. Either this or
      `train_on`.
    weights: `raw`, or `average` for the moving averages, where the checkpoint
      has both.
    train_on: Name of the data set to train on, in `models.vision.datasets`.
    training_config: How to train, with `train_on`.
    distribution: How to distribute the training, and in which precision.
    checkpoint_dir: Where to keep the trained classifier's checkpoint.
    backup_dir: Where to keep the state of the training until it is over; it
      goes on from the state that is there.
    overwrite: Replace `export_dir` and `checkpoint_dir` where they exist.
    verification: `full`, `fast` or `off`.
    keep_failed: Where to keep an export that the verification has rejected.
    flag_values: For the report of the verification.

  Raises:
    ExportError: A directory is in the way, the configuration is wrong, the data
      cannot be had, the checkpoint does not match, or an export differs from
      the model.
    ValueError: There are both or neither of `checkpoint_path` and `train_on`.
  """
  if bool(checkpoint_path) == bool(train_on):
    raise ValueError("Exactly one of checkpoint_path and train_on is needed.")
  publishing.check_apart(export_dir, checkpoint_dir, keep_failed=keep_failed)
  if endpoints and export_type == "classification":
    raise errors.ExportError("Endpoints come with the feature vector only.")
  experiment = experiment or ("resnet_small" if train_on else "resnet_imagenet")
  is_legacy = experiment == resnet.LEGACY
  normalization = normalization or (
    "imagenet_means" if is_legacy else "imagenet"
  )
  types = list(_OUTPUTS) if export_type == "all" else [export_type]
  marker = types[0] if export_type == "all" else "saved_model.pb"
  with publishing.publish(export_dir, marker, overwrite=overwrite) as directory:
    try:
      params = resnet.config(experiment, config_overrides)
    except ValueError as e:
      raise errors.ExportError(f"{e}") from e

    processes = {kind: verification_lib.start(verification) for kind in types}
    record: dict[str, Any] = {"flags": flag_values}

    def cut(model: tf_keras.Model) -> dict[str, tf_keras.Model]:
      names = {kind: [_OUTPUTS[kind]] for kind in types}
      if endpoints:
        names["feature_vector"] += endpoints
      try:
        return {
          kind: resnet.cut(model, names[kind], normalization) for kind in types
        }
      except ValueError as e:
        raise errors.ExportError(f"{e}") from e

    def classifier() -> tf_keras.Model:
      if is_legacy:
        return resnet.legacy_classifier(params.task.model.num_classes)
      return resnet.classifier(params)

    if train_on:

      def build(
        num_classes: int,
      ) -> tuple[tf.train.Checkpoint, tf_keras.Model]:
        params.task.model.num_classes = num_classes
        model = classifier()
        cut(model)  # What cannot be cut is found before the training.
        trained = resnet.cut(model, ["logits"], normalization)
        return tf.train.Checkpoint(model=model), trained

      trained, provenance = classifier_training.train(
        build,
        train_on,
        params.task.model.input_size,
        training_config or training.Config(),
        distribution=distribution,
        checkpoint_dir=checkpoint_dir,
        backup_dir=backup_dir,
        overwrite=overwrite,
      )
      pieces = cut(trained.model)
    else:
      with checkpoints.uninitialized():
        model = classifier()
      pieces = cut(model)
      _restore(checkpoint_path, model, pieces, weights)
      if verification != "off":  # There is a report.
        record["checkpoint_sha256"] = checkpoints.sha256(checkpoint_path)
      provenance = {
        "source": "a checkpoint of the classifier"
        + (", averaged over its training" if weights == "average" else ""),
        "classes": f"{params.task.model.num_classes}, numbered as in the data"
        " that it was trained on",
      }
    provenance = {"configuration": experiment, **provenance}
    for kind, piece in pieces.items():
      piece_dir = (
        os.path.join(directory, kind) if export_type == "all" else directory
      )
      source = _save(kind, piece, piece_dir, params, provenance)
      verification_lib.verify(
        piece_dir,
        source,
        [_example(3, 64, 96), _example(1, 96, 64)],
        verification,
        process=processes[kind],
        record=record,
        keep_failed=keep_failed,
      )
  print(f"Exported {' and '.join(types)} to {export_dir}")


def _restore(
  checkpoint_path: str,
  model: tf_keras.Model,
  pieces: dict[str, tf_keras.Model],
  weights: str | None,
) -> None:
  """Restores a classifier from any form that Model Garden writes.

  Args:
    checkpoint_path: Where it is.
    model: The classifier.
    pieces: What is exported of it.
    weights: `raw`, `average`, or None, which leaves no choice.

  Raises:
    ExportError: It does not match.
  """
  if checkpoint_path.endswith((".h5", ".hdf5")):
    try:
      model.load_weights(checkpoint_path)
    except (OSError, ValueError) as e:
      message = " ".join(str(e).split())
      raise errors.ExportError(
        f"Cannot take the weights of {checkpoint_path}: {message}"
      ) from e
    return
  # As Keras saves weights. Layers are also `layer-0` and so on there, which
  # counts those without weights, such as one for rescaling in the saved model.
  with_weights = filter(lambda layer: layer.weights, model.layers)
  of_keras = tf.train.Checkpoint(
    **{f"layer_with_weights-{i}": x for i, x in enumerate(with_weights)}
  )
  roots = [tf.train.Checkpoint(model=model), model, of_keras]
  backbone = getattr(model, "backbone", None)
  if backbone is not None and all(
    len(piece.weights) == len(backbone.weights) for piece in pieces.values()
  ):
    roots.append(tf.train.Checkpoint(backbone=backbone))
  checkpoints.restore(
    checkpoint_path,
    roots,
    left_out=[
      "backbone",
      "global_step",
      "optimizer",
      "model/optimizer",
      "keras_api",
    ],
    weights=weights,
  )


def _example(batch_size: int, height: int, width: int) -> tf.Tensor:
  return tf.random.stateless_uniform(
    [batch_size, height, width, 3], [batch_size, 0]
  )


def _save(
  kind: str,
  piece: tf_keras.Model,
  directory: str,
  params: config_definitions.ExperimentConfig,
  provenance: dict[str, str],
) -> saving.Source:
  """Writes the SavedModel and its card; returns what they were made of."""
  config = params.task.model
  losses = params.task.losses
  is_multilabel = (
    params.task.train_data.is_multilabel or losses.use_binary_cross_entropy
  )
  tunable = hyperparameters.of_model(piece)
  images = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
  source = saving.source(
    piece,
    images,
    hyperparameters=tunable,
    layer_calls={
      "official.vision.modeling.layers.nn_layers.StochasticDepth": (
        stochastic_depth.without_branch
      )
    },
    autograph=False,
  )
  root = saving.reusable(source, also_takes=saving.of_mixed_precision(images))
  signature = saving.signature(root, images, _OUTPUTS[kind])
  saving.save(root, directory, signatures={"serving_default": signature})
  height, width, _ = config.input_size
  features = (
    'features["feature_vector"]'
    if len(signature.structured_outputs) > 1
    else "features"
  )
  loss = (
    "BinaryCrossentropy" if is_multilabel else "SparseCategoricalCrossentropy"
  )
  model_card.write(
    directory,
    root,
    signature,
    name=f"ResNet-{config.backbone.resnet.model_id} {kind.replace('_', ' ')}",
    description="A residual network, cut out of the classifier that was"
    f" trained. {_DESCRIPTIONS[kind]} It was trained with images of {height} by"
    f" {width} pixels, and takes others of 32 by 32 pixels and more, square or"
    " not.",
    meanings={
      "images": "RGB in [0, 1]; the model normalizes them itself",
      "feature_vector": "features of each image, averaged over it",
      "logits": f"of {config.num_classes} classes (see Weights), for a"
      f" {'sigmoid' if is_multilabel else 'softmax'}",
      **{
        str(level): f"feature map of a cell for {2**level} by {2**level} pixels"
        for level in range(2, 6)
      },
    },
    hyperparameters=tunable,
    example=_EXAMPLES[kind].replace("FEATURES", features).replace("LOSS", loss),
    provenance={
      **provenance,
      "L2 regularization of the kernels": f"{losses.l2_weight_decay / 2:g}",
    },
  )
  return source


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_enum(
    "export_type",
    "feature_vector",
    [*_OUTPUTS, "all"],
    "What to export: feature vectors, the classifier with its logits, or both,"
    " then in two directories of these names in --export_dir.",
  )
  flags.DEFINE_list(
    "endpoints",
    [],
    "Feature maps that the export of feature vectors returns too, such as"
    " 2,3,4,5: the levels of the backbone, of a quarter to a thirty-second of"
    " the height and width. All outputs are then in a dict.",
  )
  flags.DEFINE_string(
    "experiment",
    None,
    "Name of the configuration in Model Garden, such as resnet_imagenet (the"
    " default with --checkpoint_path) or resnet_rs_imagenet; legacy_resnet50;"
    " or resnet_small (the default with --train_on).",
  )
  flags.DEFINE_multi_string(
    "config_file",
    [],
    "A YAML file with what differs from the configuration, such as the"
    " params.yaml that Model Garden writes beside its checkpoints. May be"
    " given several times.",
  )
  flags.DEFINE_string(
    "params_override",
    None,
    "What differs besides, as YAML or KEY=VALUE,…: for example"
    " task.model.backbone.resnet.model_id=101,task.model.num_classes=1000.",
  )
  flags.DEFINE_enum(
    "normalization",
    None,
    resnet.NORMALIZATIONS,
    "What the classifier was trained to see for images in [0, 1]: these minus"
    " the means and divided by the deviations of ImageNet's channels; times 255"
    " minus other means; or these as they are. The default is what Model Garden"
    " does, the second for legacy_resnet50 and the first for all others. It"
    " becomes a part of the export.",
  )
  classifier_training.define_flags()
  flags.adopt_module_key_flags(classifier_training)
  command_line.define_flags()
  flags.adopt_module_key_flags(command_line)


def main() -> None:
  """Exports what the flags say."""
  imports.without_init(_WITHOUT_INIT)
  values = flags.FLAGS
  export(
    export_dir=command_line.path(values.export_dir),
    export_type=values.export_type,
    endpoints=values.endpoints,
    experiment=values.experiment,
    config_overrides=[
      *map(command_line.path, values.config_file),
      *filter(None, [values.params_override]),
    ],
    normalization=values.normalization,
    checkpoint_path=command_line.path(values.checkpoint_path),
    weights=values.weights,
    train_on=values.train_on,
    training_config=classifier_training.config(),
    distribution=strategies.from_flags(),
    checkpoint_dir=command_line.path(values.checkpoint_dir),
    backup_dir=command_line.path(values.backup_dir),
    overwrite=values.overwrite,
    verification=values.verification,
    keep_failed=command_line.path(values.keep_failed),
    flag_values=command_line.record(),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
