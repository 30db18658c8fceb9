"""Reads HDF5 weights of tf_keras.applications for Model Garden's models.

MobileNetV2 and the EfficientNets compute the same as Model Garden's for images
whose sides are multiples of 32. For other sizes, padding in Keras depends on
the image size that the model was built for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import re
import string
from typing import Any

import h5py
import numpy as np

from exporters import hugging_face_images
from exporters.reusable import errors
from exporters.reusable import keras_files
from exporters.reusable import weight_tables
from models.vision import image_classification

_Line = weight_tables.Line
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")

# Maps the name of a weight that identifies a model to a description of the
# model and to its exporter. None: no exporter exists.
_MODELS = {
  "block1a_dwconv/depthwise_kernel": ("an EfficientNet", "efficientnet"),
  "expanded_conv_depthwise/depthwise_kernel": ("MobileNetV2", "mobilenet"),
  "conv1_conv/kernel": (
    "a ResNet, whose convolutions have biases and other strides than those of"
    " Model Garden",
    None,
  ),
  "conv_dw_1/depthwise_kernel": (
    "MobileNet, whose head is a convolution, unlike Model Garden's",
    None,
  ),
}
# Maps the channels of the last convolution and the number of blocks to the
# variant and its image size.
_EFFICIENTNETS = {
  (1280, 16): ("b0", 224),
  (1280, 23): ("b1", 240),
  (1408, 23): ("b2", 260),
  (1536, 26): ("b3", 300),
  (1792, 32): ("b4", 380),
  (2048, 39): ("b5", 456),
  (2304, 45): ("b6", 528),
  (2560, 55): ("b7", 600),
}
_DEVIATIONS = (0.229, 0.224, 0.225)  # Of ImageNet's channels.


def read(
  architecture: image_classification.Architecture,
  path: str,
  overrides: Sequence[str],
) -> hugging_face_images.Source | None:
  """Reads an HDF5 file if it has weights of tf_keras.applications.

  Returns:
    The classifier; None if the file has no weights of a model in `_MODELS`.

  Raises:
    ExportError: Model Garden's model computes something else, or another
      program exports the model.
  """
  tensors = keras_files.by_weight(path)
  if tensors is None:
    return None
  model = next((m for name, m in _MODELS.items() if name in tensors), None)
  if not model:
    return None
  what, exporter = model
  if exporter != architecture.name:
    also = f"; //exporters:{exporter} exports it" if exporter else ""
    raise errors.ExportError(
      f"{path} has the weights of tf_keras.applications, {what}{also}."
    )
  head = tensors.get("predictions/kernel")
  model = {"num_classes": head.shape[-1] if head and head.shape else 1}
  experiment = image_classification.Experiment(base=architecture.experiment)
  if exporter == "mobilenet":
    lines, normalization = _mobilenet_lines(tensors), "centered"
  else:
    lines, normalization = (
      _efficientnet_lines(tensors),
      _normalization(path, tensors),
    )
    experiment = architecture.experiments["legacy_efficientnet"]
    size = _size(path, tensors)
    model["backbone"] = {exporter: {"model_id": size[0]}}
    model["input_size"] = [size[1], size[1], 3]
  setup = hugging_face_images.configured(
    architecture,
    path,
    dataclasses.replace(
      experiment,
      normalization=normalization,
      settable=[*experiment.settable, "input_size"],
    ),
    model,
    overrides,
  )
  print(f"{path} has the weights of {what} of tf_keras.applications.")
  left_out = {"normalization/*": "normalization", **keras_files.NOT_WEIGHTS}
  return hugging_face_images.Source(
    setup, bool(head), (), tensors, lines, left_out, exporter == "mobilenet"
  )


def _size(path: str, tensors: Mapping[str, Any]) -> tuple[str, int]:
  """Returns the variant of an EfficientNet and its image size."""
  top = tensors.get("top_conv/kernel")
  blocks = sum(name.endswith("_project_conv/kernel") for name in tensors)
  found = _EFFICIENTNETS.get((top.shape[-1] if top else None, blocks))
  if not found:
    raise errors.ExportError(
      f"{path} has {blocks} blocks of an EfficientNet, and is none of B0 to B7."
    )
  return found


def _normalization(
  path: str, tensors: Mapping[str, weight_tables.Tensor]
) -> image_classification.Normalization:
  """Returns the normalization by an EfficientNet's first layers.

  Models that were created with ImageNet's weights have a further multiplication
  in these layers.
  """
  with errors.of_input(LookupError, about=f"{path} has no "):
    mean, variance = (
      tensors[f"normalization/{name}"].read() for name in ("mean", "variance")
    )
  with errors.of_input(about=f"{path}: "), h5py.File(path) as f:
    layers = f.get("model_weights", f).attrs["layer_names"]
  more = sum("rescaling" in str(n) or "multiply" in str(n) for n in layers) > 1
  scales = np.sqrt(_DEVIATIONS) if more else 1
  return mean.tolist(), (np.sqrt(variance) * scales).tolist()


def _mobilenet_lines(names: Sequence[str]) -> list[weight_tables.Line]:
  """Returns the table for MobileNetV2, with numbered variable names."""
  lines = [
    _Line("dense/kernel", "predictions/kernel"),
    _Line("dense/bias", "predictions/bias"),
  ]
  for ours, conv, norm in (
    ("conv2dbn_block", "Conv1", "bn_Conv1"),
    ("conv2dbn_block_1", "Conv_1", "Conv_1_bn"),
  ):
    lines.append(_Line(f"{ours}/conv2d/kernel", f"{conv}/kernel"))
    lines += _norm(f"{ours}/batch_normalization", norm)
  for i in range(sum(name.endswith("_project/kernel") for name in names)):
    ours = (
      f"inverted_bottleneck_block_{i}" if i else "inverted_bottleneck_block"
    )
    theirs = f"block_{i}" if i else "expanded_conv"
    convolutions = iter(("conv2d", "conv2d_1"))
    for k, part in enumerate(("expand", "depthwise", "project")[not i :]):
      is_depthwise = part == "depthwise"
      conv = "depthwise_conv2d" if is_depthwise else next(convolutions)
      kernel = "depthwise_kernel" if is_depthwise else "kernel"
      lines.append(
        _Line(f"{ours}/{conv}/{kernel}", f"{theirs}_{part}/{kernel}")
      )
      norm = f"batch_normalization_{k}" if k else "batch_normalization"
      lines += _norm(f"{ours}/{norm}", f"{theirs}_{part}_BN")
  return lines


def _norm(ours: str, theirs: str) -> list[weight_tables.Line]:
  return [_Line(f"{ours}/{n}", f"{theirs}/{n}") for n in _NORM]


def _efficientnet_lines(names: Sequence[str]) -> list[weight_tables.Line]:
  """Returns the table for an EfficientNet with the blocks in `names`."""
  lines = [
    _Line("logits/kernel", "predictions/kernel"),
    _Line("logits/bias", "predictions/bias"),
  ]
  prefixes = {"stem_": "stem_", "top_": "top_"}
  for name in names:
    if found := re.match(r"block(\d)([a-z])_", name):
      block = string.ascii_lowercase.index(found[2])
      prefixes[found[0]] = f"stack_{int(found[1]) - 1}/block_{block}/"
  for theirs, ours in prefixes.items():
    is_block = ours.startswith("stack")
    for part in ("expand_", "project_") if is_block else ("",):
      lines.append(
        _Line(f"{ours}{part}conv2d/kernel", f"{theirs}{part}conv/kernel")
      )
      lines += _norm(f"{ours}{part}bn", f"{theirs}{part}bn")
    if is_block:
      kernel = "depthwise_kernel"
      lines.append(
        _Line(f"{ours}depthwise_conv2d/{kernel}", f"{theirs}dwconv/{kernel}")
      )
      lines += _norm(f"{ours}depthwise_bn", f"{theirs}bn")
      lines += [
        _Line(f"{ours}se_{part}_conv2d/{kind}", f"{theirs}se_{part}/{kind}")
        for part in ("reduce", "expand")
        for kind in ("kernel", "bias")
      ]
  return lines
