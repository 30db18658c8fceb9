r"""Exports a `tf.Module`: a model of your own that is not a Keras model.

To export your own module, copy this file. It has two examples:

  bazel run //exporters:tf_module -- --module=product --export_dir=DIR
  bazel run //exporters:tf_module -- \
    --module=real_nvp --train_on=moons --export_dir=DIR
  bazel run //exporters:tf_module -- --module=real_nvp \
    --checkpoint_path=CHECKPOINT --num_features=2 --export_dir=DIR

`product` is the smallest example: a variable and a regularization loss.
`real_nvp` is a normalizing flow with hyperparameters, and with sub-objects that
share its variables.
"""

from __future__ import annotations

import dataclasses

from absl import flags
from etils import epy

from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting
from exporters.reusable import training_records
from models.density import training

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf

  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import saving
  from models import product
  from models.density import real_nvp

_PRODUCT_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow_hub as hub

layer = hub.KerasLayer("path/to/product", trainable=True)
layer([10.0, 20.0])  # [20.0, 40.0]
layer.trainable_weights  # One variable, 2.0.
layer.losses  # [0.004]
"""

_REAL_NVP_EXAMPLE = """
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tensorflow-hub is Keras 2.
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

# Yours: vectors, float32 [n, num_features].
flow = hub.load("path/to/real_nvp")
layer = hub.KerasLayer(flow, trainable=True, arguments={"dropout_rate": 0.02})
inputs = tf_keras.Input(vectors.shape[1:])
model = tf_keras.Model(inputs, layer(inputs)["log_likelihood"])
model.compile(
    optimizer="adam",
    loss=lambda _, log_likelihood: -log_likelihood,
)
model.fit(vectors, vectors, epochs=10)
samples = flow.sample(tf.ones([100]), seed=1)
"""

_FLOW_FLAGS = {
  "num_features": ("length of the vectors; moons have 2.", 2),
  "num_couplings": ("number of couplings.", 1),
  "units": ("units of each hidden layer in a coupling.", 1),
  "l2_strength": ("factor of the L2 regularization of every kernel.", 0.0),
}
_TRAINING_FLAGS = {
  "epochs": ("number of epochs; 0 exports the initial weights.", 0),
  "batch_size": ("batch size: vectors per step.", 1),
  "learning_rate": ("initial learning rate of Adam.", 0.0),
  "seed": ("seed of the initial weights, the order of vectors, dropout.", 0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
  """The arguments of a RealNVP."""

  num_features: int = 2
  num_couplings: int = 8
  units: int = 32
  l2_strength: float = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """The source of a RealNVP's weights: values of the flags of these names."""

  checkpoint_path: str | None = None
  weights: str | None = None
  train_on: str | None = None
  config: training.Config = dataclasses.field(default_factory=training.Config)
  tensorboard_dir: str | None = None


def export(
  options: exporting.Options,
  flow: Flow | None = None,
  weights: Weights | None = None,
) -> None:
  """Exports a RealNVP, or the example `product`.

  Args:
    options: Where to export and how to verify.
    flow: The arguments of the RealNVP. None: export `product`.
    weights: The source of the RealNVP's weights: training, or a checkpoint of
      `tf.train.Checkpoint(module=models.density.real_nvp.RealNVP(…))`.

  Raises:
    ExportError: A directory is taken, the vectors have another length, the
      checkpoint does not match, or the export differs from the module.
  """
  apart = [weights and weights.tensorboard_dir]
  with exporting.exporting(options, apart=apart) as export_piece:
    piece, card = _real_nvp(flow, weights, options) if flow else _product()
    path = weights.checkpoint_path if weights else None
    export_piece("", piece, card, exporting.record(options, path))


def _product() -> tuple[exporting.Piece, model_card.Card]:
  """Returns the smallest example and its model card."""
  numbers = tf.TensorSpec([None], tf.float32, "numbers")
  piece = exporting.Piece(
    source=saving.source(product.Product(2.0), numbers),
    examples=[tf.constant([10.0, 20.0]), tf.constant([3.0])],
    also_takes=saving.of_mixed_precision(numbers),
    output_name="products",
  )
  card = model_card.Card(
    name="Product",
    description="Multiplies numbers by a variable v, which is 2. Its"
    " regularization loss is 0.001 v².",
    meanings={"numbers": "any numbers", "products": "v times each number"},
    example=_PRODUCT_EXAMPLE,
    loaded="layer.resolved_object",
    provenance={"source": "not trained"},
  )
  return piece, card


