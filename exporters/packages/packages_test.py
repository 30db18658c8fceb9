"""Tests packages: what they have, and that each manipulation is found."""

import base64
from collections.abc import Callable
import contextlib
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import tarfile
import time
from typing import Any, ClassVar
from unittest import mock
from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric import rsa
from model_signing import hashing
from model_signing import verifying

from distribution import errors
from exporters import package as package_lib
from exporters.conformance import copying
from exporters.packages import archive
from exporters.packages import checking
from exporters.packages import documents
from exporters.packages import fakes
from exporters.packages import signing

_WEIGHTS = "variables/variables.data-00000-of-00001"


def _packed(write: Callable[[tarfile.TarFile], None]) -> bytes:
  """Returns an archive of any entries, stored as `archive.pack` does."""
  buffer = io.BytesIO()
  with tarfile.open(
    fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT
  ) as tar:
    write(tar)
  return b"".join(archive._gzip([buffer.getvalue()]))


def _entry(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
  info = tarfile.TarInfo(name)
  info.size, info.mode = size, 0o644
  for field, value in fields.items():
    setattr(info, field, value)
  return info


def _one(*entries: tarfile.TarInfo, data: bytes = b"") -> Callable[[], bytes]:
  def write(tar: tarfile.TarFile) -> None:
    for entry in entries:
      tar.addfile(entry, io.BytesIO(data.ljust(entry.size, b"\0")))

  return lambda: _packed(write)


class PackagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.create_tempdir().full_path
    self.model = os.path.join(self.directory, "model")
    self.out = os.path.join(self.directory, "out")
    self.private, self.public = fakes.write_key_pair(self.directory)
    self.card = fakes.write_card(self.directory)
    fakes.write_model(self.model)

  def package(self, **kwargs: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
      package_lib.package(
        **{
          "saved_model_dir": self.model,
          "output_dir": self.out,
          "card_file": self.card,
          "signing_key": self.private,
          "overwrite": True,
          **kwargs,
        }
      )

  def check(self, public_key: str | None = None, **kwargs: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
      return checking.check(
        self.out, public_key=public_key, audit=False, **kwargs
      )

  def bytes_of(self, name: str) -> bytes:
    return pathlib.Path(self.out, name).read_bytes()

  def edit(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a document of the package, in the form of all documents."""
    document = json.loads(self.bytes_of(name))
    change(document)
    pathlib.Path(self.out, name).write_bytes(documents.to_json(document))

  def repack(self, change: Callable[[dict[str, str]], Any]) -> None:
    """Packs changed files of the model into the package, and nothing else."""
    files = archive.files_in(self.model)
    change(files)
    with open(os.path.join(self.out, documents.ARCHIVE), "wb") as f:
      archive.pack(files, f.write)

  def test_a_package_has_what_its_documents_say(self):
    self.package(source_revision="0123abc")
    target = os.path.join(self.directory, "unpacked")
    listed, _ = self.check(self.public, unpack_dir=target)
    self.assertEqual(
      {
        p: pathlib.Path(f).read_bytes()
        for p, f in archive.files_in(target).items()
      },
      {
        p: pathlib.Path(f).read_bytes()
        for p, f in archive.files_in(self.model).items()
      },
    )
    self.assertEqual(listed["singleprint"], fakes.SINGLEPRINT)
    provenance = json.loads(self.bytes_of(documents.PROVENANCE))["predicate"]
    build = provenance["buildDefinition"]
    self.assertEqual(
      build["externalParameters"], {"exporter": "fake", "flags": {"seed": 0}}
    )
    self.assertEqual(
      build["resolvedDependencies"],
      [
        {"name": "checkpoint", "digest": {"sha256": "c" * 64}},
        {"name": "lock", "digest": {"sha256": "1" * 64}},
        {"uri": "pkg:pypi/tensorflow@2.20.0"},
        {"name": "source", "digest": {"gitCommit": "0123abc"}},
      ],
    )
    result = json.loads(self.bytes_of(documents.TEST_RESULT))["predicate"]
    self.assertEqual(result["result"], "PASSED")
    self.assertEqual(result["passedTests"], ["variables: variables"])
    # What others use reads the package, too.
    with tarfile.open(os.path.join(self.out, documents.ARCHIVE)) as tar:
      names = [member.name for member in tar if member.isfile()]
    self.assertEqual(names, sorted(archive.files_in(self.model)))
    ignored = [os.path.join(self.out, documents.SIGNATURE)]
    verifying.Config().use_elliptic_key_verifier(
      public_key=self.public
    ).set_hashing_config(
      hashing.Config().set_ignored_paths(paths=ignored)
    ).verify(pathlib.Path(self.out), pathlib.Path(ignored[0]))

  def test_packages_of_one_export_have_the_same_bytes(self):
    self.package(signing_key=None)
    first = {n: self.bytes_of(n) for n in os.listdir(self.out)}
    hasher = hashlib.sha256()
    for name in sorted(first):
      hasher.update(first[name])
    # If this changes on purpose, raise documents.FORMAT.
    self.assertEqual(hasher.hexdigest()[:16], "41086467f84132ca")
    mask = os.umask(0o077)
    self.addCleanup(os.umask, mask)
    other = os.path.join(self.directory, "other")
    # Another order in the directory, other times, modes and umask,
    for path in sorted(archive.files_in(self.model), reverse=True):
      os.makedirs(os.path.dirname(f"{other}/{path}"), exist_ok=True)
      shutil.copyfile(f"{self.model}/{path}", f"{other}/{path}")
      os.utime(f"{other}/{path}", (1, 1))
      os.chmod(f"{other}/{path}", 0o700)
    files_in = archive.files_in
    with (
      # another day, user, order of the files and language.
      mock.patch.object(time, "time", lambda: 4e9),
      mock.patch.object(os, "getuid", lambda: 1234),
      mock.patch.object(
        archive,
        "files_in",
        lambda path: dict(sorted(files_in(path).items(), reverse=True)),
      ),
      mock.patch.dict(os.environ, {"LC_ALL": "tr_TR.UTF-8", "USER": "other"}),
    ):
      self.package(saved_model_dir=other, signing_key=None)
    self.assertEqual({n: self.bytes_of(n) for n in os.listdir(self.out)}, first)

  def test_files_beside_the_documents_are_a_package_too(self):
    self.package()
    os.remove(os.path.join(self.out, documents.ARCHIVE))
    shutil.copytree(self.model, self.out, dirs_exist_ok=True)
    pathlib.Path(self.out, ".gitattributes").touch()
    self.check(self.public)
    pathlib.Path(self.out, "added.py").touch()
    with self.assertRaisesRegex(errors.InputError, "added.py is new"):
      self.check(self.public)

  _CHANGES: ClassVar = {
    # Of files of the model, in the archive alone.
    "weights": (
      lambda t: t.repack(lambda f: f.update({_WEIGHTS: t.other_file(1000)})),
      f"{_WEIGHTS} has changed",
    ),
    "one bit": (lambda t: t.flip(documents.ARCHIVE, 1041), "wrong checksum"),
    "graph": (
      lambda t: t.repack(
        lambda f: f.update({"saved_model.pb": t.other_file(9)})
      ),
      "saved_model.pb has changed",
    ),
    "card": (
      lambda t: t.repack(
        lambda f: f.update({"assets.extra/README.md": t.other_file(9)})
      ),
      "assets.extra/README.md has changed",
    ),
    "added": (
      lambda t: t.repack(lambda f: f.update({"assets/a": t.other_file(9)})),
      "assets/a is new",
    ),
    "removed": (
      lambda t: t.repack(lambda f: f.pop("assets/vocab.txt")),
      "assets/vocab.txt is missing",
    ),
    "renamed": (
      lambda t: t.repack(
        lambda f: f.update({"assets/v": f.pop("assets/vocab.txt")})
      ),
      "assets/vocab.txt is now assets/v",
    ),
    "two files exchanged": (
      lambda t: t.repack(
        lambda f: f.update(
          {
            "saved_model.pb": f["fingerprint.pb"],
            "fingerprint.pb": f["saved_model.pb"],
          }
        )
      ),
      "fingerprint.pb has changed; saved_model.pb has changed",
    ),
    "truncated": (lambda t: t.cut(documents.ARCHIVE, -600), "ends early"),
    "longer": (
      lambda t: t.append(documents.ARCHIVE, b"\0"),
      "data after its end",
    ),
    "compressed": (
      lambda t: t.put(
        documents.ARCHIVE,
        gzip.compress(gzip.decompress(t.bytes_of(documents.ARCHIVE))),
      ),
      "not a .tar.gz of //exporters:package",
    ),
    "no archive": (
      lambda t: os.remove(os.path.join(t.out, documents.ARCHIVE)),
      "saved_model.pb is missing",
    ),
    # Of documents.
    "file beside the documents": (
      lambda t: t.put("setup.py", b""),
      "files that were added: setup.py",
    ),
    "no manifest": (
      lambda t: os.remove(os.path.join(t.out, documents.MANIFEST)),
      "no manifest.json",
    ),
    "manifest without a file": (
      lambda t: t.edit(
        documents.MANIFEST, lambda d: d["files"].pop("assets/vocab.txt")
      ),
      "assets/vocab.txt is new",
    ),
    "manifest, singleprint": (
      lambda t: t.edit(
        documents.MANIFEST, lambda d: d.update(singleprint="1/2/3/4")
      ),
      "manifest.json has changed",
    ),
    "manifest, format": (
      lambda t: t.edit(documents.MANIFEST, lambda d: d.update(format=1)),
      "has format 1, and this program verifies 2",
    ),
    "manifest, field": (
      lambda t: t.edit(documents.MANIFEST, lambda d: d["archive"].clear()),
      "manifest.json lacks KeyError: 'sha256'",
    ),
    "manifest, license": (
      lambda t: t.edit(
        documents.MANIFEST, lambda d: d["description"].update(license="MIT")
      ),
      "has changed",
    ),
    "manifest, digest of the archive": (
      lambda t: t.edit(
        documents.MANIFEST, lambda d: d["archive"].update(sha256="0" * 64)
      ),
      "another digest of model.tar.gz",
    ),
    "no provenance": (
      lambda t: os.remove(os.path.join(t.out, documents.PROVENANCE)),
      "lacks provenance.json",
    ),
    "provenance, flags": (
      lambda t: t.edit(
        documents.PROVENANCE,
        lambda d: d["predicate"]["buildDefinition"].update(
          externalParameters={"flags": {"seed": 1}}
        ),
      ),
      "provenance.json has changed",
    ),
    "provenance, of no type": (
      lambda t: t.edit(
        documents.PROVENANCE, lambda d: d.update(predicateType="https://x")
      ),
      "provenance.json is of type https://x",
    ),
    "provenance of another model": (
      lambda t: t.from_other(documents.PROVENANCE),
      "provenance.json is about other files",
    ),
    "test result of another model": (
      lambda t: t.from_other(documents.TEST_RESULT),
      "test_result.json is about other files",
    ),
    "test result that failed": (
      lambda t: t.edit(
        documents.TEST_RESULT, lambda d: d["predicate"].update(result="FAILED")
      ),
      "test_result.json has changed",
    ),
    "no test result": (
      lambda t: os.remove(os.path.join(t.out, documents.TEST_RESULT)),
      "lacks test_result.json",
    ),
    "no attestation": (
      lambda t: t.put(documents.TEST_RESULT, b"[]"),
      "test_result.json is not a JSON object",
    ),
    "half a character": (
      lambda t: t.put(
        documents.MANIFEST,
        t.bytes_of(documents.MANIFEST).replace(b"Tests.", rb"\ud800"),
      ),
      "manifest.json: .*surrogates not allowed",
    ),
    "manifest, benchmark": (
      lambda t: t.edit(
        documents.MANIFEST,
        lambda d: d["description"]["evaluation"][0].update(task_id="other"),
      ),
      "README.md has changed",
    ),
    "bill of materials of another model": (
      lambda t: t.from_other(documents.SPDX),
      "spdx.json is about another archive",
    ),
    "bill of materials, license": (
      lambda t: t.put(
        documents.SPDX, t.bytes_of(documents.SPDX).replace(b"Apache", b"MIT")
      ),
      "spdx.json has changed",
    ),
    "front matter": (
      lambda t: t.append(documents.README, b"Buy"),
      "README.md has changed",
    ),
    "front matter, license": (
      lambda t: t.put(
        documents.README,
        t.bytes_of(documents.README).replace(b"license: apache-2.0", b""),
      ),
      "README.md has changed",
    ),
    "two names of one manifest": (
      lambda t: t.put(
        documents.MANIFEST,
        t.bytes_of(documents.MANIFEST).replace(
          b'"files": {', b'"files": {}, "files": {', 1
        ),
      ),
      "manifest.json has changed",
    ),
    "manifest, other form of a path": (
      lambda t: t.edit(
        documents.MANIFEST,
        lambda d: d["files"].update(
          {"./assets/vocab.txt": d["files"].pop("assets/vocab.txt")}
        ),
      ),
      r"\./assets/vocab.txt is now assets/vocab.txt",
    ),
    "manifest, path out of the model": (
      lambda t: t.edit(
        documents.MANIFEST,
        lambda d: d["files"].update({"../x": d["files"]["assets/vocab.txt"]}),
      ),
      r"\.\./x is missing",
    ),
    "another case": (
      lambda t: t.repack(
        lambda f: f.update({"assets/Vocab.txt": f.pop("assets/vocab.txt")})
      ),
      "assets/vocab.txt is now assets/Vocab.txt",
    ),
    "another form of Unicode": (
      lambda t: t.repack(
        lambda f: f.update({"assets/cafe\u0301": f.pop("assets/vocab.txt")})
      ),
      r"assets/vocab.txt is now 'assets/cafe\\u0301'",
    ),
    "verification, edited": (
      lambda t: t.repack(
        lambda f: f.update({documents.VERIFICATION: t.other_file(9)})
      ),
      "assets.extra/verification.json has changed",
    ),
    "curve of the training": (
      lambda t: t.repack(lambda f: f.pop("assets.extra/training.json")),
      "assets.extra/training.json is missing",
    ),
    "one subject more": (
      lambda t: t.edit(
        documents.TEST_RESULT,
        lambda d: d["subject"].append(d["subject"][0] | {"name": "other"}),
      ),
      "test_result.json is about other files",
    ),
    "another subject of the same name": (
      lambda t: t.edit(
        documents.PROVENANCE,
        lambda d: d["subject"][0]["digest"].update(sha256="0" * 64),
      ),
      "provenance.json is about other files",
    ),
    "name in the header of gzip": (
      lambda t: t.put(
        documents.ARCHIVE,
        b"\x1f\x8b\x08\x08"
        + t.bytes_of(documents.ARCHIVE)[4:10]
        + b"x\0"
        + t.bytes_of(documents.ARCHIVE)[10:],
      ),
      "not a .tar.gz of //exporters:package",
    ),
    "pipe in place of a document": (
      lambda t: t.replace(documents.README, os.mkfifo),
      "README.md in the package is not a file",
    ),
    "pipe in place of the archive": (
      lambda t: t.replace(documents.ARCHIVE, os.mkfifo),
      "model.tar.gz in the package is not a file",
    ),
    "directory in place of the signature": (
      lambda t: t.replace(documents.SIGNATURE, os.mkdir),
      "model.sig in the package is not a file",
    ),
    "another signature beside": (
      lambda t: t.put("model.sig.old", t.signature),
      "files that were added: model.sig.old",
    ),
    # Of what only a signature protects.
    "another model in all documents": (
      lambda t: t.package_other(signing_key=None, keep_signature=True),
      r"Signature mismatch.*manifest.json",
    ),
    "another model with another key": (
      lambda t: t.package_other(
        signing_key=fakes.write_key_pair(t.directory, "b")[0]
      ),
      "by another key or damaged",
    ),
    "signature of another package by the same key": (
      lambda t: (
        t.package(source_revision="f00")
        or t.replace(
          documents.MANIFEST,
          lambda path: pathlib.Path(path).write_bytes(t.listed),
        )
      ),
      "provenance.json has changed",
    ),
    "empty signature": (
      lambda t: t.put(documents.SIGNATURE, b""),
      "by another key or damaged",
    ),
    "no signature": (
      lambda t: os.remove(os.path.join(t.out, documents.SIGNATURE)),
      "not signed",
    ),
    "signature, a bit": (
      lambda t: t.edit(
        documents.SIGNATURE,
        lambda d: d["dsseEnvelope"]["signatures"][0].update(sig="AAAA"),
      ),
      "by another key or damaged",
    ),
    "source revision": (
      lambda t: (
        t.package(source_revision="f00", signing_key=None)
        or t.restore(documents.SIGNATURE)
      ),
      "Signature mismatch",
    ),
  }

  @parameterized.named_parameters(
    (name, *change) for name, change in _CHANGES.items()
  )
  def test_a_change_is_found_and_named(self, change, message: str):
    self.package()
    self.signature = self.bytes_of(documents.SIGNATURE)
    self.listed = self.bytes_of(documents.MANIFEST)
    self.check(self.public)
    change(self)
    with self.assertRaisesRegex(errors.InputError, message) as caught:
      self.check(self.public, unpack_dir=os.path.join(self.directory, "new"))
    self.assertNotIn("\n", str(caught.exception))
    self.assertFalse(os.path.exists(os.path.join(self.directory, "new")))

  def test_the_card_has_its_pictures(self):
    record = os.path.join(self.directory, "record.json")
    pathlib.Path(record).write_text(
      '{"epochs": [{"loss": 3, "val_loss": 4, "accuracy": 1}]}'
    )
    self.package(fine_tuning_record=record)
    self.check(self.public)
    card = self.bytes_of(documents.README).decode()
    found = re.findall(r'<img src="data:image/svg\+xml;base64,(\S+)" alt', card)
    pictures = [base64.b64decode(data).decode() for data in found]
    shown = [
      [t.text for t in ElementTree.fromstring(p).iter() if t.text]
      for p in pictures
    ]
    layers, training, fine_tuning = shown
    self.assertIn("images [?, 28, 28, 1]", layers)
    self.assertIn("3 times: block … 2", layers)
    self.assertIn("[3, 3, 1, 8]", layers)
    self.assertIn("12,480", layers)  # 3 (64 · 64 + 64)
    self.assertContainsSubset(["accuracy", "0.5", "0.75", "2"], training)
    self.assertContainsSubset(["loss", "validation", "4"], fine_tuning)
    self.assertNotIn("http", card.replace("http://www.w3.org/2000/svg", ""))

  def test_keys_of_other_kinds_are_refused(self):
    encrypted, _ = fakes.write_key_pair(self.directory, "c", password=b"x")
    for key in (
      rsa.generate_private_key(65537, 2048),
      ed25519.Ed25519PrivateKey.generate(),
    ):
      private, public = fakes.write_key_pair(self.directory, "d", key)
      for read in (
        lambda: signing.signer(private),  # noqa: B023
        lambda: signing.verifier(public, None),  # noqa: B023
      ):
        with self.assertRaisesRegex(errors.InputError, "another kind, such as"):
          read()
    with self.assertRaisesRegex(errors.InputError, "PEM: It is encrypted"):
      signing.signer(encrypted)

  def test_sigstore_gets_what_the_flags_say(self):
    token = os.path.join(self.directory, "token")
    pathlib.Path(token).write_text("abc\n")
    config = signing.signing.Config
    by_key = signing.signer(self.private)
    with mock.patch.object(
      config, "use_sigstore_signer", return_value=by_key
    ) as signer:
      self.package(signing_key=None, sigstore_token_file=token)
    signer.assert_called_once_with(identity_token="abc")
    config = signing.verifying.Config
    by_key = signing.verifier(self.public, None)
    with mock.patch.object(
      config, "use_sigstore_verifier", return_value=by_key
    ) as verifier:
      self.check(sigstore=("a@b.org", "https://issuer"))
    verifier.assert_called_once_with(
      identity="a@b.org", oidc_issuer="https://issuer"
    )

  def test_no_tensorflow_was_needed(self):
    self.assertNotIn("tensorflow", sys.modules)

  def test_suspicious_ops_are_named(self):
    self.package()

    @contextlib.contextmanager
    def started(module: str, directory: str, options: copying.Options):
      del module, options
      self.assertIn("assets/vocab.txt", archive.files_in(directory))
      self.assertEqual(
        pathlib.Path(directory, "saved_model.pb").read_bytes(), b"graph"
      )
      yield lambda request: ["WriteFile (x) in f"], {}

    with (
      contextlib.redirect_stdout(io.StringIO()),
      mock.patch.object(copying, "started", started),
      self.assertRaisesRegex(errors.InputError, r"need: WriteFile \(x\) in f"),
    ):
      checking.check(self.out)

  def put(self, name: str, data: bytes) -> None:
    pathlib.Path(self.out, name).write_bytes(data)

  def replace(self, name: str, make: Callable[[str], Any]) -> None:
    path = os.path.join(self.out, name)
    os.remove(path)
    make(path)

  def append(self, name: str, data: bytes) -> None:
    self.put(name, self.bytes_of(name) + data)

  def cut(self, name: str, size: int) -> None:
    self.put(name, self.bytes_of(name)[:size])

  def flip(self, name: str, position: int) -> None:
    data = bytearray(self.bytes_of(name))
    data[position] ^= 1
    self.put(name, bytes(data))

  def other_file(self, size: int) -> str:
    path = pathlib.Path(self.directory, "other_file")
    path.write_bytes(b"x" * size)
    return str(path)

  def package_other(self, *, keep_signature: bool = False, **kwargs: Any):
    other = os.path.join(self.directory, "other_model")
    fakes.write_model(other, weights=b"other")
    self.package(saved_model_dir=other, **kwargs)
    if keep_signature:
      self.restore(documents.SIGNATURE)

  def restore(self, name: str) -> None:
    self.put(name, self.signature)

  def from_other(self, name: str) -> None:
    kept = {n: self.bytes_of(n) for n in os.listdir(self.out)}
    self.package_other()
    kept[name] = self.bytes_of(name)
    for n, data in kept.items():
      self.put(n, data)

  @parameterized.named_parameters(
    ("absolute", _one(_entry("/etc/passwd")), "absolute path"),
    ("parent", _one(_entry("a/../../b")), "leaves its directory"),
    ("dot", _one(_entry("./a")), "not normal"),
    ("link", _one(_entry("a", type=b"2", linkname="/etc")), "symbolic link"),
    ("hard_link", _one(_entry("a", type=b"1", linkname="b")), "hard link"),
    ("device", _one(_entry("a", type=b"3")), "a device"),
    ("pipe", _one(_entry("a", type=b"6")), "a pipe"),
    ("directory", _one(_entry("a", type=b"5", mode=0o755)), "after its last"),
    (
      "other_directory",
      _one(_entry("a", type=b"5", mode=0o755), _entry("b")),
      "other directories than that of b",
    ),
    ("no_directory", _one(_entry("a/b")), "other directories than that of a/b"),
    ("sparse", _one(_entry("a", type=b"S")), "sparse file"),
    ("pax", _one(_entry("a", 11, type=b"x"), _entry("b")), "of type b'x'"),
    ("pax_global", _one(_entry("a", 11, type=b"g")), "of type b'g'"),
    ("long_name", _one(_entry("a", 2, type=b"L"), _entry("b")), "type b'L'"),
    ("case", _one(_entry("a"), _entry("A")), "A out of order"),
    ("twice", _one(_entry("a"), _entry("a")), "has a twice"),
    ("order", _one(_entry("b"), _entry("a")), "a out of order"),
    ("file_in_a_file", _one(_entry("a"), _entry("a/b")), "in a file"),
    ("executable", _one(_entry("a", mode=0o755)), "mode, owner, time"),
    ("owner", _one(_entry("a", uname="root")), "mode, owner, time"),
    ("time", _one(_entry("a", mtime=1)), "mode, owner, time"),
    (
      "hidden_data",
      lambda: _packed(
        lambda tar: (
          tar.addfile(_entry("a", 1), io.BytesIO(b"a")),
          tar.fileobj.seek(-1, 1),
          tar.fileobj.write(b"x"),
        )
      ),
      "data after a",
    ),
    (
      "gigantic",
      lambda: b"".join(
        archive._gzip([archive._header("a", tarfile.REGTYPE, 2**33 - 1)])
      ),
      "ends early, in a",
    ),
    (
      "bomb",
      lambda: gzip.compress(bytes(10**7), mtime=0),
      "not a .tar.gz of //exporters:package",
    ),
    (
      "second_member",
      lambda: b"".join(archive._gzip([bytes(1024)])) + gzip.compress(b""),
      "data after its end",
    ),
    (
      "empty",
      lambda: b"",
      "not a .tar.gz of //exporters:package",
    ),
  )
  def test_a_hostile_archive_is_refused(self, make, message: str):
    with self.assertRaisesRegex(errors.InputError, message) as caught:
      for _, pieces in archive.unpack(io.BytesIO(make())):
        for _ in pieces:
          pass
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.named_parameters(
    (
      "other_bytes",
      lambda report: report["files"].update({"saved_model.pb": "0" * 64}),
      "verification.json is of other bytes: saved_model.pb",
    ),
    (
      "no_bytes",
      lambda report: report.pop("files"),
      "does not say which bytes",
    ),
    (
      "a_list_of_files",
      lambda report: report.update(files=[1]),
      "is incomplete or another",
    ),
    (
      "nothing_passed",
      lambda report: report.update(comparisons=[]),
      "nothing has passed",
    ),
    (
      "another_singleprint",
      lambda report: report.update(singleprint="1/1/1/1"),
      "of another model",
    ),
  )
  def test_a_verification_of_something_else_is_refused(self, change, message):
    path = pathlib.Path(self.model, documents.VERIFICATION)
    report = json.loads(path.read_bytes())
    change(report)
    path.write_text(json.dumps(report))
    with self.assertRaisesRegex(errors.InputError, message):
      self.package()

  @parameterized.named_parameters(
    *(
      (field, {field: None}, f"{field} is missing")
      for field in ("publisher", "license", "limits", "evaluation")
    ),
    ("unknown", {"licence": "MIT"}, "licence is unknown"),
    ("no_license", {"license": "My License"}, "license: .*My License"),
    ("version", {"version": 1.0}, "put it in quotes"),
    ("result", {"evaluation": [{"metric": "accuracy"}]}, "value is a number"),
  )
  def test_a_card_without_a_field_is_refused(self, change, message: str):
    card = fakes.write_card(self.directory, **change)
    with self.assertRaisesRegex(errors.InputError, message):
      self.package(card_file=card)


if __name__ == "__main__":
  absltest.main()
