"""Publishes packages, and loads or checks the published models.

Fake services on this machine replace the real ones.
"""

import contextlib
import importlib
import io
import os
import pathlib
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
import yaml

from distribution import buckets
from distribution import errors
from exporters.packages import archive
from exporters.packages import fakes
from exporters.packages import hubs
from tools import nightly

_REPO = "example/model"
_HANDLE = "example/model/tensorFlow2/small"


def _save_model(directory: str) -> None:
  kernel = tf.Variable(tf.random.normal([200, 200]))
  root = tf.train.Checkpoint()
  root.__call__ = tf.function(
    lambda x: x @ kernel, input_signature=[tf.TensorSpec([None, 200])]
  )
  root.variables = root.trainable_variables = [kernel]
  root.regularization_losses = []
  tf.saved_model.save(root, directory)


class PublishTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.services = cls.enterClassContext(hubs.serving())
    cls.enterClassContext(
      mock.patch.dict(
        os.environ,
        {
          "HF_ENDPOINT": cls.services.url,
          "HF_HOME": f"{cls.folder}/hf",
          "HF_HUB_DISABLE_XET": "1",
          "HF_HUB_DISABLE_PROGRESS_BARS": "1",
          "HF_TOKEN": "hf_token",
          "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
          "KAGGLE_CONFIG_DIR": cls.folder,
          "KAGGLE_KEY": "key",
          "KAGGLE_USERNAME": "example",
          "TFHUB_CACHE_DIR": f"{cls.folder}/tfhub",
        },
      )
    )
    # Import the clients here, because they read the environment at the import.
    cls.huggingface_hub = importlib.import_module("huggingface_hub")
    cls.package = importlib.import_module("exporters.package")
    cls.publish = importlib.import_module("exporters.publish")
    cls.checking = importlib.import_module("exporters.packages.checking")
    kaggle_env = importlib.import_module("kagglesdk.kaggle_env")
    cls.enterClassContext(
      mock.patch.dict(
        kaggle_env._env_to_endpoint,
        {kaggle_env.KaggleEnv.LOCAL: cls.services.url},
      )
    )
    cls.model = f"{cls.folder}/model"
    _save_model(cls.model)
    fingerprint = tf.saved_model.experimental.read_fingerprint(cls.model)
    fakes.write_report(cls.model, fingerprint.singleprint())
    cls.private, cls.public = fakes.write_key_pair(cls.folder)
    cls.packaged = f"{cls.folder}/package"
    cls.package.package(
      saved_model_dir=cls.model,
      output_dir=cls.packaged,
      card_file=fakes.write_card(cls.folder),
      signing_key=cls.private,
    )

  def publish_at(self, to: str, **kwargs: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
      self.publish.publish(
        **{
          "package": self.packaged,
          "to": to,
          "public_key": self.public,
          "audit": False,
          **kwargs,
        }
      )
    return output.getvalue()

  def check(self, directory: str) -> None:
    self.checking.check(directory, public_key=self.public, audit=False)

  def write(self, files: dict[str, bytes]) -> str:
    directory = self.create_tempdir().full_path
    for name, data in files.items():
      path = pathlib.Path(directory, name)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
    return directory

  def test_a_directory_and_a_web_server(self):
    target = f"{self.create_tempdir().full_path}/published"
    self.publish_at(f"file://{target}", audit=True)
    self.check(target)
    with self.assertRaisesRegex(errors.InputError, "--overwrite"):
      self.publish_at(f"file://{target}")
    names = os.listdir(target)
    published = {n: pathlib.Path(target, n).read_bytes() for n in names}
    self.services.files["/model.tar.gz"] = published.pop("model.tar.gz")
    url = f"{self.services.url}/model.tar.gz"
    layer = hub.KerasLayer(url, trainable=True)
    x = tf.random.normal([3, 200])
    expected = tf.saved_model.load(self.model)(x).numpy()
    self.assert_equal(layer(x).numpy(), expected)
    # Consumers can fine-tune the layer.
    model = tf_keras.Sequential([layer, tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, tf.ones([3, 1]), verbose=0)
    self.assertLen(model.trainable_variables, 3)
    # Without the server, the model comes from the cache.
    self.services.files.clear()
    resolved = hub.resolve(url)
    again = tf.saved_model.load(resolved)
    self.assert_equal(again(x).numpy(), expected)
    unpacked = {
      str(path.relative_to(resolved)): path.read_bytes()
      for path in pathlib.Path(resolved).rglob("*")
      if path.is_file()
    }
    self.check(self.write(published | unpacked))

  def test_hugging_face(self):
    self.publish_at(f"hf://{_REPO}")
    (result,) = yaml.safe_load(
      self.services.repos[_REPO][".eval_results/results.yaml"]
    )
    (entry,) = self.huggingface_hub.parse_eval_result_entries([result])
    self.assertEqual(
      (entry.dataset_id, entry.task_id, entry.value),
      ("example/digits", "default", 0.9875),
    )
    self.services.repos[_REPO]["stale"] = b""
    self.publish_at(f"hf://{_REPO}")
    self.assertNotIn("stale", self.services.repos[_REPO])
    self.services.repos["example/other"] = {"theirs.py": b""}
    with self.assertRaisesRegex(errors.InputError, "other files.*theirs.py"):
      self.publish_at("hf://example/other")
    card = self.services.repos[_REPO]["README.md"].decode()
    metadata = self.huggingface_hub.ModelCard(card).data
    self.assertEqual(metadata.library_name, "tf-keras")
    self.assertEqual(metadata.license, "apache-2.0")
    (result,) = metadata.eval_results
    self.assertEqual(
      (result.metric_type, result.metric_value), ("accuracy", 0.9875)
    )
    fetched = self.huggingface_hub.snapshot_download(_REPO)
    self.check(fetched)
    self.assertLen(tf.saved_model.load(fetched).variables, 1)

  def test_kaggle(self):
    self.publish_at(f"kaggle://{_HANDLE}")
    calls = dict(self.services.calls)
    created = calls["CreateModelInstance"]["body"]
    self.assertEqual(created["licenseName"], "Apache 2.0")
    files = {}

    def collect(prefix: str, directory: dict[str, Any]) -> None:
      for file in directory.get("files", []):
        name = file["token"].partition("/")[2]
        files[prefix + name] = self.services.blobs[file["token"]]
      for inner in directory.get("directories", []):
        collect(f"{prefix}{inner['name']}/", inner)

    collect("", created)
    self.check(self.write(files))
    self.assertIn("Everything else.", calls["UpdateModel"]["description"])
    self.assertEqual(calls["UpdateModelInstance"]["overview"], "Tests.")
    self.assertNotIn("isPrivate", calls["UpdateModel"]["updateMask"])

  @nightly.only
  def test_a_bucket(self):
    self.enterContext(buckets.serving())
    url = "gs://bucket/models/example"
    copy = tf.io.gfile.copy

    def interrupted(source: str, target: str, **kwargs: Any) -> None:
      if target.endswith("/manifest.json"):
        raise tf.errors.AbortedError(None, None, "The network is gone.")
      copy(source, target, **kwargs)

    with (
      mock.patch.object(tf.io.gfile, "copy", interrupted),
      self.assertRaisesRegex(errors.InputError, "The network is gone"),
    ):
      self.publish_at(url)
    self.assertTrue(tf.io.gfile.exists(f"{url}/model.tar.gz"))
    self.assertFalse(tf.io.gfile.exists(f"{url}/manifest.json"))
    self.publish_at(url)
    with self.assertRaisesRegex(errors.InputError, "--overwrite"):
      self.publish_at(url)
    target = self.create_tempdir().full_path
    for name in tf.io.gfile.listdir(url):
      tf.io.gfile.copy(f"{url}/{name}", f"{target}/{name}")
    self.check(target)
    resolved = hub.resolve(f"{url}/model.tar.gz")
    self.assertLen(tf.saved_model.load(resolved).variables, 1)
    # In the load format UNCOMPRESSED, a web server names the bucket with the
    # files.
    for name, path in archive.files_in(self.model).items():
      tf.io.gfile.copy(path, f"gs://bucket/files/{name}")
    self.services.locations["/model"] = "gs://bucket/files"
    with mock.patch.dict(
      os.environ, {"TFHUB_MODEL_LOAD_FORMAT": "UNCOMPRESSED"}
    ):
      layer = hub.KerasLayer(f"{self.services.url}/model", trainable=True)
    self.assertLen(layer.trainable_weights, 1)

  def test_nothing_is_published_in_a_dry_run(self):
    output = self.publish_at("hf://example/dry", dry_run=True)
    self.assertRegex(output, r"\d  hf://example/dry/saved_model.pb\n")
    self.assertNotIn("example/dry", self.services.repos)

  @parameterized.named_parameters(
    ("unlicensed", {"card_file": None}, "has no license"),
    ("unverified", {"report": False}, "has not verified the model"),
    ("unsigned", {"signing_key": None}, "not signed"),
    ("nowhere", {"to": "s3://bucket/x"}, "--to=s3://bucket/x is none of"),
    ("half_a_place", {"to": "kaggle://example/model"}, "is none of"),
  )
  def test_it_refuses(self, change: dict[str, Any], message: str):
    target = f"file://{self.create_tempdir().full_path}/published"
    to, report = change.pop("to", target), change.pop("report", True)
    files = self.create_tempdir().full_path
    fakes.write_model(files)
    if not report:
      os.remove(f"{files}/assets.extra/verification.json")
    packaged = f"{self.create_tempdir().full_path}/package"
    self.package.package(
      **{
        "saved_model_dir": files,
        "output_dir": packaged,
        "card_file": fakes.write_card(self.folder),
        "signing_key": self.private,
        **change,
      }
    )
    with self.assertRaisesRegex(errors.InputError, message):
      self.publish_at(to, package=packaged)
    self.assertFalse(os.path.exists(target.removeprefix("file://")))

  def assert_equal(self, a, b):
    self.assertEqual(a.tolist(), b.tolist())


if __name__ == "__main__":
  absltest.main()
