#!/usr/bin/env bash
# get-azurite.sh DIR: puts Azurite, Microsoft's emulator of Azure Storage, into DIR (DIR/node_modules/azurite).
#
# From npm, at a pinned version, without running the packages' own scripts; needs node and npm, no root. Does nothing
# when DIR already holds the pinned version.
set -euo pipefail

readonly VERSION=3.37.0
dir=${1:?usage: get-azurite.sh DIR}

[ "$(cat "$dir/.build" 2>/dev/null)" = "$VERSION" ] && exit 0

for program in node npm; do
  command -v $program >/dev/null 2>&1 || {
    echo "get-azurite.sh: $program is missing; install it, or run tests/setup.sh" >&2
    exit 2
  }
done

umask 022
trap 'rm -rf "$dir.new"' EXIT
rm -rf "$dir.new"
mkdir -p "$dir.new"
# Another package.json above DIR would make npm install there.
echo '{ "private": true }' >"$dir.new/package.json"
npm install --prefix "$dir.new" --silent --no-audit --no-fund --no-package-lock --ignore-scripts "azurite@$VERSION"
echo "$VERSION" >"$dir.new/.build"
rm -rf "$dir"
mv "$dir.new" "$dir"
