"""Restores checkpoints, and says what does not match before it restores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import fnmatch
import glob
import hashlib
import os
from typing import Any

import tensorflow as tf

from exporters.reusable import errors
from exporters.reusable.private_api import trackable_object_graph_pb2

Graph = trackable_object_graph_pb2.TrackableObjectGraph

_MOST_PROBLEMS = 6  # That an error names.
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
  """Makes variables without computing initial values.

  For a model that is about to be restored: those of BERT-base take longer to
  draw than to read, and as much memory.
  """

  def creator(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> Any:
    shape = kwargs.get("shape")
    if shape is not None and callable(kwargs["initial_value"]):
      shape = tf.TensorShape(shape)
      dtype = kwargs["dtype"]
      kwargs["initial_value"] = lambda: tf.raw_ops.Empty(
        shape=shape.as_list(), dtype=dtype
      )
    return next_creator(**kwargs)

  with tf.variable_creator_scope(creator):
    yield


def restore(
  checkpoint_path: str,
  roots: Sequence[Any],
  *,
  left_out: Sequence[str] = (),
  optional: Sequence[tf.Variable] = (),
  weights: str | None = None,
) -> list[tf.Variable]:
  """Restores a checkpoint that must match, both ways.

  Args:
    checkpoint_path: The prefix of the checkpoint's files, or a directory, of
      which the newest checkpoint is taken.
    roots: What to restore, in each structure that the saved object may have
      had: `tf.train.Checkpoint`, or a model of which Keras has saved the
      weights. The first one that matches is restored.
    left_out: Paths of objects in the checkpoint, such as `model/optimizer`,
      that `roots` may lack. A `*` in a name stands for any characters.
    optional: Variables that the checkpoint may lack.
    weights: `raw`; `average`, the moving averages that Model Garden's optimizer
      `ExponentialMovingAverage` keeps of variables, of those that have one; or
      None: refuse a checkpoint that leaves the choice.

  Returns:
    Those of `optional` that it does lack; they keep their values.

  Raises:
    ExportError: There is no checkpoint, a variable has no value in it or one of
      another shape, it has values that neither `roots` nor `left_out` name, or
      the wanted averages are not in it.
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
    matches = [
      _match(root, graph, shapes, left_out, optional) for root in roots
    ]
    problems, lacking, matched, root = min(
      zip(*zip(*matches, strict=True), roots, strict=True),
      key=lambda match: len(match[0]),
    )
    if problems:
      more = len(problems) - _MOST_PROBLEMS
      names = "=…, ".join(tf.train.TrackableView(root).children(root))
      form = (
        f"tf.train.Checkpoint({names}=…)"
        if isinstance(root, tf.train.Checkpoint)
        else "weights that Keras has saved"
      )
      raise errors.ExportError(
        f"Checkpoint {prefix}, as {form}, does not match"
        f" the model: it {'; it '.join(problems[:_MOST_PROBLEMS])}"
        f"{f'; and {more} more' if more > 0 else ''}."
      )
    average_nodes = _average_nodes(graph)
    if weights == "average" and not average_nodes:
      raise errors.ExportError(
        f"Checkpoint {prefix} has no moving averages, only the raw weights."
      )
    if weights is None and average_nodes:
      raise errors.ExportError(
        f"Checkpoint {prefix} has the raw weights and moving averages of them:"
        " say which to export, --weights=raw or --weights=average."
      )
    if not isinstance(root, tf.train.Checkpoint):
      root = tf.train.Checkpoint(root=root)
    status = root.read(prefix).expect_partial()
    if weights == "average":
      for variable, node_id in matched:
        for key in _keys(graph, average_nodes.get(node_id)):
          variable.assign(reader.get_tensor(key))
  except tf.errors.OpError as e:
    raise errors.ExportError(f"Cannot read {prefix}: {e.message}.") from e
  if not lacking:
    status.assert_existing_objects_matched()
  return lacking


