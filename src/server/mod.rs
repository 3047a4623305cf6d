//! A running server and its data directory: connecting, asking, and reading what stands on disk.
//!
//! What the files mean is for the crate `walhalla_postgres`. Bytes read from files are checked, never trusted:
//! each reader returns an [`Error`] that names the file, and none of them panics.

pub mod conditions;
pub mod conf;
pub mod connection;
pub mod control_file;
pub mod data_directory;
pub mod old_names;
pub mod postmaster;
pub mod recovery_mode;
mod refused;
pub mod replication;
pub mod session;
pub mod waiting_server;
pub mod wal_directory;

use std::path::{Path, PathBuf};

use walhalla_postgres::{Version, control};

use crate::failure::{Advice, Failure};

/// The version of a data directory.
///
/// # Errors
/// [`Error::Read`], and [`walhalla_postgres::Error::UnsupportedVersion`].
pub fn version(pgdata: &Path) -> Result<Version, Error> {
    let path = pgdata.join("PG_VERSION");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::read(path, source))?;
    Ok(Version::parse(&text)?)
}

/// What can be wrong with a server or its data directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text of PostgreSQL's is not what it should be.
    #[error(transparent)]
    Format(#[from] walhalla_postgres::Error),
    /// A file could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A link where the cluster's own data belongs. Base backups leave links out, and the restored server would go on
    /// without the data.
    #[error("{} is a link, to {}: what is there is the cluster's own data, and no base backup has what a link leads to", path.display(), target.display())]
    LinkedData {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A tablespace whose files are not there.
    #[error("tablespace {oid} has no files in {}, to which {} leads", location.display(), link.display())]
    NoTablespace {
        /// The tablespace.
        oid: u32,
        /// Its link.
        link: PathBuf,
        /// Where that leads.
        location: PathBuf,
    },
    /// A tablespace's folder of a catalog number that is not in the table of versions.
    #[error("{} is of a PostgreSQL whose catalog number this walhalla does not know", folder.display())]
    UnknownCatalog {
        /// The folder.
        folder: PathBuf,
    },
    /// A path that has no spelling where it must be written down.
    #[error("the path of {what} is not UTF-8: {path:?}")]
    NotUtf8 {
        /// Whose it is.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// `pg_control` is damaged or of an unknown layout.
    #[error("{} is not a sound control file: {reason}", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: control::ControlFileDamage,
    },
    /// No data directory could be found.
    #[error("{} is not a PostgreSQL data directory (it has no global/pg_control)", path.display())]
    NotADataDirectory {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The server said no, or could not be reached.
    #[error("{doing} failed")]
    Server {
        /// What was asked of the server.
        doing: &'static str,
        /// The driver's error.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// A setting of the connection that cannot be followed.
    #[error("the connection's setting {name} cannot be followed")]
    Connection {
        /// The variable, or libpq's keyword where there is none.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        problem: connection::Problem,
    },
    /// Nobody answered, or not in a way that lets one in.
    #[error("could not connect to PostgreSQL at {whom}{}", also(.others))]
    NoConnection {
        /// The socket, or host and port; the role and the database.
        whom: String,
        /// What else was tried before, and why that failed.
        others: Vec<String>,
        /// The driver's error.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The server did not let one in in time.
    #[error("PostgreSQL at {whom} did not let this program in within {seconds} s")]
    ConnectionTimeout {
        /// The socket, or host and port; the role and the database.
        whom: String,
        /// The limit.
        seconds: u64,
    },
    /// A server of another kind than `PGTARGETSESSIONATTRS` asks for.
    #[error("the server at {place} is not of the kind that PGTARGETSESSIONATTRS asks for")]
    UnwantedServer {
        /// The socket, or host and port.
        place: String,
    },
}

fn also(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!("; tried before: {}", others.join("; ")),
    }
}

impl Failure for Error {
    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::NotADataDirectory { .. } => {
                "name the data directory with --pgdata or PGDATA, or run in it, as PostgreSQL does"
            }
            Self::LinkedData { .. } => {
                "stop the server, move the data to where the link is, and start it; to have a table on another disk, use a tablespace"
            }
            Self::NoTablespace { .. } => "see whether its file system is mounted",
            Self::UnknownCatalog { .. } => "install a newer walhalla, which knows the release",
            Self::NotUtf8 { .. } => {
                "it has to be written down as text; give it, or what it lies in, another name"
            }
            Self::NoConnection { source, .. } => refused::connecting(source),
            Self::ConnectionTimeout { .. } => {
                "see whether the host and port are right (PGHOST, PGPORT), and whether a firewall is between; PGCONNECT_TIMEOUT sets \
                 the time in seconds"
            }
            Self::Server { source, .. } => return refused::asking(source).map(Into::into),
            Self::Connection { .. } => {
                "correct the variable, or the service file that PGSERVICE and PGSERVICEFILE name; they are read as psql reads them"
            }
            Self::UnwantedServer { .. } => {
                "name a server of that kind in PGHOST, or change PGTARGETSESSIONATTRS (any, primary, standby, …)"
            }
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "run the command as the user to whom the data directory belongs, as a rule postgres"
            }
            Self::Control { .. } => {
                "see whether this is the right data directory and whether its disk is sound; pg_controldata reads the same file"
            }
            Self::Format(_) | Self::Read { .. } => return None,
        };
        Some(text.into())
    }
}

impl Error {
    pub(crate) fn read(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Read {
            path: path.into(),
            source,
        }
    }
}
