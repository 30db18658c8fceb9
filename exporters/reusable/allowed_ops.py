"""Lists the names of the ops that a model may contain."""

import pathlib

NAMES = frozenset(
  op
  for line in pathlib.Path(__file__)
  .with_name("allowed_ops.txt")
  .read_text()
  .splitlines()
  if not line.startswith("#")
  for op in line.split()
)
