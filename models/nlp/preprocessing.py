"""Turns text into inputs of BERT-like encoders, with tensorflow-text.

The functions add no Assert ops to SavedModels, because an Assert in a data
pipeline can stop a program on a TPU host. Model Garden's layers
(`official.nlp.modeling.layers.text_layers`) add dozens of them, because most
operations on RaggedTensors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import re
import unicodedata

from etils import epy

from data import tables
from distribution import errors
from distribution import formats

with epy.lazy_imports():
  from google.protobuf import message
  from sentencepiece import sentencepiece_model_pb2
  import tensorflow as tf
  import tensorflow_text as text
  from tensorflow_text.tools.wordpiece_vocab import bert_vocab_from_dataset

# BERT's special tokens, in the order of their ids in a new vocabulary.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Special tokens, by Model Garden's names for their roles.
_WORDPIECE_ROLES = {
  "padding_id": "[PAD]",
  "start_of_sequence_id": "[CLS]",
  "end_of_segment_id": "[SEP]",
  "mask_id": "[MASK]",
}
_ROLES = {
  "wordpiece": _WORDPIECE_ROLES,
  "sentencepiece": {**_WORDPIECE_ROLES, "padding_id": "<pad>"},
}

# All special tokens of both kinds of tokenizers.
ALL_SPECIAL = (*SPECIAL_TOKENS, "<pad>", "<unk>")

_IN_BRACKETS = re.compile(r"\[.+\]|<.+>")  # Tokens such as [CLS] and <pad>.

# Tolerated share of tokens with letters that no text yields. It is 0.4% in the
# vocabulary of BERT's English uncased model, and 0.6% in that of its Chinese
# model. With a wrong do_lower_case it is 8.7% in a vocabulary of Kurdish, which
# has no capitals.
_MANY_UNREACHABLE = 0.02

# In transformers, words of more characters are unknown. TensorFlow's limit is
# in bytes.
_CHARACTERS_PER_WORD = 100
_MOST_BYTES_OF_CHARACTER = 4
# Characters that transformers drops: control, format and private use.
_NO_TEXT = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\x{FFFD}\p{Cf}\p{Co}]"
_SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"
_RARE_IDEOGRAPHS = range(0x2A6D6, 0x2A600, -1)

# Minimum share of tokens in scripts with capitals to judge the casing by.
_FEW_WITH_CASE = 0.1


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Splits text into tokens.

  Attributes:
    kind: `wordpiece` or `sentencepiece`.
    tokens: The vocabulary, in the order of the ids.
    do_lower_case: Whether text is lowercased and stripped of accents first.
    tokenize: Maps strings `[batch]` to ids, an int32 RaggedTensor: for
      wordpieces `[batch, (words), (pieces)]`, for SentencePiece
      `[batch, (pieces)]`.
    tokenize_with_offsets: Maps strings to three RaggedTensors of the same
      shape: ids, and int64 byte offsets of the start and the end of each token
      in the string. None for SentencePiece.
    resources: Resources of the functions, which an export must track.
    model: The SentencePiece model in its file format; None for wordpieces.
    as_transformers: As in `wordpiece_tokenizer`.
  """

  kind: str
  tokens: Sequence[str]
  do_lower_case: bool
  tokenize: Callable[[tf.Tensor], tf.RaggedTensor]
  tokenize_with_offsets: Callable[..., list[tf.RaggedTensor]] | None = None
  resources: Sequence[tf.Module] = ()
  model: bytes | None = None
  as_transformers: bool = False

  @property
  def special_tokens(self) -> dict[str, int]:
    """Ids of special tokens by Model Garden's names, and the `vocab_size`."""
    roles = _ROLES[self.kind].items()
    ids = {role: self.tokens.index(token) for role, token in roles}
    return {**ids, "vocab_size": len(self.tokens)}

  @property
  def sha256(self) -> str:
    """Hexadecimal hash of everything that determines the tokens of a text."""
    start = f"{self.kind} {'lower' if self.do_lower_case else 'cased'}\n"
    start = "as transformers: " * self.as_transformers + start
    vocabulary = self.model or "\n".join(self.tokens).encode()
    return hashlib.sha256(start.encode() + vocabulary).hexdigest()


