//! The conformance suite over Azurite, and what only Azure does.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use tempfile::TempDir;
use walhalla_providers::azure::AzureStore;
use walhalla_providers::testing::emulators::Azurite;
use walhalla_providers::transfer::StoreSettings;
use walhalla_providers::{Location, ObjectStore, conformance_tests};

conformance_tests!(azure().await);

async fn azure() -> (Arc<dyn ObjectStore>, Server) {
    let server = Server::start();
    (Arc::new(server.store("container")), server)
}

struct Server {
    azurite: Azurite,
    _dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            azurite: Azurite::start(dir.path()),
            _dir: dir,
        }
    }

    fn store(&self, container: &str) -> AzureStore {
        let string = self.azurite.connection_string();
        store_with(
            Location::new("az", container, "some/prefix"),
            &[("AZURE_STORAGE_CONNECTION_STRING", &string)],
        )
    }
}

fn store_with(location: Location, variables: &[(&str, &str)]) -> AzureStore {
    AzureStore::with_variables(location, &StoreSettings::default(), |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
    .unwrap()
}
