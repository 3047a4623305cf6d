#!/usr/bin/env bash
# run.sh [OPTION...]: checks the manifests of examples/kubernetes and runs their containers; the options are run.py's.
#
# As root, because Podman runs the containers. The images are those of docker/, with the binary of this tree, or with the
# one that WALHALLA_TEST_PROGRAM names.
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/kubernetes/setup.sh
if [ "${1:-}" != --only-check ]; then
  program=${WALHALLA_TEST_PROGRAM:-${CARGO_TARGET_DIR:-target}/debug/walhalla}
  tests/containers/setup.sh debian:trixie-slim postgres:17
  # shellcheck source=tests/containers/env.sh
  . tests/containers/env.sh
  tests/get-seaweedfs.sh .cache/emulators/seaweedfs
  binary=$(mktemp -d)
  trap 'rm -rf "$binary"' EXIT
  install --strip "$program" "$binary/walhalla"
  podman build --quiet --format docker "${host_apt[@]}" --file docker/Dockerfile --target walhalla \
    --build-context binary="$binary" --tag localhost/walhalla . >/dev/null
fi
.cache/kubernetes/bin/python tests/kubernetes/run.py "$@"
