"""Tables of tensor names of text encoders in other formats.

Each table maps variables of Model Garden's encoders, by the end of their names,
to tensors of one format; see `weight_tables.parsed`.
"""

from __future__ import annotations

import re

from official.nlp.configs import encoders

from exporters.reusable import weight_tables

Line = weight_tables.Line

# BERT and ELECTRA of Hugging Face, without the prefix of the encoder. PyTorch's
# matrices are transposed.
_EMBEDDINGS = """
word_embeddings/embeddings       word_embeddings.weight
position_embedding/embeddings    position_embeddings.weight
type_embeddings/embeddings       token_type_embeddings.weight
embeddings/layer_norm/gamma      LayerNorm.weight
embeddings/layer_norm/beta       LayerNorm.bias
"""
_LAYER = """
self_attention/query/kernel             attention.self.query.weight        T 1
self_attention/query/bias               attention.self.query.bias          0
self_attention/key/kernel               attention.self.key.weight          T 1
self_attention/key/bias                 attention.self.key.bias            0
self_attention/value/kernel             attention.self.value.weight        T 1
self_attention/value/bias               attention.self.value.bias          0
self_attention/attention_output/kernel  attention.output.dense.weight      T 0
self_attention/attention_output/bias    attention.output.dense.bias
self_attention_layer_norm/gamma         attention.output.LayerNorm.weight
self_attention_layer_norm/beta          attention.output.LayerNorm.bias
intermediate/kernel                     intermediate.dense.weight          T
intermediate/bias                       intermediate.dense.bias
output/kernel                           output.dense.weight                T
output/bias                             output.dense.bias
output_layer_norm/gamma                 output.LayerNorm.weight
output_layer_norm/beta                  output.LayerNorm.bias
"""
_POOLER = """
kernel  pooler.dense.weight  T
bias    pooler.dense.bias
"""
_PROJECTION = """
kernel  embeddings_project.weight  T
bias    embeddings_project.bias
"""
_MLM_OF_BERT = """
output_bias/bias           bias
transform/dense/kernel     transform.dense.weight  T
transform/dense/bias       transform.dense.bias
transform/LayerNorm/gamma  transform.LayerNorm.weight
transform/LayerNorm/beta   transform.LayerNorm.bias
output_bias/bias           decoder.bias
"""
_MLM_OF_ELECTRA = """
output_bias/bias           generator_lm_head.bias
transform/dense/kernel     generator_predictions.dense.weight  T
transform/dense/bias       generator_predictions.dense.bias
transform/LayerNorm/gamma  generator_predictions.LayerNorm.weight
transform/LayerNorm/beta   generator_predictions.LayerNorm.bias
"""

# DistilBERT has no token types, so their embeddings are 0.
_EMBEDDINGS_OF_DISTILBERT = _EMBEDDINGS.replace(
  "token_type_embeddings.weight", "-"
)
_LAYER_OF_DISTILBERT = """
self_attention/query/kernel             attention.q_lin.weight    T 1
self_attention/query/bias               attention.q_lin.bias      0
self_attention/key/kernel               attention.k_lin.weight    T 1
self_attention/key/bias                 attention.k_lin.bias      0
self_attention/value/kernel             attention.v_lin.weight    T 1
self_attention/value/bias               attention.v_lin.bias      0
self_attention/attention_output/kernel  attention.out_lin.weight  T 0
self_attention/attention_output/bias    attention.out_lin.bias
self_attention_layer_norm/gamma         sa_layer_norm.weight
self_attention_layer_norm/beta          sa_layer_norm.bias
intermediate/kernel                     ffn.lin1.weight           T
intermediate/bias                       ffn.lin1.bias
output/kernel                           ffn.lin2.weight           T
output/bias                             ffn.lin2.bias
output_layer_norm/gamma                 output_layer_norm.weight
output_layer_norm/beta                  output_layer_norm.bias
"""
_MLM_OF_DISTILBERT = """
output_bias/bias           vocab_projector.bias
transform/dense/kernel     vocab_transform.weight  T
transform/dense/bias       vocab_transform.bias
transform/LayerNorm/gamma  vocab_layer_norm.weight
transform/LayerNorm/beta   vocab_layer_norm.bias
"""

_PROJECTION_OF_ALBERT = "embedding_hidden_mapping_in"

