"""The steps that all exporters share: write, describe, verify and publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from etils import epy

from distribution import publishing
from distribution import warmup
from exporters.reusable import errors
from exporters.reusable import export_options

# These import TensorFlow, which must wait until the flags are parsed.
with epy.lazy_imports():
  from exporters.reusable import checkpoints
  from exporters.reusable import endpoints
  from exporters.reusable import keras_saving
  from exporters.reusable import model_json
  from exporters.reusable import observation
  from exporters.reusable import profiles
  from exporters.reusable import restore_report
  from exporters.reusable import saving
  from exporters.reusable import training_records
  from exporters.reusable import verification

if TYPE_CHECKING:
  import subprocess

  import tensorflow as tf

  from exporters.reusable import model_card


# The environment variable of the number of threads per op in TensorFlow.
THREADS = "TF_NUM_INTRAOP_THREADS"

Options = export_options.Options


def origin(options: Options) -> dict[str, Any]:
  """Returns what a model depends on besides the flags and the checkpoint.

  These are the program, the lock file of its packages and, if the program
  trains the model, the number of threads, which changes the rounding of sums.
  """
  flag_values = options.flag_values or {}
  threads = int(os.environ.get(THREADS, 0)) or len(os.sched_getaffinity(0))
  return {
    "exporter": pathlib.Path(sys.argv[0]).stem,
    "lock_sha256": lock_sha256(),
    **({"threads": threads} if flag_values.get("train_on") else {}),
  }


def lock_sha256() -> str:
  """Returns the SHA-256 of the lock file of the Python packages."""
  folder = pathlib.Path(__file__).parents[2] / "third_party" / "python"
  # Bazel provides the lock file of one accelerator; a checkout has them all.
  locks = [
    folder / f"requirements_{name}.txt" for name in ("cpu", "gpu", "tpu")
  ]
  lock = next(path for path in locks if path.exists())
  return hashlib.sha256(lock.read_bytes()).hexdigest()


def record(options: Options, checkpoint_path: str | None) -> dict[str, Any]:
  """Returns the entry for a checkpoint in the verification report."""
  if not checkpoint_path or options.verification == "off":  # No report.
    return {}
  return {"checkpoint_sha256": checkpoints.sha256(checkpoint_path)}


def check_profiles(options: Options, *models: Any) -> None:
  """Raises an InputError if a profile does not apply to a model to export.

  Call it before slow work, such as training.
  """
  for model in models:
    for name in options.freezing_profiles:
      profiles.trained(name, model.variables, model.trainable_variables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """A model to export, as a SavedModel or as a sub-object of one.

  Attributes:
    source: The live model, from `saving.source`.
    examples: Inputs of different sizes, to verify the export with.
    also_takes: Other forms of the input, as `saving.reusable` takes them.
    output_name: Name of the output in the signature if the output is one
      Tensor; the names if the output is a list.
    attributes: Further attributes of the exported object, by name: assets,
      variables and `saving.constant`s.
    sub_objects: Models that the exported object has as attributes, by name.
    signature: Name of the signature that calls this sub-object, or None.
  """

  source: saving.Source
  examples: Sequence[Any]
  also_takes: Sequence[Any] = ()
  output_name: str | Sequence[str] = "outputs"
  attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sub_objects: Mapping[str, Piece] = dataclasses.field(default_factory=dict)
  signature: str | None = None


# Exports one SavedModel, given its name, its piece, its card, and the entries
# of the verification report besides the flags.
Export = Callable[[str, Piece, "model_card.Card", Mapping[str, Any]], None]


@contextlib.contextmanager
def exporting(
  options: Options, names: Sequence[str] = ("",), *, apart: Sequence[Any] = ()
) -> Iterator[Export]:
  """Publishes SavedModels together: all of them appear, or none does.

  Slow work, such as training, belongs inside: `export_dir` is checked first.

  Args:
    options: Where to export and how to verify.
    names: Names of the SavedModels, which are also their directories in
      `export_dir`. A single "" makes `export_dir` itself the SavedModel.
    apart: Other directories that the program writes; None is ignored.

  Yields:
    A function to call once for each name; see `Export`.

  Raises:
    ExportError: A directory is in the way, or an export differs from its model.
  """
  publishing.check_apart(
    options.export_dir, *apart, keep_failed=options.keep_failed
  )
  with publishing.publish(
    options.export_dir, overwrite=options.overwrite
  ) as directory:
    # These processes import TensorFlow, which takes seconds, beside this one.
    processes = {n: verification.start(options.verification) for n in names}
    training_records.epochs.clear()

    def export(
      name: str,
      piece: Piece,
      card: model_card.Card,
      record: Mapping[str, Any],
    ) -> None:
      if options.checkpoint_report:
        restore_report.write(options.checkpoint_report)
      piece_dir = os.path.join(directory, name) if name else directory
      record = {**origin(options), "flags": options.flag_values, **record}
      _export(piece_dir, piece, card, record, options, processes[name])

    try:
      yield export
    finally:
      for process in filter(None, processes.values()):
        process.kill()  # Without effect on a process that has ended.
        process.wait()
  print(f"Exported {' and '.join(filter(None, names))}".rstrip(), end=" ")
  print(f"to {options.export_dir}")


def _export(
  piece_dir: str,
  piece: Piece,
  card: model_card.Card,
  record: Mapping[str, Any],
  options: Options,
  process: subprocess.Popen | None,
) -> None:
  """Writes a SavedModel with its metadata, and verifies it."""
  signatures: dict[str, Any] = {}
  served = dict(_signatures(piece, "serving_default"))
  root = _exported(piece, "serving_default", signatures)
  frozen = _with_profiles(root, piece.source, options.freezing_profiles)
  for part in _pieces(piece) if options.verification == "full" else ():
    if part.examples:
      verification.check_forms(part.source, part.also_takes, part.examples[0])
  is_keras = options.saved_model_format == "keras"
  if is_keras:
    notes = keras_saving.save(
      piece.source,
      piece_dir,
      signatures=signatures,
      attributes=piece.attributes,
    )
  else:
    notes = saving.save(root, piece_dir, signatures=signatures)
    if lost := saving.lost(piece.source):
      for kind, text in lost.items():
        print(f"  - {kind}: {text}")
      known = {**card.provenance, **lost}
      card = dataclasses.replace(card, provenance=known)
  parts = dict(_parts(piece))
  described = model_json.describe(
    card,
    record["exporter"],
    root,
    piece.source,
    signatures["serving_default"],
    profiles=list(frozen),
    sub_objects={path: source for path, (source, _) in parts.items()},
    is_keras=is_keras,
  )
  model_json.write(piece_dir, described)
  with observation.restored(piece.source):
    warmup.write(
      piece_dir,
      signatures["serving_default"],
      options.warmup_batch_sizes,
      options.warmup_lengths,
      examples=piece.examples[:1],
    )
  if piece.source.variables:
    training_records.write(piece_dir)
  report = verification.verify(
    piece_dir,
    piece.source,
    _examples(piece),
    options.verification,
    sub_objects=parts | frozen,
    served=served,
    is_keras=is_keras,
    process=process,
    record=record,
    keep_failed=options.keep_failed,
    measure_latency=options.measure_latency,
    notes=notes,
  )
  model_json.write(piece_dir, described | model_json.verified(report))


def _pieces(piece: Piece) -> Iterator[Piece]:
  """Yields a piece and its sub-objects."""
  yield piece
  for sub_object in piece.sub_objects.values():
    yield from _pieces(sub_object)


def _parts(
  piece: Piece, path: str = ""
) -> Iterator[tuple[str, verification.Part]]:
  """Yields the sub-objects to verify, by paths such as `encoder.mlm`."""
  for name, sub_object in piece.sub_objects.items():
    yield f"{path}{name}", (sub_object.source, _examples(sub_object))
    yield from _parts(sub_object, f"{path}{name}.")


def _examples(piece: Piece) -> list[Any]:
  """Returns the examples, with one for each length of a list that is taken.

  Verification calls other forms of the input with values of the first example.
  A list of another length needs an example, because its outputs are compared
  with those of the live model.
  """
  first, *others = piece.examples
  lists = [x for x in piece.examples if isinstance(x, (list, tuple))]
  lengths = set(map(len, lists))
  for spec in piece.also_takes if lists else ():
    if isinstance(spec, (list, tuple)) and len(spec) not in lengths:
      made = [x for x, _ in zip(itertools.cycle(first), spec, strict=False)]
      if [x.dtype for x in made] == [x.dtype for x in spec]:
        lengths.add(len(spec))
        # The last example stays last, as verification compares its gradients.
        others.insert(0, made)
  return [first, *others]


def _with_profiles(
  root: tf.train.Checkpoint, source: saving.Source, names: Sequence[str]
) -> dict[str, verification.Part]:
  """Adds freezing profiles to an exported object; returns the parts to verify.

  Profiles share the call, so only their variables and losses are compared.
  """
  parts = {}
  for name in names if source.trainable_variables else ():
    trained = profiles.trained(
      name, source.variables, source.trainable_variables
    )
    frozen = saving.frozen(source, trained)
    setattr(root, name, saving.profile(root, frozen))
    parts[name] = (frozen, ())
  return parts


def _signatures(
  piece: Piece, signature: str | None, path: str = ""
) -> Iterator[tuple[str, str]]:
  """Yields the name of each signature, and the path of the piece it calls.

  Raises:
    ExportError: A piece has no example, or a name is invalid or used twice.
  """
  if not piece.examples:
    raise errors.ExportError(
      f"{path.rstrip('.') or 'The piece'} has no examples. Its export is"
      " verified with them: give it some of different sizes."
    )
  names = [*piece.sub_objects, *piece.attributes]
  taken = (*observation.INTERFACE, "signatures")
  taken += (endpoints.INFERENCE, endpoints.TRAINING)
  for name in names:
    if name in taken or not name.isidentifier() or names.count(name) > 1:
      raise errors.ExportError(
        f"{path}{name} cannot be the name of a sub-object or an attribute: it"
        " is taken, or is no identifier of Python."
      )
  seen = set()
  own = [(signature, path.rstrip("."))] if signature else []
  inner = [
    _signatures(sub_object, sub_object.signature, f"{path}{name}.")
    for name, sub_object in piece.sub_objects.items()
  ]
  for name, called in itertools.chain(own, *inner):
    if name in seen:
      raise errors.ExportError(
        f"Two signatures are called {name}. Give each a name of its own."
      )
    seen.add(name)
    yield name, called


def _exported(
  piece: Piece, signature: str | None, signatures: dict[str, Any]
) -> tf.train.Checkpoint:
  """Returns the object to save for a piece; adds to `signatures`."""
  root = saving.reusable(piece.source, also_takes=piece.also_takes)
  if signature:
    signatures[signature] = saving.signature(
      root, piece.source.input_spec, piece.output_name
    )
  for name, sub_object in piece.sub_objects.items():
    inner = _exported(sub_object, sub_object.signature, signatures)
    setattr(root, name, inner)
  for name, value in piece.attributes.items():
    setattr(root, name, value)
  return root
