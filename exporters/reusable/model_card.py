"""Generates an export's card, `assets.extra/README.md`, from `model.json`."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from exporters.reusable import errors
from exporters.reusable import hyperparameters as hyperparameters_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """Facts that only the exporter knows about its model.

  Attributes:
    name: Name of the model.
    description: What the model is, for someone who has never heard of it.
    meanings: The meaning and the kind of values of each input and output of
      `serving_default`.
    ranges: For inputs, the smallest and the largest value.
    sizes: For inputs, the sizes in `training` and the `largest` sizes of all
      dimensions except batch and channels.
    example: Python code that loads and fine-tunes the export.
    provenance: The origin of the weights: names and values of a table.
    loaded: The expression for the loaded export in `example`.
    needs: Packages that `example` imports.
  """

  name: str
  description: str
  meanings: Mapping[str, str]
  example: str
  provenance: Mapping[str, str]
  ranges: Mapping[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  sizes: Mapping[str, Mapping[str, Sequence[int]]] = dataclasses.field(
    default_factory=dict
  )
  loaded: str = "model.layers[0].resolved_object"
  needs: Sequence[str] = ("tensorflow", "tf-keras", "tensorflow-hub")


_LONGEST = 2000  # Characters of a text of one line, or of each line of a text.
# The start of a line that begins or underlines a heading of Markdown, or begins
# a fence.
_BLOCK = re.compile(r"^(\s*)(?=#|=|-\s*-|-+\s*$|```|~~~)")

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
{profiles}
## {weights}

{provenance}
{regularization}"""

_PROFILES = """
## Freezing profiles

Attributes of the loaded export that train fewer of its variables, for example \
`hub.KerasLayer(hub.load(…).{first}, trainable=True)`.

{rows}
"""
_FINE_TUNING = """\
## Fine-tuning

Since the training above, the weights were fine-tuned:
"""
_COMPILATION = """\
## Compilation for TPUs

A fine-tuning step (this model in training mode, a new head, Adam; float32) \
was compiled with {compiler}, without a TPU. Nothing was run on a TPU.

{rows}"""

_LATENCY = """\
## Latency

Milliseconds per call of the live model and of this export, called in turn on \
{device} ({processor}, {cores} cores). With few calls, p99 is close to the \
slowest.

{rows}"""

# The end of the example of a trainable model.
_SHARE = """
# To share what you have trained, as a SavedModel that is used like this one:
trained = {loaded}
tf.saved_model.save(trained, "path/to/trained", signatures=trained.signatures)
"""
# Further text in the card of a trainable model.
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
Keras model of mixed precision its inputs are cast to float32."""
_REGULARIZATION = """
{loader} adds the regularization losses to those of your \
model{condition}. Regularization that an optimizer applies by \
itself, such as the weight decay of AdamW, is not part of a SavedModel: to \
keep it, choose such an optimizer again.
"""
_KERAS_3 = """\
## Keras 3

`hub.KerasLayer` is a layer of Keras 2. A `Lambda` or a layer of Keras 3 that \
calls it, or that calls what `tf.saved_model.load` returns, trains none of the \
weights and does not warn. Without `TF_USE_LEGACY_KERAS`, use this layer as \
`ReusableLayer("…", arguments={{…}})`, with the hyperparameters{jit}:

```python
{layer}```

`keras.layers.TFSMLayer("…", call_training_endpoint="train")` has the default \
hyperparameters and no regularization losses. Keras 3.15 trains it with \
`SGD` without momentum only: other optimizers raise `is not a valid scope \
name`."""
_JIT = ", and compile the model with `jit_compile=False`, as XLA has no strings"
_LAYER = "integration_tests/keras3/reusable_layer.py"


def usage(
  card: Card, trainable: int, *, is_keras: bool = False
) -> dict[str, Any]:
  """Returns the example of a card, and the packages that it needs.

  Args:
    card: Facts that only the exporter knows.
    trainable: Number of trainable parameters.
    is_keras: Whether the export is a complete Keras model.
  """
  if is_keras:
    card = _for_keras(card)
  example = card.example.strip()
  if trainable and not is_keras:
    if "import tensorflow as tf\n" not in example:
      example = example.replace(
        "import tensorflow_hub",
        "import tensorflow as tf\nimport tensorflow_hub",
      )
    example = f"{example}\n{_SHARE.format(loaded=card.loaded)}".rstrip()
  return {"example": example, "needs": list(card.needs)}


def one_line(text: Any) -> str:
  """Returns a stranger's text as one line of limited length."""
  text = errors.shown(" ".join(str(text)[: _LONGEST + 1].split()))
  return f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text


