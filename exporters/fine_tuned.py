r"""Exports a fine-tuned export, with its card and provenance.

It takes what a `use_*` program or `Model.save` wrote, and verifies the result:

  bazel run //exporters:fine_tuned -- --saved_model_dir=PIECE --export_dir=DIR
  bazel run //exporters:fine_tuned -- --saved_model_dir=KERAS_MODEL \
    --original_dir=ORIGINAL --export_dir=DIR
  bazel run //exporters:fine_tuned -- --saved_model_dir=PIECE \
    --fine_tuned_on="450 photos of flowers" --export_dir=DIR

The input is a fine-tuned export that a `use_*` program or `tf.saved_model.save`
wrote, or a Keras model with a `hub.KerasLayer` of one. The result has the
interface of the original export, and the new weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags
from etils import epy

from distribution import publishing
from distribution import sandbox
from distribution import warmup
from exporters.conformance import copying
from exporters.reusable import command_line
from exporters.reusable import errors
from exporters.reusable import exporting

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  import tensorflow as tf

  from exporters.conformance import subject as subject_lib
  from exporters.reusable import checkpoints
  from exporters.reusable import hyperparameters
  from exporters.reusable import model_card
  from exporters.reusable import model_json
  from exporters.reusable import observation
  from exporters.reusable import private_api
  from exporters.reusable import saving
  from exporters.reusable import verification

if TYPE_CHECKING:
  Part = tuple[saving.Source, list[Any]]

_LOADING = copying.Options()
# Cards contain this layer for Keras 3. In Bazel's runfiles the file is a link.
_LAYER = (
  pathlib.Path(__file__)
  .parents[1]
  .joinpath("integration_tests/keras3/reusable_layer.py")
)
# The directory where `use_*` programs record the original export and the data.
_ORIGIN = "assets.extra/fine_tuned_from"


class Description(NamedTuple):
  """The records that an export contains.

  Attributes:
    model: The content of `model.json`.
    report: The verification report, without comparisons. It may be empty.
  """

  model: dict[str, Any]
  report: dict[str, Any]


def export(
  options: exporting.Options,
  saved_model_dir: str,
  *,
  piece: str | None = None,
  original_dir: str | None = None,
  fine_tuned_on: str | None = None,
  loading: copying.Options = _LOADING,
) -> None:
  """Exports the fine-tuned piece of a SavedModel.

  Args:
    options: Where to export and how to verify.
    saved_model_dir: The SavedModel.
    piece: The object path of the piece, as in `_pieces`. None: the only piece.
    original_dir: The export that the piece was fine-tuned from. None: read it
      from the SavedModel.
    fine_tuned_on: A description of the data. None: read it from the SavedModel.
    loading: How to load the SavedModel.

  Raises:
    ExportError: A directory is taken, the SavedModel has no such piece or no
      record of its origin, or the export differs from the piece.
  """
  for source_dir in saved_model_dir, original_dir:
    publishing.check_apart(
      options.export_dir, source_dir, keep_failed=options.keep_failed
    )
  request = {
    "piece": piece,
    "fine_tuned_on": fine_tuned_on,
    "verification": options.verification,
    "measure_latency": options.measure_latency,
    "warmup": (options.warmup_batch_sizes, options.warmup_lengths),
    "record": {**exporting.origin(options), "flags": options.flag_values},
  }
  with (
    publishing.publish(
      options.export_dir, overwrite=options.overwrite
    ) as directory,
    tempfile.TemporaryDirectory(prefix=".work.", dir=directory) as work_dir,
  ):
    paths = {
      "original_dir": original_dir,
      "export_dir": options.export_dir,
      "keep_failed": options.keep_failed,
    }
    _export_into(work_dir, saved_model_dir, paths, request, loading)
    # The process in the sandbox could have created links.
    if problems := copying.copy(f"{work_dir}/export_dir", directory).problems:
      raise errors.ExportError(f"{saved_model_dir}: {problems[0]}.")
  print(f"Exported to {options.export_dir}")


def _export_into(
  work_dir: str,
  saved_model_dir: str,
  paths: dict[str, str | None],
  request: dict[str, Any],
  loading: copying.Options,
) -> None:
  """Exports in the sandbox, which reads and writes in a working directory."""
  inner = {name: f"{work_dir}/{name}" for name, path in paths.items() if path}
  if original := paths["original_dir"]:
    copied = inner["original_dir"]
    os.mkdir(copied)
    copying.copy(original, copied, follow_links=loading.follow_links)
  names = {path: f"{paths[name]}" for name, path in inner.items()}
  try:
    request |= dict.fromkeys(paths) | inner
    _ask(saved_model_dir, work_dir, request, names, loading)
  finally:
    if os.path.isdir(f"{work_dir}/keep_failed"):
      with publishing.publish(paths["keep_failed"]) as failed_dir:
        copying.copy(inner["keep_failed"], failed_dir)


def _ask(
  saved_model_dir: str,
  work_dir: str,
  request: dict[str, Any],
  names: dict[str, str],
  loading: copying.Options,
) -> None:
  """Starts the sandbox, and sends it the request to export."""
  with copying.started(
    "exporters.fine_tuned",
    saved_model_dir,
    loading,
    longer=20,  # Two processes verify the export.
    readable=[str(_LAYER)],
    writable=[work_dir],
    variables={"TMPDIR": work_dir},
    programs=True,
    names=names,
  ) as (ask, first):
    try:
      ask({**first, **request})
    except sandbox.SandboxError as e:
      raise errors.ExportError(
        f"{saved_model_dir} cannot be exported: {e}"
      ) from e


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Answers one request, the arguments of `export`, in the sandbox."""
  request = next(requests)
  saved_model_dir, directory = request["directory"], request["export_dir"]
  subject = subject_lib.requested(request)
  subject_lib.load_into(subject, request["trust"])
  if subject.model is None:
    raise errors.ExportError(
      f"{saved_model_dir}: {subject.unloaded}. //exporters:check says more."
    )
  model = _piece(saved_model_dir, subject.model, request["piece"])
  described = _fine_tuned(
    saved_model_dir, request["original_dir"], request["fine_tuned_on"]
  )
  _check_described(described.model, model)
  process = verification.start(request["verification"])
  notes = saving.save(model, directory, signatures=dict(model.signatures))
  model_json.write(directory, described.model)
  profiles = [profile["name"] for profile in described.model["profiles"]]
  parts = dict(_parts(directory, model, profiles))
  _check_weights((source for source, _ in parts.values()), described.report)
  source, examples = parts.pop("")
  warmup.write(
    directory,
    model.signatures["serving_default"],
    *request["warmup"],
    examples=examples[:1],
  )
  report = verification.verify(
    directory,
    source,
    examples,
    request["verification"],
    sub_objects=parts,
    process=process,
    record={
      **request["record"],
      "checkpoint_sha256": checkpoints.sha256(saved_model_dir),
      "original": described.report,
    },
    keep_failed=request["keep_failed"],
    measure_latency=request["measure_latency"],
    notes=notes,
  )
  model_json.write(directory, described.model | model_json.verified(report))
  yield None


