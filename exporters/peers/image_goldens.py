"""Writes image_goldens.json: what transformers and timm compute.

It runs in the environment of the peers, which have torch, and with timm:

  python exporters/peers/image_goldens.py OUTPUT
  KERAS_BACKEND=torch python exporters/peers/image_goldens.py OUTPUT keras_hub

timm is in no lock: it requires torchvision, whose build for the CPU is not in
the package index. keras_hub_test and image_goldens_test compare all others.

Weights are not in the file. They are random numbers that depend on the name and
the shape of a tensor, for this program and the test alike.
"""

import json
import math
import os
import pathlib
import sys
import tempfile
from typing import Any
import zlib

import numpy as np

_SIZES = {
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 48,
  "image_size": [24, 32],
  "patch_size": 8,
  "num_labels": 3,
}
_ELSEWHERE = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_CENTERED = ([0.5] * 3, [0.5] * 3)


def values(name: str, shape: list[int]) -> np.ndarray:
  """Returns random values of a tensor, of a scale that keeps outputs near 1."""
  if name.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  random = np.random.default_rng(zlib.crc32(name.encode()))
  uniform = random.random(shape, dtype=np.float32)
  if name.endswith("running_var") or (
    name.endswith("weight") and len(shape) == 1
  ):
    return 0.5 + uniform
  if len(shape) == 1:
    return uniform - 0.5
  return (2 * uniform - 1) * math.sqrt(3 / math.prod(shape[1:]))


def images(height: int, width: int) -> np.ndarray:
  """Returns images in [0, 1], float32 `[2, height, width, 3]`."""
  random = np.random.default_rng(0)
  return random.random([2, height, width, 3], dtype=np.float32)


def _of_transformers(name: str, activation: str, normalization: Any) -> dict:
  import transformers

  kind = "ViT" if name.startswith("ViT") else "DeiT"
  config = getattr(transformers, f"{kind}Config")(
    **_SIZES, hidden_act=activation, architectures=[name]
  )
  model = getattr(transformers, name)(config)

  def compute(inputs: Any) -> dict:
    features = getattr(model, kind.lower(), model)(inputs)
    tokens = features.last_hidden_state
    if name == "ViTModel":
      return {"feature_vector": features.pooler_output}
    if name.endswith("WithTeacher"):
      tokens = tokens[:, :2].flatten(1)
      return {"feature_vector": tokens, "classification": model(inputs).logits}
    return {
      "feature_vector": tokens[:, 0],
      "classification": model(inputs).logits,
    }

  means, deviations = normalization
  size = dict(zip(("height", "width"), _SIZES["image_size"], strict=True))
  files = {
    "config.json": json.loads(config.to_json_string()),
    "preprocessor_config.json": {
      "do_normalize": True,
      "do_rescale": True,
      "image_mean": means,
      "image_std": deviations,
      "rescale_factor": 1 / 255,
      "size": size,
    },
  }
  return _golden(model, kind.lower(), files, normalization, compute)


def _of_timm(name: str) -> dict:
  import timm

  model = timm.create_model(name, num_classes=3)
  means, deviations = _ELSEWHERE
  config = {
    "architecture": name,
    "num_classes": 3,
    "pretrained_cfg": {
      "input_size": [3, 64, 96],
      "mean": means,
      "std": deviations,
      "num_classes": 3,
    },
  }

  def compute(inputs: Any) -> dict:
    features = model.forward_features(inputs)
    return {
      "feature_vector": model.forward_head(features, pre_logits=True),
      "classification": model(inputs),
    }

  return _golden(
    model, "efficientnet", {"config.json": config}, _ELSEWHERE, compute
  )


