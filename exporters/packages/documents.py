"""The documents of a package: manifest, attestations, bill of materials.

They depend only on the bytes of the model and the records of its exporter. No
document has a time, so packages of an export do not depend on the day.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import re
from typing import Any

from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement
import spdx_python_model

from distribution import publishing
from exporters.packages import archive
from exporters.packages import description
from exporters.packages import pictures
from exporters.reusable import errors

# Increment when documents of the same model change: bytes are compared.
FORMAT = 2
ARCHIVE = archive.NAME
MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
TEST_RESULT = "test_result.json"
SPDX = "spdx.json"
SIGNATURE = "model.sig"

README = "README.md"
NAMES = {
  *(ARCHIVE, MANIFEST, PROVENANCE, TEST_RESULT, SPDX, SIGNATURE, README),
}
PACKAGE = publishing.Kind(MANIFEST, "|".join(map(re.escape, sorted(NAMES))))

# Files of the model that the documents are made from.
VERIFICATION = "assets.extra/verification.json"
_FINGERPRINT = "fingerprint.pb"
CARD = "assets.extra/README.md"
MODEL = "assets.extra/model.json"
_TRAINING = "assets.extra/training.json"
READ = (VERIFICATION, _FINGERPRINT, CARD, MODEL, _TRAINING)

_PREDICATES = {
  PROVENANCE: ("https://slsa.dev/provenance/v1", provenance_pb2.Provenance),
  TEST_RESULT: (
    "https://in-toto.io/attestation/test-result/v0.1",
    test_result_pb2.TestResult,
  ),
}
_STATEMENT = "https://in-toto.io/Statement/v1"
_URN = "urn:reference-exporters:"
# The fields of FingerprintDef that form a singleprint.
_SINGLEPRINT = (2, 3, 4, 5)


def to_json(document: Any) -> bytes:
  """Serializes a document in its canonical form, with sorted keys."""
  text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
  return f"{text}\n".encode()


def from_json(name: str, data: bytes) -> dict[str, Any]:
  """Returns the content of a document.

  Raises:
    ExportError: The document is not a JSON object.
  """
  with errors.of_input(ValueError, RecursionError, about=f"{name}: "):
    document = json.loads(data)
    to_json(document)  # Fails for half a surrogate pair.
  if not isinstance(document, dict):
    raise errors.ExportError(f"{name} is not a JSON object.")
  return document


def _singleprint(fingerprint: bytes | None) -> str | None:
  """Returns TensorFlow's singleprint of a model, from its `fingerprint.pb`."""
  if fingerprint is None:
    return None
  fields: dict[int, int] = {}
  data = iter(fingerprint)
  with errors.of_input(StopIteration, ValueError, about=f"{_FINGERPRINT}: "):
    for tag in data:
      if tag & 7 == 0:
        fields[tag >> 3] = _varint(next(data), data)
      elif tag & 7 == 2:
        for _ in range(_varint(next(data), data)):
          next(data)
      else:
        raise ValueError("it is damaged.")
  return "/".join(str(fields.get(field, 0)) for field in _SINGLEPRINT)


def _varint(byte: int, rest: Any) -> int:
  value = shift = 0
  while byte & 0x80:
    value |= (byte & 0x7F) << shift
    shift, byte = shift + 7, next(rest)
  return value | byte << shift


def make(
  whole: archive.Digest,
  files: Mapping[str, archive.Digest],
  contents: Mapping[str, bytes],
  fields: Mapping[str, Any],
  source_revision: str | None,
) -> dict[str, bytes]:
  """Returns the content of all documents, by name.

  Args:
    whole: The Digest of the archive.
    files: The Digest of each file of the model.
    contents: The contents of the files in `READ` that the model has.
    fields: The fields of the card; empty without a card.
    source_revision: The commit that the exporter was built from, if known.

  Raises:
    ExportError: The exporter's verification failed, or was made with other
      bytes.
  """
  if taken := NAMES & files.keys():
    raise errors.ExportError(
      f"The model has {', '.join(sorted(taken))}, which a package has beside"
      " it."
    )
  listed = {
    "archive": {"name": ARCHIVE, **whole._asdict()},
    "description": fields,
    "files": {name: digest._asdict() for name, digest in files.items()},
    "format": FORMAT,
    "singleprint": _singleprint(contents.get(_FINGERPRINT)),
    "source_revision": source_revision,
  }
  made: dict[str, Any] = {MANIFEST: listed, SPDX: _spdx(listed)}
  if VERIFICATION in contents:
    report = from_json(VERIFICATION, contents[VERIFICATION])
    with errors.of_input(about=f"{VERIFICATION} is incomplete or another: "):
      _check_report(report, listed)
      made[PROVENANCE] = _provenance(listed, report)
      made[TEST_RESULT] = _test_result(listed, report)
  content = {name: to_json(document) for name, document in made.items()}
  if fields:
    card = contents.get(CARD, b"").decode(errors="replace")
    drawn = _drawn(contents, fields)
    content[README] = description.readme(fields, card, drawn).encode()
  return content


