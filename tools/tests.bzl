"""Macros that decide which tests `./bazelw test //...` runs, and how."""

# The tags of a test that only //:nightly runs, and of an artifact that only such
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
    """A test without its cases that are marked `@nightly.only`.

    `NAME_nightly` runs all cases. With the tags NIGHTLY the test itself does.

    Args:
      name: Name of the test.
      srcs: Its source, in a list.
      deps: Its dependencies. `//tools:nightly` is added.
      args: Its arguments.
      data: Its data.
      env: Its environment variables.
      nightly_args: Further arguments where all cases run.
      nightly_data: Further data there.
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
    """One test with the cases of small test modules.

    They import TensorFlow once, which takes longer than their cases. They must
    not change settings of the whole process.

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
    """A suite of the package's tests with the tags NIGHTLY.

    Call it at the end of the BUILD file.

    Args:
      name: Name of the suite. `//:nightly` expects `nightly`.
    """
    native.test_suite(
        name = name,
        # Without this tag //... would contain the suite, and so its tests.
        tags = ["manual"],
        tests = [
            ":" + test
            for test, rule in native.existing_rules().items()
            if rule["kind"] == "py_test" and "nightly" in rule["tags"]
        ],
        visibility = ["//:__pkg__"],
    )
