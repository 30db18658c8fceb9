"""Macros that decide which tests `./bazelw test //...` runs, and how."""

# The tags of tests that only //:nightly runs, and of artifacts that only such
# tests use.
NIGHTLY = [
    "manual",
    "nightly",
]

def py_test_with_nightly_cases(
        name,
        srcs,
        deps,
        args = [],
        data = [],
        env = {},
        nightly_args = [],
        nightly_data = [],
        tags = [],
        **kwargs):
    """Defines a test, and a nightly test that also runs nightly cases.

    The test NAME skips the cases that are marked `@nightly.only`;
    `NAME_nightly` runs all cases. If `tags` is NIGHTLY, only the test NAME
    exists, and runs all cases.

    Args:
      name: Name of the test.
      srcs: The source of the test, in a list.
      deps: Dependencies. `//tools:nightly` is added.
      args: Arguments of the test.
      data: Data of the test.
      env: Environment variables of the test.
      nightly_args: Further arguments of the test that runs all cases.
      nightly_data: Further data of that test.
      tags: Tags of the test.
      **kwargs: Further attributes of both tests.
    """
    suffixes = {"": NIGHTLY} if tags == NIGHTLY else {"": tags, "_nightly": NIGHTLY}
    for suffix, its_tags in suffixes.items():
        is_nightly = its_tags == NIGHTLY
        native.py_test(
            name = name + suffix,
            srcs = srcs,
            args = args + (nightly_args if is_nightly else []),
            data = data + (nightly_data if is_nightly else []),
            env = dict(env, NIGHTLY = "1") if is_nightly else env,
            main = srcs[0],
            tags = its_tags,
            deps = deps + ["//tools:nightly"],
            **kwargs
        )

def py_tests_in_one_process(name, srcs, deps, **kwargs):
    """Defines one test that runs the cases of small test modules.

    The modules share one process because the import of TensorFlow takes longer
    than their cases. So they must not change settings of the whole process.

    Args:
      name: Name of the test.
      srcs: The test modules.
      deps: Dependencies of all modules.
      **kwargs: Further attributes of the test.
    """
    package = native.package_name().replace("/", ".")
    modules = ["%s.%s" % (package, src[:-len(".py")]) for src in srcs]
    native.py_test(
        name = name,
        srcs = srcs + ["//tools:in_one_process.py"],
        env = {"TEST_MODULES": ",".join(modules)},
        main = "//tools:in_one_process.py",
        deps = deps,
        **kwargs
    )

def nightly_tests(name):
    """Defines a suite of the package's tests with the tags NIGHTLY.

    Call it at the end of the BUILD file.

    Args:
      name: Name of the suite. `//:nightly` expects `nightly`.
    """
    native.test_suite(
        name = name,
        # Without this tag, //... would include the suite, and so run its tests.
        tags = ["manual"],
        tests = [
            ":" + test
            for test, rule in native.existing_rules().items()
            if rule["kind"] == "py_test" and "nightly" in rule["tags"]
        ],
        visibility = ["//:__pkg__"],
    )