def build_vocabulary(
  documents: tf.data.Dataset, max_size: int, *, do_lower_case: bool
) -> list[str]:
  """Builds a wordpiece vocabulary from text, with tensorflow-text.

  Args:
    documents: Strings, shape `[]`.
    max_size: Maximum number of tokens.
    do_lower_case: Whether the tokenizer lowercases text and strips accents.

  Returns:
    The tokens in the order of their ids: `SPECIAL_TOKENS`, characters, and
    wordpieces by descending frequency. The result is deterministic.

  Raises:
    ValueError: `max_size` is too small for the characters of the text.
  """
  tokens = bert_vocab_from_dataset.bert_vocab_from_dataset(
    documents.batch(1024).prefetch(tf.data.AUTOTUNE),
    max_size,
    list(SPECIAL_TOKENS),
    bert_tokenizer_params={"lower_case": do_lower_case},
  )
  if len(tokens) > max_size:
    raise ValueError(
      f"The smallest vocabulary that tensorflow-text finds for this text has"
      f" {len(tokens)} tokens, more than {max_size}. Increase the maximum."
    )
  return tokens


def read_vocabulary(vocab_file: str) -> list[str]:
  r"""Reads a vocabulary file: one wordpiece per line, in the order of the ids.

  As in the first BERT, white space around a token is dropped, including the
  \r of Windows line ends. A line of other white space, such as U+2028, is a
  token. A byte order mark at the start is dropped. The file may also be Hugging
  Face's tokenizer.json, if it describes BERT's tokenizer.

  Raises:
    OSError: The file is not readable.
    ValueError: The file is not UTF-8, has an empty or repeated line, lacks a
      special token, or is the JSON of another tokenizer.
  """
  content = tables.decoded(formats.read_file(vocab_file))
  if vocab_file.endswith(".json"):
    tokens = _tokens_of_json(content)
  else:
    lines = content.removesuffix("\n").split("\n")
    tokens = [line.strip() or line.strip(" \t\r\f\v") for line in lines]
  line_of: dict[str, int] = {}
  for line, token in enumerate(tokens, start=1):
    problem = "" if token else f"line {line} is empty"
    if token in line_of:
      lines = f"lines {line_of[token]}, {line}"
      problem = f"{token[:40]} is in it twice, {lines}"
    if problem:
      raise ValueError(f"{problem}. {_shifted(tokens, line)}")
    line_of[token] = line
  _check_special_tokens(tokens, SPECIAL_TOKENS)
  return tokens


def _tokens_of_json(content: str) -> list[str]:
  """Returns the vocabulary in Hugging Face's tokenizer.json."""
  try:
    values = json.loads(content)
    parts = {
      "model": "WordPiece",
      "normalizer": "BertNormalizer",
      "pre_tokenizer": "BertPreTokenizer",
    }
    for part, kind in parts.items():
      if values[part]["type"] != kind:
        raise ValueError(
          f"its {part} is {str(values[part]['type'])[:40]}, not {kind} as in"
          " BERT's tokenizer"
        )
    model = values["model"]
    id_of = {token: int(i) for token, i in model["vocab"].items()}
    id_of |= {t["content"]: int(t["id"]) for t in values["added_tokens"]}
    prefix = model["continuing_subword_prefix"]
    longest = model["max_input_chars_per_word"]
  except (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError),
  ) as e:
    raise ValueError(f"no tokenizer.json of BERT: {errors.one_line(e)}") from e
  tokens = sorted(id_of, key=id_of.__getitem__)
  if prefix != "##" or longest != _CHARACTERS_PER_WORD:
    raise ValueError(
      f"its words have at most {longest} characters and their pieces begin with"
      f" {prefix!r}, not {_CHARACTERS_PER_WORD} and '##' as in BERT's tokenizer"
    )
  if [id_of[token] for token in tokens] != list(range(len(tokens))):
    raise ValueError("its ids are not 0, 1, 2, …")
  return tokens


def _shifted(tokens: Sequence[str], line: int) -> str:
  """Returns advice about a bad line, and the ids that depend on it."""
  after = [token[:40] for token in tokens[line : line + 3]]
  ids = f"; it decides the ids from {line - 1} on: {_quoted(after)}, …"
  return (
    "Delete the line if the training did not count it; otherwise make it a"
    f" token that no text has, such as [unused_{line}]{ids if after else ''}"
  )


