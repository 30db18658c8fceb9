"""Rules for recurrent models: G1 to G3 for generators, C1 for cells."""

from collections.abc import Callable, Sequence
import contextlib
import re

import numpy as np
import tensorflow as tf

from exporters.conformance import findings
from exporters.conformance import subject as subject_lib
from exporters.reusable import comparison

Subject = subject_lib.Subject

_PROMPTS = ("It is", "", "naïve")
_LIST = "return the list of all"
_MANY = 70  # Ids in a long sequence, more than in a sequence for training.
_COLD = 1e-3  # A temperature at which the most likely ids are taken.
# Parts of the tokens that tokenizers write for unknown words.
_UNKNOWN = re.compile("unk|⁇", re.I)


def generates(subject: Subject) -> findings.Finding:
  """`generate` returns a text for each prompt, the same for the same seed."""

  def texts(
    seed: int,
    prompts: Sequence[str] = _PROMPTS,
    length: int = 32,
    temperature: float = 1.0,
  ) -> list[bytes]:
    made = subject.model.generate(
      tf.constant(prompts), length=length, temperature=temperature, seed=seed
    )
    count = [len(prompts)]
    return tf.ensure_shape(tf.cast(made, tf.string), count).numpy().tolist()

  try:
    texts(0, _PROMPTS[:1])
    first, again, *others = [texts(seed) for seed in (1, 1, 2, 3, 4)]
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
  if problem := _ignored(texts):
    return findings.failed(
      f"`generate` {problem}.", "Continue each prompt with these arguments."
    )
  return findings.passed("any number of prompts, the same by seed")


def _ignored(texts: Callable[..., list[bytes]]) -> str:
  """Names an argument without effect, or describes a wrong use of prompts.

  Args:
    texts: Generates texts for a seed, prompts, a length and a temperature.
  """
  seeds = (1, 2)
  usual = [texts(seed) for seed in seeds]
  for changed in ({"length": 8}, {"temperature": _COLD}):
    if usual == [texts(seed, **changed) for seed in seeds]:
      return f"ignores {', '.join(changed)}"
  prompts = [("It is", x, "naïve") for x in ("The end", "A list.")]
  is_deaf = []
  for seed, temperature in ((1, 1.0), (2, 1.0), (1, _COLD)):
    first, second = (texts(seed, x, temperature=temperature) for x in prompts)
    if first[::2] != second[::2]:
      return "continues a prompt otherwise beside another one"
    is_deaf.append(first[1] == second[1])
  if all(is_deaf):
    return "ignores a prompt, or continues another one"
  with contextlib.suppress(tf.errors.OpError):  # 0 may be refused.
    coldest, cold = (texts(1, temperature=x) for x in (0.0, _COLD**2))
    if not set(coldest) & set(cold):
      return "does not take the most likely ids with a temperature of 0"
  (made,) = texts(1, [_LIST])
  made = made.decode(errors="replace")
  # `generate` may return the continuation alone.
  if _LIST[-8:] in made and _LIST not in made and not _UNKNOWN.search(made):
    return f"returns {made[: len(_LIST)]!r}… for the prompt {_LIST!r}"
  return ""


def steps(subject: Subject) -> findings.Finding:
  """`step`, called id by id, returns the logits of a call with all ids."""
  count = 0
  for ids in _any_ids(subject):
    logits = []
    try:
      states = _zeros(subject, ids.shape[0])
      for each in tf.unstack(ids, axis=1):
        made, *states = subject.model.step([each, *states])
        logits.append(made)
      logits = tf.stack(logits, 1)
    except Exception as e:
      if count:  # States may have room for few ids.
        break
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
        f"`step` and a call differ: {problems[0]}.",
        "Compute both with the same cell, from states of zeros.",
      )
    count = ids.shape[1]
  return findings.passed(f"the same for {count} ids")


def _any_ids(subject: Subject) -> list[tf.Tensor]:
  """Makes short and long sequences of ids from the whole vocabulary.

  Leaves out those that a call refuses. If it refuses all, returns the example.
  """
  ids = subject.example()
  size = subject.output_spec.shape[-1] or 1
  few, many = (
    tf.random.stateless_uniform(shape, [0, 0], 0, size, ids.dtype)
    for shape in (ids.shape, [ids.shape[0], _MANY])
  )
  taken = []
  for each in (few, many):
    with contextlib.suppress(ValueError, tf.errors.OpError):
      subject.model(each)
      taken.append(each)
  return taken or [ids]


def tokenizes(subject: Subject) -> findings.Finding:
  """`tokenize` returns int32 ids that a call takes; `detokenize` undoes it."""
  texts = tf.constant(["It is", "the end", "the end " * 200])
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
  kept = [x == y for x, y in pairs]
  if kept[1] and not kept[2]:
    return findings.failed(
      f"A text of {len(pairs[2][0])} words has the ids of one of"
      f" {len(pairs[2][1])} words.",
      "Return all ids of a text, of any length.",
    )
  if is_known and not any(kept):
    return findings.failed(
      f"`detokenize` returns {' '.join(pairs[1][1])!r} for the ids of"
      f" {' '.join(pairs[1][0])!r}.",
      "Return the text that `tokenize` took.",
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
  """Returns the initial states: zeros of `state_sizes`."""
  sizes = np.asarray(subject.model.state_sizes()).tolist()
  return [tf.zeros([batch_size, units]) for units in sizes]
