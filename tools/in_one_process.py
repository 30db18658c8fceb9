"""Runs the test modules in TEST_MODULES in one process; see tests.bzl."""

import importlib
import os
import unittest

from absl.testing import absltest


def load_tests(loader: unittest.TestLoader, *_: object) -> unittest.TestSuite:
  """Loads the cases of all modules. `unittest` calls it."""
  return unittest.TestSuite(
    loader.loadTestsFromModule(importlib.import_module(name))
    for name in os.environ["TEST_MODULES"].split(",")
  )


if __name__ == "__main__":
  absltest.main()
