//! The conformance suite over GCS, spoken over HTTP, and what only GCS does.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use google_cloud_auth::credentials::anonymous;
use tempfile::TempDir;
use walhalla_providers::gcs::GcsStore;
use walhalla_providers::testing::emulators::FakeGcs;
use walhalla_providers::transfer::StoreSettings;
use walhalla_providers::{Location, ObjectStore, conformance_tests};

conformance_tests!(emulator());

fn emulator() -> (Arc<dyn ObjectStore>, (FakeGcs, TempDir)) {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeGcs::start(dir.path());
    let store = store_at(&server.endpoint(), FakeGcs::BUCKET);
    (Arc::new(store), (server, dir))
}

fn store_at(endpoint: &str, bucket: &str) -> GcsStore {
    GcsStore::with_credentials(
        Location::new("gs", bucket, "some/prefix"),
        &StoreSettings::default(),
        endpoint,
        anonymous::Builder::new().build(),
    )
    .unwrap()
}
