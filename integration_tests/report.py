"""Writes a page about the results of a classifier on held-out examples."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import heapq
import io
from typing import Any
import unicodedata
from xml.etree import ElementTree

from absl import flags
from etils import epy

from distribution import errors
from distribution import formats
from distribution import publishing

with epy.lazy_imports():
  from matplotlib import ticker
  import numpy as np
  from PIL import Image
  import tensorflow as tf

flags.disclaim_key_flags()  # --help lists them as the program's.

_WORST = 20  # Examples.
_FIRST = 20  # Classes that are always listed, and whose counts fit into cells.
_MOST_LABELLED, _MOST_DRAWN = 100, 1000  # Classes in the confusion matrix.
_CONFUSED = 10  # Pairs of classes.
_LONGEST = 600  # Characters of a text.
_LARGEST = 256  # Pixels of a side of a picture.
_RIGHT, _WRONG = (26, 95, 180), (200, 50, 40)  # Colors of cells.
# The page loads and runs nothing, whatever is in the data.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --text: #1f2328; --muted: #59636e; --line: #d1d9e0; --page: #fff;
  --card: #f6f8fa; --wrong: #b3261e; --validation: #9a6700;
  color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --muted: #9aa4af; --line: #3d444d; --page: #0d1117;
    --card: #161b22; --wrong: #ff8a80; --validation: #d9a441 }
}
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; color: var(--text); background: var(--page);
  overflow-wrap: anywhere }
h1 { font-size: 2.2rem; line-height: 1.2; margin: 0 0 .5rem }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line) }
p { margin: .5rem 0; max-width: 45rem }
.muted, th, summary { color: var(--muted) }
.wrong { color: var(--wrong) }
.validation { color: var(--validation) }
.curves { display: flex; flex-wrap: wrap; gap: 1rem 2rem }
figure { flex: 1 1 18rem; max-width: 32rem; margin: 0 }
figcaption { font-weight: 600 }
figcaption span { margin-left: 1rem; font-weight: 400; white-space: nowrap }
figcaption span::before { content: "● " }
svg { display: block; font-family: inherit }
svg text, circle { fill: currentColor }
.curves svg { width: 100%; height: auto }
.grid { stroke: var(--line); fill: none }
polyline { fill: none; stroke: currentColor; stroke-width: 2 }
svg .on-color { fill: #fff }
image, img { image-rendering: pixelated }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0;
  overflow-wrap: break-word; max-width: 16rem }
tr + tr > * { border-top: 1px solid var(--line) }
td.number, th.number { text-align: right; white-space: nowrap }
.facts td { overflow-wrap: anywhere; white-space: pre-line; max-width: none }
.facts td:first-child { color: var(--muted); min-width: 7rem }
ul { display: grid; gap: 1rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
ul.texts { grid-template-columns: 1fr }
ul.videos { grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }
li { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .75rem; font-size: .875rem; min-width: 0 }
li p { margin: .25rem 0 0 }
.text { font-size: 1rem; white-space: pre-wrap; max-height: 12rem;
  overflow-y: auto }
img { display: block; width: 100%; margin-bottom: .5rem }
img.large { image-rendering: auto }
summary { cursor: pointer; margin: .5rem 0 }
@media (max-width: 40rem) {
  table { font-size: .8125rem }
  td, th { padding-right: .75rem; max-width: 8rem }
}
"""


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Descriptions of the held-out examples, for a report.

  Attributes:
    class_names: Names of the classes, in the order of the logits.
    description: The data set, in words, without paths.
    text: Takes the index of an example and returns its text. None: examples are
      images, and the report shows the inputs of the model.
    place: Takes the index of an example and returns its file and line; "" if
      the data has none.
  """

  class_names: Sequence[str]
  description: str
  text: Callable[[int], str] | None
  place: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class Example:
  """An example with its prediction.

  Attributes:
    loss: Its cross-entropy, the mean over its pixels if they have classes.
    index: Its number, from 0 on.
    image: The model's input, float32 `[(frames,) height, width, channels]`;
      None if the input is no array.
    labels: Its class, int `[]`, or those of its pixels, `[height, width]`.
    predicted: The predictions of the model, in the form of `labels`.
    scores: The softmax of its logits, float `[…, classes]`.
  """

  loss: float
  index: int
  image: np.ndarray | None
  labels: np.ndarray
  predicted: np.ndarray
  scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The predictions of a classifier for the held-out examples.

  Attributes:
    confusion: Number of examples, or pixels, by true and by predicted class,
      int `[classes, classes]`.
    count: Number of examples.
    worst: The examples with the largest loss, in descending order.
  """

  confusion: np.ndarray
  count: int
  worst: Sequence[Example]


