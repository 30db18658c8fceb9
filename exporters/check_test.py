"""Tests the check on SavedModels that others write."""

import contextlib
import html.parser
import io
import json
import os
import pathlib
import shutil
import subprocess

from absl import flags
from absl.testing import parameterized
import keras
from official.core import exp_factory
from official.nlp.configs import encoders
from official.nlp.tools import export_tfhub_lib as text_exporter
from official.vision import configs  # noqa: F401  Registers experiments.
from official.vision.modeling import factory
from official.vision.serving import export_tfhub_lib as image_exporter
import tensorflow as tf
import tf_keras

from exporters import check
from exporters.conformance import copying
from exporters.reusable import errors
from tools import nightly

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "An export.")
_BINARY = "exporters/check"


def _model_garden_resnet(directory):
  params = exp_factory.get_exp_config("resnet_imagenet")
  resnet_18 = {"resnet": {"model_id": 18}}
  params.override(
    {"task": {"model": {"num_classes": 7, "backbone": resnet_18}}}
  )
  model = factory.build_classification_model(
    tf_keras.layers.InputSpec(shape=[None, None, None, 3]), params.task.model
  )
  checkpoint = tf.train.Checkpoint(model=model).save(f"{directory}.checkpoint")
  image_exporter.export_model_to_tfhub(
    None, [32, 32], params, checkpoint, directory
  )


def _vocabulary(directory):
  path = f"{directory}.vocab"
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
  pathlib.Path(path).write_text("\n".join(words))
  return path


def _model_garden_bert(directory):
  config = encoders.EncoderConfig(
    type="bert",
    bert=encoders.BertEncoderConfig(
      num_layers=2,
      hidden_size=32,
      num_attention_heads=2,
      intermediate_size=64,
      vocab_size=13,
      max_position_embeddings=32,
    ),
  )
  encoder = encoders.build_encoder(config)
  checkpoint = tf.train.Checkpoint(encoder=encoder)
  text_exporter.export_model(
    directory,
    encoder_config=config,
    model_checkpoint_path=checkpoint.save(f"{directory}.checkpoint"),
    with_mlm=False,
    vocab_file=_vocabulary(directory),
    do_lower_case=True,
  )


def _model_garden_preprocessing(directory):
  text_exporter.export_preprocessing(
    directory,
    vocab_file=_vocabulary(directory),
    do_lower_case=True,
    default_seq_length=16,
    tokenize_with_offsets=False,
  )


def _tf_keras_save(directory):
  layers = tf_keras.layers
  model = tf_keras.Sequential(
    [
      layers.Dense(3, kernel_regularizer="l2", input_shape=(4,)),
      layers.Dropout(0.5),
    ]
  )
  model.compile("adam", "mse")
  model.fit(tf.zeros([4, 4]), tf.zeros([4, 3]), verbose=0)
  model.save(directory, save_format="tf")


def _keras_3_export(directory):
  model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
  model.export(directory, verbose=False)


class _Module(tf.Module):
  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable(tf.ones([4, 2]), name="kernel")

  @tf.function
  def __call__(self, inputs):
    return inputs @ self.kernel


def _tf_module(directory):
  module = _Module()
  module.__call__.get_concrete_function(tf.TensorSpec([None, 4]))
  tf.saved_model.save(module, directory)


def _tensorflow_1(directory):
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    x = v1.placeholder(tf.float32, [None, 4], "x")
    y = x @ v1.get_variable("kernel", [4, 2], use_resource=False)
    session.run(v1.global_variables_initializer())
    with contextlib.redirect_stderr(io.StringIO()):
      v1.saved_model.simple_save(session, directory, {"x": x}, {"y": y})


_NIGHTLY = (
  _model_garden_bert,
  _model_garden_resnet,
  _model_garden_preprocessing,
  _keras_3_export,
  _tensorflow_1,
)


class _Page(html.parser.HTMLParser):
  """Collects the text of a page, and the URLs that it would fetch."""

  def __init__(self):
    super().__init__()
    self.text = ""
    self.fetched = []

  def handle_starttag(self, tag, attrs):
    self.fetched += [v for k, v in attrs if k in ("src", "href")]

  def handle_data(self, data):
    self.text += data


