"""Reads image classifiers from Hugging Face directories.

It reads ViT and DeiT of transformers, ViT of keras-hub, and `tf_efficientnet_*`
of timm, because Model Garden's models compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import math
import os
import re
from typing import Any, NamedTuple

from distribution import formats
from exporters.reusable import errors
from exporters.reusable import keras_files
from exporters.reusable import weight_tables
from models.vision import image_classification
from models.vision import vit

_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"

_Line = weight_tables.Line
_DENSE = (weight_tables.TRANSPOSE,)
_HEADS = (weight_tables.TRANSPOSE, 1)  # [out, in] to [in, heads, size].

# Why some types cannot be exported, by the beginning of the type.
_REFUSED = {
  "resnet": "whose convolutions with strides pad both sides alike, as those of"
  " torch; Model Garden's pad as TensorFlow does",
  "mobilenet_v2": "whose classifier has another head than Model Garden's",
  # The differences were measured with random weights, between keras-hub's
  # layers as they are and with TensorFlow's padding.
  "EfficientNet": "whose convolutions with strides pad both sides alike; padded"
  " as Model Garden's, the features of a B0 differ by 0.11 of 0.83. timm's"
  " tf_efficientnet_* can be exported",
  "MobileNet": "whose convolutions with strides pad both sides alike; padded as"
  " Model Garden's, the features of a MobileNetV3 differ by 4.6 of 5.7",
  "ResNet": "whose convolutions pad otherwise than Model Garden's",
  "efficientnet": "which pads its convolutions otherwise than Model Garden;"
  " timm's tf_efficientnet_* can be exported",
  "vit_": "of timm; those of transformers, of type vit, can be exported",
  "deit_": "of timm; those of transformers, of type deit, can be exported",
}
_ACTIVATIONS = {
  "gelu": "gelu",
  **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
}

_NUMBERS = {
  "hidden_size": (int,),
  "intermediate_size": (int,),
  "num_attention_heads": (int,),
  "num_hidden_layers": (int,),
  "layer_norm_eps": (int, float),
  "hidden_dropout_prob": (int, float),
  "attention_probs_dropout_prob": (int, float),
}

# Tables for transformers. In models with a head, `vit.` or `deit.` precedes the
# names of the encoder's tensors.
_EMBEDDINGS = [
  _Line("class_token/cls", "embeddings.cls_token"),
  _Line("distillation_token/cls", "embeddings.distillation_token"),
  _Line("pos_embedding", "embeddings.position_embeddings"),
  _Line(
    "patches/kernel",
    "embeddings.patch_embeddings.projection.weight",
    (weight_tables.CONVOLUTION,),
  ),
  _Line("patches/bias", "embeddings.patch_embeddings.projection.bias"),
  _Line("norm/gamma", "layernorm.weight"),
  _Line("norm/beta", "layernorm.bias"),
  _Line("pooler/kernel", "pooler.dense.weight", _DENSE),
  _Line("pooler/bias", "pooler.dense.bias"),
]
_LAYER = [
  _Line(f"block_{{i}}/{ours}", f"encoder.layer.{{i}}.{theirs}", steps)
  for ours, theirs, steps in (
    *(
      (
        f"self_attention/{name}/{ours}",
        f"attention.attention.{name}.{x}",
        steps,
      )
      for name in ("query", "key", "value")
      for ours, x, steps in (
        ("kernel", "weight", _HEADS),
        ("bias", "bias", (0,)),
      )
    ),
    (
      "self_attention/attention_output/kernel",
      "attention.output.dense.weight",
      (weight_tables.TRANSPOSE, 0),
    ),
    (
      "self_attention/attention_output/bias",
      "attention.output.dense.bias",
      (),
    ),
    ("intermediate/kernel", "intermediate.dense.weight", _DENSE),
    ("intermediate/bias", "intermediate.dense.bias", ()),
    ("output/kernel", "output.dense.weight", _DENSE),
    ("output/bias", "output.dense.bias", ()),
    ("self_attention_layer_norm/gamma", "layernorm_before.weight", ()),
    ("self_attention_layer_norm/beta", "layernorm_before.bias", ()),
    ("output_layer_norm/gamma", "layernorm_after.weight", ()),
    ("output_layer_norm/beta", "layernorm_after.bias", ()),
  )
]
_HEAD = [
  _Line("head/kernel", "classifier.weight", _DENSE),
  _Line("head/bias", "classifier.bias"),
]
_VIT_LEFT_OUT = {
  "*embeddings.mask_token": "mask token",
  "decoder.*": "head",
}

# keras-hub's config keys, and the keys of transformers for them.
_OF_KERAS_HUB = {
  "hidden_dim": "hidden_size",
  "mlp_dim": "intermediate_size",
  "num_heads": "num_attention_heads",
  "num_layers": "num_hidden_layers",
  "layer_norm_epsilon": "layer_norm_eps",
  "dropout_rate": "hidden_dropout_prob",
  "attention_dropout": "attention_probs_dropout_prob",
  "patch_size": "patch_size",
}
# Keys of keras-hub that must be true.
_NEEDED_OF_KERAS_HUB = (
  *("use_mha_bias", "use_mlp_bias", "use_patch_bias", "use_class_token"),
)
# Model Garden's layers of a block, and keras-hub's layers for them.
_BLOCK_OF_KERAS_HUB = {
  "self_attention_layer_norm/{gamma}": "layer_norm_1",
  "output_layer_norm/{gamma}": "layer_norm_2",
  "self_attention/query/{kernel}": "mha/query_dense",
  "self_attention/key/{kernel}": "mha/key_dense",
  "self_attention/value/{kernel}": "mha/value_dense",
  "self_attention/attention_output/{kernel}": "mha/output_dense",
  "intermediate/{kernel}": "mlp/dense_1",
  "output/{kernel}": "mlp/dense_2",
}

# Tables for timm. The blocks of the first stage have no expansion.
_NORM = {
  "gamma": "weight",
  "beta": "bias",
  "moving_mean": "running_mean",
  "moving_variance": "running_var",
}
_CONVOLUTION = ("kernel", (weight_tables.CONVOLUTION,))
_DEPTHWISE = ("depthwise_kernel", (weight_tables.DEPTHWISE,))
_BLOCK = {
  "expand": ("conv_pw", "bn1", _CONVOLUTION),
  "depthwise": ("conv_dw", "bn2", _DEPTHWISE),
  "project": ("conv_pwl", "bn3", _CONVOLUTION),
}
_FIRST_BLOCK = {
  "depthwise": ("conv_dw", "bn1", _DEPTHWISE),
  "project": ("conv_pw", "bn2", _CONVOLUTION),
}
_EFFICIENTNET_LEFT_OUT = {"*.num_batches_tracked": "counters of batches"}


class Source(NamedTuple):
  """A classifier in a Hugging Face directory.

  Attributes:
    setup: Builds the classifier.
    has_head: Whether the weights include the head.
    classes: Names of the classes, if known.
    tensors: The tensors, by name.
    lines: The table that maps variables to tensors.
    left_out: Descriptions of the tensors to ignore, by pattern.
    is_numbered: Whether `lines` names variables as `keras_files.numbered`
      renumbers them.
  """

  setup: image_classification.Setup
  has_head: bool
  classes: Sequence[str]
  tensors: Mapping[str, weight_tables.Tensor]
  lines: Sequence[weight_tables.Line]
  left_out: Mapping[str, str]
  is_numbered: bool = False


def read(
  architecture: image_classification.Architecture,
  directory: str,
  overrides: Sequence[str],
  normalization: str | None,
) -> Source:
  """Reads a directory, and prints which file determines the normalization.

  Args:
    architecture: The architecture of the exporter.
    directory: The directory.
    overrides: Overrides, as in `image_classification.configure`.
    normalization: The normalization that the user requests. None: read it from
      the directory.

  Raises:
    ExportError: Model Garden cannot compute the classifier, another program
      exports it, or a file is missing or malformed.
  """
  library, type_ = formats.described(directory)
  config = formats.read_json(os.path.join(directory, _CONFIG))
  read_type = {"vit": _read_vit, "deit": _read_vit}.get(type_)
  exporter = type_
  if library == "timm" and type_.startswith("tf_efficientnet_b"):
    read_type, exporter = _read_efficientnet, "efficientnet"
  if library == "keras-hub" and type_ == "ViTBackbone":
    read_type, exporter = _read_keras_hub, "vit"
  reason = next((r for t, r in _REFUSED.items() if type_.startswith(t)), None)
  if read_type and exporter == architecture.name:
    with errors.of_content(f"{directory}/{_CONFIG}"):
      return read_type(
        architecture, directory, config, overrides, normalization
      )
  if read_type:
    reason = f"which //exporters:{exporter} exports"
  raise errors.ExportError(
    f"{directory} is a {library} directory of type {errors.shown(type_[:80])},"
    f" {reason or f'which //exporters:{architecture.name} cannot export'}."
  )


def configured(
  architecture: image_classification.Architecture,
  directory: str,
  experiment: image_classification.Experiment,
  model: Mapping[str, Any],
  overrides: Sequence[str],
) -> image_classification.Setup:
  """Configures an experiment by the values of a source.

  Args:
    architecture: The architecture.
    directory: The path of the source, for the name of the experiment.
    experiment: The experiment.
    model: The values to set in `task.model`.
    overrides: Further overrides, which take precedence.
  """
  name = f"{architecture.name} of {os.path.basename(directory)}"
  with errors.of_input(ValueError):
    return image_classification.configure(
      dataclasses.replace(architecture, experiments={name: experiment}),
      name,
      [json.dumps({"task": {"model": model}}), *overrides],
    )


def _read_vit(
  architecture: image_classification.Architecture,
  directory: str,
  config: Mapping[str, Any],
  overrides: Sequence[str],
  normalization: str | None,
) -> Source:
  where = f"{directory}/{_CONFIG}"
  type_ = config["model_type"]
  tensors, pooled = _with_one_head(
    weight_tables.read_safetensors(directory), where
  )
  _check_vit(where, config, tensors)
  prefix = f"{type_}."
  if not any(name.startswith(prefix) for name in tensors):
    prefix = ""
  head = tensors.get("classifier.weight")
  has_pooler = not head and f"{prefix}pooler.dense.weight" in tensors
  if has_pooler and config.get("pooler_act", "tanh") != "tanh":
    raise errors.ExportError(f"{where}: pooler_act must be tanh.")
  lines = [
    *(
      line._replace(theirs=prefix + line.theirs)
      for line in (
        *_EMBEDDINGS,
        *weight_tables.repeated(_LAYER, config["num_hidden_layers"]),
      )
    ),
    *_HEAD,
  ]
  classes = head.shape[0] if head and head.shape else 0
  setup = _vit(
    architecture,
    directory,
    {**config, "num_classes": classes, "has_pooler": has_pooler},
    overrides,
    _images(directory, normalization),
    pooled,
  )
  return Source(
    setup, bool(head), _classes(config, classes), tensors, lines, _VIT_LEFT_OUT
  )


def _vit(
  architecture: image_classification.Architecture,
  directory: str,
  config: Mapping[str, Any],
  overrides: Sequence[str],
  normalization: str | image_classification.Normalization,
  pooled: int = 1,
) -> image_classification.Setup:
  """Sets up a vision transformer from a config with transformers' keys."""
  type_ = config["model_type"]
  experiment = image_classification.Experiment(
    base=architecture.experiment,
    changes={"losses": {"l2_weight_decay": 0.0}},
    normalization=normalization,
    build=functools.partial(
      vit.of_any_sizes,
      activation=_ACTIVATIONS[config["hidden_act"]],
      epsilon=config["layer_norm_eps"],
      tokens=["class_token", "distillation_token"][: 1 + (type_ == "deit")],
      pooled=pooled,
    ),
    settable=["num_classes", "input_size", "backbone"],
  )
  setup = configured(
    dataclasses.replace(architecture, any_size=None, title=_title(config)),
    directory,
    experiment,
    {
      "num_classes": config["num_classes"] or 1,
      **_sizes(config, config["has_pooler"]),
    },
    overrides,
  )
  height, width, _ = setup.input_shape
  print(
    f"From {directory}/{_CONFIG}: {_title(config)}, {config['hidden_act']},"
    f" epsilon {config['layer_norm_eps']:g}, images of {height} by"
    f" {width} pixels."
  )
  return setup


