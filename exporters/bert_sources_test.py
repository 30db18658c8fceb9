import contextlib
import dataclasses
import io
import json
import os
import shutil

from absl.testing import absltest
import numpy as np
import tensorflow as tf

from exporters import bert_sources
from exporters import bert_text_embedding
from exporters.reusable import errors
from exporters.reusable import weight_tables
from models.nlp import bert
from models.nlp import encoder_checkpoints
from models.nlp import preprocessing

# See make_goldens.py.
_GOLDENS = os.path.join(os.path.dirname(__file__), "peers", "testdata")


def _expected(path):
  tensors = weight_tables.read_safetensors(f"{path}/expected.safetensors")
  return {name: tensor.read() for name, tensor in tensors.items()}


def _restored(source, with_mlm=None):
  core = bert.core_model(source.config)
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    pretrainer = encoder_checkpoints.restore(
      core,
      lambda roots, **kwargs: bert_sources.restore(source, roots, **kwargs),
      pooler_from=source.options.get("pooler", "random"),
      with_mlm=with_mlm,
    )
  return core, pretrainer, printed.getvalue()


class BertSourcesTest(absltest.TestCase):
  def test_outputs_are_those_of_transformers(self):
    for name in sorted(os.listdir(_GOLDENS)):
      path = os.path.join(_GOLDENS, name)
      expected = _expected(path)
      if "sequence_output" not in expected:
        continue
      with self.subTest(name):
        core, pretrainer, printed = _restored(bert_sources.read(path))
        inputs = {
          k: tf.constant(v, tf.int32)
          for k, v in expected.items()
          if k.startswith("input_")
        }
        outputs = core(inputs)
        rows = expected["input_mask"].astype(bool)
        compared = ["sequence_output", "pooled_output"]
        if pretrainer:
          positions = tf.broadcast_to(tf.range(9), [3, 9])
          mlm = pretrainer({**inputs, "masked_lm_positions": positions})
          outputs["mlm_logits"] = mlm["mlm_logits"]
          compared.append("mlm_logits")
        for output in set(compared) & set(expected):
          actual, wanted = outputs[output].numpy(), expected[output]
          if wanted.ndim == 3:
            actual, wanted = actual[rows], wanted[rows]
          print(
            name, output, np.abs(actual - wanted).max(), np.abs(wanted).max()
          )
          np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)
        self.assertRegex(printed, f"^Restored .*testdata/{name}, a Hugging Fa")


if __name__ == "__main__":
  absltest.main()
