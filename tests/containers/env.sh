# shellcheck shell=bash
# Sourced, after tests/containers/setup.sh has run: from here on `podman` and `podman-compose` use the settings, the images
# and the networks in .cache/containers, and none of the user's own.
containers=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.cache/containers
export CONTAINERS_CONF=$containers/containers.conf
export CONTAINERS_STORAGE_CONF=$containers/storage.conf
# Only this format has health checks. Where no systemd runs, nobody but `podman healthcheck run` runs them.
export BUILDAH_FORMAT=docker
[ -d /run/systemd/system ] || export DISABLE_HC_SYSTEMD=true
export PATH=$containers/venv/bin:$PATH
# Builds and containers get the apt settings of this host by this option: a proxy, for example.
# shellcheck disable=SC2034
host_apt=(--volume "$containers/apt.conf:/etc/apt/apt.conf.d/90host:ro")
