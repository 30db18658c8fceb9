"""Replaces gradients that slow down the train step of an export's consumer.

In the consumer's graph a function of a SavedModel is one node, and its gradient
is another. XLA decides for each node as a whole which inputs must be known at
compile time. If the gradient takes a single constant from the function, such as
the paddings of a Pad or the axes of a Transpose, all inputs of the function
must be known at compile time. XLA then compiles the batch and the weights into
the program, and recompiles it for every batch.

`with_own_gradient` gives a layer a gradient that calls the layer again on the
same inputs and differentiates that call, which has its own constants. XLA and
TensorFlow's graph optimizer remove the duplicate and unused ops.
`with_own_gradients_of` does the same for single functions that a layer calls.

`with_own_loop` does the same for each step of a recurrent layer. XLA can
compile its loops, because the input's length limits the number of steps.

`with_closed_gradient` saves ops. TensorFlow derives the gradient of layer
normalization op by op. With a dynamic length, as in exports, it broadcasts the
gradient of each mean with a separate op, to a shape computed at every step.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import inspect
import sys
from typing import Any

import tensorflow as tf
import tf_keras

from exporters.reusable import graphs
from exporters.reusable import layer_calls

# From this epsilon on, cuDNN's smallest, Keras computes layer normalization by
# the op for batch normalization, whose gradient is in closed form.
_FUSED_EPSILON = 1.001e-5


def with_own_gradient(layer: Any) -> Callable[..., Any]:
  """Wraps the `call` of a layer in a function with a custom gradient.

  Outputs and gradients stay the same.

  Args:
    layer: A Keras layer whose `call` returns one Tensor. A layer that draws
      random numbers, such as dropout, keeps its own gradient, because a second
      call would draw other numbers. So does a layer that is not part of Keras
      and uses Tensors from outside, which would get no gradient.
  """
  original = layer.call
  # The `activation` of an RNN is a property, and belongs to the cell.
  attributes = vars(layer)
  activation = attributes.get("activation")
  is_known = _is_of_keras(layer)

  def call(*args: Any, **kwargs: Any) -> Any:
    # A wrapper may have set a Tensor as kernel, as weight normalization does.
    # Scalars are hyperparameters.
    made = {
      name: x
      for name, x in attributes.items()
      if is_known and isinstance(x, tf.Tensor) and x.shape.rank
    }

    def compute(of_made: Sequence[tf.Tensor], *args: Any, **kwargs: Any) -> Any:
      # The activation is applied outside, because its gradient would compute
      # the layer again.
      linear = tf_keras.activations.linear
      values = {"activation": linear} if activation else {}
      values.update(zip(made, of_made, strict=True))
      now = {name: attributes[name] for name in values}
      attributes.update(values)  # Again in the gradient, which is traced later.
      try:
        return original(*args, **kwargs)
      finally:
        attributes.update(now)

    taken = [*made.values()]
    if not is_known and _draws_or_captures(compute, taken, *args, **kwargs):
      return original(*args, **kwargs)
    outputs = _function_computed_again(compute)(taken, *args, **kwargs)
    return activation(outputs) if activation else outputs

  return call


def _is_of_keras(layer: Any) -> bool:
  return type(layer).__module__.startswith(f"{tf_keras.__name__}.")


def _draws_or_captures(
  compute: Callable[..., Any], *args: Any, **kwargs: Any
) -> bool:
  """Traces a function to see if it draws random numbers or uses other floats.

  The latter are Tensors of the graph in which the function is called.
  """
  function = tf.function(compute, autograph=False)
  trace = function.get_concrete_function(*args, **kwargs)
  nodes = graphs.all_nodes(trace.graph.as_graph_def())
  return any(graphs.RANDOM.match(node.op) for node in nodes) or any(
    tf.is_symbolic_tensor(x) and x.dtype.is_floating
    for x in trace.captured_inputs
  )


def with_own_gradients_of(
  *functions: str,
) -> Callable[[Any], Callable[..., Any]]:
  """Makes a replacement `call` in which functions have custom gradients.

  Use it for layers whose `call` has dropout or is slow to compute twice.

  Args:
    *functions: Names of functions in the module of the layer's class, such as
      `tf.concat`. Each may take Tensors and other arguments, and returns a
      Tensor. It must neither read variables nor draw random numbers. While
      `call` runs, the functions are replaced process-wide.
  """

  def replacement(layer: Any) -> Callable[..., Any]:
    original = layer.call
    module = sys.modules[original.__module__]

    def call(*args: Any, **kwargs: Any) -> Any:
      with contextlib.ExitStack() as stack:
        for function in functions:
          *path, name = function.split(".")
          owner = functools.reduce(getattr, path, module)
          replaced = getattr(owner, name)
          stack.callback(setattr, owner, name, replaced)
          setattr(owner, name, _function_computed_again(replaced))
        return original(*args, **kwargs)

    return call

  return replacement


def _function_computed_again(
  function: Callable[..., Any],
) -> Callable[..., Any]:
  """Applies `computed_again` to a function that also takes non-Tensors."""

  def call(*args: Any, **kwargs: Any) -> tf.Tensor:
    flat = tf.nest.flatten((args, kwargs))
    places = [
      i
      for i, x in enumerate(flat)
      if isinstance(x, (tf.Tensor, tf.Variable)) and x.dtype.is_floating
    ]
    if not places:
      return function(*args, **kwargs)

    def compute(*tensors: tf.Tensor) -> tf.Tensor:
      values = list(flat)
      for i, tensor in zip(places, tensors, strict=True):
        values[i] = tensor
      again, by_name = tf.nest.pack_sequence_as((args, kwargs), values)
      return function(*again, **by_name)

    return computed_again(compute)(
      *map(tf.convert_to_tensor, (flat[i] for i in places))
    )

  return call


def computed_again(compute: Callable[..., Any]) -> Callable[..., Any]:
  """Gives a function a gradient that differentiates a second call of it.

  Args:
    compute: Takes Tensors, and returns a Tensor or a list of them.
  """

  @tf.custom_gradient
  def forward(*inputs: tf.Tensor) -> Any:
    def gradient(*upstream: tf.Tensor, variables: Any = ()) -> Any:
      # If two inputs are one Tensor, each would get the gradient of both.
      apart = [tf.identity(x) for x in inputs]
      with tf.GradientTape() as tape:
        tape.watch([x for x in apart if x.dtype.is_floating])
        again = compute(*apart)
      of_inputs, of_variables = tape.gradient(
        again, (apart, list(variables)), list(upstream)
      )
      if not variables:
        return of_inputs
      return of_inputs, [tf.convert_to_tensor(g) for g in of_variables]

    return compute(*inputs), gradient

  return forward


def step_computed_again(
  model: tf_keras.layers.Layer, compute: Callable[..., Any]
) -> Callable[..., Any]:
  """Applies `computed_again` to a function that runs in a consumer's loop.

  In loops TensorFlow supports no gradient that reads variables. So the weights
  become inputs: during the call, Tensors replace them in the layers.

  Args:
    model: The model or layer that contains the layers `compute` calls.
    compute: Takes Tensors, and returns a Tensor or a list of them.
  """
  weights = {id(weight) for weight in model.weights}
  places = [
    (vars(layer), name)
    for layer in layer_calls.modules(model)
    for name, value in vars(layer).items()
    if id(value) in weights
  ]

  @computed_again
  def with_weights(*inputs: tf.Tensor) -> Any:
    own = [attributes[name] for attributes, name in places]
    try:
      for (attributes, name), value in zip(places, inputs, strict=False):
        attributes[name] = value
      return compute(*inputs[len(places) :])
    finally:
      for (attributes, name), weight in zip(places, own, strict=True):
        attributes[name] = weight

  return lambda *inputs: with_weights(
    *(tf.convert_to_tensor(attributes[name]) for attributes, name in places),
    *inputs,
  )


def with_own_loop(layer: Any) -> Callable[..., Any]:
  """Makes a `call` of a recurrent layer whose loops XLA can compile.

  Outputs and gradients stay the same. The backward pass is a separate loop that
  recomputes each step from its input and states. The layer's own `call` is the
  fallback for masks, initial states, cells that draw random numbers or update
  variables, and layers that keep or return states. `REPLACEMENTS` omits LSTM
  and GRU layers, whose own `call` has a cuDNN kernel for GPUs.

  Args:
    layer: A `tf_keras.layers.RNN`, or an instance of a subclass.
  """
  original = layer.call
  own = ("stateful", "unroll", "return_state", "time_major")
  of_cells = ("dropout", "recurrent_dropout")
  parts = layer_calls.modules(layer)
  if any(getattr(layer, name) for name in own) or any(
    getattr(cell, name, 0) for cell in parts for name in of_cells
  ):
    return original
  is_known = all(map(_is_of_keras, parts))

  takes_training = "training" in inspect.signature(layer.cell.call).parameters

  # Saving in Keras' format passes all arguments by position.
  def call(
    inputs: Any,
    mask: Any = None,
    training: Any = None,
    *args: Any,
    **kwargs: Any,
  ) -> Any:
    others = [mask, *args, *kwargs.values()]
    is_plain = isinstance(inputs, tf.Tensor) and all(x is None for x in others)
    # Passed to the cell, as in Keras, because Keras does not know the mode when
    # gradients are traced.
    mode = {"training": training} if takes_training else {}
    cell = functools.partial(layer.cell, **mode)

    def first_step(x: tf.Tensor) -> Any:
      return cell(x[:, 0], layer.get_initial_state(x))

    if (
      not is_plain
      or not all(v.trainable for v in layer.variables)
      or not (is_known or not _draws_or_captures(first_step, inputs))
    ):
      return original(inputs, mask, training, *args, **kwargs)
    outputs = _looped(layer, cell)(inputs)
    return tf.ensure_shape(outputs, layer.compute_output_shape(inputs.shape))

  return call


def _looped(layer: Any, cell: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function that runs a recurrent layer, with a gradient of its own.

  Args:
    layer: The layer.
    cell: Its cell, in the mode of the call.
  """

  def swapped(x: tf.Tensor) -> tf.Tensor:
    """Swaps the axes of batch and steps."""
    return tf.transpose(x, [1, 0, 2])

  @tf.custom_gradient
  def run(inputs: tf.Tensor) -> Any:
    initial = layer.get_initial_state(inputs)
    by_step = swapped(inputs)
    if layer.go_backwards:
      by_step = tf.reverse(by_step, [0])

    def step(x: tf.Tensor, states: Sequence[tf.Tensor]) -> list[tf.Tensor]:
      structure = tf.nest.pack_sequence_as(initial, states)
      return tf.nest.flatten(cell(x, structure))

    def forward(i: tf.Tensor, states: Sequence[tf.Tensor]) -> Any:
      output, *new_states = step(by_step[i], states)
      return [output, *states], new_states

    flat = tf.nest.flatten(initial)
    widths = [layer.cell.output_size, *(x.shape[-1] for x in flat)]
    outputs, *states = _loop(forward, tf.shape(by_step)[0], flat, widths)[0]
    # A consumer's eager tape makes these outputs of the loaded function.
    # Without stop_gradient it would differentiate the loop above, too.
    by_step, *states = map(tf.stop_gradient, [by_step, *states])

    def gradient(upstream: tf.Tensor, variables: Any = ()) -> Any:
      if layer.return_sequences:
        upstream = swapped(upstream)
      else:
        before = [tf.shape(by_step)[0] - 1, 0]
        upstream = tf.pad(upstream[tf.newaxis], [before, [0, 0], [0, 0]])
      of_x, of_variables = _backward(
        step, by_step, states, upstream, list(variables)
      )
      of_inputs = swapped(tf.reverse(of_x, [0]) if layer.go_backwards else of_x)
      return (of_inputs, of_variables) if variables else of_inputs

    return swapped(outputs) if layer.return_sequences else outputs[-1], gradient

  return run


