"""Addresses for the clusters that tests start."""

from collections.abc import Iterator
import contextlib
import socket


@contextlib.contextmanager
def held(count: int) -> Iterator[list[str]]:
  """Yields addresses on this machine whose ports stay reserved.

  Their sockets are bound but do not listen. A server that sets SO_REUSEADDR, as
  TensorFlow's does, can therefore still listen on these ports.
  """
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for s in sockets:
      s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      s.bind(("localhost", 0))
    yield [f"localhost:{s.getsockname()[1]}" for s in sockets]
