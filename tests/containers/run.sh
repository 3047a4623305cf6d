#!/usr/bin/env bash
# run.sh [PART...]: builds the images of docker/, runs its compose files in Podman, and the walk-throughs a to d in them.
#
# PART is directory (walk-throughs a, b and d), s3 (walk-through c), archiver or demo; all four by default. There is also
# source, which compiles Walhalla in the image. Results are checked: rows, files, exit statuses. Whatever was made is removed
# at the end, also after a failure: containers, volumes and networks. The images stay in .cache/containers. PROGRAM names a
# binary of Walhalla; without it the newest build in target is brought up to date. PG_MAJOR=15 takes another server.
set -euo pipefail
cd "$(dirname "$0")/../.."

export PG_MAJOR=${PG_MAJOR:-17}
export POSTGRES_PASSWORD=secret-of-the-superuser REPLICATION_PASSWORD="it's secret"
export AWS_ACCESS_KEY_ID=walhalla AWS_SECRET_ACCESS_KEY=secret-of-the-store
readonly LOG=$PWD/.cache/containers/run.log

say() { printf '%s\n' "$*"; }
die() {
  echo "    FAILED: $*" >&2
  exit 1
}
passed() {
  echo "    ok: $*"
  echo "$*" >>"$work/passed"
}
# check WHAT EXPECTED ACTUAL
check() {
  [ "$2" = "$3" ] || die "$1: expected '$2', found '$3'"
  passed "$1: $3"
}

build_program() {
  if [ -z "${PROGRAM:-}" ]; then
    tests/setup.sh 17
    local target=${CARGO_TARGET_DIR:-target}
    if [ ! -x "$target/release/walhalla" ] && [ -x "$target/debug/walhalla" ]; then
      cargo build --locked
      PROGRAM=$target/debug/walhalla
    else
      cargo build --release --locked
      PROGRAM=$target/release/walhalla
    fi
  fi
  mkdir -p "$work/binary"
  strip --strip-debug -o "$work/binary/walhalla" "$PROGRAM" 2>>"$LOG" || cp "$PROGRAM" "$work/binary/walhalla"
}

compose() { podman-compose --file "docker/compose.$stack.yml" "$@" 2>>"$LOG"; }
# The images by the compose files' own `build`, with the binary that is there in place of the stage that compiles.
build() {
  compose --profile standby --profile restored --podman-build-args="--quiet --build-context binary=$work/binary ${host_apt[*]}" build >>"$LOG"
}
up() { compose --profile standby --profile restored up --detach --no-build --no-deps "$@" >>"$LOG"; }
container() {
  podman ps --all --quiet --filter "label=io.podman.compose.project=walhalla-$stack" --filter "label=com.docker.compose.service=$1"
}
remove() {
  local service
  for service in "$@"; do
    podman rm --force --time 10 --volumes "$(container "$service")" >>"$LOG"
    podman volume rm "walhalla-${stack}_$service" >>"$LOG"
  done
}
# in_container SERVICE COMMAND...: as the server's user.
in_container() { podman exec --user 999 "$(container "$1")" "${@:2}"; }
sql() { in_container "$1" psql -XAtq -v ON_ERROR_STOP=1 "${@:2}"; }

