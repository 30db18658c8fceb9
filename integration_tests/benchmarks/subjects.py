"""The models to compare, their sizes, and the commands that export them.

This module imports no TensorFlow; `sources` builds the models. The sides of a
comparison are `ours`; `ours_verified`, ours with --verification=fast;
`reference`, the exporter that users would use instead; `keras3`, Keras 3's
`Model.export`; and `live`, the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np

# Bazel puts the binaries beside this folder.
RUNFILES = pathlib.Path(__file__).parents[2]

CHECKPOINT = "model.ckpt-1"  # In the work directory of each subject.
VOCAB_SIZE = 30522

MODEL_GARDEN = {
  "nlp": [sys.executable, "-m", "official.nlp.tools.export_tfhub"],
  "vision": [sys.executable, "-m", "official.vision.serving.export_tfhub"],
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to export.

  Attributes:
    family: `mnist_cnn`, `bert`, `preprocessor`, or the exporter of an image
      classifier, such as `resnet`.
    description: Title of its tables.
    config: For `bert`, fields of Model Garden's `BertEncoderConfig`; for image
      classifiers, the flags `experiment` and optionally `params_override` of
      Model Garden's trainer.
    size: Height and width of images, or sequence length.
    batch_size: Batch size of train steps.
    steps: Number of train steps; larger for short steps, whose times vary. The
      first step is reported separately.
    measures: The measurements to make.
    keras: Whether the reference is our exporter with
      --saved_model_format=keras.
  """

  family: str
  description: str
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  size: int = 224
  batch_size: int = 4
  steps: int = 10
  measures: tuple[str, ...] = ("export", "load", "train", "inference")
  keras: bool = False


def _bert(
  layers: int, hidden_size: int, vocab_size: int = VOCAB_SIZE
) -> dict[str, Any]:
  return {
    "vocab_size": vocab_size,
    "num_layers": layers,
    "hidden_size": hidden_size,
    "num_attention_heads": hidden_size // 64,
    "intermediate_size": 4 * hidden_size,
  }


SUBJECTS = {
  "mnist_cnn": Subject(
    "mnist_cnn", "MNIST CNN, 28 px", size=28, batch_size=32, steps=100
  ),
  "preprocessor": Subject(
    "preprocessor",
    "preprocessor of 30,522 wordpieces",
    size=128,
    measures=("export", "load", "inference"),
  ),
  "bert_tiny": Subject("bert", "BERT 2x128", _bert(2, 128), 32, 8, 100),
  "bert_4x512": Subject("bert", "BERT 4x512", _bert(4, 512), 64, 8, 30),
  "bert_base": Subject("bert", "BERT-base, 12x768", _bert(12, 768), 64),
  "resnet_tiny": Subject(
    "resnet",
    "ResNet-18 of a quarter of the width",
    {
      "experiment": "resnet_imagenet",
      "params_override": "task.model.backbone.resnet.model_id=18,"
      "task.model.backbone.resnet.depth_multiplier=0.25",
    },
    size=32,
    batch_size=8,
    steps=100,
  ),
  "resnet50": Subject("resnet", "ResNet-50", {"experiment": "resnet_imagenet"}),
  "mobilenet_v2": Subject(
    "mobilenet", "MobileNetV2", {"experiment": "mobilenet_imagenet"}
  ),
  "efficientnet_b0": Subject(
    "efficientnet",
    "EfficientNet-B0",
    {
      # Model Garden has no other experiment for its backbone.
      "experiment": "image_classification",
      "params_override": "{task: {model: {num_classes: 1001, input_size: [224,"
      " 224, 3], backbone: {type: efficientnet, efficientnet: {se_ratio:"
      " 0.25}}}}}",
    },
  ),
  "revnet56": Subject("revnet", "RevNet-56", {"experiment": "revnet_imagenet"}),
  "bert_3gb": Subject(
    "bert",
    "BERT 14x2048, 3 GB of weights",
    _bert(14, 2048),
    size=32,
    measures=("export",),
  ),
}
SUBJECTS |= {
  f"{name}_keras": dataclasses.replace(
    subject,
    description=f"{subject.description}, and as a complete Keras model",
    keras=True,
  )
  for name, subject in SUBJECTS.items()
  if name in ("mnist_cnn", "bert_4x512", "resnet_tiny", "resnet50")
}
# One family from 0.4 million to a billion parameters, for cost against size.
SUBJECTS |= {
  name: Subject(
    "bert",
    f"BERT {config[0]}x{config[1]}",
    _bert(*config),
    32,
    measures=("size",),
  )
  for name, config in {
    "bert_0_4m": (2, 64, 4_000),
    "bert_4m": (2, 128),
    "bert_29m": (4, 512),
    "bert_110m": (12, 768),
    "bert_335m": (24, 1024),
    "bert_1g": (19, 2048),
  }.items()
}
QUICK = ("mnist_cnn", "preprocessor", "bert_tiny", "resnet_tiny", "bert_0_4m")
DEFAULT = tuple(
  name
  for name, subject in SUBJECTS.items()
  if not (name.endswith("_tiny") or subject.keras)
)