def _piece(saved_model_dir: str, model: Any, name: str | None) -> Any:
  """Returns a piece of a loaded SavedModel by name."""
  pieces = _pieces(model)
  if name is not None and name not in pieces:
    problem = f"has no piece {name}"
  elif not pieces:
    problem = (
      "holds no export that can be trained. Pass a fine-tuned export, such as"
      " --output_piece_dir of use_*, or a Keras model with a hub.KerasLayer"
    )
  elif name is None and len(pieces) > 1:
    problem = "has several pieces. Choose one with --piece"
  else:
    found = pieces[name] if name is not None else next(iter(pieces.values()))
    if "serving_default" in getattr(found, "signatures", ()):
      return found
    raise errors.ExportError(
      f"{saved_model_dir} has lost its signature serving_default. Save it with"
      " signatures=layer.resolved_object.signatures."
    )
  names = f" ({', '.join(pieces)})" if pieces else ""
  raise errors.ExportError(f"{saved_model_dir} {problem}{names}.")


def _pieces(model: Any) -> dict[str, Any]:
  """Finds the exports in a loaded SavedModel; returns them by object path.

  A hub.KerasLayer keeps its SavedModel as `_func`. Without such a layer, the
  SavedModel itself is the piece, unless Keras saved it.
  """
  view = tf.train.TrackableView
  found, seen, waiting = {}, {}, [("", model)]
  for path, parent in waiting:
    children = view.children(parent)
    if _is_trainable(children.get("_func")):
      found[path] = children["_func"]
      continue
    for name, child in children.items():
      if name != "keras_api" and id(child) not in seen:
        seen[id(child)] = child
        waiting.append((f"{path}.{name}".lstrip("."), child))
  is_keras = "keras_api" in view.children(model)
  if not found and not is_keras and _is_trainable(model):
    return {"root": model}
  return found


