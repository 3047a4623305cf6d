#!/usr/bin/env bash
# shellcheck disable=SC2016 # the names of commands are in Markdown
# bench-large-store.sh [--segments N] [--backups N] [--rounds N] [--keep]: what commands cost that look at a whole archive, as a
# Markdown table.
#
# The example large_store fills a directory store and an S3 server in memory with 500,000 WAL segments, their summaries and
# 2,000 backups. Each command runs `rounds` times on both; the median of its wall time and its peak memory are compared with
# what is wanted. Then the last segments and summaries of the archive are made unreadable, and backup-list runs again.
# The files, 4 GB of tiny ones, lie in memory where there is room for them: what is measured is not the disk. The directory
# is WALHALLA_TEST_DIR if that is set. Progress goes to standard error, the table to standard output.
set -euo pipefail
cd "$(dirname "$0")/.."

segments=500000
backups=2000
rounds=3
keep=no
while [ $# -gt 0 ]; do
  case $1 in
    --segments)
      segments=${2:?--segments wants a number}
      shift
      ;;
    --backups)
      backups=${2:?--backups wants a number}
      shift
      ;;
    --rounds)
      rounds=${2:?--rounds wants a number}
      shift
      ;;
    --keep) keep=yes ;;
    *)
      echo "usage: bench-large-store.sh [--segments N] [--backups N] [--rounds N] [--keep]" >&2
      exit 2
      ;;
  esac
  shift
done
# What is wanted at most, and after how long a command is given up.
readonly LIST_LIMIT=2 PLAN_LIMIT=5 SHOW_LIMIT=5 FIND_LIMIT=5 DELETE_LIMIT=10 MEMORY_LIMIT_MIB=200
readonly GIVE_UP_AFTER=300
readonly UNREADABLE=3000

say() { echo "bench-large-store: $*" >&2; }

program=${WALHALLA_TEST_PROGRAM:-}
if [ -z "$program" ]; then
  say 'building the release binary'
  cargo build --release --locked >&2
  program=${CARGO_TARGET_DIR:-target}/release/walhalla
fi
program=$(realpath "$program")
large_store=${WALHALLA_TEST_LARGE_STORE:-}
if [ -z "$large_store" ]; then
  say 'building the program that fills the store'
  cargo build --release --locked --example large_store >&2
  large_store=${CARGO_TARGET_DIR:-target}/release/examples/large_store
fi
large_store=$(realpath "$large_store")

scratch=${WALHALLA_TEST_DIR:-}
if [ -z "$scratch" ]; then
  scratch=/var/tmp
  free_gb=$(df --output=avail -BG /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)
  [ "${free_gb:-0}" -lt 8 ] || scratch=/dev/shm
fi
dir=$(mktemp -d "$scratch/walhalla-bench.XXXXXX")
cleanup() {
  [ -z "${server:-}" ] || kill "$server" || true
  if [ $keep = yes ]; then say "kept: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT
size=(--segments "$segments" --backups "$backups")

landmark() { awk -v name="$1" '$1 == name { print $2 }' "$dir/landmarks"; }

# Appends `seconds KiB` (wall time, peak resident memory) to a file; of a command that takes too long, only that it did.
measure() {
  local result=$1 round
  shift
  for ((round = 1; round <= rounds; round++)); do
    if ! timeout $GIVE_UP_AFTER /usr/bin/time --append --output "$dir/$result" --format '%e %M' "$program" "$@" \
      >"$dir/$result.log" 2>&1; then
      tail -n 3 "$dir/$result.log" >&2
      say "failed or given up after $GIVE_UP_AFTER s: $*"
      echo "$GIVE_UP_AFTER 0" >"$dir/$result"
      return
    fi
    say "$result: $(tail -n 1 "$dir/$result") (s, KiB)"
  done
}

commands() {
  local store=$1
  measure "$store-backup-list" backup-list
  measure "$store-plan-time" plan --target-time "$(landmark target-time)"
  measure "$store-plan-name" plan --target-name "$(landmark target-name)"
  measure "$store-plan-end" plan
  measure "$store-wal-show" wal-show
  measure "$store-delete" delete retain $((backups / 2))
  measure "$store-find" find --dropped --from "$(landmark last-1000-from)"
}

start_server() {
  "$large_store" s3 0 "${size[@]}" "$@" >"$dir/server.log" &
  server=$!
  until AWS_ENDPOINT_URL_S3=$(awk '$1 == "endpoint" { print $2 }' "$dir/server.log") && [ -n "$AWS_ENDPOINT_URL_S3" ]; do
    kill -0 $server
    sleep 0.5
  done
  export AWS_ENDPOINT_URL_S3
}
export AWS_ACCESS_KEY_ID=large-key AWS_SECRET_ACCESS_KEY=large-secret AWS_REGION=us-east-1

say "filling a directory store in $dir"
mkdir "$dir/store"
"$large_store" directory "$dir/store" "${size[@]}" >"$dir/landmarks"
export WALHALLA_STORE=file://$dir/store
commands directory
"$large_store" spoil "$dir/store" "${size[@]}" --unreadable $UNREADABLE
measure directory-unreadable backup-list
[ $keep = yes ] || rm -rf "$dir/store"

say 'filling the S3 server'
export WALHALLA_STORE=s3://large
start_server
commands s3
kill $server
start_server --unreadable $UNREADABLE
measure s3-unreadable backup-list

median() { sort -n "$1" | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
row() {
  local what=$1 command=$2 limit=$3 store
  for store in directory s3; do
    sort -k2 -n "$dir/$store-$command" | tail -n 1 |
      awk -v what="$what" -v store=$store -v seconds="$(median "$dir/$store-$command")" -v limit="$limit" \
        -v memory=$MEMORY_LIMIT_MIB -v give_up=$GIVE_UP_AFTER '{
        mib = $2 / 1024
        if (seconds >= give_up) printf "| %s | %s | more than %d | %d | | %d | NO |\n", what, store, give_up, limit, memory
        else printf "| %s | %s | %.2f | %d | %.0f | %d | %s |\n", what, store, seconds, limit, mib, memory,
          (seconds <= limit && mib <= memory ? "yes" : "NO") }'
  done
}
echo
echo "$("$program" --version); $(nproc) cores; $(date -u +%F)"
echo "$segments WAL segments with summaries and $backups backups; medians of $rounds"
echo
echo '| command | store | s | wanted at most | peak MiB | wanted at most | met |'
echo '| --- | --- | ---: | ---: | ---: | ---: | --- |'
row '`backup-list`' backup-list $LIST_LIMIT
row '`plan --target-time`' plan-time $PLAN_LIMIT
row '`plan --target-name`' plan-name $PLAN_LIMIT
row '`plan`' plan-end $PLAN_LIMIT
row '`wal-show`' wal-show $SHOW_LIMIT
row '`delete retain` half of the backups, what it shows' delete $DELETE_LIMIT
row '`find --dropped --from`, over the last 1,000 segments' find $FIND_LIMIT
row "\`backup-list\`, the last $UNREADABLE segments and summaries unreadable" unreadable $LIST_LIMIT
