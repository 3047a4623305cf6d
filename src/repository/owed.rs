//! What the second of two stores is owed: the first one has it, and the second could not be given it.
//!
//! ```text
//! <system identifier>/owed/<WAL file>.json, <id>.json      in the first store
//! ```

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::WalFileName;
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo, PutMode};

use super::Repository;
use super::entry::BackupId;
use super::layout::Key;

/// The format of a debt's content.
const FORMAT: u32 = 1;

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

/// A debt as the store tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedDebt {
    /// What is owed.
    pub owed: Owed,
    /// Since when, by the store's clock.
    pub since: Timestamp,
}

/// What a debt's object holds, for people; whoever pays goes by the key.
#[derive(Serialize)]
struct Content<'a> {
    format: u32,
    owed_to: &'a str,
    walhalla_version: &'static str,
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

impl Repository {
    /// Records that the store at the URL `to` is owed something. After `Ok` the record is durable.
    ///
    /// # Errors
    /// The store's.
    pub fn owe(&self, owed: &Owed, to: &str) -> Result<(), StoreError> {
        let content = Content {
            format: FORMAT,
            owed_to: to,
            walhalla_version: crate::VERSION,
        };
        let json = serde_json::to_string(&content).expect("texts and numbers are JSON");
        let key = self.layout.key(&Key::Owed(owed.clone()));
        match self
            .session
            .put(&key, format!("{json}\n").into(), PutMode::Create)
        {
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(()),
            put => put,
        }
    }

    /// What is recorded as owed: WAL in order, then backups.
    ///
    /// # Errors
    /// The store's.
    pub fn debts(&self) -> Result<Vec<RecordedDebt>, StoreError> {
        let found = self.session.list(&self.layout.owed(), None)?;
        let debt = |info: &ObjectInfo| match self.layout.parse(&info.key) {
            Key::Owed(owed) => Some(RecordedDebt {
                owed,
                since: info.modified,
            }),
            _ => None,
        };
        Ok(found.iter().filter_map(debt).collect())
    }

    /// Removes the record of a debt.
    ///
    /// # Errors
    /// The store's.
    pub fn forget_debt(&self, owed: &Owed) -> Result<(), StoreError> {
        self.remove(&[self.layout.key(&Key::Owed(owed.clone()))])
    }
}
