r"""Generates scripts and manifests that run all programs on TPUs.

They are for Cloud TPU VMs and for Google Kubernetes Engine:

  bazel run //integration_tests/tpu_jobs:generate -- --bucket=gs://BUCKET \
    --image=IMAGE --zone=ZONE --output_dir=DIR

DIR/README.md explains how to use the files. Their sources are jobs.yaml and the
templates beside this file.
"""

from collections.abc import Mapping
import json
import pathlib
import re
import shlex
from typing import Any

from absl import flags
import yaml

from distribution import formats
from distribution import programs
from distribution import publishing

_KIND = publishing.Kind(
  "gke/mnist_cnn.yaml", r"README\.md|gke/\w+\.yaml|(one_vm|pod_slice)/\w+\.sh"
)
_DIRECTORY = pathlib.Path(__file__).parent


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


def _command(
  jobs: Mapping[str, Any], program: str, place: str, bucket: str, image: str
) -> str:
  """Returns the command that runs a program and copies its export, if any."""
  flag_values = arguments(jobs, program, place, bucket)
  command = shlex.join(["python", f"{program}.zip", *flag_values])
  export = jobs["programs"][program].get("export")
  if place == "gke":
    copy = f"mkdir -p /bucket/exports && cp -r {export} /bucket/exports"
  else:
    docker = jobs["places"][place]["docker"]
    command = f"{docker} {shlex.quote(image)} {command}"
    copy = f"gcloud storage cp /tmp{export} {bucket}/exports/ --recursive"
  return f"{command} && {copy}" if export else command


def _name(program: str) -> str:
  """Returns the name of a program's resources, without underscores."""
  return program.replace("_", "-")


def _format(template: str, values: Mapping[str, Any]) -> str:
  return (_DIRECTORY / f"{template}.template").read_text().format(**values)


def read() -> dict[str, Any]:
  """Returns the content of jobs.yaml, with those of all image classifiers."""
  text = (_DIRECTORY / "jobs.yaml").read_text()
  jobs = yaml.safe_load(text)
  for name in (_DIRECTORY / "architectures.txt").read_text().split():
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
    output_dir: An empty directory.
    bucket: The user's bucket, `gs://…`.
    image: Name of the container image.
    zone: Zone of the TPUs.
    service_account: Kubernetes service account that may write to the bucket.
  """
  jobs = read()
  common = {
    "bucket": bucket,
    "image": image,
    "zone": zone,
    "service_account": service_account,
  }
  for place, details in jobs["places"].items():
    (output_dir / place).mkdir()
    for program in jobs["programs"]:
      values = {
        **common,
        **details,
        "program": program,
        "name": _name(program),
        "command": _command(jobs, program, place, bucket, image),
      }
      path = output_dir / place / program
      if place == "gke":
        values["bucket"] = bucket.removeprefix("gs://")
        quoted = {k: json.dumps(v) for k, v in values.items()}
        path.with_suffix(".yaml").write_text(_format("job_set.yaml", quoted))
      else:
        quoted = {k: shlex.quote(str(v)) for k, v in values.items()}
        path = path.with_suffix(".sh")
        path.write_text(_format("script.sh", quoted))
        path.chmod(0o755)
  values = {
    **common,
    **jobs["places"],
    "count": len(jobs["programs"]),
    "programs": "\n".join(f"- `{program}`" for program in jobs["programs"]),
  }
  (output_dir / "README.md").write_text(_format("README.md", values))


def main() -> None:
  """Runs the program with the values of its flags."""
  values = flags.FLAGS
  output_dir = pathlib.Path(formats.absolute(values.output_dir))
  with publishing.publish(output_dir, _KIND, overwrite=True) as directory:
    generate(
      pathlib.Path(directory),
      bucket=values.bucket.rstrip("/"),
      image=values.image,
      zone=values.zone,
      service_account=values.service_account,
    )
  print(f"Wrote {output_dir / 'README.md'}, which explains the next steps.")


def define_flags() -> None:
  """Defines the flags of this program."""
  for name, text in (
    ("bucket", "Bucket for exports and training backups, gs://NAME."),
    ("image", "Name of the image, such as REGISTRY/PROJECT/exporters."),
    ("zone", "Zone of the TPUs."),
    (
      "output_dir",
      "Output directory. An earlier output there is replaced.",
    ),
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
  programs.run(main)
