//! Clients that work while a backup reads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use fastrand::Rng;

use super::sessions::run_session;
use crate::support::{Cluster, eventually};

/// What a client does over and over; none leaves anything behind but in tables that only they change.
const LOADS: [(&str, &[&str]); 5] = [
    (
        "truncates, grows and cuts a table",
        &[
            "truncate churned",
            "insert into churned select g, repeat(md5(g::text), 10) from generate_series(1, 1500) g",
            "delete from churned where id > 200",
            "vacuum churned",
            "insert into churned select g, md5(g::text) from generate_series(2000, 3000) g",
        ],
    ),
    (
        "updates and vacuums a table",
        &[
            "update updated set n = n + 1 where id % 7 = 0",
            "begin; update updated set n = 0; rollback",
            "delete from updated where id > 1900",
            "insert into updated select g, 0, md5(g::text) from generate_series(1901, 2200) g on conflict do nothing",
            "vacuum updated",
        ],
    ),
    (
        "makes, rewrites and drops tables",
        &[
            "create table passing as select g as id, md5(g::text) as body from generate_series(1, 1000) g",
            "create index on passing using hash (body)",
            "vacuum full passing",
            "truncate passing",
            "drop table passing",
        ],
    ),
    (
        "keeps temporary and unlogged tables open",
        &[
            "create temporary table kept as select g as id, md5(g::text) as body from generate_series(1, 1000) g",
            "create index on kept (body)",
            "create unlogged table kept_unlogged as select * from kept",
            "create index on kept_unlogged (body)",
            "select pg_sleep(0.2)",
            "drop table kept_unlogged",
        ],
    ),
    (
        "makes and drops a database",
        &["create database passing", "drop database passing"],
    ),
];

/// Clients at work until this is stopped or dropped.
pub struct Load<'scope, 'a> {
    shared: &'scope Shared<'a>,
    clients: Vec<ScopedJoinHandle<'scope, ()>>,
}

/// What clients and the one who waits for them share.
pub struct Shared<'a> {
    cluster: &'a Cluster,
    is_over: AtomicBool,
    begun: AtomicUsize,
}

impl<'a> Shared<'a> {
    pub const fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            is_over: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
        }
    }

    fn work(&self, statements: &[String]) {
        while !self.is_over.load(Ordering::Relaxed) {
            self.begun.fetch_add(1, Ordering::Relaxed);
            run_session(self.cluster, "postgres", statements);
        }
    }
}

/// Kinds of load, as many as clients there are to be.
pub fn draw(rng: &mut Rng) -> Vec<usize> {
    let mut kinds: Vec<usize> = (0..LOADS.len()).collect();
    rng.shuffle(&mut kinds);
    kinds.truncate(rng.usize(1..4));
    kinds
}

pub fn describe(kinds: &[usize]) -> String {
    let texts: Vec<&str> = kinds.iter().map(|kind| LOADS[*kind].0).collect();
    texts.join("; ")
}

impl<'scope, 'a> Load<'scope, 'a> {
    /// Starts the clients and waits until each is at work.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        shared: &'scope Shared<'a>,
        kinds: &[usize],
    ) -> Self {
        let clients = kinds.iter().map(|kind| {
            let statements = LOADS[*kind].1.iter().copied().map(str::to_owned);
            let statements: Vec<String> = statements.collect();
            scope.spawn(move || shared.work(&statements))
        });
        let load = Self {
            shared,
            clients: clients.collect(),
        };
        eventually("the clients to work", Duration::from_secs(30), || {
            shared.begun.load(Ordering::Relaxed) >= load.clients.len()
        });
        load
    }

    /// Lets each client finish what it does.
    pub fn stop(mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        self.shared.cluster.wait_until_quiet();
    }
}

impl Drop for Load<'_, '_> {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}
