//! What the second of two stores is owed: the first one has it, and the second could not be given it.

use std::fmt;
use std::str::FromStr;

use walhalla_postgres::WalFileName;

use super::entry::BackupId;

/// What tells debts to one store from those to another: a digest of its URL, shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MirrorId(u64);

/// When something counts as archived that two stores are to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MirrorMode {
    /// When both have it.
    #[default]
    Both,
    /// When the first has it, and it is recorded that the second is owed it.
    Owed,
}

/// What the second store is to get.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owed {
    /// A WAL file, and the summary of a segment.
    Wal(WalFileName),
    /// A backup, the WAL from its begin on, and what was said of it.
    Backup(BackupId),
}

impl MirrorId {
    /// That of the store at a URL.
    pub fn of(url: &str) -> Self {
        let digest = blake3::hash(url.as_bytes());
        let first = digest.as_bytes().first_chunk().copied();
        Self(u64::from_be_bytes(first.unwrap_or_default()))
    }
}

impl fmt::Display for MirrorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for MirrorId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl FromStr for MirrorMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "both" => Ok(Self::Both),
            "owed" => Ok(Self::Owed),
            _ => Err(format!("{text:?} is neither both nor owed")),
        }
    }
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal(file) => write!(f, "{file}"),
            Self::Backup(id) => write!(f, "{id}"),
        }
    }
}

impl FromStr for Owed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let file = text.parse().map(Self::Wal);
        file.or_else(|_| text.parse().map(Self::Backup).map_err(drop))
    }
}
