"""The tests of a program that uses an export, one for each accelerator."""

load("//tools:tests.bzl", "py_test_with_nightly_cases")

_FLAGS = {
    "gpu": [
        "--strategy=mirrored",
        "--num_gpus=1",
        "--mixed_precision=mixed_float16",
    ],
    "tpu": [
        "--strategy=tpu",
        "--tpu=local",
        "--mixed_precision=mixed_bfloat16",
    ],
}

def use_test(
        name,
        program,
        export,
        program_args,
        min_accuracy,
        main = None,
        **kwargs):
    """Defines a test on the CPU, and a test of the program on each accelerator.

    Bazel skips the tests of accelerators that --config does not name. If the
    accelerator that it names is missing, the program and its test fail.

    Args:
      name: Name of the test on the CPU. The others are `NAME_gpu` and
        `NAME_tpu`.
      program: The program.
      export: The export that the program fine-tunes on an accelerator.
      program_args: Arguments of the program on an accelerator.
      min_accuracy: The accuracy, or other test metric, that the program must
        exceed on an accelerator.
      main: Source of the test on the CPU; None: `NAME.py`.
      **kwargs: Attributes of the test on the CPU.
    """
    py_test_with_nightly_cases(
        name = name,
        srcs = [main or name + ".py"],
        target_compatible_with = ["//third_party/python:cpu"],
        **kwargs
    )
    for accelerator, flags in _FLAGS.items():
        native.py_test(
            name = name + "_" + accelerator,
            srcs = ["accelerator_test.py"],
            args = [
                "--min_accuracy=%s" % min_accuracy,
                "--",
                "$(rootpath %s)" % program,
            ] + program_args + flags,
            data = [
                program,
                export,
            ],
            main = "accelerator_test.py",
            tags = [accelerator],
            target_compatible_with = ["//third_party/python:" + accelerator],
            deps = [
                "@pypi//:absl-py",
                "@pypi//:tensorflow",
                "@pypi//:tensorflow-text",
            ],
        )

def use_image_classifier(name, min_accuracy, flags, tags):
    """Defines the program `use_NAME` of an image classifier, and its tests.

    The tests fine-tune //exporters:NAME_digits_0_4, and compare the result with
    that of //exporters:NAME_untrained.

    Args:
      name: Name of the architecture.
      min_accuracy: The accuracy that retraining must exceed.
      flags: Flags of use_image_classifier_test.py, which say what holds for
        the architecture.
      tags: Tags of the test on the CPU.
    """
    program = "use_" + name
    pretrained = "//exporters:%s_digits_0_4" % name
    untrained = "//exporters:%s_untrained" % name
    native.py_binary(
        name = program,
        srcs = [program + ".py"],
        visibility = ["//integration_tests:__subpackages__"],
        deps = [":image_fine_tuning"],
    )
    use_test(
        name = program + "_test",
        args = [
            "--pretrained=$(rootpath %s)" % pretrained,
            "--untrained=$(rootpath %s)" % untrained,
            "--min_accuracy=" + min_accuracy,
        ] + flags,
        data = [
            pretrained,
            untrained,
        ],
        export = pretrained,
        main = "use_image_classifier_test.py",
        min_accuracy = min_accuracy,
        program = ":" + program,
        program_args = [
            "--saved_model_dir=$(rootpath %s)" % pretrained,
            "--retrain",
        ],
        tags = tags,
        deps = [
            ":image_fine_tuning",
            "//data:images",
            "@pypi//:absl-py",
            "@pypi//:numpy",
            "@pypi//:tensorflow",
            "@pypi//:tf-keras",
        ],
    )
