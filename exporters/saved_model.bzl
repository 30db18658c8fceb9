"""What programs of this folder write, as build artifacts."""

def _directory_impl(ctx):
    directory = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run(
        executable = ctx.executable.program,
        arguments = [ctx.attr.directory_flag + "=" + directory.path] + [
            ctx.expand_location(flag, ctx.attr.data)
            for flag in ctx.attr.flags
        ],
        inputs = ctx.files.data,
        outputs = [directory],
        mnemonic = "Export",
        progress_message = "Making %s" % ctx.label,
    )
    return [DefaultInfo(
        files = depset([directory]),
        runfiles = ctx.runfiles([directory]),
    )]

_directory = rule(
    doc = """Runs a program and keeps the directory that it writes.

    It runs again when the program, its flags or the Python packages change.""",
    implementation = _directory_impl,
    attrs = {
        "data": attr.label_list(
            doc = "Files that the flags name as $(location LABEL).",
            allow_files = True,
        ),
        "directory_flag": attr.string(
            doc = "The flag that says what to write.",
            mandatory = True,
        ),
        "flags": attr.string_list(doc = "The other flags."),
        "program": attr.label(
            doc = "A binary of this folder.",
            cfg = "exec",
            executable = True,
            mandatory = True,
        ),
    },
)

def checkpoint(name, program, **kwargs):
    """What a program has trained, apart from the exporter.

    So it is not trained again when the exporter changes.

    Args:
      name: Of the artifact.
      program: Trains, and keeps checkpoints at --checkpoint_dir.
      **kwargs: Further attributes of the rule.
    """
    _directory(
        name = name,
        directory_flag = "--checkpoint_dir",
        program = program,
        **kwargs
    )

def saved_model(
        name,
        exporter,
        flags,
        checked = ["."],
        excepted_rules = [],
        tags = [],
        **kwargs):
    """An export as a build artifact, and tests that it keeps all rules.

    A test with the export as `data` gets its path from `$(rootpath :NAME)`.

    Args:
      name: The name of the artifact.
      exporter: The program that makes the export.
      flags: Its flags without --export_dir. Without --verification they get
        --verification=fast.
      checked: The directories in the export that are SavedModels to check.
      excepted_rules: Rules that the export cannot keep: a list for all of
        `checked`, or a dict of lists by directory. A rule that is not broken
        fails the test.
      tags: Tags of the artifact and of its tests.
      **kwargs: Further attributes of the rule.
    """
    _directory(
        name = name,
        directory_flag = "--export_dir",
        flags = ["--verification=fast"] + flags,
        program = exporter,
        tags = tags,
        **kwargs
    )
    for directory in checked:
        part = "" if directory == "." else "_" + directory
        excepted = excepted_rules
        if type(excepted) == "dict":
            excepted = excepted.get(directory, [])
        native.py_test(
            name = name + part + "_check_test",
            srcs = ["//exporters:check.py"],
            main = "//exporters:check.py",
            args = [
                "--saved_model_dir=$(rootpath :%s)/%s" % (name, directory),
                "--strict",
                # In Bazel's sandbox files are links, and it may be slow.
                "--follow_links",
                "--seconds=36000",
                "--excepted_rules=" + ",".join(excepted),
            ],
            data = [":" + name],
            tags = tags,
            deps = ["//exporters:check_lib"],
        )

        # Makes it again, which takes as long as it took. Run them by name.
        native.py_test(
            name = name + part + "_rebuild_test",
            srcs = ["//exporters:rebuild_test.py"],
            main = "//exporters:rebuild_test.py",
            args = [
                "--saved_model_dir=$(rootpath :%s)/%s" % (name, directory),
            ] + [
                flag.replace("--", "--input=", 1).replace("$(location", "$(rootpath")
                for flag in flags
                if "$(location" in flag
            ],
            data = [":" + name] + kwargs.get("data", []),
            tags = ["manual"],
            deps = [
                exporter,
                "//exporters:rebuild_test_lib",
            ],
        )
