"""Restores text encoders from checkpoints of Model Garden.

Many checkpoints lack the pooler, the dense layer for the pooled output, because
masked language modeling does not train it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from etils import epy

from models.nlp import bert

with epy.lazy_imports():
  import numpy as np
  import tensorflow as tf
  import tf_keras

# Heads of Model Garden that contain a pooler. Training such a head does not
# train the encoder's pooler.
_WITH_POOLER = ("next_sentence", "sentence_prediction")

# Sources of the pooler's weights.
POOLERS = {
  "checkpoint": "the encoder's own pooler in the checkpoint",
  "next_sentence": "the pooler of the next sentence head in the checkpoint",
  "sentence_prediction": "the pooler of the fine-tuned head of that name in the"
  " checkpoint",
  "random": "initial weights, to be fine-tuned",
  "identity": "the identity, so that the pooled output is the sequence output"
  " at the first token",
}

# Paths of objects beside the encoder in checkpoints.
_LEFT_OUT = (
  "masked_lm",
  "*.pooler_dense",
  "*/masked_lm",
  "*/classification_heads",
  "optimizer",
  "*/optimizer",
  "global_step",
)


def restore(
  core: tf_keras.Model,
  restore_any: Callable[..., list[tf.Variable]],
  *,
  pooler_from: str | None,
  with_mlm: bool | None,
) -> tf_keras.Model | None:
  """Restores an encoder, its pooler and the head of masked language modeling.

  Args:
    core: A model from `bert.core_model`.
    restore_any: Restores the checkpoint into one of several structures. Takes a
      list of `tf.train.Checkpoint`; `parts`, a list of further ones that need
      not cover the checkpoint; `left_out`, paths to ignore; and `optional`,
      variables that the checkpoint may lack. Returns those of the optional
      variables that the checkpoint lacks.
    pooler_from: One of `POOLERS`. None: `checkpoint` if the checkpoint has it,
      else `random`.
    with_mlm: Whether to restore the head. None: restore it if the checkpoint
      has it.

  Returns:
    The pretrain model of `core`; None without the head.

  Raises:
    ValueError: The encoder cannot have the head, or the pooler is missing.
  """
  if core.encoder_config.type == "funnel":
    if with_mlm:
      raise ValueError("it has no mlm: it returns fewer vectors than tokens.")
    with_mlm = False
  pooler = bert.pooler(core)
  of_head = {}
  if pooler_from in _WITH_POOLER:
    # Error messages show this name.
    with tf.name_scope(f"{pooler_from}/pooler_dense"):
      of_head[f"{pooler_from}.pooler_dense"] = _built_like(pooler)
  pretrainer, masked_lm, head = None, None, []
  if with_mlm is not False:
    pretrainer = bert.pretrain_model(core)
    masked_lm = pretrainer.masked_lm
    shared = set(map(id, core.variables))
    head = [v for v in masked_lm.variables if id(v) not in shared]
  # Fine-tuned checkpoints also have the heads of other tasks.
  parts = [tf.train.Checkpoint(encoder=core.encoder, **of_head)]
  lacking = restore_any(
    _structures(core.encoder, masked_lm, of_head),
    parts=[] if with_mlm else parts,
    left_out=_LEFT_OUT,
    optional=[*pooler.variables, *(head if with_mlm is None else [])],
  )
  missing = set(map(id, lacking))
  has_pooler = missing.isdisjoint(map(id, pooler.variables))
  if of_head:
    (dense,) = of_head.values()
    pooler.set_weights(dense.get_weights())
  elif pooler_from == "random" or (pooler_from is None and not has_pooler):
    pooler.set_weights(_built_like(pooler).get_weights())
  elif pooler_from == "identity":
    _make_identity(pooler)
  elif not has_pooler:
    others = [f"{k} ({v})" for k, v in POOLERS.items() if k != pooler_from]
    raise ValueError(
      f"the checkpoint has no pooler. Choose another: {', '.join(others)}."
    )
  return None if missing.intersection(map(id, head)) else pretrainer


def other_pooler(names: Collection[str]) -> str | None:
  """Returns the key of `POOLERS` for a head that contains a pooler, or None.

  Args:
    names: The names at the root of a checkpoint.
  """
  heads = [head for head in _WITH_POOLER if f"{head}.pooler_dense" in names]
  return heads[-1] if heads else None


def _structures(
  encoder: tf_keras.layers.Layer,
  masked_lm: tf_keras.layers.Layer | None,
  of_head: Mapping[str, tf_keras.layers.Dense],
) -> list[tf.train.Checkpoint]:
  """Returns the structures in which Model Garden saves an encoder and heads."""
  heads = {"masked_lm": masked_lm} if masked_lm else {}
  of_pretrainer: dict[str, Any] = dict(of_head)
  if dense := of_pretrainer.pop("next_sentence.pooler_dense", None):
    of_pretrainer["classification_heads"] = [tf.train.Checkpoint(dense=dense)]
  pretrainer = tf.train.Checkpoint(
    encoder_network=encoder, **heads, **of_pretrainer
  )
  heads |= of_head
  return [
    tf.train.Checkpoint(encoder=encoder, **heads),
    tf.train.Checkpoint(pretrainer=pretrainer),
    tf.train.Checkpoint(model=pretrainer),
    tf.train.Checkpoint(model=encoder, **heads),
  ]


def _built_like(layer: tf_keras.layers.Dense) -> tf_keras.layers.Dense:
  """Builds a layer of the same sizes with new initial weights."""
  # MobileBERT's pooler is an EinsumDense.
  new = type(layer).from_config(layer.get_config())
  new.build([None, layer.kernel.shape[0]])
  return new


def _make_identity(pooler: tf_keras.layers.Dense) -> None:
  inputs, outputs = pooler.kernel.shape
  if inputs != outputs:
    raise ValueError(
      f"the pooler has {inputs} inputs and {outputs} outputs, so it cannot be"
      " the identity. Choose another value."
    )
  pooler.set_weights([np.eye(inputs), np.zeros(outputs)])
  pooler.activation = tf_keras.activations.linear
