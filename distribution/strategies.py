"""Flags for TensorFlow's distribution strategies and for mixed precision.

A missing accelerator or cluster process is an error. There is no fallback, and
every wait has a timeout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from typing import Any
import urllib.parse

from absl import flags
from etils import epy

from distribution import errors

with epy.lazy_imports():
  from official.common import distribute_utils
  import tensorflow as tf
  import tf_keras

STRATEGIES = (
  "default",
  "one_device",
  "mirrored",
  "multi_worker_mirrored",
  "tpu",
  "parameter_server",
)
# The required and the optional jobs of a cluster.
_JOBS = {
  "multi_worker_mirrored": ((), ("chief", "worker")),
  "parameter_server": (("chief", "worker", "ps"), ("chief", "worker", "ps")),
}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# Seconds within which a TPU or all processes of a cluster must start.
START_TIMEOUT = 600
_CONNECT_TIMEOUT = 10  # Seconds.

_NO_TPU = (
  "This machine has no TPU: there is neither /dev/accel* nor a group in"
  " /dev/vfio."
)
_NO_METADATA = (
  "Google Cloud's metadata server, which knows the addresses of named TPUs,"
  " does not answer. Outside Google Cloud use --tpu=local or --tpu=grpc://HOST:PORT."
)
_EXAMPLE = (
  '{"cluster": {"worker": ["host0:2222", "host1:2222"]},'
  ' "task": {"type": "worker", "index": 0}}'
)

# The watchdog ends when its input is closed, also by the end of its parent.
_WATCHDOG = """
import os, select, signal, sys
_, timeout, parent, message = sys.argv
if not select.select([sys.stdin], [], [], float(timeout))[0]:
  print(message, file=sys.stderr, flush=True)
  os.kill(int(parent), signal.SIGKILL)