def define_flags() -> None:
  """Defines --report."""
  flags.DEFINE_string(
    "report",
    None,
    "File to write a report on the held-out examples to, which ends in .html:"
    " accuracy, curves, confusion matrix, precision and recall of each class,"
    f" and the {_WORST} worst examples. The default is not to write it.",
  )
  flags.register_validator(
    "report",
    lambda path: path is None or path.endswith(".html"),
    "It must end in .html.",
  )


def check(path: str) -> None:
  """Raises an InputError before the training if --report cannot be written."""
  if tf.io.gfile.isdir(path):
    raise errors.InputError(f"--report: {path} is a directory, not a file.")
  if tf.io.gfile.exists(path):
    raise errors.InputError(
      f"--report: {path} exists. Remove it, or choose another name."
    )
  if "://" not in path:
    formats.check_output_file("report", path)
    return
  about = f"Cannot write --report={path}: "
  with errors.of_input(OSError, tf.errors.OpError, about=about):
    with tf.io.gfile.GFile(path, "w") as f:
      f.write("")
    tf.io.gfile.remove(path)


def write(path: str, text: str) -> None:
  """Writes a file, which appears complete or not at all."""
  content = text.encode(errors="replace")
  if "://" in path:  # An object appears when it is closed.
    with tf.io.gfile.GFile(path, "wb") as f:
      f.write(content)
  else:
    publishing.write(path, content)
  print(f"Wrote the report {path}")


def collect(batches: Iterable[tuple[Any, ...]], num_classes: int) -> Outcome:
  """Counts predictions and collects the worst examples.

  Args:
    batches: Inputs, an array or a dict of arrays; labels, int `[n, …]`;
      weights, `[n]`, 0 for padding; and logits, float
      `[n, …, classes]`.
    num_classes: Number of classes.
  """
  confusion = np.zeros([num_classes, num_classes], np.int64)
  worst, start, count = [], 0, 0
  for inputs, labels, weights, logits in batches:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_scores, labels[..., np.newaxis], axis=-1)
    losses = losses.reshape(len(labels), -1).mean(axis=1)
    counted = weights > 0
    # NaN, from a model that has diverged, is the worst value.
    losses = np.where(counted, np.nan_to_num(losses, nan=np.inf), -1.0)
    predicted = logits.argmax(axis=-1)
    np.add.at(confusion, (labels[counted], predicted[counted]), 1)
    least = worst[-1].loss if len(worst) == _WORST else -1.0
    worst += [
      Example(
        losses[i],
        start + int(i),
        np.array(inputs[i]) if isinstance(inputs, np.ndarray) else None,
        labels[i].copy(),
        predicted[i].copy(),
        np.exp(log_scores[i]),
      )
      for i in np.argsort(-losses, kind="stable")[:_WORST]
      if losses[i] > least
    ]
    worst = heapq.nlargest(_WORST, worst, key=lambda example: example.loss)
    start += len(labels)
    count += int(counted.sum())
  return Outcome(confusion, count, worst)


