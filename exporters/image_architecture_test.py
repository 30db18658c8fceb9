"""Exports a checkpoint of one architecture, with all its hyperparameters.

BUILD runs it once for each architecture.
"""

import importlib
import inspect
import json
import pathlib
import tempfile

from absl import flags
from absl.testing import absltest
import numpy as np
from official.vision.ops import preprocess_ops
import tensorflow as tf
import tf_keras

from exporters import check
from exporters import classifier_training
from exporters import image_classifier
from exporters.conformance import copying
from exporters.reusable import exporting
from models.vision import image_classification
from tools import nightly

_ARCHITECTURE = flags.DEFINE_string("architecture", None, "Its name.")
_HYPERPARAMETERS = flags.DEFINE_list("hyperparameters", None, "What it has.")
_EXCEPTED_RULES = flags.DEFINE_list("excepted_rules", [], "As in the check.")
_VARIANT = flags.DEFINE_string("variant", None, "Overrides of NAME_small.")
_VERIFICATION = flags.DEFINE_string("verification", "full", "As of exporters.")


def _images(*shape):
  return tf.random.stateless_uniform([*shape, 3], [1, 2])


def _normalized(images):
  """Normalizes images as Model Garden's training does; returns videos as is."""
  if len(images.shape) == 5:
    return images
  return tf.stack(
    [
      preprocess_ops.normalize_image(
        255 * image, preprocess_ops.MEAN_RGB, preprocess_ops.STDDEV_RGB
      )
      for image in images
    ]
  )


class ImageArchitectureTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    """Exports a checkpoint, and verifies the export."""
    super().setUpClass()
    cls.name = _ARCHITECTURE.value
    architecture = importlib.import_module(
      f"models.vision.{cls.name}"
    ).ARCHITECTURE
    experiment = f"{cls.name}_small"
    cls.model = image_classification.build(
      image_classification.configure(architecture, experiment, [_VARIANT.value])
    )
    shape = cls.model.inputs[0].shape
    cls.frames = [5] if shape.rank == 5 else []
    cls.size = shape[-2] or 48
    # Add noise to all variables, because many start at 0 or 1.
    for i, variable in enumerate(cls.model.variables):
      noise = tf.random.stateless_uniform(variable.shape, [i, 0])
      variable.assign(variable * (0.9 + 0.2 * noise) + 0.01 * noise)
    directory = tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    # The structure that `official.core.base_trainer` saves.
    checkpoint = tf.train.Checkpoint(
      global_step=tf.Variable(0, dtype=tf.int64),
      model=cls.model,
      optimizer=tf_keras.optimizers.legacy.SGD(),
      **cls.model.checkpoint_items,
    )
    cls.export_dir = pathlib.Path(directory, "export")
    # Export in this process, because a program would import TensorFlow again.
    image_classifier.export(
      image_classifier.Config(
        architecture=architecture,
        experiment=experiment,
        overrides=[_VARIANT.value],
        export_type="classification",
      ),
      classifier_training.Weights(
        checkpoint_path=checkpoint.save(f"{directory}/checkpoint")
      ),
      exporting.Options(
        export_dir=str(cls.export_dir), verification=_VERIFICATION.value
      ),
    )
    cls.export = tf.saved_model.load(str(cls.export_dir))

  @nightly.only
  def test_keeps_the_rules(self):
    excepted = _EXCEPTED_RULES.value
    options = copying.Options(seconds=36_000)
    status = check.check(
      saved_model_dir=str(self.export_dir),
      options=options,
      strict=True,
      excepted_rules=excepted,
    )
    self.assertEqual(status, 0)

  def test_is_the_model_at_other_sizes(self):
    kinds = ["outputs", "gradients"]
    if "batch_norm_momentum" in _HYPERPARAMETERS.value:
      kinds.append("updates")
    shape = (1, *self.frames, 96, 64, 3)
    report = self.export_dir / "assets.extra/verification.json"
    comparisons = json.loads(report.read_text())["comparisons"]
    passed = [place for c in comparisons for place in c["passed"]]
    for kind in kinds if _VERIFICATION.value == "full" else ():
      self.assertIn(f"{kind}, training {shape}", passed)
    images = _images(2, *self.frames, self.size, self.size)
    expected = self.model(_normalized(images)).numpy()
    np.testing.assert_allclose(
      self.export(images), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    self.assertGreater(np.ptp(expected, axis=0).max(), 0)
    np.testing.assert_allclose(
      sum(loss() for loss in self.export.regularization_losses),
      sum(self.model.losses),
      rtol=1e-5,
    )

  @nightly.only
  def test_a_step_compiles_once_whatever_the_hyperparameters_are(self):
    # Load the export again, because the steps change its variables.
    self.export = tf.saved_model.load(str(self.export_dir))
    images = _images(4, *self.frames, 64, 64)
    defaults = {
      name: parameter.default
      for name, parameter in inspect.signature(
        self.export.__call__
      ).parameters.items()
      if isinstance(parameter.default, float)
    }
    self.assertCountEqual(defaults, _HYPERPARAMETERS.value)

    @tf.function(jit_compile=True)
    def step(images, **hyperparameters):
      with tf.GradientTape() as tape:
        logits = self.export(images, training=True, **hyperparameters)
        loss = tf.reduce_sum(logits**2)
      gradients = tape.gradient(loss, self.export.trainable_variables)
      return logits, tf.linalg.global_norm(gradients)

    def run(images, **changed):
      return step(
        images,
        **{k: tf.constant(v) for k, v in {**defaults, **changed}.items()},
      )

    calm = {name: 0.0 if name.endswith("_rate") else 1.0 for name in defaults}
    logits, norm = run(images, **calm)
    self.assertTrue(np.isfinite(norm) and norm > 0)
    # Without randomness, a repeated step returns the same outputs.
    np.testing.assert_allclose(run(images, **calm)[0], logits, rtol=1e-4)
    for name in filter(lambda n: n.endswith("_rate"), defaults):
      with self.subTest(name):
        random, norm = run(images, **{**calm, name: 0.5})
        self.assertTrue(np.isfinite(norm))
        self.assertGreater(np.abs(random - logits).max(), 1e-3)
    if "batch_norm_momentum" in defaults:
      moving = [v for v in self.export.variables if "moving_" in v.name]
      before = [v.numpy() for v in moving]
      run(images, **{**calm, "batch_norm_momentum": 0.5})
      for variable, old in zip(moving, before, strict=True):
        self.assertFalse(np.array_equal(variable, old), variable.name)
        self.assertTrue(np.isfinite(variable.numpy()).all())
    self.assertEqual(step.experimental_get_tracing_count(), 1)
    # The batch is a parameter of the compiled program, not a constant in it.
    hlo = step.experimental_get_compiler_ir(
      images, **{k: tf.constant(v) for k, v in calm.items()}
    )(stage="hlo")
    entry = hlo[hlo.index("\nENTRY ") :]
    shape = ",".join(map(str, images.shape))
    self.assertRegex(entry, rf"f32\[{shape}\]\{{[0-9,]*\}} parameter\(")


if __name__ == "__main__":
  absltest.main()