# until_true WHAT COMMAND...: for a machine that has much else to do, as long as a new cluster takes there.
until_true() {
  local end=$((SECONDS + 240))
  until "${@:2}" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "waited in vain: $1"
    sleep 0.5
  done
}
# Nothing but this runs health checks where there is no systemd.
healthy() {
  local service
  for service in "$@"; do
    until_true "$service is healthy" podman healthcheck run "$(container "$service")"
  done
}
is_true() { [ "$(sql "$1" -c "$2")" = t ]; }
await() { until_true "$2" is_true "$1" "$2"; }
# All that was written so far is in the archive.
archive() {
  local segment
  segment=$(sql "$1" -c "SELECT pg_create_restore_point('end')" -c 'SELECT pg_walfile_name(pg_switch_wal())' | tail -n 1)
  await "$1" "SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver"
}
content() { sql "$1" -c "SELECT count(*) || ' rows, md5 ' || md5(string_agg(t::text, chr(10) ORDER BY id)) FROM $2 t"; }
# restore_to [VARIABLE=VALUE...]: a new server `restored`, with an empty volume.
restore_to() {
  [ -z "$(container restored)" ] || remove restored
  env "$@" podman-compose --file "docker/compose.$stack.yml" --profile restored up --detach --no-build --no-deps restored \
    >>"$LOG" 2>&1
  healthy restored
}
paused() { await restored "SELECT pg_get_wal_replay_pause_state() = 'paused'"; }
in_writing() { await restored 'SELECT NOT pg_is_in_recovery()'; }

# A container stack with an archive volume and a backup volume.
walk_a() {
  say '  a: a base backup while the server writes, new rows, a restore on a second server from the second volume'
  sql postgres -c 'CREATE TABLE a AS SELECT id, md5(id::text) AS word FROM generate_series(1, 100000) AS id' \
    -c 'CREATE TABLE ticks (id int)' -c 'ALTER TABLE a ADD PRIMARY KEY (id)'
  local ticks_before ticks_after writer
  sql postgres -c 'DO $$ BEGIN FOR i IN 1..3000 LOOP INSERT INTO ticks VALUES (i); COMMIT; PERFORM pg_sleep(0.005); END LOOP; END $$' \
    2>>"$LOG" &
  writer=$!
  await postgres 'SELECT count(*) > 0 FROM ticks'
  ticks_before=$(sql postgres -c 'SELECT count(*) FROM ticks')
  podman exec --tty --user 999 "$(container postgres)" walhalla backup-push --label a >"$work/progress"
  ticks_after=$(sql postgres -c 'SELECT count(*) FROM ticks')
  kill -0 $writer || die 'the writer ended before the backup did'
  sql postgres -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO %'" >>"$LOG"
  wait $writer 2>>"$LOG" || true
  [ "$ticks_after" -gt "$ticks_before" ] || die 'the server did not write during the backup'
  passed "rows were written during the backup: $ticks_before before, $ticks_after after"
  grep --quiet -a '%\|MiB/s' "$work/progress" || die "the backup showed no progress: $(cat "$work/progress")"
  passed 'the backup showed its progress on the terminal'
  local backup
  backup=$(in_container postgres walhalla backup-list --json)
  check 'one full backup, and compressed to less than half' '1 full true' \
    "$(json "$backup" 'len(d), d[0]["kind"], str(d[0]["stored_bytes"] * 2 < d[0]["size_bytes"]).lower()')"
  sql postgres -c "INSERT INTO a SELECT id, 'new' FROM generate_series(100001, 100500) AS id"
  archive postgres
  local before
  before=$(content postgres a)
  restore_to
  in_writing
  check 'the second server has the rows, those after the backup too' "$before" "$(content restored a)"
  check 'exactly' 100500 "$(sql restored -c 'SELECT count(*) FROM a')"
  check 'every row that was committed during the backup is there' "$(sql postgres -c 'SELECT count(*) FROM ticks')" \
    "$(sql restored -c 'SELECT count(*) FROM ticks')"
  check 'its end of recovery is open for writing' 'f off' \
    "$(sql restored -c "INSERT INTO a VALUES (0, 'written')" -c "SELECT pg_is_in_recovery() , current_setting('archive_mode')" | tr '|' ' ')"
}