def rates(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns precision and recall of each class, `[classes]`; NaN: undefined."""
  right = np.diag(confusion)
  with np.errstate(invalid="ignore"):
    return right / confusion.sum(axis=0), right / confusion.sum(axis=1)


def page(
  outcome: Outcome,
  held_out: HeldOut,
  history: Mapping[str, Sequence[float]],
  examples: str,
  facts: Mapping[str, str],
) -> str:
  """Makes a page of HTML that needs no other file.

  Args:
    outcome: The result of `collect`.
    held_out: Names, texts and places of the examples.
    history: The value of each metric in each epoch. Metrics of the validation
      data have names that begin with `val_`.
    examples: The noun for the examples, in the plural.
    facts: Further facts about the run, by name.
  """
  confusion = outcome.confusion
  names = [_short(name) for name in held_out.class_names]
  title, *verdict = _verdict(outcome, names, examples)
  head = _tag(
    "head",
    _tag("meta", charset="utf-8"),
    _tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
    _tag("meta", name="viewport", content="width=device-width"),
    _tag("title", title),
    _tag("style", _STYLE),
  )
  body = _tag(
    "body",
    _tag("h1", title),
    *verdict,
    _tag("h2", "Training by epoch"),
    *_curves(history),
    _tag("h2", "Confusion matrix"),
    *_matrix(confusion, names),
    _tag("h2", "Worst examples"),
    *_worst(outcome, names, held_out),
    _tag("h2", "Classes"),
    *_classes(confusion, names),
    _tag("h2", "This run"),
    _table([], list(facts.items())),
  )
  html = ElementTree.tostring(
    _tag("html", head, body, lang="en"), encoding="unicode", method="html"
  )
  return f"<!DOCTYPE html>\n{html}\n"


def _tag(tag: str, *children: Any, **attributes: Any) -> ElementTree.Element:
  """Makes an element from elements and strings, which are escaped."""
  element = ElementTree.Element(
    tag,
    {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items()},
  )
  for child in children:
    if isinstance(child, ElementTree.Element):
      element.append(child)
    elif len(element):
      element[-1].tail = (element[-1].tail or "") + child
    else:
      element.text = (element.text or "") + child
  return element


def _table(
  header: Sequence[str], rows: Sequence[Sequence[str | int | float]]
) -> ElementTree.Element:
  """Makes a table from strings, counts and shares."""

  def cell(tag: str, text: str, value: str | int | float) -> Any:
    is_number = not isinstance(value, str)
    return _tag(tag, text, dir="auto", class_="number" if is_number else "")

  def shown(value: str | int | float) -> str:
    if isinstance(value, str):
      return value
    return _share(value) if isinstance(value, float) else f"{value:,}"

  lines = [[cell("td", shown(value), value) for value in row] for row in rows]
  if header:
    lines.insert(0, [cell("th", *x) for x in zip(header, rows[0], strict=True)])
  table = _tag("table", *(_tag("tr", *line) for line in lines))
  return _tag("div", table, class_="wide" if header else "wide facts")


def _share(value: float) -> str:
  """Formats a share in percent; NaN as undefined."""
  return "–" if np.isnan(value) else f"{100 * value:.1f}\u00a0%"  # noqa: RUF001


def _columns(text: str) -> int:
  """Returns the width of a text in characters; wide characters count twice."""
  return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _short(text: str, columns: int = 40) -> str:
  if _columns(text[: columns + 1]) <= columns:
    return text
  text = text[:columns]
  while _columns(text) >= columns:
    text = text[:-1]
  return f"{text}…"


def _verdict(
  outcome: Outcome, names: Sequence[str], examples: str
) -> list[Any]:
  """Returns the title, and paragraphs that put the accuracy into context."""
  confusion = outcome.confusion
  total, right = int(confusion.sum()), int(np.trace(confusion))
  of_class = confusion.sum(axis=1)
  most, largest = int(of_class.max()), names[of_class.argmax()]
  what = f"{outcome.count:,} held-out {examples}"
  if total > outcome.count:
    what = f"{total:,} pixels of {what}"
  is_better = "" if right > most else " The model is no better than that."
  recall = float(np.nanmean(rates(confusion)[1]))
  return [
    f"Accuracy {_share(right / total)}",
    _tag(
      "p",
      f"The model classifies {right:,} of the {what} correctly. Always"
      f" answering “{largest}”, the largest class, would get {most:,} right"
      f" ({_share(most / total)}).{is_better}",
    ),
    _tag("p", f"The mean recall of all classes is {_share(recall)}."),
  ]


def _curves(history: Mapping[str, Sequence[float]]) -> list[Any]:
  """Draws each metric by epoch, on training and on validation data."""
  figures = []
  for metric in history:
    if metric.startswith("val_"):
      continue
    lines = {"training": history[metric]}
    if f"val_{metric}" in history:
      lines["validation"] = history[f"val_{metric}"]
    legend = [_tag("span", label, class_=label) for label in lines]
    caption = _tag("figcaption", metric, *legend)
    figures.append(_tag("figure", caption, _chart(lines)))
  if not figures:
    return [_tag("p", "No epoch was left to train in this run.")]
  return [_tag("div", *figures, class_="curves")]


def _chart(lines: Mapping[str, Sequence[float]]) -> ElementTree.Element:
  """Draws lines over epochs, which count from 1 on."""
  width, height, left, bottom = 340, 200, 48, 172
  values = [v for line in lines.values() for v in line if np.isfinite(v)] or [0]
  epochs = max(map(len, lines.values()))
  low = min(values)
  high = max(*values, low + 0.1)

  def x(epoch: float) -> float:
    return round(left + (epoch - 0.5) / epochs * (width - left), 1)

  def y(value: float) -> float:
    return round(bottom - (value - low) / (high - low) * (bottom - 10), 1)

  def ticks(first: float, last: float, **options: Any) -> list[float]:
    found = ticker.MaxNLocator(5, **options).tick_values(first, last)
    return [tick for tick in found if first <= tick <= last]

  parts = []
  for tick in ticks(low, high):
    ends = {"x1": left, "x2": width, "y1": y(tick), "y2": y(tick)}
    parts.append(_tag("line", class_="grid", **ends))
    parts.append(_label(f"{tick:.4g}", left - 6, y(tick), "end"))
  for tick in ticks(1, epochs, integer=True):
    parts.append(_label(f"{tick:g}", x(tick), height - 14, "middle"))
  for label, line in lines.items():
    points = [(x(i), y(v)) for i, v in enumerate(line, 1) if np.isfinite(v)]
    path = " ".join(f"{a},{b}" for a, b in points)
    dots = [_tag("circle", cx=a, cy=b, r=3) for a, b in points if epochs <= 30]
    line = _tag("polyline", points=path)
    parts.append(_tag("g", line, *dots, class_=label))
  return _svg(width, height, 12, parts)


def _svg(
  width: int, height: int, font_size: int, parts: Sequence[Any]
) -> ElementTree.Element:
  return _tag(
    "svg",
    *parts,
    viewBox=f"0 0 {width} {height}",
    width=width,
    height=height,
    font_size=font_size,
  )


def _label(
  text: str, x: float, y: float, anchor: str, **attributes: Any
) -> ElementTree.Element:
  return _tag(
    "text", text, x=x, y=y, dy=".35em", text_anchor=anchor, **attributes
  )


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> list[Any]:
  """Draws the confusion matrix, and lists the most frequent confusions."""
  true, predicted = np.nonzero(confusion)
  is_wrong = true != predicted
  true, predicted = true[is_wrong], predicted[is_wrong]
  counts, of_class = confusion[true, predicted], confusion.sum(axis=1)
  rows = [
    (
      *(names[true[i]], names[predicted[i]], int(counts[i])),
      float(counts[i] / of_class[true[i]]),
    )
    for i in np.argsort(-counts, kind="stable")[:_CONFUSED]
  ]
  header = ("true class", "predicted", "count", "share")
  pairs = [_table(header, rows)] if rows else []
  if len(names) > _MOST_DRAWN:
    return [_tag("p", "It is not drawn, because it is too large."), *pairs]
  note = (
    "A row is a true class, a column a predicted one. What is right is blue,"
    " what is wrong is red; the stronger, the larger its share of the row."
  )
  picture = _picture_of(confusion, names)
  return [_tag("p", note, class_="muted"), picture, *pairs]


def _picture_of(
  confusion: np.ndarray, names: Sequence[str]
) -> ElementTree.Element:
  """Draws a matrix: shares as colors, and counts if there are few classes."""
  count = len(names)
  with np.errstate(invalid="ignore"):
    shares = np.nan_to_num(confusion / confusion.sum(axis=1, keepdims=True))
  least = 0.0 if count <= _FIRST else 0.2  # Keeps rare mistakes visible.
  strength = np.where(shares, least + (1 - least) * np.sqrt(shares), 0)
  colors = np.where(np.eye(count, dtype=bool)[..., None], _RIGHT, _WRONG)
  pixels = np.concatenate([colors, 255 * strength[..., None]], axis=-1)
  cell, font = (40, 13) if count <= _FIRST else (10, 9)
  labels = [_short(name, 18) for name in names]
  if count > _MOST_LABELLED:
    cell, labels = max(1, 800 // count), []
  left = int(0.65 * font * max(map(_columns, labels), default=0)) + 10
  turn = max(map(len, labels), default=0) > 3 or count > _FIRST
  top = left if turn else 2 * font
  side = count * cell
  parts = [
    _tag(
      "image",
      href=_data(pixels, _MOST_DRAWN),
      x=left,
      y=top,
      width=side,
      height=side,
    ),
    _tag("rect", class_="grid", x=left, y=top, width=side, height=side),
  ]
  for i, label in enumerate(labels):
    x, y = left + (i + 0.5) * cell, top + (i + 0.5) * cell
    parts.append(_label(label, left - 5, y, "end"))
    move = f"translate({x} {top - 5}) rotate(-90)"
    parts.append(
      _label(label, 0, 0, "start", transform=move)
      if turn
      else _label(label, x, top - font, "middle")
    )
  for i, j in (
    zip(*np.nonzero(confusion), strict=True) if count <= _FIRST else ()
  ):
    x, y = left + (j + 0.5) * cell, top + (i + 0.5) * cell
    class_ = "on-color" if strength[i, j] > 0.65 else ""
    number = _compact(int(confusion[i, j]))
    parts.append(_label(number, x, y, "middle", class_=class_))
  svg = _svg(left + side + 2, top + side + 2, font, parts)
  return _tag("div", svg, class_="wide")


def _compact(number: int) -> str:
  for unit in ("", "k", "M"):
    if number < 10_000:
      return f"{number}{unit}"
    number = round(number / 1000)
  return f"{number}G"


def _data(pixels: np.ndarray, largest: int = _LARGEST) -> str:
  """Returns pixels in [0, 255], `[height, width, channels]`, as a data URL."""
  image = Image.fromarray(np.squeeze(pixels).round().astype(np.uint8))
  image.thumbnail((largest, largest))
  file = io.BytesIO()
  image.save(file, "PNG")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _worst(
  outcome: Outcome, names: Sequence[str], held_out: HeldOut
) -> list[Any]:
  """Shows the worst examples."""
  cards = [_card(example, names, held_out) for example in outcome.worst]
  is_video = outcome.worst and np.ndim(outcome.worst[0].image) == 4
  kind = "texts" if held_out.text else "videos" if is_video else "images"
  note = "Those with the largest loss (cross-entropy), the worst first."
  return [
    _tag("p", note, class_="muted"),
    _tag("ul", *cards, class_=f"examples {kind}"),
  ]


def _card(
  example: Example, names: Sequence[str], held_out: HeldOut
) -> ElementTree.Element:
  """Shows an example with its true and its predicted class."""
  if held_out.text:
    text = _short(held_out.text(example.index).strip(), _LONGEST)
    shown = [_tag("p", text or "(empty)", class_="text", dir="auto")]
  else:
    shown = _pictures(example)
  is_wrong = example.labels != example.predicted
  if is_wrong.ndim:
    shown.append(
      _tag("p", f"{_share(is_wrong.mean())} of the pixels are wrong")
    )
  else:
    for what, i in (("true", example.labels), ("predicted", example.predicted)):
      class_ = "wrong" if what == "predicted" and is_wrong else ""
      name = _tag("b", names[i], class_=class_, dir="auto")
      shown.append(
        _tag("p", f"{what}: ", name, f" {_share(example.scores[i])}")
      )
  notes = [f"loss {example.loss:.2f}", held_out.place(example.index)]
  notes = [_tag("p", x, class_="muted", dir="auto") for x in notes if x]
  return _tag("li", *shown, *notes)


def _pictures(example: Example) -> list[Any]:
  """Shows an image or some frames of a video, and wrong pixels if any."""
  image = np.clip(np.nan_to_num(example.image), 0, 1)
  if image.ndim == 4:
    image = np.concatenate(image[:: -(-len(image) // 4)], axis=1)
  shown = [image]
  if example.labels.ndim:
    wrong = (example.labels != example.predicted)[..., None]
    red = np.array(_WRONG) / 255
    shown.append(
      np.where(wrong, red, 0.3 + 0.4 * image.mean(-1, keepdims=True))
    )
  class_ = "large" if image.shape[0] > 64 else ""
  return [
    _tag("img", src=_data(255 * pixels), alt="", class_=class_)
    for pixels in shown
  ]


def _classes(confusion: np.ndarray, names: Sequence[str]) -> list[Any]:
  """Lists precision and recall of each class, the worst recall first."""
  precision, recall = rates(confusion)
  held_out, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  rows = [
    (
      *(names[i], int(held_out[i]), int(predicted[i])),
      *(float(recall[i]), float(precision[i])),
    )
    for i in np.lexsort((precision, recall))
  ]
  header = ("class", "held out", "predicted", "recall", "precision")
  note = "The worst recall comes first."
  if np.isnan([precision, recall]).any():
    note += (
      " A recall is undefined (–) if no example of the class is held out, a"  # noqa: RUF001
      " precision if the class is never predicted."
    )
  parts = [_tag("p", note, class_="muted"), _table(header, rows[:_FIRST])]
  if rest := rows[_FIRST:]:
    summary = _tag("summary", f"{len(rest):,} more classes")
    parts.append(_tag("details", summary, _table(header, rest)))
  return parts
