"""The models to compare, their sizes, and the commands that export them.

This module imports no TensorFlow; `sources` builds the models. The sides of a
comparison are `ours`; `ours_verified`, ours with --verification=fast;
`reference`, the exporter that users would use instead; and `live`, the model
itself.
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
    xla_size: The same for train steps under XLA.
    batch_size: Batch size of train steps.
    steps: Number of train steps; larger for short steps, whose times vary. The
      first step is reported separately.
    reference_xla_steps: Number of train steps of the reference's export under
      XLA, which may compile at each.
    measures: The measurements to make.
  """

  family: str
  description: str
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  size: int = 0
  xla_size: int = 0
  batch_size: int = 8
  steps: int = 10
  reference_xla_steps: int = 3
  measures: tuple[str, ...] = ("export", "load", "train", "inference")


def _bert(layers: int, hidden_size: int) -> dict[str, Any]:
  return {
    "vocab_size": VOCAB_SIZE,
    "num_layers": layers,
    "hidden_size": hidden_size,
    "num_attention_heads": hidden_size // 64,
    "intermediate_size": 4 * hidden_size,
  }


def _image_classifier(
  family: str, description: str, override: str = "", experiment: str = ""
) -> Subject:
  """Makes a subject of 224 pixels; `override` is one of the backbone."""
  config = {"experiment": experiment or f"{family}_imagenet"}
  if override:
    config["params_override"] = override
  return Subject(
    family,
    description,
    config,
    size=224,
    xla_size=64,
    batch_size=4,
    reference_xla_steps=2,
  )


SUBJECTS = {
  "mnist_cnn": Subject(
    "mnist_cnn",
    "MNIST CNN, 28 px",
    size=28,
    xla_size=28,
    batch_size=32,
    steps=100,
  ),
  "preprocessor": Subject(
    "preprocessor",
    "preprocessor of 30,522 wordpieces",
    size=128,
    measures=("export", "load", "inference"),
  ),
  "bert_tiny": Subject(
    "bert", "BERT 2x128", _bert(2, 128), size=32, xla_size=32, steps=100
  ),
  "bert_4x512": Subject(
    "bert", "BERT 4x512", _bert(4, 512), size=64, xla_size=64, steps=30
  ),
  "bert_base": Subject(
    "bert",
    "BERT-base, 12x768",
    _bert(12, 768),
    size=64,
    xla_size=64,
    batch_size=4,
    reference_xla_steps=2,
  ),
  "resnet_tiny": Subject(
    "resnet",
    "ResNet-18 of a quarter of the width",
    {
      "experiment": "resnet_imagenet",
      "params_override": "task.model.backbone.resnet.model_id=18,"
      "task.model.backbone.resnet.depth_multiplier=0.25",
    },
    size=32,
    xla_size=32,
    steps=100,
  ),
  "resnet50": _image_classifier("resnet", "ResNet-50"),
  "mobilenet_v2": _image_classifier("mobilenet", "MobileNetV2"),
  "efficientnet_b0": _image_classifier(
    "efficientnet",
    "EfficientNet-B0",
    "task.model={num_classes: 1001, input_size: [224, 224, 3], backbone:"
    " {type: efficientnet, efficientnet: {se_ratio: 0.25}}}",
    # Model Garden has no other experiment for its backbone.
    "image_classification",
  ),
  "revnet56": _image_classifier("revnet", "RevNet-56"),
  "bert_3gb": Subject(
    "bert",
    "BERT 14x2048, 3 GB of weights",
    _bert(14, 2048),
    size=32,
    measures=("export",),
  ),
}
QUICK = ("mnist_cnn", "preprocessor", "bert_tiny", "resnet_tiny")
DEFAULT = tuple(name for name in SUBJECTS if not name.endswith("_tiny"))


def has_fixed_size(family: str) -> bool:
  """Returns whether Model Garden's export is for one size of images."""
  return family not in ("bert", "mnist_cnn", "preprocessor")


def is_model_garden(family: str) -> bool:
  """Returns whether the reference is Model Garden's exporter, not Keras'."""
  return family != "mnist_cnn"


def reference_name(family: str) -> str:
  """Returns the name of the reference exporter."""
  return "Model Garden" if is_model_garden(family) else "tf_keras Model.save"


def checkpoint(work_dir: str | pathlib.Path) -> str:
  """Returns the path of the checkpoint in a subject's work directory."""
  return f"{work_dir}/model.ckpt-1"


