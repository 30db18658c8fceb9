"""The Python packages: locked environments, each installed once where it is used."""

_PYTHONS = ["python3.12", "python3.11", "python3", "python"]

# uv does not read pip's configuration. These are the settings of pip that say
# where packages come from, and what uv calls them.
_UV_NAME_OF_PIP_SETTING = {
    "cert": "SSL_CERT_FILE",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "no-index": "UV_NO_INDEX",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}

def _first_python(ctx, arguments):
    """Returns the path of the first Python that runs `arguments`, or None."""
    named = ctx.os.environ.get("PYTHON_BIN_PATH")
    for name in [named] if named else _PYTHONS:
        path = name if "/" in name else ctx.which(name)
        if path and ctx.execute([path] + arguments).return_code == 0:
            return path
    return None

def _run(ctx, arguments, doing, environment = {}):
    """Runs a command that takes minutes; fails with all that it printed."""
    ctx.report_progress(doing)
    result = ctx.execute(arguments, timeout = 3600, environment = environment)
    if result.return_code:
        fail("{} failed:\n{}\n{}".format(doing, result.stdout, result.stderr))
    return result.stdout

def _python_with_pip(ctx):
    python = _first_python(ctx, ["-m", "pip", "--version"])
    if not python:
        fail("No Python with pip found ({}). Install pip, on Debian with: apt-get install python3-pip".format(", ".join(_PYTHONS)))
    return python