# Rows, a base backup, as many again, the time, wrong rows, and back to the time.
walk_b() {
  local rows=200000 noted
  say "  b: $rows rows, a base backup, $rows more, the time, wrong rows, a restore to the time"
  sql postgres -c 'CREATE TABLE b (id int, kind text)' -c "INSERT INTO b SELECT g, 'right' FROM generate_series(1, $rows) g"
  in_container postgres walhalla backup-push --label b >>"$LOG" 2>&1
  sql postgres -c "INSERT INTO b SELECT g, 'right' FROM generate_series($rows + 1, 2 * $rows) g"
  noted=$(sql postgres -c 'SELECT now()')
  sql postgres -c "INSERT INTO b SELECT g, 'wrong' FROM generate_series(1, $rows / 2) g"
  archive postgres
  restore_to RECOVERY_TARGET_TIME="$noted" RECOVERY_TARGET_ACTION=promote
  in_writing
  check 'rows and wrong rows on the first server' "$((rows * 5 / 2)) $((rows / 2))" \
    "$(sql postgres -c "SELECT count(*), count(*) FILTER (WHERE kind = 'wrong') FROM b" | tr '|' ' ')"
  check "rows and wrong rows on the second, restored to $noted" "$((rows * 2)) 0" \
    "$(sql restored -c "SELECT count(*), count(*) FILTER (WHERE kind = 'wrong') FROM b" | tr '|' ' ')"
}

# pauses_with WHAT ROWS VARIABLE=VALUE...: the server stands still at the target, can be read, cannot be written.
pauses_with() {
  restore_to "${@:3}"
  paused
  check "$1: rows at the pause" "$2" "$(sql restored -c 'SELECT count(*) FROM d')"
  if sql restored -c 'INSERT INTO d VALUES (0)' 2>"$work/refused"; then die "$1: the paused server took a row"; fi
  grep --quiet 'read-only transaction' "$work/refused" || die "$1: $(cat "$work/refused")"
}

# Restore points, inclusive and exclusive, by name, time and transaction; the pause; the end of the WAL.
walk_d() {
  local xid committed all
  say '  d: restore points, transactions and times; the pause at the target; the end of the archive'
  sql postgres -c 'CREATE TABLE d (id int)' -c 'INSERT INTO d SELECT generate_series(1, 1000)'
  in_container postgres walhalla backup-push --label d >>"$LOG" 2>&1
  sql postgres -c "SELECT pg_create_restore_point('beforechanges')" >>"$LOG"
  xid=$(sql postgres -c 'BEGIN' -c 'INSERT INTO d SELECT generate_series(1001, 1100)' -c 'SELECT pg_current_xact_id()' -c COMMIT)
  committed=$(sql postgres -c "SELECT pg_xact_commit_timestamp('$xid'::xid)")
  sql postgres -c "SELECT pg_create_restore_point('afterchanges')" -c 'INSERT INTO d SELECT generate_series(1101, 1110)' \
    -c "SELECT pg_create_restore_point('nomorechanges')" -c 'INSERT INTO d VALUES (1111)' >>"$LOG"
  archive postgres
  all=$(sql postgres -c 'SELECT count(*) FROM d')
  pauses_with 'restore point beforechanges' 1000 RECOVERY_TARGET_NAME=beforechanges
  pauses_with 'restore point afterchanges' 1100 RECOVERY_TARGET_NAME=afterchanges
  pauses_with 'restore point nomorechanges' 1110 RECOVERY_TARGET_NAME=nomorechanges
  sql restored -c 'SELECT pg_wal_replay_resume()' >>"$LOG"
  in_writing
  check 'after pg_wal_replay_resume() it takes rows, on a new timeline' '1111 2' "$(sql restored -c 'INSERT INTO d VALUES (0)' \
    -c 'SELECT (SELECT count(*) FROM d), timeline_id FROM pg_control_checkpoint()' -c CHECKPOINT | tr '|' ' ')"
  pauses_with "transaction $xid, inclusive" 1100 RECOVERY_TARGET_XID="$xid"
  pauses_with "transaction $xid, exclusive" 1000 RECOVERY_TARGET_XID="$xid" RECOVERY_TARGET_INCLUSIVE=off
  pauses_with "time $committed, inclusive" 1100 RECOVERY_TARGET_TIME="$committed"
  pauses_with "time $committed, exclusive" 1000 RECOVERY_TARGET_TIME="$committed" RECOVERY_TARGET_INCLUSIVE=off
  restore_to
  in_writing
  check 'all WAL: rows, and open for writing' "$all" "$(sql restored -c 'SELECT count(*) FROM d')"
  sql restored -c 'INSERT INTO d VALUES (0)'
  local code=0
  compose --profile restored run --rm --no-deps -e RECOVERY_TARGET_NAME=nowhere -e PGDATA=/tmp/restored restored >"$work/nowhere" 2>&1 ||
    code=$?
  check 'a restore point that does not exist: exit status of the container' 4 $code
}

