"""Rules for every reusable SavedModel: S1, and R1 to R14."""

import itertools
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import compiled_step
from exporters.conformance import findings
from exporters.conformance import subject as subject_lib
from exporters.reusable import graphs
from exporters.reusable import observation

Subject = subject_lib.Subject

# Attributes of the layers of a Keras model, and of what it is saved with.
# Consumers do not call them by name.
_NO_SUB_OBJECT = re.compile(
  "_|layer-|layer_with_weights-|keras_api|signatures$"
  "|call_and_return_all_conditional_losses$"
)
# Names that tools generate.
_NO_NAME = re.compile(r"(args?|inputs?|outputs?|keras_tensor)(_?\d+)*")
_UNSERVED = re.compile("Anonymous.*HashTable.*")
# Only folders that do not occur in names of ops.
_ABSOLUTE_PATH = re.compile(
  rb"/(?:home|mnt|private|proc|root|tmp|usr|Users|var/(?:folders|lib|tmp))"
  rb"/[\w./-]*"
)
_OPTIMIZER = re.compile(
  r"(^|/)(optimizer|Adam|AdamW|SGD|RMSprop|Momentum|LAMB|Adagrad)(_\d+)?(/|:|$)"
)


def is_harmless(subject: Subject) -> findings.Finding:
  """All ops are ones that models need: none use files, networks or Python."""
  if subject.suspicious:
    return findings.failed(
      f"{findings.some(subject.suspicious)}.",
      "Examine what these ops do. To load the SavedModel anyway, pass --trust.",
    )
  return findings.passed(f"{len(subject.op_counts)} kinds of ops")


def is_callable(subject: Subject) -> findings.Finding:
  """The root object can be called without the code that built the model."""
  if not subject.graph.HasField("object_graph_def"):
    return findings.failed(
      "It was saved with TensorFlow 1: it has a graph with signatures and no"
      " objects, and can be neither called nor trained.",
      "Export the model with TensorFlow 2.",
    )
  if subject.model is None:
    return findings.not_decidable(subject.unloaded)
  if subject.traces:
    return findings.passed(f"it can be called ({len(subject.traces)} traces)")
  if callable(subject.model):
    return findings.failed(
      "The root object cannot be called: its __call__ was never traced.",
      "Call it or its get_concrete_function once before saving.",
    )
  signatures = ", ".join(subject.signatures)
  return findings.failed(
    "The root object cannot be called, and hub.KerasLayer refuses it; it has"
    f" only signatures: {signatures}.",
    "Save an object whose __call__ is a traced tf.function. Keras 3's"
    " Model.export does not; tf_keras' Model.save does.",
  )


def takes_one_input(subject: Subject) -> findings.Finding:
  """The input is a Tensor, or a list or dict of Tensors; so are the outputs."""
  needed = [
    name
    for name, default in subject.parameters.items()
    if default is subject_lib.NO_DEFAULT
  ]
  if needed:
    return findings.failed(
      f"{', '.join(needed)} has no default; hub.KerasLayer passes one input.",
      "Put all inputs into one list or dict, and give the rest defaults.",
    )
  for what, structure in (
    ("input", subject.spec),
    ("output", subject.output_spec),
  ):
    for x in tf.nest.flatten(structure):
      if not isinstance(x, tf.TypeSpec):
        return findings.failed(
          f"The {what} contains {x!r}, which is not a Tensor.",
          "Take and return Tensors, or lists or dicts of them.",
        )
  return findings.passed("one input, and Tensors as outputs")


def has_modes(subject: Subject) -> findings.Finding:
  """If training and inference differ, `training` selects one; default False."""
  if "training" not in subject.parameters:
    if subject.batch_norms:
      return findings.failed(
        f"It has batch normalization ({subject.batch_norms[0].name}) and no"
        " argument `training`: its moving averages never move.",
        "Save a __call__ with `training=False` in its signature, traced with"
        " False and with True.",
      )
    return findings.not_applicable(
      "no `training`, and nothing is seen that would need it"
    )
  default = subject.parameters["training"]
  if default is not False:
    return findings.failed(
      f"The default of `training` is {default!r}.",
      "Make False its default.",
    )
  structures = [trace.structured_outputs for trace in subject.traces]
  for structure in structures[1:]:
    try:
      tf.nest.assert_same_structure(structures[0], structure)
    except (TypeError, ValueError):
      return findings.failed(
        f"One mode returns {structures[0]}, another {structure}.",
        "Return the same structure in both.",
      )
  if subject.batch_norms and not _moves_averages(subject):
    return findings.failed(
      "No moving average of batch normalization"
      f" ({subject.batch_norms[0].name} …) moves in a call with training=True:"
      " the layers are frozen in the graph.",
      "Pass `training` on to the layers when tracing.",
    )
  # A rate may be 0 by default, and have effect in training only.
  if any(
    subject.differ({**values, "training": True}, {**values, "training": False})
    for values in ({}, subject.changed)
  ):
    return findings.passed(
      "`training` is named, False by default, and has effect"
    )
  return findings.passed(
    "`training` is False by default and changes nothing: the model has no"
    " batch normalization, and no modes that show. Dropout that was left out"
    " of both modes would not show"
  )


