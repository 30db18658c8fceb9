import json
import os

from absl.testing import absltest

from models.nlp import encoder_config


class EncoderConfigTest(absltest.TestCase):
  def read(self, function, text):
    path = os.path.join(absltest.TEST_TMPDIR.value, "config")
    with open(path, "wb") as f:
      f.write(text.encode() if isinstance(text, str) else text)
    return function(path)

  def test_yaml(self):
    config = self.read(
      encoder_config.from_yaml,
      "type: albert\nalbert: {vocab_size: 9, dropout_rate: 0}",
    )
    self.assertEqual(config.type, "albert")
    self.assertEqual(config.get().vocab_size, 9)
    self.assertEqual(config.get().embedding_width, 128)

  def test_legacy_json(self):
    config = self.read(
      encoder_config.from_legacy_json,
      json.dumps(
        {
          "vocab_size": 9,
          "num_hidden_layers": 3,
          "hidden_act": "relu",
          "hidden_dropout_prob": 0.25,
          "attention_probs_dropout_prob": 0.5,
          "pooler_type": "first_token_transform",
        }
      ),
    )
    self.assertEqual(config.type, "bert")
    values = config.get()
    self.assertEqual(
      (values.vocab_size, values.num_layers, values.hidden_activation),
      (9, 3, "relu"),
    )
    self.assertEqual(
      (values.dropout_rate, values.attention_dropout_rate), (0.25, 0.5)
    )
    # The default of this format is 16; that of Model Garden's YAML is 2.
    self.assertEqual(values.type_vocab_size, 16)

  def test_neighboring_formats(self):
    sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 3}
    of_transformers = {
      "architectures": ["BertModel"],
      "layer_norm_eps": 1e-12,
      "model_type": "bert",
      "position_embedding_type": "absolute",
      "transformers_version": "4.31.0",
    }
    albert = {"embedding_size": 2, "num_hidden_groups": 1, "gap_size": 0}
    encoder = "encoder: {type: bert, bert: {vocab_size: 9, hidden_size: 4}}"
    bert = {"vocab_size": 9, "hidden_size": 4}
    yaml, legacy = encoder_config.from_yaml, encoder_config.from_legacy_json
    for function, text, kind, expected in (
      (yaml, encoder, "bert", bert),
      (yaml, f"runtime: {{}}\ntask: {{model: {{{encoder}}}}}", "bert", bert),
      (
        yaml,
        "type: bert\nbert: {initializer_range: 2e-2, dropout_rate: 1E-1}",
        "bert",
        {"initializer_range": 0.02, "dropout_rate": 0.1},
      ),
      (
        legacy,
        "\ufeff" + json.dumps({**sizes, **of_transformers}),
        "bert",
        {**bert, "num_layers": 3},
      ),
      (
        legacy,
        json.dumps({**sizes, **albert}),
        "albert",
        {**bert, "num_layers": 3, "embedding_width": 2, "type_vocab_size": 2},
      ),
    ):
      with self.subTest(text):
        config = self.read(function, text)
        self.assertEqual(config.type, kind)
        values = config.get().as_dict()
        self.assertEqual({key: values[key] for key in expected}, expected)

  def test_what_is_refused(self):
    for text, message in (
      ("type: brt", "unknown type brt .the nearest is bert"),
      ("type: bert\nbertt: {}", "unknown key bertt .the nearest is bert"),
      (
        "type: bert\nbert: {nun_layers: 2}",
        "unknown key nun_layers .the nearest is num_layers",
      ),
      (
        "type: bert\nbert: {zzz: 1, nun_layers: 2, hidden_sze: 3}",
        r"unknown keys zzz, nun_layers \(the nearest is num_layers\),"
        r" hidden_sze \(the nearest is hidden_size\)$",
      ),
      ("bert: {num_layers: 2}", "it has no `type`"),
      ("task: {model: {num_classes: 2}}", "it has no `type`"),
      ('{"hidden_size": 4, "vocab_size": 9}', "Pass it as --bert_config_file"),
      ("type: !!python/name:os.system\n", "not YAML: could not determine"),
      ("type: bert\nalbert: {}", "it is of type bert, and also has `albert`"),
      ("type: bert\nbert: 3", "`bert` has no keys"),
      ("type: bert\nbert: {num_layers: 2.5}", "is 2.5, and must be int"),
      ("type: bert\nbert: {num_layers: -1}", "is -1, and must be at least 1"),
      ("type: bert\nbert: {num_layers: 999}", "999, and must be at most 256"),
      ("type: bert\nbert: {", "not YAML: while parsing"),
      (b"type: b\xff", "not YAML: unacceptable character"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.read(encoder_config.from_yaml, text)
    for text, message in (
      ('{"num_hiden_layers": 2}', "the nearest is num_hidden_layers"),
      ('{"num_layers": 2}', "unknown key num_layers .the nearest is num_h"),
      ('{"num_hidden_layers": 2}', "it has no vocab_size"),
      (
        '{"vocab_size": 9, "hidden_act": 2}',
        "hidden_act is 2, and must be str",
      ),
      ('{"zzz": 2, "vocab_size": 9}', "unknown key zzz$"),
      ('{"model_type": "electra"}', "model_type is electra; only bert and alb"),
      ('{"layer_norm_eps": 1e-5}', "layer_norm_eps must be 1e-12, as in Model"),
      ('{"num_hidden_groups": 2}', "num_hidden_groups must be 1, as in Model"),
      ('{"is_decoder": "false"}', "is_decoder must be False, as in Model"),
      ("[]", "not an object"),
      ("{", "not JSON"),
      ("type: bert", "not JSON: .* pass it as --encoder_config_file"),
      (b"{\xff", "not JSON: 'utf-8' codec"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.read(encoder_config.from_legacy_json, text)
    with self.assertRaises(FileNotFoundError):
      encoder_config.from_yaml("/no/file")


if __name__ == "__main__":
  absltest.main()
