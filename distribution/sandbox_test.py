"""Tests the sandbox with code that violates its restrictions.

This module also answers the requests in the sandbox.
"""

import ctypes
import fcntl
import json
import mmap
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized

from distribution import sandbox

_LIMITS = sandbox.Limits(seconds=2, memory=2**28)


def _delete(path):
  os.remove(path)


def _link(path):
  os.link(path, f"{path}.link")


def _rename(path):
  os.rename(path, f"{path}.old")


def _truncate(path):
  os.truncate(path, 0)


def _chmod(path):
  os.chmod(path, 0o777)


def _touch(path):
  os.utime(path, (0, 0))


def _write(path):
  pathlib.Path(path).write_text("harm")


def _append(path):
  with open(path, "a") as f:
    f.write("harm")


def _create(path):
  pathlib.Path(f"{path}.new").touch()


def _make_directory(path):
  os.mkdir(f"{path}.d")


def _read(path):
  return pathlib.Path(path).read_text()


def _list(path):
  return os.listdir(os.path.dirname(path))


def _read_passwords(path):
  return pathlib.Path("/etc/passwd").read_text()


def _read_parent(path):
  return pathlib.Path(f"/proc/{os.getppid()}/environ").read_text()


def _connect(path):
  socket.create_connection(("127.0.0.1", int(_read(f"{path}.port"))))


def _connect_to_unix_socket(path):
  socket.socket(socket.AF_UNIX).connect(f"{path}.socket")


def _io_uring(path):
  parameters = ctypes.create_string_buffer(120)
  if ctypes.CDLL(None, use_errno=True).syscall(425, 1, parameters) < 0:
    raise OSError(ctypes.get_errno(), "io_uring")


def _execute(path):
  subprocess.run(["/bin/true"], check=True)


def _execute_in_place(path):
  os.execv("/bin/true", ["/bin/true"])


def _fork(path):
  if not os.fork():
    os._exit(0)


def _spawn(path):
  os.posix_spawn("/bin/true", ["/bin/true"], {})


def _signal_parent(path):
  os.kill(os.getppid(), signal.SIGTERM)


def _trace(path):
  if ctypes.CDLL(None, use_errno=True).ptrace(0x4206, os.getppid(), 0, 0) < 0:
    raise OSError(ctypes.get_errno(), "ptrace")


def _limit_parent(path):
  resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))


def _slow_parent_down(path):
  os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)


def _signal_parent_by_file(path):
  fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())


def _outlive_parent(path):
  if ctypes.CDLL(None, use_errno=True).prctl(1, 0, 0, 0, 0) < 0:
    raise OSError(ctypes.get_errno(), "prctl")


def _leave_memory(path):
  if ctypes.CDLL(None, use_errno=True).shmget(0, 4096, 0o600) < 0:
    raise OSError(ctypes.get_errno(), "shmget")


def _share_memory(path):
  mmap.mmap(-1, 4096)


def _make_file_of_memory(path):
  os.memfd_create("harm")


def _use_a_thread(path):
  thread_failed = []

  def run():
    try:
      _write(path)
    except OSError as e:
      thread_failed.append(e)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  raise thread_failed[0]


# Functions that raise an OSError in the sandbox, and take effect outside it.
_REFUSED = {
  f.__name__: f
  for f in (
    *(_delete, _link, _rename, _truncate, _chmod, _touch, _write, _append),
    *(_create, _make_directory, _read, _list),
    *(_read_passwords, _read_parent, _connect, _connect_to_unix_socket),
    *(_io_uring, _execute, _execute_in_place, _fork, _spawn),
    *(_signal_parent, _trace, _use_a_thread, _limit_parent),
    *(_slow_parent_down, _signal_parent_by_file, _outlive_parent),
    *(_leave_memory, _share_memory, _make_file_of_memory),
  )
}


def _burn(path):
  while True:
    pass


def _wait(path):
  time.sleep(3600)


def _fill(path):
  return "".join([chr(x % 100) * 2**20 for x in range(2**20)])


def _fault(path):
  ctypes.string_at(0)


def _leave(path):
  print("good \033[2J bye")
  sys.stdout.flush()
  os._exit(3)


def _fail(path):
  raise ValueError("no \033[31mway")


def _flood(path):
  return "x" * 2**28


def _renew(path):
  for _ in range(6):
    sandbox.renew()
    end = time.process_time() + 0.1
    while time.process_time() < end:
      pass
  return "renewed"


def _babble(path):
  os.write(int(sys.argv[1]), b"\0\0\0\4junk")


def _burn_less(path):
  sandbox.lower(1)
  _burn(path)


def _nest(path):
  value = []
  for _ in range(900):
    value = [value]
  return value


def _answer_too_much(path):
  return [0] * 5_000_000


def _read_far_apart(path):
  size = 2**40  # Only the page tables take memory.
  pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 1)
  for i in range(0, size, 2**21):
    pages[i]


def _start_threads(path):
  threading.stack_size(2**16)
  for _ in range(50):
    threading.Thread(target=time.sleep, args=[3600], daemon=True).start()
  time.sleep(3600)


def _close_output(path):
  os.closerange(1, 3)
  time.sleep(3600)


_ENDING = {
  f.__name__: f
  for f in (
    *(_burn, _burn_less, _wait, _fill, _fault, _leave, _fail, _flood),
    *(_renew, _babble, _nest, _answer_too_much, _read_far_apart),
    *(_start_threads, _close_output),
  )
}


