"""Rules for models of text: T1 to T6.

Source: TensorFlow Hub, common SavedModel APIs for text tasks.
"""

from collections.abc import Mapping

import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import subject as subject_lib

Subject = subject_lib.Subject


def embeds_text(subject: Subject) -> findings.Finding:
  """The output of a text embedding is float32 [batch, dim]."""
  spec = subject.output_spec
  if not findings.is_float_vector(spec):
    return findings.failed(
      f"It returns {findings.described(spec)}, not float32 [batch, dim].",
      "Return one vector for each text.",
    )
  return findings.passed(f"float32, {spec.shape[1]} dimensions")


def preprocesses(subject: Subject) -> findings.Finding:
  """A preprocessor tokenizes, packs segments, and runs in Dataset.map."""
  texts = subject.example(4)
  for name in ("tokenize", "bert_pack_inputs"):
    if not callable(getattr(subject.model, name, None)):
      return findings.failed(
        f"It has no sub-object `{name}`, so consumers cannot pack segments"
        " themselves.",
        f"Save {name} as a sub-object.",
      )
  tokens = subject.model.tokenize(texts)
  if not isinstance(tokens, tf.RaggedTensor) or tokens.dtype != tf.int32:
    return findings.failed(
      f"`tokenize` returns {type(tokens).__name__} of {tokens.dtype.name}.",
      "Return an int32 RaggedTensor.",
    )
  try:
    packed = subject.model.bert_pack_inputs(
      [tokens, tokens], seq_length=tf.constant(12)
    )
  except Exception as e:
    return findings.failed(
      "`bert_pack_inputs` does not take two segments and a seq_length:"
      f" {subject_lib.first_line(e)}",
      "Trace it with these arguments.",
    )
  if packed["input_word_ids"].shape[1] != 12:
    return findings.failed(
      "`bert_pack_inputs` ignores seq_length: it returns"
      f" {packed['input_word_ids'].shape[1]} tokens of 12.",
      "Use the argument.",
    )
  if "training" in subject.parameters and subject.differ(
    {"training": True}, {"training": False}
  ):
    return findings.failed(
      "Training and inference differ.",
      "Move what training needs to the encoder.",
    )
  try:
    mapped = tf.data.Dataset.from_tensors(texts).map(subject.model)
    next(iter(mapped))
  except Exception as e:
    return findings.failed(
      f"It cannot run in Dataset.map: {subject_lib.first_line(e)}",
      "Use ops that run in a graph, on strings of any length.",
    )
  if subject.op_counts.get("Assert"):
    return findings.failed(
      "Its Assert ops keep it from running in the Dataset.map of a TPU host.",
      "Remove them.",
    )
  return findings.passed("tokenize, bert_pack_inputs, Dataset.map")


def encodes(subject: Subject) -> findings.Finding:
  """Inputs and outputs of an encoder are those of BERT, of any length."""
  names = ("input_word_ids", "input_mask", "input_type_ids")
  inputs, outputs = subject.spec, subject.output_spec
  missing = [name for name in names if name not in inputs]
  if missing:
    return findings.failed(
      f"It does not take {findings.some(missing)}.", "Take it."
    )
  for name in names:
    spec = inputs[name]
    if spec.dtype != tf.int32 or spec.shape.as_list() != [None, None]:
      return findings.failed(
        f"It takes {name} as {findings.described(spec)}, not int32 [batch,"
        " seq_length] with both dimensions unknown.",
        "Trace with int32 and [None, None].",
      )
  if not isinstance(outputs, Mapping):
    outputs = {}
  needed = ("sequence_output", "pooled_output", "default", "encoder_outputs")
  missing = [name for name in needed if name not in outputs]
  if missing:
    return findings.failed(
      f"It does not return {findings.some(missing)}.", "Return a dict with it."
    )
  wrong = [
    name
    for name in needed
    if any(x.dtype != tf.float32 for x in tf.nest.flatten(outputs[name]))
  ]
  if wrong:
    return findings.failed(
      f"{findings.some(wrong)} is not float32.", "Cast it."
    )
  return findings.passed("inputs and outputs are those of an encoder")


def names_its_preprocessor(subject: Subject) -> findings.Finding:
  """An encoder records which preprocessor it belongs to."""
  recorded = getattr(subject.model, "preprocessor_sha256", None)
  if recorded is not None:
    return findings.passed(f"preprocessor_sha256 {recorded().numpy().decode()}")
  card = subject.card
  if card is None:
    return findings.not_decidable("it records none, and has no card")
  if "preprocessor" not in card:
    return findings.failed(
      "Neither the encoder nor its card names its preprocessor.",
      "Name it in the card, and save a function `preprocessor_sha256` with both"
      " SavedModels.",
    )
  return findings.passed("its card names a preprocessor")


def has_language_model(subject: Subject) -> findings.Finding:
  """`mlm` takes masked_lm_positions and returns mlm_logits."""
  mlm = getattr(subject.model, "mlm", None)
  if mlm is None:
    return findings.not_applicable("it has no mlm")
  inputs = {
    **subject.example(),
    "masked_lm_positions": tf.ones([2, 3], tf.int32),
  }
  try:
    outputs = mlm(inputs)
  except Exception as e:
    return findings.failed(
      "`mlm` does not take masked_lm_positions besides the inputs of the"
      f" encoder: {subject_lib.first_line(e)}",
      "Trace it with masked_lm_positions.",
    )
  if "mlm_logits" not in outputs:
    return findings.failed(
      f"`mlm` returns {', '.join(outputs)}, not mlm_logits.",
      "Return them in a dict.",
    )
  return findings.passed(f"mlm_logits {outputs['mlm_logits'].shape}")


def names_its_vocabulary(subject: Subject) -> findings.Finding:
  """Consumers can read the vocabulary and the special tokens."""
  if subject.kind == "preprocessor":
    special = getattr(
      getattr(subject.model, "tokenize", None), "get_special_tokens_dict", None
    )
    if special is None:
      return findings.failed(
        "tokenize has no get_special_tokens_dict.",
        "Save it; masking tokens needs their ids.",
      )
    return findings.passed(f"{', '.join(sorted(special()))}")
  model = subject.model
  if hasattr(model, "sp_model_file"):
    return findings.passed("sp_model_file")
  if not hasattr(model, "vocab_file") or not hasattr(model, "do_lower_case"):
    return findings.failed(
      "It does not name its vocabulary: vocab_file and do_lower_case are"
      " missing.",
      "Save vocab_file as an asset and do_lower_case as a variable.",
    )
  return findings.passed("vocab_file and do_lower_case")
