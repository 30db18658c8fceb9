import contextlib
import io
import json
import os
import shutil
import subprocess
from unittest import mock
import zipfile

from absl import flags
from absl.testing import absltest
import h5py
import numpy as np
from official.legacy.bert import bert_models
from official.legacy.bert import configs
from safetensors import numpy as safetensors_numpy
import tensorflow as tf
import tf_keras

from exporters import bert_sources
from exporters import to_safetensors
from exporters.reusable import errors
from exporters.reusable import keras_files
from exporters.reusable import weight_tables
from models.nlp import bert
from models.nlp import encoder_checkpoints
from models.nlp import encoder_config
from models.nlp import preprocessing
from tools import nightly

# make_goldens.py and make_keras_hub_goldens.py in peers/ write these files.
_PEERS = os.path.join(os.path.dirname(__file__), "peers", "testdata")
_GOLDENS = os.path.join(_PEERS, "hugging_face")

_SIZES = {
  "vocab_size": 30,
  "hidden_size": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 20,
  "max_position_embeddings": 16,
  "type_vocab_size": 2,
}
_TF1 = {
  "bert": {**_SIZES},
  "electra": {**_SIZES, "embedding_size": 8},
  "albert": {**_SIZES, "embedding_size": 8, "num_hidden_groups": 1},
  "mobilebert": {
    **_SIZES,
    "embedding_size": 6,
    "hidden_act": "relu",
    "intra_bottleneck_size": 8,
    "num_feedforward_networks": 2,
  },
}

_ADDED = '{"added_tokens": [], "normalizer": {"type": "BertNormalizer"}'
# The name of a file; its content, or None for a pipe; and the expected error,
# or None.
_UNUSABLE = (
  ("config.json", "{", "config.json is no JSON: Expecting"),
  ("config.json", "[]", "config.json: its JSON is not an object"),
  ("config.json", None, "config.json is a directory, a pipe or a dev"),
  ("modules.json", "[{", "modules.json is no JSON: Expecting"),
  ("modules.json", '{"": {"a": 1}}', "modules.json: its JSON is not a lis"),
  ("modules.json", "[5]", "modules.json: its first module is no JSON obj"),
  ("modules.json", None, "modules.json is a directory, a pipe or a de"),
  ("1_Pooling/config.json", "{'", "1_Pooling/config.json is no JSON: Exp"),
  ("1_Pooling/config.json", '{"pooling_mode": 5}', "is 5, and must be str"),
  ("modules.json", '[{"type": 7}, 5]', "modules.json: a value .*'int' obj"),
  ("sentence_bert_config.json", '{"max_seq_length": "9"}', "must be int"),
  ("tokenizer_config.json", '{"do_lower_', "tokenizer_config.json is no J"),
  ("tokenizer_config.json", '{"do_lower_case": "False"}', "must be bool"),
  ("tokenizer_config.json", '{"model_max_length": true}', "int or float"),
  (
    "tokenizer_config.json",
    '{"unk_token": "the"}',
    "has the unk_token the",
  ),
  ("tokenizer_config.json", '{"never_split": ["a"]}', "tokens, such as a"),
  (
    "tokenizer_config.json",
    '{"added_tokens_decoder": {"5": {"content": ["a"]}}}',
    "The tokenizer in .*: a value .*unhashable",
  ),
  ("special_tokens_map.json", "5", "json: its JSON is not an object"),
  ("added_tokens.json", None, "added_tokens.json is a directory, a pipe"),
  (
    "tokenizer.json",
    _ADDED.replace("[]", '[{"content": "a"}]') + " " * 2**23 + "}",
    "has added tokens, such as a",
  ),
  ("model.safetensors.index.json", None, None),
)


def _expected(path):
  tensors = weight_tables.read_safetensors(f"{path}/expected.safetensors")
  return {name: tensor.read() for name, tensor in tensors.items()}


