import contextlib
import io
import re
import time

import tensorflow as tf

from data import batches

_POLICY = tf.data.experimental.AutoShardPolicy


def _policy(dataset):
  return dataset.options().experimental_distribute.auto_shard_policy


class BatchesTest(tf.test.TestCase):
  def test_training(self):
    examples = tf.data.Dataset.from_tensor_slices((tf.eye(10), tf.range(10)))
    labels = [
      [y for _, y in batches.training(examples, 4, seed).take(5)]
      for seed in (0, 0, 1)
    ]
    # Two passes over all examples, in different orders.
    self.assertAllEqual(tf.math.bincount(tf.concat(labels[0], 0)), [2] * 10)
    self.assertAllEqual(labels[0], labels[1])
    self.assertNotAllEqual(labels[0], labels[2])
    resumed = batches.training(examples, 4, seed=0, step=3)
    self.assertAllEqual([y for _, y in resumed.take(2)], labels[0][3:])

  def test_testing(self):
    """The last batch is padded; classes below 0 weigh 0, but values do not."""
    inputs = {"x": tf.ones([5, 2])}
    for labels, weights in (
      ([3, -1, 2, 0, 1], [[1, 0, 1], [1, 1, 0]]),
      ([3.0, -1.0, 2.0, 0.0, 1.0], [[1, 1, 1], [1, 1, 0]]),
      ([[3, 1], [-1, 1], [2, 2], [0, 0], [1, 1]], [[1, 0, 1], [1, 1, 0]]),
    ):
      examples = tf.data.Dataset.from_tensor_slices((inputs, labels))
      first, second = batches.testing(examples, 3)
      self.assertAllEqual([first[2], second[2]], weights)
      self.assertAllEqual(second[0]["x"], [[1, 1], [1, 1], [0, 0]])
      self.assertAllEqual(second[1][:2], labels[3:])
      lowest = -1 if isinstance(labels[0], float) else 0
      self.assertEqual(tf.reduce_min(first[1]), lowest)

  def test_files_that_are_shared_out_stay_so(self):
    examples = tf.data.Dataset.range(3)
    self.assertEqual(_policy(batches.for_each_worker(examples)), _POLICY.DATA)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = _POLICY.OFF
    examples = examples.with_options(options).batch(2)
    self.assertEqual(_policy(batches.for_each_worker(examples)), _POLICY.OFF)

  def test_waiting_is_measured(self):
    def share(seconds_to_read, seconds_to_train):
      def read(x):
        time.sleep(seconds_to_read)
        return x

      examples = tf.data.Dataset.range(3).map(
        lambda x: tf.numpy_function(read, [x], tf.int64)
      )
      strategy = tf.distribute.get_strategy()
      with contextlib.redirect_stdout(io.StringIO()) as output:
        with batches.timed(examples.prefetch(3), strategy) as timed:
          values = []
          for x in timed:
            values.append(int(x))
            time.sleep(seconds_to_train)
      self.assertEqual(values, list(range(3)))
      (text,) = re.findall(r"Waited for input (\d+)%", output.getvalue())
      return int(text)

    share(0.0, 0.0)  # The first call is slower: it does not count.
    # Training waits for slow reading, but not for reading in the background.
    self.assertGreater(share(0.2, 0.0), share(0.0, 0.2))


if __name__ == "__main__":
  tf.test.main()
