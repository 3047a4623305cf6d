#!/usr/bin/env bash
# build.sh [PROGRAM]: builds the Debian package from PROGRAM, else from a release build, into target/dist.
#
# What a package holds besides the program and the files in this directory is made here: manual pages and completions by
# the program itself, the page of licences by cargo-about.
set -euo pipefail
cd "$(dirname "$0")/.."

packaging/setup.sh
export PATH=$PWD/.cache/packaging/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
if [ $# = 0 ]; then
  echo 'packaging: compiling Walhalla, the release build: some ten minutes on two cores'
  cargo build --release --locked
fi
program=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/release/walhalla}")

out=target/dist
rm -rf "$out"
mkdir -p "$out/completions" "$out/build/release"
"$program" man "$out/man"
"$program" completions bash >"$out/completions/walhalla"
"$program" completions zsh >"$out/completions/_walhalla"
"$program" completions fish >"$out/completions/walhalla.fish"
cargo about generate --fail --locked --config packaging/about.toml --output-file "$out/licences.html" packaging/licences.hbs
cp "$program" "$out/build/release/walhalla"
CARGO_TARGET_DIR=$out/build cargo deb --quiet --no-build --locked --output "$out"
rm -rf "$out/build"
ls -l "$out"/*.deb