def _restored(source, with_mlm=None):
  tf_keras.backend.clear_session()  # Numbers layer names from 0 again.
  core = bert.core_model(source.config)
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    pretrainer = encoder_checkpoints.restore(
      core,
      lambda roots, **kwargs: bert_sources.restore(source, roots, **kwargs),
      pooler_from=source.options.get("pooler", "random"),
      with_mlm=with_mlm,
    )
  return core, pretrainer, printed.getvalue()


class _Published:
  """Computes encoders by the published formulas of the first releases.

  The names of variables are also those of the first releases.
  """

  def __init__(self, kind, sizes):
    self.kind, self.sizes = kind, sizes
    self.root = "electra" if kind == "electra" else "bert"

  def variable(self, name, *shape):
    normal = tf.compat.v1.random_normal_initializer(0.0, 0.3)
    return tf.compat.v1.get_variable(name, shape, initializer=normal)

  def dense(self, x, units, name):
    kernel = self.variable(f"{name}/kernel", x.shape[-1], units)
    return tf.tensordot(x, kernel, 1) + self.variable(f"{name}/bias", units)

  def norm(self, x, name):
    size = x.shape[-1]
    if self.kind == "mobilebert" and "cls" not in name:
      name = name.replace("LayerNorm", "FakeLayerNorm")
    else:
      mean, variance = tf.nn.moments(x, -1, keepdims=True)
      x = (x - mean) / tf.sqrt(variance + 1e-12)
    gamma = self.variable(f"{name}/gamma", size)
    return x * gamma + self.variable(f"{name}/beta", size)

  def act(self, x):
    if self.kind == "mobilebert":
      return tf.nn.relu(x)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x * 0.5 * (1 + tf.tanh(inner))

  def attention(self, x, values, mask, units, name):
    heads = self.sizes["num_attention_heads"]

    def split(x, part):
      x = self.dense(x, units, f"{name}/{part}")
      x = tf.reshape(x, [*x.shape[:2], heads, -1])
      return tf.transpose(x, [0, 2, 1, 3])

    query, key, value = split(x, "query"), split(x, "key"), None
    value = split(values, "value")
    scores = tf.matmul(query, key, transpose_b=True)
    scores /= np.sqrt(query.shape[-1])
    scores += (1 - tf.cast(mask, tf.float32))[:, None, None] * -1e4
    mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])
    return tf.reshape(mixed, [*x.shape[:2], units])

  def embeddings(self, ids, types):
    sizes, root = self.sizes, f"{self.root}/embeddings"
    hidden = sizes["hidden_size"]
    width = sizes.get("embedding_size", hidden)
    table = self.variable(f"{root}/word_embeddings", 30, width)
    x = tf.gather(table, ids)
    if self.kind == "mobilebert":
      after, before = tf.pad(x, [[0, 0], [0, 1], [0, 0]])[:, 1:], None
      before = tf.pad(x, [[0, 0], [1, 0], [0, 0]])[:, :-1]
      x = tf.concat([after, x, before], -1)
      x = self.dense(x, hidden, f"{root}/embedding_transformation")
      width = hidden
    x += tf.gather(
      self.variable(f"{root}/token_type_embeddings", 2, width), types
    )
    positions = self.variable(f"{root}/position_embeddings", 16, width)
    x = self.norm(x + positions[: ids.shape[1]], f"{root}/LayerNorm")
    if self.kind == "electra":
      x = self.dense(x, hidden, "electra/embeddings_project")
    if self.kind == "albert":
      name = "bert/encoder/embedding_hidden_mapping_in"
      x = self.dense(x, hidden, name)
    return table, x

  def layer(self, x, mask, name):
    hidden, inner = self.sizes["hidden_size"], self.sizes["intermediate_size"]
    if self.kind == "albert":
      name = "bert/encoder/transformer/group_0/inner_group_0"
      y = self.attention(x, x, mask, hidden, f"{name}/attention_1/self")
      y = self.dense(y, hidden, f"{name}/attention_1/output/dense")
      x = self.norm(x + y, f"{name}/LayerNorm")
      y = self.act(self.dense(x, inner, f"{name}/ffn_1/intermediate/dense"))
      y = self.dense(y, hidden, f"{name}/ffn_1/intermediate/output/dense")
      return self.norm(x + y, f"{name}/LayerNorm_1")
    if self.kind == "mobilebert":
      return self.mobile_layer(x, mask, name)
    y = self.attention(x, x, mask, hidden, f"{name}/attention/self")
    y = self.dense(y, hidden, f"{name}/attention/output/dense")
    x = self.norm(x + y, f"{name}/attention/output/LayerNorm")
    return self.feed_forward(x, name)

  def feed_forward(self, x, name):
    inner = self.sizes["intermediate_size"]
    y = self.act(self.dense(x, inner, f"{name}/intermediate/dense"))
    y = self.dense(y, x.shape[-1], f"{name}/output/dense")
    return self.norm(x + y, f"{name}/output/LayerNorm")

  def mobile_layer(self, x, mask, name):
    small = self.sizes["intra_bottleneck_size"]

    def bottleneck(part):
      y = self.dense(x, small, f"{name}/bottleneck/{part}/dense")
      return self.norm(y, f"{name}/bottleneck/{part}/LayerNorm")

    y, shared = bottleneck("input"), bottleneck("attention")
    mixed = self.attention(shared, x, mask, small, f"{name}/attention/self")
    mixed = self.dense(mixed, small, f"{name}/attention/output/dense")
    y = self.norm(y + mixed, f"{name}/attention/output/LayerNorm")
    y = self.feed_forward(y, f"{name}/ffn_layer_0")
    y = self.feed_forward(y, name)
    y = self.dense(y, x.shape[-1], f"{name}/output/bottleneck/dense")
    return self.norm(x + y, f"{name}/output/bottleneck/LayerNorm")

  def write(self, path, inputs):
    """Writes a TensorFlow 1 checkpoint; returns the encoder's outputs."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      ids, mask, types = map(tf.constant, inputs)
      with tf.compat.v1.variable_scope("", reuse=tf.compat.v1.AUTO_REUSE):
        table, x = self.embeddings(ids, types)
        for i in range(self.sizes["num_hidden_layers"]):
          x = self.layer(x, mask, f"{self.root}/encoder/layer_{i}")
        outputs = {"sequence_output": x}
        if self.kind != "electra":
          y = self.dense(x[:, 0], x.shape[-1], "bert/pooler/dense")
          outputs["pooled_output"] = tf.tanh(y)
        if self.kind in ("albert", "bert"):
          name = "cls/predictions/transform"
          y = self.act(self.dense(x, table.shape[1], f"{name}/dense"))
          y = tf.tensordot(self.norm(y, f"{name}/LayerNorm"), table, [[2], [1]])
          outputs["mlm_logits"] = y + self.variable(
            "cls/predictions/output_bias", 30
          )
        self.variable("cls/seq_relationship/output_weights", 2, 12)
        self.variable(f"{self.root}/embeddings/LayerNorm/beta/adam_m", 12)
        tf.compat.v1.train.create_global_step()
      session.run(tf.compat.v1.global_variables_initializer())
      tf.compat.v1.train.Saver().save(session, path)
      return session.run(outputs)


class BertSourcesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.create_tempdir().full_path

  def check(self, source, inputs, expected):
    core, pretrainer, printed = _restored(source)
    outputs = core(inputs)
    rows = inputs["input_mask"].numpy().astype(bool)
    compared = {"sequence_output", "pooled_output"}.intersection(expected)
    if pretrainer:
      positions = tf.broadcast_to(tf.range(rows.shape[1]), rows.shape)
      mlm = pretrainer({**inputs, "masked_lm_positions": positions})
      outputs["mlm_logits"] = mlm["mlm_logits"]
      compared.add("mlm_logits")
    self.assertEqual(bool(pretrainer), "mlm_logits" in expected)
    for output in compared:
      actual, wanted = outputs[output].numpy(), expected[output]
      if wanted.ndim == 3:
        actual, wanted = actual[rows], wanted[rows]
      np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)
    return printed

  def test_outputs_are_those_of_transformers(self):
    for name in sorted(os.listdir(_GOLDENS)):
      path = os.path.join(_GOLDENS, name)
      expected = _expected(path)
      if "sequence_output" not in expected:
        continue
      # The head of MobileBERT in transformers computes something else.
      if name == "mobilebert":
        del expected["mlm_logits"]
      with self.subTest(name):
        inputs = {
          k: tf.constant(v, tf.int32)
          for k, v in expected.items()
          if k.startswith("input_")
        }
        printed = self.check(bert_sources.read(path), inputs, expected)
        self.assertRegex(printed, f"^Restored .*hugging_face/{name}, a Hugging")

  @nightly.only
  def test_outputs_are_those_of_the_first_releases(self):
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 30, [3, 9], np.int32)
    types = generator.integers(0, 2, [3, 9], np.int32)
    mask = np.int32([[1] * 9, [1] * 6 + [0] * 3, [1] + [0] * 8])
    inputs = dict(zip(bert.INPUT_NAMES, (ids, mask, types), strict=True))
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    for kind, sizes in _TF1.items():
      with self.subTest(kind):
        path = os.path.join(self.directory, f"{kind}.ckpt")
        expected = _Published(kind, sizes).write(path, (ids, mask, types))
        file = os.path.join(self.directory, f"{kind}.json")
        with open(file, "w") as f:
          json.dump(sizes, f)
        config = encoder_config.from_legacy_json(file)
        source = bert_sources.of_tensorflow_1(path, config)
        self.assertEqual(source.model_type, kind)
        if "pooled_output" in expected:
          source.options["pooler"] = "checkpoint"
        printed = self.check(source, inputs, expected)
        self.assertIn(f"checkpoint of TensorFlow 1 of type {kind}", printed)
        self.assertIn("counters (1), heads (1), optimizer (1)", printed)
    path = os.path.join(self.directory, "electra.ckpt")
    for kind, changed, message in (
      (
        "electra",
        {"num_hidden_layers": 3},
        "no value, electra/encoder/layer_2",
      ),
      (
        "electra",
        {"num_hidden_layers": 1},
        "has electra/encoder/layer_1/.*lack",
      ),
      (
        "electra",
        {"intermediate_size": 8},
        r"has \(12, 20\) for electra/encod",
      ),
      ("albert", {}, "1 of type electra, and its config is of type albert"),
    ):
      with open(file, "w") as f:
        json.dump({**_TF1[kind], **changed}, f)
      config = encoder_config.from_legacy_json(file)
      with self.assertRaisesRegex(errors.ExportError, message) as raised:
        _restored(bert_sources.of_tensorflow_1(path, config))
      self.assertNotIn("\n", str(raised.exception))

  @nightly.only
  def test_outputs_are_those_of_keras_hub(self):
    for name in sorted(os.listdir(f"{_PEERS}/keras_hub")):
      golden = f"{_PEERS}/keras_hub/{name}"
      path = os.path.join(self.directory, name)
      os.mkdir(path)
      shutil.copy(f"{golden}/config.json", path)
      weights = safetensors_numpy.load_file(f"{golden}/weights.safetensors")
      with h5py.File(f"{path}/model.weights.h5", "w") as f:
        for key, value in weights.items():
          f[key] = value
      expected = _expected(golden)
      inputs = {k: tf.constant(expected[k], tf.int32) for k in bert.INPUT_NAMES}
      with self.subTest(name):
        self.check(bert_sources.read(path), inputs, expected)
    name = "layers/layer_normalization/vars/1"
    for change, message in (
      (lambda f: f.create_dataset("more", [3], "f"), r"has more \(3,\), which"),
      (lambda f: f.pop(name), f"it has no value, {name}, for embeddings/"),
      (
        lambda f: f.create_dataset(name, [7], "f"),
        rf"has \(7,\) for {name}, ",
      ),
    ):
      with h5py.File(f"{path}/model.weights.h5", "a") as f:
        change(f)
      with self.assertRaisesRegex(errors.ExportError, message) as raised:
        _restored(bert_sources.read(path))
      self.assertNotIn("\n", str(raised.exception))
    os.remove(f"{path}/model.weights.h5")
    with self.assertRaisesRegex(errors.ExportError, "Cannot read .*weights.h5"):
      bert_sources.read(path)

  @nightly.only
  def test_files_of_keras(self):
    directory = self.create_tempdir().full_path
    file = os.path.join(directory, "bert_config.json")
    with open(file, "w") as f:
      json.dump(_SIZES, f)
    config = encoder_config.from_legacy_json(file)
    legacy, saved = bert_models.pretrain_model(
      configs.BertConfig.from_dict(_SIZES), 8, 4
    )
    for i, variable in enumerate(legacy.variables):
      variable.assign(tf.random.stateless_normal(variable.shape, [i, 0]))
    ids = np.arange(10).reshape(2, 5)
    inputs = {
      "input_word_ids": ids,
      "input_mask": np.ones_like(ids),
      "input_type_ids": ids % 2,
    }
    for path, write, left_out in (
      ("all.keras", legacy.save, "heads (2), metrics (8)"),
      ("bert.weights.h5", legacy.save_weights, "heads (2), metrics (8)"),
      ("bert.h5", legacy.save_weights, "heads (2)"),
    ):
      path = os.path.join(directory, path)
      write(path)
      source = bert_sources.of_keras(path, config)
      source.options["pooler"] = "checkpoint"
      core, pretrainer, printed = _restored(source)
      del source  # It keeps the file open.
      self.assertIsNotNone(pretrainer)
      self.assertIn(f"Left out: {left_out}.", printed)
      expected = saved(inputs)
      for name, wanted in zip(
        ("sequence_output", "pooled_output"), expected, strict=True
      ):
        np.testing.assert_allclose(core(inputs)[name], wanted, atol=1e-5)
      head = pretrainer.masked_lm.bias
      self.assertTrue(np.any(head), path)
    self.refuse_files_of_keras(directory, config)

  def refuse_files_of_keras(self, directory, config):
    group = "layers/bert_pretrainer/layers/bert_encoder/pooler_layer/vars/1"
    path = os.path.join(directory, "bert.weights.h5")
    for change, message in (
      (lambda f: f.move(group, f"{group}x"), "no value.*it has .*1x .*lacks"),
      (
        lambda f: f.pop(f"{group}x"),
        "no value, pooler_layer/vars/1, for",
      ),
      (
        lambda f: f.create_dataset(group, [3], "f"),
        r"has \(3,\) for .*/vars/1",
      ),
    ):
      with h5py.File(path, "a") as f:
        change(f)
      with self.assertRaisesRegex(errors.ExportError, message) as raised:
        _restored(bert_sources.of_keras(path, config))
      self.assertNotIn("\n", str(raised.exception))
    path = os.path.join(directory, "bert.h5")
    name = "embeddings/layer_norm/beta:0"
    for change, message in (
      (
        lambda f: f.move(name, f"{name}x"),
        "no value.*it has .*0x .*, which the",
      ),
      (lambda f: f.pop(f"{name}x"), "no value, embeddings/layer_norm/beta"),
      (lambda f: f.create_dataset(name, [3], "f"), r"has \(3,\) for .*/beta"),
    ):
      with h5py.File(path, "a") as f:
        change(f["bert_pretrainer"])
      with self.assertRaisesRegex(errors.ExportError, message):
        _restored(bert_sources.of_keras(path, config))

  def test_odd_files_of_keras(self):
    path = os.path.join(self.directory, "odd.h5")
    odd = "bert/a\nb_" + "9" * 5000
    with h5py.File(path, "w") as f:
      f.attrs["layer_names"] = ["bert"]
      f[f"{odd}/kernel:0"] = np.zeros(2)
    self.assertEqual([*keras_files.read(path)[1]], [f"{odd}/kernel"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as f:
      f.writestr("model.weights.h5", bytes(80 * 2**20))
    with self.assertRaisesRegex(errors.ExportError, "to 83,886,080 bytes"):
      keras_files.read(path)
    os.remove(path)
    os.mkfifo(path)
    with self.assertRaisesRegex(errors.ExportError, "a pipe or a device"):
      keras_files.read(path)

  def test_tokens_are_those_of_transformers(self):
    path = os.path.join(_GOLDENS, "sentence_transformer")
    source = bert_sources.read(path)
    self.assertEqual(source.options["seq_length"], 16)
    self.assertEqual(source.options["pooling"], "mean")
    self.assertTrue(source.options["normalize"])
    tokenizer = preprocessing.wordpiece_tokenizer(
      preprocessing.read_vocabulary(source.options["vocab_file"]),
      do_lower_case=source.options["do_lower_case"],
      as_transformers=True,
    )
    with open(f"{path}/texts.json") as f:
      texts = json.load(f)
    packed = preprocessing.pack(
      [tokenizer.tokenize(tf.constant(texts))], 16, tokenizer.special_tokens
    )
    expected = _expected(path)
    for name in ("input_word_ids", "input_mask"):
      np.testing.assert_array_equal(packed[name], expected[name])

  def tokenizer(self, config, whole):
    for name, content in (
      ("tokenizer_config.json", config),
      ("tokenizer.json", {"normalizer": {"type": "BertNormalizer", **whole}}),
    ):
      with open(os.path.join(self.directory, name), "w") as f:
        json.dump(content, f)
    return bert_sources._tokenizer(self.directory)

  def test_files_of_tokenizers(self):
    # As in transformers, tokenizer_config.json overrides tokenizer.json, unless
    # the tokenizer class is generic.
    for kind, lower, file in (
      ("BertTokenizerFast", False, "tokenizer_config.json"),
      ("PreTrainedTokenizerFast", True, "tokenizer.json"),
    ):
      options, origins = self.tokenizer(
        {"tokenizer_class": kind, "do_lower_case": False}, {"lowercase": True}
      )
      self.assertEqual(options["do_lower_case"], lower)
      self.assertEqual(origins["do_lower_case"], file)
    for config, whole, message in (
      ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, "BertJapaneseToken"),
      (
        {"added_tokens_decoder": {"7": {"content": "[ENT]"}}},
        {},
        r"added tokens, such as \[ENT\]. The preprocessor would split them",
      ),
      (
        {"do_lower_case": True, "strip_accents": False},
        {"strip_accents": True},
        "tokenizer_config.json has strip_accents false and do_lower_case true",
      ),
    ):
      with self.assertRaisesRegex(errors.ExportError, message):
        self.tokenizer(config, whole)

  def test_casing_that_tokens_decide(self):
    path = os.path.join(self.directory, "vocab.txt")
    for tokens, lower in (
      ("the fox runs", True),
      ("The fox runs", False),
      ("\u6f22 \u5b57 \u8a9e", None),
    ):
      with open(path, "w") as f:
        f.write("\n".join([*preprocessing.SPECIAL_TOKENS, *tokens.split()]))
      self.assertEqual(bert_sources._casing(path), lower)

  def test_older_names_of_poolings(self):
    path = os.path.join(self.directory, "sentence_transformer")
    shutil.copytree(f"{_GOLDENS}/sentence_transformer", path)
    for mode, pooling in (
      ("mean_tokens", "mean"),
      ("cls_token", "cls"),
      ("mean_sqrt_len_tokens", None),
    ):
      said = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens"), False)
      said = {f"pooling_mode_{k}": v for k, v in {**said, mode: True}.items()}
      with open(f"{path}/1_Pooling/config.json", "w") as f:
        json.dump({"word_embedding_dimension": 12, **said}, f)
      source = bert_sources.read(path)
      self.assertEqual(source.options.get("pooling"), pooling)
      problem = "" if pooling else f"its pooling is {mode}"
      self.assertEqual(source.problem, problem)

  def saved(self, core, config):
    """Saves the parts of an export that //exporters:safetensors reads."""
    for name, content in (("config.json", config), ("vocab.txt", "[PAD]\n")):
      with open(os.path.join(self.directory, name), "w") as f:
        f.write(content)
    root = tf.Module()
    root.weights = core.variables
    root.do_lower_case = tf.Variable(True, name="do_lower_case")
    root.activation = tf.function(tf.nn.gelu)
    root.activation.get_concrete_function(tf.TensorSpec([]))
    root.assets = [
      tf.saved_model.Asset(os.path.join(self.directory, name))
      for name in ("config.json", "vocab.txt")
    ]
    path = os.path.join(self.directory, "export")
    tf.saved_model.save(root, path)
    return path

  def test_out_again(self):
    golden, out = f"{_GOLDENS}/distilbert", f"{self.directory}/out"
    core, _, _ = _restored(bert_sources.read(golden), with_mlm=False)
    config = encoder_config.to_hugging_face(core.encoder_config, "distilbert")
    names_code = {**config, "auto_map": {"AutoModelForMaskedLM": "x/y--m.Z"}}
    path = self.saved(core, json.dumps(names_code))
    to_safetensors.write(path, out, 5_000)
    # The shards and their index are several files.
    self.assertGreater(len(os.listdir(out)), 5)
    tensors = weight_tables.read_safetensors(golden)
    written = weight_tables.read_safetensors(out)
    self.assertLen(written, 36)
    for name, tensor in written.items():
      expected = tensors[f"distilbert.{name}"].read()
      self.assertEqual(tensor.read().tobytes(), expected.tobytes())
    with open(f"{golden}/config.json") as f, open(f"{out}/config.json") as g:
      said, again = json.load(f), json.load(g)
    for key in ("dim", "n_layers", "n_heads", "activation", "vocab_size"):
      self.assertEqual(again[key], said[key])
    self.assertNotIn("auto_map", again)
    vocab_file = f"{path}/assets/vocab.txt"
    os.remove(vocab_file)
    os.symlink(f"{self.directory}/vocab.txt", vocab_file)
    with self.assertRaisesRegex(errors.ExportError, "vocab.txt is a symbolic"):
      to_safetensors.write(path, f"{self.directory}/other", 10**9)
    os.remove(vocab_file)
    core.get_layer("type_embeddings").embeddings.assign_add(tf.ones([2, 12]))
    for content, message in (
      (json.dumps(config), "type_embeddings/embeddings has values other than"),
      (json.dumps({**config, "n_layers": 3}), "layer_2/.* is not in both"),
      ("{}", "has no assets/config.json of bert"),
      (json.dumps({**config, "n_heads": 4}), "shape .12, 2, 6., and"),
      (json.dumps({**config, "activation": "relu"}), "compute the activation"),
      (json.dumps({**config, "activation": "silu"}), "compute the activation"),
      (json.dumps(config), "word_embeddings/embeddings has values that are no"),
    ):
      if "values that are no" in message:
        core.get_layer("word_embeddings").embeddings.assign_add(
          [[np.nan] * 12] * 40
        )
      path = self.saved(core, content)
      with self.assertRaisesRegex(errors.ExportError, message):
        to_safetensors.write(path, f"{self.directory}/other", 10**9)

  def test_report_without_an_export(self):
    from exporters import checkpoint_report

    for name, program in (("bert", "bert"), ("gpt2", "bert"), ("vit", "vit")):
      path = self.create_tempdir().full_path
      with open(f"{path}/config.json", "w") as f:
        json.dump({"model_type": name}, f)
      others = flags.FLAGS(
        ["program", f"--checkpoint_path={path}", "--seq_length=8"],
        known_only=True,
      )
      with (
        mock.patch.object(subprocess, "run") as run,
        self.assertRaises(SystemExit),
      ):
        checkpoint_report.main(others)
      ((command,), _) = run.call_args
      self.assertEndsWith(command[-6].removesuffix(".py"), f"/{program}")
      self.assertIn(f"--checkpoint_path={path}", command)
      self.assertIn("--seq_length=8", command)

  def changed(self, values=(), tensors=None, name="distilbert"):
    path = os.path.join(self.directory, "changed")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(os.path.join(_GOLDENS, name), path)
    os.chmod(path, 0o755)
    with open(f"{path}/config.json") as f:
      config = json.load(f) | dict(values)
    arrays = safetensors_numpy.load_file(f"{path}/model.safetensors")
    for file in ("config.json", "model.safetensors"):
      os.remove(f"{path}/{file}")
    with open(f"{path}/config.json", "w") as f:
      json.dump(config, f)
    for key, value in (tensors or {}).items():
      if value is None:
        del arrays[key]
      else:
        arrays[key] = value
    safetensors_numpy.save_file(arrays, f"{path}/model.safetensors")
    return path

  def test_refuses_what_does_not_match(self):
    prefix = "distilbert.transformer.layer.1."
    for values, tensors, message in (
      ({}, {f"{prefix}ffn.lin1.bias": None}, "no value, .*ffn.lin1.bias, for"),
      ({}, {"more": np.ones(3, np.float32)}, r"has more \(3,\), which the mo"),
      ({"hidden_dim": 16}, {}, r"has \(20,\) for .*lin1.bias, which must be"),
      ({"n_layers": 1}, {}, r"distilbert.transformer.layer.1.* model lacks"),
      ({"dim": 2**40}, {}, "dim is 1099511627776, and no|less than 2"),
      ({"n_layers": 2**30}, {}, "json: n_layers is .* must be at most 256"),
      ({"n_layers": 200}, {}, "config has 200 layers, which cannot be in 41"),
      ({"auto_map": 5}, {}, "config.json: a value is .*: TypeError: argument"),
      ({"model_type": "roberta"}, {}, "of type roberta: its tokens and"),
      ({"model_type": "x\x1b"}, {}, r"of type x\\x1b: only bert, electra"),
      ({"activation": "mish2"}, {}, "the activation mish2 is not one of"),
      (
        {},
        {"distilbert.embeddings.word_embeddings.weight": None},
        "has no tensors named embeddings.word_embeddings.weight",
      ),
    ):
      with self.subTest(message):
        with self.assertRaisesRegex(
          (errors.ExportError, ValueError), message
        ) as raised:
          _restored(bert_sources.read(self.changed(values, tensors)))
        self.assertNotIn("\n", str(raised.exception))
    path = self.changed({"layer_norm_eps": 1e-5}, name="bert")
    with self.assertRaisesRegex(errors.ExportError, "must be 1e-12"):
      bert_sources.read(path)
    path = self.changed()
    os.rename(f"{path}/model.safetensors", f"{path}/pytorch_model.bin")
    with self.assertRaisesRegex(errors.ExportError, "save_pretrained"):
      bert_sources.read(path)

  def test_files_that_are_there_and_cannot_be_used(self):
    path = self.changed(name="sentence_transformer")
    for folder, _, names in os.walk(path):
      for name in ["", *names]:
        os.chmod(os.path.join(folder, name), 0o755)
    for name, content, message in _UNUSABLE:
      with self.subTest(f"{name} {content and content[:40]}"):
        file, whole = os.path.join(path, name), None
        if os.path.exists(file):
          with open(file, encoding="utf-8-sig") as f:
            whole = f.read()
          os.remove(file)
        if content is None:
          os.mkfifo(file)
        else:
          with open(file, "w") as f:
            f.write(content)
        refused = self.assertRaisesRegex(errors.ExportError, message or "")
        with refused if message else contextlib.nullcontext() as raised:
          bert_sources.read(path)
        self.assertNotIn("\n", str(raised and raised.exception))
        os.remove(file)
        if whole is not None:
          # Files may begin with a byte order mark.
          with open(file, "w", encoding="utf-8-sig") as f:
            f.write(whole)
    self.assertEqual(bert_sources.read(path).options["pooling"], "mean")


if __name__ == "__main__":
  absltest.main()
