"""A fake server for Hugging Face and Kaggle, for tests of publishing.

It serves uploads of both clients, and downloads of Hugging Face's. The routes
are those in the sources of huggingface_hub 2.4 and kagglesdk 0.1; the services
themselves may require more. Other paths are files to download.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
import contextlib
import hashlib
from http import server
import json
import re
import threading
from typing import Any, ClassVar
import urllib.parse

_COMMIT = "0" * 40
_MODEL = re.compile(
  r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree|revision)/"
)
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")
_LARGE = 100_000  # Minimum bytes of a file that is uploaded separately.


@contextlib.contextmanager
def serving() -> Iterator[type[Handler]]:
  """Serves on 127.0.0.1; yields the handler, which records requests."""

  class Fresh(Handler):
    blobs: ClassVar = {}
    calls: ClassVar = []
    files: ClassVar = {}
    locations: ClassVar = {}
    repos: ClassVar = {}

  with server.ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as http:
    Fresh.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
      yield Fresh
    finally:
      http.shutdown()
      thread.join()


class Handler(server.BaseHTTPRequestHandler):
  """Handles the requests of a connection.

  Attributes:
    url: The URL of the server.
    blobs: Uploads to Kaggle, by token, and large files, by SHA-256.
    calls: The names and bodies of calls to Kaggle's services.
    files: The files to serve, by path.
    locations: Buckets of models, by the path that names them to tensorflow-hub.
    repos: The files of each repository of Hugging Face, by path.
  """

  url: ClassVar[str]
  blobs: ClassVar[dict[str, bytes]]
  calls: ClassVar[list[tuple[str, dict[str, Any]]]]
  files: ClassVar[dict[str, bytes]]
  locations: ClassVar[dict[str, str]]
  repos: ClassVar[dict[str, dict[str, bytes]]]
  protocol_version = "HTTP/1.1"

  def log_message(self, *args: object) -> None:
    """Logs nothing."""

  def do_POST(self) -> None:
    """Answers an API call."""
    path = urllib.parse.urlsplit(self.path).path
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if path.startswith("/api/v1/"):
      return self._kaggle(path.rpartition("/")[2], json.loads(body))
    if path == "/api/repos/create":
      asked = json.loads(body)
      repo = f"{asked.get('organization')}/{asked['name']}"
      self.repos.setdefault(repo, {".gitattributes": b""})
      return self._answer({"url": f"{self.url}/{repo}", "id": repo})
    if match := _MODEL.match(path):
      return self._answer(getattr(self, f"_{match[2]}")(match[1], body))
    if path.endswith("/info/lfs/objects/batch"):
      return self._answer(
        {
          "transfer": "basic",
          "objects": [
            {
              **blob,
              "actions": {"upload": {"href": f"{self.url}/blob/{blob['oid']}"}},
            }
            for blob in json.loads(body)["objects"]
          ],
        }
      )
    self._answer({})

  def _preupload(self, repo: str, body: bytes) -> Any:
    del repo
    return {
      "files": [
        {
          "path": file["path"],
          "uploadMode": "lfs" if file["size"] > _LARGE else "regular",
          "shouldIgnore": False,
        }
        for file in json.loads(body)["files"]
      ]
    }

  def _commit(self, repo: str, body: bytes) -> Any:
    files = dict(self.repos[repo])
    for line in body.splitlines():
      change = json.loads(line)
      value = change["value"]
      if change["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif change["key"] == "lfsFile":
        files[value["path"]] = self.blobs[value["oid"]]
      elif change["key"] == "deletedFile":
        del files[value["path"]]
    self.repos[repo] = files
    return {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": _COMMIT}

  def _tree(self, repo: str, _: bytes = b"") -> Any:
    return [
      {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
      }
      for path, data in self.repos[repo].items()
    ]

  def _revision(self, repo: str, _: bytes = b"") -> Any:
    names = [{"rfilename": path} for path in self.repos[repo]]
    return {"id": repo, "sha": _COMMIT, "siblings": names}

  def _kaggle(self, name: str, body: dict[str, Any]) -> None:
    self.calls.append((name, body))
    if name == "GetModel":
      created = any(called == "CreateModel" for called, _ in self.calls)
      return self._answer(
        {} if created else {"message": "none"}, 200 if created else 404
      )
    if name == "StartBlobUpload":
      token = f"{len(self.calls)}/{body['name']}"
      url = f"{self.url}/blob/{urllib.parse.quote(token, safe='')}"
      return self._answer({"token": token, "createUrl": url})
    self._answer({})

  def do_PUT(self) -> None:
    """Stores an uploaded file."""
    token = urllib.parse.unquote(self.path.removeprefix("/blob/"))
    size = int(self.headers.get("Content-Length") or 0)
    self.blobs[token] = self.rfile.read(size)
    self._answer({})

  def do_HEAD(self) -> None:
    """Answers as for GET, without the content."""
    self.do_GET()

  def do_GET(self) -> None:
    """Serves a file or its metadata."""
    url = urllib.parse.urlsplit(self.path)
    path = urllib.parse.unquote(url.path)
    if "tf-hub-format=uncompressed" in url.query and path in self.locations:
      return self._answer(self.locations[path].encode(), 303)
    if match := _MODEL.match(f"{path}/"):
      return self._answer(getattr(self, f"_{match[2]}")(match[1]))
    files = self.files
    if match := _FILE.fullmatch(path):
      files, path = self.repos.get(match[1], {}), match[2]
    if path not in files:
      return self._answer({}, 404)
    self._answer(files[path])

  def _answer(self, body: Any, status: int = 200) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(data)))
    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
    self.send_header("X-Repo-Commit", _COMMIT)
    if not isinstance(body, bytes):
      self.send_header("Content-Type", "application/json")
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)
