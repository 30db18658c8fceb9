"""Tests the numbers of a report, and what its page shows and hides."""

import html.parser
import re
import sys

from absl.testing import absltest
import numpy as np
from sklearn import metrics

from integration_tests import report

# Class 3 is never predicted, and no example of class 4 is held out.
_LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 3])
_PREDICTED = np.array([0, 0, 1, 1, 0, 2, 4, 1])


def _logits(score):
  """Returns logits: a score for the predicted class, and 0 for the others."""
  return score[:, np.newaxis] * np.eye(5)[_PREDICTED]


def _batches(logits, labels=_LABELS, **inputs):
  """Yields batches of three; the last one is padded."""
  for i in range(0, len(labels), 3):
    missing = max(0, i + 3 - len(labels))

    def filled(x, i=i, missing=missing):
      return np.pad(x[i : i + 3], [[0, missing], *[[0, 0]] * (x.ndim - 1)])

    images = inputs.get("images", np.arange(len(labels) * 12.0))
    images = images.reshape(len(labels), 2, 2, 3) / 100
    weights = np.ones(len(labels), np.float32)
    yield filled(images), filled(labels), filled(weights), filled(logits)


def _page(outcome, names, text=None, **history):
  held_out = report.HeldOut(names, "data", text, lambda i: f"file {i}")
  return report.page(outcome, held_out, history, "images", {"a": "<u>"})


class _Page(html.parser.HTMLParser):
  """The tags, attributes and text of a page."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.attributes, self.text = [], {}, ""
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      self.attributes.setdefault(name, []).append(value)

  def handle_data(self, data):
    self.text += data


class ReportTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    score = np.array([1, 2, 3, 4, 5, 6, 7, 8.0])
    self.outcome = report.collect(_batches(_logits(score)), 5)

  def test_numbers(self):
    self.assertEqual(self.outcome.count, 8)
    self.assertEqual(
      self.outcome.confusion.tolist(),
      metrics.confusion_matrix(_LABELS, _PREDICTED).tolist(),
    )
    precision, recall = report.rates(self.outcome.confusion)
    nan = np.nan
    np.testing.assert_allclose(precision, [2 / 3, 1 / 3, 1, nan, 0])
    np.testing.assert_allclose(recall, [2 / 3, 1 / 2, 1 / 2, 0, nan])
    expected = metrics.precision_recall_fscore_support(
      _LABELS, _PREDICTED, zero_division=nan
    )
    np.testing.assert_allclose([precision, recall], expected[:2])

  def test_worst_examples(self):
    """Wrong predictions, surest first, then right ones, surest last."""
    worst = self.outcome.worst
    self.assertEqual([x.index for x in worst], [7, 6, 4, 2, 0, 1, 3, 5])
    self.assertAlmostEqual(worst[0].loss, np.log(np.exp(8) + 4))
    np.testing.assert_allclose(worst[1].image.ravel() * 100, range(72, 84))
    # The worst of many examples are kept, wherever they are. NaN is worst.
    losses = np.random.default_rng(0).permutation(100).astype(float)
    losses[50] = np.nan
    logits = losses[:, np.newaxis] * [0, 1]
    kept = report.collect(_batches(logits, np.zeros(100, int)), 2).worst
    order = np.argsort(-np.nan_to_num(losses, nan=1000.0))
    self.assertEqual([x.index for x in kept], order[:20].tolist())
    # Strings, and the inputs of an encoder.
    for inputs in (np.array([b"a", b"b"], object), {"ids": np.eye(2)}):
      batch = (inputs, np.array([0, 1]), np.ones(2), np.array([[0, 1], [0, 9]]))
      kept = report.collect([batch], 2).worst
      self.assertEqual([x.index for x in kept], [0, 1])

  def test_pixels(self):
    labels = np.array([[[0, 1], [0, 1]]] * 3)
    logits = np.full([3, 2, 2, 2], [10.0, 0.0])  # 0 is predicted everywhere.
    outcome = report.collect(_batches(logits, labels), 2)
    self.assertEqual(outcome.confusion.tolist(), [[6, 0], [6, 0]])
    page = _Page(_page(outcome, "ab", loss=[0.5]))
    self.assertIn("6 of the 12 pixels of 3 held-out images", page.text)
    self.assertIn("The model is no better than that", page.text)
    self.assertIn("50.0\u00a0% of the pixels are wrong", page.text)
    self.assertEqual(page.tags.count("img"), 6)

  def test_page(self):
    script = "<script>alert(1)</script>"
    names = ["a", script, "c" * 200, '"><img src=x onerror=alert(1)>', "e"]
    texts = [script, "", *"234567"]
    for text in (None, texts.__getitem__):
      source = _page(
        self.outcome, names, text, loss=[2, 1], val_loss=[3, np.nan]
      )
      page = _Page(source)
      self.assertStartsWith(page.text.strip(), "Accuracy 50.0\u00a0%")
      self.assertIn("4 of the 8 held-out images", page.text)
      self.assertIn("“a”, the largest class, would get 3 right", page.text)
      self.assertIn(script, page.text)
      self.assertIn("c" * 39 + "…", page.text)
      self.assertIn("file 7", page.text)
      rows = re.findall(r"<tr>(.*?)</tr>", source)
      (never,) = (x for x in rows if "onerror" in x and x.endswith("–</td>"))  # noqa: RUF001
      self.assertIn("0.0\u00a0%", never)
      self.assertNotIn("script", page.tags)
      self.assertEqual(page.tags.count("img"), 0 if text else 8)
      self.assertNotIn("onerror", page.attributes)
      # The page loads nothing.
      urls = page.attributes["href"] + page.attributes.get("src", [])
      self.assertTrue(all(x.startswith("data:image/png") for x in urls))
      self.assertIn("default-src 'none'", source)

  def test_many_classes(self):
    """A large matrix has no counts, and the worst classes come first."""
    count = 100
    labels = np.arange(2 * count) % count
    predicted = np.where(np.arange(2 * count) == 142, 0, labels)
    logits = 9 * np.eye(count)[predicted]
    outcome = report.collect(_batches(logits, labels), count)
    source = _page(outcome, [f"name {i}" for i in range(count)], accuracy=[1])
    matrix = source[source.index("<image") : source.index("Worst examples")]
    self.assertLen(re.findall("<text", matrix), 2 * count)
    classes = source[source.index("<h2>Classes") :]
    first, *_ = re.findall(r'<td dir="auto" class="">(.*?)</td>', classes)
    self.assertEqual(first, "name 42")
    self.assertIn("80 more classes", classes)


if __name__ == "__main__":
  sys.stdout.reconfigure(line_buffering=True)
  absltest.main()
