"""Writes small random models of transformers, and what they compute.

It runs in the environment of the peers, which have torch:

  python exporters/peers/make_goldens.py DIRECTORY

Each subdirectory is that of a model, with its inputs and outputs as
`expected.safetensors`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys

from safetensors import numpy as safetensors_numpy
import sentence_transformers
from sentence_transformers import models
import torch
import transformers

_SIZES = {
  "vocab_size": 40,
  "hidden_size": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 20,
  "max_position_embeddings": 20,
}
_DISTILBERT = {
  "vocab_size": 40,
  "dim": 12,
  "n_layers": 2,
  "n_heads": 2,
  "hidden_dim": 20,
  "max_position_embeddings": 20,
}
_MOBILEBERT = {
  "embedding_size": 6,
  "intra_bottleneck_size": 8,
  "true_hidden_size": 8,
}
_MODELS = {
  "albert": (
    transformers.AlbertForMaskedLM,
    transformers.AlbertConfig(**_SIZES, embedding_size=8),
  ),
  "bert": (
    transformers.BertForPreTraining,
    transformers.BertConfig(**_SIZES, hidden_act="gelu"),
  ),
  "bert_tanh": (
    transformers.BertModel,
    transformers.BertConfig(**_SIZES, hidden_act="gelu_new"),
  ),
  "distilbert": (
    transformers.DistilBertForMaskedLM,
    transformers.DistilBertConfig(**_DISTILBERT),
  ),
  "electra": (
    transformers.ElectraForMaskedLM,
    transformers.ElectraConfig(**_SIZES, embedding_size=8),
  ),
  "electra_discriminator": (
    transformers.ElectraForPreTraining,
    transformers.ElectraConfig(**_SIZES, embedding_size=12),
  ),
  "mobilebert": (
    transformers.MobileBertForPreTraining,
    transformers.MobileBertConfig(**_SIZES, **_MOBILEBERT),
  ),
}
_TOKENS = (
  *("[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox"),
  *("##es", "un", "##believ", "##able", "…", ".", ",", "!", "?", "'", "[", "]"),
  *("漢", "字", "ß", "e", "mask", *"abcdfghijklmnopqrstuvwxyz", "##s", "##a"),
  *(
    "##n",
    "##b",
    "##t",
    "\N{GREEK SMALL LETTER SIGMA}",
    "-",
    "##u",
    "½",
    "##d",
    "##e",
    "##o",
  ),
  *("é", "##ing"),
)
TEXTS = (
  "The foxes, unbelievable!",
  "",
  "Ünïcödé: É… 漢字 ½ ß [MASK] [mask] a\u00adb\u0085c\u2028d \ue000",
  "un" * 51 + " " + "un" * 50 + " ΑΣ ΣΑΣ. A fox\x00es 😀",
  "the fox " * 20,
)


def _randomize(model: torch.nn.Module) -> None:
  """Gives every tensor values that tell it from the others."""
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, 0.0, 0.3)


def _write_model(
  directory: str,
  cls: type[transformers.PreTrainedModel],
  config: transformers.PretrainedConfig,
) -> None:
  torch.manual_seed(0)
  model = cls(config).eval()
  _randomize(model)
  model.save_pretrained(directory)
  generator = torch.Generator().manual_seed(0)
  ids = torch.randint(0, config.vocab_size, (3, 9), generator=generator)
  mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] + [0] * 8])
  types = torch.randint(0, 2, (3, 9), generator=generator)
  inputs = {"input_ids": ids, "attention_mask": mask}
  if config.model_type != "distilbert":
    inputs["token_type_ids"] = types
  with torch.no_grad():
    outputs = getattr(model, model.base_model_prefix, model)(**inputs)
    expected = {
      "input_word_ids": ids,
      "input_mask": mask,
      "input_type_ids": types,
      "sequence_output": outputs.last_hidden_state,
    }
    if getattr(outputs, "pooler_output", None) is not None:
      expected["pooled_output"] = outputs.pooler_output
    whole = model(**inputs)
    for name in ("prediction_logits", "logits"):
      logits = getattr(whole, name, None)
      if logits is not None and logits.shape[-1] == config.vocab_size:
        expected["mlm_logits"] = logits
  safetensors_numpy.save_file(
    {name: value.contiguous().numpy() for name, value in expected.items()},
    f"{directory}/expected.safetensors",
  )


def _write_sentence_transformer(directory: str) -> None:
  """Writes a model with its tokenizer; and ids and vectors of `TEXTS`."""
  torch.manual_seed(1)
  tokenizer = transformers.BertTokenizer(
    vocab={token: i for i, token in enumerate(_TOKENS)}, do_lower_case=True
  )
  encoder = transformers.BertModel(
    transformers.BertConfig(**{**_SIZES, "vocab_size": len(_TOKENS)})
  )
  _randomize(encoder)
  base = f"{directory}/base"
  encoder.save_pretrained(base)
  tokenizer.save_pretrained(base)
  model = sentence_transformers.SentenceTransformer(
    modules=[
      models.Transformer(base, max_seq_length=16),
      models.Pooling(12, "mean"),
      models.Normalize(),
    ],
    device="cpu",
  )
  model.save(directory)
  shutil.rmtree(base)
  os.remove(f"{directory}/README.md")
  features = tokenizer(
    list(TEXTS),
    padding="max_length",
    truncation=True,
    max_length=16,
    return_tensors="np",
  )
  expected = {
    "input_word_ids": features["input_ids"],
    "input_mask": features["attention_mask"],
    "vectors": model.encode(list(TEXTS)),
  }
  safetensors_numpy.save_file(expected, f"{directory}/expected.safetensors")
  with open(f"{directory}/texts.json", "w") as f:
    json.dump(TEXTS, f)


def main(directory: str) -> None:
  """Writes all models."""
  for name, (cls, config) in _MODELS.items():
    path = os.path.join(directory, name)
    os.makedirs(path, exist_ok=True)
    _write_model(path, cls, config)
  path = os.path.join(directory, "sentence_transformer")
  os.makedirs(path, exist_ok=True)
  _write_sentence_transformer(path)


if __name__ == "__main__":
  main(sys.argv[1])