def _quoted(tokens: Iterable[str]) -> str:
  return ", ".join(map(repr, tokens))


def _check_special_tokens(tokens: Sequence[str], needed: Iterable[str]) -> None:
  missing = sorted(set(needed).difference(tokens))
  if missing:
    start = _quoted(token[:40] for token in tokens[:3])
    raise ValueError(f"it lacks {', '.join(missing)}; it begins with {start}")


def unreachable(
  kind: str, tokens: Iterable[str], do_lower_case: bool
) -> list[str]:
  """Returns the tokens that no text yields.

  The preprocessor normalizes such a token to another one, or splits it into
  words. Tokens in brackets, such as [CLS], do not count.

  Args:
    kind: As in `Tokenizer`, or `transformers`.
    tokens: The vocabulary.
    do_lower_case: Whether text is lowercased and stripped of accents.
  """
  tokens = [t for t in tokens if not _IN_BRACKETS.fullmatch(t)]
  pieces = tf.constant([t.removeprefix("##") or t for t in tokens], tf.string)
  if kind == "sentencepiece":
    # SentencePiece composes decomposed characters again.
    normalized = _without_accents(pieces, do_lower_case)
    reached = text.normalize_utf8(normalized, "NFKC") == pieces
  else:
    normalized = (
      _as_transformers(pieces, do_lower_case)
      if kind == "transformers"
      else text.FastBertNormalizer(do_lower_case).normalize(pieces)
    )
    # With this vocabulary, each word is unknown, and so a single token.
    words = text.FastWordpieceTokenizer(["[UNK]", "a"], token_out_type=tf.int32)
    is_word = words.tokenize(normalized).row_lengths() == 1
    reached = is_word & (normalized == pieces)
  return [t for t, r in zip(tokens, reached.numpy(), strict=True) if not r]


def casing_problem(
  kind: str, tokens: Sequence[str], do_lower_case: bool
) -> str | None:
  """Describes how the tokens contradict `do_lower_case`, if they do."""
  lost = [
    token
    for token in unreachable(kind, tokens, do_lower_case)
    if any(unicodedata.category(c)[0] in "LM" for c in token)
  ]
  if len(lost) > _MANY_UNREACHABLE * len(tokens):
    lowercased = "lowercased, stripped of accents and " * do_lower_case
    return (
      f"no text yields {len(lost):,} of its {len(tokens):,} tokens, such as"
      f" {_quoted(lost[:5])}, as text is {lowercased}split at punctuation and"
      " Chinese characters"
    )
  # Count tokens in scripts with capitals. Georgian words never begin with a
  # capital, so they do not count.
  words = [
    t
    for t in tokens
    if t.lower() != t.title() and not _IN_BRACKETS.fullmatch(t)
  ]
  if (
    not do_lower_case
    and len(words) > _FEW_WITH_CASE * len(tokens)
    and all(t == t.lower() for t in words)
  ):
    return (
      "no token has capitals, so words with capitals would be unknown in text"
      " that is not lowercased"
    )
  return None


