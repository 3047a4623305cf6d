//! Receiving WAL from a running server, into the store.
//!
//! ```text
//! server ─▶ open segment: a file in the spool ─▶ full: checked and archived as wal-push does        stream, segment
//!    ▲              └▶ what came since: a piece of the tail, at an interval or at once               tail
//!    └── what is durable in the store, and never more
//! ```
//!
//! Invariants:
//! - What is reported is in the store: in whole segments up to the open one, and in a run of pieces from that one's begin on.
//! - No piece of a segment is stored before the segment before it is archived whole.
//! - Each connection begins at a segment's begin, with a run of its own. Nothing that stands in the spool is trusted.

mod receiver;
mod segment;
mod source;
mod spool;
mod start;
mod stream;
mod tail;

use std::path::PathBuf;
use std::time::Duration;

use walhalla_postgres::{Lsn, SystemIdentifier, TimelineId};

use crate::failure::{Advice, Class, Failure};
use crate::server::replication;
use crate::{pipeline, server, wal};

pub use receiver::Receiver;

/// How WAL is received.
#[derive(Clone, Debug)]
pub struct Options {
    /// The replication slot.
    pub slot: Option<String>,
    /// Whether it is made where there is none.
    pub slot_creation: SlotCreation,
    /// When the open segment's WAL is stored.
    pub storing: Storing,
    /// What happens when the connection or the store fails.
    pub on_failure: OnFailure,
    /// The directory for the open segment.
    pub spool: PathBuf,
    /// The cluster that the server must be of.
    pub system_identifier: Option<SystemIdentifier>,
}

/// Whether a slot is made where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotCreation {
    /// It must be there.
    Never,
    /// It is made.
    IfMissing,
    /// None is used: WAL is received for as long as a backup lasts, from the segment on that the server is writing.
    ForABackup,
}

/// When the open segment's WAL is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storing {
    /// As soon as it comes.
    AtOnce,
    /// So long after it came.
    Every(Duration),
}

/// What happens when the connection or the store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The same again, after a pause.
    TryAgain,
    /// The end. What is to begin together with a backup is tried again for a minute until it begins.
    End,
}

/// Why WAL was not received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server, or the connection to it.
    #[error(transparent)]
    Server(#[from] replication::Error),
    /// The archive, or a file that goes there.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// Storing a piece failed.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// No directory for the open segment.
    #[error(
        "wal-receive needs a directory for the segment that it receives, and spool_dir is not set"
    )]
    NoSpool,
    /// Another process receives there.
    #[error("another wal-receive uses {}", .0.display())]
    SpoolInUse(PathBuf),
    /// The server of another cluster.
    #[error("the server at {place} is of cluster {found}, not of cluster {expected}")]
    OtherCluster {
        /// Where it is.
        place: String,
        /// Its cluster.
        found: SystemIdentifier,
        /// The cluster that was asked for, or received before.
        expected: SystemIdentifier,
    },
    /// A server whose WAL does not go on from what was received.
    #[error(
        "the server at {place} is on timeline {found}, which does not come from timeline {expected} that was received before"
    )]
    OtherTimeline {
        /// Where it is.
        place: String,
        /// Its timeline.
        found: u32,
        /// The timeline that was received.
        expected: u32,
    },
    /// A message that does not go on from the one before.
    #[error("the server at {place} sent WAL from {found}, and {expected} was due")]
    NotDue {
        /// Where it is.
        place: String,
        /// Where the message begins.
        found: Lsn,
        /// Where the last one ended.
        expected: Lsn,
    },
    /// The stream ended, and the server names no timeline that follows.
    #[error("the server ended the stream of timeline {} and named no other one", .0.number())]
    Ended(TimelineId),
}

impl Error {
    /// Whether it may be otherwise later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Server(error) => error.is_passing(),
            Self::Wal(
                wal::Error::Repository(_)
                | wal::Error::Pipeline(_)
                | wal::Error::NotMirrored { .. },
            )
            | Self::Pipeline(_) => {
                matches!(self.class(), Class::Other | Class::Inaccessible)
            }
            Self::Ended(_) => true,
            Self::Wal(_)
            | Self::NoSpool
            | Self::SpoolInUse(_)
            | Self::OtherCluster { .. }
            | Self::OtherTimeline { .. }
            | Self::NotDue { .. } => false,
        }
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Wal(error) => error.class(),
            Self::Pipeline(error) => error.class(),
            Self::NoSpool => Class::Usage,
            Self::Server(_)
            | Self::SpoolInUse(_)
            | Self::OtherCluster { .. }
            | Self::OtherTimeline { .. }
            | Self::NotDue { .. }
            | Self::Ended(_) => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Server(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Pipeline(error) => return error.hint(),
            Self::NoSpool => {
                "set spool_dir, or WALHALLA_SPOOL_DIR, to a directory with room for two segments, which nothing else cleans"
            }
            Self::SpoolInUse(_) => {
                "one receiver is enough; a second one on this host needs a slot or a spool_dir of its own"
            }
            Self::OtherCluster { .. } => {
                "PGHOST and PGPORT say which server is meant; a cluster that initdb or pg_upgrade made anew has another identifier"
            }
            Self::OtherTimeline { .. } => {
                "it was restored to a moment before, or an old primary was started again: see which server is the right one, and \
                 start wal-receive anew for it"
            }
            Self::NotDue { .. } | Self::Ended(_) => return None,
        };
        Some(text.into())
    }
}

impl From<server::Error> for Error {
    fn from(error: server::Error) -> Self {
        Self::Server(error.into())
    }
}
