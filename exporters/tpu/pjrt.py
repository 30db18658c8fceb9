"""Compiles programs for a TPU with libtpu alone, on a machine without a TPU.

libtpu, a package on PyPI, is both the compiler and the driver of TPUs. This
module calls it through the PJRT C API, with ctypes. Structures and functions
are named as in the API's header, xla/pjrt/c/pjrt_c_api.h in TensorFlow's
package; a test compares them.

libtpu may abort its process or hang, and a stranger's model may exploit it, so
`compile_program` runs this module in a sandbox.
"""

import base64
from collections.abc import Callable, Iterator
import ctypes
import dataclasses
import os
import struct
from typing import Any

from distribution import sandbox

_MEMORY = 2**36  # Memory limit of the compiler, in bytes.
_size_t, _void_p, _int64 = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64

# Positions in PJRT_Api, a table of functions that later versions only extend.
FUNCTIONS = {
  "PJRT_Error_Message": 1,
  "PJRT_Plugin_Initialize": 3,
  "PJRT_Executable_GetCostAnalysis": 46,
  "PJRT_TopologyDescription_Create": 82,
  "PJRT_Compile": 89,
  "PJRT_Executable_GetCompiledMemoryStats": 96,
}
_MAJOR_VERSION = 0

# Without these variables libtpu looks for a TPU and allows only one process.
_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


class TpuError(Exception):
  """The compiler refuses a program or fails. The message is its own."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's figures for a program.

  Attributes:
    peak_bytes: Peak memory use (HBM) of one core.
    flops: Floating-point operations of one run; nan if unknown.
    accessed_bytes: Bytes that one run reads and writes; nan if unknown.
  """

  peak_bytes: int
  flops: float
  accessed_bytes: float


def compile_program(
  program: bytes,
  *,
  libtpu: str,
  topology: str,
  full_effort: bool = False,
  seconds: float = 7200,
) -> Compiled:
  """Compiles a program in a sandboxed process.

  Args:
    program: A serialized HloModuleProto: TensorFlow's stage `hlo_serialized`.
    libtpu: Path of libtpu.so.
    topology: The TPUs to compile for, such as `v5e:2x2`.
    full_effort: Optimize, which takes ten times as long. Otherwise the compiler
      overstates the memory use.
    seconds: Limit of CPU time.

  Raises:
    TpuError: The compiler refuses the program, aborts or reaches the limit.
  """
  code = base64.b64encode(program).decode()
  libtpu = os.path.realpath(libtpu)  # The sandbox runs elsewhere.
  with sandbox.started(
    "exporters.tpu.pjrt",
    sandbox.Limits(seconds, _MEMORY),
    readable=[libtpu],
    variables=_ENVIRONMENT,
    sandboxed=not sandbox.missing(),
  ) as ask:
    try:
      answer = ask([libtpu, topology, full_effort, code])
    except sandbox.SandboxError as e:
      raise TpuError(f"libtpu failed: {e}") from e
  if "error" in answer:
    raise TpuError(answer["error"])
  return Compiled(
    answer["peak_bytes"],
    float(answer["flops"]),  # NaN is sent as a string.
    float(answer["accessed_bytes"]),
  )


class _Struct(ctypes.Structure):
  """A structure of the API, with the fields that all of them begin with."""

  def __init__(self, **values: Any):
    super().__init__(struct_size=ctypes.sizeof(self), **values)


def _struct(**fields: type) -> type[_Struct]:
  first = [("struct_size", _size_t), ("extension_start", _void_p)]
  return type("Struct", (_Struct,), {"_fields_": [*first, *fields.items()]})


PJRT_Api_Version = _struct(
  major_version=ctypes.c_int, minor_version=ctypes.c_int
)

PJRT_Api = _struct(
  pjrt_api_version=PJRT_Api_Version,
  functions=_void_p * (max(FUNCTIONS.values()) + 1),
)

PJRT_Error_Message_Args = _struct(
  error=_void_p,
  message=_void_p,
  message_size=_size_t,
)

PJRT_Plugin_Initialize_Args = _struct()

PJRT_TopologyDescription_Create_Args = _struct(
  topology_name=ctypes.c_char_p,
  topology_name_size=_size_t,
  create_options=_void_p,
  num_options=_size_t,
  topology=_void_p,
)

PJRT_Program = _struct(
  code=ctypes.c_char_p,
  code_size=_size_t,
  format=ctypes.c_char_p,
  format_size=_size_t,
)

PJRT_Compile_Args = _struct(
  topology=_void_p,
  program=_void_p,
  compile_options=ctypes.c_char_p,
  compile_options_size=_size_t,
  client=_void_p,
  executable=_void_p,
)

