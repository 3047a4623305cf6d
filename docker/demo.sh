#!/usr/bin/env bash
# demo.sh: archive, back up, destroy the server with its volume, and restore it to a named point in time, in containers.
#
# COMPOSE names the program: `docker compose` by default, podman-compose as well. The images must be built already. All
# that the demo makes is removed at its end, also where it fails.
set -euo pipefail
cd "$(dirname "$0")"

read -ra compose <<<"${COMPOSE:-docker compose} --file compose.demo.yml"
run() {
  printf '\n$ %s\n' "$*"
  "$@"
}
psql() { "${compose[@]}" exec -T --user postgres postgres psql --host 127.0.0.1 -XAtq -v ON_ERROR_STOP=1 "$@"; }
# Over TCP, where the image's first server does not listen.
await_server() {
  local tries
  for ((tries = 0; tries < 240; tries++)); do
    if [ "$(psql -c 'SELECT NOT pg_is_in_recovery()' 2>/dev/null)" = t ]; then
      return 0
    fi
    sleep 1
  done
  echo 'demo.sh: the server did not start' >&2
  "${compose[@]}" logs postgres >&2
  return 1
}
trap '"${compose[@]}" down --volumes >/dev/null 2>&1' EXIT

echo '1. A server that archives to the volume archive'
run "${compose[@]}" up --detach --no-build postgres
await_server

printf '\n2. A base backup, while the server runs\n'
run "${compose[@]}" exec -T --user postgres postgres walhalla backup-push

printf '\n3. A table, a restore point, and an accident\n'
run psql -c 'CREATE TABLE orders AS SELECT id, md5(id::text) FROM generate_series(1, 1000) AS id'
before=$(psql -c 'SELECT md5(string_agg(o::text, chr(10) ORDER BY id)) FROM orders o')
run psql -c "SELECT pg_create_restore_point('before_the_accident')"
run psql -c 'DROP TABLE orders'
segment=$(psql -c 'SELECT pg_walfile_name(pg_switch_wal())')
until [ "$(psql -c "SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver")" = t ]; do sleep 1; done

printf '\n4. The server and its volume are destroyed; only the archive is left\n'
run "${compose[@]}" down
run "${ENGINE:-docker}" volume rm walhalla-demo_data

printf '\n5. The same service again, with an empty volume, and told to restore\n'
export RESTORE=on RECOVERY_TARGET_NAME=before_the_accident
run "${compose[@]}" up --detach --no-build postgres
await_server
after=$(psql -c 'SELECT md5(string_agg(o::text, chr(10) ORDER BY id)) FROM orders o')
if [ "$before" != "$after" ]; then
  echo 'demo.sh: the table is not what it was' >&2
  exit 1
fi
printf '\nThe table is back: %s rows, the same as before.\n' "$(psql -c 'SELECT count(*) FROM orders')"
