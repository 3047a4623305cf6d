#!/usr/bin/env bash
# bench-delta.sh [--scale N] [--rounds N] [--keep]: deltas of a cluster of which 1 % of the pages changed, as Markdown tables.
#
# A pgbench cluster on PostgreSQL 15 with checksums (scale 280 is about 4 GB) and the directory store. One row in every
# hundredth page of pgbench_accounts is updated, within the page (fillfactor 90). Compared on the same state of the cluster:
#
#   delta          by WAL summaries, and by page LSNs with which all is read; both to the same full backup
#   pgBackRest     Debian's package: its full backup and its incremental one with repo-block (block incremental)
#   restore        of a full backup and five deltas, against  of one full backup of the same cluster
#
# Bytes read are those of /proc/PID/io (rchar) of the program. Progress goes to standard error, the tables to standard
# output.
set -euo pipefail
cd "$(dirname "$0")/.."

scale=280
rounds=3
keep=no
while [ $# -gt 0 ]; do
  case $1 in
    --scale)
      scale=${2:?--scale wants a number}
      shift
      ;;
    --rounds)
      rounds=${2:?--rounds wants a number}
      shift
      ;;
    --keep) keep=yes ;;
    *)
      echo "usage: bench-delta.sh [--scale N] [--rounds N] [--keep]" >&2
      exit 2
      ;;
  esac
  shift
done
# What is wanted: of the full backup's time and stored bytes, of the data directory's bytes, and of a full restore's time.
readonly TIME_LIMIT=0.10 STORED_LIMIT=0.10 READ_LIMIT=0.05 RESTORE_LIMIT=1.20
readonly DELTAS=5 EVERY_NTH_PAGE=100

say() { echo "bench-delta: $*" >&2; }

tests/setup.sh 15 >&2
if ! command -v pgbackrest >/dev/null; then
  say 'installing pgbackrest'
  as_root=$([ "$(id -u)" = 0 ] || echo sudo)
  $as_root apt-get install -y -qq --no-install-recommends pgbackrest >/dev/null
fi
program=${WALHALLA_TEST_PROGRAM:-}
if [ -z "$program" ]; then
  say 'building the release binary'
  cargo build --release --locked >&2
  program=${CARGO_TARGET_DIR:-target}/release/walhalla
fi

declare -A stage
while read -r name value; do stage[$name]=$value; done < <(tests/stage.sh "$program")
walhalla=${stage[program]:?stage.sh failed}

dir=$(mktemp -d "${stage[scratch]}/walhalla-bench.XXXXXX")
as_user() {
  if [ "$(id -u)" = 0 ]; then
    HOME=$dir setpriv --reuid "${stage[uid]}" --regid "${stage[gid]}" --clear-groups "$@"
  else
    "$@"
  fi
}
cleanup() {
  [ ! -e "$dir/data/postmaster.pid" ] || as_user pg_ctl -D "$dir/data" -m immediate stop >/dev/null || true
  if [ $keep = yes ]; then say "kept: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT

mkdir "$dir/store" "$dir/pgbackrest" "$dir/pgbackrest-log" "$dir/spool"
: >"$dir/commands.log"
[ "$(id -u)" != 0 ] || chown -R "${stage[uid]}:${stage[gid]}" "$dir"
export PATH=${stage[postgres]}/15/bin:${stage[postgres]}/14/bin:$PATH
export WALHALLA_STORE=file://$dir/store
export PGHOST=$dir PGUSER=postgres PGDATABASE=postgres PGPORT=5432
unset PGPASSWORD PGPASSFILE PGSERVICE PGOPTIONS PGHOSTADDR
cd "$dir"

sql() { as_user psql -XAtq -v ON_ERROR_STOP=1 -c "$1"; }

# Runs a command after what is dirty has been flushed; appends `seconds bytes-read` to a file.
measure() {
  local result=$1
  shift
  sync -f "$dir"
  # The shell's own account has what its child read once that has ended (exit.c, wait_task_zombie).
  # shellcheck disable=SC2016
  as_user bash -c '
    before=$(sed -n "s/rchar: //p" /proc/$$/io) from=${EPOCHREALTIME/./}
    "${@:2}" >>commands.log 2>&1 || exit
    to=${EPOCHREALTIME/./}
    after=$(sed -n "s/rchar: //p" /proc/$$/io)
    awk -v from="$from" -v to="$to" -v read="$((after - before))" "BEGIN { printf \"%.3f %.0f\n\", (to - from) / 1e6, read }" >>"$1"
  ' bash "$result" "$@" || {
    tail -n 20 commands.log >&2
    say "failed: $*"
    return 1
  }
  say "$result: $(tail -n 1 "$result") (s, bytes read)"
}
median() { awk -v column="${2:-1}" '{print $column}' "$1" | sort -n | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }

