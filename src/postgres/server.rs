//! A connection to a running server: what a base backup asks of it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};
use sqlx::{ConnectOptions, Connection, Row};

use super::{Error, Lsn, SystemIdentifier, Version};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How far apart a server's start and its `postmaster.pid` may be.
const START_TOLERANCE_SECONDS: i64 = 120;

/// A session on a server. Dropping it ends a backup that was begun and not stopped.
#[derive(Debug)]
pub struct Server {
    connection: PgConnection,
    /// The server's version.
    pub version: Version,
}

/// What a backup must know of the server before it begins.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The setting `archive_mode`.
    pub archive_mode: String,
    /// The settings `archive_command` and `archive_library`, whichever is set; empty when neither is or they may not be read.
    pub archiver: String,
    /// The server's clock.
    pub now: Timestamp,
    /// `server_version`, in full.
    pub version_text: String,
}

/// What the server returned when a backup was stopped.
#[derive(Clone, Debug)]
pub struct StoppedBackup {
    /// WAL up to here makes the backup consistent.
    pub stop_lsn: Lsn,
    /// Content of the file `backup_label`.
    pub label: String,
    /// Content of the file `tablespace_map`; empty without tablespaces.
    pub tablespace_map: String,
    /// The server's clock after the stop.
    pub time: Timestamp,
    /// `txid_current_snapshot()` just before the stop.
    pub snapshot: String,
}

/// The archiver's own account (`pg_stat_archiver`).
#[derive(Clone, Debug)]
pub struct ArchiverState {
    /// The last file it failed on, if it failed since it last succeeded.
    pub failing: Option<String>,
    /// Files it archived since the statistics were reset.
    pub archived: i64,
}

impl Server {
    /// Connects as libpq's `PG*` variables and password file say; where they name no server, to the
    /// one that runs in `pgdata`.
    ///
    /// # Errors
    /// [`Error::Server`] with the driver's reason.
    pub async fn connect(pgdata: &Path) -> Result<Self, Error> {
        let options = options(pgdata)?;
        let doing = "connecting to PostgreSQL";
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await;
        let connection = match connect {
            Ok(result) => result.map_err(|source| Error::Server {
                doing,
                source: Box::new(source),
            })?,
            Err(_) => {
                return Err(Error::ServerTimeout {
                    doing,
                    seconds: CONNECT_TIMEOUT.as_secs(),
                });
            }
        };
        Self::prepare(connection).await
    }

    /// Learns the version and lifts the limits that would end a long, idle session.
    async fn prepare(connection: PgConnection) -> Result<Self, Error> {
        let version = Version::parse("10").expect("10 is in the table");
        let mut server = Self {
            connection,
            version,
        };
        let row = server
            .row(
                "asking for the server's version",
                "SELECT current_setting('server_version_num')::int4",
            )
            .await?;
        server.version = Version::of_server(u32::try_from(row.get::<i32, _>(0)).unwrap_or(0))?;
        let lift = "SELECT count(set_config(name, '0', false)) FROM pg_settings \
                    WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout')";
        server.row("setting the session's limits", lift).await?;
        Ok(server)
    }

    /// The server's facts.
    pub async fn facts(&mut self) -> Result<Facts, Error> {
        let query = "SELECT (SELECT system_identifier::text FROM pg_control_system()), pg_is_in_recovery(), \
                     current_setting('archive_mode'), \
                     COALESCE((SELECT string_agg(setting, '') FROM pg_settings \
                               WHERE name IN ('archive_command', 'archive_library') AND setting <> '(disabled)'), ''), \
                     (EXTRACT(epoch FROM clock_timestamp()) * 1000000)::int8, current_setting('server_version')";
        let row = self.row("asking for the server's state", query).await?;
        Ok(Facts {
            system_identifier: row.get::<String, _>(0).parse()?,
            in_recovery: row.get(1),
            archive_mode: row.get(2),
            archiver: row.get(3),
            now: timestamp(row.get(4))?,
            version_text: row.get(5),
        })
    }

    /// Whether the server runs in `pgdata`: its start time and port are those in `postmaster.pid` (pidfile.h).
    pub async fn runs_in(&mut self, pgdata: &Path) -> Result<bool, Error> {
        let Some(pid_file) = PidFile::read(pgdata) else {
            return Ok(false);
        };
        let query =
            "SELECT EXTRACT(epoch FROM pg_postmaster_start_time())::int8, current_setting('port')";
        let row = self
            .row("asking for the server's start time", query)
            .await?;
        let apart = row.get::<i64, _>(0).abs_diff(pid_file.started);
        Ok(apart <= START_TOLERANCE_SECONDS.unsigned_abs()
            && row.get::<String, _>(1) == pid_file.port)
    }

