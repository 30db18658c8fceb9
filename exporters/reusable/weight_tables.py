"""Maps the tensors of other formats to variables, in both directions.

A table is a list of `Line`s, one for each variable. Reading applies the steps
of a line to a tensor; writing reverts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import fnmatch
import json
import math
import os
from typing import Any, NamedTuple

from etils import epy
import numpy as np

from distribution import formats
from exporters.reusable import errors

with epy.lazy_imports():
  import safetensors
  from safetensors import numpy as safetensors_numpy

MOST_PROBLEMS = 6  # The most that an error lists.

# Steps: a permutation of axes, or an axis to split into heads and head size.
TRANSPOSE = (1, 0)
CONVOLUTION = (2, 3, 1, 0)  # From [out, in, height, width].
DEPTHWISE = (2, 3, 0, 1)  # From [channels, 1, height, width].

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LEAST_TENSORS_OF_LAYER = 4  # Kernels and biases of two matrices.


class Tensor(NamedTuple):
  """A tensor in a file; `read` loads its values."""

  name: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


class Line(NamedTuple):
  """Maps a tensor of another format to a variable.

  A further line for the same variable names an optional copy of the tensor,
  such as tied weights. The copy must have the same values.

  Attributes:
    ours: Name of the variable, without `:0`.
    theirs: Name of the tensor; None if the format has no such tensor, because
      its values are always 0.
    steps: Convert the tensor to the variable: permutations of axes, and axes to
      split in two.
    part: `(k, n)`: the variable is the k-th of n equal parts of the tensor
      along axis 0.
  """

  ours: str
  theirs: str | None
  steps: tuple[tuple[int, ...] | int, ...] = ()
  part: tuple[int, int] = (0, 1)


class Record(NamedTuple):
  """The origin of a variable's value, for reports."""

  tensor: str
  source: str
  through: str
  shape: tuple[int, ...]


class Restored(NamedTuple):
  """The result of a restore.

  Attributes:
    source: The path and its format, for messages.
    records: One for each restored variable.
    left_out: The kind of each tensor that was not restored, by its name.
    lacking: The optional variables that the source lacks.
  """

  source: str
  records: Sequence[Record]
  left_out: Mapping[str, str]
  lacking: Collection[str] = ()


# All restores of this process, for a report.
restores: list[Restored] = []


def parsed(text: str, ours: str = "", theirs: str = "") -> list[Line]:
  """Parses a table in text form.

  Args:
    text: Each line has the suffix of a variable's name, the suffix of a
      tensor's name or `-` for none, and the steps. `T` transposes a matrix; a
      number is an axis to split.
    ours: The prefix of all names of variables.
    theirs: The prefix of all names of tensors.
  """
  rows = [row.split() for row in text.strip().splitlines()]
  return [
    Line(
      ours + row[0],
      None if row[1] == "-" else theirs + row[1],
      tuple(TRANSPOSE if step == "T" else int(step) for step in row[2:]),
    )
    for row in rows
  ]


def repeated(lines: Iterable[Line], count: int) -> list[Line]:
  """Repeats lines for `count` layers; `{i}` becomes the layer's number."""
  lines = list(lines)
  return [
    line._replace(
      ours=line.ours.replace("{i}", str(i)),
      theirs=line.theirs and line.theirs.replace("{i}", str(i)),
    )
    for i in range(count)
    for line in lines
  ]


def by_name(variables: Iterable[Any]) -> dict[str, Any]:
  """Returns variables by their names, without `:0`."""
  named = [(v.name.removesuffix(":0"), v) for v in variables]
  if twice := [n for n, c in Counter(n for n, _ in named).items() if c > 1]:
    raise ValueError(f"Several variables are named {twice[0]}.")
  return dict(named)


