"""The tests of a program that uses an export, one for each accelerator."""

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

def use_test(name, program, export, program_args, min_accuracy, **kwargs):
    """A test on the CPU, and for each accelerator a run of the program on it.

    Bazel skips those of other accelerators than --config names. Where the one
    that it names is not there, the program says so, and its test fails.

    Args:
      name: Of the test on the CPU, `NAME.py`; `NAME_gpu` and `NAME_tpu` are the
        others.
      program: The program.
      export: The export that it fine-tunes on an accelerator.
      program_args: Its arguments there.
      min_accuracy: What it must reach there.
      **kwargs: Attributes of the test on the CPU.
    """
    native.py_test(
        name = name,
        srcs = [name + ".py"],
        target_compatible_with = ["//third_party/python:cpu"],
        **kwargs
    )
    for accelerator, flags in _FLAGS.items():
        native.py_test(
            name = name + "_" + accelerator,
            size = "medium",
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