def _read_keras_hub(
  architecture: image_classification.Architecture,
  directory: str,
  config: Mapping[str, Any],
  overrides: Sequence[str],
  normalization: str | None,
) -> Source:
  where = f"{directory}/{_CONFIG}"
  sizes = {
    ours: config["config"][theirs] for theirs, ours in _OF_KERAS_HUB.items()
  }
  task = formats.read_json(f"{directory}/task.json").get("config") or {}
  for name, value in {
    **{key: config["config"].get(key) for key in _NEEDED_OF_KERAS_HUB},
    "pooling": task.get("pooling", "token") == "token",
    "intermediate_dim": task.get("intermediate_dim") is None,
    "image_shape": config["config"]["image_shape"][-1] == 3,
  }.items():
    if not value:
      raise errors.ExportError(f"{where}: no ViT here has its {name}.")
  tensors: dict[str, weight_tables.Tensor] = {}
  for name in ("model", "task"):
    if os.path.lexists(path := f"{directory}/{name}.weights.h5"):
      tensors |= keras_files.read(path)[1]
  head = tensors.get("layers/dense/vars/1")
  sizes |= {
    "model_type": "vit",
    "hidden_act": "gelu",
    "num_classes": head.shape[0] if head and head.shape else 0,
    "has_pooler": False,
    "image_size": config["config"]["image_shape"][:2],
  }
  _check_vit(where, sizes, tensors)
  if not normalization:
    normalization = _converted(f"{directory}/image_converter.json")
  setup = _vit(architecture, directory, sizes, overrides, normalization)
  lines = _keras_hub_lines(sizes["num_hidden_layers"])
  return Source(setup, bool(head), (), tensors, lines, keras_files.NOT_WEIGHTS)


