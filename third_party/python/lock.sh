#!/bin/sh
# Resolves requirements.in into the lock. Its arguments go on to uv:
#   ./bazelw run //third_party/python:lock -- --upgrade
set -eu
uv=$PWD/$1
shift
cd "$BUILD_WORKSPACE_DIRECTORY/third_party/python"
exec "$uv" pip compile --quiet --universal --python-version=3.11 \
  --generate-hashes --no-header --output-file=requirements_cpu.txt \
  requirements.in "$@"
