"""Defines the kinds of SavedModels by inputs and outputs, and their rules.

A pattern describes an input or an output. It is one of:

- a dtype and a shape, such as `floats [batch, height, width, 3]`. A number is
  the size of a dimension, `None` an unknown size, `n > 1` any size but 1, and
  another word any size.
- a dict of patterns. Further keys are allowed.
- a list of patterns. The last one may be repeated.
- a tuple of alternative patterns.
- `anything`.
"""

from collections.abc import Collection, Mapping
import re
from typing import Any, NamedTuple

import tensorflow as tf

# Names of outputs of classifiers.
CLASSES = re.compile("logits|classes|predictions|probabilit|scores")
_DTYPES = {
  "strings": lambda dtype: dtype == tf.string,
  "floats": lambda dtype: dtype.is_floating,
  "integers": lambda dtype: dtype.is_integer,
  "numbers": lambda dtype: dtype.is_floating or dtype.is_integer,
}


class Kind(NamedTuple):
  """A kind of SavedModel, or of a callable object in one.

  Attributes:
    name: The name, as reports print it.
    takes: The pattern of the input.
    returns: The pattern of the outputs.
    rules: The rules for this kind. Rules that no kind names apply to all kinds.
    has: Names of attributes, signatures or outputs that it must have. They tell
      interfaces of this project from other models with the same specs.
    lacks: Names of attributes that it must not have.
    without: Rules for all kinds that do not apply to this one.
    classifies: Whether names of outputs may match `CLASSES`.
    takes_pictures: Whether input strings are encoded images.
    sizes: The sizes of unknown dimensions in examples.
  """

  name: str
  takes: Any
  returns: Any = "anything"
  rules: tuple[str, ...] = ()
  has: tuple[str, ...] = ()
  lacks: tuple[str, ...] = ()
  without: tuple[str, ...] = ()
  classifies: bool = True
  takes_pictures: bool = False
  sizes: tuple[int, ...] = (8,)


_OF_TRAINING = ("R3", "R5", "R6", "R7", "R16")
_CLASSIFIED = {
  "label": "strings [batch]",
  "scores": "floats [batch, classes]",
  "logits": "floats [batch, classes]",
}
_SEGMENTED = {
  "class_ids": "integers [batch, height, width]",
  "scores": "floats [batch, height, width, classes]",
  "logits": "floats [batch, height, width, classes]",
}

# The first kind that matches applies.
KINDS = (
  # Keras 3's Model.export: endpoints for keras.layers.TFSMLayer, no call.
  Kind(
    "Keras 3 export",
    takes="anything",
    has=("serve", "non_trainable_variables"),
    lacks=("__call__",),
    rules=("K1",),
    without=("R1", "R2", "R4", "R9", "R14", "R15", "R17", *_OF_TRAINING),
  ),
  # Classifiers to deploy, which nobody trains further.
  Kind(
    "image classifier",
    takes=(
      "strings [batch]",
      "floats [batch, frames, height, width, channels]",
    ),
    returns=(_CLASSIFIED, _SEGMENTED),
    has=("class_names", "images"),
    rules=("D1", "D2"),
    without=_OF_TRAINING,
    takes_pictures=True,
    sizes=(8, 64),
  ),
  Kind(
    "text classifier",
    takes="strings [batch]",
    returns=_CLASSIFIED,
    has=("class_names", "class_names_file"),
    rules=("D1",),
    without=_OF_TRAINING,
  ),
  Kind(
    "image",
    takes="numbers [batch, height, width, 3]",
    rules=("R12", "I1", "I2", "I3", "I4", "I5"),
    sizes=(32,),
  ),
  # Small images, such as MNIST's. Their models take only one size, which breaks
  # I4, and no colors, which I1 requires.
  Kind(
    "grey image",
    takes="floats [batch, height, width, 1]",
    rules=("R12", "I2", "I3", "I5"),
    sizes=(32,),
  ),
  Kind(
    "video",
    takes="numbers [batch, frames, height, width, 3]",
    rules=("R12", "I1", "I2", "I3", "I4", "I5"),
    sizes=(4, 32),
  ),
  Kind(
    "encoder",
    takes={"input_word_ids": "anything"},
    returns={"sequence_output": "anything"},
    rules=("T3", "T4", "T5", "T6"),
    sizes=(16,),
  ),
  Kind(
    "preprocessor",
    takes="strings [batch]",
    returns={"input_word_ids": "integers [batch, length]"},
    rules=("T2", "T7", "T8"),
    classifies=False,
  ),
  Kind(
    "text embedding",
    takes="strings [batch]",
    returns="floats [batch, dim > 1]",
    rules=("R12", "T1"),
    classifies=False,
  ),
  Kind(
    "word embedding",
    takes="strings [batch, None]",
    returns="floats [batch, length, dim]",
    has=("word_embeddings",),
    rules=("W1",),
  ),
  Kind(
    "generator",
    takes="integers [batch, length]",
    returns="floats [batch, length, vocab_size]",
    has=("generate", "step", "state_sizes", "tokenize", "detokenize"),
    rules=("R12", "G1", "G2", "G3"),
  ),
  Kind(
    "cell",
    takes=["floats [batch, dim]", "floats [batch, units]"],
    returns=["floats [batch, dim]", "floats [batch, units]"],
    has=("state_sizes",),
    rules=("C1",),
  ),
  Kind("vector", takes=("floats [batch]", "floats [batch, n]"), rules=("R12",)),
  Kind("plain", takes="anything", rules=("R12",)),
)


