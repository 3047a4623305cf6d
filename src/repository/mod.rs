//! One cluster's part of a store: where things are and what is there.
//!
//! [`layout`] is the only place that spells keys. Nothing here overwrites or deletes.

pub mod catalog;
pub mod layout;
mod wal_archive;

use bytes::Bytes;
use tokio::runtime::Handle;
use walhalla_providers::transfer::Store;
use walhalla_providers::{Error as StoreError, ObjectKey};

pub use catalog::{BackupEntry, BackupId, BackupKind, Catalog};
pub use layout::Layout;
pub use wal_archive::{ArchivedFile, WalListing};

use crate::pipeline::{Decoder, ObjectReader};
use crate::postgres::SystemIdentifier;

/// A store, opened for one cluster, for callers on ordinary threads.
#[derive(Clone, Debug)]
pub struct Repository {
    /// The store.
    pub store: Store,
    /// Keys of the cluster.
    pub layout: Layout,
    /// Where requests run.
    pub runtime: Handle,
}

/// What can be wrong with a repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object's content is not what it must be.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        what: &'static str,
        /// The parser's or codec's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A backup that is not in the catalog.
    #[error("there is no backup {id} in {store}")]
    NoSuchBackup {
        /// What was asked for.
        id: String,
        /// Where it was looked for.
        store: String,
    },
    /// No cluster at all.
    #[error("{store} holds no cluster yet")]
    NoCluster {
        /// The store.
        store: String,
    },
    /// Nothing of the cluster that was asked for.
    #[error("{store} holds nothing of the cluster {system_identifier}")]
    NothingOfCluster {
        /// The store.
        store: String,
        /// The cluster.
        system_identifier: SystemIdentifier,
    },
    /// More than one, and none was chosen.
    #[error("{store} holds several clusters: {}", .found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    SeveralClusters {
        /// The store.
        store: String,
        /// The choices.
        found: Vec<SystemIdentifier>,
    },
    /// One file is archived in two forms with different content.
    #[error("{first} and {second} are the same WAL file with different content")]
    TwoContents {
        /// One object.
        first: String,
        /// The other.
        second: String,
    },
}

/// Longest object that is read into memory whole: a `backup.json` or a small WAL file.
const SMALL_OBJECT_BYTES: u64 = 64 << 20;

impl Repository {
    /// The cluster `system_identifier` in `store`.
    pub fn new(store: Store, runtime: Handle, system_identifier: SystemIdentifier) -> Self {
        Self {
            store,
            layout: Layout::new(system_identifier),
            runtime,
        }
    }

    /// The cluster that was chosen, or the only one there is.
    ///
    /// # Errors
    /// [`Error::NoCluster`] and [`Error::SeveralClusters`].
    pub fn choose(
        store: Store,
        runtime: Handle,
        chosen: Option<SystemIdentifier>,
    ) -> Result<Self, Error> {
        if let Some(system_identifier) = chosen {
            return Ok(Self::new(store, runtime, system_identifier));
        }
        let folders = runtime.block_on(store.folders(""))?;
        let found: Vec<SystemIdentifier> = folders
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        match found.as_slice() {
            [] => Err(Error::NoCluster {
                store: store.url().to_owned(),
            }),
            [only] => Ok(Self::new(store, runtime, *only)),
            _ => Err(Error::SeveralClusters {
                store: store.url().to_owned(),
                found,
            }),
        }
    }

    /// The object's full URL, for messages.
    pub fn url(&self, key: &ObjectKey) -> String {
        self.store.object_url(key)
    }

    /// The whole of a small object as it is stored.
    pub fn read_small(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.runtime
            .block_on(self.store.get(key, SMALL_OBJECT_BYTES))
    }

    /// Opens an object for reading its content.
    pub fn open(&self, object: &layout::Object) -> Result<Decoder<ObjectReader>, Error> {
        let reader = ObjectReader::open(&self.store, &self.runtime, &object.key)?;
        Decoder::new(object.codec, reader).map_err(|source| self.damaged(&object.key, source))
    }

    /// The error for an object whose content could not be read to its end.
    pub fn damaged(&self, key: &ObjectKey, source: std::io::Error) -> Error {
        match source.downcast::<StoreError>() {
            Ok(store_error) => Error::Store(store_error),
            Err(source) => Error::Damaged {
                object: self.url(key),
                what: "its content cannot be unpacked",
                source: source.into(),
            },
        }
    }
}
