"""An export as a build artifact."""

def _saved_model_impl(ctx):
    export_dir = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run(
        executable = ctx.executable.exporter,
        arguments = [
            "--export_dir=" + export_dir.path,
            "--verification=fast",
        ] + [
            ctx.expand_location(flag, ctx.attr.data)
            for flag in ctx.attr.flags
        ],
        inputs = ctx.files.data,
        outputs = [export_dir],
        mnemonic = "Export",
        progress_message = "Exporting %s" % ctx.label,
    )
    return [DefaultInfo(
        files = depset([export_dir]),
        runfiles = ctx.runfiles([export_dir]),
    )]

_saved_model = rule(
    doc = """Runs an exporter and keeps the SavedModel that it writes.

    It is exported again when the exporter, its flags or the Python packages
    change. A test that has it as `data` gets its path from
    `$(rootpath :NAME)`.
    """,
    implementation = _saved_model_impl,
    attrs = {
        "data": attr.label_list(
            doc = "Files that the flags name as $(location LABEL).",
            allow_files = True,
        ),
        "exporter": attr.label(
            doc = "A binary of this folder.",
            cfg = "exec",
            executable = True,
            mandatory = True,
        ),
        "flags": attr.string_list(
            doc = "Its flags, but for --export_dir; they may say --verification.",
        ),
    },
)

def saved_model(name, checked = ["."], **kwargs):
    """An export as a build artifact, and tests that it keeps all rules.

    Args:
      name: Of the artifact.
      checked: The directories in it that are SavedModels to be tested.
      **kwargs: Further attributes of the rule.
    """
    _saved_model(name = name, **kwargs)
    for directory in checked:
        part = "" if directory == "." else "_" + directory
        native.py_test(
            name = name + part + "_check_test",
            srcs = ["//exporters:check.py"],
            main = "//exporters:check.py",
            args = [
                "--saved_model_dir=$(rootpath :%s)/%s" % (name, directory),
                "--strict",
            ],
            data = [":" + name],
            deps = ["//exporters:check_lib"],
        )
