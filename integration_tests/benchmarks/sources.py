"""Builds the live models, and writes their checkpoints for the exporters."""

from __future__ import annotations

import importlib
import itertools
import pathlib
import string

import tensorflow as tf
import tf_keras
import yaml

from integration_tests.benchmarks import subjects
from models.nlp import bert
from models.nlp import encoder_config
from models.vision import image_classification
from models.vision import mnist_cnn

# Parts of variable names, and their names in BERT's first release.
_NAMES_OF_TF1 = {
  "word_embeddings/embeddings": "embeddings/word_embeddings",
  "position_embedding/embeddings": "embeddings/position_embeddings",
  "type_embeddings/embeddings": "embeddings/token_type_embeddings",
  "embeddings/layer_norm": "embeddings/LayerNorm",
  "transformer/": "encoder/",
  "/self_attention_layer_norm": "/attention/output/LayerNorm",
  "/self_attention/attention_output": "/attention/output/dense",
  "/self_attention": "/attention/self",
  "/intermediate": "/intermediate/dense",
  "/output_layer_norm": "/output/LayerNorm",
  "/output/kernel": "/output/dense/kernel",
  "/output/bias": "/output/dense/bias",
  "pooler_transform": "pooler/dense",
}
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def generate(name: str, work_dir: str) -> None:
  """Writes the checkpoint, config and vocabulary that an exporter needs."""
  subject = subjects.SUBJECTS[name]
  directory = pathlib.Path(work_dir)
  if subject.family in ("bert", "preprocessor"):
    size = subject.config.get("vocab_size", subjects.VOCAB_SIZE)
    tokens = "\n".join(_vocabulary(size))
    (directory / "vocab.txt").write_text(f"{tokens}\n")
  if subject.family == "bert":
    config = {"type": "bert", "bert": dict(subject.config)}
    (directory / "encoder.yaml").write_text(yaml.safe_dump(config))
  if subject.family != "preprocessor":
    tf_keras.utils.set_random_seed(0)
    root, model = _build(subject, directory)
    for seed, variable in enumerate(model.variables):
      if (
        variable.shape.rank == 1
      ):  # These are all zeros or ones in a new model.
        noise = tf.random.stateless_uniform(variable.shape, [seed, 0])
        variable.assign_add(0.1 * noise)
    # `save` adds the `save_counter` that Model Garden needs; `write` does not.
    root.save(str(directory / "model.ckpt"))


def restored(name: str, work_dir: str) -> tf_keras.Model:
  """Returns the live model of a subject with the weights of its checkpoint."""
  root, model = _build(subjects.SUBJECTS[name], pathlib.Path(work_dir))
  path = f"{work_dir}/{subjects.CHECKPOINT}"
  root.restore(path).assert_existing_objects_matched()
  return model


def write_h5(name: str, work_dir: str, path: str) -> None:
  """Writes the weights of a text encoder as Keras' `save_weights` does."""
  restored(name, work_dir).encoder.save_weights(path)


def write_tf1(name: str, work_dir: str, path: str) -> None:
  """Writes a text encoder as a TensorFlow 1 checkpoint of BERT's release."""
  named = {}
  for variable in restored(name, work_dir).variables:
    key, value = variable.name.removesuffix(":0"), variable.numpy()
    for ours, theirs in _NAMES_OF_TF1.items():
      key = key.replace(ours, theirs)
    if value.ndim == 3:  # Merges the axes of heads and their size.
      heads_first = "/output/" in key
      size = value.shape[2 if heads_first else 0]
      value = value.reshape([-1, size] if heads_first else [size, -1])
    elif "/self/" in key:
      value = value.ravel()
    named[f"bert/{key}"] = tf.Variable(value)
  tf.compat.v1.train.Saver(named).save(None, path)


def _build(
  subject: subjects.Subject, directory: pathlib.Path
) -> tuple[tf.train.Checkpoint, tf_keras.Model]:
  """Builds the checkpoint of the full model, and the model to export."""
  if subject.family == "mnist_cnn":
    model = mnist_cnn.feature_extractor()
    full = mnist_cnn.classifier(model, 10)
    return tf.train.Checkpoint(model=full), model
  if subject.family == "bert":
    config = encoder_config.from_yaml(str(directory / "encoder.yaml"))
    model = bert.core_model(config)
    return tf.train.Checkpoint(encoder=model.encoder), model
  module = importlib.import_module(f"models.vision.{subject.family}")
  architecture, experiment = module.ARCHITECTURE, subject.config["experiment"]
  overrides = [v for k, v in subject.config.items() if k != "experiment"]
  setup = image_classification.configure(architecture, experiment, overrides)
  full = image_classification.build(setup)
  model = image_classification.cut(setup, full, ["feature_vector"], "none")
  return tf.train.Checkpoint(model=full), model


def _vocabulary(size: int) -> list[str]:
  """Makes wordpieces of one to three letters, with and without `##`."""
  lowercase = string.ascii_lowercase
  words = [*lowercase, *string.digits, *string.punctuation]
  for length in (2, 3):
    words += map("".join, itertools.product(lowercase, repeat=length))
  pieces = (prefix + word for word in words for prefix in ("", "##"))
  return list(itertools.islice(itertools.chain(_SPECIAL_TOKENS, pieces), size))
