"""Trains small models by the recipe of `fitting.fit`."""

import contextlib
import io
import os
import pathlib

from absl import flags
import numpy as np
from sklearn.utils import class_weight
import tensorflow as tf
import tf_keras

from data import classes
from data import images as image_data
from distribution import backups
from distribution import errors
from integration_tests import fitting
from integration_tests import image_fine_tuning
from integration_tests import pieces
from tools import nightly

_MNIST_CNN = flags.DEFINE_string(
  "mnist_cnn", None, "The export trained on digits 0 to 4."
)


def _dense(learning_rate, dim=2):
  """Returns a linear classifier of two classes, with weights of 0."""
  model = tf_keras.Sequential(
    [
      tf_keras.Input([dim]),
      tf_keras.layers.Dense(2, kernel_initializer="zeros"),
    ]
  )
  return fitting.compiled(model, tf_keras.optimizers.SGD(learning_rate))


class RecipeTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    tf_keras.utils.set_random_seed(1)
    train, _ = image_data.arrays("digits_5_9", (28, 28, 1))
    self.train = tuple(x[:48] for x in train)
    self.validation = tuple(x[48:64] for x in train)

  def fit(self, directory, interrupt_after=None):
    """Fits an export with a backup.

    Args:
      directory: The directory of the backup.
      interrupt_after: Number of epochs after which the training is interrupted.

    Returns:
      The metrics, all weights, and whether each weight of the export changed.
    """
    tf_keras.utils.set_random_seed(1)
    # Without dropout, which draws other numbers when the training resumes.
    model = image_fine_tuning.build_model(
      _MNIST_CNN.value, 5, retrain=True, dropout_rate=0.0
    )
    export = model.get_layer("feature_extractor")
    before = [v.numpy() for v in export.variables]
    backup = backups.Backup(directory, {"rate": 1}, model.distribute_strategy)
    save, history = backup.save, None

    def save_and_stop(state, logs, best):
      save(state, logs, best)
      if len(logs) == interrupt_after:
        raise KeyboardInterrupt

    backup.save = save_and_stop
    with contextlib.suppress(KeyboardInterrupt):
      history = fitting.fit(
        model,
        self.train,
        batch_size=16,
        frozen_epochs=2,
        epochs=3,
        validation=self.validation,
        patience=9,
        class_weights=[1, 2, 1, 1, 1],
        backup=backup,
        verbose=0,
      )
    moved = [
      not np.array_equal(v, value)
      for v, value in zip(export.variables, before, strict=True)
    ]
    return history, [v.numpy() for v in model.variables], moved

  @nightly.only
  def test_interrupted_in_each_phase_it_ends_as_in_one_go(self):
    directory = os.path.join(self.get_temp_dir(), "backup")
    history, expected, moved = self.fit(directory)
    self.assertAllEqual(moved, [True] * 12)
    self.assertCountEqual(
      history, ["loss", "accuracy", "val_loss", "val_accuracy"]
    )
    self.assertEqual({len(x) for x in history.values()}, {5})
    for epochs in (1, 2, 4):
      interrupted, _, moved = self.fit(directory, interrupt_after=epochs)
      self.assertIsNone(interrupted)
      # While the export is frozen, its moving averages do not change, either.
      self.assertAllEqual(moved, [epochs > 2] * 12)
    with self.assertRaisesRegex(ValueError, "rate is 1 there and 2 here"):
      backups.Backup(directory, {"rate": 2}, tf.distribute.get_strategy())
    resumed, actual, _ = self.fit(directory)
    self.assertAllClose(resumed, history, rtol=1e-4)
    self.assertAllClose(actual, expected, rtol=1e-4, atol=1e-5)
    self.assertEmpty(os.listdir(directory))

  def test_the_weights_of_the_best_epoch_are_restored(self):
    """Validation and training data contradict each other: epoch 1 is best."""
    x = np.eye(2, dtype=np.float32)
    model, output = _dense(0.1), io.StringIO()
    arguments = {"batch_size": 2, "verbose": 0, "epochs": 20}
    with contextlib.redirect_stdout(output):
      history = fitting.fit(
        model, (x, [0, 1]), validation=(x, [1, 0]), patience=3, **arguments
      )
    self.assertLen(history["val_loss"], 4)
    # The loss is the mean of the examples even if a batch is not full.
    loss, _ = model.evaluate(x, np.array([1, 0]), verbose=0)
    self.assertAllClose(loss, history["val_loss"][0])
    self.assertRegex(
      output.getvalue(), rf"epoch 1 of 4: .* lowest, {loss:.4f}\n"
    )
    all_epochs = fitting.fit(_dense(0.1), (x, [0, 1]), **arguments)
    self.assertLen(all_epochs["loss"], 20)
    self.assertNotIn("val_loss", all_epochs)

  def test_class_weights(self):
    """One of two overlapping classes has a twentieth of the examples."""
    random = np.random.default_rng(0)
    labels = (np.arange(400) % 20 == 0).astype(int)
    x = random.normal(labels[:, np.newaxis] * 1.5, size=[400, 2])
    counts = np.bincount(labels)
    weights = classes.balanced(counts, ["often", "rare"])
    self.assertAllClose(
      weights,
      class_weight.compute_class_weight(
        "balanced", classes=np.arange(2), y=labels
      ),
    )
    # Weights of 0 give a cross-entropy of log(2) for each example.
    history = fitting.fit(
      _dense(0.0),
      (x, labels),
      batch_size=40,
      epochs=1,
      class_weights=[0.5, 3.0],
      verbose=0,
    )
    mean = np.average([0.5, 3.0], weights=counts)
    self.assertAllClose(history["loss"], [np.log(2) * mean])
    recalls = []
    for class_weights in (None, weights):
      model = _dense(0.3)
      fitting.fit(
        model,
        (x, labels),
        batch_size=40,
        epochs=20,
        class_weights=class_weights,
        verbose=0,
      )
      found = np.argmax(model(x), axis=1)
      recalls.append(np.mean(found[labels == 1]))
    print({"recall of the rare class": recalls})
    # The data and the start are the same in each run.
    self.assertLess(recalls[0], 0.5)
    self.assertGreater(recalls[1], 0.7)

  def test_a_training_that_diverges_is_refused(self):
    x = np.full([4, 2], 1e30, np.float32)
    with self.assertRaisesRegex(errors.InputError, "loss of epoch . is nan"):
      fitting.fit(
        _dense(1e30), (x, [0, 1, 0, 1]), batch_size=2, epochs=2, verbose=0
      )


class PiecesTest(tf.test.TestCase):
  def test_links_and_pipes_are_not_recorded(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    extra = root / "export" / "assets.extra"
    extra.mkdir(parents=True)
    (root / "export" / "saved_model.pb").touch()
    (extra / "README.md").write_text("the card")
    (root / "secret").write_text("a secret")
    (extra / "notes.md").symlink_to(root / "secret")
    os.mkfifo(extra / "pipe")  # Reading it would not end.
    for follow_links, expected in (
      (False, ["README.md"]),
      (True, ["README.md", "notes.md"]),
    ):
      piece = root / f"piece {follow_links}"
      pieces.describe(
        str(piece), str(root / "export"), "photos", follow_links=follow_links
      )
      origin = piece / "assets.extra" / "fine_tuned_from"
      self.assertEqual((origin / "data.txt").read_text(), "photos")
      self.assertCountEqual(os.listdir(origin / "assets.extra"), expected)


if __name__ == "__main__":
  tf.test.main()
