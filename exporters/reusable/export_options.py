"""The options that all exporters have.

They have a module of their own, so that programs that export nothing, and their
tests, do not depend on `exporting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Where to export and how to verify: flags of `command_line`, by name.

  Attributes:
    overwrite: Also applies to the `checkpoint_dir` of a training.
    saved_model_format: `reusable`, or `keras` for a complete Keras model.
    checkpoint_report: The file for the report of restores; `-` prints the
      report and exits.
    freezing_profiles: Names of the `profiles` to add to exports with trainable
      variables.
    flag_values: The flags of the program, for the report of the verification.
    measure_latency: Whether to measure the latency of model and export.
    warmup_batch_sizes: Batch sizes of warm-up requests, as `warmup.write` takes
      them.
    warmup_lengths: Sizes of the other dynamic dimensions of these requests.
  """

  export_dir: str
  overwrite: bool = False
  verification: str = "full"
  saved_model_format: str = "reusable"
  keep_failed: str | None = None
  checkpoint_report: str | None = None
  freezing_profiles: Sequence[str] = ()
  flag_values: Mapping[str, Any] | None = None
  measure_latency: bool = False
  warmup_batch_sizes: Sequence[int | str] = (1,)
  warmup_lengths: Sequence[int | str] = ()