def _real_nvp(
  flow: Flow, weights: Weights, options: exporting.Options
) -> tuple[exporting.Piece, model_card.Card]:
  """Returns a trained or restored normalizing flow, and its model card."""
  module = real_nvp.RealNVP(
    **dataclasses.asdict(flow), seed=weights.config.seed
  )
  exporting.check_profiles(options, module)
  if weights.train_on:
    provenance = _train(module, weights)
  else:
    checkpoints.restore(
      weights.checkpoint_path,
      [tf.train.Checkpoint(module=module)],
      left_out=["optimizer"],
      weights=weights.weights,
    )
    provenance = {"source": "a checkpoint of the module"}
  vectors = tf.TensorSpec([None, flow.num_features], tf.float32, "vectors")
  examples = [
    tf.random.stateless_normal([n, flow.num_features], [n, 0]) for n in (3, 1)
  ]
  # A function, unlike a module, does not list its variables.
  of_module = {
    "variables": module.variables,
    "regularization_losses": module.regularization_losses,
  }
  inverse = saving.source(module.inverse, vectors, **of_module)
  sample = saving.source(
    module.sample,
    tf.TensorSpec([None], tf.float32, "temperatures"),
    hyperparameters=[
      hyperparameters.Hyperparameter("seed", 0, "Seed of the samples.")
    ],
    **of_module,
  )
  dropout_rate = hyperparameters.Hyperparameter(
    "dropout_rate",
    training.DROPOUT_RATE,
    "Share of the hidden units in the couplings that training drops.",
    off=0.0,
    limits=hyperparameters.RATE,
  )
  piece = exporting.Piece(
    source=saving.source(module, vectors, hyperparameters=[dropout_rate]),
    examples=examples,
    also_takes=saving.of_mixed_precision(vectors),
    sub_objects={
      "inverse": exporting.Piece(source=inverse, examples=examples),
      "sample": exporting.Piece(
        source=sample, examples=[tf.constant([1.0, 0.5])]
      ),
    },
  )
  return piece, _real_nvp_card(provenance)


def _train(module: real_nvp.RealNVP, weights: Weights) -> dict[str, str]:
  """Trains a flow; returns rows about the training for the model card."""
  name, config = weights.train_on, weights.config
  vectors, held_out = training.DATASETS[name]()
  if vectors.shape[1:] != module.mean.shape:
    raise errors.ExportError(
      f"--num_features={module.mean.shape[0]} does not suit --train_on={name},"
      f" which has vectors of length {vectors.shape[1]}."
    )
  print(f"Training on {len(vectors):,} vectors of {name}")
  record = training_records.recorder(weights.tensorboard_dir)
  training.train(module, vectors, config, record)
  log_likelihood = tf.reduce_mean(module(held_out)["log_likelihood"])
  tested = f"{log_likelihood:.4f} on {len(held_out):,} vectors held out"
  print(f"Test log-likelihood: {tested}")
  if not config.epochs:
    return {"source": "not trained"}
  return {
    "trained on": f"scikit-learn's {name}, {len(vectors):,} vectors",
    "mean log-likelihood": tested,
    "training": f"{config.epochs} epochs of Adam, batches of"
    f" {config.batch_size}, learning rate {config.learning_rate:g} falling to"
    f" 0, seed {config.seed}",
  }


def _real_nvp_card(provenance: dict[str, str]) -> model_card.Card:
  return model_card.Card(
    name="RealNVP",
    description="A normalizing flow (Dinh et al., arXiv:1605.08803): an"
    " invertible map from vectors of the data to latent vectors that are"
    " standard normal. The model returns the likelihood of vectors. Its"
    " sub-objects have the same variables: `inverse(latents)` returns the"
    " vectors of latent vectors; `sample(temperatures, seed=0)` draws a vector"
    " for each temperature, float32 `[batch]`. Temperature 1 gives the learned"
    " density, lower ones give more typical vectors.",
    meanings={
      "vectors": "vectors in the units of the training data",
      "latents": "the latent vector of each vector",
      "log_likelihood": "natural logarithm of the density of each vector",
    },
    example=_REAL_NVP_EXAMPLE,
    loaded="flow",
    provenance=provenance,
  )


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags()
  flags.DEFINE_enum(
    "module",
    None,
    ["product", "real_nvp"],
    "The module to export. real_nvp needs --train_on or --checkpoint_path.",
    required=True,
  )
  flags.DEFINE_enum(
    "train_on",
    None,
    ["moons"],
    "Instead of --checkpoint_path: train on this data set of scikit-learn.",
  )
  command_line.require_weights(without_weights=("module", "product"))
  command_line.define(training.Config, _TRAINING_FLAGS, only_with="train_on")
  command_line.define(
    Weights,
    {"tensorboard_dir": command_line.TENSORBOARD},
    only_with="train_on",
  )
  command_line.define(
    Flow,
    {
      name: (f"With --module=real_nvp: {text}", lowest)
      for name, (text, lowest) in _FLOW_FLAGS.items()
    },
  )
  flags.register_multi_flags_validator(
    ["module", *_FLOW_FLAGS],
    lambda values: (
      values["module"] == "real_nvp"
      or not any(flags.FLAGS[name].present for name in _FLOW_FLAGS)
    ),
    f"--{', --'.join(_FLOW_FLAGS)} apply only with --module=real_nvp.",
  )


def main() -> None:
  """Exports the module that the flags describe."""
  if flags.FLAGS.module == "product":
    export(command_line.options())
  else:
    config = command_line.from_flags(training.Config)
    export(
      command_line.options(),
      command_line.from_flags(Flow),
      command_line.from_flags(Weights, config=config),
    )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
