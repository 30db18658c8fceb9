"""The model card: `assets.extra/README.md`, from what an export knows."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

import tensorflow as tf

from exporters.reusable import hyperparameters as hyperparameters_lib
from exporters.reusable import saving


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """What only the exporter knows about its model.

  Attributes:
    name: Name of the model.
    description: What the model is, for someone who has never heard of it.
    meanings: For each input and output of `serving_default`, what it means and
      which values it takes.
    example: Python code that loads and fine-tunes the export.
    provenance: Where the weights come from: names and values of a table.
    loaded: The loaded export in `example`, as an expression.
    needs: Packages that `example` imports.
  """

  name: str
  description: str
  meanings: Mapping[str, str]
  example: str
  provenance: Mapping[str, str]
  loaded: str = "model.layers[0].resolved_object"
  needs: Sequence[str] = ("tensorflow", "tf-keras", "tensorflow-hub")


_TEMPLATE = """\
# {name}

{description}

## {load}

```python
{example}
```

Needs {needs}; nothing of the code that made this model.{use}

## Inputs

{inputs}

## Outputs

{outputs}

A dimension that is `None` is free. The names are those of the signature \
`serving_default`: inference with the default hyperparameters.{precision}

## Hyperparameters

{hyperparameters}

## {weights}

{provenance}
{regularization}"""

# How the example of a model with variables to train ends.
_SHARE = """
# To share what you have trained, as a SavedModel that is used like this one:
trained = {loaded}
tf.saved_model.save(trained, "path/to/trained", signatures=trained.signatures)
"""
# What the card of such a model also says.
_USE = """ \
A `hub.KerasLayer` without `trainable=True` keeps the weights as they are, and \
runs the model in inference mode. With {without_keras} alone, \
`model = tf.saved_model.load(…)` gives what you call as \
`model(inputs)`{in_training}, and `model.trainable_variables`."""
_USE_KERAS = """ \
`load_model` gives a Keras model with all layers; all of its weights train, \
unless you freeze them: set `trainable = False`, and call the model with \
`training=False`. Save it as a SavedModel: the formats `.keras` and `.h5` hold \
only layers of Keras' own classes. `hub.KerasLayer(…, trainable=True)` loads \
this directory, too, but without the regularization losses of inner layers."""
_PRECISION = """ \
The model computes in float32, whatever precision it was trained in. In a \
Keras model of mixed precision, too: its inputs are cast."""
_REGULARIZATION = """
{loader} adds the regularization losses to those of your \
model{condition}. Regularization that an optimizer applies by \
itself, such as the weight decay of AdamW, is not part of a SavedModel: to \
keep it, choose such an optimizer again.
"""


def write(
  export_dir: str,
  card: Card,
  source: saving.Source,
  signature: tf.types.experimental.ConcreteFunction,
  *,
  is_keras: bool = False,
) -> None:
  """Writes the card into the directory of a SavedModel.

  Args:
    export_dir: The directory.
    card: What only the exporter knows.
    source: The model that was exported.
    signature: The export's `serving_default`: names, dtypes and shapes.
    is_keras: Whether the export is a complete Keras model.
  """
  if is_keras:
    card = _for_keras(card)
  provenance = {
    **card.provenance,
    "exported with": f"TensorFlow {tf.__version__}",
  }
  trainable = bool(source.trainable_variables)
  if trainable:
    provenance = {
      "parameters": f"{_size(source.variables):,}",
      "trainable": f"{_size(source.trainable_variables):,}",
      "regularization losses": str(len(source.regularization_losses)),
      **provenance,
    }
  in_training = ""
  if "training" in source.defaults:
    in_training = ", in training as `model(inputs, training=True)`"
  without_keras = " and ".join(
    f"`{name}`"
    for name in card.needs
    if name not in ("tf-keras", "tensorflow-hub")
  )
  use = (
    _USE_KERAS
    if is_keras
    else _USE.format(without_keras=without_keras, in_training=in_training)
  )
  example = card.example.strip()
  if trainable and not is_keras:
    if "import tensorflow as tf\n" not in example:
      example = example.replace(
        "import tensorflow_hub",
        "import tensorflow as tf\nimport tensorflow_hub",
      )
    example = f"{example}\n{_SHARE.format(loaded=card.loaded)}".rstrip()
  inputs = tf.nest.flatten(signature.structured_input_signature)
  *packages, last = (f"`{name}`" for name in card.needs)
  text = _TEMPLATE.format(
    name=card.name,
    description=card.description,
    load="Load and fine-tune" if trainable else "Load",
    example=example,
    needs=f"{', '.join(packages)} and {last}" if packages else last,
    use=use if trainable else "",
    inputs=_tensors({spec.name: spec for spec in inputs}, card.meanings),
    outputs=_tensors(signature.structured_outputs, card.meanings),
    precision=_PRECISION if trainable else "",
    hyperparameters=_arguments(source.hyperparameters, is_keras),
    weights="Weights" if trainable else "Source",
    provenance=table(("", ""), provenance.items()),
    regularization=_REGULARIZATION.format(
      loader="Keras" if is_keras else "`hub.KerasLayer`",
      condition="" if is_keras else " when `trainable=True`",
    )
    if trainable
    else "",
  )
  path = pathlib.Path(export_dir, "assets.extra", "README.md")
  path.parent.mkdir()
  path.write_text(text, encoding="utf-8")


def _for_keras(card: Card) -> Card:
  """Lets the example of a card use `load_model` for `hub.KerasLayer`."""
  example = re.sub(
    r'hub\.KerasLayer\(\s*("[^"]*")[^()]*\)',
    r"tf_keras.models.load_model(\1)",
    card.example.replace(".resolved_object", ""),
  )
  needs = card.needs
  if "hub." not in example:
    _, example = example.split("import tensorflow_hub as hub\n")
    needs = [name for name in needs if name != "tensorflow-hub"]
  return dataclasses.replace(card, example=example, needs=needs)


def _arguments(
  hyperparameters: Sequence[hyperparameters_lib.Hyperparameter],
  is_keras: bool,
) -> str:
  if not hyperparameters:
    return "None."
  first, *_ = hyperparameters
  literal = hyperparameters_lib.literal
  rows = (
    (f"`{h.name}`", literal(h.default), h.description) for h in hyperparameters
  )
  if is_keras:
    about = (
      "They are fixed in the layers. An export with"
      " `--saved_model_format=reusable` has them as arguments."
    )
    return f"{about}\n\n{table(('name', 'value', 'meaning'), rows)}"
  return (
    "Scalar arguments of the model, for example"
    f' `hub.KerasLayer(…, arguments={{"{first.name}":'
    f" {literal(first.default)}}})`."
    f"\n\n{table(('argument', 'default', 'meaning'), rows)}"
  )


def _size(variables: Iterable[tf.Variable]) -> int:
  return sum(v.shape.num_elements() for v in variables)


def _tensors(specs: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
  rows = [
    (f"`{name}`", spec.dtype.name, f"`{spec.shape.as_list()}`", meanings[name])
    for name, spec in specs.items()
  ]
  return table(("name", "dtype", "shape", "meaning"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