def wordpiece_tokenizer(
  tokens: Sequence[str], *, do_lower_case: bool, as_transformers: bool = False
) -> Tokenizer:
  """Creates BERT's tokenizer (Devlin et al., arXiv:1810.04805).

  It uses the parts of tensorflow-text's `FastBertTokenizer` (Song et al.,
  arXiv:2012.15524). It differs from Model Garden's `BertTokenizer` in two ways:
  all Unicode white space ends a word, as in the first BERT, and offsets refer
  to the original text, with its accents.

  Args:
    tokens: The vocabulary, from `read_vocabulary`.
    do_lower_case: Whether to lowercase text and to strip accents.
    as_transformers: Whether to produce the tokens of transformers'
      `BertTokenizer`, without offsets. Compatibility characters are kept, words
      of more than 100 characters (not bytes) are unknown, and special tokens in
      the text, such as [MASK], are kept.
  """
  if as_transformers:
    return _tokenizer_of_transformers(tokens, do_lower_case)
  begins_word = [not token.startswith("##") for token in tokens]

  @functools.cache
  def layers() -> tuple[text.FastBertNormalizer, text.FastWordpieceTokenizer]:
    # Build the layers on first use, because that is slow.
    with tf.init_scope():  # The first call may be in a graph.
      return (
        text.FastBertNormalizer(lower_case_nfd_strip_accents=do_lower_case),
        text.FastWordpieceTokenizer(list(tokens), token_out_type=tf.int32),
      )

  def tokenize(sentences: tf.Tensor) -> tf.RaggedTensor:
    normalizer, tokenizer = layers()
    ids = tokenizer.tokenize(normalizer.normalize(sentences))
    return _by_words(begins_word, ids)[0]

  def tokenize_with_offsets(sentences: tf.Tensor) -> list[tf.RaggedTensor]:
    normalizer, tokenizer = layers()
    normalized, source = normalizer.normalize_with_offsets(sentences)
    ids, *offsets = tokenizer.tokenize_with_offsets(normalized)
    begins = tf.gather(source.row_splits, ids.value_rowids())
    return _by_words(
      begins_word,
      ids,
      *(
        x.with_values(tf.gather(source.values, begins + x.values))
        for x in offsets
      ),
    )

  return Tokenizer(
    "wordpiece", tokens, do_lower_case, tokenize, tokenize_with_offsets
  )


def _tokenizer_of_transformers(
  tokens: Sequence[str], do_lower_case: bool
) -> Tokenizer:
  """Creates the tokenizer that produces the tokens of transformers."""
  begins_word = [not token.startswith("##") for token in tokens]
  standing_for = _ideographs(tokens)
  pieces = [standing_for.get(token, token) for token in tokens]
  pieces[tokens.index("[UNK]")] = "[UNK]"

  @functools.cache
  def splitter() -> text.FastWordpieceTokenizer:
    with tf.init_scope():
      return text.FastWordpieceTokenizer(
        pieces,
        max_bytes_per_word=_CHARACTERS_PER_WORD * _MOST_BYTES_OF_CHARACTER,
        token_out_type=tf.int32,
      )

  def tokenize(sentences: tf.Tensor) -> tf.RaggedTensor:
    sentences = _with_ideographs(sentences, standing_for)
    ids = splitter().tokenize(_as_transformers(sentences, do_lower_case))
    ids = _with_long_words_unknown(tokens, begins_word, ids)
    return _by_words(begins_word, ids)[0]

  return Tokenizer(
    "wordpiece", tokens, do_lower_case, tokenize, as_transformers=True
  )


def _as_transformers(sentences: tf.Tensor, do_lower_case: bool) -> tf.Tensor:
  """Normalizes text as `BertTokenizer` of transformers does.

  Unlike tensorflow-text's normalizer, it keeps compatibility characters, such
  as …, instead of replacing them by their Unicode compatibility forms.
  """
  sentences = tf.strings.regex_replace(sentences, _NO_TEXT, "")
  sentences = tf.strings.regex_replace(sentences, r"\p{Z}", " ")
  if not do_lower_case:
    return sentences
  sentences = text.normalize_utf8(sentences, "NFD")
  return _lowercased(tf.strings.regex_replace(sentences, r"\p{Mn}", ""))


def _lowercased(sentences: tf.Tensor) -> tf.Tensor:
  # TensorFlow lowercases a final sigma to another letter. Lowercase all alike.
  sentences = tf.strings.regex_replace(sentences, _SIGMA, _SIGMA.lower())
  return tf.strings.lower(sentences, "utf-8")


def _ideographs(tokens: Sequence[str]) -> dict[str, str]:
  """Returns an ideograph for each special token, to replace it in texts.

  The tokenizer splits [MASK], but keeps an ideograph as one word. No token
  of the vocabulary contains any of these rare ideographs.
  """
  known = set("".join(tokens))
  unused = (c for c in map(chr, _RARE_IDEOGRAPHS) if c not in known)
  return dict(zip(SPECIAL_TOKENS, unused, strict=False))


def _with_ideographs(
  sentences: tf.Tensor, standing_for: Mapping[str, str]
) -> tf.Tensor:
  """Replaces special tokens in texts by their ideographs."""
  # These ideographs become unknown words where the original text has them.
  sentences = tf.strings.regex_replace(
    sentences, f"[{''.join(standing_for.values())}]", standing_for["[UNK]"]
  )
  for token, ideograph in standing_for.items():
    sentences = tf.strings.regex_replace(sentences, re.escape(token), ideograph)
  return sentences


