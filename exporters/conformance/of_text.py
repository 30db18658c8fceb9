"""Rules for models of text: T1 to T8, and W1.

Source: TensorFlow Hub, common SavedModel APIs for text tasks.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import itertools
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import embeddings
from exporters.conformance import findings
from exporters.conformance import gradients
from exporters.conformance import subject as subject_lib
from exporters.conformance import vocabulary
from exporters.reusable import comparison

Subject = subject_lib.Subject

_TEXTS = ("", " ", "?!,", "qxzvjk", "naïve 你好", "Return the list of all.")
_ENDS = ("the", "of", "list", "return", "is", "good")
_LENGTHS = (8, 32)  # In words.
_LONG = 600  # In words. Such texts have more tokens than encoders take.
_MANY = 200  # In words. Embeddings may cut such a text if the card says so.
_LIMIT = re.compile(
  r"(?i)trunc|\bcut|max\w*[ _](seq|len|tok)|(seq\w*|input)[ _]len"
  r"|\b(first|last|at most|up to|limit\w*|maximum|longer)\b[^.|]{0,40}"
  r"\b(words?|tokens?|pieces|characters)\b"
)
_SEGMENTS = (
  ("", "It is", "Return the list of all. " * 120, "naïve 你好 мир 🙂", " ?!,"),
  ("The end.", "", "Of a much longer text, " * 9, "مرحبا", "is not"),
  ("And a third one", "is 1", "The last. " * 30, "", "of"),
)
_PACKED = (12, 16, 40, 130, 512, 9, 33, 256)  # Lengths.
_UNKNOWN = frozenset(("[UNK]", "<unk>"))
# Texts for which every tokenizer returns tokens.
_ALONE = ("the", "2026", "你好", "мир", "مرحبا", "qxzvjk" * 5)
_MARKS = (",", ".", "?")
_INPUTS = ("input_word_ids", "input_mask", "input_type_ids")
_WORDS = (("the", "qxzvjk", "of"), ("", "", ""), ("is", "?", ""))
_ORDER = "the order of the tokens"
_MOST = 512  # Tokens.
_LEAST = 0.9  # Least share of the rows of an embedding table that have tokens.
_CASED = 0.1  # A vocabulary with a larger share of capitals is cased.
_IN_BRACKETS = re.compile(r"\[.+\]|<.+>")
_SPECIAL_TOKEN = re.compile(rf"{_IN_BRACKETS.pattern}|_*(PAD|CLS|SEP|MASK)_*")
_OF_LAYER = 8  # Least number of variables of an attention layer.
_OF_PROJECTION = 4  # Most variables of a projection after the last layer.
_TRIED = 4  # Words to look up.
_COMBINERS = ("mean", "sqrtn", "sum")  # See `tf.nn.embedding_lookup_sparse`.
# Matches the card of a tokenizer that drops punctuation.
_WITHOUT_MARKS = re.compile(r"(?i)punctuation|\bwords\b|regular expression")
_ACCENTS = re.compile(r"(?<!never )strips (?:\w+ )?accents(?!\W+(?:no|false))")
_CASING = re.compile(r"(?:do_lower_case\W+|text is )(true|false|lowercased)")
_SPECIAL = (
  "padding_id",
  "start_of_sequence_id",
  "end_of_segment_id",
  "mask_id",
)


def embeds_text(subject: Subject) -> findings.Finding:
  """Each text has a finite float32 vector that does not depend on its batch."""
  spec = subject.output_spec
  if subject.strings != "texts":
    return findings.not_applicable(f"it takes {subject.strings}")
  if not findings.is_float_vector(spec):
    return findings.failed(
      f"It returns {findings.described(spec)}, not float32 [batch, dim].",
      "Return one vector for each text.",
    )
  if finding := _not_an_embedding(subject, tf.constant(_TEXTS)):
    return finding
  # An argument, such as seq_length, may say where texts are cut.
  has_length = any(type(x) is int for x in subject.hyperparameters.values())
  lengths = _LENGTHS[:1] if has_length else (*_LENGTHS, _MANY)
  modes = {"inference": subject.model}
  if (exact := subject.repeatable) and exact.training:
    modes["training"] = lambda x: exact.model(x, **exact.steady)
  for length, (mode, represent) in itertools.product(lengths, modes.items()):
    if length == _MANY and _may_be_cut(subject):
      continue
    if _is_cut(represent, length):
      return findings.failed(
        f"The last of {length} words, on a line of its own, has no effect on"
        f" the vector in {mode}"
        f"{', and the card names no limit' * (length == _MANY)}.",
        "Compute each vector from the whole text.",
      )
  if problem := _miscased(
    subject, lambda x: subject.model(tf.constant(x)).numpy().tolist()
  ):
    return findings.failed(
      f"{problem}.", "Say in the card what the model does."
    )
  if _miscombined(subject):
    return findings.failed(
      "The vectors of combiner=sum, sqrtn and mean are not the same sum,"
      " divided by 1, by the square root of n, and by n.",
      "Compute them as tf.nn.embedding_lookup_sparse does.",
    )
  if word := _other_word(subject):
    return findings.failed(
      f"`word_embedding` returns a vector for {word} that differs from that of"
      " a call, or from that in a list of words.",
      'Look both up in the same table; the vector of "" is zero.',
    )
  return findings.passed(
    f"float32, {spec.shape[1]} dimensions, for empty and unknown texts too"
  )


def _may_be_cut(subject: Subject) -> bool:
  """Tells whether the model may ignore the end of long texts.

  Without a card, or in half precision, it may. A sum over many words may hide
  each of them, so that the first word has no effect either.
  """
  if not subject.card or _LIMIT.search(subject.card) or subject.is_half:
    return True
  try:
    return _is_cut(subject.model, _MANY, at_start=True)
  except Exception:  # The model takes only short texts.
    return True


def _is_cut(
  represent: Callable[[tf.Tensor], Any], length: int, *, at_start: bool = False
) -> bool:
  """Tells whether vectors, or tokens, of texts ignore the last word.

  Args:
    represent: Returns the vectors, or tokens, of texts.
    length: The number of words.
    at_start: Whether to test the first word instead.
  """
  # All other words are equal: different ones could exceed the tested word in a
  # maximum over words.
  others = " ".join([_ENDS[0]] * (length - 1))
  texts = [
    f"{end} {others}" if at_start else f"{others}.\r\n\t{end}" for end in _ENDS
  ]
  alone, in_texts = (
    represent(tf.constant(x)).numpy().tolist() for x in (_ENDS, texts)
  )
  # Unknown words may all have the same vector, so changing one has no effect.
  is_known = len(set(map(str, alone))) > 2
  return is_known and in_texts == [in_texts[0]] * len(texts)


def _miscased(
  subject: Subject, represent: Callable[[Sequence[str]], list[Any]]
) -> str:
  """Describes how case or accents contradict the card; empty if they do not.

  Args:
    subject: The SavedModel.
    represent: Returns the vectors, or tokens, of texts.
  """
  card = (subject.card or "").lower()
  said = {x != "false" for x in _CASING.findall(card)}
  words = (*_ENDS, "énorme") if said == {True} else _ENDS
  lower, upper = (
    represent([f(x) for x in words]) for f in (str.lower, str.upper)
  )
  is_known = any(x != lower[0] for x in lower)
  if is_known and said == {lower != upper}:
    says, are = ("true", "not ") if said == {True} else ("false", "")
    return (
      f"The card says that do_lower_case is {says}, and texts in lower and in"
      f" upper case are {are}the same to it"
    )
  if said == {True} and _ACCENTS.search(card):
    with_accents, without = map(represent, (["naïve café"], ["naive cafe"]))
    if with_accents != without:
      return "The card says that it strips accents, and 'naïve' is not 'naive'"
  return ""


def _miscombined(subject: Subject) -> bool:
  """Tells whether the results of different combiners contradict each other."""
  if "combiner" not in subject.parameters or not all(
    x in (subject.card or "") for x in _COMBINERS
  ):
    return False
  texts = tf.constant([*_TEXTS, " ".join(2 * subject.words[:16])])
  mean, root, total = (
    subject.model(texts, combiner=tf.constant(x)).numpy() for x in _COMBINERS
  )
  is_power = np.allclose(mean * total, root**2, rtol=1e-3, atol=1e-12)
  is_less = np.any(mean) and np.abs(total).sum() <= np.abs(mean).sum()
  return not is_power or is_less


def _other_word(subject: Subject) -> str:
  """Returns a word, quoted, to which `word_embedding` gives another vector.

  Returns "" if there is none, or if the two cannot be compared. They can if a
  call with one word returns a row of a table, as a mean over words does. With
  more layers, the vector of a text is not that of a word.
  """
  of_words = getattr(subject.model, "word_embedding", None)
  words = [x for x in subject.words if x.isalpha() and x.islower()][:_TRIED]
  if not words or not subject_lib.traces_of(of_words):
    return ""
  texts = tf.constant(words)
  vectors = subject.model(texts).numpy()
  others = of_words(texts[:, tf.newaxis])[:, 0].numpy()
  if vectors.shape != others.shape:
    return ""
  row = tf.concat([tf.repeat(texts, _TRIED), [""]], 0)
  in_row = of_words(row[tf.newaxis])[0].numpy()
  expected = [*np.repeat(others, _TRIED, 0), np.zeros_like(in_row[0])]
  for word, one, other in zip(row.numpy(), in_row, expected, strict=True):
    if not np.allclose(one, other):
      return repr(word.decode())
  tables = [v for v in subject.variables if v.shape[1:] == vectors.shape[1:]]
  # `words` may contain the names of combiners, which have no vector.
  is_known = np.any(vectors, axis=1)
  for vector, other in zip(vectors[is_known], others[is_known], strict=True):
    is_other = np.any(other) and not np.allclose(vector, other)
    if not is_other or not any(
      np.any(np.all(table.numpy() == vector, axis=1)) for table in tables
    ):
      return ""
  return repr(words[is_known.argmax()]) if is_known.any() else ""


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
    ways: Further functions that call the model, by their descriptions.
  """
  model = subject.model
  ways = {
    "in a batch": model,
    "alone": lambda x: tf.concat([model(each[tf.newaxis]) for each in x], 0),
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
      if way == "in a batch":
        subject.example()  # Raises NoInputError if its strings are records.
      return findings.failed(
        f"It cannot be called {way}: {subject_lib.cause(e)}",
        "Use ops that run in a graph, on any number of strings of any length.",
      )
    name = f"A vector {way}"
    _, problems = comparison.compare(
      "outputs", {name: results["in a batch"]}, {name: results[way]}
    )
    if not np.isfinite(results[way]).all():
      problems = ["A vector is not finite, such as that of an empty text"]
    if problems:
      return findings.failed(
        f"{problems[0]}.",
        "Compute each vector from its own text alone, and do not divide by a"
        " number of words or a norm that can be 0.",
      )
  return None


def preprocesses(subject: Subject) -> findings.Finding:
  """A preprocessor tokenizes, packs segments, and runs in Dataset.map."""
  texts = tf.constant(_SEGMENTS[0])
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
  packed, finding = _packed(subject.model, tokens)
  if finding:
    return finding
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
      f"It cannot run in Dataset.map: {subject_lib.cause(e)}",
      "Use ops that run in a graph, on strings of any length.",
    )
  if wide := [
    name
    for outputs in (packed, subject.model(texts))
    for name in _INPUTS
    if outputs[name].dtype != tf.int32
  ]:
    return findings.failed(
      f"{wide[0]} is not int32, which encoders take.", "Cast it."
    )
  if problem := _badly_tokenized(subject):
    return findings.failed(
      f"{problem}.", "Return all tokens of a text, of any length."
    )
  if problem := _badly_packed(subject):
    return findings.failed(
      f"{problem}.",
      "Pack a start token, then each segment and an end token, then padding,"
      " as tensorflow-models' BertPackInputs does.",
    )
  return findings.passed(
    "tokenize, Dataset.map, and bert_pack_inputs in lengths from 12 to 512"
  )


