"""Runs the example in the card of each export, on a few random inputs."""

import pathlib
import re

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import tensorflow as tf

_EXPORTS = flags.DEFINE_multi_string("export", [], "A directory of exports.")
_TEXTS = ["Returns the sum.", "One", "Raises an error: ", "No words at all"] * 8


def _data(example: str) -> dict[str, object]:
  """Returns the values that an example leaves to its reader, by name."""
  grey = "[n, 28, 28, 1]" in example
  return {
    "images": tf.random.uniform([8, *((28, 28, 1) if grey else (32, 32, 3))]),
    "labels": tf.constant([0, 1, 2, 3] * (8 if "strings" in example else 2)),
    "num_classes": 4,
    "sentences": _TEXTS,
    "sequences": tf.random.normal([8, 5, 3]),
    "texts": _TEXTS if "a list of" in example else tf.constant(_TEXTS[:8]),
    "vectors": tf.random.normal([8, 2]),
    "videos": tf.random.uniform([8, 4, 32, 32, 3]),
  }


class CardsTest(parameterized.TestCase):
  def test_the_examples_run(self):
    cards = [
      card
      for export in _EXPORTS.value
      for card in sorted(pathlib.Path(export).rglob("assets.extra/README.md"))
    ]
    self.assertNotEmpty(cards)
    for card in cards:
      export = card.parents[1]
      with self.subTest(str(export)):
        text = card.read_text(encoding="utf-8")
        for example in re.findall("```python\n(.*?)```", text, re.DOTALL):
          trained = self.create_tempdir().full_path
          code = example.replace("path/to/trained", trained)
          # The only other export in an example is its preprocessor.
          other = str(export.parent / "preprocessor")
          code = code.replace("path/to/preprocessor", other)
          code = re.sub(r"path/to/\w+", str(export), code)
          names = _data(example)
          exec(code, names)
          if trained in code:
            found = tf.saved_model.load(trained).variables
            for a, b in zip(found, names["trained"].variables, strict=True):
              self.assertEqual(a.numpy().tolist(), b.numpy().tolist())
          print(f"Ran the example of {export}")


if __name__ == "__main__":
  absltest.main()
