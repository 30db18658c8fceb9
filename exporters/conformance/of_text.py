"""Rules for models of text: T1 to T7, and W1.

Source: TensorFlow Hub, common SavedModel APIs for text tasks.
"""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import subject as subject_lib
from exporters.reusable import observation

Subject = subject_lib.Subject

_TEXTS = ("", " ", "?!,", "qxzvjk", "naïve 你好", "Return the list of all.")
_WORDS = (("the", "qxzvjk", "of"), ("", "", ""), ("is", "?", ""))


def embeds_text(subject: Subject) -> findings.Finding:
  """Each text has a finite float32 vector that does not depend on its batch."""
  spec = subject.output_spec
  if not findings.is_float_vector(spec):
    return findings.failed(
      f"It returns {findings.described(spec)}, not float32 [batch, dim].",
      "Return one vector for each text.",
    )
  return _not_an_embedding(subject, tf.constant(_TEXTS)) or findings.passed(
    f"float32, {spec.shape[1]} dimensions, for empty and unknown texts too"
  )


def embeds_words(subject: Subject) -> findings.Finding:
  """Each word has a finite float32 vector; that of padding, "", is zero."""
  spec = subject.output_spec
  if spec.dtype != tf.float32 or spec.shape[2] is None:
    return findings.failed(
      f"It returns {findings.described(spec)}, not float32 [batch, length,"
      " dim].",
      "Return one vector for each word.",
    )
  words = tf.constant(_WORDS)
  padding = [[0, 0], [0, 2]]
  with_padding = {
    "before padding": lambda x: subject.model(
      tf.pad(x, padding, constant_values="")
    )[:, : x.shape[1]]
  }
  if finding := _not_an_embedding(subject, words, with_padding):
    return finding
  if np.any(subject.model(words).numpy()[words == ""]):
    return findings.failed(
      'The vector of "" is not zero, so padding changes sums of vectors.',
      'Multiply by 0 where the word is "".',
    )
  return findings.passed(f"float32, {spec.shape[2]} dimensions, 0 for padding")


def _not_an_embedding(
  subject: Subject,
  inputs: tf.Tensor,
  ways: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] | None = None,
) -> findings.Finding | None:
  """Finds inputs whose vector is not finite, or depends on other inputs.

  Args:
    subject: The SavedModel.
    inputs: A batch.
    ways: Further ways to call it, in words.
  """
  model = subject.model
  ways = {
    "in a batch": model,
    "alone": lambda x: tf.concat([model(each[tf.newaxis]) for each in x], 0),
    "beside an empty batch": lambda x: tf.concat([model(x), model(x[:0])], 0),
    "in Dataset.map": lambda x: next(
      iter(tf.data.Dataset.from_tensors(x).map(model))
    ),
    **(ways or {}),
  }
  results = {}
  for way, call in ways.items():
    try:
      results[way] = call(inputs).numpy()
    except Exception as e:
      return findings.failed(
        f"It cannot be called {way}: {subject_lib.first_line(e)}",
        "Use ops that run in a graph, on any number of strings of any length.",
      )
    name = f"A vector {way}"
    _, problems = observation.compare(
      "outputs", {name: results["in a batch"]}, {name: results[way]}
    )
    if not np.isfinite(results[way]).all():
      problems = ["A vector is not finite, such as that of an empty text"]
    if problems:
      return findings.failed(
        f"{problems[0]}.",
        "Compute each vector from its own text alone, and divide by no number"
        " of words or norm that may be 0.",
      )
  return None


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


def names_its_special_tokens(subject: Subject) -> findings.Finding:
  """Consumers can read the special tokens."""
  special = getattr(
    getattr(subject.model, "tokenize", None), "get_special_tokens_dict", None
  )
  if special is None:
    return findings.failed(
      "tokenize has no get_special_tokens_dict.",
      "Save it; masking tokens needs their ids.",
    )
  return findings.passed(f"{', '.join(sorted(special()))}")


def names_its_vocabulary(subject: Subject) -> findings.Finding:
  """Consumers can read the vocabulary."""
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
