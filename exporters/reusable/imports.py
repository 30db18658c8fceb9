"""Keeps a program from importing packages that it does not use.

Call these functions from `main` only. The change is process-wide, and later
imports get the stripped packages.
"""

from collections.abc import Iterable
import importlib.util
import sys

# Optional dependencies of TensorFlow and Keras.
OPTIONAL = ("googleapiclient", "pandas")


def leave_out(packages: Iterable[str]) -> None:
  """Makes imports of packages fail, as if they were not installed."""
  for name in packages:
    sys.modules.setdefault(name, None)


def without_init(packages: Iterable[str]) -> None:
  """Imports packages without running their `__init__.py`.

  Args:
    packages: Names of packages, each before its subpackages.
  """
  for name in packages:
    module = importlib.util.module_from_spec(importlib.util.find_spec(name))
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
