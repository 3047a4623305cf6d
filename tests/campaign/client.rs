//! Clients that commit rows, and what they may claim of each.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::Scope;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};
use tokio::runtime::Runtime;
use walhalla_postgres::Lsn;

use crate::model::{Commit, Moment};
use crate::support::Cluster;

/// One connection, used by one thread.
pub struct Client {
    runtime: Runtime,
    connection: PgConnection,
    waits_for_store: bool,
}

/// Why a client does not go on: the server is gone.
#[derive(Debug)]
pub struct Gone;

impl From<sqlx::Error> for Gone {
    fn from(error: sqlx::Error) -> Self {
        // An answer of the server is not what a server says that is gone, unless it is about to go.
        let code = error.as_database_error();
        let code = code.and_then(sqlx::error::DatabaseError::code);
        let is_end = code.as_ref().is_none_or(|code| code.starts_with("57P"));
        assert!(is_end, "the server refuses a client: {error}");
        Self
    }
}

/// How long a server may take to answer a client before the campaign gives it up.
const PATIENCE: Duration = Duration::from_mins(1);

/// The rows are told by their ids alone, so that a restored one can be checked; now and then one is long.
const INSERT: &str = "with counted as (update tally set n = n + 1 where bucket = $1 % 8) \
     insert into ledger values ($1, repeat(md5($1::text), ledger_words($1))) returning txid_current()";

const PREPARE: [&str; 6] = [
    "create table ledger (id bigint primary key, body text not null)",
    "alter table ledger alter body set storage external",
    "create table tally (bucket bigint primary key, n bigint not null)",
    "insert into tally select g, 0 from generate_series(0, 7) g",
    "create function ledger_words(id bigint) returns int language sql immutable as \
     'select case when id % 29 = 0 then 4000 else 1 + (id % 17)::int end'",
    "create extension amcheck",
];

/// Every row is what its id says, and what one transaction did is there in both tables.
const CHECK: &str = "select count(*) filter (where body <> repeat(md5(id::text), ledger_words(id)))::text, \
     ((select sum(n) from tally) - count(*))::text from ledger";

impl Client {
    pub fn connect(cluster: &Cluster) -> Result<Self, Gone> {
        let find = |name: &str| {
            let mut pairs = cluster.connection().into_iter();
            pairs.find(|(key, _)| key == name).unwrap().1
        };
        let options = PgConnectOptions::new_without_pgpass()
            .socket(find("PGHOST"))
            .port(find("PGPORT").parse().unwrap())
            .username("postgres")
            .database("postgres")
            .application_name("campaign")
            .disable_statement_logging();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let connection = runtime.block_on(async {
            let connecting = tokio::time::timeout(PATIENCE, options.connect());
            connecting.await.expect("the server takes a connection")
        })?;
        Ok(Self {
            runtime,
            connection,
            waits_for_store: false,
        })
    }

    /// What it commits from now on is acknowledged when a receiver has stored it.
    pub fn wait_for_store(mut self) -> Result<Self, Gone> {
        let set = sqlx::query("set synchronous_commit = on").execute(&mut self.connection);
        self.runtime.block_on(within(set))?;
        self.waits_for_store = true;
        Ok(self)
    }

    /// Makes the tables.
    pub fn prepare(&mut self) {
        for statement in PREPARE {
            self.ask(statement);
        }
    }

    /// The next position and the server's clock.
    pub fn look(&mut self) -> Result<Moment, Gone> {
        let query = sqlx::query(
            "select pg_current_wal_insert_lsn()::text, (extract(epoch from clock_timestamp()) * 1000000)::int8",
        );
        let fetch = query.fetch_one(&mut self.connection);
        let row = self.runtime.block_on(within(fetch))?;
        Ok(Moment {
            lsn: row.get::<String, _>(0).parse().unwrap(),
            time: Timestamp::from_microsecond(row.get(1)).unwrap(),
        })
    }

    /// Commits a row. The error holds what may have been committed.
    pub fn commit(&mut self, id: i64, timeline: u32) -> Result<Commit, Option<Commit>> {
        let from = self.look().map_err(|Gone| None)?;
        let mut commit = Commit {
            id,
            timeline,
            xid: None,
            is_acknowledged: false,
            waits_for_store: self.waits_for_store,
            from,
            to: None,
        };
        let insert = sqlx::query(INSERT).bind(id);
        let insert = insert.fetch_one(&mut self.connection);
        match self.runtime.block_on(within(insert)) {
            Err(error) => {
                let Gone = error.into();
                return Err(Some(commit));
            }
            Ok(row) => commit.xid = Some(u32::try_from(row.get::<i64, _>(0)).unwrap()),
        }
        commit.is_acknowledged = true;
        match self.look() {
            Err(Gone) => Err(Some(commit)),
            Ok(to) => {
                commit.to = Some(to);
                Ok(commit)
            }
        }
    }

