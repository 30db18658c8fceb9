import contextlib
import io
import os
import shutil

import tensorflow as tf
import tf_keras

from exporters.reusable import checkpoints
from exporters.reusable import errors


def _model(units=3, layers=2):
  body = tf_keras.Sequential(
    [tf_keras.layers.Dense(units, name=f"dense{i}") for i in range(layers)],
    name="body",
  )
  body.build((None, 2))
  return body


def _full_model(body):
  head = tf_keras.layers.Dense(5, name="head")
  model = tf_keras.Sequential([body, head])
  model.body, model.head = body, head
  model.compile("adam", "mse")
  model.fit(tf.ones([4, 2]), tf.ones([4, 5]), verbose=0)
  return model


def _root(body):
  return tf.train.Checkpoint(model=tf.train.Checkpoint(body=body))


class RestoreTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.full_model = _full_model(_model())
    self.directory = self.get_temp_dir()
    checkpoint = tf.train.Checkpoint(model=self.full_model)
    self.path = checkpoint.save(os.path.join(self.directory, "checkpoint"))

  def restore(
    self, body, path=None, left_out=("model/head", "model/optimizer")
  ):
    checkpoints.restore(path or self.path, [_root(body)], left_out=left_out)

  def test_weights_that_keras_saved_of_a_model_with_another_first_layer(self):
    layers = [tf_keras.layers.Rescaling(2.0), tf_keras.layers.Dense(2)]
    saved, live = tf_keras.Sequential(layers), tf_keras.Sequential(layers[1:])
    saved.build([None, 3])
    path = os.path.join(self.directory, "weights")
    saved.save_weights(path)
    kernel = saved.layers[1].kernel.numpy()
    live.layers[0].kernel.assign(tf.zeros_like(kernel))
    roots = [live, checkpoints.keras_weights(live)]
    checkpoints.restore(path, roots, left_out=["keras_api"])
    self.assertAllEqual(live.layers[0].kernel, kernel)

  def test_sha256(self):
    hashes = []
    for name, value in (("first", 1.0), ("second", 1.0), ("third", 2.0)):
      checkpoint = tf.train.Checkpoint(v=tf.Variable([value]))
      path = checkpoint.write(os.path.join(self.get_temp_dir(), name))
      hashes.append(checkpoints.sha256(path))
    self.assertEqual(hashes[0], hashes[1])
    self.assertNotEqual(hashes[0], hashes[2])

  def test_restores_a_part_from_prefix_directory_and_write(self):
    written = tf.train.Checkpoint(model=self.full_model).write(
      os.path.join(self.directory, "written")
    )
    for path in (self.path, self.directory, written, f"{written}.index"):
      body = _model()
      self.restore(body, path)
      for weight, expected in zip(
        body.weights, self.full_model.body.weights, strict=True
      ):
        self.assertAllEqual(weight, expected)

  def test_variable_without_value(self):
    with self.assertRaisesRegex(
      errors.ExportError, r"has no value for dense2/kernel:0 \(3, 3\)"
    ):
      self.restore(_model(layers=3))

  def test_values_that_nothing_uses(self):
    with self.assertRaisesRegex(
      errors.ExportError,
      r"has model/layer_with_weights-0/layer_with_weights-1/bias \(3,\), which"
      " the model lacks",
    ):
      self.restore(_model(layers=1))
    for left_out in (["model/optimizer"], ["model/optimizer", "*/heads"]):
      with self.assertRaisesRegex(
        errors.ExportError, r"has model/layer_with_weights-1/kernel \(3, 5\)"
      ):
        self.restore(_model(), left_out=left_out)
    self.restore(_model(), left_out=["*/optimizer", "model/h*d"])

  def test_takes_the_structure_that_matches(self):
    other = _model()
    path = tf.train.Checkpoint(body=other).write(
      os.path.join(self.directory, "body")
    )
    body = _model()
    roots = [_root(body), tf.train.Checkpoint(body=body)]
    left_out = ["model/head", "model/optimizer"]
    for of_roots in (roots, roots[::-1]):
      for of_path in (path, self.path):
        self.assertEmpty(
          checkpoints.restore(of_path, of_roots, left_out=left_out)
        )
        expected = other if of_path == path else self.full_model.body
        self.assertAllEqual(body.weights[0], expected.weights[0])
    # The error is about the structure that is nearest.
    with self.assertRaisesRegex(
      errors.ExportError,
      r"Checkpoint\(body=…\), does not match the model: it has no value for"
      r" dense2/kernel:0 \(3, 3\); it has no value for dense2/bias:0 \(3,\)\.$",
    ):
      body = _model(layers=3)
      checkpoints.restore(path, [_root(body), tf.train.Checkpoint(body=body)])

  def test_a_part_of_the_checkpoint(self):
    def restore(body, path=self.path):
      with contextlib.redirect_stdout(io.StringIO()) as stdout:
        checkpoints.restore(
          path,
          [tf.train.Checkpoint(model=body)],
          parts=[_root(body)],
          left_out=["model/optimizer"],
        )
      return stdout.getvalue()

    body = _model()
    text = restore(body)
    self.assertEqual(
      text,
      f"Left out of {self.path}, which has more than is exported: head.\n"
      f"Restored 4 tensors with 21 parameters from {self.path}, a checkpoint of"
      " TensorFlow. Left out: counters (1), heads (2), optimizer (14).\n",
    )
    self.assertAllEqual(body.weights[0], self.full_model.body.weights[0])
    # The variables below the part must match in both directions.
    with self.assertRaisesRegex(errors.ExportError, "no value for dense2/ker"):
      restore(_model(layers=3))
    with self.assertRaisesRegex(
      errors.ExportError, r"it has model/[^;]*layer_with_weights-1/kernel"
    ):
      restore(_model(layers=1))
    whole = tf.train.Checkpoint(model=body).write(
      os.path.join(self.directory, "whole")
    )
    self.assertNotIn("Left out", restore(_model(), whole))

  def test_variables_of_a_saved_model_by_name(self):
    source, path = _model(), os.path.join(self.directory, "export")
    tf.saved_model.save(source, path)
    for body, message in (
      (_model(), None),
      (_model(layers=3), "no value, dense2/kernel, for dense2/kernel"),
      (_model(layers=1), r"has dense1/kernel \(3, 3\), which the model lacks"),
      (_model(units=4), r"has \(2, 3\) for dense0/kernel, which must be"),
    ):
      wrong = self.assertRaisesRegex(errors.ExportError, f"{message}")
      with wrong if message else contextlib.nullcontext():
        self.restore(body, path)
        self.assertAllEqual(body.weights[2], source.weights[2])

  def test_damaged_files(self):
    def damaged(change):
      with open(f"{self.path}.data-00000-of-00001", "rb") as f:
        content = f.read()
      path = os.path.join(self.directory, "damaged")
      shutil.copy(f"{self.path}.index", f"{path}.index")
      with open(f"{path}.data-00000-of-00001", "wb") as f:
        f.write(change(content))
      return path

    for change in (
      lambda content: content[: len(content) // 2],
      lambda content: b"",
      lambda content: bytes(byte ^ 1 for byte in content),
      # The object graph, which comes first, is whole.
      lambda content: content[:-3000] + bytes(3000),
    ):
      with self.assertRaisesRegex(
        errors.ExportError,
        "Cannot read .*damaged, which may be truncated or damaged: ",
      ) as raised:
        self.restore(_model(), damaged(change))
      self.assertNotIn("\n", str(raised.exception))
      self.assertNotIn("{{", str(raised.exception))

  def test_files_that_never_end_and_graphs_that_refer_to_nothing(self):
    reader = tf.train.load_checkpoint(self.path)
    shapes = reader.get_variable_to_shape_map()
    key = "_CHECKPOINTABLE_OBJECT_GRAPH"
    whole = reader.get_tensor(key)
    path = os.path.join(self.directory, "odd", "ck")
    os.mkdir(os.path.dirname(path))

    def written(change):
      graph = checkpoints.Graph.FromString(whole)
      change(graph)
      tensors = {name: reader.get_tensor(name) for name in shapes}
      tensors[key] = tf.constant(graph.SerializeToString())
      tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
      )

    def lost(graph):
      for node in graph.nodes:
        for attribute in node.attributes:
          attribute.checkpoint_key += "nowhere"

    for change, message in (
      (lost, r"has no value for dense0/kernel:0 \(2, 3\)"),
      (lambda g: setattr(g.nodes[0].children[0], "node_id", 999), "refer to"),
      (lambda g: g.Clear(), "its objects refer to others that are not in it"),
    ):
      written(change)
      with self.assertRaisesRegex(errors.ExportError, message):
        self.restore(self.full_model.body, path)
    for file, given in (
      (f"{path}.data-00000-of-00001", path),
      (os.path.join(os.path.dirname(path), "checkpoint"), None),
    ):
      if os.path.exists(file):
        os.remove(file)
      os.mkfifo(file)
      for read in (checkpoints.names, checkpoints.sha256):
        with self.assertRaisesRegex(errors.ExportError, "a pipe or a device"):
          read(given or os.path.dirname(path))

  def test_optional_variables(self):
    body = _model(layers=3)
    optional = body.layers[2].weights
    before = optional[0].numpy()
    lacking = checkpoints.restore(
      self.path,
      [_root(body)],
      left_out=["model/head", "model/optimizer"],
      optional=optional,
    )
    self.assertEqual([v.name for v in lacking], [v.name for v in optional])
    self.assertAllEqual(optional[0], before)
    self.assertAllEqual(body.weights[0], self.full_model.body.weights[0])
    with self.assertRaisesRegex(errors.ExportError, "no value for dense2/bias"):
      checkpoints.restore(
        self.path,
        [_root(body)],
        left_out=["model/head", "model/optimizer"],
        optional=optional[:1],
      )
    self.assertEmpty(
      checkpoints.restore(
        self.path,
        [_root(_model())],
        left_out=["model/head", "model/optimizer"],
      )
    )

  def test_directories(self):
    old, new = (os.path.join(self.directory, name) for name in ("old", "new"))
    manager = tf.train.CheckpointManager(
      tf.train.Checkpoint(model=self.full_model), old, max_to_keep=2
    )
    manager.save()
    manager.save()
    # A program on another machine wrote the directory, which was moved later.
    state = os.path.join(old, "checkpoint")
    with open(state) as f:
      text = f.read()
    with open(state, "w") as f:
      f.write(text.replace('path: "', f'path: "{old}/'))
    os.rename(old, new)
    self.restore(_model(), new)
    os.remove(os.path.join(new, "checkpoint"))
    with self.assertRaisesRegex(
      errors.ExportError, "has ckpt-1, ckpt-2 in it, and no file `checkpoint`"
    ):
      self.restore(_model(), new)
    os.remove(os.path.join(new, "ckpt-1.index"))
    self.restore(_model(), new)
    with open(os.path.join(new, "checkpoint"), "w") as f:
      f.write('model_checkpoint_path: "gone"')
    with self.assertRaisesRegex(errors.ExportError, "names gone, which is not"):
      self.restore(_model(), new)

  def test_names_no_more_than_a_few(self):
    with self.assertRaisesRegex(errors.ExportError, r"\); and 10 more\.$"):
      self.restore(_model(layers=10))

  def test_other_shape_leaves_the_model_as_it_was(self):
    body = _model(units=4)
    before = body.get_weights()
    with self.assertRaisesRegex(
      errors.ExportError, r"has \(2, 3\) for dense0/kernel:0 \(2, 4\)"
    ):
      self.restore(body)
    self.assertAllEqual(body.get_weights()[0], before[0])

  def test_no_checkpoint(self):
    empty = os.path.join(self.directory, "empty")
    os.mkdir(empty)
    broken = os.path.join(self.directory, "broken")
    with open(broken + ".index", "w") as f:
      f.write("nothing")
    for path, message in (
      (empty, "has no checkpoint in it"),
      (os.path.join(empty, "x"), "x.index does not exist"),
      (broken, "Cannot read"),
    ):
      with self.assertRaisesRegex(errors.ExportError, message):
        self.restore(_model(), path)


if __name__ == "__main__":
  tf.test.main()