say "making a cluster of scale $scale"
as_user initdb -D data -U postgres -A trust -k --no-sync >initdb.log
cat >>data/postgresql.conf <<CONF
archive_mode = on
archive_command = '$walhalla wal-push %p'
autovacuum = off
max_wal_size = 8GB
shared_buffers = 1GB
checkpoint_timeout = 1h
synchronous_commit = off
CONF
cat >pgbackrest.conf <<CONF
[global]
repo1-path=$dir/pgbackrest
log-path=$dir/pgbackrest-log
lock-path=$dir/spool
spool-path=$dir/spool
repo1-bundle=y
repo1-block=y
beta=y
compress-type=lz4
compress-level=1
process-max=2
start-fast=y
archive-check=n
[bench]
pg1-path=$dir/data
pg1-socket-path=$dir
pg1-user=postgres
CONF
pgbackrest() { as_user env -u PGHOST pgbackrest --config="$dir/pgbackrest.conf" --stanza=bench "$@"; }
as_user pg_ctl --silent -w -D data -l data.log -o "-k $dir -c listen_addresses=" start >&2
as_user pgbench -i -q -F 90 -s "$scale" >pgbench.log 2>&1
sql 'vacuum freeze' >/dev/null
sql 'checkpoint'
size_bytes=$(du -sb --exclude pg_wal data | cut -f 1)