def _packed(
  model: Any, tokens: tf.RaggedTensor
) -> tuple[Mapping[str, tf.Tensor], findings.Finding | None]:
  """Packs two segments; returns a finding where that is not possible."""
  try:
    packed = model.bert_pack_inputs(
      [tokens, tokens], seq_length=tf.constant(12)
    )
  except Exception as e:
    return {}, findings.failed(
      "`bert_pack_inputs` does not take two segments and a seq_length:"
      f" {subject_lib.cause(e)}",
      "Trace it with these arguments.",
    )
  if packed["input_word_ids"].shape[1] != 12:
    return {}, findings.failed(
      "`bert_pack_inputs` ignores seq_length: it returns"
      f" {packed['input_word_ids'].shape[1]} tokens of 12.",
      "Use the argument.",
    )
  return packed, None


def _tokens(model: Any, texts: Any) -> tf.RaggedTensor:
  """Returns the tokens of texts, without a dimension of words."""
  tokens = model.tokenize(tf.constant(texts))
  return tokens.merge_dims(1, -1) if tokens.shape.rank > 2 else tokens


def _badly_tokenized(subject: Subject) -> str:
  """Describes an error in tokens; empty if there is none."""
  model = subject.model
  own = [x for x in subject.words if x.isalpha()][:_TRIED]
  assets = vocabulary.of_assets(subject.directory, subject.files)
  known = [x for x in assets if _UNKNOWN.intersection(x)]
  marks = [x for x in _MARKS if any(x in lines for lines in known)]
  is_hidden = not own and not known
  if is_hidden and subject.card and not _WITHOUT_MARKS.search(subject.card):
    marks = list(_MARKS)
  # A tokenizer without a token for unknown words may drop such words.
  texts = own if own and not known else [*_ALONE, *marks]
  counts = _tokens(model, texts).row_lengths().numpy()
  if lost := [x for x, n in zip(texts, counts, strict=True) if not n]:
    return f"The text {lost[0]!r} has no tokens"
  if problem := _otherwise_numbered(model, known):
    return problem
  if _is_unordered(model, own or _ENDS):
    return "The tokens of a text are not those of its words, in their order"
  if word := _lost_end(model, own or _ENDS):
    return f"The end of the word {word!r} has no tokens"
  for length in (*_LENGTHS, _LONG):
    if _is_cut(lambda x: _tokens(model, x).to_tensor(-1), length):
      return f"The last of {length} words has no tokens"
  return _miscased(subject, lambda x: _tokens(model, x).to_list())


