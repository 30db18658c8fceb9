"""Does what every exporter must do, and no more: the floor of its cost.

Imports TensorFlow, reads the variables of a checkpoint and writes them:

  python -m integration_tests.benchmarks.floor CHECKPOINT COPY
"""

import sys

import tensorflow as tf


def main(checkpoint: str, copy: str) -> None:
  """Copies the variables of a checkpoint."""
  reader = tf.train.load_checkpoint(checkpoint)
  variables = [
    tf.Variable(reader.get_tensor(name))
    for name in reader.get_variable_to_shape_map()
    if name.endswith("VARIABLE_VALUE")
  ]
  tf.train.Checkpoint(variables=variables).write(copy)


if __name__ == "__main__" and len(sys.argv) > 1:  # Preprocessors lack weights.
  main(*sys.argv[1:])
