"""Keeps a program from importing what it does not use.

All of this is for programs: who imports such a package later gets it like that.
"""

from collections.abc import Iterable
import importlib.util
import sys

# TensorFlow and Keras import them, and do without where they are not installed.
OPTIONAL = ("googleapiclient", "pandas")


def leave_out(packages: Iterable[str]) -> None:
  """Makes packages look as if they were not installed."""
  for name in packages:
    sys.modules.setdefault(name, None)


def without_init(packages: Iterable[str]) -> None:
  """Imports packages without running their `__init__.py`.

  Args:
    packages: Names; a package before those in it.
  """
  for name in packages:
    module = importlib.util.module_from_spec(importlib.util.find_spec(name))
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
