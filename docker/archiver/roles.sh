#!/usr/bin/env bash
# Runs once, in a new cluster: a role for the archiver host and one for standbys, which may do nothing but replicate.
set -euo pipefail

for role in walhalla standby; do
  psql -X -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --set "role=$role" --set "password=$REPLICATION_PASSWORD" \
    <<<'CREATE ROLE :"role" REPLICATION LOGIN PASSWORD :'\''password'\'
  echo "host replication $role all scram-sha-256" >>"$PGDATA/pg_hba.conf"
done
