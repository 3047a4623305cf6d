//! Bringing a cluster back.
//!
//! ```text
//! catalog, WAL listing ─▶ plan ─▶ (refused here, or) unpack parts ∥ stage WAL ─▶ seal ─▶ settings ─▶ pg_control
//! ```
//!
//! Nothing is written before the plan says that the target can be reached. `pg_control` comes
//! last: until it is there, PostgreSQL refuses to start.

mod branches;
mod choose;
pub mod existing;
mod hint;
pub mod only;
pub mod outside;
pub mod plan;
mod reach;
pub mod recovery;
mod refresh;
pub mod run;
pub mod stage;
pub mod target;
pub mod unpack;
pub mod window;

use std::path::PathBuf;

use crate::backup::contents;
use crate::{postgres, repository, wal};

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
    Postgres(#[from] postgres::Error),
    /// The target cannot be reached with what the archive holds.
    #[error("the recovery target cannot be reached: {}", .0.reason)]
    Unreachable(plan::Unreachable),
    /// A directory that must be empty is not.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
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
