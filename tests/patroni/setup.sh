#!/usr/bin/env bash
# setup.sh MAJOR: what the test of Patroni needs: PostgreSQL MAJOR, etcd in .cache/etcd, Patroni in .cache/patroni.
#
# etcd comes from the distribution's package, but is only unpacked: installing the package would start a service.
# Without WALHALLA_TEST_PROGRAM also what a build needs. Does nothing when all of it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

major=${1:?usage: setup.sh MAJOR}
say() { echo "setup: $*"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_etcd() {
  [ ! -x .cache/etcd/usr/bin/etcd ] || return 0
  say 'unpacking etcd into .cache/etcd'
  local tmp
  tmp=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$tmp'" EXIT
  as_root apt-get update -qq
  (cd "$tmp" && apt-get -o APT::Sandbox::User=root download -qq etcd-server)
  rm -rf .cache/etcd.new
  mkdir -p .cache/etcd.new
  dpkg-deb --extract "$tmp"/etcd-server_*.deb .cache/etcd.new
  rm -rf .cache/etcd
  mv .cache/etcd.new .cache/etcd
}

install_patroni() {
  local dir=.cache/patroni wanted=tests/patroni/requirements.txt
  ! cmp -s $wanted $dir/.build || return 0
  say 'installing Patroni into .cache/patroni'
  # The distribution's own Python, which the user who runs the servers can reach, needs a package for this.
  /usr/bin/python3 -c "import ensurepip" 2>/dev/null ||
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
  rm -rf $dir
  /usr/bin/python3 -m venv $dir
  $dir/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $wanted
  cp $wanted $dir/.build
}

tests/setup.sh ${WALHALLA_TEST_PROGRAM:+--no-rust} "$major"
install_etcd
install_patroni
