"""Restores checkpoints, and says what does not match before it restores."""

from collections.abc import Iterator, Mapping, Sequence
import glob
import hashlib

import tensorflow as tf

# Not part of the documented API, which tells of a checkpoint no more than the
# shortest path to each value. One variable may have several: a layer is an
# attribute and also one of its model's layers.
from tensorflow.core.protobuf import trackable_object_graph_pb2

from exporters.reusable import errors

Graph = trackable_object_graph_pb2.TrackableObjectGraph

_MOST_PROBLEMS = 6  # That an error names.
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


def restore(
  checkpoint_path: str,
  root: tf.train.Checkpoint,
  *,
  left_out: Sequence[str] = (),
) -> None:
  """Restores a checkpoint that must match, both ways.

  Args:
    checkpoint_path: The prefix of the checkpoint's files, or a directory, of
      which the newest checkpoint is taken.
    root: What to restore, in the structure of the object that was saved.
    left_out: Paths of objects in the checkpoint, such as `model/optimizer`,
      that `root` may lack.

  Raises:
    ExportError: There is no checkpoint, a variable has no value in it or one of
      another shape, or it has values that neither `root` nor `left_out` names.
  """
  prefix = _prefix(checkpoint_path)
  try:
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    if _GRAPH_KEY not in shapes:
      raise errors.ExportError(
        f"{prefix} was not written by tf.train.Checkpoint; TF1 checkpoints"
        " must be converted first."
      )
    graph = Graph.FromString(reader.get_tensor(_GRAPH_KEY))
    _check_match(prefix, root, graph, shapes, left_out)
    status = root.read(prefix)
  except tf.errors.OpError as e:
    raise errors.ExportError(f"Cannot read {prefix}: {e.message}.") from e
  status.expect_partial().assert_existing_objects_matched()


def sha256(checkpoint_path: str) -> str:
  """Hashes the contents of a checkpoint's files.

  Args:
    checkpoint_path: As for `restore`.

  Raises:
    ExportError: There is no checkpoint.
  """
  prefix = _prefix(checkpoint_path)
  contents = hashlib.sha256()
  data = sorted(tf.io.gfile.glob(f"{glob.escape(prefix)}.data-*"))
  for path in [f"{prefix}.index", *data]:
    with tf.io.gfile.GFile(path, "rb") as f:
      while block := f.read(2**24):
        contents.update(block)
  return contents.hexdigest()


def _prefix(checkpoint_path: str) -> str:
  checkpoint_path = checkpoint_path.removesuffix(".index")
  if tf.io.gfile.isdir(checkpoint_path):
    newest = tf.train.latest_checkpoint(checkpoint_path)
    if newest is None:
      raise errors.ExportError(
        f"{checkpoint_path} has no checkpoint in it (no file `checkpoint` that"
        " names one)."
      )
    return newest
  if not tf.io.gfile.exists(checkpoint_path + ".index"):
    raise errors.ExportError(
      f"There is no checkpoint {checkpoint_path}: {checkpoint_path}.index does"
      " not exist."
    )
  return checkpoint_path


def _check_match(
  prefix: str,
  root: tf.train.Checkpoint,
  graph: Graph,
  shapes: Mapping[str, Sequence[int]],
  left_out: Sequence[str],
) -> None:
  """Walks the live objects and the saved ones along the same names."""
  view = tf.train.TrackableView(root)
  matched: dict = {}  # From ids of live objects to saved nodes.
  waiting = [(root, 0)]
  while waiting:
    live, node_id = waiting.pop()
    if id(live) not in matched:
      matched[id(live)] = node_id
      saved = _children(graph, node_id)
      waiting += [
        (child, saved[name])
        for name, child in view.children(live).items()
        if name in saved
      ]

  problems = []
  for variable in view.descendants():
    if isinstance(variable, tf.Variable):
      keys = list(_keys(graph, matched.get(id(variable))))
      if not keys:
        problems.append(f"has no value for {variable.name} {variable.shape}")
      elif shapes[keys[0]] != variable.shape:
        problems.append(
          f"has {tuple(shapes[keys[0]])} for {variable.name} {variable.shape}"
        )
  known = set(matched.values())
  for path in ("save_counter", *left_out):
    known |= _below(graph, path)
  for node_id in range(len(graph.nodes)):
    if node_id not in known:
      problems += [
        f"has {key.removesuffix('/.ATTRIBUTES/VARIABLE_VALUE')}"
        f" {tuple(shapes[key])}, which the model lacks"
        for key in _keys(graph, node_id)
      ]
  if problems:
    more = len(problems) - _MOST_PROBLEMS
    raise errors.ExportError(
      f"Checkpoint {prefix} does not match the model: it"
      f" {'; it '.join(problems[:_MOST_PROBLEMS])}"
      f"{f'; and {more} more' if more > 0 else ''}."
    )


def _children(graph: Graph, node_id: int) -> dict[str, int]:
  return {c.local_name: c.node_id for c in graph.nodes[node_id].children}


def _keys(graph: Graph, node_id: int | None) -> Iterator[str]:
  """Yields the checkpoint's keys of a node; none for an unmatched object."""
  if node_id is not None:
    for attribute in graph.nodes[node_id].attributes:
      yield attribute.checkpoint_key


def _below(graph: Graph, path: str) -> set[int]:
  """Returns the saved node at a path, all below it, and their slots."""
  node_id = 0
  for name in path.split("/"):
    children = _children(graph, node_id)
    if name not in children:
      return set()
    node_id = children[name]
  found: set[int] = set()
  waiting = [node_id]
  while waiting:
    node_id = waiting.pop()
    if node_id not in found:
      found.add(node_id)
      waiting += _children(graph, node_id).values()
      waiting += [
        slot.slot_variable_node_id
        for slot in graph.nodes[node_id].slot_variables
      ]
  return found
