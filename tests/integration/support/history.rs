//! Changes to a cluster, and moments of it that a restore has to bring back.

use std::process::Child;

use super::{Cluster, Dump};

/// A moment at which nothing ran: what the cluster held, and every way to name the moment.
pub struct Moment {
    pub dump: Dump,
    /// Everything before this position belongs to the moment, the next record does not.
    pub lsn: String,
    /// Between the moment's last commit and the next one; PostgreSQL's style, with an offset.
    pub time: String,
    /// The last transaction that committed.
    pub xid: String,
    /// A restore point that was made at the moment.
    pub name: String,
}

/// pgbench's tables and a table of the tests' own; the extension for `amcheck`.
///
/// No sequences anywhere in the tests: their WAL runs ahead of their values (`SEQ_LOG_VALS` in sequence.c), so that a
/// recovered sequence rightly differs from the original's dump.
pub fn fill(cluster: &Cluster) {
    if cluster.version >= 10 {
        cluster.sql("create extension amcheck");
    }
    cluster.sql("create table ledger (label text primary key, body text)");
    cluster.pgbench(&["-i", "-s", "1", "-q"]);
}

/// Changes the cluster, holds still, and records the moment under `name`.
pub fn make_history(cluster: &Cluster, name: &str) -> Moment {
    cluster.pgbench(&["-t", "40"]);
    cluster.sql(&format!(
        "create table at_{name} as select g as id, md5(g::text) as body from generate_series(1, 500) g; \
         create index on at_{name} (body)"
    ));
    let insert = format!(
        "with written as (insert into ledger values ('{name}', repeat('{name} ', 100)) returning 1) \
         select txid_current() from written"
    );
    let xid = cluster.sql(&insert);
    let lsn = cluster.insert_lsn();
    let time = cluster.sql("select clock_timestamp()");
    let dump = cluster.dump();
    cluster.sql(&format!("select pg_create_restore_point('{name}')"));
    Moment {
        dump,
        lsn,
        time,
        xid,
        name: name.to_owned(),
    }
}

/// Makes the function `fill_segment(leave)`: it writes until so many bytes, a multiple of 8, are left of the segment.
/// The next record of more bytes than that lies on the border, unless another backend writes one before.
pub fn create_fill_segment(cluster: &Cluster) {
    // A message on one page takes 24 bytes of header, 5 of its data's header, 24 of `xl_logical_message` and 2 of its
    // prefix (message.h); 8168 bytes of a page hold records.
    cluster.sql(
        "create function fill_segment(leave int) returns void language plpgsql as $$
         declare
             size constant int := pg_size_bytes(current_setting('wal_segment_size'));
             rest int;
         begin
             loop
                 rest := size - mod(pg_current_wal_insert_lsn() - '0/0', size)::int;
                 exit when rest = leave;
                 perform pg_logical_emit_message(false, 'x', repeat('x', case
                     when rest > 50000 then 40000
                     when rest > 8168 then 4000
                     when rest > leave + 400 then rest - leave - 55
                     else 600 end));
             end loop;
         end $$",
    );
}

/// Clients that write until this is dropped.
pub struct PgbenchLoad {
    pgbench: Child,
}

impl PgbenchLoad {
    pub fn start(cluster: &Cluster) -> Self {
        let rows = "select count(*) from pgbench_history";
        let before = cluster.sql(rows);
        let mut command = cluster.client("pgbench");
        command.args(["-n", "-c", "2", "-T", "600", "--rate", "300"]);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let load = Self {
            pgbench: command.spawn().unwrap(),
        };
        super::eventually(
            "pgbench to write",
            std::time::Duration::from_secs(30),
            || cluster.sql(rows) != before,
        );
        load
    }

    /// Stops the clients and waits until the server noticed.
    pub fn stop(self, cluster: &Cluster) {
        drop(self);
        cluster.wait_until_quiet();
    }
}

impl Drop for PgbenchLoad {
    fn drop(&mut self) {
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
    }
}

impl Cluster {
    /// pgbench's books balance: true after any whole number of its transactions, at whatever moment.
    #[track_caller]
    pub fn assert_books_balance(&self) {
        let sums = self.sql(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
             (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        let sums: Vec<&str> = sums.split('|').collect();
        assert!(
            sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]),
            "pgbench's sums differ: {sums:?}"
        );
    }
}
