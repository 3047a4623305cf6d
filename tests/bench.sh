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
#   wal-push       of dense WAL of PostgreSQL 15, the newest that Debian's pgBackRest knows: its CPU time against that of
#                           lz4 -1, a CRC-32C and a BLAKE3 hash of the same segment; its wall time against that of
#                           pgBackRest's synchronous archive-push with lz4 at level 1
#   the same three, encrypted to one X25519 recipient, against themselves without encryption
#   upload         against  a loop that only calls the AWS SDK: the same 64 compressed segments, eight at a time, to the
#                           S3 server of the tests; beside it 64 wal-push processes, eight at a time
#   WAL reader     up to 96 segments of the load, pgbench's transactions and updates of many rows, in the page cache:
#                           reading the records and checking their CRCs, against  a bare CRC-32C of the same bytes,
#                           pg_waldump --quiet, pg_waldump --stats
#   start-up       of --version, and of wal-fetch of a segment that is not there; and the binary's size
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
readonly SEGMENTS=9 DENSE_SEGMENTS=7 DENSE_ROUNDS=3
readonly UPLOADS=64 CONCURRENCY=8
# What is wanted: at most this ratio, for the upload at least this one, and at most this much memory.
readonly PUSH_LIMIT=0.90 FETCH_LIMIT=0.70 WAL_LIMIT=1.50 MEMORY_LIMIT_MIB=128
readonly AGE_LIMIT=1.60
readonly WAL_CPU_LIMIT=1.60 PGBACKREST_LIMIT=1.00
readonly READER_LIMIT_MB_S=1000 READER_LIMIT=1.30 READ_SEGMENTS=96
readonly UPLOAD_LIMIT=0.80 UPLOAD_MEMORY_LIMIT_MIB=200
readonly LATENCY_MS=20 LINE_ROUNDS=20 LINE_PUSH_LIMIT_MS=100 LINE_FETCH_LIMIT_MS=60
readonly START_LIMIT_MS=20 BINARY_LIMIT_MB=60 STARTS=21

say() { echo "bench: $*" >&2; }

tests/setup.sh 15 17 >&2
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