part_directory() {
  build
  up postgres
  healthy postgres
  walk_a
  walk_b
  walk_d
}

# json DOCUMENT EXPRESSION: what the expression gives for the document d.
json() { python3 -c 'import json, sys; d = json.loads(sys.argv[1]); print(*eval(f"({sys.argv[2]},)"))' "$1" "$2"; }

# plan OPTION...: as JSON, by the machine that would restore.
plan() { compose --profile restored run --rm --no-deps -T --entrypoint walhalla restored plan --json "$@"; }

# A backup in S3, and a recovery on a machine that has nothing but access to the store.
walk_c() {
  local id segment target later backups planned backup
  say '  c: two backups in S3; one of them and only the WAL that the target needs; a time between the start and the end of one'
  sql postgres -c 'CREATE TABLE c (id int PRIMARY KEY, word text)' \
    -c "INSERT INTO c SELECT g, md5(g::text) FROM generate_series(1, 50000) g"
  in_container postgres walhalla backup-push --label first >>"$LOG" 2>&1
  sql postgres -c "INSERT INTO c VALUES (50001, 'after the first backup')"
  # Slow enough that rows are committed between its start and its end.
  podman exec --user 999 --env WALHALLA_READ_RATE=6MiB "$(container postgres)" walhalla backup-push --label second >>"$LOG" 2>"$work/second" &
  backup=$!
  until_true 'the second backup begins' grep --quiet ' begins' "$work/second"
  sql postgres -c "DO \$\$ BEGIN FOR i IN 50002..50010 LOOP INSERT INTO c VALUES (i, pg_walfile_name(pg_current_wal_insert_lsn())); COMMIT;
    PERFORM pg_sleep(0.05); END LOOP; END \$\$"
  segment=$(sql postgres -c 'SELECT word FROM c WHERE id = 50004')
  kill -0 $backup || die 'the second backup ended too early for this test'
  wait $backup
  target=$(sql postgres -c "SELECT to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE INTERVAL '5:30', 'YYYY-MM-DD HH24:MI:SS.US')
    || '+05:30' FROM c WHERE id = 50004")
  later=$(sql postgres -c 'SELECT clock_timestamp()')
  for ((id = 50011; id <= 50013; id++)); do
    sql postgres -c "INSERT INTO c VALUES ($id, 'after both backups')" -c 'SELECT pg_switch_wal()' >>"$LOG"
  done
  archive postgres
  backups=$(in_container postgres walhalla backup-list --json)
  check "the target $target is between the start and the end of the second backup" 'first second t' "$(
    json "$backups" 'd[0]["label"], d[1]["label"]'
  ) $(sql postgres -c "SELECT '$target'::timestamptz BETWEEN '$(json "$backups" 'd[1]["start_time"]')' AND '$(json "$backups" 'd[1]["stop_time"]')'")"
  planned=$(plan --target-time "$target")
  check 'the plan takes the backup before it alone, and WAL to the segment with the target' \
    "$(json "$backups" 'd[0]["id"]') $segment" "$(json "$planned" '*(b if isinstance(b, str) else b["id"] for b in d["backup_chain"]), d["segments"][-1]')"
  check 'a target after it takes the second backup' "$(json "$backups" 'd[1]["id"]')" \
    "$(json "$(plan --target-time "$later")" '*(b if isinstance(b, str) else b["id"] for b in d["backup_chain"])')"
  restore_to RECOVERY_TARGET_TIME="$target"
  paused
  check 'rows, and the last of them' '50004 50004' "$(sql restored -c 'SELECT count(*), max(id) FROM c' | tr '|' ' ')"
  # shellcheck disable=SC2016
  check 'the WAL that was downloaded' "$(json "$planned" '*d["segments"]')" \
    "$(in_container restored sh -c 'ls "$PGDATA.walhalla-wal" | grep -E "^[0-9A-F]{24}$"' | xargs)"
}

