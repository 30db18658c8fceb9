r"""Generates scripts and manifests that run all programs on TPUs.

  bazel run //integration_tests/tpu_jobs:generate -- --bucket=gs://BUCKET \
    --image=IMAGE --zone=ZONE --output_dir=DIR

DIR/README.md explains how to use the files. Their source is jobs.yaml.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import re
import shlex
import sys
from typing import Any

from absl import app
from absl import flags
import yaml

_README = """# {count} programs on TPUs

Each program can run in three places. None of these files has been tried on a
TPU. Tests check the manifests against the schemas of Kubernetes and JobSet, and
check that the programs accept their flags.

First build and push the image, in the repository:

```sh
./bazelw build //integration_tests/tpu_jobs:image
docker build --tag={image} bazel-bin/integration_tests/tpu_jobs/image
docker push {image}
```

| where | TPU | how |
| --- | --- | --- |
| a machine with a TPU | {one_vm} | `one_vm/PROGRAM.sh` |
| a slice of several machines | {pod_slice} | `pod_slice/PROGRAM.sh` |
| Kubernetes Engine | {gke} | `kubectl apply -f gke/PROGRAM.yaml` |

Each script requests a spot TPU, runs the program on its first machine, and
deletes the TPU when it exits, even after an error. The machines must be able to
pull the image and to write to {bucket}. The machines of a slice already run
TensorFlow; its version must be that of the image.

The Kubernetes cluster needs JobSet, the Cloud Storage FUSE driver, nodes with
the TPU, and a service account `{service_account}` that may write to {bucket}.

After a preemption, training resumes from the last complete epoch, which is in
{bucket}/backups. Run the script again; JobSet restarts the program by itself,
up to {restarts} times. BERT's backup remains after training: delete it to train
from scratch. Before fine-tuning again, delete the model in
{bucket}/fine_tuned.

PROGRAM is one of the following. Run an exporter before the program that uses
its export:

{programs}
"""

_SCRIPT = """#!/bin/sh
# Runs {program} on a {accelerator_type}. Run it again after a preemption.
set -eu

tpus() {{
  resource="$1"
  command="$2"
  shift 2
  gcloud compute tpus "$resource" "$command" {name} --zone={zone} "$@"
}}

trap 'tpus queued-resources delete --force --quiet' EXIT
tpus queued-resources create --node-id={name} --spot \\
  --accelerator-type={accelerator_type} --runtime-version={runtime_version}
state=
while [ "$state" != ACTIVE ]; do
  sleep 20
  state="$(tpus queued-resources describe --format='value(state.state)')"
  case "$state" in FAILED | SUSPENDED) exit 1 ;; esac
done
tpus tpu-vm ssh --worker=0 --command={command}
"""

_JOB_SET = """apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
spec:
  failurePolicy:
    maxRestarts: {restarts}
  replicatedJobs:
  - name: job
    replicas: 1
    template:
      spec:
        backoffLimit: 0
        completions: 1
        parallelism: 1
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "true"
          spec:
            serviceAccountName: {service_account}
            restartPolicy: Never
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {accelerator}
              cloud.google.com/gke-tpu-topology: {topology}
            containers:
            - name: program
              image: {image}
              env: {env}
              command: [sh, -c, {command}]
              resources:
                requests: {{google.com/tpu: "{chips}"}}
                limits: {{google.com/tpu: "{chips}"}}
              volumeMounts:
              - name: bucket
                mountPath: /bucket
            volumes:
            - name: bucket
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: {bucket}
"""
_RESTARTS = 10


def arguments(
  jobs: Mapping[str, Any], program: str, place: str, bucket: str
) -> list[str]:
  """Returns the flags of a program.

  Args:
    jobs: The content of jobs.yaml.
    program: Name of the program.
    place: A key of `places` in jobs.yaml.
    bucket: The user's bucket, `gs://…`.
  """
  tpu = jobs["places"][place]["tpu"].replace("NAME", _name(program))
  return [
    flag.replace("BUCKET", bucket).replace("TPU", tpu)
    for flag in (*jobs["programs"][program]["flags"], *jobs["flags"])
  ]


def job_set(
  jobs: Mapping[str, Any],
  program: str,
  bucket: str,
  image: str,
  service_account: str,
) -> str:
  """Returns a program's manifest for Google Kubernetes Engine.

  Args:
    jobs: The content of jobs.yaml.
    program: Name of the program.
    bucket: The user's bucket, `gs://…`.
    image: Name of the container image.
    service_account: Kubernetes service account that may write to the bucket.
  """
  place = jobs["places"]["gke"]
  command = shlex.join(_command(jobs, program, "gke", bucket))
  export = jobs["programs"][program].get("export")
  if export:
    command += f" && mkdir -p /bucket/exports && cp -r {export} /bucket/exports"
  environment = place.get("environment", {})
  return _JOB_SET.format(
    name=_name(program),
    restarts=_RESTARTS,
    service_account=json.dumps(service_account),
    image=json.dumps(image),
    env=json.dumps([{"name": k, "value": v} for k, v in environment.items()]),
    command=json.dumps(command),
    bucket=json.dumps(bucket.removeprefix("gs://")),
    **place,
  )


def script(
  jobs: Mapping[str, Any],
  program: str,
  place: str,
  bucket: str,
  image: str,
  zone: str,
) -> str:
  """Returns the script that requests a TPU and runs a program on it.

  Args:
    jobs: The content of jobs.yaml.
    program: Name of the program.
    place: A key of `places` in jobs.yaml.
    bucket: The user's bucket, `gs://…`.
    image: Name of the container image.
    zone: Zone of the TPU.
  """
  details = jobs["places"][place]
  command = shlex.join(
    [
      *("sudo", "docker", "run", "--rm", "--privileged", "--net=host"),
      "--volume=/tmp/exports:/exports",
      *(f"--env={k}={v}" for k, v in details.get("environment", {}).items()),
      image,
      *_command(jobs, program, place, bucket),
    ]
  )
  export = jobs["programs"][program].get("export")
  if export:
    command += (
      f" && gcloud storage cp /tmp{export} {bucket}/exports/ --recursive"
    )
  return _SCRIPT.format(
    program=program,
    name=_name(program),
    zone=zone,
    command=shlex.quote(command),
    **details,
  )


def _command(
  jobs: Mapping[str, Any], program: str, place: str, bucket: str
) -> list[str]:
  return [
    *("python", f"{program}.zip"),
    *arguments(jobs, program, place, bucket),
  ]


def _name(program: str) -> str:
  """Returns the name of a program's resources, without underscores."""
  return program.replace("_", "-")


