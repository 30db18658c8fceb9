r"""Plants faults in exports and in code, and prints what finds each.

A fault that survives is a hole in verification or in the tests, or has no
effect.

  bazel run //exporters/reusable:mutants [-- CODE_FAULTS [SEED [EXPORT…]]]

CODE_FAULTS is the number of faults in each module of `source_mutants`, 6 by
default, SEED chooses them, and each EXPORT is one of small, bert, resnet.
"""

import collections
from collections.abc import Iterator, Sequence
import itertools
import os
import sys
import tempfile
import time
from typing import Any

from absl import app
from official.nlp.configs import encoders
from official.vision.modeling import backbones
import tensorflow as tf
import tf_keras

from distribution import scratch
from exporters.reusable import hyperparameters
from exporters.reusable import mutants
from exporters.reusable import saving
from exporters.reusable import source_mutants
from exporters.reusable import xla
from models.nlp import bert
from models.vision import stochastic_depth


def _small() -> tuple[Any, ...]:
  """Builds a model with most of the features that `saving` and `xla` handle."""
  layers = tf_keras.layers
  model = tf_keras.Sequential(
    [
      layers.InputLayer((4, 3)),
      layers.Conv1D(5, 2, padding="same", use_bias=False),
      layers.BatchNormalization(momentum=0.8),
      layers.Dense(3, "relu", kernel_regularizer="l2"),
      layers.LayerNormalization(epsilon=1e-6),
      layers.Flatten(),
      layers.Dropout(0.5),
      layers.Dense(2, kernel_regularizer="l2"),
    ]
  )
  spec = tf.TensorSpec([None, 4, 3], tf.float32, "features")
  return model, spec, {}, saving.of_mixed_precision(spec)


def _bert() -> tuple[Any, ...]:
  """Builds an encoder of two layers, with dropout."""
  config = encoders.EncoderConfig(type="bert")
  config.override(
    {
      "bert": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
      }
    }
  )
  names = ("input_word_ids", "input_mask", "input_type_ids")
  spec = {name: tf.TensorSpec([None, None], tf.int32) for name in names}
  int64 = [tf.TensorSpec([None, None], tf.int64)] * 3
  layer_calls = {
    layer: xla.with_own_gradients_of(*functions)
    if functions
    else xla.with_own_gradient
    for layer, functions in bert.OWN_GRADIENTS.items()
  }
  model = encoders.build_encoder(config)
  return model, spec, layer_calls, [[*spec.values()], int64]


def _resnet() -> tuple[Any, ...]:
  """Builds a ResNet with batch normalization and stochastic depth."""
  backbone = backbones.ResNet(
    10,
    depth_multiplier=0.25,
    init_stochastic_depth_rate=0.2,
    kernel_regularizer=tf_keras.regularizers.L2(1e-3),
  )
  images = tf_keras.Input([None, None, 3])
  pooled = tf_keras.layers.GlobalAveragePooling2D()(backbone(images)["5"])
  spec = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
  layer_calls = {
    "official.vision.modeling.layers.nn_layers.StochasticDepth": (
      stochastic_depth.without_branch
    )
  }
  return tf_keras.Model(images, pooled), spec, layer_calls, []


# How to build each model, the size of an example, the number of comparisons,
# and how many faults to plant.
_SUBJECTS = {
  "small": (_small, [4, 3], 48, 150),
  "bert": (_bert, [6], 38, 60),
  # 32 x 32 pixels shrink to one, and batch normalization of so few and nearly
  # equal values magnifies rounding errors.
  "resnet": (_resnet, [64, 64, 3], 46, 60),
}

_OPERANDS = 853  # The most ops and operands of "small" after slimming.


