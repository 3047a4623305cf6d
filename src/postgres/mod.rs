//! What PostgreSQL defines: names, files and functions, for every version in one place.
//!
//! Nothing here knows of archives or stores. Bytes read from files are checked, never trusted:
//! each parser returns an [`Error`] that names the file, and none of them panics.

pub mod backup_label;
pub mod catalogs;
pub mod conf;
pub mod connection;
pub mod control;
pub mod data_directory;
pub mod limits;
pub mod lsn;
pub mod page;
pub mod postmaster;
pub mod relation;
pub mod segment;
pub mod server;
pub mod timeline;
pub mod version;

use std::path::PathBuf;

pub use control::ControlFile;
pub use limits::Limits;
pub use lsn::Lsn;
pub use relation::{Fork, RelationFile, RelationFiles};
pub use segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
pub use timeline::{History, TimelineId};
pub use version::Version;

/// Identifies a cluster since `initdb` (`pg_control`'s `system_identifier`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

impl std::fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::str::FromStr for SystemIdentifier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse()
            .map(Self)
            .map_err(|_| Error::invalid("system identifier", text))
    }
}

impl serde::Serialize for SystemIdentifier {
    /// As text: a JSON number would lose digits in many readers.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What can be wrong with something of PostgreSQL's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// A path that has no spelling where it must be written down.
    #[error("the path of {what} is not UTF-8: {path:?}")]
    NotUtf8 {
        /// Whose it is.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Text that is not what it should be.
    #[error("invalid {what}: {text:?}")]
    Invalid {
        /// What the text should have been.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// `pg_control` is damaged or of an unknown layout.
    #[error("{} is not a sound control file: {reason}", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: control::Damage,
    },
    /// No data directory could be found.
    #[error("{} is not a PostgreSQL data directory (it has no global/pg_control)", path.display())]
    NotADataDirectory {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A version this program does not know.
    #[error(
        "PostgreSQL {0} is not supported (10 to 18 are, and 9.6 and 19 as far as names differ)"
    )]
    UnsupportedVersion(String),
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
    #[error("could not connect to PostgreSQL at {place}")]
    NoConnection {
        /// The socket, or host and port.
        place: String,
        /// The driver's error.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The server did not let one in in time.
    #[error("connecting to PostgreSQL at {place} did not finish within {seconds} s")]
    ConnectionTimeout {
        /// The socket, or host and port.
        place: String,
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

impl Error {
    pub(crate) fn invalid(what: &'static str, text: impl Into<String>) -> Self {
        Self::Invalid {
            what,
            text: text.into(),
        }
    }

    pub(crate) fn read(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Read {
            path: path.into(),
            source,
        }
    }
}
