"""The SavedModel under check, and what is derived from it."""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import math
import os
import re
from typing import Any

from google.protobuf import message
import tensorflow as tf

from exporters.conformance import kinds
from exporters.conformance import op_audit
from exporters.reusable import errors
from exporters.reusable import observation
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import saved_model_pb2

# Ops that draw random numbers.
RANDOM = re.compile(r"(Stateless)?(Random|TruncatedNormal|Multinomial)")
# The model card in a SavedModel.
CARD = "assets.extra/README.md"
# The report of the comparisons that this project's exporters make.
VERIFICATION = "assets.extra/verification.json"
# The default of an argument that has none.
NO_DEFAULT = inspect.Parameter.empty
_SENTENCES = ("It rains.", "A much longer sentence, with a comma!", "naïve", "")
_WORDS = ("the", "is", "naïve", ",", "")


@dataclasses.dataclass
class Subject:
  """A SavedModel under check.

  Attributes:
    directory: Its directory.
    graph: The MetaGraphDef in `saved_model.pb`.
    suspicious: What models do not need, as S1 says.
    model: The loaded object. None if it was not loaded.
    unloaded: Why it was not loaded, in words.
  """

  directory: str
  graph: meta_graph_pb2.MetaGraphDef
  suspicious: list[str]
  model: Any = None
  unloaded: str = ""

  @functools.cached_property
  def files(self) -> dict[str, int]:
    """The size of each file, by its path in the directory."""
    paths = [
      os.path.join(folder, name)
      for folder, _, names in os.walk(self.directory)
      for name in names
    ]
    return {
      os.path.relpath(path, self.directory): os.path.getsize(path)
      for path in sorted(paths)
    }

  def content(self, file: str) -> bytes:
    """Reads one of the files."""
    with open(os.path.join(self.directory, file), "rb") as f:
      return f.read()

  @property
  def card(self) -> str | None:
    """The text of `CARD`, without line breaks; None if there is none."""
    if CARD not in self.files:
      return None
    return " ".join(self.content(CARD).decode().split())

  def verified(self, kind: str) -> bool:
    """Tells whether its exporter compared this with the live model."""
    if VERIFICATION not in self.files:
      return False
    comparisons = json.loads(self.content(VERIFICATION)).get("comparisons", ())
    return any(c["kind"] == kind and c["passed"] for c in comparisons)

  @functools.cached_property
  def traces(self) -> list[Any]:
    """The concrete functions of the root's `__call__`."""
    return traces_of(self.model)

  @functools.cached_property
  def parameters(self) -> dict[str, Any]:
    """The arguments of `__call__` after the input, and their defaults."""
    _, *others = inspect.signature(self.model.__call__).parameters.values()
    return {parameter.name: parameter.default for parameter in others}

  @functools.cached_property
  def hyperparameters(self) -> dict[str, Any]:
    """The arguments that are scalar Tensors, and their defaults."""
    arguments: dict[str, Any] = {}
    for trace in self.traces:
      positional, named = trace.structured_input_signature
      arguments |= (
        dict(zip(self.parameters, positional[1:], strict=False)) | named
      )
    return {
      name: self.parameters.get(name, NO_DEFAULT)
      for name, value in arguments.items()
      if isinstance(value, tf.TensorSpec)
      and value.shape == []
      and value.dtype != tf.bool
    }

  @functools.cached_property
  def changed(self) -> dict[str, Any]:
    """Other values for the hyperparameters that have a default.

    The values of a string are unknown, so it keeps its default.
    """
    return {
      name: default
      if isinstance(default, str)
      else observation.changed(default)
      for name, default in self.hyperparameters.items()
      if default is not NO_DEFAULT
    }

  @functools.cached_property
  def spec(self) -> Any:
    """The input: a `tf.TensorSpec`, or a list or dict of them."""
    served = _specs(self.serving.inputs) if self.serving else {}
    if not self.traces:
      return _only(served) if self.serving else None
    # Of several forms, the one of the signature is the usual one.
    dtypes = {name: spec.dtype for name, spec in served.items()}
    for form in filter(lambda form: isinstance(form, Mapping), self.forms):
      if dtypes == {name: spec.dtype for name, spec in form.items()}:
        return form
    return self.forms[0]

  @functools.cached_property
  def forms(self) -> list[Any]:
    """The different input specs that `__call__` was traced with."""
    found: dict[str, Any] = {}
    for trace in self.traces:
      form = trace.structured_input_signature[0][0]
      found.setdefault(repr(form), form)
    return list(found.values())

  @functools.cached_property
  def output_spec(self) -> Any:
    """The outputs: a `tf.TensorSpec`, or a structure of them."""
    if self.traces:
      return self.traces[0].structured_outputs
    return _only(_specs(self.serving.outputs)) if self.serving else None

  @property
  def signatures(self) -> list[str]:
    """The names of the signatures, without TensorFlow's internal ones."""
    return [n for n in self.graph.signature_def if not n.startswith("__")]

  @property
  def serving(self) -> meta_graph_pb2.SignatureDef | None:
    """The signature `serving_default`."""
    return self.graph.signature_def.get("serving_default")

  @functools.cached_property
  def kind(self) -> kinds.Kind:
    """What it takes and returns, and which rules it must keep."""
    root = self.graph.object_graph_def.nodes[:1]
    attributes = [child.local_name for node in root for child in node.children]
    attributes += self.signatures
    names = self.serving.outputs if self.serving else ()
    return kinds.of(self.spec, self.output_spec, attributes, names)

  @property
  def takes_strings(self) -> bool:
    """Whether any input is of strings."""
    return any(x.dtype == tf.string for x in tf.nest.flatten(self.spec))

  @functools.cached_property
  def batch_norms(self) -> list[tf.Variable]:
    """The moving averages of batch normalization, by their names."""
    return [
      v
      for v in getattr(self.model, "variables", ())
      if re.search(r"moving_(mean|var)", v.name)
    ]

  @functools.cached_property
  def op_counts(self) -> dict[str, int]:
    """How often each op is in the graph, the most frequent first."""
    counts = collections.Counter(
      node.op for _, node in op_audit.nodes(self.graph.graph_def)
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

  @property
  def is_random(self) -> bool:
    """Whether a call has ops that draw random numbers."""
    return any(
      RANDOM.match(node.op)
      for trace in self.traces
      for _, node in op_audit.nodes(trace.graph.as_graph_def())
    )

  @functools.cached_property
  def steady(self) -> dict[str, Any] | None:
    """Arguments of a repeatable training call; None if none are found."""
    off = {
      name: 0.0
      for name, default in self.hyperparameters.items()
      if isinstance(default, float)
    }
    for arguments in (self.training, {**self.training, **off}):
      if not self.differ(arguments, arguments):
        return arguments
    return None

  @property
  def training(self) -> dict[str, Any]:
    """The arguments of a training call, without hyperparameters."""
    return {"training": True} if "training" in self.parameters else {}

  @contextlib.contextmanager
  def unchanged(self) -> Iterator[None]:
    """Restores the non-trainable variables on exit."""
    moving = [
      v for v in getattr(self.model, "variables", ()) if not v.trainable
    ]
    before = [v.numpy() for v in moving]
    try:
      yield
    finally:
      for variable, value in zip(moving, before, strict=True):
        variable.assign(value)

  def differ(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tells whether calls with these arguments differ, updates included."""
    return observation.differ(
      self.model, self.model, self.example(), first, second
    )

  def example(
    self, batch_size: int = 2, size: tuple[int, ...] = (), form: Any = None
  ) -> Any:
    """Makes an input.

    Args:
      batch_size: The batch size if it is unknown.
      size: The other unknown dimensions in their order. The last one is
        repeated.
      form: One of `forms`. None: `spec`.
    """
    size = size or self.kind.sizes

    def array(name: str, spec: Any) -> Any:
      if isinstance(spec, tf.RaggedTensorSpec):
        dense = array(name, tf.TensorSpec(spec.shape, spec.dtype))
        return tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank)
      free = itertools.chain(size, itertools.repeat(size[-1]))
      batch, *rest = spec.shape if spec.shape.rank else (batch_size,)
      shape = [
        batch_size if batch is None else batch,
        *(next(free) if d is None else d for d in rest),
      ]
      seed = [shape[0], 0]
      if spec.dtype == tf.string and self.kind.takes_pictures:
        return _pictures(shape[0])
      if spec.dtype == tf.string:
        texts = itertools.cycle(_SENTENCES if len(shape) == 1 else _WORDS)
        count = math.prod(shape)
        return tf.reshape(list(itertools.islice(texts, count)), shape)
      if spec.dtype.is_floating:
        return tf.cast(tf.random.stateless_uniform(shape, seed), spec.dtype)
      if spec.dtype.is_integer:
        # The vocabulary size is unknown, so ids stay small. In a list, one of
        # several may be the types of tokens, of which BERT has two.
        ends = {"input_mask": 2, "input_type_ids": 1, "masked_lm_positions": 8}
        end = ends.get(name, most)
        values = tf.random.stateless_uniform(
          shape, seed, min(end - 1, 1), end, tf.int32
        )
        return tf.cast(values, spec.dtype)
      return tf.zeros(shape, spec.dtype)

    form = self.spec if form is None else form
    if isinstance(form, Mapping):
      most = 10
      return {name: array(name, spec) for name, spec in form.items()}
    ids = [spec for spec in tf.nest.flatten(form) if spec.dtype.is_integer]
    most = 2 if len(ids) > 1 else 10
    return tf.nest.map_structure(
      lambda spec: array(getattr(spec, "name", ""), spec), form
    )


def _pictures(count: int) -> tf.Tensor:
  """Makes different pictures in PNG, strings `[count]`."""
  shape, seed = [count, 24, 32, 3], [count, 0]
  pixels = tf.random.stateless_uniform(shape, seed, 0, 256, tf.int32)
  return tf.stack([tf.io.encode_png(x) for x in tf.cast(pixels, tf.uint8)])


def load(directory: str, trust: bool) -> Subject:
  """Loads a SavedModel unless it is suspicious and not trusted.

  Args:
    directory: The directory, of strangers' models a private copy.
    trust: Whether to load it even if it is suspicious.

  Raises:
    ExportError: The directory has no SavedModel, or it cannot be read or
      loaded.
  """
  subject = read(directory)
  load_into(subject, trust)
  return subject


def requested(request: Mapping[str, Any]) -> Subject:
  """Reads the SavedModel that a request of `copying.started` is about."""
  subject = read(request["directory"])
  subject.suspicious[:0] = request["problems"]
  return subject


def load_into(subject: Subject, trust: bool) -> None:
  """Loads the SavedModel that `read` has read, as `load` does."""
  if subject.suspicious and not trust:
    subject.unloaded = "it was not loaded because it is suspicious (S1)"
  elif not subject.unloaded:
    try:
      subject.model = observation.load(subject.directory)
    except Exception as e:  # A stranger's file may raise anything.
      raise errors.ExportError(
        f"{subject.directory} cannot be loaded: {first_line(e)}"
      ) from e
  try:
    _ = subject.kind
  except Exception as e:
    raise errors.ExportError(
      f"{subject.directory} has inputs or outputs that cannot be understood:"
      f" {first_line(e)}"
    ) from e


def read(directory: str) -> Subject:
  """Reads and audits a SavedModel without running any of it.

  Raises:
    ExportError: The directory has no SavedModel, or it cannot be read.
  """
  path = os.path.join(directory, "saved_model.pb")
  problem = None
  if not tf.io.gfile.exists(directory):
    problem = " does not exist."
  elif not tf.io.gfile.isdir(directory):
    problem = " is a file. Pass the directory that has saved_model.pb."
  elif not tf.io.gfile.exists(path):
    problem = (
      " has no saved_model.pb. It is not a SavedModel, or its export was"
      " interrupted."
    )
  if problem:
    raise errors.ExportError(f"{directory}{problem}")
  with tf.io.gfile.GFile(path, "rb") as f:
    content = f.read()
  try:
    graphs = saved_model_pb2.SavedModel.FromString(content).meta_graphs
  except message.DecodeError as e:
    raise errors.ExportError(
      f"{path} cannot be read: it is truncated or damaged. Export it again."
    ) from e
  if not graphs:
    raise errors.ExportError(f"{path} is empty. Export it again.")
  subject = Subject(directory, graphs[0], [])
  subject.suspicious += op_audit.suspicious(graphs, subject.files)
  keras = "keras_metadata.pb"
  if keras in subject.files and op_audit.runs_python(subject.content(keras)):
    subject.suspicious.append(f"{keras} has Python code, which Keras would run")
  if len(graphs) == 1 and not graphs[0].HasField("object_graph_def"):
    subject.unloaded = "it was saved with TensorFlow 1: a graph without objects"
  return subject


def traces_of(loaded: Any) -> list[Any]:
  """Returns the concrete functions of an object's `__call__`."""
  # Not callable(): every loaded object has the class attribute.
  call = getattr(loaded, "__call__", None)  # noqa: B004
  return list(getattr(call, "concrete_functions", ()))


def kind_of(sub_object: Any) -> kinds.Kind:
  """Returns the kind of a callable object in a SavedModel."""
  trace = traces_of(sub_object)[0]
  taken = next(iter(trace.structured_input_signature[0]), None)
  attributes = tf.train.TrackableView.children(sub_object)
  return kinds.of(taken, trace.structured_outputs, attributes)


def first_line(error: Exception) -> str:
  """Returns the first line of an error message."""
  lines = [line.strip() for line in str(error).splitlines()]
  return next(filter(None, lines), type(error).__name__)


def _specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
  return {
    name: tf.TensorSpec(
      tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype), name
    )
    for name, info in tensors.items()
  }


def _only(specs: dict[str, tf.TensorSpec]) -> Any:
  return next(iter(specs.values())) if len(specs) == 1 else specs