# ALBERT applies a single layer several times.
_LAYER_OF_ALBERT = """
self_attention/query/kernel             attention.query.weight        T 1
self_attention/query/bias               attention.query.bias          0
self_attention/key/kernel               attention.key.weight          T 1
self_attention/key/bias                 attention.key.bias            0
self_attention/value/kernel             attention.value.weight        T 1
self_attention/value/bias               attention.value.bias          0
self_attention/attention_output/kernel  attention.dense.weight        T 0
self_attention/attention_output/bias    attention.dense.bias
self_attention_layer_norm/gamma         attention.LayerNorm.weight
self_attention_layer_norm/beta          attention.LayerNorm.bias
intermediate/kernel                     ffn.weight                    T
intermediate/bias                       ffn.bias
output/kernel                           ffn_output.weight             T
output/bias                             ffn_output.bias
output_layer_norm/gamma                 full_layer_layer_norm.weight
output_layer_norm/beta                  full_layer_layer_norm.bias
"""
_MLM_OF_ALBERT = """
output_bias/bias           bias
transform/dense/kernel     dense.weight      T
transform/dense/bias       dense.bias
transform/LayerNorm/gamma  LayerNorm.weight
transform/LayerNorm/beta   LayerNorm.bias
output_bias/bias           decoder.bias
"""

_EMBEDDINGS_OF_MOBILEBERT = """
word_embedding/embeddings      word_embeddings.weight
position_embedding/embeddings  position_embeddings.weight
type_embedding/embeddings      token_type_embeddings.weight
embedding_projection/kernel    embedding_transformation.weight  T
embedding_projection/bias      embedding_transformation.bias
embedding_norm/gamma           LayerNorm.weight
embedding_norm/beta            LayerNorm.bias
"""
_LAYER_OF_MOBILEBERT = """
attention/query/kernel             attention.self.query.weight        T 1
attention/query/bias               attention.self.query.bias          0
attention/key/kernel               attention.self.key.weight          T 1
attention/key/bias                 attention.self.key.bias            0
attention/value/kernel             attention.self.value.weight        T 1
attention/value/bias               attention.self.value.bias          0
attention/attention_output/kernel  attention.output.dense.weight      T 0
attention/attention_output/bias    attention.output.dense.bias
attention/norm/gamma               attention.output.LayerNorm.weight
attention/norm/beta                attention.output.LayerNorm.bias
bottleneck_input/dense/kernel      bottleneck.input.dense.weight      T
bottleneck_input/dense/bias        bottleneck.input.dense.bias
bottleneck_input/norm/gamma        bottleneck.input.LayerNorm.weight
bottleneck_input/norm/beta         bottleneck.input.LayerNorm.bias
bottleneck_output/dense/kernel     output.bottleneck.dense.weight     T
bottleneck_output/dense/bias       output.bottleneck.dense.bias
bottleneck_output/norm/gamma       output.bottleneck.LayerNorm.weight
bottleneck_output/norm/beta        output.bottleneck.LayerNorm.bias
"""
_SHARED_OF_MOBILEBERT = """
dense/kernel  dense.weight      T
dense/bias    dense.bias
norm/gamma    LayerNorm.weight
norm/beta     LayerNorm.bias
"""
_FEED_FORWARD_OF_MOBILEBERT = """
intermediate_dense/kernel  intermediate.dense.weight  T
intermediate_dense/bias    intermediate.dense.bias
output_dense/kernel        output.dense.weight        T
output_dense/bias          output.dense.bias
norm/gamma                 output.LayerNorm.weight
norm/beta                  output.LayerNorm.bias
"""

