"""Adds the endpoints that `keras.layers.TFSMLayer` of Keras 3 calls."""

import pathlib
from typing import Any

from exporters.reusable.private_api import saved_model_pb2

INFERENCE = "serve"  # The default of TFSMLayer.
TRAINING = "train"


def add(export_dir: str) -> None:
  """Adds `serve` and `train` to the root of a SavedModel, as attributes.

  `serve` is `__call__`. `train` is `__call__` with the default `training=True`,
  or `__call__` itself if it has no such argument. Both reuse the traces of
  `__call__`, so they add no graph. Existing attributes of these names are kept.

  Args:
    export_dir: The directory of the SavedModel.
  """
  path = pathlib.Path(export_dir, "saved_model.pb")
  saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  for meta_graph in saved_model.meta_graphs:
    nodes = meta_graph.object_graph_def.nodes
    children = {child.local_name: child.node_id for child in nodes[0].children}
    call = children["__call__"]
    if TRAINING not in children:
      train = call
      if default := _default_of_training(nodes[call]):
        train = len(nodes)
        before = default.SerializeToString()
        default.bool_value = True
        nodes.add().CopyFrom(nodes[call])
        default.ParseFromString(before)
      nodes[0].children.add(local_name=TRAINING, node_id=train)
    if INFERENCE not in children:
      nodes[0].children.add(local_name=INFERENCE, node_id=call)
  path.write_bytes(saved_model.SerializeToString(deterministic=True))


def _default_of_training(node: Any) -> Any:
  """Returns the default of the argument `training` of a function, or None."""
  spec = node.function.function_spec.fullargspec.named_tuple_value.values
  values = {pair.key: pair.value for pair in spec}
  names = [x.string_value for x in values["args"].list_value.values]
  defaults = values["defaults"].tuple_value.values
  with_default = dict(zip(reversed(names), reversed(defaults), strict=False))
  return with_default.get("training")