def _is_trainable(model: Any) -> bool:
  return _is_whole(model) and bool(model.trainable_variables)


def _is_whole(model: Any) -> bool:
  """Returns whether a loaded object has the interface of an export."""
  return bool(subject_lib.traces_of(model)) and all(
    hasattr(model, name) for name in observation.INTERFACE
  )


def _check_described(described: dict[str, Any], model: Any) -> None:
  """Raises an ExportError if the original's records describe another model.

  Args:
    described: The description of the original, as in its `model.json`.
    model: The fine-tuned piece.
  """
  signature = model.signatures["serving_default"]
  inputs = tf.nest.flatten(signature.structured_input_signature)
  lists = {"all": model.variables, "trainable": model.trainable_variables}
  with errors.of_input(about="The original's model.json: "):
    for name, found in {
      "inputs": {s.name: s for s in inputs},
      "outputs": signature.structured_outputs,
      "parameters": {
        k: sum(v.shape.num_elements() for v in x) for k, x in lists.items()
      },
    }.items():
      said = described[name]
      if name != "parameters":
        said = {t["name"]: [t["dtype"], t["shape"]] for t in said}
        found = {k: [s.dtype.name, s.shape.as_list()] for k, s in found.items()}
      if said != found:
        raise errors.ExportError(
          f"The original is another model: its {name} are"
          f" {model_card.one_line(said)}, and those of the piece {found}. Set"
          " --original_dir to the export that was fine-tuned."
        )


def _parts(
  directory: str, model: Any, profiles: Sequence[str]
) -> Iterator[tuple[str, Part]]:
  """Yields a piece, named "", and its sub-objects, for the verification.

  Constants are left out because they take no input. Freezing profiles have no
  examples because they share the traces of the piece.
  """
  subject = dataclasses.replace(subject_lib.read(directory), loaded=model)
  source, examples = _part(subject)
  yield "", (source, examples)
  # Exporters hash the weights in this order.
  yield from _sub_parts(directory, model, "", profiles)
  for name in profiles:
    if profile := getattr(model, name, None):
      lists = {
        field: list(getattr(profile, field))
        for field in ("trainable_variables", "regularization_losses")
      }
      yield name, (dataclasses.replace(source, **lists), ())


def _sub_parts(
  directory: str, model: Any, path: str, left_out: Sequence[str] = ()
) -> Iterator[tuple[str, Part]]:
  for name, child in tf.train.TrackableView.children(model).items():
    if name in left_out or not _is_whole(child):
      continue
    subject = subject_lib.Subject(
      directory, private_api.meta_graph_pb2.MetaGraphDef(), [], child
    )
    if subject.traces[0].structured_input_signature[0]:
      yield f"{path}{name}", _part(subject)
      yield from _sub_parts(directory, child, f"{path}{name}.")


def _part(subject: subject_lib.Subject) -> Part:
  """Describes a loaded object as the source of an export, with examples."""
  model, steady = subject.model, subject.steady
  is_random = steady is None or bool(steady.keys() - subject.training.keys())
  tunable = [
    hyperparameters.Hyperparameter(
      name, value, "", off=0.0 if is_random and type(value) is float else None
    )
    for name, value in subject.hyperparameters.items()
    if type(value) in (int, float)
  ]
  mode = {"training": False} if subject.training else {}
  source = saving.Source(
    model=model,
    input_spec=subject.spec,
    call=model,
    defaults={**mode, **{h.name: h.default for h in tunable}},
    hyperparameters=tunable,
    variables=list(model.variables),
    trainable_variables=list(model.trainable_variables),
    regularization_losses=list(model.regularization_losses),
    layer_calls={},
    autograph=False,
  )
  return source, [subject.example(3), subject.example(1)]