def of(
  taken: Any,
  returned: Any,
  attributes: Collection[str] = (),
  names: Collection[str] = (),
) -> Kind:
  """Returns the kind of a SavedModel or of a callable object.

  Args:
    taken: The input: a `tf.TensorSpec`, or a structure of them.
    returned: The outputs, in the same form.
    attributes: The names of its attributes and signatures.
    names: The names of its outputs in its signature, if it has one.
  """
  keys = returned if isinstance(returned, Mapping) else ()
  is_classifier = any(map(CLASSES.search, [*names, *keys]))
  return next(
    kind
    for kind in KINDS
    if _fits(kind.takes, taken)
    and _fits(kind.returns, returned)
    and set(kind.has) <= {*attributes, *names}
    and not set(kind.lacks) & set(attributes)
    and (kind.classifies or not is_classifier)
  )


def _fits(pattern: Any, spec: Any) -> bool:
  """Tells whether a structure of specs fits a pattern."""
  if pattern == "anything":
    return True
  if isinstance(pattern, tuple):
    return any(_fits(each, spec) for each in pattern)
  if isinstance(pattern, Mapping):
    return isinstance(spec, Mapping) and all(
      key in spec and _fits(each, spec[key]) for key, each in pattern.items()
    )
  if isinstance(pattern, list):
    if not isinstance(spec, (list, tuple)) or len(spec) < len(pattern):
      return False
    patterns = pattern + pattern[-1:] * (len(spec) - len(pattern))
    return all(map(_fits, patterns, spec))
  if not isinstance(spec, tf.TensorSpec) or spec.shape.rank is None:
    return False
  dtype, _, shape = pattern.partition(" ")
  sizes = shape.strip("[]").split(", ")
  return (
    _DTYPES[dtype](spec.dtype)
    and len(sizes) == spec.shape.rank
    and all(map(_is_size, sizes, spec.shape))
  )


def _is_size(pattern: str, size: int | None) -> bool:
  """Tells whether a dimension fits its part of a pattern."""
  if pattern.isdecimal() or pattern == "None":
    return pattern == str(size)
  return size != 1 or not pattern.endswith("> 1")


def text(pattern: Any) -> str:
  """Describes a pattern in words."""
  if isinstance(pattern, Mapping):
    return f"a dict with {', '.join(f'`{key}`' for key in pattern)}"
  if isinstance(pattern, list):
    return f"a list of {', then '.join(map(text, pattern))}, …"
  if isinstance(pattern, tuple):
    return " or ".join(map(text, pattern))
  dtype, *shape = pattern.split(" ", 1)
  return " ".join([dtype, *(f"`{sizes}`" for sizes in shape)])
