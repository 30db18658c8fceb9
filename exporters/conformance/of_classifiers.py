"""Rules for deployed classifiers: D1 and D2.

Deployed classifiers are not trained further, so no rule on training applies.
"""

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import subject as subject_lib
from exporters.reusable import comparison

Subject = subject_lib.Subject

_GIF = (  # One grey pixel.
  b"GIF89a\1\0\1\0\x80\0\0\x80\x80\x80\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
)


def classifies(subject: Subject) -> findings.Finding:
  """Each input gets the softmax of its logits, and the name of its class."""
  inputs = subject.example(3)
  outputs = _numpy(subject.model(inputs))
  names = [n.decode() for n in subject.model.class_names().numpy()]
  scores, logits = outputs["scores"], outputs["logits"]
  if len(set(names)) != logits.shape[-1]:
    return findings.failed(
      f"There are {logits.shape[-1]} logits and {len(set(names))} different"
      " class names.",
      "Name each class once.",
    )
  if not np.allclose(scores, tf.nn.softmax(logits), atol=1e-5):
    return findings.failed(
      "`scores` is not the softmax of `logits`.", "Compute it from them."
    )
  best = scores.argmax(axis=-1)
  if "label" in outputs:
    expected = [names[i] for i in best]
    actual = [label.decode() for label in outputs["label"]]
  else:
    expected, actual = best.tolist(), outputs["class_ids"].tolist()
  if expected != actual:
    return findings.failed(
      f"The largest scores are those of {expected}, but the output says"
      f" {actual}.",
      "Order the logits as `class_names`.",
    )
  if names not in [
    subject.content(file).decode().splitlines()
    for file in subject.files
    if file.startswith("assets/")
  ]:
    return findings.failed(
      "No asset lists the class names, one in each line.",
      "Save them as a tf.saved_model.Asset too.",
    )
  return _depends_on_batch(subject, inputs, logits) or findings.passed(
    f"{len(names)} classes: {findings.some(names)}"
  )


def _depends_on_batch(
  subject: Subject, inputs: tf.Tensor, logits: np.ndarray
) -> findings.Finding | None:
  alone = [_numpy(subject.model(x[tf.newaxis]))["logits"] for x in inputs]
  _, problems = comparison.compare(
    "outputs",
    {"logits": logits},
    {"logits": np.concatenate(alone)},
  )
  if not problems:
    return None
  return findings.failed(
    f"An input has different logits in a batch than alone: {problems[0]}.",
    "Compute the logits of each input from that input alone.",
  )


def decodes(subject: Subject) -> findings.Finding:
  """Encoded pictures, grey or transparent too, are classified as their pixels.

  The signature `images` takes the pixels.
  """
  if not subject.takes_strings:
    return findings.not_applicable("it takes no encoded pictures")
  images = subject.model.signatures["images"]
  (spec,) = images.structured_input_signature[1].values()
  _, height, width, channels = spec.shape
  size = [height or 64, width or 64]
  grey, colors, opaque = (
    tf.cast(
      tf.random.stateless_uniform([*size, n], [n, 0], least, 256, tf.int32),
      tf.uint8,
    )
    for n, least in ((1, 0), (channels, 0), (1, 255))
  )
  rgb = tf.repeat(colors, 3 // channels, axis=2)
  jpeg = tf.io.encode_jpeg(rgb, quality=100)
  for what, encoded, pixels in (
    ("A grey PNG", tf.io.encode_png(grey), grey),
    ("A PNG", tf.io.encode_png(rgb), colors),
    ("A PNG with alpha", tf.io.encode_png(tf.concat([rgb, opaque], 2)), colors),
    ("A JPEG", jpeg, tf.io.decode_jpeg(jpeg, channels)),
    ("A GIF", tf.constant(_GIF), None),
  ):
    try:
      logits = _numpy(subject.model(encoded[tf.newaxis]))["logits"]
    except tf.errors.OpError:
      return findings.failed(
        f"{what} cannot be decoded.",
        "Decode with tf.io.decode_image(…, expand_animations=False).",
      )
    if pixels is None:  # Other sizes may be resized, cropped or padded.
      continue
    scaled = tf.cast(tf.broadcast_to(pixels, [*size, channels]), tf.float32)
    given = {spec.name: scaled[tf.newaxis] / 255}
    expected = _numpy(images(**given))["logits"]
    _, problems = comparison.compare(
      "outputs", {"logits": expected}, {"logits": logits}
    )
    # Decoders of JPEG round differently.
    error = np.abs(logits - expected).max()
    if problems and not ("JPEG" in what and error < 0.1 * np.ptp(expected)):
      return findings.failed(
        f"{what} is classified differently from its pixels: {problems[0]}.",
        "Scale decoded pictures to [0, 1], and resize only other sizes.",
      )
  return findings.passed("PNG, grey, with alpha, JPEG and GIF")


def _numpy(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
  return {name: x.numpy() for name, x in outputs.items()}
