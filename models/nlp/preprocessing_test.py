import collections
import os
import pydoc
import re

import numpy as np
import sentencepiece
import tensorflow as tf
import tensorflow_text as text

from data import documents
from models.nlp import preprocessing

_SPECIAL = {"padding_id": 0, "start_of_sequence_id": 2, "end_of_segment_id": 3}
_SENTENCES = [
  # Every fourth line, because `to_list` is slow.
  *pydoc.render_doc(collections).split("\n")[::4],
  "",
  "Ärgerlich: ¡Señor Ångström isn't HERE! 漢字 ﬁ",
  "a" * 100 + " " + "b" * 101,
  "[CLS] is no special token here",
]


def _vocabulary():
  words = sorted(set(re.findall(r"\w+", " ".join(_SENTENCES[:-3]))))
  characters = sorted({c for sentence in _SENTENCES for c in sentence} - {" "})
  return [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *characters,
    *("##" + c for c in characters),
    *(w for w in words if len(w) > 1),
  ]


def _op_types(function, *specs):
  graph = tf.function(function).get_concrete_function(*specs).graph
  definition = graph.as_graph_def()
  return {
    node.op
    for nodes in (
      definition.node,
      *(f.node_def for f in definition.library.function),
    )
    for node in nodes
  }


class PreprocessingTest(tf.test.TestCase):
  def write(self, data):
    path = os.path.join(self.get_temp_dir(), "vocab.txt")
    with open(path, "wb") as f:
      f.write(data)
    return path

  def test_tokens_are_those_of_bert_tokenizer(self):
    tokens = _vocabulary()
    path = self.write("\n".join(tokens).encode())
    self.assertEqual(preprocessing.read_vocabulary(path), tokens)
    for do_lower_case in (False, True):
      table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
          tokens, tf.range(len(tokens), dtype=tf.int64)
        ),
        default_value=-1,
      )
      expected = text.BertTokenizer(table, lower_case=do_lower_case)
      actual = preprocessing.wordpiece_tokenizer(
        tokens, do_lower_case=do_lower_case
      )
      ids = actual.tokenize(_SENTENCES)
      self.assertEqual(ids.dtype, tf.int32)
      self.assertEqual(ids.to_list(), expected.tokenize(_SENTENCES).to_list())
      self.assertGreater(ids.values.nrows(), 200)
      self.assertGreater(len(ids.flat_values.numpy()), ids.values.nrows() + 50)

  def test_offsets_are_those_of_the_text(self):
    tokens = _vocabulary()
    tokenizer = preprocessing.wordpiece_tokenizer(tokens, do_lower_case=True)
    ids, begins, ends = tokenizer.tokenize_with_offsets(_SENTENCES)
    self.assertEqual(ids.to_list(), tokenizer.tokenize(_SENTENCES).to_list())
    for sentence, *of_sentence in zip(
      _SENTENCES, ids.to_list(), begins.to_list(), ends.to_list(), strict=True
    ):
      for of_word in zip(*of_sentence, strict=True):
        for token, begin, end in zip(*of_word, strict=True):
          piece = sentence.encode()[begin:end].decode()
          found = tokens[token].removeprefix("##")
          # The second letter of a ligature has no bytes in the text.
          if found != "[UNK]" and piece and piece.isascii():
            self.assertEqual(found, piece.lower())
    # Unlike these, offsets of tensorflow-text's BertTokenizer refer to the text
    # without accents.
    sentence = _SENTENCES[-3].encode()
    begin, end = begins[-3, 3, 0].numpy(), ends[-3, 3, -1].numpy()
    self.assertEqual(sentence[begin:end].decode(), "Señor")

  def test_sentencepiece(self):
    directory = self.get_temp_dir()
    corpus = os.path.join(directory, "corpus")
    with open(corpus, "w", encoding="utf-8") as f:
      f.write("\n".join(_SENTENCES).lower())
    prefix = os.path.join(directory, "model")
    sentencepiece.SentencePieceTrainer.train(
      input=corpus,
      model_prefix=prefix,
      vocab_size=150,
      pad_id=0,
      unk_id=1,
      bos_id=-1,
      eos_id=-1,
      control_symbols=["[CLS]", "[SEP]", "[MASK]"],
      minloglevel=2,
    )
    tokenizer = preprocessing.sentencepiece_tokenizer(
      prefix + ".model", do_lower_case=True
    )
    self.assertEqual(
      tokenizer.special_tokens,
      {
        "padding_id": 0,
        "start_of_sequence_id": 2,
        "end_of_segment_id": 3,
        "mask_id": 4,
        "vocab_size": 150,
      },
    )
    processor = sentencepiece.SentencePieceProcessor(prefix + ".model")
    plain = ["the factory function", "isn't it a dict?"]
    self.assertEqual(
      tokenizer.tokenize([s.upper() for s in plain]).to_list(),
      processor.encode(plain),
    )
    self.assertNotIn(
      "Assert", _op_types(tokenizer.tokenize, tf.TensorSpec([None], tf.string))
    )
    tokenizer = preprocessing.sentencepiece_tokenizer(
      prefix + ".model", do_lower_case=True, as_transformers=True
    )
    # The normalizer of transformers' AlbertTokenizer returns the second text
    # for the first one.
    self.assertEqual(
      tokenizer.tokenize(["``\xdcn\xef'' Stra\xdfe \ufb01 \xbd"]).to_list(),
      processor.encode(['"uni" stra\xdfe fi 1\u20442']),
    )
    with self.assertRaisesRegex(ValueError, "not a SentencePiece model"):
      preprocessing.sentencepiece_tokenizer(corpus, do_lower_case=True)

  def test_pack_is_that_of_tensorflow_text(self):
    rng = np.random.default_rng(0)
    for _ in range(100):
      count, batch = rng.integers(1, 4), rng.integers(1, 5)
      seq_length = int(rng.integers(count + 1, 24))
      segments = [
        tf.ragged.constant(
          [
            rng.integers(4, 99, rng.integers(12)).tolist() for _ in range(batch)
          ],
          dtype=tf.int32,
          ragged_rank=1,
        )
        for _ in range(count)
      ]
      trimmer = text.RoundRobinTrimmer(seq_length - count - 1)
      word_ids, type_ids = text.combine_segments(trimmer.trim(segments), 2, 3)
      word_ids, mask = text.pad_model_inputs(word_ids, seq_length)
      type_ids, _ = text.pad_model_inputs(type_ids, seq_length)
      actual = preprocessing.pack(segments, seq_length, _SPECIAL)
      self.assertAllEqual(actual["input_word_ids"], word_ids)
      self.assertAllEqual(actual["input_mask"], mask)
      self.assertAllEqual(actual["input_type_ids"], type_ids)

  def test_pack_of_words(self):
    words = tf.ragged.constant([[[5, 6], [7]], [], [[8]]], tf.int32)
    packed = preprocessing.pack([words, words], 8, _SPECIAL)
    self.assertAllEqual(
      packed["input_word_ids"],
      [
        [2, 5, 6, 7, 3, 5, 6, 3],
        [2, 3, 3, 0, 0, 0, 0, 0],
        [2, 8, 3, 8, 3, 0, 0, 0],
      ],
    )

  def test_no_assert_ops(self):
    tokenizer = preprocessing.wordpiece_tokenizer(
      _vocabulary(), do_lower_case=True
    )
    strings = tf.TensorSpec([None], tf.string)
    words = tf.RaggedTensorSpec([None, None, None], tf.int32)
    for function, specs in (
      (tokenizer.tokenize, [strings]),
      (tokenizer.tokenize_with_offsets, [strings]),
      (
        lambda a, b, n: preprocessing.pack([a, b], n, _SPECIAL),
        [words, words, tf.TensorSpec([], tf.int32)],
      ),
    ):
      types = _op_types(function, *specs)
      self.assertIn("GatherV2", types)
      self.assertNotIn("Assert", types)
    # The ops that the functions avoid do add Asserts.
    self.assertIn("Assert", _op_types(lambda x: x.merge_dims(1, 2), words))

  def test_bad_vocabularies(self):
    good = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n"
    for data, message in (
      (
        good.replace(b"[CLS]\n", b""),
        r"it lacks \[CLS\]; it begins with '\[PAD",
      ),
      (good + b"word\n", r"word is in it twice, lines 6, 7.*\[unused_7\]$"),
      (
        good + b"word \nx\n",
        "lines 6, 7.*it decides the ids from 6 on: 'x', …",
      ),
      (good + b"\nx\ny\n", "line 7 is empty.* the ids from 6 on: 'x', 'y', …"),
      (good + b" \t\nx\n", "line 7 is empty"),
      (good + b"\r\nx\n", "line 7 is empty"),
      (good + b"\n", r"line 7 is empty.*, such as \[unused_7\]$"),
      (good + b"\xff\n", "line 7: this is not UTF-8, but perhaps Latin-1"),
      (good.decode().encode("utf-16-le"), r"it begins with '\[\\x00P"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        preprocessing.read_vocabulary(self.write(data))
    # The first BERT reads these variants like `good`.
    expected = preprocessing.read_vocabulary(self.write(good))
    for data in (
      b"\xef\xbb\xbf" + good,
      good.replace(b"\n", b"\r\n"),
      good.replace(b"]\n", b"] \n").replace(b"word", b"\tword\xc2\xa0"),
      good.removesuffix(b"\n"),
    ):
      path = self.write(data)
      self.assertEqual(preprocessing.read_vocabulary(path), expected)
    # Only \n ends a line. Other white space can be in a token or be one.
    odd = good.decode() + "x\u2028\u0085y\n\u2028\n\u00a0\n"
    tokens = preprocessing.read_vocabulary(self.write(odd.encode()))
    self.assertEqual(tokens[6:], ["x\u2028\u0085y", "\u2028", "\u00a0"])

  def test_unreachable(self):
    both = ["don't", "東京", "ab.", "\u2028", "##", "x\u200b"]
    upper = ["Word", "##S", "niño", "क्षा", "ς", "²", "ﬁ", "한국"]
    fine = [
      "word",
      "##s",
      "हम",
      ".",
      "##.",
      "東",
      "##東",
      "[X]",
      "<S>",
      "a",
      "ø",
    ]
    for lower, lost in ((False, both), (True, both + upper)):
      self.assertEqual(
        preprocessing.unreachable("wordpiece", [*fine, *both, *upper], lower),
        lost,
      )
    pieces = ["▁word", "▁한국", "[CLS]", "▁The", "é"]
    for lower, lost in ((False, ["é"]), (True, ["▁The", "é"])):
      self.assertEqual(
        preprocessing.unreachable("sentencepiece", pieces, lower), lost
      )

  def test_casing(self):
    lower = ["[CLS]", "[unused1]", "<S>", "the", "##s", "\u2028"]
    cased = [*lower, "The"]
    few = [*cased, *map(str, range(9))] + ["a"] * 200
    spanish = [*lower, "el", "niño", "canción"]
    hindi = [
      "[CLS]",
      "क्षा",
      "की",
      "##ि",
      "हम",
      "का",
      "##े",
      "में",
      "है",
      "नहीं",
      "पर",
      "a",
    ]
    georgian = ["[CLS]", "და", "##ი", "არ"]
    for tokens, do_lower_case, problem in (
      (lower, True, None),
      (cased, False, None),
      (few, True, None),
      (cased, True, "no text yields 1 of its 7 tokens, such as 'The', as text"),
      (lower, False, "no token has"),
      (spanish, True, "no text yields 2 of its 9 tokens, such as 'niño', 'can"),
      (spanish, False, "no token has"),
      (hindi, True, "no text yields 5 of its 12 tokens"),
      (hindi, False, None),
      (georgian, True, None),
      (georgian, False, None),
    ):
      with self.subTest(tokens[-1], do_lower_case=do_lower_case):
        actual = preprocessing.casing_problem(
          "wordpiece", tokens, do_lower_case
        )
        self.assertStartsWith(str(actual), str(problem))


class VocabularyTest(tf.test.TestCase):
  def test_build(self):
    corpus = documents.python_docs().train.take(150)
    tokens = preprocessing.build_vocabulary(corpus, 400, do_lower_case=True)
    self.assertEqual(tokens[:5], list(preprocessing.SPECIAL_TOKENS))
    self.assertBetween(len(tokens), 200, 400)
    self.assertLen(set(tokens), len(tokens))
    self.assertContainsSubset(["the", "return", "##ing"], tokens)
    self.assertIsNone(preprocessing.casing_problem("wordpiece", tokens, True))
    # The vocabulary has all characters of the text, so no token is unknown.
    tokenizer = preprocessing.wordpiece_tokenizer(tokens, do_lower_case=True)
    ids = tokenizer.tokenize(list(corpus)).flat_values
    self.assertNotIn(tokens.index("[UNK]"), ids.numpy())
    cased = preprocessing.build_vocabulary(corpus, 400, do_lower_case=False)
    self.assertContainsSubset(["The", "Return"], cased)

  def test_too_small(self):
    text = tf.data.Dataset.from_tensors("abcdefg")
    with self.assertRaisesRegex(ValueError, "has 19 tokens, more than 12"):
      preprocessing.build_vocabulary(text, 12, do_lower_case=True)


if __name__ == "__main__":
  tf.test.main()
