//! A drill: a restore that is carried out and checked, in a directory of its own that is removed again.
//!
//! ```text
//! restore ─▶ scratch directory ─▶ own configuration ─▶ server on a private socket ─▶ target ─▶ checks ─▶ report
//!            0700, removed        allow list, pinned    no network, no workers                  amcheck, SQL, checksums
//! ```
//!
//! Invariants: a drill writes to no directory but its own, starts no server of another data directory, and the server that it
//! starts archives nothing, connects to nobody and listens to nobody but the drill. The server's own configuration file is
//! written by the drill ([`configuration`]); of the original's settings it has those of a short list.

pub mod account;
pub mod binaries;
pub mod check;
pub mod commits;
pub mod configuration;
pub mod junit;
pub mod moment;
pub mod queries;
pub mod scratch;
pub mod server;
pub mod tools;

use std::path::PathBuf;

use walhalla_postgres::Version;

use crate::failure::{Advice, Class, Failure};
use crate::restore::plan::NewTablespace;
use crate::{repository, restore, server as postgres, wal};

/// Why a drill did not come to its end. What it found wrong with the backup is a [`check::Check`] that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Planning or restoring failed.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// The catalog or the archive failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// Archived WAL cannot be read.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// A file of the restored cluster cannot be read.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// There is no server of the backup's version.
    #[error(
        "no PostgreSQL {version} was found: there is no `postgres` of this version in {}",
        shown(looked)
    )]
    NoServer {
        /// The backup's version.
        version: Version,
        /// Where was looked for it.
        looked: Vec<PathBuf>,
    },
    /// `--user` names nobody.
    #[error("there is no user {0:?} on this host")]
    NoUser(String),
    /// PostgreSQL does not run as root.
    #[error("user {0:?} is root, and PostgreSQL does not run as root")]
    UserIsRoot(String),
    /// Another user cannot be taken on.
    #[error("the drill can run PostgreSQL as user {0:?} only when root starts it")]
    OtherUser(String),
    /// A socket's path has at most 107 bytes (`sun_path` in sys/un.h).
    #[error("the path of the server's socket in {} is too long", .0.display())]
    LongSocketPath(PathBuf),
    /// Replay makes a tablespace at the place that its record names, whatever directory is restored.
    #[error("replay would make {0}, which is not in the scratch directory")]
    TablespaceOutside(Box<NewTablespace>),
    /// A file or directory of the drill.
    #[error("could not {doing} {}", path.display())]
    Local {
        /// What was being done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// No superuser is known.
    #[error("could not connect to the restored server as {}", roles.join(" or "))]
    NoRole {
        /// The names that were tried.
        roles: Vec<String>,
        /// The reason of the last one.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The restored server did not answer.
    #[error("the restored server failed while {doing}")]
    Query {
        /// What was being done.
        doing: &'static str,
        /// The server's reason.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The user ended it.
    #[error("the drill was interrupted")]
    Interrupted,
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

fn shown(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Restore(error) => error.class(),
            Self::Repository(error) => error.class(),
            Self::Wal(error) => error.class(),
            Self::Postgres(error) => error.class(),
            Self::NoUser(_) | Self::UserIsRoot(_) | Self::OtherUser(_) => Class::Usage,
            _ => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Restore(error) => return error.hint(),
            Self::Repository(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Postgres(error) => return error.hint(),
            Self::NoServer { version, .. } => {
                return Some(
                    format!("install the server of PostgreSQL {version} on this host, or name the directory of its programs with --pgbin")
                        .into(),
                );
            }
            Self::NoUser(_) | Self::UserIsRoot(_) => {
                "name the user that is to run PostgreSQL with --user"
            }
            Self::OtherUser(_) => "leave out --user, or start the drill as root",
            Self::LongSocketPath(_) => "name a directory with a shorter path with --scratch",
            Self::TablespaceOutside(_) => {
                "take a new backup, which has the tablespace, and drill that; or choose a target before the tablespace was created"
            }
            Self::NoRole { .. } => "name a superuser of the restored cluster with --role",
            Self::Local { .. } | Self::Query { .. } | Self::Interrupted => return None,
        };
        Some(text.into())
    }
}
