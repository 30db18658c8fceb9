"""Stands in for what Bazel 4 would download for every build.

Bazel loads these three repositories even where only Python is built. The few
definitions that it uses of them are Bazel's own native rules, and no build here
measures coverage; so they are declared here, and nothing is fetched.
"""

def bazel_repositories():
    """Declares rules_cc, rules_java and remote_coverage_tools."""
    for name in ["rules_cc", "rules_java", "remote_coverage_tools"]:
        native.local_repository(
            name = name,
            path = "third_party/bazel/" + name,
        )
