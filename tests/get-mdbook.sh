#!/usr/bin/env bash
# get-mdbook.sh DIR: builds mdBook with cargo and puts it into DIR/bin/mdbook. Does nothing if this version is there.
set -euo pipefail

readonly VERSION=0.5.4

dir=${1:?usage: get-mdbook.sh DIR}
[ "$("$dir/bin/mdbook" --version 2>/dev/null)" != "mdbook v$VERSION" ] || exit 0
echo "get-mdbook: building mdBook $VERSION by cargo install (a few minutes)"
# Without the features that serve pages and watch files.
cargo install --quiet --locked --force --root "$dir" --version "$VERSION" --no-default-features --features search mdbook
