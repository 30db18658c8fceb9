"""Turns text into the inputs of BERT-like encoders, by tensorflow-text.

The functions are traced into SavedModels that run in the data pipelines of TPU
hosts, where an Assert op can stop a program. Model Garden's layers for the same
(`official.nlp.modeling.layers.text_layers`) have dozens of them, which come
with most ops on RaggedTensors; here are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib

from etils import epy

with epy.lazy_imports():
  from google.protobuf import message
  from sentencepiece import sentencepiece_model_pb2
  import tensorflow as tf
  import tensorflow_text as text

# What BERT calls these tokens, in vocabularies of wordpieces and in models of
# SentencePiece, by the names that Model Garden has for what they do.
_WORDPIECE_NAMES = {
  "padding_id": "[PAD]",
  "start_of_sequence_id": "[CLS]",
  "end_of_segment_id": "[SEP]",
  "mask_id": "[MASK]",
}
_SENTENCEPIECE_NAMES = {**_WORDPIECE_NAMES, "padding_id": "<pad>"}
_UNKNOWN = "[UNK]"
_SUFFIX = "##"  # Begins a wordpiece that is not the first of its word.

# Share of words with capitals that a vocabulary for lowercased text may have.
_MANY_CAPITALS = 0.01


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Splits text into tokens.

  Attributes:
    kind: `wordpiece` or `sentencepiece`.
    tokens: The vocabulary, in the order of the ids.
    do_lower_case: Whether text is lowercased and stripped of accents first.
    special_tokens: Ids, by the names that Model Garden has for what they do,
      and `vocab_size`.
    sha256: A hash of all that decides which tokens a text has, in hexadecimal.
    tokenize: From strings `[batch]` to ids, an int32 RaggedTensor: of
      wordpieces `[batch, (words), (pieces)]`, of SentencePiece
      `[batch, (pieces)]`.
    tokenize_with_offsets: From strings to a list of three RaggedTensors of the
      same shape: ids; int64 offsets, in bytes of the string, of the start and
      of the end of each token. None where offsets cannot be told.
    resources: What the functions use and an export must hold.
    model: That of SentencePiece, as its file has it; None of wordpieces.
  """

  kind: str
  tokens: Sequence[str]
  do_lower_case: bool
  special_tokens: Mapping[str, int]
  sha256: str
  tokenize: Callable[[tf.Tensor], tf.RaggedTensor]
  tokenize_with_offsets: Callable[[tf.Tensor], list[tf.RaggedTensor]] | None
  resources: Sequence[tf.Module] = ()
  model: bytes | None = None


class CasingError(ValueError):
  """A vocabulary was made for the other value of `do_lower_case`."""


def read_vocabulary(vocab_file: str) -> list[str]:
  """Reads the wordpieces of a file, a line each, in the order of their ids.

  Raises:
    ValueError: It is no such file: it is not UTF-8, a line is empty or twice in
      it, it ends its lines as Windows does, or it lacks a special token.
  """
  try:
    with open(vocab_file, encoding="utf-8", newline="\n") as f:
      tokens = f.read().removesuffix("\n").split("\n")
  except OSError as e:
    raise ValueError(e.strerror) from e
  except UnicodeDecodeError as e:
    raise ValueError(f"not UTF-8 text at byte {e.start}") from e
  line_of: dict[str, int] = {}
  for line, token in enumerate(tokens, start=1):
    if not token:
      raise ValueError(f"line {line} is empty")
    if token.endswith("\r"):
      raise ValueError(f"line {line} ends in \\r\\n; it must end in \\n")
    if token in line_of:
      raise ValueError(
        f"{token} is in it twice, lines {line_of[token]}, {line}"
      )
    line_of[token] = line
  _check_special_tokens(tokens, [_UNKNOWN, *_WORDPIECE_NAMES.values()])
  return tokens


def _check_special_tokens(tokens: Sequence[str], names: Sequence[str]) -> None:
  missing = sorted(set(names).difference(tokens))
  if missing:
    raise ValueError(f"it lacks {', '.join(missing)}")


def check_casing(tokens: Sequence[str], do_lower_case: bool) -> None:
  """Refuses tokens that were made for the other value of `do_lower_case`.

  Raises:
    CasingError: They were, as their capitals or the lack of them show.
  """
  special = {_UNKNOWN, *_WORDPIECE_NAMES.values()}
  words = [t for t in tokens if t not in special and t.lower() != t.upper()]
  cased = sum(t != t.lower() for t in words if not t.startswith("[unused"))
  if do_lower_case and cased > _MANY_CAPITALS * len(words):
    raise CasingError(
      f"{cased:,} of its {len(tokens):,} tokens have capitals, which lowercased"
      " text never has"
    )
  if not do_lower_case and not cased:
    raise CasingError(
      "no token has capitals, so that words with capitals in text that is not"
      " lowercased would be unknown"
    )


