import multiprocessing
import os
import time

import numpy as np
from official.nlp.configs import encoders
import tensorflow as tf
import tf_keras

from data import documents
from distribution import addresses
from models.nlp import bert
from models.nlp import preprocessing
from models.nlp import pretraining
from tools import nightly

_WORDS = [f"{a}{b}" for a in "bcdfg" for b in "aeiou"]


def setUpModule():
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
  )


def _corpus():
  """Makes documents, each of a single word 25 times."""
  texts = [" ".join([_WORDS[i % 25]] * 25) for i in range(100)]
  return documents.Corpus(
    "words",
    tf.data.Dataset.from_tensor_slices(texts[:75]),
    tf.data.Dataset.from_tensor_slices(texts[75:]),
  )


def _tokenizer(extra=()):
  return preprocessing.wordpiece_tokenizer(
    [*preprocessing.SPECIAL_TOKENS, *_WORDS, *extra], do_lower_case=True
  )


def _model(hidden_size=32, tokenizer=None):
  tf_keras.utils.set_random_seed(0)
  return bert.pretrain_model(
    bert.core_model(
      encoders.EncoderConfig(
        type="bert",
        bert=encoders.BertEncoderConfig(
          vocab_size=len((tokenizer or _tokenizer()).tokens),
          hidden_size=hidden_size,
          num_layers=1,
          num_attention_heads=2,
          intermediate_size=64,
          max_position_embeddings=32,
        ),
      )
    )
  )


def _config(**kwargs):
  return pretraining.Config(
    **{
      "epochs": 6,
      "steps_per_epoch": 40,
      "batch_size": 16,
      "seq_length": 16,
      "learning_rate": 1e-2,
      **kwargs,
    }
  )


def _train(checkpoint_dir, model, tokenizer=None, **config):
  tokenizer = tokenizer or _tokenizer()
  return pretraining.train(
    model, _corpus(), tokenizer, _config(**config), checkpoint_dir
  )


def _train_in_a_process(checkpoint_dir):
  _train(checkpoint_dir, _model(), epochs=1000)


def _train_on_parameter_server(
  worker, ps, text_file, checkpoint_dir, accuracy_file
):
  cluster = tf.train.ClusterSpec({"worker": [worker], "ps": [ps]})
  # With fewer threads, servers in one process would wait for each other.
  config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=4)
  _servers = [
    tf.distribute.Server(cluster, job, 0, config=config) for job in cluster.jobs
  ]
  strategy = tf.distribute.ParameterServerStrategy(
    tf.distribute.cluster_resolver.SimpleClusterResolver(
      cluster, rpc_layer="grpc"
    )
  )
  with strategy.scope():
    model = _model()
  accuracy = pretraining.train(
    model,
    documents.text_files([text_file]),
    _tokenizer(),
    _config(epochs=4),
    checkpoint_dir,
  )
  with open(accuracy_file, "w") as f:
    f.write(f"{accuracy}")


