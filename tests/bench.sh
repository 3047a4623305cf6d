#!/usr/bin/env bash
# bench.sh [--scale N] [--rounds N] [--keep]: Walhalla against tar and lz4 on the same files, as a Markdown table.
#
# A pgbench cluster on PostgreSQL 17 with checksums (scale 140 is about 2 GB) and the directory store. Both sides of a
# comparison run in turn, the medians are compared, the page cache is left as it is, and what one side left to be
# written is flushed before the other is timed. Progress goes to standard error, the table to standard output.
#
#   backup-push    against  tar -c --exclude pg_wal PGDATA | lz4 -1 > file; sync -f
#   backup-fetch   against  lz4 -d | tar -x; sync -f
#   wal-push       against  lz4 -1 of the same segment and its fsync
set -euo pipefail
cd "$(dirname "$0")/.."

scale=140
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
      echo "usage: bench.sh [--scale N] [--rounds N] [--keep]" >&2
      exit 2
      ;;
  esac
  shift
done
readonly SEGMENTS=9
# What issue 2 asks for: at most this ratio, and at most this much memory.
readonly PUSH_LIMIT=0.90 FETCH_LIMIT=0.70 WAL_LIMIT=1.50 MEMORY_LIMIT_MIB=128

say() { echo "bench: $*" >&2; }

tests/setup.sh 17 >&2
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

mkdir "$dir/store"
[ "$(id -u)" != 0 ] || chown -R "${stage[uid]}:${stage[gid]}" "$dir"
export PATH=${stage[postgres]}/17/bin:$PATH
export WALHALLA_STORE=file://$dir/store
export PGHOST=$dir PGUSER=postgres PGDATABASE=postgres PGPORT=5432
unset PGPASSWORD PGPASSFILE PGSERVICE PGOPTIONS PGHOSTADDR
cd "$dir"

