"""Compares exports with transformers, both ways; run by hand.

./bazelw test //exporters/peers:hugging_face_test
"""

import os

from absl.testing import absltest
import numpy as np
from safetensors import numpy as safetensors_numpy
import torch
import transformers

from exporters import bert
from exporters import bert_preprocessor
from exporters import bert_sources
from exporters import to_safetensors
from exporters.peers import make_goldens
from exporters.reusable import exporting
from exporters.reusable import weight_tables

_GOLDENS = os.path.join(os.path.dirname(__file__), "testdata", "hugging_face")
_INPUTS = {
  "input_ids": "input_word_ids",
  "attention_mask": "input_mask",
  "token_type_ids": "input_type_ids",
}


class HuggingFaceTest(absltest.TestCase):
  def test_goldens_are_what_transformers_computes(self):
    directory = self.create_tempdir().full_path
    make_goldens.main(directory)
    for name in os.listdir(_GOLDENS):
      actual, expected = (
        safetensors_numpy.load_file(f"{root}/{name}/expected.safetensors")
        for root in (directory, _GOLDENS)
      )
      self.assertEqual(set(actual), set(expected))
      for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, atol=1e-5)

  def export(self, name):
    """Exports a model, and writes its directory; returns both."""
    root = self.create_tempdir().full_path
    path = os.path.join(_GOLDENS, name)
    source = bert_sources.read(path)
    vocab_file = source.options.get("vocab_file", f"{root}/vocab.txt")
    if not os.path.exists(vocab_file):
      with open(vocab_file, "w") as f:
        f.write("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
        f.writelines(f"token{i}\n" for i in range(35))
    bert.export(
      exporting.Options(export_dir=f"{root}/export", verification="off"),
      "all",
      bert_preprocessor.Options(
        do_lower_case=True, vocab_file=vocab_file, as_transformers=True
      ),
      source.config,
      bert.Weights(
        pooler=source.options.get("pooler", "identity"),
        checkpoint_path=path,
        source=source,
      ),
    )
    to_safetensors.write(f"{root}/export/encoder", f"{root}/out", 20_000)
    return path, f"{root}/out"

  def test_out_again(self):
    for name in sorted(os.listdir(_GOLDENS)):
      with self.subTest(name):
        path, out = self.export(name)
        tensors, written = (
          {
            key.removeprefix(f"{name.split('_')[0]}."): tensor.read()
            for key, tensor in weight_tables.read_safetensors(directory).items()
          }
          for directory in (path, out)
        )
        for key, value in written.items():
          self.assertEqual(value.tobytes(), tensors[key].tobytes(), key)
        heads = set(tensors) - set(written)
        self.assertFalse([k for k in heads if "encoder.layer" in k], heads)
        self.check(out, f"{path}/expected.safetensors")

  def check(self, directory, expected_file):
    expected = safetensors_numpy.load_file(expected_file)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    if "sequence_output" not in expected:
      tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
      ids = tokenizer(
        list(make_goldens.TEXTS),
        padding="max_length",
        truncation=True,
        max_length=16,
      )["input_ids"]
      np.testing.assert_array_equal(ids, expected["input_word_ids"])
      return
    inputs = {k: torch.tensor(expected[v]) for k, v in _INPUTS.items()}
    if model.config.model_type == "distilbert":
      del inputs["token_type_ids"]
    with torch.no_grad():
      outputs = model(**inputs)
      if "mlm_logits" in expected and model.config.model_type != "mobilebert":
        whole = transformers.AutoModelForMaskedLM.from_pretrained(directory)
        logits = whole.eval()(**inputs).logits.numpy()
        np.testing.assert_allclose(logits, expected["mlm_logits"], atol=1e-5)
    actual = outputs.last_hidden_state.numpy()
    print(directory, np.abs(actual - expected["sequence_output"]).max())
    np.testing.assert_allclose(actual, expected["sequence_output"], atol=1e-5)


if __name__ == "__main__":
  absltest.main()
