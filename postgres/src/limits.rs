//! Settings that recovery must not find lower than they were on the server that wrote the WAL.

use serde::{Deserialize, Serialize};

use super::Version;

/// By these PostgreSQL sizes what holds the transactions of a primary. A server that recovers with `hot_standby = on` stops,
/// or from 14 on pauses for ever, where one of its own is lower (xlogrecovery.c, `CheckRequiredParameterValues`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`; 0 before 12, where recovery does not look at it.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl Limits {
    /// What PostgreSQL takes where its files say nothing (guc_tables.c).
    pub fn default_of(version: Version) -> Self {
        Self {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: version.default_locks_per_transaction(),
        }
    }

    /// Reads them in the order that `xl_parameter_change` (xlog_internal.h) and `ControlFileData` (pg_control.h) share;
    /// `next` gives one number after the other.
    ///
    /// # Errors
    /// Those of `next`.
    pub fn read<E>(version: Version, mut next: impl FnMut() -> Result<u32, E>) -> Result<Self, E> {
        Ok(Self {
            max_connections: next()?,
            max_worker_processes: next()?,
            max_wal_senders: if version.limits_wal_senders() {
                next()?
            } else {
                0
            },
            max_prepared_transactions: next()?,
            max_locks_per_transaction: next()?,
        })
    }

    /// The greater of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self
                .max_prepared_transactions
                .max(other.max_prepared_transactions),
            max_locks_per_transaction: self
                .max_locks_per_transaction
                .max(other.max_locks_per_transaction),
        }
    }

    /// By the names of the settings.
    pub fn named(self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}