def _keras_hub_lines(layers: int) -> list[weight_tables.Line]:
  """Returns the table for keras-hub's ViT."""
  embedding = "layers/vi_t_patching_and_embedding"
  lines = [
    _Line("class_token/cls", f"{embedding}/vars/0"),
    _Line("pos_embedding", f"{embedding}/position_embedding/vars/0", (0,)),
  ]
  names = {
    "patches/{kernel}": f"{embedding}/patch_embedding",
    "norm/{gamma}": "layers/vi_t_encoder/layer_norm",
    "head/{kernel}": "layers/dense",
  }
  for i in range(layers):
    block = "layers/vi_t_encoder/encoder_layers/vi_t_encoder_block"
    block += f"_{i}" if i else ""
    for ours, theirs in _BLOCK_OF_KERAS_HUB.items():
      names[f"block_{i}/{ours}"] = f"{block}/{theirs}"
  for ours, theirs in names.items():
    for i, pair in enumerate(
      (
        {"kernel": "kernel", "gamma": "gamma"},
        {"kernel": "bias", "gamma": "beta"},
      )
    ):
      lines.append(_Line(ours.format(**pair), f"{theirs}/vars/{i}"))
  return lines


def _converted(where: str) -> image_classification.Normalization:
  """Returns the normalization of a keras-hub image converter."""
  config = formats.read_json(where).get("config")
  if not config:
    raise _unknown_images(where)
  with errors.of_content(where):
    scale, offset = (
      _three(where, value if isinstance(value, list) else [value] * 3)
      for value in (config.get("scale") or 1.0, config.get("offset") or 0.0)
    )
    deviations = [1 / (255 * x) if x else 0.0 for x in scale]
    means = [-x * d for x, d in zip(offset, deviations, strict=True)]
    normalized = _means(where, means, deviations)
  print(f"From {where}: images are normalized by {_shown(normalized)}.")
  return normalized