def serve(requests):
  """Calls the requested functions, and answers with what happened."""
  for name, path in requests:
    if name in _ENDING:
      yield _ENDING[name](path)
      continue
    try:
      yield f"done: {_REFUSED[name](path)}"
    except OSError as e:
      yield f"refused: {type(e).__name__}"


class SandboxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.assertEqual(sandbox.missing(), "")
    # Bazel's directories are too long for the path of a socket.
    self.directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.directory, "file")
    pathlib.Path(self.path).write_text("secret")

  def started(self, limits=_LIMITS, **kwargs):
    return sandbox.started("distribution.sandbox_test", limits, **kwargs)

  def test_refuses(self):
    with (
      socket.create_server(("127.0.0.1", 0)) as server,
      socket.socket(socket.AF_UNIX) as unix_server,
    ):
      unix_server.bind(f"{self.path}.socket")
      unix_server.listen()
      port = pathlib.Path(f"{self.path}.port")
      port.write_text(str(server.getsockname()[1]))
      before = sorted(os.listdir(self.directory))
      status = os.stat(self.path)
      # The port is known, so that only the connection can fail.
      with self.started(readable=[str(port)]) as ask:
        answers = {name: ask([name, self.path]) for name in _REFUSED}
    self.assertEqual(
      {n: a for n, a in answers.items() if not a.startswith("refused: ")}, {}
    )
    self.assertEqual(sorted(os.listdir(self.directory)), before)
    self.assertEqual(pathlib.Path(self.path).read_text(), "secret")
    self.assertEqual(os.stat(self.path).st_mtime_ns, status.st_mtime_ns)
    self.assertEqual(os.stat(self.path).st_mode, status.st_mode)

  def test_allows_what_it_is_told(self):
    with self.started(readable=[self.directory]) as ask:
      self.assertEqual(ask(["_read", self.path]), "done: secret")
      self.assertStartsWith(ask(["_write", self.path]), "refused")
    with self.started(writable=[self.directory]) as ask:
      self.assertStartsWith(ask(["_write", self.path]), "done")
      self.assertStartsWith(ask(["_execute", self.path]), "refused")
    with self.started(sandboxed=False) as ask:
      self.assertEqual(ask(["_read", self.path]), "done: harm")

  @parameterized.parameters(
    ("_burn", "it needs more than 2 s"),
    ("_fill", "MemoryError|more than 0.25 GiB"),
    ("_fault", "it died of SIGSEGV"),
    ("_leave", r"it ended with status 3: good \\x1b\[2J bye"),
    ("_fail", r"it failed: ValueError: no \\x1b"),
    ("_flood", "it died|MemoryError|more than|it ended"),
    ("_babble", "it died|it ended|cannot be read"),
    ("_nest", "its answer cannot be read: max.* recursion|RecursionError"),
    ("_answer_too_much", "more than 4,000,000 values|MemoryError|GiB"),
    ("_close_output", "it closed its output"),
    ("_burn_less", "more CPU time than the weights that it uses explain"),
    ("_read_far_apart", "more than 0.25 GiB|more than 2 s"),
  )
  def test_ends(self, name, reason):
    with self.started() as ask:
      with self.assertRaisesRegex(sandbox.SandboxError, reason):
        ask([name, self.path])
      with self.assertRaises(sandbox.SandboxError):
        ask(["_read", self.path])

  def test_a_call_ends(self):
    with self.started(sandbox.Limits(9, 2**28, 0.4)) as ask:
      self.assertEqual(ask(["_renew", self.path]), "renewed")
      with self.assertRaisesRegex(
        sandbox.SandboxError, "more than 0.4 s for one call"
      ):
        ask(["_burn", self.path])

  @parameterized.parameters(
    ("_wait", "_IDLE_SECONDS", 1.0, "does not happen"),
    ("_start_threads", "_MOST_THREADS", 20, "more than 20 threads"),
    ("_wait", "_MOST_THREADS", None, "cannot watch it"),
  )
  def test_waiting_ends(self, name, bound, value, reason):
    with (
      absltest.mock.patch.object(sandbox, bound, value),
      self.started() as ask,
      self.assertRaisesRegex(sandbox.SandboxError, reason),
    ):
      ask([name, self.path])

  def test_ends_with_its_parent(self):
    program = f"""
import os, sys
sys.path.insert(0, {str(pathlib.Path(sandbox.__file__).parents[1])!r})
from distribution import sandbox, sandbox_test
with sandbox.started("distribution.sandbox_test", sandbox_test._LIMITS) as ask:
  ask(["_list", "/"])
  os.system("ps -o pid= --ppid %d | head -1" % os.getpid())
  sys.stdout.flush()
  os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True
    )
    child = int(done.stdout.split()[0])
    for _ in range(100):
      if not os.path.exists(f"/proc/{child}"):
        return
      time.sleep(0.1)
    self.fail("The process outlived the one that had started it.")

  def test_without_landlock(self):
    with absltest.mock.patch.object(sandbox, "_landlock_abi", lambda: -1):
      self.assertIn("no Landlock", sandbox.missing())

  def test_messages_are_json(self):
    with self.started(readable=[self.directory]) as ask:
      pathlib.Path(self.path).write_text(json.dumps("\0\ud800"))
      self.assertIn("done", ask(["_read", self.path]))


if __name__ == "__main__":
  absltest.main()
