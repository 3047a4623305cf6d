#!/usr/bin/env bash
# package.sh [SUITE...]: tests the Debian package of target/dist on fresh systems, in containers with systemd.
#
#   bookworm and trixie, or the SUITEs that are named: debootstrap makes the system, Podman runs it with systemd as process 1.
#   There the commands of docs/packages.md run as they are printed: installation, quick start, upgrade, purge. In between each
#   timer fires, and every manual page is read. After the purge nothing is there that was not there before, but the data.
#
# Wants root, and a package: `make package`.
# shellcheck disable=SC2016 # what stands in single quotes is for the shell in the container
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
  echo "package.sh: $*" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || die 'containers with systemd want root'
compgen -G 'target/dist/*.deb' >/dev/null || die 'there is no package in target/dist: make package'
[ $# != 0 ] || set -- bookworm trixie

tests/containers/setup.sh
# shellcheck source=tests/containers/env.sh
. tests/containers/env.sh
command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null

readonly PAGE=docs/packages.md
step() { printf '\n== %s: %s\n' "$suite" "$*"; }

# The image of a fresh Debian: what debootstrap installs, with systemd, sudo and man.
make_image() {
  local image=localhost/walhalla-package-$1 dir
  ! podman image exists "$image" || return 0
  step 'making the system by debootstrap (two minutes)'
  dir=$(mktemp -d /var/tmp/walhalla-package.XXXXXX)
  debootstrap --variant=minbase --include=systemd-sysv,dbus,sudo,man-db,ca-certificates "$1" "$dir" >"$dir.log" || {
    tail "$dir.log" >&2
    die "debootstrap failed: $dir.log"
  }
  tar -C "$dir" --one-file-system -c . | podman import --quiet - "$image" >/dev/null
  rm -rf "$dir" "$dir.log"
}

# systemd wants the second version of cgroups, in a namespace of its own.
start() {
  podman run --detach --rm --name "$name" --privileged --cgroupns private --systemd false --stop-signal SIGRTMIN+3 \
    --tmpfs /run --tmpfs /tmp "${host_apt[@]}" --volume "$PWD/target/dist:/package:ro" \
    "localhost/walhalla-package-$suite" sh -euc '
      [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || {
        umount -R /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
      }
      exec env container=podman /sbin/init' >/dev/null
  until_true 'systemd has started' inside '[[ $(systemctl is-system-running) =~ running|degraded ]]'
}

inside() { podman exec --workdir /root "$name" bash -euo pipefail -c "$1"; }

until_true() { # WHAT COMMAND...
  local tries
  for ((tries = 0; tries < 120; tries++)); do
    ! "${@:2}" >/dev/null 2>&1 || return 0
    sleep 1
  done
  die "$suite: waited in vain until $1"
}

# The commands in a section of the page, by its heading. The page says which version to write on Debian 12.
printed() {
  awk -v heading="$1" '
    /^#/ && !fence { inside = ($0 == heading) }
    /^```/ { fence = !fence; if (fence) { shell = ($0 == "```sh") } next }
    inside && fence && shell' "$PAGE" | sed "s/\<17\>/$major/g"
}

follow() {
  local commands
  commands=$(printed "$1")
  [ -n "$commands" ] || die "$PAGE has no commands below '$1'"
  step "$1"
  podman exec --workdir /root --env DEBIAN_FRONTEND=noninteractive "$name" bash -euo pipefail -c "set -x; $commands" 2>&1 | sed 's/^/  /'
}

# Every file, without those of the kernel, of this run, of the server and the store, and the caches of apt, man and systemd.
list_files() {
  inside "find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /package \
    -o -path /root -o -path /var/log -o -path /var/cache -o -path /var/lib/apt -o -path /var/tmp/systemd-private* \
    -o -path /srv/backup -o -path '/var/lib/postgresql/*/main' \) -prune -o -print | sort"
}

# Each timer fires, by an override that lets it fire every few seconds, and what it starts succeeds.
see_timers_fire() {
  local timer begin
  step 'each timer fires'
  for timer in "walhalla-backup@$major-main" walhalla-delete walhalla-verify walhalla-wal-verify walhalla-drill; do
    begin=$(inside 'date +%s')
    inside "mkdir /run/systemd/system/$timer.timer.d
      printf '[Timer]\nOnCalendar=\nOnCalendar=*:*:0/3\nRandomizedDelaySec=0\nAccuracySec=1\n' >/run/systemd/system/$timer.timer.d/soon.conf
      systemctl daemon-reload
      systemctl restart $timer.timer"
    # What the service says at its end, in the journal, and since this timer was made to fire.
    until_true "$timer.service has run" inside "journalctl --since @$begin -u $timer.service | grep -E 'systemd.*(Finished|Failed)'"
    inside "rm -r /run/systemd/system/$timer.timer.d; systemctl daemon-reload; systemctl restart $timer.timer"
    until_true "$timer.service is idle" inside "! systemctl is-active $timer.service | grep ing"
    inside "[ \$(systemctl show -P Result $timer.service) = success ]" || {
      inside "journalctl --since @$begin -u $timer.service" >&2
      die "$suite: $timer.service failed"
    }
    inside "[ \$(date -d \"\$(systemctl show -P LastTriggerUSec $timer.timer)\" +%s) -ge $begin ]" || die "$suite: $timer.timer did not fire"
    inside "journalctl --since @$begin -u $timer.service -o cat" | sed 's/^/  /' | tail -n 12
  done
}

read_manual() {
  step 'every manual page renders without a warning'
  inside 'pages=$(dpkg -L walhalla | grep "/man/.*\.gz$")
    [ $(wc -l <<<"$pages") -gt 25 ]
    for page in $pages; do
      said=$(MANROFFSEQ= MANWIDTH=100 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)
      [ -z "$said" ] || { echo "$page: $said"; exit 1; }
    done
    mandb --quiet
    for word in walhalla walhalla-backup-push walhalla.toml; do man "$word" | grep "^NAME" >/dev/null; done
    apropos walhalla | grep -c . ' | sed 's/^/  pages: /'
}

test_on() {
  suite=$1
  case $suite in
    bookworm) major=15 ;;
    trixie) major=17 ;;
    *) die "which PostgreSQL has $suite?" ;;
  esac
  name=walhalla-package-$suite
  make_image "$suite"
  step 'a fresh system'
  podman rm --force --time 0 "$name" >/dev/null 2>&1 || true
  start
  # What the package does not bring, so that the lists of files can be compared.
  inside 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null 2>&1
    cp /package/*.deb .'
  list_files >"$dir/before"

  follow '### 1. Install'
  inside '! systemctl list-unit-files --no-legend "walhalla*" | awk "{ print \$2 }" | grep enabled' || die "$suite: the package enabled a unit"
  inside 'cat /usr/share/doc/walhalla/docs/packages.md' | cmp - "$PAGE"
  inside 'systemd-analyze verify /usr/lib/systemd/system/walhalla*.service /usr/lib/systemd/system/walhalla*.timer'
  read_manual
  follow '### 2. Name the store'
  follow '### 3. Archive'
  follow '### 4. Back up every night'
  inside 'sudo -u postgres psql -qc "CREATE TABLE t AS SELECT generate_series(1, 1000)" -c "SELECT pg_switch_wal()" >/dev/null'
  follow '### 5. Delete, verify, rehearse'
  see_timers_fire
  inside '[ "$(sudo -u postgres walhalla backup-list --json | grep -c "\"id\"")" -ge 2 ]' || die "$suite: the timer took no backup"
  inside 'test -s /usr/share/zsh/vendor-completions/_walhalla && test -s /usr/share/fish/vendor_completions.d/walhalla.fish'
  inside 'source /usr/share/bash-completion/completions/walhalla && complete -p walhalla' | sed 's/^/  /'

  # A newer version, made from this one.
  before=$(inside 'systemctl show -P MainPID walhalla')
  inside 'dpkg-deb -R walhalla_*.deb new && rm walhalla_*.deb && sed -i "s/^Version: .*/&+newer/" new/DEBIAN/control
    dpkg-deb --root-owner-group -Zgzip -z1 -b new . >/dev/null && rm -r new'
  follow '## Upgrade'
  inside 'dpkg -s walhalla | grep "^Version: .*newer"'
  inside "[ \$(systemctl show -P MainPID walhalla) != $before ] && systemctl is-active walhalla.service walhalla-drill.timer walhalla-backup@$major-main.timer"

  follow '## Purge'
  list_files >"$dir/after"
  diff "$dir/before" "$dir/after" || die "$suite: the purge left something, or took too much"
  # man keeps what it has shown in a cache of its own, which it tidies itself.
  inside '! find / -xdev \( -path /proc -o -path /var/cache/man -o -path /srv/backup -o -path /root -o -path /package -o -path /tmp \) -prune -o -name "*walhalla*" -print | grep .' ||
    die "$suite: files are left"
  inside '! systemctl list-units --all --no-legend --plain "walhalla*" | grep .' || die "$suite: systemd still knows units"
  inside 'find /srv/backup/walhalla -name backup.json | grep . >/dev/null' || die "$suite: the purge took the data"
  podman stop --time 10 "$name" >/dev/null
  step 'passed'
}

dir=$(mktemp -d)
suite='' name=''
trap '[ -z "$name" ] || podman rm --force --time 0 "$name" >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT
for suite in "$@"; do
  test_on "$suite"
done
