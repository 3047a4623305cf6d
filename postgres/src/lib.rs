#![doc = include_str!("../README.md")]

pub mod backup_label;
pub mod block_table;
pub mod catalogs;
pub mod control;
pub mod limits;
pub mod lsn;
pub mod page;
pub mod relation;
pub mod segment;
pub mod snapshot;
pub mod summary;
pub mod timeline;
pub mod version;
pub mod wal;

pub use control::ControlFile;
pub use limits::Limits;
pub use lsn::Lsn;
pub use relation::{Fork, RelationFile, RelationFiles};
pub use segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
pub use snapshot::Snapshot;
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

/// Text that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not read as what it stands for.
    #[error("invalid {what}: {text:?}")]
    Invalid {
        /// What the text should have been.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// A version of PostgreSQL that is not in the table of [`version`].
    #[error(
        "PostgreSQL {0} is not supported (10 to 18 are, and 9.6 and 19 as far as names differ)"
    )]
    UnsupportedVersion(String),
}

impl Error {
    /// `text` is not `what`.
    pub fn invalid(what: &'static str, text: impl Into<String>) -> Self {
        Self::Invalid {
            what,
            text: text.into(),
        }
    }
}
