//! The conformance suite over SeaweedFS: a second S3 server, that shares no code with the first.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use tempfile::TempDir;
use walhalla_providers::s3::S3Store;
use walhalla_providers::transfer::{ConditionalWrites, S3Settings, StoreSettings};
use walhalla_providers::{Location, ObjectKey, ObjectStore, conformance_tests};

// What SeaweedFS 4.48 does otherwise, and why no harm comes of it:
const LEFT_OUT: [&str; 4] = [
    // It looks for the object and completes an upload in two steps, so that of uploads completed at the same moment
    // more than one can win; that is why WAL goes up in single puts (`Upload::whole_up_to`), which it keeps apart.
    "one_of_racing_uploads_wins",
    // It sorts folders among files by their names without the slash, and begins a listing in that order; nothing
    // lists from a start where there are folders.
    "listings_of_folders_start_anywhere",
    // It takes a backslash for a slash; no key has one.
    "backslashes_in_keys_survive",
    // It goes on listing an emptied folder for a while; a cluster without a backup and WAL is shown as that.
    "empty_folders_vanish",
];
conformance_tests!(on one server but LEFT_OUT; seaweedfs().await);

#[tokio::test]
async fn the_past_is_shown_where_versions_are_kept() {
    let (store, weed) = seaweedfs().await;
    walhalla_providers::testing::past::the_past_is_refused(Arc::clone(&store)).await;
    store.delete(&[ObjectKey::new("a").unwrap()]).await.unwrap();
    let versioning = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .build();
    let switched = weed.client.put_bucket_versioning().bucket(BUCKET);
    switched
        .versioning_configuration(versioning)
        .send()
        .await
        .unwrap();
    walhalla_providers::testing::past::the_past_is_shown(store).await;
}

const BUCKET: &str = "bucket";
const ACCESS_KEY: &str = "walhalla";
const SECRET_KEY: &str = "not-a-secret";
const START_LIMIT: Duration = Duration::from_mins(1);

/// SeaweedFS's processes in one, ended with the test.
struct Weed {
    process: Child,
    client: Client,
    _dir: TempDir,
}

async fn seaweedfs() -> (Arc<dyn ObjectStore>, Weed) {
    let (weed, client) = start().await;
    let settings = StoreSettings {
        s3: S3Settings {
            conditional_writes: Some(ConditionalWrites::Probe),
            ..S3Settings::default()
        },
        ..StoreSettings::default()
    };
    let location = Location::new("s3", BUCKET, "some/prefix");
    let store = S3Store::with_client(client, location, &settings).unwrap();
    (Arc::new(store), weed)
}

/// A server that has its bucket; another one if a port was taken in between.
async fn start() -> (Weed, Client) {
    let begun = Instant::now();
    loop {
        let ports = free_ports();
        let mut weed = Weed::spawn(ports);
        let client = weed.client.clone();
        while weed.process.try_wait().unwrap().is_none() {
            if client.create_bucket().bucket(BUCKET).send().await.is_ok() {
                return (weed, client);
            }
            assert!(begun.elapsed() < START_LIMIT, "SeaweedFS does not start");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Weed {
    fn spawn([s3, master, volume, filer]: [u16; 4]) -> Self {
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/emulators/seaweedfs/weed");
        assert!(
            program.exists(),
            "{} is missing; `make setup` installs it",
            program.display()
        );
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("s3.json");
        let identity = format!(
            r#"{{"identities": [{{"name": "walhalla", "actions": ["Admin", "Read", "Write", "List"],
                "credentials": [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}]}}]}}"#
        );
        std::fs::write(&config, identity).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let process = Command::new(program)
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"])
            .args(["-master.telemetry=false", "-master.volumeSizeLimitMB=256"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            client: client(&format!("http://127.0.0.1:{s3}")),
            _dir: dir,
        }
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ports that are free, and so are those 10,000 above, which SeaweedFS opens too; below those that
/// the system gives to connections.
fn free_ports() -> [u16; 4] {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = Vec::new();
    while ports.len() < 4 {
        let port = fastrand::u16(10_240..22_000);
        if is_free(port) && is_free(port + 10_000) && !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports.try_into().unwrap()
}

fn client(endpoint: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}
