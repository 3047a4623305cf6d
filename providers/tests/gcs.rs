//! The conformance suite over GCS, spoken over HTTP, and what only GCS does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // tests: a panic is the report

#[path = "gcs/server.rs"]
mod server;
mod support;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use google_cloud_auth::credentials::anonymous;
use google_cloud_storage::streaming_source::StreamingSource;
use server::{Fault, GcsServer};
use support::{all_kinds, answer, shown};
use tempfile::TempDir;
use tokio::net::TcpListener;
use walhalla_providers::gcs::GcsStore;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::testing::emulators::FakeGcs;
use walhalla_providers::testing::{Call, Fault as StoreFault, FaultyStore};
use walhalla_providers::transfer::{GcsSettings, Store, StoreSettings, open};
use walhalla_providers::{
    Error, ErrorKind, ListRequest, Location, ObjectKey, ObjectStore, PartAt, PutMode, PutToken,
    Right, UploadId,
};

mod on_the_emulator {
    use super::emulator;

    /// It forgets the conditions of resumable uploads (<https://github.com/fsouza/fake-gcs-server/issues/1967>); the
    /// strict server shows that they are sent and kept.
    const LEFT_OUT: [&str; 2] = ["an_upload_creates_once", "one_of_racing_uploads_wins"];

    walhalla_providers::conformance_tests!(each on a server but LEFT_OUT; emulator());
}

mod on_the_strict_server {
    use super::strict;

    walhalla_providers::conformance_tests!(strict().await);
}

const PART: usize = 16 << 20;
const QUANTUM: usize = 256 << 10;

fn emulator() -> (Arc<dyn ObjectStore>, (FakeGcs, TempDir)) {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeGcs::start(dir.path());
    let store = store_at(&server.endpoint(), FakeGcs::BUCKET);
    (Arc::new(store), (server, dir))
}

#[tokio::test]
async fn the_past_is_shown_where_versions_are_kept() {
    let (store, _server) = emulator();
    walhalla_providers::testing::past::the_past_is_refused(store).await;
    let dir = tempfile::tempdir().unwrap();
    let server = FakeGcs::start_with_versions(dir.path());
    let store = store_at(&server.endpoint(), FakeGcs::BUCKET);
    walhalla_providers::testing::past::the_past_is_shown(Arc::new(store)).await;
}

async fn strict() -> (Arc<dyn ObjectStore>, GcsServer) {
    let server = GcsServer::start().await;
    (Arc::new(store_at(&server.endpoint, server::BUCKET)), server)
}

fn store_at(endpoint: &str, bucket: &str) -> GcsStore {
    store_with(endpoint, bucket, GcsSettings::default())
}

