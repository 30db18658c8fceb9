"""Where packages are published, and how files get there."""

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
  """Returns the kind of a place, and the place.

  Raises:
    ExportError: It is no place to publish at.
  """
  kind, _, place = to.partition("://")
  if kind not in _FORMS or not re.fullmatch(_FORMS[kind][0], place):
    forms = ", ".join(form for _, form in _FORMS.values())
    raise errors.ExportError(f"--to={to} is none of {forms}.")
  return kind, place


def takes_archive(kind: str) -> bool:
  """Tells whether a place gets the archive, or else the files in it."""
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
    directory: The files to publish, and nothing else.
    listed: The manifest among them.
    overwrite: Whether to replace what is there. Kaggle, and Hugging Face for
      packages, keep versions, so there it makes no difference.

  Raises:
    ExportError: The place is in the way, or refuses the files.
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
  """Copies files. There is no package without a manifest, which goes last."""
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
  """Makes one commit: all files appear together, and no others stay."""
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
  """Makes a version of the variation, and then sets the texts."""
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