# keras-hub's presets number the layers of each class, and the variables of each
# layer.
_EMBEDDINGS_OF_KERAS_HUB = """
word_embeddings/embeddings     reversible_embedding/vars/0
position_embedding/embeddings  position_embedding/vars/0
type_embeddings/embeddings     embedding/vars/0
embeddings/layer_norm/gamma    layer_normalization/vars/0
embeddings/layer_norm/beta     layer_normalization/vars/1
"""
_EMBEDDINGS_OF_KERAS_HUB_DISTILBERT = """
word_embeddings/embeddings     token_and_position_embedding/token_embedding/vars/0
position_embedding/embeddings  token_and_position_embedding/position_embedding/vars/0
type_embeddings/embeddings     -
embeddings/layer_norm/gamma    layer_normalization/vars/0
embeddings/layer_norm/beta     layer_normalization/vars/1
"""  # noqa: E501
_LAYER_OF_KERAS_HUB = """
self_attention/query/kernel             _self_attention_layer/query_dense/vars/0
self_attention/query/bias               _self_attention_layer/query_dense/vars/1
self_attention/key/kernel               _self_attention_layer/key_dense/vars/0
self_attention/key/bias                 _self_attention_layer/key_dense/vars/1
self_attention/value/kernel             _self_attention_layer/value_dense/vars/0
self_attention/value/bias               _self_attention_layer/value_dense/vars/1
self_attention/attention_output/kernel  _self_attention_layer/output_dense/vars/0
self_attention/attention_output/bias    _self_attention_layer/output_dense/vars/1
self_attention_layer_norm/gamma         _self_attention_layer_norm/vars/0
self_attention_layer_norm/beta          _self_attention_layer_norm/vars/1
intermediate/kernel                     _feedforward_intermediate_dense/vars/0
intermediate/bias                       _feedforward_intermediate_dense/vars/1
output/kernel                           _feedforward_output_dense/vars/0
output/bias                             _feedforward_output_dense/vars/1
output_layer_norm/gamma                 _feedforward_layer_norm/vars/0
output_layer_norm/beta                  _feedforward_layer_norm/vars/1
"""  # noqa: E501

# BERT of official.legacy in `.weights.h5` and `.keras` files.
_EMBEDDINGS_OF_KERAS = """
word_embeddings/embeddings     layers/on_device_embedding/vars/0
position_embedding/embeddings  layers/position_embedding/vars/0
type_embeddings/embeddings     layers/on_device_embedding_1/vars/0
embeddings/layer_norm/gamma    layers/layer_normalization/vars/0
embeddings/layer_norm/beta     layers/layer_normalization/vars/1
pooler_transform/kernel        pooler_layer/vars/0
pooler_transform/bias          pooler_layer/vars/1
"""
_LAYER_OF_KERAS = (
  _LAYER_OF_KERAS_HUB.replace("_feedforward_layer_norm", "_output_layer_norm")
  .replace("_self_attention_layer/", "_attention_layer/_")
  .replace(" _self_attention_layer_norm", " _attention_layer_norm_kv")
  .replace("_feedforward", "")
)
_MLM_OF_KERAS = """
output_bias/bias           vars/1
transform/dense/kernel     dense/vars/0
transform/dense/bias       dense/vars/1
transform/LayerNorm/gamma  layer_norm/vars/0
transform/LayerNorm/beta   layer_norm/vars/1
"""

_DENSE_OF_KERAS_HUB = """
kernel  vars/0
bias    vars/1
"""

_MLM = "bert/cls/predictions/"
_TABLES_OF_MLM = {
  "albert": ("predictions.", _MLM_OF_ALBERT),
  "bert": ("cls.predictions.", _MLM_OF_BERT),
  "distilbert": ("", _MLM_OF_DISTILBERT),
  "electra": ("", _MLM_OF_ELECTRA),
}
# Names of the copy of the word embedding that a head may have.
_DECODERS = {
  "albert": "predictions.decoder.weight",
  "bert": "cls.predictions.decoder.weight",
  "distilbert": "vocab_projector.weight",
  "electra": "generator_lm_head.weight",
}

# Hugging Face's tensors without effect on any type of encoder, by pattern.
LEFT_OUT = {
  "*position_ids": "buffers",
  "*token_type_ids": "buffers",
  **dict.fromkeys(
    (
      *("cls.*", "classifier.*", "discriminator_predictions.*"),
      *("generator_*", "pre_classifier.*", "predictions.*", "qa_outputs.*"),
      *("sequence_summary.*", "sop_classifier.*", "vocab_*"),
    ),
    "heads",
  ),
}


