"""Batches for training and evaluation, and the time spent waiting for them."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import time

from etils import epy

with epy.lazy_imports():
  import tensorflow as tf

# Largest shuffle buffer, in examples and in bytes. The first batch waits until
# the buffer is full. Pictures are in random order already.
_SHUFFLED, _SHUFFLED_BYTES = 10_000, 2**28


def training(
  examples: tf.data.Dataset, batch_size: int, seed: int | None, step: int = 0
) -> tf.data.Dataset:
  """Returns an endless stream of shuffled batches of equal size.

  Args:
    examples: The examples. Their number and shapes must be known.
    batch_size: Number of examples in a batch.
    seed: Seed of the order. Must be None for workers that draw their own
      batches.
    step: Number of batches to skip, when a training resumes. Whole passes are
      skipped without reading them.
  """
  size = sum(
    spec.shape.num_elements() * spec.dtype.size
    for spec in tf.nest.flatten(examples.element_spec)
  )
  count = int(examples.cardinality())
  most = max(min(count, _SHUFFLED, _SHUFFLED_BYTES // size), 1)
  first, skipped = divmod(step * batch_size, count)

  def one_pass(i: tf.Tensor) -> tf.data.Dataset:
    if seed is None:
      return examples.shuffle(most)
    # Sets a seed for this graph. Without it the op's seed cannot be a Tensor.
    tf.random.set_seed(1)
    return examples.shuffle(most, seed + i)

  passes = tf.data.Dataset.counter(first).flat_map(one_pass)
  return passes.skip(skipped).batch(batch_size, drop_remainder=True)


def testing(examples: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
  """Returns batches with example weights, padded to equal size.

  Padding and examples with a negative class have weight 0.
  """

  def fill(inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    count = tf.shape(labels)[0]
    weights = tf.ones([count])
    if labels.dtype.is_integer:
      weights *= tf.cast(
        tf.reduce_all(tf.reshape(labels, [count, -1]) >= 0, axis=1), tf.float32
      )
      labels = tf.maximum(labels, 0)

    def filled(x: tf.Tensor) -> tf.Tensor:
      missing = [[0, batch_size - count], *[[0, 0]] * (x.shape.rank - 1)]
      return tf.ensure_shape(tf.pad(x, missing), [batch_size, *x.shape[1:]])

    return tf.nest.map_structure(filled, (inputs, labels, weights))

  return for_each_worker(examples.batch(batch_size).map(fill))


def for_each_worker(batches: tf.data.Dataset) -> tf.data.Dataset:
  """Makes each worker take its share of every batch, and prefetches."""
  policy = tf.data.experimental.AutoShardPolicy
  batches = batches.prefetch(tf.data.AUTOTUNE)
  if batches.options().experimental_distribute.auto_shard_policy == policy.OFF:
    return batches  # Each worker reads its own files.
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = policy.DATA
  return batches.with_options(options)


@contextlib.contextmanager
def timed(
  batches: tf.data.Dataset, strategy: tf.distribute.Strategy
) -> Iterator[tf.data.Dataset]:
  """Measures the share of time spent waiting for batches; prints it on exit.

  Strategies other than the default one prefetch in the background, so nothing
  is measured with them.

  Args:
    batches: The training batches.
    strategy: The strategy of the model.

  Yields:
    The same batches.
  """
  if strategy is not tf.distribute.get_strategy():
    yield batches
    return
  with tf.device("CPU"):
    waited = tf.Variable(0.0, dtype=tf.float64)

  def stop(start: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple:
    waited.assign_add(tf.timestamp() - start)
    return batch

  options = tf.data.Options()  # Prefetching would hide the waiting time.
  options.experimental_optimization.inject_prefetch = False
  clock = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
  start = time.monotonic()
  yield tf.data.Dataset.zip((clock, batches)).map(stop).with_options(options)
  seconds = time.monotonic() - start
  share = float(waited) / seconds
  print(f"Waited for input {share:.0%} of the {seconds:.0f} s of training")