def batch(subject: Subject, batch_size: int, size: int, seed: int) -> Any:
  """Makes inputs of a subject.

  Args:
    subject: The model to make inputs for.
    batch_size: Number of examples.
    size: Height and width of images, or sequence length.
    seed: Seed of the random inputs.

  Returns:
    Images, float32 `[batch_size, size, size, channels]`; or a dict of BERT's
    inputs, int32 `[batch_size, size]`; or sentences, strings `[batch_size]`.
  """
  random = np.random.default_rng(seed)
  if subject.family == "preprocessor":
    words = random.choice(
      ["the", "quick", "brown", "Fox", "überall", "3.14"], [batch_size, 60]
    )
    return np.array([" ".join(row) for row in words])
  if subject.family == "bert":
    mask = np.ones([batch_size, size], np.int32)
    mask[:, -3:] = 0
    return {
      "input_word_ids": random.integers(
        VOCAB_SIZE, size=mask.shape, dtype=np.int32
      ),
      "input_mask": mask,
      "input_type_ids": random.integers(2, size=mask.shape, dtype=np.int32),
    }
  channels = 1 if subject.family == "mnist_cnn" else 3
  return random.random([batch_size, size, size, channels], np.float32)


def measurement(action: str, **kwargs: Any) -> list[str]:
  """Returns the command that runs a function of `measurements`."""
  return [
    sys.executable,
    "-m",
    "integration_tests.benchmarks.measurements",
    action,
    json.dumps(kwargs),
  ]


def export_command(
  name: str,
  side: str,
  work_dir: pathlib.Path,
  export_dir: pathlib.Path,
  size: int | None = None,
) -> list[str]:
  """Returns the command that exports a subject.

  Args:
    name: Name of the subject.
    side: `ours`, `ours_verified` or `reference`.
    work_dir: The directory that `sources.generate` has filled.
    export_dir: Directory for the SavedModel.
    size: Height and width of the images of Model Garden's export; None: those
      of the subject.
  """
  subject = SUBJECTS[name]
  if side == "reference":
    return _reference_command(name, work_dir, export_dir, size or subject.size)
  binary = "bert" if subject.family == "preprocessor" else subject.family
  flags = {
    "mnist_cnn": [f"--checkpoint_path={checkpoint(work_dir)}"],
    "preprocessor": [
      "--export_type=preprocessing",
      f"--vocab_file={work_dir}/vocab.txt",
      "--do_lower_case",
    ],
    "bert": [
      f"--encoder_config_file={work_dir}/encoder.yaml",
      f"--checkpoint_path={checkpoint(work_dir)}",
      f"--vocab_file={work_dir}/vocab.txt",
      "--do_lower_case",
      "--pooler=checkpoint",
    ],
  }.get(
    subject.family,
    [
      f"--checkpoint_path={checkpoint(work_dir)}",
      # Model Garden's exporter leaves normalization to users.
      "--normalization=none",
      *_flags(subject.config),
    ],
  )
  verification = "fast" if side == "ours_verified" else "off"
  return [
    str(RUNFILES / "exporters" / binary),
    *flags,
    f"--verification={verification}",
    f"--export_dir={export_dir}",
  ]


def _reference_command(
  name: str, work_dir: pathlib.Path, export_dir: pathlib.Path, size: int
) -> list[str]:
  subject = SUBJECTS[name]
  if subject.family == "mnist_cnn":
    return measurement(
      "save_with_keras",
      name=name,
      work_dir=str(work_dir),
      export_dir=str(export_dir),
    )
  if has_fixed_size(subject.family):
    return [
      *MODEL_GARDEN["vision"],
      *_flags(subject.config),
      f"--checkpoint_path={checkpoint(work_dir)}",
      f"--input_image_size={size},{size}",
      "--skip_logits_layer",
      f"--export_dir={export_dir}",
    ]
  encoder_flags = [
    "--export_type=model",
    f"--encoder_config_file={work_dir}/encoder.yaml",
    f"--model_checkpoint_path={checkpoint(work_dir)}",
  ]
  return [
    *MODEL_GARDEN["nlp"],
    *(
      encoder_flags
      if subject.family == "bert"
      else ["--export_type=preprocessing"]
    ),
    f"--vocab_file={work_dir}/vocab.txt",
    "--do_lower_case",
    f"--export_path={export_dir}",
  ]


def _flags(config: Mapping[str, Any]) -> list[str]:
  return [f"--{name}={value}" for name, value in config.items()]
