"""Saves a Keras model as a complete Keras SavedModel.

`tf_keras.models.load_model` loads it as a Keras model with all layers. It
rebuilds Keras' own layers from their configs. Layers of other classes run the
functions that were traced here, so consumers need none of their code.
"""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import json
from typing import Any

from absl import logging
import tensorflow as tf
import tf_keras

from exporters.reusable import endpoints
from exporters.reusable import errors
from exporters.reusable import layer_calls
from exporters.reusable import saving
from exporters.reusable import slimming


def save(
  source: saving.Source,
  export_dir: str,
  *,
  signatures: Mapping[str, saving.ConcreteFunction],
  attributes: Mapping[str, Any],
) -> list[str]:
  """Writes a Keras model without its optimizer and training config.

  Only the signatures have the checks of inputs that `saving.source` adds.

  Args:
    source: The model. Its hyperparameters become constants.
    export_dir: The directory to write.
    signatures: As `saving.save` takes them.
    attributes: Further attributes of the loaded model; see `exporting.Piece`. A
      variable becomes a `saving.constant`.

  Returns:
    Notes for the verification report, as `saving.save` returns them.

  Raises:
    ExportError: The model is not a functional or sequential Keras model, or a
      layer of Keras holds a Python function.
  """
  model = source.model
  if not isinstance(model, tf_keras.Model) or not model.inputs:
    raise errors.ExportError(
      f"--saved_model_format=keras needs a functional or sequential Keras"
      f" model, and this is a {type(model).__name__}. Export it with"
      " --saved_model_format=reusable."
    )
  if not isinstance(model, tf_keras.Sequential):
    # Drops the attributes that the exporter's code has set on the model.
    model = tf_keras.Model(model.input, model.output, name=model.name)
  for name, value in attributes.items():
    if isinstance(value, tf.Variable):  # Keras would make it a weight.
      value = saving.constant(value.numpy())
    setattr(model, name, value)
  tf.random.set_seed(None)  # A seed would be saved for all consumers.
  with (
    _plain_configs(model),
    saving.for_any_strategy(saving.layers_of(model)),
    layer_calls.replaced(model, source.layer_calls),
    _without_warnings(),
  ):
    _check_configs(model)
    model.save(
      export_dir,
      save_format="tf",
      include_optimizer=False,
      signatures=dict(signatures),
    )
  endpoints.add(export_dir)
  return slimming.slim(export_dir)


def _check_configs(model: tf_keras.Model) -> None:
  """Refuses Python functions in configs, such as those of Lambda layers.

  Keras would save their bytecode, and run it when it loads the model.
  """
  for layer in saving.layers_of(model)[::-1]:  # The inner ones first.
    try:
      config = layer.get_config()
    except NotImplementedError:  # Keras saves such a layer without a config.
      continue
    text = json.dumps(config, default=str, skipkeys=True)
    if '_type": "lambda"' in text or '"__lambda__"' in text:
      raise errors.ExportError(
        f"Layer {layer.name} ({type(layer).__name__}) has a Python function,"
        " and loading a complete Keras model would run its code. Compute in a"
        " layer of a class of your own, or export the model with"
        " --saved_model_format=reusable."
      )


@contextlib.contextmanager
def _plain_configs(model: tf_keras.Model) -> Iterator[None]:
  """Makes inner models of custom classes save the config of plain models.

  Keras can rebuild them only as functional models.
  """
  functional = type(tf_keras.Model(model.inputs, model.outputs))
  plain = (functional, tf_keras.Sequential)
  with contextlib.ExitStack() as stack:
    for layer in model.submodules:
      if isinstance(layer, functional) and type(layer) not in plain:
        layer.get_config = functools.partial(functional.get_config, layer)
        stack.callback(vars(layer).pop, "get_config")
    yield


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
  """Silences warnings that every model causes, such as missing metrics."""
  levels = tf.get_logger().level, logging.get_verbosity()
  tf.get_logger().setLevel("ERROR")
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    tf.get_logger().setLevel(levels[0])
    logging.set_verbosity(levels[1])