class CheckTest(parameterized.TestCase, tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = os.path.join(self.get_temp_dir(), "saved_model")

  def judged(self, directory, **kwargs):
    """Returns the report, findings by rule, and whether the check passed."""
    kwargs.setdefault("options", copying.Options(seconds=36_000))
    with contextlib.redirect_stdout(io.StringIO()) as out:
      status = check.check(saved_model_dir=directory, as_json=True, **kwargs)
    report = json.loads(out.getvalue())
    return report, {r["rule"]: r for r in report["rules"]}, status == 0

  @parameterized.parameters(
    (
      _model_garden_resnet,
      "image",
      {"R7", "R8", "R11", "R14", "I4", "I5"},
      {
        "R6": "trained with any, they are lost",
        "R7": "The graph fixes batch normalization",
        "R14": "gradient of Mean .*global_average_pooling2d",
        "I4": r"height, width are free: \(32, 32\)",
      },
    ),
    (
      _model_garden_bert,
      "encoder",
      {"R7", "R14"},
      {"R7": "dropout or other noise", "R14": "position_embedding/"},
    ),
    (
      _model_garden_preprocessing,
      "preprocessor",
      {"R10", "T8"},
      {"R10": "saved_model.pb has the path /.*vocab", "T8": "Assert"},
    ),
    (
      _tf_keras_save,
      "vector",
      {"R7", "R10"},
      {"R6": "gradients for 1 var", "R10": "state of an optimizer"},
    ),
    (
      _keras_3_export,
      "Keras 3 export",
      {"R11"},
      {"K1": "the same twice"},
    ),
    (
      _tf_module,
      "vector",
      {"R5", "R11"},
      {"R5": "consumers silently train and save nothing"},
    ),
    (_tensorflow_1, "vector", {"R1"}, {"R1": "with TensorFlow 1"}),
  )
  def test_verdicts(self, build, kind, failing, words):
    if build in _NIGHTLY and not nightly.IS_ON:
      self.skipTest("Only nightly tests run this case.")
    tf.random.set_seed(None)  # The seed that tf.test sets would be saved.
    build(self.directory)
    report, by_rule, passed = self.judged(self.directory)
    self.assertEqual(report["kind"], kind)
    found = {n for n, r in by_rule.items() if r["verdict"] == "fail"}
    self.assertEqual(found, failing)
    for name, pattern in words.items():
      self.assertRegex(by_rule[name]["found"], pattern)
    self.assertFalse(passed)

  @nightly.only  # Other tests run the check on each export.
  def test_our_export(self):
    # Files in Bazel's sandbox are links.
    options = copying.Options(follow_links=True)
    report, by_rule, passed = self.judged(
      _SAVED_MODEL_DIR.value, strict=True, options=options
    )
    self.assertTrue(passed)
    verdicts = {r["verdict"] for r in by_rule.values()}
    self.assertEqual(verdicts, {"pass", "not applicable"})
    self.assertEqual(by_rule["R7"]["verdict"], "pass")
    self.assertEqual(by_rule["R14"]["verdict"], "pass")
    self.assertEqual(
      list(report["hyperparameters"]), ["dropout_rate", "batch_norm_momentum"]
    )
    total = sum(
      path.stat().st_size
      for path in pathlib.Path(_SAVED_MODEL_DIR.value).rglob("*")
      if path.is_file()
    )
    self.assertEqual(sum(report["bytes"].values()), total)
    self.assertIn("Conv2D", report["ops"])

  def test_suspicious_is_not_loaded_unless_trusted(self):
    stolen = os.path.join(self.get_temp_dir(), "stolen")

    def call(inputs):
      tf.io.write_file(stolen, "all of it")
      return inputs

    root = tf.train.Checkpoint(variables=[], trainable_variables=[])
    root.__call__ = tf.function(call)
    root.__call__.get_concrete_function(tf.TensorSpec([None, 4]))
    tf.saved_model.save(root, self.directory)
    report, by_rule, passed = self.judged(self.directory)
    self.assertFalse(passed)
    self.assertIn("WriteFile", report["suspicious"][0])
    self.assertIn("not loaded", by_rule["R4"]["found"])
    self.assertFalse(os.path.exists(stolen))
    for sandbox in (True, False):
      options = copying.Options(trust=True, sandbox=sandbox)
      _, by_rule, passed = self.judged(self.directory, options=options)
      verdict = "not decidable" if sandbox else "pass"
      self.assertEqual(by_rule["R4"]["verdict"], verdict, by_rule["R4"])
      self.assertEqual(os.path.exists(stolen), not sandbox)

  @nightly.only
  def test_excepted_rules(self):
    _tf_module(self.directory)
    broken = ["R5", "R11"]
    _, by_rule, passed = self.judged(
      self.directory,
      strict=True,
      excepted_rules=broken,
      allow_undecided=["R13"],
    )
    self.assertTrue(passed)
    self.assertEqual([by_rule[n]["verdict"] for n in broken], ["excepted"] * 2)
    self.assertRegex(by_rule["R5"]["found"], "which `variables` lacks")
    _, _, passed = self.judged(self.directory, excepted_rules=["R11"])
    self.assertFalse(passed)
    # R8 is kept, and I4 does not apply.
    with self.assertRaisesRegex(errors.ExportError, "R8, I4 is not broken"):
      self.judged(self.directory, excepted_rules=[*broken, "I4", "R8"])

  @nightly.only
  def test_what_is_not_decidable_is_no_pass(self):
    tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))]).save(
      self.directory, save_format="tf"
    )
    _, by_rule, passed = self.judged(self.directory)
    self.assertFalse(passed)
    self.assertEqual(by_rule["R13"]["verdict"], "not decidable")
    _, _, passed = self.judged(self.directory, allow_undecided=["R13"])
    self.assertTrue(passed)

  def test_what_is_no_saved_model(self):
    with self.assertRaisesRegex(errors.ExportError, "does not exist"):
      check.check(saved_model_dir=self.directory)
    os.mkdir(self.directory)
    with self.assertRaisesRegex(errors.ExportError, "has no saved_model.pb"):
      check.check(saved_model_dir=self.directory)
    _tf_module(self.directory)
    path = os.path.join(self.directory, "saved_model.pb")
    with self.assertRaisesRegex(errors.ExportError, "is a file"):
      check.check(saved_model_dir=path)
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[: len(content) // 2])
    with self.assertRaisesRegex(errors.ExportError, "truncated or damaged"):
      check.check(saved_model_dir=self.directory)
    pathlib.Path(path).write_bytes(content)
    shutil.rmtree(os.path.join(self.directory, "variables"))
    with self.assertRaisesRegex(errors.ExportError, "cannot be loaded"):
      check.check(saved_model_dir=self.directory)

  def test_binary(self):
    _tf_module(self.directory)
    page = os.path.join(self.get_temp_dir(), "page.html")

    def run(*arguments):
      return subprocess.run(
        [_BINARY, *arguments], capture_output=True, encoding="utf-8"
      )

    done = run(f"--saved_model_dir={self.directory}", f"--html={page}")
    self.assertEqual(done.returncode, 1)
    first, _, rest = done.stdout.partition("\n")
    self.assertRegex(first, "usable for inference only, because R5; .*R11")
    self.assertRegex(
      rest, r"(?s)✗ R5 \(must\): .*Found: .*kernel:0.*Fix: .*✗ R11 \(should\)"
    )
    parsed = _Page()
    parsed.feed(pathlib.Path(page).read_text(encoding="utf-8"))
    self.assertIn("Usable for inference only, because R5", parsed.text)
    self.assertIn("which `variables` lacks", parsed.text)
    self.assertRegex(parsed.text, r"(?i)matmul\[\?, 2\] · 8 parameters, 32 B")
    self.assertIn("Ops", parsed.text)
    self.assertEmpty(parsed.fetched)


if __name__ == "__main__":
  tf.test.main()
