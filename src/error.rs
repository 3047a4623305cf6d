//! The one error of all commands, and the exit code of each kind of failure.

use std::io::ErrorKind;
use std::path::PathBuf;

use walhalla_providers::Error as StoreError;

use crate::failure::{Advice, Class, Failure};
use crate::pipeline::encryption::IdentityError;
use crate::{
    backup, config, copying, drill, output, receive, repository, restore, retention, server,
    verify, wal,
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong settings.
    #[error(transparent)]
    Settings(#[from] config::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog or archive.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] server::Error),
    /// A WAL file.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// A backup.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// Receiving WAL.
    #[error(transparent)]
    Receive(#[from] receive::Error),
    /// A restore.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// A verification.
    #[error(transparent)]
    Verify(#[from] verify::Error),
    /// A deletion.
    #[error(transparent)]
    Retention(#[from] retention::Error),
    /// A copy.
    #[error(transparent)]
    Copy(#[from] copying::Error),
    /// A drill.
    #[error(transparent)]
    Drill(#[from] drill::Error),
    /// A file that was asked for, and why it did not come.
    #[error("could not fetch {name}")]
    Fetch {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A file of keys.
    #[error("could not {doing} {}", path.display())]
    Keys {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// A file that was asked for cannot be written.
    #[error("could not write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The daemon cannot listen.
    #[error("could not listen on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Output(#[from] output::Error),
    /// The runtime could not be started.
    #[error("could not {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Failed.
pub const FAILED: u8 = 1;
/// Wrong usage or settings.
pub const USAGE: u8 = 2;
/// It ran, and found a problem.
pub const PROBLEM: u8 = 3;
/// The recovery target cannot be reached.
pub const UNREACHABLE: u8 = 4;
/// Proven not in the archive.
pub const ABSENT: u8 = 74;
/// In archive recovery: could not tell, so PostgreSQL must not go on.
pub const STOP_RECOVERY: u8 = 200;

impl Error {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self.class() {
            Class::Usage => USAGE,
            Class::Unreachable => UNREACHABLE,
            Class::Absent => ABSENT,
            Class::Damaged
            | Class::OtherKey
            | Class::Inaccessible
            | Class::Locked
            | Class::Other => FAILED,
        }
    }

    /// The error that knows what kind of failure this is and what helps, if there is one.
    fn cause(&self) -> Option<&dyn Failure> {
        match self {
            Self::Settings(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::Repository(error) => Some(error),
            Self::Postgres(error) => Some(error),
            Self::Wal(error) => Some(error),
            Self::Backup(error) => Some(error),
            Self::Receive(error) => Some(error),
            Self::Restore(error) => Some(error),
            Self::Verify(error) => Some(error),
            Self::Retention(error) => Some(error),
            Self::Copy(error) => Some(error),
            Self::Drill(error) => Some(error),
            Self::Fetch { source, .. } => Some(&**source),
            Self::Keys { .. }
            | Self::File { .. }
            | Self::Socket { .. }
            | Self::Output(_)
            | Self::System { .. } => None,
        }
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        self.cause().map_or(Class::Other, Failure::class)
    }

    fn hint(&self) -> Option<Advice> {
        if let Self::Socket { .. } = self {
            return Some(
                    "the setting `socket` names it: its directory must be there and belong to the user that runs the daemon, and \
                     no other daemon may listen on it"
                        .into(),
                );
        }
        if let Self::Keys { source, .. } = self {
            return keys_hint(source).map(Into::into);
        }
        self.cause().and_then(Failure::hint)
    }
}

fn keys_hint(error: &IdentityError) -> Option<&'static str> {
    let IdentityError::Read(error) = error else {
        return None;
    };
    Some(match error.kind() {
        ErrorKind::AlreadyExists => {
            "keygen overwrites nothing: what was encrypted to the identity in this file needs it; name another file"
        }
        ErrorKind::NotFound => "see whether the file, or the directory it is to lie in, is there",
        ErrorKind::PermissionDenied => "run the command as the user who may use the file",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhalla_providers::Operation;

    #[test]
    fn absence_is_answered_to_who_asked_for_the_file() {
        let absent = || wal::Error::NotArchived {
            file: "000000010000000000000001".parse().unwrap(),
            archive: "file:///store".to_owned(),
        };
        assert_eq!(Error::from(absent()).exit_code(), ABSENT);
        assert_eq!(
            Error::from(restore::Error::from(absent())).exit_code(),
            ABSENT
        );
        assert_eq!(
            Error::from(backup::Error::from(absent())).exit_code(),
            FAILED
        );
        let gone = walhalla_providers::Error::new(
            Operation::Get,
            "x",
            walhalla_providers::ErrorKind::NotFound,
        );
        let gone = wal::Error::from(repository::Error::from(gone));
        assert_eq!(Error::from(gone).exit_code(), FAILED);
    }

    #[test]
    fn a_wrong_key_is_the_users_fault_only_where_the_user_named_it() {
        let invalid =
            || StoreError::new(Operation::Open, "x", walhalla_providers::ErrorKind::Invalid);
        assert_eq!(Error::from(invalid()).exit_code(), USAGE);
        assert_eq!(
            Error::from(repository::Error::from(invalid())).exit_code(),
            FAILED
        );
    }
}
