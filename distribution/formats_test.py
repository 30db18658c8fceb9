import os
from unittest import mock
import zipfile

from absl.testing import absltest

from distribution import errors
from distribution import formats

_HDF5 = b"\x89HDF\r\n\x1a\n and more"


class FormatsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.create_tempdir().full_path

  def file(self, name, content=b"any"):
    path = os.path.join(self.directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
      f.write(content)
    return path

  def zip(self, name, member):
    path = self.file(name)
    with zipfile.ZipFile(path, "w") as f:
      f.writestr(member, "content")
    return path

  def test_paths_start_from_the_directory_of_the_user(self):
    environment = {"HOME": "/home/user", "BUILD_WORKING_DIRECTORY": "/work"}
    with mock.patch.dict(os.environ, environment):
      for path, expected in (
        (None, None),
        ("gs://bucket/~", "gs://bucket/~"),
        ("~/export", "/home/user/export"),
        ("export", "/work/export"),
        ("/export", "/export"),
        ("file:///export", "/export"),
        ("file://localhost/export", "/export"),
      ):
        self.assertEqual(formats.absolute(path), expected)
      with self.assertRaisesRegex(errors.InputError, "give its absolute path"):
        formats.absolute("file://export")

  def test_checkpoints(self):
    data = self.file("run/ckpt-1.data-00000-of-00001")
    self.file("run/ckpt-1.index")
    self.file("run/ckpt-1.meta")
    state = self.file("run/checkpoint")
    run = os.path.join(self.directory, "run")
    prefix = os.path.join(run, "ckpt-1")
    for path, expected in (
      (prefix, prefix),
      (f"{prefix}.index", prefix),
      (f"{prefix}.meta", prefix),
      (data, prefix),
      (run, run),
      (state, run),
      ("gs://bucket/ckpt.index", "gs://bucket/ckpt"),
    ):
      with self.subTest(path):
        self.assertEqual(formats.checkpoint_prefix(path), expected)
    weights = self.file("model.h5", _HDF5)
    self.assertEqual(
      formats.checkpoint_prefix(weights, takes_others=True), weights
    )

  def test_what_is_no_checkpoint(self):
    self.file("export/saved_model.pb")
    self.file("export/variables/variables.index")
    self.file("torch/pytorch_model.bin")
    self.file("torch/config.json", b"{}")
    self.file("keras/model.h5", _HDF5)
    os.mkdir(os.path.join(self.directory, "empty"))
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
    self.file("lfs.index", lfs)
    for path, message in (
      ("nothing", "nothing.index does not exist"),
      (self.zip("a.keras", "config.json"), "a model in Keras' own format, not"),
      (self.zip("renamed", "config.json"), "a model in Keras' own format, not"),
      (self.zip("a.bin", "archive/data.pkl"), "weights of PyTorch, not a"),
      (self.zip("a.zip", "x"), "an archive, not a checkpoint. Unpack it first"),
      (self.file("w.h5", _HDF5), "weights of Keras in HDF5, not a checkpoint"),
      (self.file("w.weights", _HDF5), "weights of Keras in HDF5, not a check"),
      (self.file("pytorch_model.bin"), "weights of PyTorch, not a checkpoint"),
      (self.file("a.safetensors"), "is a file of safetensors, not a check"),
      (self.file("flax_model.msgpack"), "weights of Flax, not a checkpoint"),
      (self.file("a.npz"), "arrays of NumPy, not a checkpoint"),
      (self.file("a.tflite"), "a model of TensorFlow Lite, not a checkpoint"),
      (
        self.file("1", b"\x93NUMPY\x01"),
        "is arrays of NumPy, not a checkpoint",
      ),
      (self.zip("2", "a.npy"), "is arrays of NumPy, not a checkpoint"),
      (self.file("3", b"\x80\x02\x8a\nl\xfc"), "is weights of PyTorch, not a"),
      (self.file("4", b"\x1c\0\0\0TFL3"), "is a model of TensorFlow Lite, not"),
      (
        self.file("5", b"\x82\xa6params\x81"),
        "is weights of Flax, not a check",
      ),
      (self.file("6", b"\x80" + bytes(7) + b'{"a":{}}'), "file of safetensors"),
      (
        self.file("7", b"\x08\x08\x12\x07pytorch\x1a"),
        "is a model of ONNX, not",
      ),
      (self.file("page", b"<!DOCTYPE html>"), "a web page, as from a download"),
      (self.file("b.tar.gz", b"\x1f\x8b\x08"), "an archive, not a checkpoint"),
      (self.file("frozen.pb"), "a graph of TensorFlow 1, not a checkpoint"),
      (self.file("export/saved_model.pb"), "a SavedModel, not a checkpoint"),
      (self.file("notes.txt"), "is a file, but not of a checkpoint, which is"),
      ("export", "export is a SavedModel, not a checkpoint. Give the checkp"),
      ("torch", "pytorch_model.bin, in .*/torch, is weights of PyTorch, not a"),
      ("empty", "empty has no checkpoint in it"),
      ("keras", "model.h5, in .*/keras, is weights of Keras in HDF5, not a"),
      ("lfs", "lfs.index is a pointer of Git LFS.* Run `git lfs pull`"),
      (
        self.file("lost.data-00000-of-00001"),
        "no checkpoint .*/lost: .*-of-00001 exists, but .*/lost.index does not",
      ),
    ):
      with self.subTest(path):
        with self.assertRaisesRegex(errors.InputError, message) as raised:
          formats.checkpoint_prefix(os.path.join(self.directory, path))
        self.assertNotIn("\n", str(raised.exception))
    with self.assertRaisesRegex(errors.InputError, "Give the path of model.h5"):
      formats.checkpoint_prefix(
        os.path.join(self.directory, "keras"), takes_others=True
      )

  def test_largest_json(self):
    path = self.file("a.json", b"{}")
    self.assertEqual(formats.read_json(path), {})
    os.truncate(path, 2**40)
    with self.assertRaisesRegex(errors.InputError, "more than 104,857,600 byt"):
      formats.read_json(path)

  def test_saved_models(self):
    pb = self.file("export/saved_model.pb")
    self.file("run/checkpoint")
    self.file("run/ckpt-1.index")
    formats.check_saved_model(os.path.dirname(pb))
    formats.check_saved_model("https://tfhub.dev/x/y/1")
    for path, message in (
      ("nothing", "nothing does not exist"),
      (pb, r"is a file of a SavedModel. Give its directory, .*/export\.$"),
      ("run", "ckpt-1.index, in .*/run, is of a checkpoint, not a SavedModel"),
      ("run/ckpt-1", "run/ckpt-1 is a checkpoint, not a SavedModel"),
      ("run/ckpt-1.index", "ckpt-1.index is a checkpoint, not a SavedModel"),
      (self.zip("m.keras", "config.json"), "Keras' own format, not a SavedM"),
      (self.file("m.h5", _HDF5), "weights of Keras in HDF5, not a SavedModel"),
      (os.path.dirname(self.file("c/saved_model.cpb")), "SavedModel in chunks"),
      (self.file("m.tar.gz", b"\x1f\x8b"), "an archive, not a SavedModel. Unp"),
      (self.file("notes.txt"), "is a file. Pass the directory that has saved_"),
      (self.file("export/variables/x"), "is a file. Pass the directory that"),
      ("export/variables", "has no saved_model.pb"),
      ("", "has no saved_model.pb. Did you mean .*/export"),
    ):
      with self.subTest(path):
        with self.assertRaisesRegex(errors.InputError, message):
          formats.check_saved_model(os.path.join(self.directory, path))
    os.remove(pb)
    os.mkfifo(pb)
    with self.assertRaisesRegex(errors.InputError, "a pipe or a device"):
      formats.check_saved_model(os.path.dirname(pb))

  def test_names(self):
    for flag, path, refused in (
      ("export_dir", "/a[1]/b", True),
      ("export_dir", "/a*/b?", False),
      ("backup_dir", "/a*/b", True),
      ("checkpoint_dir", "/a/b?", True),
      ("checkpoint_dir", "/a b=1,(2) é", False),
    ):
      with self.subTest(path):
        if not refused:
          formats.check_name(flag, path)
          continue
        with self.assertRaisesRegex(
          errors.InputError, f"--{flag}=.*TensorFlow cannot read"
        ):
          formats.check_name(flag, path)


if __name__ == "__main__":
  absltest.main()
