"""A reusable SavedModel as a layer of Keras 3, with TensorFlow as backend."""

import inspect
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("reusable")
class ReusableLayer(keras.layers.Layer):
  """Calls a reusable SavedModel and trains its weights."""

  def __init__(
    self,
    filepath: str,
    arguments: dict[str, Any] | None = None,
    part: str | None = None,
    trainable: bool = True,
    **kwargs: Any,
  ):
    """Loads the SavedModel.

    Args:
      filepath: Its directory. Loading a `.keras` file loads it from there too.
      arguments: Values of hyperparameters, by name.
      part: Name of a sub-object or profile to use instead of the SavedModel.
      trainable: Whether to train. If not, calls are in inference mode.
      **kwargs: As for `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.filepath, self.arguments, self.part = filepath, arguments or {}, part
    self.saved_model = tf.saved_model.load(filepath)
    self.model = getattr(self.saved_model, part) if part else self.saved_model
    parameters = inspect.signature(self.model.__call__).parameters
    self.has_modes = "training" in parameters
    trained = {id(v) for v in self.model.trainable_variables}
    self.model_weights = [  # Keras tracks the variables in attributes.
      keras.Variable(
        v,
        trainable=id(v) in trained,
        name=v.name.partition(":")[0].replace("/", "_"),
      )
      for v in self.model.variables
    ]
    if self.model.regularization_losses and self.trainable_weights:
      # Keras adds up the losses of variables.
      self.trainable_weights[0].regularizer = self.regularization_loss
    self.trainable = trainable  # Also of the variables.

  def regularization_loss(self, _: Any) -> tf.Tensor:
    """Returns the sum of the model's regularization losses."""
    return tf.add_n([loss() for loss in self.model.regularization_losses])

  def call(self, inputs: Any, training: bool = False) -> Any:
    """Calls the model, in training mode only if the layer is trainable."""
    mode = {"training": bool(training and self.trainable)}
    return self.model(
      inputs, **self.arguments, **(mode if self.has_modes else {})
    )

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    arguments = {"arguments": dict(self.arguments), "part": self.part}
    return {**super().get_config(), "filepath": self.filepath, **arguments}
