"""Saves trained classifiers for deployment, from encoded pictures or strings.

The classifiers need only TensorFlow, and tensorflow-text for texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
import tempfile
from typing import Any

from etils import epy

from data import classes
from distribution import strategies
from distribution import warmup
from integration_tests import fitting

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras

_CLASS_NAMES = "class_names.txt"
# The Exif orientation in the first bytes of a JPEG file, in both byte orders.
_ORIENTATION = (
  r"^\C*?Exif\x00\x00(?:II\C*?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])"
  r"|MM\C*?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08]))\C*$"
)
_CARD = """\
# {name}

A classifier to deploy: {about}. It cannot be trained further.

## Load and use

```python
{example}
```

Needs {needs}.

## Inputs

{inputs}

## Outputs

| name | dtype | shape | meaning |
| --- | --- | --- | --- |
{outputs}

## Classes

In the order of `scores` and `logits`, as `model.class_names()` returns them and
`assets/class_names.txt` lists them:

{classes}

## Training

| | |
| --- | --- |
{training}
"""
_EXAMPLE = """\
import tensorflow as tf
{imports}
model = tf.saved_model.load("path/to/{name}")
outputs = model({argument})
print(outputs["{result}"].numpy(), outputs["scores"].numpy())"""
# For each kind of input: the argument in the example, and the description.
_TEXTS = (
  'tf.constant(["A text to classify."])',
  "`serving_default` takes `texts`: strings `[batch]`, in UTF-8.",
)
_PICTURES = (
  'tf.stack([tf.io.read_file("picture.jpg")])',
  """\
- `serving_default` takes `encoded_images`: strings `[batch]`, each the bytes of
  a file in JPEG, PNG, GIF, BMP or WebP, of any size. Pictures are resized to
  {height} by {width} pixels. A JPEG picture turns as its Exif orientation says,
  transparent pixels become white, and of an animation the first picture counts.
  One unreadable picture makes the call for the whole batch fail.
- The signature `images` takes `images`: float32
  `[batch, {height}, {width}, {channels}]` in [0, 1].""",
)
_VIDEOS = (
  "tf.zeros({shape})",
  "`serving_default` takes `images`: videos, float32 `[batch, frames, height,"
  " width, channels]` in [0, 1].",
)


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A trained classifier.

  Attributes:
    model: A model from strings, `[batch]`, or images, float32 `[batch,
      (frames,) height, width, channels]`, to logits, `[batch, (height, width,)
      classes]`.
    class_names: Names of the classes, in the order of the logits.
    data: Text that describes the training data, without paths.
  """

  model: tf_keras.Model
  class_names: Sequence[str]
  data: str


def decode(
  encoded: tf.Tensor, height: int, width: int, channels: int
) -> tf.Tensor:
  """Decodes a picture like `images.resized`: rotated, on white, resized.

  Args:
    encoded: The bytes of a file in JPEG, PNG, GIF, BMP or WebP, string `[]`.
    height: Height of the result.
    width: Width of the result.
    channels: 3 for colors, 1 for grey.

  Returns:
    float32 `[height, width, channels]` in [0, 1].
  """
  image = tf.io.decode_image(encoded, channels=0, expand_animations=False)
  image = tf.image.convert_image_dtype(image, tf.float32)
  # Grey, RGB, or either with alpha.
  has_alpha = tf.shape(image)[2] % 2 == 0
  alpha = tf.where(has_alpha, image[:, :, -1:], 1.0)
  colors = image[:, :, : tf.shape(image)[2] - tf.cast(has_alpha, tf.int32)]
  image = colors + (1.0 - alpha) * (1.0 - colors) + tf.zeros([3])
  image = _upright(image, tf.strings.substr(encoded, 0, 4096))
  if channels == 1:
    # Pillow's weights. In this form they leave grey exactly as it is.
    red, green, blue = tf.split(image, 3, axis=2)
    image = green + 0.299 * (red - green) + 0.114 * (blue - green)
  image = tf.image.resize(image, [height, width], antialias=True)
  return tf.ensure_shape(image, [height, width, channels])