PJRT_Executable_GetCompiledMemoryStats_Args = _struct(
  executable=_void_p,
  generated_code_size_in_bytes=_int64,
  argument_size_in_bytes=_int64,
  output_size_in_bytes=_int64,
  alias_size_in_bytes=_int64,
  temp_size_in_bytes=_int64,
  host_generated_code_size_in_bytes=_int64,
  host_argument_size_in_bytes=_int64,
  host_output_size_in_bytes=_int64,
  host_alias_size_in_bytes=_int64,
  host_temp_size_in_bytes=_int64,
  peak_memory_in_bytes=_int64,
)


class _Value(ctypes.Union):
  """The union in the header: one member to read, and one for the size."""

  _fields_ = (("float_value", ctypes.c_float), ("int64_value", _int64))


PJRT_NamedValue = _struct(
  name=_void_p,
  name_size=_size_t,
  type=ctypes.c_int,
  value=_Value,
  value_size=_size_t,
)

PJRT_Executable_GetCostAnalysis_Args = _struct(
  executable=_void_p,
  num_properties=_size_t,
  properties=ctypes.POINTER(PJRT_NamedValue),
)


def _compile_options(full_effort: bool) -> bytes:
  """Serializes XLA's CompileOptionsProto for one core.

  In its ExecutableBuildOptionsProto device_ordinal (field 1) is -1, in ten
  bytes; num_replicas (4) and num_partitions (5) are 1. Two fields set the
  optimization effort, because older and newer versions of libtpu read different
  ones: exec_time_optimization_effort (20) and optimization_level (24; 9 is O0).
  """
  build = b"\x08" + b"\xff" * 9 + b"\x01" + b"\x20\x01" + b"\x28\x01"
  if not full_effort:
    build += b"\xa5\x01" + struct.pack("<f", -1.0) + b"\xc0\x01\x09"
  # ExecutableBuildOptionsProto is field 3.
  return b"\x1a" + bytes([len(build)]) + build


def _compile(
  libtpu: str, program: bytes, topology: str, full_effort: bool
) -> Compiled:
  """Compiles a program in this process."""
  call = _open(libtpu)
  created = call(
    "PJRT_TopologyDescription_Create",
    topology_name=topology.encode(),
    topology_name_size=len(topology),
  )
  code = PJRT_Program(
    code=program, code_size=len(program), format=b"hlo", format_size=3
  )
  options = _compile_options(full_effort)
  executable = call(
    "PJRT_Compile",
    topology=created.topology,
    program=ctypes.addressof(code),
    compile_options=options,
    compile_options_size=len(options),
  ).executable
  memory = call("PJRT_Executable_GetCompiledMemoryStats", executable=executable)
  costs = {}
  try:
    found = call("PJRT_Executable_GetCostAnalysis", executable=executable)
    for value in found.properties[: found.num_properties]:
      name = ctypes.string_at(value.name, value.name_size).decode()
      costs[name] = value.value.float_value
  except TpuError:
    pass  # Some versions of libtpu have no cost analysis.
  return Compiled(
    peak_bytes=memory.peak_memory_in_bytes,
    flops=costs.get("flops", float("nan")),
    accessed_bytes=costs.get("bytes accessed", float("nan")),
  )


def _open(libtpu: str) -> Callable[..., _Struct]:
  """Loads and initializes libtpu.

  Returns:
    A function that calls one of `FUNCTIONS` and returns its structure of
    arguments, which also holds the results.
  """
  library = ctypes.CDLL(libtpu)
  library.GetPjrtApi.restype = ctypes.POINTER(PJRT_Api)
  api = library.GetPjrtApi().contents
  version = api.pjrt_api_version.major_version
  if version != _MAJOR_VERSION:
    raise TpuError(
      f"this libtpu has version {version} of the PJRT C API; supported is"
      f" version {_MAJOR_VERSION}"
    )

  def call(name: str, **fields: Any) -> _Struct:
    arguments = globals()[f"{name}_Args"](**fields)
    result_type = None if name == "PJRT_Error_Message" else _void_p
    function = ctypes.CFUNCTYPE(result_type, _void_p)(
      api.functions[FUNCTIONS[name]]
    )
    error = function(ctypes.addressof(arguments))
    if error:
      said = call("PJRT_Error_Message", error=error)
      message = ctypes.string_at(said.message, said.message_size)
      raise TpuError(message.decode(errors="replace"))
    return arguments

  call("PJRT_Plugin_Initialize")
  return call


def serve(requests: Iterator[Any]) -> Iterator[Any]:
  """Compiles programs; answers with the fields of `Compiled`, or an error."""
  for libtpu, topology, full_effort, program in requests:
    try:
      code = base64.b64decode(program)
      yield dataclasses.asdict(_compile(libtpu, code, topology, full_effort))
    except TpuError as e:
      yield {"error": str(e)}
