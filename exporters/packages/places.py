"""Uploads packages to the places where they can be published."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

from etils import epy
import huggingface_hub
import kagglehub
import yaml

from distribution import publishing
from exporters.packages import description
from exporters.packages import documents
from exporters.reusable import errors

with epy.lazy_imports():
  from kaggle.api import kaggle_api_extended
  import tensorflow as tf

_FORMS = {
  "file": (r"/.+", "file:///DIR"),
  "gs": (r"[^/]+/.+", "gs://BUCKET/PATH"),
  "hf": (r"[\w.-]+/[\w.-]+", "hf://OWNER/REPO"),
  "kaggle": (
    r"[\w-]+/[\w-]+/[Tt]ensorFlow2/[\w.-]+",
    "kaggle://OWNER/MODEL/tensorFlow2/VARIATION",
  ),
}


def parse(to: str) -> tuple[str, str]:
  """Parses the URL of a place; returns its kind, and the place.

  Raises:
    ExportError: Packages cannot be published to this URL.
  """
  kind, _, place = to.partition("://")
  if kind not in _FORMS or not re.fullmatch(_FORMS[kind][0], place):
    forms = ", ".join(form for _, form in _FORMS.values())
    raise errors.ExportError(f"--to={to} is none of {forms}.")
  return kind, place


def takes_archive(kind: str) -> bool:
  """Returns whether a place gets the archive instead of its files."""
  return kind in ("file", "gs")


def upload(
  kind: str,
  place: str,
  directory: str,
  listed: Mapping[str, Any],
  *,
  overwrite: bool = False,
) -> None:
  """Publishes a directory.

  Args:
    kind: The kind of the place, from `parse`.
    place: The place.
    directory: The directory, which has only files to publish.
    listed: The content of the manifest.
    overwrite: Whether to replace existing files. It has no effect on Kaggle and
      on packages at Hugging Face, which keep versions.

  Raises:
    ExportError: The place has other files, or refuses the upload.
  """
  if kind == "file":
    with publishing.publish(
      place, documents.PACKAGE, overwrite=overwrite
    ) as target:
      shutil.copytree(directory, target, dirs_exist_ok=True)
    return
  with errors.of_input(about=f"Cannot publish at {kind}://{place}: "):
    if kind == "gs":
      _to_bucket(f"gs://{place}", directory, overwrite)
    elif kind == "hf":
      _to_hugging_face(place, directory, listed, overwrite)
    else:
      _to_kaggle(place, directory, listed)


def _to_bucket(url: str, directory: str, overwrite: bool) -> None:
  """Copies files, the manifest last: without it there is no package."""
  manifest = f"{url}/{documents.MANIFEST}"
  if tf.io.gfile.exists(manifest):
    if not overwrite:
      raise errors.ExportError(
        f"{url} has a package. Choose another path, or say --overwrite."
      )
    tf.io.gfile.remove(manifest)
  names = sorted(os.listdir(directory), key=lambda n: n == documents.MANIFEST)
  for name in names:
    tf.io.gfile.copy(
      os.path.join(directory, name), f"{url}/{name}", overwrite=True
    )


def _to_hugging_face(
  repo: str, directory: str, listed: Mapping[str, Any], overwrite: bool
) -> None:
  """Replaces all files of a repository in a single commit."""
  api = huggingface_hub.HfApi()
  api.create_repo(repo, exist_ok=True)
  others = {*api.list_repo_files(repo)} - {".gitattributes"}
  if others and documents.MANIFEST not in others and not overwrite:
    raise errors.ExportError(
      f"The repository has other files, such as {min(others)}. Choose another,"
      " or say --overwrite to replace them."
    )
  if results := description.eval_results(listed["description"]):
    path = pathlib.Path(directory, ".eval_results", "results.yaml")
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(results))
  api.upload_folder(
    repo_id=repo,
    folder_path=directory,
    commit_message=f"Version {listed['description']['version']}",
    delete_patterns="*",
  )


def _to_kaggle(handle: str, directory: str, listed: Mapping[str, Any]) -> None:
  """Creates a version of the variation, and then sets the texts."""
  fields = listed["description"]
  card = pathlib.Path(directory, "assets.extra", "README.md")
  text = card.read_text(encoding="utf-8") if card.exists() else ""
  metadata = description.kaggle_metadata(
    fields, text, handle, fine_tunable="## Load and fine-tune" in text
  )
  kagglehub.model_upload(
    handle,
    directory,
    license_name=description.kaggle_license(fields["license"]),
    version_notes=f"Version {fields['version']}",
  )
  api = kaggle_api_extended.KaggleApi()
  api.authenticate()
  with tempfile.TemporaryDirectory() as folder:
    for name, content in metadata.items():
      pathlib.Path(folder, name).write_text(json.dumps(content))
    api.model_update(folder)
    api.model_instance_update(folder)
