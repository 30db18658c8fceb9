"""Tests the check with damaged SavedModels.

However a file is damaged, the check must reach a verdict. It must not raise an
exception, hang, or pass a model that cannot be called.

`serve` of this module checks the SavedModels inside the sandbox.
"""

import json
import os
import pathlib
import random
import shutil
import traceback

from absl import flags
import tensorflow as tf

from distribution import sandbox
from exporters.conformance import copying
from exporters.conformance import findings
from exporters.conformance import report
from exporters.conformance import rules
from exporters.conformance import subject as subject_lib
from exporters.reusable import errors
from exporters.reusable.private_api import saved_model_pb2

_COUNT = flags.DEFINE_integer("count", 40, "How many SavedModels to damage.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the damages.")
_CARD = "With `trainable=True`. Regularization in the optimizer is not saved."
_FILES = ("saved_model.pb", "variables/variables.index")


def _save(directory):
  root = tf.train.Checkpoint(w=tf.Variable(tf.ones([4, 3]), name="w"))

  def call(inputs):
    return inputs @ root.w

  def served(inputs):
    return {"outputs": call(inputs)}

  def loss():
    return tf.reduce_sum(root.w**2)

  spec = tf.TensorSpec([None, 4], name="features")
  root.__call__ = tf.function(call, input_signature=[spec])
  root.variables = root.trainable_variables = [root.w]
  root.regularization_losses = [tf.function(loss, input_signature=[])]
  serving = tf.function(served).get_concrete_function(spec)
  tf.saved_model.save(root, directory, signatures=serving)
  card = pathlib.Path(directory, subject_lib.CARD)
  card.parent.mkdir()
  card.write_text(_CARD)


def _damaged_bytes(content, rng):
  """Changes, removes, inserts or repeats a few bytes."""
  content = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 8])):
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice([1, 1, 4, 64, 1024]))
    part = bytes(content[start:end])
    content[start:end] = rng.choice(
      [
        rng.randbytes(len(part)),
        bytes(b ^ (1 << rng.randrange(8)) for b in part),
        b"",
        part * 2,
        rng.randbytes(4) + part,
      ]
    )
  if rng.random() < 0.1:
    del content[rng.randrange(len(content) + 1) :]
  return bytes(content)


def _damaged_objects(content, rng):
  """Changes fields of the object graph; the file can still be parsed."""
  model = saved_model_pb2.SavedModel.FromString(content)
  graph = model.meta_graphs[0]
  objects = graph.object_graph_def
  for _ in range(rng.choice([1, 1, 2, 5])):
    node = rng.choice(objects.nodes)
    other = rng.choice([-1, 2**30, rng.randrange(len(objects.nodes))])
    function = rng.choice(list(objects.concrete_functions.values()))
    damage = rng.randrange(10)
    if damage == 0 and node.children:
      rng.choice(node.children).node_id = other
    elif damage == 1 and node.children:
      rng.choice(node.children).local_name = rng.choice(
        ["__call__", "variables", "__class__", "__init__", "", "a.b", "\0"]
      )
    elif damage == 2:
      node.CopyFrom(rng.choice(objects.nodes))
    elif damage == 3:
      function.bound_inputs[:] = [other] * rng.randrange(3)
    elif damage == 4:
      function.output_signature.Clear()
    elif damage == 5:
      function.canonicalized_input_signature.Clear()
    elif damage == 6 and node.HasField("variable"):
      node.variable.dtype = rng.randrange(30)
      node.variable.shape.dim.add().size = rng.choice([-1, 0, 2**40])
    elif damage == 7:
      library = graph.graph_def.library.function
      library.remove(rng.choice(library))
    elif damage == 8:
      info = next(iter(graph.signature_def["serving_default"].inputs.values()))
      info.dtype = rng.randrange(200)
      info.tensor_shape.unknown_rank = True
    else:
      node.registered_name = rng.choice(["Asset", "Variable", "Custom.X"])
  return model.SerializeToString()


def serve(requests):
  """Checks SavedModels; answers with the verdicts, or what went wrong."""
  for directory in requests:
    try:
      subject = subject_lib.read(directory)
      subject_lib.load_into(subject, trust=False)
      verdicts = {
        rule.name: rules.judge_one(subject, rule).verdict
        for rule in rules.ORDER
        if not rule.last
      }
      passed = (
        not any(
          verdicts[rule.name] in (findings.FAIL, findings.NOT_DECIDABLE)
          and rule.level == "must"
          for rule in rules.ORDER
          if not rule.last
        )
        and verdicts["R1"] == findings.PASS
      )
      json.dumps(report.collect(subject))
      if passed:
        subject_lib.load(directory, trust=False).model(subject.example())
      yield "passes" if passed else "broken"
    except errors.ExportError:
      yield "an error"
    except Exception:
      yield traceback.format_exc()


class MutationsTest(tf.test.TestCase):
  def test_every_damage_has_a_verdict(self):
    whole = os.path.join(self.get_temp_dir(), "whole")
    _save(whole)
    damaged = os.path.join(self.get_temp_dir(), "damaged")
    copies = os.path.join(self.get_temp_dir(), "copies")
    os.mkdir(copies)
    counts = {}
    stack = None
    for i in range(-1, _COUNT.value):
      rng = random.Random(f"{_SEED.value} {i}")
      shutil.rmtree(damaged, ignore_errors=True)
      shutil.copytree(whole, damaged)
      if i >= 0:
        path = pathlib.Path(damaged, _FILES[i % 5 == 0])
        damage = _damaged_objects if i % 5 > 2 else _damaged_bytes
        path.write_bytes(damage(path.read_bytes(), rng))
      copy = os.path.join(copies, str(i))
      os.mkdir(copy)
      copying.copy(damaged, copy)
      if stack is None:
        limits = sandbox.Limits(seconds=10_000, memory=2**32)
        stack = sandbox.started(
          "exporters.conformance.mutations_test", limits, readable=[copies]
        )
        ask = stack.__enter__()
      try:
        said = ask(copy)
      except sandbox.SandboxError as e:
        said = "an end"
        print(f"{i}: {e}")
        stack.__exit__(None, None, None)
        stack = None
      shutil.rmtree(copy)
      if i < 0:
        self.assertEqual(said, "passes")
      counts.setdefault(said, []).append(i)
    if stack:
      stack.__exit__(None, None, None)
    print({said: len(found) for said, found in counts.items()})
    expected = ("passes", "broken", "an error", "an end")
    self.assertEmpty(
      [item for item in counts.items() if item[0] not in expected]
    )


if __name__ == "__main__":
  tf.test.main()
