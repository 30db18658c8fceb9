"""Runs code on untrusted files in a process without rights.

The process can read Python's libraries and the paths that it is given. It
cannot write files, open connections, start programs or signal other processes.
It ends when it exceeds a limit, and with this process at the latest.

Landlock, a part of Linux since 5.13, guards the files; a seccomp filter refuses
other system calls. Both are called by ctypes, because PyPI has only a
development release of Landlock, and seccomp needs a system library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import errno
import functools
import importlib
import json
import math
from multiprocessing import connection
import os
import pathlib
import platform
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from typing import Any, NamedTuple

from distribution import errors

_LARGEST_MESSAGE = 2**27
_MOST_VALUES = 4_000_000  # In an answer, which this process parses.
# A process that has waited for this long plus three times its CPU time is taken
# to be in a deadlock.
_IDLE_SECONDS = 30.0
_MOST_THREADS = 1000 + 16 * (os.cpu_count() or 1)
_MOST_FILES = 4096  # Open files. Pipes take memory too.
_WATCHING_SECONDS = 0.2
_NOWHERE = "/dev/null/nowhere"  # A directory that cannot be created.
_LIBRARIES = (
  *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"),
  *("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
  *("/dev/null", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo"),
  # TensorFlow aborts if it cannot read the first of these.
  *("/proc/self/cmdline", "/sys/devices/system/cpu"),
)
_VARIABLES = (
  *("LANG", "LC_", "LD_", "OMP_", "PYTHON", "TF_", "TMPDIR", "TZ", "XLA_"),
)
_LIBC = ctypes.CDLL(None, use_errno=True)

# Landlock's rights for files, and those that each version of its ABI knows.
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_RIGHTS = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 5: 2**16 - 1}
_OF_FILES = 2**0 | 2**1 | 2**2 | 2**14 | 2**15

# No links, devices, sockets and pipes in writable directories.
_OF_WRITABLE = ~(_EXECUTE | 2**6 | 2**9 | 2**10 | 2**11 | 2**12)

# For each machine, by Python's name: the number of its architecture in seccomp,
# the system calls that are refused for some arguments, those that are always
# refused, and those that start programs.
_SYSTEM_CALLS = {
  "x86_64": (
    0xC000003E,
    # clone, clone3, prlimit64, tgkill, prctl, fcntl, ioctl, mmap
    (56, 435, 302, 234, 157, 72, 16, 9),
    # socket, socketpair, kill, ptrace, truncate, chmod, fchmod, the chowns,
    # utime, mknod, the setxattrs, tkill, utimes, mknodat, fchownat, futimesat,
    # fchmodat, add_key, keyctl, request_key, unshare, utimensat,
    # perf_event_open, open_by_handle_at, setns, process_vm_*, bpf, userfaultfd,
    # io_uring_setup, pidfd_send_signal, fchmodat2, rt_sigqueueinfo,
    # rt_tgsigqueueinfo, setpgid, setsid, the removexattrs, pidfd_getfd, syslog
    (
      *(41, 53, 62, 101, 76, 90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 200),
      *(235, 259, 260, 261, 268, 248, 250, 249, 272, 280, 298, 304, 308, 310),
      *(311, 321, 323, 425, 424, 452, 129, 297, 109, 112, 197, 198, 199, 438),
      103,
      # Memory that outlives the process, or that its size does not show:
      # shmget, semget, msgget, mq_open, memfd_create, memfd_secret
      *(29, 64, 68, 240, 319, 447),
      # The priority of other processes: setpriority, ioprio_set,
      # sched_setparam, sched_setscheduler, sched_setattr, sched_setaffinity
      *(141, 251, 142, 144, 314, 203),
    ),
    # fork, vfork, execve, execveat
    (57, 58, 59, 322),
  ),
  "aarch64": (
    0xC00000B7,
    (220, 435, 261, 131, 167, 25, 29, 222),
    (
      *(198, 199, 129, 117, 45, 52, 53, 54, 55, 33, 5, 6, 7, 130, 88, 217, 219),
      *(218, 97, 241, 265, 268, 270, 271, 280, 282, 425, 424, 452, 138, 240),
      *(154, 157, 14, 15, 16, 438, 116, 194, 190, 186, 180, 279, 447, 140, 30),
      *(118, 119, 274, 122),
    ),
    (221, 281),
  ),
}


class Limits(NamedTuple):
  """Limits of the process.

  Attributes:
    seconds: CPU time for all answers.
    memory: Bytes of memory.
    call: CPU time from one `renew` to the next. 0: no limit.
  """

  seconds: float
  memory: int
  call: float = 0.0


def limits(
  size: int, seconds: float | None, gib: float | None, index: int = 0
) -> Limits:
  """Returns the limits in flags; by default those for the size of a model.

  The CPU time is more than twice that of checks of good models: 50 s for
  16 MiB, 90 s for a text encoder of 440 MiB, and 900 s, beside other work, for
  an image model of 750 MiB. A small model gets more time for each byte, because
  attackers can add bytes.

  The memory is enough for the gradients of a copy in double precision, which
  took 14 times the bytes of ResNet-101, and 100 times those of DenseNet-201
  with its 1,006 small variables. It is at most the memory of the machine.

  Args:
    size: Bytes of the files that a load has in memory.
    seconds: The CPU time, or None.
    gib: The memory, or None.
    index: Bytes of the index of the variables, about 66 for each.
  """
  machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  memory = min(3.5 * 2**30 + 20 * size + 2**16 * index, machine)
  return Limits(
    seconds or 40 + 30 * math.sqrt(size / 2**20) + 1.5 * size / 2**20,
    int(gib * 2**30 if gib else memory),
  )


def lower(seconds: float) -> None:
  """Lowers the limit of this process's CPU time. Nothing can raise it again."""
  _, most = resource.getrlimit(resource.RLIMIT_CPU)
  least = math.ceil(seconds)
  if most == resource.RLIM_INFINITY or least < most:
    resource.setrlimit(resource.RLIMIT_CPU, (least, least + 1))


