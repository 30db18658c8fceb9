"""Signs the files of a package as the OpenSSF does, with a key pair."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
from typing import Any

from model_signing import hashing
from model_signing import manifest
from model_signing import signing
from model_signing import verifying

from exporters.reusable import errors


class _Known(hashing.Config):
  """Takes digests that are known, where model_signing would read all files."""

  def __init__(self, digests: Mapping[str, str]):
    super().__init__()
    self._digests = digests

  def hash(self, *args: Any, **kwargs: Any) -> manifest.Manifest:
    """Returns the names and digests in the form of model_signing."""
    type_ = manifest.SerializationType.from_args(
      {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    )
    items = [
      type_.new_item(
        name, manifest.hashing.Digest("sha256", bytes.fromhex(digest))
      )
      for name, digest in sorted(self._digests.items())
    ]
    return manifest.Manifest("model", items, type_)


def signer(private_key: str) -> signing.Config:
  """Reads the private key to sign with.

  Args:
    private_key: The path of an unencrypted key of an elliptic curve, in PEM.

  Raises:
    ExportError: There is no such key.
  """
  about = f"--signing_key={private_key} is no elliptic curve key in PEM: "
  with errors.of_input(about=about):
    return signing.Config().use_elliptic_key_signer(private_key=private_key)


def sign(
  digests: Mapping[str, str], config: signing.Config, signature: str
) -> None:
  """Writes a signature.

  Args:
    digests: SHA-256 in hexadecimal of each file of a package.
    config: From `signer`.
    signature: The path to write.
  """
  config.set_hashing_config(_Known(digests))
  config.sign(pathlib.Path(signature).parent, signature)


def check(digests: Mapping[str, str], public_key: str, signature: str) -> None:
  """Checks a signature.

  Args:
    digests: SHA-256 in hexadecimal of each file of a package.
    public_key: The path of the public key, in PEM.
    signature: The path of the signature.

  Raises:
    ExportError: It is by another key, of other files, or no signature.
  """
  about = f"--public_key={public_key} is no elliptic curve key in PEM: "
  with errors.of_input(about=about):
    config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
  config.set_hashing_config(_Known(digests))
  with errors.of_input(about="The signature is by another key or damaged: "):
    try:
      config.verify(pathlib.Path(signature).parent, signature)
    except ValueError as e:
      if "Signature mismatch" in str(e):
        raise errors.ExportError(f"{e}") from e
      raise