def _moves_averages(subject: Subject) -> bool:
  """Tells whether training moves averages; restores their values."""
  before = [v.numpy() for v in subject.batch_norms]
  with subject.unchanged():
    subject.model(subject.example(), training=True)
    after = [v.numpy() for v in subject.batch_norms]
  return not all(map(np.array_equal, before, after))


def has_traces(subject: Subject) -> findings.Finding:
  """A trace exists for every combination of arguments."""
  tensors = {name: tf.constant(v) for name, v in subject.changed.items()}
  values = [{}, subject.changed, tensors] if tensors else [{}]
  modes = [{"training": False}, {"training": True}]
  calls = list(
    itertools.product(
      subject.forms, modes if subject.training else [{}], values
    )
  )
  with subject.unchanged():
    for form, mode, value in calls:
      try:
        subject.model(subject.example(form=form), **mode, **value)
      except Exception as e:
        return findings.failed(
          f"A call with {mode | value or 'the input alone'} fails:"
          f" {subject_lib.first_line(e)}",
          "Trace __call__ for every combination of its arguments.",
        )
  return findings.passed(f"{len(calls)} combinations of arguments were called")


def _unlisted(model: Any) -> list[str]:
  """Names the variables that a call uses and `variables` lacks."""
  listed = {v.ref() for v in getattr(model, "variables", ())}
  used = [v for t in subject_lib.traces_of(model) for v in t.variables]
  return list(dict.fromkeys(v.name for v in used if v.ref() not in listed))


def lists_variables(subject: Subject) -> findings.Finding:
  """`variables` lists all variables; gradients reach the trainable ones."""
  listed = {v.ref() for v in getattr(subject.model, "variables", ())}
  trainable = list(getattr(subject.model, "trainable_variables", ()))
  missing = _unlisted(subject.model)
  if not missing and not listed:
    return findings.not_applicable("it has no variables")
  save = "Save lists of variables as attributes of the root."
  if missing:
    return findings.failed(
      f"A call uses {findings.some(missing)}, which `variables` lacks"
      + ("." if listed else ": consumers train and save nothing, in silence."),
      f"{save} The lists of a tf.Module are properties, which are not saved.",
    )
  if not trainable and any(
    v.trainable for trace in subject.traces for v in trace.variables
  ):
    return findings.failed(
      "`trainable_variables` is empty: consumers train nothing, in silence.",
      save,
    )
  outside = [v.name for v in trainable if v.ref() not in listed]
  frozen = [v.name for v in trainable if not v.trainable]
  if outside or frozen:
    return findings.failed(
      f"{findings.some(outside or frozen)} in `trainable_variables` is"
      + (" not in `variables`." if outside else " not trainable."),
      "List exactly the trainable variables.",
    )
  step = observation.train_step(subject.model, subject.model)
  with subject.unchanged():
    _, gradients = step(subject.example(), **subject.training)
  dead = [
    v.name for v, g in zip(trainable, gradients, strict=True) if g is None
  ]
  if dead:
    return findings.failed(
      f"{findings.some(dead)} in `trainable_variables` gets no gradient from"
      " any output.",
      "Remove the stop_gradient from the model, or the variables from the"
      " list.",
    )
  return findings.passed(
    f"{len(listed)} variables, {len(trainable)} trainable, all reached"
  )


def has_losses(subject: Subject) -> findings.Finding:
  """`regularization_losses` are functions that return float scalars."""
  losses = list(getattr(subject.model, "regularization_losses", ()))
  if not losses and not list(getattr(subject.model, "variables", ())):
    return findings.not_applicable("it has no variables")
  if not losses and "keras_metadata.pb" in subject.files:
    return findings.not_decidable(
      "hub.KerasLayer gets none; tf_keras.models.load_model also gets those of"
      " layers inside layers, if there are any",
    )
  if not losses:
    if subject.verified("regularization losses"):
      return findings.passed(
        "none; its verification says that the live model has none"
      )
    return findings.not_decidable(
      "it has none; whether the training had any, which are then lost, does not"
      " show",
    )
  for i, loss in enumerate(losses):
    try:
      value = loss()
    except Exception as e:
      return findings.failed(
        f"Regularization loss {i} cannot be called without arguments:"
        f" {subject_lib.first_line(e)}",
        "Save tf.functions that take no argument.",
      )
    if not (
      tf.is_tensor(value) and value.shape == [] and value.dtype.is_floating
    ):
      return findings.failed(
        f"Regularization loss {i} returns {findings.described(value)}, which"
        " is no float scalar.",
        "Return a float scalar.",
      )
  return findings.passed(f"{len(losses)} losses")