# The same for TensorFlow 1 checkpoints of the first releases.
LEFT_OUT_OF_TF1 = {
  **dict.fromkeys(("*/adam_[mv]", "*/lamb_[mv]", "beta?_power"), "optimizer"),
  "*global_step": "counters",
  **dict.fromkeys(
    ("cls/*", "discriminator_*", "generator*", "output_*", "finetune*"), "heads"
  ),
}
# The same for Keras files of the models of `official.legacy.bert`.
LEFT_OUT_OF_KERAS = dict.fromkeys(
  (
    *("cls/*", "classification/*", "predictions/*", "sentence_prediction/*"),
    *("span_labeling/*", "masked_lm/*", "next_sentence/*", "classifier/*"),
    "classification_head/*",
  ),
  "heads",
)
# Converts names of Hugging Face back to those of TensorFlow 1.
_TO_TF1 = {
  r"embeddings\.(\w+_embeddings)\.weight": r"embeddings.\1",
  r"LayerNorm\.weight": "LayerNorm.gamma",
  r"LayerNorm\.bias": "LayerNorm.beta",
  r"\.weight$": ".kernel",
  r"\blayer\.(\d+)": r"layer_\1",
  r"^cls\.predictions\.bias": "cls.predictions.output_bias",
}
_TO_TF1_OF_ALBERT = {
  r"albert_layer_groups\.0\.albert_layers\.0": (
    "transformer.group_0.inner_group_0"
  ),
  r"\.attention\.(query|key|value)": r".attention_1.self.\1",
  r"\.attention\.dense": ".attention_1.output.dense",
  r"\.attention\.LayerNorm": ".LayerNorm",
  r"\bffn\.": "ffn_1.intermediate.dense.",
  r"\bffn_output\.": "ffn_1.intermediate.output.dense.",
  r"full_layer_layer_norm\.weight": "LayerNorm_1.gamma",
  r"full_layer_layer_norm\.bias": "LayerNorm_1.beta",
  r"^pooler\.": "pooler.dense.",
  r"^predictions\.(dense|LayerNorm)": r"cls.predictions.transform.\1",
  r"^predictions\.": "cls.predictions.",
}
_TO_TF1_OF_MOBILEBERT = {
  r"LayerNorm": "FakeLayerNorm",
  r"\bffn\.(\d+)": r"ffn_layer_\1",
}


def tensorflow_1(
  model_type: str, config: encoders.EncoderConfig, *, with_mlm: bool
) -> list[Line]:
  """Returns the table of variable names in the first releases.

  Matrices are not transposed. ELECTRA's encoder has no head of masked language
  modeling, because only its generator has one.
  """
  renamed = {
    "albert": {**_TO_TF1_OF_ALBERT, **_TO_TF1},
    "mobilebert": {**_TO_TF1, **_TO_TF1_OF_MOBILEBERT},
  }.get(model_type, _TO_TF1)
  with_mlm = with_mlm and model_type != "electra"
  prefix = "electra" if model_type == "electra" else "bert"
  lines = []
  for line in hugging_face(model_type, config, with_mlm=with_mlm):
    name = line.theirs
    if "decoder" in name:
      continue
    for pattern, new in renamed.items():
      name = re.sub(pattern, new, name)
    if not name.startswith("cls."):
      name = f"{prefix}.{name}"
    steps = tuple(s for s in line.steps if s != weight_tables.TRANSPOSE)
    lines.append(Line(line.ours, name.replace(".", "/"), steps))
  return lines


def keras(
  model_type: str, config: encoders.EncoderConfig, *, with_mlm: bool
) -> list[Line]:
  """Returns the table for Keras files of official.legacy's BERT.

  It is for `.weights.h5` and `.keras` files, whose names are attribute paths.
  """
  del model_type
  lines = weight_tables.parsed(_EMBEDDINGS_OF_KERAS)
  for i in range(config.get().num_layers):
    number = f"_{i}" if i else ""
    lines += weight_tables.parsed(
      _LAYER_OF_KERAS,
      f"transformer/layer_{i}/",
      f"transformer_layers/transformer_encoder_block{number}/",
    )
  if with_mlm:
    lines += weight_tables.parsed(_MLM_OF_KERAS, _MLM, "masked_lm/")
    lines.append(Line("word_embeddings/embeddings", "masked_lm/vars/0"))
  return lines


