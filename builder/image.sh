#!/usr/bin/env bash
# Builds the image: `make image`. Takes docker, podman or buildah, the first that works here.
#
#   builder/image.sh [--tag NAME] [--sage] [further arguments of the build command]
#
# --sage: with SageAttention, built from source on this CUDA image; it takes long, and GitHub must be reachable.
# For an image without CUDA, good for tests, where that index has the wheel of the lock:
#   builder/image.sh --build-arg PIP_EXTRA_INDEX_URL=ADDRESS_OF_A_CPU_INDEX
set -euo pipefail
cd "$(dirname "$0")/.."

if docker info >/dev/null 2>&1; then
  build=(docker build)
elif podman info >/dev/null 2>&1; then
  build=(podman build --format docker --layers)
elif buildah info >/dev/null 2>&1; then
  build=(buildah build --format docker --layers) # the OCI format has no HEALTHCHECK
else
  echo "The image needs a container builder, and none works here: start docker, or install podman or buildah." >&2
  exit 1
fi

version=$(sed -nE 's/^version = "(.*)"$/\1/p' pyproject.toml)
revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
tag=videogen-runpod:$version
sage=()
while [ $# -gt 0 ]; do
  case $1 in
    --tag) tag=${2:?--tag needs a name}; shift 2 ;;
    --sage) sage=(--build-arg SAGE_BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu22.04); shift ;;
    *) break ;;
  esac
done

echo "building $tag with ${build[0]} (the first time this takes some minutes)"
"${build[@]}" --file Dockerfile --tag "$tag" --build-arg VERSION="$version" --build-arg REVISION="$revision" \
  ${sage[@]+"${sage[@]}"} "$@" .
echo "built $tag; the demo job: docker run --rm -v \"\$PWD/outputs:/app/outputs\" $tag"