"""


@dataclasses.dataclass(frozen=True)
class Config:
  """The values of the flags, under the same names."""

  strategy: str = "default"
  tpu: str | None = None
  num_gpus: int | None = None
  mixed_precision: str = "float32"


DEFAULT = Config()
FLAGS = tuple(field.name for field in dataclasses.fields(Config))


def define_flags(condition: str = "") -> None:
  """Defines the flags.

  Args:
    condition: Prefix of the help texts that says when the flags apply.
  """
  flags.DEFINE_enum(
    "strategy",
    "default",
    STRATEGIES,
    f"{condition}How to distribute training. default: on one device, the GPU if"
    " there is one. one_device: the same with OneDeviceStrategy. mirrored: on"
    " all GPUs of this machine, or on its logical CPUs if it has no GPU."
    " multi_worker_mirrored: on several machines; run the same command on each"
    " with TF_CONFIG set. parameter_server: on workers and parameter servers;"
    " run the same command on each with TF_CONFIG set, and stop all but the"
    " chief yourself. tpu: on the TPU that --tpu names.",
  )
  flags.DEFINE_string(
    "tpu",
    None,
    f"{condition}The TPU for --strategy=tpu: local for the TPU of this machine,"
    " a name in Google Cloud, or an address, grpc://HOST:PORT.",
  )
  flags.DEFINE_integer(
    "num_gpus",
    None,
    f"{condition}Number of this machine's GPUs to use; fewer is an error."
    " Default: all.",
    lower_bound=0,
  )
  flags.DEFINE_enum(
    "mixed_precision",
    "float32",
    PRECISIONS,
    f"{condition}The dtype that layers compute in; variables are float32.",
  )
  _register_validators()


def _register_validators() -> None:
  """Checks flags before TensorFlow is imported.

  TensorFlow for TPUs looks for a TPU when it is imported. On a machine without
  a TPU the import takes more than five minutes.
  """

  def can_use(tpu: str | None) -> bool:
    if missing := _missing(tpu):
      raise flags.ValidationError(missing)
    return True

  flags.register_validator("tpu", can_use)
  flags.register_multi_flags_validator(
    ["strategy", "tpu"],
    lambda values: (values["strategy"] == "tpu") == bool(values["tpu"]),
    "--strategy=tpu needs --tpu=local|NAME|grpc://HOST:PORT, and --tpu needs"
    " --strategy=tpu.",
  )
  flags.register_multi_flags_validator(
    ["strategy", "num_gpus"],
    lambda values: (
      (values["num_gpus"] or 0)
      <= {"default": 1, "one_device": 1, "tpu": 0}.get(values["strategy"], 1e9)
    ),
    "--num_gpus is at most 1 with --strategy=default or one_device, and 0 with"
    " tpu.",
  )
  flags.register_multi_flags_validator(
    ["strategy", "mixed_precision"],
    lambda values: (
      (values["strategy"], values["mixed_precision"])
      != ("tpu", "mixed_float16")
    ),
    "TPUs compute in bfloat16: use --mixed_precision=mixed_bfloat16.",
  )


def prepare(config: Config) -> None:
  """Sets environment variables that TensorFlow reads when it is imported.

  For a local TPU they name the path of libtpu and select its C API, which the
  package tensorflow-tpu needs. Variables that are set already stay as they are.

  Args:
    config: The values of the flags.

  Raises:
    ValueError: TF_CONFIG is missing or wrong, or no TPU answers.
  """
  if config.strategy in _JOBS:
    _read_tf_config(config.strategy)
  if config.tpu and config.tpu.startswith("grpc://"):
    _check_address(config.tpu.removeprefix("grpc://"))
  if config.tpu != "local":
    return
  try:
    import libtpu
  except ImportError:  # The environment names a libtpu outside Python.
    return
  for name, value in (
    ("PJRT_DEVICE", "TPU"),
    ("NEXT_PLUGGABLE_DEVICE_USE_C_API", "true"),
    ("TF_PLUGGABLE_DEVICE_LIBRARY_PATH", libtpu.get_library_path()),
  ):
    os.environ.setdefault(name, value)


def from_flags() -> Config:
  """Returns the values of the flags, or the defaults if none are defined."""
  return Config(
    **{name: flags.FLAGS[name].value for name in FLAGS if name in flags.FLAGS}
  )


def get(config: Config) -> tf.distribute.Strategy:
  """Makes a strategy. Call it before TensorFlow runs anything.

  With `parameter_server` only the chief returns; workers and parameter servers
  run until they are stopped. If the TPU or the cluster does not answer
  within `START_TIMEOUT` seconds, the process prints an error and is killed,
  because nothing else interrupts TensorFlow's wait.

  Args:
    config: The values of the flags.

  Raises:
    ValueError: An accelerator or a cluster process is missing.
  """
  _choose_gpus(config)
  name = config.strategy
  if name == "default":
    return tf.distribute.get_strategy()
  if name == "tpu":
    return _tpu_strategy(config.tpu)
  if name in _JOBS:
    return _cluster_strategy(name)
  gpus = tf.config.list_logical_devices("GPU")
  devices = [d.name for d in gpus or tf.config.list_logical_devices("CPU")]
  if name == "one_device":
    return tf.distribute.OneDeviceStrategy(devices[0])
  return tf.distribute.MirroredStrategy(devices)


def _missing(tpu: str | None) -> str:
  """Returns why this machine cannot use a TPU, or an empty string."""
  if tpu == "local":
    devices = pathlib.Path("/dev")
    found = [*devices.glob("accel*"), *devices.glob("vfio/[0-9]*")]
    return "" if found else _NO_TPU
  if not tpu or tpu.startswith("grpc://"):
    return ""
  # TensorFlow asks the metadata server for the address of a named TPU.
  host = os.environ.get("GCE_METADATA_HOST") or os.environ.get(
    "GCE_METADATA_IP", "metadata.google.internal"
  )
  try:
    url = urllib.parse.urlsplit(f"http://{host}")
    address = url.hostname, url.port or 80
    socket.create_connection(address, _CONNECT_TIMEOUT).close()
  except (OSError, ValueError):
    return _NO_METADATA
  return ""


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
  """Sets the precision of the layers that are built in this context.

  Args:
    name: One of `PRECISIONS`.
  """
  before = tf_keras.mixed_precision.global_policy()
  tf_keras.mixed_precision.set_global_policy(name)
  try:
    yield
  finally:
    tf_keras.mixed_precision.set_global_policy(before)


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
  """Exits with a one-line error if a cluster process or the TPU is lost."""
  try:
    yield
  except (tf.errors.AbortedError, tf.errors.UnavailableError) as e:
    message, *_ = e.message.strip().splitlines()[-1:] or [""]
    sys.exit(
      "ERROR: Another process of the cluster has gone, or the TPU. Start all"
      " processes again; with a backup directory, training resumes after the"
      f" last complete epoch. TensorFlow says: {message}"
    )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
  """Returns whether this process writes files for the whole cluster."""
  resolver = strategy.cluster_resolver
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return True
  has_chief = "chief" in resolver.cluster_spec().jobs
  return (resolver.task_type, resolver.task_id) == (
    "chief" if has_chief else "worker",
    0,
  )


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
  """Returns the index of this worker and the number of workers in sync."""
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return 0, 1
  resolver = strategy.cluster_resolver
  jobs = resolver.cluster_spec().as_dict()
  chiefs = len(jobs.get("chief", []))
  index = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
  return index, chiefs + len(jobs.get("worker", []))


def io_device(strategy: tf.distribute.Strategy) -> str | None:
  """Returns the `experimental_io_device` of TensorFlow's load and save options.

  Args:
    strategy: The strategy in whose scope a model is loaded or saved.

  Returns:
    This process if the variables are on machines without access to its disk: on
    a remote TPU or on parameter servers. None otherwise: the device of each
    variable reads and writes it.
  """
  if is_asynchronous(strategy):
    return "/job:chief"
  if isinstance(strategy, tf.distribute.TPUStrategy) and (
    strategy.cluster_resolver.master()  # Empty for a local TPU.
  ):
    return "/job:localhost"
  return None


def is_asynchronous(strategy: tf.distribute.Strategy) -> bool:
  """Returns whether each worker trains on its own batches."""
  return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def evaluate(model: tf_keras.Model, batches: tf.data.Dataset) -> float:
  """Evaluates a model with the strategy that it was built with.

  Args:
    model: A compiled and trained model with one weighted metric.
    batches: Inputs, labels, and weights.

  Returns:
    The metric.
  """
  if not is_asynchronous(model.distribute_strategy):
    _, value = model.evaluate(batches, verbose=0)
    return value
  # `model.evaluate` would process all batches on each worker.
  model.reset_metrics()
  for inputs, labels, weights in batches:
    outputs = model(inputs, training=False)
    model.compute_metrics(inputs, labels, outputs, weights)
  return float(model.metrics[-1].result())


def predictions(
  model: tf_keras.Model, batches: tf.data.Dataset
) -> Iterator[tuple[Any, ...]]:
  """Predicts with the strategy that a model was built with.

  Each worker predicts all batches, together with the others.

  Args:
    model: The model.
    batches: Inputs, labels, and weights, in batches as large as in training.

  Yields:
    Inputs, labels, weights and outputs of a batch, as NumPy's arrays.
  """
  for batch in batches:
    if is_asynchronous(model.distribute_strategy):
      outputs = model(batch[0], training=False).numpy()
    else:
      outputs = model.predict_on_batch(batch[0])
    yield *tf.nest.map_structure(lambda x: x.numpy(), batch), outputs


def _choose_gpus(config: Config) -> None:
  gpus = tf.config.list_physical_devices("GPU")
  if config.num_gpus is None:
    return
  if config.num_gpus > len(gpus):
    raise ValueError(
      f"--num_gpus={config.num_gpus}: TensorFlow finds {len(gpus) or 'no'} GPUs"
      " on this machine. If it has more, install the CUDA libraries: with"
      " Bazel's --config=gpu, or with pip as tensorflow[and-cuda]."
    )
  chosen = gpus[: config.num_gpus]
  if chosen != tf.config.get_visible_devices("GPU"):
    tf.config.set_visible_devices(chosen, "GPU")


def _tpu_strategy(tpu: str) -> tf.distribute.TPUStrategy:
  if missing := _missing(tpu):
    raise ValueError(f"--tpu={tpu}: {missing}")
  try:
    with _time_limit(f"--tpu={tpu}: the TPU did not answer"):
      return distribute_utils.get_distribution_strategy("tpu", tpu_address=tpu)
  except (
    tf.errors.OpError,
    ImportError,
    OSError,  # A request over the network failed.
    RuntimeError,
    ValueError,
  ) as e:
    message, *_ = str(e).strip().splitlines() or [""]
    raise ValueError(
      f"--tpu={tpu}: TensorFlow cannot use this TPU. Check that the TPU is"
      " ready and that this TensorFlow supports TPUs, as with Bazel's"
      f" --config=tpu. TensorFlow says: {type(e).__name__}: {message}"
    ) from e


def _check_address(address: str) -> None:
  """Raises an error if no process listens at the address of a TPU."""
  host, _, port = address.rpartition(":")
  if not (host and port.isdigit()):
    raise ValueError(f"--tpu: {address} is not HOST:PORT.")
  try:
    socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
  except (OSError, OverflowError) as e:
    raise ValueError(f"--tpu: nothing answers at {address}: {e}.") from e


def _cluster_strategy(name: str) -> tf.distribute.Strategy:
  cluster, task_type, index = _read_tf_config(name)
  if name == "parameter_server" and task_type != "chief":
    # The server runs as long as it is referenced.
    _server = tf.distribute.Server(
      tf.train.ClusterSpec(cluster), job_name=task_type, task_index=index
    )
    # `Server.join` would block Python's signal handlers, and thus the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    while True:
      signal.pause()
  size = sum(len(addresses) for addresses in cluster.values())
  with _time_limit(
    f"--strategy={name}: not all {size} processes of the cluster in TF_CONFIG"
    " started"
  ):
    try:
      return distribute_utils.get_distribution_strategy(name)
    except (tf.errors.OpError, RuntimeError) as e:
      message, *_ = str(e).strip().splitlines() or [""]
      raise ValueError(
        f"--strategy={name}: the cluster did not start: {message}"
      ) from e


def _read_tf_config(strategy: str) -> tuple[dict[str, list[str]], str, int]:
  """Checks TF_CONFIG. Returns the cluster and this process's task in it."""
  value = os.environ.get("TF_CONFIG")
  if not value:
    raise ValueError(
      f"--strategy={strategy} needs TF_CONFIG in the environment. It names all"
      " processes of the cluster and the task of this one as JSON, for example"
      f" {_EXAMPLE}."
    )
  try:
    config = json.loads(value)
    cluster = dict(config["cluster"])
    task_type, index = str(config["task"]["type"]), int(config["task"]["index"])
  except (
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
  ) as e:
    raise ValueError(
      f"TF_CONFIG is not like {_EXAMPLE}: {errors.one_line(e)}."
    ) from e
  if "master" in (*cluster, task_type):
    raise ValueError(
      "TF_CONFIG: the job master is TensorFlow 1's name of the chief. Call it"
      " chief, in the cluster and in the task."
    )
  needed, allowed = _JOBS[strategy]
  for job in needed:
    if not cluster.get(job):
      raise ValueError(
        f"--strategy={strategy}: the cluster in TF_CONFIG has no {job}."
      )
  for job in cluster:
    if job not in allowed:
      raise ValueError(
        f"--strategy={strategy}: the cluster in TF_CONFIG has the unknown job"
        f" {job}; known are {', '.join(allowed)}."
      )
  _check_addresses(cluster)
  if not 0 <= index < len(cluster.get(task_type, ())):
    raise ValueError(
      f"TF_CONFIG: the task of this process is {task_type} {index}, but the"
      f" cluster has no {task_type} {index}."
    )
  return cluster, task_type, index


