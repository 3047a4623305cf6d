//! Debts in the first of two stores: what the second one is [owed](super::owed).
//!
//! ```text
//! <system identifier>/owed/<digest of the second one's URL>/<WAL file>.json, <id>.json
//! ```

use jiff::Timestamp;
use serde::Serialize;
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo, PutMode};

use super::Repository;
use super::layout::Key;
use super::owed::{MirrorId, Owed};

/// The format of a debt's content.
const FORMAT: u32 = 1;

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

impl Repository {
    /// Records that the store at the URL `to` is owed something. After `Ok` the record is durable.
    ///
    /// # Errors
    /// The store's.
    pub fn owe(&self, id: MirrorId, owed: &Owed, to: &str) -> Result<(), StoreError> {
        let content = Content {
            format: FORMAT,
            owed_to: to,
            walhalla_version: crate::VERSION,
        };
        let json = serde_json::to_string(&content).expect("texts and numbers are JSON");
        let key = self.layout.key(&Key::Owed(id, owed.clone()));
        match self
            .session
            .put(&key, format!("{json}\n").into(), PutMode::Create)
        {
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(()),
            put => put,
        }
    }

    /// What is recorded as owed to a store: WAL in order, then backups.
    ///
    /// # Errors
    /// The store's.
    pub fn debts(&self, id: MirrorId) -> Result<Vec<RecordedDebt>, StoreError> {
        let found = self.session.list(&self.layout.owed_to(id), None)?;
        let debt = |info: &ObjectInfo| match self.layout.parse(&info.key) {
            Key::Owed(_, owed) => Some(RecordedDebt {
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
    pub fn forget_debt(&self, id: MirrorId, owed: &Owed) -> Result<(), StoreError> {
        self.remove(&[self.layout.key(&Key::Owed(id, owed.clone()))])
    }
}