def _check_vit(
  where: str, config: Mapping[str, Any], tensors: Mapping[str, Any]
) -> None:
  """Raises an ExportError for a ViT that Model Garden cannot compute."""
  for name, types in _NUMBERS.items():
    value = config.get(name)
    if type(value) not in types or not 0 <= value < math.inf:
      raise errors.ExportError(
        f"{where}: {name} is {value!r}; it must be a number."
      )
  weight_tables.check_layers(where, config["num_hidden_layers"], tensors)
  bias = config.get("qkv_bias", True)
  if config["hidden_act"] not in _ACTIVATIONS or not bias:
    raise errors.ExportError(
      f"{where} has hidden_act {config['hidden_act']!r} and qkv_bias {bias};"
      f" only {', '.join(_ACTIVATIONS)} with biases can be exported."
    )
  patch = _pair(config["patch_size"])
  if patch[0] != patch[1] or config.get("num_channels", 3) != 3:
    raise errors.ExportError(
      f"{where}: only square patches of RGB images can be exported."
    )


def _sizes(config: Mapping[str, Any], has_pooler: bool) -> dict[str, Any]:
  """Returns Model Garden's config for the sizes of a ViT."""
  size = config["hidden_size"]
  backbone = {
    "hidden_size": size,
    "patch_size": _pair(config["patch_size"])[0],
    "representation_size": size if has_pooler else 0,
    "transformer": {
      "mlp_dim": config["intermediate_size"],
      "num_heads": config["num_attention_heads"],
      "num_layers": config["num_hidden_layers"],
      "dropout_rate": config["hidden_dropout_prob"],
      "attention_dropout_rate": config["attention_probs_dropout_prob"],
    },
  }
  return {
    "input_size": [*_pair(config["image_size"]), 3],
    "backbone": {"vit": backbone},
  }


