"""Calls a SavedModel in a process that has TensorFlow and little else."""

from collections.abc import Mapping
import os
import pickle
import subprocess
import sys

import numpy as np

_PROGRAM = """
import pickle, sys
directory, signature, inputs = pickle.load(sys.stdin.buffer)
out, sys.stdout = sys.stdout.buffer, sys.stderr
_REFUSED = {
  *("data", "distribution", "exporters", "integration_tests", "models"),
  *("official", "tensorflow_hub", "tf_keras"),
}

class Refusal:
  def find_spec(self, name, *_):
    if name.split(".")[0] in _REFUSED:
      raise ImportError(f"{name} is refused.")

sys.meta_path.insert(0, Refusal())
import tensorflow as tf
import tensorflow_text
serve = tf.saved_model.load(directory).signatures[signature]
outputs = serve(**{name: tf.constant(x) for name, x in inputs.items()})
assert not _REFUSED.intersection(sys.modules)
pickle.dump({name: x.numpy() for name, x in outputs.items()}, out)
"""


def call(
  directory: str,
  inputs: Mapping[str, np.ndarray],
  signature: str = "serving_default",
) -> dict[str, np.ndarray]:
  """Calls a signature of a SavedModel."""
  environment = {
    name: value
    for name, value in os.environ.items()
    if name != "TF_USE_LEGACY_KERAS"
  }
  result = subprocess.run(
    [sys.executable, "-P", "-c", _PROGRAM],
    input=pickle.dumps((directory, signature, dict(inputs))),
    stdout=subprocess.PIPE,
    check=True,
    env=environment,
  )
  return pickle.loads(result.stdout)
