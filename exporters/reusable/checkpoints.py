"""Restores a checkpoint that matches a model, or reports how it differs."""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import contextlib
import fnmatch
import functools
import glob
import hashlib
import os
from typing import Any

import tensorflow as tf
import tf_keras

from distribution import formats
from exporters.reusable import errors
from exporters.reusable import weight_tables
from exporters.reusable.private_api import trackable_object_graph_pb2

Graph = trackable_object_graph_pb2.TrackableObjectGraph

_MOST_PROBLEMS = 6  # The most problems or layers that a message lists.
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
  """Creates variables without computing their initial values.

  Use it for models that are restored next. Drawing the initial values of
  BERT-base takes longer than reading its checkpoint, and as much memory.
  """

  def creator(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> Any:
    shape, dtype = kwargs.get("shape"), kwargs.get("dtype")
    if shape is not None and callable(kwargs["initial_value"]):
      kwargs["initial_value"] = lambda: tf.raw_ops.Empty(
        shape=tf.TensorShape(shape).as_list(), dtype=dtype
      )
    return next_creator(**kwargs)

  with tf.variable_creator_scope(creator):
    yield


def restore(
  checkpoint_path: str,
  roots: Sequence[Any],
  *,
  parts: Sequence[tf.train.Checkpoint] = (),
  left_out: Sequence[str] = (),
  optional: Sequence[tf.Variable] = (),
  weights: str | None = None,
) -> list[tf.Variable]:
  """Restores a checkpoint that has the variables of a model, and no others.

  Args:
    checkpoint_path: The prefix of the checkpoint's files; a directory, whose
      newest checkpoint is restored; or a SavedModel, whose variables are
      matched by name with those of the first of `roots`.
    roots: The object to restore, in each structure in which it may have been
      saved: a `tf.train.Checkpoint`, or a model whose weights Keras saved. The
      first structure that matches is restored.
    parts: Structures of a part of the checkpoint, tried after `roots`. Objects
      outside the part, such as heads of other tasks, are not restored; their
      names are printed.
    left_out: Paths of objects in the checkpoint, such as `model/optimizer`,
      that `roots` may lack. A `*` in a name matches any characters.
    optional: Variables that the checkpoint may lack.
    weights: `raw`; `average`, to restore the moving averages of Model Garden's
      optimizer `ExponentialMovingAverage` where there are any; or None, which
      refuses a checkpoint that has both.

  Returns:
    The `optional` variables that the checkpoint lacks. They keep their values.

  Raises:
    ExportError: There is no checkpoint; the checkpoint lacks a variable or the
      averages, or has a variable that neither the structures nor `left_out`
      have; a shape differs; or a restored value is not finite.
  """
  if _is_saved_model(checkpoint_path):
    return _restore_saved_model(checkpoint_path, roots[0], parts, optional)
  prefix = _prefix(checkpoint_path)
  with _reading(prefix):
    reader = _reader(prefix)
    graph = _graph(prefix, reader)
    shapes = reader.get_variable_to_shape_map()
  matches = [
    (*_match(root, graph, shapes, left_out, optional, is_part), root)
    for is_part, structures in ((False, roots), (True, parts))
    for root in structures
  ]
  problems, saved, root = min(matches, key=lambda match: len(match[0]))
  if problems:
    raise errors.ExportError(_mismatch(prefix, root, problems))
  averages = _wanted_averages(prefix, graph, weights)
  if any(root is part for part in parts):
    _print_left_out(prefix, graph, left_out, saved.values())
  if not isinstance(root, tf.train.Checkpoint):
    root = tf.train.Checkpoint(root=root)
  with _reading(prefix):
    status = root.read(prefix).expect_partial()
    for variable, node_id in saved.items():
      for key in _keys(graph, averages.get(node_id)):
        variable.deref().assign(reader.get_tensor(key))
  check_finite(prefix, [variable.deref() for variable in saved])
  weight_tables.sum_up(_restored(prefix, graph, saved, averages))
  lacking = [v for v in optional if v.ref() not in saved]
  if not lacking:
    status.assert_existing_objects_matched()
  return lacking


def by_name(checkpoint_path: str) -> dict[str, weight_tables.Tensor] | None:
  """Returns the tensors of a TF1 checkpoint, which has names and no objects.

  Returns:
    The tensors by their names; None if `restore` reads the checkpoint.
  """
  if _is_saved_model(checkpoint_path):
    return None
  prefix = _prefix(checkpoint_path)
  with _reading(prefix):
    reader = _reader(prefix)
    if reader.has_tensor(_GRAPH_KEY):
      return None
    shapes = reader.get_variable_to_shape_map()
  return {
    name: weight_tables.Tensor(
      name, tuple(shapes[name]), functools.partial(reader.get_tensor, name)
    )
    for name in sorted(shapes)
  }


def of_saved_model(saved_model_dir: str) -> dict[str, weight_tables.Tensor]:
  """Returns the variables of a SavedModel, by their names."""
  prefix = os.path.join(saved_model_dir, "variables", "variables")
  with _reading(prefix):
    reader = _reader(prefix)
    graph = _graph(prefix, reader)
    shapes = reader.get_variable_to_shape_map()
  tensors: dict[str, weight_tables.Tensor] = {}
  for node in graph.nodes:
    for attribute in node.attributes:
      name, key = attribute.full_name, attribute.checkpoint_key
      if name == "save_counter":
        continue
      if name in tensors:
        raise errors.ExportError(
          f"{saved_model_dir} has two variables named {name}, so names do not"
          " tell which is which."
        )
      tensors[name] = weight_tables.Tensor(
        name, tuple(shapes[key]), functools.partial(reader.get_tensor, key)
      )
  return tensors


def _restore_saved_model(
  path: str,
  root: Any,
  parts: Sequence[tf.train.Checkpoint],
  optional: Sequence[tf.Variable],
) -> list[tf.Variable]:
  """Restores the variables of a SavedModel, by name."""
  tensors = of_saved_model(path)
  objects = tf.train.TrackableView(root).descendants()
  with errors.of_input(ValueError, about=f"{path} cannot be matched: "):
    variables = weight_tables.by_name(
      x for x in objects if isinstance(x, tf.Variable)
    )
    may_lack = weight_tables.by_name(optional)
  # An attribute of text encoders, which is not a weight.
  left_out = {"do_lower_case": "attributes"}
  restored = weight_tables.restore(
    f"{path}, a SavedModel",
    tensors,
    [weight_tables.Line(name, name) for name in variables],
    variables,
    left_out=left_out | ({"*": "not exported"} if parts else {}),
    optional=[[name] for name in may_lack],
  )
  return [v for name, v in may_lack.items() if name in restored.lacking]


def _restored(
  prefix: str,
  graph: Graph,
  saved: Mapping[Any, int],
  averages: Mapping[int, int],
) -> weight_tables.Restored:
  """Describes which values were restored, and which were left out."""
  records, taken = [], set()
  for variable, node_id in saved.items():
    (key, *_) = _keys(graph, averages.get(node_id, node_id))
    taken.update(_keys(graph, node_id), [key])
    through = "moving average" if node_id in averages else "as it is"
    shape = tuple(variable.deref().shape)
    name = variable.deref().name.removesuffix(":0")
    records.append(weight_tables.Record(name, key, through, shape))
  kinds = {
    "*/.OPTIMIZER_SLOT/*average*": "averages",
    "*optimizer*": "optimizer",
    "*.OPTIMIZER_SLOT*": "optimizer",
    **dict.fromkeys(("save_counter*", "*global_step*"), "counters"),
    "*keras_api*": "metrics",
    "*": "heads",
  }
  left_out = {
    key: next(w for p, w in kinds.items() if fnmatch.fnmatchcase(key, p))
    for node_id in range(len(graph.nodes))
    for key in _keys(graph, node_id)
    if key not in taken
  }
  return weight_tables.Restored(
    f"{prefix}, a checkpoint of TensorFlow", records, left_out
  )


def names(checkpoint_path: str) -> list[str]:
  """Returns the names of the objects at the root of a checkpoint."""
  if _is_saved_model(checkpoint_path):
    return []
  prefix = _prefix(checkpoint_path)
  with _reading(prefix):
    return list(_children(_graph(prefix, _reader(prefix)), 0))


def check_finite(path: str, variables: Iterable[tf.Variable]) -> None:
  """Raises an ExportError if a variable has NaN or infinite values."""
  for variable in variables:
    is_float = variable.dtype.is_floating
    if is_float and not tf.reduce_all(tf.math.is_finite(variable)):
      raise errors.ExportError(
        f"Checkpoint {path} has values of {variable.name} that are not finite"
        " (NaN or infinite): the training has diverged. Take an earlier"
        " checkpoint."
      )


def _is_saved_model(path: str) -> bool:
  return os.path.isfile(os.path.join(path, "saved_model.pb"))


def _reading(prefix: str) -> contextlib.AbstractContextManager[None]:
  """Turns exceptions of damaged files into an ExportError."""
  about = f"Cannot read {prefix}, which may be truncated or damaged: "
  return errors.of_input(about=about)


def _files(prefix: str) -> list[str]:
  """Returns the files of a checkpoint, all of which must be regular files.

  TensorFlow's reader would wait for a pipe.
  """
  data = sorted(tf.io.gfile.glob(f"{glob.escape(prefix)}.data-*"))
  files = [f"{prefix}.index", *data]
  for path in files:
    with errors.of_content(path):
      formats.check_regular(path)
  return files


def _reader(prefix: str) -> Any:
  _files(prefix)
  return tf.train.load_checkpoint(prefix)


def _graph(prefix: str, reader: Any) -> Graph:
  """Reads the object graph of a checkpoint; drops attributes without a value.

  Raises:
    ValueError: The graph refers to objects that it lacks.
  """
  if not reader.has_tensor(_GRAPH_KEY):
    raise errors.ExportError(
      f"{prefix} is a checkpoint of TensorFlow 1, which this program does not"
      " read: it has names of variables, and no objects."
    )
  graph = Graph.FromString(reader.get_tensor(_GRAPH_KEY))
  objects = {0}
  for node in graph.nodes:
    objects.update(child.node_id for child in node.children)
    for slot in node.slot_variables:
      objects |= {slot.original_variable_node_id, slot.slot_variable_node_id}
    for attribute in list(node.attributes):
      if not reader.has_tensor(attribute.checkpoint_key):
        node.attributes.remove(attribute)
  if not objects.issubset(range(len(graph.nodes))):
    raise ValueError("its objects refer to others that are not in it")
  return graph


def keras_weights(model: tf_keras.Model) -> tf.train.Checkpoint:
  """Returns the structure in which Keras saves the weights of a model.

  Keras also saves layers under `layer-0` and so on. These names are left out
  because they count layers without weights, in which the saved model may
  differ.
  """
  with_weights = [layer for layer in model.layers if layer.weights]
  return tf.train.Checkpoint(
    **{f"layer_with_weights-{i}": x for i, x in enumerate(with_weights)}
  )


def sha256(checkpoint_path: str) -> str:
  """Hashes the contents of a checkpoint's files.

  Args:
    checkpoint_path: As for `restore`; a weights file of Keras; or a directory
      with weights of another library.

  Raises:
    ExportError: There is no checkpoint.
  """
  contents = hashlib.sha256()
  if os.path.isfile(
    formats.checkpoint_prefix(checkpoint_path, takes_others=True)
  ):
    paths = [checkpoint_path]  # HDF5, or `.keras`.
  elif formats.described(checkpoint_path):
    directory = glob.escape(formats.hugging_face_dir(checkpoint_path))
    paths = sorted(
      path
      for end in ("config.json", ".safetensors", ".weights.h5")
      for path in glob.glob(f"{directory}/*{end}")
      if os.path.isfile(path)
    )
  elif _is_saved_model(checkpoint_path):
    paths = sorted(glob.glob(f"{glob.escape(checkpoint_path)}/variables/*"))
  else:
    paths = _files(_prefix(checkpoint_path))
  for path in paths:
    with tf.io.gfile.GFile(path, "rb") as f:
      while block := f.read(2**24):
        contents.update(block)
  return contents.hexdigest()


def _mismatch(prefix: str, root: Any, problems: Sequence[str]) -> str:
  more = len(problems) - _MOST_PROBLEMS
  names = "=…, ".join(tf.train.TrackableView(root).children(root))
  form = (
    f"tf.train.Checkpoint({names}=…)"
    if isinstance(root, tf.train.Checkpoint)
    else "weights that Keras has saved"
  )
  return (
    f"Checkpoint {prefix}, as {form}, does not match"
    f" the model: it {'; it '.join(problems[:_MOST_PROBLEMS])}"
    f"{f'; and {more} more' if more > 0 else ''}."
  )


def _wanted_averages(
  prefix: str, graph: Graph, weights: str | None
) -> dict[int, int]:
  """Maps nodes of variables to nodes of the averages to restore instead.

  The map is empty if the raw weights are to be restored.
  """
  averages = {
    slot.original_variable_node_id: slot.slot_variable_node_id
    for node in graph.nodes
    for slot in node.slot_variables
    if slot.slot_name == "average"
  }
  if weights == "average" and not averages:
    raise errors.ExportError(
      f"Checkpoint {prefix} has no moving averages, only the raw weights."
    )
  if weights is None and averages:
    raise errors.ExportError(
      f"Checkpoint {prefix} has the raw weights and moving averages of them:"
      " say which to export, --weights=raw or --weights=average."
    )
  return averages if weights == "average" else {}


def _prefix(checkpoint_path: str) -> str:
  """Returns a checkpoint's file prefix, given the prefix or a directory."""
  checkpoint_path = formats.checkpoint_prefix(checkpoint_path)
  if tf.io.gfile.isdir(checkpoint_path):
    return _newest(checkpoint_path)
  if not tf.io.gfile.exists(checkpoint_path + ".index"):
    raise errors.ExportError(
      f"There is no checkpoint {checkpoint_path}: {checkpoint_path}.index does"
      " not exist."
    )
  return checkpoint_path


def _newest(directory: str) -> str:
  """Returns the prefix that the file `checkpoint` names, or the only one."""
  state_file = os.path.join(directory, "checkpoint")
  if os.path.lexists(state_file):
    with errors.of_content(state_file):
      formats.read_file(state_file)  # TensorFlow would wait for a pipe.
  state = tf.train.get_checkpoint_state(directory)
  if state and state.model_checkpoint_path:
    # An absolute path may be outdated because the directory was moved.
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
    f"{directory} has {names} in it, and no file `checkpoint` that names the"
    " newest. Give the prefix of one."
    if found
    else f"{directory} has no checkpoint in it."
  )


