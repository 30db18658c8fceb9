"""Marks the test cases that only nightly tests run; see tests.bzl."""

import os
import unittest

IS_ON = "NIGHTLY" in os.environ

# Decorates a test class or a test method. Put it below
# `@parameterized.parameters`.
only = unittest.skipUnless(IS_ON, "Only nightly tests run this case.")
