"""Collects facts about a SavedModel, for the report of a check."""

import os
from typing import Any

import tensorflow as tf

from exporters.conformance import modules
from exporters.conformance import subject as subject_lib
from exporters.reusable import comparison


def collect(subject: subject_lib.Subject) -> dict[str, Any]:
  """Collects facts about a SavedModel as JSON values."""
  return {
    "kind": subject.kind.name,
    "saved_with_tensorflow": subject.graph.meta_info_def.tensorflow_version,
    "suspicious": subject.suspicious,
    "described": subject.described,
    "inputs": _tensors(subject.spec, ""),
    "outputs": _tensors(
      subject.output_spec,
      # A single output has its name only in the signature.
      "/".join(subject.serving.outputs) if subject.serving else "",
    ),
    "hyperparameters": {
      name: None if default is subject_lib.NO_DEFAULT else default
      for name, default in subject.hyperparameters.items()
    },
    "modules": _modules(subject),
    "variables": _variables(subject),
    "ops": subject.op_counts,
    "bytes": _sizes(subject),
  }


def _modules(subject: subject_lib.Subject) -> list[dict[str, Any]]:
  try:
    return modules.collect(subject)
  except Exception:  # A stranger's program may raise anything.
    return []


def _tensors(structure: Any, only: str) -> list[dict[str, Any]]:
  """Lists the Tensors of a structure with their paths."""
  return [
    {
      "name": name
      if name != comparison.ONLY
      else only or getattr(spec, "name", ""),
      "dtype": spec.dtype.name,
      "shape": None if spec.shape.rank is None else spec.shape.as_list(),
    }
    for name, spec in comparison.named(structure).items()
    if isinstance(spec, tf.TypeSpec) and hasattr(spec, "dtype")
  ]


def _variables(subject: subject_lib.Subject) -> list[dict[str, Any]]:
  """Lists the variables of the SavedModel, the largest first."""
  variables = [
    (node.variable, tf.dtypes.as_dtype(node.variable.dtype))
    for node in subject.graph.object_graph_def.nodes
    if node.HasField("variable")
  ]
  found = [
    {
      "name": variable.name,
      "dtype": dtype.name,
      "shape": None
      if variable.shape.unknown_rank
      else [dim.size for dim in variable.shape.dim],
      "trainable": variable.trainable,
      "bytes": (tf.TensorShape(variable.shape).num_elements() or 0)
      * dtype.size,
    }
    for variable, dtype in variables
  ]
  return sorted(found, key=lambda v: -v["bytes"])


def _sizes(subject: subject_lib.Subject) -> dict[str, int]:
  """Returns the bytes of each part of the SavedModel."""
  graph = subject.graph
  functions = graph.graph_def.library.ByteSize()
  sizes = {
    "graph: functions": functions,
    "graph: the rest": graph.graph_def.ByteSize() - functions,
    "objects": graph.object_graph_def.ByteSize(),
  }
  rest = subject.files["saved_model.pb"] - sum(sizes.values())
  sizes["saved_model.pb: the rest"] = rest
  for file, size in subject.files.items():
    place = file.split(os.sep)[0]
    if place != "saved_model.pb":
      sizes[place] = sizes.get(place, 0) + size
  return dict(sorted(sizes.items(), key=lambda item: -item[1]))