def read() -> dict[str, Any]:
  """Returns the content of jobs.yaml, with the programs for all images."""
  directory = pathlib.Path(__file__).parent
  text = (directory / "jobs.yaml").read_text()
  jobs = yaml.safe_load(text)
  for name in (directory / "architectures.txt").read_text().split():
    of_images = yaml.safe_load(text.replace("ARCHITECTURE", name))
    jobs["programs"].update(of_images["image_programs"])
  return jobs


def generate(
  output_dir: pathlib.Path,
  *,
  bucket: str,
  image: str,
  zone: str,
  service_account: str,
) -> None:
  """Writes README.md, the scripts and the manifests.

  Args:
    output_dir: Output directory. Files of the same names are replaced.
    bucket: The user's bucket, `gs://…`.
    image: Name of the container image.
    zone: Zone of the TPUs.
    service_account: Kubernetes service account that may write to the bucket.
  """
  jobs = read()
  places = jobs["places"]
  for place in places:
    (output_dir / place).mkdir(parents=True, exist_ok=True)
  for program in jobs["programs"]:
    for place in ("one_vm", "pod_slice"):
      path = output_dir / place / f"{program}.sh"
      path.write_text(script(jobs, program, place, bucket, image, zone))
      path.chmod(0o755)
    (output_dir / "gke" / f"{program}.yaml").write_text(
      job_set(jobs, program, bucket, image, service_account)
    )
  (output_dir / "README.md").write_text(
    _README.format(
      count=len(jobs["programs"]),
      programs="\n".join(f"- `{program}`" for program in jobs["programs"]),
      one_vm=places["one_vm"]["accelerator_type"],
      pod_slice=places["pod_slice"]["accelerator_type"],
      gke="{accelerator}, {topology}".format(**places["gke"]),
      bucket=bucket,
      image=image,
      restarts=_RESTARTS,
      service_account=service_account,
    )
  )


def main(argv: Sequence[str]) -> None:
  """Runs the program with the values of its flags."""
  if len(argv) > 1:
    sys.exit(f"ERROR: {argv[1]} is not a flag. Flags start with --.")
  values = flags.FLAGS
  # `bazel run` changes the working directory to that of the program.
  start = os.environ.get("BUILD_WORKING_DIRECTORY", "")
  output_dir = pathlib.Path(start, values.output_dir)
  try:
    generate(
      output_dir,
      bucket=values.bucket.rstrip("/"),
      image=values.image,
      zone=values.zone,
      service_account=values.service_account,
    )
  except OSError as e:
    sys.exit(f"ERROR: --output_dir: {e}")
  print(f"Wrote {output_dir / 'README.md'}, which explains the next steps.")


def define_flags() -> None:
  """Defines the flags of this program."""
  for name, text in (
    ("bucket", "Bucket for exports and training backups, gs://NAME."),
    ("image", "Name of the image, such as REGISTRY/PROJECT/exporters."),
    ("zone", "Zone of the TPUs."),
    ("output_dir", "Output directory."),
  ):
    flags.DEFINE_string(name, None, text, required=True)
  flags.DEFINE_string(
    "service_account",
    "default",
    "Kubernetes service account that may write to the bucket.",
  )
  flags.register_validator(
    "bucket",
    lambda value: re.fullmatch("gs://[a-z0-9._-]+/?", value),
    "It must be gs://NAME.",
  )


if __name__ == "__main__":
  define_flags()
  app.run(main)
