"""Exports the directory that Model Garden's trainer writes."""

import json
import os

import numpy as np
from official.core import config_definitions
from official.core import train_lib
from official.core import train_utils
from official.modeling import optimization
from official.nlp.configs import bert as bert_config
from official.nlp.configs import encoders
from official.nlp.data import pretrain_dataloader
from official.nlp.tasks import masked_lm
import tensorflow as tf
import tensorflow_hub as hub

from exporters import bert
from exporters import bert_flags
from exporters import bert_preprocessor
from exporters.reusable import errors
from exporters.reusable import exporting
from models.nlp import preprocessing

_WORDS = [f"{a}{b}" for a in "bcdfg" for b in "aeiou"]
_VOCABULARY = [*preprocessing.SPECIAL_TOKENS, *_WORDS]
_SIZES = {
  "vocab_size": len(_VOCABULARY),
  "hidden_size": 32,
  "num_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 64,
  "max_position_embeddings": 24,
}
_STEPS = 4
_STRATEGY = tf.distribute.OneDeviceStrategy("CPU:0")


def _records():
  """Yields records like those of Model Garden's create_pretraining_data.py."""
  random = np.random.RandomState(0)
  for _ in range(64):
    features = {
      "input_word_ids": random.randint(5, len(_VOCABULARY), 16),
      "input_mask": np.ones(16, int),
      "input_type_ids": np.repeat([0, 1], 8),
      "masked_lm_positions": random.permutation(16)[:3],
      "masked_lm_ids": random.randint(5, len(_VOCABULARY), 3),
      "next_sentence_labels": random.randint(0, 2, 1),
    }
    example = tf.train.Example()
    for name, values in features.items():
      example.features.feature[name].int64_list.value.extend(values)
    example.features.feature["masked_lm_weights"].float_list.value.extend(
      [1.0, 1.0, 1.0]
    )
    yield example.SerializeToString()


class BertTrainerTest(tf.test.TestCase):
  def path(self, name, text=None):
    path = os.path.join(self.get_temp_dir(), name)
    if text:
      with open(path, "w") as f:
        f.write(text)
    return path

  def train(self, model_dir):
    """Trains with Model Garden; returns the model and the trainer."""
    records = self.path("records")
    with tf.io.TFRecordWriter(records) as writer:
      for record in _records():
        writer.write(record)
    params = config_definitions.ExperimentConfig(
      task=masked_lm.MaskedLMConfig(
        model=bert_config.PretrainerConfig(
          encoder=encoders.EncoderConfig(
            type="bert", bert=encoders.BertEncoderConfig(**_SIZES)
          ),
          cls_heads=[
            bert_config.ClsHeadConfig(
              inner_dim=32, num_classes=2, name="next_sentence"
            )
          ],
        ),
        train_data=pretrain_dataloader.BertPretrainDataConfig(
          input_path=records,
          global_batch_size=8,
          seq_length=16,
          max_predictions_per_seq=3,
          use_v2_feature_names=True,
        ),
      ),
      trainer=config_definitions.TrainerConfig(
        train_steps=_STEPS,
        steps_per_loop=_STEPS,
        checkpoint_interval=_STEPS,
        summary_interval=_STEPS,
        optimizer_config=optimization.OptimizationConfig(
          {
            "optimizer": {"type": "adamw"},
            "ema": {"average_decay": 0.5},
            "learning_rate": {
              "type": "polynomial",
              "polynomial": {
                "initial_learning_rate": 1e-2,
                "decay_steps": _STEPS,
              },
            },
            "warmup": {"type": "linear", "linear": {"warmup_steps": 1}},
          }
        ),
      ),
    )
    task = masked_lm.MaskedLMTask(params.task)
    with _STRATEGY.scope():
      trainer = train_utils.create_trainer(
        params, task, train=True, evaluate=False
      )
    model, _ = train_lib.run_experiment(
      _STRATEGY, task, "train", params, model_dir, trainer=trainer
    )
    return model, trainer

  def test_exports_the_directory_of_the_trainer(self):
    model_dir = self.path("model")
    model, trainer = self.train(model_dir)
    self.assertEndsWith(tf.train.latest_checkpoint(model_dir), f"-{_STEPS}")
    preprocessor_options = bert_preprocessor.Options(
      do_lower_case=True,
      vocab_file=self.path("vocab.txt", "\n".join(_VOCABULARY)),
      seq_length=16,
    )
    yaml = json.dumps({"type": "bert", "bert": _SIZES})
    config_file = self.path("encoder.yaml", yaml)

    def export(weights):
      bert.export(
        exporting.Options(
          export_dir=self.path("export"), overwrite=True, verification="off"
        ),
        "all",
        preprocessor_options,
        bert_flags.read_config(config_file, None, 16),
        bert.Weights(
          pooler="checkpoint", checkpoint_path=model_dir, weights=weights
        ),
      )

    with self.assertRaisesRegex(
      errors.ExportError,
      "has the raw weights and moving averages of them: say which",
    ):
      export(None)
    sentences = [" ".join(_WORDS[i : i + 9 - i]) for i in range(5)]
    names = ("pooled_output", "sequence_output", "mlm_logits")
    raw = {}
    for weights in ("raw", "average"):
      export(weights)
      preprocessor = hub.load(self.path("export/preprocessor"))
      encoder = hub.load(self.path("export/encoder"))
      inputs = preprocessor(sentences)
      self.assertNotIn(1, inputs["input_word_ids"].numpy())  # 1 is [UNK].
      inputs["masked_lm_positions"] = tf.constant([[1, 2, 0]] * 5)
      expected = model(inputs, training=False)
      actual = encoder.mlm(inputs)
      for name in names:
        self.assertAllClose(actual[name], expected[name], rtol=0, atol=1e-5)
        # If outputs did not vary, those of another model might be equal.
        self.assertGreater(np.std(expected[name]), 1e-3)
        if weights == "average":
          self.assertNotAllClose(actual[name], raw[name], atol=1e-3)
      self.assertLen(
        encoder.trainable_variables,
        len(model.encoder_network.trainable_variables),
      )
      raw = actual
      with _STRATEGY.scope():
        trainer.optimizer.swap_weights()


if __name__ == "__main__":
  tf.test.main()