def _subject(name: str, directory: str) -> mutants.Subject:
  """Exports one of `_SUBJECTS`.

  Raises:
    AssertionError: Verification refuses the export, or makes another number of
      comparisons than expected.
  """
  tf_keras.utils.set_random_seed(0)
  build, size, count, _ = _SUBJECTS[name]
  model, spec, layer_calls, also_takes = build()
  mutants.spread(model)
  source = saving.source(
    model,
    spec,
    hyperparameters=hyperparameters.of_model(model),
    layer_calls=layer_calls,
    autograph=False,
  )
  examples = [
    tf.nest.map_structure(lambda s, n=n: _example(s, [n, *size]), spec)
    for n in (3, 1)
  ]
  path = os.path.join(directory, name)
  of = mutants.subject(name, source, examples, path, also_takes)
  results = mutants.check(of, path)
  assert not any(r.problems for r in results), results
  assert len(results) == count, f"{len(results)} comparisons of {name}"
  return of


def _example(spec: tf.TensorSpec, shape: Sequence[int]) -> tf.Tensor:
  seed = [shape[0], 0]
  if spec.dtype == tf.float32:
    return tf.random.stateless_normal(shape, seed)
  return tf.random.stateless_uniform(shape, seed, 0, 2, spec.dtype)


def prove() -> None:
  """Exports and verifies a model, and plants some faults in the export.

  Raises:
    AssertionError: Verification refuses the export or misses a fault, or the
      export has too many ops and operands.
  """
  with tempfile.TemporaryDirectory() as directory:
    of = _subject("small", directory)
    export = mutants.read(of.export_dir)
    nodes = [n for f in export.library.function for n in f.node_def]
    operands = sum(1 + len(node.input) for node in nodes)
    assert operands <= _OPERANDS, f"{operands} ops and operands are left"
    for fault in mutants.sample(mutants.faults(export), 8):
      assert mutants.found_by(of, fault), (
        f"{fault.kind} ({fault.where}) survives"
      )


# The kind of a fault, its place, and what finds it.
_Found = tuple[str, str, str | None]


def _of_exports(
  names: Sequence[str], not_planted: collections.Counter[str]
) -> Iterator[_Found]:
  """Plants faults in exports of `names`, and yields what finds each.

  Faults without effect are not planted. `not_planted` counts them by reason.
  """
  for name in names:
    with tempfile.TemporaryDirectory() as directory:
      of = _subject(name, directory)
      every = list(mutants.faults(mutants.read(of.export_dir)))
      not_planted.update(f.equivalent for f in every if f.equivalent)
      for fault in mutants.sample(every, _SUBJECTS[name][-1]):
        where = f"{name}: {fault.where}"
        yield f"export, {fault.kind}", where, mutants.found_by(of, fault)


def main(argv: Sequence[str]) -> None:
  """Plants faults, and prints what finds them."""
  given = dict(zip(("of_module", "seed"), map(int, argv[1:3]), strict=False))
  numbers = {"of_module": 6, "seed": 0} | given
  found = collections.defaultdict(collections.Counter)
  not_planted: collections.Counter[str] = collections.Counter()
  survivors = []
  begin = time.monotonic()
  planted = itertools.chain(
    source_mutants.planted(prove=prove, not_planted=not_planted, **numbers),
    _of_exports(argv[3:] or [*_SUBJECTS], not_planted),
  )
  for i, (kind, where, by) in enumerate(planted, 1):
    if by is None:
      survivors.append(f"{kind} ({where})")
    found[kind][by.partition(":")[0] if by else "NOTHING"] += 1
    line = f"{kind} ({where}): {by or 'SURVIVES'}"[:200]
    print(f"{time.monotonic() - begin:5.0f} s {i:4} {line}", flush=True)
  for kind in sorted(found):
    by = ", ".join(f"{k} {n}" for k, n in found[kind].most_common())
    print(f"{found[kind].total():4} {kind}: {by}")
  for reason, number in not_planted.items():
    print(f"{number:4} not planted: {reason}")
  for survivor in survivors:
    print(f"survives: {survivor}")
  count = sum(by.total() for by in found.values())
  print(f"{len(survivors)} of {count} faults survive.")
  sys.exit(len(survivors) > 0.02 * count)


if __name__ == "__main__":
  # Tests that run in this process need parsed flags. `scratch` removes the
  # temporary files that forks leave behind.
  app.run(scratch.of_program()(main))