def _fine_tuned(
  saved_model_dir: str, original_dir: str | None, data: str | None
) -> Description:
  """Derives the records of a fine-tuned export from those of the original.

  Args:
    saved_model_dir: The SavedModel of the fine-tuned export or model.
    original_dir: The original export. None: as `use_*` recorded it.
    data: A description of the data. None: as `use_*` recorded it.

  Raises:
    ExportError: A record and the flag that replaces it are both missing.
  """
  origin = pathlib.Path(original_dir or f"{saved_model_dir}/{_ORIGIN}")
  note = pathlib.Path(saved_model_dir, _ORIGIN, "data.txt")
  if (origin / _ORIGIN).is_dir():
    model, first = _fine_tuned(str(origin), None, None)
    report = {"original": first}
  elif not original_dir and not origin.is_dir():
    raise errors.ExportError(
      f"{saved_model_dir} does not say what it was fine-tuned from. Set"
      " --original_dir to that export, and --fine_tuned_on to the data."
    )
  else:
    model, report = model_json.read(str(origin)), {}
    path = origin / subject_lib.VERIFICATION
    if path.is_file():
      report = model_json.parsed(path)
  if data is None and not note.is_file():
    raise errors.ExportError(
      f"{saved_model_dir} does not say what it was fine-tuned on. Set"
      " --fine_tuned_on."
    )
  data = model_card.one_line(_text(note) if data is None else data)
  with errors.of_input(about=f"{origin}: "):
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(origin))
    singleprint = fingerprint.singleprint()
  report = {
    k: v
    for k, v in report.items()
    if k not in ("comparisons", "latency", "notes")
  }
  with errors.of_input(about=f"{origin}: model.json: "):
    name = model_card.one_line(model["name"])
    # These entries describe the old weights.
    for entry in ("latency", "verification", "weights_sha256"):
      model.pop(entry, None)
    step = {"from": name, "singleprint": singleprint, "data": data}
    model |= {
      "name": f"{name.removesuffix(', fine-tuned')}, fine-tuned",
      "fine_tuning": [*model.get("fine_tuning", ()), step],
    }
  print(f"Fine-tuned from {name}, singleprint `{singleprint}`, on {data}")
  return Description(model, {**report, "singleprint": singleprint})


def _text(path: pathlib.Path) -> str:
  with errors.of_input(OSError, ValueError, about=f"{path}: "):
    return path.read_text("utf-8")


def _check_weights(
  sources: Iterable[saving.Source], original: dict[str, Any]
) -> None:
  """Raises an ExportError if the weights equal those of the original."""
  # None if the original was not verified.
  known = original.get("weights_sha256")
  if known and known == observation.weights_sha256(sources):
    raise errors.ExportError(
      "All weights are those of the original: nothing was fine-tuned. Train"
      " with --retrain, or hub.KerasLayer(…, trainable=True)."
    )


def define_flags() -> None:
  """Defines the flags of this program."""
  command_line.define_flags(checkpoints=False)
  for name, text in {
    "saved_model_dir": "The SavedModel with the fine-tuned piece.",
    "piece": "The piece to take, if there are several.",
    "original_dir": "The export that was fine-tuned. The default is what the"
    " SavedModel says, if a use_* program wrote it.",
    "fine_tuned_on": "What it was fine-tuned on, for the card, such as '450"
    " photos of flowers'. The default is what the SavedModel says.",
  }.items():
    flags.DEFINE_string(name, None, text)
  command_line.define(copying.Options, copying.FLAGS)
  flags.register_validator(
    "saved_model_dir", bool, "It is required: what was fine-tuned."
  )


def main() -> None:
  """Exports the piece that the flags select."""
  values = flags.FLAGS
  export(
    command_line.options(),
    command_line.model_path("saved_model_dir"),
    piece=values.piece,
    original_dir=command_line.model_path("original_dir"),
    fine_tuned_on=values.fine_tuned_on,
    loading=command_line.from_flags(copying.Options),
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