def batch(subject: Subject, batch_size: int, size: int, seed: int) -> Any:
  """Makes inputs of a subject, with images or sequences of `size`.

  Returns:
    Images, float32 `[batch_size, size, size, channels]`; or a dict of BERT's
    inputs, int32 `[batch_size, size]`; or sentences, strings `[batch_size]`.
  """
  random = np.random.default_rng(seed)
  if subject.family == "preprocessor":
    choices = ["the", "quick", "brown", "Fox", "überall", "3.14"]
    words = random.choice(choices, [batch_size, 60])
    return np.array([" ".join(row) for row in words])
  if subject.family == "bert":
    mask = np.ones([batch_size, size], np.int32)
    mask[:, -3:] = 0
    ids = random.integers(
      subject.config["vocab_size"], size=mask.shape, dtype=np.int32
    )
    types = random.integers(2, size=mask.shape, dtype=np.int32)
    return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": types}
  channels = 1 if subject.family == "mnist_cnn" else 3
  return random.random([batch_size, size, size, channels], np.float32)


def sides(name: str) -> tuple[str, ...]:
  """Returns the exporters of a subject; ours is the last."""
  is_cnn = SUBJECTS[name].family == "mnist_cnn" and not SUBJECTS[name].keras
  return ("reference", *(["keras3"] if is_cnn else []), "ours")


def measurement(action: str, **kwargs: Any) -> list[str]:
  """Returns the command that runs a function of `measurements`."""
  module = "integration_tests.benchmarks.measurements"
  return [sys.executable, "-m", module, action, json.dumps(kwargs, default=str)]


def export_command(
  name: str,
  side: str,
  work_dir: pathlib.Path,
  export_dir: pathlib.Path,
  size: int | None = None,
  checkpoint: pathlib.Path | None = None,
) -> list[str]:
  """Returns the command with which a side exports a subject.

  Args:
    name: Key of `SUBJECTS`.
    side: `ours`, `ours_verified`, `reference` or `keras3`.
    work_dir: The directory that `sources.generate` has filled.
    export_dir: Directory for the SavedModel.
    size: Size of the images of Model Garden's export; None: the subject's.
    checkpoint: The weights; None: those of `CHECKPOINT`. A directory has its
      own config and vocabulary.
  """
  subject = SUBJECTS[name]
  path = checkpoint or work_dir / CHECKPOINT
  if side == "keras3":
    module = "integration_tests.benchmarks.keras3"
    python = ["env", "TF_USE_LEGACY_KERAS=0", sys.executable, "-m", module]
    return [*python, str(path), str(export_dir)]
  text = [f"--vocab_file={work_dir}/vocab.txt", "--do_lower_case"]
  garden, directory_flag = "nlp", "export_path"
  ours, reference = [], []
  if subject.family == "preprocessor":
    binary, both = "bert", [*text, "--export_type=preprocessing"]
  elif subject.family == "bert":
    config = f"--encoder_config_file={work_dir}/encoder.yaml"
    binary, both = "bert", [] if path.is_dir() else [*text, config]
    ours = ["--pooler=checkpoint", f"--checkpoint_path={path}"]
    reference = ["--export_type=model", f"--model_checkpoint_path={path}"]
  elif subject.family == "mnist_cnn":
    binary, both = "mnist_cnn", [f"--checkpoint_path={path}"]
  else:
    binary = subject.family
    both = [f"--{flag}={value}" for flag, value in subject.config.items()]
    both += [f"--checkpoint_path={path}"]
    # Model Garden's exporter leaves normalization to users.
    ours = ["--normalization=none"]
    size = size or subject.size
    reference = [f"--input_image_size={size},{size}", "--skip_logits_layer"]
    garden, directory_flag = "vision", "export_dir"
  if subject.keras and side == "reference":
    side = "ours"
    ours += ["--saved_model_format=keras"]
  if side != "reference":
    verification = "fast" if side == "ours_verified" else "off"
    ours += [f"--verification={verification}", f"--export_dir={export_dir}"]
    return [str(RUNFILES / "exporters" / binary), *both, *ours]
  if subject.family == "mnist_cnn":
    return measurement(
      "save_with_keras", name=name, work_dir=work_dir, export_dir=export_dir
    )
  reference += [f"--{directory_flag}={export_dir}"]
  return [*MODEL_GARDEN[garden], *both, *reference]
