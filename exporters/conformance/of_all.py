"""Rules on the interface: S1, R1, R2, R7, R9, R10, R13, R14 and K1."""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from exporters.conformance import compiled_step
from exporters.conformance import findings
from exporters.conformance import of_inference
from exporters.conformance import of_training
from exporters.conformance import of_variables
from exporters.conformance import subject as subject_lib
from exporters.conformance import vocabulary
from exporters.reusable import observation

Subject = subject_lib.Subject

# Attributes that Keras and TensorFlow add when they save a model. Consumers do
# not call them by name.
_NO_SUB_OBJECT = re.compile(
  "_|layer-|layer_with_weights-|keras_api|signatures$"
  "|call_and_return_all_conditional_losses$"
)
# Absolute paths, recognized by folders that do not occur in names of ops.
_ABSOLUTE_PATH = re.compile(
  rb"/(?:content/drive|home|kaggle|mnt|private|proc|root|srv|tmp|usr|Users"
  rb"|Volumes|var/(?:folders|lib|tmp)|workspace)"
  rb"/[\w./-]*|[A-Z]:\\Users\\[\w.\\-]*"
)
# A default in the text of a card.
_DEFAULT = re.compile(
  r"\b(\w+)`? (?:is (\d*\.?\d+) by default|defaults to (\d*\.?\d+))\b"
)
# An input or output that a card names.
_TAKES = re.compile(r"(?i)\b(takes|returns|(in|out)puts?)\b[^.`]{0,40}`\w+`")
_FEW = 100  # Most values of a string variable that is searched for paths.
_CPU = re.compile(
  "(?i)(/job:localhost)?(/replica:0)?(/task:0)?(/device:CPU:[0*]|/cpu:0)?"
)
_OPTIMIZER = re.compile(
  r"(^|/)(optimizer|experimentalOptimizer|[Nn]?[Aa]dam(_?[Ww]|ax)?|SGD|sgd"
  r"|RMSprop|rmsprop|Momentum|LAMB|Lion|[Aa]da(delta|factor|grad)|[Ff]trl)"
  r"(_\d+)?(/|:|$)"
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
      if not (isinstance(x, tf.TypeSpec) and hasattr(x, "dtype")):
        return findings.failed(
          f"The {what} contains {x!r}, which is not a Tensor.",
          "Take and return Tensors, or lists or dicts of them.",
        )
  return findings.passed("one input, and Tensors as outputs")


class _Endpoint:
  """Makes the endpoint `serve` of a Keras 3 export a callable object."""

  def __init__(self, model: Any):
    self.variables = getattr(model, "variables", ())
    self.serve = vars(self)["__call__"] = model.serve

  def __call__(self, *arguments: Any) -> Any:
    return self.serve(*arguments)


def endpoint(subject: Subject) -> Subject:
  """Returns `serve` of a Keras 3 export as the SavedModel to call."""
  model = _Endpoint(subject.model)
  return subject_lib.Subject(subject.directory, subject.graph, [], model)


def serves(subject: Subject) -> findings.Finding:
  """`serve` computes from each input alone, and its variables are listed.

  keras.layers.TFSMLayer calls it.
  """
  called = endpoint(subject)
  if missing := of_variables.unlisted(called.model):
    return findings.failed(
      f"`serve` uses {findings.some(missing)}, which `variables` lacks.",
      "Export with keras.Model.export.",
    )
  used = {
    v.ref() for f in called.model.serve.concrete_functions for v in f.variables
  }
  listed = subject_lib.variables_of(called.model)
  unused = [v for v in listed if v.ref() not in used]
  if names := subject.constants_of(unused, least_rank=2):
    return findings.failed(
      f"`serve` holds the value of {findings.some(names)} as a constant, so"
      " fine-tuning does not reach its outputs.",
      "Export with keras.Model.export.",
    )
  return of_inference.depends_on_input_alone(called)


def sub_objects_are_whole(subject: Subject) -> findings.Finding:
  """Callable sub-objects list variables and losses, and keep R3, R5, R6, R15.

  They use `training` as the model does, and it has all their losses.
  """
  found, untried = [], []
  for name, child in _sub_objects(subject):
    if hasattr(child, "concrete_functions"):
      # Endpoints of Keras 3 exports share the traces of `__call__`.
      own = [f for f in child.concrete_functions if f not in subject.traces]
      listed = {v.ref() for v in subject.variables}
      if any(v.ref() not in listed for trace in own for v in trace.variables):
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
      # A sub-object without variables needs no lists of variables.
      uses = any(trace.variables for trace in subject_lib.traces_of(child))
      for attribute in observation.INTERFACE if uses else ():
        if not hasattr(child, attribute):
          return findings.failed(
            f"The sub-object `{name}` can be called and has no {attribute}.",
            f"Save {attribute} as an attribute of `{name}`.",
          )
      if missing := of_variables.unlisted(child):
        return findings.failed(
          f"The sub-object `{name}` uses {findings.some(missing)}, which its"
          " `variables` lacks.",
          "Save lists of all its variables.",
        )
      # A freezing profile shares the traces of the model, and trains less.
      if all(trace in subject.traces for trace in subject_lib.traces_of(child)):
        trains = subject_lib.variables_of(child, "trainable_variables")
        trained = {v.ref() for v in subject.trainable_variables}
        if others := [v.name for v in trains if v.ref() not in trained]:
          return findings.failed(
            f"`{name}` has the calls of the model, and trains"
            f" {findings.some(others)}, which the model does not.",
            "List a part of the model's trainable variables.",
          )
      elif _is_trained(subject, child):
        finding = _tried(subject, name)
        if finding.verdict == findings.FAIL:
          return findings.failed(f"`{name}`: {finding.text}", finding.fix)
        if finding.verdict == findings.NOT_DECIDABLE:
          untried.append(f"; {name} was not tried: {finding.text}")
  if not found:
    return findings.not_applicable("it has none")
  return findings.passed(", ".join(sorted(found)) + "".join(untried))


def _is_trained(subject: Subject, child: Any) -> bool:
  """Tells whether a sub-object has its own traces and trainable variables.

  Returns False for layers of a Keras model, which are judged with the model.
  Sub-objects without trainable variables, such as `generate`, have other rules.
  """
  traces = subject_lib.traces_of(child)
  return (
    any(trace not in subject.traces for trace in traces)
    and bool(subject_lib.variables_of(child, "trainable_variables"))
    and "keras_metadata.pb" not in subject.files
  )


def can_be_tuned(subject: Subject) -> findings.Finding:
  """Hyperparameters are scalar arguments with defaults, and have an effect.

  Training differs from inference by noise and batch normalization alone. Both
  hold for sub-objects.
  """
  finding = of_training.can_be_tuned(subject)
  for name, child in _sub_objects(subject):
    if finding.verdict == findings.FAIL:
      return finding
    part = subject.part(name)
    if not _is_trained(subject, child) or not part.hyperparameters:
      continue
    for argument, default in part.hyperparameters.items():
      usual = subject.hyperparameters.get(argument, default)
      if usual != default:
        return findings.failed(
          f"`{name}`: {argument} is {default} by default, and {usual} in a call"
          " of the model.",
          "Give both the same default.",
        )
    with contextlib.suppress(Exception):  # A stranger's program may raise any.
      of_part = of_training.can_be_tuned(part)
      if of_part.verdict == findings.FAIL:
        return findings.failed(f"`{name}`: {of_part.text}", of_part.fix)
  return finding


def _sub_objects(subject: Subject) -> list[tuple[str, Any]]:
  """Returns the sub-objects by their names, such as `encoder` or `heads.0`.

  An object that is nested in a list, dict or other object without traces may
  not be meant for consumers. It is returned only if it can be called and lists
  variables and losses.
  """
  children = tf.train.TrackableView.children
  queue = [
    (name, child)
    for name, child in children(subject.model).items()
    if not _NO_SUB_OBJECT.match(name)
  ]
  found, seen = list(queue), {id(child) for _, child in queue}
  if "keras_metadata.pb" in subject.files:  # Keras nests its layers.
    return found
  for name, child in queue:
    if (
      name in observation.INTERFACE
      or subject_lib.traces_of(child)
      or hasattr(child, "concrete_functions")
      or isinstance(child, tf.Variable)
    ):
      continue
    for key, inner in children(child).items():
      if id(inner) not in seen and "." not in key:
        seen.add(id(inner))
        entry = (f"{name}.{key}", inner)
        queue.append(entry)
        if all(hasattr(inner, x) for x in observation.INTERFACE):
          found.append(entry)
  return found


def _tried(subject: Subject, name: str) -> findings.Finding:
  """Applies rules on training and inference to a sub-object.

  Also compares its modes and losses with those of the model.
  """
  part = subject.part(name)
  try:
    for judge in (
      *[of_training.has_modes] * bool(part.training),
      of_variables.has_losses,
      of_variables.lists_variables,
      of_inference.depends_on_input_alone,
    ):
      finding = judge(part)
      if finding.verdict == findings.FAIL:
        return finding
    if of_training.ignores_mode(part, subject):
      return findings.failed(
        "training=True changes nothing, and it changes the same outputs of the"
        " model.",
        "Pass `training` on when tracing.",
      )
    of_part, of_model = (
      observation.regularized(getattr(x.model, "regularization_losses", ()))
      for x in (part, subject)
    )
    both = [
      v for v in subject.trainable_variables if v.ref() in of_part & of_model
    ]
    other = _of_other_weight(part, subject, both) if both else []
  except Exception as e:  # A stranger's program may raise anything.
    return findings.not_decidable(subject_lib.cause(e))
  lost = of_part - of_model
  if names := [v.name for v in subject.trainable_variables if v.ref() in lost]:
    return findings.failed(
      f"it has a regularization loss of {findings.some(names)}, and the model"
      " has none.",
      "List the losses of sub-objects in the model, too.",
    )
  if other:
    return findings.failed(
      f"its regularization losses of {findings.some(other)} are not as large as"
      " those of the model.",
      "Give both the same losses.",
    )
  return finding


def _of_other_weight(
  part: Subject, whole: Subject, variables: Sequence[tf.Variable]
) -> list[str]:
  """Names variables whose losses in two objects differ only by a factor."""
  made = []
  for each in (part, whole):
    with tf.GradientTape() as tape:
      total = [
        tf.cast(loss(), tf.float64) for loss in each.model.regularization_losses
      ]
    zero = tf.UnconnectedGradients.ZERO
    made.append(tape.gradient(total, variables, unconnected_gradients=zero))
  names = []
  for v, *both in zip(variables, *made, strict=True):
    x, y = (np.ravel(tf.convert_to_tensor(g)) for g in both)
    size = np.linalg.norm(x) * np.linalg.norm(y)
    is_multiple = np.dot(x, y) > 0.999 * size > 0
    if is_multiple and not np.allclose(x, y, 1e-2):
      names.append(v.name)
  return names


def is_clean(subject: Subject) -> findings.Finding:
  """It has no optimizer state, unused copies of weights, paths or devices."""
  objects = subject.graph.object_graph_def
  names = [
    *(child.local_name for node in objects.nodes for child in node.children),
    *(node.variable.name for node in objects.nodes),
    *(node.user_object.identifier for node in objects.nodes),
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
  # Keras 3's Model.export saves all variables a second time.
  if subject.kind.name != "Keras 3 export" and (doubles := _doubles(objects)):
    return findings.failed(
      "No function uses these variables, which have the shapes of the trainable"
      f" ones: {findings.some(doubles)}.",
      "Save without what only training needs, such as averages of the weights.",
    )
  for place, content in _contents(subject):
    found = _ABSOLUTE_PATH.search(content)
    for word in _paths_as_words(subject) if found else ():
      content = content.replace(word, b"")
    if found := _ABSOLUTE_PATH.search(content):
      return findings.failed(
        f"{place} has the path {found[0].decode()} of the exporting machine.",
        "Save files as tf.saved_model.Asset, and keep paths out of names.",
      )
  for node in subject.nodes:
    # Every machine has a CPU; ops on strings and files are placed on it.
    if node.device and not _CPU.fullmatch(node.device):
      return findings.failed(
        f"{node.name} is placed on {node.device}, which others may lack.",
        "Trace without tf.device.",
      )
  return findings.passed("no optimizer, no absolute path, no device")


def _doubles(objects: Any) -> list[str]:
  """Names unused variables that look like copies of the trained variables.

  They do if they match more than half of the trained variables in dtype and
  shape. Examples are moving averages of the weights and the slots of an
  optimizer. A few unused variables may be settings or belong to another head.
  """
  used = {
    i for f in objects.concrete_functions.values() for i in f.bound_inputs
  }
  trained, unused = collections.Counter(), []
  for i, node in enumerate(objects.nodes):
    v = node.variable
    key = (v.dtype, tuple(dim.size for dim in v.shape.dim))
    if i not in used and key[1]:
      unused.append((v.name, key))
    elif v.trainable and i in used:
      trained[key] += 1
  doubled = trained & collections.Counter(key for _, key in unused)
  if 2 * doubled.total() <= trained.total():
    return []
  return [name for name, key in unused if key in trained]


def _contents(subject: Subject) -> Iterator[tuple[str, bytes]]:
  """Yields names and contents of files and of string variables of few values.

  Leaves out the checkpoint, and the card, whose paths are on the reader's
  machine.
  """
  for file in subject.files:
    if not file.startswith("variables/") and file != subject_lib.CARD:
      yield file, subject.content(file)
  if subject.model is not None:
    for v in tf.train.TrackableView(subject.model).descendants():
      if isinstance(v, tf.Variable) and v.dtype == tf.string:
        values = np.ravel(v.numpy())
        if len(values) <= _FEW:
          yield v.name, b"\n".join(values)


def _paths_as_words(subject: Subject) -> list[bytes]:
  """Returns words in vocabularies, such as those of code, that look like paths.

  They are words if none of them has a space, and if at most half of the entries
  of their vocabulary look like paths.
  """
  found = []
  for entries in vocabulary.entries(
    subject.directory, subject.files, subject.nodes
  ):
    lines = [x.encode() for x in entries]
    alike = [x for x in lines if _ABSOLUTE_PATH.search(x)]
    are_words = not any(x.split()[1:] for x in alike)
    if are_words and 2 * len(alike) <= len(lines):
      found += alike
  return found


def is_documented(subject: Subject) -> findings.Finding:
  """The documentation says how to fine-tune, and is that of this model."""
  if not subject.trainable_variables:
    return findings.not_applicable("there is nothing to train")
  card = subject_lib.CARD
  text = subject.card
  if text is None:
    return findings.not_decidable(f"there is no {card}; it may be elsewhere")
  try:
    subject.content(card).decode()
  except UnicodeDecodeError as e:
    return findings.failed(
      f"{card} is not UTF-8: {e.reason} at byte {e.start}.", "Save it as UTF-8."
    )
  # Split first: a search with a single pattern takes quadratic time.
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
  for file, problem in (
    (card, _of_another(subject, text)),
    (subject_lib.MODEL, _described_otherwise(subject)),
  ):
    if problem:
      return findings.failed(
        f"{file} is that of another model: {problem}.", "Describe this model."
      )
  return findings.passed(f"{card} says how to fine-tune")


def _of_another(subject: Subject, card: str) -> str:
  """Describes a contradiction between card and model; empty if none."""
  arguments = set(subject.hyperparameters)
  unnamed = {x for x in arguments if x not in card}
  if unnamed and unnamed != arguments:  # Prose may name no argument.
    return f"it does not name the argument {findings.some(sorted(unnamed))}"
  named = {
    name
    for values in re.findall(r"arguments=\{([^{}]*)\}", card)
    for name in re.findall(r"[\"'](\w+)[\"']:", values)
  }
  if wrong := sorted(named - set(subject.parameters)):
    return f"it names the argument {findings.some(wrong)}, which does not exist"
  for name, default in re.findall(r"\| `(\w+)` \| ([^| ]+) \|", card):
    actual = subject.hyperparameters.get(name, default)
    if isinstance(actual, (int, float)) and default not in (
      f"{actual}",
      f"{actual:g}",
    ):
      return f"it says that {name} is {default} by default, and it is {actual}"
  claimed: dict[str, list[str]] = {}
  for name, default, same in _DEFAULT.findall(card):
    claimed.setdefault(name, []).append(default or same)
  for name, defaults in claimed.items():
    actual = subject.hyperparameters.get(name)
    # A card may also have the defaults of other models.
    if isinstance(actual, (int, float)) and actual not in map(float, defaults):
      return f"it says {name} is {defaults[0]} by default, and it is {actual}"
  # Rows of the tables of inputs and outputs in cards of this project.
  rows = re.findall(r"\| `([^`]*)` \| (\w+) \| `\[([^\]]*)\]` \|", card)
  specs = {}
  if subject.serving:
    specs = subject_lib.specs(subject.serving.inputs)
    specs |= subject_lib.specs(subject.serving.outputs)
    named = [x for x in specs if not of_inference.NO_NAME.fullmatch(x)]
    without = [x for x in named if not _is_named(x, card)]
    # A card need not name inputs or outputs, but must not name only others.
    names_others = rows or _TAKES.search(card)
    if without and len(without) == len(specs) and names_others:
      return f"it does not name {findings.some(without)}"
  if specs:
    for name, dtype, shape in rows:
      actual = specs.get(name)
      said = f"{dtype} [{shape}]"
      if actual is None:
        return f"it names {name}, which the model neither takes nor returns"
      found = f"{actual.dtype.name} {actual.shape.as_list()}"
      if not _may_be(actual, dtype, shape):
        return f"it says that {name} is {said}, and it is {found}"
  count = re.search(r"\| parameters \| ([\d,]+) \|", card)
  size, trained = (
    sum(int(tf.size(v)) for v in variables)
    for variables in (subject.variables, subject.trainable_variables)
  )
  if count and int(count[1].replace(",", "")) not in (size, trained):
    return f"it says {count[1]} parameters, and it has {size:,}"
  return ""


def _may_be(spec: tf.TensorSpec, dtype: str, shape: str) -> bool:
  """Tells whether a spec fits a dtype and a shape that a card states.

  A word for a size, such as `batch`, fits any size.
  """
  said = getattr(tf, dtype, None)
  if isinstance(said, tf.DType) and said != spec.dtype:
    return False
  sizes = [int(x) if x.isdecimal() else None for x in re.split(", *", shape)]
  return spec.shape.is_compatible_with(sizes if shape else [])


def _is_named(name: str, card: str) -> bool:
  """Tells whether a card has a name, also as words, such as “image sizes”."""
  word = re.escape(name.removesuffix("s")).replace("_", "[ _]")
  return bool(re.search(rf"(?i)\b{word}s?\b", card))


def _described_otherwise(subject: Subject) -> str:
  """Describes where `model.json` contradicts the model; empty if nowhere."""
  if not subject.described:
    return ""
  try:
    variables, hyperparameters, profiles = (
      [tuple(entry[key] for key in keys) for entry in subject.described[name]]
      for name, keys in (
        ("variables", ("name", "shape", "trainable")),
        ("hyperparameters", ("name", "default")),
        ("profiles", ("name", "trainable_variables")),
      )
    )
  except (KeyError, TypeError):
    return "it lacks entries"
  trainable = {v.ref() for v in subject.trainable_variables}
  actual = [
    (_name(v), v.shape.as_list(), v.ref() in trainable)
    for v in subject.variables
  ]
  if others := [v for v in variables if v not in actual]:
    name, shape, is_trainable = others[0]
    frozen = "" if is_trainable else "not "
    return f"the model has no {frozen}trainable variable {name} {shape}"
  if len(variables) != len(actual):
    return f"it lists {len(variables)} variables of {len(actual)}"
  # The hyperparameters of a Keras model are fixed, so calls do not take them.
  is_keras = subject.described.get("format") == "keras"
  if not is_keras and dict(hyperparameters) != subject.hyperparameters:
    return f"the hyperparameters are {subject.hyperparameters}"
  for name, names in profiles:
    profile = getattr(subject.model, name, None)
    trained = subject_lib.variables_of(profile, "trainable_variables")
    if names != [*map(_name, trained)]:
      return f"the profile {name} trains other variables"
  return ""


def _name(variable: tf.Variable) -> str:
  return variable.name.removesuffix(":0")


def compiles_once(subject: Subject) -> findings.Finding:
  """A train step compiles once under XLA (`jit_compile=True`)."""
  leaves = tf.nest.flatten(subject.spec)
  if any(x.dtype == tf.string for x in leaves):
    return findings.not_applicable("XLA takes no strings")
  if any(isinstance(x, tf.RaggedTensorSpec) for x in leaves):
    return findings.not_applicable("XLA takes no RaggedTensors")
  if not subject.trainable_variables:
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
      "Under jit_compile=True XLA needs the value of"
      f" {findings.some(step.baked, 2)} at compile time, so every train step"
      " recompiles" + "".join(f"; {cause}" for cause in step.causes[:3]) + ".",
      "Give these ops a gradient that computes its own constants. For a global"
      " mean, use keepdims=True, then squeeze.",
    )
  return findings.passed(
    "batch and variables are parameters of a compiled train step"
  )
