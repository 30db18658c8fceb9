"""Freezing profiles: sub-objects of an export that train fewer variables.

A profile shares the call of the export. It selects variables by name, so this
module does not need TensorFlow.
"""

from collections.abc import Sequence
import re
from typing import Any

from distribution import errors

PROFILE = re.compile(r"last_[1-9]\d*|no_embeddings|batch_norm_frozen")
DESCRIPTIONS = {
  "last": "Trains the last {count} of {blocks} blocks, and what follows them.",
  "no_embeddings": "Trains all but the embeddings: all variables of layer_index"
  " 0 are frozen.",
  "batch_norm_frozen": "Trains all but gamma and beta of batch normalization."
  " Training still normalizes by the batch and updates the moving averages.",
}

# A residual block, a transformer layer or a coupling. ResNet blocks in
# `official.legacy` have names such as res2a_branch2b.
_BLOCK = re.compile(
  r"(?:.*?/)??(?:(?!conv2d)\w*block\w*|(?:\w+_)?(?:layer|coupling)_\d+"
  r"|reversible_layer)(?=/)|(?:res|bn)(\d[a-z])_branch"
)
_PLAIN = re.compile("bias|beta|gamma|moving_(mean|variance)")


def layer_indices(names: Sequence[str]) -> list[int]:
  """Returns the layer index of each variable of a model.

  The index is 0 before the first block, such as in embeddings, n in the nth
  block, and one more after the last block. In a model without blocks, a layer
  with weights and the normalization after it count as a block.

  Args:
    names: The names of all variables, in the order of the layers.
  """
  keys = [m and (m[1] or m[0]) for m in map(_BLOCK.match, names)]
  if not any(keys):
    return _indices_of_layers(names)
  found: dict[str | None, int] = {}
  indices = []
  for key in keys:
    if key:
      index = found.setdefault(key, len(found) + 1)
    indices.append(index if found else 0)
  last = max(i for i, key in enumerate(keys) if key)
  return indices[: last + 1] + [len(found) + 1] * (len(names) - last - 1)


def _indices_of_layers(names: Sequence[str]) -> list[int]:
  found: dict[str, int] = {}
  heads = [name.split("/")[0] for name in names]
  weights = [
    head
    for head, name in zip(heads, names, strict=True)
    if decays(name) and "embedding" not in head
  ]
  for head in weights:
    found.setdefault(head, len(found) + 1)
  indices, index = [], 0
  for head in heads:
    index = found.get(head, index)
    indices.append(index)
  return indices


def decays(name: str) -> bool:
  """Tells whether weight decay applies: not to biases and normalization."""
  return not _PLAIN.fullmatch(name.split("/")[-1].split(":")[0])


def describe(profile: str, names: Sequence[str]) -> str:
  """Describes what a profile trains in a model with these variables."""
  kind, _, count = profile.partition("_")
  if kind != "last":
    return DESCRIPTIONS[profile]
  return DESCRIPTIONS[kind].format(count=count, blocks=_blocks(names))


def _blocks(names: Sequence[str]) -> int:
  """Returns the number of blocks."""
  has_blocks = any(map(_BLOCK.match, names))
  last = layer_indices(names)[-1]
  return last - (has_blocks and not _BLOCK.match(names[-1]))


def trained(
  profile: str, variables: Sequence[Any], trainable: Sequence[Any]
) -> list[Any]:
  """Returns the variables that a profile trains.

  Args:
    profile: The name of the profile.
    variables: All variables of the model, in the order of the layers.
    trainable: The variables that the model trains.

  Raises:
    InputError: The model has fewer blocks, or the profile would freeze nothing
      or everything.
  """
  names = [v.name for v in variables]
  indices = layer_indices(names)
  if profile == "batch_norm_frozen":
    normalized = {
      re.sub("moving_.*", "", name) for name in names if "/moving_" in name
    }
    owners = [re.sub("(gamma|beta)(:0)?$", "", name) for name in names]
    kept = [owner not in normalized for owner in owners]
  elif profile == "no_embeddings":
    has_some = any(
      "embed" in name for name, i in zip(names, indices, strict=True) if not i
    )
    kept = [i > 0 for i in indices] if has_some else [True] * len(names)
  else:
    count, blocks = int(profile.removeprefix("last_")), _blocks(names)
    if count > blocks:
      raise errors.InputError(
        f"--freezing_profiles={profile}: the model has {blocks} blocks."
      )
    kept = [i > blocks - count for i in indices]
  chosen = {id(v) for v, keep in zip(variables, kept, strict=True) if keep}
  result = [v for v in trainable if id(v) in chosen]
  if len(result) in (0, len(trainable)):
    raise errors.InputError(
      f"--freezing_profiles={profile} would"
      f" {'freeze' if result else 'train'} nothing of this model. Leave it out."
    )
  return result
