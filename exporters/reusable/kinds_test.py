"""Tests how the kind of a SavedModel is decided."""

from absl.testing import absltest
from absl.testing import parameterized
import tensorflow as tf

from exporters.reusable import kinds


def _spec(dtype, *shape):
  return tf.TensorSpec(shape, dtype)


def _floats(*shape):
  return _spec(tf.float32, *shape)


def _strings(*shape):
  return _spec(tf.string, *shape)


def _ids(*shape):
  return _spec(tf.int32, *shape)


_N = None
_UNKNOWN = tf.TensorSpec(None, tf.float32)
_RAGGED = tf.RaggedTensorSpec([None, None], tf.int32)
_BERT = {
  name: _ids(_N, _N)
  for name in ("input_word_ids", "input_mask", "input_type_ids")
}
_ENCODED = {
  "sequence_output": _floats(_N, _N, 8),
  "pooled_output": _floats(_N, 8),
}
_LABELLED = {
  "label": _spec(tf.string, _N),
  "scores": _floats(_N, 5),
  "logits": _floats(_N, 5),
}
_GENERATES = {"generate", "step", "tokenize", "detokenize"}
_WORDS = ["word_embeddings"]
_NAMES = {"class_names", "class_names_file"}
_STATES = [_floats(_N, 4), _floats(_N, 4)]


class KindsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("image", _floats(_N, _N, _N, 3), _floats(_N, 8)),
    ("image", _floats(_N, 224, 224, 3), {"default": _floats(_N, 8)}),
    ("image", _spec(tf.uint8, _N, _N, _N, 3), _floats(_N, 8)),
    ("image", _floats(4, 32, 32, 3), _floats(4, 1000)),
    ("plain", _floats(_N, 3, 224, 224), _floats(_N, 8)),  # Channels first.
    ("plain", _floats(_N, _N, _N, _N), _floats(_N, 8)),
    ("plain", _floats(_N, _N, _N, 4), _floats(_N, 8)),
    ("plain", _strings(_N, _N, _N, 3), _floats(_N, 8)),
    ("plain", [_floats(_N, _N, _N, 3)] * 2, _floats(_N, 8)),
    ("grey image", _floats(_N, 28, 28, 1), _floats(_N, 32)),
    ("grey image", _floats(_N, _N, _N, 1), _floats(_N, 10)),
    ("plain", _floats(_N, 1, 28, 28), _floats(_N, 32)),
    ("plain", _floats(_N, 28, 28), _floats(_N, 32)),
    ("video", _floats(_N, _N, _N, _N, 3), _floats(_N, 8)),
    ("plain", _floats(_N, 16, 64, 64, 1), _floats(_N, 8)),
    ("encoder", _BERT, _ENCODED),
    ("encoder", {"input_word_ids": _ids(_N, 8)}, _ENCODED),
    ("plain", _BERT, _floats(_N, 2)),  # A classifier with an encoder in it.
    ("plain", _BERT, {"logits": _floats(_N, 2)}),
    ("plain", list(_BERT.values()), _ENCODED),
    ("preprocessor", _strings(_N), _BERT),
    ("plain", _strings(_N), {**_BERT, "logits": _floats(_N, 2)}),
    ("plain", _strings(_N), {**_BERT, "input_word_ids": _floats(_N, 8)}),
    ("plain", _strings(_N), _RAGGED),  # A tokenizer.
    ("plain", _strings(_N), _strings(_N)),
    ("plain", [_strings(_N), _strings(_N)], _BERT),
    ("text embedding", _strings(_N), _floats(_N, 64)),
    ("text embedding", _strings(_N), _floats(_N, _N)),
    ("text embedding", _strings(8), _floats(8, 64)),
    ("plain", _strings(_N), _floats(_N, 1)),  # A score.
    ("plain", _strings(_N), _floats(_N)),
    ("plain", _strings(_N), _ids(_N, 64)),
    ("plain", _strings(_N), _floats(_N, _N, 64)),
    ("plain", _strings(_N), {"embedding": _floats(_N, 64)}),
    ("plain", _strings(_N, 1), _floats(_N, 64)),
    ("plain", _strings(_N, 1), _floats(_N, 1, 64)),
    ("plain", _strings(), _floats(64)),
    ("plain", _strings(_N, _N), _floats(_N, _N, 50)),  # Word embeddings.
    ("plain", _strings(_N, _N), _floats(_N, 50)),  # An average of words.
    ("plain", _RAGGED, _floats(_N, _N, 50)),
    ("plain", _ids(_N, _N), _floats(_N, _N, 90)),
    ("vector", _floats(_N), _floats(_N)),
    ("vector", _floats(_N, 4), _floats(_N, 3)),
    ("vector", _spec(tf.float64, _N, _N), [_floats(_N), _floats(_N)]),
    ("plain", _ids(_N, 4), _floats(_N, 3)),
    ("plain", _UNKNOWN, _floats(_N, 3)),
    ("plain", {"x": _floats(_N, 4)}, _floats(_N, 3)),
    ("plain", [_floats(_N, 4), _floats(_N, 6)], _floats(_N, 3)),
    ("plain", [_floats(_N, 4), *_STATES], [_floats(_N, 9), *_STATES]),
    ("plain", (), None),
    ("plain", None, None),
  )
  def test_is_decided_by_specs(self, name, taken, returned):
    self.assertEqual(kinds.of(taken, returned).name, name)

  @parameterized.parameters(
    ("generator", _ids(_N, _N), _floats(_N, _N, 90), _GENERATES),
    ("plain", _ids(_N, _N), _floats(_N, _N, 90), {"generate", "tokenize"}),
    ("plain", _strings(_N), _strings(_N), _GENERATES),
    ("plain", _ids(_N, _N), _floats(_N, 90), _GENERATES),
    ("plain", [_ids(_N), *_STATES], [_floats(_N, 90), *_STATES], _GENERATES),
    ("cell", [_floats(_N, 4), *_STATES], [_floats(_N, 9), *_STATES], {"units"}),
    ("cell", _STATES, _STATES, ()),
    (
      "Keras 3 export",
      _floats(_N, 32, 32, 3),
      _floats(_N, 9),
      {"serve", "non_trainable_variables"},
    ),
    ("image", _floats(_N, 32, 32, 3), _floats(_N, 9), {"serve"}),
    (
      "vector",
      _floats(_N, 4),
      _floats(_N, 9),
      {"__call__", "serve", "non_trainable_variables"},
    ),
    ("text classifier", _strings(_N), _LABELLED, _NAMES),
    ("plain", _strings(_N), _LABELLED, {"class_names"}),
    ("image classifier", _strings(_N), _LABELLED, {"class_names", "images"}),
    (
      "image classifier",
      _floats(_N, 8, 64, 64, 3),
      _LABELLED,
      {"class_names", "images"},
    ),
    ("plain", _strings(_N), _LABELLED, {"images"}),
    ("image", _floats(_N, 64, 64, 3), _LABELLED, {"class_names", "images"}),
    ("plain", [_floats(_N, 4)], [_floats(_N, 9)], ()),
    ("plain", [_floats(_N, _N, 4), *_STATES], [_floats(_N, 9), *_STATES], ()),
    ("plain", _STATES, _floats(_N, 4), ()),
    ("plain", _STATES, {"output": _floats(_N, 4)}, ()),
  )
  def test_is_decided_by_attributes(self, name, taken, returned, attributes):
    kind = kinds.of(taken, returned, {"state_sizes", *attributes})
    self.assertEqual(kind.name, name)

  @parameterized.parameters(
    ("plain", _strings(_N), _floats(_N, 5), ["probabilities"]),
    ("plain", _strings(_N), _floats(_N, 5), ["logits"]),
    ("text embedding", _strings(_N), _floats(_N, 5), ["embedding"]),
    ("plain", _strings(_N, _N), _floats(_N, _N, 5), ["elmo"]),
    ("word embedding", _strings(_N, _N), _floats(_N, _N, 5), _WORDS),
    ("grey image", _floats(_N, 28, 28, 1), _floats(_N, 10), ["logits"]),
  )
  def test_is_decided_by_names_of_outputs(self, name, taken, returned, names):
    self.assertEqual(kinds.of(taken, returned, (), names).name, name)


if __name__ == "__main__":
  absltest.main()
