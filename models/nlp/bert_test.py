from official.nlp.configs import encoders
import tensorflow as tf

from models.nlp import bert


def _config(**kwargs):
  config = encoders.EncoderConfig(type="bert")
  config.override(
    {
      "bert": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        **kwargs,
      }
    }
  )
  return config


class BertTest(tf.test.TestCase):
  def test_parameter_counts(self):
    core = bert.core_model(_config())
    # Attention has four matrices of 16 by 16, each with a bias.
    layer = 4 * 16 * 17 + (16 * 24 + 24) + (24 * 16 + 16) + 2 * 2 * 16
    embeddings = (50 + 12 + 2) * 16 + 2 * 16
    expected = embeddings + 2 * layer + 16 * 17
    self.assertEqual(core.count_params(), expected)
    # The head adds a dense layer, a normalization and a bias of the logits.
    expected += 16 * 17 + 2 * 16 + 50
    model = bert.pretrain_model(core)
    self.assertEqual(model.count_params(), expected)
    # The default sizes are those of BERT-base. Devlin et al. say 110 million.
    base = bert.core_model(encoders.EncoderConfig(type="bert"))
    self.assertEqual(base.count_params(), 109_482_240)

  def test_pretrain_model_shares_the_core(self):
    core = bert.core_model(_config())
    model = bert.pretrain_model(core)
    inputs = {name: tf.ones([3, 7], tf.int32) for name in bert.INPUT_NAMES}
    outputs = core(inputs)
    self.assertEqual(outputs["sequence_output"].shape, [3, 7, 16])
    self.assertEqual(outputs["pooled_output"].shape, [3, 16])
    self.assertLen(outputs["encoder_outputs"], 2)
    self.assertAllEqual(outputs["default"], outputs["pooled_output"])
    positions = {"masked_lm_positions": tf.ones([3, 2], tf.int32)}
    before = model({**inputs, **positions})
    self.assertEqual(before["mlm_logits"].shape, [3, 2, 50])
    self.assertAllClose(before["sequence_output"], outputs["sequence_output"])
    table = core.encoder.get_embedding_table()
    table.assign(-table)
    after = model({**inputs, **positions})
    self.assertNotAllClose(before["mlm_logits"], after["mlm_logits"])
    self.assertAllClose(
      after["sequence_output"], core(inputs)["sequence_output"]
    )

  def test_dropout_in_training_alone(self):
    core = bert.core_model(_config(dropout_rate=0.5))
    inputs = {name: tf.ones([3, 7], tf.int32) for name in bert.INPUT_NAMES}
    first, second = (core(inputs)["default"] for _ in range(2))
    self.assertAllEqual(first, second)
    first, second = (core(inputs, training=True)["default"] for _ in range(2))
    self.assertNotAllClose(first, second)


if __name__ == "__main__":
  tf.test.main()
