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
pub mod parent;
mod parts;
pub mod push;
mod reading;
pub mod request;
pub mod streamed;

use std::path::PathBuf;

use walhalla_postgres::{Lsn, SegmentName, SystemIdentifier};

use crate::contents::tar_part::WriteError;
use crate::failure::{Advice, Class, Failure};
use crate::repository::BackupId;
use crate::server::{self, replication};
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
    /// Another cluster than the settings name.
    #[error("the server at {place} is cluster {found}, and the setting cluster names {wanted}")]
    UnwantedCluster {
        /// The socket, or host and port.
        place: String,
        /// The server's.
        found: SystemIdentifier,
        /// The one that is wanted.
        wanted: SystemIdentifier,
    },
    /// A later session of a backup reached another cluster than the first.
    #[error(
        "the server at {place} is cluster {found}, and the backup was begun on cluster {expected}"
    )]
    LedElsewhere {
        /// The socket, or host and port.
        place: String,
        /// The cluster that it reached.
        found: SystemIdentifier,
        /// The cluster that is backed up.
        expected: SystemIdentifier,
    },
    /// A session for replication.
    #[error(transparent)]
    Replication(#[from] replication::Error),
    /// The server sent a tar archive that cannot be read.
    #[error("the server sent an archive that cannot be read")]
    SentArchive(#[source] std::io::Error),
    /// A file that every backup has was not in what the server sent.
    #[error("the server sent no {0}")]
    SentWithout(&'static str),
    /// A temporary file could not be written.
    #[error("could not write {}", path.display())]
    Scratch {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A link where the cluster's own data belongs, which a server leaves out with a warning.
    #[error(
        "the server does not send {}: it is neither file nor directory, and what it leads to is the cluster's own data", .0.display()
    )]
    NotSent(PathBuf),
    /// The control file that it sent is damaged.
    #[error("the server sent a damaged control file: {reason}")]
    SentControl {
        /// What is wrong with it.
        reason: walhalla_postgres::control::ControlFileDamage,
    },
    /// What the server sent is not what it said before.
    #[error("the server sent the control file of another cluster than it said to be")]
    SentOtherCluster,
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
        "which blocks changed since backup {parent} could not be determined from {source_name}: {reason}"
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
    /// A deletion may have taken what it needs.
    #[error("the backup's lease in the store could not be renewed for a quarter of an hour")]
    LeaseLost,
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

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Postgres(error) => error.class(),
            Self::Repository(error) => error.class(),
            Self::Pipeline(error) => error.class(),
            Self::Contents(error) => error.class(),
            Self::Replication(_)
            | Self::SentArchive(_)
            | Self::SentWithout(_)
            | Self::NotSent(_)
            | Self::Scratch { .. }
            | Self::SentControl { .. }
            | Self::SentOtherCluster
            | Self::UnwantedCluster { .. }
            | Self::LedElsewhere { .. }
            | Self::Read { .. }
            | Self::OtherCluster { .. }
            | Self::OtherServer(_)
            | Self::Parent { .. }
            | Self::Changes { .. }
            | Self::NothingToMerge
            | Self::WouldBeOpen(_)
            | Self::BrokenOff
            | Self::LeaseLost
            | Self::NotArchiving(_)
            | Self::ArchiverFails { .. }
            | Self::PageAfterEnd { .. }
            | Self::MovedDatabase(_)
            | Self::TimelineSwitch { .. }
            | Self::NotOwnWal { .. }
            | Self::WalMissing { .. }
            // Nobody asked for the file: the backup misses it.
            | Self::Wal(wal::Error::NotArchived { .. }) => Class::Other,
            Self::Wal(error) => error.class(),
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Postgres(error) => return error.hint(),
            Self::Repository(error) => return error.hint(),
            Self::Pipeline(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Replication(error) => return error.hint(),
            Self::SentArchive(_)
            | Self::SentWithout(_)
            | Self::SentControl { .. }
            | Self::SentOtherCluster
            | Self::LedElsewhere { .. } => {
                "see that PGHOST and PGPORT lead to one PostgreSQL server, without a pooler or a load balancer between, and take the backup again"
            }
            Self::Scratch { .. } => {
                "TMPDIR names the directory for temporary files; it needs room for two WAL segments"
            }
            Self::NotSent(_) => {
                "stop the server, move the data to where the link is, and start it; to have a table on another disk, use a tablespace"
            }
            Self::Contents(error) if error.class() == Class::Damaged => {
                "`walhalla verify` tells what else is damaged"
            }
            Self::Contents(error) => return error.hint(),
            Self::UnwantedCluster { .. } => {
                "set PGHOST and PGPORT to a server of that cluster, or change the setting"
            }
            Self::OtherCluster { .. } | Self::OtherServer(_) => {
                "set PGHOST and PGPORT to the server whose data directory this is"
            }
            Self::NotArchiving(_) => {
                "set archive_mode = on and archive_command = 'walhalla wal-push %p'; a change of archive_mode needs a restart"
            }
            Self::ArchiverFails { .. } => {
                "the server's log has the reason; once it is mended the archiver gets through within a minute (at once after `SELECT pg_reload_conf()`, from PostgreSQL 14 on), and a backup can begin"
            }
            Self::LeaseLost => {
                "a deletion may have taken what the backup stands on: take it again once the store can be reached"
            }
            Self::MovedDatabase(_) => "take the backup again",
            Self::PageAfterEnd { .. } => {
                "PostgreSQL would open such a copy too early; take the backup again after the standby's next restartpoint, or from the primary"
            }
            Self::TimelineSwitch { .. } => {
                "run CHECKPOINT on the primary and, some seconds later, on the standby; then take the backup again: it begins on the new timeline"
            }
            Self::NotOwnWal { .. } => {
                "two servers with the same identity archive to this store, or the server's clock was set while the backup was taken: see that this is the only server that archives here, and take the backup again"
            }
            Self::WalMissing {
                failing: Some(file),
                ..
            } => {
                return Some(format!("the server's archiver fails on {file}; the server's log has walhalla's message").into());
            }
            Self::WalMissing { failing: None, .. } => {
                "see that archive_command is 'walhalla wal-push %p' with this store, or that wal-receive runs; --with-wal needs neither. `archive_timeout` sets the wait"
            }
            Self::NothingToMerge => "name a delta: `walhalla backup-list` shows them",
            Self::WouldBeOpen(_) => {
                "set `age_recipients` to whom the merged backup is to be encrypted"
            }
            Self::Parent { .. } => {
                "leave out --parent for the newest backup of this server's past, or --delta for a full one"
            }
            Self::Changes { .. } => {
                "leave out --changed-blocks if it is there, or --delta for a full backup; encrypted WAL is read where `age_identity_file` names the identity"
            }
            Self::Read { .. } => "run as the user that owns the data directory",
            Self::BrokenOff => return None,
        };
        Some(text.into())
    }
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
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
