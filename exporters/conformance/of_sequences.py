"""Rules for recurrent models: G1 to G3 for generators, C1 for cells."""

import re

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import subject as subject_lib
from exporters.reusable import comparison

Subject = subject_lib.Subject

_PROMPTS = ("It is", "", "naïve")
# What tokenizers write for words that they do not know.
_UNKNOWN = re.compile("unk|⁇", re.I)


def generates(subject: Subject) -> findings.Finding:
  """`generate` returns a text for each prompt, the same for the same seed."""

  def texts(count: int, seed: int) -> list[bytes]:
    made = subject.model.generate(
      tf.constant(_PROMPTS[:count]), length=32, temperature=1.0, seed=seed
    )
    return tf.ensure_shape(tf.cast(made, tf.string), [count]).numpy().tolist()

  try:
    texts(1, 0)
    first, again, *others = [texts(3, seed) for seed in (1, 1, 2, 3, 4)]
  except Exception as e:
    return findings.failed(
      "`generate` does not continue strings [batch] with the arguments length,"
      f" temperature and seed: {subject_lib.cause(e)}",
      "Trace it with these arguments, for any number of prompts.",
    )
  if first != again:
    return findings.failed(
      "`generate` returns different texts for the same seed.",
      "Draw with tf.random.stateless_* and this seed.",
    )
  if others == [first] * len(others):
    return findings.failed(
      "`generate` returns the same texts for four seeds.",
      "Make the random numbers depend on the seed.",
    )
  return findings.passed("any number of prompts, the same by seed")


def steps(subject: Subject) -> findings.Finding:
  """`step`, called id by id, returns the logits of a call with all ids."""
  ids = subject.example()
  logits = []
  try:
    states = _zeros(subject, ids.shape[0])
    for each in tf.unstack(ids, axis=1):
      made, *states = subject.model.step([each, *states])
      logits.append(made)
    logits = tf.stack(logits, 1)
  except Exception as e:
    return findings.failed(
      "`step` does not take and return a list of ids or logits [batch, …] and"
      f" of states of `state_sizes`: {subject_lib.cause(e)}",
      "Trace it with [ids, *states], and save state_sizes as a function.",
    )
  name = "its result for the last of the ids or one before"
  _, problems = comparison.compare(
    "outputs", {name: subject.model(ids).numpy()}, {name: logits.numpy()}
  )
  if problems:
    return findings.failed(
      f"`step` is not the call: {problems[0]}.",
      "Compute both with the same cell, from states of zeros.",
    )
  return findings.passed(f"the same for {ids.shape[1]} ids")


def tokenizes(subject: Subject) -> findings.Finding:
  """`tokenize` returns int32 ids that a call takes; `detokenize` undoes it."""
  texts = tf.constant(["It is", "the end"])
  try:
    ids = subject.model.tokenize(texts)
    logits = subject.model(ids.to_tensor())
    again = subject.model.detokenize(ids)
  except Exception as e:
    return findings.failed(
      "`tokenize`, a call and `detokenize` do not fit together:"
      f" {subject_lib.cause(e)}",
      "tokenize takes strings [batch] and returns an int32 RaggedTensor, which"
      " detokenize takes.",
    )
  if ids.dtype != tf.int32 or again.dtype != tf.string:
    return findings.failed(
      f"`tokenize` returns {ids.dtype.name}, `detokenize` {again.dtype.name}.",
      "Return int32 and strings.",
    )
  pairs = [
    (x.decode().split(), y.decode(errors="replace").split())
    for x, y in zip(texts.numpy(), again.numpy(), strict=True)
  ]
  is_known = not any(_UNKNOWN.search(" ".join(y)) for _, y in pairs)
  if is_known and all(x != y for x, y in pairs):
    return findings.failed(
      f"`detokenize` makes {' '.join(pairs[1][1])!r} of the ids of"
      f" {' '.join(pairs[1][0])!r}.",
      "Return the text that `tokenize` made the ids of.",
    )
  return findings.passed(f"{ids.flat_values.shape[0]} ids, {logits.shape}")


def is_cell(subject: Subject) -> findings.Finding:
  """A cell takes, uses and returns states of `state_sizes`, for any batch."""
  for batch_size in (1, 3):
    try:
      states = _zeros(subject, batch_size)
      inputs = subject.example(batch_size)[0]
      _, *returned = subject.model([inputs, *states])
    except Exception as e:
      return findings.failed(
        "It does not take states of `state_sizes` and a batch of"
        f" {batch_size}: {subject_lib.cause(e)}",
        "Trace it with [inputs, *states], and save state_sizes as a function.",
      )
    taken = list(map(findings.described, states))
    made = list(map(findings.described, returned))
    if taken != made:
      return findings.failed(
        f"It takes the states {', '.join(taken)} and returns"
        f" {', '.join(made)}.",
        "Return new states of the same shapes, in the same order.",
      )

  def step(x: tf.Tensor, shift: float) -> list[np.ndarray]:
    new = subject.model([x, *(state + shift for state in states)])
    return [np.asarray(y) for y in tf.nest.flatten(new)]

  usual = step(inputs, 0.0)
  if np.array_equal(usual[0], step(inputs, 1.0)[0]):
    return findings.failed(
      "Its output does not depend on the states.",
      "Compute it from the states that the cell takes.",
    )
  if all(map(np.array_equal, usual[1:], step(2 * inputs + 1, 0.0)[1:])):
    return findings.failed(
      "The new states do not depend on the inputs.",
      "Return the states after the step.",
    )
  return findings.passed(f"{len(states)} states")


def _zeros(subject: Subject, batch_size: int) -> list[tf.Tensor]:
  """Returns the initial states."""
  sizes = np.asarray(subject.model.state_sizes()).tolist()
  return [tf.zeros([batch_size, units]) for units in sizes]
