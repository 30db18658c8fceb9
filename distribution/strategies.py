"""How training is distributed, and in which precision, as flags say.

The strategies are TensorFlow's. What they need and is not there, an accelerator
or the other processes of a cluster, is an error: never is something else used
in its place, and never waited for without end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import urllib.parse

from absl import flags
from etils import epy

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
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# Seconds that a TPU, or all processes of a cluster, may take to answer.
START_TIMEOUT = 600
_CONNECT_TIMEOUT = 10
_METADATA_TIMEOUT = 1

_NO_TPU = (
  "This machine has no TPU: there is neither /dev/accel* nor a group in"
  " /dev/vfio."
)
_NO_METADATA = (
  "Google Cloud's metadata server, which tells where a TPU of this name is,"
  " does not answer. On another machine say --tpu=local or --tpu=grpc://HOST:PORT."
)
_EXAMPLE = (
  '{"cluster": {"worker": ["host0:2222", "host1:2222"]},'
  ' "task": {"type": "worker", "index": 0}}'
)


# Ends at the end of its input, which is closed when its parent ends too.
_WATCH = """
import os, select, signal, sys
_, timeout, parent, message = sys.argv
if not select.select([sys.stdin], [], [], float(timeout))[0]:
  print(message, file=sys.stderr, flush=True)
  os.kill(int(parent), signal.SIGKILL)
"""


@dataclasses.dataclass(frozen=True)
class Config:
  """What the flags say, by the same names."""

  strategy: str = "default"
  tpu: str | None = None
  num_gpus: int | None = None
  mixed_precision: str = "float32"


DEFAULT = Config()
FLAGS = tuple(field.name for field in dataclasses.fields(Config))


def define_flags(condition: str = "") -> None:
  """Defines the flags.

  Args:
    condition: What help texts begin with, where the flags do not always apply.
  """
  flags.DEFINE_enum(
    "strategy",
    "default",
    STRATEGIES,
    f"{condition}How to distribute the training. default: not at all, on a GPU"
    " if there is one. one_device: the same, as a strategy. mirrored: on all"
    " GPUs of this machine, or if there are none on its logical CPUs."
    " multi_worker_mirrored: on several machines, each of which runs the same"
    " command with TF_CONFIG in its environment. parameter_server: with"
    " TF_CONFIG too, on workers and parameter servers, which run the same"
    " command and end when they are stopped. tpu: on the TPU that --tpu names.",
  )
  flags.DEFINE_string(
    "tpu",
    None,
    f"{condition}With --strategy=tpu: local, for the TPU of this machine; its"
    " name in Google Cloud; or an address as grpc://HOST:PORT.",
  )
  flags.DEFINE_integer(
    "num_gpus",
    None,
    f"{condition}How many GPUs of this machine to use; so many there must be."
    " The default is all.",
    lower_bound=0,
  )
  flags.DEFINE_enum(
    "mixed_precision",
    "float32",
    PRECISIONS,
    f"{condition}What layers compute in; variables are float32.",
  )
  # Before TensorFlow is imported: the one for TPUs looks for one then, and on
  # a machine without any for more than five minutes.
  flags.register_validator(
    "tpu", lambda tpu: tpu != "local" or has_tpu(), _NO_TPU
  )
  flags.register_validator(
    "tpu",
    lambda tpu: not (tpu and _is_name(tpu)) or _has_metadata_server(),
    _NO_METADATA,
  )
  flags.register_multi_flags_validator(
    ["strategy", "tpu"],
    lambda values: (values["strategy"] == "tpu") == bool(values["tpu"]),
    "--strategy=tpu and --tpu=local|NAME|grpc://HOST:PORT go together.",
  )
  flags.register_multi_flags_validator(
    ["strategy", "num_gpus"],
    lambda values: (
      (values["num_gpus"] or 0)
      <= {"default": 1, "one_device": 1, "tpu": 0}.get(values["strategy"], 1e9)
    ),
    "--num_gpus is at most 1 with --strategy=default and one_device, and 0 with"
    " tpu.",
  )
  flags.register_multi_flags_validator(
    ["strategy", "mixed_precision"],
    lambda values: (
      (values["strategy"], values["mixed_precision"])
      != ("tpu", "mixed_float16")
    ),
    "TPUs compute in bfloat16: say --mixed_precision=mixed_bfloat16.",
  )


def prepare(config: Config) -> None:
  """Prepares the import of TensorFlow, which must come after it.

  For the TPU of this machine TensorFlow is told where libtpu is, and to use its
  C API, as that of the package tensorflow-tpu needs it. What the environment
  says already stays.

  Args:
    config: What is asked for.
  """
  if config.tpu != "local":
    return
  try:
    import libtpu
  except ImportError:  # A machine that has it elsewhere, and says so.
    return
  for name, value in (
    ("PJRT_DEVICE", "TPU"),
    ("NEXT_PLUGGABLE_DEVICE_USE_C_API", "true"),
    ("TF_PLUGGABLE_DEVICE_LIBRARY_PATH", libtpu.get_library_path()),
  ):
    os.environ.setdefault(name, value)


def from_flags() -> Config:
  """Returns what the flags say; the default in a program that has none."""
  return Config(
    **{name: flags.FLAGS[name].value for name in FLAGS if name in flags.FLAGS}
  )


def get(config: Config) -> tf.distribute.Strategy:
  """Makes a strategy. Must come before anything else that TensorFlow runs.

  In a worker or parameter server of `parameter_server` it does not return: such
  a process does what the chief says, until it is stopped. A process whose TPU
  or cluster does not answer within `START_TIMEOUT` seconds is killed, with an
  error on standard error: there is no other way out of TensorFlow's waiting.

  Args:
    config: What is asked for.

  Raises:
    ValueError: It is not there.
  """
  _choose_gpus(config)
  name = config.strategy
  if name == "default":
    return tf.distribute.get_strategy()
  if name == "tpu":
    return _tpu_strategy(config.tpu)
  if name in ("multi_worker_mirrored", "parameter_server"):
    return _cluster_strategy(name)
  gpus = len(tf.config.list_logical_devices("GPU"))
  if name == "mirrored" and not gpus:
    cpus = tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([cpu.name for cpu in cpus])
  return distribute_utils.get_distribution_strategy(
    name, num_gpus=min(gpus, 1) if name == "one_device" else gpus
  )


def has_tpu() -> bool:
  """Tells whether this machine has a TPU, without TensorFlow."""
  devices = pathlib.Path("/dev")
  return any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))


def _is_name(tpu: str) -> bool:
  return tpu != "local" and not tpu.startswith("grpc://")


def _has_metadata_server() -> bool:
  """Tells whether it listens where TensorFlow asks it for project and zone."""
  host = os.environ.get("GCE_METADATA_HOST") or os.environ.get(
    "GCE_METADATA_IP", "metadata.google.internal"
  )
  try:
    url = urllib.parse.urlsplit(f"http://{host}")
    address = url.hostname, url.port or 80
    socket.create_connection(address, _METADATA_TIMEOUT).close()
  except (OSError, ValueError):
    return False
  return True


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
  """Makes layers that are built in this context compute in a precision.

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
  """Ends this process, with one line, if what trains with it is lost."""
  try:
    yield
  except (tf.errors.AbortedError, tf.errors.UnavailableError) as e:
    message, *_ = e.message.strip().splitlines()[-1:] or [""]
    sys.exit(
      "ERROR: Another process of the cluster has gone, or the TPU. Start all"
      " processes again; where they keep the state of the training they go on"
      f" after the last epoch that they ended. TensorFlow says: {message}"
    )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
  """Tells whether this process is the one that writes what all have made."""
  resolver = strategy.cluster_resolver
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return True
  has_chief = "chief" in resolver.cluster_spec().jobs
  return (resolver.task_type, resolver.task_id) == (
    "chief" if has_chief else "worker",
    0,
  )


