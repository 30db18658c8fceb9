"""Checks a package: its files, documents, signature and ops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent import futures
import contextlib
import hashlib
import io
import os
import tempfile
from typing import Any, BinaryIO
import unicodedata

from model_signing import verifying

from distribution import publishing
from distribution import sandbox
from exporters.conformance import copying
from exporters.packages import archive
from exporters.packages import documents
from exporters.packages import signing
from exporters.reusable import errors

# Entries of Hugging Face beside the package, which no program here reads.
_OF_CLIENTS = (".cache", ".eval_results", ".gitattributes")
# Files that the audit reads. Of other files it needs only the names.
_AUDITED = ("saved_model.pb", "keras_metadata.pb")
_LARGEST_DOCUMENT = 2**26


class _Hashed(io.RawIOBase):
  """Hashes the data that is read from a stream, in another thread."""

  def __init__(self, stream: BinaryIO):
    super().__init__()
    self._stream, self._hasher = stream, archive.Hasher()
    self._pool = futures.ThreadPoolExecutor(1)
    self._last = self._pool.submit(int)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: memoryview) -> int:
    """Reads into a buffer."""
    size = self._stream.readinto(buffer)
    data = bytes(buffer[:size])
    self._last.result()  # Let at most one block wait.
    self._last = self._pool.submit(self._hasher.update, data)
    return size

  def digest(self) -> archive.Digest:
    """Returns the Digest of all data read."""
    self._pool.shutdown()
    return self._hasher.digest()


def check(
  package_dir: str,
  *,
  public_key: str | None = None,
  sigstore: tuple[str, str] | None = None,
  unpack_dir: str | None = None,
  overwrite: bool = False,
  audit: bool = True,
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """Checks a package, and prints a line for each check that passes.

  The package is read once, so the unpacked bytes are the checked bytes.

  Args:
    package_dir: The directory of the package: its documents, and either the
      archive or the files of the model themselves.
    public_key: The key that must have signed the package.
    sigstore: The identity that must have signed the package, and its OpenID
      Connect provider. Without a key or an identity, no signature is needed.
    unpack_dir: Directory for the model if all checks pass. None: do not unpack.
    overwrite: Whether to replace a SavedModel in `unpack_dir`.
    audit: Whether to look for ops that models do not need.

  Returns:
    The manifest, and the content of all documents by name.

  Raises:
    ExportError: A check fails. The message names the file or document.
  """
  verifier = signing.verifier(public_key, sigstore)
  found = _documents(package_dir)
  listed = documents.from_json(documents.MANIFEST, found[documents.MANIFEST])
  if (made := listed.get("format")) != documents.FORMAT:
    raise errors.ExportError(
      f"{documents.MANIFEST} has format {made}, and this program verifies"
      f" {documents.FORMAT}. Take the version that made the package."
    )
  with contextlib.ExitStack() as stack:
    target = None
    if unpack_dir:
      target = stack.enter_context(
        publishing.publish(unpack_dir, overwrite=overwrite)
      )
    audited = stack.enter_context(tempfile.TemporaryDirectory())
    whole, files, contents = _read(package_dir, audited, target)
    _check_files(listed, whole, files)
    print(f"  ✓ files: {len(files)}, as the manifest lists them")
    _check_documents(listed, found, whole, files, contents)
    print(f"  ✓ documents: {', '.join(sorted(found))}")
    _check_signature(package_dir, found, whole, verifier)
    if audit:
      _audit(audited)
      print("  ✓ ops: none that models do not need")
  return listed, found


def _documents(package_dir: str) -> dict[str, bytes]:
  """Returns the contents of the documents; refuses unknown files."""
  if "://" in package_dir:
    raise errors.ExportError(
      f"{package_dir} must be local. Copy it from there."
    )
  with errors.of_input(OSError, about=f"{package_dir}: "):
    names = set(os.listdir(package_dir))
  if documents.MANIFEST not in names:
    raise errors.ExportError(
      f"{package_dir} is no package of //exporters:package: it has no"
      f" {documents.MANIFEST}."
    )
  others = names - documents.NAMES - set(_OF_CLIENTS)
  if documents.ARCHIVE in names and others:
    listed = ", ".join(map(errors.shown, sorted(others)))
    raise errors.ExportError(
      f"The package has files that were added: {listed}."
    )
  found = {}
  for name in sorted(names & documents.NAMES):
    path = os.path.join(package_dir, name)
    if not os.path.isfile(path):  # Reading a pipe might never end.
      raise errors.ExportError(f"{name} in the package is not a file.")
    if name == documents.ARCHIVE:
      continue
    with (
      errors.of_input(OSError, about=f"Cannot read {name}: "),
      open(path, "rb") as f,
    ):
      found[name] = f.read(_LARGEST_DOCUMENT)
  return found


def _read(
  package_dir: str, audited: str, target: str | None
) -> tuple[archive.Digest, dict[str, archive.Digest], dict[str, bytes]]:
  """Reads the model once, and writes its files for the audit and the user.

  Args:
    package_dir: The package.
    audited: The directory to write the files that the audit reads.
    target: The directory to write all files, or None.

  Returns:
    The Digests of the archive and of each file, and contents of some files.
  """
  files: dict[str, archive.Digest] = {}
  contents: dict[str, bytes] = {}
  with _opened(package_dir) as raw:
    for name, pieces in archive.unpack(io.BufferedReader(raw, 2**20)):
      hasher, kept = archive.Hasher(), io.BytesIO()
      with contextlib.ExitStack() as stack:
        sinks = [hasher.update]
        if name in documents.READ:
          sinks.append(kept.write)
        # Files that the audit does not read stay empty.
        file = stack.enter_context(_created(audited, name))
        if name in _AUDITED:
          sinks.append(file.write)
        if target:
          sinks.append(stack.enter_context(_created(target, name)).write)
        for piece in pieces:
          for sink in sinks:
            sink(piece)
          if kept.tell() > _LARGEST_DOCUMENT:
            raise errors.ExportError(f"{name} is too large.")
      files[name] = hasher.digest()
      if name in documents.READ:
        contents[name] = kept.getvalue()
    return raw.digest(), files, contents


@contextlib.contextmanager
def _opened(package_dir: str) -> Iterator[_Hashed]:
  """Opens the archive, or packs the files of the model as one."""
  path = os.path.join(package_dir, documents.ARCHIVE)
  if os.path.lexists(path):
    with (
      errors.of_input(OSError, about=f"Cannot read {documents.ARCHIVE}: "),
      open(path, "rb", buffering=0) as f,
    ):
      yield _Hashed(f)
  else:
    ignored = documents.NAMES | set(_OF_CLIENTS)
    yield _Hashed(archive.stream(archive.files_in(package_dir, ignored)))


def _created(directory: str, name: str) -> BinaryIO:
  path = os.path.join(directory, name)
  with errors.of_input(OSError, about=f"Cannot write {path}: "):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "xb")


def _check_files(
  listed: Mapping[str, Any],
  whole: archive.Digest,
  files: Mapping[str, archive.Digest],
) -> None:
  """Compares the model with the manifest.

  Raises:
    ExportError: They differ. The message names each file.
  """
  with errors.of_input(about=f"{documents.MANIFEST} lacks "):
    expected = {
      name: archive.Digest(**file) for name, file in listed["files"].items()
    }
    archived = listed["archive"]["sha256"]
  missing = {expected[n]: n for n in sorted(expected.keys() - files.keys())}
  problems = []
  for name, digest in files.items():
    shown = _unambiguous(name)
    if name not in expected:
      before = missing.pop(digest, None)
      problems.append(
        f"{_unambiguous(before)} is now {shown}"
        if before
        else f"{shown} is new"
      )
    elif digest != expected[name]:
      problems.append(f"{shown} has changed")
  problems += [f"{_unambiguous(name)} is missing" for name in missing.values()]
  if problems:
    raise errors.ExportError(
      "The model differs from the manifest:"
      f" {errors.shown('; '.join(problems))}."
    )
  if whole.sha256 != archived:
    raise errors.ExportError(
      f"{documents.MANIFEST} has another digest of {documents.ARCHIVE}."
    )


def _unambiguous(name: str) -> str:
  """Escapes a name that differs from its Unicode normal form C."""
  is_normal = unicodedata.is_normalized("NFC", name)
  return name if is_normal else ascii(name)


def _check_documents(
  listed: dict[str, Any],
  found: Mapping[str, bytes],
  whole: archive.Digest,
  files: Mapping[str, archive.Digest],
  contents: Mapping[str, bytes],
) -> None:
  """Compares the documents with new ones, made from the model."""
  with errors.of_input(about=f"{documents.MANIFEST} lacks "):
    expected = documents.make(
      whole, files, contents, listed["description"], listed["source_revision"]
    )
  for name in sorted(expected.keys() | found.keys() - {documents.SIGNATURE}):
    if name not in found:
      raise errors.ExportError(f"The package lacks {name}.")
    if name not in expected:
      raise errors.ExportError(f"The package has {name} for no reason.")
    if found[name] != expected[name]:
      if name.endswith(".json"):
        document = documents.from_json(name, found[name])
        documents.check(name, document, listed)
      raise errors.ExportError(
        f"{name} has changed: it does not follow from the model."
      )


def _check_signature(
  package_dir: str,
  found: Mapping[str, bytes],
  whole: archive.Digest,
  verifier: verifying.Config | None,
) -> None:
  if not verifier:
    print("  - signature: not checked without --public_key")
    return
  if documents.SIGNATURE not in found:
    raise errors.ExportError("The package is not signed.")
  path = os.path.join(package_dir, documents.SIGNATURE)
  signing.check(digests(found, whole), verifier, path)
  print("  ✓ signature: by the key or the identity that was asked for")


def digests(
  found: Mapping[str, bytes], whole: archive.Digest
) -> dict[str, str]:
  """Returns the SHA-256 of all signed files: archive and documents."""
  return {
    documents.ARCHIVE: whole.sha256,
    **{
      name: hashlib.sha256(data).hexdigest()
      for name, data in found.items()
      if name != documents.SIGNATURE
    },
  }


def _audit(directory: str) -> None:
  """Audits the ops, in a sandbox if available. Nothing is loaded.

  Raises:
    ExportError: The model has ops or assets that models do not need.
  """
  with copying.started(
    "exporters.packages.auditing", directory, copying.Options(trust=True)
  ) as (ask, request):
    try:
      suspicious = ask(request)
    except sandbox.SandboxError as e:
      raise errors.ExportError(f"The model cannot be audited: {e}") from e
  if suspicious:
    raise errors.ExportError(
      f"The model has what models do not need: {'; '.join(suspicious[:5])}."
    )