def keras_hub(
  model_type: str, config: encoders.EncoderConfig, *, with_mlm: bool
) -> list[Line]:
  """Returns the table for a preset of keras-hub, which has no head."""
  del with_mlm
  parsed, sizes = weight_tables.parsed, config.get()
  if model_type == "distilbert":
    lines = parsed(_EMBEDDINGS_OF_KERAS_HUB_DISTILBERT, "", "layers/")
  else:
    lines = parsed(_EMBEDDINGS_OF_KERAS_HUB, "", "layers/")
  is_albert = model_type == "albert"
  for i in range(1 if is_albert else sizes.num_layers):
    lines += parsed(
      _LAYER_OF_KERAS_HUB,
      "transformer/" if is_albert else f"transformer/layer_{i}/",
      f"layers/transformer_encoder{f'_{i}' if i else ''}/",
    )
  width = sizes.embedding_width if is_albert else sizes.embedding_size
  dense = ["pooler_transform/"] if model_type != "distilbert" else []
  if width not in (None, sizes.hidden_size):
    dense.insert(0, "embedding_projection/")
  for i, ours in enumerate(dense):
    theirs = f"layers/dense{f'_{i}' if i else ''}/"
    lines += parsed(_DENSE_OF_KERAS_HUB, ours, theirs)
  return lines


def hugging_face(
  model_type: str, config: encoders.EncoderConfig, *, with_mlm: bool
) -> list[Line]:
  """Returns the table for a Hugging Face model.

  Args:
    model_type: One of `encoder_config.HUGGING_FACE_TYPES`.
    config: The config of the encoder.
    with_mlm: Whether to include the head of masked language modeling. The table
      of MobileBERT lacks it, because Hugging Face computes it differently.
  """
  parsed, sizes = weight_tables.parsed, config.get()
  if model_type == "mobilebert":
    return _mobilebert(sizes)
  if model_type == "albert":
    group = "encoder.albert_layer_groups.0.albert_layers.0."
    lines = [
      *parsed(_EMBEDDINGS, "", "embeddings."),
      *parsed(_LAYER_OF_ALBERT, "transformer/", group),
      *parsed(
        _PROJECTION.replace("embeddings_project", _PROJECTION_OF_ALBERT),
        "embedding_projection/",
        "encoder.",
      ),
      *parsed(_POOLER.replace(".dense", ""), "pooler_transform/"),
    ]
  elif model_type == "distilbert":
    layer = parsed(
      _LAYER_OF_DISTILBERT, "transformer/layer_{i}/", "transformer.layer.{i}."
    )
    lines = [
      *parsed(_EMBEDDINGS_OF_DISTILBERT, "", "embeddings."),
      *weight_tables.repeated(layer, sizes.num_layers),
    ]
  else:
    layer = parsed(_LAYER, "transformer/layer_{i}/", "encoder.layer.{i}.")
    lines = [
      *parsed(_EMBEDDINGS, "", "embeddings."),
      *weight_tables.repeated(layer, sizes.num_layers),
    ]
    if model_type == "bert":
      lines += parsed(_POOLER, "pooler_transform/")
    elif sizes.embedding_size != sizes.hidden_size:
      lines += parsed(_PROJECTION, "embedding_projection/")
  if with_mlm:
    prefix, table = _TABLES_OF_MLM[model_type]
    lines += parsed(table, _MLM, prefix)
    lines.append(Line("word_embeddings/embeddings", _DECODERS[model_type]))
  return lines


def _mobilebert(sizes: encoders.MobileBertEncoderConfig) -> list[Line]:
  parsed = weight_tables.parsed
  ours, theirs = "transformer_layer_{i}/", "encoder.layer.{i}."
  layer = parsed(_LAYER_OF_MOBILEBERT, ours, theirs)
  if sizes.key_query_shared_bottleneck:
    layer += parsed(
      _SHARED_OF_MOBILEBERT,
      f"{ours}kq_shared_bottleneck/",
      f"{theirs}bottleneck.attention.",
    )
  last = sizes.num_feedforward_networks - 1
  for j in range(last + 1):
    layer += parsed(
      _FEED_FORWARD_OF_MOBILEBERT,
      f"{ours}ffn_layer_{j}/",
      theirs if j == last else f"{theirs}ffn.{j}.",
    )
  return [
    *parsed(_EMBEDDINGS_OF_MOBILEBERT, "mobile_bert_embedding/", "embeddings."),
    *weight_tables.repeated(layer, sizes.num_blocks),
    *parsed(_POOLER, "pooler/"),
  ]
