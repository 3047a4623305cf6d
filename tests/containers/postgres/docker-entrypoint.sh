#!/usr/bin/env bash
# Makes a cluster in PGDATA if none is there, runs /docker-entrypoint-initdb.d, and becomes the server.
#
# The part of the official image's behaviour that we use, written anew: POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB,
# each also as ..._FILE, POSTGRES_INITDB_ARGS, POSTGRES_HOST_AUTH_METHOD, PGDATA, and `postgres -c ...`.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 1
}

# The value of a variable, or what the file holds that VARIABLE_FILE names, or a default.
value_of() {
  local file=${1}_FILE
  if [ -n "${!file:-}" ]; then
    [ -z "${!1:-}" ] || die "both $1 and $file are set"
    cat "${!file}"
  else
    printf '%s' "${!1:-${2:-}}"
  fi
}

make_cluster() {
  local password auth
  password=$(value_of POSTGRES_PASSWORD)
  auth=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
  [ -n "$password" ] || [ "$auth" = trust ] ||
    die 'the cluster is new and the superuser has no password: set POSTGRES_PASSWORD, or POSTGRES_HOST_AUTH_METHOD=trust'
  # shellcheck disable=SC2086 # several arguments in one variable
  initdb --username="$user" ${password:+--pwfile=/dev/stdin} ${POSTGRES_INITDB_ARGS:-} <<<"$password"
  printf '\nhost all all all %s\n' "$auth" >>"$PGDATA/pg_hba.conf"
}

# run_sql DATABASE [OPTION...]
run_sql() { psql -v ON_ERROR_STOP=1 --no-psqlrc --no-password --username "$user" --dbname "$@"; }

run_init_scripts() {
  local script
  for script in /docker-entrypoint-initdb.d/*; do
    case $script in
      *.sh)
        echo "running $script"
        # shellcheck disable=SC1090
        if [ -x "$script" ]; then "$script"; else . "$script"; fi
        ;;
      *.sql) echo "running $script" && run_sql "$database" --file "$script" ;;
      *.sql.gz) echo "running $script" && gunzip -c "$script" | run_sql "$database" ;;
      *) [ ! -e "$script" ] || echo "ignoring $script" ;;
    esac
  done
}

# The first server listens on the socket only: who waits for the port does not meet it.
initialise() {
  make_cluster
  pg_ctl -D "$PGDATA" -w start -o "$(printf '%q ' "${@:2}" -c listen_addresses= -p "${PGPORT:-5432}")"
  [ "$database" = postgres ] || run_sql postgres --set name="$database" <<<'CREATE DATABASE :"name"'
  run_init_scripts
  pg_ctl -D "$PGDATA" -m fast -w stop
  echo 'the cluster is made; starting the server'
}

[ "${1:0:1}" != - ] || set -- postgres "$@"
if [ "$1" = postgres ]; then
  if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres {} +
    chmod 0700 "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --init-groups env HOME=/var/lib/postgresql "$0" "$@"
  fi
  mkdir -p "$PGDATA"
  user=$(value_of POSTGRES_USER postgres)
  database=$(value_of POSTGRES_DB "$user")
  [ -s "$PGDATA/PG_VERSION" ] || initialise "$@"
fi
exec "$@"
