r"""Packages a SavedModel: an archive, and documents that prove its origin.

It writes them to a directory, for //exporters:publish and //exporters:verify:

  bazel run //exporters:package -- --saved_model_dir=DIR \
    --card_file=card.yaml --output_dir=OUT
  bazel run //exporters:package -- --saved_model_dir=DIR \
    --card_file=card.yaml --signing_key=key.pem --output_dir=OUT
  bazel run //exporters:package -- --saved_model_dir=DIR \
    --card_file=card.yaml --source_revision=COMMIT --output_dir=OUT

`hub.resolve` takes the archive. The documents are a manifest, provenance
(SLSA), the result of the exporter's verification (in-toto), a bill of materials
(SPDX 3) and, with --signing_key, a signature. Packages of one export have the
same bytes on any machine and day, except for the signature.
"""

from __future__ import annotations

import os
import pathlib

from absl import flags

from distribution import copies
from distribution import formats
from distribution import publishing
from exporters.packages import archive
from exporters.packages import checking
from exporters.packages import description
from exporters.packages import documents
from exporters.packages import signing
from exporters.reusable import command_line


def package(
  *,
  saved_model_dir: str,
  output_dir: str,
  card_file: str | None = None,
  fine_tuning_record: str | None = None,
  signing_key: str | None = None,
  sigstore_token_file: str | None = None,
  source_revision: str | None = None,
  overwrite: bool = False,
  follow_links: bool = False,
) -> None:
  """Packages a SavedModel.

  Args:
    saved_model_dir: The directory of the SavedModel.
    output_dir: The directory to write the package to.
    card_file: The publisher's description of the model, in YAML.
    fine_tuning_record: The file that a use_* program wrote to its
      --training_record. None: the card shows no curve of the fine-tuning.
    signing_key: The private key to sign with, in PEM.
    sigstore_token_file: An identity token to sign with Sigstore, without a key.
    source_revision: The commit that the exporter was built from, if known.
    overwrite: Whether to replace an existing package.
    follow_links: As `copies.copy` takes it.

  Raises:
    ExportError: A directory, the card or the key is invalid, or the files have
      changed since the exporter verified them.
  """
  publishing.check_apart(output_dir, saved_model_dir)
  signer = signing.signer(signing_key, sigstore_token_file)
  fields = description.read(card_file) if card_file else {}
  if fine_tuning_record:
    fields["fine_tuning"] = description.epochs(fine_tuning_record)
  output = publishing.publish(
    output_dir, documents.PACKAGE, overwrite=overwrite
  )
  copied = copies.copied(saved_model_dir, follow_links=follow_links)
  with output as directory, copied as (copy_dir, _):
    files = archive.files_in(copy_dir)
    with open(os.path.join(directory, documents.ARCHIVE), "wb") as f:
      whole, digests = archive.pack(files, f.write)
    contents = {
      name: pathlib.Path(files[name]).read_bytes()
      for name in documents.READ
      if name in files
    }
    made = documents.make(whole, digests, contents, fields, source_revision)
    for name, content in made.items():
      pathlib.Path(directory, name).write_bytes(content)
    if signer:
      signing.sign(
        checking.digests(made, whole),
        signer,
        os.path.join(directory, documents.SIGNATURE),
      )
  print(f"Packaged {len(files)} files to {output_dir}")
  print(f"SHA-256 of {documents.ARCHIVE}: {whole.sha256}")
  if documents.VERIFICATION not in files:
    print("Its exporter has not verified it, so it cannot be published.")


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("saved_model_dir", None, "The SavedModel to package.")
  flags.DEFINE_string(
    "output_dir",
    None,
    "The directory that the package appears at. It must not exist, or be"
    " empty.",
  )
  flags.DEFINE_bool("overwrite", False, "Replace a package at --output_dir.")
  flags.DEFINE_bool("follow_links", False, copies.FOLLOW_LINKS)
  flags.DEFINE_string(
    "card_file",
    None,
    "A file of YAML with what you say of the model: publisher, name, version,"
    " license, task, dataset, purpose, limits, evaluation and language.",
  )
  flags.DEFINE_string(
    "fine_tuning_record",
    None,
    "With --card_file: what --training_record of a use_* program wrote. The"
    " card shows it as a curve.",
  )
  command_line.forbid_without("card_file", ["fine_tuning_record"])
  flags.DEFINE_string(
    "signing_key",
    None,
    "The private key to sign with: an elliptic curve (P-256, P-384 or P-521) in"
    " PEM, not encrypted.",
  )
  flags.DEFINE_string(
    "sigstore_token_file",
    None,
    "A file with an OpenID Connect identity token: sign with Sigstore, which"
    " needs a network, instead of --signing_key.",
  )
  flags.mark_flags_as_mutual_exclusive(["signing_key", "sigstore_token_file"])
  flags.DEFINE_string(
    "source_revision",
    None,
    "The commit that the exporter was built from. The provenance records it.",
  )
  flags.register_validator(
    "saved_model_dir", bool, "It is required: the directory to package."
  )
  flags.register_validator(
    "output_dir", bool, "It is required: the directory to write."
  )


def main() -> None:
  """Packages the SavedModel that the flags name."""
  values = flags.FLAGS
  package(
    saved_model_dir=command_line.model_path("saved_model_dir"),
    output_dir=command_line.model_path("output_dir"),
    card_file=formats.absolute(values.card_file),
    fine_tuning_record=formats.absolute(values.fine_tuning_record),
    signing_key=formats.absolute(values.signing_key),
    sigstore_token_file=formats.absolute(values.sigstore_token_file),
    source_revision=values.source_revision,
    overwrite=values.overwrite,
    follow_links=values.follow_links,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
