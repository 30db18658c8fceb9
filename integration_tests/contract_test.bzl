"""The contract of reusable SavedModels, as a test of an export."""

def contract_test(name, saved_model, path = ""):
    """Checks an export with contract_test.py.

    Args:
      name: Name of the test.
      saved_model: A target of the rule `saved_model`.
      path: Where in it the export is, such as "/encoder".
    """
    native.py_test(
        name = name,
        srcs = ["contract_test.py"],
        main = "contract_test.py",
        args = ["--saved_model_dir=$(rootpath %s)%s" % (saved_model, path)],
        data = [saved_model],
        deps = [
            "@pypi//:absl-py",
            "@pypi//:tensorflow",
            "@pypi//:tensorflow-hub",
            "@pypi//:tf-keras",
        ],
    )