def wordpiece_tokenizer(
  tokens: Sequence[str], *, do_lower_case: bool
) -> Tokenizer:
  """Makes a tokenizer as BERT's (Devlin et al., arXiv:1810.04805).

  It is what tensorflow-text's `FastBertTokenizer` consists of (Song et al.,
  arXiv:2012.15524). It gives the tokens of `BertTokenizer`, which Model Garden
  has, except that all white space of Unicode ends a word, as in the first BERT;
  and its offsets are those of the text as given, also behind accents.

  Args:
    tokens: What `read_vocabulary` returns.
    do_lower_case: Whether to lowercase text and to strip accents.
  """

  @functools.cache
  def layers() -> tuple[text.FastBertNormalizer, text.FastWordpieceTokenizer]:
    """Makes what is slow to import and to build where it is needed."""
    with tf.init_scope():  # The first call may be in a graph.
      return (
        text.FastBertNormalizer(lower_case_nfd_strip_accents=do_lower_case),
        text.FastWordpieceTokenizer(list(tokens), token_out_type=tf.int32),
      )

  def by_words(*flat: tf.RaggedTensor) -> list[tf.RaggedTensor]:
    """Groups `[batch, (pieces)]` as the first of them, the ids, says."""
    begins_word = [not token.startswith(_SUFFIX) for token in tokens]
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

  def tokenize(sentences: tf.Tensor) -> tf.RaggedTensor:
    normalizer, tokenizer = layers()
    return by_words(tokenizer.tokenize(normalizer.normalize(sentences)))[0]

  def tokenize_with_offsets(sentences: tf.Tensor) -> list[tf.RaggedTensor]:
    normalizer, tokenizer = layers()
    normalized, source = normalizer.normalize_with_offsets(sentences)
    ids, *offsets = tokenizer.tokenize_with_offsets(normalized)
    begins = tf.gather(source.row_splits, ids.value_rowids())
    return by_words(
      ids,
      *(
        x.with_values(tf.gather(source.values, begins + x.values))
        for x in offsets
      ),
    )

  return Tokenizer(
    "wordpiece",
    tokens,
    do_lower_case,
    _special_tokens(tokens, _WORDPIECE_NAMES),
    _sha256("wordpiece", do_lower_case, "\n".join(tokens).encode()),
    tokenize,
    tokenize_with_offsets,
  )


def sentencepiece_tokenizer(
  sp_model_file: str, *, do_lower_case: bool
) -> Tokenizer:
  """Makes a tokenizer as ALBERT's (Lan et al., arXiv:1909.11942).

  As in Model Garden, accents are stripped whatever `do_lower_case` says. What
  the model tells of its training, paths of the machine, is left out.

  Args:
    sp_model_file: A model of SentencePiece, with BERT's special tokens.
    do_lower_case: Whether to lowercase text.

  Raises:
    ValueError: The file cannot be read, or lacks a special token.
  """
  try:
    with open(sp_model_file, "rb") as f:
      model = f.read()
  except OSError as e:
    raise ValueError(e.strerror) from e
  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for field in ("input", "model_prefix"):
      proto.trainer_spec.ClearField(field)
    model = proto.SerializeToString(deterministic=True)
    tokenizer = text.SentencepieceTokenizer(model, out_type=tf.int32)
    size = int(tokenizer.vocab_size())
  except (message.DecodeError, tf.errors.OpError) as e:
    raise ValueError("not a model of SentencePiece") from e
  tokens = [
    token.decode()
    for token in tokenizer.id_to_string(tf.range(size)).numpy().tolist()
  ]
  _check_special_tokens(tokens, list(_SENTENCEPIECE_NAMES.values()))

  def tokenize(sentences: tf.Tensor) -> tf.RaggedTensor:
    sentences = text.normalize_utf8(sentences, "NFD")
    sentences = tf.strings.regex_replace(sentences, r"\p{Mn}", "")
    if do_lower_case:
      sentences = text.case_fold_utf8(sentences)
    return tokenizer.tokenize(sentences)

  return Tokenizer(
    "sentencepiece",
    tokens,
    do_lower_case,
    _special_tokens(tokens, _SENTENCEPIECE_NAMES),
    _sha256("sentencepiece", do_lower_case, model),
    tokenize,
    None,
    [tokenizer],
    model,
  )


def _special_tokens(
  tokens: Sequence[str], names: Mapping[str, str]
) -> dict[str, int]:
  ids = {key: tokens.index(name) for key, name in names.items()}
  return {**ids, "vocab_size": len(tokens)}


def _sha256(kind: str, do_lower_case: bool, vocabulary: bytes) -> str:
  start = f"{kind} {'lower' if do_lower_case else 'cased'}\n"
  return hashlib.sha256(start.encode() + vocabulary).hexdigest()


def pack(
  segments: Sequence[tf.RaggedTensor],
  seq_length: int | tf.Tensor,
  special_tokens: Mapping[str, int],
) -> dict[str, tf.Tensor]:
  """Packs segments of tokens into the inputs of an encoder.

  They are `[CLS] first [SEP] second [SEP] …`, padded. Where that is longer than
  `seq_length`, segments are cut at their ends, a token at a time off those that
  are longest: as tensorflow-text's `RoundRobinTrimmer`, `combine_segments` and
  `pad_model_inputs` do together.

  Args:
    segments: Ids, int32 `[batch, (pieces)]` or `[batch, (words), (pieces)]`.
    seq_length: Length of the result, with room for the special tokens.
    special_tokens: Those of a `Tokenizer`.

  Returns:
    `input_word_ids`; `input_mask`, 1 up to the last [SEP]; and
    `input_type_ids`, the number of the segment: each int32
    `[batch, seq_length]`.
  """
  # Of each segment: all ids in one row, and where those of an example start.
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
    # One more at the end, for where all examples are empty.
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

  All are cut to the greatest common limit with which they fit, and what is left
  over goes to the first of those that were cut.
  """
  segments = lengths.shape[0]
  budget = tf.maximum(budget, 0)
  # Where the m longest are cut, the others leave them this much in all.
  left = budget - tf.cumsum(tf.sort(lengths, axis=0), axis=0, exclusive=True)
  among = tf.range(segments, 0, -1)[:, tf.newaxis]
  limit = tf.reduce_max(left // among, axis=0)
  trimmed = tf.minimum(lengths, limit)
  was_cut = tf.cast(lengths > limit, tf.int32)
  left_over = budget - tf.reduce_sum(trimmed, axis=0)
  before = tf.cumsum(was_cut, axis=0, exclusive=True)
  return trimmed + tf.where(before < left_over, was_cut, 0)
