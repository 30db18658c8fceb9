r"""Verifies a package of //exporters:package before anything loads the model.

It compares files and documents, checks the signature, and audits the ops:

  bazel run //exporters:verify -- --package=DIR
  bazel run //exporters:verify -- --package=DIR --public_key=KEY.pub
  bazel run //exporters:verify -- \
    --package=DIR --public_key=KEY.pub --unpack_dir=MODEL

The manifest lists the required files. The documents must match the model. The
package has either the archive or, as on Hugging Face, the files of the model
themselves.
"""

from __future__ import annotations

from absl import flags

from distribution import formats
from exporters.packages import checking
from exporters.reusable import command_line


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string("package", None, "The directory of the package.")
  flags.DEFINE_string(
    "public_key",
    None,
    "The key that must have signed the package, in PEM. Without it the package"
    " is compared with itself only: who changed the model may have changed the"
    " documents too.",
  )
  for name, text in {
    "sigstore_identity": "Instead of --public_key: the identity that must have"
    " signed the package with Sigstore, such as an e-mail address.",
    "sigstore_issuer": "With --sigstore_identity: the URL of the OpenID Connect"
    " provider that vouches for it.",
  }.items():
    flags.DEFINE_string(name, None, text)
  flags.mark_flags_as_mutual_exclusive(["public_key", "sigstore_identity"])
  flags.register_multi_flags_validator(
    ["sigstore_identity", "sigstore_issuer"],
    lambda values: len({bool(value) for value in values.values()}) == 1,
    "--sigstore_identity and --sigstore_issuer go together.",
  )
  flags.DEFINE_string(
    "unpack_dir",
    None,
    "Where the model appears if all checks pass. The default is nowhere.",
  )
  flags.DEFINE_bool(
    "overwrite", False, "Replace a SavedModel that exists at --unpack_dir."
  )
  flags.DEFINE_bool(
    "audit", True, "Look for ops that models do not need. It needs TensorFlow."
  )
  flags.register_validator(
    "package", bool, "It is required: the directory of the package."
  )


def main() -> None:
  """Verifies the package that the flags name."""
  values = flags.FLAGS
  package = formats.absolute(values.package)
  unpack_dir = command_line.model_path("unpack_dir")
  checking.check(
    package,
    public_key=formats.absolute(values.public_key),
    sigstore=values.sigstore_identity
    and (values.sigstore_identity, values.sigstore_issuer),
    unpack_dir=unpack_dir,
    overwrite=values.overwrite,
    audit=values.audit,
  )
  signed = values.public_key or values.sigstore_identity
  unsigned = " Its origin is not: there is no --public_key."
  print(f"{package} is verified.{'' if signed else unsigned}")
  if unpack_dir:
    print(f"The model is at {unpack_dir}")


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
