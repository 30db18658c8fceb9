import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest

from distribution import errors
from distribution import publishing

# Publishes a file of two halves, with a pause in seconds before each.
_WRITER = """
import pathlib, sys, time
from distribution import publishing
export_dir, text, *pauses = sys.argv[1:]
with publishing.publish(
  export_dir, publishing.CHECKPOINT, overwrite=True
) as directory:
  with open(pathlib.Path(directory) / "checkpoint", "w") as f:
    print("writing", flush=True)
    for half, pause in zip((text[:4], text[4:]), pauses):
      time.sleep(float(pause))
      f.write(half)
      f.flush()
"""


class PublishTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = pathlib.Path(self.create_tempdir().full_path)
    self.target = self.parent / "export"

  def publish(self, text="complete", **kwargs):
    with publishing.publish(
      self.target, publishing.CHECKPOINT, **kwargs
    ) as directory:
      (pathlib.Path(directory) / "checkpoint").write_text(text)

  def assert_only(self, *names):
    self.assertCountEqual([p.name for p in self.parent.iterdir()], names)

  def assert_published(self, text):
    self.assertEqual((self.target / "checkpoint").read_text(), text)

  def test_a_full_disk_leaves_nothing(self):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    unfinished = self.parent / ".export.unfinished"
    for limit, path in ((99, self.target), (0, unfinished)):
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
      try:
        with self.assertRaisesRegex(
          errors.InputError, f"^Cannot write {path}: File too large$"
        ):
          self.publish("long" * 99)
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      self.assertEmpty(os.listdir(self.parent))

  def test_appears_whole_at_the_end_and_readable_for_all(self):
    with publishing.publish(self.target) as directory:
      (pathlib.Path(directory) / "checkpoint").write_text("complete")
      self.assertFalse(self.target.exists())
    self.assert_published("complete")
    self.assert_only("export")
    expected = pathlib.Path(self.create_tempdir().full_path) / "usual"
    expected.mkdir()
    self.assertEqual(self.target.stat().st_mode, expected.stat().st_mode)

  def test_takes_an_empty_directory_and_makes_parents(self):
    self.target = self.parent / "a" / "b"
    self.target.mkdir(parents=True)
    self.publish()
    self.assert_published("complete")

  def test_follows_links(self):
    link = self.parent / "link"
    link.symlink_to(self.target)
    with publishing.publish(link) as directory:
      (pathlib.Path(directory) / "checkpoint").write_text("complete")
    self.assert_published("complete")
    self.assert_only("export", "link")

  def test_failure_leaves_nothing(self):
    self.target = self.parent / "new" / "export"
    with self.assertRaisesRegex(ValueError, "broken"):
      with publishing.publish(self.target) as directory:
        (pathlib.Path(directory) / "checkpoint").write_text("half")
        raise ValueError("broken")
    self.assert_only()

  def test_refuses_before_the_work_starts(self):
    self.publish("old")
    (self.parent / "file").write_text("")
    (self.parent / "loop").symlink_to("loop")
    for path, overwrite, message in (
      (self.target, False, "Choose another directory, or say --overwrite"),
      (self.parent, True, "has export/checkpoint in it: no program of this p"),
      (self.parent / "loop", True, "^Cannot write .*/loop: Symlink loop"),
      (self.parent / "file", True, "Not a directory"),
      (self.parent / "file" / "x", True, "Not a directory"),
      ("gs://bucket/export", True, "not a local directory"),
      ("/proc", True, "is a mount point"),
    ):
      with self.assertRaisesRegex(errors.InputError, message):
        with publishing.publish(
          path, publishing.CHECKPOINT, overwrite=overwrite
        ):
          self.fail("The work started.")
    with (
      mock.patch.object(tempfile, "tempdir", str(self.target)),
      self.assertRaisesRegex(errors.InputError, "directory for temporary file"),
    ):
      self.publish()
    self.assert_published("old")
    self.assert_only("export", "file", "loop")

  def test_a_file_replaces_only_a_file(self):
    path = self.parent / "file"
    path.write_text("old")
    publishing.write(path, b"new")
    (self.parent / "link").symlink_to(path)
    os.mkfifo(self.parent / "pipe")
    for name in ("link", "pipe"):
      with self.assertRaisesRegex(errors.InputError, f"{name} is a link, a pi"):
        publishing.write(self.parent / name, b"newer")
    self.assertTrue((self.parent / "link").is_symlink())
    self.assertEqual(path.read_text(), "new")
    self.assert_only("file", "link", "pipe")

  def test_overwrites_only_what_an_exporter_writes(self):
    whole = (
      *("saved_model.pb", "fingerprint.pb", "assets.extra/README.md"),
      *(
        "assets.extra/model.json",
        "assets.extra/verification.json",
        "assets.extra/.README.md.unfinished/x",
      ),
      *("assets/vocab.txt", "variables/variables.index"),
      "variables/variables.data-00000-of-00001",
    )
    foreign = (
      *("notes.txt", "variables/notes.txt", "assets.extra/labels.txt"),
      *("encoder/notes.txt", "assets/a/b", "a/b/saved_model.pb", "empty/"),
      *("link@", "variables@", ".hidden", "checkpoint", "assets/notes.txt"),
    )
    for i, (names, problem) in enumerate(
      [
        (whole, None),
        ([f"{d}/{name}" for d in ("encoder", "decoder") for name in whole], ""),
        (whole[:2], "has no assets.extra/README.md: no program of this pro"),
        *(
          ([name, *whole[: 6 if "@" in name else 8]], f"has {name[:9]}")
          for name in foreign
        ),
      ]
    ):
      target = self.parent / str(i)
      for name in names:
        path = target / name.rstrip("/@")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
          path.mkdir()
        elif name.endswith("@"):
          path.symlink_to(self.parent)
        else:
          path.write_text("vocab.txt")
      before = sorted(target.rglob("*"))
      with self.subTest(names[0]):
        if not problem:
          with publishing.publish(target, overwrite=True):
            pass
          self.assertEmpty(list(target.iterdir()))
          continue
        with self.assertRaisesRegex(errors.InputError, problem.strip("/@")):
          with publishing.publish(target, overwrite=True):
            self.fail("The work started.")
        self.assertEqual(sorted(target.rglob("*")), before)

  def test_what_comes_meanwhile_is_not_lost(self):
    with self.assertRaisesRegex(errors.InputError, "has notes.txt in it"):
      with publishing.publish(self.target, overwrite=True):
        self.target.mkdir()
        (self.target / "notes.txt").write_text("mine")
    self.assertEqual((self.target / "notes.txt").read_text(), "mine")
    self.assert_only("export")

  def test_check_apart(self):
    publishing.check_apart("/a/b", "/a/c", "/a/bc")
    for other in ("/a/b/", "/a", "/a/b/c", "/x/../a/b"):
      with self.assertRaisesRegex(errors.InputError, "must be apart"):
        publishing.check_apart("/a/b", other)

  def test_overwrite_replaces(self):
    self.publish("old")
    self.publish("new", overwrite=True)
    self.assert_published("new")
    self.assert_only("export")

  def test_killed_at_any_point(self):
    self.publish("old text")
    for pauses, delay in (
      # The first two writers are killed while they write, the others near the
      # end.
      ((3600, 0), 0),
      ((0, 3600), 0.05),
      *(((0.05, 0.05), delay) for delay in (0.09, 0.1, 0.11, 0.12, 0.15, None)),
    ):
      writer = subprocess.Popen(
        [
          *(sys.executable, "-c", _WRITER, self.target, "new text"),
          *map(str, pauses),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
      )
      self.assertEqual(writer.stdout.readline(), b"writing\n")
      if delay is not None:
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
      writer.communicate()
      self.assertIn(
        (self.target / "checkpoint").read_text(), ("old text", "new text")
      )
    # The last writer was not killed, and no leftovers were in its way.
    self.assert_published("new text")
    self.assert_only("export")

  def test_of_two_programs_the_first_wins(self):
    with publishing.publish(self.target) as directory:
      with self.assertRaisesRegex(errors.InputError, "^Another program is wri"):
        self.publish("second")
      (pathlib.Path(directory) / "checkpoint").write_text("first")
    self.assert_published("first")
    self.assert_only("export")

  def test_removes_only_what_is_known_to_be_abandoned(self):
    unfinished = self.parent / ".export.unfinished"
    for name, text, is_ours in (
      ("notes.txt", "mine", False),
      ("temporary.txt", "mine", False),
      ("temporary.txt", "Files of a running", True),
      ("temporary.txt", "", True),
    ):
      unfinished.mkdir()
      (unfinished / name).write_text(text)
      if is_ours:
        self.publish(text)
        self.assert_published(text)
        self.assert_only("export")
        shutil.rmtree(self.target)
        continue
      with self.assertRaisesRegex(errors.InputError, "is in the way: no progr"):
        self.publish()
      self.assertEqual((unfinished / name).read_text(), text)
      shutil.rmtree(unfinished)
    unfinished.symlink_to(self.parent)
    with self.assertRaisesRegex(errors.InputError, "is in the way"):
      self.publish()


if __name__ == "__main__":
  absltest.main()