def _upright(image: tf.Tensor, beginning: tf.Tensor) -> tf.Tensor:
  """Rotates a picture by the Exif orientation at the beginning of its file."""
  found = tf.strings.regex_replace(beginning, _ORIENTATION, r"\1\2")
  found = tf.where(tf.strings.length(found) == 1, found, "\x01")
  orientation = tf.io.decode_raw(found, tf.uint8)[0]

  def one_of(*values: int) -> tf.Tensor:
    return tf.reduce_any(orientation == tf.constant(values, tf.uint8))

  for values, turn in (
    ((5, 6, 7, 8), lambda x: tf.transpose(x, [1, 0, 2])),
    ((2, 3, 6, 7), lambda x: x[:, ::-1]),
    ((3, 4, 7, 8), lambda x: x[::-1]),
  ):
    image = tf.cond(one_of(*values), lambda: turn(image), lambda: image)  # noqa: B023
  return image


def module(
  classifier: Classifier, class_names_file: str
) -> tuple[tf.train.Checkpoint, dict[str, Any]]:
  """Makes the object to save, and its signatures.

  Args:
    classifier: The classifier.
    class_names_file: A file with the names of the classes.
  """
  model, names = classifier.model, list(classifier.class_names)
  (spec,) = (tf.TensorSpec(x.shape, x.dtype, x.name) for x in model.inputs)

  def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
    logits = tf.cast(model(inputs, training=False), tf.float32)
    outputs = {"scores": tf.nn.softmax(logits), "logits": logits}
    ids = tf.argmax(logits, axis=-1, output_type=tf.int32)
    if logits.shape.rank > 2:
      return {"class_ids": ids, **outputs}
    return {"label": tf.gather(tf.constant(names), ids), **outputs}

  def classify_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
    shape = spec.shape[1:]
    images = tf.map_fn(
      lambda x: decode(x, *shape),
      encoded,
      fn_output_signature=tf.TensorSpec(shape, tf.float32),
    )
    return classify(images)

  def traced(call: Any, name: str, **spec: Any) -> Any:
    return tf.function(call).get_concrete_function(
      tf.TensorSpec(**spec, name=name)
    )

  root = tf.train.Checkpoint()
  strings = {"shape": [None], "dtype": tf.string}
  if spec.dtype == tf.string:
    served, signatures = (classify, "texts", strings), {}
  else:
    floats = {"shape": spec.shape, "dtype": tf.float32}
    signatures = {"images": traced(classify, "images", **floats)}
    served = (
      (classify_encoded, "encoded_images", strings)
      if spec.shape.rank == 4
      else (classify, "images", floats)
    )
  call, name, arguments = served
  signatures["serving_default"] = traced(call, name, **arguments)
  root.__call__ = tf.function(call)
  root.__call__.get_concrete_function(tf.TensorSpec(**arguments, name=name))
  root.class_names = tf.function(lambda: tf.constant(names), input_signature=[])
  root.class_names_file = tf.saved_model.Asset(class_names_file)
  root.variables = model.variables
  # The lookup tables of preprocessors. The Keras model is not saved.
  root.resources = [
    x
    for x in tf.train.TrackableView(model).descendants()
    if isinstance(x, tf.saved_model.experimental.TrackableResource)
  ]
  return root, signatures


