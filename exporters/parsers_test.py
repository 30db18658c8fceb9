"""Fuzzes parsers that do not need TensorFlow."""

import contextlib
import functools
import gzip
import io
import json
import os
import pathlib
import resource
import struct
import sys
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import strategies as st
import pyarrow as pa
from pyarrow import parquet

from data import tables
from distribution import errors
from distribution import formats
from distribution import strategies
from exporters import fuzzing
from exporters.packages import archive
from exporters.packages import description
from models.nlp import preprocessing
from models.nlp import word_vectors

_MORE_MEMORY = 2**30  # Bytes that a parser may allocate.
_COLUMNS = {"text_column": None, "label_column": None}
_CSV = b'text,label\n"a, b",x\nc,y\nd,x\n'
_TSV = b"text\tlabel\na\tx\nc\ty\nd\tx\n"
_JSON = b'{"text": "a", "label": 1}\n{"text": "b", "label": null}\n'
_WORD2VEC = b"3 2\nthe 1.0 2\nof 0.5 -1e-3\nand 1 2\n"
_BINARY = b"2 2\nthe %s\nof %s\n" % ((struct.pack("<2f", 1, 2),) * 2)
_VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\nniño\n".encode()
_TOKENIZER = json.dumps(
  {
    "model": {
      "type": "WordPiece",
      "vocab": {t: i for i, t in enumerate(_VOCABULARY.decode().split())},
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
    },
    "normalizer": {"type": "BertNormalizer"},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "added_tokens": [{"id": 0, "content": "[PAD]"}],
  }
).encode()
_CARD = b"""publisher: a
name: b
version: "1"
license: MIT
task: c
dataset: d
purpose: e
limits: f
evaluation: [{metric: accuracy, value: 0.5, dataset: d}]
language: [en]
"""
_CLUSTER = json.dumps(
  {
    "cluster": {"chief": ["a:1"], "worker": ["b:1", "b:2"], "ps": ["c:1"]},
    "task": {"type": "worker", "index": 0},
  }
).encode()


def _archive() -> bytes:
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as f:
    f.writestr("config.json", "{}")
  return content.getvalue()


def _package() -> bytes:
  content = io.BytesIO()
  archive.pack({"a": __file__, "b/c": os.devnull}, content.write)
  return content.getvalue()


def _unpack(path: str) -> None:
  with open(path, "rb") as f:
    for _, pieces in archive.unpack(f):
      for _ in pieces:
        pass


def _parquet() -> bytes:
  content = io.BytesIO()
  parquet.write_table(pa.table({"text": ["a", "b"], "label": [1, 2]}), content)
  return content.getvalue()


def _read_table(path: str) -> None:
  list(tables.pick(path, _COLUMNS))


def _read_vectors(file_format: str | None, path: str) -> None:
  with (
    errors.of_input(OSError, ValueError, about=f"{path}: "),
    contextlib.redirect_stdout(io.StringIO()),  # Hides the progress.
  ):
    word_vectors.read(path, os.path.dirname(path), file_format)


def _read_vocabulary(path: str) -> None:
  with errors.of_input(OSError, ValueError, about=f"{path}: "):
    preprocessing.read_vocabulary(path)


def _find_checkpoint(path: str) -> None:
  for find in (formats.check_saved_model, formats.checkpoint_prefix):
    with contextlib.suppress(errors.InputError):
      find(path)
  formats.checkpoint_prefix(path, takes_others=True)


def _read_cluster(path: str) -> None:
  content = pathlib.Path(path).read_bytes().replace(b"\0", b"0")
  os.environ["TF_CONFIG"] = content.decode("latin-1")
  with errors.of_input(ValueError, about=f"{path}: "):
    strategies._read_tf_config("parameter_server")


# Name of the file; parser; valid contents; and contents that once broke the
# parser.
_PARSERS = (
  ("vocab.txt", _read_vocabulary, [_VOCABULARY], []),
  (
    "tokenizer.json",
    _read_vocabulary,
    [_TOKENIZER],
    [_TOKENIZER.replace(b'"id": 0', b'"id": Infinity')],
  ),
  *(
    (f"vectors.{name}", functools.partial(_read_vectors, name), wholes, found)
    for name, wholes, found in (
      (None, [_WORD2VEC, _BINARY, gzip.compress(_WORD2VEC)], []),
      # The last content once made a search in the error's text take minutes.
      ("glove", [b"the 1 2\n. . 1 2\n"], [b"the 1\nof " + b"x" * 2**21]),
      ("word2vec_binary", [_BINARY], []),
    )
  ),
  ("a.csv", _read_table, [_CSV], [b"te\x1b[2Jxt"]),
  ("model.tar.gz", _unpack, [_package()], []),
  ("card.yaml", description.read, [_CARD], []),
  ("a.tsv", _read_table, [_TSV], []),
  (
    "a.jsonl",
    _read_table,
    [_JSON],
    [
      b'{"a": "x", "b": "y"}\n',
      b'{"text": "\\ud83d", "label": 1}\n',
      b'{"text": ' + b"[" * 99_999,
    ],
  ),
  (
    "a.csv.gz",
    _read_table,
    [gzip.compress(_CSV, mtime=0)],
    [gzip.compress(_CSV)[:30], gzip.compress(bytes(2**28 + 9), 1)],
  ),
  ("a.parquet", _read_table, [_parquet()], []),
  ("model.bin", _find_checkpoint, [_archive()], [_archive()[:-9] + b"\1" * 9]),
  (
    "TF_CONFIG",
    _read_cluster,
    [_CLUSTER],
    [
      b"[" * 99_999,
      *(
        _CLUSTER.replace(a, b)
        for a, b in (
          (b'"worker", "index"', b'[], "index"'),
          (b'index": 0', b'index": 1e999'),
          (b'["c:1"]', b'"c:1"'),
        )
      ),
    ],
  ),
)


class ParsersTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name, *x) for name, *x in _PARSERS)
  def test_file(self, name, parse, wholes, found):
    path = self.create_tempfile(name).full_path

    def check(content: bytes) -> None:
      pathlib.Path(path).write_bytes(content)
      fuzzing.check_answer(
        lambda: parse(path), (OSError, ValueError), named=name
      )

    for whole in wholes[:1]:
      pathlib.Path(path).write_bytes(whole)
      if name != "model.bin":
        parse(path)
    fuzzing.fuzz(check, fuzzing.files(wholes), found)

  def test_patterns_and_paths(self):
    def check(path: str) -> None:
      for call in (formats.checkpoint_prefix, formats.check_saved_model):
        with self.assertRaises(errors.InputError):
          call(path)

    names = st.text(st.characters(codec="utf-8", exclude_characters="/\0."))
    fuzzing.fuzz(check, names.map("/nowhere/{}".format), max_examples=50)

  def test_no_tensorflow_was_needed(self):
    self.assertNotIn("tensorflow", sys.modules)


def setUpModule():
  with open("/proc/self/statm") as f:
    size = int(f.read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (size + _MORE_MEMORY,) * 2)


if __name__ == "__main__":
  absltest.main()