fn store_with(endpoint: &str, bucket: &str, gcs: GcsSettings) -> GcsStore {
    let settings = StoreSettings {
        gcs,
        ..StoreSettings::default()
    };
    let location = Location::new("gs", bucket, "some/prefix");
    let nobody = anonymous::Builder::new().build();
    GcsStore::with_endpoint(location, &settings, endpoint, Some(nobody)).unwrap()
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn bytes(length: usize) -> Bytes {
    (0..=250_u8).cycle().take(length).collect()
}

async fn read(store: &Store, name: &str) -> Bytes {
    store.get(&key(name), u64::MAX).await.unwrap()
}

async fn upload(store: &Store, name: &str, body: Bytes) -> Result<u64, Error> {
    let mut upload = store.upload(key(name), PutMode::Create);
    upload.write(body).await?;
    upload.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_bucket_is_not_an_empty_one() {
    let (_, (emulator, _dir)) = emulator();
    let (_, strict) = strict().await;
    for endpoint in [&emulator.endpoint(), &strict.endpoint] {
        let mut kinds = all_kinds(&store_at(endpoint, "no-such-bucket"), "no-upload").await;
        assert_eq!(
            kinds.pop(),
            Some(ErrorKind::NotFound),
            "an upload that nobody began"
        );
        assert_eq!(kinds, [ErrorKind::StoreMissing; 7], "{endpoint}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_unavailable() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let store = store_at(&format!("http://{closed}"), server::BUCKET);
    let mut kinds = all_kinds(&store, "no-upload").await;
    assert_eq!(kinds.pop(), Some(ErrorKind::NotFound));
    assert_eq!(kinds, [ErrorKind::Unavailable; 7]);
    let upload = UploadId(format!("http://{closed}/upload?upload_id=secret"));
    let error = store.abort_upload(&key("x"), &upload).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(!shown(&error).contains("secret"), "{}", shown(&error));
    assert!(!format!("{upload:?}").contains("secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_token_is_unauthenticated() {
    let (store, server) = strict().await;
    server.demand_tokens(Duration::from_hours(1), Duration::from_hours(1));
    let mut kinds = all_kinds(&*store, "no-upload").await;
    assert_eq!(kinds.pop(), Some(ErrorKind::NotFound));
    assert_eq!(kinds, [ErrorKind::Unauthenticated; 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_changed_in_the_store_are_corrupted() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    store
        .put(&key("object"), body("the bytes"), PutMode::Create)
        .await
        .unwrap();
    server.damage("some/prefix/object");
    let error = store.get(&key("object"), 100).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted, "{}", shown(&error));
    let mut part = store.read(&key("object"), 2, Some(3)).await.unwrap();
    assert_eq!(part.next().await.unwrap().unwrap(), "e b");
    assert_eq!(part.next().await.unwrap(), None, "a part has no checksum");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_knows_its_own_object_after_a_lost_answer() {
    let (inner, _server) = strict().await;
    let faulty = FaultyStore::new(inner);
    let store = Store::new(Arc::new(faulty.clone()), quick_options());
    faulty.on(Call::Put, 1, StoreFault::LoseAnswer);
    store
        .put(&key("put"), body("mine"), PutMode::Create)
        .await
        .unwrap();
    assert_eq!(faulty.calls(Call::Put), 2);

    faulty.on(Call::PutPart, 1, StoreFault::LoseAnswer);
    faulty.on(Call::PutPart, 3, StoreFault::LoseAnswer);
    faulty.on(Call::CompleteUpload, 1, StoreFault::LoseAnswer);
    assert_eq!(
        upload(&store, "upload", bytes(PART + 9)).await.unwrap(),
        PART as u64 + 9
    );
    assert_eq!(faulty.calls(Call::PutPart), 4);
    assert_eq!(faulty.calls(Call::CompleteUpload), 2);
    assert!(read(&store, "upload").await == bytes(PART + 9));

    faulty.on(Call::Put, 3, StoreFault::Fail(ErrorKind::Unavailable));
    let refused = store
        .put(&key("put"), body("another's"), PutMode::Create)
        .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::AlreadyExists);
    assert_eq!(read(&store, "put").await, "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_sees_only_what_lies_below_its_prefix() {
    let (store, server) = strict().await;
    let nobody = anonymous::Builder::new().build();
    let beside = Location::new("gs", server::BUCKET, "some");
    let settings = StoreSettings::default();
    let beside = GcsStore::with_endpoint(beside, &settings, &server.endpoint, Some(nobody));
    let beside = Store::new(Arc::new(beside.unwrap()), quick_options());
    for name in ["prefix2/x/y", "other"] {
        beside
            .put(&key(name), body("x"), PutMode::Create)
            .await
            .unwrap();
    }
    let store = Store::new(store, quick_options());
    store
        .put(&key("a/b"), body("x"), PutMode::Create)
        .await
        .unwrap();
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
    assert_eq!(store.folders("").await.unwrap(), ["a"]);
    assert_eq!(store.url(), "gs://bucket/some/prefix");
    assert_eq!(store.object_url(&key("a/b")), "gs://bucket/some/prefix/a/b");
    assert!(
        server
            .object_names()
            .contains(&"some/prefix/a/b".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ways_of_writing_say_what_the_object_is_to_be() {
    let server = GcsServer::start().await;
    let kms_key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
    let settings = GcsSettings {
        kms_key: Some(kms_key.to_owned()),
        storage_class: Some("NEARLINE".to_owned()),
    };
    let store = store_with(&server.endpoint, server::BUCKET, settings);
    let token = PutToken::random();
    for (mode, condition) in [(PutMode::Create, Some("0")), (PutMode::Overwrite, None)] {
        let object = key(&format!("{mode:?}"));
        store.put(&object, body("x"), mode, &token).await.unwrap();
        store.start_upload(&object, mode, &token).await.ok();
        let seen = server.take_seen();
        assert_eq!(seen.len(), 2);
        for seen in seen {
            assert_eq!(seen.query["kmsKeyName"], kms_key);
            let sent = seen.query.get("ifGenerationMatch").map(String::as_str);
            assert_eq!(sent, condition, "{:?}", seen.query);
            assert_eq!(seen.resource["storageClass"], "NEARLINE");
            assert_eq!(seen.resource["metadata"]["walhalla-token"], token.as_str());
            let name = format!("some/prefix/{object}");
            assert_eq!(seen.resource["name"], name.as_str());
            assert_eq!(seen.query["name"], name);
        }
    }
    let info = store.head(&key("Create")).await.unwrap();
    assert_eq!(info.token, Some(token));
    assert_eq!(info.modified.to_string(), "2026-11-21T04:30:00.123Z");

    let plain = store_at(&server.endpoint, server::BUCKET);
    plain
        .put(
            &key("plain"),
            body("x"),
            PutMode::Create,
            &PutToken::random(),
        )
        .await
        .unwrap();
    let seen = server.take_seen().pop().unwrap();
    assert!(!seen.query.contains_key("kmsKeyName"));
    assert!(seen.resource.get("storageClass").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_go_one_after_the_other_and_the_last_bytes_end_the_upload() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    upload(&store, "odd", bytes(2 * PART + 5)).await.unwrap();
    assert_eq!(
        server.take_ranges(),
        [
            "bytes 0-16777215/*",
            "bytes 16777216-33554431/*",
            "bytes 33554432-33554436/33554437"
        ]
    );
    upload(&store, "even", bytes(2 * PART)).await.unwrap();
    assert_eq!(
        server.take_ranges(),
        [
            "bytes 0-16777215/*",
            "bytes 16777216-33554431/*",
            "bytes */33554432"
        ]
    );
    assert!(read(&store, "odd").await == bytes(2 * PART + 5));
    assert!(read(&store, "even").await == bytes(2 * PART));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_refused_at_its_beginning_where_the_server_looks_then() {
    let (store, server) = strict().await;
    server.look_at_conditions_early();
    let store = Store::new(store, quick_options());
    store
        .put(&key("taken"), body("first"), PutMode::Create)
        .await
        .unwrap();
    let mut refused = store.upload(key("taken"), PutMode::Create);
    let error = refused.write(bytes(PART + 1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    assert!(server.take_ranges().is_empty(), "nothing was sent");
    assert_eq!(read(&store, "taken").await, "first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_that_the_server_kept_is_continued_and_not_sent_again() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    server.meet([
        Fault::Keep(QUANTUM),
        Fault::Keep(2 * QUANTUM),
        Fault::Pass,
        Fault::Keep(3),
    ]);
    upload(&store, "told", bytes(PART + 9)).await.unwrap();
    assert_eq!(
        server.take_ranges(),
        [
            "bytes 0-16777215/*",
            "bytes 262144-16777215/*",
            "bytes 786432-16777215/*",
            "bytes 16777216-16777224/16777225",
            "bytes 16777219-16777224/16777225"
        ]
    );
    assert!(read(&store, "told").await == bytes(PART + 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_no_answer_the_server_is_asked_how_far_it_has_come() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    server.meet([
        Fault::KeepAndHangUp(4 * QUANTUM),
        Fault::KeepAndHangUp(0),
        Fault::LoseAnswer,
        Fault::KeepAndHangUp(4),
    ]);
    upload(&store, "asked", bytes(PART + 9)).await.unwrap();
    assert_eq!(
        server.take_ranges(),
        [
            "bytes 0-16777215/*",
            "bytes */*",
            "bytes 1048576-16777215/*",
            "bytes */*",
            "bytes 1048576-16777215/*",
            "bytes */*",
            "bytes 16777216-16777224/16777225",
            "bytes */*",
            "bytes 16777220-16777224/16777225"
        ]
    );
    assert!(read(&store, "asked").await == bytes(PART + 9));
}

/// Why `gcs/uploads.rs` is there (<https://github.com/googleapis/google-cloud-rust/issues/6685>). When this test fails,
/// see whether uploads in parts can go through Google's crate (`docs/decisions/0049-gcs-through-googles-crate.md`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_cloud_storage_loses_a_part() {
    let server = GcsServer::start().await;
    let client = google_cloud_storage::client::Storage::builder()
        .with_endpoint(&server.endpoint)
        .with_credentials(anonymous::Builder::new().build())
        .with_resumable_upload_buffer_size(QUANTUM)
        .build()
        .await
        .unwrap();
    server.meet([Fault::Pass, Fault::KeepAndHangUp(0)]);
    let parts = (0..3).map(|part| Bytes::from(vec![b'a' + part; QUANTUM]));
    let bucket = format!("projects/_/buckets/{}", server::BUCKET);
    let write = client.write_object(bucket, "some/prefix/x", Parts(parts));
    let written = Box::pin(write.send_buffered()).await;
    assert!(written.is_err(), "{written:?}");
    // The second part was on its way when the connection broke: it is not sent again, nor asked for.
    assert_eq!(
        server.take_ranges(),
        [
            "bytes 0-262143/*",
            "bytes 262144-524287/*",
            "bytes 262144-524287/*",
            "bytes */524288"
        ]
    );
    let store = Store::new(
        Arc::new(store_at(&server.endpoint, server::BUCKET)),
        quick_options(),
    );
    let stored = read(&store, "x").await;
    assert_eq!(stored.len(), 2 * QUANTUM, "stored in spite of the error");
    assert!(stored[QUANTUM..].iter().all(|byte| *byte == b'c'));
}

/// Parts of a body that does not say how long it will be.
struct Parts<I>(I);

impl<I> StreamingSource for Parts<I>
where
    I: Iterator<Item = Bytes> + Send + Sync,
{
    type Error = Infallible;

    async fn next(&mut self) -> Option<Result<Bytes, Infallible>> {
        self.0.next().map(Ok)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_last_answer_is_recognised() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    for (name, length) in [("tail", PART + 9), ("full", PART * 2)] {
        let parts = length / PART;
        server.meet(vec![Fault::Pass; parts]);
        server.meet([Fault::LoseAnswer]);
        upload(&store, name, bytes(length)).await.unwrap();
        assert_eq!(server.take_ranges().last().unwrap(), "bytes */*");
        assert!(read(&store, name).await == bytes(length));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_nothing_is_asked_again_only_by_the_retries() {
    let (store, server) = strict().await;
    let upload = store
        .start_upload(&key("x"), PutMode::Create, &PutToken::random())
        .await
        .unwrap();
    server.meet([Fault::Keep(0)]);
    let part = store
        .put_part(&key("x"), &upload, PartAt::FIRST, bytes(PART))
        .await;
    assert_eq!(part.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(server.take_ranges(), ["bytes 0-16777215/*"]);
    store
        .put_part(&key("x"), &upload, PartAt::FIRST, bytes(PART))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_changed_on_the_way_are_refused_and_nothing_is_stored() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    server.meet([Fault::Spoil]);
    let error = upload(&store, "x", bytes(PART + 9)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted, "{}", shown(&error));
    assert!(store.head(&key("x")).await.unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_other_bytes_than_were_sent_is_told_and_never_a_success() {
    let (store, server) = strict().await;
    let store = Store::new(store, quick_options());
    let told = |error: Error| {
        assert_eq!(error.kind, ErrorKind::Other, "{}", shown(&error));
        let words = "stored other bytes than were sent";
        assert!(shown(&error).contains(words), "{}", shown(&error));
        assert!(shown(&error).contains("hint: delete the object and push"));
    };
    server.meet([Fault::OtherChecksum]);
    let put = store.put(&key("put"), body("x"), PutMode::Create).await;
    told(put.unwrap_err());
    // Sent again, it would meet what was stored, with its own token.
    assert_eq!(server.take_seen().len(), 1);

    server.meet([Fault::Pass, Fault::OtherChecksum]);
    let upload = upload(&store, "upload", bytes(PART + 9)).await;
    told(upload.unwrap_err());
    assert_eq!(server.take_ranges().len(), 2);
    assert_eq!(server.object_names().len(), 2, "both are there");

    let resource = r#"{"name":"x","size":"2","crc32c":"uvTtjA=="}"#;
    let store = canned(vec![answer("200 OK", "", resource)]).await;
    let store = Store::new(Arc::new(store), quick_options());
    let put = store.put(&key("x"), body("x"), PutMode::Create).await;
    told(put.unwrap_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_server_forgot_is_not_found() {
    let (store, server) = strict().await;
    for faults in [vec![Fault::Forget], vec![Fault::Pass, Fault::Forget]] {
        server.meet(faults);
        let store = Store::new(Arc::clone(&store), quick_options());
        let error = upload(&store, "x", bytes(PART + 9)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{}", shown(&error));
        assert!(!shown(&error).contains("upload_id"), "{}", shown(&error));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_in_another_order_or_with_other_receipts_are_invalid() {
    let (store, _server) = strict().await;
    let object = key("x");
    let upload = store
        .start_upload(&object, PutMode::Create, &PutToken::random())
        .await
        .unwrap();
    let put = |number: u32, body| {
        let offset = u64::from(number - 1) * PART as u64;
        store.put_part(&object, &upload, PartAt { number, offset }, body)
    };
    let kind = |part: Result<_, Error>| part.err().map(|error| error.kind);
    assert_eq!(kind(put(2, bytes(PART)).await), Some(ErrorKind::Invalid));
    assert_eq!(
        kind(put(1, bytes(PART + 1)).await),
        Some(ErrorKind::Invalid)
    );
    let first = put(1, bytes(PART)).await.unwrap();
    assert_eq!(kind(put(1, body("other")).await), Some(ErrorKind::Invalid));
    let tail = put(2, body("end")).await.unwrap();
    assert_eq!(kind(put(3, body("more")).await), Some(ErrorKind::Invalid));
    let parts = std::slice::from_ref(&first);
    let complete = store
        .complete_upload(&object, &upload, parts, PutMode::Create)
        .await;
    assert_eq!(complete.unwrap_err().kind, ErrorKind::Invalid);
    let parts = [first, tail];
    store
        .complete_upload(&object, &upload, &parts, PutMode::Create)
        .await
        .unwrap();
    assert_eq!(kind(put(3, body("more")).await), Some(ErrorKind::NotFound));
}

/// A store whose server gives these answers.
async fn canned(answers: Vec<String>) -> GcsStore {
    store_at(&support::canned(answers).await, server::BUCKET)
}

fn refusal(status: &str, reason: &str, message: &str) -> String {
    let body = format!(
        r#"{{"error":{{"code":1,"message":"{message}","errors":[{{"domain":"global","reason":"{reason}"}}]}}}}"#
    );
    answer(status, "Content-Type: application/json\r\n", &body)
}

fn listing(names: &[&str]) -> String {
    let items = names.iter().map(|name| {
        format!(r#"{{"name":"{name}","size":"1","timeCreated":"2026-11-21T04:30:00Z"}}"#)
    });
    let items = items.collect::<Vec<_>>().join(",");
    let body = format!(r#"{{"kind":"storage#objects","items":[{items}]}}"#);
    answer("200 OK", "", &body)
}

#[tokio::test]
async fn an_absence_is_proven_by_an_answer_that_names_the_object_or_by_a_listing() {
    let named = "No such object: bucket/some/prefix/x";
    let other = "No such object: bucket/some/prefix/y";
    let no_bucket = "The specified bucket does not exist.";
    let html = answer(
        "404 Not Found",
        "",
        "<html><body>no such page</body></html>",
    );
    let bare = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n".to_owned();
    let unclear = refusal("404 Not Found", "notFound", "Not Found");
    let more = r#"{"kind":"storage#objects","nextPageToken":"x"}"#;
    let cases = [
        (
            vec![refusal("404 Not Found", "notFound", named)],
            ErrorKind::NotFound,
        ),
        (
            vec![answer("404 Not Found", "", named)],
            ErrorKind::NotFound,
        ),
        (
            vec![refusal("404 Not Found", "notFound", no_bucket)],
            ErrorKind::StoreMissing,
        ),
        (
            vec![refusal("403 Forbidden", "forbidden", "why")],
            ErrorKind::PermissionDenied,
        ),
        (vec![unclear.clone(), listing(&[])], ErrorKind::NotFound),
        (
            vec![refusal("404 Not Found", "", other), listing(&[])],
            ErrorKind::NotFound,
        ),
        (
            vec![
                unclear.clone(),
                listing(&["some/prefix/x/below", "some/prefix/xy"]),
            ],
            ErrorKind::NotFound,
        ),
        (
            vec![unclear.clone(), listing(&["some/prefix/x"])],
            ErrorKind::Conflict,
        ),
        (
            vec![unclear.clone(), answer("200 OK", "", more)],
            ErrorKind::Conflict,
        ),
        (
            vec![unclear.clone(), unclear.clone()],
            ErrorKind::StoreMissing,
        ),
        (vec![html.clone(), html.clone()], ErrorKind::Other),
        (vec![bare.clone(), bare], ErrorKind::Other),
        (
            vec![html.clone(), answer("200 OK", "", "{}")],
            ErrorKind::Other,
        ),
        (
            vec![html.clone(), answer("200 OK", "", "<html>")],
            ErrorKind::Unavailable,
        ),
        (
            vec![html, refusal("403 Forbidden", "forbidden", "no list")],
            ErrorKind::PermissionDenied,
        ),
    ];
    for (answers, kind) in cases {
        let of_head = canned(answers.clone()).await.head(&key("x")).await;
        let error = of_head.unwrap_err();
        assert_eq!(error.kind, kind, "{answers:?}: {}", shown(&error));
        let of_get = canned(answers.clone()).await.get(&key("x"), 0, None).await;
        assert_eq!(of_get.err().unwrap().kind, kind, "{answers:?}");
        let of_delete = canned(answers).await.delete(&[key("x")]).await;
        let error =
            of_delete.map_or_else(Some, |refused| refused.into_iter().next().map(|one| one.1));
        assert_eq!(
            error.map(|error| error.kind),
            (kind != ErrorKind::NotFound).then_some(kind)
        );
    }
}

#[tokio::test]
async fn answers_to_a_create_have_their_kinds() {
    let throttled = answer("503 Service Unavailable", "Retry-After: 7\r\n", "");
    let cases = [
        (
            refusal("412 Precondition Failed", "conditionNotMet", "why"),
            ErrorKind::AlreadyExists,
        ),
        (
            refusal("409 Conflict", "conflict", "why"),
            ErrorKind::Conflict,
        ),
        (
            refusal("500 Internal Server Error", "internalError", "why"),
            ErrorKind::Unavailable,
        ),
        (
            refusal("401 Unauthorized", "authError", "why"),
            ErrorKind::Unauthenticated,
        ),
        (
            refusal("403 Forbidden", "forbidden", "why"),
            ErrorKind::PermissionDenied,
        ),
        (
            refusal("403 Forbidden", "rateLimitExceeded", "why"),
            ErrorKind::Throttled(None),
        ),
        (
            refusal(
                "400 Bad Request",
                "invalid",
                "Provided CRC32C does not match",
            ),
            ErrorKind::Corrupted,
        ),
        (
            refusal("400 Bad Request", "invalid", "why"),
            ErrorKind::Invalid,
        ),
        (
            throttled,
            ErrorKind::Throttled(Some(Duration::from_secs(7))),
        ),
        (
            answer("502 Bad Gateway", "", "<html>"),
            ErrorKind::Unavailable,
        ),
        (
            answer("429 Too Many Requests", "", ""),
            ErrorKind::Throttled(None),
        ),
        (answer("408 Request Timeout", "", ""), ErrorKind::TimedOut),
        (
            answer("507 Insufficient Storage", "", ""),
            ErrorKind::NoSpace,
        ),
        (
            answer("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
            ErrorKind::Invalid,
        ),
        (answer("200 OK", "", "<html>"), ErrorKind::Unavailable),
        (answer("200 OK", "", "{}"), ErrorKind::Other),
        (String::new(), ErrorKind::Unavailable),
    ];
    for (canned_answer, kind) in cases {
        let store = canned(vec![canned_answer.clone()]).await;
        let put = store
            .put(&key("x"), body("x"), PutMode::Create, &PutToken::random())
            .await;
        let error = put.unwrap_err();
        assert_eq!(error.kind, kind, "{canned_answer}: {}", shown(&error));
    }
}

const OF_OBJECT: &str =
    "x-goog-generation: 1\r\nx-goog-stored-content-length: 10\r\nx-goog-hash: crc32c=KAwGng==\r\n";

#[tokio::test]
async fn a_body_cut_by_the_connection_is_read_on() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{OF_OBJECT}\r\n0123");
    let rest = format!("Content-Range: bytes 4-9/10\r\n{OF_OBJECT}");
    let store = canned(vec![head, answer("206 Partial Content", &rest, "456789")]).await;
    let store = Store::new(Arc::new(store), quick_options());
    assert_eq!(read(&store, "x").await, "0123456789");
}

#[tokio::test]
async fn a_body_is_one_request_and_only_transfer_makes_another() {
    let unavailable = || answer("503 Service Unavailable", "", "");
    let cut = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{OF_OBJECT}\r\n0123");
    let (url, requests) = support::recorded(vec![
        unavailable(),
        unavailable(),
        cut,
        answer("200 OK", OF_OBJECT, "never asked for"),
    ])
    .await;
    let store = store_at(&url, server::BUCKET);
    let token = PutToken::random();
    // As long as makes Google's crate begin a session, were it left to itself.
    let put = store
        .put(&key("x"), bytes(PART), PutMode::Create, &token)
        .await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::Unavailable);
    let get = store.get(&key("x"), 0, None).await;
    assert_eq!(get.err().unwrap().kind, ErrorKind::Unavailable);
    let error = first_error(&store, 0, None).await;
    assert_eq!(error.kind, ErrorKind::Unavailable, "{}", shown(&error));
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert!(requests[0].contains("uploadtype=multipart"), "{requests:?}");
}

/// Google's answers to ranges have no hash, not even where the range is the whole object.
#[tokio::test]
async fn a_body_cut_before_its_first_byte_is_asked_for_again() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{OF_OBJECT}\r\n");
    let rest = "Content-Range: bytes 0-9/10\r\nx-goog-generation: 1\r\nx-goog-stored-content-length: 10\r\n";
    let again = answer("206 Partial Content", rest, "0123456789");
    let store = Store::new(Arc::new(canned(vec![head, again]).await), quick_options());
    assert_eq!(read(&store, "x").await, "0123456789");
}

#[tokio::test]
async fn bodies_other_than_asked_for_are_found_out() {
    let packed = format!("x-goog-stored-content-encoding: gzip\r\n{OF_OBJECT}");
    let elsewhere = format!("Content-Range: bytes 4-5/10\r\n{OF_OBJECT}");
    let nameless = OF_OBJECT.replace("x-goog-generation: 1\r\n", "");
    let unsummed = "x-goog-generation: 1\r\nx-goog-stored-content-length: 10\r\n";
    for (given, offset, length) in [
        (answer("200 OK", OF_OBJECT, "0123456789"), 5, Some(1)),
        (answer("206 Partial Content", &elsewhere, "45"), 5, Some(1)),
        (answer("206 Partial Content", &elsewhere, "45"), 0, Some(3)),
        (answer("200 OK", &packed, "0123456789"), 0, None),
        (answer("200 OK", &nameless, "0123456789"), 0, None),
        (answer("200 OK", unsummed, "0123456789"), 0, None),
    ] {
        let store = canned(vec![given.clone()]).await;
        let error = first_error(&store, offset, length).await;
        assert_eq!(error.kind, ErrorKind::Other, "{given}");
    }
}

/// Where a read fails: at its answer or in its body.
async fn first_error(store: &GcsStore, offset: u64, length: Option<u64>) -> Error {
    let mut download = match store.get(&key("x"), offset, length).await {
        Ok(download) => download,
        Err(error) => return error,
    };
    while let Some(chunk) = download.body.next().await {
        if let Err(error) = chunk {
            return error;
        }
    }
    panic!("all bytes came");
}

#[tokio::test]
async fn the_length_that_a_server_leaves_out_is_asked_for() {
    let bare = "x-goog-generation: 1\r\nx-goog-hash: crc32c=KAwGng==\r\n";
    let range = format!("Content-Range: bytes 4-5/10\r\n{bare}");
    let resource =
        |generation| format!(r#"{{"name":"x","size":"10","generation":"{generation}"}}"#);
    for (body, offset, length) in [
        (answer("200 OK", bare, "0123456789"), 0, None),
        (answer("206 Partial Content", &range, "45"), 4, Some(2)),
    ] {
        let same = answer("200 OK", "", &resource(1));
        let store = canned(vec![body.clone(), same]).await;
        let download = store.get(&key("x"), offset, length).await.unwrap();
        assert_eq!(download.object_size_bytes, 10);
        let replaced = answer("200 OK", "", &resource(2));
        let store = canned(vec![body, replaced]).await;
        let error = store.get(&key("x"), offset, length).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Conflict);
    }
}

#[tokio::test]
async fn the_first_byte_of_an_empty_object_is_no_byte() {
    let outside = answer("416 Range Not Satisfiable", "", "");
    let empty = "x-goog-generation: 1\r\nx-goog-hash: crc32c=AAAAAA==\r\n";
    let store = canned(vec![outside.clone(), answer("200 OK", empty, "")]).await;
    let download = store.get(&key("x"), 0, Some(1)).await.unwrap();
    assert_eq!(download.object_size_bytes, 0);
    let store = canned(vec![outside]).await;
    let error = store.get(&key("x"), 1, None).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_page_that_is_no_listing_is_not_taken_for_an_empty_one() {
    for (page, kind) in [
        ("{}", ErrorKind::Other),
        (r#"{"kind":"storage#buckets"}"#, ErrorKind::Other),
        (
            r#"{"kind":"storage#objects","items":[{"name":"some/prefix/x"}]}"#,
            ErrorKind::Other,
        ),
        (r#"{"kind":"storage#objects","#, ErrorKind::Unavailable),
    ] {
        let store = canned(vec![answer("200 OK", "", page)]).await;
        let error = store.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{page}");
    }
}

#[tokio::test]
async fn keys_that_were_not_deleted_come_back() {
    let refused = refusal("403 Forbidden", "retentionPolicyNotMet", "why");
    let store = canned(vec![refused.clone(), refused]).await;
    let refused = store.delete(&[key("a"), key("b")]).await.unwrap();
    assert_eq!(refused.len(), 2);
    for (_, error) in refused {
        assert_eq!(error.kind, ErrorKind::PermissionDenied);
    }
}

#[tokio::test]
async fn only_a_delete_that_gcs_answers_is_one() {
    let html = "<html><body>please log in</body></html>";
    let page = answer("200 OK", "Content-Type: text/html\r\n", html);
    let store = canned(vec![page]).await;
    let refused = store.delete(&[key("a")]).await.unwrap();
    assert_eq!(refused[0].1.kind, ErrorKind::Unavailable);
    let store = canned(vec![answer("204 No Content", "", "")]).await;
    assert!(store.delete(&[key("a")]).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_upload_without_an_address_is_none() {
    let store = canned(vec![answer("200 OK", "", "")]).await;
    let begun = store
        .start_upload(&key("x"), PutMode::Create, &PutToken::random())
        .await;
    assert_eq!(begun.unwrap_err().kind, ErrorKind::Other);
}

#[tokio::test]
async fn rights_have_the_names_of_iam() {
    let store = store_at("http://127.0.0.1:1", server::BUCKET);
    assert_eq!(store.right(Right::Create), "storage.objects.create");
    assert_eq!(store.right(Right::AbortUpload), "storage.objects.create");
    assert_eq!(store.right(Right::Read), "storage.objects.get");
    assert_eq!(store.right(Right::List), "storage.objects.list");
    assert_eq!(store.right(Right::Delete), "storage.objects.delete");
}

/// The environment belongs to a process, so these tests run themselves as others.
const CHILD: &str = "WALHALLA_TEST_CHILD";

/// Runs the test of this name as a process that sees only these variables.
async fn run_child(name: &str, variables: Vec<(&'static str, String)>) -> std::process::Output {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env_clear();
    child.env(CHILD, "1").env("HOME", "/nonexistent");
    child.envs(variables);
    tokio::task::spawn_blocking(move || child.output().unwrap())
        .await
        .unwrap()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_opens_the_server_that_the_environment_names() {
    if std::env::var_os(CHILD).is_some() {
        return open_url().await;
    }
    let server = GcsServer::start().await;
    let name = "a_url_opens_the_server_that_the_environment_names";
    let host = ("STORAGE_EMULATOR_HOST", server.endpoint.clone());
    let output = run_child(name, vec![host]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.object_names(), ["a b/object"]);
    let without_protocol = server.endpoint.replace("http://", "");
    let output = run_child(name, vec![("STORAGE_EMULATOR_HOST", without_protocol)]).await;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("STORAGE_EMULATOR_HOST names no protocol"),
        "{said}"
    );
}

async fn open_url() {
    let opened = open("gs://bucket/a%20b/", &StoreSettings::default()).await;
    let store = opened.unwrap_or_else(|error| panic!("{}", shown(&error)));
    assert_eq!(store.url(), "gs://bucket/a b");
    let store = Store::new(store, quick_options());
    store
        .put(&key("object"), body("body"), PutMode::Create)
        .await
        .unwrap();
}

/// What a child does that finds its credentials itself.
async fn use_application_default_credentials() {
    let location = Location::new("gs", server::BUCKET, "");
    let settings = StoreSettings::default();
    let store = GcsStore::with_endpoint(location, &settings, &variable("ENDPOINT"), None).unwrap();
    let store = Store::new(Arc::new(store), quick_options());
    let started = Instant::now();
    let seconds: u64 = variable("SECONDS").parse().unwrap();
    let mut number = 0;
    while number == 0 || started.elapsed() < Duration::from_secs(seconds) {
        let object = key(&format!("{}/{number}", variable("OBJECT")));
        let put = store.put(&object, body("x"), PutMode::Create).await;
        put.unwrap_or_else(|error| panic!("{}", shown(&error)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        number += 1;
    }
}

fn write_json(dir: &Path, name: &str, json: &serde_json::Value) -> String {
    let path = dir.join(name);
    std::fs::write(&path, json.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// As gcloud writes it for a person.
fn authorized_user(dir: &Path, endpoint: &str) -> String {
    let json = serde_json::json!({
        "type": "authorized_user",
        "client_id": "id",
        "client_secret": "client-secret",
        "refresh_token": "refresh-secret",
        "token_uri": format!("{endpoint}/token"),
    });
    write_json(dir, "authorized_user.json", &json)
}

/// Workload identity federation: a token of the workload's, in a file, for one of Google's.
fn external_account(dir: &Path, endpoint: &str) -> String {
    let subject = dir.join("subject-token");
    std::fs::write(&subject, "subject-secret").unwrap();
    let json = serde_json::json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{endpoint}/sts"),
        "credential_source": { "file": subject },
    });
    write_json(dir, "external_account.json", &json)
}

/// A service account's key, made for this test.
fn service_account(dir: &Path) -> String {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der>::as_der(&pair).unwrap();
    let label = "PRIVATE KEY";
    let pem = format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der.as_ref())
    );
    let json = serde_json::json!({
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": pem,
        "client_email": "walhalla@p.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:1/token",
    });
    write_json(dir, "service_account.json", &json)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_four_kinds_of_credentials_are_found() {
    if std::env::var_os(CHILD).is_some() {
        return use_application_default_credentials().await;
    }
    let server = GcsServer::start().await;
    server.demand_tokens(Duration::from_hours(1), Duration::from_hours(1));
    let dir = tempfile::tempdir().unwrap();
    let file = "GOOGLE_APPLICATION_CREDENTIALS";
    let host = server.endpoint.replace("http://", "");
    for (object, variable, value, tokens) in [
        (
            "user",
            file,
            authorized_user(dir.path(), &server.endpoint),
            1,
        ),
        (
            "federated",
            file,
            external_account(dir.path(), &server.endpoint),
            2,
        ),
        ("metadata", "GCE_METADATA_HOST", host, 3),
        // Signs its tokens itself.
        ("service", file, service_account(dir.path()), 3),
    ] {
        let name = "all_four_kinds_of_credentials_are_found";
        let variables = vec![
            (variable, value),
            ("ENDPOINT", server.endpoint.clone()),
            ("OBJECT", object.to_owned()),
            ("SECONDS", "0".to_owned()),
        ];
        let output = run_child(name, variables).await;
        assert!(output.status.success(), "{object}: {output:?}");
        assert!(server.object_names().contains(&format!("{object}/0")));
        assert_eq!(server.tokens_given(), tokens, "{object}");
    }
}

/// Google's library asks for the next token four minutes before the end of the one it has: here after a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_is_replaced_while_the_store_is_used() {
    if std::env::var_os(CHILD).is_some() {
        return use_application_default_credentials().await;
    }
    let server = GcsServer::start().await;
    server.demand_tokens(Duration::from_secs(241), Duration::from_secs(3));
    let dir = tempfile::tempdir().unwrap();
    let name = "a_token_that_expires_is_replaced_while_the_store_is_used";
    let variables = vec![
        (
            "GOOGLE_APPLICATION_CREDENTIALS",
            authorized_user(dir.path(), &server.endpoint),
        ),
        ("ENDPOINT", server.endpoint.clone()),
        ("OBJECT", "x".to_owned()),
        ("SECONDS", "5".to_owned()),
    ];
    let output = run_child(name, variables).await;
    assert!(output.status.success(), "{output:?}");
    assert!(server.tokens_given() >= 3, "{}", server.tokens_given());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_revoked_is_replaced_once_and_not_over_and_over() {
    if std::env::var_os(CHILD).is_some() {
        return lose_tokens().await;
    }
    let server = GcsServer::start().await;
    server.demand_tokens(Duration::from_hours(1), Duration::from_hours(1));
    let dir = tempfile::tempdir().unwrap();
    let name = "a_token_that_was_revoked_is_replaced_once_and_not_over_and_over";
    let go = dir.path().join("go");
    let variables = vec![
        (
            "GOOGLE_APPLICATION_CREDENTIALS",
            authorized_user(dir.path(), &server.endpoint),
        ),
        ("ENDPOINT", server.endpoint.clone()),
        ("GO", go.to_str().unwrap().to_owned()),
    ];
    let child = tokio::spawn(async move { run_child(name, variables).await });
    for round in ["1", "2"] {
        while !server.object_names().contains(&round.to_owned()) {
            assert!(!child.is_finished(), "{:?}", child.await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.revoke_tokens();
        std::fs::write(&go, round).unwrap();
    }
    let output = child.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.tokens_given(), 2);
}

async fn lose_tokens() {
    let location = Location::new("gs", server::BUCKET, "");
    let settings = StoreSettings::default();
    let store = GcsStore::with_endpoint(location, &settings, &variable("ENDPOINT"), None).unwrap();
    let store = Store::new(Arc::new(store), quick_options());
    for round in ["1", "2"] {
        // With the second round's, a token was revoked and replaced.
        store
            .put(&key(round), body("x"), PutMode::Create)
            .await
            .unwrap();
        while std::fs::read_to_string(variable("GO")).unwrap_or_default() != round {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let error = store.head(&key("1")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthenticated, "{}", shown(&error));
    assert!(!shown(&error).contains("secret"), "{}", shown(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_are_none_that_are_refused_and_that_cannot_be_had_are_told_apart() {
    if std::env::var_os(CHILD).is_some() {
        return fail_to_authenticate().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let broken = write_json(
        dir.path(),
        "broken.json",
        &serde_json::json!({"type": "secret"}),
    );
    let away = authorized_user(dir.path(), "http://127.0.0.1:1");
    let denied = support::canned(vec![answer("400 Bad Request", "", "invalid_grant"); 9]).await;
    let other = tempfile::tempdir().unwrap();
    let denied = authorized_user(other.path(), &denied);
    for (file, kind) in [
        ("/nonexistent/file".to_owned(), "NoCredentials"),
        (broken, "Unauthenticated"),
        (denied, "Unauthenticated"),
        (away, "Unavailable"),
    ] {
        let name =
            "credentials_that_are_none_that_are_refused_and_that_cannot_be_had_are_told_apart";
        let variables = vec![
            ("GOOGLE_APPLICATION_CREDENTIALS", file.clone()),
            ("KIND", kind.to_owned()),
        ];
        let output = run_child(name, variables).await;
        assert!(output.status.success(), "{file}: {output:?}");
    }
}

async fn fail_to_authenticate() {
    let location = Location::new("gs", server::BUCKET, "");
    let settings = StoreSettings::default();
    let store = GcsStore::with_endpoint(location, &settings, "http://127.0.0.1:1", None).unwrap();
    let error = store.head(&key("x")).await.unwrap_err();
    assert_eq!(
        format!("{:?}", error.kind),
        variable("KIND"),
        "{}",
        shown(&error)
    );
    let said = shown(&error);
    assert!(said.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{said}");
    for secret in ["client-secret", "refresh-secret"] {
        assert!(!said.contains(secret), "{said}");
    }
    assert!(!format!("{store:?}").contains("secret"));
}

#[tokio::test]
async fn wrong_gcs_urls_and_settings_are_refused() {
    for url in [
        "gs:",
        "gs://",
        "gs:///prefix",
        "gs://bucket/a//b",
        "gs://bucket/.hidden",
        "gs://bucket?x",
    ] {
        let error = open(url, &StoreSettings::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{url}");
    }
    let settings = StoreSettings {
        ca_file: Some("/nonexistent/ca.pem".into()),
        ..StoreSettings::default()
    };
    for (settings, url) in [
        (&StoreSettings::default(), "127.0.0.1:4443"),
        (&StoreSettings::default(), "ftp://127.0.0.1"),
        (&settings, "http://127.0.0.1:4443"),
    ] {
        let location = Location::new("gs", "bucket", "");
        let error = GcsStore::with_endpoint(location, settings, url, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_comes_through_every_fault_or_tells_it_in_time() {
    let server = GcsServer::start().await;
    let address = server.endpoint.strip_prefix("http://").unwrap();
    let address = address.parse().unwrap();
    let open =
        |endpoint: &str| -> Arc<dyn ObjectStore> { Arc::new(store_at(endpoint, server::BUCKET)) };
    walhalla_providers::testing::faults::faults_suite(open, address).await;
}
