r"""Shows what an exporter would restore from a checkpoint, without exporting.

It runs the exporter up to the restore. All other flags are the exporter's:

  bazel run //exporters:checkpoint_report -- --checkpoint_path=HF_DIR
  bazel run //exporters:checkpoint_report -- \
    --checkpoint_path=PATH --exporter=mnist_cnn
  bazel run //exporters:checkpoint_report -- \
    --checkpoint_path=PATH --exporter=resnet --experiment=legacy_resnet50
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from absl import flags

from distribution import errors
from distribution import formats
from distribution import programs
from distribution import scratch

# Exporters for directories with a config, by the start of the type in it.
_OF_TYPES = {
  "vit": "vit",
  "deit": "deit",
  "tf_efficientnet": "efficientnet",
  **dict.fromkeys(("albert", "bert", "distilbert", "electra"), "bert"),
  "mobilebert": "bert",
}
EXPORTERS = (
  *("bert", "deit", "efficientnet", "mnist_cnn", "mobilenet", "resnet"),
  *("resnet_3d", "revnet", "text_rnn", "tf_module", "vit"),
)

flags.DEFINE_enum(
  "exporter",
  None,
  EXPORTERS,
  "Whose model the checkpoint is of. Directories of Hugging Face say it.",
)
flags.DEFINE_string("checkpoint_path", None, "As for the exporter.")
flags.mark_flag_as_required("checkpoint_path")


def main(others: list[str]) -> None:
  """Runs the exporter up to the restore."""
  path = formats.absolute(flags.FLAGS.checkpoint_path)
  exporter = flags.FLAGS.exporter
  library, type_ = formats.described(path) or ("", "")
  for start, name in _OF_TYPES.items():
    if not exporter and type_.lower().startswith(start):
      exporter = name
  if library == "Hugging Face":
    # bert reports why it cannot export a directory of another type.
    exporter = exporter or "bert"
  if not exporter:
    raise errors.InputError(
      f"Say whose model {path} is of: --exporter={'|'.join(EXPORTERS)}."
    )
  program = os.path.join(os.path.dirname(__file__), exporter)
  command = [program]
  if not os.path.exists(program):  # Not built by Bazel.
    command = [sys.executable, f"{program}.py"]
  command += [
    f"--checkpoint_path={path}",
    f"--export_dir={os.path.join(tempfile.gettempdir(), 'export')}",
    "--checkpoint_report=-",
    "--verification=off",
  ]
  command = scratch.tied([*command, *others[1:]])
  sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
  programs.run(main, known_only=True)
