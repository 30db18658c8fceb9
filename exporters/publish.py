r"""Publishes a package of //exporters:package.

It verifies the package first, and publishes the verified bytes:

  bazel run //exporters:publish -- --package=DIR --to=file:///PATH
  bazel run //exporters:publish -- \
    --package=DIR --public_key=KEY.pub --to=hf://OWNER/REPO
  bazel run //exporters:publish -- \
    --package=DIR --to=gs://BUCKET/PATH --dry_run

Directories and buckets get the archive. Hugging Face and Kaggle get the files
in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile

from absl import flags

from distribution import formats
from exporters.packages import archive
from exporters.packages import checking
from exporters.packages import documents
from exporters.packages import places
from exporters.reusable import command_line
from exporters.reusable import errors


def publish(
  *,
  package: str,
  to: str,
  public_key: str | None = None,
  dry_run: bool = False,
  overwrite: bool = False,
  audit: bool = True,
) -> None:
  """Publishes a package.

  Args:
    package: The directory of the package.
    to: The URL to publish to.
    public_key: The key that must have signed the package. None: it need not be
      signed.
    dry_run: Whether to only print the files and their destination.
    overwrite: Whether to replace a package at `to`.
    audit: Whether to look for ops that models do not need.

  Raises:
    ExportError: The package is invalid, has no license or was not verified by
      its exporter, or the destination has other files.
  """
  kind, place = places.parse(to)
  with tempfile.TemporaryDirectory() as directory:
    model = os.path.join(directory, "model")
    listed, found = checking.check(
      package, public_key=public_key, unpack_dir=model, audit=audit
    )
    if documents.TEST_RESULT not in found:
      raise errors.ExportError(
        f"{package}: its exporter has not verified the model. Export it with"
        " --verification=full."
      )
    if not listed["description"].get("license"):
      raise errors.ExportError(
        f"{package} has no license. Package it with --card_file."
      )
    if places.takes_archive(kind):
      # Pack the checked files instead of copying the archive, which may have
      # changed since the check. The same files yield the same bytes.
      packed = os.path.join(directory, "packed")
      os.mkdir(packed)
      with open(os.path.join(packed, documents.ARCHIVE), "wb") as f:
        archive.pack(archive.files_in(model), f.write)
      shutil.rmtree(model)
      model = packed
    for name, content in found.items():
      with open(os.path.join(model, name), "wb") as f:
        f.write(content)
    for name, path in sorted(archive.files_in(model).items()):
      shown = errors.shown(name)
      print(f"  {os.path.getsize(path):>13,}  {to}/{shown}")
    if dry_run:
      print("Nothing was published: --dry_run.")
      return
    places.upload(kind, place, model, listed, overwrite=overwrite)
  name = errors.shown(str(listed["description"].get("name"))[:200])
  print(f"Published {name} at {to}")


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("package", None, "The directory of the package.")
  flags.DEFINE_string(
    "to",
    None,
    "Where to publish: file:///DIR, gs://BUCKET/PATH, hf://OWNER/REPO or"
    " kaggle://OWNER/MODEL/tensorFlow2/VARIATION. Credentials are those of the"
    " clients of these places.",
  )
  flags.DEFINE_string(
    "public_key", None, "The key that must have signed the package, in PEM."
  )
  flags.DEFINE_bool("dry_run", False, "Show what would go where, and stop.")
  flags.DEFINE_bool(
    "overwrite",
    False,
    "Replace a package in a directory or bucket, or what is in a repository of"
    " Hugging Face. That keeps versions.",
  )
  flags.register_validator(
    "package", bool, "It is required: the directory of the package."
  )
  flags.register_validator("to", bool, "It is required: where to publish.")


def main() -> None:
  """Publishes the package that the flags name."""
  values = flags.FLAGS
  publish(
    package=formats.absolute(values.package),
    to=values.to,
    public_key=formats.absolute(values.public_key),
    dry_run=values.dry_run,
    overwrite=values.overwrite,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
