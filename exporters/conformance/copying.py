"""Copies a SavedModel, and starts the process that audits and loads the copy.

The original is read once, so it cannot change between the audit and the load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import sys
import tempfile
from typing import Any

from distribution import copies
from distribution import errors
from distribution import sandbox

copy = copies.copy
_SECONDS_FOR_BYTE = 0.005  # CPU seconds for a byte of the variables' index.
_CALL_SECONDS_FOR_BYTE = 2.0**-24  # One second for 16 MiB of the model.


@dataclasses.dataclass(frozen=True)
class Options:
  """How a SavedModel is loaded. The fields are flags of the programs.

  Attributes:
    trust: Whether to load a suspicious SavedModel.
    sandbox: Whether to restrict the process that loads the SavedModel.
    follow_links: Whether to follow symbolic links in its directory.
    seconds: Limit of CPU time. 0 derives it from the variables.
    gib: Limit of memory, in GiB. 0 derives it from the size of the files.
  """

  trust: bool = False
  sandbox: bool = True
  follow_links: bool = False
  seconds: float = 0.0
  gib: float = 0.0


FLAGS = {
  "trust": "Load the SavedModel even if it has ops that models do not need, or"
  " if this kernel lacks what the sandbox needs.",
  "sandbox": "Load the SavedModel in a process that can read nothing else,"
  " write nothing and open no connection. With --nosandbox it has your rights.",
  "follow_links": copies.FOLLOW_LINKS,
  "seconds": (
    "CPU time in seconds that the process, or one call, may need. 0: by the"
    " variables, and from 30 on for a call.",
    0.0,
  ),
  "gib": (
    "Memory in GiB that the process may need. 0: by the size of the files, and"
    " the number of variables.",
    0.0,
  ),
}


@contextlib.contextmanager
def started(
  module: str,
  saved_model_dir: str,
  options: Options,
  *,
  longer: int = 1,
  call: float = 0.0,
  names: dict[str, str] | None = None,
  readable: Sequence[str] = (),
  **kwargs: Any,
) -> Iterator[tuple[Callable[[Any], Any], dict[str, Any]]]:
  """Copies a SavedModel and starts a sandboxed process that can read the copy.

  Args:
    module: As in `sandbox.started`.
    saved_model_dir: The SavedModel.
    options: How to load it.
    longer: Factor of the default CPU time of a check; if above 1, the memory
      doubles. Limits in `options` override both.
    call: As in `sandbox.Limits`; `options.seconds` overrides it too.
    names: As in `sandbox.started`, for paths besides the copy.
    readable: As in `sandbox.started`, for paths besides the copy.
    **kwargs: Further arguments of `sandbox.started`.

  Yields:
    The function that `sandbox.started` yields, and the request for
    `subject.requested`.

  Raises:
    InputError: The SavedModel cannot be copied, or there is no sandbox here.
  """
  lacking = sandbox.missing() if options.sandbox else ""
  if lacking and not options.trust:
    raise errors.InputError(
      f"Nothing is loaded: {lacking}. To load it without one, pass --trust."
    )
  if lacking:
    print(f"Loaded without a sandbox: {lacking}.", file=sys.stderr)
  with tempfile.TemporaryDirectory(prefix="copy.") as directory:
    copied = copy(saved_model_dir, directory, follow_links=options.follow_links)
    limits = sandbox.limits(copied.size, None, None, copied.index)
    # Graphs of many layers take long to differentiate, even for one call.
    more = _SECONDS_FOR_BYTE * copied.index
    more_for_call = more / 3 + _CALL_SECONDS_FOR_BYTE * copied.size
    limits = sandbox.Limits(
      options.seconds or (limits.seconds + more) * longer,
      int(options.gib * 2**30) or limits.memory * min(longer, 2),
      call and (options.seconds or round(call + more_for_call)),
    )
    with sandbox.started(
      module,
      limits,
      readable=[directory, *readable],
      sandboxed=options.sandbox and not lacking,
      names={directory: saved_model_dir, **(names or {})},
      **kwargs,
    ) as ask:
      request = {
        "directory": directory,
        "problems": copied.problems,
        "trust": options.trust,
        "seconds": options.seconds,
      }
      yield ask, request
