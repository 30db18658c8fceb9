"""Checks the generated files, as far as possible without a TPU."""

import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from kubeflow_trainer_api import models
import yaml

from integration_tests.tpu_jobs import generate
from tools import nightly

_IMAGE = pathlib.Path("integration_tests/tpu_jobs/image").absolute()
_JOBS = generate.read()
_BUCKET = "gs://bucket"

# Replaces gcloud: logs requests, and reports a TPU only at the second query.
_GCLOUD = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *describe*) if [ -e "$LOG.waited" ]; then echo "$STATE"; else
    touch "$LOG.waited"; echo WAITING_FOR_RESOURCES; fi ;;
esac
"""


def _run(directory, program, *arguments, **environment):
  """Runs a program in an empty directory, with a minimal environment."""
  return subprocess.run(
    [sys.executable, _IMAGE / f"{program}.zip", *arguments],
    cwd=directory,
    env=environment,
    capture_output=True,
    text=True,
  )


class GenerateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.output_dir = pathlib.Path(
      tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
    )
    generate.generate(
      cls.output_dir,
      bucket=_BUCKET,
      image="image",
      zone="zone",
      service_account="account",
    )

  @parameterized.parameters(*_JOBS["programs"])
  def test_manifest(self, program):
    path = self.output_dir / "gke" / f"{program}.yaml"
    manifest = yaml.safe_load(path.read_text())
    parsed = models.JobsetV1alpha2JobSet.from_dict(manifest)
    # Kubernetes would drop fields that its schemas lack.
    self.assertEqual(parsed.to_dict(), manifest)

  @parameterized.parameters(*_JOBS["programs"])
  def test_program_takes_the_flags(self, program):
    directory = self.create_tempdir()
    arguments = generate.arguments(_JOBS, program, "pod_slice", _BUCKET)
    self.assertIn(f"--tpu={program.replace('_', '-')}", arguments)
    # The environment of a machine in Google Cloud with a TPU.
    with socket.create_server(("localhost", 0)) as server:
      done = _run(
        directory,
        program,
        *arguments,
        "--only_check_args",
        GCE_METADATA_HOST=f"localhost:{server.getsockname()[1]}",
      )
    self.assertEqual(done.returncode, 0, done.stderr)
    # The state of an interrupted training run is in the bucket.
    self.assertTrue(
      any(f"_dir={_BUCKET}/backups/{program}" in a for a in arguments)
    )
    self.assertEmpty(os.listdir(directory))

  @absltest.skipIf(
    list(pathlib.Path("/dev").glob("accel*")), "This machine has a TPU."
  )
  def test_program_needs_the_tpu(self):
    arguments = generate.arguments(_JOBS, "use_bert", "gke", _BUCKET)
    done = _run(self.create_tempdir(), "use_bert", *arguments)
    self.assertEqual(done.returncode, 1)
    self.assertIn("--tpu=local: This machine has no TPU", done.stderr)

  def test_container(self):
    text = (_IMAGE / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    self.assertEqual(copied, ["uv.txt requirements_tpu.txt", "."])
    for name in (*copied[0].split(), "bert_small.yaml"):
      self.assertNotEmpty((_IMAGE / name).read_text())

  @nightly.only
  def test_program_runs_by_itself(self):
    directory = pathlib.Path(self.create_tempdir())
    done = _run(directory, "mnist_cnn", "--helpshort")
    self.assertIn("bazel run //exporters:mnist_cnn", done.stdout)
    done = _run(
      directory,
      "mnist_cnn",
      "--train_on=digits",
      "--epochs=0",
      "--verification=fast",
      "--export_dir=export",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("✓ trainable variables", done.stdout)
    self.assertTrue((directory / "export" / "saved_model.pb").exists())

  @parameterized.product(
    place=("one_vm", "pod_slice"), state=("ACTIVE", "SUSPENDED")
  )
  def test_script(self, place, state):
    directory = pathlib.Path(self.create_tempdir())
    for name, text in (("gcloud", _GCLOUD), ("sleep", "#!/bin/sh\n")):
      (directory / name).write_text(text)
      (directory / name).chmod(0o755)
    log = directory / "log"
    done = subprocess.run(
      [self.output_dir / place / "mnist_cnn.sh"],
      env={
        "PATH": f"{directory}:/usr/bin:/bin",
        "LOG": str(log),
        "STATE": state,
      },
    )
    create, *describe, last, delete = log.read_text().splitlines()
    self.assertIn(" create mnist-cnn --zone=zone", create)
    self.assertIn(_JOBS["places"][place]["accelerator_type"], create)
    self.assertIn(" delete mnist-cnn --zone=zone", delete)
    if state == "SUSPENDED":
      self.assertLen([*describe, last], 2)
      self.assertEqual(done.returncode, 1)
      return
    self.assertLen(describe, 2)
    self.assertEqual(done.returncode, 0)
    command = shlex.split(last.partition("--command=")[2])
    start, end = command.index("python"), command.index("&&")
    self.assertEqual(
      command[start:end],
      [
        *("python", "mnist_cnn.zip"),
        *generate.arguments(_JOBS, "mnist_cnn", place, _BUCKET),
      ],
    )
    self.assertEqual(
      command[end + 1 :],
      [
        *("gcloud", "storage", "cp", "/tmp/exports/mnist_cnn"),
        *("gs://bucket/exports/", "--recursive"),
      ],
    )


if __name__ == "__main__":
  absltest.main()
