"""The SavedModel under check, and properties derived from it."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
import numpy as np
import tensorflow as tf

from distribution import copies
from distribution import sandbox
from exporters.conformance import op_audit
from exporters.conformance import twin as twin_lib
from exporters.conformance import vocabulary
from exporters.reusable import comparison
from exporters.reusable import errors
from exporters.reusable import graphs
from exporters.reusable import kinds
from exporters.reusable import observation
from exporters.reusable.private_api import meta_graph_pb2
from exporters.reusable.private_api import saved_model_pb2

# Ops that draw random numbers.
RANDOM = re.compile(r"(Stateless)?(Random|TruncatedNormal|Multinomial)")
# Names of moving averages of batch normalization in several libraries.
_AVERAGE = re.compile("(moving|running|population|pop)_(mean|var)")
# Names of arguments that set noise. Those of `_KEEPS` set the share to keep.
_RATE = re.compile("rate|drop|noise|keep|surviv")
_KEEPS = re.compile("keep|surviv")
# The model card in a SavedModel.
CARD = "assets.extra/README.md"
# The machine-readable description that this project's exporters write.
MODEL = "assets.extra/model.json"
# The verification report that this project's exporters write.
VERIFICATION = "assets.extra/verification.json"
# Names of inputs that are 1 where there is no padding.
_MASK = re.compile("mask(?!ed)")
# Marks an argument without a default.
NO_DEFAULT = inspect.Parameter.empty
_SENTENCES = ("It rains.", "A much longer sentence, with a comma!", "naïve", "")
_WORDS = ("the", "is", "naïve", ",", "")
# Candidates in the search for a valid input: sizes of unknown dimensions (after
# those of the kind), exclusive upper bounds of ids, and kinds of strings.
_SIZES = (8, 16, 32, 64, 128, 224, 299, 331, 512, 1, 2, 3, 4, 5, 16_384)
_ENDS = (10, 6, 4, 3, 2, 1)
_STRINGS = ("texts", "pictures", "numbers")
_SHAPES = ([None], [None, None], [None, None, None], [None, None, None, 3])


# Parts of TensorFlow's error messages that do not name the cause.
_NO_CAUSE = re.compile(
  r"^Graph execution error:|^Detected at .*|^<stack .*|^Node: .*|^  +\S.*"
  r"|^\d+ root error.*|^\s*\(\d+\) [A-Z_]+: |\s*\[\[.*\]\]|\s*\[Op:.*"
  r"|\{\{function_node [^}]*\}\}\s*"
)
# Range of the constants near which inputs are tried.
_LARGE, _ENDLESS = 10.0, 1e12
# Most of these constants, and the size from which they are left out.
_MOST_OFFSETS, _TOO_MANY = 16, 4096
_LARGE_MODEL = 2**29  # Bytes of the graph and the variables.
_LONGEST = 10_000  # Characters of an error message.
_MATCHING = "Could not find matching concrete function"


class NoInputError(Exception):
  """No valid input of the model was found. The message is the reason."""


@dataclasses.dataclass
class Subject:
  """A SavedModel under check.

  Attributes:
    directory: Its directory.
    graph: The MetaGraphDef in `saved_model.pb`.
    suspicious: The ops and assets that break rule S1.
    loaded: The loaded object. None if it was not loaded.
    unloaded: Why the SavedModel was not loaded.
    attribute: The attribute of the root that is judged. Empty: the root.
  """

  directory: str
  graph: meta_graph_pb2.MetaGraphDef
  suspicious: list[str]
  loaded: Any = None
  unloaded: str = ""
  attribute: str = ""
  _found: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def model(self) -> Any:
    """The loaded object. Each access restarts the sandbox's limit of a call."""
    sandbox.renew()
    return self.loaded

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
    return " ".join(self.content(CARD).decode(errors="replace").split())

  @functools.cached_property
  def described(self) -> dict[str, Any]:
    """The content of `MODEL`; {} if that is not a JSON object."""
    try:
      return dict(json.loads(self.content(MODEL)))
    except (OSError, RecursionError, TypeError, ValueError):
      return {}

  @property
  def claims(self) -> list[str]:
    """The comparisons with the live model that passed, as the exporter says."""
    try:
      return [str(kind) for kind in self.described["verification"]["passed"]]
    except (KeyError, TypeError):
      return []  # The report is missing, or in another format.

  @functools.cached_property
  def traces(self) -> list[Any]:
    """The concrete functions of the root's `__call__`."""
    return traces_of(self.model)

  @functools.cached_property
  def parameters(self) -> dict[str, Any]:
    """The arguments of `__call__` after the input, and their defaults."""
    if not self.traces:
      return {}
    _, *others = inspect.signature(self.model.__call__).parameters.values()
    return {parameter.name: parameter.default for parameter in others}

  @functools.cached_property
  def hyperparameters(self) -> dict[str, Any]:
    """The arguments that are scalar Tensors, and their defaults."""
    # Some traces may have Python numbers instead.
    return {
      name: self.parameters.get(name, NO_DEFAULT)
      for trace in self.traces
      for name, value in self.arguments_of(trace).items()
      if isinstance(value, tf.TensorSpec)
      and value.shape == []
      and value.dtype != tf.bool
    }

  def arguments_of(self, trace: Any) -> dict[str, Any]:
    """Returns the arguments of a trace after the input."""
    positional, named = trace.structured_input_signature
    return dict(zip(self.parameters, positional[1:], strict=False)) | named

  @functools.cached_property
  def changed(self) -> dict[str, Any]:
    """Changed values for the hyperparameters that have a default.

    A string keeps its default, because its other values are unknown.
    """

    def changed(default: Any) -> Any:
      if isinstance(default, str):
        return default
      if isinstance(default, int):
        return default // 2 or 2
      return default / 2 or 0.5

    return {
      name: changed(default)
      for name, default in self.hyperparameters.items()
      if default is not NO_DEFAULT
    }

  @functools.cached_property
  def spec(self) -> Any:
    """The input: a `tf.TensorSpec`, or a list or dict of them."""
    served = specs(self.serving.inputs) if self.serving else {}
    if not self.traces:
      return _only(served) if self.serving else None
    # Of several forms, prefer the one that the signature has.
    dtypes = {name: spec.dtype for name, spec in served.items()}
    for form in filter(lambda form: isinstance(form, Mapping), self.forms):
      if dtypes == {k: getattr(x, "dtype", None) for k, x in form.items()}:
        return form
    return self.forms[0]

  @property
  def forms(self) -> list[Any]:
    """The different input specs that `__call__` was traced with."""
    return list(self._forms.values())

  @functools.cached_property
  def _forms(self) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for trace in self.traces:
      form = trace.structured_input_signature[0][0]
      found.setdefault(_unnamed(form), form)
    return found

  def form_of(self, trace: Any) -> Any:
    """Returns the one of `forms` that a trace takes."""
    return self._forms[_unnamed(trace.structured_input_signature[0][0])]

  @functools.cached_property
  def output_spec(self) -> Any:
    """The outputs: a `tf.TensorSpec`, or a structure of them."""
    if self.traces:
      return self.traces[0].structured_outputs
    return _only(specs(self.serving.outputs)) if self.serving else None

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
    """The kind, which determines the rules that apply."""
    root = self.graph.object_graph_def.nodes[:1]
    attributes = [child.local_name for node in root for child in node.children]
    attributes += self.signatures
    names = self.serving.outputs if self.serving else ()
    return kinds.of(self.spec, self.output_spec, attributes, names)

  @property
  def takes_strings(self) -> bool:
    """Whether any input has strings."""
    return any(x.dtype == tf.string for x in tf.nest.flatten(self.spec))

  @functools.cached_property
  def batch_norms(self) -> list[tf.Variable]:
    """The moving averages of batch normalization, found by their names."""
    return [v for v in self.variables if _AVERAGE.search(v.name)]

  @property
  def variables(self) -> list[tf.Variable]:
    """The variables that the model lists."""
    return variables_of(self.model)

  @property
  def trainable_variables(self) -> list[tf.Variable]:
    """The trainable variables that the model lists."""
    return variables_of(self.model, "trainable_variables")

  @functools.cached_property
  def resting(self) -> list[tf.Variable]:
    """The variables that are not trainable, listed or not, each once."""
    used = [v for trace in self.traces for v in trace.variables]
    every = {v.ref(): v for v in [*self.variables, *used]}
    return [v for v in every.values() if not v.trainable]

  def constants_of(
    self, variables: Iterable[tf.Variable], least_rank: int
  ) -> list[str]:
    """Names the variables whose values are constants of the graph.

    Leaves out variables of less than `least_rank` dimensions or of one value,
    because the graph may have such constants for other reasons.
    """
    values = {
      (v.shape, v.numpy().tobytes()): v.name
      for v in variables
      if (v.shape.rank or 0) >= least_rank and np.unique(v).size > 1
    }
    if not values:
      return []
    constants = (
      tf.make_ndarray(node.attr["value"].tensor)
      for node in self.nodes
      if node.op == "Const"
    )
    found = {(tf.TensorShape(x.shape), x.tobytes()) for x in constants}
    return [name for key, name in values.items() if key in found]

  @property
  def is_batched(self) -> bool:
    """Whether the first dimension is known to count examples.

    The only dimension of an input may be the length of a sound instead. Two
    dimensions that must be equal may be those of a matrix.
    """
    specs = [x for x in tf.nest.flatten(self.spec) if x.shape.rank != 0]
    with contextlib.suppress(NoInputError):
      if not self._fitting(repr(self.spec), self.spec)[1]:
        return False
    return (
      bool(specs)
      and all(x.shape.rank and x.shape[0] is None for x in specs)
      and any(x.shape.rank > 1 or x.dtype == tf.string for x in specs)
    )

  @functools.cached_property
  def probabilities(self) -> str:
    """The op that computes probabilities; empty if outputs are none."""
    spec, name = self.output_spec, ""
    if isinstance(spec, Mapping) and "logits" in spec:
      spec, name = spec["logits"], "logits"
    if not (
      isinstance(spec, tf.TensorSpec)
      and spec.dtype.is_floating
      and (spec.shape.rank or 0) > 1
    ):
      return ""
    outputs = self.model(self.example())
    outputs = np.asarray(outputs[name] if name else outputs, np.float32)
    trace = self.traces[0]
    # The outputs of a dict are in the order of their names.
    index = sorted(self.output_spec).index(name) if name else 0
    *_, (made, _) = graphs.origins(
      trace.graph.as_graph_def(), trace.outputs[index].name
    )
    is_softmax = (
      outputs.shape[-1] > 1
      and np.all(outputs >= 0)
      and np.allclose(outputs.sum(-1), 1, atol=1e-5)
    )
    # Outputs of the input's shape reconstruct the input, such as pixels.
    is_input = spec.shape.rank > 2 and spec.shape == getattr(
      self.spec, "shape", None
    )
    is_sigmoid = made.op == "Sigmoid" and not is_input
    return made.op if is_softmax or is_sigmoid else ""

  @functools.cached_property
  def nodes(self) -> list[Any]:
    """The nodes of the main graph and of all functions."""
    return [node for _, node in op_audit.nodes(self.graph.graph_def)]

  @functools.cached_property
  def words(self) -> list[str]:
    """Words in the vocabularies of the model."""
    return vocabulary.words(self.directory, self.files, self.nodes)

  @functools.cached_property
  def offsets(self) -> list[np.ndarray]:
    """Large constants and states: inputs, such as years, may be near them."""
    states = (v.numpy() for v in self.resting if v.dtype.is_floating)
    constants = (
      tf.make_ndarray(node.attr["value"].tensor)
      for node in self.nodes
      if node.op == "Const" and tf.as_dtype(node.attr["dtype"].type).is_floating
    )
    large = (
      np.float64(x)
      for x in itertools.chain(states, constants)
      if 0 < x.size < _TOO_MANY and _LARGE <= np.abs(x).max() < _ENDLESS
    )
    found = {x.tobytes(): x for x in large}
    return [*found.values()][:_MOST_OFFSETS]

  @functools.cached_property
  def op_counts(self) -> dict[str, int]:
    """How often each op is in the graph, the most frequent first."""
    counts = collections.Counter(node.op for node in self.nodes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

  @property
  def is_double(self) -> bool:
    """Whether an input or a trainable variable is float64, as in most twins."""
    used = tf.nest.flatten([self.spec, list(self.trainable_variables)])
    return any(x.dtype == tf.float64 for x in used)

  @property
  def is_half(self) -> bool:
    """Whether a call with `spec` computes in bfloat16 or float16."""
    half = {x.as_datatype_enum for x in (tf.bfloat16, tf.float16)}
    return any(
      value.type in half
      for trace in self.traces
      if self.form_of(trace) == self.spec
      for _, node in op_audit.nodes(trace.graph.as_graph_def())
      for value in node.attr.values()
    )

  def is_random(self, training: bool = True) -> bool:
    """Returns whether calls in this mode have random ops."""
    return any(
      RANDOM.match(node.op)
      for trace in self.traces
      if self.arguments_of(trace).get("training") is not (not training)
      for _, node in op_audit.nodes(trace.graph.as_graph_def())
    )

  @functools.cached_property
  def steady(self) -> dict[str, Any] | None:
    """Arguments that make training repeatable; None if there are none."""
    numbers = [n for n, v in self.hyperparameters.items() if type(v) is float]
    rates = [n for n in numbers if _RATE.search(n) or "prob" in n]
    for names in ((), rates, numbers):
      off = {n: float(bool(_KEEPS.search(n))) for n in names}
      arguments = {**self.training, **off}
      with self.unchanged():
        outputs = floats(self.model(self.example(), **arguments))
      # With 0, outputs may be NaN: a temperature is a divisor.
      if all(map(_is_finite, outputs)) and not self.varies(arguments):
        return arguments
    return None

  def part(self, name: str) -> "Subject":
    """Returns a sub-object as a subject; for names see `child_of`."""
    model = child_of(self.model, name)
    return Subject(self.directory, self.graph, [], model, attribute=name)

  @functools.cached_property
  def twin(self) -> "Subject | None":
    """The twin, see `twin.load`; None if it cannot be called, or is random.

    Large models have no twin in double precision, because its weights would
    need too much memory.
    """
    names = [v.name for v in self.trainable_variables]
    is_inexact = self.is_half or self.steady is None
    loaded = [n for f, n in self.files.items() if copies.LOADED.fullmatch(f)]
    is_large = sum(loaded) > _LARGE_MODEL
    for dtype in [tf.float64] * (not is_large) + [tf.float32] * is_inexact:
      try:
        graph, root = twin_lib.load(self.directory, self.files, dtype)
        model = child_of(root, self.attribute) if self.attribute else root
        twin = Subject(self.directory, graph, [], model)
        twin.example()
        if self.steady is not None:
          twin.steady = self.steady
        is_same = names == [v.name for v in twin.trainable_variables]
        if is_same and not twin.is_half and twin.steady is not None:
          return twin
      except Exception:  # Some ops have no kernel or shape in this dtype.
        continue
    return None

  @property
  def repeatable(self) -> "Subject | None":
    """This subject if its training is repeatable; otherwise the twin."""
    return self if self.steady is not None else self.twin

  @property
  def rates(self) -> list[str]:
    """The names of the arguments that set noise."""
    arguments = self.hyperparameters.items()
    return [n for n, v in arguments if type(v) is float and _RATE.search(n)]

  def noisy(self, rate: float) -> dict[str, float]:
    """Returns arguments that set the rate of all noise."""
    return {n: 1 - rate if _KEEPS.search(n) else rate for n in self.rates}

  @property
  def training(self) -> dict[str, Any]:
    """The arguments of a training call, without hyperparameters."""
    return {"training": True} if "training" in self.parameters else {}

  @contextlib.contextmanager
  def unchanged(self) -> Iterator[None]:
    """Restores the non-trainable variables on exit."""
    before = [v.numpy() for v in self.resting]
    try:
      yield
    finally:
      for variable, value in zip(self.resting, before, strict=True):
        if not np.array_equal(variable, value):
          variable.assign(value)

  def differ(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Returns whether outputs or updates of two calls differ."""
    return observation.differ(self, self.model, self.example(), first, second)

  def varies(self, arguments: Mapping[str, Any]) -> bool:
    """Returns whether repeated calls vary.

    Makes several calls, because some may agree: with stochastic depth, most
    draws keep all examples.
    """
    inputs = self.example(4)
    return any(
      observation.differ(self, self.model, inputs, arguments, arguments)
      for _ in range(12)
    )

  def example(
    self, batch_size: int = 2, size: tuple[int, ...] = (), form: Any = None
  ) -> Any:
    """Makes a valid input of the model.

    Args:
      batch_size: The size of an unknown batch dimension.
      size: The other unknown dimensions in their order. The last one is
        repeated. Empty: the first sizes for which a call succeeds.
      form: One of `forms`. None: `spec`.

    Raises:
      NoInputError: No input was found.
    """
    form = self.spec if form is None else form
    shape, sizes, *filling = self._fitting(repr(form), form)
    size = size or sizes or (batch_size,)
    return _filled(form, batch_size, shape, size, *filling, self.words)

  @property
  def strings(self) -> str:
    """The kind of strings it takes, one of `_STRINGS`; the first if unknown."""
    try:
      return self._fitting(repr(self.spec), self.spec)[-1]
    except NoInputError:
      return _STRINGS[0]

  def _fitting(self, key: str, form: Any) -> tuple[Any, ...]:
    """Returns arguments of `_filled` with which a call succeeds.

    If the returned sizes are empty, unknown dimensions equal the batch size.
    """
    if key in self._found:
      if isinstance(self._found[key], NoInputError):
        raise self._found[key]
      return self._found[key]
    specs = tf.nest.flatten(form)
    sizes = [self.kind.sizes, *((n,) for n in _SIZES)]
    strings = _STRINGS
    if self.kind.takes_pictures:
      strings = ("pictures",)
    usable, reason = None, ""
    with self.unchanged():
      for shape, texts, size, end in itertools.product(
        _SHAPES if any(x.shape.rank is None for x in specs) else [None],
        strings if any(x.dtype == tf.string for x in specs) else strings[:1],
        sizes
        if _is_sound(specs) or any(None in _free(x) for x in specs)
        else sizes[:1],
        _ENDS if any(x.dtype.is_integer for x in specs) else _ENDS[:1],
      ):
        filling = (shape, size, end, texts)
        try:
          outputs = ()
          if self.traces:
            outputs = self.model(_filled(form, 2, *filling, self.words))
          usable = usable or filling
          if all(map(_is_finite, tf.nest.flatten(outputs))):
            usable = filling
            break
        except Exception as e:  # A stranger's program may raise anything.
          reason = reason or cause(e)
      if usable and usable[1] == (2,) and self._is_square(form, *usable):
        usable = (usable[0], (), *usable[2:])
    self._found[key] = usable or NoInputError(
      f"no input was found that it takes: {reason}"
    )
    return self._fitting(key, form)

  def _is_square(self, form: Any, shape: Any, *filling: Any) -> bool:
    """Tells whether all unknown sizes must be equal, as for a square matrix."""
    works = []
    for size in (filling[0], (3,)):
      try:
        example = _filled(form, 3, shape, size, *filling[1:], self.words)
        self.model(example)
        works.append(True)
      except Exception:  # A stranger's program may raise anything.
        works.append(False)
    return works == [False, True]


def _is_finite(output: Any) -> bool:
  """Returns whether an output is no float, or has values but no NaN.

  An input that is too small may yield no values, or NaN as their mean.
  """
  is_float = tf.is_tensor(output) and output.dtype.is_floating
  return not is_float or not (
    np.size(output) == 0 or np.isnan(tf.cast(output, tf.float32)).any()
  )


def _is_sound(specs: Iterable[Any]) -> bool:
  """Returns whether the only dimension may be the length of a sound."""
  return all(x.shape.rank == 1 and x.dtype.is_floating for x in specs)


def _free(spec: Any) -> list[int | None]:
  """Returns the dimensions after the first; [None] for an unknown rank."""
  return [None] if spec.shape.rank is None else spec.shape.as_list()[1:]


def _filled(
  form: Any,
  batch_size: int,
  unranked: Sequence[int | None] | None,
  sizes: tuple[int, ...],
  end: int,
  texts: str,
  words: Sequence[str],
) -> Any:
  """Makes an input of random values.

  Args:
    form: The specs of the input.
    batch_size: The size of an unknown batch dimension.
    unranked: The shape of inputs of unknown rank.
    sizes: The other unknown dimensions in order. The last one is repeated.
    end: Exclusive upper bound of ids, because the vocabulary size is unknown.
    texts: The kind of strings, of `_STRINGS`.
    words: Words to build texts from.
  """

  def array(name: str, spec: Any) -> Any:
    free = itertools.chain(sizes, itertools.repeat(sizes[-1]))
    known = unranked if spec.shape.rank is None else spec.shape
    count = sizes[0] if is_sound else batch_size
    first, rest = known[:1], known[1:]
    shape = [count if d is None else d for d in first]
    shape += [next(free) if d is None else d for d in rest]
    if isinstance(spec, tf.RaggedTensorSpec):
      dense = array(name, tf.TensorSpec(shape, spec.dtype))
      x = tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank)
      # Half of the rows are shorter, the first one too.
      return tf.concat([x[::2, : -(-shape[1] // 2)], x[1::2]], 0)
    if isinstance(spec, tf.SparseTensorSpec):
      return tf.sparse.from_dense(array(name, tf.TensorSpec(shape, spec.dtype)))
    if spec.dtype == tf.string:
      return _strings(texts, shape, words)
    # Inputs of the same shape differ: a model may return their difference.
    seed = [shape[0] if shape else 0, next(leaves)]
    if spec.dtype.is_integer:
      # Each input of BERT has its own range of ids.
      ends = {"input_type_ids": 1, "masked_lm_positions": 8}
      is_mask = bool(_MASK.search(name))
      most = min(ends.get(name, end), 2 if several or is_mask else end)
      is_known = several or is_mask or name in ends
      least = int(most > 2 or (most > 1 and is_known))
      if is_mask and len(shape) == 2:  # A quarter is padding.
        used = tf.fill([shape[0]], shape[1] - shape[1] // 4)
        return tf.sequence_mask(used, shape[1], spec.dtype)
      values = tf.random.stateless_uniform(shape, seed, least, most, tf.int32)
      if values.shape.num_elements():  # Make sure that the largest id occurs.
        rest = tf.reshape(values, [-1])[1:]
        values = tf.reshape(tf.concat([[most - 1], rest], 0), shape)
      return tf.cast(values, spec.dtype)
    uniform = tf.random.stateless_uniform(shape, seed)
    if not spec.dtype.is_bool:
      return tf.cast(uniform, spec.dtype)
    # Masks have no row that is False throughout.
    is_kept = len(shape) > 1 and tf.range(shape[-1]) == 0
    return (uniform > 0.5) | is_kept

  is_sound = _is_sound(tf.nest.flatten(form))
  leaves = itertools.count()
  if isinstance(form, Mapping) and all(
    isinstance(x, tf.TypeSpec) for x in form.values()
  ):
    several = False
    return {name: array(name, spec) for name, spec in form.items()}
  # One input of a list may be the token types, of which BERT has only two.
  several = sum(x.dtype.is_integer for x in tf.nest.flatten(form)) > 1
  return tf.nest.map_structure(
    lambda spec: array(getattr(spec, "name", ""), spec), form
  )


def _strings(
  kind: str, shape: Sequence[int], words: Sequence[str]
) -> tf.Tensor:
  """Makes strings of a kind. Texts alternate with single words."""
  count = math.prod(shape)
  if kind == "pictures":
    return tf.reshape(_pictures(count), shape)
  if kind == "numbers":
    texts = ("1", "2", "3")
  elif len(shape) == 1 or shape[1:] == [1]:
    parts = [" ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    turns = zip(words, [*parts, *words[1:]], strict=False)
    texts = (*itertools.islice(itertools.chain(*turns), 8), *_SENTENCES)
  else:
    texts = (*words[:8], *_WORDS)
  return tf.reshape(
    list(itertools.islice(itertools.cycle(texts), count)), shape
  )


def _pictures(count: int) -> tf.Tensor:
  """Makes distinct pictures as PNG files, strings `[count]`."""
  shape, seed = [count, 24, 32, 3], [count, 0]
  pixels = tf.random.stateless_uniform(shape, seed, 0, 256, tf.int32)
  return tf.stack([tf.io.encode_png(x) for x in tf.cast(pixels, tf.uint8)])


def load(directory: str, trust: bool) -> Subject:
  """Loads a SavedModel unless it is suspicious and not trusted.

  Args:
    directory: The directory. Pass a private copy of an untrusted model.
    trust: Whether to load a suspicious SavedModel.

  Raises:
    ExportError: The directory has no SavedModel, or it cannot be read or
      loaded.
  """
  subject = read(directory)
  load_into(subject, trust)
  return subject


def requested(request: Mapping[str, Any]) -> Subject:
  """Reads the SavedModel that a request of `copying.started` names."""
  subject = read(request["directory"])
  subject.suspicious[:0] = request["problems"]
  return subject


def load_into(subject: Subject, trust: bool) -> None:
  """Loads the SavedModel of a subject from `read`, as `load` does."""
  if subject.suspicious and not trust:
    subject.unloaded = "it was not loaded because it is suspicious (S1)"
  elif not subject.unloaded:
    try:
      subject.loaded = observation.load(subject.directory)
    except Exception as e:  # A stranger's file may raise anything.
      raise errors.ExportError(
        f"{subject.directory} cannot be loaded: {cause(e)}"
      ) from e
  try:
    _ = subject.kind
  except Exception as e:
    raise errors.ExportError(
      f"{subject.directory} has inputs or outputs that cannot be understood:"
      f" {cause(e)}"
    ) from e


def read(directory: str) -> Subject:
  """Reads and audits a SavedModel without running any of its ops.

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
  # Not callable(), because every loaded object has the class attribute.
  call = getattr(loaded, "__call__", None)  # noqa: B004
  return list(getattr(call, "concrete_functions", ()))


def child_of(loaded: Any, name: str) -> Any:
  """Returns a sub-object by its name, such as `encoder` or `heads.0`."""
  for part in name.split("."):
    children = tf.train.TrackableView.children(loaded)
    loaded = children[part] if part in children else getattr(loaded, part)
  return loaded


def variables_of(loaded: Any, name: str = "variables") -> list[tf.Variable]:
  """Returns the variables in an attribute that lists variables.

  Other entries are dropped: Keras lists tables as None.
  """
  listed = getattr(loaded, name, ())
  is_list = isinstance(listed, Iterable)
  return [v for v in listed if hasattr(v, "ref")] if is_list else []


def kind_of(sub_object: Any) -> kinds.Kind:
  """Returns the kind of a callable object in a SavedModel."""
  trace = traces_of(sub_object)[0]
  taken = next(iter(trace.structured_input_signature[0]), None)
  attributes = tf.train.TrackableView.children(sub_object)
  return kinds.of(taken, trace.structured_outputs, attributes)


def rows(inputs: Any, *indices: int) -> Any:
  """Selects examples of a batch; leaves scalars unchanged."""
  chosen = tf.constant(indices, tf.int32, [len(indices)])

  def select(x: Any) -> Any:
    if isinstance(x, tf.SparseTensor):
      return tf.sparse.from_dense(select(tf.sparse.to_dense(x)))
    return tf.gather(x, chosen) if x.shape.rank else x

  return tf.nest.map_structure(select, inputs)


def scaled(inputs: Any, factor: float) -> Any:
  """Multiplies the floats of inputs; leaves other values unchanged."""
  return tf.nest.map_structure(
    lambda x: x * tf.cast(factor, x.dtype) if x.dtype.is_floating else x,
    inputs,
    expand_composites=True,
  )


def nudged(inputs: Any, units: int = 1) -> Any:
  """Changes the floats of inputs by some rounding errors of float32."""
  return scaled(inputs, 1 + units * 2.0**-22)


def scaled_rows(inputs: Any, factors: Any) -> Any:
  """Multiplies each row of the floats of inputs by a factor of its own.

  Leaves ragged and sparse inputs, and scalars, unchanged.
  """

  def multiplied(x: Any) -> Any:
    is_float = isinstance(x, tf.Tensor) and x.dtype.is_floating
    if not is_float or not x.shape.rank:
      return x
    return x * tf.cast(np.expand_dims(factors, [*range(1, x.ndim)]), x.dtype)

  return tf.nest.map_structure(multiplied, inputs)


def near(inputs: Any, offsets: Sequence[np.ndarray]) -> Iterator[Any]:
  """Yields inputs whose floats are near offsets, each row nearer than the last.

  Each Tensor of an input gets another offset: one value for each column if the
  sizes match, otherwise the largest value.
  """
  for i in range(len(offsets)):
    turns = itertools.cycle([*offsets[i:], *offsets[:i]])

    def moved(x: Any, turns: Iterator[np.ndarray] = turns) -> Any:
      is_float = isinstance(x, tf.Tensor) and x.dtype.is_floating
      if not is_float or not x.shape.rank:
        return x
      offset = next(turns)
      is_of_columns = x.shape[-1:] == offset.shape[-1:]
      offset = np.ravel(offset)
      offset = offset[-x.shape[-1] :] if is_of_columns else np.max(offset)
      shares = 0.1 ** np.arange(len(x))
      shares = np.expand_dims(shares, [*range(1, x.ndim)])
      return tf.cast(offset * (1.0 + (x - 0.5) * shares), x.dtype)

    yield tf.nest.map_structure(moved, inputs)


def floats(outputs: Any) -> list[tf.Tensor]:
  """Returns the float Tensors in outputs; a complex Tensor counts as two."""
  made = []
  for y in comparison.named(outputs).values():
    if tf.is_tensor(y) and y.dtype.is_complex:
      made += [tf.math.real(y), tf.math.imag(y)]
    elif tf.is_tensor(y) and y.dtype.is_floating:
      made.append(y)
  return made


def cause(error: BaseException) -> str:
  """Extracts the cause from an error message, as one line.

  TensorFlow's messages begin with the place of the error.
  """
  message = str(error)[:_LONGEST]  # The patterns take quadratic time.
  lines = [_NO_CAUSE.sub("", line) for line in message.splitlines()]
  text = next(filter(None, map(str.strip, lines)), type(error).__name__)
  return errors.one_line(error) if text.startswith(_MATCHING) else text


def specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
  """Returns the TensorSpecs of a signature's inputs or outputs."""
  return {
    name: tf.TensorSpec(
      tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype), name
    )
    for name, info in tensors.items()
  }


def _unnamed(form: Any) -> str:
  """Returns a key of a form without names of Tensors, which calls ignore."""

  def unnamed(x: Any) -> Any:
    return (
      tf.TensorSpec(x.shape, x.dtype) if isinstance(x, tf.TensorSpec) else x
    )

  return repr(tf.nest.map_structure(unnamed, form))


def _only(specs: dict[str, tf.TensorSpec]) -> Any:
  return next(iter(specs.values())) if len(specs) == 1 else specs