def _otherwise_numbered(model: Any, vocabularies: Sequence[list[str]]) -> str:
  """Describes a word whose id is not its line in WordPiece vocabularies.

  Compares only vocabularies whose line of [MASK] is `mask_id`. Returns "" if
  one of them has the same ids as the tokenizer.
  """
  special = getattr(model.tokenize, "get_special_tokens_dict", dict)()
  problem = ""
  for lines in vocabularies:
    ids = {word: i for i, word in reversed([*enumerate(lines)])}
    if "mask_id" not in special or ids.get("[MASK]") != special["mask_id"]:
      continue
    words = [x for x in ids if re.fullmatch("[a-z]{2,}", x)]
    if not words or not any(x.startswith("##") for x in lines):
      continue
    words = words[:: len(words) // _TRIED + 1]
    tokens = _tokens(model, words).to_list()
    wrong = [
      (x, y) for x, y in zip(words, tokens, strict=True) if y != [ids[x]]
    ]
    if not wrong:
      return ""
    (word, found), *_ = wrong
    problem = (
      f"{word!r} has the ids {found}, and the vocabulary says {ids[word]}"
    )
  return problem


def _is_unordered(model: Any, words: Sequence[str]) -> bool:
  """Tells whether the tokens of a text are not those of its words.

  A word may have other tokens at the start of a text than after another word.
  """
  start = words[0]
  pairs = [f"{start} {x}" for x in words]
  texts = [start, *pairs, " ".join([start, *words, *words])]
  first, *pairs, whole = _tokens(model, texts).to_list()
  rests = [pair[len(first) :] for pair in pairs]
  return [first + x for x in rests] != pairs or whole != sum(2 * rests, first)


def _lost_end(model: Any, words: Sequence[str]) -> str:
  """Returns a compound that has only the tokens of its first word.

  Returns "" if that holds for at most half of the compounds. A few are no
  error: if the first word is unknown, the compound is unknown too.
  """
  tokens = map(str, _tokens(model, words).to_list())
  distinct = dict(zip(tokens, words, strict=True))
  pairs = [*itertools.permutations(distinct, 2)]
  if not pairs:
    return ""
  compounds = [distinct[x] + distinct[y] for x, y in pairs]
  found = map(str, _tokens(model, compounds).to_list())
  lost = [
    word
    for word, x, (first, _) in zip(compounds, found, pairs, strict=True)
    if x == first
  ]
  return lost[0] if 2 * len(lost) > len(pairs) else ""


def _badly_packed(subject: Subject) -> str:
  """Describes an error in packed segments; empty if there is none."""
  model = subject.model
  tokens = [_tokens(model, texts) for texts in _SEGMENTS]
  empty = {k: x.numpy() for k, x in model(tf.constant([""])).items()}
  length = empty["input_word_ids"].shape[1]
  special = getattr(model.tokenize, "get_special_tokens_dict", dict)()
  first, *_ = empty["input_word_ids"]
  ids = [
    int(special.get(name, first[i]))
    for i, name in enumerate(("start_of_sequence_id", "end_of_segment_id"))
  ] + [int(special.get("padding_id", first[-1]))]
  if empty["input_mask"].sum() != 2:
    return "An empty text is not packed as a start and an end token"
  packed = {"A call": (model(tf.constant(_SEGMENTS[0])), tokens[:1], length)}
  for n, count in itertools.product(_PACKED, (1, 2, 3)):
    if n < 4 * count:  # Too short for a token of each segment.
      continue
    try:
      made = model.bert_pack_inputs(tokens[:count], seq_length=tf.constant(n))
    except (TypeError, ValueError):
      if count == 2:
        raise
      continue  # The model may pack only pairs of segments.
    packed[f"{count} segments in {n} tokens"] = (made, tokens[:count], n)
  for n in (12, 512) if "seq_length" in subject.parameters else ():
    made = model(tf.constant(_SEGMENTS[0]), seq_length=tf.constant(n))
    packed[f"A call with seq_length={n}"] = made, tokens[:1], n
  many = [tf.concat([x] * 9, 0) for x in tokens[:2]]
  made = model.bert_pack_inputs(many, seq_length=tf.constant(40))
  packed[f"A batch of {many[0].nrows()}"] = made, many, 40
  for what, (made, segments, n) in packed.items():
    rows = zip(*(made[name].numpy() for name in _INPUTS), strict=True)
    for i, row in enumerate(rows):
      taken = [x[i].numpy().tolist() for x in segments]
      if problem := _badly_packed_row(row, taken, n, *ids):
        return f"{what}: {problem} (text {i})"
  return ""


def _badly_packed_row(
  row: Sequence[np.ndarray],
  segments: Sequence[Sequence[int]],
  length: int,
  start: int,
  end: int,
  padding: int,
) -> str:
  ids, mask, types = (x.tolist() for x in row)
  if {len(ids), len(mask), len(types)} != {length}:
    return f"there are {len(ids)} ids, {len(mask)} of the mask"
  kept = _trimmed(list(map(len, segments)), length - 1 - len(segments))
  expected, expected_types = [start], [0]
  used = sum(mask)
  if used != len(segments) + 1 + sum(kept) or mask != [1] * used + [0] * (
    length - used
  ):
    return f"the mask is not 1 for the tokens, and then 0: {mask}"
  # If the segments are too long together, the split may differ by up to 2
  # tokens, or fill up the segments from left to right, as
  # `tensorflow_text.WaterfallTrimmer` does.
  ends = [0, *(i for i, x in enumerate(ids[:used]) if x == end)]
  found = [b - a - 1 for a, b in itertools.pairwise(ends)]
  is_cut = sum(kept) < sum(map(len, segments))
  if is_cut and len(found) == len(kept):
    before = np.cumsum([0, *map(len, segments)]).clip(max=sum(kept))
    if min(_farthest(found, x) for x in (kept, np.diff(before))) <= 2:
      kept = found
  for i, (tokens, count) in enumerate(zip(segments, kept, strict=True)):
    expected += [*tokens[:count], end]
    type_id = min(i, max(1, *types))  # Encoders may have only two types.
    expected_types += [type_id] * (count + 1)
  rest = length - used
  if ids != expected + [padding] * rest:
    return f"the ids are {ids}, not {expected} and padding"
  if types != expected_types + [0] * rest:
    return f"the types are {types}, not {expected_types} and 0"
  return ""


def _farthest(x: Sequence[int], y: Sequence[int]) -> int:
  return np.max(np.abs(np.subtract(x, y)))


def _trimmed(lengths: Sequence[int], budget: int) -> list[int]:
  """Returns how many tokens of each segment to keep, split about evenly."""
  kept = [0] * len(lengths)
  while sum(kept) < min(budget, sum(lengths)):
    _, i = min((k, i) for i, k in enumerate(kept) if k < lengths[i])
    kept[i] += 1
  return kept


def runs_on_tpu_hosts(subject: Subject) -> findings.Finding:
  """A preprocessor has no Assert ops, which TPU hosts may not run."""
  if subject.op_counts.get("Assert"):
    return findings.failed(
      "Its Assert ops may keep it from running in the Dataset.map of a TPU"
      " host.",
      "Remove them.",
    )
  return findings.passed("no Assert ops")


def encodes(subject: Subject) -> findings.Finding:
  """Inputs and outputs of an encoder are those of BERT, of any length."""
  inputs, outputs = subject.spec, subject.output_spec
  missing = [name for name in _INPUTS if name not in inputs]
  if missing:
    return findings.failed(
      f"It does not take {findings.some(missing)}.", "Take it."
    )
  for name in _INPUTS:
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
  listed = len(tf.nest.flatten(outputs["encoder_outputs"]))
  layers = _layers(subject)
  if listed < layers:
    return findings.failed(
      f"encoder_outputs has {listed} of {layers} layers.",
      "Return the outputs of each.",
    )
  problem, longest = _limited(subject)
  if problem:
    return findings.failed(
      problem, "Use mask, types and positions at every position."
    )
  if finding := _takes_list_otherwise(subject):
    return finding
  return findings.passed(f"as an encoder, with {longest} tokens too")


def _layers(subject: Subject) -> int:
  """Counts attention layers, whose variables' names differ only by a number."""
  numbers = collections.defaultdict(set)
  for v in subject.variables:
    for x in re.finditer(r"\d+", v.name):
      numbers[v.name[: x.start()], v.name[x.end() :]].add(x[0])
  alike = collections.Counter(
    (before, frozenset(x)) for (before, _), x in numbers.items()
  )
  counts = [len(x) for (_, x), n in alike.items() if n >= _OF_LAYER]
  return max(counts, default=0)


def _limited(subject: Subject) -> tuple[str, int]:
  """Returns an error or "", and the largest number of tokens that was tried."""
  effects: dict[int, dict[str, float]] = {}
  _, positions, unused = embeddings.tables(subject)
  for length in (8, 16, 40, min(positions or 160, _MOST)):
    start = length // 2 if length <= 40 else length - 4
    problem = ""
    try:
      if length <= 40:
        problem = _encoded(subject, length)
      effects[length] = _effects(subject, length, start)
    except Exception as e:
      if effects:  # The position table may end here.
        break
      problem = f"a call fails: {subject_lib.cause(e)}"
    for name, effect in effects.get(length, {}).items():
      if name == _ORDER and length > 40 and not positions:
        continue  # Positions past the table's end may use its last row.
      # Sums over tokens in another order differ by rounding errors.
      least, none = (1e-4, 1e-5) if name == _ORDER else (1e-6, 1e-9)
      if not problem and effects[8][name] > least and effect < none:
        problem = f"{name} has no effect from token {start} on"
    if problem:
      return f"With {length} tokens {problem}.", length
  rows = positions + unused
  # A table with rows for padding should have more rows than a power of 2.
  if unused == 1 and rows in (64, 128, 256, _MOST):
    try:
      _effects(subject, rows, rows - 4)
    except tf.errors.OpError as e:
      return (
        f"The table of {rows} positions has no row for the last one, as its"
        f" first row is not used: {subject_lib.cause(e)}.",
        rows,
      )
  longest = max(effects)
  if _is_cut_in_training(subject, longest):
    return (
      f"In training the last 4 of {longest} tokens change nothing.",
      longest,
    )
  return "", longest


def _is_cut_in_training(subject: Subject, length: int) -> bool:
  """Tells whether training ignores the last tokens."""
  exact = subject.repeatable
  if exact is None or not exact.training:
    return False
  inputs = exact.example(1, (length,))
  ids = inputs["input_word_ids"]
  is_last = tf.range(length) >= length - 4
  first, second = (
    exact.model(
      {
        **inputs,
        "input_word_ids": tf.where(is_last, f(ids), ids),
        "input_mask": tf.ones_like(ids),
      },
      **exact.steady,
    )["sequence_output"]
    for f in (tf.reduce_min, tf.reduce_max)
  )
  return bool(np.all(first == second))


def _takes_list_otherwise(subject: Subject) -> findings.Finding | None:
  """Finds a trace for lists that mixes up the inputs.

  A list may have BERT's order, or be sorted by name, as Keras does.
  """
  inputs = subject.example(2)
  types = tf.cumsum(tf.ones_like(inputs["input_type_ids"]), 1) // 9
  inputs["input_type_ids"] = tf.minimum(types, 1)
  for form in subject.forms:
    if isinstance(form, Mapping) or len(form) != len(_INPUTS):
      continue
    results = []
    for names in (_INPUTS, sorted(_INPUTS)):
      given = [
        tf.cast(inputs[x], y.dtype) for x, y in zip(names, form, strict=True)
      ]
      results.append(subject.model(given)["pooled_output"])
    expected = subject.model(inputs)["pooled_output"]
    if not any(np.allclose(x, expected, atol=1e-4) for x in results):
      return findings.failed(
        "A list of the inputs has different outputs than a dict of them.",
        f"Take {', '.join(_INPUTS)} in this order.",
      )
  return None


def _encoded(subject: Subject, length: int) -> str:
  """Describes wrong outputs; empty if they are right."""
  inputs = subject.example(2, (length,))
  half = tf.cast(tf.range(length) >= length // 2, tf.int32)[tf.newaxis]
  ids = inputs["input_word_ids"]
  # Some models mix neighboring tokens regardless of the mask.
  past = half * tf.cast(tf.range(length) >= length // 2 + 2, tf.int32)
  other = {"input_word_ids": ids + past * (tf.reverse(ids, [0]) - ids)}
  inputs["input_mask"] = tf.ones_like(ids)
  mask = {"input_mask": inputs["input_mask"] - half}
  outputs = subject.model(inputs)
  sequence, pooled = outputs["sequence_output"], outputs["pooled_output"]
  expected = ([2, length, sequence.shape[-1]], [2, sequence.shape[-1]])
  if (sequence.shape, pooled.shape) != expected:
    return f"outputs have the shapes {sequence.shape}, {pooled.shape}"
  if np.any(pooled != outputs["default"]):
    return "default is not pooled_output"
  layers = outputs["encoder_outputs"]
  is_list = isinstance(layers, Sequence) and layers
  if not is_list or np.any(layers[-1] != sequence):
    return "encoder_outputs is no list that ends with sequence_output"
  if any(np.array_equal(x, y) for x, y in itertools.combinations(layers, 2)):
    return "encoder_outputs has a layer twice"
  if np.all(subject.model({**inputs, **other})["pooled_output"] == pooled):
    return "pooled_output does not depend on the tokens"

  def encode(changed: Mapping[str, Any]) -> list[np.ndarray]:
    y = subject.model({**inputs, **changed})
    return [y["sequence_output"].numpy(), y["pooled_output"].numpy()[:, None]]

  plain, masked = encode({}), encode(mask)
  try:
    short = encode(
      {k: x[:, : length // 2 + 2] for k, x in {**inputs, **mask}.items()}
    )
  except Exception:  # It takes only some lengths, such as multiples of a block.
    short = masked
  pairs = [
    (plain, encode(other)),
    (masked, encode({**mask, **other})),
    (masked, short),
  ]
  for i, of in enumerate(("the output of the first", "pooled_output")):
    seen, hidden, padded = (
      _change(x[i][:, 0], y[i][:, 0]).max() for x, y in pairs
    )
    if seen > 1e-6 and hidden > 0.01 * seen:
      return f"tokens whose mask is 0 change {of}"
    if seen > 1e-6 and padded > 0.01 * seen:
      return f"appended tokens whose mask is 0 change {of}"
  return ""


def _effects(subject: Subject, length: int, start: int) -> dict[str, float]:
  """Returns the effects of mask, types and order from the token `start` on."""
  inputs = subject.example(1, (length,))
  ids = inputs["input_word_ids"]
  last = tf.cast(tf.range(length) >= start, tf.int32)[tf.newaxis]
  inputs["input_mask"] = tf.ones_like(ids)
  turned = [*range(start), *reversed(range(start, length))]

  def encode(**changed: tf.Tensor) -> np.ndarray:
    return subject.model({**inputs, **changed})["sequence_output"].numpy()

  plain = encode()
  masked = encode(input_mask=inputs["input_mask"] - last)
  typed = encode(input_type_ids=inputs["input_type_ids"] + last)
  reordered = encode(input_word_ids=tf.gather(ids, turned, axis=1))
  others = {
    "input_mask": masked,
    "input_type_ids": typed,
    # Without positions, the outputs are reordered as the tokens are.
    _ORDER: reordered[:, turned],
  }
  return {name: _change(plain, x).max() for name, x in others.items()}


def _change(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.abs(x - y) / np.max(np.abs(x))


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
      f" encoder: {subject_lib.cause(e)}",
      "Trace it with masked_lm_positions.",
    )
  if "mlm_logits" not in outputs:
    return findings.failed(
      f"`mlm` returns {', '.join(outputs)}, not mlm_logits.",
      "Return them in a dict.",
    )
  logits = outputs["mlm_logits"]
  if logits.shape[:2] != (2, 3):
    problem = f"are of the shape {logits.shape} for 2 texts of 3 positions"
  elif np.all(logits >= 0) and np.allclose(tf.reduce_sum(logits, -1), 1):
    problem = "are probabilities: each row sums to 1"
  else:
    problem = (
      _misplaced(mlm, inputs)
      or _unordered(subject, mlm, inputs)
      or _untied(subject, mlm, inputs)
      or _of_other_layer(subject, mlm, inputs)
    )
  if problem:
    return findings.failed(
      f"mlm_logits {problem}.",
      "Gather the outputs of masked_lm_positions, multiply them with the"
      " encoder's table of word embeddings, and return them without softmax.",
    )
  return findings.passed(f"mlm_logits {logits.shape}")


def _mlm_logits(
  mlm: Any, inputs: Mapping[str, Any], ids: np.ndarray
) -> np.ndarray:
  """Returns the logits of all positions."""
  rows, length = ids.shape
  changed = {
    "input_word_ids": tf.constant(ids),
    "masked_lm_positions": tf.tile(tf.range(length)[tf.newaxis], [rows, 1]),
  }
  return mlm({**inputs, **changed})["mlm_logits"].numpy()


def _misplaced(mlm: Any, inputs: Mapping[str, Any]) -> str:
  """Describes logits at a wrong position; empty if all are right.

  Replacing a token changes the outputs at its own position most.
  """
  ids = inputs["input_word_ids"].numpy()
  logits = _mlm_logits(mlm, inputs, ids)
  if np.ptp(logits, axis=1).max() == 0:
    return "are the same for all masked_lm_positions"
  first, second, *_ = np.unique(ids)
  offsets = []
  for position in range(2, ids.shape[1] - 2):
    other = ids.copy()
    column = other[:, position]
    other[:, position] = np.where(column == first, second, first)
    change = np.abs(_mlm_logits(mlm, inputs, other) - logits)
    offsets.append(int(change.max((0, 2)).argmax()) - position)
  usual = max(set(offsets), key=offsets.count)
  if usual and offsets.count(usual) > 0.6 * len(offsets):
    return f"are those of a position {-usual:+} from masked_lm_positions"
  return ""


def _unordered(subject: Subject, mlm: Any, inputs: Mapping[str, Any]) -> str:
  """Returns an error if logits are clipped, sorted, or ignore an input."""
  longer = {**inputs, **subject.example(2, (2 * _LENGTHS[1],))}
  try:
    _ = mlm(longer)
    inputs = longer
  except Exception:  # `mlm` takes only some lengths.
    pass
  ids = inputs["input_word_ids"]
  inputs = {**inputs, "input_mask": tf.ones_like(ids)}
  logits = _mlm_logits(mlm, inputs, ids.numpy())
  for row, of_row in zip(ids.numpy().tolist(), logits, strict=True):
    found: dict[bytes, int] = {}
    for position, (token, x) in enumerate(zip(row, of_row, strict=True)):
      first = found.setdefault(x.tobytes(), position)
      if row[first] != token:
        return f"are the same at the positions {first} and {position}"
  places = tf.tile(tf.range(ids.shape[1])[tf.newaxis, ::-1], [2, 1])
  turned = mlm({**inputs, "masked_lm_positions": places})["mlm_logits"]
  if _change(logits[:, ::-1], turned.numpy()).max() > 1e-3:
    return "are in another order than masked_lm_positions"
  last = tf.cast(tf.range(ids.shape[1]) >= ids.shape[1] // 2, tf.int32)
  encoder_inputs = {name: inputs[name] for name in _INPUTS}
  usual = subject.model(encoder_inputs)["sequence_output"]
  for name in ("input_mask", "input_type_ids"):
    other = {name: tf.math.floormod(inputs[name] + last, 2)}
    changed = subject.model({**encoder_inputs, **other})["sequence_output"]
    is_used = _change(usual.numpy(), changed.numpy()).max() > 1e-6
    others = _mlm_logits(mlm, {**inputs, **other}, ids.numpy())
    if is_used and np.array_equal(others, logits):
      return f"do not depend on {name}, as sequence_output does"
  return ""


def _untied(subject: Subject, mlm: Any, inputs: Mapping[str, Any]) -> str:
  """Returns an error if logits do not use the encoder's embeddings."""
  ids = inputs["input_word_ids"].numpy()
  logits = _mlm_logits(mlm, inputs, ids)
  size = logits.shape[-1]
  tables = [v for v in subject.variables if v.shape[:1] == [size]]
  tables = [v for v in tables if v.shape.rank == 2]
  unused = sorted(set(range(size)) - set(np.ravel(ids)))
  if not tables or not unused:
    return ""
  # The embedding of a token that is not in the inputs affects only the logits.
  for table in tables:
    with tf.GradientTape() as tape:
      outputs = mlm(inputs)["mlm_logits"]
    gradient = tape.gradient(outputs, table)
    if gradient is not None:
      gradient = tf.convert_to_tensor(gradient).numpy()
      before = table.numpy()
      moved = before.copy()
      moved[unused[-1]] += 1.0
      table.assign(moved)
      change = _mlm_logits(mlm, inputs, ids) - logits
      table.assign(before)
      if np.any(change[..., unused[-1]]) and np.any(gradient[unused[-1]]):
        return ""
  return (
    "do not depend on the embedding of each token, such as that of"
    f" {tables[0].name}: it is not trained as an output weight"
  )


def _of_other_layer(
  subject: Subject, mlm: Any, inputs: Mapping[str, Any]
) -> str:
  """Returns an error if logits do not use the encoder's last layer."""
  variables = subject.trainable_variables
  encoder_inputs = {name: inputs[name] for name in _INPUTS}

  def layer(place: int) -> tf.Tensor:
    return subject.model(encoder_inputs)["encoder_outputs"][place]

  def used(output: Callable[[], tf.Tensor]) -> list[bool]:
    with tf.GradientTape() as tape:
      scalar = gradients.weighted([output()])
    made = tape.gradient(scalar, variables)
    return [g is not None and np.any(tf.convert_to_tensor(g)) for g in made]

  if len(subject.output_spec["encoder_outputs"]) < 2:
    return ""
  with gradients.moved(variables):
    of_outputs = [
      used(output)
      for output in (
        lambda: layer(-2),
        lambda: layer(-1),
        lambda: mlm(inputs)["mlm_logits"],
      )
    ]
  of_last = [
    (v.name, is_used)
    for v, before, after, is_used in zip(variables, *of_outputs, strict=True)
    if after and not before
  ]
  if len(of_last) <= _OF_PROJECTION or any(is_used for _, is_used in of_last):
    return ""
  return f"do not depend on the last layer, such as {of_last[0][0]}"


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
  ids = {name: int(x) for name, x in special().items()}
  if missing := [name for name in _SPECIAL if name not in ids]:
    return findings.failed(
      f"get_special_tokens_dict names no {findings.some(missing)}.",
      "Return its id; masking tokens needs them all.",
    )
  if problem := _wrong_special(subject, ids):
    return findings.failed(
      f"{problem}.", "Return the ids of the vocabulary that tokenize uses."
    )
  return findings.passed(f"{', '.join(sorted(ids))}")


def _wrong_special(subject: Subject, ids: Mapping[str, int]) -> str:
  """Describes a wrong value of a special token; empty if there is none."""
  of_texts = [_tokens(subject.model, x).flat_values for x in _SEGMENTS]
  used = set(np.concatenate([x.numpy() for x in of_texts]).tolist())
  special = {name: ids[name] for name in _SPECIAL}
  size = ids.get("vocab_size")
  for name, value in special.items():
    if same := [x for x in special if x != name and special[x] == value]:
      return f"{name} and {same[0]} are both {value}"
    if value in used:
      return f"{name} is {value}, which is the id of a token of texts"
  if size is not None and max(*used, *special.values()) >= size:
    return f"vocab_size is {size}, and there are ids up to {max(used)}"
  for tokens in vocabulary.of_assets(subject.directory, subject.files):
    if "[MASK]" not in tokens:
      continue
    if (place := tokens.index("[MASK]")) != ids["mask_id"]:
      return f"mask_id is {ids['mask_id']}, and [MASK] has the id {place}"
    if size not in (None, len(tokens)):
      return (
        f"vocab_size is {size}, and the vocabulary has {len(tokens)} tokens"
      )
  return ""


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
  with open(model.vocab_file.asset_path.numpy(), errors="replace") as f:
    tokens = f.read().splitlines()
  table = embeddings.tables(subject).of_ids
  rows = len(tokens) if table is None else table.shape[0]
  # Tables often have more rows than tokens, for faster products. If the file
  # lacks its first line, the ids of all tokens are off by one.
  is_cut = len(tokens) < rows and "[CLS]" in tokens and "[PAD]" not in tokens
  if is_cut or not _LEAST * rows <= len(tokens) <= rows:
    return findings.failed(
      f"vocab_file has {len(tokens):,} tokens, and {table.name} {rows:,} rows.",
      "Save the vocabulary that the encoder was trained with.",
    )
  cased = [x for x in tokens if x != x.lower() and not _IN_BRACKETS.match(x)]
  if model.do_lower_case and len(cased) > _CASED * len(tokens):
    return findings.failed(
      f"do_lower_case is true, and {len(cased):,} tokens have capitals.",
      "Save do_lower_case as the preprocessor has it.",
    )
  needed = ["[CLS]"] + ["[MASK]"] * hasattr(model, "mlm")
  special = "".join(filter(_SPECIAL_TOKEN.fullmatch, tokens)).lower()
  if not special or (needed[1:] and "mask" not in special):
    return findings.failed(
      f"vocab_file has no special tokens such as {' and '.join(needed)}.",
      "Save the vocabulary that the preprocessor uses.",
    )
  return findings.passed(f"vocab_file of {len(tokens):,} and do_lower_case")