def restore(
  source: str,
  tensors: Mapping[str, Tensor],
  lines: Sequence[Line],
  variables: Mapping[str, Any],
  *,
  left_out: Mapping[str, str] | None = None,
  optional: Sequence[Collection[str]] = (),
) -> Restored:
  """Assigns tensors to variables by a table, and prints totals.

  Tensors and variables must match exactly, in both directions. Tensors are read
  one at a time.

  Args:
    source: The path and its format, for messages.
    tensors: The tensors by the names in `lines`.
    lines: The table.
    variables: The variables, from `by_name`.
    left_out: The kinds of tensors that no variable takes, such as `optimizer`,
      by name pattern.
    optional: Groups of variables. The source has all or none of each group.

  Raises:
    ExportError: A tensor is missing, has another shape or dtype, differs from
      its copy, is not finite, or is neither in `lines` nor in `left_out`.
  """
  unwanted = _unwanted(tensors, lines, variables, left_out or {})
  problems, plan = _planned(tensors, lines, variables)
  lacking = set(variables) - {line.ours for line, _ in plan}
  for group in optional:
    if lacking.issuperset(group):
      lacking -= set(group)
  lines_of = {line.ours: line for line in reversed(lines)}
  for name in [name for name in variables if name in lacking]:
    theirs = lines_of[name].theirs if name in lines_of else None
    is_of = f", {theirs}," if theirs else ""
    shape = tuple(variables[name].shape)
    problems.append(f"has no value{is_of} for {name} {shape}")
  problems += [
    f"has {errors.shown(tensors[name].name)} {tensors[name].shape}, which the"
    " model lacks"
    for name, what in unwanted.items()
    if not what
  ]
  if problems:
    raise errors.ExportError(
      f"{source} does not match the model: it {listed(problems, '; it ')}."
    )
  records: dict[str, Record] = {}
  zeros = []  # The layer of such a tensor was lost or never trained.
  for line, tensor in plan:
    value = _value(source, line, tensor, variables[line.ours])
    if tensor and value.ndim > 1 and not value.any():
      zeros.append(errors.shown(tensor.name))
    if line.ours not in records:
      variables[line.ours].assign(value)
      records[line.ours] = _record(line, tensor, value)
    elif not np.array_equal(variables[line.ours].numpy(), value):
      raise errors.ExportError(
        f"{source} has other values in {tensor.name} than in"
        f" {records[line.ours].source}. The model has one variable for both."
      )
  names = {tensors[name].name: what for name, what in unwanted.items()}
  missing = {name for group in optional for name in group} - set(records)
  lacking = missing.intersection(variables)
  restored = Restored(source, list(records.values()), names, lacking)
  sum_up(restored)
  if zeros:
    print(f"All values are 0 in {listed(zeros)}.")
  return restored


def sum_up(restored: Restored) -> None:
  """Prints a line of totals, and keeps the record for a report."""
  restores.append(restored)
  parameters = sum(math.prod(record.shape) for record in restored.records)
  text = (
    f"Restored {len(restored.records):,} tensors with {parameters:,} parameters"
    f" from {restored.source}."
  )
  by_kind = Counter(restored.left_out.values())
  if by_kind:
    kinds = ", ".join(f"{what} ({n:,})" for what, n in sorted(by_kind.items()))
    text += f" Left out: {kinds}."
  print(text)


def check_layers(source: str, layers: int, tensors: Collection[str]) -> None:
  """Raises an ExportError if there are too few tensors for the layers.

  Call it before the model is built, which takes long for many layers.
  """
  if layers * _LEAST_TENSORS_OF_LAYER > len(tensors):
    raise errors.ExportError(
      f"{source}: the config has {layers:,} layers, which cannot be in"
      f" {len(tensors):,} tensors."
    )


def listed(items: Sequence[str], separator: str = ", ") -> str:
  """Joins the first items, and adds the number of further items."""
  more = len(items) - MOST_PROBLEMS
  shown = separator.join(items[:MOST_PROBLEMS])
  return f"{shown}{f'; and {more} more' if more > 0 else ''}"


