//! A connection to a running server: what a base backup asks of it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use walhalla_postgres::{Lsn, SystemIdentifier, Version};

use super::connection::{self, Attempt, Listens, Surroundings, Tried, Wanted, note};
use super::old_names::as_known_to;
use super::{Error, control_file};

/// How far apart a server's start and its `postmaster.pid` may be.
const START_TOLERANCE_SECONDS: i64 = 120;

/// A session on a server. Dropping it ends a backup that was begun and not stopped.
#[derive(Debug)]
pub struct Server {
    connection: PgConnection,
    /// The server's version.
    pub version: Version,
    /// Where it was reached: the socket, or host and port.
    pub place: String,
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
    /// When its postmaster started.
    pub started: Timestamp,
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
    /// Of a standby: when the last transaction that it has replayed ended, by the clock of the server that ran it. Where it
    /// has replayed none since its start, no later than its checkpoint was made.
    pub replayed_time: Option<Timestamp>,
}

/// What the server reads in its own control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnControl {
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Where the record of the latest checkpoint is.
    pub checkpoint: Lsn,
    /// Its redo position.
    pub redo: Lsn,
    /// How far a standby must replay to be consistent.
    pub min_recovery_point: Lsn,
    /// When the file was last written, in seconds since 1970.
    pub written: i64,
}

/// The archiver's own account (`pg_stat_archiver`).
#[derive(Clone, Debug, Default)]
pub struct ArchiverState {
    /// The last file it failed on, if it failed since it last succeeded.
    pub failing: Option<String>,
    /// When it last failed, by the server's clock.
    pub failed_at: Option<String>,
    /// Files it archived since the statistics were reset.
    pub archived: i64,
}

impl Server {
    /// Connects as libpq's variables, service and password files say; where they name no server, to the one that runs in
    /// `pgdata`.
    ///
    /// # Errors
    /// [`Error::Connection`] for settings that cannot be followed, [`Error::Server`] with the driver's reason.
    pub async fn connect(pgdata: &Path) -> Result<Self, Error> {
        let ways = ways(Some(pgdata))?;
        let mut failures: Vec<(&Attempt, Error)> = Vec::new();
        for (attempt, wanted) in ways.tries() {
            match Self::attempt(attempt, ways.timeout, wanted).await {
                Ok(server) => return Ok(server),
                Err(error) => note(&mut failures, attempt, error),
            }
        }
        Err(most_telling(failures))
    }

    async fn attempt(
        attempt: &Attempt,
        timeout: Option<Duration>,
        wanted: Wanted,
    ) -> Result<Self, Error> {
        let connect = attempt.options.connect();
        let connected = match timeout {
            Some(limit) => {
                let timed_out = |_| Error::ConnectionTimeout {
                    whom: attempt.whom(),
                    seconds: limit.as_secs(),
                };
                tokio::time::timeout(limit, connect)
                    .await
                    .map_err(timed_out)?
            }
            None => connect.await,
        };
        let connection = connected.map_err(|source| Error::NoConnection {
            whom: attempt.whom(),
            others: Vec::new(),
            source: Box::new(source),
        })?;
        let mut server = Self::prepare(connection, attempt.place.clone()).await?;
        if server.is(wanted).await? {
            return Ok(server);
        }
        server.close().await;
        Err(Error::UnwantedServer {
            place: attempt.place.clone(),
        })
    }

    /// Whether the session is on a server of the kind that is wanted (fe-connect.c, `CONNECTION_CHECK_TARGET`).
    async fn is(&mut self, wanted: Wanted) -> Result<bool, Error> {
        let query = "SELECT pg_catalog.pg_is_in_recovery(), \
                     pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on'";
        let row = self.row("asking which kind of server it is", query).await?;
        let (in_recovery, is_read_only): (bool, bool) = (row.get(0), row.get(1));
        Ok(match wanted {
            Wanted::Any | Wanted::PreferStandby => true,
            Wanted::ReadWrite => !in_recovery && !is_read_only,
            Wanted::ReadOnly => in_recovery || is_read_only,
            Wanted::Primary => !in_recovery,
            Wanted::Standby => in_recovery,
        })
    }