def _backward(
  step: Callable[..., Sequence[tf.Tensor]],
  by_step: tf.Tensor,
  states: Sequence[tf.Tensor],
  upstream: tf.Tensor,
  variables: Sequence[tf.Variable],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
  """Computes the gradients of a recurrent layer, from its last step back.

  Args:
    step: Takes an input and states; returns an output and states.
    by_step: The inputs, `[size, batch, width]`.
    states: The states before each step, each `[size, batch, width]`.
    upstream: The gradient of the outputs, `[size, batch, width]`.
    variables: The variables that `step` reads.

  Returns:
    The gradients of `by_step` and of the variables.
  """
  size = tf.shape(by_step)[0]

  def back(count: tf.Tensor, carried: Any) -> Any:
    i = size - 1 - count
    of_states, sums = carried
    x, before = by_step[i], [state[i] for state in states]
    with tf.GradientTape() as tape:
      tape.watch([x, before])
      results = step(x, before)
    of_x, of_before, of_variables = tape.gradient(
      results,
      [x, before, variables],
      [upstream[i], *of_states],
      unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    pairs = zip(sums, of_variables, strict=True)
    return [of_x], [of_before, [a + b for a, b in pairs]]

  zeros = [tf.zeros_like(state[0]) for state in states]
  carried = [zeros, [tf.zeros_like(v) for v in variables]]
  (of_x,), (_, sums) = _loop(back, size, carried, [by_step.shape[-1]])
  return tf.reverse(of_x, [0]), sums


def _loop(
  step: Callable[[tf.Tensor, Any], tuple[Sequence[tf.Tensor], Any]],
  size: tf.Tensor,
  carried: Any,
  widths: Sequence[int],
) -> tuple[list[tf.Tensor], Any]:
  """Calls `step` with 0, 1, … `size` - 1 in a loop that XLA can compile.

  Args:
    step: Takes the step's number and the state of the loop; returns results,
      each `[batch, width]`, and the new state of the loop.
    size: The number of steps.
    carried: The initial state of the loop.
    widths: The width of each result.

  Returns:
    The results, each `[size, batch, width]`, and the final state of the loop.
  """
  dtype = tf.nest.flatten(carried)[0].dtype
  arrays = [
    tf.TensorArray(dtype, size, element_shape=[None, width]) for width in widths
  ]

  def body(i: tf.Tensor, arrays: Any, carried: Any) -> Any:
    results, carried = step(i, carried)
    pairs = zip(arrays, results, strict=True)
    return i + 1, [array.write(i, x) for array, x in pairs], carried

  _, arrays, carried = tf.while_loop(
    lambda i, *_: i < size,
    body,
    (0, arrays, carried),
    maximum_iterations=size,
  )
  return [array.stack() for array in arrays], carried


def with_closed_gradient(
  layer: tf_keras.layers.LayerNormalization,
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Makes a `call` of layer normalization with a gradient in closed form.

  Outputs and gradients stay the same. The layer's own `call` is the fallback
  where Keras computes differently: for dtypes other than float32, for axes
  other than the last, without scale or center, and from `_FUSED_EPSILON` on.
  """
  original = layer.call
  if layer.epsilon >= _FUSED_EPSILON or not (layer.scale and layer.center):
    return original

  @tf.custom_gradient
  def normalize(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
    # The same ops as in Keras.
    mean, variance = tf.nn.moments(inputs, -1, keepdims=True)
    outputs = tf.nn.batch_normalization(
      inputs, mean, variance, beta, gamma, layer.epsilon
    )

    # The backward pass of batch normalization (Ioffe and Szegedy, 2015, section
    # 3), over the last axis in place of the batch.
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
      inverse = tf.math.rsqrt(variance + layer.epsilon)
      normalized = (inputs - mean) * inverse
      of_gamma = upstream * normalized
      of_normalized = upstream * gamma
      of_inputs = inverse * (
        of_normalized
        - tf.reduce_mean(of_normalized, -1, keepdims=True)
        - normalized * tf.reduce_mean(of_gamma * gamma, -1, keepdims=True)
      )
      examples = list(range(inputs.shape.rank - 1))
      return (
        of_inputs,
        tf.reduce_sum(of_gamma, examples),
        tf.reduce_sum(upstream, examples),
      )

    return outputs, gradient

  def call(inputs: tf.Tensor) -> tf.Tensor:
    is_plain = isinstance(inputs, tf.Tensor) and inputs.dtype == tf.float32
    if not is_plain or list(layer.axis) != [inputs.shape.rank - 1]:
      return original(inputs)
    return normalize(
      inputs,
      tf.convert_to_tensor(layer.gamma),
      tf.convert_to_tensor(layer.beta),
    )

  return call


CLOSED_GRADIENTS: layer_calls.Replacements = {
  layer_calls.class_name(
    tf_keras.layers.LayerNormalization
  ): with_closed_gradient
}

# Keras layers whose gradient takes a constant from the function, or has a loop
# of unlimited length.
REPLACEMENTS: layer_calls.Replacements = {
  **{
    layer_calls.class_name(layer_type): with_own_loop
    for layer_type in (tf_keras.layers.RNN, tf_keras.layers.SimpleRNN)
  },
  layer_calls.class_name(tf_keras.layers.Bidirectional): with_own_gradients_of(
    "backend.concatenate", "backend.reverse"
  ),
  **{
    layer_calls.class_name(layer_type): with_own_gradient
    for layer_type in (
      # In any configuration.
      tf_keras.layers.Concatenate,
      tf_keras.layers.Dot,
      tf_keras.layers.GlobalMaxPooling1D,
      tf_keras.layers.GlobalMaxPooling2D,
      tf_keras.layers.GlobalMaxPooling3D,
      tf_keras.layers.Permute,
      tf_keras.layers.RepeatVector,
      tf_keras.layers.UpSampling1D,
      tf_keras.layers.UpSampling3D,
      tf_keras.layers.ZeroPadding1D,
      tf_keras.layers.ZeroPadding2D,
      tf_keras.layers.ZeroPadding3D,
      # With causal padding.
      tf_keras.layers.Conv1D,
      tf_keras.layers.SeparableConv1D,
      # With a dynamic dimension besides the batch.
      tf_keras.layers.Dense,
      tf_keras.layers.GlobalAveragePooling1D,
      tf_keras.layers.GlobalAveragePooling2D,
      tf_keras.layers.GlobalAveragePooling3D,
    )
  },
}