def tensors_of(
  lines: Iterable[Line], values: Mapping[str, Callable[[], np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts variables to tensors of the other format; yields them by name.

  Reads one variable at a time. Skips copies, and lines of other variables.

  Args:
    lines: The table.
    values: Functions that read the value of a variable, by its name.

  Raises:
    ExportError: A variable that the format lacks has values other than 0.
  """
  parts: dict[str, list[np.ndarray]] = {}
  seen = set()
  for line in lines:
    if line.ours not in values or line.ours in seen:
      continue
    seen.add(line.ours)
    value = values[line.ours]()
    if line.theirs is None:
      if value.any():
        raise errors.ExportError(
          f"{line.ours} has values other than 0, and the format no such tensor."
        )
      continue
    for step, shape in reversed(
      list(zip(line.steps, _shapes(line.steps, value.shape)[:-1], strict=True))
    ):
      if isinstance(step, int):
        value = value.reshape(shape)
      else:
        value = value.transpose(np.argsort(step))
    collected = parts.setdefault(line.theirs, [])
    collected.append(value)
    if len(collected) == line.part[1]:
      whole = parts.pop(line.theirs)
      value = np.concatenate(whole) if len(whole) > 1 else value
      yield line.theirs, np.ascontiguousarray(value).reshape(value.shape)


def read_safetensors(path: str) -> dict[str, Tensor]:
  """Returns the tensors of a file or of a directory, which may be in shards.

  Raises:
    ExportError: A file is missing, damaged, or not where the index says.
  """
  if not os.path.isdir(path):
    return _of_file(path)
  index, whole = (os.path.join(path, name) for name in (_INDEX, _WHOLE))
  has_index = os.path.lexists(index)
  if not has_index or os.path.lexists(whole):
    _check_has_safetensors(path)
    if has_index:  # transformers does the same, without a message.
      print(f"{path} has {_WHOLE} and {_INDEX}; the shards are not read.")
    return _of_file(whole)
  tensors: dict[str, Tensor] = {}
  file_of = _read_index(index)
  for name in sorted(set(file_of.values())):
    found = _of_file(os.path.join(path, name))
    if twice := sorted(set(found).intersection(tensors)):
      raise errors.ExportError(f"{path} has {twice[0]} in two files.")
    tensors |= found
  if lost := [name for name in file_of if name not in tensors]:
    raise errors.ExportError(
      f"{index} names {errors.shown(lost[0][:80])}, which no file has."
    )
  return tensors


def _check_has_safetensors(directory: str) -> None:
  names = os.listdir(directory)
  if _WHOLE in names:
    return
  advice = ""
  if found := [n for n in names if n.startswith("pytorch_model")]:
    advice = (
      f" {found[0]} is a pickle, which can run code. Convert it where you trust"
      " it: AutoModel.from_pretrained(DIR).save_pretrained(DIR) of transformers"
      f" writes {_WHOLE}."
    )
  elif "adapter_config.json" in names:
    advice = (
      " It has an adapter of PEFT. Merge it into its base model:"
      " merge_and_unload().save_pretrained(DIR)."
    )
  raise errors.ExportError(f"{directory} has no {_WHOLE}.{advice}")


def write_safetensors(
  directory: str,
  tensors: Iterable[tuple[str, np.ndarray]],
  max_shard_size: int,
) -> None:
  """Writes tensors, in shards with an index if they exceed a size in bytes.

  Only one shard is in memory at a time.
  """
  shards: list[list[str]] = []
  shard: dict[str, np.ndarray] = {}
  size = total = 0

  def write() -> None:
    path = os.path.join(directory, f"{len(shards)}.safetensors")
    with errors.writing(path):
      safetensors_numpy.save_file(shard, path, metadata={"format": "pt"})
    shards.append(list(shard))

  for name, value in tensors:
    if shard and size + value.nbytes > max_shard_size:
      write()
      shard, size = {}, 0
    shard[name] = value
    size += value.nbytes
    total += value.nbytes
  write()
  names = [_WHOLE]
  if len(shards) > 1:
    names = [
      f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
      for i in range(len(shards))
    ]
    file_of = {
      tensor: name
      for name, tensors_of_shard in zip(names, shards, strict=True)
      for tensor in tensors_of_shard
    }
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    with open(os.path.join(directory, _INDEX), "w") as f:
      json.dump(index, f, indent=2, sort_keys=True)
  for i, name in enumerate(names):
    os.replace(
      os.path.join(directory, f"{i}.safetensors"), os.path.join(directory, name)
    )


def _planned(
  tensors: Mapping[str, Tensor],
  lines: Iterable[Line],
  variables: Mapping[str, Any],
) -> tuple[list[str], list[tuple[Line, Tensor | None]]]:
  """Returns problems with shapes, and the lines whose tensors exist."""
  problems, plan = [], []
  for line in lines:
    if line.ours not in variables:
      continue
    shape = tuple(variables[line.ours].shape)
    if line.theirs is None:
      plan.append((line, None))
      continue
    tensor = tensors.get(line.theirs)
    if not tensor:
      continue
    plan.append((line, tensor))
    first, *rest = _shapes(line.steps, shape)[0] or (1,)
    expected = (first * line.part[1], *rest) if shape else ()
    if tensor.shape != expected:
      problems.append(
        f"has {tensor.shape} for {tensor.name}, which must be {expected} for"
        f" {line.ours} {shape}"
      )
  return problems, plan


def _unwanted(
  tensors: Mapping[str, Tensor],
  lines: Iterable[Line],
  variables: Mapping[str, Any],
  left_out: Mapping[str, str],
) -> dict[str, str]:
  """Returns the kinds of tensors that no variable takes, "" if unknown."""
  taken = {line.theirs for line in lines if line.ours in variables}
  return {
    name: next(
      (w for p, w in left_out.items() if fnmatch.fnmatchcase(name, p)), ""
    )
    for name in tensors
    if name not in taken
  }


def _shapes(
  steps: Sequence[tuple[int, ...] | int], shape: Sequence[int]
) -> list[tuple[int, ...]]:
  """Returns the shapes before each step, and `shape`, the one after the last.

  Computed backwards: a split axis is the product of two axes.
  """
  shapes = [tuple(shape)]
  for step in reversed(steps):
    after = shapes[0]
    if isinstance(step, int):
      merged = after[step] * after[step + 1]
      before = (*after[:step], merged, *after[step + 2 :])
    else:
      before = tuple(after[i] for i in np.argsort(step))
    shapes.insert(0, before)
  return shapes


def _value(
  source: str, line: Line, tensor: Tensor | None, variable: Any
) -> np.ndarray:
  """Reads the value of a variable."""
  shape = tuple(variable.shape)
  dtype = variable.dtype.as_numpy_dtype
  if tensor is None:
    return np.zeros(shape, dtype)
  with errors.of_input(about=f"{source}: cannot read {tensor.name}: "):
    value = tensor.read()
  if value.dtype.name not in _FLOATS and value.dtype != dtype:
    raise errors.ExportError(
      f"{source} has {value.dtype.name} in {tensor.name}. Quantized weights are"
      " not read: take those that they were made of."
    )
  k, n = line.part
  if n > 1:
    value = np.split(value, n)[k]
  for step, after in zip(
    line.steps, _shapes(line.steps, shape)[1:], strict=True
  ):
    if isinstance(step, int):
      value = value.reshape(after)
    else:
      value = value.transpose(step)
  with np.errstate(over="ignore"):  # Such as 1e300 in float64.
    value = value.astype(dtype, copy=False)
  if value.dtype.kind == "f" and not np.isfinite(value).all():
    raise errors.ExportError(
      f"{source} has values of {tensor.name} that are not finite (NaN or"
      f" infinite) in {value.dtype.name}: the training has diverged. Take an"
      " earlier checkpoint."
    )
  return value


def _record(line: Line, tensor: Tensor | None, value: np.ndarray) -> Record:
  if tensor is None:
    return Record(line.ours, "", "zeros", value.shape)
  k, n = line.part
  through = [f"part {k + 1} of {n}"] if n > 1 else []
  for step in line.steps:
    is_split = isinstance(step, int)
    through.append(f"split axis {step}" if is_split else f"transpose {step}")
  return Record(
    line.ours, tensor.name, ", ".join(through) or "as it is", value.shape
  )


def _of_file(path: str) -> dict[str, Tensor]:
  """Returns the tensors of one file. They are not mapped into memory."""
  if not os.path.isfile(path):
    raise errors.ExportError(f"There is no file {path}.")
  formats.check_content(path)

  def opened() -> Any:
    return safetensors.safe_open(path, "numpy", backend="pread")

  def read(name: str) -> np.ndarray:
    with opened() as f:
      return f.get_tensor(name)

  with (
    errors.of_input(about=f"{path} is not safetensors, or damaged: "),
    opened() as f,
  ):
    return {
      name: Tensor(
        name,
        tuple(f.get_slice(name).get_shape()),
        lambda name=name: read(name),
      )
      for name in f.keys()  # noqa: SIM118
    }


def _read_index(path: str) -> dict[str, str]:
  """Returns the file of each tensor, from the index of shards."""
  with errors.of_content(path):
    file_of = formats.read_json(path)["weight_map"]
    for name in set(file_of.values()):
      if os.path.basename(name) != name or not name.endswith(".safetensors"):
        raise ValueError(
          f"it names {name[:80]!r}, which is no file of safetensors beside it"
        )
  return file_of
