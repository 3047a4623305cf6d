//! A repository for unit tests.

use std::sync::Arc;

use walhalla_providers::testing::MemoryStore;
use walhalla_providers::transfer::{Options, Store};

use super::Repository;
use crate::pipeline::Identities;
use crate::session::{Network, StoreSession};

/// An empty one in memory.
pub(super) fn in_memory(network: &Network) -> Repository {
    let options = Options {
        upload_concurrency: 2,
        download_concurrency: 2,
        ..Options::default()
    };
    let store = Store::new(Arc::new(MemoryStore::new(1 << 20)), options);
    let identifier = "7710533931497189584".parse().unwrap();
    let session = StoreSession::new(store, network);
    Repository::new(session, Identities::default(), identifier)
}
