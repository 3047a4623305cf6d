//! What a drill asks the restored server.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, Connection as _, Either, Row as _,
    TypeInfo as _,
};
use walhalla_postgres::{Lsn, Version};

use super::Error;
use super::account::Account;
use super::check::Verdict;
use super::scratch::Scratch;
use crate::progress::is_interrupted;
use crate::server::old_names::as_known_to;

/// Settings of each session, which win over those that `ALTER ROLE` and `ALTER DATABASE` left in the catalogs.
pub(super) const SESSION: [(&str, &str); 5] = [
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("default_transaction_read_only", "off"),
];
/// How often the user's wish to end is looked for.
const PAUSE: Duration = Duration::from_millis(100);
/// How many false results of a file are told.
const MOST_TOLD: usize = 10;

/// What is known of the restored server.
#[derive(Clone, Debug)]
pub struct Session {
    /// The superuser as whom one connects.
    pub role: String,
    /// The server's version.
    pub version: Version,
    /// Whether `amcheck` can be installed; false before 14, where nobody asks.
    pub has_amcheck: bool,
    /// When the last transaction ended that was replayed.
    pub reached_time: Option<Timestamp>,
    /// Up to where WAL was replayed.
    pub reached_lsn: Option<Lsn>,
    /// Subscriptions that are enabled in the catalog.
    pub subscriptions: Vec<String>,
}

/// Connects, and asks the server what it reached.
///
/// # Errors
/// [`Error::NoRole`]; [`Error::Query`].
pub async fn open(
    scratch: &Scratch,
    account: &Account,
    named: Option<&str>,
    version: Version,
) -> Result<Session, Error> {
    let roles = match named {
        Some(role) => vec![role.to_owned()],
        None => usual_roles(account),
    };
    let mut failure = None;
    for role in &roles {
        match connect(scratch, role, "template1").await {
            Ok(connection) => return ask(connection, role, version).await,
            Err(error) => failure = Some(error),
        }
    }
    let source = failure.unwrap_or(sqlx::Error::WorkerCrashed);
    Err(Error::NoRole {
        roles,
        source: Box::new(source),
    })
}

/// The names that superusers have as a rule: `postgres`, and that of who ran `initdb`.
fn usual_roles(account: &Account) -> Vec<String> {
    let mut roles = vec!["postgres".to_owned()];
    roles.extend(account.name());
    roles.dedup();
    roles
}

async fn connect(
    scratch: &Scratch,
    role: &str,
    database: &str,
) -> Result<PgConnection, sqlx::Error> {
    PgConnectOptions::new_without_pgpass()
        .socket(scratch.path())
        .port(5432)
        .username(role)
        .database(database)
        .application_name("walhalla drill")
        .ssl_mode(PgSslMode::Disable)
        .options(SESSION)
        .statement_cache_capacity(0)
        .disable_statement_logging()
        .connect()
        .await
}

async fn ask(mut connection: PgConnection, role: &str, version: Version) -> Result<Session, Error> {
    let query = "SELECT (pg_catalog.date_part('epoch', pg_catalog.pg_last_xact_replay_timestamp()) * 1000000)::pg_catalog.int8, \
                 pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text, \
                 CASE WHEN pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog.>=) 140000 \
                 THEN EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'amcheck') ELSE false END, \
                 ARRAY (SELECT s.subname::pg_catalog.text || ' of database ' || d.datname FROM pg_catalog.pg_subscription s \
                 JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE s.subenabled ORDER BY 1)";
    let query = AssertSqlSafe(as_known_to(version, query));
    let asked = sqlx::query(query).fetch_one(&mut connection).await;
    let failed = |source| Error::Query {
        doing: "telling what was replayed",
        source: Box::new(source),
    };
    let row: PgRow = asked.map_err(failed)?;
    drop(connection.close().await);
    let micros: Option<i64> = row.get(0);
    let lsn: Option<String> = row.get(1);
    Ok(Session {
        role: role.to_owned(),
        version,
        has_amcheck: row.get(2),
        reached_time: micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
        reached_lsn: lsn.and_then(|lsn| lsn.parse().ok()),
        subscriptions: row.get(3),
    })
}

/// Runs the text of a file in a database. It fails when the server reports an error, or a result holds a boolean that is
/// false; a null is not false.
///
/// # Errors
/// [`Error::Interrupted`].
pub async fn run_file(
    scratch: &Scratch,
    role: &str,
    database: &str,
    text: &str,
) -> Result<Verdict, Error> {
    let work = async {
        let mut connection = connect(scratch, role, database).await?;
        let findings = findings(&mut connection, text).await;
        drop(connection.close().await);
        findings
    };
    let done = tokio::select! {
        done = work => done,
        () = interruption() => return Err(Error::Interrupted),
    };
    Ok(match done {
        Ok(findings) if findings.is_empty() => Verdict::Passed,
        Ok(findings) => Verdict::Failed(findings.join("\n")),
        Err(error) => Verdict::Failed(crate::output::chain(&error)),
    })
}

/// What results of the queries are false.
async fn findings(connection: &mut PgConnection, text: &str) -> Result<Vec<String>, sqlx::Error> {
    let mut results = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).fetch_many(connection);
    let (mut query, mut row, mut findings) = (1, 0, Vec::new());
    while let Some(result) = results.try_next().await? {
        match result {
            Either::Left(_) => (query, row) = (query + 1, 0),
            Either::Right(found) => {
                row += 1;
                let columns = false_columns(&found)?;
                if findings.len() < MOST_TOLD {
                    findings.extend(
                        columns
                            .into_iter()
                            .map(|column| format!("query {query}, row {row}: {column} is false")),
                    );
                }
            }
        }
    }
    Ok(findings)
}

fn false_columns(row: &PgRow) -> Result<Vec<String>, sqlx::Error> {
    let mut found = Vec::new();
    for column in row.columns() {
        let is_boolean = column.type_info().name() == "BOOL";
        if is_boolean && row.try_get::<Option<bool>, _>(column.ordinal())? == Some(false) {
            found.push(column.name().to_owned());
        }
    }
    Ok(found)
}

async fn interruption() {
    while !is_interrupted() {
        tokio::time::sleep(PAUSE).await;
    }
}