def save(
  classifier: Classifier,
  output_dir: str,
  strategy: tf.distribute.Strategy,
  source_dir: str,
  result: str,
  warmup_batch_sizes: Sequence[int | str] = (1,),
) -> None:
  """Saves a classifier for deployment. Only the chief writes.

  Args:
    classifier: The classifier.
    output_dir: An empty or missing directory. It appears only when complete.
    strategy: The strategy of the training.
    source_dir: The export that was fine-tuned.
    result: Text with the result of the evaluation.
    warmup_batch_sizes: Batch sizes of the warm-up requests.
  """
  # All workers call save, because reading replicated variables is collective.
  with (
    fitting.published(output_dir, strategies.is_chief(strategy)) as directory,
    tempfile.TemporaryDirectory() as scratch_dir,
  ):
    names_file = os.path.join(scratch_dir, _CLASS_NAMES)
    classes.write_names(names_file, classifier.class_names)
    root, signatures = module(classifier, names_file)
    tf.saved_model.save(
      root,
      directory or os.path.join(scratch_dir, "model"),
      signatures=signatures,
      options=tf.saved_model.SaveOptions(
        experimental_io_device=strategies.io_device(strategy)
      ),
    )
    if directory:
      name = os.path.basename(output_dir.rstrip("/"))
      training = {
        **source(source_dir),
        "trained on": classifier.data,
        "test": result,
      }
      card = _card(name, classifier, training)
      extra = os.path.join(directory, "assets.extra")
      tf.io.gfile.makedirs(extra)
      with tf.io.gfile.GFile(os.path.join(extra, "README.md"), "w") as f:
        f.write(card)
      shape = classifier.model.inputs[0].shape
      if shape.rank == 4:  # An empty string is no picture.
        picture = tf.io.encode_png(tf.zeros(shape[1:], tf.uint8)).numpy()
      else:
        picture = b""
      warmup.write(
        directory,
        signatures["serving_default"],
        warmup_batch_sizes,
        string=picture,
      )


def source(source_dir: str) -> dict[str, str]:
  """Describes the export that was fine-tuned, without paths."""
  is_url = "://" in source_dir
  name = source_dir if is_url else os.path.basename(source_dir.rstrip("/"))
  try:
    print_ = tf.saved_model.experimental.read_fingerprint(
      hub.resolve(source_dir)
    ).singleprint()
  except OSError:  # The export has no fingerprint.
    return {"fine-tuned from": name}
  return {"fine-tuned from": name, "its singleprint": print_}


def _card(
  name: str, classifier: Classifier, training: Mapping[str, str]
) -> str:
  """Returns the model card."""
  model, classes = classifier.model, len(classifier.class_names)
  (of_input,), (of_output,) = model.inputs, model.outputs
  is_text = of_input.dtype == tf.string
  pixels = [str(n) for n in of_output.shape[1:-1]]
  if is_text:
    about, (argument, inputs) = "strings in, names of classes out", _TEXTS
  elif of_input.shape.rank == 4:
    about, (argument, inputs) = "encoded pictures in", _PICTURES
    about += ", classes of pixels out" if pixels else ", names of classes out"
    height, width, channels = of_input.shape[1:]
    inputs = inputs.format(height=height, width=width, channels=channels)
  else:
    about, (argument, inputs) = "videos in, names of classes out", _VIDEOS
    argument = argument.format(shape=[1, *of_input.shape[1:]])
  result = "class_ids" if pixels else "label"
  shape = ", ".join(["batch", *pixels])
  outputs = [
    ("class_ids", "int32", shape, "index of the class with the largest score")
    if pixels
    else ("label", "string", shape, "name of the class with the largest score"),
    ("scores", "float32", f"{shape}, {classes}", "softmax of `logits`"),
    ("logits", "float32", f"{shape}, {classes}", "unnormalized log-odds"),
  ]
  imports = "import tensorflow_text  # Registers ops.\n" if is_text else ""
  return _CARD.format(
    name=name,
    about=about,
    example=_EXAMPLE.format(
      name=name, imports=imports, argument=argument, result=result
    ),
    needs="`tensorflow` and `tensorflow-text`" if is_text else "`tensorflow`",
    inputs=inputs,
    outputs="\n".join(
      f"| `{n}` | {d} | `[{s}]` | {m} |" for n, d, s, m in outputs
    ),
    classes="\n".join(
      f"{i}. {name}" for i, name in enumerate(classifier.class_names)
    ),
    training="\n".join(f"| {k} | {v} |" for k, v in training.items()),
  )