def sha256(checkpoint_path: str) -> str:
  """Hashes the contents of a checkpoint's files.

  Args:
    checkpoint_path: As for `restore`; or a file of weights.

  Raises:
    ExportError: There is no checkpoint.
  """
  contents = hashlib.sha256()
  if checkpoint_path.endswith((".h5", ".hdf5")):
    paths = [checkpoint_path]
  else:
    prefix = _prefix(checkpoint_path)
    data = sorted(tf.io.gfile.glob(f"{glob.escape(prefix)}.data-*"))
    paths = [f"{prefix}.index", *data]
  for path in paths:
    with tf.io.gfile.GFile(path, "rb") as f:
      while block := f.read(2**24):
        contents.update(block)
  return contents.hexdigest()


def _prefix(checkpoint_path: str) -> str:
  checkpoint_path = checkpoint_path.removesuffix(".index")
  if tf.io.gfile.isdir(checkpoint_path):
    return _newest(checkpoint_path)
  if not tf.io.gfile.exists(checkpoint_path + ".index"):
    raise errors.ExportError(
      f"There is no checkpoint {checkpoint_path}: {checkpoint_path}.index does"
      " not exist."
    )
  return checkpoint_path


def _newest(directory: str) -> str:
  """Finds the checkpoint that the file `checkpoint` names, or the only one."""
  state = tf.train.get_checkpoint_state(directory)
  if state and state.model_checkpoint_path:
    # It may hold an absolute path, from before the directory was moved.
    name = os.path.basename(state.model_checkpoint_path)
    for prefix in (state.model_checkpoint_path, os.path.join(directory, name)):
      if tf.io.gfile.exists(prefix + ".index"):
        return prefix
    raise errors.ExportError(
      f"The file `checkpoint` in {directory} names {name}, which is not there."
    )
  found = sorted(tf.io.gfile.glob(os.path.join(directory, "*.index")))
  if len(found) == 1:
    return found[0].removesuffix(".index")
  names = ", ".join(os.path.basename(f).removesuffix(".index") for f in found)
  raise errors.ExportError(
    f"{directory} has {names} in it, and no file `checkpoint` that says which"
    " is the newest. Say which one."
    if found
    else f"{directory} has no checkpoint in it."
  )


def _match(
  root: tf.train.Checkpoint,
  graph: Graph,
  shapes: Mapping[str, Sequence[int]],
  left_out: Sequence[str],
  optional: Sequence[tf.Variable],
) -> tuple[list[str], list[tf.Variable], list[tuple[tf.Variable, int]]]:
  """Walks the live objects and the saved ones along the same names.

  Returns:
    What does not match, in words; the variables that the checkpoint lacks and
    may lack; and those that match, with the saved nodes.
  """
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
  lacking = []
  matching = []
  may_lack = {v.ref() for v in optional}
  for variable in view.descendants():
    if isinstance(variable, tf.Variable):
      keys = list(_keys(graph, matched.get(id(variable))))
      if not keys and variable.ref() in may_lack:
        lacking.append(variable)
      elif not keys:
        problems.append(f"has no value for {variable.name} {variable.shape}")
      elif shapes[keys[0]] != variable.shape:
        problems.append(
          f"has {tuple(shapes[keys[0]])} for {variable.name} {variable.shape}"
        )
      else:
        matching.append((variable, matched[id(variable)]))
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
  return problems, lacking, matching


def _average_nodes(graph: Graph) -> dict[int, int]:
  """Finds, for nodes of variables, the nodes of their moving averages."""
  return {
    slot.original_variable_node_id: slot.slot_variable_node_id
    for node in graph.nodes
    for slot in node.slot_variables
    if slot.slot_name == "average"
  }


def _children(graph: Graph, node_id: int) -> dict[str, int]:
  return {c.local_name: c.node_id for c in graph.nodes[node_id].children}


def _keys(graph: Graph, node_id: int | None) -> Iterator[str]:
  """Yields the checkpoint's keys of a node; none for an unmatched object."""
  if node_id is not None:
    for attribute in graph.nodes[node_id].attributes:
      yield attribute.checkpoint_key


def _below(graph: Graph, path: str) -> set[int]:
  """Returns the saved nodes at a path, all below them, and their slots."""
  waiting = [0]
  for pattern in path.split("/"):
    waiting = [
      child
      for node_id in waiting
      for name, child in _children(graph, node_id).items()
      if fnmatch.fnmatchcase(name, pattern)
    ]
  found: set[int] = set()
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
