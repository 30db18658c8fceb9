r"""Writes what it takes to run every program on TPUs, from jobs.yaml.

  bazel run //integration_tests/tpu_jobs:generate -- --bucket=gs://BUCKET \
    --image=IMAGE --zone=ZONE --output_dir=DIR

DIR/README.md says what to do with the rest.
"""

from collections.abc import Mapping, Sequence
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

Each program can run in three places. Nothing of this has been run on a TPU: the
manifests have been checked against the schemas of Kubernetes and JobSet, the
programs have taken the flags.

Make the image first, once, in the repository:

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

The scripts queue for a spot TPU, run the program on its first machine, and give
the TPU back, however they end. The machines must be able to pull the image and
to write to {bucket}. Those of a slice come with a TensorFlow
that runs already, which must be of the same version as the image's.

The cluster needs JobSet, the driver of Cloud Storage FUSE, nodes with that TPU,
and a service account `{service_account}` that may write to {bucket}.

Preempted trainings go on after the last epoch that is in {bucket}/backups:
a script's when it is run again; JobSet starts the program again by itself, up
to {restarts} times. BERT's state stays there when its training is over: remove
it to train from the beginning. Nothing is fine-tuned while there is a model at
{bucket}/fine_tuned that would be in the way.

PROGRAM is one of these; an exporter comes before the program that uses its
export:

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
_RESTARTS = 10


def arguments(
  jobs: Mapping[str, Any], program: str, place: str, bucket: str
) -> list[str]:
  """Returns the flags of a program.

  Args:
    jobs: What is in jobs.yaml.
    program: Name of the program.
    place: Where it runs.
    bucket: The user's, `gs://…`.
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
) -> dict[str, Any]:
  """Returns a program's manifest for Google Kubernetes Engine.

  Args:
    jobs: What is in jobs.yaml.
    program: Name of the program.
    bucket: The user's, `gs://…`.
    image: Name of the container's image.
    service_account: The one of the cluster's that may write to the bucket.
  """
  place = jobs["places"]["gke"]
  command = shlex.join(_command(jobs, program, "gke", bucket))
  export = jobs["programs"][program].get("export")
  if export:
    command += f" && mkdir -p /bucket/exports && cp -r {export} /bucket/exports"
  pod = {
    "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
    "spec": {
      "serviceAccountName": service_account,
      "restartPolicy": "Never",
      "nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": place["accelerator"],
        "cloud.google.com/gke-tpu-topology": place["topology"],
      },
      "containers": [
        {
          "name": "program",
          "image": image,
          "env": [
            {"name": name, "value": value}
            for name, value in place.get("environment", {}).items()
          ],
          "command": ["sh", "-c", command],
          "resources": {
            "requests": {"google.com/tpu": str(place["chips"])},
            "limits": {"google.com/tpu": str(place["chips"])},
          },
          "volumeMounts": [{"name": "bucket", "mountPath": "/bucket"}],
        }
      ],
      "volumes": [
        {
          "name": "bucket",
          "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": bucket.removeprefix("gs://")},
          },
        }
      ],
    },
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": _name(program)},
    "spec": {
      "failurePolicy": {"maxRestarts": _RESTARTS},
      "replicatedJobs": [
        {
          "name": "job",
          "replicas": 1,
          "template": {
            "spec": {
              "backoffLimit": 0,
              "completions": 1,
              "parallelism": 1,
              "template": pod,
            }
          },
        }
      ],
    },
  }


def script(
  jobs: Mapping[str, Any],
  program: str,
  place: str,
  bucket: str,
  image: str,
  zone: str,
) -> str:
  """Returns a program's script for TPUs that are asked for by name.

  Args:
    jobs: What is in jobs.yaml.
    program: Name of the program.
    place: Where it runs.
    bucket: The user's, `gs://…`.
    image: Name of the container's image.
    zone: The TPU's.
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
  """Returns the name of a program's resources, which have no underscores."""
  return program.replace("_", "-")


def read() -> dict[str, Any]:
  """Returns what is in jobs.yaml."""
  return yaml.safe_load(
    pathlib.Path(__file__).with_name("jobs.yaml").read_text()
  )


def generate(
  output_dir: pathlib.Path,
  *,
  bucket: str,
  image: str,
  zone: str,
  service_account: str,
) -> None:
  """Writes the page, the scripts and the manifests.

  Args:
    output_dir: Where; what is there under the same names is replaced.
    bucket: The user's, `gs://…`.
    image: Name of the container's image.
    zone: The TPUs'.
    service_account: The one of the cluster's that may write to the bucket.
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
    manifest = job_set(jobs, program, bucket, image, service_account)
    (output_dir / "gke" / f"{program}.yaml").write_text(
      yaml.safe_dump(manifest, sort_keys=False, width=1000)
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
  """Writes what the flags say."""
  if len(argv) > 1:
    sys.exit(f"ERROR: {argv[1]} is not a flag. Flags start with --.")
  values = flags.FLAGS
  # Under `bazel run` a relative path starts from where the user is.
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
  print(f"Read on in {output_dir / 'README.md'}")


def define_flags() -> None:
  """Defines the flags of this program."""
  for name, text in (
    ("bucket", "A bucket for exports and the state of trainings: gs://NAME."),
    ("image", "Name of the image, such as REGISTRY/PROJECT/exporters."),
    ("zone", "Zone of the TPUs."),
    ("output_dir", "The directory to write to."),
  ):
    flags.DEFINE_string(name, None, text, required=True)
  flags.DEFINE_string(
    "service_account",
    "default",
    "The Kubernetes service account that may write to the bucket.",
  )
  flags.register_validator(
    "bucket",
    lambda value: re.fullmatch("gs://[a-z0-9._-]+/?", value),
    "It must be gs://NAME.",
  )


if __name__ == "__main__":
  define_flags()
  app.run(main)
