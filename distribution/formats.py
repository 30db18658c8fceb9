"""Checks paths in flags, and tells which format a file has.

It looks at local files only, and imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import errno
import json
import os
import pathlib
import re
import stat
import tempfile
from typing import Any
import zipfile

from distribution import errors

_HDF5 = "weights of Keras in HDF5"
_KERAS = "a model in Keras' own format"
_PYTORCH = "weights of PyTorch"
_ARRAYS = "arrays of NumPy"
_FLAX = "weights of Flax"
_ONNX = "a model of ONNX"
_GGUF = "a model of llama.cpp (GGUF)"
_TFLITE = "a model of TensorFlow Lite"
_SAFETENSORS = "a file of safetensors"
_SAVED_MODEL = "a SavedModel"
_CHUNKS = "a SavedModel in chunks"
_LFS = "a pointer of Git LFS, without the content"
_PAGE = "a web page, as from a download that went wrong"
_ARCHIVE = "an archive"

_BY_START = {
  b"\x89HDF\r\n\x1a\n": _HDF5,
  b"version https://git-lfs": _LFS,
  b"<!DOCTYPE": _PAGE,
  b"<!doctype": _PAGE,
  b"<html": _PAGE,
  b"GGUF": _GGUF,
  b"\x1f\x8b": _ARCHIVE,
  b"\x93NUMPY": _ARRAYS,
  b"\x80\x02": _PYTORCH,  # A pickle.
}
# Formats whose first bytes vary.
_BY_PATTERN = {
  rb".{4}TFL3": _TFLITE,
  rb"[\x81-\x8f][\xa1-\xbf][\w ]": _FLAX,  # A map whose keys are strings.
  rb".{4}[\x00-\x07]\x00{3}\{\"": _SAFETENSORS,  # A length, and JSON.
  rb"\x08[\x03-\x1f]\x12.(pytorch|tf2onnx|onnx|keras2onnx)": _ONNX,
}
_BY_NAME = {
  "saved_model.pb": _SAVED_MODEL,
  "saved_model.pbtxt": _SAVED_MODEL,
  ".cpb": _CHUNKS,
  ".keras": _KERAS,
  **dict.fromkeys((".h5", ".hdf5"), _HDF5),
  **dict.fromkeys((".bin", ".pt", ".pth"), _PYTORCH),
  ".safetensors": _SAFETENSORS,
  ".msgpack": _FLAX,
  **dict.fromkeys((".npy", ".npz"), _ARRAYS),
  ".tflite": _TFLITE,
  ".onnx": _ONNX,
  ".pb": "a graph of TensorFlow 1",
  **dict.fromkeys((".gz", ".tar", ".tgz", ".zip"), _ARCHIVE),
}
_ADVICE = {
  _LFS: "Run `git lfs pull` in its repository.",
  _PYTORCH: "Load the model with transformers, and write it with"
  " save_pretrained(DIR), as safetensors.",
  _PAGE: "Download it again.",
  _ARCHIVE: "Unpack it first.",
  _CHUNKS: "Save it without experimental_image_format.",
}
_FILE_URL = "file://"
_FILES_OF_SAVED_MODEL = frozenset(("saved_model.pb", "saved_model.pbtxt"))
# Files with several 100,000 tokens have about 10 MB.
_MOST_BYTES = 100 * 2**20
_FILES_OF_CHECKPOINT = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")


def absolute(path: str | None) -> str | None:
  """Makes the path in a flag absolute; returns None and URLs as they are.

  Relative paths start from the user's working directory, which under `bazel
  run` is not that of the program. URLs of local files become paths, so that
  only remote files have "://" in the result.

  Raises:
    InputError: The working directory is missing or its path is unreadable, or
      the URL of a file has no absolute path.
  """
  if path and path.startswith(_FILE_URL):
    path = path.removeprefix(_FILE_URL).removeprefix("localhost")
    if not path.startswith("/"):
      raise errors.InputError(
        f"{_FILE_URL}{path} is no URL of a file: give its absolute path."
      )
  if path is None or "://" in path:
    return path
  start = os.environ.get("BUILD_WORKING_DIRECTORY", "")
  with errors.of_input(OSError, about="The working directory: "):
    path = os.path.abspath(os.path.join(start, os.path.expanduser(path)))
  if problem := errors.unreadable("The working directory", path):
    raise errors.InputError(problem)
  return path


def check_name(flag: str, path: str) -> None:
  """Raises an InputError if TensorFlow cannot write or read files at a path.

  TensorFlow treats the paths of checkpoints as patterns. When it removes old
  checkpoints, it would also remove other files that match.
  """
  in_way = "*?[\\" if flag in ("backup_dir", "checkpoint_dir") else "[\\"
  if found := [c for c in in_way if c in path]:
    raise errors.InputError(
      f"--{flag}={path}: TensorFlow cannot read SavedModels and checkpoints"
      f" from a path with {' or '.join(found)} in it. Rename the directory, or"
      " take another."
    )


def check_file(flag: str, path: str) -> None:
  """Raises an InputError if a local file cannot be read; ignores URLs."""
  if os.path.isdir(path):
    raise errors.InputError(f"--{flag}={path} is a directory, not a file.")
  if "://" in path:
    return
  with errors.of_input(OSError, about=f"--{flag}={path}: "):
    check_regular(path)
    with open(path, "rb") as f:
      f.read(1)


def check_output(flag: str, path: str) -> None:
  """Raises an InputError if nothing can be written at a local path."""
  if "://" in path:
    return
  is_state = flag in ("backup_dir", "checkpoint_dir")
  if is_state and os.path.isfile(os.path.join(path, "saved_model.pb")):
    raise errors.InputError(
      f"--{flag}={path} is a SavedModel. Choose another directory."
    )
  parent = path
  while not os.path.lexists(parent):
    parent = os.path.dirname(parent)
  _check_writable(flag, path, parent)


def _check_writable(flag: str, path: str, directory: str) -> None:
  """Raises an InputError if a path cannot be made in a directory above it."""
  parent, name = os.path.split(path)
  try:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      # `publishing` writes there first, and the path may be too long.
      os.lstat(os.path.join(parent, f".{name}.unfinished", name, "x" * 99))
    try:
      # A file without a name, which cannot be left behind.
      os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY))
    except OSError as e:
      if e.errno != errno.EOPNOTSUPP:  # Some file systems do not support it.
        raise
      tempfile.TemporaryDirectory(dir=directory, prefix=".writable-").cleanup()
  except OSError as e:
    raise errors.InputError(
      f"Cannot write --{flag}={path}: {directory}: {e.strerror}."
    ) from e


def check_output_file(flag: str, path: str) -> None:
  """Raises an InputError if a local file cannot be written.

  The file may replace another one, but no file of a model.
  """
  if os.path.isdir(path):
    raise errors.InputError(f"--{flag}={path} is a directory, not a file.")
  directory = os.path.dirname(path)
  if not os.path.isdir(directory):
    raise errors.InputError(f"--{flag}={path}: {directory} is no directory.")
  with errors.of_input(OSError, about=f"--{flag}={path}: "):
    check_replaceable(path, f"--{flag}={path}")
  folder = os.path.realpath(directory)
  if os.path.basename(folder) in ("assets", "assets.extra", "variables"):
    folder = os.path.dirname(folder)
  if os.path.exists(os.path.join(folder, "saved_model.pb")):
    raise errors.InputError(
      f"--{flag}={path} is in the SavedModel {folder}. Choose another path."
    )
  # Programs with --output_file write models, and replace one if asked to.
  found = None if flag == "output_file" else _format_of_file(path)
  if _FILES_OF_CHECKPOINT.search(path) and os.path.isfile(path):
    found = "of a checkpoint"
  if found not in (None, _PAGE):
    raise errors.InputError(
      f"--{flag}={path} exists and is {found}. Choose another path."
    )
  _check_writable(flag, path, directory)


def check_replaceable(path: str | os.PathLike[str], name: str = "") -> None:
  """Raises an InputError for links, pipes and devices, such as /dev/stdout."""
  with contextlib.suppress(FileNotFoundError):
    if not stat.S_ISREG(os.lstat(path).st_mode):
      raise errors.InputError(
        f"{name or path} is a link, a pipe or a device, which a file would"
        " replace. Choose another path."
      )


def described(path: str) -> tuple[str, str] | None:
  """Returns the library and the type of weights that a config.json describes.

  Returns:
    `Hugging Face`, `timm`, `keras-hub` or `sentence-transformers`, and a type
    such as `bert`; None if `path` is no such directory.
  """
  config = read_json(os.path.join(hugging_face_dir(path), "config.json"))
  if isinstance(config.get("model_type"), str):
    return "Hugging Face", config["model_type"]
  if isinstance(config.get("architecture"), str):
    return "timm", config["architecture"]
  if str(config.get("module")).startswith("keras_hub"):
    return "keras-hub", str(config.get("class_name"))
  first = str(_first_module(path).get("type") or "Transformer")
  kind = first.rpartition(".")[2]
  return None if kind == "Transformer" else ("sentence-transformers", kind)


def hugging_face_dir(path: str) -> str:
  """Returns the directory of the first module of sentence-transformers.

  Its modules.json may say that the encoder is in a subdirectory. For any other
  directory, the result is the directory itself.
  """
  name = _first_module(path).get("path")
  is_name = isinstance(name, str) and os.path.basename(name) == name
  return (
    os.path.join(path, name) if is_name and name not in ("", "..") else path
  )


def _first_module(path: str) -> dict[str, Any]:
  file = os.path.join(path, "modules.json")
  first = next(iter(read_json(file, list)), {})
  if not isinstance(first, dict):
    raise errors.InputError(f"{file}: its first module is no JSON object.")
  return first


def read_json(path: str, kind: type = dict) -> Any:
  """Reads a local JSON file that may be missing.

  Args:
    path: The file. UTF-8 may begin with a byte order mark.
    kind: The type of its content: `dict` for an object, or `list`.

  Returns:
    The content; an empty `kind` if there is no such file.

  Raises:
    InputError: The file is there, but is not such JSON or cannot be read.
  """
  if not os.path.lexists(path):
    return kind()
  check_content(path)
  with errors.of_input(OSError, about=f"{path}: "):
    content = read_file(path)
  about = f"{path} is no JSON: "
  with errors.of_input(RecursionError, ValueError, about=about):
    value = json.loads(content.decode("utf-8-sig"))
  if not isinstance(value, kind):
    wanted = "a list" if kind is list else "an object, with keys"
    raise errors.InputError(f"{path}: its JSON is not {wanted}.")
  return value


def typed(
  file: str, values: Mapping[str, Any], key: str, *types: type
) -> Any | None:
  """Returns a value of a file's JSON; None if it is missing or null.

  Raises:
    InputError: The value has another type, such as the string "False" for a
      bool.
  """
  value = values.get(key)
  if value is not None and type(value) not in types:
    raise errors.InputError(
      f"{file}: {key} is {errors.shown(repr(value)[:40])}, and must be"
      f" {' or '.join(t.__name__ for t in types)}."
    )
  return value


def read_file(path: str, most_bytes: int = _MOST_BYTES) -> bytes:
  """Reads a local file.

  Raises:
    OSError: The file cannot be read.
    InputError: The file is too large, or is no regular file.
  """
  check_regular(path)
  with open(path, "rb") as f:
    content = f.read(most_bytes + 1)
  if len(content) > most_bytes:
    raise errors.InputError(f"{path} has more than {most_bytes:,} bytes.")
  return content


def check_regular(path: str) -> None:
  """Raises an InputError for a pipe or device; ignores URLs.

  Such a file may never end, or make its reader wait for ever.

  Raises:
    OSError: There is no such file.
  """
  if "://" not in path and not stat.S_ISREG(os.stat(path).st_mode):
    raise errors.InputError(
      f"{path} is a directory, a pipe or a device, not a file."
    )


def checkpoint_prefix(path: str, *, takes_others: bool = False) -> str:
  """Returns the directory of a checkpoint or the prefix of its files.

  Args:
    path: A directory, a prefix, one of the files of a checkpoint, or the file
      `checkpoint` beside them.
    takes_others: Whether to also accept weights in HDF5, a file in Keras' own
      format, a SavedModel, and a directory that `described` knows.

  Raises:
    InputError: The path is none of these.
  """
  is_state = os.path.basename(path) == "checkpoint" and os.path.isfile(path)
  if is_state and not os.path.isfile(f"{path}.index"):
    path = os.path.dirname(path)
  prefix = _FILES_OF_CHECKPOINT.sub("", path)
  if os.path.isfile(f"{prefix}.index"):
    format_ = _format_of_file(f"{prefix}.index")
    if format_ not in (_LFS, _PAGE):
      return prefix
    path = f"{prefix}.index"
  elif os.path.isdir(path) and any(
    name == "checkpoint" or name.endswith(".index") for name in os.listdir(path)
  ):
    return path
  if found := described(path):
    if takes_others:
      return path
    raise errors.InputError(
      f"{path} is a {found[0]} directory of type {errors.shown(found[1][:80])},"
      " which this program does not read. Give a checkpoint of TensorFlow."
    )
  format_, name = _format(path)
  if takes_others and format_ in (_HDF5, _KERAS, _SAVED_MODEL):
    if not name:
      return path
    advice = f"Give the path of {name}."
  elif format_ == _SAVED_MODEL:
    advice = "Give the checkpoint that it was made from."
  elif format_ == _SAFETENSORS:
    advice = (
      "Give its directory, which needs a config.json with a model_type beside"
      " it."
    )
  else:
    advice = _ADVICE.get(
      format_,
      "Load it with what has written it, and write the weights with"
      " tf.train.Checkpoint.",
    )
  if format_:
    raise errors.InputError(
      f"{_named(path, name)} is {format_}, not a checkpoint. {advice}"
    )
  if prefix != path and os.path.isfile(path):
    raise errors.InputError(
      f"There is no checkpoint {prefix}: {path} exists, but {prefix}.index does"
      " not. Copy all files of the checkpoint."
    )
  if os.path.isfile(path):
    raise errors.InputError(
      f"{path} is a file, but not of a checkpoint, which is PREFIX.index and"
      " PREFIX.data-00000-of-00001. Give the path of PREFIX."
    )
  if os.path.isdir(path):
    raise errors.InputError(f"{path} has no checkpoint in it.")
  if "://" not in path:
    raise errors.InputError(
      f"There is no checkpoint {prefix}: {prefix}.index does not exist."
    )
  return prefix


def check_content(path: str) -> None:
  """Raises an InputError for a pointer of Git LFS or a web page.

  Failed downloads leave such files.
  """
  format_ = _format_of_file(path)
  if format_ in (_LFS, _PAGE):
    raise errors.InputError(f"{path} is {format_}. {_ADVICE[format_]}")


def check_saved_model(path: str) -> None:
  """Raises an InputError if a path has no SavedModel; ignores URLs."""
  if "://" in path:
    return
  format_, name = _format(path)
  inside = sorted(pathlib.Path(path).glob("*/saved_model.pb"))
  if inside and format_ != _SAVED_MODEL:
    raise errors.InputError(
      f"{path} has no saved_model.pb. Did you mean {inside[0].parent}?"
    )
  if format_ == _SAVED_MODEL:
    if not os.path.isdir(path):
      raise errors.InputError(
        f"{path} is a file of a SavedModel. Give its directory,"
        f" {os.path.dirname(path)}."
      )
    with errors.of_input(OSError, about=f"Cannot read {path}: "):
      for name in sorted(_FILES_OF_SAVED_MODEL.intersection(os.listdir(path))):
        check_regular(os.path.join(path, name))
    return
  if os.path.isdir(path) and not format_:
    if indices := sorted(pathlib.Path(path).glob("*.index")):
      format_, name = "of a checkpoint", indices[0].name
  elif _FILES_OF_CHECKPOINT.search(path) or os.path.isfile(f"{path}.index"):
    format_ = "a checkpoint"
  if format_:
    advice = _ADVICE.get(format_, "Export it first, or give an export.")
    raise errors.InputError(
      f"{_named(path, name)} is {format_}, not a SavedModel. {advice}"
    )
  problem = "does not exist"
  if os.path.isfile(path):
    problem = "is a file. Pass the directory that has saved_model.pb"
  elif os.path.isdir(path):
    problem = (
      "has no saved_model.pb. It is not a SavedModel, or its export was"
      " interrupted"
    )
  raise errors.InputError(f"{path} {problem}.")


def _named(path: str, name: str) -> str:
  return f"{name}, in {path}," if name else path


def _format(path: str) -> tuple[str | None, str]:
  """Returns the format of a file, or of a file in a directory, and its name."""
  if not os.path.isdir(path):
    return _format_of_file(path), ""
  names = sorted(os.listdir(path))
  if _FILES_OF_SAVED_MODEL.intersection(names):
    return _SAVED_MODEL, ""
  for name in names:
    if name == "fingerprint.pb":  # Not a graph of TensorFlow 1.
      continue
    if format_ := _format_of_file(os.path.join(path, name)):
      return format_, name
  return None, ""


def _format_of_file(path: str) -> str | None:
  """Returns the format by the first bytes of a file, or else by its name."""
  if not os.path.isfile(path):
    return None
  with errors.of_input(OSError, about=f"Cannot read {path}: "):
    with open(path, "rb") as f:
      start = f.read(32)
  for bytes_, format_ in _BY_START.items():
    if start.startswith(bytes_):
      return format_
  for pattern, format_ in _BY_PATTERN.items():
    if re.match(pattern, start, re.DOTALL):
      return format_
  if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
    names = []
    with contextlib.suppress(Exception):  # The file is damaged.
      with zipfile.ZipFile(path) as f:
        names = f.namelist()
    if any(name.endswith("data.pkl") for name in names):
      return _PYTORCH
    if names and all(name.endswith(".npy") for name in names):
      return _ARRAYS
    return _KERAS if "config.json" in names else _ARCHIVE
  name = os.path.basename(path)
  return _BY_NAME.get(name) or _BY_NAME.get(os.path.splitext(name)[1])
