import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import types
from unittest import mock

from absl.testing import parameterized
import tensorflow as tf
import tf_keras

from distribution import addresses
from distribution import strategies
from tools import nightly

_CLUSTER = {"worker": ["localhost:1", "localhost:2"]}
_PROGRAM = """
from absl import app
from distribution import strategies
strategies.define_flags()
app.run(lambda _: print(strategies.from_flags().tpu))
"""


def setUpModule():
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
  )


def _tf_config(cluster, task_type, index):
  return json.dumps(
    {"cluster": cluster, "task": {"type": task_type, "index": index}}
  )


class StrategiesTest(parameterized.TestCase, tf.test.TestCase):
  def test_without_an_accelerator_asked_for_it_is_the_cpu(self):
    if tf.config.list_physical_devices("GPU"):
      self.skipTest("There is a GPU.")
    for name, expected, replicas in (
      ("default", tf.distribute.Strategy, 1),
      ("one_device", tf.distribute.OneDeviceStrategy, 1),
      ("mirrored", tf.distribute.MirroredStrategy, 2),
    ):
      for num_gpus in (None, 0):
        strategy = strategies.get(strategies.Config(name, num_gpus=num_gpus))
        self.assertIsInstance(strategy, expected)
        self.assertEqual(strategy.num_replicas_in_sync, replicas)
        self.assertTrue(strategies.is_chief(strategy))
        self.assertIsNone(strategies.io_device(strategy))

  def test_what_is_lost_in_training_ends_it_with_one_line(self):
    with (
      self.assertRaisesRegex(SystemExit, "^ERROR: Another process .* gone.*$"),
      strategies.cluster_errors(),
    ):
      raise tf.errors.UnavailableError(None, None, "one\ntwo")

  def test_tensorflow_is_told_where_libtpu_is(self):
    package = types.SimpleNamespace(get_library_path=lambda: "/libtpu.so")
    name = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"
    for tpu, given, expected in (
      ("local", {}, "/libtpu.so"),
      ("local", {name: "/other.so"}, "/other.so"),
      ("v5", {}, None),
    ):
      with (
        mock.patch.dict(sys.modules, libtpu=package),
        mock.patch.dict(os.environ, given),
      ):
        strategies.prepare(strategies.Config("tpu", tpu))
        self.assertEqual(os.environ.get(name), expected)
        self.assertEqual("PJRT_DEVICE" in os.environ, tpu == "local")

  @parameterized.parameters(
    *(
      (strategies.Config(name, num_gpus=99), "--num_gpus=99: TensorFlow finds")
      for name in ("default", "one_device", "mirrored")
    ),
    (strategies.Config("tpu", "local"), "This machine has no TPU"),
    (
      strategies.Config("tpu", "grpc://localhost"),
      "localhost is not HOST:PORT",
    ),
    (strategies.Config("tpu", "grpc://localhost:1"), "nothing answers at"),
    (
      strategies.Config("tpu", "v5"),
      "--tpu=v5: Google Cloud's metadata server",
    ),
  )
  def test_what_is_asked_for_must_be_there(self, config, message):
    with (
      mock.patch.dict(os.environ, GCE_METADATA_HOST="localhost:1"),
      self.assertRaisesRegex(ValueError, message),
    ):
      strategies.prepare(config)
      strategies.get(config)

  def test_a_name_is_for_machines_of_google_cloud(self):
    def run(address):
      return subprocess.run(
        [sys.executable, "-c", _PROGRAM, "--strategy=tpu", "--tpu=v5"],
        capture_output=True,
        text=True,
        env={
          **os.environ,
          "GCE_METADATA_HOST": address,
          "PYTHONPATH": os.pathsep.join(sys.path),
          # Python lists its imports on standard error.
          "PYTHONPROFILEIMPORTTIME": "1",
        },
      )

    refused = run("localhost:1")
    self.assertEqual(refused.returncode, 1)
    self.assertIn(
      "flag --tpu=v5: Google Cloud's metadata server", refused.stderr
    )
    self.assertIn("distribution", refused.stderr)
    self.assertNotIn("tensorflow", refused.stderr)
    # This server accepts connections, but answers no request.
    with socketserver.TCPServer(
      ("localhost", 0), socketserver.BaseRequestHandler
    ) as server:
      threading.Thread(target=server.serve_forever).start()
      address = f"localhost:{server.server_address[1]}"
      taken = run(address)
      with (
        mock.patch.dict(os.environ, GCE_METADATA_HOST=address),
        self.assertRaisesRegex(ValueError, "--tpu=v5: .* cannot use this TPU"),
      ):
        strategies.get(strategies.Config("tpu", "v5"))
      server.shutdown()
    self.assertEqual((taken.returncode, taken.stdout), (0, "v5\n"))

  @parameterized.parameters(
    ("multi_worker_mirrored", None, "needs TF_CONFIG in the environment"),
    ("parameter_server", "", "needs TF_CONFIG in the environment"),
    (
      "multi_worker_mirrored",
      "{",
      "TF_CONFIG is not like .*Expecting property",
    ),
    ("multi_worker_mirrored", "[]", "TF_CONFIG is not like .*TypeError"),
    ("multi_worker_mirrored", '{"cluster": 1}', "TF_CONFIG is not like"),
    (
      "multi_worker_mirrored",
      _tf_config(_CLUSTER, "worker", 2),
      "the task .* is worker 2, but the cluster has no",
    ),
    (
      "multi_worker_mirrored",
      _tf_config(_CLUSTER, "chief", 0),
      "but the cluster has no chief 0",
    ),
    (
      "multi_worker_mirrored",
      _tf_config({**_CLUSTER, "ps": ["localhost:3"]}, "worker", 0),
      "has the unknown job ps; known are chief, worker",
    ),
    (
      "multi_worker_mirrored",
      _tf_config({"master": ["localhost:1"], **_CLUSTER}, "worker", 0),
      "the job master is TensorFlow 1's name of the chief",
    ),
    (
      "multi_worker_mirrored",
      _tf_config(_CLUSTER, "master", 0),
      "the job master is TensorFlow 1's name of the chief",
    ),
    ("multi_worker_mirrored", _tf_config({}, "worker", 0), "has no worker 0"),
    (
      "parameter_server",
      _tf_config(_CLUSTER, "worker", 0),
      "the cluster in TF_CONFIG has no chief",
    ),
  )
  def test_a_cluster_must_be_right(self, name, tf_config, message):
    environment = {} if tf_config is None else {"TF_CONFIG": tf_config}
    with mock.patch.dict(os.environ, environment):
      with self.assertRaisesRegex(ValueError, message):
        strategies.get(strategies.Config(name))

  def test_a_cluster_may_be_a_chief_alone(self):
    config = _tf_config({"chief": ["localhost:1"]}, "chief", 0)
    with (
      mock.patch.dict(os.environ, {"TF_CONFIG": config}),
      mock.patch.object(
        strategies.distribute_utils, "get_distribution_strategy"
      ) as made,
    ):
      strategies.get(strategies.Config("multi_worker_mirrored"))
    made.assert_called_once_with("multi_worker_mirrored")

  @parameterized.parameters("tpu", "multi_worker_mirrored")
  @nightly.only
  def test_nothing_is_waited_for_without_end(self, name):
    with (
      socket.create_server(("localhost", 0)) as silent,  # Never answers.
      addresses.held(1) as own,
    ):
      address = f"localhost:{silent.getsockname()[1]}"
      tpu = f"grpc://{address}" if name == "tpu" else None
      code = (
        "from distribution import strategies\n"
        "strategies.START_TIMEOUT = 3\n"
        f"strategies.get(strategies.Config({name!r}, {tpu!r}))\n"
      )
      cluster = {"worker": [*own, address]}
      result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,  # Ends the test if the wait has no limit.
        env={
          **os.environ,
          "PYTHONPATH": os.pathsep.join(sys.path),
          "TF_CONFIG": _tf_config(cluster, "worker", 0),
        },
      )
    self.assertEqual(result.returncode, -signal.SIGKILL)
    self.assertRegex(result.stderr, r"ERROR: --\w+=.* within 3 s\.")
    self.assertNotIn("Traceback", result.stderr)

  def test_files_are_read_where_they_are(self):
    """Remote workers do not see the disk of this process."""
    for kind, master, device in (
      (tf.distribute.TPUStrategy, "", None),
      (tf.distribute.TPUStrategy, "grpc://host:8470", "/job:localhost"),
      (tf.distribute.ParameterServerStrategy, "", "/job:chief"),
    ):
      strategy = mock.create_autospec(kind, instance=True)
      strategy.cluster_resolver.master.return_value = master
      self.assertEqual(strategies.io_device(strategy), device)

  def test_precision(self):
    for name in strategies.PRECISIONS:
      with strategies.precision(name):
        layer = tf_keras.layers.Dense(1)
      layer.build([1])
      self.assertEqual(layer.dtype_policy.name, name)
      self.assertEqual(layer.kernel.dtype, tf.float32)
    self.assertEqual(tf_keras.mixed_precision.global_policy().name, "float32")


if __name__ == "__main__":
  tf.test.main()