def io_device(strategy: tf.distribute.Strategy) -> str | None:
  """Returns the device that reads and writes files, for TensorFlow's options.

  Args:
    strategy: The strategy in whose scope something is loaded or saved.

  Returns:
    This process, where variables are on other machines, which do not see its
    disk: on TPUs that are reached by an address, and on parameter servers. None
    where each variable's device will do.
  """
  if is_asynchronous(strategy):
    return "/job:chief"
  if isinstance(strategy, tf.distribute.TPUStrategy) and (
    strategy.cluster_resolver.master()  # Of a local one it is empty.
  ):
    return "/job:localhost"
  return None


def is_asynchronous(strategy: tf.distribute.Strategy) -> bool:
  """Tells whether workers train each with batches of its own."""
  return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def evaluate(model: tf_keras.Model, batches: tf.data.Dataset) -> float:
  """Tests a classifier with the strategy that it was built with.

  Args:
    model: Compiled, with the accuracy as its one weighted metric; it returns
      logits.
    batches: Inputs, labels, and weights.

  Returns:
    The accuracy, in [0, 1].
  """
  if not is_asynchronous(model.distribute_strategy):
    _, accuracy = model.evaluate(batches, verbose=0)
    return accuracy
  # By its own `evaluate` each worker would test on everything, for as long as
  # it takes to have so many steps together.
  metric = tf_keras.metrics.SparseCategoricalAccuracy()
  for inputs, labels, weights in batches:
    metric.update_state(labels, model(inputs, training=False), weights)
  return float(metric.result())


def _choose_gpus(config: Config) -> None:
  gpus = tf.config.list_physical_devices("GPU")
  if config.num_gpus is None:
    return
  if config.num_gpus > len(gpus):
    raise ValueError(
      f"--num_gpus={config.num_gpus}: TensorFlow finds {len(gpus) or 'no'} GPUs"
      " on this machine. If it has them, TensorFlow lacks the CUDA libraries:"
      " Bazel's --config=gpu installs them, or pip as tensorflow[and-cuda]."
    )
  chosen = gpus[: config.num_gpus]
  if chosen != tf.config.get_visible_devices("GPU"):
    tf.config.set_visible_devices(chosen, "GPU")


