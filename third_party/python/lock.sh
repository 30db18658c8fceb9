#!/bin/sh
# Resolves the requirements into locks: one for each accelerator, and one for each
# group of programs that needs more packages. Packages in several locks have the
# same version. Arguments are passed to uv:
#   ./bazelw run //third_party/python:lock -- --upgrade
set -eu
uv=$PWD/$1
shift
cd "$BUILD_WORKSPACE_DIRECTORY/third_party/python"

compile() {
  "$uv" pip compile --quiet --universal --python-version=3.11 \
    --generate-hashes --no-header "$@"
}

compile requirements.in --output-file=requirements_cpu.txt "$@"
compile requirements_gpu.in --output-file=requirements_gpu.txt \
  --constraints=requirements_cpu.txt "$@"
compile requirements_tpu.in --output-file=requirements_tpu.txt \
  --constraints=requirements_cpu.txt \
  --overrides=requirements_tpu_overrides.txt "$@"
for group in docs peers publishing; do
  compile "requirements_$group.in" --output-file="requirements_$group.txt" \
    --constraints=requirements_cpu.txt "$@"
done
