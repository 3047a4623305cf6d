#!/bin/sh
# to-target.sh plan|restore PGDATA [OPTION...]: Walhalla's command, with the recovery target that the environment names.
# By its whole path, because the restored server runs it from there in recovery.
set -eu
mkdir -p "$(dirname "$2")"
exec /usr/local/bin/walhalla "$@" \
  ${TARGET_NAME:+--target-name "$TARGET_NAME"} \
  ${TARGET_TIME:+--target-time "$TARGET_TIME"} \
  ${TARGET_XID:+--target-xid "$TARGET_XID"} \
  ${TARGET_LSN:+--target-lsn "$TARGET_LSN"} \
  ${TARGET_EXCLUSIVE:+--target-exclusive} \
  ${TARGET_ACTION:+--target-action "$TARGET_ACTION"} \
  ${TARGET_TIMELINE:+--target-timeline "$TARGET_TIMELINE"}
