"""AdamW whose learning rate and weight decay depend on the layer."""

from collections.abc import Mapping, Sequence
import json
import os
import re
from typing import Any

import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from distribution import errors

_MODEL = "assets.extra/model.json"
# Biases and normalization, where no model.json names them.
_NOT_DECAYED = ["bias", "layer_norm", "LayerNorm"]


class AdamW(tf_keras.optimizers.Adam):
  """AdamW with a factor of the learning rate for each variable.

  The factor applies to the step of Adam and to the weight decay. Scaling
  gradients would have no effect, because Adam's steps do not depend on their
  scale.
  """

  def __init__(
    self,
    learning_rate: Any,
    *,
    decay: float,
    not_decayed: Sequence[str],
    factors: Mapping[str, float],
    **kwargs: Any,
  ):
    """Makes the optimizer.

    Args:
      learning_rate: A number or a schedule.
      decay: Weight decay, relative to the learning rate.
      not_decayed: Regular expressions of names of variables without decay.
      factors: Factors by the names of variables. Other variables have 1.
      **kwargs: Other arguments of `tf_keras.optimizers.Adam`.
    """
    self._factor = 1.0
    super().__init__(learning_rate, **kwargs)
    self._decay, self._factors = decay, dict(factors)
    self._not_decayed = re.compile("|".join(not_decayed))

  @property
  def learning_rate(self) -> tf.Tensor:
    """The learning rate of the variable that is being updated."""
    return self._factor * tf.convert_to_tensor(super().learning_rate)

  def update_step(self, gradient: Any, variable: tf.Variable) -> None:
    """Updates one variable; see the base class."""
    name = re.sub("(/replica_[0-9]+)?:0$", "", variable.name)
    self._factor = self._factors.get(name, 1.0)
    try:
      if not self._not_decayed.search(name):
        rate = tf.cast(self.learning_rate, variable.dtype)
        variable.assign_sub(rate * self._decay * variable)
      super().update_step(gradient, variable)
    finally:
      self._factor = 1.0


def optimizer(
  saved_model_dir: str,
  learning_rate: Any,
  *,
  weight_decay: float,
  layer_decay: float | None,
  **kwargs: Any,
) -> AdamW:
  """Makes an optimizer for a new head on an export.

  Args:
    saved_model_dir: The export. Its `model.json` says which variables weight
      decay applies to, and which layers they are in.
    learning_rate: Learning rate of the head: a number or a schedule.
    weight_decay: Weight decay, relative to the learning rate.
    layer_decay: Ratio of the learning rates of a layer and the next one. None:
      all layers have the learning rate of the head.
    **kwargs: Other arguments of `tf_keras.optimizers.Adam`.

  Raises:
    InputError: `layer_decay` is set, and the export has no `model.json`.
  """
  path = os.path.join(hub.resolve(saved_model_dir), _MODEL)
  not_decayed, factors = _NOT_DECAYED, {}
  # Reading a pipe would not end.
  if (tf.io.gfile.exists if "://" in path else os.path.isfile)(path):
    with errors.of_input(about=f"{path}: "):
      with tf.io.gfile.GFile(path) as f:
        variables = json.load(f)["variables"]
      not_decayed = ["bias$"] + [
        f"^{re.escape(v['name'])}$" for v in variables if not v["weight_decay"]
      ]
      top = 1 + max(v["layer_index"] for v in variables)
      if layer_decay is not None:
        factors = {
          v["name"]: layer_decay ** (top - v["layer_index"]) for v in variables
        }
  elif layer_decay is not None:
    raise errors.InputError(
      f"--layer_decay: {saved_model_dir} has no {_MODEL}, which names the layer"
      " of each variable. Export it again, or omit the flag."
    )
  return AdamW(
    learning_rate,
    decay=weight_decay,
    not_decayed=not_decayed,
    factors=factors,
    **kwargs,
  )
