"""Exports checkpoints in Model Garden's structures, and checks the exports."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import tempfile

from absl.testing import absltest
import numpy as np
from official.core import exp_factory
from official.core import task_factory
from official.core import train_lib
from official.core import train_utils
from official.legacy.image_classification.resnet import resnet_model
from official.vision.configs import image_classification  # Adds experiments.
from official.vision.modeling import segmentation_model
from official.vision.modeling.heads import segmentation_heads
from official.vision.ops import preprocess_ops
from official.vision.tasks import maskrcnn
from official.vision.tasks import retinanet
from official.vision.tasks import semantic_segmentation
import tensorflow as tf
import tensorflow_datasets as tfds
import tf_keras

from exporters import classifier_training
from exporters import image_classifier
from exporters.reusable import errors
from exporters.reusable import exporting
from exporters.reusable import observation
from models.vision import image_classification as image_models
from models.vision import resnet
from tools import nightly

_EXPORTER = pathlib.Path("exporters/resnet").absolute()
_SYNC = "task.model.norm_activation.use_sync_bn"
_TINY = "task.model.backbone.resnet.model_id=10,task.model.num_classes=3"


def _run(*arguments, **kwargs):
  return subprocess.run(
    [_EXPORTER, *arguments], capture_output=True, text=True, **kwargs
  )


def _setup(experiment, *overrides):
  return image_models.configure(resnet.ARCHITECTURE, experiment, overrides)


def _classifier(*arguments):
  return image_models.build(_setup(*arguments))


def _shake(model):
  """Adds noise to all variables, because many start at 0 or 1."""
  for i, variable in enumerate(model.variables):
    noise = tf.random.stateless_uniform(variable.shape, [i, 0])
    variable.assign(variable * (0.9 + 0.2 * noise) + 0.01 * noise)


def _images(*shape):
  return tf.random.stateless_uniform([*shape, 3], [1, 2])


def _normalized(images):
  """Normalizes images as Model Garden's training does."""
  return tf.stack(
    [
      preprocess_ops.normalize_image(
        255 * image, preprocess_ops.MEAN_RGB, preprocess_ops.STDDEV_RGB
      )
      for image in images
    ]
  )