def _match(
  root: Any,
  graph: Graph,
  shapes: Mapping[str, Sequence[int]],
  left_out: Sequence[str],
  optional: Sequence[tf.Variable],
  is_part: bool,
) -> tuple[list[str], dict[Any, int]]:
  """Compares the live objects with the saved ones of the same names.

  If `is_part`, further objects in the checkpoint are ignored.

  Returns:
    The differences as texts, and the saved nodes by `ref()` of variables.
  """
  view = tf.train.TrackableView(root)
  matched: dict = {}  # From ids of live objects to saved nodes.
  of_objects = []  # Saved nodes of objects other than Checkpoints.
  waiting = [(root, 0)]
  while waiting:
    live, node_id = waiting.pop()
    if id(live) not in matched:
      matched[id(live)] = node_id
      if not isinstance(live, tf.train.Checkpoint):
        of_objects.append(node_id)
      saved = _children(graph, node_id)
      waiting += [
        (child, saved[name])
        for name, child in view.children(live).items()
        if name in saved
      ]

  problems, of_variables = [], {}
  may_lack = {v.ref() for v in optional}
  for variable in view.descendants():
    if isinstance(variable, tf.Variable):
      node_id = matched.get(id(variable))
      keys = _keys(graph, node_id)
      if keys and shapes[keys[0]] == variable.shape:
        of_variables[variable.ref()] = node_id
      elif keys:
        problems.append(
          f"has {tuple(shapes[keys[0]])} for {variable.name} {variable.shape}"
        )
      elif variable.ref() not in may_lack:
        problems.append(f"has no value for {variable.name} {variable.shape}")
  known = set(matched.values())
  for path in ("save_counter", *left_out):
    known |= _below(graph, _at(graph, path))
  compared = _below(graph, of_objects if is_part else [0])
  for node_id in sorted(compared - known):
    problems += [
      f"has {key.removesuffix('/.ATTRIBUTES/VARIABLE_VALUE')}"
      f" {tuple(shapes[key])}, which the model lacks"
      for key in _keys(graph, node_id)
    ]
  return problems, of_variables