def _drawn(contents: Mapping[str, bytes], fields: Mapping[str, Any]) -> str:
  """Returns the section of the card with its pictures.

  Older exports record less and so have fewer pictures.
  """
  sections = []
  with errors.of_input(about="The model cannot be drawn: "):
    if MODEL in contents:
      model = from_json(MODEL, contents[MODEL])
      about = (
        "Layers in the order of the model, with the shapes of their weights and"
        " their numbers of parameters"
      )
      sections.append((about, pictures.architecture(model)))
    if _TRAINING in contents:
      record = from_json(_TRAINING, contents[_TRAINING])
      about = "Metrics of the training, by epoch"
      sections.append((about, pictures.curves(record["epochs"])))
    if "fine_tuning" in fields:
      about = "Metrics of a fine-tuning on other data, by epoch"
      sections.append((about, pictures.curves(fields["fine_tuning"])))
  images = [
    f"{about}:\n\n{pictures.image(p, about)}\n\n" for about, p in sections
  ]
  return "".join(["## Layers and curves\n\n", *images]) if images else ""


def _check_report(report: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
  """Checks that the exporter verified the files in the manifest."""
  if "files" not in report:
    raise errors.ExportError(
      f"{VERIFICATION} does not say which bytes were verified. Export again."
    )
  actual = {
    name: file["sha256"]
    for name, file in listed["files"].items()
    if not name.startswith("assets.extra/")
  }
  names = actual.keys() | report["files"].keys()
  other = [n for n in names if actual.get(n) != report["files"].get(n)]
  if other:
    raise errors.ExportError(
      f"{VERIFICATION} is of other bytes: {', '.join(sorted(other))}. Export"
      " again."
    )
  if report["singleprint"] not in (None, listed["singleprint"]):
    raise errors.ExportError(f"{VERIFICATION} is of another model.")
  if not any(comparison["passed"] for comparison in report["comparisons"]):
    raise errors.ExportError(f"{VERIFICATION}: nothing has passed.")


def _subjects(listed: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the subjects of an attestation: the archive and its files."""
  digests = {ARCHIVE: listed["archive"], **listed["files"]}
  return [
    {"name": name, "digest": {"sha256": digest["sha256"]}}
    for name, digest in sorted(digests.items())
  ]


def _provenance(
  listed: Mapping[str, Any], report: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the provenance of the model, as SLSA v1 provenance in in-toto.

  It claims SLSA level 1: there is provenance, written by the producer of the
  model.
  """
  dependencies = [
    {"name": name, "digest": {"sha256": report[f"{name}_sha256"]}}
    for name in ("checkpoint", "lock")
    if report.get(f"{name}_sha256")
  ]
  dependencies += [
    {"uri": f"pkg:pypi/{name}@{version}"}
    for name, version in sorted(report.get("versions", {}).items())
    if name != "python"
  ]
  if (revision := listed["source_revision"]) is not None:
    dependencies.append({"name": "source", "digest": {"gitCommit": revision}})
  parameters, threads = (
    {name: report[name] for name in names if report.get(name)}
    for names in (("exporter", "flags"), ("threads",))
  )
  return _statement(
    PROVENANCE,
    listed,
    {
      "buildDefinition": {
        "buildType": f"{_URN}export:1",
        "externalParameters": parameters,
        "resolvedDependencies": dependencies,
        **({"internalParameters": threads} if threads else {}),
      },
      "runDetails": {"builder": {"id": f"{_URN}local"}},
    },
  )


def _test_result(
  listed: Mapping[str, Any], report: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the result of the exporter's verification, as in in-toto."""
  passed = [
    f"{comparison['kind']}: {place}"
    for comparison in report["comparisons"]
    for place in comparison["passed"]
  ]
  return _statement(
    TEST_RESULT,
    listed,
    {
      "result": "PASSED",
      "configuration": [
        {
          "name": VERIFICATION,
          "digest": {"sha256": listed["files"][VERIFICATION]["sha256"]},
          "annotations": {"level": report["level"]},
        }
      ],
      "passedTests": passed,
      "warnedTests": report["notes"],
      "failedTests": [],
    },
  )


def _statement(
  name: str, listed: Mapping[str, Any], predicate: Mapping[str, Any]
) -> dict[str, Any]:
  document = {
    "_type": _STATEMENT,
    "subject": _subjects(listed),
    "predicateType": _PREDICATES[name][0],
    "predicate": predicate,
  }
  check(name, document, listed)
  return document


def _check_statement(
  name: str, document: dict[str, Any], listed: dict[str, Any]
) -> None:
  predicate_type, message = _PREDICATES[name]
  with errors.of_input(about=f"{name} is no in-toto attestation: "):
    parsed = json_format.ParseDict(document, statement.spb.Statement())
    statement.Statement.copy_from_pb(parsed).validate()
    json_format.ParseDict(document["predicate"], message())
  if document["predicateType"] != predicate_type:
    raise errors.ExportError(
      f"{name} is of type {document['predicateType']}, not {predicate_type}."
    )
  if document["subject"] != _subjects(listed):
    raise errors.ExportError(f"{name} is about other files than these.")


def _spdx(listed: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the bill of materials: an AI package of SPDX 3."""
  fields = listed["description"]
  base = f"{_URN}{listed['archive']['sha256']}:"
  graph = [
    {
      "type": "CreationInfo",
      "@id": "_:creation",
      "specVersion": "3.0.1",
      # Required by SPDX. The true time would change with each package.
      "created": "1970-01-01T00:00:00Z",
      "createdBy": [f"{base}program"],
    },
    _element(base, "program", "SoftwareAgent", name="//exporters:package"),
    _spdx_model(base, listed),
    _element(
      base,
      "document",
      "SpdxDocument",
      profileConformance=["core", "software", "ai", "simpleLicensing"],
      rootElement=[f"{base}model"],
    ),
  ]
  if fields:
    licensing = {"from": f"{base}model", "to": [f"{base}license"]}
    graph += [
      _element(base, "publisher", "Organization", name=fields["publisher"]),
      _element(
        base,
        "license",
        "simplelicensing_LicenseExpression",
        simplelicensing_licenseExpression=fields["license"],
      ),
      _element(
        base,
        "licensing",
        "Relationship",
        relationshipType="hasDeclaredLicense",
        **licensing,
      ),
    ]
  document = {
    "@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld",
    "@graph": graph,
  }
  check(SPDX, document, listed)
  return document


def _spdx_model(base: str, listed: Mapping[str, Any]) -> dict[str, Any]:
  fields = listed["description"]
  described = {}
  if fields:
    described = {
      "suppliedBy": f"{base}publisher",
      "software_packageVersion": fields["version"],
      "ai_domain": [fields["task"]],
      "ai_informationAboutApplication": fields["purpose"],
      "ai_informationAboutTraining": f"Trained on {fields['dataset']}.",
      "ai_limitation": fields["limits"],
    }
  hash_ = {
    "type": "Hash",
    "algorithm": "sha256",
    "hashValue": listed["archive"]["sha256"],
  }
  return _element(
    base,
    "model",
    "ai_AIPackage",
    name=fields.get("name", "model"),
    software_primaryPurpose="model",
    verifiedUsing=[hash_],
    **described,
  )


def _element(base: str, id_: str, type_: str, **fields: Any) -> dict[str, Any]:
  return {
    "type": type_,
    "spdxId": base + id_,
    "creationInfo": "_:creation",
    **fields,
  }


def check(name: str, document: dict[str, Any], listed: dict[str, Any]) -> None:
  """Checks the format of a document, and that it describes a model.

  Args:
    name: The name of the document.
    document: Its content.
    listed: The manifest of the model.

  Raises:
    ExportError: The format is wrong, or the document describes another model.
  """
  digest = listed["archive"]["sha256"]
  if name in _PREDICATES:
    _check_statement(name, document, listed)
  elif name == SPDX:
    with errors.of_input(about=f"{SPDX} is no SPDX 3 document: "):
      _, objects = spdx_python_model.load_data(document)
      hashes = [
        hash_.hashValue
        for package in objects.foreach_type("ai_AIPackage")
        for hash_ in package.verifiedUsing
      ]
    if hashes != [digest]:
      raise errors.ExportError(f"{SPDX} is about another archive than this.")