def _wheel_impl(ctx):
    _run(
        ctx,
        [
            _python_with_pip(ctx),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--target=.",
            "--requirement",
            ctx.path(ctx.attr.requirements),
        ],
        "Installing " + ctx.name,
        {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"},
    )
    ctx.file("BUILD", "exports_files([\"{}\"])\n".format(ctx.attr.file))

wheel = repository_rule(
    doc = """Installs one wheel, whose hash is pinned, with pip, for one file.

    pip knows by itself how this machine reaches its packages. It is fetched when
    the file is needed.
    """,
    implementation = _wheel_impl,
    attrs = {
        "file": attr.string(
            doc = "What of it is used.",
            mandatory = True,
        ),
        "requirements": attr.label(mandatory = True),
    },
    environ = ["PYTHON_BIN_PATH"],
)

def _index_settings(ctx):
    """Returns pip's settings (files and variables) as variables for uv."""
    settings = {}
    listed = _run(
        ctx,
        [_python_with_pip(ctx), "-m", "pip", "config", "list"],
        "Reading pip's configuration",
    )
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        uv_name = _UV_NAME_OF_PIP_SETTING.get(name.rpartition(".")[2])
        if uv_name and uv_name not in ctx.os.environ:
            # pip prints a Python literal; several values stand on lines of
            # their own in its files and are separated by spaces in variables.
            values = value.strip("'").replace("\\n", " ").split(" ")
            separator = "," if uv_name == "UV_FIND_LINKS" else " "
            settings[uv_name] = separator.join([v for v in values if v])
    return settings

def _locked_packages(lock):
    return [
        line.partition("==")[0]
        for line in lock.splitlines()
        if "==" in line and line[0].isalnum()
    ]

_RUNTIME = """load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
    visibility = ["//visibility:public"],
)
"""

def _python(ctx):
    python = _first_python(
        ctx,
        ["-c", "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))"],
    )
    if not python:
        fail("Python 3.11 or 3.12 is needed, and none was found ({}). Install it, or name it in PYTHON_BIN_PATH.".format(", ".join(_PYTHONS)))
    return python

def _install(ctx, python, lock, arguments):
    """Installs all packages of a lock with uv."""
    _run(
        ctx,
        [
            ctx.path(ctx.attr.uv),
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--compile-bytecode",
            # Hashes say what is right, so any index may provide it.
            "--index-strategy=unsafe-best-match",
            # The lock is all there is; that of TPUs lacks, on purpose, what its
            # packages say that they need.
            "--no-deps",
            "--require-hashes",
            "--requirement",
            lock,
        ] + arguments,
        "Installing {} Python packages".format(len(_locked_packages(ctx.read(lock)))),
        _index_settings(ctx),
    )

# Models and graphs are many objects that stay: with Python's own thresholds a
# seventh of a test's CPU time goes into garbage collections that find nothing.
_COLLECT_RARELY = "import gc; gc.set_threshold(100_000, 20, 100)\n"

def _python_environment_impl(ctx):
    python = _python(ctx)
    if not ctx.path("/usr/bin/python").exists and not ctx.path("/usr/local/bin/python").exists:
        fail("Bazel starts Python programs with `python`, which this machine lacks. Install it, on Debian with: apt-get install python-is-python3")

    environment = ctx.path("environment")
    interpreter = environment.get_child("bin").get_child("python")
    _run(
        ctx,
        [ctx.path(ctx.attr.uv), "venv", "--quiet", "--python", python, environment],
        "Making a Python environment",
    )
    _install(ctx, interpreter, ctx.path(ctx.attr.lock), [])
    site_packages = _run(
        ctx,
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        "Looking for the folder of the packages",
    ).strip()
    ctx.file(site_packages + "/garbage_collection.pth", _COLLECT_RARELY)
    ctx.file("BUILD", _RUNTIME.format(interpreter = interpreter))

python_environment = repository_rule(
    doc = """Installs a lock into one environment: `@NAME//:runtime_pair`.

    It is fetched when a toolchain that names it is chosen.
    """,
    implementation = _python_environment_impl,
    attrs = {
        "lock": attr.label(
            doc = "A requirements file with versions and hashes.",
            mandatory = True,
        ),
        "uv": attr.label(mandatory = True),
    },
    environ = ["PYTHON_BIN_PATH"],
)

_PACKAGE = """
py_library(
    name = "{name}",
    data = [":lock"],
)
"""

_LOCK = """package(default_visibility = ["//visibility:public"])

filegroup(
    name = "lock",
    srcs = select({{
        {choices}
    }}),
)
"""

def _python_packages_impl(ctx):
    choices = [
        "\"@{}\": [\"@{}\"],".format(constraint, lock)
        for lock, constraint in ctx.attr.locks.items()
    ]

    # Which packages there are, the first lock says.
    packages = _locked_packages(ctx.read(ctx.attr.locks.keys()[0]))
    ctx.file("BUILD", _LOCK.format(choices = "\n        ".join(choices)) + "".join([
        _PACKAGE.format(name = name)
        # A package with markers is in the lock once for each of them.
        for name in {name: None for name in packages}
    ]))

python_packages = repository_rule(
    doc = """Names the packages that targets use: `@NAME//:PACKAGE`.

    Each is a py_library that brings no files but the lock: the interpreter finds
    the packages, and whatever depends on one is built and tested anew when the
    lock of its accelerator changes. What the first lock lacks is refused.
    """,
    implementation = _python_packages_impl,
    attrs = {
        "locks": attr.label_keyed_string_dict(
            doc = "Requirements files, and the constraint value of each.",
            mandatory = True,
        ),
    },
)

_EXTRA = """
py_library(
    name = "{name}",
    data = [
        "extras.txt",
        "site",
    ],
    imports = ["site"],
)
"""

def _python_extras_impl(ctx):
    base = _locked_packages(ctx.read(ctx.attr.base))
    extra, is_extra = [], False
    for line in ctx.read(ctx.attr.lock).splitlines():
        if "==" in line and line[0].isalnum():
            is_extra = line.partition("==")[0] not in base
        if is_extra:
            extra.append(line)
    lock = "\n".join(extra) + "\n"
    ctx.file("extras.txt", lock)
    _install(ctx, _python(ctx), ctx.path("extras.txt"), ["--target", ctx.path("site")])
    ctx.file("BUILD", "package(default_visibility = [\"//visibility:public\"])\n" + "".join([
        _EXTRA.format(name = name)
        # A package with markers is in the lock once for each of them.
        for name in {name: None for name in _locked_packages(lock)}
    ]))

python_extras = repository_rule(
    doc = """Installs packages for programs of one group: `@NAME//:PACKAGE`.

    They are those of a lock that the environment of all programs lacks, and
    stand in one directory, which a program that depends on one of them has on
    its path: a single link in its runfiles. It is fetched when such a program is
    built.
    """,
    implementation = _python_extras_impl,
    attrs = {
        "base": attr.label(
            doc = "The lock of all programs, which the other was resolved beside.",
            mandatory = True,
        ),
        "lock": attr.label(
            doc = "A requirements file with versions and hashes.",
            mandatory = True,
        ),
        "uv": attr.label(mandatory = True),
    },
    environ = ["PYTHON_BIN_PATH"],
)