def _tpu_strategy(tpu: str) -> tf.distribute.TPUStrategy:
  if tpu == "local" and not has_tpu():
    raise ValueError(f"--tpu=local: {_NO_TPU}")
  if _is_name(tpu) and not _has_metadata_server():
    raise ValueError(f"--tpu={tpu}: {_NO_METADATA}")
  if tpu.startswith("grpc://"):
    _check_address("--tpu", tpu.removeprefix("grpc://"))
  try:
    with _limited(f"--tpu={tpu}: the TPU does not answer"):
      return distribute_utils.get_distribution_strategy("tpu", tpu_address=tpu)
  except (
    tf.errors.OpError,
    ImportError,
    OSError,  # What it is asked over the network fails.
    RuntimeError,
    ValueError,
  ) as e:
    message, *_ = str(e).strip().splitlines() or [""]
    raise ValueError(
      f"--tpu={tpu}: TensorFlow cannot use this TPU. Is it ready, and is"
      " this TensorFlow made for it (as with Bazel's --config=tpu)? It says:"
      f" {type(e).__name__}: {message}"
    ) from e


def _check_address(flag: str, address: str) -> None:
  """Raises an error if no process listens at an address."""
  host, _, port = address.rpartition(":")
  if not (host and port.isdigit()):
    raise ValueError(f"{flag}: {address} is not HOST:PORT.")
  try:
    socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
  except (OSError, OverflowError) as e:
    raise ValueError(f"{flag}: nothing answers at {address}: {e}.") from e


def _cluster_strategy(name: str) -> tf.distribute.Strategy:
  is_mirrored = name == "multi_worker_mirrored"
  cluster, task_type, index = _read_tf_config(
    name,
    needed=("worker",) if is_mirrored else ("chief", "worker", "ps"),
    allowed=("chief", "worker") if is_mirrored else ("chief", "worker", "ps"),
  )
  if not is_mirrored and task_type != "chief":
    _server = tf.distribute.Server(  # Runs for as long as there is this name.
      tf.train.ClusterSpec(cluster), job_name=task_type, task_index=index
    )
    # `Server.join` would let Python handle no signal, and nothing clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    while True:
      signal.pause()
  size = sum(len(addresses) for addresses in cluster.values())
  with _limited(
    f"--strategy={name}: not all {size} processes of the cluster in TF_CONFIG"
    " have come"
  ):
    try:
      return distribute_utils.get_distribution_strategy(name)
    except (tf.errors.OpError, RuntimeError) as e:
      message, *_ = str(e).strip().splitlines() or [""]
      raise ValueError(
        f"--strategy={name}: no cluster came about: {message}"
      ) from e


def _read_tf_config(
  strategy: str, needed: Sequence[str], allowed: Sequence[str]
) -> tuple[dict[str, list[str]], str, int]:
  """Checks TF_CONFIG; returns the cluster, and this process's task in it."""
  value = os.environ.get("TF_CONFIG")
  if not value:
    raise ValueError(
      f"--strategy={strategy} needs TF_CONFIG in the environment: which"
      " processes there are, and which this one is, as JSON, for example"
      f" {_EXAMPLE}."
    )
  try:
    config = json.loads(value)
    cluster = {
      job: [str(address) for address in addresses]
      for job, addresses in config["cluster"].items()
    }
    task_type, index = config["task"]["type"], int(config["task"]["index"])
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(
      f"TF_CONFIG is not as {_EXAMPLE}: {type(e).__name__}: {e}."
    ) from e
  for job in needed:
    if not cluster.get(job):
      raise ValueError(
        f"--strategy={strategy}: the cluster in TF_CONFIG has no {job}."
      )
  for job in cluster:
    if job not in allowed:
      raise ValueError(
        f"--strategy={strategy}: the cluster in TF_CONFIG has a {job}; there"
        f" may be {', '.join(allowed)}."
      )
  if not 0 <= index < len(cluster.get(task_type, ())):
    raise ValueError(
      f"TF_CONFIG: the cluster has no {task_type} {index}, which this process"
      " is said to be."
    )
  return cluster, task_type, index


@contextlib.contextmanager
def _limited(message: str) -> Iterator[None]:
  """Ends this process if what is done in this context takes too long.

  TensorFlow waits with Python's lock held, so that no thread and no signal
  handler would have its turn; another process does.
  """
  watch = subprocess.Popen(
    [
      *(sys.executable, "-c", _WATCH, str(START_TIMEOUT), str(os.getpid())),
      f"ERROR: {message} within {START_TIMEOUT} s.",
    ],
    stdin=subprocess.PIPE,
  )
  try:
    yield
  finally:
    watch.communicate()
