#!/usr/bin/env bash
# release.sh [--without-advisories]: makes everything that a release has into target/release-VERSION, with checksums.
#
# cargo-deny reads RustSec's advisories from GitHub; --without-advisories is for a host that cannot reach it.
set -euo pipefail
cd "$(dirname "$0")/.."

checks=(advisories bans licenses sources)
if [ "${1:-}" = --without-advisories ]; then
  echo 'release: the advisories of RustSec are NOT looked at'
  checks=(bans licenses sources)
fi
[ -z "$(git status --porcelain)" ] || {
  echo 'release: there are changes that are not committed: the version would name a commit that is not what is built' >&2
  exit 1
}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=$PWD/target/release-$version
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

packaging/setup.sh
export PATH=$PWD/.cache/packaging/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
cargo deny --all-features --locked check "${checks[@]}"

rm -rf "$out"
mkdir -p "$out"
packaging/build.sh
mv target/dist/*.deb "$out"

# archive NAME PROGRAM: the program, and what the Debian package holds besides it.
archive() {
  local name=walhalla-$version-$1 dir
  dir=target/dist/$name
  mkdir -p "$dir"
  cp -r "$2" target/dist/man target/dist/completions target/dist/licences.html LICENSE README.md CHANGELOG.md docs "$dir"
  cp -r packaging/systemd packaging/tmpfiles.d packaging/walhalla.toml packaging/prometheus packaging/grafana "$dir"
  tar -C target/dist --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -czf "$out/$name.tar.gz" "$name"
}
archive x86_64-linux-gnu target/release/walhalla
echo 'release: compiling Walhalla for musl: some ten minutes on two cores'
cargo build --release --locked --target x86_64-unknown-linux-musl
archive x86_64-linux-musl target/x86_64-unknown-linux-musl/release/walhalla

cp target/dist/licences.html "$out/walhalla-$version-licences.html"
cargo cyclonedx --quiet --format json --all-features --target x86_64-unknown-linux-gnu --override-filename walhalla.cdx
mv walhalla.cdx.json "$out/walhalla-$version.cdx.json"
find postgres providers -maxdepth 1 -name walhalla.cdx.json -delete
cd "$out"
sha256sum -- * >SHA256SUMS
cat SHA256SUMS
