"""Fuzzes parsers that need TensorFlow."""

import contextlib
import functools
import gzip
import io
import json
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import sentencepiece
import tensorflow as tf

from data import classes
from data import documents
from data import images
from data import texts
from distribution import backups
from distribution import errors
from exporters import fuzzing
from models.nlp import encoder_config
from models.nlp import preprocessing
from models.vision import image_classification
from models.vision import resnet
from tools import nightly

_INPUT = (OSError, ValueError)
_YAML = (
  b"type: bert\nbert: {vocab_size: 9, num_layers: 2, dropout_rate: 1e-1}\n"
)
_PARAMS = b"task: {model: {encoder: {type: albert, albert: {vocab_size: 9}}}}\n"
_BOMB = b"a: &a [x]\n" + b"".join(
  b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9))
  for c in b"abcdefghijklmnop"
)
_JSON = json.dumps(
  {
    **{"model_type": "albert", "num_hidden_groups": 1, "vocab_size": 9},
    **{"attention_probs_dropout_prob": 0, "hidden_act": "gelu"},
  }
).encode()
_CSV = b"text,label\n" + b'"a, b",x\nc,y\n' * 4
_RECORD = json.dumps({"a": 1, "logs of the epochs": [{"b": 2}]}).encode()
# Fields of an experiment that the test overrides.
_FIELDS = (
  *("task", "task.model", "task.losses", "task.train_data", "runtime"),
  *(
    "task.model.backbone",
    "task.model.backbone.type",
    "task.model.num_classes",
  ),
  *("task.model.backbone.resnet", "task.model.backbone.resnet.model_id"),
  *("task.model.input_size", "task.losses.l2_weight_decay", "task.x"),
)


@functools.cache
def _sentencepiece() -> bytes:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(f"the quick brown fox {i}" for i in range(200)),
    **{"model_writer": model, "vocab_size": 60, "minloglevel": 2},
    **{"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1},
    **{"hard_vocab_limit": False},
    user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
  )
  return model.getvalue()


