//! S3 on a line that fails: the suite of faults, and what only S3 says.
#![allow(clippy::unwrap_used)]

#[path = "../examples/s3_server/server.rs"]
mod server;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use support::shown;
use tempfile::TempDir;
use tokio::net::TcpListener;
use walhalla_providers::s3::S3Store;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::testing::faults::faults_suite;
use walhalla_providers::testing::proxy::{Answer, Ending, Fault, Proxy, Requests, When};
use walhalla_providers::transfer::{S3Settings, Store, StoreSettings};
use walhalla_providers::{ErrorKind, Location, ObjectKey, ObjectStore, PutMode};

const ACCESS_KEY: &str = "walhalla";
const SECRET_KEY: &str = "not-a-secret";

/// The least that S3 takes, so that uploads of several parts are short.
const PART_BYTES: usize = 5 << 20;

async fn serve() -> (SocketAddr, TempDir) {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bucket")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let path = root.path().to_owned();
    tokio::spawn(async move {
        server::serve(listener, &path, ACCESS_KEY, SECRET_KEY, &[])
            .await
            .unwrap();
    });
    (address, root)
}

fn s3_at(endpoint: &str) -> Arc<dyn ObjectStore> {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    let settings = StoreSettings {
        s3: S3Settings {
            part_size_bytes: Some(PART_BYTES),
            ..S3Settings::default()
        },
        ..StoreSettings::default()
    };
    let location = Location::new("s3", "bucket", "some/prefix");
    let client = Client::from_conf(config.build());
    Arc::new(S3Store::with_client(client, location, &settings).unwrap())
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn body() -> Bytes {
    Bytes::from_static(b"some bytes")
}

/// What S3 says, with a status and a code.
fn refusal(status: u16, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>why</Message></Error>");
    Answer::status(status)
        .header("Content-Type", "application/xml")
        .body(&body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_comes_through_every_fault_or_tells_it_in_time() {
    let (server, _root) = serve().await;
    faults_suite(s3_at, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_s3_says_when_it_is_busy_is_survived() {
    let (server, _root) = serve().await;
    let proxy = Proxy::start(server);
    let store = Store::new(s3_at(&proxy.endpoint()), quick_options());
    let said = [
        refusal(500, "InternalError"),
        refusal(503, "ServiceUnavailable"),
        refusal(503, "SlowDown"),
        refusal(503, "SlowDown").header("Retry-After", "1"),
        refusal(400, "RequestTimeout"),
        refusal(409, "ConditionalRequestConflict"),
        refusal(429, "TooManyRequests"),
        // S3 answers so when a long completion fails after its head was sent.
        refusal(200, "InternalError"),
    ];
    for (number, answer) in said.into_iter().enumerate() {
        let key = key(&format!("{number}"));
        let completion = Requests::naming("uploadId").and_method("POST");
        proxy.on(completion, When::Nth(1), Fault::Answer(answer.clone()));
        let mut upload = store.upload(key.clone(), PutMode::Create);
        upload.write(vec![1; PART_BYTES + 1].into()).await.unwrap();
        upload.finish().await.unwrap();
        assert_eq!(
            store.head(&key).await.unwrap().size_bytes,
            PART_BYTES as u64 + 1
        );
        proxy.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_stay_expired_are_told_with_what_to_do() {
    let (server, _root) = serve().await;
    let proxy = Proxy::start(server);
    let store = Store::new(s3_at(&proxy.endpoint()), quick_options());
    for (status, code, kind, hint) in [
        (
            400,
            "ExpiredToken",
            ErrorKind::Unauthenticated,
            "credentials",
        ),
        (
            403,
            "InvalidAccessKeyId",
            ErrorKind::Unauthenticated,
            "credentials",
        ),
        (
            403,
            "RequestTimeTooSkewed",
            ErrorKind::Unauthenticated,
            "clock",
        ),
    ] {
        proxy.always(Fault::Answer(refusal(status, code)));
        let put = store.put(&key("object"), body(), PutMode::Create).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind, kind, "{}", shown(&error));
        let text = shown(&error);
        for part in ["s3://bucket/some/prefix/object", code, "hint", hint] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        proxy.heal();
        // Nothing was cached: with good credentials the next request goes through.
        let head = store.head(&key("object")).await;
        assert!(head.unwrap_err().is_not_found());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_whose_answer_was_lost_is_a_success() {
    let (server, root) = serve().await;
    let proxy = Proxy::start(server);
    let mut options = quick_options();
    options.retry.attempt_timeout = Duration::from_secs(3);
    let store = Store::new(s3_at(&proxy.endpoint()), options);
    for ending in [Ending::Close, Ending::Reset, Ending::Silence] {
        let name = format!("{ending:?}");
        let completion = Requests::naming("uploadId").and_method("POST");
        let before = proxy.count(&completion);
        proxy.on(completion.clone(), When::Nth(1), Fault::LoseAnswer(ending));
        let mut upload = store.upload(key(&name), PutMode::Create);
        upload.write(vec![1; PART_BYTES + 1].into()).await.unwrap();
        upload.finish().await.unwrap();
        assert_eq!(proxy.count(&completion) - before, 2);
        let stored = root.path().join("bucket/some/prefix").join(name);
        assert_eq!(
            std::fs::metadata(stored).unwrap().len(),
            PART_BYTES as u64 + 1
        );
        proxy.heal();
    }
}
