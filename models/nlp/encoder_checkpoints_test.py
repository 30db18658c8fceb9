import numpy as np
from official.nlp.configs import encoders
import tensorflow as tf
import tf_keras

from models.nlp import bert
from models.nlp import encoder_checkpoints

_SIZES = {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 11}


def _core(kind="bert"):
  config = encoders.EncoderConfig(type=kind)
  config.override({kind: _SIZES | {"num_layers": 1}})
  return bert.core_model(config)


def _lacks(*names):
  """Makes a `restore_any` for a checkpoint that lacks variables.

  Args:
    *names: Parts of the names of the optional variables that it lacks.
  """

  def restore_any(structures, parts, left_out, optional):
    return [v for v in optional if any(name in v.name for name in names)]

  return restore_any


class EncoderCheckpointsTest(tf.test.TestCase):
  def restore(self, restore_any, pooler_from, with_mlm=False):
    core = _core()
    model = encoder_checkpoints.restore(
      core, restore_any, pooler_from=pooler_from, with_mlm=with_mlm
    )
    return core, model

  def makes_new_pooler(self, restore_any):
    """Returns whether `pooler_from=None` gives the pooler new weights."""
    core = _core()
    before = bert.pooler(core).get_weights()
    encoder_checkpoints.restore(
      core, restore_any, pooler_from=None, with_mlm=False
    )
    return not np.array_equal(bert.pooler(core).kernel, before[0])

  def test_pooler_that_is_not_in_the_checkpoint(self):
    self.restore(_lacks("masked_lm"), "checkpoint")
    with self.assertRaisesRegex(ValueError, "no pooler. Choose another: next"):
      self.restore(_lacks("pooler"), "checkpoint")
    core, _ = self.restore(_lacks("pooler"), "identity")
    self.assertAllEqual(bert.pooler(core).kernel, tf.eye(8))
    for missing, is_new in (("masked_lm", False), ("pooler", True)):
      self.assertEqual(self.makes_new_pooler(_lacks(missing)), is_new)

  def test_next_sentence_pooler(self):
    def restore_any(structures, parts, left_out, optional):
      # These structures have the attribute `pretrainer` or `model`.
      for structure in structures[1:3]:
        (view,) = tf.train.TrackableView(structure).children(structure).values()
        view.classification_heads[0].dense.kernel.assign(tf.fill([8, 8], 3.0))
      return optional

    core, _ = self.restore(restore_any, "next_sentence")
    self.assertAllEqual(bert.pooler(core).kernel, tf.fill([8, 8], 3.0))

  def test_head_of_masked_language_modeling(self):
    _, model = self.restore(_lacks(), "checkpoint", with_mlm=None)
    self.assertIsInstance(model, tf_keras.Model)
    head = _lacks("cls/predictions")
    _, model = self.restore(head, "checkpoint", with_mlm=None)
    self.assertIsNone(model)
    # With `with_mlm=True` the head is not optional: a real restore would fail.
    _, model = self.restore(head, "checkpoint", with_mlm=True)
    self.assertIsInstance(model, tf_keras.Model)


if __name__ == "__main__":
  tf.test.main()
