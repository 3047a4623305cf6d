#!/usr/bin/env bash
# stage.sh [PROGRAM]: makes PostgreSQL and PROGRAM reachable for the user who runs the servers, and prints where they are.
#
# PostgreSQL refuses to run as root, so root runs it as `walhalla-test`, who cannot see into a clone under /root. What
# that user cannot reach is hard-linked (else copied) below /var/tmp. Prints `name value` lines: user, uid, gid,
# postgres, templates, scratch, and program if one was given. Safe to run many times at once.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
  echo "stage.sh: $*" >&2
  exit 1
}

compgen -G '.cache/postgres/*/.build' >/dev/null || die "no PostgreSQL in .cache/postgres; run tests/setup.sh first"

user=$(id -un)
[ "$(id -u)" != 0 ] || user=walhalla-test
uid=$(id -u "$user" 2>/dev/null) || die "there is no user $user; run tests/setup.sh first"
gid=$(id -g "$user")

as_user() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid "$uid" --regid "$gid" --clear-groups "$@"
  else
    "$@"
  fi
}

scratch=${WALHALLA_TEST_DIR:-/var/tmp}
as_user test -w "$scratch" || die "$user cannot write to $scratch; set WALHALLA_TEST_DIR to a directory that it can"

# What test runs that were ended from outside left here. Other tests remove directories of their own meanwhile, of which
# find complains (also with -ignore_readdir_race): what could not be cleaned waits for the next run.
find "$scratch" -mindepth 1 -maxdepth 1 -name 'wh-??????' -user "$user" -mmin +1440 -exec rm -rf {} + 2>/dev/null || true

area=$PWD/.cache
if ! as_user test -x "$area/postgres"; then
  area=$scratch/walhalla-$(id -u)-$(pwd | sha256sum | cut -c 1-12)
fi
umask 022
mkdir -p "$area"
[ -O "$area" ] || die "$area belongs to somebody else"
exec 9>"$area/lock"
flock 9

templates=$area/templates
mkdir -p "$templates"
[ "$(stat -c %u "$templates")" = "$uid" ] || chown "$uid:$gid" "$templates"

link_or_copy() { cp -al "$1" "$2" 2>/dev/null || { rm -rf "$2" && cp -a "$1" "$2"; }; }

# A build with a C library of its own names the loader of that library by its whole path.
name_own_loader() {
  local program
  [ -e "$1/libraries/ld-linux-x86-64.so.2" ] || return 0
  for program in "$1"/bin/*; do
    cp --remove-destination "$program" "$program.own"
    patchelf --set-interpreter "$1/libraries/ld-linux-x86-64.so.2" "$program.own"
    mv "$program.own" "$program"
  done
}

if [ "$area" != "$PWD/.cache" ]; then
  mkdir -p "$area/postgres"
  for build in .cache/postgres/*/.build; do
    from=${build%/.build}
    to=$area/postgres/${from##*/}
    cmp -s "$build" "$to/.build" || { rm -rf "$to" && link_or_copy "$from" "$to" && name_own_loader "$to"; }
  done
fi

stage_program() {
  local dir
  dir=$area/programs/$(stat -c '%i-%Y-%s' "$1")
  if [ ! -x "$dir/walhalla" ]; then
    mkdir -p "$area/programs"
    # What another build left; a test run takes minutes, not hours.
    find "$area/programs" -mindepth 1 -maxdepth 1 -mmin +240 -exec rm -rf {} +
    mkdir -p "$dir"
    ln -L "$1" "$dir/walhalla" 2>/dev/null || { cp "$1" "$dir/walhalla.new" && mv "$dir/walhalla.new" "$dir/walhalla"; }
  fi
  echo "$dir/walhalla"
}

cat <<TXT
user $user
uid $uid
gid $gid
postgres $area/postgres
templates $templates
scratch $scratch
TXT
if [ $# -gt 0 ]; then
  program=$(realpath "$1") || die "no program $1"
  as_user test -x "$program" || program=$(stage_program "$program")
  echo "program $program"
fi