def renew() -> None:
  """Restarts the CPU time of `Limits.call`; does nothing without that limit."""
  _, seconds = signal.getitimer(signal.ITIMER_PROF)
  signal.setitimer(signal.ITIMER_PROF, seconds, seconds)


class SandboxError(Exception):
  """The process ended without an answer. The text is the reason."""


def missing() -> str:
  """Returns what this machine lacks for a sandbox, or ""."""
  if sys.platform != "linux" or platform.machine() not in _SYSTEM_CALLS:
    return f"the sandbox does not know {sys.platform} on {platform.machine()}"
  if _landlock_abi() < 1:
    return "this kernel has no Landlock, which the sandbox needs (Linux 5.13)"
  return ""


@contextlib.contextmanager
def started(
  module: str,
  limits: Limits,
  *,
  python: str = sys.executable,
  readable: Sequence[str] = (),
  writable: Sequence[str] = (),
  variables: dict[str, str] | None = None,
  programs: bool = False,
  sandboxed: bool = True,
  names: Mapping[str, str] | None = None,
) -> Iterator[Callable[[Any], Any]]:
  """Starts a process that answers requests, and ends it on exit.

  Args:
    module: The module that answers. Its generator `serve` takes an iterator of
      the requests and yields the answer to each. Both are JSON.
    limits: Limits of the process.
    python: The interpreter, of this version or a later one.
    readable: Files and directories that it may read, besides libraries.
    writable: Directories in which it may read and write.
    variables: Environment variables to set.
    programs: Whether it may start Python, with the same restrictions. Its
      output is then shown.
    sandboxed: Whether it is restricted at all. The limits always hold.
    names: Paths, and the names that replace them in texts.

  Yields:
    A function that sends a request and returns the answer, whose texts can be
    shown. It raises a SandboxError, or an InputError that `serve` raised.
  """
  ours, theirs = socket.socketpair()
  process = _spawn(python, module, theirs, variables or {})
  theirs.close()
  channel = connection.Connection(ours.detach())
  watch = _Watch(process, limits, programs)
  config = {
    "parent": os.getpid(),
    "readable": list(map(os.path.realpath, readable)),
    "writable": list(map(os.path.realpath, writable)),
    "memory": limits.memory,
    "seconds": int(limits.seconds) + 10,  # `_Watch` ends it earlier.
    "call": limits.call,
    "programs": programs,
    "sandboxed": sandboxed,
  }
  try:
    with contextlib.suppress(OSError):  # `_ask` reports an early end.
      channel.send_bytes(json.dumps(config).encode())
    yield functools.partial(_ask, channel, watch, names or {})
  finally:
    watch.kill()
    channel.close()