    /// Learns the version and lifts the limits that would end a long, idle session.
    async fn prepare(connection: PgConnection, place: String) -> Result<Self, Error> {
        let version = Version::parse("10").expect("10 is in the table");
        let mut server = Self {
            connection,
            version,
            place,
        };
        // Before anything else: whatever is called by its name is PostgreSQL's own, whoever may create things in the
        // database. `pg_temp` last, where it hides nothing.
        let doing = "setting the session's search_path";
        sqlx::query("SET search_path = pg_catalog, pg_temp")
            .execute(&mut server.connection)
            .await
            .map_err(|source| Error::Server {
                doing,
                source: Box::new(source),
            })?;
        let row = server
            .row(
                "asking for the server's version",
                "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4",
            )
            .await?;
        server.version = Version::of_server(u32::try_from(row.get::<i32, _>(0)).unwrap_or(0))?;
        let lift = "SELECT pg_catalog.count(pg_catalog.set_config(name, '0', false)) FROM pg_catalog.pg_settings \
                    WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout')";
        server.row("setting the session's limits", lift).await?;
        Ok(server)
    }

    /// The server's facts.
    pub async fn facts(&mut self) -> Result<Facts, Error> {
        let query = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), pg_catalog.pg_is_in_recovery(), \
                     pg_catalog.current_setting('archive_mode'), \
                     COALESCE((SELECT pg_catalog.string_agg(setting, '') FROM pg_catalog.pg_settings \
                               WHERE name IN ('archive_command', 'archive_library') AND setting <> '(disabled)'), ''), \
                     (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::int8, pg_catalog.current_setting('server_version'), \
                     (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8";
        let row = self.row("asking for the server's state", query).await?;
        Ok(Facts {
            system_identifier: row.get::<String, _>(0).parse()?,
            in_recovery: row.get(1),
            archive_mode: row.get(2),
            archiver: row.get(3),
            now: timestamp(row.get(4))?,
            version_text: row.get(5),
            started: timestamp(row.get(6))?,
        })
    }

    /// Whether the server runs in `pgdata`: its start time and port are those in `postmaster.pid` (pidfile.h), and its
    /// process, if it is one of this host, does not work in another directory.
    pub async fn runs_in(&mut self, pgdata: &Path) -> Result<bool, Error> {
        let Some(pid_file) = PidFile::read(pgdata) else {
            return Ok(false);
        };
        let query = "SELECT EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time())::int8, pg_catalog.current_setting('port'), \
                     pg_catalog.pg_backend_pid()";
        let row = self
            .row("asking for the server's start time", query)
            .await?;
        let apart = row.get::<i64, _>(0).abs_diff(pid_file.started);
        Ok(apart <= START_TOLERANCE_SECONDS.unsigned_abs()
            && row.get::<String, _>(1) == pid_file.port
            && !works_elsewhere(row.get(2), pgdata))
    }

    /// Begins a non-exclusive backup with an immediate checkpoint; returns where replay would begin.
    pub async fn start_backup(&mut self, label: &str) -> Result<Lsn, Error> {
        let query = if self.version.has_backup_start() {
            "SELECT pg_catalog.pg_backup_start($1, true)::text"
        } else {
            "SELECT pg_catalog.pg_start_backup($1, true, false)::text"
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
        .map_err(Error::from)
    }

    /// Ends the backup without waiting for the archive.
    pub async fn stop_backup(&mut self) -> Result<StoppedBackup, Error> {
        let call = match (
            self.version.has_backup_start(),
            self.version.can_skip_archive_wait(),
        ) {
            (true, _) => {
                "SELECT lsn::text, labelfile, spcmapfile FROM pg_catalog.pg_backup_stop(false)"
            }
            (false, true) => {
                "SELECT lsn::text, labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false, false)"
            }
            (false, false) => {
                "SELECT lsn::text, labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false)"
            }
        };
        // After the stop it would see transactions end that the backup does not hold.
        let query = "SELECT pg_catalog.txid_current_snapshot()::text";
        let before = self
            .row("asking for the transactions that run", query)
            .await?;
        let stopped = self.row("stopping the backup", call).await?;
        // A checkpoint's time has no fraction, and is taken before its redo position.
        let query = "SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::int8, \
                     CASE WHEN pg_catalog.pg_is_in_recovery() THEN (EXTRACT(epoch FROM COALESCE( \
                     pg_catalog.pg_last_xact_replay_timestamp(), \
                     (SELECT checkpoint_time FROM pg_catalog.pg_control_checkpoint()) + '1 second'::pg_catalog.interval \
                     )) * 1000000)::int8 END";
        let after = self
            .row("asking for the time of the backup's end", query)
            .await?;
        let replayed: Option<i64> = after.get(1);
        Ok(StoppedBackup {
            stop_lsn: stopped.get::<String, _>(0).parse()?,
            label: stopped.get(1),
            tablespace_map: stopped.get(2),
            time: timestamp(after.get(0))?,
            snapshot: before.get(0),
            replayed_time: replayed.map(timestamp).transpose()?,
        })
    }

    /// Where the server's WAL ends, or what a standby has of it: no page on its disk is newer.
    pub async fn wal_end(&mut self) -> Result<Lsn, Error> {
        let query = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() \
                     THEN COALESCE(GREATEST(pg_catalog.pg_last_wal_replay_lsn(), pg_catalog.pg_last_wal_receive_lsn()), '0/0') \
                     ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text";
        let row = self.row("asking for the end of WAL", query).await?;
        Ok(row.get::<String, _>(0).parse()?)
    }

    /// What the server reads in its own control file at this moment.
    pub async fn own_control(&mut self) -> Result<OwnControl, Error> {
        let query = "SELECT pg_catalog.pg_is_in_recovery(), checkpoint_lsn::pg_catalog.text, redo_lsn::pg_catalog.text, \
                     min_recovery_end_lsn::pg_catalog.text, \
                     pg_catalog.date_part('epoch', pg_control_last_modified)::pg_catalog.int8 \
                     FROM pg_catalog.pg_control_checkpoint(), pg_catalog.pg_control_recovery(), \
                     pg_catalog.pg_control_system()";
        let row = self.row("asking for the control file", query).await?;
        Ok(OwnControl {
            in_recovery: row.get(0),
            checkpoint: row.get::<String, _>(1).parse()?,
            redo: row.get::<String, _>(2).parse()?,
            min_recovery_point: row.get::<String, _>(3).parse()?,
            written: row.get(4),
        })
    }

    /// What the archiver says of itself.
    pub async fn archiver_state(&mut self) -> Result<ArchiverState, Error> {
        let query = "SELECT CASE WHEN last_failed_time > COALESCE(last_archived_time, '-infinity') \
                     THEN last_failed_wal END, archived_count, \
                     last_failed_time::pg_catalog.text FROM pg_catalog.pg_stat_archiver";
        let row = self.row("asking for the archiver's state", query).await?;
        Ok(ArchiverState {
            failing: row.get(0),
            archived: row.get(1),
            failed_at: row.get(2),
        })
    }

    pub(super) async fn row(
        &mut self,
        doing: &'static str,
        query: &'static str,
    ) -> Result<PgRow, Error> {
        let query = AssertSqlSafe(as_known_to(self.version, query));
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

impl Tried for Error {
    /// In the driver's words: it has no other sign for this.
    fn is_without_tls(&self) -> bool {
        let Self::NoConnection { source, .. } = self else {
            return false;
        };
        matches!(&**source, sqlx::Error::Tls(cause) if cause.to_string() == "server does not support TLS")
    }
}

/// Of several failures the last one of a server that was there, or else the last; the others are named in it.
fn most_telling(mut failures: Vec<(&Attempt, Error)>) -> Error {
    let is_absence = |error: &Error| match error {
        Error::NoConnection { source, .. } => matches!(&**source, sqlx::Error::Io(_)),
        _ => false,
    };
    let telling = failures.iter().rposition(|(_, error)| !is_absence(error));
    let at = telling.or(failures.len().checked_sub(1));
    let Some((_, mut error)) = at.map(|at| failures.remove(at)) else {
        return walhalla_postgres::Error::invalid("PGHOST", "").into();
    };
    if let Error::NoConnection { others, .. } = &mut error {
        let shown = failures.iter().map(|(attempt, error)| {
            let cause = std::error::Error::source(error)
                .map_or_else(|| error.to_string(), ToString::to_string);
            format!("{} ({cause})", attempt.place)
        });
        *others = shown.collect();
        others.dedup();
    }
    error
}

/// The ways to a server that libpq's variables, service and password files name; where they name none, to the one that runs
/// in `pgdata`.
///
/// # Errors
/// [`Error::Connection`].
pub fn ways(pgdata: Option<&Path>) -> Result<connection::Connection, Error> {
    let surroundings = Surroundings {
        variable: &|name| std::env::var_os(name),
        home: std::env::home_dir(),
        user: &|| whoami::username().map_err(|_| rustix::process::geteuid().as_raw()),
    };
    let listens = pgdata.and_then(|pgdata| PidFile::read(pgdata)?.listens(pgdata));
    connection::connection(&surroundings, listens.as_ref())
}

/// Whether the process `pid` is seen on this host to work in another data directory of the same cluster than `pgdata`: a
/// server's processes work in its own (miscinit.c, `ChangeToDataDir`). A number that is another process here shows nothing.
fn works_elsewhere(pid: i32, pgdata: &Path) -> bool {
    let place = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let cluster = |path: &Path| Some(control_file::read(path).ok()?.system_identifier);
    let works_in = PathBuf::from(format!("/proc/{pid}/cwd"));
    let is_another = place(&works_in).is_some_and(|there| Some(there) != place(pgdata));
    is_another && cluster(&works_in).is_some_and(|there| Some(there) == cluster(pgdata))
}

/// What is read of `postmaster.pid` (miscinit.c, `CreateLockFile`).
struct PidFile {
    started: i64,
    port: String,
    socket_directory: String,
    address: String,
}

impl PidFile {
    fn read(pgdata: &Path) -> Option<Self> {
        let text = std::fs::read(pgdata.join("postmaster.pid")).ok()?;
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().skip(2).map(str::trim);
        Some(Self {
            started: lines.next()?.parse().ok()?,
            port: lines.next()?.to_owned(),
            socket_directory: lines.next()?.to_owned(),
            address: lines.next().unwrap_or_default().to_owned(),
        })
    }

    /// Where it listens. A socket directory may be meant from the data directory, in which the server runs.
    fn listens(&self, pgdata: &Path) -> Option<Listens> {
        let directory = self.socket_directory.as_str();
        let socket_directory = match directory {
            "" => None,
            name if name.starts_with('@') => Some(PathBuf::from(name)),
            path => Some(std::path::absolute(pgdata.join(path)).ok()?),
        };
        let address = match self.address.as_str() {
            "" => None,
            // Every address, this host's own among them (pg_ctl.c reads it so).
            "*" | "0.0.0.0" => Some("localhost".to_owned()),
            "::" => Some("::1".to_owned()),
            address => Some(address.to_owned()),
        };
        Some(Listens {
            socket_directory,
            address,
            port: self.port.parse().ok()?,
        })
    }
}

fn timestamp(microseconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_microsecond(microseconds)
        .map_err(|_| walhalla_postgres::Error::invalid("time", microseconds.to_string()).into())
}