def can_be_tuned(subject: Subject) -> findings.Finding:
  """Hyperparameters are scalar arguments with defaults, and have an effect."""
  tunable = subject.hyperparameters
  if not tunable:
    fixed = ["batch normalization"] * bool(subject.batch_norms)
    if subject.is_random:
      fixed.append("dropout or other noise")
    if fixed:
      return findings.failed(
        f"Nothing can be adjusted: {' and '.join(fixed)} is fixed in the"
        " graph.",
        "Make rates and momentum scalar Tensor arguments with defaults.",
      )
    return findings.not_applicable("there is nothing to tune")
  without = [n for n, v in tunable.items() if v is subject_lib.NO_DEFAULT]
  if without:
    return findings.failed(
      f"{findings.some(without)} has no default.", "Give a Python number."
    )
  steady = subject.steady
  if steady is None:
    return findings.not_decidable(
      f"{', '.join(tunable)} can be set; training is random with all of them"
      " at 0 too, which hides their effect",
    )
  dead = [
    name
    for name, default in tunable.items()
    if not isinstance(default, str)
    and not any(
      subject.differ(steady, {**steady, name: value})
      for value in ((3, 2) if isinstance(default, int) else (0.5, 0.25))
    )
  ]
  if dead:
    return findings.failed(
      f"{findings.some(dead)} changes nothing.",
      "Bind it to the layers that use it, or remove it.",
    )
  strings = [name for name, v in tunable.items() if isinstance(v, str)]
  return findings.passed(
    f"{', '.join(tunable)} can be set"
    + (f"; not tried: {', '.join(strings)}" if strings else ", with effect")
  )


def batch_is_free(subject: Subject) -> findings.Finding:
  """The batch dimension is unknown."""
  for x in tf.nest.flatten(subject.spec):
    if x.shape.rank and x.shape[0] is not None:
      return findings.failed(
        f"The batch size is fixed: the input has the shape {x.shape}.",
        "Trace with None as the first dimension.",
      )
  return findings.passed("the batch size is free")


def sub_objects_are_whole(subject: Subject) -> findings.Finding:
  """Callable sub-objects have their own variables and losses."""
  children = tf.train.TrackableView(subject.model).children(subject.model)
  found = []
  for name, child in children.items():
    if _NO_SUB_OBJECT.match(name):
      continue
    if hasattr(child, "concrete_functions"):
      if any(trace.variables for trace in child.concrete_functions):
        return findings.failed(
          f"`{name}` is a bare function that uses variables, which consumers"
          " cannot list.",
          "Make it an object with __call__, variables, trainable_variables and"
          " regularization_losses.",
        )
    elif subject_lib.traces_of(child):
      kind = subject_lib.kind_of(child).name
      is_clear = kind in ("plain", name.replace("_", " "))
      found.append(name if is_clear else f"{name} ({kind})")
      for attribute in observation.INTERFACE:
        if not hasattr(child, attribute):
          return findings.failed(
            f"The sub-object `{name}` can be called and has no {attribute}.",
            f"Save {attribute} as an attribute of `{name}`.",
          )
      if missing := _unlisted(child):
        return findings.failed(
          f"The sub-object `{name}` uses {findings.some(missing)}, which its"
          " `variables` lacks.",
          "Save lists of all its variables.",
        )
  if not found:
    return findings.not_applicable("it has none")
  return findings.passed(f"{', '.join(sorted(found))}")


def is_clean(subject: Subject) -> findings.Finding:
  """It has no optimizer state and no absolute path of the exporting machine."""
  objects = subject.graph.object_graph_def
  names = [
    *(child.local_name for node in objects.nodes for child in node.children),
    *(node.variable.name for node in objects.nodes),
    *(
      node.name
      for node in subject.graph.graph_def.node
      if node.op in ("VariableV2", "VarHandleOp")
    ),
  ]
  optimizers = list(filter(_OPTIMIZER.search, names))
  if optimizers:
    return findings.failed(
      f"It holds the state of an optimizer ({optimizers[0]}), which consumers"
      " cannot use.",
      "Save it without: Model.save(…, include_optimizer=False).",
    )
  for file in subject.files:
    if file.startswith("variables/"):
      continue
    found = _ABSOLUTE_PATH.search(subject.content(file))
    if found:
      return findings.failed(
        f"{file} has the path {found[0].decode()} of the exporting machine.",
        "Save files as tf.saved_model.Asset, and keep paths out of names.",
      )
  return findings.passed("no optimizer, no absolute path")


