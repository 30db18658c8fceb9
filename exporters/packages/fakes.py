"""Makes models, cards and keys for tests, without TensorFlow."""

import hashlib
import json
import pathlib
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
import yaml

SINGLEPRINT = "300/3/4/5"
_CARD = {
  "publisher": "Example Research",
  "name": "Example",
  "version": "1.0",
  "license": "Apache-2.0",
  "task": "image-feature-extraction",
  "dataset": "digits",
  "language": ["en"],
  "purpose": "Tests.",
  "limits": "Everything else.",
  "evaluation": [
    {
      "metric": "accuracy",
      "value": 0.9875,
      "dataset": "digits",
      "dataset_id": "example/digits",
      "task_id": "default",
    }
  ],
}


_MODEL = {
  "inputs": [{"name": "images", "shape": [None, 28, 28, 1]}],
  "outputs": [{"name": "features", "shape": [None, 64]}],
  "variables": [
    {"name": "conv/kernel", "shape": [3, 3, 1, 8]},
    {"name": "conv/bias", "shape": [8]},
    *(
      {"name": f"block{number}/dense/{name}", "shape": shape}
      for number in ("", "_1", "_2")
      for name, shape in (("kernel", [64, 64]), ("bias", [64]))
    ),
  ],
}


def write_model(directory: str, *, weights: bytes = b"weights") -> None:
  """Writes files of a model, which cannot be loaded."""
  files = {
    # Fields 1 to 5 are numbers, field 6 is text.
    "fingerprint.pb": b"\x08\x01\x10\xac\x02\x18\x03\x20\x04\x28\x05\x32\x02ab",
    "saved_model.pb": b"graph",
    "assets/vocab.txt": b"a\nb\n",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": weights * 20_000,
  }
  for name, data in files.items():
    path = pathlib.Path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  write_report(directory, SINGLEPRINT)


def write_report(directory: str, singleprint: str) -> None:
  """Writes a card and the verification report of an exporter."""
  root = pathlib.Path(directory)
  report = {
    "exporter": "fake",
    "flags": {"seed": 0},
    "level": "full",
    "lock_sha256": "1" * 64,
    "checkpoint_sha256": "c" * 64,
    "singleprint": singleprint,
    "files": {
      str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(root.rglob("*"))
      if path.is_file()
    },
    "versions": {"python": "3.11", "tensorflow": "2.20.0"},
    "comparisons": [{"kind": "variables", "passed": ["variables"]}],
    "notes": [],
  }
  extra = root / "assets.extra"
  extra.mkdir()
  (extra / "README.md").write_text("# Example\n")
  (extra / "model.json").write_text(json.dumps(_MODEL))
  epochs = [{"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.75}]
  (extra / "training.json").write_text(json.dumps({"epochs": epochs}))
  (extra / "verification.json").write_text(json.dumps(report))


def write_card(directory: str, **fields: Any) -> str:
  """Writes a card with defaults for other fields; returns its path."""
  path = pathlib.Path(directory, "card.yaml")
  path.write_text(yaml.safe_dump({**_CARD, **fields}))
  return str(path)


def write_key_pair(
  directory: str, name: str = "key", key: Any = None, password: bytes = b""
) -> tuple[str, str]:
  """Writes a private and a public key, by default of P-256.

  Args:
    directory: Where to write them.
    name: Their names, without suffix.
    key: The private key, of `cryptography`.
    password: What the private key is encrypted with.

  Returns:
    The paths of both.
  """
  key = key or ec.generate_private_key(ec.SECP256R1())
  private = pathlib.Path(directory, f"{name}.pem")
  private.write_bytes(
    key.private_bytes(
      serialization.Encoding.PEM,
      serialization.PrivateFormat.PKCS8,
      serialization.BestAvailableEncryption(password)
      if password
      else serialization.NoEncryption(),
    )
  )
  public = private.with_suffix(".pub")
  public.write_bytes(
    key.public_key().public_bytes(
      serialization.Encoding.PEM,
      serialization.PublicFormat.SubjectPublicKeyInfo,
    )
  )
  return str(private), str(public)