def _picture(kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
  content = io.BytesIO()
  Image.new("1" if max(size) > 999 else "RGB", size).save(content, kind)
  return content.getvalue()


def _example(label: int, text: bytes = b"cat") -> bytes:
  kinds = {
    "image/encoded": {
      "bytes_list": tf.train.BytesList(value=[_picture("JPEG")])
    },
    "image/class/label": {"int64_list": tf.train.Int64List(value=[label])},
    "image/class/text": {"bytes_list": tf.train.BytesList(value=[text])},
  }
  feature = {name: tf.train.Feature(**kind) for name, kind in kinds.items()}
  return tf.train.Example(
    features=tf.train.Features(feature=feature)
  ).SerializeToString()


def _read_config(path: str) -> None:
  read = (
    encoder_config.from_yaml
    if path.endswith(".yaml")
    else encoder_config.from_legacy_json
  )
  with errors.of_input(*_INPUT, about=f"{path}: "):
    read(path)


def _read_sentencepiece(path: str) -> None:
  with errors.of_input(*_INPUT, about=f"{path}: "):
    preprocessing.sentencepiece_tokenizer(path, do_lower_case=True)


def _read_backup(path: str) -> None:
  directory = os.path.dirname(path)
  pathlib.Path(directory, "checkpoint").touch()
  with errors.of_input(ValueError, about=f"{path}: "):
    backups.callbacks(directory, {"a": 1}, tf.distribute.get_strategy(), 3)


# Name of the file; parser; valid contents; and contents that once broke the
# parser.
_PARSERS = (
  (
    "encoder.yaml",
    _read_config,
    [_YAML, _PARAMS],
    [b"!!int ''", _BOMB, b"&a [*a]", b"type: bert\nbert: {dropout_rate: .nan}"],
  ),
  ("config.json", _read_config, [_JSON], [b'{"a": ' + b"[" * 99_999]),
  ("spiece.model", _read_sentencepiece, [], []),
  (
    "names.txt",
    classes.read_names,
    ["cat\nniño\n".encode()],
    [b"", b"cat\n\xff\n"],
  ),
  (
    "training.json",
    _read_backup,
    [_RECORD],
    [b"7", b'{"logs of the epochs": 1}', b"[" * 99_999],
  ),
  ("a.csv", lambda path: texts.read([path]), [_CSV], [b"text,label\n"]),
)


class ParsersTest(parameterized.TestCase):
  def fuzz(self, name, parse, wholes, found=(), max_examples=60):
    path = self.create_tempfile(name).full_path

    def check(content: bytes) -> None:
      pathlib.Path(path).write_bytes(content)
      fuzzing.check_answer(lambda: parse(path), _INPUT, named=name)

    fuzzing.fuzz(check, fuzzing.files(wholes), found, max_examples)

  @parameterized.named_parameters((name, name, *x) for name, *x in _PARSERS)
  def test_file(self, name, parse, wholes, found):
    wholes = wholes or [_sentencepiece()]
    path = self.create_tempfile(f"good/{name}").full_path
    pathlib.Path(path).write_bytes(wholes[0])
    parse(path)
    self.fuzz(name, parse, wholes, found)

  def test_a_record_of_a_backup_is_compared(self):
    path = self.create_tempfile("training.json").full_path
    pathlib.Path(path).write_bytes(_RECORD)
    _read_backup(path)
    for record, problem in (
      ({"a": 2}, "another training: a is 2 there and 1 here"),
      (7, "does not say which training is there: TypeError: 'int' object"),
    ):
      pathlib.Path(path).write_text(json.dumps(record))
      with self.assertRaisesRegex(errors.InputError, problem):
        _read_backup(path)

  def test_documents(self):
    def parse(path: str) -> None:
      corpus = documents.text_files([path])
      with errors.of_input(tf.errors.OpError, about=f"{path}: "):
        list(corpus.held_out)

    rows = b'{"text": "a"}\n' * 99
    for name, whole, found in (
      ("a.txt.gz", gzip.compress(b"a\n\n" * 60, mtime=0), []),
      ("a.jsonl", rows, [rows + b"{}\n[]\n"]),
    ):
      self.fuzz(name, parse, [whole], found, max_examples=5)

  def test_what_is_wrong_late_in_a_file(self):
    path = self.create_tempfile("a.jsonl").full_path
    pathlib.Path(path).write_bytes(b'{"text": "a"}\n' * 999 + b"{\n")
    corpus = documents.text_files([path])
    with self.assertRaisesRegex(
      errors.InputError, r"^\S+a.jsonl, line 1000: Expecting property[^{]*$"
    ):
      with errors.of_input(tf.errors.OpError):
        list(corpus.train)

  def test_images(self):
    def load(path: str) -> None:
      dataset = images.resized(images.load(path), [8, 8, 3])
      with contextlib.redirect_stderr(io.StringIO()):
        for part in (dataset.train, dataset.test):
          list(part)

    def load_examples(path: str) -> None:
      last = pathlib.Path(path).read_bytes()
      with tf.io.TFRecordWriter(path) as writer:
        for record in [*map(_example, [0, 1] * 8), last]:
          writer.write(record)
      load(path)

    path = self.create_tempfile("good.tfrecord").full_path
    with tf.io.TFRecordWriter(path) as writer:
      for label in [0, 1] * 4:
        writer.write(_example(label))
    whole = pathlib.Path(path).read_bytes()
    load(path)
    self.fuzz("a.tfrecord", load, [whole], [b""], max_examples=5)
    wrong = [_example(2**40), _example(-1), _example(2, b"\xff")]
    self.fuzz("b.tfrecord", load_examples, wrong[2:], wrong, max_examples=5)

  @nightly.only
  def test_pictures(self):
    wholes = [_picture(x) for x in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]
    # Pillow refuses the first as a decompression bomb. The second is 1 pixel
    # high.
    wide = _picture(size=(16_383, 16_383)), _picture(size=(65_535, 1))
    nothing = wholes[2].replace(b"\x08\0\x08\0", bytes(4), 1)
    root = pathlib.Path(self.create_tempdir().full_path)
    for i in range(999):
      folder = root / f"class_{i % 2}"
      folder.mkdir(exist_ok=True)
      (folder / f"{i}.png").write_bytes(wholes[0])

    def check(pictures: list[bytes]) -> None:
      for i, content in enumerate(pictures):
        (root / "class_0" / f"damaged_{i}.png").write_bytes(content)
      stderr = io.StringIO()
      with contextlib.redirect_stderr(stderr):
        dataset = images.resized(images.load(str(root)), [8, 8, 3])
        labels = [
          label
          for part in (dataset.train, dataset.test)
          for _, label in part.as_numpy_iterator()
        ]
      self.assertBetween(len(labels), 999, 999 + len(pictures))
      self.assertLessEqual(np.max(labels), 1)

    check([*wide, nothing, b""])
    damaged = st.lists(fuzzing.files(wholes), min_size=20, max_size=20)
    fuzzing.fuzz(check, damaged, max_examples=3)

  def test_names_of_data_sets(self):
    for name in ("tfds:mnist:9.9.9", "tfds:mnist/x", "tfds:../x", ""):
      with self.assertRaises(ValueError):
        images.load(name)

  @nightly.only
  def test_overrides_of_experiments(self):
    value = st.recursive(
      st.none() | st.booleans() | st.integers() | st.floats() | st.just("vit"),
      lambda x: (
        st.lists(x) | st.dictionaries(st.sampled_from(["type", "x"]), x)
      ),
      max_leaves=3,
    )

    def check(override: str) -> None:
      with contextlib.suppress(ValueError):
        image_classification.configure(
          resnet.ARCHITECTURE, "resnet_small", [override]
        )

    fuzzing.fuzz(
      check,
      st.text(max_size=20)
      | st.tuples(st.sampled_from(_FIELDS), value).map(
        lambda pair: f"{pair[0]}={json.dumps(pair[1])}"
      ),
      [
        "task.model.backbone.resnet=",
        "task.model.backbone.resnet.model_id={}",
        '{"task": {"model": null}}',
      ],
    )


if __name__ == "__main__":
  absltest.main()
