"""The model card: `assets.extra/README.md`, from what an export knows."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
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
    needs: Packages that `example` imports.
  """

  name: str
  description: str
  meanings: Mapping[str, str]
  example: str
  provenance: Mapping[str, str]
  needs: Sequence[str] = ("tensorflow", "tf-keras", "tensorflow-hub")


# A line that begins with a space continues the one before it.
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

A dimension that is `None` is free. The names are those of the signature
 `serving_default`: inference with the default hyperparameters.{precision}

## Hyperparameters

{hyperparameters}

## {weights}

{provenance}
{regularization}"""

# What a card says of a model that has variables to train, and of one that
# has none.
_TRAINABLE = {
  "load": "Load and fine-tune",
  "use": """
 Without `trainable=True` the weights stay as they are, and the model runs in
 inference mode. With `tensorflow` alone, `model = tf.saved_model.load(…)` gives
 what you call as `model(inputs)`, in training as {call}, and
 `model.trainable_variables`.""",
  "precision": """
 The model computes in float32, whatever precision it was trained in. In a Keras
 model of mixed precision, too: its inputs are cast.""",
  "weights": "Weights",
  "regularization": """
`hub.KerasLayer` adds the {losses} regularization losses to those of your model
 when `trainable=True`. Regularization that an optimizer applies by itself, such
 as the weight decay of AdamW, is not part of a SavedModel: to keep it, choose
 such an optimizer again.
""",
}
_NOT_TRAINABLE = {
  "load": "Load",
  "use": "",
  "precision": "",
  "weights": "Source",
  "regularization": "",
}


def write(
  export_dir: str,
  card: Card,
  source: saving.Source,
  signature: tf.types.experimental.ConcreteFunction,
) -> None:
  """Writes the card into the directory of a SavedModel.

  Args:
    export_dir: The directory.
    card: What only the exporter knows.
    source: The model that was exported.
    signature: The export's `serving_default`: names, dtypes and shapes.
  """
  losses = len(source.regularization_losses)
  provenance = {
    **card.provenance,
    "exported with": f"TensorFlow {tf.__version__}",
  }
  words = _NOT_TRAINABLE
  if source.trainable_variables:
    words = _TRAINABLE
    provenance = {
      "parameters": f"{_size(source.variables):,}",
      "trainable": f"{_size(source.trainable_variables):,}",
      "regularization losses": str(losses),
      **provenance,
    }
  *packages, last = (f"`{name}`" for name in card.needs)
  in_training = (
    "inputs, training=True" if "training" in source.defaults else "inputs"
  )
  template = _TEMPLATE
  for name, words_of_it in words.items():
    template = template.replace(f"{{{name}}}", words_of_it)
  text = template.replace("\n ", " ").format(
    name=card.name,
    description=card.description,
    example=card.example.strip(),
    needs=f"{', '.join(packages)} and {last}" if packages else last,
    call=f"`model({in_training})`",
    inputs=_tensors(_inputs(signature), card.meanings),
    outputs=_tensors(signature.structured_outputs, card.meanings),
    hyperparameters=_arguments(source.hyperparameters),
    provenance=table(("", ""), provenance.items()),
    losses=losses,
  )
  directory = os.path.join(export_dir, "assets.extra")
  os.makedirs(directory)
  with open(os.path.join(directory, "README.md"), "w", encoding="utf-8") as f:
    f.write(text)


def _arguments(
  hyperparameters: Sequence[hyperparameters_lib.Hyperparameter],
) -> str:
  if not hyperparameters:
    return "None."
  first, *_ = hyperparameters
  rows = (
    (f"`{h.name}`", f"{h.default:g}", h.description) for h in hyperparameters
  )
  return (
    "Scalar arguments of the model, for example"
    f' `hub.KerasLayer(…, arguments={{"{first.name}": {first.default:g}}})`.'
    f"\n\n{table(('argument', 'default', 'meaning'), rows)}"
  )


def _size(variables: Iterable[tf.Variable]) -> int:
  return sum(v.shape.num_elements() for v in variables)


def _inputs(
  signature: tf.types.experimental.ConcreteFunction,
) -> dict[str, Any]:
  specs = tf.nest.flatten(signature.structured_input_signature)
  return {spec.name: spec for spec in specs}


def _tensors(specs: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
  rows = []
  for name, spec in specs.items():
    shape = ", ".join(map(str, spec.shape.as_list()))
    rows.append((f"`{name}`", spec.dtype.name, f"`[{shape}]`", meanings[name]))
  return table(("name", "dtype", "shape", "meaning"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
