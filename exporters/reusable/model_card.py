"""The model card: `assets.extra/README.md`, from what an export knows."""

from collections.abc import Iterable, Mapping, Sequence
import os
from typing import Any

import tensorflow as tf

from exporters.reusable import hyperparameters as hyperparameters_lib


def write(
  export_dir: str,
  root: tf.train.Checkpoint,
  signature: tf.types.experimental.ConcreteFunction,
  *,
  name: str,
  description: str,
  meanings: Mapping[str, str],
  hyperparameters: Sequence[hyperparameters_lib.Hyperparameter],
  example: str,
  provenance: Mapping[str, str],
  needs: Sequence[str] = ("tensorflow", "tf-keras", "tensorflow-hub"),
) -> None:
  """Writes the card into the directory of a SavedModel.

  Args:
    export_dir: The directory.
    root: What `saving.reusable` returned.
    signature: Its `serving_default`. Names, dtypes and shapes come from here.
    name: Of the model.
    description: What the model is, for one who has never heard of it.
    meanings: For each input and output of the signature what it means and which
      values it takes.
    hyperparameters: Those that `root` was made with.
    example: Python that loads and fine-tunes the export.
    provenance: Where the weights come from: names and values of a table.
    needs: Packages that `example` imports.
  """
  losses = len(root.regularization_losses)
  trains = bool(root.trainable_variables)
  packages = ", ".join(f"`{name}`" for name in needs[:-1])
  sections = [
    f"# {name}",
    description,
    "## Load and fine-tune" if trains else "## Load",
    f"```python\n{example.strip()}\n```",
    f"Needs {packages} and `{needs[-1]}`; nothing of the code that made this"
    " model."
    + (
      " Without `trainable=True` the weights stay as they are, and the model"
      " runs in inference mode. With `tensorflow` alone,"
      " `model = tf.saved_model.load(…)` gives what you call as"
      " `model(inputs, training=False)`, and `model.trainable_variables`."
      if trains
      else ""
    ),
    "## Inputs",
    table(
      ("name", "dtype", "shape", "meaning"),
      _tensors(_inputs(signature), meanings),
    ),
    "## Outputs",
    table(
      ("name", "dtype", "shape", "meaning"),
      _tensors(signature.structured_outputs, meanings),
    ),
    "A dimension that is `None` is free. The names are those of the signature"
    " `serving_default`: inference with the default hyperparameters."
    + (
      " The model computes in float32, whatever it was trained in. In a Keras"
      " model of mixed precision, too: its inputs are cast."
      if trains
      else ""
    ),
    "## Hyperparameters",
    "Scalar arguments of the model, for example"
    f' `hub.KerasLayer(…, arguments={{"{hyperparameters[0].name}":'
    f" {hyperparameters[0].default:g}}})`."
    if hyperparameters
    else "None.",
    table(
      ("argument", "default", "meaning"),
      (
        (f"`{h.name}`", f"{h.default:g}", h.description)
        for h in hyperparameters
      ),
    )
    if hyperparameters
    else "",
    "## Weights" if trains else "## Source",
    table(
      ("", ""),
      [
        *(
          [
            ("parameters", f"{_size(root.variables):,}"),
            ("trainable", f"{_size(root.trainable_variables):,}"),
            ("regularization losses", str(losses)),
          ]
          if trains
          else []
        ),
        *provenance.items(),
        ("exported with", f"TensorFlow {tf.__version__}"),
      ],
    ),
    f"`hub.KerasLayer` adds the {losses} regularization losses to those of your"
    " model when `trainable=True`. Regularization that an optimizer applies by"
    " itself, such as the weight decay of AdamW, is no part of a SavedModel: if"
    " you want it, choose such an optimizer again."
    if trains
    else "",
  ]
  directory = os.path.join(export_dir, "assets.extra")
  os.makedirs(directory)
  with open(os.path.join(directory, "README.md"), "w", encoding="utf-8") as f:
    f.write("\n\n".join(filter(None, sections)) + "\n")


def _size(variables: Iterable[tf.Variable]) -> int:
  return sum(v.shape.num_elements() for v in variables)


def _inputs(
  signature: tf.types.experimental.ConcreteFunction,
) -> dict[str, Any]:
  specs = tf.nest.flatten(signature.structured_input_signature)
  return {spec.name: spec for spec in specs}


def _tensors(
  specs: Mapping[str, Any], meanings: Mapping[str, str]
) -> Iterable[tuple[str, ...]]:
  for name in specs:
    shape = ", ".join(map(str, specs[name].shape.as_list()))
    yield (f"`{name}`", specs[name].dtype.name, f"`[{shape}]`", meanings[name])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
