//! What WAL is received from, and where it goes.

use walhalla_postgres::History;

use super::spool::Spool;
use crate::repository::Repository;
use crate::server::replication::{Identity, Replication};
use crate::wal::archiver::Origin;
use crate::wal::mirror::Mirror;

/// A connection, and what it was found to lead to.
pub(super) struct Source {
    pub(super) connection: Replication,
    pub(super) identity: Identity,
    pub(super) origin: Origin,
    /// The history of the server's timeline.
    pub(super) history: History,
}

/// The cluster's place in the store and on this host.
pub(super) struct Target {
    pub(super) repository: Repository,
    pub(super) spool: Spool,
    /// The second store.
    pub(super) mirror: Option<Mirror>,
}