class Colored(tfds.core.GeneratorBasedBuilder):
  """Data set of twenty images, alternately black and white."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(6, 4, 3)),
          "label": tfds.features.ClassLabel(names=["black", "white"]),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(20):
      image = np.full([6, 4, 3], 255 * (i % 2), np.uint8)
      yield i, {"image": image, "label": i % 2}


def _write_forms(model, images, path):
  """Writes weights of a classifier, and of other models with its backbone."""
  tf.train.Checkpoint(model=model).write(f"{path}/model")
  tf.train.Checkpoint(backbone=model.backbone).write(f"{path}/backbone")
  model.save_weights(f"{path}/weights")
  model.save_weights(f"{path}/weights.h5")
  setup = _setup(None, _TINY)
  setup.data.num_classes = 5
  other = image_models.build(setup)
  other.backbone.set_weights(model.backbone.get_weights())
  segmenter = segmentation_model.SegmentationModel(
    model.backbone,
    decoder=None,
    head=segmentation_heads.SegmentationHead(num_classes=3, level=3),
  )
  segmenter(images)
  for name, saved in (("other", other), ("segmenter", segmenter)):
    tf.train.Checkpoint(model=saved, **saved.checkpoint_items).write(
      f"{path}/{name}"
    )
  tf.train.Checkpoint(model=other).write(f"{path}/other_model")
  other.save_weights(f"{path}/other.h5")
  other.save_weights(f"{path}/other.weights.h5")
  hidden = tf_keras.layers.Dense(7, name="hidden")
  tf_keras.Sequential([other, hidden]).save_weights(f"{path}/hidden.h5")


class ImageClassifierTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )

  def run_exporter(self, name, *arguments, **kwargs):
    """Runs the program; returns the directory of the export and the output."""
    export_dir = self.directory / name
    result = _run(f"--export_dir={export_dir}", *arguments, **kwargs)
    self.assertEqual(result.returncode, 0, result.stderr)
    return export_dir, result.stdout

  def export_to(self, export_dir, checkpoint_path, weights=None, **config):
    image_classifier.export(
      image_classifier.Config(architecture=resnet.ARCHITECTURE, **config),
      classifier_training.Weights(
        checkpoint_path=checkpoint_path, weights=weights
      ),
      exporting.Options(export_dir=str(export_dir), verification="off"),
    )

  def export(self, name, checkpoint_path, **kwargs):
    """Exports in this process; loads and returns the export."""
    self.export_to(self.directory / name, checkpoint_path, **kwargs)
    return tf.saved_model.load(str(self.directory / name))

  def assert_refused(self, message, checkpoint_path, **kwargs):
    export_dir = self.directory / "nowhere"
    with self.assertRaisesRegex(errors.ExportError, message):
      self.export_to(export_dir, checkpoint_path, **kwargs)
    self.assertFalse(export_dir.exists())

  def assert_same(self, actual, expected, tolerance=1e-5):
    self.assertEqual(actual.shape, expected.shape)
    largest = np.max(np.abs(expected))
    self.assertGreater(largest, 0)
    np.testing.assert_allclose(
      actual, expected, rtol=0, atol=tolerance * largest
    )

  def assert_error(self, result, message):
    self.assertEqual(result.returncode, 1, result)
    self.assertRegex(result.stderr, message)
    self.assertNotIn("Traceback", result.stderr)

  def test_help_is_answered_at_once(self):
    # Python prints all imports to standard error.
    result = _run("--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    self.assertIn("models.vision.resnet", result.stderr)
    self.assertNotIn("tensorflow", result.stderr)
    self.assertNotIn("official", result.stderr)
    for flag in ("--experiment", "--config_file", "--endpoints", "--weights"):
      self.assertIn(flag, result.stdout)

  def assert_trains_alike(self, classifier, model):
    """Asserts that two training steps equal those of the live model.

    Outputs and, after the steps, all variables are compared. They include the
    moving averages.
    """
    calm = {"dropout_rate": 0.0, "stochastic_depth_rate": 0.0}
    for layer in model.submodules:
      if isinstance(layer, tf_keras.layers.BatchNormalization):
        layer.momentum = 0.75
      for attribute in ("rate", "_drop_rate"):
        if hasattr(layer, attribute):
          setattr(layer, attribute, 0.0)
    for images in (_images(3, 64, 64), 0.5 * _images(3, 64, 64)):
      self.assert_same(
        classifier(images, training=True, batch_norm_momentum=0.75, **calm),
        model(_normalized(images), training=True),
        1e-4,
      )
    for variable, expected in zip(
      classifier.variables, model.variables, strict=True
    ):
      self.assert_same(variable.numpy(), expected.numpy(), 1e-4)

  def assert_skips_blocks(self, classifier):
    """Asserts that some of 500 equal images skip blocks in a training step."""
    images = tf.tile(_images(1, 32, 32), [500, 1, 1, 1])
    still = {"dropout_rate": 0.0, "batch_norm_momentum": 1.0}
    changed = {
      rate: np.mean(
        np.ptp(
          classifier(
            images, training=True, stochastic_depth_rate=rate, **still
          ),
          axis=0,
        )
      )
      for rate in (0.0, 0.2)
    }
    self.assertLess(changed[0.0], 1e-3 * changed[0.2])

  @nightly.only
  def test_both_pieces_with_all_that_a_variant_has(self):
    """A ResNet-RS has dropout, stochastic depth, squeeze and excitation."""
    overrides = (
      f"{_TINY},task.model.backbone.resnet.depth_multiplier=0.25,"
      "task.model.backbone.resnet.stochastic_depth_drop_rate=0.2"
    )
    model = _classifier("resnet_rs_imagenet", overrides)
    _shake(model)
    checkpoint = tf.train.Checkpoint(model=model)
    export_dir, output = self.run_exporter(
      "both",
      f"--checkpoint_path={checkpoint.write(str(self.directory / 'rs'))}",
      "--experiment=resnet_rs_imagenet",
      f"--params_override={overrides}",
      "--export_type=all",
      "--endpoints=2,3,4,5",
    )
    for line in (
      "✓ gradients, training (1, 96, 64, 3)",
      "✓ hyperparameters, batch_norm_momentum 0.5",
      "✓ hyperparameters, dropout_rate 0.5",
      "✓ hyperparameters, stochastic_depth_rate 0.5",
    ):
      self.assertIn(line, output)
    features = tf.saved_model.load(str(export_dir / "feature_vector"))
    classifier = tf.saved_model.load(str(export_dir / "classification"))
    for height, width in ((32, 32), (64, 64), (224, 224), (48, 96)):
      images = _images(2, height, width)
      normalized = _normalized(images)
      outputs = features(images)
      self.assertEqual(outputs["feature_vector"].shape, [2, 128])
      for level, expected in model.backbone(normalized).items():
        self.assert_same(outputs[level], expected)
      self.assert_same(classifier(images), model(normalized))
    self.assertEqual(
      sorted(features.signatures["serving_default"].structured_outputs),
      ["2", "3", "4", "5", "feature_vector"],
    )
    # Model Garden's own exporter exports no regularization losses.
    for export, losses in (
      (classifier, model.losses),
      (features, model.losses[:-1]),
    ):
      (loss,) = export.regularization_losses
      np.testing.assert_allclose(loss(), sum(losses), rtol=1e-6)

    self.assert_trains_alike(classifier, model)
    self.assert_skips_blocks(classifier)

  @nightly.only
  def test_checkpoints_of_many_forms(self):
    model = _classifier(None, _TINY)
    _shake(model)
    images = _images(2, 64, 64)
    cut = image_models.cut(_setup(None, _TINY), model, ["feature_vector"])
    features = cut(images)
    path = str(self.directory / "forms")
    _write_forms(model, images, path)
    for name in (
      *("model", "backbone", "weights", "weights.h5"),
      *("other", "other_model", "segmenter", "other.h5", "other.weights.h5"),
    ):
      with self.subTest(name):
        with self.assertNoLogs("absl", "WARNING"):
          loaded = self.export(
            f"of_{name}",
            checkpoint_path=f"{path}/{name}",
            # Exports never synchronize batch normalization, so this override
            # makes no difference.
            overrides=[_TINY, f"{_SYNC}={name == 'model'}"],
          )
        self.assert_same(loaded(images), features)
    for message, arguments in (
      (
        r"Checkpoint .*/model, as tf.train.Checkpoint\(model=…\), does not"
        " match the model: it has .*; and .* more",
        {"checkpoint_path": f"{path}/model"},
      ),
      (
        "has no value for dense.*/kernel",
        {
          "checkpoint_path": f"{path}/backbone",
          "overrides": [_TINY],
          "export_type": "all",
        },
      ),
      (
        r"has \(512, 5\) for dense.*/kernel:0 \(512, 3\)",
        {
          "checkpoint_path": f"{path}/other",
          "overrides": [_TINY],
          "export_type": "all",
        },
      ),
      (
        r"weights.h5 does not match the model: it has .*; and \d+ more[.]$",
        {"checkpoint_path": f"{path}/weights.h5"},
      ),
      (
        r"hidden.h5 does not match the model: it has no value",
        {"checkpoint_path": f"{path}/hidden.h5", "overrides": [_TINY]},
      ),
      (
        r"other.h5 .* has \(512, 5\) for dense\S+, which must be \(512, 3\)",
        {
          "checkpoint_path": f"{path}/other.h5",
          "overrides": [_TINY],
          "export_type": "all",
        },
      ),
      (
        "The model has no 6; it has 2, 3, 4, 5, feature_vector",
        {
          "checkpoint_path": f"{path}/model",
          "overrides": [_TINY],
          "endpoints": ["6"],
        },
      ),
      (
        "/no.yaml is neither a file that can be read nor YAML nor KEY=VALUE",
        {
          "checkpoint_path": f"{path}/model",
          "overrides": ["/no.yaml"],
        },
      ),
    ):
      self.assert_refused(message, **arguments)

  @nightly.only
  def test_detectors_and_segmenters_with_their_params_yaml(self):
    backbone = {
      "type": "resnet",
      "resnet": {
        "model_id": 10,
        "depth_multiplier": 0.25,
        "se_ratio": 0.25,
        "stem_type": "v1",
        "replace_stem_max_pool": True,
      },
    }
    images = _images(2, 64, 64)
    for task_class, experiment, left_out in (
      (
        retinanet.RetinaNetTask,
        "retinanet_resnetfpn_coco",
        ["decoder", "head"],
      ),
      (
        maskrcnn.MaskRCNNTask,
        "maskrcnn_resnetfpn_coco",
        ["decoder", "detection_head", "mask_head", "rpn_head"],
      ),
      (
        semantic_segmentation.SemanticSegmentationTask,
        "semantic_segmentation",
        ["head"],
      ),
    ):
      with self.subTest(experiment):
        params = exp_factory.get_exp_config(experiment)
        size = {"input_size": [64, 64, 3], "num_classes": 3}
        changes = {"model": {"backbone": backbone, **size}}
        params.override({"task": changes})
        model_dir = str(self.directory / experiment)
        train_utils.serialize_config(params, model_dir)
        model = task_class(params.task).build_model()
        _shake(model.backbone)
        tf.train.CheckpointManager(
          tf.train.Checkpoint(model=model, **model.checkpoint_items),
          model_dir,
          max_to_keep=1,
        ).save()
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
          loaded = self.export(
            f"of_{experiment}",
            checkpoint_path=model_dir,
            overrides=[f"{model_dir}/params.yaml"],
            endpoints=["2", "3", "4", "5"],
          )
        outputs = loaded(images)
        for level, expected in model.backbone(_normalized(images)).items():
          self.assert_same(outputs[level], expected)
        (line,) = re.findall(
          ".*more than is exported: (.*)[.]", stdout.getvalue()
        )
        self.assertEqual(sorted(line.split(", ")), left_out)
    self.assert_refused(
      "does not match the model: it has no value for dense",
      checkpoint_path=model_dir,
      overrides=[f"{model_dir}/params.yaml"],
      export_type="classification",
    )
    self.assert_refused(
      "as configured, is of type dilated_resnet; this .* only resnet",
      checkpoint_path=model_dir,
      overrides=["task: {model: {head: {}, backbone: {type: dilated_resnet}}}"],
    )

  @nightly.only
  def test_legacy(self):
    model = resnet_model.resnet50(3, rescale_inputs=True)
    _shake(model)
    images = _images(2, 224, 224)
    head = model.get_layer("fc1000")
    features = tf_keras.Model(model.input, head.input)(images)
    for name in ("legacy", "legacy.h5"):
      with self.subTest(name):
        path = self.directory / name
        model.save_weights(str(path))
        loaded = self.export(
          f"of_{name}",
          checkpoint_path=str(path),
          experiment="legacy_resnet50",
          overrides=["task.model.num_classes=3"],
        )
        self.assert_same(loaded(images), features)
        regularized = observation.regularized(loaded.regularization_losses)
        self.assertLen(regularized, 53)

  @nightly.only
  def test_model_gardens_trainer(self):
    """Exports the directory of the trainer, with the params.yaml in it."""
    records = str(self.directory / "records")
    random = np.random.default_rng(0)
    with tf.io.TFRecordWriter(records) as writer:
      for i in range(16):
        image = random.normal(60 + 60 * (i % 3), 40, [40, 40, 3])
        image = np.clip(image, 0, 255).astype(np.uint8)
        example = tf.train.Example()
        feature = example.features.feature
        encoded = tf.io.encode_jpeg(image).numpy()
        feature["image/encoded"].bytes_list.value.append(encoded)
        feature["image/class/label"].int64_list.value.append(i % 3)
        writer.write(example.SerializeToString())
    self.assertTrue(image_classification.ImageClassificationTask)
    params = exp_factory.get_exp_config("resnet_imagenet")
    data = {"input_path": records, "global_batch_size": 8}
    params.override(
      {
        "runtime": {"enable_xla": False},
        "task": {
          "model": {
            "num_classes": 3,
            "input_size": [32, 32, 3],
            "backbone": {"resnet": {"model_id": 10, "depth_multiplier": 0.25}},
          },
          "train_data": data,
          "validation_data": data,
        },
        "trainer": {
          "train_steps": 3,
          "steps_per_loop": 3,
          "checkpoint_interval": 3,
          "optimizer_config": {
            "ema": {"average_decay": 0.5, "trainable_weights_only": False},
            "learning_rate": {
              "type": "constant",
              "constant": {"learning_rate": 0.1},
            },
            "warmup": {"type": None},
          },
        },
      }
    )
    model_dir = str(self.directory / "trained")
    train_utils.serialize_config(params, model_dir)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
      task = task_factory.get_task(params.task, logging_dir=model_dir)
      trainer = train_utils.create_trainer(
        params, task, train=True, evaluate=False
      )
    model, _ = train_lib.run_experiment(
      strategy, task, "train", params, model_dir, trainer=trainer
    )
    images = _images(4, 32, 32)
    expected = {"raw": model(_normalized(images))}
    with strategy.scope():
      trainer.optimizer.swap_weights()
    expected["average"] = model(_normalized(images))
    arguments = {
      "checkpoint_path": model_dir,
      "overrides": [f"{model_dir}/params.yaml"],
      "export_type": "classification",
    }
    for weights in ("raw", "average"):
      loaded = self.export(weights, weights=weights, **arguments)
      self.assert_same(loaded(images), expected[weights])
    self.assertGreater(
      np.max(np.abs(expected["raw"] - expected["average"])), 0.01
    )
    self.assert_refused(
      "has the raw weights and moving averages of them: say which", **arguments
    )

  @nightly.only
  def test_trains_on_tensorflow_datasets(self):
    Colored(data_dir=str(self.directory / "data")).download_and_prepare()
    export_dir, output = self.run_exporter(
      "colored",
      "--train_on=tfds:colored",
      "--export_type=classification",
      "--strategy=mirrored",
      "--epochs=10",
      "--batch_size=8",
      f"--checkpoint_dir={self.directory / 'kept'}",
      "--verification=off",
      env={**os.environ, "TFDS_DATA_DIR": str(self.directory / "data")},
    )
    self.assertIn("Test accuracy: 1.0000 on 4 images held out", output)
    card = (export_dir / "assets.extra" / "README.md").read_text()
    for line in (
      "# ResNet-18 classification",
      "| `logits` | float32 | `[None, 2]` | of 2 classes (see Weights), for a",
      "| classes | black, white |",
      "| trained on | colored/1.0.0 of tensorflow-datasets |",
      "| L2 regularization of the kernels | 5e-05 |",
    ):
      self.assertIn(line, card)
    again = self.export(
      "again",
      checkpoint_path=str(self.directory / "kept"),
      experiment="resnet_small",
      overrides=["task.model.num_classes=2"],
      export_type="classification",
    )
    for variable, expected in zip(
      again.variables,
      tf.saved_model.load(str(export_dir)).variables,
      strict=True,
    ):
      np.testing.assert_array_equal(variable, expected)


if __name__ == "__main__":
  absltest.main()
