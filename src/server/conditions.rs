//! What a server says of its settings and of the rights of the session's role, for `check`.

use std::collections::BTreeMap;

use serde::Deserialize;
use sqlx::Row as _;
use walhalla_postgres::SegmentName;

use super::Error;
use super::session::Server;

/// Settings of the server, as far as the role may see them (`pg_settings`).
#[derive(Clone, Debug, Default)]
pub struct ServerSettings(BTreeMap<String, String>);

impl ServerSettings {
    /// A setting's value; `None` where the server has none of this name or the role may not see it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether a setting is `on`; `None` as for [`ServerSettings::get`].
    pub fn is_on(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| value == "on")
    }
}

/// Who the session is, and what it may do.
#[derive(Clone, Debug, Deserialize)]
pub struct Rights {
    /// The role.
    pub role: String,
    /// The database.
    pub database: String,
    /// Whether it may begin and end a backup.
    #[serde(rename = "backup")]
    pub may_back_up: bool,
    /// Whether it may have the server switch to a new segment.
    #[serde(rename = "switch")]
    pub may_switch: bool,
    /// Whether it may see all settings.
    #[serde(rename = "settings")]
    pub may_see_settings: bool,
}

/// What the server's archiver did (`pg_stat_archiver`).
#[derive(Clone, Debug, Deserialize)]
pub struct Archiver {
    /// Files that were archived since the statistics were reset.
    pub archived: i64,
    /// Tries that failed since then.
    pub failures: i64,
    /// The last file it failed on, if it failed since it last succeeded.
    pub failing: Option<String>,
    /// When that was, in words of the server.
    pub failed_at: Option<String>,
}

impl Server {
    /// The settings that `check` looks at.
    pub async fn settings(&mut self) -> Result<ServerSettings, Error> {
        let query = "SELECT COALESCE(pg_catalog.json_object_agg(name, setting), '{}')::pg_catalog.text \
                     FROM pg_catalog.pg_settings WHERE name IN ('wal_level', 'archive_mode', 'archive_command', \
                     'archive_library', 'archive_timeout', 'summarize_wal', 'data_checksums', 'config_file', \
                     'hba_file', 'ident_file', 'data_directory', 'fsync', 'full_page_writes', 'max_wal_senders')";
        let row = self.row("asking for the server's settings", query).await?;
        Ok(ServerSettings(parse(row.get::<&str, _>(0))?))
    }

    /// What the session may do.
    pub async fn rights(&mut self) -> Result<Rights, Error> {
        let query = if self.version.has_backup_start() {
            "SELECT pg_catalog.json_build_object('role', CURRENT_USER, 'database', pg_catalog.current_database(), \
             'backup', pg_catalog.has_function_privilege('pg_catalog.pg_backup_start(text, boolean)', 'EXECUTE') \
                   AND pg_catalog.has_function_privilege('pg_catalog.pg_backup_stop(boolean)', 'EXECUTE'), \
             'switch', pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE'), \
             'settings', pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE'))::pg_catalog.text"
        } else {
            "SELECT pg_catalog.json_build_object('role', CURRENT_USER, 'database', pg_catalog.current_database(), \
             'backup', pg_catalog.has_function_privilege('pg_catalog.pg_start_backup(text, boolean, boolean)', 'EXECUTE') \
                   AND pg_catalog.has_function_privilege('pg_catalog.pg_stop_backup(boolean, boolean)', 'EXECUTE'), \
             'switch', pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE'), \
             'settings', pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE'))::pg_catalog.text"
        };
        let row = self.row("asking for the role's rights", query).await?;
        parse(row.get::<&str, _>(0))
    }

    /// What the archiver did.
    pub async fn archiver(&mut self) -> Result<Archiver, Error> {
        let query = "SELECT pg_catalog.json_build_object('archived', archived_count, 'failures', failed_count, \
                     'failing', CASE WHEN last_failed_time > COALESCE(last_archived_time, '-infinity') \
                     THEN last_failed_wal END, 'failed_at', last_failed_time)::pg_catalog.text \
                     FROM pg_catalog.pg_stat_archiver";
        let row = self.row("asking for the archiver's state", query).await?;
        parse(row.get::<&str, _>(0))
    }

    /// Writes a few bytes of WAL that mean nothing, and has the server switch to a new segment. Returns the segment that is
    /// finished by that.
    pub async fn switch_segment(&mut self) -> Result<SegmentName, Error> {
        // Without a record since the last switch there would be none.
        let query =
            "SELECT pg_catalog.pg_logical_emit_message(true, 'walhalla', 'check')::pg_catalog.text";
        self.row("writing a message to the WAL", query).await?;
        let query = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())";
        let row = self.row("switching to a new segment", query).await?;
        Ok(row.get::<&str, _>(0).parse()?)
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|source| Error::Server {
        doing: "reading the server's answer",
        source: Box::new(sqlx::Error::Decode(Box::new(source))),
    })
}
