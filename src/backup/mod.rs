//! Taking base backups.
//!
//! ```text
//! walk ─▶ parts ─▶ pack: read, check pages, hash, tar ─▶ compress ─▶ store     N parts at a time
//!      then: backup_label, pg_control ─▶ index, manifest ─▶ WAL is archived ─▶ backup.json
//! ```
//!
//! A backup exists once its `backup.json` does; whatever ends earlier leaves objects that no
//! catalog shows, and a server that leaves backup mode with its session.

mod archived_wal;
mod begin;
mod copy;
mod delta;
mod extent;
pub mod merge;
mod moved_databases;
mod newest;
mod own_directory;
mod own_history;
mod own_server;
mod own_wal;
mod pack;
mod parent;
mod parts;
pub mod push;
pub mod request;

use std::path::PathBuf;

use walhalla_postgres::{Lsn, SegmentName, SystemIdentifier};

use crate::contents::tar_part::WriteError;
use crate::repository::BackupId;
use crate::server;
use crate::{contents, pipeline};
use crate::{repository, wal};

/// Why a backup was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL, or a file of its, is wrong.
    #[error(transparent)]
    Postgres(#[from] server::Error),
    /// The catalog or the archive is wrong or failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The WAL beside the data directory is wrong.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// Writing to the store failed.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A file of the data directory could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Two clusters where one was meant.
    #[error("the server is cluster {server}, {} is cluster {directory}", pgdata.display())]
    OtherCluster {
        /// Of the server that was connected to.
        server: SystemIdentifier,
        /// Of the data directory.
        directory: SystemIdentifier,
        /// The data directory.
        pgdata: PathBuf,
    },
    /// The right cluster, but another server of it (a standby's directory and the primary's connection).
    #[error("the server that answers does not run in {}", .0.display())]
    OtherServer(PathBuf),
    /// The parent that was asked for, or the only one there is, cannot be one.
    #[error("backup {id} cannot be the parent of a delta: {reason}")]
    Parent {
        /// The parent.
        id: BackupId,
        /// Why not.
        #[source]
        reason: parent::Unusable,
    },
    /// The only source of changed blocks that is allowed does not tell them.
    #[error(
        "which blocks changed since backup {parent} cannot be told from {source_name}: {reason}"
    )]
    Changes {
        /// The parent.
        parent: BackupId,
        /// The source.
        source_name: repository::entry::ChangeSource,
        /// Why not.
        reason: String,
    },
    /// A backup of a chain cannot be read.
    #[error(transparent)]
    Contents(#[from] contents::Error),
    /// The backup that is to be merged stands alone.
    #[error("it is a full backup: there is nothing to merge")]
    NothingToMerge,
    /// A merge would lay open what was encrypted.
    #[error("backup {0} is encrypted, and the merged one would not be")]
    WouldBeOpen(BackupId),
    /// Another thread failed first.
    #[error("the work was broken off")]
    BrokenOff,
    /// Without archived WAL no backup can be restored.
    #[error("the server does not archive its WAL ({0})")]
    NotArchiving(&'static str),
    /// What the archiver does not get through now, the backup would wait for in vain.
    #[error("the server's archiver fails on {file}, and last tried it at {tried}")]
    ArchiverFails {
        /// The file.
        file: String,
        /// When it failed last, by the server's clock.
        tried: String,
    },
    /// A standby wrote a page that its control file does not know of.
    #[error("block {block} of {} was changed at {page}, after {end}, at which the standby's control file calls the backup consistent", path.display())]
    PageAfterEnd {
        /// The file.
        path: PathBuf,
        /// The block in it.
        block: u32,
        /// The page's LSN.
        page: walhalla_postgres::Lsn,
        /// The backup's end.
        end: walhalla_postgres::Lsn,
    },
    /// A database's files may not be in the backup although replay copies them.
    #[error(
        "database {0} was copied and removed while the backup ran (ALTER DATABASE … SET TABLESPACE, or DROP DATABASE of a template), so that replay could not copy it again"
    )]
    MovedDatabase(u32),
    /// The standby went over to another timeline after its last restartpoint, at which the backup begins.
    #[error(
        "the standby went over from timeline {begin} to timeline {end} after the checkpoint at which the backup begins"
    )]
    TimelineSwitch {
        /// The timeline of the backup's start.
        begin: u32,
        /// The timeline at its end.
        end: u32,
    },
    /// What is archived under the names of the backup's WAL is another server's.
    #[error(
        "the archived WAL from {start} to {stop} is not that of this server: no record in it names the backup"
    )]
    NotOwnWal {
        /// Where the backup's WAL begins.
        start: Lsn,
        /// Where it ends.
        stop: Lsn,
    },
    /// The WAL that the backup needs did not come into the archive.
    #[error("WAL segment {segment} did not arrive in the archive within {seconds} s")]
    WalMissing {
        /// The first that is missing.
        segment: SegmentName,
        /// The limit.
        seconds: u64,
        /// What the server's archiver last failed on.
        failing: Option<String>,
    },
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
    }
}

impl From<walhalla_postgres::Error> for Error {
    fn from(error: walhalla_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Pipeline(error) => Self::Pipeline(error),
            WriteError::File { path, source } => Self::Read { path, source },
        }
    }
}