    /// Makes a restore point; returns the moments before and after it.
    pub fn restore_point(&mut self, name: &str) -> (Moment, Moment) {
        let from = self.look().expect("the server is there");
        self.ask(&format!("select pg_create_restore_point('{name}')::text"));
        (from, self.look().expect("the server is there"))
    }

    /// Runs SQL on a server that is there; returns the first column of the first row, if there is one.
    pub fn ask(&mut self, sql: &str) -> Option<String> {
        let query = sqlx::query(AssertSqlSafe(sql));
        let fetch = query.fetch_optional(&mut self.connection);
        let row = self.runtime.block_on(within(fetch));
        let row = row.unwrap_or_else(|error| panic!("{sql}: {error}"));
        row.and_then(|row| row.try_get(0).ok())
    }

    /// The same on a server that may go.
    pub fn ask_quietly(&mut self, sql: &'static str) -> Option<String> {
        let fetch = sqlx::query(sql).fetch_one(&mut self.connection);
        let row = self.runtime.block_on(within(fetch)).ok()?;
        row.try_get(0).ok()
    }

    /// The ids of the rows that are there, after a check that each is what it was.
    pub fn rows(&mut self) -> BTreeSet<i64> {
        let row = self
            .runtime
            .block_on(within(sqlx::query(CHECK).fetch_one(&mut self.connection)));
        let row = row.unwrap_or_else(|error| panic!("the rows cannot be read: {error}"));
        let (wrong, apart): (String, String) = (row.get(0), row.get(1));
        assert_eq!(wrong, "0", "rows whose content is wrong");
        assert_eq!(apart, "0", "rows without what was committed with them");
        let ids = self.ask("select coalesce(string_agg(id::text, ' '), '') from ledger");
        let ids = ids.unwrap();
        ids.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    }

    pub fn replayed(&mut self) -> Lsn {
        let lsn = self.ask("select coalesce(pg_last_wal_replay_lsn(), '0/0')::text");
        lsn.unwrap().parse().unwrap()
    }
}

async fn within<T>(future: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let answer = tokio::time::timeout(PATIENCE, future).await;
    answer.unwrap_or_else(|_| panic!("the server does not answer within {PATIENCE:?}"))
}

/// Clients that write while something else happens.
pub struct Crowd<'a> {
    pub cluster: &'a Cluster,
    pub timeline: u32,
    pub ids: &'a AtomicI64,
    pub waits_for_store: bool,
    is_over: AtomicBool,
    commits: Mutex<Vec<Commit>>,
}

/// Between the commits of one client of a crowd: more of them would only cost time.
const PAUSE: Duration = Duration::from_millis(4);

impl<'a> Crowd<'a> {
    pub fn new(cluster: &'a Cluster, timeline: u32, ids: &'a AtomicI64) -> Self {
        Self {
            cluster,
            timeline,
            ids,
            waits_for_store: false,
            is_over: AtomicBool::new(false),
            commits: Mutex::default(),
        }
    }

    pub fn enter<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, clients: usize) {
        for _ in 0..clients {
            scope.spawn(|| self.write());
        }
    }

    /// How many commits were acknowledged so far.
    pub fn count(&self) -> usize {
        self.commits.lock().unwrap().len()
    }

    /// Lets the clients end what they do.
    pub fn leave(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn commits(self) -> Vec<Commit> {
        self.commits.into_inner().unwrap()
    }

    fn write(&self) {
        let client = Client::connect(self.cluster).and_then(|client| {
            if self.waits_for_store {
                client.wait_for_store()
            } else {
                Ok(client)
            }
        });
        let Ok(mut client) = client else {
            return;
        };
        while !self.is_over.load(Ordering::Relaxed) {
            let id = self.ids.fetch_add(1, Ordering::Relaxed);
            match client.commit(id, self.timeline) {
                Ok(commit) => self.commits.lock().unwrap().push(commit),
                Err(doubtful) => {
                    self.commits.lock().unwrap().extend(doubtful);
                    return;
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}