pages=$(sql "select relpages from pg_class where relname = 'pgbench_accounts'")
# A row in every hundredth page, with room for its new version beside it.
change() {
  sql "update pgbench_accounts set abalance = abalance + 1 from generate_series($1, $pages - 1, $EVERY_NTH_PAGE) page
       where pgbench_accounts.ctid = format('(%s,1)', page)::tid" >/dev/null
  sql 'checkpoint'
}
newest() { as_user "$walhalla" backup-list --json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)[-1]["id"])'; }
stored() { du -sb store/*/backups/"$1" | cut -f 1; }

pgbackrest stanza-create >>commands.log 2>&1
for ((round = 1; round <= rounds; round++)); do
  measure full "$walhalla" backup-push data
done
full=$(newest)
measure pgbackrest-full env -u PGHOST pgbackrest --config="$dir/pgbackrest.conf" --stanza=bench --type=full backup
pgbackrest_full_bytes=$(du -sb pgbackrest/backup | cut -f 1)

change 0
for ((round = 1; round <= rounds; round++)); do
  measure delta "$walhalla" backup-push data --delta --parent "$full"
  delta=$(newest)
  measure delta-pages "$walhalla" backup-push data --delta --parent "$full" --changed-blocks pages
  pages_delta=$(newest)
done
measure pgbackrest-incr env -u PGHOST pgbackrest --config="$dir/pgbackrest.conf" --stanza=bench --type=incr backup
pgbackrest_incr_bytes=$(($(du -sb pgbackrest/backup | cut -f 1) - pgbackrest_full_bytes))

# The chain of five: each a delta to the one before.
parent=$delta
for ((number = 2; number <= DELTAS; number++)); do
  change "$((number * 7))"
  as_user "$walhalla" backup-push data --delta --parent "$parent" >>commands.log 2>&1
  parent=$(newest)
done
leaf=$parent
as_user "$walhalla" backup-push data >>commands.log 2>&1
last_full=$(newest)
as_user pg_ctl --silent -D data stop >&2

# More often, as the disk has its own mind.
restores=$((rounds * 2 + 1))
for ((round = 1; round <= restores; round++)); do
  measure restore-full "$walhalla" backup-fetch fetched "$last_full"
  rm -rf fetched
  measure restore-chain "$walhalla" backup-fetch fetched "$leaf"
  [ "$round" != "$restores" ] || as_user pg_verifybackup -n fetched >&2
  [ "$round" = "$restores" ] || rm -rf fetched
done
# A changed byte in the middle of the largest file, and the directory made right again.
largest=$(find fetched/base -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
printf x | as_user dd of="$largest" bs=1 seek=500000000 conv=notrunc status=none
measure restore-over "$walhalla" backup-fetch fetched "$leaf" --delta

ratio() { awk -v own="$1" -v other="$2" 'BEGIN { printf "%.3f", own / other }'; }
verdict() { awk -v ratio="$1" -v limit="$2" 'BEGIN { print (ratio <= limit ? "yes" : "NO") }'; }
mb() { awk -v bytes="$1" 'BEGIN { printf "%.0f", bytes / 1e6 }'; }
backup_row() {
  local what=$1 result=$2 bytes=$3
  printf '| %s | %.2f | %s | %s |\n' "$what" "$(median "$result")" "$(mb "$bytes")" "$(mb "$(median "$result" 2)")"
}
wanted_row() {
  local value
  value=$(ratio "$2" "$3")
  printf '| %s | %s | %s | %s |\n' "$1" "$value" "$4" "$(verdict "$value" "$4")"
}
{
  echo
  echo "$("$walhalla" --version); $(postgres --version); $(command pgbackrest version); $(nproc) cores; $(date -u +%F)"
  echo "cluster $(mb "$size_bytes") MB without pg_wal, 1 % of the pages of pgbench_accounts changed; medians of $rounds (restores: $restores, pgBackRest: 1)"
  echo
  echo '| backup | s | MB stored | MB read |'
  echo '| --- | ---: | ---: | ---: |'
  backup_row 'full' full "$(stored "$full")"
  backup_row 'delta, by WAL summaries' delta "$(stored "$delta")"
  backup_row 'delta, by page LSNs' delta-pages "$(stored "$pages_delta")"
  backup_row 'pgBackRest full' pgbackrest-full "$pgbackrest_full_bytes"
  backup_row 'pgBackRest incremental, repo-block' pgbackrest-incr "$pgbackrest_incr_bytes"
  echo
  echo '| delta by WAL summaries | ratio | wanted at most | met |'
  echo '| --- | ---: | ---: | --- |'
  wanted_row "time, of the full's" "$(median delta)" "$(median full)" $TIME_LIMIT
  wanted_row "stored bytes, of the full's" "$(stored "$delta")" "$(stored "$full")" $STORED_LIMIT
  wanted_row "bytes read, of the data directory's" "$(median delta 2)" "$size_bytes" $READ_LIMIT
  echo
  echo '| restore | s | ratio | wanted at most | met |'
  echo '| --- | ---: | ---: | ---: | --- |'
  value=$(ratio "$(median restore-chain)" "$(median restore-full)")
  printf '| of a full backup | %.2f | | | |\n' "$(median restore-full)"
  printf '| of a full backup and %s deltas | %.2f | %s | %s | %s |\n' $DELTAS "$(median restore-chain)" "$value" \
    $RESTORE_LIMIT "$(verdict "$value" $RESTORE_LIMIT)"
  printf '| the same over a directory in which one byte differs | %.2f | | | |\n' "$(median restore-over)"
} | tee bench-delta.md
