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
    # The default of this format; that of the other one is 2.
    self.assertEqual(values.type_vocab_size, 16)

  def test_what_is_refused(self):
    for text, message in (
      ("type: brt", "unknown type brt; the nearest is bert"),
      ("type: bert\nbertt: {}", "unknown key bertt; the nearest is bert"),
      (
        "type: bert\nbert: {nun_layers: 2}",
        "unknown key nun_layers; the nearest is num_layers",
      ),
      ("bert: {num_layers: 2}", "it has no `type`"),
      ("type: bert\nalbert: {}", "it is of type bert, and also has `albert`"),
      ("type: bert\nbert: 3", "`bert` has no keys"),
      ("type: bert\nbert: {num_layers: 2.5}", "is 2.5, and must be int"),
      ("type: bert\nbert: {", "not YAML: while parsing"),
      (b"type: b\xff", "not YAML: unacceptable character"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.read(encoder_config.from_yaml, text)
    for text, message in (
      ('{"num_hiden_layers": 2}', "the nearest is num_hidden_layers"),
      ('{"num_layers": 2}', "unknown key num_layers; the nearest is num_h"),
      ('{"num_hidden_layers": 2}', "it has no vocab_size"),
      (
        '{"vocab_size": 9, "hidden_act": 2}',
        "hidden_act is 2, and must be str",
      ),
      ("[]", "not an object"),
      ("{", "not JSON"),
      (b"{\xff", "not JSON: 'utf-8' codec"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.read(encoder_config.from_legacy_json, text)
    with self.assertRaises(FileNotFoundError):
      encoder_config.from_yaml("/no/file")


if __name__ == "__main__":
  absltest.main()