def _print_left_out(
  prefix: str, graph: Graph, left_out: Sequence[str], saved: Collection[int]
) -> None:
  """Prints the layers of a checkpoint that are not restored."""
  known = set(saved)
  for path in ("save_counter", *left_out):
    known |= _below(graph, _at(graph, path))
  names = [
    _layer(attribute)
    for node_id, node in enumerate(graph.nodes)
    if node_id not in known
    for attribute in node.attributes
  ]
  names = list(dict.fromkeys(names))
  more = len(names) - _MOST_PROBLEMS
  if names:
    print(
      f"Left out of {prefix}, which has more than is exported:"
      f" {', '.join(names[:_MOST_PROBLEMS])}"
      f"{f', and {more} more' if more > 0 else ''}."
    )


def _layer(attribute: Any) -> str:
  """Returns the name of the part of a model that a saved variable belongs to.

  This is the name of the model's attribute or, where Keras numbers layers, the
  name of the layer.
  """
  path = attribute.checkpoint_key.partition("/.ATTRIBUTES")[0].split("/")[:-1]
  names = [name for name in path if name not in ("model", "_config_dict")]
  if names and not names[0].startswith("layer"):
    return names[0].removeprefix("_")
  return os.path.dirname(attribute.full_name) or attribute.checkpoint_key


def _children(graph: Graph, node_id: int) -> dict[str, int]:
  return {c.local_name: c.node_id for c in graph.nodes[node_id].children}


def _keys(graph: Graph, node_id: int | None) -> list[str]:
  """Returns the keys of a saved node's values; none if there is no node."""
  attributes = () if node_id is None else graph.nodes[node_id].attributes
  return [attribute.checkpoint_key for attribute in attributes]


def _at(graph: Graph, path: str) -> list[int]:
  """Returns the saved nodes at a path of names or patterns."""
  found = [0]
  for pattern in path.split("/"):
    found = [
      child
      for node_id in found
      for name, child in _children(graph, node_id).items()
      if fnmatch.fnmatchcase(name, pattern)
    ]
  return found


def _below(graph: Graph, node_ids: Iterable[int]) -> set[int]:
  """Returns saved nodes, their descendants, and the optimizer slots of all."""
  waiting = list(node_ids)
  found: set[int] = set()
  while waiting:
    node_id = waiting.pop()
    if node_id not in found:
      found.add(node_id)
      node = graph.nodes[node_id]
      waiting += [child.node_id for child in node.children]
      waiting += [slot.slot_variable_node_id for slot in node.slot_variables]
  return found