def _ask(
  channel: connection.Connection,
  watch: _Watch,
  names: Mapping[str, str],
  request: Any,
) -> Any:
  """Sends a request and returns the answer, as `started` says."""
  watch.waited_for = True
  try:
    channel.send_bytes(json.dumps(request).encode())
    data = channel.recv_bytes(_LARGEST_MESSAGE)
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
      raise ValueError(f"it has more than {_MOST_VALUES:,} values")
    answer = _plain(json.loads(data), names)
  except (EOFError, OSError):
    raise SandboxError(errors.shown(watch.reason())) from None
  except (RecursionError, ValueError) as e:
    watch.kill()
    reason = errors.shown(str(e))
    raise SandboxError(f"its answer cannot be read: {reason}") from None
  watch.waited_for = False
  if not isinstance(answer, dict) or "answer" not in answer:
    problem = answer.get("failed") if isinstance(answer, dict) else None
    raise SandboxError(f"it failed: {problem}")
  if answer.get("is_error"):
    raise errors.InputError(f"{answer['answer']}")
  return answer["answer"]


def _spawn(
  python: str, module: str, channel: socket.socket, variables: Mapping[str, str]
) -> subprocess.Popen:
  """Starts the process, which restricts itself."""
  return subprocess.Popen(
    # -P keeps this directory, whose names are not unique, off the path.
    [python, "-P", __file__, str(channel.fileno()), module],
    pass_fds=[channel.fileno()],
    env={
      **{k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)},
      "CUDA_VISIBLE_DEVICES": "-1",
      "HOME": _NOWHERE,
      "KERAS_HOME": _NOWHERE,  # Not in /tmp, where its file is unreadable.
      # A thread takes 32 MiB. Some versions repeat failed requests for ever.
      "OPENBLAS_NUM_THREADS": "1",
      "PYTHONDONTWRITEBYTECODE": "1",
      "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
      "TF_CPP_MIN_LOG_LEVEL": "3",  # `_Watch` shows the last line.
      **variables,
    },
    cwd="/",
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )


def _plain(value: Any, names: Mapping[str, str]) -> Any:
  """Replaces paths by names, and what JSON or a terminal cannot show."""
  if isinstance(value, dict):
    return {_plain(k, names): _plain(v, names) for k, v in value.items()}
  if isinstance(value, list):
    return [_plain(each, names) for each in value]
  if isinstance(value, str):
    for path, name in names.items():
      value = value.replace(path, name)
    return errors.shown(value)
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


