"""Packs a program into one file, which needs only Python and its packages."""

# Unpacks all files, because programs start some of them as processes.
_MAIN = """import runpy
import sys
import tempfile
import zipfile

with tempfile.TemporaryDirectory() as directory:
  zipfile.ZipFile(sys.path[0]).extractall(directory)
  sys.path[0] = directory
  runpy.run_path(directory + "/{program}", run_name="__main__")
"""

def _python_zip_impl(ctx):
    main = ctx.actions.declare_file(ctx.label.name + "_main.py")
    label = ctx.attr.program.label
    ctx.actions.write(
        main,
        _MAIN.format(program = "{}/{}.py".format(label.package, label.name)),
    )
    zip = ctx.actions.declare_file(ctx.label.name + ".zip")

    # Sources, and data such as pages and the lock. Files of other repositories
    # come from the packages in the lock.
    files = [
        file
        for file in ctx.attr.program[DefaultInfo].default_runfiles.files.to_list()
        if file.is_source and not file.short_path.startswith("../")
    ]
    ctx.actions.run(
        executable = ctx.executable._zipper,
        arguments = ["cC", zip.path, "__main__.py=" + main.path] + [
            "{}={}".format(file.short_path, file.path)
            for file in files
        ],
        inputs = files + [main],
        outputs = [zip],
        mnemonic = "PythonZip",
    )
    return [DefaultInfo(files = depset([zip]))]

python_zip = rule(
    doc = """`NAME.zip`, for `python NAME.zip --flags`.

    Bazel's own --build_python_zip contains the path of the interpreter on the
    machine that built it.
    """,
    implementation = _python_zip_impl,
    attrs = {
        "program": attr.label(
            doc = "A py_binary whose main file has its name.",
            mandatory = True,
        ),
        "_zipper": attr.label(
            cfg = "exec",
            default = "@bazel_tools//tools/zip:zipper",
            executable = True,
        ),
    },
)