class ExamplesTest(tf.test.TestCase):
  def test_masks(self):
    tokenizer = _tokenizer()
    masked_ids, replaced = [], []
    tf.random.set_seed(0)
    for inputs, labels, weights in pretraining.examples(
      _corpus().train, tokenizer, _config(), training=True
    ).take(40):
      word_ids = inputs["input_word_ids"].numpy()
      self.assertEqual(word_ids.shape, (16, 16))
      self.assertEqual(labels.shape, (16, 3))  # 3 is 15% of 16, rounded up.
      self.assertAllEqual(inputs["input_mask"], np.ones([16, 16]))
      self.assertAllEqual(inputs["input_type_ids"], np.zeros([16, 16]))
      rows, columns = np.nonzero(weights)
      positions = inputs["masked_lm_positions"].numpy()[rows, columns]
      masked_ids.extend(labels.numpy()[rows, columns])
      replaced.extend(word_ids[rows, positions])
      # Labels in place of the masked tokens restore the text.
      word_ids[rows, positions] = labels.numpy()[rows, columns]
      self.assertAllEqual(word_ids[:, 0], [2] * 16)
      self.assertAllEqual(word_ids[:, -1], [3] * 16)
      before, after = word_ids[:, 1:-2], word_ids[:, 2:-1]
      inside = (before > 4) & (after > 4)
      self.assertGreater(inside.mean(), 0.8)
      self.assertAllEqual(after[inside], before[inside])
    self.assertGreater(len(masked_ids), 1200)
    self.assertGreater(min(masked_ids), 4)  # No special tokens.
    masked_ids, replaced = np.array(masked_ids), np.array(replaced)
    # For more than 1,200 tokens, five standard deviations are 0.06 at most.
    self.assertNear(np.mean(replaced == 4), 0.8, 0.06)
    self.assertNear(np.mean(replaced == masked_ids), 0.1, 0.06)

  def test_held_out_text_comes_once(self):
    examples = pretraining.examples(
      _corpus().held_out, _tokenizer(), _config(), training=False
    )
    # TPUs need static shapes.
    for spec in tf.nest.flatten(examples.element_spec):
      self.assertTrue(spec.shape.is_fully_defined(), spec)
    batches = list(examples)
    masks = np.concatenate([x["input_mask"] for x, _, _ in batches])
    weights = np.concatenate([weights for _, _, weights in batches])
    is_filling = masks[:, 0] == 0
    self.assertTrue(is_filling.any())
    self.assertEqual(weights[is_filling].sum(), 0.0)
    masks = masks[~is_filling]
    # 25 documents of 25 words and a separator are packed into sequences of 14
    # tokens between [CLS] and [SEP].
    self.assertEqual(masks.sum(), 25 * 26 + 2 * len(masks))
    self.assertLen(masks, -(-25 * 26 // 14))


class TrainTest(tf.test.TestCase):
  def new_directory(self):
    return self.create_tempdir().full_path

  def test_learns_and_repeats(self):
    models = [_model(), _model()]
    accuracies = [
      pretraining.train(
        model, _corpus(), _tokenizer(), _config(), self.new_directory()
      )
      for model in models
    ]
    self.assertGreater(accuracies[0], 0.9)  # Chance is 0.04.
    self.assertEqual(*accuracies)
    for first, second in zip(models[0].weights, models[1].weights, strict=True):
      self.assertAllClose(first, second, rtol=1e-4, atol=1e-5)
    rates = {x.rate for x in models[0].submodules if hasattr(x, "rate")}
    self.assertEqual(rates, {0.0})

  def test_keeps_dropout_if_asked(self):
    model, config = _model(), _config(epochs=0, dropout=True)
    pretraining.train(
      model, _corpus(), _tokenizer(), config, self.new_directory()
    )
    self.assertIn(0.1, {x.rate for x in model.submodules if hasattr(x, "rate")})

  @nightly.only
  def test_under_a_strategy(self):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
      model = _model()
    accuracy = pretraining.train(
      model, _corpus(), _tokenizer(), _config(), self.new_directory()
    )
    self.assertGreater(accuracy, 0.9)
    for variable in model.trainable_variables:
      self.assertLen(variable.values, 2)
      self.assertAllEqual(*variable.values)

  @nightly.only
  def test_on_a_parameter_server(self):
    paths = [
      os.path.join(self.get_temp_dir(), name)
      for name in ("text", "checkpoints", "accuracy")
    ]
    text_file, checkpoint_dir, accuracy_file = paths
    # Every fiftieth document is held out: one document of each word.
    words = [_WORDS[(i + i // 50) % 25] for i in range(1250)]
    with open(text_file, "w") as f:
      f.write("\n\n".join(" ".join([word] * 25) for word in words))
    process = multiprocessing.get_context("spawn").Process(
      target=_train_on_parameter_server,
      args=[*self.enter_context(addresses.held(2)), *paths],
      daemon=True,
    )
    process.start()
    process.join()
    self.assertEqual(process.exitcode, 0)
    with open(accuracy_file) as f:
      # Chance is 0.04. Measured accuracies were 0.49 to 0.93, lower on a busy
      # machine, because workers compute gradients of outdated weights.
      self.assertGreater(float(f.read()), 0.2)
    self.assertEndsWith(tf.train.latest_checkpoint(checkpoint_dir), "-160")

  @nightly.only
  def test_resumes_after_it_was_killed(self):
    checkpoint_dir = os.path.join(self.get_temp_dir(), "checkpoints")
    process = multiprocessing.get_context("spawn").Process(
      target=_train_in_a_process, args=[checkpoint_dir]
    )
    process.start()
    while (tf.train.latest_checkpoint(checkpoint_dir) or "-0").endswith("-0"):
      self.assertTrue(process.is_alive())
      time.sleep(0.1)
    process.kill()
    process.join()
    killed = tf.train.latest_checkpoint(checkpoint_dir)
    steps = tf.train.load_variable(killed, _STEPS)
    epochs = steps // 40
    self.assertEqual(steps % 40, 0)
    self.assertGreater(epochs, 0)

    model = _model()
    accuracy = _train(checkpoint_dir, model, epochs=epochs + 2)
    newest = tf.train.latest_checkpoint(checkpoint_dir)
    steps = (epochs + 2) * 40
    self.assertEqual(os.path.basename(newest), f"ckpt-{steps}")
    self.assertEqual(tf.train.load_variable(newest, _STEPS), steps)
    # No epochs are left to train, so the weights are those of the checkpoint.
    again = _model()
    self.assertEqual(_train(checkpoint_dir, again, epochs=epochs + 2), accuracy)
    for first, second in zip(model.weights, again.weights, strict=True):
      self.assertAllEqual(first, second)
    # The checkpoint has a structure of Model Garden.
    restored = _model()
    status = tf.train.Checkpoint(**restored.checkpoint_items).restore(newest)
    status.assert_nontrivial_match().expect_partial()
    self.assertAllEqual(
      restored.masked_lm.weights[0], model.masked_lm.weights[0]
    )

    for message, config in (
      ("batch_size is 16 there and 8 here.", {"batch_size": 8}),
      (f"{steps} steps, more than 0 epochs of 40", {"epochs": 0}),
    ):
      with self.assertRaisesRegex(ValueError, message):
        _train(checkpoint_dir, _model(), **config)
    with self.assertRaisesRegex(ValueError, "vocab.txt is another vocabulary"):
      tokenizer = _tokenizer(["more"])
      _train(checkpoint_dir, _model(tokenizer=tokenizer), tokenizer)
    with self.assertRaisesRegex(ValueError, "is of another model.*shape"):
      _train(checkpoint_dir, _model(hidden_size=64))
    os.remove(os.path.join(checkpoint_dir, "vocab.txt"))
    with self.assertRaisesRegex(ValueError, "of another program"):
      _train(checkpoint_dir, _model())


_STEPS = "optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"


if __name__ == "__main__":
  tf.test.main()
