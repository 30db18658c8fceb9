"""What the programs that fine-tune exports of images share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from absl import flags
from etils import epy

from distribution import strategies
from integration_tests import command_line
from integration_tests import datasets
from integration_tests import fitting

with epy.lazy_imports():
  import tensorflow as tf
  import tensorflow_hub as hub
  import tf_keras


def layer(
  saved_model_dir: str,
  *,
  retrain: bool,
  arguments: Mapping[str, float | None],
  regularization_loss_multiplier: float = 1.0,
) -> hub.KerasLayer:
  """Loads an export as a layer.

  Args:
    saved_model_dir: The export.
    retrain: Train its weights too.
    arguments: Values of its hyperparameters; None: their defaults.
    regularization_loss_multiplier: Factor of its regularization losses.
  """
  export = hub.load(
    saved_model_dir,
    options=tf.saved_model.LoadOptions(
      experimental_io_device=strategies.io_device(tf.distribute.get_strategy())
    ),
  )
  export.regularization_losses = [
    _scaled(loss, regularization_loss_multiplier)
    for loss in export.regularization_losses
  ]
  return hub.KerasLayer(
    export,
    trainable=retrain,
    arguments={k: v for k, v in arguments.items() if v is not None},
    name="feature_extractor",
  )


def _scaled(
  loss: Callable[[], tf.Tensor], factor: float
) -> Callable[[], tf.Tensor]:
  return tf.function(lambda: factor * loss(), input_signature=[])


def compiled(model: tf_keras.Model, learning_rate: float) -> tf_keras.Model:
  """Compiles a model of logits, float32, for training with Adam."""
  model.compile(
    optimizer=tf_keras.optimizers.Adam(learning_rate),
    loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=["accuracy"],
  )
  return model


def define_flags(only_with_retrain: Sequence[str] = ()) -> None:
  """Defines the flags that all these programs have.

  Args:
    only_with_retrain: Further flags, already defined, that say something only
      with --retrain.
  """
  flags.DEFINE_enum(
    "dataset",
    "digits_5_9",
    datasets.NAMES,
    "Images to fine-tune on. Digits come with scikit-learn; the others are"
    " downloaded.",
  )
  flags.DEFINE_bool(
    "retrain",
    False,
    "Train the weights of the export too. Without it only what is new on its"
    " features is trained.",
  )
  flags.DEFINE_float(
    "batch_norm_momentum",
    None,
    "With --retrain: the momentum, instead of the export's default.",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_float(
    "regularization_loss_multiplier",
    1.0,
    "With --retrain: factor of the regularization losses of the export.",
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    "epochs", 5, "How often to go through the images.", lower_bound=1
  )
  flags.DEFINE_integer(
    "batch_size",
    32,
    "Images in a step, on all devices together.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "learning_rate", 1e-3, "Learning rate of Adam.", lower_bound=0.0
  )
  command_line.define_flags(
    [
      "batch_norm_momentum",
      "regularization_loss_multiplier",
      *only_with_retrain,
    ]
  )
  flags.adopt_module_key_flags(command_line)


def fine_tune(
  load: Callable[[], tuple[datasets.Arrays, datasets.Arrays]],
  build: Callable[[str, int], tf_keras.Model],
) -> None:
  """Fine-tunes as the flags say.

  Args:
    load: Returns what to train on, and what to test on.
    build: Makes a compiled model of an export and the number of classes.
  """
  values = flags.FLAGS
  with command_line.input_errors():
    strategy = strategies.get(strategies.from_flags())
    output_dir = command_line.make_output_dir(strategy)
    fitting.check_batch_size(values.batch_size, strategy)
    train, test = load()
    with strategies.precision(values.mixed_precision), strategy.scope():
      model = build(
        command_line.path(values.saved_model_dir), int(train[1].max()) + 1
      )
  with strategies.cluster_errors():
    accuracy = fitting.fit(
      model,
      train,
      test,
      batch_size=values.batch_size,
      epochs=values.epochs,
      backup_dir=command_line.path(values.backup_dir),
    )
    print(f"Test accuracy: {accuracy:.4f} on {len(test[1]):,} images held out")
    if output_dir:
      fitting.save(model, output_dir, strategy)