def _title(config: Mapping[str, Any]) -> str:
  """Returns the name of a vision transformer for the model card."""
  names = {"vit": "ViT", "deit": "DeiT"}
  sizes = f"{config['num_hidden_layers']} layers of {config['hidden_size']}"
  return f"{names[config['model_type']]}, {sizes}"


def _with_one_head(
  tensors: dict[str, weight_tables.Tensor], where: str
) -> tuple[dict[str, weight_tables.Tensor], int]:
  """Merges the two heads of a distilled DeiT into one that returns the mean.

  Returns:
    The tensors, and the number of tokens that the head concatenates.
  """
  heads = ("cls_classifier", "distillation_classifier")
  tensors = dict(tensors)
  if heads[0] + ".weight" not in tensors:
    return tensors, 1
  for kind in ("weight", "bias"):
    pair = [tensors.pop(f"{h}.{kind}", None) for h in heads]
    if None in pair or pair[0].shape != pair[1].shape:
      raise errors.ExportError(
        f"{where}: the weights have no {heads[1]}.{kind} like"
        f" {heads[0]}.{kind}."
      )
    shape = list(pair[0].shape)
    if kind == "weight":
      shape[-1] *= 2

    def value(pair: Sequence[weight_tables.Tensor] = pair) -> Any:
      halves = [tensor.read() / 2 for tensor in pair]
      if halves[0].ndim == 1:
        return halves[0] + halves[1]
      return weight_tables.np.concatenate(halves, axis=-1)

    tensors[f"classifier.{kind}"] = weight_tables.Tensor(
      f"{pair[0].name} and {pair[1].name}", tuple(shape), value
    )
  return tensors, 2


def _read_efficientnet(
  architecture: image_classification.Architecture,
  directory: str,
  config: Mapping[str, Any],
  overrides: Sequence[str],
  normalization: str | None,
) -> Source:
  where = f"{directory}/{_CONFIG}"
  if not re.fullmatch("tf_efficientnet_b[0-7]", config["architecture"]):
    raise errors.ExportError(
      f"{where} is of {errors.shown(config['architecture'])}; only"
      " tf_efficientnet_b0 to b7 can be exported."
    )
  tensors = weight_tables.read_safetensors(directory)
  model_id = config["architecture"].removeprefix("tf_efficientnet_")
  of_images = config.get("pretrained_cfg", config)
  head = tensors.get("classifier.weight")
  classes = head.shape[0] if head and head.shape else 1
  _, *size = of_images["input_size"]
  legacy = architecture.experiments["legacy_efficientnet"]
  normalized = normalization or _means(
    where, of_images["mean"], of_images["std"]
  )
  setup = configured(
    architecture,
    directory,
    dataclasses.replace(
      legacy,
      normalization=normalized,
      settable=[*legacy.settable, "input_size"],
    ),
    {
      "num_classes": classes,
      "input_size": [*size, 3],
      "backbone": {"efficientnet": {"model_id": model_id}},
    },
    overrides,
  )
  print(
    f"From {where}: EfficientNet-{model_id.upper()} for images of {size[0]} by"
    f" {size[1]} pixels, normalized by {_shown(normalized)}."
  )
  lines = efficientnet_lines(tensors)
  return Source(setup, bool(head), (), tensors, lines, _EFFICIENTNET_LEFT_OUT)