def _check_addresses(cluster: Mapping[str, Any]) -> None:
  """Raises a ValueError unless each task has an address of its own."""
  for job, addresses in cluster.items():
    if not isinstance(addresses, list) or not all(
      isinstance(address, str) and re.fullmatch(r"[^\s/]+:\d{1,5}", address)
      for address in addresses
    ):
      raise ValueError(
        f"TF_CONFIG: the addresses of the job {job} are {addresses!r}; they"
        " must be a list of HOST:PORT."
      )
  everything = list(itertools.chain(*cluster.values()))
  for address in everything:
    if everything.count(address) > 1:
      raise ValueError(f"TF_CONFIG: two tasks have the address {address}.")


@contextlib.contextmanager
def _time_limit(message: str) -> Iterator[None]:
  """Kills this process if it stays in this context for `START_TIMEOUT` seconds.

  TensorFlow holds Python's lock while it waits, so no thread or signal handler
  of this process could end the wait. The watchdog is another process.
  """
  watchdog = subprocess.Popen(
    [
      *(sys.executable, "-c", _WATCHDOG, str(START_TIMEOUT), str(os.getpid())),
      f"ERROR: {message} within {START_TIMEOUT} s.",
    ],
    stdin=subprocess.PIPE,
  )
  try:
    yield
  finally:
    watchdog.communicate()