def is_served(subject: Subject) -> findings.Finding:
  """A signature `serving_default` has named inputs and outputs."""
  if subject.serving is None:
    return findings.failed(
      "There is no signature serving_default; there are:"
      f" {', '.join(subject.signatures) or 'none'}.",
      'Save with signatures={"serving_default": …}.',
    )
  if tables := [op for op in subject.op_counts if _UNSERVED.fullmatch(op)]:
    return findings.failed(
      f"{tables[0]} makes a new table in each session: TensorFlow Serving fails"
      " with “Table not initialized”.",
      "Make the table without experimental_is_anonymous.",
    )
  names = [*subject.serving.inputs, *subject.serving.outputs]
  unnamed = [name for name in names if _NO_NAME.fullmatch(name)]
  if unnamed:
    return findings.failed(
      f"serving_default has the generated names {findings.some(unnamed)}.",
      "Name inputs in their TensorSpecs and outputs in a dict.",
    )
  return findings.passed(f"serving_default with {', '.join(names)}")


def returns_logits(subject: Subject) -> findings.Finding:
  """The outputs are logits, not probabilities."""
  spec = subject.output_spec
  if (
    isinstance(spec, tf.TensorSpec)
    and spec.dtype.is_floating
    and (spec.shape.rank or 0) > 1
  ):
    outputs = np.asarray(subject.model(subject.example()))
    trace = subject.traces[0]
    *_, (made, _) = graphs.origins(
      trace.graph.as_graph_def(), trace.outputs[0].name
    )
    is_softmax = (
      outputs.shape[-1] > 1
      and np.all(outputs >= 0)
      and np.allclose(outputs.sum(-1), 1, atol=1e-5)
    )
    if is_softmax or made.op == "Sigmoid":
      return findings.failed(
        f"It returns probabilities (by {made.op}), not logits.",
        "Remove the last activation; losses apply it with from_logits=True.",
      )
  return findings.passed("the outputs are not probabilities")


def is_documented(subject: Subject) -> findings.Finding:
  """The documentation says how to fine-tune."""
  if subject.model and not getattr(subject.model, "trainable_variables", ()):
    return findings.not_applicable("there is nothing to train")
  card = subject_lib.CARD
  text = subject.card
  if text is None:
    return findings.not_decidable(f"there is no {card}; it may be elsewhere")
  # Not one pattern, whose search would take quadratic time.
  _, *after = re.split("(?i)regulari[sz]ation ", text, maxsplit=1)
  said = {
    "how to fine-tune": "trainable=True" in text,
    "that regularization in the optimizer is missing": any(
      re.search("(?i)optimizer", part) for part in after
    ),
  }
  missing = [what for what, is_said in said.items() if not is_said]
  if missing:
    return findings.failed(
      f"{card} does not say {' and '.join(missing)}.",
      "Say how to fine-tune, and that a SavedModel does not include weight"
      " decay in an optimizer.",
    )
  return findings.passed(f"{card} says how to fine-tune")


def compiles_once(subject: Subject) -> findings.Finding:
  """A train step compiles once under XLA (`jit_compile=True`)."""
  if subject.takes_strings:
    return findings.not_applicable("XLA takes no strings")
  if not list(getattr(subject.model, "trainable_variables", ())):
    return findings.not_applicable("there is nothing to train")
  step = compiled_step.compiled(subject.model, subject.example())
  if step.failed:
    return findings.not_decidable(
      f"a train step fails without XLA too: {step.failed}"
    )
  if step.refused:
    fix = "Replace this op in the model."
    if "gradient of" in step.refused:
      fix = (
        "Compute without a branch on a Tensor. TensorFlow differentiates one"
        " that was traced outside of XLA with ops that XLA lacks."
      )
    if "While (" in step.refused:
      fix = (
        "Give the loop maximum_iterations, or the Keras layer unroll=True. If"
        " the loop must have any length, except R14: XLA cannot compile it."
      )
    return findings.failed(
      "XLA refuses a train step under jit_compile=True on the CPU:"
      f" {step.refused}.",
      fix,
    )
  if step.baked:
    return findings.failed(
      f"Under jit_compile=True {findings.some(step.baked, 2)} are constants of"
      " the compiled train step, and every step compiles anew"
      + "".join(f"; {cause}" for cause in step.causes[:3])
      + ".",
      "Give these ops a gradient that makes its own constants. For a global"
      " mean, keep the dimensions and squeeze them.",
    )
  return findings.passed(
    "batch and variables are parameters of a compiled train step"
  )