def _as_text(value: Any, name: str = "") -> Any:
  """Neutralizes headings, HTML, fences and control characters in a value.

  Args:
    value: A value of `model.json`.
    name: The key of the value at the top level; "" for a nested value.
  """
  if isinstance(value, Mapping):
    return {_as_text(k): _as_text(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_as_text(v) for v in value]
  if not isinstance(value, str):
    return value
  if name not in ("description", "example"):
    return one_line(value).replace("<", "&lt;")
  lines = [line[:_LONGEST] for line in value[: 10 * _LONGEST].split("\n")]
  if name == "example":  # The card puts it in a fence of backticks.
    lines = [line.replace("```", "") for line in lines]
  else:
    lines = [_BLOCK.sub(r"\1\\", line.replace("<", "&lt;")) for line in lines]
  return "\n".join(map(errors.shown, lines))


def text(model: Mapping[str, Any]) -> str:
  """Returns the card of an export in Markdown.

  Args:
    model: The description of the export, as in its `model.json`. It may come
      from a stranger's export.
  """
  model = {name: _as_text(value, name) for name, value in model.items()}
  is_keras = model["format"] == "keras"
  trainable = model["parameters"]["trainable"]
  *packages, last = (f"`{name}`" for name in model["needs"])
  card = _TEMPLATE.format(
    name=model["name"],
    description=model["description"],
    load="Load and fine-tune" if trainable else "Load",
    example=model["example"],
    needs=f"{', '.join(packages)} and {last}" if packages else last,
    use=_use(model) if trainable else "",
    inputs=_tensors(model["inputs"]),
    outputs=_tensors(model["outputs"]),
    precision=_PRECISION if trainable else "",
    hyperparameters=_arguments(model["hyperparameters"], is_keras),
    profiles=_profiles(model),
    weights=("Weights" if trainable else "Source")
    + (" of the original" if model.get("fine_tuning") else ""),
    provenance=table(("", ""), _provenance(model).items()),
    regularization=_REGULARIZATION.format(
      loader="Keras" if is_keras else "`hub.KerasLayer`",
      condition="" if is_keras else " when `trainable=True`",
    )
    if trainable
    else "",
  )
  sections = (
    *(_fine_tuning(model), _latency(model)),
    *(_compilation(model), _keras_3(model)),
  )
  return "\n\n".join([card.rstrip(), *filter(None, sections)]) + "\n"


def _use(model: Mapping[str, Any]) -> str:
  """Explains how to load and call a trainable model."""
  if model["format"] == "keras":
    return _USE_KERAS
  packages = (
    f"`{name}`"
    for name in model["needs"]
    if name not in ("tf-keras", "tensorflow-hub")
  )
  in_training = ", in training as `model(inputs, training=True)`"
  return _USE.format(
    without_keras=" and ".join(packages),
    in_training=in_training if model["has_training_mode"] else "",
  )


def _provenance(model: Mapping[str, Any]) -> dict[str, str]:
  counts = {
    "parameters": f"{model['parameters']['all']:,}",
    "trainable": f"{model['parameters']['trainable']:,}",
    "regularized variables": str(model["regularization_losses"]),
  }
  return {
    **(counts if model["parameters"]["trainable"] else {}),
    **model["provenance"],
    "exported with": f"TensorFlow {model['versions']['tensorflow']}",
  }


def _profiles(model: Mapping[str, Any]) -> str:
  if not model["profiles"]:
    return ""
  rows = (
    (f"`{p['name']}`", f"{len(p['trainable_variables'])}", p["description"])
    for p in model["profiles"]
  )
  columns = ("profile", "variables trained", "meaning")
  first = model["profiles"][0]["name"]
  return _PROFILES.format(first=first, rows=table(columns, rows))


def _fine_tuning(model: Mapping[str, Any]) -> str:
  """Lists the fine-tuning steps of the weights; empty if there are none."""
  steps = [
    f"- from {step['from']}, singleprint `{step['singleprint']}`, on"
    f" {step['data']}"
    for step in model.get("fine_tuning", ())
  ]
  return "\n".join([_FINE_TUNING, *steps]) if steps else ""


def _latency(model: Mapping[str, Any]) -> str:
  """Reports the times of calls; empty if they were not measured."""
  if "latency" not in model:
    return ""
  columns = ("mean", "p50", "p90", "p99")
  rows = [
    [
      ", ".join(f"`{x}`" for x in batch["inputs"]),
      str(batch["calls"]),
      side,
      *(f"{batch[side][column]:.3f}" for column in columns),
    ]
    for batch in model["latency"]["batches"]
    for side in ("live", "export")
  ]
  return _LATENCY.format(
    **model["latency"]["machine"],
    rows=table(("inputs", "calls", "model", *columns), rows),
  )


def _compilation(model: Mapping[str, Any]) -> str:
  """Reports the compilations for TPUs; empty if there were none."""
  if "compilation_for_tpus" not in model:
    return ""
  found = model["compilation_for_tpus"]
  columns = "result", "inputs of one core", "peak HBM, of", "flops"
  rows = map(_compiled, found["results"])
  return _COMPILATION.format(
    compiler=found["compiler"], rows=table((*columns, "bytes accessed"), rows)
  )


def _compiled(result: Mapping[str, Any]) -> list[str]:
  """Formats the result of a compilation for a TPU as a row."""
  topology = result["topology"]
  inputs = ", ".join(f"`{shape}`" for shape in result["inputs"])
  if not result["compiles"]:
    verdict = "does not compile for" if result["fits"] else "does not fit"
    return [f"{verdict} {topology}", inputs, "", "", ""]
  needed, available = (
    f"{result[key] / 2**20:,.0f} MiB"
    for key in ("hbm_bytes", "hbm_available_bytes")
  )
  figures = (
    "" if result[key] is None else f"{result[key]:.3g}"
    for key in ("flops", "accessed_bytes")
  )
  return [
    *(f"compiles for {topology}", inputs, f"{needed}, {available}"),
    *figures,
  ]


def _keras_3(model: Mapping[str, Any]) -> str:
  """Returns the section on Keras 3; empty if the model is not trainable."""
  if not model["parameters"]["trainable"]:
    return ""
  has_strings = any(tensor["dtype"] == "string" for tensor in model["inputs"])
  return _KERAS_3.format(
    jit=_JIT if has_strings else "",
    layer=pathlib.Path(__file__).parents[2].joinpath(_LAYER).read_text(),
  )


def _for_keras(card: Card) -> Card:
  """Replaces `hub.KerasLayer` with `load_model` in the example of a card."""
  example = re.sub(
    r'hub\.KerasLayer\(\s*("[^"]*")[^()]*\)',
    r"tf_keras.models.load_model(\1)",
    card.example.replace(".resolved_object", ""),
  )
  needs = card.needs
  if "hub." not in example:
    example = example.split("import tensorflow_hub as hub\n")[-1]
    needs = [name for name in needs if name != "tensorflow-hub"]
  return dataclasses.replace(card, example=example, needs=needs)


def _arguments(
  hyperparameters: Sequence[Mapping[str, Any]], is_keras: bool
) -> str:
  if not hyperparameters:
    return "None."
  first, *_ = hyperparameters
  literal = hyperparameters_lib.literal
  rows = (
    (f"`{h['name']}`", literal(h["default"]), h["description"] + _limits(h))
    for h in hyperparameters
  )
  if is_keras:
    about = (
      "They are fixed in the layers. An export with"
      " `--saved_model_format=reusable` has them as arguments."
    )
    return f"{about}\n\n{table(('name', 'value', 'meaning'), rows)}"
  return (
    "Scalar arguments of the model, for example"
    f' `hub.KerasLayer(…, arguments={{"{first["name"]}":'
    f" {literal(first['default'])}}})`."
    f"\n\n{table(('argument', 'default', 'meaning'), rows)}"
  )


def _limits(h: Mapping[str, Any]) -> str:
  """Describes the valid values of a number."""
  if "exclusiveMaximum" in h:
    return f" From {h['minimum']} to less than {h['exclusiveMaximum']}."
  if "maximum" in h:
    return f" From {h['minimum']} to {h['maximum']}."
  return f" At least {h['minimum']}." if "minimum" in h else ""


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> str:
  rows = [
    (f"`{t['name']}`", t["dtype"], f"`{t['shape']}`", _meaning(t))
    for t in tensors
  ]
  return table(("name", "dtype", "shape", "meaning"), rows)


def _meaning(tensor: Mapping[str, Any]) -> str:
  known = [tensor["meaning"]]
  if "minimum" in tensor:
    known.append(f"from {tensor['minimum']} to {tensor['maximum']}")
  for what, words in (
    ("training", "size in training"),
    ("largest", "size at most"),
  ):
    if size := tensor.get("sizes", {}).get(what):
      known.append(f"{words} {' by '.join(map(str, size))}")
  return "; ".join(known)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  cells = ([cell.replace("|", r"\|") for cell in line] for line in lines)
  return "\n".join(f"| {' | '.join(line)} |" for line in cells)