def _with_long_words_unknown(
  tokens: Sequence[str], begins_word: Sequence[bool], ids: tf.RaggedTensor
) -> tf.RaggedTensor:
  """Replaces the pieces of each too long word by a single [UNK].

  Args:
    tokens: The vocabulary.
    begins_word: For each id, whether the wordpiece begins a word.
    ids: `[batch, (pieces)]`.
  """
  characters = [len(token.removeprefix("##")) for token in tokens]
  begins = tf.gather(begins_word, ids.values)
  word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
  in_word = tf.math.unsorted_segment_sum(
    tf.gather(characters, ids.values), word, tf.size(word)
  )
  is_long = tf.gather(in_word > _CHARACTERS_PER_WORD, word)
  kept = ~is_long | begins
  until = tf.cumsum(tf.cast(kept, ids.row_splits.dtype))
  until = tf.concat([[0], until], axis=0)
  return tf.RaggedTensor.from_row_splits(
    tf.boolean_mask(tf.where(is_long, tokens.index("[UNK]"), ids.values), kept),
    tf.gather(until, ids.row_splits),
    validate=False,
  )


def _by_words(
  begins_word: Sequence[bool], *flat: tf.RaggedTensor
) -> list[tf.RaggedTensor]:
  """Groups ids, and other values of the same pieces, by words.

  Shapes change from `[batch, (pieces)]` to `[batch, (words), (pieces)]`.
  `begins_word` says for each id whether the wordpiece begins a word.
  """
  begins = tf.cast(tf.gather(begins_word, flat[0].values), tf.int64)
  words_until = tf.concat([[0], tf.cumsum(begins)], axis=0)
  return [
    tf.RaggedTensor.from_row_splits(
      tf.RaggedTensor.from_value_rowids(
        x.values, words_until[1:] - 1, nrows=words_until[-1], validate=False
      ),
      tf.gather(words_until, x.row_splits),
      validate=False,
    )
    for x in flat
  ]


def sentencepiece_tokenizer(
  sp_model_file: str, *, do_lower_case: bool, as_transformers: bool = False
) -> Tokenizer:
  """Creates ALBERT's tokenizer (Lan et al., arXiv:1909.11942).

  As in Model Garden, it strips accents even without `do_lower_case`. The paths
  of files on the machine that trained the SentencePiece model are removed from
  the model.

  Args:
    sp_model_file: A SentencePiece model with BERT's special tokens.
    do_lower_case: Whether to lowercase text.
    as_transformers: Whether to produce the tokens of transformers'
      `AlbertTokenizer`, which strips all marks and keeps ß. Unlike in
      transformers, special tokens in the text are split.

  Raises:
    OSError: The file is not readable.
    ValueError: The file is not a SentencePiece model, or lacks a special token.
  """
  model = formats.read_file(sp_model_file)
  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for field in ("input", "model_prefix"):
      proto.trainer_spec.ClearField(field)
    model = proto.SerializeToString(deterministic=True)
    tokenizer = text.SentencepieceTokenizer(model, out_type=tf.int32)
    tokenizer.vocab_size()  # Reads the model.
  except (message.DecodeError, tf.errors.OpError) as e:
    raise ValueError("not a SentencePiece model") from e
  tokens = [piece.piece for piece in proto.pieces]
  _check_special_tokens(tokens, _ROLES["sentencepiece"].values())

  normalize = _as_albert if as_transformers else _without_accents

  def tokenize(sentences: tf.Tensor) -> tf.RaggedTensor:
    return tokenizer.tokenize(normalize(sentences, do_lower_case))

  return Tokenizer(
    "sentencepiece",
    tokens,
    do_lower_case,
    tokenize,
    resources=[tokenizer],
    model=model,
    as_transformers=as_transformers,
  )


def _as_albert(sentences: tf.Tensor, do_lower_case: bool) -> tf.Tensor:
  """Normalizes text as `AlbertTokenizer` of transformers does."""
  sentences = tf.strings.regex_replace(sentences, "``|''", '"')
  sentences = text.normalize_utf8(sentences, "NFKD")
  sentences = tf.strings.regex_replace(sentences, r"\p{M}", "")
  return _lowercased(sentences) if do_lower_case else sentences


