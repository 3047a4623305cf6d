#!/usr/bin/env bash
# demo.sh [--store URL] [--keep]: archive, back up, drop a table, and bring it back from the moment before.
#
# Runs a PostgreSQL 17 of its own in a directory of its own, with the store in it unless one is given, and removes all
# of it at the end unless --keep. A store that is given keeps what was written below the demo's system identifier.
set -euo pipefail
cd "$(dirname "$0")/.."

store=
keep=no
while [ $# -gt 0 ]; do
  case $1 in
    --store)
      store=${2:?--store wants a URL}
      shift
      ;;
    --keep) keep=yes ;;
    *)
      echo "usage: demo.sh [--store URL] [--keep]" >&2
      exit 2
      ;;
  esac
  shift
done

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s  %s%s\n' "$dim" "$*" "$plain"; }

# A build that is there spares the wait for the first one. Otherwise it is the development build, the quicker one.
target=${CARGO_TARGET_DIR:-target}
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
program=${WALHALLA_TEST_PROGRAM:-}
step 'What the demo needs: PostgreSQL 17 and Walhalla'
if [ -n "$program" ]; then
  tests/setup.sh --no-rust 17
elif [ -x "$target/release/walhalla" ]; then
  tests/setup.sh 17
  note 'compiling what has changed since the last release build'
  cargo build --quiet --release --locked
  program=$target/release/walhalla
else
  tests/setup.sh 17
  [ -x "$target/debug/walhalla" ] || note 'compiling Walhalla: some five minutes on two cores, the first time only'
  cargo build --locked
  program=$target/debug/walhalla
fi

declare -A stage
while read -r name value; do stage[$name]=$value; done < <(tests/stage.sh "$program")
: "${stage[program]:?stage.sh failed}"

dir=$(mktemp -d "${stage[scratch]}/walhalla-demo.XXXXXX")
as_user() {
  if [ "$(id -u)" = 0 ]; then
    # Without root's home, into which this user cannot look.
    HOME=$dir setpriv --reuid "${stage[uid]}" --regid "${stage[gid]}" --clear-groups "$@"
  else
    "$@"
  fi
}

cleanup() {
  local code=$? cluster
  for cluster in restored primary; do
    [ ! -e "$dir/$cluster/postmaster.pid" ] || as_user pg_ctl -D "$dir/$cluster" -m immediate stop >/dev/null || true
  done
  if [ $keep = yes ]; then
    step "Kept in $dir"
    note "export PATH=$dir/bin:${stage[postgres]}/17/bin:\$PATH WALHALLA_STORE=$WALHALLA_STORE"
    [ "$(id -u)" != 0 ] || note "the servers' user is ${stage[user]}: setpriv --reuid ${stage[uid]} --regid ${stage[gid]} --clear-groups bash"
  else
    rm -rf "$dir"
  fi
  [ $code = 0 ] || echo "demo.sh: failed with exit status $code; --keep keeps $dir" >&2
}
trap cleanup EXIT