sql() { as_user psql -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
await() {
  local tries
  for ((tries = 0; tries < 3000; tries++)); do
    [ "$(sql "$1")" != t ] || return 0
    sleep 0.1
  done
  say "waited in vain for: $1"
  return 1
}

# Runs a command after what is dirty has been flushed; appends `seconds KiB` (wall time, peak resident memory) to a file.
measure() {
  local result=$1
  shift
  sync -f "$dir"
  as_user /usr/bin/time --append --output "$result" --format '%e %M' "$@" >>"$dir/commands.log" 2>&1 || {
    tail -n 20 "$dir/commands.log" >&2
    say "failed: $*"
    return 1
  }
  say "$(basename "$result"): $(tail -n 1 "$result") (s, KiB)"
}
# The same for what takes milliseconds, of which time(1) shows two digits only.
measure_short() {
  local result=$1 from to
  shift
  sync -f "$dir"
  from=${EPOCHREALTIME/./}
  as_user "$@" >>"$dir/commands.log" 2>&1
  to=${EPOCHREALTIME/./}
  awk -v from="$from" -v to="$to" 'BEGIN { printf "%.6f 0\n", (to - from) / 1e6 }' >>"$result"
}
median() { awk '{print $1}' "$1" | sort -n | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }
peak_mib() { awk '$2 > peak {peak = $2} END {printf "%.0f", peak / 1024}' "$1"; }

say "making a cluster of scale $scale"
as_user initdb -D data -U postgres -A trust -k --no-sync >initdb.log
cat >>data/postgresql.conf <<CONF
archive_mode = on
archive_command = '/bin/true'
autovacuum = off
max_wal_size = 4GB
shared_buffers = 256MB
checkpoint_timeout = 1h
wal_keep_size = 1GB
synchronous_commit = off
CONF
as_user pg_ctl --silent -w -D data -l data.log -o "-k $dir -c listen_addresses=" start >&2
as_user pgbench -i -q -s "$scale" >pgbench.log 2>&1
# Real segments for wal-push, and pages that are not all as the load left them.
as_user pgbench -n -c 2 -t 20000 >>pgbench.log 2>&1
first=$(sql 'select pg_walfile_name(pg_switch_wal())')
last=$first
# Only those between the two switches are full of records.
while segments=$(find data/pg_wal -maxdepth 1 -name '00000001????????????????' -printf '%f\n' | sort |
  awk -v first="$first" -v last="$last" '$1 > first && $1 < last') && [ "$(wc -w <<<"$segments")" -lt $SEGMENTS ]; do
  as_user pgbench -n -c 2 -t 10000 >>pgbench.log 2>&1
  last=$(sql 'select pg_walfile_name(pg_current_wal_lsn())')
done
mapfile -t segments < <(head -n $SEGMENTS <<<"$segments")
as_user mkdir segments
for segment in "${segments[@]}"; do as_user cp "data/pg_wal/$segment" segments/; done
sql 'select pg_switch_wal()' >/dev/null
await "select last_archived_wal >= '$last' from pg_stat_archiver"
echo "archive_command = '$walhalla wal-push %p'" >>data/postgresql.conf
sql 'select pg_reload_conf()' >/dev/null
sql 'checkpoint'
size_mib=$(du -sm --exclude pg_wal data | cut -f 1)

for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds"
  measure tar-push bash -c 'tar -c --exclude pg_wal data | lz4 -1 -q >data.tar.lz4 && sync -f data.tar.lz4'
  measure backup-push "$walhalla" backup-push data
done
ids=$(as_user "$walhalla" backup-list --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[-1]["id"])')
stored_mib=$(du -sm store | cut -f 1)
tar_mib=$(du -sm data.tar.lz4 | cut -f 1)
as_user pg_ctl --silent -D data stop >&2

for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds"
  as_user mkdir untarred
  measure tar-fetch bash -c 'lz4 -d -q -c data.tar.lz4 | tar -x -C untarred && sync -f untarred'
  rm -rf untarred
  measure backup-fetch "$walhalla" backup-fetch fetched "$ids"
  [ "$round" != "$rounds" ] || as_user pg_verifybackup -n fetched >&2
  rm -rf fetched
done

# A store of its own, in which no segment is yet.
as_user mkdir wal-store
for segment in "${segments[@]}"; do
  as_user cp "segments/$segment" "data/pg_wal/$segment"
  measure_short lz4-segment bash -c "lz4 -1 -q -f segments/$segment segment.lz4 && sync segment.lz4"
  # In the data directory, where the server runs it.
  (cd data && measure_short "$dir/wal-push" "$walhalla" --store "file://$dir/wal-store" wal-push "pg_wal/$segment")
done

row() {
  local what=$1 own=$2 other=$3 limit=$4 own_median other_median ratio verdict
  own_median=$(median "$own")
  other_median=$(median "$other")
  ratio=$(awk -v own="$own_median" -v other="$other_median" 'BEGIN { printf "%.2f", own / other }')
  verdict=yes
  awk -v ratio="$ratio" -v limit="$limit" 'BEGIN { exit !(ratio <= limit) }' || verdict=NO
  printf '| %s | %.3f | %.3f | %s | %s | %s |\n' "$what" "$own_median" "$other_median" "$ratio" "$limit" $verdict
}
{
  echo
  echo "$("$walhalla" --version); $(postgres --version); $(nproc) cores; $(date -u +%F)"
  echo "cluster $size_mib MiB without pg_wal; $rounds backups and their WAL in the store $stored_mib MiB; tar.lz4 $tar_mib MiB;"
  echo "medians of $rounds ($SEGMENTS for wal-push), in turn"
  echo
  echo '| | Walhalla, s | tar and lz4, s | ratio | wanted at most | met |'
  echo '| --- | ---: | ---: | ---: | ---: | --- |'
  row 'backup-push' backup-push tar-push $PUSH_LIMIT
  row 'backup-fetch' backup-fetch tar-fetch $FETCH_LIMIT
  row 'wal-push, one segment' wal-push lz4-segment $WAL_LIMIT
  echo
  echo '| peak resident memory | MiB | wanted at most | met |'
  echo '| --- | ---: | ---: | --- |'
  for what in backup-push backup-fetch; do
    peak=$(peak_mib $what)
    verdict=yes
    [ "$peak" -lt $MEMORY_LIMIT_MIB ] || verdict=NO
    echo "| $what | $peak | $MEMORY_LIMIT_MIB | $verdict |"
  done
} | tee bench.md
