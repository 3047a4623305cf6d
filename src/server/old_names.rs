//! Names of 9.6: queries are written as 10 and later know them.

use std::borrow::Cow;

use walhalla_postgres::Version;

/// Names from 10 on, and what 9.6 has in their place.
const OF_9_6: [(&str, &str); 11] = [
    ("pg_last_wal_replay_lsn", "pg_last_xlog_replay_location"),
    ("pg_last_wal_receive_lsn", "pg_last_xlog_receive_location"),
    (
        "pg_current_wal_insert_lsn",
        "pg_current_xlog_insert_location",
    ),
    ("pg_walfile_name", "pg_xlogfile_name"),
    ("pg_switch_wal", "pg_switch_xlog"),
    ("min_recovery_end_lsn", "min_recovery_end_location"),
    ("checkpoint_lsn", "checkpoint_location"),
    ("redo_lsn", "redo_location"),
    (
        "pg_stop_backup(boolean, boolean)",
        "pg_stop_backup(boolean)",
    ),
    // Only superusers see all settings, and read files.
    (
        "pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')",
        "(SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) CURRENT_USER)",
    ),
    // There are no subscriptions.
    (
        "pg_catalog.pg_subscription s",
        "(SELECT NULL AS subname, NULL::pg_catalog.oid AS subdbid, false AS subenabled) s",
    ),
];

/// `query` as a server of `version` understands it.
pub fn as_known_to(version: Version, query: &str) -> Cow<'_, str> {
    if version.has_wal_names() {
        return query.into();
    }
    let replaced = |query: String, (name, old): (&str, &str)| query.replace(name, old);
    OF_9_6.into_iter().fold(query.to_owned(), replaced).into()
}
