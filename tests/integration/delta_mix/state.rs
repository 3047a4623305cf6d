//! What a cluster holds at a moment, to be compared.

use super::sessions::{ask, databases};
use crate::support::{Cluster, Dump};

/// The contents of every database, and the prepared transactions that are open.
#[derive(Clone)]
pub struct State {
    dump: Dump,
    prepared: Vec<String>,
}

impl State {
    /// Nothing else may run. Tables that are not logged are left out: a restore empties them.
    pub fn of(cluster: &Cluster) -> Self {
        let prepared = "select gid from pg_prepared_xacts order by 1";
        Self {
            dump: cluster.dump_with(&["--no-unlogged-table-data"]),
            prepared: ask(cluster, "postgres", prepared),
        }
    }

    #[track_caller]
    pub fn assert_same_as(&self, expected: &Self, what: &str) {
        assert_eq!(self.prepared, expected.prepared, "prepared in {what}");
        self.dump.assert_same_as(&expected.dump, what);
    }
}

/// Writes each sequence's value to the WAL as it is: what `nextval` writes is ahead of it (sequence.c, `SEQ_LOG_VALS`).
pub fn settle_sequences(cluster: &Cluster) {
    let set = "do $$ declare one regclass; value bigint; called bool; begin \
               for one in select oid from pg_class where relkind = 'S' loop \
               execute format('select last_value, is_called from %s', one) into value, called; \
               perform setval(one, value, called); end loop; end $$";
    for database in databases(cluster) {
        ask(cluster, &database, set);
    }
}
