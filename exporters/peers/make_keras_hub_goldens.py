"""Writes small random presets of keras-hub, and what they compute.

It runs in the environment of the peers, in a process without Keras 2:

  KERAS_BACKEND=torch python exporters/peers/make_keras_hub_goldens.py DIRECTORY

The weights are in safetensors, by their names in model.weights.h5, which has
many times the size for the same values.
"""

import os
import shutil
import sys

import h5py
import keras
import keras_hub
import numpy as np
from safetensors import numpy as safetensors_numpy

_SIZES = {
  "num_layers": 2,
  "num_heads": 2,
  "hidden_dim": 12,
  "intermediate_dim": 20,
  "max_sequence_length": 20,
}
_MODELS = {
  "albert": (
    keras_hub.models.AlbertBackbone,
    {**_SIZES, "vocabulary_size": 40, "embedding_dim": 8},
  ),
  "bert": (
    keras_hub.models.BertBackbone,
    {**_SIZES, "vocabulary_size": 40},
  ),
  "distilbert": (
    keras_hub.models.DistilBertBackbone,
    {**_SIZES, "vocabulary_size": 40},
  ),
  "electra": (
    keras_hub.models.ElectraBackbone,
    {**_SIZES, "vocab_size": 40, "embedding_dim": 8},
  ),
}


def _write(directory: str, name: str) -> None:
  cls, sizes = _MODELS[name]
  keras.backend.clear_session()
  generator = np.random.default_rng(0)
  model = cls(**sizes)
  for weight in model.weights:
    weight.assign(generator.normal(0.0, 0.3, weight.shape))
  model.save_to_preset(f"{directory}/whole")
  tensors = {}

  def add(path: str, item: h5py.Group | h5py.Dataset) -> None:
    if isinstance(item, h5py.Dataset):
      tensors[path] = item[()]

  with h5py.File(f"{directory}/whole/model.weights.h5") as f:
    f.visititems(add)
  shutil.copy(f"{directory}/whole/config.json", directory)
  shutil.rmtree(f"{directory}/whole")
  safetensors_numpy.save_file(tensors, f"{directory}/weights.safetensors")
  inputs = {
    "input_word_ids": generator.integers(0, 40, (3, 9)),
    "input_mask": np.array([[1] * 9, [1] * 6 + [0] * 3, [1] + [0] * 8]),
    "input_type_ids": generator.integers(0, 2, (3, 9)),
  }
  ids, mask, types = map(keras.ops.convert_to_tensor, inputs.values())
  named = {"token_ids": ids, "padding_mask": mask}
  if name != "distilbert":
    named["segment_ids"] = types
  outputs = model(named)
  if not isinstance(outputs, dict):
    outputs = {"sequence_output": outputs}
  expected = {k: v.detach().numpy() for k, v in outputs.items()}
  safetensors_numpy.save_file(
    {
      name: np.ascontiguousarray(value)
      for name, value in {**inputs, **expected}.items()
    },
    f"{directory}/expected.safetensors",
  )


def main(directory: str) -> None:
  """Writes all models."""
  for name in _MODELS:
    path = os.path.join(directory, name)
    os.makedirs(path, exist_ok=True)
    _write(path, name)


if __name__ == "__main__":
  main(sys.argv[1])