    /// Begins a non-exclusive backup with an immediate checkpoint; returns where replay would begin.
    pub async fn start_backup(&mut self, label: &str) -> Result<Lsn, Error> {
        let query = if self.version.has_backup_start() {
            "SELECT pg_backup_start($1, true)::text"
        } else {
            "SELECT pg_start_backup($1, true, false)::text"
        };
        let doing = "starting the backup";
        let row = sqlx::query(query)
            .bind(label)
            .fetch_one(&mut self.connection)
            .await;
        row.map_err(|source| Error::Server {
            doing,
            source: Box::new(source),
        })?
        .get::<String, _>(0)
        .parse()
    }

    /// Ends the backup without waiting for the archive.
    pub async fn stop_backup(&mut self) -> Result<StoppedBackup, Error> {
        let call = match (
            self.version.has_backup_start(),
            self.version.can_skip_archive_wait(),
        ) {
            (true, _) => "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)",
            (false, true) => {
                "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
            }
            (false, false) => "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false)",
        };
        // After the stop it would see transactions end that the backup does not hold.
        let query = "SELECT txid_current_snapshot()::text";
        let before = self
            .row("asking for the transactions that run", query)
            .await?;
        let stopped = self.row("stopping the backup", call).await?;
        let query = "SELECT (EXTRACT(epoch FROM clock_timestamp()) * 1000000)::int8";
        let after = self
            .row("asking for the time of the backup's end", query)
            .await?;
        Ok(StoppedBackup {
            stop_lsn: stopped.get::<String, _>(0).parse()?,
            label: stopped.get(1),
            tablespace_map: stopped.get(2),
            time: timestamp(after.get(0))?,
            snapshot: before.get(0),
        })
    }

    /// What the archiver says of itself.
    pub async fn archiver_state(&mut self) -> Result<ArchiverState, Error> {
        let query = "SELECT CASE WHEN last_failed_time > COALESCE(last_archived_time, '-infinity') \
                     THEN last_failed_wal END, archived_count FROM pg_stat_archiver";
        let row = self.row("asking for the archiver's state", query).await?;
        Ok(ArchiverState {
            failing: row.get(0),
            archived: row.get(1),
        })
    }

    async fn row(&mut self, doing: &'static str, query: &'static str) -> Result<PgRow, Error> {
        let row = sqlx::query(query).fetch_one(&mut self.connection).await;
        row.map_err(|source| Error::Server {
            doing,
            source: Box::new(source),
        })
    }

    /// Closes the session.
    pub async fn close(self) {
        // The server forgets the session either way.
        drop(self.connection.close().await);
    }
}

/// What is read of `postmaster.pid` (miscinit.c, `CreateLockFile`).
struct PidFile {
    started: i64,
    port: String,
    socket_directory: String,
}

impl PidFile {
    fn read(pgdata: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
        let mut lines = text.lines().skip(2).map(str::trim);
        Some(Self {
            started: lines.next()?.parse().ok()?,
            port: lines.next()?.to_owned(),
            socket_directory: lines.next()?.to_owned(),
        })
    }
}

/// What libpq's variables say, completed by where the server of `pgdata` listens.
///
/// Goes by way of a URL, since that is how the driver looks into the password file with all of it.
fn options(pgdata: &Path) -> Result<PgConnectOptions, Error> {
    let is_set = |name| std::env::var_os(name).is_some();
    if let Ok(mode) = std::env::var("PGSSLMODE") {
        mode.parse::<PgSslMode>()
            .map_err(|_| Error::invalid("PGSSLMODE", mode))?;
    }
    let mut words = Vec::new();
    if let Some(pid_file) = PidFile::read(pgdata) {
        if !is_set("PGHOST") && !is_set("PGHOSTADDR") && !pid_file.socket_directory.is_empty() {
            words.push(("host", pid_file.socket_directory));
        }
        if !is_set("PGPORT") {
            words.push(("port", pid_file.port));
        }
    }
    if !is_set("PGDATABASE") {
        words.push(("dbname", "postgres".to_owned()));
    }
    let words: Vec<String> = words
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    let url = format!("postgres://?{}", words.join("&"));
    let doing = "reading the connection's settings";
    let mut options: PgConnectOptions = url.parse().map_err(|source| Error::Server {
        doing,
        source: Box::new(source),
    })?;
    if !is_set("PGAPPNAME") {
        options = options.application_name("walhalla");
    }
    Ok(options
        .statement_cache_capacity(0)
        .disable_statement_logging())
}

fn encoded(value: &str) -> String {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn timestamp(microseconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_microsecond(microseconds)
        .map_err(|_| Error::invalid("time", microseconds.to_string()))
}
