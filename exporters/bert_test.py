"""Exports checkpoints in Model Garden's structures, and checks the exports."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from official.modeling import tf_utils
from official.nlp.configs import encoders
from official.nlp.modeling import layers
from official.nlp.modeling import models
import sentencepiece
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
import yaml

from distribution import strategies
from exporters import bert as exporter
from exporters import bert_encoder
from exporters import bert_flags
from exporters import bert_preprocessor
from exporters import bert_pretraining
from exporters import bert_text_embedding
from exporters.reusable import errors
from exporters.reusable import exporting
from exporters.reusable import observation
from exporters.reusable import xla_trap
from models.nlp import bert
from models.nlp import pretraining
from tools import nightly

_ALL_TYPES = flags.DEFINE_bool(
  "all_types", False, "Test all types of encoders, not only the most common."
)
_EXPORTER = pathlib.Path("exporters/bert").absolute()

_LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
_TOKENS = [
  *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
  *_LETTERS,
  *("##" + letter for letter in _LETTERS),
  *("the", "fox", "dog", "."),
]

_SIZES = {
  "vocab_size": len(_TOKENS),
  "word_vocab_size": len(_TOKENS),
  "hidden_size": 16,
  "num_layers": 2,
  "num_blocks": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "inner_dim": 24,
  "max_position_embeddings": 32,
  "max_sequence_length": 32,
  "pe_max_seq_length": 32,
  "block_size": 4,
  "embedding_width": 16,
  "embedding_size": 16,
  "word_embed_size": 8,
  "intra_bottleneck_size": 16,
  # Other values than those of attention, to tell the two kinds of rates apart.
  "dropout_rate": 0.1,
  "output_dropout": 0.1,
  "hidden_dropout_prob": 0.1,
  "attention_dropout_rate": 0.2,
  "attention_dropout": 0.2,
  "attention_probs_dropout_prob": 0.2,
  "attention_layers": [1],
  "moe_layers": [0],
  "num_experts": 2,
}

_SENTENCES = [
  "the quick brown fox jumps over the lazy dog",
  "a quick dog",
  "how vexingly quick daft zebras jump over lazy brown foxes",
]

_TYPES = (
  "bert_v2",
  "bigbird",
  "fnet",
  "funnel",
  "kernel",
  "mobilebert",
  "query_bert",
  "reuse",
)

# A consumer's program. Its process imports neither our code nor Model Garden.
_CONSUMER = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text
import tf_keras

encoder = hub.load(sys.argv[1] + "/encoder")
preprocessor = hub.load(sys.argv[1] + "/preprocessor")
assert encoder.preprocessor_sha256() == preprocessor.preprocessor_sha256()
assert bool(encoder.do_lower_case)
assert encoder.vocab_file.asset_path.numpy().endswith(b"vocab.txt")

def preprocess(text):
  return preprocessor(text, seq_length=9)

texts = tf.data.Dataset.from_tensor_slices(
    ["The foxes.", "DöG", "", "fox fox fox fox fox fox fox fox"]
)
(inputs,) = texts.batch(4).map(preprocess)
names = ["input_word_ids", "input_mask", "input_type_ids"]
as_list = [inputs[name] for name in names]
positions = tf.constant([[1, 2]] * 4)
forms = {
    "dict": inputs,
    "list": as_list,
    "dict of int64": {k: tf.cast(x, tf.int64) for k, x in inputs.items()},
    "list of int64": [tf.cast(x, tf.int64) for x in as_list],
}
results = {name: encoder(x)["pooled_output"] for name, x in forms.items()}
results |= {name: x for name, x in inputs.items()}
outputs = encoder(inputs, training=True, dropout_rate=0.0,
                  attention_dropout_rate=0.0)
results["sequence_output"] = outputs["sequence_output"]
results["default"] = outputs["default"]
results["encoder_outputs"] = outputs["encoder_outputs"][0]
mlm = encoder.mlm({**inputs, "masked_lm_positions": positions})
results["mlm_logits"] = mlm["mlm_logits"]
results["of mlm signature"] = encoder.signatures["mlm"](
    **inputs, masked_lm_positions=positions
)["mlm_logits"]
names = {"pooled_output", "sequence_output"}
for name, outputs in (("serving_default", names | {"default"}),
                      ("mlm", names | {"mlm_logits"})):
  actual = set(encoder.signatures[name].structured_outputs)
  assert actual == outputs, actual
assert len(encoder.mlm.variables) == len(encoder.variables) + 5
tokens = preprocessor.tokenize(["The foxes.", "Dog"])
assert tokens.to_list() == [[[57], [58, 35, 49], [60]], [[59]]], tokens
ids, begins, ends = preprocessor.tokenize_with_offsets(["é fox"])
assert begins.to_list() == [[[0], [3]]], begins
assert ends.to_list() == [[[2], [6]]], ends
ids = preprocessor.tokenize.get_special_tokens_dict()
assert {k: int(v) for k, v in ids.items()} == dict(
    padding_id=0, start_of_sequence_id=2, end_of_segment_id=3, mask_id=4,
    vocab_size=61)
for count, expected in (
    (1, [2, 57, 58, 35, 49, 60, 3, 0, 0, 0]),
    (2, [2, 57, 58, 35, 49, 3, 57, 58, 35, 3]),
    (3, [2, 57, 58, 3, 57, 58, 3, 57, 58, 3]),
):
  packed = preprocessor.bert_pack_inputs([tokens] * count, seq_length=10)
  assert packed["input_word_ids"][0].numpy().tolist() == expected, packed

def free(jit_compile):
  return tf.function(
      lambda x: encoder([x] * 3),
      input_signature=[tf.TensorSpec([None, None], tf.int32)],
      jit_compile=jit_compile,
  )

def in_keras(ids):
  specs = [tf_keras.Input(ids.shape[1:], dtype=ids.dtype) for _ in range(3)]
  return hub.KerasLayer(encoder, trainable=True)(specs)

too_long = "seq_length is past the position table of this encoder, which has 32"
op = "{{node seq_length_is_past_the_position_table_which_has_32_rows}}"
for function, error, message in (
    (free(False), tf.errors.InvalidArgumentError, too_long),
    (free(True), tf.errors.InvalidArgumentError, op),
    (lambda x: encoder([x] * 3, training=True), ValueError, op),
    (lambda x: encoder.mlm([x] * 3 + [x[:, :1]]), ValueError, op),
    (in_keras, ValueError, op),
):
  function(tf.zeros([1, 32], tf.int32))
  try:
    function(tf.zeros([1, 33], tf.int32))
    raise AssertionError("seq_length 33 was taken.")
  except error as e:
    assert message in str(e), e
np.savez(sys.argv[2], **results)
assert not {"models", "exporters", "official"} & set(sys.modules)
"""


