"""Fine-tunes an export in a cluster of two processes on this machine."""

import json
import os
import pathlib
import re
import subprocess
import sys

from absl import flags
import numpy as np
import tensorflow as tf
import tf_keras

from data import images as image_data
from distribution import addresses
from distribution import strategies
from integration_tests import fitting
from integration_tests import image_fine_tuning

_EXPORT = flags.DEFINE_string("export", None, "The export to fine-tune.")
_RESULTS = flags.DEFINE_string(
  "results", None, "Path to write results to: runs a worker, not the tests."
)
_PROGRAM = pathlib.Path("integration_tests/use_mnist_cnn").absolute()
_STRATEGY = "--strategy=multi_worker_mirrored"


def fit(strategy):
  """Trains the head alone and with the export. Returns weights and accuracies.

  There is no dropout, but replicas sum in another order than one process. When
  the export is trained, batch normalization sees half a batch on each replica.
  """
  train, test = image_data.arrays("digits_5_9", (28, 28, 1))
  results = {}
  for retrain in (False, True):
    tf_keras.utils.set_random_seed(1)
    with strategy.scope():
      model = image_fine_tuning.build_model(
        _EXPORT.value,
        5,
        retrain=retrain,
        dropout_rate=0.0,
        learning_rate=1e-3 if retrain else 1e-2,
      )
    fitting.fit(model, train, batch_size=32, epochs=2, verbose=0)
    accuracy = fitting.evaluate(model, test, batch_size=32)
    results[f"accuracy_{retrain}"] = accuracy
    for i, weight in enumerate(model.get_weights()):
      results[f"weight_{retrain}_{i}"] = weight
  return results


def finish(workers):
  """Waits for workers; returns their exit status, output and errors."""
  outputs = [worker.communicate() for worker in workers]
  return [(w.returncode, *o) for w, o in zip(workers, outputs, strict=True)]


class MultiWorkerTest(tf.test.TestCase):
  def start_workers(self, *arguments):
    """Starts two processes that are one cluster."""
    cluster = {"worker": self.enter_context(addresses.held(2))}
    return [
      subprocess.Popen(
        [argument.format(index=index) for argument in arguments],
        env={
          **os.environ,
          "TF_CONFIG": json.dumps(
            {"cluster": cluster, "task": {"type": "worker", "index": index}}
          ),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for index in range(2)
    ]

  def test_two_workers_are_as_good_as_one_process(self):
    paths = os.path.join(self.get_temp_dir(), "{index}.npz")
    workers = self.start_workers(
      sys.executable,
      sys.argv[0],
      f"--export={_EXPORT.value}",
      f"--results={paths}",
    )
    expected = fit(tf.distribute.get_strategy())
    for status, _, stderr in finish(workers):
      self.assertEqual(status, 0, stderr)
    first, second = (np.load(paths.format(index=i)) for i in range(2))
    for name in expected:
      self.assertAllEqual(first[name], second[name])
    for name in expected:
      if "False" in name:  # Only the head is trained, to the same weights.
        self.assertAllClose(first[name], expected[name], atol=1e-4)
    print({k: (first[k], v) for k, v in expected.items() if "accuracy" in k})
    self.assertGreater(expected["accuracy_True"], 0.9)
    self.assertAllClose(
      first["accuracy_True"], expected["accuracy_True"], atol=0.03
    )

  def test_after_a_worker_was_killed_training_goes_on(self):
    output_dir = os.path.join(self.get_temp_dir(), "output")
    reports = self.create_tempdir().full_path
    command = [
      *(str(_PROGRAM), f"--saved_model_dir={_EXPORT.value}", _STRATEGY),
      *("--frozen_epochs=0", "--patience=500"),
      f"--output_saved_model_dir={output_dir}",
      f"--backup_dir={os.path.join(self.get_temp_dir(), 'backup')}",
      f"--report={reports}/{{index}}.html",
    ]
    # More epochs than there can be before the worker is killed.
    chief, worker = self.start_workers(*command, "--epochs=1000")
    for line in iter(worker.stdout.readline, ""):
      if "Epoch 2/" in line:
        break
    worker.kill()
    worker.communicate()
    ((status, output, stderr),) = finish([chief])
    self.assertEqual(status, 1, output)
    self.assertIn("ERROR: Another process of the cluster has gone", stderr)
    self.assertNotIn("Traceback", stderr)
    epochs = int(re.findall(r"Epoch (\d+)/", output)[-1]) + 1
    (chief_again, _), (worker_again, _) = (
      (result[1], self.assertEqual(result[0], 0, result[2]))
      for result in finish(self.start_workers(*command, f"--epochs={epochs}"))
    )
    self.assertNotIn("Epoch 1/", chief_again)
    self.assertIn(f"Epoch {epochs}/{epochs}", chief_again)
    (accuracy,) = re.findall(r"Test accuracy: (\S+)", chief_again)
    self.assertGreater(float(accuracy), 0.9)
    # Only the chief has saved.
    self.assertIn(f"Saved the fine-tuned model to {output_dir}", chief_again)
    self.assertNotIn("Saved", worker_again)
    self.assertEqual(os.listdir(reports), ["0.html"])
    self.assertTrue(os.path.exists(os.path.join(output_dir, "saved_model.pb")))


if __name__ == "__main__":
  flags.FLAGS(sys.argv, known_only=True)
  if _RESULTS.value:
    strategy = strategies.get(strategies.Config("multi_worker_mirrored"))
    np.savez(_RESULTS.value, **fit(strategy))
  else:
    tf.test.main()
