import contextlib
import gzip
import io
import json
import os

import numpy as np
import pandas as pd
import tensorflow as tf

from data import classes
from data import texts
from distribution import errors

_ROWS = [
  ("pos", f"a good film, number {i}") if i % 2 else ("neg", f"bad “film” {i}")
  for i in range(40)
]
_LINES = [f"{label}\t{text}" for label, text in _ROWS]
_CSV = ["text,label", *(f'"{text}",{label}' for label, text in _ROWS)]
_JSON = [json.dumps({"message": t, "n": 1, "topic": c}) for c, t in _ROWS]


def _changed(lines, **changes):
  """Replaces lines: `_4` is the fourth."""
  numbers = {int(name[1:]): line for name, line in changes.items()}
  return [numbers.get(i, line) for i, line in enumerate(lines, 1)]


class TextsTest(tf.test.TestCase):
  def write(self, name, lines, end="\n", encoding="utf-8"):
    path = os.path.join(self.get_temp_dir(), name)
    data = "".join(line + end for line in lines).encode(encoding)
    with open(path, "wb") as f:
      f.write(gzip.compress(data) if name.endswith(".gz") else data)
    return path

  def test_all_kinds_of_files(self):
    frame = pd.DataFrame({"id": range(40)})
    frame["label"], frame["review"] = zip(*_ROWS, strict=True)
    parquet = os.path.join(self.get_temp_dir(), "a.parquet")
    frame.to_parquet(parquet)
    for path in (
      self.write("plain.tsv", _LINES),
      self.write("bom.tsv", _LINES, encoding="utf-8-sig"),
      self.write("crlf.tsv", [*_LINES, ""], end="\r\n"),
      self.write("header.tsv", ["Label\tText", *_LINES]),
      self.write("text_first.tsv", [f"{t}\t{c}" for c, t in _ROWS]),
      self.write("quoted.tsv.gz", [f'{c}\t"{t}"' for c, t in _ROWS]),
      self.write("a.csv", _CSV, end="\r\n"),
      self.write("a.jsonl.gz", _JSON),
      parquet,
    ):
      with self.subTest(path):
        dataset = texts.read([path])
        name = os.path.basename(path)
        self.assertEqual(
          str(dataset),
          f"{name}: 2 classes, 32 examples + 8 held out: neg 16+4, pos 16+4",
        )
        found = [
          (dataset.classes[label], text)
          for part in (dataset.train, dataset.test)
          for text, label in zip(part[0].to_pylist(), part[1], strict=True)
        ]
        self.assertEqual(sorted(found), sorted(_ROWS))

  def test_validation(self):
    dataset = texts.read([self.write("validated.csv", _CSV)])
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      divided = classes.with_validation(dataset)
    self.assertIn("of the 32 training examples 6 are for", output.getvalue())
    (train, train_labels), (spared, labels) = divided.train, divided.validation
    self.assertAllEqual(np.bincount(labels), [3, 3])
    self.assertAllEqual(np.bincount(train_labels), [13, 13])
    self.assertCountEqual(
      [*train.to_pylist(), *spared.to_pylist()], dataset.train[0].to_pylist()
    )
    self.assertIs(divided.test, dataset.test)
    # One of six texts is held out.
    for count, least in ((6, 5), (5, 4)):
      rows = [f"good,{i} a b" for i in range(20)]
      rows += [f"bad,{i} a b" for i in range(count)]
      few = texts.read([self.write(f"{count}.csv", ["label,text", *rows])])
      with contextlib.redirect_stdout(output):
        divided = classes.with_validation(few)
      self.assertEqual(divided.validation is None, least < 5)
    self.assertIn(
      "No early stopping: class bad has too few training examples (4;"
      " validation needs 5 of each class)\n",
      output.getvalue(),
    )

  def test_flags(self):
    names = self.write("names.txt", ["pos", "neg", "none"])
    half = self.write(
      "half.csv", ["a,b,c", *(f'x,"{t}",{c}' for c, t in _ROWS)]
    )
    dataset = texts.read([half], "b", "c", held_out=0.5, class_names_file=names)
    self.assertEqual(dataset.classes, ["pos", "neg", "none"])
    self.assertAllEqual(dataset.counts, [[10, 10], [10, 10], [0, 0]])
    # Several files without a header, with numbers of columns.
    for i in range(2):
      self.write(f"many{i}.csv", [f"{c},{i},{t}" for c, t in _ROWS])
    many = os.path.join(self.get_temp_dir(), "many?.csv")
    with self.assertRaisesRegex(ValueError, "line 2: the number of columns is"):
      texts.read([many], "3", "1")
    self.write("many0.csv", [f'{c},0,"{t}"' for c, t in _ROWS])
    self.write("many1.csv", [f'{c},1,"{t}"' for c, t in _ROWS])
    dataset = texts.read([many], "3", "1")
    self.assertEqual(dataset.counts.sum(), 80)
    places = [dataset.place(i) for i in range(dataset.num_held_out)]
    self.assertLen(set(places), 16)
    for place, text in zip(places, dataset.test[0].to_pylist(), strict=True):
      self.assertRegex(place, r"^many[01].csv, line \d+$")
      self.assertEqual(text, _ROWS[int(place.split()[-1]) - 1][1])

  def test_a_long_text_takes_no_more_memory_than_its_own(self):
    long = "word " * 28_000
    dataset = texts.read([self.write("long.tsv", [*_LINES, f"pos\t{long}"])])
    parts = [part for part, _ in (dataset.train, dataset.test)]
    lengths = [len(text) for part in parts for text in part.to_pylist()]
    self.assertEqual(max(lengths), 140_000)
    size = sum(part.get_total_buffer_size() for part in parts)
    self.assertBetween(size, 140_000, 150_000)

  def test_mistakes(self):
    unknown = ["Klasse\tNachricht", *_LINES]
    for name, lines, message in (
      (
        "few.tsv",
        ["neg\tbad", "pos\tgood"],
        "columns are neg, bad. Set --t",
      ),
      ("unknown.tsv", unknown, "first line may be a header. .* Nachricht and "),
      (
        "three.csv",
        ["a,b,c", "1,2,3"],
        "columns are a, b, c. Set --t",
      ),
      ("empty.tsv", _changed(_LINES, _4="\tx", _9="\ty"), "line 4: .* 2 of 40"),
      (
        "none.jsonl",
        [*_JSON, '{"message": "x"}'],
        "line 41: the class is",
      ),
      (
        "case.tsv",
        _changed(_LINES, _8="POS\tx", _10="pos \ty"),
        "line 8: the class 'POS' differs only .* 'pos' \\(.*line 2\\)",
      ),
      (
        "blank.tsv",
        _changed(_LINES, _10="pos \ty"),
        "line 10: the class",
      ),
      ("swapped.csv", ["label,text", *_CSV[1:]], "40 classes in 40 rows, such"),
      ("one.tsv", [f"pos\t{t}" for _, t in _ROWS], "1 classes, .* needs two"),
      (
        "cells.tsv",
        _changed(_LINES, _7="no tab"),
        "line 7: the number of",
      ),
      ("quote.csv", _changed(_CSV, _41='"open,pos'), "line 41: unexpected"),
      ("json.jsonl", _changed(_JSON, _5="{"), "line 5: Expecting"),
      (
        "list.jsonl",
        _changed(_JSON, _5="[]"),
        "line 5: this is no JSON",
      ),
      ("nothing.csv", [], "nothing.csv is empty"),
      ("page.html", ["<html>"], "must end in .csv, .tsv, .jsonl, .parquet"),
      ("a.parquet", ["PAR1"], "a.parquet: "),
    ):
      with self.subTest(name):
        with self.assertRaisesRegex((ValueError, errors.InputError), message):
          texts.read([self.write(name, lines)])
    latin = self.write(
      "latin.tsv", [*_LINES[1:2], "neg\tfilm très"], encoding="latin-1"
    )
    with self.assertRaisesRegex(ValueError, "line 2: .* not UTF-8.*Latin-1"):
      texts.read([latin])
    with self.assertRaisesRegex(ValueError, "has no column x, but text, label"):
      texts.read([self.write("a.csv", _CSV)], text_column="x")
    names = self.write("names.txt", ["pos", "negative"])
    with self.assertRaisesRegex(ValueError, "line 1: the class neg is not in"):
      texts.read([self.write("a.tsv", _LINES)], class_names_file=names)
    with self.assertRaisesRegex(FileNotFoundError, "/none.* does not exist"):
      texts.read(["/none*"])

  def test_python_docs(self):
    dataset = texts.python_docs()
    self.assertLen(dataset.classes, 8)
    self.assertEmpty(
      {*dataset.train[0].to_pylist()} & {*dataset.test[0].to_pylist()}
    )
    train, held_out = dataset.counts.T
    self.assertGreater(train.min(), 50)
    self.assertGreater(held_out.min(), 10)


if __name__ == "__main__":
  tf.test.main()
