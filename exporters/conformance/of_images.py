"""Rules for models of images and videos: I1 to I5.

Source: TensorFlow Hub, common SavedModel APIs for image tasks.
"""

import re

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import gradients
from exporters.conformance import subject as subject_lib
from exporters.reusable import graphs
from exporters.reusable import kinds

Subject = subject_lib.Subject

# Pixel ranges other than [0, 1] in a card, and text by which the model takes
# [0, 1] all the same, such as “by 255”.
_OTHER_RANGE = re.compile(
  r"(?i)(?:image|pixel|rgb)[^.]{0,40}"
  r"(\[(?:0(?:\.0)?, ?255|-1(?:\.0)?, ?1)(?:\.0)?\])"
)
_RIGHT_RANGE = re.compile(r"\[0(\.0)?, ?1(\.0)?\]|(/|by) ?255")
_LARGE = 256  # Height and width in pixels, larger than those of examples.
# Ops between the random numbers of a dropout layer and the layer's output.
_OF_DROPOUT = frozenset(
  ["AddV2", "Cast", "GreaterEqual", "Identity", "Mul", "RealDiv", "SelectV2"]
)


def takes_images(subject: Subject) -> findings.Finding:
  """The input is float32 [batch, (frames,) height, width, 3], in [0, 1]."""
  spec = subject.spec
  if spec.dtype != tf.float32:
    return findings.failed(
      f"It takes {spec.dtype.name}; consumers pass float32 in [0, 1].",
      "Trace with float32, and normalize inside the model.",
    )
  card = subject.card or ""
  other = _OTHER_RANGE.search(card)
  if other and not _RIGHT_RANGE.search(card):
    return findings.failed(
      f"The card says {other[1]} of pixels; consumers pass [0, 1].",
      "Normalize inside the model, and say that it takes [0, 1].",
    )
  return findings.passed(
    "float32, three channels; the range of values does not show"
  )


def _returned(subject: Subject) -> str:
  """Returns "features" or "classes", whichever is returned; "" if unknown."""
  called = ", ".join(subject.serving.outputs if subject.serving else ())
  if "feature" in called or "embedding" in called:
    return "features"
  if kinds.CLASSES.search(called) or subject.probabilities:
    return "classes"
  return ""


def returns_features(subject: Subject) -> findings.Finding:
  """A feature vector is float32 [batch, features], without dropout."""
  spec = subject.output_spec
  if _returned(subject) == "classes":
    return findings.not_applicable("it returns classes")
  if not findings.is_vector(spec):
    return findings.not_applicable(f"it returns {findings.described(spec)}")
  if not findings.is_float_vector(spec):
    return findings.failed(
      f"It returns {findings.described(spec)}, not float32 [batch, features]"
      " with a static number of features.",
      "Pool over height and width.",
    )
  trace = next(
    (t for t in subject.traces if True in t.structured_input_signature[0]),
    subject.traces[0],
  )
  made_by = graphs.origins(
    trace.graph.as_graph_def(), trace.outputs[0].name, _OF_DROPOUT
  )
  if any(subject_lib.RANDOM.match(node.op) for node, _ in made_by):
    return findings.failed(
      "Dropout is applied to the output. Consumers add their own.",
      "Cut the model before the dropout.",
    )
  return findings.passed(f"float32, {spec.shape[1]} features")


def _is_no_class(spec: tf.TensorSpec) -> bool:
  """Tells whether an output has one value, or values for pixels or boxes."""
  rank = spec.shape.rank or 2
  return rank < 2 or (rank > 2 and 1 not in spec.shape[1:-1])


def returns_classes(subject: Subject) -> findings.Finding:
  """Logits are float32 [batch, classes]."""
  returned, spec = _returned(subject), subject.output_spec
  if returned == "features":
    return findings.not_applicable("it returns features")
  if (
    not isinstance(spec, tf.TensorSpec)
    or (not returned and not findings.is_float_vector(spec))
    or _is_no_class(spec)
  ):
    return findings.not_applicable(
      f"it returns {findings.described(spec)}, not the classes of images"
    )
  if not findings.is_float_vector(spec):
    return findings.failed(
      f"Logits are {findings.described(spec)}, not float32 [batch, classes].",
      "Return one logit for each class.",
    )
  what = "classes" if returned else "values, classes or features"
  return findings.passed(f"float32, {spec.shape[1]} {what}")


def size_is_free(subject: Subject) -> findings.Finding:
  """Height, width and frames are unknown; all of a large image is used."""
  size = subject.spec.shape[1:-1]
  names = ", ".join(("frames", "height", "width")[-size.rank :])
  if set(size) != {None}:
    return findings.failed(
      f"Not all of {names} are free: {size}.",
      "Trace with None for all if the architecture allows it.",
    )
  n = subject.example(1).shape[-2]
  few, more = ((5,), (8,)) if size.rank == 3 else ((), ())
  for other in ((*few, n, n), (*more, 2 * n, 3 * n)):
    try:
      subject.model(subject.example(1, other))
    except (tf.errors.OpError, ValueError) as e:
      return findings.failed(
        f"A size of {other} fails: {subject_lib.cause(e)}",
        "Compute shapes from tf.shape, or trace with the size that it takes.",
      )
  # Some architectures take only multiples of a size. An error here makes the
  # rule not decidable.
  subject.model(subject.example(1, (*more, n * 3 // 2, n * 9 // 8)))
  sizes, part = ((_LARGE, _LARGE), "lower right quarter")
  if size.rank == 3:
    sizes, part = ((*more, n, n), "second half of the frames")
  if _ignores_end(subject, sizes):
    return findings.failed(
      f"In images of {' x '.join(map(str, sizes))} pixels the {part} has no"
      " effect.",
      "Resize large images, or use all of their pixels.",
    )
  return findings.passed(f"free: {names}")


def _ignores_end(subject: Subject, sizes: tuple[int, ...]) -> bool:
  """Tells whether the lower right quarter, or later frames, have no effect."""
  images = subject.example(1, sizes)
  is_end = np.zeros([*sizes, 1], bool)
  axes = sizes[:1] if len(sizes) == 3 else sizes
  is_end[tuple(slice(n // 2, None) for n in axes)] = True
  changed = tf.where(is_end, tf.reverse(images, [1, 2]), images)
  with gradients.moved(subject.trainable_variables):
    return all(
      map(
        np.array_equal,
        *(subject_lib.floats(subject.model(x)) for x in (images, changed)),
      )
    )


def momentum_can_be_set(subject: Subject) -> findings.Finding:
  """`batch_norm_momentum` can be set."""
  if not subject.batch_norms:
    return findings.not_applicable("it has no batch normalization")
  if "batch_norm_momentum" not in subject.hyperparameters:
    return findings.failed(
      "batch_norm_momentum cannot be set; small data sets need a smaller one.",
      "Make it a scalar Tensor argument with a default.",
    )
  return findings.passed("batch_norm_momentum can be set")
