"""Restores image classifiers from the files of other programs.

`peers/image_goldens.py` wrote the outputs of transformers and timm.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
import h5py
import numpy as np
from safetensors import numpy as safetensors_numpy
import tensorflow as tf
import tf_keras

from exporters import classifier_training
from exporters import image_classifier
from exporters.peers import image_goldens
from exporters.reusable import checkpoints
from exporters.reusable import errors
from exporters.reusable import restore_report
from exporters.reusable import weight_tables
from models.vision import deit
from models.vision import efficientnet
from models.vision import image_classification
from models.vision import mobilenet
from models.vision import resnet
from models.vision import vit
from tools import nightly

_GOLDENS = json.loads(
  pathlib.Path("exporters/peers/image_goldens.json").read_text()
)
_TINY = (
  "task.model.backbone.resnet.model_id=10,"
  "task.model.backbone.resnet.depth_multiplier=0.25,task.model.num_classes=3"
)
_BUILT = {}  # Models that `assert_refused` has built.
_ELSEWHERE = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_ARCHITECTURES = {
  module.ARCHITECTURE.name: module.ARCHITECTURE
  for module in (deit, efficientnet, mobilenet, resnet, vit)
}


def _restored(architecture, path, export_type="all", **config):
  """Restores a classifier; returns its setup, its pieces and the output."""
  with contextlib.redirect_stdout(io.StringIO()) as stdout:
    setup, pieces, _ = image_classifier.restored(
      image_classifier.Config(
        architecture=_ARCHITECTURES[architecture],
        export_type=export_type,
        **config,
      ),
      classifier_training.Weights(checkpoint_path=str(path)),
    )
  return setup, pieces, stdout.getvalue()


def _shake(model):
  """Adds noise to all variables, so that a swap of two changes outputs."""
  for i, variable in enumerate(model.variables):
    if variable.dtype.is_floating:
      noise = tf.random.stateless_uniform(variable.shape, [i, 0])
      variable.assign(variable * (0.9 + 0.2 * noise) + 0.01 * noise)


def _save_tf1(path, arrays):
  """Writes a checkpoint that has variables by name, as in TensorFlow 1."""
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for name, array in arrays.items():
      tf.compat.v1.get_variable(name, initializer=tf.constant(array))
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, path, write_meta_graph=False)


def _write_tf1(path, images):
  """Computes a ResNet-50 by its formulas, and writes its weights.

  Returns:
    The probabilities for `images`.
  """
  random = np.random.default_rng(0)
  arrays = {
    "global_step": np.int64(7),
    "conv1/kernel/Momentum": np.zeros([7, 7, 3, 64], np.float32),
  }

  def variable(name, *shape, low=-0.5):
    arrays[name] = random.uniform(low, low + 1, shape).astype(np.float32)
    return arrays[name]

  def convolution(x, name, norm, filters, size=1, strides=1, padding="SAME"):
    shape = (size, size, x.shape[-1], filters)
    scale = (12 / (size * size * x.shape[-1])) ** 0.5
    kernel = variable(f"{name}/kernel", *shape) * scale
    arrays[f"{name}/kernel"] = kernel
    x = tf.nn.conv2d(x, kernel, strides, padding)
    gamma, beta = (variable(f"{norm}/{n}", filters) for n in ("gamma", "beta"))
    mean = variable(f"{norm}/moving_mean", filters)
    variance = variable(f"{norm}/moving_variance", filters, low=0.5)
    return gamma * (x - mean) / tf.sqrt(variance + 1e-5) + beta

  x = images * 255 - [[[[123.68, 116.78, 103.94]]]]
  x = tf.pad(tf.constant(x, tf.float32), [[0, 0], [3, 3], [3, 3], [0, 0]])
  x = convolution(x, "conv1", "bn_conv1", 64, 7, 2, "VALID")
  x = tf.nn.max_pool2d(tf.nn.relu(x), 3, 2, "SAME")
  for stage, filters, blocks in (
    (2, 64, 3),
    (3, 128, 4),
    (4, 256, 6),
    (5, 512, 3),
  ):
    for block in "abcdef"[:blocks]:
      strides = 2 if block == "a" and stage > 2 else 1
      names = [f"{p}{stage}{block}_branch" for p in ("res", "bn")]

      def branch(x, part, *sizes, names=names):
        return convolution(x, names[0] + part, names[1] + part, *sizes)

      y = tf.nn.relu(branch(x, "2a", filters))
      y = tf.nn.relu(branch(y, "2b", filters, 3, strides))
      y = branch(y, "2c", 4 * filters)
      if block == "a":
        x = branch(x, "1", 4 * filters, 1, strides)
      x = tf.nn.relu(x + y)
  x = tf.reduce_mean(x, [1, 2])
  kernel = variable("fc1000/kernel", 2048, 5) / 2048**0.5
  arrays["fc1000/kernel"] = kernel
  _save_tf1(path, arrays | {"fc1000/bias": np.zeros(5, np.float32)})
  return tf.nn.softmax(x @ kernel)


class ImageWeightsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.directory)

  def assert_refused(self, message, *arguments, **kwargs):
    build = image_classification.build

    def build_once(setup):
      key = f"{setup.name} {setup.task.as_dict()}"
      return _BUILT.get(key) or _BUILT.setdefault(key, build(setup))

    with (
      mock.patch.object(image_classification, "build", build_once),
      self.assertRaisesRegex(errors.ExportError, message) as raised,
    ):
      _restored(*arguments, **kwargs)
    self.assertNotIn("\n", str(raised.exception))

  def write(self, golden, change=lambda arrays: None):
    """Writes the directory that a golden describes; returns its path."""
    path = self.directory / "hub"
    path.mkdir(exist_ok=True)
    for name, content in golden["files"].items():
      (path / name).write_text(json.dumps(content))
    arrays = {
      name: image_goldens.values(name.rpartition(":")[2], shape)
      for name, shape in golden["shapes"].items()
    }
    change(arrays)
    files = {name.rpartition(":")[0] for name in arrays}
    for file in files - {""}:  # HDF5 files of keras-hub.
      with h5py.File(path / file, "w") as f:
        for name, array in arrays.items():
          if name.startswith(f"{file}:"):
            f[name.removeprefix(f"{file}:")] = array
    if files == {""}:
      safetensors_numpy.save_file(arrays, path / "model.safetensors")
    return path

  def test_outputs_of_transformers_and_timm(self):
    for name, golden in _GOLDENS.items():
      with self.subTest(name):
        kind = "all" if len(golden["outputs"]) == 2 else "feature_vector"
        exporter = golden["exporter"]
        setup, pieces, text = _restored(exporter, self.write(golden), kind)
        self.assertEqual(setup.input_shape, [*golden["size"], 3])
        self.assertIn("Restored ", text)
        images = image_goldens.images(*golden["size"])
        for output, expected in golden["outputs"].items():
          actual = pieces[output](images)[:, :64]
          largest = np.max(np.abs(expected))
          np.testing.assert_allclose(
            actual, expected, rtol=0, atol=1e-5 * largest
          )

  def test_tensors_must_match(self):
    for name, tensor in (
      ("ViTForImageClassification", "vit.embeddings.cls_token"),
      ("DeiTForImageClassificationWithTeacher", "deit.layernorm.bias"),
      ("tf_efficientnet_b0", "bn2.running_var"),
      (
        "keras_hub_vit",
        "model.weights.h5:layers/vi_t_encoder/layer_norm/vars/1",
      ),
    ):
      golden = _GOLDENS[name]
      for change, message in (
        (lambda x, n: x.pop(n), "it has no value, TENSOR, for "),
        (
          lambda x, n: x.update({n: np.ones([1, 1, 7], "f")}),
          r"it has \(1, 1, 7\) for TENSOR, which must be \(",
        ),
        (
          lambda x, n: x.update({f"{n}_2": x[n]}),
          r"it has TENSOR_2 \(.*\), which the model lacks",
        ),
      ):
        with self.subTest(message, name=name):
          path = self.write(golden, lambda x, c=change, n=tensor: c(x, n))
          message = message.replace("TENSOR", tensor.rpartition(":")[2])
          self.assert_refused(message, golden["exporter"], path)

  @nightly.only
  def test_files_of_keras(self):
    setup = image_classification.configure(resnet.ARCHITECTURE, None, [_TINY])
    model = image_classification.build(setup)
    _shake(model)
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    images = image_goldens.images(64, 64)
    normalized = (images - _ELSEWHERE[0]) / _ELSEWHERE[1]
    expected = model(normalized.astype(np.float32))
    for name in ("w.h5", "all.h5", "w.weights.h5", "all.keras"):
      with self.subTest(name):
        path = str(self.directory / name)
        (model.save if "all" in name else model.save_weights)(path)
        if name == "w.h5":
          # Keras itself loads layers in this order.
          with h5py.File(path, "a") as f:
            f.attrs["layer_names"] = f.attrs["layer_names"][::-1]
        _, pieces, text = _restored("resnet", path, overrides=[_TINY])
        np.testing.assert_allclose(
          pieces["classification"](images), expected, rtol=1e-5
        )
        self.assertEqual("optimizer" in text, name != "w.h5", text)
        if name != "all.keras":
          self.check_refusals_of_keras(path)
    # Feature vectors do not depend on the number of classes of the head.
    _, _, text = _restored(
      "resnet", path, "feature_vector", overrides=[_TINY[:-1] + "7"]
    )
    self.assertIn("metrics (4), not exported (2), optimizer", text)

  def check_refusals_of_keras(self, path):
    with h5py.File(path) as f:
      names: list[str] = []
      f.visit(names.append)
    of_first = re.compile("(.*/)?res_net.*/conv2d[^/]*/(kernel:0|vars/0)")
    name = min(filter(of_first.fullmatch, names), key=len)
    for change, message in (
      (
        lambda f: f.move(name, f"{name}x"),
        f"no value.* it has {name}x .*lacks",
      ),
      (lambda f: f.pop(f"{name}x"), "it has no value"),
      (
        lambda f: f.create_dataset(name, [3, 3], "f"),
        rf"has \(3, 3\) for {name}, which must be \(7, 7, 3, 16\)",
      ),
    ):
      with h5py.File(path, "a") as f:
        change(f)
      self.assert_refused(message, "resnet", path, overrides=[_TINY])

  def test_files_of_hdf5_that_are_not_of_keras(self):
    path = self.directory / "data.h5"
    for names, message in (
      ([], "without weights of Keras"),
      (["images"], "without weights of Keras"),
      (["model_weights/images"], "data.h5: .*layer_names"),
    ):
      with h5py.File(path, "w") as f:
        for name in names:
          f[name] = np.ones(3)
      self.assert_refused(message, "resnet", path)
    path.write_bytes(path.read_bytes()[:600])
    self.assert_refused("Cannot read .*data.h5, which may be", "resnet", path)

  @nightly.only
  def test_tf_keras_applications(self):
    images = image_goldens.images(64, 96)
    mean, variance = [0.4, 0.5, 0.6], [0.05, 0.06, 0.07]
    # Models with ImageNet's weights also divide by these factors.
    scale = np.sqrt([0.229, 0.224, 0.225])
    normalized = (images - mean) / np.sqrt(variance) / scale
    path = str(self.directory / "weights.h5")
    for architecture, name, first, inputs in (
      ("mobilenet", "MobileNetV2", "Conv1", 2 * images - 1),
      ("efficientnet", "EfficientNetB0", "stem_conv_pad", normalized),
    ):
      model = getattr(tf_keras.applications, name)(
        weights=None, classes=3, input_shape=(64, 96, 3)
      )
      _shake(model)
      if architecture == "efficientnet":
        for variable in model.get_layer("normalization").weights:
          values = {"mean:0": mean, "variance:0": variance}
          variable.assign(values.get(os.path.basename(variable.name), 0))
      model.save_weights(path)
      with h5py.File(path, "a") as f:
        layers = f.attrs["layer_names"].tolist()
        if architecture == "efficientnet":
          f.attrs["layer_names"] = np.array([*layers, "tf.math.multiply"], "S")
      rest = tf_keras.Model(model.get_layer(first).input, model.output)
      expected = rest(inputs.astype(np.float32))
      with self.subTest(architecture):
        _, pieces, _ = _restored(architecture, path)
        np.testing.assert_allclose(
          tf.nn.softmax(pieces["classification"](images)), expected, atol=1e-5
        )
        with h5py.File(path, "a") as f:
          f["predictions/predictions"].move("bias:0", "bias_2:0")
        self.assert_refused(
          r"no value, predictions/bias, .* it has \S*bias_2:0 \(3,\), which",
          architecture,
          path,
        )
    self.assert_refused(
      "an EfficientNet; //exporters:efficientnet exports it", "resnet", path
    )

  def test_variables_of_an_export(self):
    overrides = {"experiment": "resnet_imagenet", "overrides": [_TINY]}
    setup = image_classification.configure(resnet.ARCHITECTURE, None, [_TINY])
    model = image_classification.build(setup)
    _shake(model)
    piece = image_classification.cut(setup, model, ["feature_vector"])
    path = self.directory / "export"
    tf.saved_model.save(tf.train.Checkpoint(variables=piece.variables), path)
    images = image_goldens.images(64, 64)
    _, pieces, _ = _restored("resnet", path, "feature_vector", **overrides)
    np.testing.assert_allclose(
      pieces["feature_vector"](images), piece(images), rtol=1e-5
    )
    self.assert_refused(
      "no value.* for dense/kernel", "resnet", path, **overrides
    )

  def test_report(self):
    path = self.write(
      _GOLDENS["ViTForImageClassification"],
      lambda x: x.update({"decoder.<b>": np.ones(2, "f")}),
    )
    with mock.patch.object(weight_tables, "restores", []):
      _restored("vit", path, "feature_vector")
      files = {}
      for ending in ("json", "html", "txt"):
        file = self.directory / f"report.{ending}"
        restore_report.write(str(file))
        files[ending] = file.read_text()
      with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        self.assertRaises(SystemExit),
      ):
        restore_report.write("-")
    self.assertEqual(stdout.getvalue(), files["txt"])
    (report,) = json.loads(files["json"])
    self.assertLen(report["restored"], 38)
    self.assertIn(
      {
        "tensor": "patches/kernel",
        "source": "vit.embeddings.patch_embeddings.projection.weight",
        "through": "transpose (2, 3, 1, 0)",
        "shape": [8, 8, 3, 32],
      },
      report["restored"],
    )
    self.assertEqual(
      report["left_out"],
      {
        "classifier.bias": "not exported",
        "classifier.weight": "not exported",
        "decoder.<b>": "head",
      },
    )
    self.assertIn("<td>decoder.&lt;b&gt;</td><td>head</td>", files["html"])
    self.assertNotIn("<b>", files["html"])
    self.assertIn("left out: decoder.<b>, head", files["txt"])

  @nightly.only
  def test_tensorflow_1(self):
    path = str(self.directory / "resnet.ckpt")
    images = image_goldens.images(64, 64)
    expected = _write_tf1(path, images)
    legacy = {
      "experiment": "legacy_resnet50",
      "overrides": ["task.model.num_classes=5"],
    }
    _, pieces, text = _restored("resnet", path, **legacy)
    self.assertIn("counter (1), optimizer (1)", text)
    probabilities = tf.nn.softmax(pieces["classification"](images))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    self.assertGreater(np.ptp(expected), 0.05)
    self.assert_refused(
      "only the ResNet-50 of `official`", "resnet", path, overrides=[_TINY]
    )
    tensors = checkpoints.by_name(path)

    def tensor(name, *shape):
      return {name: weight_tables.Tensor(name, shape, lambda: np.ones(shape))}

    for change, message in (
      ({"bn_conv1/beta": None}, r"no value.* for bn_conv1/beta \(64,\)"),
      (tensor("bn_conv1/beta", 3), r"has \(3,\) for bn_conv1/beta"),
      (tensor("conv1/bias", 3), r"has conv1/bias \(3,\), which the mod"),
      (tensor("conv1/kernel/ExponentialMovingAverage"), "say --weights=raw"),
      (tensor("resnet_model/dense/kernel"), "official/r1/resnet, whose conv"),
    ):
      changed = {k: v for k, v in {**tensors, **change}.items() if v}
      with (
        self.subTest(message),
        mock.patch.object(checkpoints, "by_name", lambda _, c=changed: c),
      ):
        self.assert_refused(message, "resnet", path, **legacy)

  def test_normalization_that_cannot_be_read(self):
    golden = _GOLDENS["ViTForImageClassification"]
    images = golden["files"]["preprocessor_config.json"]
    for changes, message in (
      ({"do_rescale": "False"}, "do_rescale is 'False', and must be bool"),
      ({"rescale_factor": 0}, "preproc.*: a value is .*: ZeroDivisionError"),
      ({"image_mean": [0, 0, math.nan]}, "means and deviations are 3 numbers"),
    ):
      changed = {"preprocessor_config.json": {**images, **changes}}
      files = {**golden["files"], **changed}
      self.assert_refused(
        message, "vit", self.write({**golden, "files": files})
      )
    path = self.write(golden)
    (path / "preprocessor_config.json").write_text("{")
    self.assert_refused("preprocessor_config.json is no JSON", "vit", path)

  def test_configs_that_cannot_be_computed(self):
    vit_golden = _GOLDENS["ViTForImageClassification"]
    timm_golden = _GOLDENS["tf_efficientnet_b0"]
    for golden, exporter, changes, message in (
      (vit_golden, "deit", {}, "of type vit, which //exporters:vit exports"),
      (vit_golden, "vit", {"hidden_act": "relu"}, "hidden_act 'relu'"),
      (vit_golden, "vit", {"qkv_bias": False}, "qkv_bias False"),
      (vit_golden, "vit", {"patch_size": [8, 4]}, "only square patches"),
      (vit_golden, "vit", {"patch_size": []}, "config.json: "),
      (vit_golden, "vit", {"num_hidden_layers": 99}, "config has 99 layers"),
      (
        vit_golden,
        "vit",
        {"image_size": [24, "x"]},
        "config.json: |input_size",
      ),
      (
        vit_golden,
        "vit",
        {"layer_norm_eps": math.inf},
        "config.json: layer_norm_eps is inf",
      ),
      (
        vit_golden,
        "resnet",
        {"model_type": "resnet"},
        "type resnet, whose convolutions with strides pad both sides alike",
      ),
      (vit_golden, "vit", {"model_type": "bert"}, "type bert, which //exp"),
      (
        timm_golden,
        "efficientnet",
        {"architecture": "efficientnet_b0"},
        "a timm directory of type efficientnet_b0, which pads its conv",
      ),
      (
        timm_golden,
        "efficientnet",
        {"architecture": "tf_efficientnet_b8"},
        "only tf_efficientnet_b0 to b7",
      ),
    ):
      with self.subTest(message):
        files = {
          **golden["files"],
          "config.json": {**golden["files"]["config.json"], **changes},
        }
        path = self.write({**golden, "files": files})
        self.assert_refused(message, exporter, path)
    path = self.write(vit_golden)
    self.assert_refused(
      "--experiment does not apply", "vit", path, experiment="vit_small"
    )
    os.rename(path / "model.safetensors", path / "pytorch_model.bin")
    self.assert_refused("pytorch_model.bin is a pickle", "vit", path)
    os.rename(path / "pytorch_model.bin", path / "model.safetensors")
    os.remove(path / "preprocessor_config.json")
    self.assert_refused("say --normalization=imagenet|", "vit", path)
    _restored("vit", path, normalization="centered")
    self.assert_refused("has no head", "vit", self.write(_GOLDENS["ViTModel"]))


if __name__ == "__main__":
  absltest.main()
