#!/usr/bin/env bash
# The image runs this once, when it has made a new cluster. For a cluster that you have, run the statement in psql.
set -euo pipefail
psql -v ON_ERROR_STOP=1 -v password="$BACKUP_ROLE_PASSWORD" <<'SQL'
CREATE ROLE walhalla REPLICATION LOGIN PASSWORD :'password';
SQL