part_s3() {
  build
  up s3 postgres
  healthy postgres
  walk_c
}

# The image as a user builds it, with the compiler (many minutes).
part_source() {
  tests/containers/setup.sh rust:1.95-trixie
  # The certificates of this host, which may know a proxy of its own.
  podman build --file docker/Dockerfile --target walhalla --tag localhost/walhalla:source "${host_apt[@]}" \
    --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro \
    --build-arg WALHALLA_COMMIT="$(git rev-parse --short=12 HEAD)" --build-arg CARGO_FLAGS="${CARGO_FLAGS:-}" . >>"$LOG" 2>&1
  local version
  version=$(podman run --rm localhost/walhalla:source --version)
  check 'the version that was compiled in the image' "walhalla $(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1) ($(git rev-parse --short=12 HEAD))" "$version"
}

# WAL leaves the primary as it is written; the standby comes from the archive; the primary is lost and no commit with it.
part_archiver() {
  export WAL_RECEIVE_OPTIONS=--synchronous
  local noted
  build
  up primary
  healthy primary
  up archiver
  healthy archiver
  check 'the image of Walhalla does not run as root' 999 "$(podman exec "$(container archiver)" id -u)"
  daemon_is_healthy
  sql primary -c 'CREATE TABLE e (id int PRIMARY KEY, word text)' -c "INSERT INTO e SELECT g, 'first' FROM generate_series(1, 1000) g"
  in_container archiver walhalla backup-push >>"$LOG" 2>&1
  passed 'the archiver host took a base backup over the network'
  up standby
  healthy standby
  await primary "SELECT array_agg(application_name ORDER BY application_name) = '{standby,walhalla}' FROM pg_stat_replication WHERE state = 'streaming'"
  passed 'the archiver host and the standby stream from the primary'
  sql primary -c "ALTER SYSTEM SET synchronous_standby_names = 'walhalla'" -c 'SELECT pg_reload_conf()' >>"$LOG"
  await primary "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'walhalla' AND sync_state = 'sync'"
  sql primary -c "INSERT INTO e VALUES (1001, 'before the incident')"
  await standby 'SELECT count(*) = 1001 FROM e'
  passed 'the standby, which was made from the archive, has the newest row'
  noted=$(sql primary -c 'SELECT clock_timestamp()')
  sql primary -c 'DELETE FROM e WHERE id <= 900' -c "INSERT INTO e VALUES (1002, 'the last commit')"
  podman kill --signal KILL "$(container primary)" >>"$LOG"
  remove primary
  until_true 'the archiver host says that no WAL comes' not_healthy archiver
  passed 'the primary is lost with its volume, and the health check of the archiver host says so'
  restore_to
  in_writing
  check 'everything that was committed is in the archive' '102 the last commit' \
    "$(sql restored -c 'SELECT count(*), (SELECT word FROM e WHERE id = 1002) FROM e' | tr '|' ' ')"
  restore_to RECOVERY_TARGET_TIME="$noted"
  paused
  check 'before the incident' '1001 before the incident' \
    "$(sql restored -c 'SELECT count(*), (SELECT word FROM e WHERE id = 1001) FROM e' | tr '|' ' ')"
}
# The health check of a daemon, and of one that shows no metrics, so that the check cannot tell.
daemon_is_healthy() {
  local id
  for options in '--metrics 127.0.0.1:9187' ''; do
    # shellcheck disable=SC2086
    id=$(podman run --detach --label io.podman.compose.project=walhalla-archiver --volume walhalla-archiver_archive:/srv/walhalla \
      --env WALHALLA_STORE=file:///srv/walhalla/store localhost/walhalla daemon $options)
    if [ -n "$options" ]; then
      until_true 'the daemon is healthy' podman healthcheck run "$id"
    elif podman healthcheck run "$id" >>"$LOG" 2>&1; then
      die 'a daemon that does not answer counts as healthy'
    fi
    podman rm --force --time 10 "$id" >>"$LOG"
  done
  passed 'the health check of the daemon'
}
not_healthy() { ! podman healthcheck run "$(container "$1")"; }

part_demo() {
  build
  COMPOSE=podman-compose ENGINE=podman docker/demo.sh 2>&1 | tee -a "$LOG" | sed 's/^/    /'
  passed 'docker/demo.sh'
}

show_logs() {
  local name
  for name in $(podman ps --all --filter "label=io.podman.compose.project=walhalla-$stack" --format '{{.Names}}'); do
    say "    the last lines of $name:"
    podman logs --tail 25 "$name" 2>&1 | sed 's/^/      /'
  done
}

# Whatever carries the label of one of our compose projects, and nothing else.
clean() {
  local stack ids
  for stack in directory s3 archiver demo; do
    local label=label=io.podman.compose.project=walhalla-$stack
    mapfile -t ids < <(podman ps --all --quiet --filter "$label")
    [ ${#ids[@]} = 0 ] || podman rm --force --time 2 --volumes "${ids[@]}" >>"$LOG" 2>&1 || true
    podman pod rm --force --ignore "pod_walhalla-$stack" >>"$LOG" 2>&1 || true
    mapfile -t ids < <(podman volume ls --quiet --filter "$label")
    [ ${#ids[@]} = 0 ] || podman volume rm --force "${ids[@]}" >>"$LOG" 2>&1 || true
    podman network rm --force "walhalla-${stack}_default" >>"$LOG" 2>&1 || true
  done
}
left() {
  {
    podman ps --all --format '{{.Names}}'
    podman volume ls --format '{{.Name}}'
    podman network ls --format '{{.Name}}'
  } | grep '^walhalla-' || true
}

finish() {
  local code=$?
  trap - EXIT
  clean
  rm -rf "$work"
  exit $code
}

export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
parts=("$@")
[ $# -gt 0 ] || parts=(directory s3 archiver demo)
tests/containers/setup.sh "postgres:$PG_MAJOR" debian:trixie-slim chrislusf/seaweedfs:4.48
# shellcheck source=tests/containers/env.sh
. tests/containers/env.sh
work=$(mktemp -d)
trap finish EXIT
: >"$LOG"
clean
[ "${parts[*]}" = source ] || build_program

summary=()
failed=0
for stack in "${parts[@]}"; do
  started=$SECONDS
  say "$stack"
  : >"$work/passed"
  # A subshell of its own: what fails in it ends this part only.
  set +e
  (
    set -eE
    trap 'echo "    failed: $BASH_COMMAND" >&2' ERR
    "part_$stack"
  )
  code=$?
  set -e
  [ $code = 0 ] || { failed=$((failed + 1)) && show_logs; }
  clean
  summary+=("$(printf '%-10s %-7s %3d checks  %3d s' "$stack" "$([ $code = 0 ] && echo passed || echo FAILED)" \
    "$(wc -l <"$work/passed")" $((SECONDS - started)))")
done
remains=$(left)
[ -z "$remains" ] || { failed=$((failed + 1)) && say "left behind: $remains"; }
echo
say "containers: Podman $(podman --version | grep -o '[0-9.]*$'), PostgreSQL $PG_MAJOR, $SECONDS s in all"
printf '  %s\n' "${summary[@]}"
[ "$failed" = 0 ] || say "the log is $LOG"
say "$((${#parts[@]} - failed)) passed, $failed failed"
[ "$failed" = 0 ]
