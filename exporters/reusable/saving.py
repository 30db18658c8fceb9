"""Saves any callable model as a lean reusable SavedModel.

The interface is that of TensorFlow Hub's reusable SavedModels: a root object
with `__call__`, `variables`, `trainable_variables` and `regularization_losses`.
Lean means that it has one traced function for each mode, and no other parts of
the model.
"""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import math
import re
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import allowed_ops
from exporters.reusable import endpoints
from exporters.reusable import errors
from exporters.reusable import graphs
from exporters.reusable import hyperparameters as hyperparameters_lib
from exporters.reusable import layer_calls as layer_calls_lib
from exporters.reusable import observation
from exporters.reusable import private_api
from exporters.reusable import slimming
from exporters.reusable import xla

ConcreteFunction = tf.types.experimental.ConcreteFunction
Function = tf.types.experimental.PolymorphicFunction
Hyperparameter = hyperparameters_lib.Hyperparameter

_NAME = re.compile("[a-z0-9][a-z0-9_]*")
_OF_TABLES = re.compile("LookupTable(Insert|Remove|Import)")
_STATELESS = re.compile("Stateless(?!RandomGet).*(Random|Normal|Multinomial)")
# The dtypes that CheckNumerics takes.
_CHECKED = (tf.bfloat16, tf.float16, tf.float32, tf.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A model to export. `source` makes it, and documents the other attributes.

  Attributes:
    call: A Python function of the input and of the keyword arguments in
      `defaults`.
    defaults: The arguments that consumers may set, and their defaults.
    function: `call` as a tf.function, traced for `input_spec` in each mode.
    output_spec: Shapes and dtypes of the outputs, in inference.
    trains_as_model: Whether `trainable_variables` are those of the model.
    unread: For each mode, the variables that its trace does not read.
    masked: The positions of outputs whose Keras mask is not an output.
    called: The Keras layers that the traces have called, whatever object holds
      them.
    inactive: Names of hyperparameters that `hyperparameters.of_model` found and
      that have no effect.
    inference: `call` in inference, if its trace equals that of training. Only
      training is exported then.
  """

  model: Callable[..., Any]
  input_spec: Any
  call: Callable[..., Any]
  defaults: Mapping[str, Any]
  hyperparameters: Sequence[Hyperparameter]
  variables: Sequence[tf.Variable]
  trainable_variables: Sequence[tf.Variable]
  regularization_losses: Sequence[Callable[[], tf.Tensor]]
  layer_calls: layer_calls_lib.Replacements
  autograph: bool
  function: Function | None = None
  output_spec: Any = None
  trains_as_model: bool = False
  unread: Sequence[Sequence[tf.Variable]] = ()
  masked: set[int] = dataclasses.field(default_factory=set)
  called: list[tf_keras.layers.Layer] = dataclasses.field(default_factory=list)
  inactive: Sequence[str] = ()
  inference: Callable[..., Any] | None = None


def source(
  model: Callable[..., Any],
  input_spec: Any,
  *,
  hyperparameters: Sequence[Hyperparameter] = (),
  variables: Iterable[tf.Variable] | None = None,
  trainable_variables: Iterable[tf.Variable] | None = None,
  regularization_losses: Sequence[Callable[[], tf.Tensor]] | None = None,
  check: Callable[[Any], Any] | None = None,
  layer_calls: layer_calls_lib.Replacements | None = None,
  autograph: bool = True,
) -> Source:
  """Traces a model, and checks that it can be exported.

  Args:
    model: A Keras model or layer, a `tf.Module`, a `tf.train.Checkpoint` with
      `__call__`, or a function. It takes one input, `training` if it has modes,
      and the hyperparameters that no layers read. If `training` changes
      nothing, the export does not take it.
    input_spec: `tf.TensorSpec`, or a list or dict of them: shape and dtype of
      the input. Dynamic dimensions are `None`. The batch dimension comes first.
    hyperparameters: The values that consumers may tune.
    variables: All variables that `model` uses. Default: `model.variables`.
    trainable_variables: The variables that consumers train, possibly none.
      Default: those of `model`; for a function, the trainable `variables`.
    regularization_losses: Functions without arguments, each returning a float
      scalar. The export returns their sum. Default:
      `model.regularization_losses`, or else one loss for each weight
      regularizer of the Keras layers that `model` has or calls. For a function
      these are the layers that it names or calls, and only losses of
      `trainable_variables` count.
    check: A function that returns the input, with ops that fail if the model
      does not support the input.
    layer_calls: Replaces the `call` of layers in the trace, by class. Outputs
      and gradients must stay the same. Use it for layers that XLA recompiles at
      every step or cannot compile. Such layers of Keras are replaced by
      default.
    autograph: Whether AutoGraph rewrites the Python code of the model. Only
      Python control flow over Tensors needs it, and it takes time.

  Raises:
    ExportError: Variables are missing or not finite, an argument of the model
      is unknown, a hyperparameter or a trainable variable has no effect, or the
      model cannot be called.
  """
  if tf.config.functions_run_eagerly():
    raise errors.ExportError(
      "tf.config.run_functions_eagerly(True) is on, so that no function has a"
      " graph. Export without it."
    )
  input_spec = _checked(input_spec)
  _check_names(input_spec, hyperparameters)
  mode = {"training": False} if _has_training(model, hyperparameters) else {}
  if variables is None:
    with errors.of_input(ValueError):  # Keras' model may not be built.
      variables = getattr(model, "variables", ())
  # Keras lists the vocabularies of its lookup layers, too.
  variables = [v for v in variables if isinstance(v, tf.Variable)]
  if regularization_losses is None:
    regularization_losses = _listed_losses(model)
  trained = _trainable(model, variables, trainable_variables)

  def traced(tunable: Sequence[Hyperparameter]) -> Source:
    defaults = {**mode, **{h.name: h.default for h in tunable}}
    return _traced(
      Source(
        model=model,
        input_spec=input_spec,
        call=_caller(model, defaults, tunable, check),
        defaults=defaults,
        hyperparameters=tunable,
        variables=variables,
        trainable_variables=trained,
        regularization_losses=regularization_losses,
        layer_calls={**xla.REPLACEMENTS, **(layer_calls or {})},
        autograph=autograph,
        trains_as_model=trainable_variables is None
        and hasattr(model, "trainable_variables"),
      )
    )

  result = traced(hyperparameters)
  if inactive := result.inactive:
    active = [h for h in hyperparameters if h.name not in inactive]
    result = dataclasses.replace(traced(active), inactive=inactive)
  if regularization_losses is None:
    result = dataclasses.replace(
      result, regularization_losses=_losses_of_keras(result)
    )
  return result


def _listed_losses(model: Any) -> Sequence[Callable[[], tf.Tensor]] | None:
  """Returns the losses that a model lists, or None."""
  losses = getattr(model, "regularization_losses", None)
  if callable(losses):
    raise errors.ExportError(
      f"regularization_losses of {type(model).__name__} is a method; it must be"
      " a property or an attribute, a list of functions."
    )
  return losses


def reusable(
  model: Source, *, also_takes: Sequence[Any] = ()
) -> tf.train.Checkpoint:
  """Makes an object that `save` writes and consumers call.

  Before saving, further attributes may be set on it: other objects that this
  function makes, assets, variables.

  Args:
    model: The model.
    also_takes: Specs of other forms of the input. Their dtypes may differ, and
      are cast. A dict may be a list in the order of the dict's keys. A list may
      have another length.

  Returns:
    An object whose `__call__` takes the input and the arguments of the model,
    by the same names and with the same defaults. `regularization_losses` has
    one function, which returns the sum of the losses, or no function. The
    object also holds the tables of the model.

  Raises:
    ExportError: A regularization loss is not a finite float scalar, or layers
      were frozen after `source`.
  """
  if model.trains_as_model:
    trained, now = (
      {v.ref() for v in x.trainable_variables} for x in (model, model.model)
    )
    if trained != now:
      raise errors.ExportError(
        "The model has other trainable variables now than when saving.source"
        " was called. Freeze its layers before that."
      )
  for spec in also_takes:
    _check_form(model.input_spec, spec)
    _trace(model, model.function, spec)
  root = tf.train.Checkpoint()
  root.__call__ = model.function
  if isinstance(model.model, (tf.Module, tf.train.Checkpoint)):
    resource = tf.saved_model.experimental.TrackableResource
    objects = tf.train.TrackableView(model.model).descendants()
    if tables := [x for x in objects if isinstance(x, resource)]:
      root.tables = tables
  root.variables = list(model.variables)
  root.trainable_variables = list(model.trainable_variables)
  root.regularization_losses = _summed_losses(model)
  return root


def _check_form(spec: Any, form: Any) -> None:
  """Refuses a form of the input that differs in more than dtypes and lists."""
  if isinstance(spec, Mapping):
    if isinstance(form, Mapping):
      if set(form) != set(spec):
        raise errors.ExportError(
          f"also_takes has a dict of {', '.join(form)}; the input is one of"
          f" {', '.join(spec)}."
        )
      form = [form[k] for k in spec]
    spec = list(spec.values())
  pairs = zip(tf.nest.flatten(spec), tf.nest.flatten(form), strict=False)
  for usual, other in pairs:
    # RaggedTensors may differ in rank, as pieces and words of pieces do.
    is_ragged = isinstance(usual, tf.RaggedTensorSpec)
    if isinstance(other, tf.RaggedTensorSpec) != is_ragged or (
      not is_ragged and usual.shape.rank != other.shape.rank
    ):
      raise errors.ExportError(
        f"also_takes has {other}, whose dimensions are not those of {usual}."
        " Nothing would compare it with the model."
      )


def frozen(model: Source, trainable_variables: Sequence[tf.Variable]) -> Source:
  """Returns a model that trains fewer variables, and has only their losses."""
  trained = {v.ref() for v in trainable_variables}
  return dataclasses.replace(
    model,
    trainable_variables=list(trainable_variables),
    trains_as_model=False,
    regularization_losses=[
      loss
      for loss in model.regularization_losses
      if observation.regularized([loss]) & trained
    ],
  )


def profile(root: tf.train.Checkpoint, model: Source) -> tf.train.Checkpoint:
  """Makes a sub-object that calls an export and trains fewer variables.

  The regularization loss is the only function that it adds to the SavedModel.

  Args:
    root: The export, an object that `reusable` made.
    model: The source that `frozen` returns for the model of the export.
  """
  result = tf.train.Checkpoint()
  result.__call__ = root.__call__
  result.variables = list(root.variables)
  result.trainable_variables = list(model.trainable_variables)
  result.regularization_losses = _summed_losses(model)
  return result


def of_mixed_precision(spec: tf.TensorSpec) -> list[tf.TensorSpec]:
  """Returns the specs of a float input that Keras casts in mixed precision."""
  return [tf.TensorSpec(spec.shape, d) for d in (tf.bfloat16, tf.float16)]


def signature(
  reusable_object: tf.train.Checkpoint,
  input_spec: Any,
  output_name: str | Sequence[str] = "outputs",
) -> ConcreteFunction:
  """Makes a signature for inference with the default hyperparameters.

  Args:
    reusable_object: An object that `reusable` made.
    input_spec: The spec of its input. The signature names Tensors by the keys
      of a dict, or else by the names of their specs. The default is `inputs`.
    output_name: Name of a single output; for a list, the sorted names or their
      common prefix. Outputs in a dict are named by their keys. Outputs that are
      not Tensors are left out.

  Returns:
    A function for `save`, from named Tensors to a dict of Tensors.
  """
  named_spec = _named(input_spec)
  parameters = inspect.signature(reusable_object.__call__).parameters

  def serve(*inputs):
    outputs = reusable_object.__call__(
      tf.nest.pack_sequence_as(named_spec, inputs),
      # Tensors reuse a trace; each Python number would need a new trace.
      **{
        name: tf.constant(parameter.default)
        for name, parameter in parameters.items()
        if type(parameter.default) in (int, float, str)
      },
    )
    if isinstance(outputs, (list, tuple)):
      names = output_name
      if isinstance(names, str):
        digits = len(str(len(outputs) - 1))  # Padded, so as to sort.
        names = [f"{names}_{i:0{digits}}" for i in range(len(outputs))]
      if len(names) != len(outputs):
        raise errors.ExportError(
          f"The model returns {len(outputs)} outputs, and their names are"
          f" {', '.join(names)}."
        )
      outputs = dict(zip(names, outputs, strict=True))
    elif not isinstance(outputs, Mapping):
      outputs = {output_name: outputs}
    served = {k: y for k, y in outputs.items() if isinstance(y, tf.Tensor)}
    if not served:
      kinds = {type(out).__name__ for out in outputs.values()}
      raise errors.ExportError(
        "A signature needs an output that is a Tensor, and the model returns"
        f" {' and '.join(sorted(kinds)) or 'nothing'}. Return a flat dict with"
        " a Tensor among its values."
      )
    return served

  with private_api.as_in_a_save():
    return tf.function(
      serve, input_signature=tf.nest.flatten(named_spec), autograph=False
    ).get_concrete_function()


def constant(value: Any) -> tf.train.Checkpoint:
  """Makes an attribute of an export that returns a constant when called.

  It is no variable, because TPUs cannot load variables of strings.

  Args:
    value: A value that TensorFlow converts to a Tensor, or a dict of them.
  """
  result = tf.train.Checkpoint()
  result.__call__ = tf.function(
    lambda: tf.nest.map_structure(tf.constant, value), input_signature=[]
  )
  result.variables, result.trainable_variables = [], []
  result.regularization_losses = []
  return result


def save(
  root: tf.train.Checkpoint,
  export_dir: str,
  *,
  signatures: Mapping[str, ConcreteFunction],
) -> list[str]:
  """Writes a SavedModel, adds the endpoints for Keras 3, and slims it.

  Args:
    root: An object that `reusable` made.
    export_dir: The directory to write.
    signatures: Signatures that `signature` made, by name. Tools look for
      `serving_default`.

  Returns:
    Notes for the verification report, of `slimming.slim`.

  Raises:
    ExportError: `root` holds an optimizer, or a function uses a resource, such
      as a table, that `root` does not hold.
  """
  for optimizer in _optimizers(root):
    raise errors.ExportError(
      f"The export holds an optimizer, {type(optimizer).__name__}, whose state"
      " consumers cannot use. Remove it."
    )
  about = (
    "A function of the export uses a resource that the export does not hold."
    " Set it as an attribute. TensorFlow says: "
  )
  try:
    # TensorFlow raises these for resources that `root` does not reach.
    with errors.of_input(AssertionError, KeyError, about=about):
      with private_api.tensors_equal_by_identity():
        tf.saved_model.save(root, export_dir, signatures=dict(signatures))
  except ValueError as e:
    if "custom gradient" not in str(e):
      raise
    raise errors.ExportError(
      "A custom gradient of the model uses a Tensor from outside of it. Compute"
      " it in the gradient, or pass it as an argument."
    ) from e
  endpoints.add(export_dir)
  return slimming.slim(export_dir)


def lost(model: Source) -> dict[str, str]:
  """Describes what a SavedModel loses of its model, by kind.

  A SavedModel may lose constraints of variables such as `NonNeg`, masks of
  outputs, arguments of `call`, rates of layers that are always in inference,
  the default of `training`, and losses that a module lists under Keras' name
  `losses`.
  """
  found = {}
  names = [
    v.name for v in model.trainable_variables if getattr(v, "constraint", None)
  ]
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  if names:
    found["constraints"] = (
      f"A SavedModel has none. To keep those of {', '.join(names[:3])}{more},"
      " apply them after each step of training."
    )
  if model.inactive:
    found["hyperparameters"] = (
      f"Consumers cannot set {', '.join(model.inactive)}. No call depends on"
      " it, because the layers are always called with training=False."
    )
  if model.masked:
    found["masks"] = (
      "A SavedModel has none. An output of the model has a Keras mask, by which"
      " layers after it, such as LSTM, skip padding. Return the mask as an"
      " output, too, so that consumers can pass it on."
    )
  is_layer = isinstance(model.model, tf_keras.layers.Layer)
  if not (is_layer or model.regularization_losses) and hasattr(
    type(model.model), "losses"
  ):
    found["losses"] = (
      "`losses` of the model are not read: name regularization losses"
      " `regularization_losses`, a list of functions."
    )
  named = parameters_of(model.model)
  if "training" in named and named["training"].default is True:
    found["training"] = (
      "Its default is False, as consumers expect. That of the model is True."
    )
  if is_layer:
    own = {*model.defaults, "training", "mask"}
    fixed = [
      str(p)
      for p in [*named.values()][1:]
      if p.name not in own and p.default is not p.empty
    ]
    if fixed and not type(model.model).__module__.startswith("tf_keras."):
      found["arguments"] = (
        f"Calls have {', '.join(fixed)}. Consumers can set what is a"
        " Hyperparameter."
      )
  return found


def parameters_of(model: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters of the function that computes a model."""
  is_layer = isinstance(model, tf_keras.layers.Layer)
  function = model.call if is_layer else _python_function(model)
  return inspect.signature(function).parameters


def _check_names(
  input_spec: Any, hyperparameters: Sequence[Hyperparameter]
) -> None:
  """Refuses unusable or ambiguous names, and defaults of unusable types."""
  for hyperparameter in hyperparameters:
    name, default = hyperparameter.name, hyperparameter.default
    if not name.isidentifier() or name in ("inputs", "self", "training"):
      raise errors.ExportError(
        f"A hyperparameter is called {name!r}. It names an argument beside"
        " `inputs` and `training`: choose another identifier of Python."
      )
    if type(default) not in (float, int, str):
      raise errors.ExportError(
        f"Hyperparameter {name} is {default!r}, and consumers can give a float,"
        " an int or a str only. Give it one of these; for a bool, 0 or 1."
      )
    if type(default) is int and not tf.int32.min <= default <= tf.int32.max:
      raise errors.ExportError(
        f"Hyperparameter {name} is {default}, and an int32 has no such value."
        " Give it a float, or another unit."
      )
  flat = tf.nest.flatten(input_spec, expand_composites=True)
  for names, count in (
    (input_specs(input_spec), len(flat)),
    ([h.name for h in hyperparameters], len(hyperparameters)),
  ):
    unique = {re.sub("[./-]", "_", name).lower() for name in names}
    if len(unique) < count or "self" in unique:
      raise errors.ExportError(
        f"{', '.join(names)} must be different names, also in lower case, and"
        " none of them `self`: they name the arguments of functions."
      )


def input_specs(spec: Any) -> dict[str, tf.TensorSpec]:
  """Returns the inputs of a signature, by name, for the input of a model.

  TensorFlow names the Tensors of a RaggedTensor by its place in the input.
  """
  named = {}
  for i, part in enumerate(tf.nest.flatten(_named(spec))):
    tensors = tf.nest.flatten(part, expand_composites=True)
    for j, tensor in enumerate(tensors):
      named[tensor.name or f"inputs_{i}{f'_{j}' * bool(j)}"] = tensor
  return named


def _checked(spec: Any) -> Any:
  """Checks the form of an input; turns tuples into lists.

  Functions of a SavedModel distinguish tuples from lists, and consumers should
  not have to.
  """
  if isinstance(spec, Mapping):
    names = [re.sub("[./-]", "_", str(key)).lower() for key in spec]
    if not all(map(_NAME.fullmatch, names)):
      raise errors.ExportError(
        f"The keys of the input are {', '.join(map(repr, spec))}. They name the"
        " inputs of a signature: use letters, digits and underscores."
      )
    return {key: _checked(part) for key, part in spec.items()}
  if isinstance(spec, (list, tuple)):
    return [_checked(part) for part in spec]
  if not isinstance(spec, (tf.TensorSpec, tf.RaggedTensorSpec)):
    raise errors.ExportError(
      f"The input is {spec}; it must be a tf.TensorSpec or a"
      " tf.RaggedTensorSpec, or a list or dict of them. A sparse Tensor can be"
      " taken as its indices, values and dense_shape."
    )
  return spec


def _has_training(
  model: Callable[..., Any], hyperparameters: Sequence[Hyperparameter]
) -> bool:
  """Tells whether a model takes `training`; refuses other arguments."""
  if isinstance(model, tf_keras.layers.Layer):
    # Keras passes `training` to inner layers, even if `call` does not name it.
    return True
  parameters = dict(inspect.signature(_python_function(model)).parameters)
  parameters.pop(next(iter(parameters), None), None)  # The input.
  for hyperparameter in hyperparameters:
    if not hyperparameter.layers and (
      parameters.pop(hyperparameter.name, None) is None
    ):
      raise errors.ExportError(
        f"Hyperparameter {hyperparameter.name} is neither bound to layers nor"
        " an argument of the model."
      )
  has_training = parameters.pop("training", None) is not None
  if parameters:
    raise errors.ExportError(
      f"The model takes {', '.join(map(str, parameters.values()))}, which is"
      " neither its input, nor `training` by that name, nor a hyperparameter:"
      " consumers could not set it. Wrap the model in a function without it."
    )
  return has_training


def _python_function(model: Callable[..., Any]) -> Callable[..., Any]:
  """Unwraps a tf.function. Nested ones slow down every step under XLA."""
  is_layer = isinstance(model, tf_keras.layers.Layer)
  if isinstance(model, (tf.Module, tf.train.Checkpoint)) and not is_layer:
    try:
      model = model.__call__
    except AttributeError as e:
      raise errors.ExportError(
        f"The model, a {type(model).__name__}, has no method `__call__`, which"
        " takes the input. Give it one."
      ) from e
  return getattr(model, "python_function", model)


def _trainable(
  model: Any,
  variables: Sequence[tf.Variable],
  trainable_variables: Iterable[tf.Variable] | None,
) -> list[tf.Variable]:
  """Returns the trainable variables, and refuses unusable variables."""
  is_default = trainable_variables is None
  if is_default:
    trainable_variables = getattr(
      model, "trainable_variables", [v for v in variables if v.trainable]
    )
  trainable_variables = list(trainable_variables)
  listed = {v.ref() for v in variables}
  for variable in trainable_variables:
    if variable.ref() not in listed:
      raise errors.ExportError(
        f"Variable {variable.name} is among trainable_variables and not among"
        " variables."
      )
    if not variable.trainable:
      raise errors.ExportError(
        f"Variable {variable.name} is among trainable_variables and was made"
        " with trainable=False: no gradient would reach it."
      )
  if (
    is_default
    and not trainable_variables
    and any(v.trainable for v in variables)
  ):
    raise errors.ExportError(
      f"The model has {len(variables)} variables and lists none of them as"
      " trainable: consumers would train nothing. Unfreeze the model, or list"
      " trainable_variables."
    )
  for variable in variables:
    try:
      if variable.dtype in _CHECKED and variable.trainable:
        tf.debugging.check_numerics(variable, "")  # Allocates no memory.
      elif variable.dtype in _CHECKED:  # Masks and minima may be infinite.
        # As a Tensor, because not all kinds of variables convert to the dtypes
        # of other operands.
        value = variable.read_value()
        value = tf.where(tf.math.is_inf(value), tf.zeros_like(value), value)
        tf.debugging.check_numerics(value, "")
    except tf.errors.InvalidArgumentError as e:
      raise errors.ExportError(
        f"Variable {variable.name} has values that are not finite (NaN or"
        " infinite). Training has diverged: try a smaller learning rate."
      ) from e
  for optimizer in _optimizers(model):
    if any(v.ref() in listed for v in tf.nest.flatten(optimizer.variables)):
      raise errors.ExportError(
        "The variables of the model include those of an optimizer,"
        f" {type(optimizer).__name__}. List variables without them."
      )
  return trainable_variables


def _optimizers(model: Any) -> list[Any]:
  """Returns the optimizers that an object holds, directly or indirectly."""
  if not isinstance(model, (tf.Module, tf.train.Checkpoint)):
    return []
  return [
    trackable
    for trackable in tf.train.TrackableView(model).descendants()
    if callable(getattr(trackable, "apply_gradients", None))
  ]


def layers_of(model: Any) -> list[tf_keras.layers.Layer]:
  """Returns a Keras model and all layers in it; [] for a function."""
  modules = layer_calls_lib.modules(model)
  return [m for m in modules if isinstance(m, tf_keras.layers.Layer)]


@contextlib.contextmanager
def for_any_strategy(layers: Iterable[tf_keras.layers.Layer]) -> Iterator[None]:
  """Lets batch normalization be traced for consumers under any strategy.

  A replica normalizes over its own examples, because a SavedModel cannot sum
  over replicas. TensorFlow would warn about each gradient of such a sum. A
  replica without examples updates nothing.

  Args:
    layers: The layers of the model.
  """
  synchronized = [
    layer for layer in layers if getattr(layer, "synchronized", False)
  ]
  for layer in synchronized:
    layer.synchronized = False
  try:
    with private_api.empty_batches_change_nothing(
      tf_keras.layers.BatchNormalization
    ):
      yield
  finally:
    for layer in synchronized:
      layer.synchronized = True


def _caller(
  model: Callable[..., Any],
  defaults: Mapping[str, Any],
  hyperparameters: Sequence[Hyperparameter],
  check: Callable[[Any], Any] | None,
) -> Callable[..., Any]:
  """Wraps a model in a Python function whose arguments have defaults."""
  function = _python_function(model)
  layers = layers_of(model)
  # ConvLSTM keeps its dropout masks between calls, although they fit only
  # batches of one size.
  cells = [x for x in layers if hasattr(x, "reset_recurrent_dropout_mask")]

  def call(inputs: Any, **arguments: Any) -> Any:
    if check is not None:
      inputs = check(inputs)
    for cell in cells:
      cell.reset_dropout_mask()
      cell.reset_recurrent_dropout_mask()
    values = {**defaults, **arguments}
    mode = {"training": values["training"]} if "training" in defaults else {}
    with (
      for_any_strategy(layers),
      hyperparameters_lib.bound(hyperparameters, values) as direct,
    ):
      return function(inputs, **mode, **direct)

  return call


def _traced(model: Source) -> Source:
  """Adds the traced function to a source, and checks the traces."""
  function = _traceable(model, xla.CLOSED_GRADIENTS)
  traces = _trace(model, function, model.input_spec)
  _check_structure(traces[0], traces[-1])
  # A cheap test first: most models have other types of ops in training.
  if len(traces) > 1 and len(set(map(_op_types, traces))) == 1:
    always_training = dataclasses.replace(
      model,
      call=functools.partial(model.call, training=True),
      inference=model.call,
      defaults={h.name: h.default for h in model.hyperparameters},
    )
    # Without closed gradients, because the inference trace has none.
    plain = _traceable(always_training, {})
    (training,) = _trace(always_training, plain, model.input_spec)
    if _canonical(training) == _canonical(traces[0]):
      model = always_training  # Consumers need the gradients of training.
      function = _traceable(model, xla.CLOSED_GRADIENTS)
      traces = _trace(model, function, model.input_spec)
  _check_ops(traces)
  _check_seeds(traces)
  read = [{id(x) for x in trace.captured_inputs} for trace in traces]
  read_by_any = set().union(*read)
  variables = [v for v in model.variables if _is_sized(v, read_by_any)]
  model = dataclasses.replace(model, variables=variables)
  _check_captured(traces, model)
  _check_reached(traces[-1], model.trainable_variables)
  _check_outputs(traces[0].structured_outputs)
  outputs = tf.nest.map_structure(
    tf.type_spec_from_value, traces[0].structured_outputs
  )
  for what, specs in (("input", model.input_spec), ("output", outputs)):
    for spec in tf.nest.flatten(specs):
      if isinstance(spec, tf.TensorSpec) and spec.shape.rank is None:
        raise errors.ExportError(
          f"An {what} of the model, {spec}, has an unknown rank. Give it a"
          " shape, in which unknown dimensions are None, as by tf.ensure_shape."
        )
  return dataclasses.replace(
    model,
    function=function,
    output_spec=outputs,
    unread=[
      [v for v in model.variables if id(v.handle) not in ids] for ids in read
    ],
    inactive=_inactive(traces, model),
  )


def _is_sized(variable: tf.Variable, read: Collection[int]) -> bool:
  """Tells whether a variable has a size.

  Preprocessing layers of Keras have variables without a size, which `adapt`
  sets, and compute with constants.

  Args:
    variable: The variable.
    read: The ids of the handles that the traces read.

  Raises:
    ExportError: The variable has no size, and is trainable or read.
  """
  is_sized = variable.shape.is_fully_defined()
  if not is_sized and (variable.trainable or id(variable.handle) in read):
    raise errors.ExportError(
      f"Variable {variable.name} has the shape {variable.shape}. Give it a"
      " size: consumers and optimizers need one."
    )
  return is_sized


def _traceable(
  model: Source, of_training: layer_calls_lib.Replacements
) -> Function:
  """Makes a tf.function with named arguments and defaults.

  A trace for another form of the input converts the input and calls the trace
  for `input_spec`, so that the model is traced once per mode. Only the training
  trace has the replacements in `of_training`, because inference needs no
  gradients.
  """

  def call(inputs: Any, *values: Any) -> Any:
    private_api.forget_seed()
    arguments = dict(zip(model.defaults, values, strict=True))
    converted = _converted(inputs, model.input_spec)
    if converted is not None:
      return function(converted, **arguments)
    more = of_training if arguments.get("training", True) else {}
    replacements = {**model.layer_calls, **more}
    with layer_calls_lib.replaced(model.model, replacements) as called:
      outputs = model.call(inputs, **arguments)
    model.called.extend(called)
    model.masked.update(_masked(outputs))
    return outputs

  # tf.function and the SavedModel take argument names and defaults from here.
  parameter = functools.partial(
    inspect.Parameter, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD
  )
  named = [parameter(name, default=d) for name, d in model.defaults.items()]
  call.__signature__ = inspect.Signature([parameter("inputs"), *named])
  function = tf.function(call, autograph=model.autograph)
  return function


def _masked(outputs: Any) -> Iterator[int]:
  """Yields the positions of outputs whose Keras mask is not an output."""
  flat = tf.nest.flatten(outputs)
  for i, y in enumerate(flat):
    # Keras has no public attribute for it; `saving_test` fails if this one is
    # renamed.
    mask = getattr(y, "_keras_mask", None)
    if mask is not None and not any(mask is x for x in flat):
      yield i


def _trace(
  model: Source, function: Function, spec: Any
) -> list[ConcreteFunction]:
  """Traces a function for a form of the input, in each mode."""
  arguments = {h.name: h.spec for h in model.hyperparameters}
  modes = [{}]
  if "training" in model.defaults:
    modes = [{"training": False}, {"training": True}]
  with (
    no_losses_of_calls(model),
    private_api.as_in_a_save(),
    _without_determinism(),
    _without_python_control_flow(model.autograph),
  ):
    return [
      function.get_concrete_function(_named(spec), **mode, **arguments)
      for mode in modes
    ]


@contextlib.contextmanager
def _without_determinism() -> Iterator[None]:
  """Explains the error that TensorFlow raises under op determinism."""
  try:
    yield
  except RuntimeError as e:
    if "determinism" not in str(e):
      raise
    raise errors.ExportError(
      "tf.config.experimental.enable_op_determinism() is on. It wants seeds,"
      " with which all consumers would draw the same. Export without it, in a"
      " process of its own."
    ) from e


@contextlib.contextmanager
def _without_python_control_flow(autograph: bool) -> Iterator[None]:
  """Explains TensorFlow's error about Python control flow over a Tensor."""
  try:
    yield
  except tf.errors.OperatorNotAllowedInGraphError as e:
    layer = re.search(r"calling layer '(\S+)' \(type (\w+)\)", str(e))
    where = f"Layer {layer[1]}, a {layer[2]}," if layer else "The model"
    cure = (
      "where AutoGraph cannot rewrite it: use tf.where or tf.cond, or bind no"
      " hyperparameter to it"
      if autograph
      else "which needs autograph=True"
    )
    raise errors.ExportError(
      f"{where} has Python control flow over a Tensor, {cure}."
    ) from e


@contextlib.contextmanager
def no_losses_of_calls(model: Source) -> Iterator[None]:
  """Refuses layers whose last call inside the context has added losses.

  A function or module that lists its regularization losses is not checked: it
  may lose other losses.
  """
  is_layer = isinstance(model.model, tf_keras.layers.Layer)
  before = is_layer and len(model.model.losses)
  yield
  is_judged = is_layer or model.regularization_losses is None
  called = [*dict.fromkeys(model.called)] if is_judged else []
  called.reverse()  # Inner layers first.
  for layer in called:
    if getattr(layer, "activity_regularizer", None) is not None:
      raise errors.ExportError(
        f"Layer {layer.name} has an activity regularizer, which a SavedModel"
        " cannot apply. Remove it."
      )
  names = [x.name for x in called if any(map(tf.is_symbolic_tensor, x.losses))]
  if names or (is_layer and len(model.model.losses) > before):
    what = f"layer {names[0]}" if names else "the model"
    raise errors.ExportError(
      f"A call of {what} adds losses that depend on its input, by add_loss; a"
      " SavedModel cannot. Return the Tensors that they need as outputs."
    )


def _op_types(trace: ConcreteFunction) -> frozenset[str]:
  ops = trace.graph.get_operations()
  return frozenset(op.type for op in ops) - {"Identity", "IdentityN"}


def _canonical(trace: ConcreteFunction) -> str:
  """Writes a graph as text, without names that differ from trace to trace."""
  graph = trace.graph.as_graph_def()
  bodies = {f.signature.name: f for f in graph.library.function}

  @functools.cache
  def text(name: str) -> str:
    body = str(bodies[name]).replace(f'"{name}"', "")
    return hashlib.sha256(shared(body).encode()).hexdigest()

  def shared(part: str) -> str:
    return re.sub(
      '(?<=")[^"]+(?=")',
      lambda m: text(m[0]) if m[0] in bodies else m[0],
      re.sub("CustomGradient-[0-9]+", "", part),
    )

  return shared("".join(map(str, graph.node)))


def _named(spec: Any, *path: str | int) -> Any:
  """Names the Tensors of an input by their keys, or by their specs."""
  if isinstance(spec, Mapping):
    return {key: _named(part, *path, str(key)) for key, part in spec.items()}
  if isinstance(spec, (list, tuple)):
    return [_named(part, *path, i) for i, part in enumerate(spec)]
  if not isinstance(spec, tf.TensorSpec):  # A RaggedTensor has no name.
    return spec
  is_keyed = any(isinstance(key, str) for key in path)
  first = () if path and isinstance(path[0], str) else ("inputs",)
  name = "_".join(map(str, (*first, *path)))
  name = name if is_keyed else spec.name or name
  return tf.TensorSpec(spec.shape, spec.dtype, name)


def _converted(inputs: Any, spec: Any) -> Any:
  """Turns a list into a dict, and casts Tensors, to match `spec`.

  Returns:
    The converted input, or None if the input matches already.
  """
  is_list = isinstance(spec, Mapping) and not isinstance(inputs, Mapping)
  if is_list:
    inputs = dict(zip(spec, inputs, strict=True))
  # Lists may have several lengths; the first elements decide.
  pairs = zip(tf.nest.flatten(inputs), tf.nest.flatten(spec), strict=False)
  if not is_list and all(x.dtype == s.dtype for x, s in pairs):
    return None
  return tf.nest.map_structure(lambda x, s: tf.cast(x, s.dtype), inputs, spec)


def _check_outputs(outputs: Any) -> None:
  """Refuses outputs that a SavedModel cannot describe."""
  if isinstance(outputs, Mapping):
    for key in outputs:
      if not isinstance(key, str):
        raise errors.ExportError(
          f"The model returns a dict with the key {key!r}; outputs are named by"
          " strings."
        )
    outputs = list(outputs.values())
  if isinstance(outputs, (list, tuple)):
    for output in outputs:
      _check_outputs(output)
  elif isinstance(outputs, (tf.experimental.ExtensionType, tf.IndexedSlices)):
    raise errors.ExportError(
      f"The model returns {type(outputs).__name__}, and consumers do not have"
      " it. Return a dict of its Tensors."
    )
  elif tf.is_tensor(outputs) and outputs.dtype.is_quantized:
    raise errors.ExportError(
      f"The model returns {outputs.dtype.name}. Return dequantized floats."
    )


def _check_structure(
  inference: ConcreteFunction, training: ConcreteFunction
) -> None:
  """Refuses modes that return different structures, shapes or dtypes."""
  first, last = (
    tf.nest.map_structure(tf.type_spec_from_value, trace.structured_outputs)
    for trace in (inference, training)
  )
  if first != last:
    raise errors.ExportError(
      f"The model returns {first} in inference and {last} in training; they"
      " must have the same structure, shapes and dtypes."
    )


def _check_ops(traces: Sequence[ConcreteFunction]) -> None:
  """Refuses Python code, and random numbers that all replicas would share."""
  for trace in traces:
    for node in graphs.all_nodes(trace.graph.as_graph_def()):
      if graphs.GENERATED.match(node.op):
        raise errors.ExportError(
          f"The model draws from a tf.random.Generator ({node.op} {node.name})."
          " Its state would be saved, and all consumers and replicas would draw"
          " the same numbers. Draw by functions such as tf.random.uniform, and"
          " leave Keras' layers for augmentation out."
        )
      if node.op in ("PyFunc", "PyFuncStateless", "EagerPyFunc"):
        raise errors.ExportError(
          f"The model calls Python code ({node.op} {node.name}), which a"
          " SavedModel cannot hold. Compute with TensorFlow's functions instead"
          " of tf.py_function and tf.numpy_function."
        )
      if _OF_TABLES.match(node.op):
        raise errors.ExportError(
          f"A call of the model changes a table ({node.op} {node.name}), which"
          " verification cannot undo. Fill it before the export, or keep what"
          " changes in a variable that is not trainable."
        )
      if node.op not in allowed_ops.NAMES and hasattr(tf.raw_ops, node.op):
        raise errors.ExportError(
          f"The model has the op {node.op} ({node.name}), which prints, uses"
          " files, networks or this machine. Compute from the inputs, variables"
          " and tables alone."
        )


def _check_seeds(traces: Sequence[ConcreteFunction]) -> None:
  """Refuses training with random numbers that are the same in every load.

  Numbers that inference draws too are part of the model, such as fixed
  projections.
  """
  inference, training = (_fixed_draws(t) for t in (traces[0], traces[-1]))
  if len(training) > len(inference):
    raise errors.ExportError(
      f"Training draws by {training[-1]} from a seed that is a constant or a"
      " variable: all consumers and replicas would draw the same numbers. Draw"
      " by functions such as tf.random.uniform."
    )


def _fixed_draws(trace: ConcreteFunction) -> list[str]:
  """Returns the stateless random ops whose seeds are fixed.

  A seed is fixed if it depends on no input and on no random op. Only ops that
  outputs depend on count. Normal numbers of a constant shape do not count,
  because they are projections, such as those of Model Garden's KernelAttention.
  """
  captured = {x.op for x in trace.graph.internal_captures}
  arguments = {x.op for x in trace.inputs} - captured

  def is_fixed(op: tf.Operation) -> bool:
    is_projection = "Normal" in op.type and op.inputs[0].op.type == "Const"
    return not is_projection and not any(
      x in arguments or graphs.RANDOM.match(x.type)
      for x in _upstream(op.inputs[1:])  # Without the shape.
    )

  return [
    f"{op.type} {op.name}"
    for op in _upstream(trace.outputs)
    if _STATELESS.match(op.type) and is_fixed(op)
  ]


def _upstream(
  tensors: Iterable[tf.Tensor], *, without: str = ""
) -> set[tf.Operation]:
  """Returns the ops that Tensors depend on; stops at ops of type `without`."""
  found = set()
  waiting = [x.op for x in tensors]
  while waiting:
    op = waiting.pop()
    if op not in found and op.type != without:
      found.add(op)
      waiting += [x.op for x in op.inputs]
  return found


def _check_captured(traces: Sequence[ConcreteFunction], model: Source) -> None:
  """Refuses variables that are used and not listed."""
  for variable in model.variables:
    if hasattr(variable, "true_dtype"):  # Keras casts it in mixed precision.
      raise errors.ExportError(
        f"The layer of {variable.name} has a policy of mixed precision. Build"
        " the model in float32 and set these weights: consumers choose their"
        " precision."
      )
  listed = {v.ref() for v in model.variables}
  missing = {
    v.ref(): v.name
    for trace in traces
    for v in trace.variables
    if v.ref() not in listed
  }
  if not missing:
    return
  cure = "Make it an attribute of the model before the export, or list it."
  layers = layers_of(model.model)
  measured = {
    v.ref()
    for layer in layers
    for metric in layer.metrics
    for v in metric.variables
  }
  if measured & missing.keys():
    cure = "It is of a metric: leave add_metric out of the call."
  elif layers[:1] == [model.model] and not model.variables:
    cure = "The model was not built: call it once before."
  elif any(getattr(layer, "stateful", False) for layer in layers):
    cure = (
      "Keras leaves out the states of stateful layers: pass variables as"
      " [*model.variables, *layer.states]."
    )
  names = sorted(missing.values())
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  raise errors.ExportError(
    f"The model uses {', '.join(names[:3])}{more}, which `variables` lacks:"
    f" consumers could neither train nor save it. {cure}"
  )


def _check_reached(
  training: ConcreteFunction, trainable_variables: Sequence[tf.Variable]
) -> None:
  """Refuses trainable variables that get no gradient from any output."""
  reached = _upstream(training.outputs, without="StopGradient")
  captured = zip(
    reversed(training.captured_inputs), reversed(training.inputs), strict=False
  )
  handles = {id(outer) for outer, inner in captured if inner.op in reached}
  dead = [v.name for v in trainable_variables if id(v.handle) not in handles]
  if dead:
    raise errors.ExportError(
      f"The model lists {', '.join(dead[:3])}"
      f"{f' and {len(dead) - 3} more' if len(dead) > 3 else ''} as trainable,"
      " but no output of training has a gradient for it: consumers could not"
      " train it. Pass trainable_variables without it."
    )


def _inactive(traces: Sequence[ConcreteFunction], model: Source) -> list[str]:
  """Names hyperparameters that were found, and have no effect.

  Raises:
    ExportError: Another hyperparameter affects neither an output nor an update.
  """
  inactive = []
  first = len(tf.nest.flatten(model.input_spec, expand_composites=True))
  for i, hyperparameter in enumerate(model.hyperparameters, first):
    if any(_has_effect(trace.inputs[i], trace) for trace in traces):
      continue
    if not (hyperparameter.is_found and hyperparameter.layers):
      raise errors.ExportError(
        f"Hyperparameter {hyperparameter.name} changes nothing: neither an"
        " output nor an update of a variable depends on it. Bind it to the"
        " layers that use it, or leave it out. Custom gradients must take it as"
        " an argument."
      )
    inactive.append(hyperparameter.name)
  return inactive


def _has_effect(tensor: tf.Tensor, trace: ConcreteFunction) -> bool:
  """Tells whether a result or a stateful op of a trace depends on a Tensor."""
  results = {output.op for output in trace.outputs}
  seen = set()
  waiting = list(tensor.consumers())
  while waiting:
    op = waiting.pop()
    if op in results or op.op_def.is_stateful:
      return True
    if op not in seen:
      seen.add(op)
      waiting += [c for output in op.outputs for c in output.consumers()]
  return False


def _losses_of_keras(model: Source) -> list[Callable[[], tf.Tensor]]:
  """Returns the losses that a Keras model trains with.

  For other models, returns the losses of the layers that the model has, names
  or calls. For a function, returns only losses of variables that it trains.
  """
  root = model.model
  layers = [*dict.fromkeys([*layers_of(root), *model.called])]
  found = _weight_losses(layers, model.variables)
  if not isinstance(root, (tf.Module, tf.train.Checkpoint)):
    listed = {v.ref() for v in model.trainable_variables}
    return [x for x in found if set() < observation.regularized([x]) <= listed]
  if not isinstance(root, tf_keras.layers.Layer):
    return found
  # Keras does not see the losses of layers in a tf.Module, and a model may
  # override `losses`.
  own, others = (
    float(sum((tf.cast(x, tf.float64) for x in losses), 0.0))
    for losses in (root.losses, [loss() for loss in found])
  )
  if math.isclose(own, others, rel_tol=1e-6):
    return found
  return [lambda i=i: root.losses[i] for i in range(len(root.losses))]


def _weight_losses(
  layers: Sequence[tf_keras.layers.Layer], variables: Sequence[tf.Variable]
) -> list[Callable[[], tf.Tensor]]:
  """Returns a function for each weight regularizer of layers.

  The functions are in the order of `variables`, as in Keras' `losses`.
  """
  # A layer's losses are its own, then those of its inner layers. Finding inner
  # layers takes time, and only a layer with all weights of another layer can
  # have any.
  losses = {layer: len(layer.losses) for layer in layers}
  weights = {
    layer: {v.ref() for v in layer.weights} for layer in layers if losses[layer]
  }
  inner = {
    layer: layers_of(layer)[1:]
    if any(weights[x] <= weights[layer] for x in weights if x is not layer)
    else []
    for layer in weights
  }
  own: dict[tf_keras.layers.Layer, int] = {}
  for layer in sorted(inner, key=lambda layer: len(inner[layer])):
    own[layer] = losses[layer] - sum(own.get(x, 0) for x in inner[layer])
  position = {v.ref(): i for i, v in enumerate(variables)}
  return [
    _loss_of_layer(layer, index)
    for layer in sorted(
      (x for x in layers if own.get(x) and weights[x]),
      key=lambda x: min(position.get(v.ref(), 0) for v in x.weights),
    )
    for index in range(own[layer])
  ]


def _loss_of_layer(
  layer: tf_keras.layers.Layer, index: int
) -> Callable[[], tf.Tensor]:
  return lambda: layer.losses[index]


def _summed_losses(model: Source) -> list[ConcreteFunction]:
  """Traces the sum of regularization losses; returns [] if there are none.

  Consumers load and differentiate one function faster than one for each weight.
  """
  losses = model.regularization_losses
  for loss in losses:
    value = loss() if callable(loss) else loss
    if tf.is_symbolic_tensor(value):
      raise errors.ExportError(
        "A regularization loss is a Tensor that a call of the model has left"
        " behind. Compute it from variables alone; return what depends on the"
        " input as an output."
      )
    if not callable(loss) or not (
      tf.is_tensor(value) and value.shape == [] and value.dtype.is_floating
    ):
      found = (
        tf.type_spec_from_value(value)
        if tf.is_tensor(value)
        else type(value).__name__
      )
      raise errors.ExportError(
        f"A regularization loss is {found}; it must be a function that returns"
        " a float scalar."
      )
    if not tf.math.is_finite(value):
      raise errors.ExportError(
        f"A regularization loss is {value.numpy():g}; it must be finite."
      )
  if not losses:
    return []

  def summed() -> tf.Tensor:
    return observation.summed(losses)

  function = tf.function(summed, input_signature=[], autograph=model.autograph)
  return [function.get_concrete_function()]  # Saving then traces nothing.
