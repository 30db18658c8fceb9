"""Reads weights from Keras files: HDF5 in two layouts, and `.keras` archives.

`save_weights("x.h5")` and `save("x.h5")` write a group for each layer, with the
names of its weights. `x.weights.h5` and `.keras` have attribute paths instead,
with numbered values. The numbers in Keras' names depend on the models built
before in the process, so names are renumbered from 0 on.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import re
import shutil
import tempfile
from typing import IO, Any
import zipfile

import h5py
import tf_keras

from distribution import formats
from exporters.reusable import errors
from exporters.reusable import private_api
from exporters.reusable import weight_tables

# The contents of files of compiled models besides weights, by pattern.
NOT_WEIGHTS = {
  "optimizer_weights/*": "optimizer",
  "optimizer/*": "optimizer",
  "compiled_loss/*": "metrics",
  "compiled_metrics/*": "metrics",
  "metrics/*": "metrics",
  "_*metric*/*": "metrics",
}
_IN_ARCHIVE = "model.weights.h5"
_NUMBERED = re.compile(r"(.*?)(?:_(\d{1,9}))?", re.DOTALL)
# An archive of Keras is not compressed, but may have been packed again.
_MOST_COMPRESSION = 100


def read(path: str) -> tuple[bool, dict[str, weight_tables.Tensor]]:
  """Returns the tensors of a file, by renumbered names.

  Returns:
    Whether the names are attribute paths; and the tensors.

  Raises:
    ExportError: The file is damaged, or is not a Keras file.
  """
  found: dict[str, h5py.Dataset] = {}

  def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
    if isinstance(item, h5py.Dataset):
      if item.external or item.is_virtual:
        raise errors.ExportError(f"{path} has values in other files.")
      found[name.removeprefix("model_weights/")] = item

  about = f"Cannot read {path}, which may be truncated or damaged: "
  with errors.of_input(about=about):
    formats.check_regular(path)
    file = h5py.File(_unpacked(path) if zipfile.is_zipfile(path) else path)
    file.visititems(add)
    has_names = "layer_names" in file.attrs or "model_weights" in file
  by_attribute = not has_names and any("vars/" in name for name in found)
  if not found or not (has_names or by_attribute):
    raise errors.ExportError(
      f"{path} is a file of HDF5 without weights of Keras."
    )
  names = {name: name for name in found} if by_attribute else numbered(found)
  return by_attribute, {
    names[name]: weight_tables.Tensor(
      item.name[1:], item.shape, lambda item=item: item[()]
    )
    for name, item in found.items()
  }


def is_file(path: str) -> bool:
  """Returns whether a local file is HDF5 or an archive, by its content."""
  return os.path.isfile(path) and (
    h5py.is_hdf5(path) or zipfile.is_zipfile(path)
  )


def by_weight(path: str) -> dict[str, weight_tables.Tensor] | None:
  """Returns the tensors of a file by weight name, without layer names.

  Returns:
    The tensors, or None if the file has attribute paths.

  Raises:
    ExportError: As `read`; or two layers have weights of the same name.
  """
  by_attribute, found = read(path)
  if by_attribute:
    return None
  with errors.of_input(about=f"{path}: "), h5py.File(path) as f:
    layers = f.get("model_weights", f).attrs["layer_names"]
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in layers]
  tensors: dict[str, weight_tables.Tensor] = {}
  for tensor in found.values():
    name = tensor.name.removeprefix("model_weights/").removesuffix(":0")
    layer = max(
      (n for n in names if name.startswith(f"{n}/")), key=len, default=""
    )
    name = name.removeprefix(f"{layer}/")
    if name in tensors:
      raise errors.ExportError(f"{path} has two weights named {name}.")
    tensors[name] = tensor
  return tensors


def _unpacked(path: str) -> IO[bytes]:
  """Extracts the weights of an archive, because seeking in it is slow."""
  with zipfile.ZipFile(path) as archive, archive.open(_IN_ARCHIVE) as f:
    directory = tempfile.gettempdir()
    size = archive.getinfo(_IN_ARCHIVE).file_size  # At most this is read.
    if size > 2**26 + _MOST_COMPRESSION * os.path.getsize(path):
      raise errors.ExportError(
        f"{path} would unpack to {size:,} bytes, more than {_MOST_COMPRESSION}"
        " times its size."
      )
    if size > shutil.disk_usage(directory).free:
      raise errors.ExportError(
        f"{path} unpacks to {size:,} bytes, and {directory} has less space"
        f"{errors.SCRATCH}"
      )
    file = tempfile.TemporaryFile()  # noqa: SIM115
    with errors.writing(directory, errors.SCRATCH):
      shutil.copyfileobj(f, file)
  return file


def variables(model: tf_keras.Model, by_attribute: bool) -> dict[str, Any]:
  """Returns the variables of a model by their names in a file."""
  if by_attribute:
    return private_api.keras_paths(model)
  named = {
    f"{layer.name}/{weight.name}": weight
    for layer in model.layers
    for weight in layer.weights
  }
  names = numbered(named)
  return {names[name]: weight for name, weight in named.items()}


def numbered(names: Sequence[str]) -> dict[str, str]:
  """Renumbers the names of layers, from 0 on for each parent and base name.

  Synchronized batch normalization layers count as ordinary ones.

  Returns:
    The new names, without `:0`, by the old names.
  """
  siblings: dict[tuple[str, ...], set[int]] = {}
  split = {name: _split(name) for name in names}
  for parts in split.values():
    for i, (base, number) in enumerate(parts):
      group = (*(f"{b}_{n}" for b, n in parts[:i]), base)
      siblings.setdefault(group, set()).add(number)
  ranks = {
    group: {number: i for i, number in enumerate(sorted(numbers))}
    for group, numbers in siblings.items()
  }

  def new(parts: Sequence[tuple[str, int]]) -> str:
    path = []
    for i, (base, number) in enumerate(parts):
      group = (*(f"{b}_{n}" for b, n in parts[:i]), base)
      rank = ranks[group][number]
      path.append(f"{base}_{rank}" if rank else base)
    return "/".join(path)

  return {name: new(parts) for name, parts in split.items()}


def _split(name: str) -> list[tuple[str, int]]:
  parts = name.removesuffix(":0").replace("sync_batch_n", "batch_n").split("/")
  matches = [_NUMBERED.fullmatch(part) for part in parts]
  return [(match[1], int(match[2] or 0)) for match in matches]


def restore(
  path: str, models: Sequence[tf_keras.Model], needed: Sequence[Any]
) -> weight_tables.Restored:
  """Restores variables from a file with the weights of a model.

  Args:
    path: The file.
    models: Models whose weights the file may have. The best match is restored.
    needed: Variables to restore. Other variables of the model may have another
      shape in the file.

  Raises:
    ExportError: Names or shapes do not match, or the file is damaged.
  """
  by_attribute, tensors = read(path)
  named = max(
    (variables(model, by_attribute) for model in models),
    key=lambda named: len(set(named).intersection(tensors)),
  )
  wanted = {variable.ref(): variable for variable in needed}
  live = {
    n: v for n, v in named.items() if wanted.pop(v.ref(), None) is not None
  }
  lacking = {v.name.removesuffix(":0"): v for v in wanted.values()}
  not_exported = dict.fromkeys(set(named).difference(live), "not exported")
  return weight_tables.restore(
    path,
    tensors,
    [weight_tables.Line(name, name) for name in named],
    {**live, **lacking},
    left_out={**NOT_WEIGHTS, **not_exported},
  )
