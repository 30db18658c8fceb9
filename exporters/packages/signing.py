"""Signs packages with OpenSSF Model Signing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
from typing import Any

from model_signing import hashing
from model_signing import manifest
from model_signing import signing
from model_signing import verifying

from exporters.reusable import errors


class _Known(hashing.Config):
  """Passes known digests to model_signing, instead of hashing files again."""

  def __init__(self, digests: Mapping[str, str]):
    super().__init__()
    self._digests = digests

  def hash(self, *args: Any, **kwargs: Any) -> manifest.Manifest:
    """Returns the names and digests in the format of model_signing."""
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


def signer(
  private_key: str | None, sigstore_token_file: str | None = None
) -> signing.Config | None:
  """Reads the key or token to sign with; returns None without either.

  Args:
    private_key: The path of an unencrypted elliptic curve key, in PEM.
    sigstore_token_file: The path of an OpenID Connect identity token, for which
      Sigstore issues a certificate. Signing then needs a network.

  Raises:
    ExportError: The key or token cannot be read, or Sigstore refuses it.
  """
  if sigstore_token_file:
    with errors.of_input(about=f"Sigstore with {sigstore_token_file}: "):
      token = pathlib.Path(sigstore_token_file).read_text().strip()
      return signing.Config().use_sigstore_signer(identity_token=token)
  if not private_key:
    return None
  with _reading_key("signing_key", private_key):
    return signing.Config().use_elliptic_key_signer(private_key=private_key)


@contextlib.contextmanager
def _reading_key(flag: str, path: str) -> Iterator[None]:
  about = f"--{flag}={path} is no elliptic curve key in PEM: "
  with errors.of_input(about=about):
    try:
      yield
    except AttributeError as e:  # model_signing asks every key for its curve.
      raise ValueError("It is of another kind, such as RSA.") from e
    except TypeError as e:
      raise ValueError("It is encrypted.") from e


def sign(
  digests: Mapping[str, str], config: signing.Config, signature: str
) -> None:
  """Writes a signature.

  Args:
    digests: SHA-256 of each file of a package, in hexadecimal.
    config: The result of `signer`.
    signature: The path of the signature to write.
  """
  config.set_hashing_config(_Known(digests))
  with errors.of_input(about="The package cannot be signed: "):
    config.sign(pathlib.Path(signature).parent, signature)


def verifier(
  public_key: str | None, sigstore: tuple[str, str] | None
) -> verifying.Config | None:
  """Returns the configuration to check signatures with, or None.

  Args:
    public_key: The path of the public key that must have signed, in PEM.
    sigstore: The identity that must have signed with Sigstore, such as an
      e-mail address, and the URL of the OpenID Connect provider that vouches
      for it. The check then needs a network.

  Raises:
    ExportError: The key cannot be read, or Sigstore cannot be reached.
  """
  if sigstore:
    identity, issuer = sigstore
    with errors.of_input(about="Sigstore: "):
      return verifying.Config().use_sigstore_verifier(
        identity=identity, oidc_issuer=issuer
      )
  if not public_key:
    return None
  with _reading_key("public_key", public_key):
    return verifying.Config().use_elliptic_key_verifier(public_key=public_key)


def check(
  digests: Mapping[str, str], config: verifying.Config, signature: str
) -> None:
  """Checks a signature.

  Args:
    digests: SHA-256 of each file of a package, in hexadecimal.
    config: The result of `verifier`.
    signature: The path of the signature.

  Raises:
    ExportError: The signature is malformed, of another key or of other files.
  """
  config.set_hashing_config(_Known(digests))
  with errors.of_input(about="The signature is by another key or damaged: "):
    try:
      config.verify(pathlib.Path(signature).parent, signature)
    except ValueError as e:
      if "Signature mismatch" in str(e):
        raise errors.ExportError(f"{e}") from e
      raise