def efficientnet_lines(names: Sequence[str]) -> list[weight_tables.Line]:
  """Returns the table for timm's EfficientNet, with the blocks in `names`."""
  blocks = sorted(
    {tuple(n.split(".")[1:3]) for n in names if n.startswith("blocks.")}
  )
  lines = [
    *_convolution("stem", "conv_stem", "bn1", _CONVOLUTION),
    *_convolution("top", "conv_head", "bn2", _CONVOLUTION),
    _Line("logits/kernel", "classifier.weight", _DENSE),
    _Line("logits/bias", "classifier.bias"),
  ]
  for stage, block in blocks:
    ours = f"stack_{stage}/block_{block}/"
    theirs = f"blocks.{stage}.{block}."
    for name, (conv, norm, kernel) in (
      _FIRST_BLOCK if stage == "0" else _BLOCK
    ).items():
      lines += _convolution(ours + name, theirs + conv, theirs + norm, kernel)
    for name in ("reduce", "expand"):
      lines += [
        _Line(
          f"{ours}se_{name}_conv2d/{kind}", f"{theirs}se.conv_{name}.{x}", steps
        )
        for kind, x, steps in (
          ("kernel", "weight", _CONVOLUTION[1]),
          ("bias", "bias", ()),
        )
      ]
  return lines


def _convolution(
  ours: str, conv: str, norm: str, kernel: tuple[str, tuple[Any, ...]]
) -> list[weight_tables.Line]:
  """Returns the lines of a convolution and its normalization."""
  return [
    _Line(f"{ours}_conv2d/{kernel[0]}", f"{conv}.weight", kernel[1]),
    *(_Line(f"{ours}_bn/{k}", f"{norm}.{v}") for k, v in _NORM.items()),
  ]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else tuple(value)


def _classes(config: Mapping[str, Any], count: int) -> list[str]:
  """Returns the names of the classes; [] if all are placeholders."""
  names = config.get("id2label") or {}
  found = [str(names.get(str(i), f"LABEL_{i}")) for i in range(count)]
  return [] if all(n == f"LABEL_{i}" for i, n in enumerate(found)) else found


def _images(directory: str, normalization: str | None) -> str | tuple[Any, Any]:
  """Returns the normalization: the user's, or the preprocessor config's."""
  where = f"{directory}/{_PREPROCESSOR}"
  if normalization:
    return normalization
  config = formats.read_json(where)
  if not config:
    raise _unknown_images(where)
  config = {"do_rescale": True, "do_normalize": True, **config}
  with errors.of_content(where):
    scale = config.get("rescale_factor", 1 / 255)
    if not formats.typed(where, config, "do_rescale", bool):
      scale = 1
    scale *= 255
    means, deviations = [0.0] * 3, [1.0] * 3
    if formats.typed(where, config, "do_normalize", bool):
      means, deviations = config["image_mean"], config["image_std"]
    normalized = _means(
      where,
      [m / scale for m in _three(where, means)],
      [d / scale for d in _three(where, deviations)],
    )
  print(f"From {where}: images are normalized by {_shown(normalized)}.")
  return normalized


def _unknown_images(where: str) -> errors.ExportError:
  return errors.ExportError(
    f"There is no {where}, which would say how images are normalized: say"
    f" --normalization={'|'.join(image_classification.NORMALIZATIONS)}."
  )


def _three(where: str, values: Any) -> list[float]:
  if (
    not isinstance(values, list)
    or len(values) != 3
    or not all(type(v) in (int, float) and math.isfinite(v) for v in values)
  ):
    raise errors.ExportError(f"{where}: means and deviations are 3 numbers.")
  return values


def _means(where: str, means: Any, deviations: Any) -> tuple[Any, Any]:
  pair = _three(where, means), _three(where, deviations)
  if not all(d > 0 for d in pair[1]):
    raise errors.ExportError(f"{where}: deviations must be more than 0.")
  return pair


def _shown(normalization: str | tuple[Any, Any]) -> str:
  if isinstance(normalization, str):
    return normalization
  means, deviations = ([f"{x:g}" for x in xs] for xs in normalization)
  return f"means {', '.join(means)}, deviations {', '.join(deviations)}"