mkdir "$dir/bin" "$dir/store"
ln -s "${stage[program]}" "$dir/bin/walhalla"
[ "$(id -u)" != 0 ] || chown -R "${stage[uid]}:${stage[gid]}" "$dir"
export PATH=$dir/bin:${stage[postgres]}/17/bin:$PATH
export WALHALLA_STORE=${store:-file://$dir/store}
export PGUSER=postgres PGDATABASE=postgres PGPORT=5432 TZ=UTC
unset PGPASSWORD PGPASSFILE PGSERVICE PGOPTIONS PGHOSTADDR
cd "$dir"

# Prints a command as one would type it here, and runs it.
run() {
  printf '  $ '
  printf '%s' "$1"
  local word
  for word in "${@:2}"; do
    case $word in *[!A-Za-z0-9_./:=+-]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
  done
  printf '\n'
  as_user "$@" 2>&1 | sed 's/^/    /'
}

start_server() { run pg_ctl --silent -w -D "$1" -l "$1.log" -o "-k $dir -c listen_addresses=" start; }
sql() { as_user psql -h "$dir" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
show_sql() {
  printf '  postgres=# %s\n' "$1"
  sql "$1" | sed 's/^/    /'
}
await() {
  local tries
  for ((tries = 0; tries < 600; tries++)); do
    [ "$(sql "$1" 2>/dev/null)" != t ] || return 0
    sleep 0.1
  done
  echo "demo.sh: waited in vain for: $1" >&2
  return 1
}
# Rows and a checksum of their content, or `(no such table)`.
state_of() {
  if [ "$(sql "select to_regclass('$1') is null")" = t ]; then
    echo '(no such table)'
  else
    sql "select count(*) || ' rows, md5 ' || left(md5(string_agg(t::text, ',' order by id)), 8) from $1 t"
  fi
}

step "1. A cluster that archives to $WALHALLA_STORE"
printf '  $ initdb -D primary -U postgres -k\n'
as_user initdb -D primary -U postgres -A trust -k --no-sync >initdb.log
note 'and in primary/postgresql.conf:'
cat >>primary/postgresql.conf <<'CONF'
archive_mode = on
archive_command = 'walhalla wal-push %p'
CONF
tail -n 2 primary/postgresql.conf | sed 's/^/    /'
start_server primary
show_sql "create table orders (id int primary key, customer text, amount numeric)"
show_sql "create table customers (id int primary key, name text)"
show_sql "insert into orders select n, 'customer ' || n % 97, n * 1.25 from generate_series(1, 20000) n"
show_sql "insert into customers select n, 'customer ' || n from generate_series(1, 97) n"

step '2. A base backup'
backup_start=$EPOCHREALTIME
PGHOST=$dir run walhalla backup-push primary
backup_end=$EPOCHREALTIME
run walhalla backup-list

step '3. Life goes on'
show_sql "insert into orders select n, 'customer ' || n % 97, n * 1.25 from generate_series(20001, 30000) n"
before_orders=$(state_of orders)
before_customers=$(state_of customers)
before_time=$(sql 'select clock_timestamp()')
note "orders: $before_orders"

step '4. The accident'
show_sql 'drop table orders'
show_sql "insert into customers values (98, 'customer 98')"
after_orders=$(state_of orders)
after_customers=$(state_of customers)
segment=$(sql 'select pg_walfile_name(pg_switch_wal())')
note "waiting until the archive holds $segment"
await "select last_archived_wal >= '$segment' from pg_stat_archiver"
run pg_ctl --silent -D primary stop

step "5. Back to $before_time, the moment before"
run walhalla plan --target-time "$before_time"
restore_start=$EPOCHREALTIME
run walhalla restore restored --target-time "$before_time" --target-action promote --archive-mode off
start_server restored
await 'select not pg_is_in_recovery()'
restore_end=$EPOCHREALTIME
restored_orders=$(state_of orders)
restored_customers=$(state_of customers)

seconds() { awk -v from="$1" -v to="$2" 'BEGIN { printf "%.1f s", to - from }'; }
row() { printf '  %-10s  %-26s  %-26s  %-26s\n' "$@"; }
step 'What there was, and what there is'
row table before 'after the accident' restored
row ---------- -------------------------- -------------------------- --------------------------
row orders "$before_orders" "$after_orders" "$restored_orders"
row customers "$before_customers" "$after_customers" "$restored_customers"
echo
note "backup $(seconds "$backup_start" "$backup_end"), restore and recovery $(seconds "$restore_start" "$restore_end")"
[ -z "$store" ] || note "what the demo wrote is still in $store"

if [ "$restored_orders" != "$before_orders" ] || [ "$restored_customers" != "$before_customers" ]; then
  echo 'demo.sh: the restored cluster is not what there was before the accident' >&2
  exit 1
fi