def _run(*arguments, **kwargs):
  return subprocess.run(
    [_EXPORTER, *arguments], capture_output=True, text=True, **kwargs
  )


def _hashes(directory):
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob("*")
    if path.is_file() and path.name != "fingerprint.pb"
  }


def _config(kind, **changes):
  """Makes a small config; returns the values for its YAML, and the object."""
  fields = dataclasses.fields(encoders.EncoderConfig(type=kind).get())
  sizes = {**_SIZES, **changes}
  values = {f.name: sizes[f.name] for f in fields if f.name in sizes}
  config = encoders.EncoderConfig(type=kind)
  config.override({kind: values})
  return {"type": kind, kind: values}, config


def _from_fields(cls, values):
  """Creates a dataclass; ignores values for which it has no field."""
  names = {field.name for field in dataclasses.fields(cls)}
  return cls(**{k: v for k, v in values.items() if k in names})


def _pretrainer(core):
  """Builds Model Garden's model with a head for next sentence prediction."""
  head = layers.ClassificationHead(16, num_classes=2, name="next_sentence")
  model = models.BertPretrainerV2(
    core.encoder,
    mlm_activation=tf_utils.get_activation("gelu"),
    classification_heads=[head],
  )
  model(
    {**core.input, "masked_lm_positions": tf_keras.Input([None], dtype="int32")}
  )
  return model


def _randomized(model):
  for seed, variable in enumerate(model.variables):
    noise = tf.random.stateless_normal(variable.shape, [seed, 0])
    variable.assign(variable + 0.1 * noise)
  return model


def _mean_over_tokens(embed, texts, seq_length):
  """Computes mean pooling with the sub-objects of a text embedding."""
  inputs = embed.preprocessor(texts, seq_length=seq_length)
  features = embed.encoder(inputs)["sequence_output"].numpy()
  mask = inputs["input_mask"].numpy()[..., np.newaxis]
  return (features * mask).sum(1) / mask.sum(1)


class BertTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )
    cls.vocab_file = cls.write("vocab.txt", "\n".join(_TOKENS) + "\n")
    values, config = _config("bert")
    cls.config_file = cls.write("encoder.yaml", yaml.safe_dump(values))
    cls.core = bert.core_model(config)
    cls.pretrainer = _randomized(_pretrainer(cls.core))
    optimizer = tf_keras.optimizers.legacy.Adam()
    optimizer.apply_gradients(
      [(tf.zeros_like(v), v) for v in cls.pretrainer.trainable_variables]
    )
    items = cls.pretrainer.checkpoint_items
    for name, checkpoint in {
      "items": tf.train.Checkpoint(**items),
      "encoder": tf.train.Checkpoint(encoder=cls.core.encoder),
      "model": tf.train.Checkpoint(model=cls.core.encoder),
      "pretrainer": tf.train.Checkpoint(pretrainer=cls.pretrainer),
      "model_is_pretrainer": tf.train.Checkpoint(model=cls.pretrainer),
    }.items():
      checkpoint.write(str(cls.directory / name))
    # The structure that `orbit` and `official.core.base_trainer` save.
    trainer = tf.train.Checkpoint(
      model=cls.pretrainer,
      optimizer=optimizer,
      global_step=tf.Variable(0),
      **items,
    )
    tf.train.CheckpointManager(
      trainer, str(cls.directory / "trainer"), max_to_keep=2
    ).save()

  @classmethod
  def write(cls, name, text):
    path = cls.directory / name
    path.write_text(text, encoding="utf-8")
    return str(path)

  def export(self, **kwargs):
    """Exports in this process; loads and returns the exported SavedModel.

    With --export_type=all, it returns the encoder.
    """
    export_dir = self.directory / "export"
    shutil.rmtree(export_dir, ignore_errors=True)
    arguments = {
      "export_type": "encoder",
      "encoder_config_file": self.config_file,
      "checkpoint_path": str(self.directory / "trainer"),
      "vocab_file": self.vocab_file,
      "do_lower_case": True,
      "pooler": "checkpoint",
      "seq_length": 16,
      "verification": "off",
      "export_dir": str(export_dir),
      **kwargs,
    }
    config, weights, embedding = None, None, None
    if arguments["export_type"] == "text_embedding":
      embedding = _from_fields(bert_text_embedding.Options, arguments)
    if arguments["export_type"] != "preprocessing":
      config = bert_flags.read_config(
        arguments["encoder_config_file"],
        arguments.get("bert_config_file"),
        arguments["seq_length"],
      )
      weights = _from_fields(exporter.Weights, arguments)
    exporter.export(
      _from_fields(exporting.Options, arguments),
      arguments["export_type"],
      _from_fields(bert_preprocessor.Options, arguments),
      config,
      weights,
      embedding,
    )
    path = (
      export_dir / "encoder"
      if (export_dir / "encoder").exists()
      else export_dir
    )
    return tf.saved_model.load(str(path))

  def assert_refused(self, message, **kwargs):
    with self.assertRaisesRegex(errors.ExportError, message):
      self.export(**kwargs)
    self.assertFalse((self.directory / "export").exists())

  def assert_same_weights(self, export, but=""):
    expected = {v.name: v.numpy() for v in self.core.variables}
    actual = {v.name: v.numpy() for v in export.variables}
    self.assertSameElements(actual, expected)
    different = [
      n for n in actual if not np.array_equal(actual[n], expected[n])
    ]
    self.assertEqual([n for n in different if not (but and but in n)], [])

  def test_all(self):
    arguments = [
      "--export_type=all",
      f"--encoder_config_file={self.config_file}",
      f"--checkpoint_path={self.directory / 'trainer'}",
      f"--vocab_file={self.vocab_file}",
      "--do_lower_case",
      "--pooler=next_sentence",
      "--seq_length=16",
      "--tokenize_with_offsets",
    ]
    export_dir, second = self.directory / "all", self.directory / "second"
    result = _run(*arguments, f"--export_dir={export_dir}")
    self.assertEqual(result.returncode, 0, result.stderr)
    for line in (
      "✓ gradients, training 3 of (1, 8)",
      "✓ hyperparameters, attention_dropout_rate 0.5",
      "✓ mlm, gradients, training 4 of (1, 8)",
      "✓ bert_pack_inputs, outputs, inference 3 of (3, None, None)",
      "✓ hyperparameters, seq_length 8",
    ):
      self.assertIn(line, result.stdout)
    hashes = _hashes(export_dir)
    # Outside of nightly tests, mnist_cnn_test alone exports twice.
    if nightly.IS_ON:
      result = _run(*arguments, f"--export_dir={second}")
      self.assertEqual(result.returncode, 0, result.stderr)
      self.assertEqual(hashes, _hashes(second))
    self.assertIn("encoder/assets/vocab.txt", hashes)
    for path in export_dir.rglob("*"):
      if path.is_file():
        self.assertNotIn(str(self.directory).encode(), path.read_bytes())
    graph = (export_dir / "preprocessor" / "saved_model.pb").read_bytes()
    self.assertNotIn(b"Assert", graph)
    card = (export_dir / "encoder" / "assets.extra/README.md").read_text()
    sha256 = re.search(r"`([0-9a-f]{64})`", card)[1]
    of_preprocessor = export_dir / "preprocessor" / "assets.extra/README.md"
    self.assertIn(sha256, of_preprocessor.read_text())
    for text in ("| `attention_dropout_rate` | 0.2 |", "`mlm_logits`"):
      self.assertIn(text, card)
    self.check_in_a_process_without_our_code(export_dir)

  def check_in_a_process_without_our_code(self, export_dir):
    outputs = self.directory / "outputs.npz"
    subprocess.run(
      [sys.executable, "-c", _CONSUMER, export_dir, outputs],
      check=True,
      cwd=self.directory,
      env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    actual = np.load(outputs)
    inputs = {name: actual[name] for name in bert.INPUT_NAMES}
    np.testing.assert_array_equal(
      inputs["input_word_ids"][:2],
      [[2, 57, 58, 35, 49, 60, 3, 0, 0], [2, 59, 3, 0, 0, 0, 0, 0, 0]],
    )
    expected = self.core(inputs)
    (head,) = self.pretrainer.classification_heads
    pooled = head.dense(expected["sequence_output"][:, 0])
    mlm = self.pretrainer(
      {**inputs, "masked_lm_positions": tf.constant([[1, 2]] * 4)}
    )
    for name, value in {
      "dict": pooled,
      "list": pooled,
      "dict of int64": pooled,
      "list of int64": pooled,
      "default": pooled,
      "sequence_output": expected["sequence_output"],
      "encoder_outputs": expected["encoder_outputs"][0],
      "mlm_logits": mlm["mlm_logits"],
      "of mlm signature": mlm["mlm_logits"],
    }.items():
      np.testing.assert_allclose(actual[name], value, atol=1e-5, err_msg=name)

  @parameterized.parameters(
    "encoder", "model", "items", "pretrainer", "model_is_pretrainer", "trainer"
  )
  @nightly.only
  def test_structures_of_checkpoints(self, name):
    self.assert_same_weights(
      self.export(checkpoint_path=str(self.directory / name))
    )

  @nightly.only
  def test_fine_tuned_checkpoints_without_their_heads(self):
    encoder = self.core.encoder
    values, _ = _config("bert", num_layers=1)
    wrong = self.write("one.yaml", yaml.safe_dump(values))
    for name, model, head in (
      ("classifier", models.BertClassifier(encoder, 3), "logits"),
      ("tagger", models.BertTokenClassifier(encoder, 3), "predictions/"),
      ("span", models.BertSpanLabeler(encoder), "predictions/"),
    ):
      with self.subTest(name):
        path = str(self.directory / name)
        items = model.checkpoint_items
        tf.train.Checkpoint(model=model, **items).write(path)
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
          export = self.export(checkpoint_path=path)
        self.assert_same_weights(export)
        left_out = rf"Left out of {path}, which has more .*: \S*{head}\S*\.\n"
        self.assertRegex(stdout.getvalue(), left_out)
        self.assert_refused(
          r"Checkpoint\(encoder=…\), does not match the model: it has encoder/",
          checkpoint_path=path,
          encoder_config_file=wrong,
        )
        self.assert_refused(
          "has no value for .*cls/predictions",
          checkpoint_path=path,
          export_type="encoder_with_mlm",
        )

  @nightly.only
  def test_poolers(self):
    expected = [
      w.numpy() for w in self.pretrainer.classification_heads[0].dense.weights
    ]
    for name in ("items", "pretrainer", "model_is_pretrainer"):
      export = self.export(
        checkpoint_path=str(self.directory / name), pooler="next_sentence"
      )
      self.assert_same_weights(export, but="pooler")
      pooler = [v for v in export.variables if "pooler" in v.name]
      np.testing.assert_array_equal(pooler[0], expected[0])
    self.assert_refused(
      "no value for next_sentence/pooler_dense/kernel:0",
      checkpoint_path=str(self.directory / "encoder"),
      pooler="next_sentence",
    )
    inputs = {name: tf.ones([2, 5], tf.int32) for name in bert.INPUT_NAMES}
    export = self.export(pooler="identity")
    self.assert_same_weights(export, but="pooler")
    outputs = export(inputs)
    np.testing.assert_allclose(
      outputs["pooled_output"], outputs["sequence_output"][:, 0], atol=1e-6
    )
    self.assert_same_weights(self.export(pooler="random"), but="pooler")
    self.assertNotIn("mlm", dir(export))

  @parameterized.parameters(
    ("bigbird", {"use_gradient_checkpointing": True}),
    ("mobilebert", {"classifier_activation": False}),
  )
  @nightly.only
  def test_encoders_without_pooler(self, kind, changes):
    values, config = _config(kind)
    values[kind].update(changes)
    config.override({kind: changes})
    # Gradient checkpointing replaces Keras' layer in the whole process.
    with mock.patch.object(tf_keras.layers, "Dropout", tf_keras.layers.Dropout):
      encoder = _randomized(encoders.build_encoder(config))
    path = str(self.directory / "without_pooler")
    tf.train.Checkpoint(encoder=encoder).write(path)
    arguments = {
      "checkpoint_path": path,
      "encoder_config_file": self.write("x.yaml", yaml.safe_dump(values)),
    }
    self.assert_refused("the checkpoint has no pooler", **arguments)
    export = self.export(pooler="identity", **arguments)
    inputs = {name: tf.ones([2, 32], tf.int32) for name in bert.INPUT_NAMES}
    actual, expected = export(inputs), encoder(inputs)
    expected.setdefault("pooled_output", expected["sequence_output"][:, 0])
    for name in ("pooled_output", "sequence_output"):
      np.testing.assert_allclose(actual[name], expected[name], atol=1e-5)

  @nightly.only
  def test_the_pooler_that_fine_tuning_trained(self):
    """By default, Model Garden's task fine-tunes the head's pooler."""
    path = str(self.directory / "fine_tuned")
    model = models.BertClassifier(
      self.core.encoder, 3, use_encoder_pooler=False
    )
    tf.train.Checkpoint(model=model, **model.checkpoint_items).write(path)
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
      self.assert_same_weights(self.export(checkpoint_path=path))
    self.assertRegex(
      stdout.getvalue(), "The head sentence_prediction .* --pooler=sentence_pre"
    )
    export = self.export(checkpoint_path=path, pooler="sentence_prediction")
    self.assert_same_weights(export, but="pooler")
    inputs = {name: tf.ones([2, 5], tf.int32) for name in bert.INPUT_NAMES}
    outputs = export(inputs)
    np.testing.assert_allclose(
      outputs["pooled_output"],
      model.classifier.dense(outputs["sequence_output"][:, 0]),
      atol=1e-6,
    )
    self.assert_refused(
      "no value for sentence_prediction/pooler_dense/kernel:0",
      checkpoint_path=str(self.directory / "trainer"),
      pooler="sentence_prediction",
    )

  def test_no_pooler_in_the_checkpoint(self):
    encoder = self.core.encoder
    view = tf.train.TrackableView(encoder)
    # Save the object graph without the paths that lead to the pooler.
    without = tf.train.Checkpoint()
    for name, child in view.children(encoder).items():
      is_layer = isinstance(child, tf_keras.layers.Layer)
      if is_layer and child is not encoder.pooler_layer:
        setattr(without, name, child)
    path = tf.train.Checkpoint(encoder=without).write(
      str(self.directory / "no_pooler")
    )
    self.assert_refused(
      "--pooler=checkpoint: the checkpoint has no pooler. Choose another: next",
      checkpoint_path=path,
    )
    for arguments in (
      {"pooler": "random"},
      {"pooler": None, "export_type": "text_embedding"},
    ):
      export = self.export(checkpoint_path=path, **arguments)
      self.assert_same_weights(export, but="pooler")
      for variable in export.variables:
        self.assertTrue(np.isfinite(variable).all())

  def test_checkpoints_must_match_both_ways(self):
    one, three = (
      self.write(f"{n}.yaml", yaml.safe_dump(_config("bert", num_layers=n)[0]))
      for n in (1, 3)
    )
    self.assert_refused("which the model lacks", encoder_config_file=one)
    self.assert_refused(
      r"has no value for transformer/layer_2/intermediate/kernel:0 \(16, 24\)",
      encoder_config_file=three,
    )
    self.assert_refused(
      "has no value for .*cls/predictions/transform/dense/kernel:0",
      checkpoint_path=str(self.directory / "encoder"),
      export_type="encoder_with_mlm",
    )

  def test_all_without_mlm(self):
    config = {
      "vocab_size": len(_TOKENS),
      "hidden_size": 16,
      "num_hidden_layers": 2,
      "num_attention_heads": 2,
      "intermediate_size": 24,
      "max_position_embeddings": 32,
      "type_vocab_size": 2,
    }
    export = self.export(
      checkpoint_path=str(self.directory / "encoder"),
      export_type="all",
      encoder_config_file=None,
      bert_config_file=self.write("bert_config.json", json.dumps(config)),
    )
    self.assert_same_weights(export)
    self.assertNotIn("mlm", dir(export))

  def test_preprocessor_alone(self):
    preprocessor = self.export(export_type="preprocessing")
    np.testing.assert_array_equal(
      preprocessor(["The fox."], seq_length=6)["input_word_ids"],
      [[2, 57, 58, 60, 3, 0]],
    )

  @nightly.only
  def test_text_embedding_is_pooled_output_of_the_encoder(self):
    self.export(export_type="all")
    kept = shutil.copytree(
      self.directory / "export", self.directory / "kept", dirs_exist_ok=True
    )
    encoder = tf.saved_model.load(str(kept / "encoder"))
    preprocessor = tf.saved_model.load(str(kept / "preprocessor"))
    texts = [*_SENTENCES, "", "fox", "unknown ☃", "the fox " * 99]
    inputs = preprocessor(texts)
    outputs = encoder(inputs)
    features = outputs["sequence_output"].numpy()
    mask = inputs["input_mask"].numpy().astype(bool)
    expected = {
      "mean": np.stack(
        [f[m].mean(0) for f, m in zip(features, mask, strict=True)]
      ),
      "cls": features[:, 0],
      "pooled": outputs["pooled_output"].numpy(),
    }
    for pooling, vectors in expected.items():
      embed = self.export(
        export_type="text_embedding",
        pooling=pooling,
        pooler="checkpoint" if pooling == "pooled" else None,
      )
      self.assert_same_weights(embed)
      close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
      close(embed(texts), vectors)
      # Vectors depend neither on padding nor on the other texts of the batch.
      for i, text in enumerate(texts):
        close(embed([text])[0], vectors[i])
      close(embed(texts[-3:-1], seq_length=30), vectors[-3:-1])
      self.assertEqual(embed(tf.constant([], tf.string)).shape, (0, 16))
      for part in (embed, embed.encoder, embed.preprocessor):
        self.assertEqual(
          part.preprocessor_sha256(), preprocessor.preprocessor_sha256()
        )
      unused = [] if pooling == "pooled" else ["pooler"]
      listed = {v.name for v in embed.trainable_variables}
      for variable in embed.encoder.trainable_variables:
        is_unused = any(name in variable.name for name in unused)
        self.assertEqual(variable.name not in listed, is_unused, variable.name)
      with self.assertRaisesRegex(
        ValueError, "past_the_position_table_which_has_32_rows"
      ):
        embed(texts, seq_length=33)

  @nightly.only
  def test_text_embedding_by_the_program(self):
    export_dir = self.directory / "text_embedding"
    result = _run(
      "--export_type=text_embedding",
      f"--encoder_config_file={self.config_file}",
      f"--checkpoint_path={self.directory / 'trainer'}",
      f"--vocab_file={self.vocab_file}",
      "--do_lower_case",
      "--seq_length=16",
      "--normalize",
      f"--export_dir={export_dir}",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    for line in (
      "✓ gradients, training (1,)",
      "✓ hyperparameters, seq_length 8",
      "✓ hub.KerasLayer, training (4,)",
      "- compilation under XLA, training (1,): XLA takes no strings.",
      "✓ encoder, compilation under XLA, training 3 of (1, 8)",
      "✓ preprocessor.tokenize, outputs, inference (3,)",
      "✓ preprocessor.bert_pack_inputs, hyperparameters, seq_length 8",
    ):
      self.assertIn(line, result.stdout)
    card = (export_dir / "assets.extra/README.md").read_text()
    for text in (
      "| `text_embeddings` | float32 | `[None, 16]` | the mean of the vectors",
      "[CLS] and [SEP] included, scaled to unit length |",
      'arguments={"seq_length": 16}',
      "With `tensorflow` and `tensorflow-text` alone, ",
      "| pooler | that of the checkpoint, or else initial weights |",
    ):
      self.assertIn(text, card)
    self.assertNotIn("l2_normalize", card)
    embed = tf.saved_model.load(str(export_dir))
    vectors = embed([*_SENTENCES, ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    mean = _mean_over_tokens(embed, [*_SENTENCES, ""], seq_length=16)
    np.testing.assert_allclose(
      vectors, tf.math.l2_normalize(mean, -1), rtol=0, atol=1e-5
    )
    # The file stores each weight once, although encoder and embedding share it.
    size = sum(v.numpy().nbytes for v in self.core.variables)
    (file,) = (export_dir / "variables").glob("*.data*")
    self.assertLess(file.stat().st_size, 1.5 * size)

  @nightly.only
  def test_text_embedding_trains_and_shares_its_weights(self):
    self.export(export_type="text_embedding", pooler=None)
    layer = hub.KerasLayer(
      str(self.directory / "export"),
      trainable=True,
      arguments={"dropout_rate": 0.0, "seq_length": 12},
      input_shape=[],
      dtype=tf.string,
    )
    before = [w.numpy() for w in layer.trainable_weights]
    model = tf_keras.Sequential([layer, tf_keras.layers.Dense(1)])
    model.compile(tf_keras.optimizers.Adam(1e-2), "mse")
    texts = tf.constant([*_SENTENCES, ""])
    model.fit(texts, tf.constant([0.0, 1.0, 2.0, 3.0]), epochs=2, verbose=0)
    still = [
      w.name
      for w, old in zip(layer.trainable_weights, before, strict=True)
      if np.array_equal(w, old)
    ]
    # A bias of keys shifts all scores before a softmax alike, so its gradient
    # is 0.
    self.assertEmpty([name for name in still if "key/bias" not in name])
    embed = layer.resolved_object
    mean = _mean_over_tokens(embed, texts, seq_length=12)
    np.testing.assert_allclose(layer(texts), mean, rtol=0, atol=1e-5)
    # Pass a Tensor, because a Python number of 0 is an error.
    vectors = embed(texts, seq_length=tf.constant(0))
    np.testing.assert_array_equal(vectors, 0.0)

  @nightly.only
  def test_trains_on_files_and_resumes(self):
    words = " ".join(_LETTERS)
    text = self.write(
      "text", "".join(f"{words} the fox\n\n" for _ in range(60))
    )
    checkpoint_dir = self.directory / "trained"

    def train(epochs):
      return self.export(
        checkpoint_path=None,
        vocab_file=None,
        training=bert_pretraining.Training(
          train_on=[text],
          config=pretraining.Config(
            epochs=epochs, steps_per_epoch=2, batch_size=4, seq_length=16
          ),
          do_lower_case=True,
          distribution=strategies.Config("mirrored"),
          checkpoint_dir=str(checkpoint_dir),
        ),
        pooler="random",
      )

    for epochs in (1, 2):
      export = train(epochs)
      newest = tf.train.latest_checkpoint(str(checkpoint_dir))
      self.assertEndsWith(newest, f"/ckpt-{2 * epochs}")
      positions = tf.train.load_variable(
        newest,
        "encoder/layer_with_weights-1/embeddings/.ATTRIBUTES/VARIABLE_VALUE",
      )
      np.testing.assert_array_equal(export.variables[1], positions)
    vocabulary = (checkpoint_dir / "vocab.txt").read_text()
    self.assertEqual(
      pathlib.Path(export.vocab_file.asset_path.numpy().decode()).read_text(),
      vocabulary,
    )
    self.assertLen(vocabulary.splitlines(), export.variables[0].shape[0])
    # The trained checkpoint can be exported again without the text.
    again = self.export(
      checkpoint_path=str(checkpoint_dir),
      encoder_config_file=str(checkpoint_dir / "encoder.yaml"),
      vocab_file=str(checkpoint_dir / "vocab.txt"),
      pooler="random",
    )
    for variable, expected in zip(
      again.variables, export.variables, strict=True
    ):
      np.testing.assert_array_equal(variable, expected)
    with self.assertRaisesRegex(
      errors.ExportError, f"^{checkpoint_dir} has a checkpoint of 4 steps"
    ):
      train(1)

  def test_what_does_not_go_together(self):
    text = pathlib.Path(self.vocab_file).read_text()
    for name, changed, message in (
      ("short", text.removesuffix(".\n"), "has 60 tokens, but the encoder's"),
      (
        "long",
        text + "x y\n",
        "has 62 tokens, .*a vocab_size of 61.* 1 too many",
      ),
      ("twice", text + "fox\n", "fox is in it twice, lines 59, 62"),
      ("special", text.replace("[MASK]", "[M]"), r"it lacks \[MASK\]"),
      ("cased", text.replace("o", "O"), "with --do_lower_case: no text yields"),
      (
        "accents",
        text.replace("o", "ó"),
        "Nor does it go with --nodo_lower_case",
      ),
    ):
      with self.subTest(name):
        self.assert_refused(message, vocab_file=self.write(name, changed))
    self.assert_refused(
      "does not go with --nodo_lower_case: no token has", do_lower_case=False
    )
    self.assert_refused("seq_length=64 is past", seq_length=64)
    self.assert_refused("No such file", vocab_file="/no/file")
    self.assert_refused(
      r"unknown key num_layer \(the nearest is num_layers\)",
      encoder_config_file=self.write("x", "type: bert\nbert: {num_layer: 1}"),
    )
    for changes, message in (
      ({"hidden_activation": "geluu"}, "with hidden_activation=geluu: Unknown"),
      ({"dropout_rate": 5.0}, "dropout_rate is 5.0, and must be from 0"),
    ):
      values = yaml.safe_dump(_config("bert", **changes)[0])
      self.assert_refused(
        message, encoder_config_file=self.write("wrong.yaml", values)
      )
    self.export(do_lower_case=False, check_casing=False)

  @parameterized.parameters(
    ("albert", {}),
    ("bert", {}),
    *((kind, {}) for kind in _TYPES),
    ("funnel", {"pool_type": "avg", "unpool_length": 1}),
    ("kernel", {"begin_kernel": 4, "feature_transform": "expplus"}),
    ("kernel", {"redraw": True}),
    ("reuse", {"use_relative_pe": True, "reuse_attention": 1, "num_layers": 3}),
  )
  @nightly.only
  def test_train_step_of_encoder_type_compiles_once(self, kind, changes):
    _, config = _config(kind, **changes)
    source = bert_encoder.piece(bert.core_model(config), None, {}).source
    step = tf.function(
      observation.train_step(source, source.function), autograph=False
    )
    # Trace the spec, not examples: with static shapes other ops need constants.
    trace = step.get_concrete_function(
      source.input_spec,
      training=True,
      **{h.name: h.spec for h in source.hyperparameters},
    )
    self.assertEmpty(xla_trap.constants(trace))
    graph = trace.graph.as_graph_def()
    for find in xla_trap.branches, xla_trap.loops:
      self.assertEmpty(find(graph))
    # The backward pass must not draw random numbers: a repeated dropout would
    # drop other units.
    random = {"forward": 0, "backward": 0}
    for function in graph.library.function:
      for name in random:
        if f"__{name}_" in function.signature.name:
          random[name] += sum("Random" in n.op for n in function.node_def)
    self.assertGreater(random["forward"], 0)
    self.assertEqual(random["backward"], 0)

  @parameterized.parameters(*_TYPES)
  @nightly.only
  def test_encoder_type(self, kind):
    if kind != "bert_v2" and not _ALL_TYPES.value:
      self.skipTest("bert_all_types_test runs it.")
    # Full verification takes minutes.
    verification = "full" if _ALL_TYPES.value else "fast"
    values, config = _config(kind)
    core = bert.core_model(config)
    model = core if kind == "funnel" else bert.pretrain_model(core)
    _randomized(model)
    path = str(self.directory / kind)
    items = getattr(model, "checkpoint_items", {"encoder": core.encoder})
    tf.train.Checkpoint(**items).write(path)
    export = self.export(
      export_type="encoder" if kind == "funnel" else "encoder_with_mlm",
      encoder_config_file=self.write(f"{kind}.yaml", yaml.safe_dump(values)),
      checkpoint_path=path,
      verification=verification,
    )
    self.assertLen(export.variables, len(core.variables))
    if kind == "bert_v2":
      return  # The tests of text embeddings use an encoder of this type.
    embed = functools.partial(
      self.export,
      export_type="text_embedding",
      encoder_config_file=str(self.directory / f"{kind}.yaml"),
      checkpoint_path=path,
      pooler="random",
      verification=verification,
      seq_length=32,
    )
    pooling = "mean"
    if kind == "funnel":
      with self.assertRaisesRegex(errors.ExportError, "Say --pooling=pooled"):
        embed()
      pooling = "pooled"
    if kind in bert.FIXED_SEQ_LENGTH:
      with self.assertRaisesRegex(errors.ExportError, "Say --seq_length=32"):
        embed(seq_length=16)
    vectors = embed(pooling=pooling)(_SENTENCES)
    self.assertEqual(vectors.shape, (3, core.output["default"].shape[1]))

  @nightly.only
  def test_albert_with_sentencepiece(self):
    sp_model_file = self.directory / "sentencepiece.model"
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(_SENTENCES * 9),
      # The file contains this path, which must not get into the export.
      model_prefix=str(sp_model_file.with_suffix("")),
      vocab_size=36,
      pad_id=0,
      unk_id=1,
      bos_id=-1,
      eos_id=-1,
      control_symbols=["[CLS]", "[SEP]", "[MASK]"],
      minloglevel=2,
    )
    values, config = _config("albert", vocab_size=36)
    core = bert.core_model(config)
    items = _randomized(bert.pretrain_model(core)).checkpoint_items
    arguments = {
      "vocab_file": None,
      "sp_model_file": str(sp_model_file),
      "encoder_config_file": self.write("albert", yaml.safe_dump(values)),
      "checkpoint_path": tf.train.Checkpoint(**items).write(
        str(self.directory / "albert_checkpoint")
      ),
    }
    encoder = self.export(
      **arguments, export_type="all", seq_length=16, verification="fast"
    )
    directory = self.directory / "export"
    preprocessor = tf.saved_model.load(str(directory / "preprocessor"))
    inputs = preprocessor([s.upper() for s in _SENTENCES])
    processor = sentencepiece.SentencePieceProcessor(str(sp_model_file))
    for row, sentence in zip(
      inputs["input_word_ids"].numpy(), _SENTENCES, strict=True
    ):
      ids = [2, *processor.encode(sentence)[:14], 3]
      np.testing.assert_array_equal(row, ids + [0] * (16 - len(ids)))
    outputs, expected = encoder(inputs), core(inputs)
    for name in ("sequence_output", "pooled_output"):
      np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)
    self.assertIn("mlm", dir(encoder))
    self.assertEqual(
      encoder.preprocessor_sha256(), preprocessor.preprocessor_sha256()
    )
    self.assertEqual(
      pathlib.Path(encoder.sp_model_file.asset_path.numpy().decode()),
      directory / "encoder" / "assets" / "sentencepiece.model",
    )
    here = str(self.directory).encode()
    self.assertIn(here, sp_model_file.read_bytes())
    for path in directory.rglob("*"):
      if path.is_file():
        self.assertNotIn(here, path.read_bytes(), path)
    graph = (directory / "preprocessor" / "saved_model.pb").read_bytes()
    self.assertNotIn(b"Assert", graph)
    for message, changed in (
      (
        "has 36 tokens, .*a vocab_size of 61",
        {"encoder_config_file": self.config_file},
      ),
      ("does not go with --nodo_lower_case", {"do_lower_case": False}),
      ("not a SentencePiece model", {"sp_model_file": self.vocab_file}),
    ):
      self.assert_refused(message, **{**arguments, **changed})

  def test_encoder_types_that_are_refused(self):
    for kind, message in (
      ("xlnet", "its inputs are not those of BERT"),
      ("sparse_mixer", "A call of layer router adds losses"),
    ):
      values, config = _config(kind)
      path = str(self.directory / kind)
      if kind != "xlnet":
        tf.train.Checkpoint(encoder=bert.core_model(config).encoder).write(path)
      self.assert_refused(
        message,
        encoder_config_file=self.write(f"{kind}.yaml", yaml.safe_dump(values)),
        checkpoint_path=path,
      )

  def test_help_is_answered_at_once(self):
    result = _run("--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    self.assertIn("models.nlp.bert", result.stderr)
    self.assertNotIn("tensorflow", result.stderr)
    self.assertNotIn("official", result.stderr)
    self.assertIn("bazel run //exporters:bert", result.stdout)


if __name__ == "__main__":
  absltest.main()
