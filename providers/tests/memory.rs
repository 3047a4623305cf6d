//! The conformance suite over the store in memory, which the other tests lean on.

use std::sync::Arc;

use walhalla_providers::testing::MemoryStore;
use walhalla_providers::{ObjectStore, conformance_tests};

fn memory() -> (Arc<dyn ObjectStore>, ()) {
    (Arc::new(MemoryStore::default()), ())
}

conformance_tests!(memory());