def _golden(
  model: Any, exporter: str, files: dict, normalization: Any, compute: Any
) -> dict:
  """Fills a model with random weights; returns its outputs and the files."""
  from safetensors import torch as safetensors_torch
  import torch

  is_timm = exporter == "efficientnet"
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "model.safetensors")
    if is_timm:
      safetensors_torch.save_file(model.state_dict(), path)
    else:
      model.save_pretrained(directory)  # The names differ from those in memory.
    tensors = safetensors_torch.load_file(path)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    state = {k: torch.tensor(values(k, shape)) for k, shape in shapes.items()}
    if not is_timm:
      safetensors_torch.save_file(state, path, metadata={"format": "pt"})
      state = type(model).from_pretrained(directory).state_dict()
    model.load_state_dict(state)
  model.eval()
  config = files["config.json"]
  size = config.get("image_size") or config["pretrained_cfg"]["input_size"][1:]
  means, deviations = normalization
  inputs = (images(*size) - means) / deviations
  with torch.no_grad():
    outputs = compute(torch.tensor(inputs.transpose(0, 3, 1, 2).astype("f")))
  return {
    "exporter": exporter,
    "files": files,
    "size": size,
    "shapes": shapes,
    # Of many features the first ones.
    "outputs": {k: v.numpy()[:, :64].tolist() for k, v in outputs.items()},
  }


def of_keras_hub() -> dict:
  """Returns the golden of a preset of keras-hub, for a process of its own."""
  import h5py
  import keras_hub
  import torch

  with tempfile.TemporaryDirectory() as directory:
    size = _SIZES["image_size"]
    backbone = keras_hub.models.ViTBackbone(
      image_shape=(*size, 3),
      patch_size=(8, 8),
      num_layers=2,
      num_heads=4,
      hidden_dim=32,
      mlp_dim=48,
    )
    converter = keras_hub.layers.ViTImageConverter(
      image_size=size, scale=1 / 127.5, offset=-1
    )
    keras_hub.models.ViTImageClassifier(
      backbone,
      num_classes=3,
      preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(converter),
    ).save_to_preset(directory)
    shapes = {}
    for name in ("model.weights.h5", "task.weights.h5"):
      with h5py.File(os.path.join(directory, name), "a") as f:
        datasets: list[h5py.Dataset] = []
        f.visititems(lambda _, x, to=datasets: to.append(x) and None)
        for item in datasets:
          if isinstance(item, h5py.Dataset) and "optimizer" not in item.name:
            shapes[f"{name}:{item.name[1:]}"] = list(item.shape)
            item[...] = values(item.name[1:], list(item.shape))
    model = keras_hub.models.ImageClassifier.from_preset(directory)
    names = ("config.json", "task.json", "image_converter.json")
    files = {
      name: json.loads(pathlib.Path(directory, name).read_text())
      for name in names
    }
  with torch.no_grad():
    inputs = 2 * images(*size) - 1
    outputs = {
      "feature_vector": model.backbone(inputs)[:, 0],
      "classification": model(inputs),
    }
  return {
    "exporter": "vit",
    "files": files,
    "size": size,
    "shapes": shapes,
    "outputs": {k: v.cpu().numpy().tolist() for k, v in outputs.items()},
  }


def of_transformers() -> dict[str, dict]:
  """Returns the goldens of transformers, by the class of the model."""
  return {
    name: _of_transformers(name, activation, normalization)
    for name, activation, normalization in (
      ("ViTForImageClassification", "gelu", _CENTERED),
      ("ViTModel", "gelu_new", _ELSEWHERE),
      ("DeiTForImageClassification", "gelu", _ELSEWHERE),
      ("DeiTForImageClassificationWithTeacher", "gelu", _ELSEWHERE),
    )
  }


def main() -> None:
  """Writes the file; `keras_hub` as an argument writes only that golden."""
  if sys.argv[2:] == ["keras_hub"]:  # It cannot be beside tf_keras.
    with open(sys.argv[1]) as f:
      goldens = json.load(f) | {"keras_hub_vit": of_keras_hub()}
  else:
    goldens = of_transformers()
    goldens["tf_efficientnet_b0"] = _of_timm("tf_efficientnet_b0")
  with open(sys.argv[1], "w") as f:
    json.dump(goldens, f, separators=(",", ":"))


if __name__ == "__main__":
  main()
