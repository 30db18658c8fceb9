"""The exporter of an architecture of image classifiers, and its tests."""

load("//tools:tests.bzl", "NIGHTLY", "py_test_with_nightly_cases")
load(":saved_model.bzl", "saved_model")

def image_classifier(
        name,
        endpoints,
        excepted_rules,
        hyperparameters,
        like,
        nightly,
        variant,
        train_on = "digits_0_4"):
    """A program, what it exports, and tests of the program and of the exports.

    The feature vectors, with endpoints, are NAME_digits_0_4, trained on the
    first five digits or, as its name then says, on other data, and
    NAME_untrained, with initial weights.

    Args:
      name: Of the architecture, and of the program.
      endpoints: As //models/vision:architectures.bzl has it, and so what
        follows.
      excepted_rules: See there.
      hyperparameters: See there.
      like: See there.
      nightly: See there.
      variant: See there.
      train_on: The data.
    """
    native.py_binary(
        name = name,
        srcs = [name + ".py"],
        visibility = ["//integration_tests:__subpackages__"],
        deps = [
            ":image_classifier",
            "//models/vision:" + name,
        ],
    )
    tags = NIGHTLY if nightly else []
    flags = ["--train_on=" + train_on]
    if endpoints:
        flags.append("--endpoints=" + endpoints)
    for export, more_flags in {
        "%s_%s" % (name, train_on): [],
        name + "_untrained": ["--epochs=0", "--verification=off"],
    }.items():
        saved_model(
            name = export,
            checked = [] if more_flags else ["."],
            excepted_rules = excepted_rules,
            exporter = ":" + name,
            flags = flags + more_flags,
            tags = tags,
            visibility = ["//integration_tests:__subpackages__"],
        )

    # Its exit status says whether a train step compiles for a TPU. In other
    # tests, compile_for_tpu_test compiles one of an encoder.
    native.py_test(
        name = name + "_compile_for_tpu_test",
        srcs = ["compile_for_tpu.py"],
        args = [
            "--libtpu=$(rootpath @libtpu//:libtpu/libtpu.so)",
            "--saved_model_dir=$(rootpath :%s_%s)" % (name, train_on),
            "--follow_links",  # Bazel's sandbox has some.
            "--topology=v5e:2x2",
            "--image_size=64",
            "--seq_length=8",
        ],
        data = [
            ":%s_%s" % (name, train_on),
            "@libtpu//:libtpu/libtpu.so",
        ],
        main = "compile_for_tpu.py",
        tags = NIGHTLY,
        deps = [":compile_for_tpu"],
    )
    py_test_with_nightly_cases(
        name = name + "_test",
        srcs = ["image_architecture_test.py"],
        args = [
            "--architecture=" + name,
            "--excepted_rules=" + ",".join(excepted_rules),
            "--hyperparameters=" + hyperparameters,
            "--variant=" + variant,
            # Nightly tests verify all in full.
            "--verification=" + ("fast" if nightly else "full"),
        ],
        nightly_args = ["--verification=full"],
        tags = NIGHTLY if like else [],
        deps = [
            ":check_lib",
            ":classifier_training",
            ":image_classifier",
            "//exporters/conformance:copying",
            "//exporters/reusable:exporting",
            "//models/vision:" + name,
            "//models/vision:image_classification",
            "@pypi//:absl-py",
            "@pypi//:numpy",
            "@pypi//:tensorflow",
            "@pypi//:tf-keras",
            "@pypi//:tf-models-official",
        ],
    )