say 'building the S3 server, the uploading loop and the reading one'
cargo build --release --locked --package walhalla-providers --examples >&2
cargo build --release --workspace --locked --example read_wal >&2
examples=$(realpath "${CARGO_TARGET_DIR:-target}/release/examples")

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
  [ -z "${slow_line:-}" ] || kill "$slow_line" || true
  [ -z "${s3_server:-}" ] || kill "$s3_server" || true
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
# Wall and CPU time, to the millisecond: `wall cpu`.
measure_cpu() {
  local result=$1 TIMEFORMAT='%3R %3U %3S'
  shift
  sync -f "$dir"
  { time as_user "$@" >>"$dir/commands.log" 2>&1; } 2>"$dir/times"
  awk '{ print $1, $2 + $3 }' "$dir/times" >>"$result"
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
# And as many as go to the S3 server, from updates of every row.
first=$(sql 'select pg_walfile_name(pg_switch_wal())')
while uploads=$(find data/pg_wal -maxdepth 1 -name '00000001????????????????' -printf '%f\n' | sort |
  awk -v first="$first" -v last="$last" '$1 > first && $1 < last') && [ "$(wc -w <<<"$uploads")" -lt $UPLOADS ]; do
  sql 'update pgbench_accounts set abalance = abalance + 1 where aid <= 500000'
  last=$(sql 'select pg_walfile_name(pg_current_wal_lsn())')
done
mapfile -t uploads < <(head -n $UPLOADS <<<"$uploads")
as_user mkdir uploads
for segment in "${uploads[@]}"; do as_user cp "data/pg_wal/$segment" uploads/; done
# All of it that is still there, for the reader; copies, as the server writes anew into segments that it has done with.
as_user mkdir wal
find data/pg_wal -maxdepth 1 -name '00000001????????????????' -printf '%f\n' | sort | awk -v last="$last" '$1 < last' |
  tail -n $READ_SEGMENTS | while read -r segment; do as_user cp "data/pg_wal/$segment" wal/; done
sql 'select pg_switch_wal()' >/dev/null
await "select last_archived_wal >= '$last' from pg_stat_archiver"
echo "archive_command = '$walhalla wal-push %p'" >>data/postgresql.conf
sql 'select pg_reload_conf()' >/dev/null
sql 'checkpoint'
size_mib=$(du -sm --exclude pg_wal data | cut -f 1)
recipient=$(as_user "$walhalla" keygen --quiet --output "$dir/identity")
encrypted() {
  local result=$1
  shift
  "$result" "$1" env WALHALLA_AGE_RECIPIENTS="$recipient" WALHALLA_AGE_IDENTITY_FILE="$dir/identity" "${@:2}"
}

for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds"
  measure tar-push bash -c 'tar -c --exclude pg_wal data | lz4 -1 -q >data.tar.lz4 && sync -f data.tar.lz4'
  measure backup-push "$walhalla" backup-push data
  encrypted measure backup-push-age "$walhalla" backup-push data
done
read -r id age_id < <(as_user "$walhalla" backup-list --json |
  python3 -c 'import json, sys; print(*[backup["id"] for backup in json.load(sys.stdin)[-2:]])')
stored_mib=$(du -sm store | cut -f 1)
tar_mib=$(du -sm data.tar.lz4 | cut -f 1)
as_user pg_ctl --silent -D data stop >&2

for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds"
  as_user mkdir untarred
  measure tar-fetch bash -c 'lz4 -d -q -c data.tar.lz4 | tar -x -C untarred && sync -f untarred'
  rm -rf untarred
  measure backup-fetch "$walhalla" backup-fetch fetched "$id"
  [ "$round" != "$rounds" ] || as_user pg_verifybackup -n fetched >&2
  rm -rf fetched
  encrypted measure backup-fetch-age "$walhalla" backup-fetch fetched "$age_id"
  rm -rf fetched
  measure verify "$walhalla" verify "$id"
  encrypted measure verify-age "$walhalla" verify "$age_id"
done

# A store of its own, in which no segment is yet.
as_user mkdir wal-store wal-store-age
for segment in "${segments[@]}"; do
  as_user cp "segments/$segment" "data/pg_wal/$segment"
  measure_short lz4-segment bash -c "lz4 -1 -q -f segments/$segment segment.lz4 && sync segment.lz4"
  # In the data directory, where the server runs it.
  (cd data && measure_short "$dir/wal-push" "$walhalla" --store "file://$dir/wal-store" wal-push "pg_wal/$segment")
  (cd data && encrypted measure_short "$dir/wal-push-age" "$walhalla" --store "file://$dir/wal-store-age" wal-push "pg_wal/$segment")
done

say 'pushing dense WAL beside pgBackRest'
as_user mkdir dense pgbackrest pgbackrest-log
(
  export PATH=${stage[postgres]}/15/bin:$PATH PGPORT=5433
  as_user initdb -D data15 -U postgres -A trust --no-sync >>initdb.log
  cat >>data15/postgresql.conf <<CONF
port = 5433
archive_mode = on
archive_command = '/bin/true'
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 4GB
wal_keep_size = 1GB
synchronous_commit = off
CONF
  as_user pg_ctl --silent -w -D data15 -l data15.log -o "-k $dir -c listen_addresses=" start >&2
  as_user pgbench -i -q -s 20 >>pgbench.log 2>&1
  first=$(sql 'select pg_walfile_name(pg_switch_wal())')
  last=$first
  until [ "$(find data15/pg_wal -maxdepth 1 -name '00000001????????????????' -printf '%f\n' |
    awk -v first="$first" -v last="$last" '$1 > first && $1 < last' | wc -l)" -ge $DENSE_SEGMENTS ]; do
    as_user pgbench -n -c 2 -t 10000 >>pgbench.log 2>&1
    last=$(sql 'select pg_walfile_name(pg_current_wal_lsn())')
  done
  find data15/pg_wal -maxdepth 1 -name '00000001????????????????' -printf '%f\n' | sort |
    awk -v first="$first" -v last="$last" '$1 > first && $1 < last' | head -n $DENSE_SEGMENTS |
    while read -r segment; do as_user cp "data15/pg_wal/$segment" dense/; done
  as_user pg_ctl --silent -D data15 stop >&2
)
cat >pgbackrest.conf <<CONF
[global]
repo1-path=$dir/pgbackrest
log-path=$dir/pgbackrest-log
lock-path=$dir/pgbackrest-log
spool-path=$dir/pgbackrest-log
compress-type=lz4
compress-level=1
[bench]
pg1-path=$dir/data15
CONF
pgbackrest=(env -u PGHOST pgbackrest --config="$dir/pgbackrest.conf" --stanza=bench)
as_user "${pgbackrest[@]}" --no-online stanza-create >>commands.log 2>&1
cp "$examples/read_wal" .
for ((round = 1; round <= DENSE_ROUNDS; round++)); do
  as_user mkdir "dense-store-$round"
  for segment in dense/*; do
    name=$(basename "$segment")
    as_user cp "$segment" "data15/pg_wal/$name"
    measure_cpu dense-lz4 lz4 -1 -q -f "$segment" segment.lz4
    as_user ./read_wal checksums "$segment" | awk -v lz4="$(tail -n 1 dense-lz4)" '{ split(lz4, times, " "); print times[2] + $1 }' >>dense-parts
    (cd data15 && measure_cpu "$dir/dense-push" "$walhalla" --store "file://$dir/dense-store-$round" wal-push "pg_wal/$name")
    (cd data15 && measure_cpu "$dir/dense-pgbackrest" "${pgbackrest[@]}" archive-push "pg_wal/$name")
  done
  rm -rf "dense-store-$round" pgbackrest/archive/bench/15-1/0*
done
awk '{ print $2 }' dense-push >dense-push-cpu

say 'uploading to an S3 server'
mkdir s3
"$examples/s3_server" s3 0 bench-key bench-secret --bucket bench >s3.log &
s3_server=$!
until endpoint=$(sed -n 's/^listening on //p' s3.log) && [ -n "$endpoint" ]; do sleep 0.1; done
export AWS_ACCESS_KEY_ID=bench-key AWS_SECRET_ACCESS_KEY=bench-secret AWS_ENDPOINT_URL_S3=$endpoint
as_user cp "${uploads[@]/#/uploads/}" data/pg_wal/

# Processes, as archive_command runs them: with the checks and the compression.
push_all() {
  (cd data && printf 'pg_wal/%s\n' "${uploads[@]}" |
    xargs -n 1 -P $CONCURRENCY "$walhalla" --store "$1" wal-push)
}
from=${EPOCHREALTIME/./}
push_all s3://bench/wal
to=${EPOCHREALTIME/./}
pushed_mb_s=$(awk -v from="$from" -v to="$to" -v n=$UPLOADS 'BEGIN { printf "%.0f", n * 16.777216 / ((to - from) / 1e6) }')

say 'pushing and fetching one segment over a line with latency'
"$examples/slow_line" "${endpoint#http://}" $LATENCY_MS >line.log &
slow_line=$!
until slow=$(sed -n 's/^listening on //p' line.log) && [ -n "$slow" ]; do sleep 0.1; done
as_user mkdir spool
# Always the same prefix: what the server can do was asked once for it, and is noted in the spool.
over_line() {
  local line=$1 url=$2 command
  for command in push fetch; do
    local words=("wal-$command" "pg_wal/${uploads[0]}")
    [ $command = push ] || words=(wal-fetch "${uploads[0]}" pg_wal/fetched)
    (cd data && AWS_ENDPOINT_URL_S3=$url WALHALLA_SPOOL_DIR=$dir/spool \
      measure_short "$dir/line-$command-$line" "$walhalla" --store s3://bench/line "${words[@]}")
  done
  rm -rf s3/bench/line/[0-9]* data/pg_wal/fetched
}
over_line first "$endpoint"
over_line first "$slow"
for ((round = 1; round <= LINE_ROUNDS; round++)); do
  over_line direct "$endpoint"
  over_line slow "$slow"
done

# The same segments in the form in which they were stored.
mapfile -t compressed < <(find "$PWD/s3/bench/wal" -name '*.lz4' ! -name '*.json.lz4' -type f | sort)
[ ${#compressed[@]} = $UPLOADS ]
upload() {
  local how=$1 round=$2 result
  sync -f "$dir"
  result=$(/usr/bin/time --append --output "upload-$how.memory" --format '0 %M' \
    "$examples/s3_upload" "$how" "$endpoint" bench-key bench-secret "bench/$how-$round" $CONCURRENCY "${compressed[@]}")
  say "upload, $how: $result (s, bytes)"
  awk '{ printf "%.1f\n", $2 / $1 / 1e6 }' <<<"$result" >>"upload-$how"
  rm -rf "s3/bench/$how-$round"
}
for ((round = 1; round <= rounds + 2; round++)); do
  upload bare "$round"
  upload walhalla "$round"
done

say 'reading WAL'
wal=(wal/*)
read_wal() {
  as_user ./read_wal "$1" "${wal[@]}" >read.log
  awk '{ print $1, 0; print $2, $3 >"read-bytes" }' read.log >>"read-$1"
  say "read-$1: $(cat read.log) (s, bytes, records)"
}
# With getting the files into memory and the process itself, as pg_waldump is measured.
read_wal_as_process() {
  measure_short read-process ./read_wal records "${wal[@]}"
  say "read-process: $(tail -n 1 read-process)"
}
waldump() {
  # What follows the last segment is missing, which it reports as an error after the work.
  measure_short "read-$1" bash -c "pg_waldump --$1 -p wal $(basename "${wal[0]}") $(basename "${wal[-1]}") || true"
  say "read-$1: $(tail -n 1 "read-$1")"
}
for ((round = 1; round <= rounds; round++)); do
  for mode in crc records blocks events; do read_wal $mode; done
  read_wal_as_process
  for mode in quiet stats; do waldump $mode; done
done

# What a process costs before it does anything; 74 is the answer to a segment that is not there.
start_up() {
  local result=$1 from to number
  shift
  for ((number = 0; number < STARTS; number++)); do
    from=${EPOCHREALTIME/./}
    (cd data && "$@" >/dev/null 2>&1) || [ $? = 74 ]
    to=${EPOCHREALTIME/./}
    awk -v from="$from" -v to="$to" 'BEGIN { printf "%.1f 0\n", (to - from) / 1e3 }' >>"$result"
  done
}
start_up start-version "$walhalla" --version
start_up start-wal-fetch "$walhalla" wal-fetch 0000000100000FFF000000FF pg_wal/RECOVERYXLOG

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
  echo '| wal-push of a segment of dense WAL | Walhalla, s | other, s | ratio | wanted at most | met |'
  echo '| --- | ---: | ---: | ---: | ---: | --- |'
  row 'CPU time, against lz4 -1, CRC-32C and BLAKE3' dense-push-cpu dense-parts $WAL_CPU_LIMIT
  row 'wall time, against pgBackRest archive-push' dense-push dense-pgbackrest $PGBACKREST_LIMIT
  echo
  echo "| one segment to and from S3, medians of $LINE_ROUNDS | over a line with $LATENCY_MS ms, s | without, s | more, ms | wanted at most | met |"
  echo '| --- | ---: | ---: | ---: | ---: | --- |'
  line_row() {
    awk -v what="$1" -v slow="$(median "line-$2-slow")" -v direct="$(median "line-$2-direct")" -v limit="$3" 'BEGIN {
      more = (slow - direct) * 1000
      printf "| %s | %.3f | %.3f | %.0f | %d | %s |\n", what, slow, direct, more, limit, (more <= limit ? "yes" : "NO") }'
  }
  line_row wal-push push $LINE_PUSH_LIMIT_MS
  line_row wal-fetch fetch $LINE_FETCH_LIMIT_MS
  echo
  echo '| | encrypted, s | not encrypted, s | ratio | wanted at most | met |'
  echo '| --- | ---: | ---: | ---: | ---: | --- |'
  for what in backup-push wal-push backup-fetch verify; do
    row $what $what-age $what $AGE_LIMIT
  done
  echo
  echo "| upload of $UPLOADS segments, $CONCURRENCY at a time | Walhalla, MB/s | bare SDK, MB/s | ratio | wanted at least | met |"
  echo '| --- | ---: | ---: | ---: | ---: | --- |'
  awk -v own="$(median upload-walhalla)" -v other="$(median upload-bare)" -v limit=$UPLOAD_LIMIT 'BEGIN {
    ratio = own / other
    printf "| compressed, of the compressed bytes | %.0f | %.0f | %.2f | %.2f | %s |\n", own, other, ratio, limit, (ratio >= limit ? "yes" : "NO") }'
  echo "| wal-push, a process each, of the segments' bytes | $pushed_mb_s | | | | |"
  echo
  read -r wal_bytes wal_records <read-bytes
  read_row() {
    awk -v what="$1" -v seconds="$(median "$2")" -v bytes="$wal_bytes" -v crc="$(median read-crc)" 'BEGIN {
      printf "| %s | %.3f | %.0f | %.1f |\n", what, seconds, bytes / seconds / 1e6, seconds / crc }'
  }
  echo "| reading $((wal_bytes / 1000000)) MB of WAL with $wal_records records, one core | s | MB/s | × CRC-32C |"
  echo '| --- | ---: | ---: | ---: |'
  read_row 'a bare CRC-32C' read-crc
  read_row 'records, CRCs checked' read-records
  read_row '… and the blocks they change' read-blocks
  read_row '… and what they mean' read-events
  read_row 'records, CRCs checked: the whole process' read-process
  read_row 'pg_waldump --quiet' read-quiet
  read_row 'pg_waldump --stats' read-stats
  echo
  awk -v seconds="$(median read-records)" -v crc="$(median read-crc)" -v bytes="$wal_bytes" -v least=$READER_LIMIT_MB_S \
    -v most=$READER_LIMIT 'BEGIN {
    printf "Records with CRCs checked: wanted at least %d MB/s, or at most %.2f times a bare CRC-32C: %s.\n", least, most,
      (bytes / seconds / 1e6 >= least || seconds / crc <= most ? "yes" : "NO") }'
  echo
  echo '| start-up | ms | wanted at most | met |'
  echo '| --- | ---: | ---: | --- |'
  for what in version wal-fetch; do
    median "start-$what" | awk -v what="$what" -v limit=$START_LIMIT_MS '{
      printf "| %s | %.1f | %d | %s |\n", (what == "version" ? "--version" : "wal-fetch of a missing segment"), $1, limit, ($1 <= limit ? "yes" : "NO") }'
  done
  echo
  stat --format %s "$walhalla" | awk -v limit=$BINARY_LIMIT_MB '{
    printf "The binary has %.0f MB (wanted below %d: %s).\n", $1 / 1e6, limit, ($1 < limit * 1e6 ? "yes" : "NO") }'
  echo
  echo '| peak resident memory | MiB | wanted at most | met |'
  echo '| --- | ---: | ---: | --- |'
  for what in backup-push backup-fetch; do
    peak=$(peak_mib $what)
    verdict=yes
    [ "$peak" -lt $MEMORY_LIMIT_MIB ] || verdict=NO
    echo "| $what | $peak | $MEMORY_LIMIT_MIB | $verdict |"
  done
  peak=$(peak_mib upload-walhalla.memory)
  verdict=yes
  [ "$peak" -lt $UPLOAD_MEMORY_LIMIT_MIB ] || verdict=NO
  echo "| upload of $UPLOADS segments, $CONCURRENCY at a time | $peak | $UPLOAD_MEMORY_LIMIT_MIB | $verdict |"
} | tee bench.md