def _without_accents(sentences: tf.Tensor, do_lower_case: bool) -> tf.Tensor:
  """Strips accents, and optionally lowercases, for SentencePiece."""
  sentences = text.normalize_utf8(sentences, "NFD")
  sentences = tf.strings.regex_replace(sentences, r"\p{Mn}", "")
  return text.case_fold_utf8(sentences) if do_lower_case else sentences


def pack(
  segments: Sequence[tf.RaggedTensor],
  seq_length: int | tf.Tensor,
  special_tokens: Mapping[str, int],
) -> dict[str, tf.Tensor]:
  """Packs segments of tokens into the inputs of an encoder.

  The result is `[CLS] first [SEP] second [SEP] …`, padded. If that is longer
  than `seq_length`, tokens are cut off the ends of the longest segments, one at
  a time. The result equals that of tensorflow-text's `RoundRobinTrimmer`,
  `combine_segments` and `pad_model_inputs` together.

  Args:
    segments: Ids, int32 `[batch, (pieces)]` or `[batch, (words), (pieces)]`.
    seq_length: Length of the result, including special tokens.
    special_tokens: The `special_tokens` of a `Tokenizer`.

  Returns:
    A dict of int32 Tensors `[batch, seq_length]`: `input_word_ids`;
    `input_mask`, 1 up to the last [SEP]; and `input_type_ids`, the index of the
    segment.
  """
  # For each segment: the ids of all examples, and where each example starts.
  flat, splits = [], []
  for segment in segments:
    split = segment.row_splits
    while isinstance(segment.values, tf.RaggedTensor):
      segment = segment.values
      split = tf.gather(segment.row_splits, split)
    flat.append(segment.values)
    splits.append(tf.cast(split, tf.int32))
  lengths = _trimmed(
    tf.stack([split[1:] - split[:-1] for split in splits]),
    seq_length - len(segments) - 1,
  )

  padding, start, end = (
    tf.constant(special_tokens[name], tf.int32)
    for name in ("padding_id", "start_of_sequence_id", "end_of_segment_id")
  )
  position = tf.range(seq_length)[tf.newaxis]
  word_ids = tf.where(position == 0, start, padding)
  type_ids = tf.zeros_like(position)
  begin = 1
  for i, (values, split) in enumerate(zip(flat, splits, strict=True)):
    offset = position - begin
    length = lengths[i][:, tf.newaxis]
    inside = (offset >= 0) & (offset < length)
    # An extra id keeps `gather` valid if all examples are empty.
    values = tf.concat([values, [padding]], axis=0)
    index = tf.where(inside, split[:-1, tf.newaxis] + offset, 0)
    word_ids = tf.where(inside, tf.gather(values, index), word_ids)
    word_ids = tf.where(offset == length, end, word_ids)
    type_ids = tf.where((offset >= 0) & (offset <= length), i, type_ids)
    begin += length + 1
  return {
    "input_word_ids": word_ids,
    "input_mask": tf.cast(position < begin, tf.int32),
    "input_type_ids": type_ids,
  }


def _trimmed(lengths: tf.Tensor, budget: int | tf.Tensor) -> tf.Tensor:
  """Cuts lengths, int32 `[segments, batch]`, so that they sum to `budget`.

  All segments are cut to the largest common limit that fits. The first of the
  cut segments then get one more token each until the budget is used up.
  """
  segments = lengths.shape[0]
  budget = tf.maximum(budget, 0)
  # Row j: the budget that the j shortest segments leave for the others.
  left = budget - tf.cumsum(tf.sort(lengths, axis=0), axis=0, exclusive=True)
  among = tf.range(segments, 0, -1)[:, tf.newaxis]
  limit = tf.reduce_max(left // among, axis=0)
  trimmed = tf.minimum(lengths, limit)
  was_cut = tf.cast(lengths > limit, tf.int32)
  left_over = budget - tf.reduce_sum(trimmed, axis=0)
  before = tf.cumsum(was_cut, axis=0, exclusive=True)
  return trimmed + tf.where(before < left_over, was_cut, 0)
