"""Calls a SavedModel by TensorFlow's C API, as a server without Python does.

As a program it reads a request from standard input and writes the outputs to
standard output, both pickled. It imports NumPy, and no TensorFlow.
"""

from collections.abc import Mapping
import ctypes
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np

_LIBRARY = "libtensorflow_cc.so.2"
# Numbers of dtypes in tf_datatype.h, by their names in NumPy.
_TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10}


class _Output(ctypes.Structure):
  """TF_Output: an operation and the index of one of its outputs."""

  _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def call(
  library: str,
  directory: str,
  inputs: Mapping[str, np.ndarray],
  outputs: Mapping[str, str],
) -> dict[str, np.ndarray]:
  """Calls a SavedModel in a process that has no TensorFlow for Python.

  Args:
    library: The folder of the package tensorflow, which has the C library.
    directory: The SavedModel.
    inputs: Values to feed, by the names of Tensors in a SignatureDef.
    outputs: The names of Tensors to fetch, by the names of outputs.
  """
  result = subprocess.run(
    [sys.executable, "-P", __file__],
    input=pickle.dumps((library, directory, dict(inputs), dict(outputs))),
    stdout=subprocess.PIPE,
    check=True,
  )
  return pickle.loads(result.stdout)


class _Api:
  """Functions of the C library. They return pointers by default."""

  def __init__(self, library: str):
    ctypes.CDLL(
      os.path.join(library, "libtensorflow_framework.so.2"),
      ctypes.RTLD_GLOBAL,
    )
    self._library = ctypes.CDLL(os.path.join(library, _LIBRARY))
    self.status = self("TF_NewStatus")

  def __call__(
    self, name: str, *arguments: Any, result: Any = ctypes.c_void_p
  ) -> Any:
    function = self._library[name]
    function.restype = result
    return function(
      *[ctypes.c_void_p(x) if type(x) is int else x for x in arguments]
    )

  def check(self) -> None:
    if self("TF_GetCode", self.status, result=ctypes.c_int):
      said = self("TF_Message", self.status, result=ctypes.c_char_p)
      raise RuntimeError(said.decode())


def _serve(
  library: str,
  directory: str,
  inputs: Mapping[str, np.ndarray],
  outputs: Mapping[str, str],
) -> dict[str, np.ndarray]:
  """Implements `call`, in this process."""
  api = _Api(library)
  graph = api("TF_NewGraph")
  tags = (ctypes.c_char_p * 1)(b"serve")
  session = api(
    "TF_LoadSessionFromSavedModel",
    api("TF_NewSessionOptions"),
    None,
    directory.encode(),
    tags,
    ctypes.c_int(1),
    graph,
    None,
    api.status,
  )
  api.check()

  def places(names: list[str]) -> ctypes.Array:
    pairs = [name.rsplit(":", 1) for name in names]
    return (_Output * len(names))(
      *[
        _Output(
          api("TF_GraphOperationByName", graph, name.encode()), int(index)
        )
        for name, index in pairs
      ]
    )

  fed = (ctypes.c_void_p * len(inputs))(
    *[_tensor(api, value) for value in inputs.values()]
  )
  fetched = (ctypes.c_void_p * len(outputs))()
  api(
    "TF_SessionRun",
    session,
    None,
    *(places([*inputs]), fed, ctypes.c_int(len(inputs))),
    *(places([*outputs.values()]), fetched, ctypes.c_int(len(outputs))),
    *(None, ctypes.c_int(0), None),
    api.status,
    result=None,
  )
  api.check()
  return {
    name: _array(api, tensor)
    for name, tensor in zip(outputs, fetched, strict=True)
  }


def _tensor(api: _Api, value: np.ndarray) -> int:
  shape = (ctypes.c_int64 * value.ndim)(*value.shape)
  tensor = api(
    "TF_AllocateTensor",
    ctypes.c_int(_TYPES[value.dtype.name]),
    shape,
    ctypes.c_int(value.ndim),
    ctypes.c_size_t(value.nbytes),
  )
  content = np.ascontiguousarray(value)
  ctypes.memmove(
    api("TF_TensorData", tensor), content.ctypes.data, value.nbytes
  )
  return tensor


def _array(api: _Api, tensor: int) -> np.ndarray:
  number = api("TF_TensorType", tensor, result=ctypes.c_int)
  (dtype,) = (name for name, n in _TYPES.items() if n == number)
  rank = api("TF_NumDims", tensor, result=ctypes.c_int)
  shape = [
    api("TF_Dim", tensor, ctypes.c_int(i), result=ctypes.c_int64)
    for i in range(rank)
  ]
  size = api("TF_TensorByteSize", tensor, result=ctypes.c_size_t)
  content = ctypes.string_at(api("TF_TensorData", tensor), size)
  return np.frombuffer(content, dtype).reshape(shape)


if __name__ == "__main__":
  answer = _serve(*pickle.load(sys.stdin.buffer))
  assert "tensorflow" not in sys.modules
  pickle.dump(answer, sys.stdout.buffer)
