//! Bringing a cluster back.
//!
//! ```text
//! catalog, WAL listing ─▶ plan ─▶ (refused here, or) unpack parts ∥ stage WAL ─▶ seal ─▶ settings ─▶ pg_control
//! ```
//!
//! Nothing is written before the plan says that the target can be reached. `pg_control` comes
//! last: until it is there, PostgreSQL refuses to start.

mod branches;
mod breaks;
pub mod choose;
pub mod existing;
mod folder;
mod hint;
pub mod leading_out;
pub mod occupant;
mod offer;
pub mod only;
pub mod outside;
mod places;
pub mod plan;
mod planner;
mod reach;
pub mod recovery;
mod refresh;
mod refusal;
pub mod run;
mod site;
pub mod stage;
pub mod target;
pub mod unpack;
mod way;
pub mod window;

use std::path::PathBuf;

use self::occupant::{Occupant, RunningServer};
use crate::contents;
use crate::repository::BackupId;
use crate::{repository, server, wal};

/// Why a restore was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog or the archive is wrong or failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// A WAL file is wrong.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// Something of PostgreSQL's is wrong.
    #[error(transparent)]
    Postgres(#[from] server::Error),
    /// The target cannot be reached with what the archive holds.
    #[error("the recovery target cannot be reached: {}", .0.reason)]
    Unreachable(plan::Unreachable),
    /// A directory that must be empty is not.
    #[error("{} is not empty: {}", .0.display(), .1)]
    NotEmpty(PathBuf, Box<Occupant>),
    /// Another restore is at work in a directory.
    #[error("another restore is at work in {}", .0.display())]
    Restoring(PathBuf),
    /// A running server uses a directory.
    #[error("{} is used by the server in {} (process {})", .0.display(), .1.data.display(), .1.process)]
    InUse(PathBuf, RunningServer),
    /// A tablespace's place has files, and nothing but a link shows that they are those of the directory that is restored.
    #[error("tablespace {tablespace} has files in {}, and a link to them does not show that they belong to this data directory: a copy of it has the same link", place.display())]
    UnprovenTablespace {
        /// The tablespace.
        tablespace: u32,
        /// Its place.
        place: PathBuf,
    },
    /// A standby has its tablespaces where it was told to, not where its primary has them.
    #[error("backup {backup} was taken of a standby, and {} is where that standby has tablespace {tablespace}; its primary may have it elsewhere", place.display())]
    StandbysTablespace {
        /// The backup.
        backup: BackupId,
        /// The first tablespace that no place was named for.
        tablespace: u32,
        /// Where the standby has it.
        place: PathBuf,
    },
    /// The WAL folder is a link, and nothing else shows that what it leads to belongs to the directory that is restored.
    #[error("{} is a link to {}, and a link does not show that the WAL there belongs to this data directory: a copy of it has the same link", .0.display(), .1.display())]
    WalIsALink(PathBuf, PathBuf),
    /// A place that only the backup names, and that the server's user could not write to.
    #[error("the backup puts tablespace {tablespace} into {}, which is not a directory of the server's user; the restored cluster will belong to user number {user}", place.display())]
    NotTheOwners {
        /// The tablespace.
        tablespace: u32,
        /// Its place.
        place: PathBuf,
        /// The user.
        user: u32,
    },
    /// A directory of somebody else.
    #[error("{} belongs to user number {user}, and must belong to user number {wanted}", path.display())]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        user: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// A link in a path that root was given would lead root to where the link's owner may not write.
    #[error("a link in the path {} belongs to another user than what it leads to", .0.display())]
    ForeignLink(PathBuf),
    /// A link whose target is missing.
    #[error("{} is a link that leads nowhere", .0.display())]
    LeadsNowhere(PathBuf),
    /// Something is mounted inside of a directory that is to be restored over.
    #[error("{} is mounted there, inside of what is to be restored over", .0.display())]
    MountInside(PathBuf),
    /// Nothing can be created there.
    #[error("nothing can be created in {}", path.display())]
    NoRight {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The directory for the staged WAL cannot be made.
    #[error("the WAL cannot be staged in {}", path.display())]
    NoStage {
        /// The stage.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Too many folders of WAL that was moved out of the way.
    #[error("{}.walhalla-old-wal.1 and on: too many of these folders are there already", .0.display())]
    NoRoomAside(PathBuf),
    /// Too many stages that data directories recover from.
    #[error("{} and those numbered after it hold WAL that other data directories are to recover from", .0.display())]
    NoRoomForStage(PathBuf),
    /// A backup names a file that lies in no place of the restored cluster.
    #[error("the backup holds {}, which does not belong into a data directory", .0.display())]
    StrangePath(PathBuf),
    /// Not enough files can be created.
    #[error("{} has room for {available} more files, the restore needs {needed} there", path.display())]
    NoInodes {
        /// On this file system.
        path: PathBuf,
        /// What there is.
        available: u64,
        /// What it takes.
        needed: u64,
    },
    /// A directory for staged WAL that holds something else.
    #[error("{} holds something else than staged WAL", .0.display())]
    NotAStage(PathBuf),
    /// A directory that is to be brought up to date is not, for all that can be seen, one of the cluster.
    #[error("{} is not proven to be a data directory of this cluster: {reason}", path.display())]
    NotThisCluster {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: existing::Unproven,
    },
    /// Two places of the restored cluster that would share their files.
    #[error("{} and {} cannot both be places of the restored cluster", .0.display(), .1.display())]
    SharedPlace(PathBuf, PathBuf),
    /// Replay makes a tablespace where it must not, or cannot.
    #[error("replay makes tablespace {} at {}, and {unfit}", tablespace.oid, tablespace.location)]
    ReplayPlace {
        /// The tablespace.
        tablespace: Box<plan::NewTablespace>,
        /// Why.
        unfit: outside::Unfit,
    },
    /// Not enough room.
    #[error("{} has {available_bytes} bytes free, the restore needs {needed_bytes} there", path.display())]
    NoRoom {
        /// On this file system.
        path: PathBuf,
        /// What there is.
        available_bytes: u64,
        /// What it takes.
        needed_bytes: u64,
    },
    /// A local file could not be written.
    #[error("could not {doing} {}", path.display())]
    Local {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The same before anything was written.
    #[error("could not {doing} {}", path.display())]
    Look {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// What the restore itself needs lies in a directory that it goes over.
    #[error("{} lies in {}, from which everything is removed that the backup does not have", .0.display(), .1.display())]
    Needed(PathBuf, PathBuf),
    /// Servers before 13 cut longer ones off.
    #[error("restore_command would have {0} bytes, and PostgreSQL before 13 reads 1,023 of it")]
    LongCommand(usize),
    /// A cluster within the one that is gone over.
    #[error("{} is a data directory of its own", .0.display())]
    NestedCluster(PathBuf),
    /// The backup's content is wrong.
    #[error(transparent)]
    Contents(#[from] contents::Error),
    /// `--tablespace-map` names a tablespace that the backup does not have.
    #[error("the backup has no tablespace {0}")]
    NoSuchTablespace(u32),
    /// `--only-database` names a database that the backup does not have.
    #[error("the backup has no database {name:?}")]
    NoSuchDatabase {
        /// What was asked for.
        name: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// A sealed plan that cannot be read.
    #[error("the sealed plan {} cannot be read", path.display())]
    SealedPlan {
        /// The plan.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is no sealed plan any more.
    #[error("the sealed plan {} that this directory recovers from cannot be read", path.display())]
    NoSealedPlan {
        /// The plan.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The stage was made anew.
    #[error("{} is not the plan that this directory was restored with: another restore has the stage now, or somebody changed the plan", .0.display())]
    OtherSeal(PathBuf),
    /// A staged file is not what was staged.
    #[error("the staged file {} is not what the restore put there", .0.display())]
    Staged(PathBuf),
    /// The server will ask the store, but nothing tells it which and how.
    #[error("the server could not reach the store without a settings file")]
    NeedsConfig,
    /// The server will open encrypted WAL, and does not have the variable that says with what.
    #[error(
        "the server could not open encrypted WAL: age_identity_file is not in the settings file"
    )]
    IdentityBesideFile,
    /// Another thread failed first.
    #[error("the restore was broken off")]
    BrokenOff,
}

impl Error {
    pub(crate) fn local(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Local {
            doing,
            path,
            source,
        }
    }

    /// The error where nothing was written yet.
    fn before_writing(self) -> Self {
        match self {
            Self::Local {
                doing,
                path,
                source,
            } => Self::Look {
                doing,
                path,
                source,
            },
            error => error,
        }
    }
}

impl From<walhalla_providers::Error> for Error {
    fn from(error: walhalla_providers::Error) -> Self {
        Self::Repository(error.into())
    }
}

impl From<plan::Unreachable> for Error {
    fn from(unreachable: plan::Unreachable) -> Self {
        Self::Unreachable(unreachable)
    }
}

impl From<walhalla_postgres::Error> for Error {
    fn from(error: walhalla_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}