class _Watch:
  """Kills a process that exceeds its limits, and tells why it ended."""

  def __init__(
    self, process: subprocess.Popen, limits: Limits, has_programs: bool
  ):
    self.waited_for = False  # Whether `_ask` waits for an answer.
    self._process = process
    self._limits = limits
    self._has_programs = has_programs
    self._said = b""  # The end of its output.
    self._exceeded = ""
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def kill(self) -> None:
    """Ends the process."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._thread.join()
    self._process.stdout.close()

  def reason(self) -> str:
    """Waits for the end of the process and returns the reason."""
    # The process has closed the channel, but may still run.
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(5)
    self.kill()
    if self._exceeded:
      return self._exceeded
    status = self._process.returncode
    if status == -signal.SIGPROF:
      return f"it needs more than {self._limits.call:g} s for one call"
    if status == -signal.SIGXCPU:
      return "it needs more CPU time than the weights that it uses explain"
    how = f"it ended with status {status}"
    if status < 0:
      how = f"it died of {signal.Signals(-status).name}"
    lines = self._said.decode(errors="replace").strip().splitlines()
    return how + (f": {lines[-1].strip()[:300]}" if lines else "")

  def _usage(self) -> tuple[float, int, int, bool]:
    """Measures the process, or its group if it may start programs.

    Returns:
      The CPU time, the bytes of memory, the number of threads, and whether none
      of them is waiting for a CPU or a disk.
    """
    pid = self._process.pid
    ticks = kib = 0
    states: list[str] = []
    for path in pathlib.Path("/proc").glob(
      "[0-9]*/stat" if self._has_programs else f"{pid}/stat"
    ):
      with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        fields = _fields(path)
        if int(fields[2]) != pid:
          continue
        ticks += int(fields[11]) + int(fields[12])
        status = path.with_name("status").read_text()
        # Pages that are swapped out, and page tables, are memory too.
        found = re.findall(r"^Vm(?:RSS|Swap|PTE):\s+(\d+)", status, re.M)
        kib += sum(map(int, found))
        states += [_fields(p)[0] for p in path.parent.glob("task/*/stat")]
    waits = not {"R", "D"}.intersection(states)
    return ticks / os.sysconf("SC_CLK_TCK"), 1024 * kib, len(states), waits

  def _run(self) -> None:
    try:
      self._watch()
    except Exception as e:  # Full memory: nothing else would end it.
      self._exceeded = f"this program cannot watch it: {errors.one_line(e)}"
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)

  def _watch(self) -> None:
    output = self._process.stdout
    before, idle = time.monotonic(), 0.0
    while not self._exceeded:
      if select.select([output], [], [], _WATCHING_SECONDS)[0]:
        data = os.read(output.fileno(), 2**16)
        if not data:
          try:
            self._process.wait(1)
          except subprocess.TimeoutExpired:
            self._exceeded = "it closed its output"
          return
        self._said = (self._said + data)[-4096:]
        if self._has_programs:
          text = data.decode(errors="replace")
          text = "\n".join(map(errors.shown, text.split("\n")))
          with contextlib.suppress(OSError):  # `programs._flush` reports it.
            print(text, end="", flush=True)
      cpu, memory, threads, waits = self._usage()
      now = time.monotonic()
      if self.waited_for and waits:
        idle += min(now - before, 1.0)  # This process may have been stopped.
      before = now
      if memory > self._limits.memory:
        gib = self._limits.memory / 2**30
        self._exceeded = f"it needs more than {gib:.3g} GiB of memory"
      elif cpu > self._limits.seconds:
        self._exceeded = f"it needs more than {self._limits.seconds:.0f} s"
      elif idle > _IDLE_SECONDS + 3 * cpu:
        gib = self._limits.memory / 2**30  # The kernel refuses more.
        self._exceeded = (
          "it waits for something that does not happen, such as more than"
          f" {gib:.3g} GiB of memory"
        )
      elif threads > _MOST_THREADS:
        self._exceeded = f"it starts more than {_MOST_THREADS} threads"


def _fields(path: pathlib.Path) -> list[str]:
  """Returns the fields of a `stat` file in /proc, starting with the state."""
  return path.read_text().rpartition(")")[2].split()


def _landlock_abi() -> int:
  return _LIBC.syscall(444, None, ctypes.c_size_t(0), 1)


def _enter(config: dict[str, Any], module: str) -> None:
  """Restricts this process, which must not have other threads yet."""
  _check(_LIBC.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG
  if os.getppid() != config["parent"]:
    sys.exit()
  memory, writable = config["memory"], config["writable"]
  for limit, value in (
    (resource.RLIMIT_DATA, memory),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_CPU, config["seconds"]),
    (resource.RLIMIT_NOFILE, _MOST_FILES),
    *[(resource.RLIMIT_FSIZE, memory * bool(writable))] * config["sandboxed"],
  ):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
  # SIGPROF ends the process, even in a loop of TensorFlow.
  signal.setitimer(signal.ITIMER_PROF, config["call"], config["call"])
  if not config["sandboxed"]:
    return
  # Otherwise Python writes files to find a directory for temporary files.
  tempfile.tempdir = next(iter(writable), _NOWHERE)
  _check(_LIBC.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
  _drop_capabilities()
  _restrict_files(
    {**dict.fromkeys(config["readable"]), **dict.fromkeys(_libraries(module))},
    writable,
    [os.path.realpath(sys.executable), *_loaders()] * config["programs"],
  )
  _refuse_system_calls(config["programs"])


def _drop_capabilities() -> None:
  """Drops root's capabilities, except reading the files of other users."""
  header = struct.pack("=Ii", 0x20080522, 0)
  held = ctypes.create_string_buffer(24)
  _check(_LIBC.capget(header, held))
  kept = struct.unpack("=6I", held.raw)[1] & 2**2  # CAP_DAC_READ_SEARCH
  _check(_LIBC.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def _libraries(module: str) -> Iterator[str]:
  """Yields the files and directories that Python and a module need."""
  root = os.environ["PYTHONPATH"]
  names = ("stdlib", "platstdlib", "purelib", "platlib")
  yield from (sysconfig.get_paths()[name] for name in names)
  yield from (path for path in sys.path if path != root)
  yield from (*_LIBRARIES, os.path.join(sys.prefix, "pyvenv.cfg"))
  # The files of a package may be links.
  for package in {module.split(".")[0], "distribution"}:
    for folder, _, files in os.walk(os.path.join(root, package)):
      yield folder
      for file in files:
        yield os.path.dirname(os.path.realpath(os.path.join(folder, file)))
  for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
    _, _, path = line.partition(" /")
    if ".so" in path:
      yield os.path.dirname(f"/{path}")


def _loaders() -> list[str]:
  """Returns the paths of the dynamic linkers, which start programs."""
  folders = map(pathlib.Path, ("/lib64", "/lib"))
  found = [path for d in folders for path in d.glob("ld-linux*.so*")]
  return list(map(os.path.realpath, found))


def _restrict_files(
  readable: Sequence[str], writable: Sequence[str], executable: Sequence[str]
) -> None:
  abi = _landlock_abi()
  rights = next(v for k, v in reversed(_RIGHTS.items()) if k <= abi)
  # The ruleset handles files, TCP, and scopes of sockets and signals.
  handled = struct.pack("=QQQ", rights, 3 * (abi >= 4), 3 * (abi >= 6))
  size = 8 * (1 + (abi >= 4) + (abi >= 6))
  ruleset = _check(_LIBC.syscall(444, handled, ctypes.c_size_t(size), 0))
  rules = [(path, _READ_FILE | _READ_DIR) for path in readable]
  rules += [(os.environ["PYTHONPATH"], _READ_DIR), ("/dev/null", 6)]
  # Each program that it starts has another /proc/self.
  rules += [("/proc", _READ_FILE)] * bool(executable)
  rules += [(path, rights & _OF_WRITABLE) for path in writable]
  rules += [(path, _READ_FILE | _EXECUTE) for path in executable]
  for path, allowed in rules:
    path = os.path.realpath(path)
    if not os.path.exists(path):
      continue
    if not os.path.isdir(path):
      allowed &= _OF_FILES
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", allowed & rights, beneath)
    _check(_LIBC.syscall(445, ruleset, 1, rule, 0))
    if not path.startswith("/proc/"):  # There, rules need an open file.
      os.close(beneath)
  _check(_LIBC.syscall(446, ruleset, 0))
  os.close(ruleset)


def _refuse_system_calls(programs: bool) -> None:
  """Installs a seccomp filter, a program for the Berkeley Packet Filter."""
  architecture, by_argument, refused, starting = _SYSTEM_CALLS[
    platform.machine()
  ]
  clone, clone3, prlimit64, tgkill, prctl, fcntl, ioctl, mmap = by_argument
  if not programs:
    refused = (*refused, *starting)
  load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
  allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
  no, yes = (give, 0, 0, refuse | errno.EPERM), (give, 0, 0, allow)
  # Each instruction: a code, the jumps if true and if false, and a number.
  code = [
    (load, 0, 0, 4),
    (equal, 1, 0, architecture),
    (give, 0, 0, kill),
    (load, 0, 0, 0),
    (at_least, 0, 1, 0x40000000),  # System calls of x32.
    no,
  ]
  for number in refused:
    code += [(equal, 0, 1, number), no]
  # The C library falls back from clone3 to clone, which may start threads.
  code += [(equal, 0, 1, clone3), (give, 0, 0, refuse | errno.ENOSYS)]
  if programs:  # Without new namespaces or another parent.
    threads = [(any_bit, 0, 1, 0x7E028000)]
  else:
    threads = [(any_bit, 1, 0, 0x10000)]
  me = os.getpid()
  for number, argument, *conditions in (
    (clone, 0, *threads),
    (prlimit64, 0, (equal, 1, 0, 0)),  # Only its own limits.
    (tgkill, 0, (equal, 1, 0, me)),
    # PR_SET_PDEATHSIG, except to SIGKILL.
    (prctl, 0, (equal, 0, 3, 1), (load, 0, 0, 24), (equal, 1, 0, 9)),
    # F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN and SIOCSPGRP, which choose the
    # process that a file signals.
    (fcntl, 1, (equal, 2, 0, 8), (equal, 1, 0, 10), (equal, 0, 1, 15)),
    (ioctl, 1, (equal, 1, 0, 0x8901), (equal, 0, 1, 0x8902)),
    # MAP_ANONYMOUS and MAP_SHARED: such memory stays if its pages are dropped.
    (mmap, 3, (any_bit, 0, 2, 0x20), (any_bit, 0, 1, 1)),
  ):
    code += [(equal, 0, len(conditions) + 3, number)]
    code += [(load, 0, 0, 16 + 8 * argument), *conditions, no, yes]
  code.append(yes)
  filters = b"".join(struct.pack("=HBBI", *each) for each in code)
  buffer = ctypes.create_string_buffer(filters)
  program = struct.pack("@HP", len(code), ctypes.addressof(buffer))
  _check(_LIBC.prctl(22, 2, program, 0, 0))  # PR_SET_SECCOMP, with a filter.


def _check(result: int) -> int:
  if result < 0:
    number = ctypes.get_errno()
    raise OSError(number, f"The sandbox: {os.strerror(number)}")
  return result


def main(descriptor: str, module: str) -> None:
  """Answers the requests that arrive at a socket."""
  channel = connection.Connection(int(descriptor))
  config = json.loads(channel.recv_bytes())
  _enter(config, module)

  def requests() -> Iterator[Any]:
    while True:
      try:
        yield json.loads(channel.recv_bytes())
      except EOFError:
        return

  try:
    for answer in importlib.import_module(module).serve(requests()):
      channel.send_bytes(json.dumps({"answer": answer}, default=str).encode())
  except errors.InputError as e:
    answer = {"answer": str(e), "is_error": True}
    channel.send_bytes(json.dumps(answer).encode())
  except Exception as e:
    if config["writable"] and errors.is_of_full_disk(e):
      answer = {"answer": errors.one_line(e), "is_error": True}
      channel.send_bytes(json.dumps(answer).encode())
      return
    text, kind = errors.one_line(e), type(e).__name__
    text = text if text.startswith(kind) else f"{kind}: {text}"
    channel.send_bytes(json.dumps({"failed": text}).encode())
    raise


if __name__ == "__main__":
  main(*sys.argv[1:])
