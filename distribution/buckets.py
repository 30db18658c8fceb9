"""A stand-in for Google Cloud Storage, for tests of paths gs://BUCKET/NAME.

TensorFlow's address of the service is fixed, but TensorFlow uses a proxy that
the environment names. The proxy here answers all requests itself, with objects
in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
from http import server
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
from typing import ClassVar
from unittest import mock
import urllib.parse

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

_CERTIFICATE = "certificate.pem"
_HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_OBJECT = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(_OBJECT.pattern + r"/rewriteTo/b/([^/]+)/o/([^/]+)")


@contextlib.contextmanager
def serving() -> Iterator[None]:
  """Serves gs:// from memory to this process and its children.

  Call it before TensorFlow accesses a bucket. All buckets exist and are empty;
  reading gs://forbidden is denied.
  """
  with (
    tempfile.TemporaryDirectory() as directory,
    # TensorFlow holds Python's lock while it saves, so another process serves.
    subprocess.Popen(
      [sys.executable, __file__, directory],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    ) as process,
  ):
    environment = {
      "HTTPS_PROXY": f"http://localhost:{process.stdout.readline().strip()}",
      "NO_PROXY": "",
      "CURL_CA_BUNDLE": os.path.join(directory, _CERTIFICATE),
      "NO_GCE_CHECK": "true",  # Otherwise it waits for a server.
      "GCS_RETRY_CONFIG_MAX_RETRIES": "0",
    }
    try:
      with mock.patch.dict(os.environ, environment):
        yield
    finally:
      process.stdin.close()


def main() -> None:
  """Serves until standard input ends."""
  certificate = os.path.join(sys.argv[1], _CERTIFICATE)
  _write_certificate(certificate)
  _Handler.tls.load_cert_chain(certificate)
  with server.ThreadingHTTPServer(("localhost", 0), _Handler) as proxy:
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    print(proxy.server_port, flush=True)
    sys.stdin.read()
    proxy.shutdown()


def _write_certificate(path: str) -> None:
  key = ec.generate_private_key(ec.SECP256R1())
  name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
  now = datetime.datetime.now(datetime.UTC)
  names = x509.SubjectAlternativeName([x509.DNSName(host) for host in _HOSTS])
  certificate = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(1)
    .not_valid_before(now - datetime.timedelta(days=2))
    .not_valid_after(now + datetime.timedelta(days=2))
    .add_extension(x509.BasicConstraints(True, None), critical=True)
    .add_extension(names, critical=False)
    .sign(key, hashes.SHA256())
  )
  with open(path, "wb") as f:
    f.write(
      key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
      )
    )
    f.write(certificate.public_bytes(serialization.Encoding.PEM))


class _Handler(server.BaseHTTPRequestHandler):
  """Answers a connection through the proxy."""

  protocol_version = "HTTP/1.1"
  objects: ClassVar[dict[str, bytes]] = {}  # By BUCKET/NAME.
  tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

  def log_message(self, *args: object) -> None:
    """Logs nothing."""

  def do_CONNECT(self) -> None:
    self.send_response(200)
    self.end_headers()
    self.connection = self.tls.wrap_socket(self.connection, server_side=True)
    self.rfile = self.connection.makefile("rb")
    self.wfile = self.connection.makefile("wb", buffering=0)
    self.close_connection = False

  def do_GET(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    if url.path.startswith("/storage/v1/b/forbidden"):
      return self._answer(403)
    if self.headers["Host"] == _HOSTS[1]:
      return self._content(urllib.parse.unquote(url.path[1:]))
    if match := _OBJECT.fullmatch(url.path):
      data = self.objects.get(_name(*match.groups()))
      return self._answer(
        404 if data is None else 200,
        {
          "size": str(len(data or b"")),
          "generation": "1",
          "updated": "2020-01-01T00:00:00.000Z",
        },
      )
    bucket, listed, _ = url.path.removeprefix("/storage/v1/b/").partition("/o")
    if listed:
      return self._list(bucket, dict(urllib.parse.parse_qsl(url.query)))
    self._answer(200, {"location": "EU"})

  def _content(self, name: str) -> None:
    data = self.objects.get(name)
    if data is None:
      return self._answer(404)
    first, last = map(
      int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
    )
    if first >= len(data):
      return self._answer(416)
    self._answer(206, data[first : last + 1])

  def _list(self, bucket: str, query: dict[str, str]) -> None:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    found = sorted(
      name.removeprefix(f"{bucket}/")
      for name in list(self.objects)
      if name.startswith(f"{bucket}/{prefix}")
    )
    items, prefixes = [], {}
    for name in found:
      rest = name.removeprefix(prefix)
      if delimiter and delimiter in rest:
        prefixes[prefix + rest.split(delimiter)[0] + delimiter] = None
      else:
        items.append({"name": name})
    self._answer(200, {"items": items, "prefixes": list(prefixes)})

  def do_POST(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    data = self._body()
    if match := _COPY.fullmatch(url.path):
      source, target = match.groups()[:2], match.groups()[2:]
      if _name(*source) not in self.objects:
        return self._answer(404)
      self.objects[_name(*target)] = self.objects[_name(*source)]
      return self._answer(200, {"done": True})
    query = dict(urllib.parse.parse_qsl(url.query))
    bucket = url.path.split("/")[-2]
    name = f"{bucket}/{query['name']}"
    if query["uploadType"] == "media":
      self.objects[name] = data
      return self._answer(200, {})
    session = urllib.parse.quote(name, safe="")
    self._answer(200, location=f"https://{_HOSTS[0]}/session/{session}")

  def do_PUT(self) -> None:
    name = urllib.parse.unquote(self.path.removeprefix("/session/"))
    self.objects[name] = self._body()
    self._answer(200, {})

  def do_DELETE(self) -> None:
    match = _OBJECT.fullmatch(urllib.parse.urlsplit(self.path).path)
    found = self.objects.pop(_name(*match.groups()), None)
    self._answer(404 if found is None else 204)

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    chunks = []
    while size := int(self.rfile.readline(), 16):
      chunks.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(chunks)

  def _answer(
    self, status: int, body: object = b"", location: str | None = None
  ) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(data)))
    if location:
      self.send_header("Location", location)
    self.end_headers()
    self.wfile.write(data)


def _name(bucket: str, name: str) -> str:
  return f"{bucket}/{urllib.parse.unquote(name)}"


if __name__ == "__main__":
  main()
